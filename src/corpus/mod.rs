//! Inputs: lines, TSV and JSONL (plain, gzip, zstd, standard input), the tokenizer, and how rows are shared out.
//!
//! Rank 0 reads an input once from end to end ([`scan()`]): every fault is found before work starts, and the input is
//! cut into windows. The [`Scan`] is broadcast; afterwards any rank reads any window by itself ([`WindowReader`]).
//! Inside a window the rows are grouped into [`packets`] of similar length, which [`deal`] hands to ranks.
//!
//! What is done with every odd input is written down in `docs/inputs.md`.

mod format;
mod language;
mod packet;
mod prefix;
mod record;
mod scan;
mod source;
mod tokenizer;
mod window;

pub use format::{Format, Packing};
pub use packet::{deal, packets, PacketLimits};
pub use record::{Columns, Record};
pub use scan::{scan, scan_as, Problem, Scan, WindowLimits, WindowStart, MAX_LINE_BYTES};
pub use source::{refuse_overwrite, spool};
pub use tokenizer::{Source, Tokenizer};
pub use window::WindowReader;
