//! Databases that were emptied: what was written up to a moment counts for nothing.
//!
//! One version for each database says from when on its records count. It is seen at once; the records
//! before it are freed later, a group at a time. Whatever still brings one, a hint, a repair, a
//! replica that was away, finds something newer here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use super::packed::Packed;
use super::{Group, Held, Store};
use crate::model::{Database, HashedKey, Millis, PartitionId, Prior, Stamp, Version};

/// When each database was emptied last.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    /// Most stores never are: one look tells.
    is_any: AtomicBool,
    of: RwLock<[Version; Database::COUNT]>,
}

impl Flushes {
    /// What a record of this key must exceed to count.
    #[inline]
    pub(super) fn of(&self, key: &[u8]) -> Option<Version> {
        if !self.is_any.load(Ordering::Acquire) {
            return None;
        }
        Some(self.all()[Database::split(key).0.number()])
    }

    /// Whether what is held of this key was emptied out.
    #[inline]
    pub(super) fn covers(&self, key: &[u8], stamp: Stamp) -> bool {
        self.of(key).is_some_and(|by| stamp.newest() <= by)
    }

    /// What passes a state of this key that was emptied out before it came.
    #[inline]
    pub(super) fn passed_by(&self, key: &[u8], stamp: Stamp) -> Option<Prior> {
        let by = self.of(key)?;
        (stamp.newest() <= by).then(|| Prior::of(by))
    }

    fn all(&self) -> [Version; Database::COUNT] {
        *self.of.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Empties a database of all that was written up to this version; whether that is news.
    pub fn flush(&self, database: Database, up_to: Version) -> bool {
        let of = &self.flushes.of;
        let mut of = of.write().unwrap_or_else(PoisonError::into_inner);
        let held = &mut of[database.number()];
        let is_news = *held < up_to;
        *held = (*held).max(up_to);
        self.flushes.is_any.store(true, Ordering::Release);
        is_news
    }

    /// Forgets all of a group that is of a later version than this: nobody else has taken it. Which of
    /// its partitions have lost something that way; promises are lost in all.
    pub fn forget_after(&self, number: u16, last: Version) -> Vec<PartitionId> {
        let mut of = self
            .flushes
            .of
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        for flush in of.iter_mut().filter(|flush| **flush > last) {
            *flush = Version::default();
        }
        drop(of);
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
    pub fn flushes(&self) -> [Version; Database::COUNT] {
        self.flushes.all()
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

    use super::super::{Applied, Limits};
    use super::*;
    use crate::model::{Digest, HlcTime, KeyHasher, NodeTag, Record};

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
}
