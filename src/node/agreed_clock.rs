//! A clock that goes by what most nodes agree on.
//!
//! What has expired is judged by the wall clock, and versions are made from it. A machine whose clock
//! was set wrong must do neither by that: as soon as most of the ring has told its clocks, this one
//! reads their median, and counts on from there by the monotonic clock until they are asked again.
//! A step of the machine's own clock then changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use crate::env::Clock;
use crate::model::Millis;

/// The clocks of a machine, the wall clock as most nodes agree.
#[derive(Debug)]
pub struct AgreedClock {
    machine: Arc<dyn Clock>,
    origin: Instant,
    /// What the agreed clock read at `origin`; 0 as long as nothing is agreed on.
    at_origin: AtomicU64,
}

impl AgreedClock {
    /// The machine's clocks, until others have told theirs.
    #[must_use]
    pub fn new(machine: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            origin: machine.monotonic(),
            machine,
            at_origin: AtomicU64::new(0),
        })
    }

    /// Most nodes agree that the machine's wall clock has to be corrected by so much.
    pub fn correct(&self, by_ms: i64) {
        let now = self.machine.wall().0.saturating_add_signed(by_ms);
        let at_origin = now.saturating_sub(self.since_origin_ms());
        self.at_origin.store(at_origin.max(1), Ordering::Release);
    }

    fn since_origin_ms(&self) -> u64 {
        let since = self.machine.monotonic();
        let since = since.saturating_duration_since(self.origin);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Clock for AgreedClock {
    fn wall(&self) -> Millis {
        match self.at_origin.load(Ordering::Acquire) {
            0 => self.machine.wall(),
            at_origin => Millis(at_origin.saturating_add(self.since_origin_ms())),
        }
    }

    fn machine_wall(&self) -> Millis {
        self.machine.machine_wall()
    }

    fn monotonic(&self) -> Instant {
        self.machine.monotonic()
    }
}
