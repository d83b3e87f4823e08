//! Threads that are used again: one for each job, never fewer, and as few fresh ones as can be.
//!
//! Starting a thread for each request costs three quarters of the throughput, and a pool of a fixed
//! size stops when all its threads wait for other nodes. So an idle thread takes the next job, and
//! a new one is started whenever none is idle.
//!
//! Invariant: the threads that wait are the `idle` ones and one for each job in `jobs`; so no job
//! waits behind another. Left out: a limit. The callers have one (`server.rs`: a job for each connection).

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// An idle thread ends after this time.
const IDLE_TIME: Duration = Duration::from_secs(10);

/// What a thread is given to do.
pub type Job = Box<dyn FnOnce() + Send>;

/// The threads, and the jobs that they have not taken yet.
#[derive(Default)]
pub struct Pool {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Waiting threads that no job was put in the queue for.
    idle: usize,
}

impl Pool {
    /// A pool without threads.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Runs `job` on a thread of its own.
    ///
    /// # Errors
    /// No thread is idle and none can be started. The job is dropped.
    pub fn run(self: &Arc<Self>, job: Job) -> io::Result<()> {
        let mut state = self.lock();
        if state.idle > 0 {
            state.idle -= 1;
        } else {
            let pool = Arc::clone(self);
            thread::Builder::new().name("job".to_owned()).spawn(move || pool.work())?;
        }
        state.jobs.push_back(job);
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    fn work(&self) {
        // A fresh thread has been promised a job, so it does not count as idle.
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                // The panic hook has logged it; the thread goes on for others.
                let _ = catch_unwind(AssertUnwindSafe(job));
                state = self.lock();
                state.idle += 1;
            }
            let (woken, wait) = self.work.wait_timeout(state, IDLE_TIME).expect("no job runs under this lock");
            state = woken;
            if wait.timed_out() && state.jobs.is_empty() {
                state.idle -= 1;
                return;
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
