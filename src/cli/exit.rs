//! Exit codes, and the one place where an error is printed.

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Error, Result};

use crate::comm::ReportedElsewhere;

/// How a job ended, when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything is done: 0.
    Done,
    /// Done, but some rows failed: 1.
    SomeRowsFailed,
    /// Refused, with what had to be said already printed: 2.
    Refused,
    /// Stopped by this signal after what was finished was kept: 128 + the signal's number.
    Signal(u8),
}

impl Exit {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::SomeRowsFailed => 1,
            Exit::Refused => 2,
            Exit::Signal(signal) => 128u8.saturating_add(signal),
        }
    }
}

/// Ends the program after a job: a broken pipe is success, an error is printed once with all its causes (not here, if
/// another rank has printed it) and is 2.
pub fn finish(end: Result<Exit>) -> ExitCode {
    ExitCode::from(match end {
        Ok(exit) => exit.code(),
        Err(error) if is_broken_pipe(&error) => Exit::Done.code(),
        Err(error) => {
            if !error.is::<ReportedElsewhere>() {
                say(&message(&error));
            }
            Exit::Refused.code()
        }
    })
}

/// The error with the rank that it happened on; one that another rank has printed stays what it is.
pub fn by_rank(rank: usize, error: Error) -> Error {
    if error.is::<ReportedElsewhere>() || is_broken_pipe(&error) {
        return error;
    }
    error.context(format!("rank {rank}"))
}

/// Prints an error now, once, while the other ranks are still there; what is left of it ends the program quietly.
pub fn report(error: Error) -> Error {
    if error.is::<ReportedElsewhere>() || is_broken_pipe(&error) {
        return error;
    }
    say(&message(&error));
    ReportedElsewhere.into()
}

/// Ends the program when arguments were refused (or asked for help), before ranks know of each other.
///
/// All ranks are refused alike, so only the one that `speaks` prints. The others wait a little: a launcher ends the job
/// at the first process that fails, and that must not come before the line is out.
pub fn refuse(error: &Error, speaks: bool) -> ExitCode {
    let usage = error.downcast_ref::<clap::Error>();
    if usage.is_some_and(|usage| !usage.use_stderr()) {
        if speaks {
            // Nothing is left to do where help can't be printed.
            let _ = usage.map(clap::Error::print);
        }
        return ExitCode::from(Exit::Done.code());
    }
    if !speaks {
        sleep(Duration::from_secs(2));
    }
    // A config file may be missing on one node only: that rank is alone with its error, and still there after the wait.
    if speaks || usage.is_none() {
        say(&message(error));
    }
    ExitCode::from(Exit::Refused.code())
}

/// Whether this error comes from a reader that went away, such as `head`.
pub fn is_broken_pipe(error: &Error) -> bool {
    let is = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
    };
    error.chain().any(is)
}

/// What is printed for an error: the chain on one line, or clap's text under this program's name.
pub fn message(error: &Error) -> String {
    match error.downcast_ref::<clap::Error>() {
        Some(usage) => {
            let text = usage.render().to_string();
            match text.strip_prefix("error: ") {
                Some(text) => format!("sluice: error: {}", text.trim_end()),
                None => text.trim_end().to_owned(),
            }
        }
        None => format!("sluice: error: {error:#}"),
    }
}

/// Prints to stderr; a closed stderr is no reason to panic.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn codes_are_the_documented_ones() {
        let exits = [
            Exit::Done,
            Exit::SomeRowsFailed,
            Exit::Refused,
            Exit::Signal(15),
            Exit::Signal(10),
        ];
        assert_eq!(exits.map(Exit::code), [0, 1, 2, 143, 138]);
    }

    #[test]
    fn a_broken_pipe_is_found_below_its_contexts() {
        let broken = Err::<(), _>(io::Error::from(io::ErrorKind::BrokenPipe))
            .context("cannot print")
            .unwrap_err();
        assert!(is_broken_pipe(&broken));
        let other = Err::<(), _>(io::Error::from(io::ErrorKind::NotFound))
            .context("cannot print")
            .unwrap_err();
        assert!(!is_broken_pipe(&other));
    }

    #[test]
    fn an_error_is_one_line_with_its_causes() {
        let error = Err::<(), _>(io::Error::other("disk is gone"))
            .context("cannot write out.h5")
            .unwrap_err();
        assert_eq!(message(&error), "sluice: error: cannot write out.h5: disk is gone");
    }
}
