//! Options for keeping some of the experts in memory.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgGroup, Args, ValueEnum};
use serde::{Serialize, Serializer};

use super::value::{count, Memory, MANY};

/// How much memory experts get, and who has it.
#[derive(Debug, Clone, PartialEq, Default, Args, Serialize)]
#[command(group = ArgGroup::new("expert_budget").args(["expert_memory", "expert_slots"]))]
pub struct BufferArgs {
    /// Memory for experts on each rank, e.g. 8G, or 50% of what its experts take; the others are read from disk as they are
    /// needed, beside the work on those that are there. Changes no result. Default: all experts stay in memory
    #[arg(long, value_name = "SIZE|N%", help_heading = "Experts in memory")]
    pub expert_memory: Option<Share>,

    /// The same as a number of experts a layer and rank: N times the MoE layers are in memory
    #[arg(long, value_name = "N", value_parser = count(1, MANY), help_heading = "Experts in memory")]
    pub expert_slots: Option<usize>,

    /// Which expert makes room for another
    #[arg(long, value_enum, value_name = "POLICY", default_value_t = Eviction::Lookahead)]
    #[arg(requires = "expert_budget", help_heading = "Experts in memory")]
    pub eviction: Eviction,

    /// What is read before it is needed
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Prefetch::Trace)]
    #[arg(requires = "expert_budget", help_heading = "Experts in memory")]
    pub prefetch: Prefetch,

    /// Experts of each layer and rank that stay once they are there: hot:4 are the four with the most tokens so far
    #[arg(
        long,
        value_name = "hot:N",
        requires = "expert_budget",
        help_heading = "Experts in memory"
    )]
    pub pin: Option<Pin>,

    /// Keep the experts in DIR as the processor takes them, packed in the job's precision, so that reading one is nothing
    /// but reading: a file as large as all experts, made once and used by every later job. Best on a disk of the node's own
    #[arg(
        long,
        value_name = "DIR",
        requires = "expert_budget",
        help_heading = "Experts in memory"
    )]
    pub cache_dir: Option<PathBuf>,

    /// For studies: keep all experts in memory, but have each come over a link of so many bytes a second (12G: PCIe 3), as a
    /// GPU's would
    #[arg(long, value_name = "SIZE", requires = "expert_budget", conflicts_with = "cache_dir")]
    #[arg(value_parser = bandwidth, help_heading = "Experts in memory")]
    pub simulate_link: Option<u64>,
}

impl BufferArgs {
    /// What experts may take, where not all of them are to be in memory.
    pub fn budget(&self) -> Option<Budget> {
        let slots = self.expert_slots.map(Budget::SlotsOfLayer);
        slots.or(self.expert_memory.map(Budget::Memory))
    }
}

/// What experts may take of a rank's memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// So much.
    Memory(Share),
    /// So many experts for each MoE layer.
    SlotsOfLayer(usize),
}

/// An amount of memory, or a part of all that could be taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Share {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths.
    Percent(f64),
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Share, String> {
        let wrong = "it must be an amount of memory such as 512M or 8G, or a part such as 50%";
        match text.strip_suffix('%') {
            Some(number) => {
                let percent = number.trim().parse::<f64>().ok();
                let percent = percent.filter(|p| *p > 0.0 && *p <= 100.0);
                percent.map(Share::Percent).ok_or_else(|| wrong.to_owned())
            }
            None => match text.parse() {
                Ok(Memory::Bytes(bytes)) => Ok(Share::Bytes(bytes)),
                Ok(Memory::Auto) | Err(_) => Err(wrong.to_owned()),
            },
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Share::Bytes(bytes) => Memory::Bytes(*bytes).fmt(f),
            Share::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Experts that stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// The busiest ones of each layer.
    pub hot: usize,
}

impl FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Pin, String> {
        let number = text.strip_prefix("hot:").and_then(|n| n.parse().ok());
        let hot = number.filter(|n| (1..=MANY).contains(n));
        hot.map(|hot| Pin { hot })
            .ok_or_else(|| "it must be hot: and a number of experts, e.g. hot:4".to_owned())
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hot:{}", self.hot)
    }
}

impl Serialize for Pin {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Bytes a second in powers of ten, as links are sold: `12G`, `12GB/s`.
fn bandwidth(text: &str) -> Result<u64, String> {
    let plain = text.trim_end_matches("/s").trim_end_matches('B');
    let unit = [('k', 1e3), ('M', 1e6), ('G', 1e9)];
    let (letter, factor) = unit
        .into_iter()
        .find(|(letter, _)| plain.ends_with(*letter))
        .unwrap_or(('B', 1.0));
    let number = plain.trim_end_matches(letter).parse::<f64>().ok();
    let bytes = number.map(|n| n * factor).filter(|bytes| (1.0..1e18).contains(bytes));
    bytes
        .map(|bytes| bytes as u64)
        .ok_or_else(|| "it must be bytes a second such as 12G or 12GB/s".to_owned())
}

/// Which expert makes room for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Eviction {
    /// The paper's: first one that this batch does not need, else the one loaded last; each layer has its own slots.
    Lifo,
    /// The one not used for longest; each layer has its own slots.
    Lru,
    /// The one loaded first; each layer has its own slots.
    Fifo,
    /// The one used in the fewest batches; each layer has its own slots.
    Lfu,
    /// The one whose next use is expected latest, in one pool over all layers; experts that are there run first.
    #[default]
    Lookahead,
}

/// What is read before it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Prefetch {
    /// Nothing.
    Off,
    /// What the next layer is likely to need by what it needed before.
    #[default]
    Trace,
    /// What the next layer's gate chooses on this layer's input.
    Gate,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_pins_and_links_are_read_and_written_back() {
        for (text, share, shown) in [
            ("8GiB", Share::Bytes(8 << 30), "8G"),
            ("50%", Share::Percent(50.0), "50%"),
            ("12.5 %", Share::Percent(12.5), "12.5%"),
        ] {
            let read: Share = text.parse().unwrap();
            assert_eq!((read, read.to_string().as_str()), (share, shown), "{text}");
            assert_eq!(shown.parse(), Ok(share));
        }
        for text in ["", "%", "0%", "101%", "-5%", "nan%", "auto", "8X"] {
            assert!(text.parse::<Share>().unwrap_err().contains("50%"), "{text}");
        }
        assert_eq!("hot:4".parse(), Ok(Pin { hot: 4 }));
        for text in ["", "4", "hot:", "hot:0", "hot:-1", "cold:4"] {
            assert!(text.parse::<Pin>().unwrap_err().contains("hot:4"), "{text}");
        }
        let links = ["12GB/s", "1.5G", "300M/s", "5"].map(|text| bandwidth(text).unwrap());
        assert_eq!(links, [12_000_000_000, 1_500_000_000, 300_000_000, 5]);
        for text in ["", "fast", "0", "-1G", "12 parsecs"] {
            assert!(bandwidth(text).is_err(), "{text}");
        }
    }
}
