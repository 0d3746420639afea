//! Asked to stop: SIGTERM, SIGUSR1 and SIGINT are noted, and seen between two steps. A second one ends at once.

use std::sync::atomic::{AtomicU8, Ordering};

static RECEIVED: AtomicU8 = AtomicU8::new(0);

extern "C" fn note(signal: libc::c_int) {
    if RECEIVED.swap(signal as u8, Ordering::SeqCst) != 0 {
        // SAFETY: _exit may be called from a signal handler; nothing is flushed, as is meant.
        unsafe { libc::_exit(128 + signal) };
    }
}

/// From now on signals are noted instead of ending the process.
pub fn listen() {
    for signal in [libc::SIGTERM, libc::SIGUSR1, libc::SIGINT] {
        // SAFETY: the handler only swaps an atomic and may call _exit, both of which are async-signal-safe.
        unsafe { libc::signal(signal, note as *const () as libc::sighandler_t) };
    }
}

/// The signal that came, 0 for none.
pub fn received() -> u8 {
    RECEIVED.load(Ordering::SeqCst)
}
