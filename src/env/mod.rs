//! The only doors to time, chance, threads and files.
//!
//! Everything above takes these as arguments, so that a simulator can hand in its own. Monotonic
//! time is `tokio::time`, which a paused runtime turns into virtual time. Knows nothing of what
//! is done with them.

mod clock;
mod disk;
mod journal;
mod rng;
mod scheduler_watch;
mod tasks;

pub use clock::{Clock, SystemClock};
pub use disk::{Disk, DiskError, MemoryDisk, RealDisk};
pub use journal::{
    Changes, Committed, Durability, Found, Journal, JournalBusy, JournalFailed, JournalHealth,
    MemoryJournal,
};
pub use rng::SeededRng;
pub use scheduler_watch::{DELAY_BOUNDS_US, Delays, LONG_DELAY, LongDelay, SchedulerWatch};
pub use tasks::Tasks;

use std::sync::Arc;

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
