//! Ranks: how they were launched, and what they may use of their machine.

pub mod affinity;
pub mod launch;

/// An error that another rank has reported already: this rank ends quietly.
#[derive(Debug)]
pub struct ReportedElsewhere;

impl std::fmt::Display for ReportedElsewhere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("another rank has failed and said why")
    }
}

impl std::error::Error for ReportedElsewhere {}
