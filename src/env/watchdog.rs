//! Bounds the time of what clients have a node compute.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::Clock;
use crate::update::{Limit, Watch};

/// The scripts of a node that run. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Watchdog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    script_max_us: AtomicU64,
    running: AtomicUsize,
    /// How often somebody has ended what ran.
    kills: AtomicU64,
}

impl Watchdog {
    /// Sets how long one script may run.
    pub fn set_script_max(&self, max: Duration) {
        let us = u64::try_from(max.as_micros()).unwrap_or(u64::MAX);
        self.0.script_max_us.store(us, Ordering::Relaxed);
    }

    /// What a batch of updates may take from now on.
    #[must_use]
    pub fn limit(&self, clock: &Arc<dyn Clock>) -> Limit {
        let running = Running {
            watchdog: Arc::clone(&self.0),
            clock: Arc::clone(clock),
            begun: clock.monotonic(),
            kills: AtomicU64::new(0),
        };
        let script_max = Duration::from_micros(self.0.script_max_us.load(Ordering::Relaxed));
        Limit::watched(Arc::new(running), script_max)
    }

    /// Ends all scripts that run; whether there were any. What they did is not applied.
    #[must_use]
    pub fn kill(&self) -> bool {
        let is_any = self.0.running.load(Ordering::Relaxed) > 0;
        if is_any {
            self.0.kills.fetch_add(1, Ordering::Relaxed);
        }
        is_any
    }
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            script_max_us: AtomicU64::new(SCRIPT_MAX_US),
            running: AtomicUsize::new(0),
            kills: AtomicU64::new(0),
        }
    }
}

#[derive(Debug)]
struct Running {
    watchdog: Arc<Inner>,
    clock: Arc<dyn Clock>,
    begun: Instant,
    /// How many kills there had been when its script began.
    kills: AtomicU64,
}

impl Watch for Running {
    fn elapsed(&self) -> Duration {
        self.clock.monotonic().saturating_duration_since(self.begun)
    }

    fn is_killed(&self) -> bool {
        let kills = self.watchdog.kills.load(Ordering::Relaxed);
        kills != self.kills.load(Ordering::Relaxed)
    }

    fn on_begin(&self) {
        self.watchdog.running.fetch_add(1, Ordering::Relaxed);
        let kills = self.watchdog.kills.load(Ordering::Relaxed);
        self.kills.store(kills, Ordering::Relaxed);
    }

    fn on_end(&self) {
        self.watchdog.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The default of `script_timeout`.
const SCRIPT_MAX_US: u64 = 100_000;

#[cfg(test)]
mod tests {
    use super::super::SystemClock;
    use super::*;

    #[test]
    fn what_runs_is_killed_and_what_comes_later_is_not() {
        let watchdog = Watchdog::default();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        assert!(!watchdog.kill(), "nothing runs");
        let _batch = watchdog.limit(&clock);
        assert!(!watchdog.kill(), "a batch without a script runs");
        let running = Running {
            watchdog: Arc::clone(&watchdog.0),
            clock: Arc::clone(&clock),
            begun: clock.monotonic(),
            kills: AtomicU64::new(0),
        };
        running.on_begin();
        assert!(!running.is_killed());
        assert!(watchdog.kill());
        assert!(running.is_killed());
        running.on_end();
        assert!(!watchdog.kill(), "it runs no more");
        running.on_begin();
        assert!(!running.is_killed(), "the next script of the batch");
        running.on_end();
    }
}
