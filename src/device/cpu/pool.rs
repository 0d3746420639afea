//! The threads of a device.
//!
//! A decoding step is some hundred products of 0.1 to 1 ms, one after the other, with little in between. Helpers that went
//! to sleep after each would be woken too late for the next, so they look out for it for a while before they do.
use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::atomic::{fence, AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};

/// Work below this many nanoseconds is not worth a helper.
const SMALL: f64 = 10_000.0;
/// How long a helper looks out for work before it sleeps.
const PATIENCE: Duration = Duration::from_micros(200);
/// Looks between two looks at the clock.
const LOOKS: usize = 64;

/// Bit of [`Common::state`]: nobody may join the work in hand any more.
const CLOSED: u64 = 1 << 63;
/// Bits of [`Common::state`] that count the helpers at work; those above, but the highest, number the work.
const AT_WORK: u64 = 0xffff;

/// The calling thread and those that help it.
pub(super) struct Pool {
    helpers: Vec<Helper>,
    common: Arc<Common>,
    /// Work is in hand: whoever comes meanwhile, from another thread or from within a task, does its own alone.
    taken: AtomicBool,
}

struct Helper {
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

/// What the calling thread and its helpers share.
struct Common {
    state: AtomicU64,
    work: UnsafeCell<Work>,
    /// Of each helper: whether it sleeps, or is about to.
    asleep: Vec<AtomicBool>,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `work` is written only while `state` is closed and no helper is at work, and read only by helpers that have
// joined, which `state` orders after the writing.
unsafe impl Sync for Common {}
// SAFETY: as above; the pointer in `work` is followed only while the caller of `for_each` waits.
unsafe impl Send for Common {}

/// A closure without its type.
#[derive(Clone, Copy)]
struct Work {
    closure: *const (),
    call: unsafe fn(*const ()),
}

impl Pool {
    /// A pool of `threads` threads, the caller's being one.
    pub(super) fn start(threads: usize) -> Result<Pool> {
        ensure!(threads > 0, "threads: found 0, expected at least 1");
        let common = Arc::new(Common {
            state: AtomicU64::new(CLOSED),
            work: UnsafeCell::new(Work {
                closure: std::ptr::null(),
                call: |_| {},
            }),
            asleep: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Pool {
            helpers: Vec::new(),
            common,
            taken: AtomicBool::new(false),
        };
        for i in 0..threads - 1 {
            let common = Arc::clone(&pool.common);
            let started = std::thread::Builder::new()
                .name(format!("cpu-{}", i + 1))
                .spawn(move || common.help(i));
            let handle =
                started.with_context(|| format!("threads: cannot start the {threads} asked for; ask for fewer"))?;
            pool.helpers.push(Helper {
                thread: handle.thread().clone(),
                handle: Some(handle),
            });
        }
        Ok(pool)
    }

    pub(super) fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `each` for 0..tasks, on all threads where `nanoseconds` of work (on one thread) are worth it. Threads take
    /// the next task as they get free, so uneven tasks are no harm.
    pub(super) fn for_each(&self, tasks: usize, nanoseconds: f64, each: impl Fn(usize) + Sync) {
        let worth = tasks > 1 && nanoseconds > SMALL && !self.helpers.is_empty();
        if !worth || self.taken.swap(true, Ordering::Acquire) {
            return (0..tasks).for_each(each);
        }
        let next = AtomicUsize::new(0);
        let work = || loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= tasks {
                break;
            }
            each(i);
        };
        self.common.open(&work);
        // Waking a helper takes about as long as SMALL: no more than the work is worth.
        let helpers = (tasks - 1).min((nanoseconds / SMALL) as usize);
        for (helper, asleep) in self.helpers.iter().zip(&self.common.asleep).take(helpers) {
            if asleep.swap(false, Ordering::SeqCst) {
                helper.thread.unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(&work));
        self.common.close();
        let theirs = self.common.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.taken.store(false, Ordering::Release);
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.common.stop.store(true, Ordering::SeqCst);
        for helper in &mut self.helpers {
            helper.thread.unpark();
            if let Some(handle) = helper.handle.take() {
                let _ = handle.join();
            }
        }
    }
}

impl Common {
    /// Offers `work` to the helpers until [`Common::close`].
    fn open<F: Fn() + Sync>(&self, work: &F) {
        unsafe fn call<F: Fn()>(closure: *const ()) {
            // SAFETY: it was made from a reference to an F, which lives until `close` has returned.
            unsafe { (*closure.cast::<F>())() }
        }
        // SAFETY: work is closed and nobody is at it: only `for_each` opens, one at a time, and it has closed the last.
        unsafe {
            *self.work.get() = Work {
                closure: std::ptr::from_ref(work).cast(),
                call: call::<F>,
            }
        };
        let number = (self.state.load(Ordering::Relaxed) & !CLOSED) / (AT_WORK + 1);
        self.state
            .store(((number + 1) * (AT_WORK + 1)) & !CLOSED, Ordering::SeqCst);
        // A helper says that it sleeps and then looks once more: one of the two sees the other.
        fence(Ordering::SeqCst);
    }

    /// Lets nobody join any more and waits for those at work; late helpers are not waited for.
    fn close(&self) {
        let mut state = self.state.fetch_or(CLOSED, Ordering::AcqRel);
        let mut looks = 0;
        while state & AT_WORK != 0 {
            looks += 1;
            match looks % LOOKS {
                // There may be more threads than processors.
                0 => std::thread::yield_now(),
                _ => std::hint::spin_loop(),
            }
            state = self.state.load(Ordering::Acquire);
        }
    }

    /// A helper's life.
    fn help(&self, number: usize) {
        let mut last = CLOSED;
        while let Some(seen) = self.wait(number, last) {
            last = seen & !AT_WORK;
            let joined = self
                .state
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
                    (state & !AT_WORK == last).then_some(state + 1)
                })
                .is_ok();
            if joined {
                // SAFETY: the state is open and counts this helper: the work was written before and lives on.
                let done = catch_unwind(AssertUnwindSafe(|| unsafe {
                    let work = *self.work.get();
                    (work.call)(work.closure);
                }));
                if let Err(panic) = done {
                    *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                }
                self.state.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// Waits for open work other than `last`; nothing when the pool ends.
    fn wait(&self, number: usize, last: u64) -> Option<u64> {
        let new = |state: u64| state & CLOSED == 0 && state & !AT_WORK != last;
        let mut begin = Instant::now();
        for looks in 1.. {
            let state = self.state.load(Ordering::Acquire);
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if new(state) {
                return Some(state);
            }
            std::hint::spin_loop();
            if looks % LOOKS == 0 && begin.elapsed() > PATIENCE {
                self.sleep(number, &new);
                // Woken once, it stays awake for the work to come.
                begin = Instant::now();
            }
        }
        None
    }

    fn sleep(&self, number: usize, new: &impl Fn(u64) -> bool) {
        let asleep = &self.asleep[number];
        asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        while asleep.load(Ordering::SeqCst)
            && !new(self.state.load(Ordering::SeqCst))
            && !self.stop.load(Ordering::SeqCst)
        {
            std::thread::park();
        }
        asleep.store(false, Ordering::SeqCst);
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
    pub(super) unsafe fn at(&self, offset: usize) -> *mut T {
        // SAFETY: the caller's.
        unsafe { self.0.add(offset) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: f64 = 1e9;

    fn counted(pool: &Pool, tasks: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        pool.for_each(tasks, LARGE, |i| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_task_is_done_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::start(threads).unwrap();
            for round in 0..2000 {
                let tasks = round % 7;
                assert_eq!(
                    counted(&pool, tasks),
                    vec![1; tasks],
                    "{threads} threads, round {round}"
                );
                if round % 500 == 0 {
                    // Long enough for the helpers to fall asleep.
                    std::thread::sleep(3 * PATIENCE);
                }
            }
        }
    }

    #[test]
    fn every_item_is_handed_out_once_with_its_number() {
        for threads in [1, 3] {
            let cpu = super::super::Cpu::new(threads).unwrap();
            for count in [0, 1, 2, 100] {
                let mut items = vec![(0, 0); count];
                cpu.for_each_of(&mut items, LARGE, |i, item| *item = (i, item.1 + 1));
                assert_eq!(items, (0..count).map(|i| (i, 1)).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn helpers_take_part_awake_or_asleep() {
        let pool = Pool::start(3).unwrap();
        for pause in [Duration::ZERO, 5 * PATIENCE] {
            std::thread::sleep(pause);
            let arrived = AtomicUsize::new(0);
            // Ends only when three threads are in it at once.
            pool.for_each(3, LARGE, |_| {
                arrived.fetch_add(1, Ordering::SeqCst);
                while arrived.load(Ordering::SeqCst) < 3 {
                    std::thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn work_within_work_and_from_other_threads_is_done() {
        let pool = Pool::start(3).unwrap();
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    pool.for_each(20, LARGE, |_| {
                        pool.for_each(5, LARGE, |_| {
                            total.fetch_add(1, Ordering::Relaxed);
                        });
                    });
                });
            }
        });
        assert_eq!(total.into_inner(), 300);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::start(2).unwrap();
        for culprit in 0..6 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.for_each(6, LARGE, |i| {
                    std::thread::sleep(Duration::from_millis(1));
                    assert_ne!(i, culprit);
                });
            }));
            assert!(caught.is_err(), "the panic of task {culprit} was lost");
            assert_eq!(counted(&pool, 4), [1; 4]);
        }
    }
}
