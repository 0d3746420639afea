//! Threads that read experts into slots, beside the exchange and the products.

use super::residency::Load;
use super::source::{read_into, ExpertSource};
use crate::comm::crash::fail_point;
use crate::moe::layer::Expert;
use anyhow::{anyhow, Context, Result};
use std::collections::VecDeque;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// What is to be read, and the memory of the slot that it goes to, which belongs to the reader until it comes back.
pub(super) struct Job {
    pub load: Load,
    /// The expert among all of the model.
    pub expert: usize,
    pub memory: Expert,
}

/// What was read.
pub(super) struct Fetched {
    pub load: Load,
    pub memory: Expert,
    pub result: Result<u64>,
    /// Time that it took.
    pub seconds: f64,
}

/// The threads.
pub(super) struct Fetcher {
    desk: Arc<Desk>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Desk {
    state: Mutex<State>,
    /// A job has come, or the end.
    work: Condvar,
    /// A job is done.
    done: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    reading: usize,
    done: Vec<Fetched>,
    closed: bool,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, source: &dyn ExpertSource) {
        let mut state = self.lock();
        loop {
            let Some(mut job) = state.queue.pop_front() else {
                if state.closed {
                    return;
                }
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.reading += 1;
            drop(state);
            let start = Instant::now();
            let read = AssertUnwindSafe(|| {
                fail_point("expert-read")?;
                read_into(source, job.load.layer as usize, job.expert, &mut job.memory)
            });
            // A panic here must not leave the rank waiting.
            let result = catch_unwind(read).unwrap_or_else(|_| Err(anyhow!("reading an expert panicked")));
            let fetched = Fetched {
                load: job.load,
                memory: job.memory,
                result,
                seconds: start.elapsed().as_secs_f64(),
            };
            state = self.lock();
            state.reading -= 1;
            state.done.push(fetched);
            self.done.notify_all();
        }
    }
}

impl Fetcher {
    /// Starts `threads` threads that read from `source`.
    pub fn start(source: &Arc<dyn ExpertSource>, threads: usize) -> Result<Fetcher> {
        let mut fetcher = Fetcher {
            desk: Arc::default(),
            threads: Vec::new(),
        };
        for i in 0..threads {
            let (desk, source) = (fetcher.desk.clone(), source.clone());
            let thread = std::thread::Builder::new().name(format!("experts-{i}"));
            let spawned = thread.spawn(move || desk.serve(source.as_ref()));
            fetcher.threads.push(spawned.context("a thread that reads experts")?);
        }
        Ok(fetcher)
    }

    /// Puts a job behind those that wait.
    pub fn request(&self, job: Job) {
        self.desk.lock().queue.push_back(job);
        self.desk.work.notify_one();
    }

    /// Takes back a job for `slot` that nobody has begun.
    pub fn cancel(&self, slot: u32) -> Option<Job> {
        let mut state = self.desk.lock();
        let at = state.queue.iter().position(|job| job.load.slot == slot)?;
        state.queue.remove(at)
    }

    /// Has the jobs that are `wanted` done before the others, each in their order.
    pub fn hurry(&self, wanted: impl Fn(&Load) -> bool) {
        self.desk
            .lock()
            .queue
            .make_contiguous()
            .sort_by_key(|job| !wanted(&job.load));
    }

    /// What is done by now.
    pub fn collect(&self, into: &mut Vec<Fetched>) {
        into.append(&mut self.desk.lock().done);
    }

    /// Waits until something is done; nothing comes if nothing is under way.
    pub fn wait(&self, into: &mut Vec<Fetched>) {
        let mut state = self.desk.lock();
        while state.done.is_empty() && state.reading + state.queue.len() > 0 {
            state = self.desk.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        into.append(&mut state.done);
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        let mut state = self.desk.lock();
        state.closed = true;
        state.queue.clear();
        drop(state);
        self.desk.work.notify_all();
        for thread in self.threads.drain(..) {
            // A panic in it has been told as a job's result.
            let _ = thread.join();
        }
    }
}
