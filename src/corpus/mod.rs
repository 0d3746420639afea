//! Inputs: lines, TSV and JSONL (plain, gzip, zstd, standard input), the tokenizer, and how rows are shared out.
//!
//! Rank 0 reads an input once from end to end ([`scan()`]): every fault is found before work starts, and the input is
//! cut into windows. The [`Scan`] is broadcast; afterwards any rank reads any window by itself ([`WindowReader`]).
//! Inside a window the rows are grouped into [`packets`] of similar length, which [`deal`] hands to ranks.
//!
//! What is done with every odd input is written down in `docs/inputs.md`.

mod arguments;
mod chat;
mod format;
mod jsonl;
mod language;
mod nllb;
mod packet;
mod pass;
mod paths;
mod prefix;
mod prompt;
mod python_json;
mod reading;
mod record;
mod scan;
mod settings;
mod source;
mod tokenizer;
mod tsv;
mod window;

pub use chat::ChatTemplate;
pub use format::{Format, Packing};
pub use nllb::{NllbTokenizer, Source};
pub use packet::{deal, packets, PacketLimits};
pub(crate) use pass::scan_for_job;
pub use pass::{scan, MAX_LINE_BYTES};
pub use paths::paths;
pub(crate) use prompt::is_for_templates;
pub use reading::{ColumnChoice, Kind, Reading, Role};
pub use record::{Chat, Prompt, Record};
pub use scan::{InputFile, Problem, RowPlace, Scan, WindowLimits, WindowStart};
#[cfg(test)]
pub(crate) use settings::asks_nothing;
pub use settings::{NotFollowed, RowSettings};
pub use source::{refuse_overwrite, spool};
pub use tokenizer::Tokenizer;
pub use tsv::Columns;
pub use window::WindowReader;
