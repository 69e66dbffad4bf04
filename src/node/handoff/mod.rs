//! Hinted handoff: this node as a stand-in, for homes that could not take a write.
//!
//! A hint is kept in memory, where reads find it while its home is away, and in a journal on disk,
//! so that a restart loses none that was acknowledged. [`replay`] gives hints back.

mod entry;
mod owed;
pub mod replay;
mod report;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};
use tracing::{info, warn};

#[doc(hidden)]
pub use self::entry::is_hint_entry;
pub use self::owed::Owed;
use self::replay::Progress;
pub use self::report::{HintsReport, HomeHints};
use super::pace::Pace;
use super::replica::{Replica, Written};
use crate::env::{
    Changes, Clock, Disk, DiskError, Durability, Journal, JournalFailed, JournalHealth,
};
use crate::model::{Millis, NodeTag, Prior, Record, RecordRef, Stamp, Summary};
use crate::protocol::{
    Ended, Hint, HintLimits, HintQueues, HintSummary, Kept, Missed, MissedExpiry,
};
use crate::store::ExpiryChange;
use crate::wire::Refusal;

/// Settings of hinted handoff.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// What may be kept.
    pub limits: HintLimits,
    /// What has to be on disk before a hint is acknowledged.
    pub durability: Durability,
    /// How fast hints are given back, to all homes together, in bytes a second.
    pub replay_bytes_per_s: u64,
}

/// The hints of one node.
pub struct Handoff {
    config: Config,
    clock: Arc<dyn Clock>,
    /// The rules that every write keeps.
    replica: Arc<Replica>,
    journal: Arc<dyn Journal>,
    /// Held from a change of the queues to that of the journal: both see changes in one order.
    order: Mutex<()>,
    queues: Mutex<HintQueues>,
    progress: Mutex<BTreeMap<NodeTag, Progress>>,
    /// Hints came where there were none, or the last one is gone: for who tells others.
    changed: Notify,
    /// The same for who gives them back.
    wake: Notify,
    /// How fast hints are given back.
    pub(super) pace: Pace,
    stats: HandoffStats,
}

/// Facts that are counted.
#[derive(Debug, Default)]
pub struct HandoffStats {
    /// Hints taken.
    pub kept: AtomicU64,
    /// Hints refused for want of room.
    pub refused_full: AtomicU64,
    /// Hints refused because the disk failed.
    pub refused_failed: AtomicU64,
    /// Hints that their home has acknowledged.
    pub replayed: AtomicU64,
    /// Bytes of those.
    pub replayed_bytes: AtomicU64,
    /// Hints dropped because the value's time was over: nothing is lost.
    pub expired: AtomicU64,
    /// Hints dropped because they were older than the window.
    pub too_old: AtomicU64,
    /// Hints dropped by an administrator, or because their home refuses them for good.
    pub dropped: AtomicU64,
    /// Hints that a removed node's homes were given in its place.
    pub readdressed: AtomicU64,
}

/// A hint that this node is asked to keep.
#[derive(Debug, Clone, Copy)]
pub struct NewHint<'a> {
    /// For whom.
    pub home: NodeTag,
    /// Of which key.
    pub key: &'a [u8],
    /// What it missed.
    pub missed: MissedRef<'a>,
}

/// What a home missed, borrowed.
#[derive(Debug, Clone, Copy)]
pub enum MissedRef<'a> {
    /// A write.
    Write(RecordRef<'a>),
    /// A change of expiry.
    Expiry(MissedExpiry),
}

/// What became of a [`NewHint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HintReply {
    /// Of a write.
    Written(Written),
    /// Of a change of expiry.
    Expiry(ExpiryChange),
    /// Not kept.
    Refused(Refusal),
}

impl Handoff {
    /// Takes up the hints that this node held when it stopped.
    ///
    /// # Errors
    /// When another process has the journal open.
    pub fn open(
        config: Config,
        disk: &dyn Disk,
        clock: Arc<dyn Clock>,
        replica: Arc<Replica>,
    ) -> Result<Arc<Self>, DiskError> {
        let (journal, found) = disk.journal(JOURNAL)?;
        let mut queues = HintQueues::new(config.limits);
        let mut unreadable = 0;
        for (key, value) in &found.entries {
            match entry::read(key, value) {
                Some((home, key, hint)) => queues.restore(home, key, hint),
                None => unreadable += 1,
            }
        }
        if unreadable > 0 {
            warn!(unreadable, "left out hints of another format");
        }
        if queues.count() > 0 {
            info!(
                hints = queues.count(),
                bytes = queues.bytes(),
                "took up the hints of before"
            );
        }
        Ok(Arc::new(Self {
            pace: Pace::new(config.replay_bytes_per_s),
            config,
            clock,
            replica,
            journal,
            order: Mutex::default(),
            queues: Mutex::new(queues),
            progress: Mutex::default(),
            changed: Notify::new(),
            wake: Notify::new(),
            stats: HandoffStats::default(),
        }))
    }

    /// Gives hints back faster or slower from now on.
    pub fn set_replay_pace(&self, bytes_per_s: u64) {
        self.pace.set(bytes_per_s);
    }

    /// Keeps hints. The future tells what became of them once they are on disk; they are kept
    /// whether or not anybody waits for it.
    pub fn keep(
        self: &Arc<Self>,
        hints: &[NewHint<'_>],
    ) -> impl Future<Output = Vec<HintReply>> + Send + use<> {
        let wall = self.clock.wall();
        let mut replies = Vec::with_capacity(hints.len());
        let (mut numbers, mut undo) = (Vec::new(), Vec::new());
        let mut changes = Changes::default();
        let (tell, told) = oneshot::channel();
        let order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let mut queues = self.queues();
        let had_any = queues.count() > 0;
        for (number, hint) in hints.iter().enumerate() {
            let reply = self.keep_one(&mut queues, hint, wall);
            if !matches!(reply, HintReply::Refused(_))
                && let Some(kept) = queues.get(hint.home, hint.key)
            {
                let key = entry::journal_key(hint.home, hint.key);
                changes.puts.push((key, entry::journal_value(kept)));
                numbers.push(number);
                // One that took the place of another stays: that one was acknowledged.
                if matches!(
                    reply,
                    HintReply::Written(Written::Applied(Prior { stamp: None, .. }))
                ) {
                    undo.push((hint.home, hint.key.to_vec(), kept.missed.stamp()));
                }
            }
            replies.push(reply);
        }
        let is_first = !had_any && queues.count() > 0;
        drop(queues);
        if is_first {
            self.notify();
        }
        let waits = !changes.puts.is_empty();
        if waits {
            let this = Arc::clone(self);
            let undo_now = undo.clone();
            let count = numbers.len() as u64;
            let done = Box::new(move |result: Result<(), JournalFailed>| {
                let counter = if result.is_ok() {
                    &this.stats.kept
                } else {
                    this.forget(&undo);
                    &this.stats.refused_failed
                };
                counter.fetch_add(count, Ordering::Relaxed);
                // Nobody waits any more: the caller's connection is gone.
                let _told: Result<(), bool> = tell.send(result.is_ok());
            });
            let queued = self.journal.commit(changes, self.config.durability, done);
            if queued.is_err() {
                self.forget(&undo_now);
                self.stats
                    .refused_failed
                    .fetch_add(count, Ordering::Relaxed);
            }
        }
        drop(order);
        let is_full = |reply: &&HintReply| **reply == HintReply::Refused(Refusal::HintsFull);
        let full = replies.iter().filter(is_full).count() as u64;
        self.stats.refused_full.fetch_add(full, Ordering::Relaxed);
        async move {
            if !waits {
                return replies;
            }
            // An error: too much was queued for the disk.
            if !told.await.unwrap_or(false) {
                for number in numbers {
                    replies[number] = HintReply::Refused(Refusal::HintsFailed);
                }
            }
            replies
        }
    }

    fn keep_one(&self, queues: &mut HintQueues, hint: &NewHint<'_>, wall: Millis) -> HintReply {
        let NewHint { home, key, missed } = *hint;
        match missed {
            MissedRef::Write(record) => {
                if let Err(refusal) = self.replica.admit(record, wall) {
                    return HintReply::Refused(refusal);
                }
                match queues.keep(home, key, record, wall) {
                    Kept::Kept(prior) => HintReply::Written(Written::Applied(prior)),
                    Kept::Superseded(by) => HintReply::Written(Written::Superseded(by)),
                    Kept::Full => HintReply::Refused(Refusal::HintsFull),
                }
            }
            MissedRef::Expiry(missed) => {
                let stamp = Stamp::fresh(missed.expiry.version);
                if let Err(refusal) = self.replica.observe(stamp, wall) {
                    return HintReply::Refused(refusal);
                }
                match queues.keep_expiry(home, key, missed, wall) {
                    Kept::Kept(_) => HintReply::Expiry(ExpiryChange::Done {
                        now_held: summary(queues.read(key)),
                        expired_at_before: None,
                    }),
                    Kept::Superseded(Prior { stamp, .. }) => {
                        HintReply::Expiry(ExpiryChange::Superseded {
                            by: stamp.unwrap_or_default(),
                        })
                    }
                    Kept::Full => HintReply::Refused(Refusal::HintsFull),
                }
            }
        }
    }

    /// What is not on disk was refused, and is not kept.
    fn forget(&self, hints: &[(NodeTag, Vec<u8>, Stamp)]) {
        let mut queues = self.queues();
        for (home, key, stamp) in hints {
            queues.remove(*home, key, *stamp);
        }
    }

    /// The newest hint for a key, in place: `read` runs under a lock and must be short.
    pub fn read<T>(&self, key: &[u8], read: impl FnOnce(Option<&Record>) -> T) -> T {
        read(self.queues().read(key))
    }

    /// The same without its value.
    #[must_use]
    pub fn summary(&self, key: &[u8]) -> Option<Summary> {
        self.read(key, summary)
    }

    /// Whom hints are kept for, and how many.
    #[must_use]
    pub fn summaries(&self) -> BTreeMap<NodeTag, HintSummary> {
        self.queues().summaries()
    }

    /// How many hints are kept.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.queues().count()
    }

    /// Their bytes, in memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.queues().bytes()
    }

    /// What was counted so far.
    #[must_use]
    pub const fn stats(&self) -> &HandoffStats {
        &self.stats
    }

    /// How the journal fares.
    #[must_use]
    pub fn journal_health(&self) -> JournalHealth {
        self.journal.health()
    }

    /// Waits until all that was kept so far is on disk, or cannot get there.
    pub async fn flush(&self) {
        let (tell, told) = oneshot::channel();
        let done = Box::new(move |result: Result<(), JournalFailed>| {
            let _told: Result<(), bool> = tell.send(result.is_ok());
        });
        let changes = Changes::default();
        if self
            .journal
            .commit(changes, Durability::Synced, done)
            .is_ok()
            && !told.await.unwrap_or(false)
        {
            warn!("hints may not be on disk");
        }
    }

    /// Waits until there are hints where there were none, or none where there were.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Drops all hints for a home; how many there were.
    pub fn drop_all(&self, home: NodeTag) -> u64 {
        let order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = self.queues().remove_all(home);
        let gone: Vec<_> = keys.iter().map(|key| (home, &key[..])).collect();
        self.erase(&gone);
        drop(order);
        self.notify();
        self.stats
            .dropped
            .fetch_add(keys.len() as u64, Ordering::Relaxed);
        keys.len() as u64
    }

    /// Drops what is over or too old at `now`.
    fn expire(&self, now: Millis) {
        let order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let Ended { hints, too_old } = self.queues().expire(now);
        let gone: Vec<_> = hints.iter().map(|(home, key)| (*home, &key[..])).collect();
        self.erase(&gone);
        drop(order);
        if too_old > 0 {
            warn!(too_old, "dropped hints that are older than hint_window");
        }
        self.stats.too_old.fetch_add(too_old, Ordering::Relaxed);
        let expired = hints.len() as u64 - too_old;
        self.stats.expired.fetch_add(expired, Ordering::Relaxed);
    }

    /// Removes hints that are done with, if they are still the same.
    fn remove(&self, home: NodeTag, hints: &[(&[u8], Stamp)]) {
        let order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let mut queues = self.queues();
        let is_gone = |(key, stamp): &(&[u8], Stamp)| queues.remove(home, key, *stamp);
        let gone: Vec<_> = hints.iter().copied().filter(is_gone).collect();
        let is_last = queues.count() == 0;
        drop(queues);
        let gone: Vec<_> = gone.iter().map(|(key, _)| (home, *key)).collect();
        self.erase(&gone);
        drop(order);
        if is_last {
            self.notify();
        }
    }

    /// Removes hints from the journal. When that fails they are given back once more after a
    /// restart, which does no harm.
    fn erase(&self, hints: &[(NodeTag, &[u8])]) {
        let changes = Changes {
            puts: Vec::new(),
            removes: hints
                .iter()
                .map(|(home, key)| entry::journal_key(*home, key))
                .collect(),
        };
        if !changes.removes.is_empty() {
            let done = Box::new(|_result| {});
            let queued = self.journal.commit(changes, Durability::Written, done);
            if queued.is_err() {
                warn!("hints stay on disk that are done with: too much is queued for it");
            }
        }
    }

    /// Addresses hints anew: those for `gone` become hints for these homes.
    fn readdress(&self, gone: NodeTag, moved: &[(NodeTag, &bytes::Bytes, &Missed)]) {
        let order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let mut queues = self.queues();
        let mut changes = Changes::default();
        for (home, key, missed) in moved {
            let since = queues.get(gone, key).map_or(Millis(0), |hint| hint.since);
            let missed = (*missed).clone();
            queues.restore(*home, key, Hint { missed, since });
            if let Some(hint) = queues.get(*home, key) {
                let key = entry::journal_key(*home, key);
                changes.puts.push((key, entry::journal_value(hint)));
            }
        }
        let keys = queues.remove_all(gone);
        changes.removes = keys
            .iter()
            .map(|key| entry::journal_key(gone, key))
            .collect();
        drop(queues);
        let done = Box::new(|_result| {});
        if self
            .journal
            .commit(changes, Durability::Synced, done)
            .is_err()
        {
            warn!("readdressed hints are in memory only: too much is queued for the disk");
        }
        drop(order);
        let count = keys.len() as u64;
        self.stats.readdressed.fetch_add(count, Ordering::Relaxed);
        self.notify();
    }

    /// Writes all hints to a journal that began anew.
    fn rewrite(&self) {
        let order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let entries: Vec<(Vec<u8>, Vec<u8>)> = self
            .queues()
            .iter()
            .map(|(home, key, hint)| (entry::journal_key(home, key), entry::journal_value(hint)))
            .collect();
        for some in entries.chunks(REWRITE_HINTS) {
            let changes = Changes {
                puts: some.to_vec(),
                removes: Vec::new(),
            };
            let done = Box::new(|_result| {});
            if self
                .journal
                .commit(changes, Durability::Synced, done)
                .is_err()
            {
                warn!("hints are in memory only: too much is queued for the disk");
            }
        }
        drop(order);
    }

    fn notify(&self) {
        self.changed.notify_one();
        self.wake.notify_one();
    }

    fn queues(&self) -> MutexGuard<'_, HintQueues> {
        // std Mutex: never held across an await.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self) -> MutexGuard<'_, BTreeMap<NodeTag, Progress>> {
        // std Mutex: never held across an await.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Handoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handoff")
            .field("config", &self.config)
            .field("hints", &self.count())
            .finish_non_exhaustive()
    }
}

fn summary(record: Option<&Record>) -> Option<Summary> {
    record.map(|record| Summary::of(record.into()))
}

/// The journal's name below the data directory.
const JOURNAL: &str = "hints";
const REWRITE_HINTS: usize = 1_000;

#[cfg(test)]
mod tests;
