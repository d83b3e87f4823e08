//! Threads that are used again: one for each job, never fewer, and as few fresh ones as can be.
//!
//! Starting a thread for each request costs three quarters of the throughput, and a pool of a fixed
//! size stops when all its threads wait for other nodes. So an idle thread takes the next job, and
//! a new one is started whenever none is idle.
//!
//! The thread that went idle last is woken first. A condition variable would wake the one that has waited
//! longest, so that under light load each of a thousand threads would get a job before its time was over,
//! and none would ever end.
//!
//! Invariant: while a job is in `jobs`, a thread that was woken or started for it is on its way. So no
//! job waits behind another. Left out: a limit. The callers have one (`server.rs`: a job for each connection).

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// An idle thread ends after this time.
const IDLE_TIME: Duration = Duration::from_secs(10);

/// What a thread is given to do.
pub type Job = Box<dyn FnOnce() + Send>;

/// The threads, and the jobs that they have not taken yet.
#[derive(Default)]
pub struct Pool {
    /// Guards both lists together.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Threads that are parked and that nobody has woken; the last went idle last.
    idle: Vec<Thread>,
}

impl Pool {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Runs `job` on a thread of its own. If none is idle and none can be started, it is dropped.
    pub fn run(self: &Arc<Self>, job: Job) -> io::Result<()> {
        let mut state = self.lock();
        let idle = state.idle.pop();
        if idle.is_none() {
            let pool = Arc::clone(self);
            thread::Builder::new().name("job".to_owned()).spawn(move || pool.work())?;
        }
        state.jobs.push_back(job);
        drop(state);
        if let Some(thread) = idle {
            thread.unpark();
        }
        Ok(())
    }

    fn work(&self) {
        loop {
            while let Some(job) = self.take_job() {
                // The panic hook has logged it; the thread goes on for others.
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
            if !self.wait_for_job() {
                return;
            }
        }
    }

    fn take_job(&self) -> Option<Job> {
        let mut state = self.lock();
        let job = state.jobs.pop_front();
        if job.is_none() {
            state.idle.push(thread::current());
        }
        job
    }

    /// Waits until somebody takes this thread off the idle ones; returns false if nobody did in time.
    fn wait_for_job(&self) -> bool {
        let (me, end) = (thread::current().id(), Instant::now() + IDLE_TIME);
        loop {
            thread::park_timeout(end.saturating_duration_since(Instant::now()));
            let mut state = self.lock();
            let Some(position) = state.idle.iter().rposition(|thread| thread.id() == me) else { return true };
            if Instant::now() >= end {
                state.idle.remove(position);
                return false;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no job runs under this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn no_job_waits_for_another_to_end() {
        let (pool, (sender, receiver)) = (Pool::new(), channel());
        let barrier = Arc::new(std::sync::Barrier::new(50));
        for round in 0..2 {
            for _ in 0..50 {
                let (barrier, sender) = (Arc::clone(&barrier), sender.clone());
                pool.run(Box::new(move || {
                    barrier.wait();
                    sender.send(round).unwrap();
                }))
                .unwrap();
            }
            for _ in 0..50 {
                assert_eq!(receiver.recv_timeout(SOON), Ok(round));
            }
        }
    }

    #[test]
    fn a_thread_outlives_the_panic_of_its_job() {
        let (pool, (sender, receiver)) = (Pool::new(), channel());
        pool.run(Box::new(|| panic!("on purpose"))).unwrap();
        pool.run(Box::new(move || sender.send(()).unwrap())).unwrap();
        assert_eq!(receiver.recv_timeout(SOON), Ok(()));
    }
}
