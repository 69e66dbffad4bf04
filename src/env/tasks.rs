//! Tasks with an owner, and a pool of threads for what takes a processor for long.

use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, TryAcquireError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::watchdog::Watchdog;

/// A group of tasks that ends together. Clones share the group.
///
/// A task ends when its future does or when the group is stopped, at its next await.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    pool: Arc<Pool>,
}

/// Why work was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ComputeError {
    /// As much work as is kept waits already; nothing of this one was done.
    #[error("too much work waits for a processor")]
    Busy,
    /// It panicked, or the program ends.
    #[error("the work was ended before it was done")]
    Ended,
}

/// The threads for what takes a processor for long, shared by all groups of a node.
#[derive(Debug)]
struct Pool {
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    watchdog: Watchdog,
    is_inline: bool,
}

impl Tasks {
    /// An empty group.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty group that computes where it is asked to: where each run must be like the one before.
    #[must_use]
    pub fn inline() -> Self {
        let pool = Pool {
            is_inline: true,
            ..Pool::default()
        };
        Self {
            pool: Arc::new(pool),
            ..Self::default()
        }
    }

    /// Starts a task of this group.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the door to the scheduler"
        )]
        tokio::spawn(self.tracker.track_future(async move {
            // Stopping wins: a group that is told to stop takes no further step.
            tokio::select! { biased; () = stop.cancelled() => {} () = task => {} }
        }));
    }

    /// Runs what takes a processor for long (scripts, large hashes, passwords) on a pool of about as
    /// many threads as there are processors.
    ///
    /// When no thread is free it waits for one; when [`WAITING_MAX`] wait already, it is `Busy` at
    /// once. Whoever stops waiting before the work has begun has it never begin; once begun it cannot
    /// be stopped in the middle, and must bound itself.
    pub async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ComputeError> {
        let pool = &self.pool;
        let turn = match Arc::clone(&pool.turns).try_acquire_owned() {
            Ok(turn) => turn,
            Err(TryAcquireError::Closed) => return Err(ComputeError::Ended),
            Err(TryAcquireError::NoPermits) => {
                let _waiting = Waiting::begin(&pool.waiting)?;
                let turn = Arc::clone(&pool.turns).acquire_owned().await;
                turn.map_err(|_closed| ComputeError::Ended)?
            }
        };
        self.offload(move || {
            let done = work();
            drop(turn);
            done
        })
        .await
    }

    /// Runs work on a thread of its own that does not wait behind what others compute. Only for work
    /// whose amount under way its caller bounds: copies of large values that were admitted, logins.
    pub async fn offload<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ComputeError> {
        if self.pool.is_inline {
            return Ok(work());
        }
        let working = tokio::task::spawn_blocking(work);
        let done = self.tracker.track_future(working).await;
        done.map_err(|_panicked| ComputeError::Ended)
    }

    /// Bytes whose memory is given back by a thread that serves nobody: of many it takes milliseconds.
    #[must_use]
    pub fn free_aside(&self, bytes: Vec<u8>) -> Bytes {
        match self.pool.is_inline {
            true => bytes.into(),
            false => Bytes::from_owner(FreedAside(bytes)),
        }
    }

    /// What bounds scripts in time.
    #[must_use]
    pub fn watchdog(&self) -> &Watchdog {
        &self.pool.watchdog
    }

    /// A group that is stopped with this one, and can be stopped before it.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            tracker: self.tracker.clone(),
            stop: self.stop.child_token(),
            pool: Arc::clone(&self.pool),
        }
    }

    /// Tells all tasks to end; returns at once.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until the group was told to stop.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Stops the group and waits for its tasks, for `wait_max` at most. Whether all had ended.
    pub async fn shutdown(&self, wait_max: Duration) -> bool {
        self.stop();
        self.tracker.close();
        tokio::time::timeout(wait_max, self.tracker.wait())
            .await
            .is_ok()
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(pool_threads())),
            waiting: AtomicUsize::new(0),
            watchdog: Watchdog::default(),
            is_inline: false,
        }
    }
}

/// How many threads compute at once. Two at least: one long computation is not in the way of all others.
#[must_use]
pub fn pool_threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    processors.max(2)
}

/// See [`Tasks::free_aside`].
struct FreedAside(Vec<u8>);

impl AsRef<[u8]> for FreedAside {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for FreedAside {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.0);
        // Where there is no scheduler nobody waits.
        if let Ok(scheduler) = Handle::try_current() {
            scheduler.spawn_blocking(move || drop(bytes));
        }
    }
}

/// One that waits for a thread.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a AtomicUsize) -> Result<Self, ComputeError> {
        if waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(ComputeError::Busy);
        }
        Ok(Self(waiting))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Those that wait for a thread: more would wait for longer than their clients do.
pub const WAITING_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn work_beyond_what_may_wait_is_refused_at_once() {
        let tasks = Tasks::new();
        let turns = tasks.pool.turns.available_permits();
        let (begun, has_begun) = mpsc::channel();
        let mut ends = Vec::new();
        for _ in 0..turns {
            let (end, until_end) = mpsc::channel::<()>();
            ends.push(end);
            let (tasks, begun) = (tasks.clone(), begun.clone());
            tasks.clone().spawn(async move {
                let work = move || {
                    let _sent = begun.send(());
                    let _ended = until_end.recv();
                };
                assert_eq!(tasks.compute(work).await, Ok(()));
            });
        }
        // Without blocking this thread: the tasks need it to begin.
        let mut count = 0;
        while count < turns {
            match has_begun.try_recv() {
                Ok(()) => count += 1,
                Err(_not_yet) => tokio::task::yield_now().await,
            }
        }
        let (done, is_done) = mpsc::channel();
        for _ in 0..WAITING_MAX {
            let (tasks, done) = (tasks.clone(), done.clone());
            tasks.clone().spawn(async move {
                let _sent = done.send(tasks.compute(|| ()).await);
            });
        }
        while tasks.pool.waiting.load(Ordering::Relaxed) < WAITING_MAX {
            tokio::task::yield_now().await;
        }
        assert_eq!(tasks.compute(|| ()).await, Err(ComputeError::Busy));
        drop((ends, done));
        while tasks.pool.waiting.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(tasks.compute(|| 7).await, Ok(7));
        let mut count = 0;
        while count < WAITING_MAX {
            match is_done.try_recv() {
                Ok(done) => {
                    assert_eq!(done, Ok(()));
                    count += 1;
                }
                Err(_not_yet) => tokio::task::yield_now().await,
            }
        }
    }

    #[tokio::test]
    async fn work_that_panics_gives_its_thread_back() {
        let tasks = Tasks::new();
        let turns = tasks.pool.turns.available_permits();
        for _ in 0..=turns {
            let panicking = tasks.compute(|| panic!("on purpose"));
            assert_eq!(panicking.await, Err::<(), _>(ComputeError::Ended));
        }
        assert_eq!(tasks.compute(|| 7).await, Ok(7));
    }
}
