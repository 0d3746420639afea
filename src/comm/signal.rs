//! Asked to stop: SIGTERM, SIGUSR1 and SIGINT are noted, and seen between two steps. A second one ends at once.

use std::sync::atomic::{AtomicU64, AtomicU8, Ordering};

const SIGNALS: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGUSR1, libc::SIGINT];

/// Milliseconds within which a second signal counts as the first one: a launcher and the batch system may both pass on
/// the same request.
const ECHO: u64 = 250;

static RECEIVED: AtomicU8 = AtomicU8::new(0);
/// When the first one came, in milliseconds; 0 for never.
static SINCE: AtomicU64 = AtomicU64::new(0);

extern "C" fn note(signal: libc::c_int) {
    let now = milliseconds();
    match SINCE.compare_exchange(0, now, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => RECEIVED.store(signal as u8, Ordering::SeqCst),
        Err(first) if now.saturating_sub(first) < ECHO => {}
        // SAFETY: _exit may be called from a signal handler; nothing is flushed, as is meant.
        Err(_) => unsafe { libc::_exit(128 + signal) },
    }
}

/// A clock that never goes back, from 1.
fn milliseconds() -> u64 {
    // SAFETY: clock_gettime only fills the struct it is given, and may be called from a signal handler.
    let now = unsafe {
        let mut now: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now);
        now
    };
    1 + now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// From now on signals are noted instead of ending the process.
pub fn listen() {
    for signal in SIGNALS {
        // SAFETY: the handler swaps atomics, reads a clock and may call _exit, all of which are async-signal-safe.
        unsafe { libc::signal(signal, note as *const () as libc::sighandler_t) };
    }
}

/// From now on signals end the process again, also one that was noted and that nobody has looked at.
pub fn end_listening() {
    for signal in SIGNALS {
        // SAFETY: the default action is always a valid one.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let signal = received();
    if signal != 0 {
        // SAFETY: raising a signal at oneself.
        unsafe { libc::raise(signal.into()) };
    }
}

/// The signal that came, 0 for none.
pub fn received() -> u8 {
    RECEIVED.load(Ordering::SeqCst)
}

/// Ends this process as `kill -9` does.
pub(super) fn kill_self() -> ! {
    // SAFETY: raising a signal at oneself; SIGKILL doesn't return.
    unsafe { libc::raise(libc::SIGKILL) };
    std::process::abort()
}
