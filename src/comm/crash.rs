//! Named moments at which a test can end, break or hold up a rank, to see what survives and that the others notice.
//!
//! An environment variable names the moment: `NAME`, or `NAME:n` for the n-th time that this process comes by.
//! `SLUICE_CRASH_AT` kills the process, `SLUICE_PANIC_AT` panics, `SLUICE_PAUSE_AT` waits for half a minute, and
//! `SLUICE_FAIL_AT` makes the work at that moment an error, where it can be one. Without them nothing happens.

use anyhow::{bail, Result};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;
use std::time::Duration;

/// What one of the variables asks for.
struct Order {
    variable: &'static str,
    moment: String,
    time: u64,
    passed: AtomicU64,
}

impl Order {
    fn of(variable: &'static str) -> Option<Order> {
        let wanted = std::env::var(variable).ok()?;
        let (moment, time) = match wanted.rsplit_once(':') {
            Some((moment, time)) => (moment.to_owned(), time.parse().unwrap_or(1)),
            None => (wanted, 1),
        };
        let passed = AtomicU64::new(0);
        Some(Order {
            variable,
            moment,
            time,
            passed,
        })
    }

    /// Whether this is the moment.
    fn is_now(&self, name: &str) -> bool {
        self.moment == name && self.passed.fetch_add(1, Ordering::SeqCst) + 1 == self.time
    }
}

const VARIABLES: [&str; 4] = [
    "SLUICE_CRASH_AT",
    "SLUICE_PANIC_AT",
    "SLUICE_PAUSE_AT",
    "SLUICE_FAIL_AT",
];

/// The variable whose moment `name` is, if any.
fn ordered(name: &str, variables: &[&str]) -> Option<&'static str> {
    static ORDERS: OnceLock<Vec<Order>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| VARIABLES.into_iter().filter_map(Order::of).collect());
    let due = |order: &&Order| variables.contains(&order.variable) && order.is_now(name);
    orders.iter().find(due).map(|order| order.variable)
}

/// The moment `name`: ends the process at once (SIGKILL: no destructor runs, nothing is flushed), panics, or waits, when
/// the environment asks for it.
pub fn crash_point(name: &str) {
    match ordered(name, &VARIABLES[..3]) {
        Some("SLUICE_CRASH_AT") => {
            eprintln!("SLUICE_CRASH_AT: ending the process at {name}");
            super::signal::kill_self()
        }
        Some("SLUICE_PANIC_AT") => panic!("SLUICE_PANIC_AT: at {name}"),
        Some(_) => {
            eprintln!("SLUICE_PAUSE_AT: waiting at {name}");
            std::thread::sleep(Duration::from_secs(30));
        }
        None => {}
    }
}

/// [`crash_point`], and an error where `SLUICE_FAIL_AT` asks for one.
///
/// # Errors
/// Only then.
pub fn fail_point(name: &str) -> Result<()> {
    crash_point(name);
    if ordered(name, &VARIABLES[3..]).is_some() {
        bail!("SLUICE_FAIL_AT: failing at {name}");
    }
    Ok(())
}
