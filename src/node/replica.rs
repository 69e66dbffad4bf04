//! What a node does as a replica: its own copy of a record, asked for by itself or by peers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::warn;

use crate::model::{ClockDrift, Expiry, HashedKey, Hlc, Millis, Prior, RecordRef, Stamp, Summary};
use crate::store::{Applied, ExpiryChange, Store};
use crate::wire::Refusal;

/// The local copy, guarded by the rules that every write keeps, wherever it comes from.
#[derive(Debug)]
pub struct Replica {
    store: Arc<Store>,
    clock: Arc<Hlc>,
    value_bytes_max: usize,
    drift_refusals: AtomicU64,
}

/// What became of a write or of a change of expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// A record was taken; this was there before.
    Applied(Prior),
    /// A record was not taken; this is newer.
    Superseded(Prior),
}

impl Replica {
    /// A replica that keeps its records in `store`.
    #[must_use]
    pub const fn new(store: Arc<Store>, clock: Arc<Hlc>, value_bytes_max: usize) -> Self {
        Self {
            store,
            clock,
            value_bytes_max,
            drift_refusals: AtomicU64::new(0),
        }
    }

    /// Reads a record in place; see [`Store::read`].
    pub fn read<T>(
        &self,
        key: HashedKey<'_>,
        now: Millis,
        read: impl FnOnce(Option<RecordRef<'_>>) -> T,
    ) -> T {
        self.store.read(key, now, read)
    }

    /// What is held of a key, without its value.
    #[must_use]
    pub fn summary(&self, key: HashedKey<'_>, now: Millis) -> Option<Summary> {
        self.store.summary(key, now)
    }

    /// Takes a record if it is newer and its clock is sane.
    pub fn write(
        &self,
        key: HashedKey<'_>,
        record: RecordRef<'_>,
        now: Millis,
    ) -> Result<Written, Refusal> {
        if record
            .value
            .is_some_and(|value| value.len() > self.value_bytes_max)
        {
            return Err(Refusal::TooBig);
        }
        self.observe(record.stamp(), now)?;
        Ok(match self.store.apply(key, record, now) {
            Applied::Applied { prior } => Written::Applied(prior),
            Applied::Superseded { by } => Written::Superseded(by),
        })
    }

    /// Changes when a live value ends.
    pub fn change_expiry(
        &self,
        key: HashedKey<'_>,
        expiry: Expiry,
        now: Millis,
    ) -> Result<ExpiryChange, Refusal> {
        self.observe(Stamp::fresh(expiry.version), now)?;
        Ok(self.store.change_expiry(key, expiry, now))
    }

    /// Writes refused because their clock was too far ahead.
    #[must_use]
    pub fn drift_refusals(&self) -> u64 {
        self.drift_refusals.load(Ordering::Relaxed)
    }

    fn observe(&self, stamp: Stamp, now: Millis) -> Result<(), Refusal> {
        self.clock
            .observe(stamp.newest().hlc, now)
            .map_err(|drift| self.refuse(stamp, drift))
    }

    fn refuse(&self, stamp: Stamp, drift: ClockDrift) -> Refusal {
        let refused = self.drift_refusals.fetch_add(1, Ordering::Relaxed) + 1;
        // 1, 2, 4, 8, ...: a broken clock must not flood the log as well.
        if refused.is_power_of_two() {
            let writer = stamp.newest().node.0;
            warn!(%drift, writer = format_args!("{writer:x}"), refused, "refused a write; check the clocks (max_clock_drift)");
        }
        Refusal::ClockDrift
    }
}
