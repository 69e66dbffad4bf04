//! The only doors to time, chance, threads and files.
//!
//! Everything above takes these as arguments, so that a simulator can hand in its own. Monotonic
//! time is `tokio::time`, which a paused runtime turns into virtual time. Knows nothing of what
//! is done with them.

mod clock;
mod disk;
mod journal;
mod memory;
mod rng;
mod scheduler_watch;
mod tasks;
mod watchdog;

pub use clock::{Clock, SystemClock};
pub use disk::{Disk, DiskError, MemoryDisk, RealDisk};
#[doc(hidden)]
pub use journal::count_entries;
pub use journal::{
    Changes, Committed, Durability, Found, Journal, JournalBusy, JournalFailed, JournalHealth,
    MemoryJournal,
};
pub use memory::trim_memory;
pub use rng::SeededRng;
pub use scheduler_watch::{DELAY_BOUNDS_US, Delays, LONG_DELAY, LongDelay, SchedulerWatch};
pub use tasks::{ComputeError, Tasks, WAITING_MAX, pool_threads};
pub use watchdog::Watchdog;

use std::sync::Arc;

use crate::update::Limit;

/// The doors of one node.
#[derive(Debug, Clone)]
pub struct Env {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub rng: SeededRng,
    /// Threads.
    pub tasks: Tasks,
    /// Files, below the node's data directory.
    pub disk: Arc<dyn Disk>,
}

impl Env {
    /// Makes updates that take long, on the pool for it: `work` is handed what it may take. See
    /// [`Tasks::compute`].
    pub async fn compute_update<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Limit) -> T + Send + 'static,
    ) -> Result<T, ComputeError> {
        let (watchdog, clock) = (self.tasks.watchdog().clone(), Arc::clone(&self.clock));
        // Its time begins with the work, and not while it waits for a thread.
        let work = move || work(&watchdog.limit(&clock));
        self.tasks.compute(work).await
    }
}
