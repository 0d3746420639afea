//! The threads of a device.
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{ensure, Context, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Work below this many nanoseconds is not worth waking a thread.
const SMALL: f64 = 20_000.0;

/// The calling thread and those that help it.
pub(super) struct Pool {
    threads: usize,
    helpers: Option<ThreadPool>,
}

impl Pool {
    /// A pool of `threads` threads, the caller's being one.
    ///
    /// The calling thread becomes worker 0, so that other rayon work called from it (the main thread, the only one that
    /// may call MPI) runs on the same threads. Where it is in a pool already, only the helpers are started.
    pub(super) fn start(threads: usize) -> Result<Pool> {
        ensure!(threads > 0, "threads: found 0, expected at least 1");
        if threads == 1 {
            return Ok(Pool { threads, helpers: None });
        }
        let builder = |n| {
            ThreadPoolBuilder::new()
                .num_threads(n)
                .thread_name(|i| format!("cpu-{i}"))
        };
        let pool = builder(threads)
            .use_current_thread()
            .build()
            .or_else(|_| builder(threads - 1).build());
        let helpers = pool.with_context(|| format!("threads: cannot start the {threads} asked for; ask for fewer"))?;
        Ok(Pool {
            threads,
            helpers: Some(helpers),
        })
    }

    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `each` for 0..tasks, on all threads where `nanoseconds` of work (on one thread) are worth it. Threads take
    /// the next task as they get free, so uneven tasks are no harm.
    pub(super) fn for_each(&self, tasks: usize, nanoseconds: f64, each: impl Fn(usize) + Sync) {
        let Some(helpers) = self.helpers.as_ref().filter(|_| tasks > 1 && nanoseconds > SMALL) else {
            return (0..tasks).for_each(each);
        };
        let next = AtomicUsize::new(0);
        let work = || loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= tasks {
                break;
            }
            each(i);
        };
        helpers.in_place_scope(|scope| {
            for _ in 1..self.threads.min(tasks) {
                scope.spawn(|_| work());
            }
            work();
        });
    }
}

/// A pointer into a buffer of which each task writes a part of its own.
#[derive(Clone, Copy)]
pub(super) struct Shared<T = f32>(pub *mut T);

// SAFETY: tasks write disjoint parts, as each user of this type says.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The element at `offset`.
    ///
    /// # Safety
    /// It lies inside the buffer.
    pub(super) unsafe fn at(self, offset: usize) -> *mut T {
        // SAFETY: the caller's.
        unsafe { self.0.add(offset) }
    }
}
