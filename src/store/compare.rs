//! What replicas need of the store to be compared and kept alike: cuts, digests, the states of all
//! keys, the end of expired records and of old tombstones, and a search for damage.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::digests::{Digests, GROUP, Share};
use super::{Due, Group, Held, Store, group_of, place_in_group, table_hash};
use crate::model::{Digest, Epoch, HashedKey, Millis, PartitionId, RecordRef};

/// The state of each key: its hash, and a hash of what is held of it.
pub type States = Vec<(u64, u64)>;

/// What became of the records of a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rolled {
    /// Expired records that were freed.
    pub freed: u64,
}

/// What a search for damage has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Records that were not what had been written. They are gone.
    pub damaged: u64,
    /// Partitions that have lost something, or whose digest was wrong.
    pub partitions: Vec<PartitionId>,
}

impl Store {
    /// How many groups of neighbouring partitions there are.
    #[must_use]
    pub fn groups(&self) -> u16 {
        let groups = self.limits.partitions.div_ceil(u32::from(GROUP));
        u16::try_from(groups).unwrap_or(u16::MAX)
    }

    /// The group of a partition.
    #[must_use]
    pub const fn group(partition: PartitionId) -> u16 {
        group_of(partition)
    }

    /// The partitions of a group.
    pub fn partitions_of(group: u16) -> impl Iterator<Item = PartitionId> {
        let first = group * GROUP;
        (first..=first + (GROUP - 1)).map(PartitionId)
    }

    /// Moves a group's digests to a cut, which the clock has passed, and frees the records whose
    /// time is over at `now`.
    pub fn roll(&self, number: u16, cut: Epoch, now: Millis) -> Rolled {
        self.cut.store(cut.0, Ordering::Relaxed);
        let mut rolled = Rolled::default();
        let Some(mut group) = self.groups.get_mut(&number) else {
            return rolled;
        };
        let group = &mut *group;
        let before = group.digests.cut();
        if cut < before {
            // The clock was set back.
            self.recount(group, cut);
            return rolled;
        }
        group.digests.advance(cut);
        group.promises.expire(now);
        // Freeing is not urgent: a group takes its turn, so that not all are looked through at once.
        let is_turn = (cut.0 + u64::from(number)).is_multiple_of(FREE_EPOCHS);
        let has_to_free = is_turn && group.due.free.is_some_and(|due| due <= now);
        let has_to_leave_out = group.due.leave_out.is_some_and(|due| due <= cut.end());
        if !has_to_free && !has_to_leave_out {
            return rolled;
        }
        let cut = group.digests.cut();
        group.due = Due::default();
        group.table.retain(|place| {
            let packed = group.slab.get(*place);
            let record = packed.record();
            let is_lasting = record.expiry.at.is_none() && record.value.is_some();
            if is_lasting || packed.is_unreadable() {
                return true;
            }
            let hash = self.hasher.hash(packed.key());
            let at = place_in_group(self.partition_of(hash));
            let share = self.share(hash, record);
            group.digests.leave_out(at, share, before);
            if record.value.is_none() {
                group.has_aged |= !share.is_counted(cut);
                group.due.note(share, record, cut);
                return true;
            }
            if record.covers && record.is_expired(cut.end()) {
                // By the cut and not by the clock, so that all replicas do it at the same one.
                let held = Held::of(packed);
                let tombstone = record.ended().to_record();
                let tombstone = RecordRef::from(&tombstone);
                let share_after = self.share(hash, tombstone);
                let after = Held::new(packed.key(), tombstone);
                self.count(&mut group.total, held, after);
                *place = group.slab.replace(*place, tombstone);
                group.digests.change(at, Some(share), share_after);
                group.has_aged |= !share_after.is_counted(cut);
                group.due.note(share_after, tombstone, cut);
                rolled.freed += 1;
                return true;
            }
            if !record.covers && record.is_expired(now) && !share.is_counted(cut) {
                self.count(&mut group.total, Held::of(packed), Held::default());
                group.promises.forget(record.stamp().newest());
                group.slab.remove(*place);
                rolled.freed += 1;
                return false;
            }
            group.due.note(share, record, cut);
            true
        });
        self.tidy(group);
        rolled
    }

    /// The digest of one partition, at the cut of its group.
    #[must_use]
    pub fn digest(&self, partition: PartitionId) -> Digest {
        let at = place_in_group(partition);
        let group = self.groups.get(&group_of(partition));
        group.map_or_else(Digest::default, |group| group.digests.at_cut(at))
    }

    /// The digest of all that a partition holds now.
    #[must_use]
    pub fn present(&self, partition: PartitionId) -> Digest {
        let at = place_in_group(partition);
        let group = self.groups.get(&group_of(partition));
        group.map_or_else(Digest::default, |group| group.digests.present(at))
    }

    /// The last cut that digests were brought to.
    #[must_use]
    pub fn cut(&self) -> Epoch {
        Epoch(self.cut.load(Ordering::Relaxed))
    }

    /// The state of each key of a partition: its hash, and a hash of what is held of it. What
    /// digests at this cut leave out because it ends soon is left out.
    #[must_use]
    pub fn states(&self, partition: PartitionId, cut: Epoch) -> States {
        let mut of_group = self.group_states(group_of(partition), cut);
        of_group.remove(&partition).unwrap_or_default()
    }

    /// The same of all partitions of a group that hold anything: one pass through its records, as
    /// it would take for each partition alone.
    #[must_use]
    pub fn group_states(&self, group: u16, cut: Epoch) -> BTreeMap<PartitionId, States> {
        let mut states: BTreeMap<PartitionId, States> = BTreeMap::new();
        let Some(group) = self.groups.get(&group) else {
            return states;
        };
        for packed in group.slab.iter() {
            let hash = self.hasher.hash(packed.key());
            let record = packed.record();
            let share = self.share(hash, record);
            // Tombstones that are old enough to be purged may still be needed elsewhere.
            if record.value.is_none() || share.is_counted(cut) {
                let of_partition = states.entry(self.partition_of(hash)).or_default();
                of_partition.push((hash, share.digest.0));
            }
        }
        states
    }

    /// Shows the records whose key has this hash: one, as a rule.
    pub fn find(
        &self,
        partition: PartitionId,
        hash: u64,
        mut show: impl FnMut(&[u8], RecordRef<'_>),
    ) {
        let Some(group) = self.groups.get(&group_of(partition)) else {
            return;
        };
        for place in group.table.iter_hash(table_hash(hash)) {
            let packed = group.slab.get(*place);
            if self.hasher.hash(packed.key()) == hash {
                show(packed.key(), packed.record());
            }
        }
    }

    /// Forgets everything of a partition. How many records there were.
    pub fn clear(&self, partition: PartitionId) -> u64 {
        let Some(mut group) = self.groups.get_mut(&group_of(partition)) else {
            return 0;
        };
        let group = &mut *group;
        let before = group.table.len();
        group.table.retain(|place| {
            let packed = group.slab.get(*place);
            let is_other = packed.is_unreadable()
                || self.partition_of(self.hasher.hash(packed.key())) != partition;
            if !is_other {
                self.count(&mut group.total, Held::of(packed), Held::default());
                group.promises.forget(packed.stamp().newest());
                group.slab.remove(*place);
            }
            is_other
        });
        let cleared = before - group.table.len();
        group.digests.clear(place_in_group(partition));
        self.tidy(group);
        cleared as u64
    }

    /// Whether a partition, or one of its neighbours, may hold tombstones that can be purged.
    #[must_use]
    pub fn has_aged(&self, partition: PartitionId) -> bool {
        let group = self.groups.get(&group_of(partition));
        group.is_some_and(|group| group.has_aged)
    }

    /// Purges the tombstones of these partitions of one group that are old enough at its cut. How
    /// many there were.
    pub fn purge(&self, partitions: &[PartitionId]) -> u64 {
        let Some(group) = partitions.first().map(|first| group_of(*first)) else {
            return 0;
        };
        let Some(mut group) = self.groups.get_mut(&group) else {
            return 0;
        };
        let group = &mut *group;
        let cut = group.digests.cut();
        let mut purged = 0;
        group.has_aged = false;
        group.table.retain(|place| {
            let packed = group.slab.get(*place);
            let record = packed.record();
            let is_old = || {
                let hash = self.hasher.hash(packed.key());
                let is_aged = !self.share(hash, record).is_counted(cut);
                (is_aged, partitions.contains(&self.partition_of(hash)))
            };
            if record.value.is_some() || packed.is_unreadable() {
                return true;
            }
            let (is_aged, is_of_these) = is_old();
            if is_aged && is_of_these {
                self.count(&mut group.total, Held::of(packed), Held::default());
                group.promises.forget(record.stamp().newest());
                group.slab.remove(*place);
                purged += 1;
                return false;
            }
            group.has_aged |= is_aged;
            true
        });
        self.tidy(group);
        purged
    }

    /// Looks at every record of a group for damage, takes out what is damaged, and counts the
    /// digests anew.
    pub fn scrub(&self, number: u16) -> Scrubbed {
        let mut scrubbed = Scrubbed::default();
        let Some(mut group) = self.groups.get_mut(&number) else {
            return scrubbed;
        };
        let group = &mut *group;
        let before: [Digest; GROUP as usize] =
            std::array::from_fn(|place| group.digests.present(place));
        let mut present = [Digest::default(); GROUP as usize];
        let cut = group.digests.cut();
        group.table.retain(|place| {
            let packed = group.slab.get(*place);
            // Dead: the table would not point to it.
            if !packed.is_intact() || packed.is_dead() {
                // What a damaged record says of its version is not to be believed: whoever lost
                // something does not vote until it has caught up, and forgets everything then.
                group.slab.remove(*place);
                scrubbed.damaged += 1;
                return false;
            }
            let (at, share) = self.share_of(packed.key(), packed.record());
            if share.is_counted(cut) {
                present[at] = present[at].plus(share.digest);
            }
            true
        });
        if scrubbed.damaged > 0 || !group.slab.is_whole() {
            group.slab.rescue(&mut group.table);
            let places = group.table.iter();
            let held = places.map(|place| Held::of(group.slab.get(*place)));
            let after = held.fold(Held::default(), Held::plus);
            let before = group.total;
            self.count(&mut group.total, before, after);
        }
        if present != before {
            self.recount(group, cut);
            let first = number * GROUP;
            let places = (first..).zip(present.iter().zip(&before));
            let wrong = places.filter(|(_, (present, before))| present != before);
            scrubbed.partitions = wrong.map(|(number, _)| PartitionId(number)).collect();
        }
        self.tidy(group);
        scrubbed
    }

    /// Alters the bytes of a record behind the store's back, as a fault of the memory would: flags,
    /// lengths, checksum, stamp, key and value, in this order. For tests. Whether there is one.
    #[doc(hidden)]
    pub fn alter(&self, key: HashedKey<'_>, alter: impl FnOnce(&mut [u8])) -> bool {
        let Some(mut group) = self.groups.get_mut(&group_of(key.partition)) else {
            return false;
        };
        let Group { table, slab, .. } = &mut *group;
        let is_key = |place: &super::Place| slab.get(*place).key() == key.bytes;
        let place = table.find(table_hash(key.hash), is_key).copied();
        place.is_some_and(|place| {
            alter(slab.bytes_mut(place));
            true
        })
    }

    /// Counts the digests anew, at this cut.
    pub(super) fn recount(&self, group: &mut Group, cut: Epoch) {
        group.digests = Digests::new(cut);
        for packed in group.slab.iter() {
            let record = packed.record();
            let (at, share) = self.share_of(packed.key(), record);
            group.digests.change(at, None, share);
            group.due.note(share, record, cut);
        }
    }

    fn share_of(&self, key: &[u8], record: RecordRef<'_>) -> (usize, Share) {
        let hash = self.hasher.hash(key);
        let at = place_in_group(self.partition_of(hash));
        (at, self.share(hash, record))
    }

    /// Gives memory back after removals.
    pub(super) fn tidy(&self, group: &mut Group) {
        let Group { table, slab, .. } = group;
        if table.capacity() > 64 && table.len() < table.capacity() / 4 {
            table.shrink_to_fit(|place| table_hash(self.hasher.hash(slab.get(*place).key())));
        }
        self.compact(table, slab);
    }
}

/// Expired records take memory for this many epochs, twelve seconds, at most. They are never shown.
const FREE_EPOCHS: u64 = 3;
