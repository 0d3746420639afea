//! The log: one line an event on stderr, with the rank in each line.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use env_logger::{Builder, Env};

static RANK: AtomicUsize = AtomicUsize::new(0);
/// 0 until [`set_rank`] is called: then lines have no rank.
static RANKS: AtomicUsize = AtomicUsize::new(0);

/// Starts the log: what `RUST_LOG` asks for, else this program's info and others' warnings. Colours only on a terminal.
/// Called once, before ranks know of each other; a second call does nothing.
pub fn start() {
    let wanted = Env::default().default_filter_or("warn,sluice=info,sluicegate=info");
    let format = |out: &mut env_logger::fmt::Formatter, record: &log::Record<'_>| {
        let level = record.level();
        let style = out.default_level_style(level);
        let head = head(RANK.load(Ordering::Relaxed), RANKS.load(Ordering::Relaxed));
        // A message with a line break would look like two events.
        let text = record.args().to_string().replace('\n', " ");
        let time = out.timestamp_seconds();
        writeln!(
            out,
            "{head}{time} {style}{}{style:#}: {text}",
            level.as_str().to_ascii_lowercase()
        )
    };
    // A second start fails, and the first one stands.
    let _ = Builder::from_env(wanted).format(format).try_init();
}

/// From now on lines begin with this rank, e.g. `[rank 3/8]`.
pub fn set_rank(rank: usize, ranks: usize) {
    RANK.store(rank, Ordering::Relaxed);
    RANKS.store(ranks, Ordering::Relaxed);
}

/// The beginning of a line.
fn head(rank: usize, ranks: usize) -> String {
    if ranks == 0 {
        String::new()
    } else {
        format!("[rank {rank}/{ranks}] ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rank_stands_first() {
        assert_eq!(head(3, 8), "[rank 3/8] ");
        assert_eq!(head(0, 0), "");
    }
}
