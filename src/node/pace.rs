//! How fast a node may work in the background.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Bytes a second, shared by all who work in the background at one thing.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_s: AtomicU64,
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub(super) const fn new(bytes_per_s: u64) -> Self {
        Self {
            bytes_per_s: AtomicU64::new(bytes_per_s),
            free_at: Mutex::new(None),
        }
    }

    pub(super) fn set(&self, bytes_per_s: u64) {
        self.bytes_per_s.store(bytes_per_s, Ordering::Relaxed);
    }

    /// When so many bytes, begun now, may be followed by more.
    pub(super) fn take(&self, bytes: u64, now: Instant) -> Instant {
        let ns = u128::from(bytes) * 1_000_000_000
            / u128::from(self.bytes_per_s.load(Ordering::Relaxed).max(1));
        let takes = Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX));
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = free_at.map_or(now, |at| at.max(now));
        *free_at.insert(begins + takes)
    }
}
