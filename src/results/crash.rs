//! Named moments at which a test can kill the process, to see what survives.

use std::sync::atomic::{AtomicU64, Ordering};

/// Ends the process at once (no destructor runs, nothing is flushed) when the environment variable `SLUICE_CRASH_AT`
/// is `name`, or `name:n` and this is the n-th time that this process comes by. Otherwise does nothing.
pub fn crash_point(name: &str) {
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let Ok(wanted) = std::env::var("SLUICE_CRASH_AT") else {
        return;
    };
    let (wanted, time) = match wanted.rsplit_once(':') {
        Some((wanted, time)) => (wanted, time.parse().unwrap_or(1)),
        None => (wanted.as_str(), 1),
    };
    if wanted == name && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == time {
        eprintln!("SLUICE_CRASH_AT: ending the process at {name}");
        std::process::abort();
    }
}
