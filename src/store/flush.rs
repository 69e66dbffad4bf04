//! Databases that were emptied: what was written up to a moment counts for nothing.
//!
//! One version for each database says from when on its records count. It is seen at once; the records
//! before it are freed later, a group at a time. Whatever still brings one, a hint, a repair, a
//! replica that was away, finds something newer here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use super::packed::Packed;
use super::{Group, Held, Store};
use crate::model::{
    Database, DatabaseSet, Flushes, HashedKey, Millis, PartitionId, Prior, Stamp, Version,
};

/// When each database was emptied last.
#[derive(Debug, Default)]
pub(super) struct HeldFlushes {
    /// Most stores never are: one look tells.
    is_any: AtomicBool,
    state: RwLock<State>,
    /// Held from the look at a record to its replacement by what was made of it; a flush is stamped
    /// while nobody does: what was made of a flushed record is older than the flush.
    order: RwLock<()>,
}

#[derive(Debug, Default)]
struct State {
    of: Flushes,
    /// Their encoding: it goes with every frame.
    encoded: Option<Bytes>,
}

impl HeldFlushes {
    /// What the value of a record of this key must exceed to count.
    #[inline]
    pub(super) fn of(&self, key: &[u8]) -> Option<Version> {
        if !self.is_any.load(Ordering::Acquire) {
            return None;
        }
        Some(self.state().of.of(Database::split(key).0))
    }

    /// Whether what is held of this key was emptied out. When its expiry changed does not matter: a
    /// value from before the flush does not count for having been given another expiry after it.
    #[inline]
    pub(super) fn covers(&self, key: &[u8], stamp: Stamp) -> bool {
        self.of(key).is_some_and(|by| stamp.value <= by)
    }

    /// What passes a state of this key that was emptied out before it came.
    #[inline]
    pub(super) fn passed_by(&self, key: &[u8], stamp: Stamp) -> Option<Prior> {
        let by = self.of(key)?;
        (stamp.value <= by).then(|| Prior::of(by))
    }

    /// No flush is stamped and begun while this is held.
    pub(super) fn hold_off(&self) -> RwLockReadGuard<'_, ()> {
        self.order.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Empties a database of all that was written up to this version; whether that is news.
    pub fn flush(&self, database: Database, up_to: Version) -> bool {
        self.flush_all([database].into_iter().collect(), || up_to)
    }

    /// Empties databases of all that was written up to the version that `stamp` gives, which is
    /// called when no [`Store::replace`] is under way: it exceeds what those have written; whether that
    /// is news.
    pub fn flush_all(&self, databases: DatabaseSet, stamp: impl FnOnce() -> Version) -> bool {
        let order = self.flushes.order.write();
        let _order = order.unwrap_or_else(PoisonError::into_inner);
        let up_to = stamp();
        let mut state = self.flushes.state_mut();
        let mut is_news = false;
        for database in databases.iter() {
            is_news |= state.of.raise(database, up_to);
        }
        if is_news {
            state.encoded = state.of.encode();
            self.flushes.is_any.store(true, Ordering::Release);
        }
        is_news
    }

    /// Forgets all of a group that is of a later version than this: nobody else has taken it. Which of
    /// its partitions have lost something that way; promises are lost in all.
    pub fn forget_after(&self, number: u16, last: Version) -> Vec<PartitionId> {
        let mut state = self.flushes.state_mut();
        if state.of.forget_after(last) {
            state.encoded = state.of.encode();
        }
        drop(state);
        let Some(mut group) = self.groups.get_mut(&number) else {
            return Vec::new();
        };
        let group = &mut *group;
        let mut lost = Vec::new();
        group.promises.forget_after(last);
        group.table.retain(|place| {
            let packed = group.slab.get(*place);
            let is_later = packed.stamp().newest() > last;
            if is_later {
                self.count(&mut group.total, Held::of(packed), Held::default());
                lost.push(self.partition_of(self.hasher.hash(packed.key())));
                group.slab.remove(*place);
            }
            !is_later
        });
        if !lost.is_empty() {
            let cut = group.digests.cut();
            self.recount(group, cut);
            self.tidy(group);
        }
        lost.sort_unstable();
        lost.dedup();
        lost
    }

    /// Up to which version each database was emptied.
    #[must_use]
    pub fn flushes(&self) -> Flushes {
        self.flushes.state().of
    }

    /// The same, encoded; `None`: none was.
    #[must_use]
    #[inline]
    pub fn encoded_flushes(&self) -> Option<Bytes> {
        if !self.flushes.is_any.load(Ordering::Acquire) {
            return None;
        }
        self.flushes.state().encoded.clone()
    }

    /// The newest flush of the database of this key.
    #[must_use]
    #[inline]
    pub fn flush_of(&self, key: &[u8]) -> Option<Version> {
        self.flushes.of(key)
    }

    /// Whether a state of this key was emptied out.
    #[must_use]
    pub fn is_flushed(&self, key: &[u8], stamp: Stamp) -> bool {
        self.flushes.covers(key, stamp)
    }

    /// Frees the records of a group that were emptied out. How many there were.
    pub fn free_flushed(&self, number: u16) -> u64 {
        let Some(mut group) = self.groups.get_mut(&number) else {
            return 0;
        };
        let group = &mut *group;
        let mut freed = 0;
        group.table.retain(|place| {
            let packed = group.slab.get(*place);
            let is_over =
                !packed.is_unreadable() && self.flushes.covers(packed.key(), packed.stamp());
            if is_over {
                self.count(&mut group.total, Held::of(packed), Held::default());
                group.promises.forget(packed.stamp().newest());
                group.slab.remove(*place);
                freed += 1;
            }
            !is_over
        });
        if freed > 0 {
            let cut = group.digests.cut();
            self.recount(group, cut);
            self.tidy(group);
        }
        freed
    }

    /// How many live values a group holds of a database, by partition.
    #[must_use]
    pub fn count_live(
        &self,
        number: u16,
        database: Database,
        now: Millis,
    ) -> Vec<(PartitionId, u32)> {
        let mut counts: Vec<(PartitionId, u32)> =
            Self::partitions_of(number).map(|p| (p, 0)).collect();
        let Some(group) = self.groups.get(&number) else {
            return counts;
        };
        for packed in group.slab.iter() {
            let key = packed.key();
            let counts_here = packed.is_value()
                && !packed.is_expired(now)
                && Database::split(key).0 == database
                && !self.flushes.covers(key, packed.stamp());
            if counts_here {
                let partition = self.partition_of(self.hasher.hash(key));
                let place = usize::from(partition.0 - number * super::digests::GROUP);
                if let Some((_, count)) = counts.get_mut(place) {
                    *count += 1;
                }
            }
        }
        counts
    }

    /// What is held of a key, unless that was emptied out.
    pub(super) fn find_in<'a>(&self, group: &'a Group, key: HashedKey<'_>) -> Option<Packed<'a>> {
        let found = group.find(key)?;
        (!self.flushes.covers(key.bytes, found.stamp())).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::super::{Applied, ExpiryChange, Limits};
    use super::*;
    use crate::model::{Digest, Expiry, HlcTime, KeyHasher, NodeTag, Record};

    fn version(hlc: u64) -> Version {
        Version {
            hlc: HlcTime(hlc),
            node: NodeTag(1),
        }
    }

    #[test]
    fn what_a_wrong_clock_has_stamped_is_forgotten() {
        let hasher = KeyHasher::new("test");
        let limits = Limits {
            partitions: 16,
            tombstone_age: Duration::from_secs(600),
        };
        let store = Store::new(hasher, limits);
        let key = |bytes: &'static [u8]| {
            let hash = hasher.hash(bytes);
            HashedKey {
                bytes,
                hash,
                partition: store.partition_of(hash),
            }
        };
        let put = |name, hlc| {
            let record = Record::value(version(hlc), None, Bytes::from_static(b"v"));
            store.apply(key(name), (&record).into(), Millis(1))
        };
        put(b"sane", 5);
        put(b"future", 500);
        store.flush(Database::default(), version(400));
        assert_eq!(
            store.forget_after(0, version(9)),
            [key(b"future").partition]
        );
        assert!(store.summary(key(b"sane"), Millis(1)).is_some());
        assert!(store.summary(key(b"future"), Millis(1)).is_none());
        assert_eq!(store.keys(), 1);
        let prior = Prior::default();
        assert_eq!(put(b"future", 6), Applied::Applied { prior });
    }

    #[test]
    fn what_was_written_before_is_gone_at_once_and_does_not_come_back() {
        let hasher = KeyHasher::new("test");
        let limits = Limits {
            partitions: 16,
            tombstone_age: Duration::from_secs(600),
        };
        let store = Store::new(hasher, limits);
        let key = |bytes: &'static [u8]| {
            let hash = hasher.hash(bytes);
            HashedKey {
                bytes,
                hash,
                partition: store.partition_of(hash),
            }
        };
        let now = Millis(1);
        let put = |name, hlc| {
            let record = Record::value(version(hlc), None, Bytes::from_static(b"v"));
            store.apply(key(name), (&record).into(), now)
        };
        let is_there = |name| store.summary(key(name), now).is_some();
        let (mine, other) = (&b"mine"[..], &b"\xfe\x01other"[..]);
        put(mine, 5);
        put(other, 5);
        assert!(store.flush(Database::default(), version(7)));
        assert!(!store.flush(Database::default(), version(6)));
        assert!(!is_there(mine) && is_there(other));
        let by = Prior::of(version(7));
        assert_eq!(put(mine, 6), Applied::Superseded { by });
        let count = |database| -> u32 {
            let counts = store.count_live(0, database, now);
            counts.iter().map(|(_, count)| count).sum()
        };
        let one = Database::try_from(1).unwrap();
        assert_eq!((count(Database::default()), count(one)), (0, 1));
        assert_eq!(
            (store.keys(), store.free_flushed(0), store.keys()),
            (2, 1, 1)
        );
        let prior = Prior::default();
        assert_eq!(put(mine, 8), Applied::Applied { prior });
        assert!(is_there(mine));
        store.flush(one, version(9));
        store.flush(Database::default(), version(9));
        assert_eq!(store.free_flushed(0), 2);
        let digests = Store::partitions_of(0).map(|partition| store.present(partition));
        assert!(
            digests
                .into_iter()
                .all(|digest| digest == Digest::default())
        );
    }

    #[test]
    fn another_expiry_does_not_save_a_value_from_the_flush_before_it() {
        let hasher = KeyHasher::new("test");
        let limits = Limits {
            partitions: 16,
            tombstone_age: Duration::from_secs(600),
        };
        let key = HashedKey {
            bytes: b"k",
            hash: 7,
            partition: PartitionId(0),
        };
        let now = Millis(1);
        // It missed the flush, and takes a change of expiry that is newer.
        let missed = Store::new(hasher, limits);
        let old = Record::value(version(5), None, Bytes::from_static(b"old"));
        missed.apply(key, (&old).into(), now);
        let expiry = Expiry {
            version: version(150),
            at: Some(Millis(9_000)),
        };
        missed.change_expiry(key, expiry, now);
        let changed = missed.read(key, now, |record| record.unwrap().to_record());
        assert_eq!(changed.stamp().newest(), version(150));
        // Nobody who knows of the flush takes it, and nobody keeps it.
        let knows = Store::new(hasher, limits);
        knows.flush(Database::default(), version(60));
        let by = Prior::of(version(60));
        let taken = knows.apply(key, (&changed).into(), now);
        assert_eq!(taken, Applied::Superseded { by });
        missed.flush(Database::default(), version(60));
        assert!(missed.is_flushed(key.bytes, changed.stamp()));
        assert_eq!(missed.summary(key, now), None);
        // Nor does it come back with one more change.
        let later = Expiry {
            version: version(151),
            at: None,
        };
        let nothing = ExpiryChange::Done {
            now_held: None,
            expired_at_before: None,
        };
        assert_eq!(missed.change_expiry(key, later, now), nothing);
        assert_eq!((missed.free_flushed(0), missed.keys()), (1, 0));
    }
}
