//! What this node holds: records by partition and key.
//!
//! Knows nothing of rings, peers or clocks: `now` and versions are handed in. The only user of
//! dashmap: it shards groups of sixteen neighbouring partitions. A group is a slab of records and a table of their
//! places, with a digest for each partition, so that a record and the digest that counts it change under one lock.
//! Groups and not partitions, because what a look-up needs of 256 groups stays in the processor's
//! cache, and what it needs of 4,096 partitions did not.

mod compare;
mod digests;
mod flush;
mod packed;
mod promises;
mod slab;
mod update;

use std::hash::{BuildHasherDefault, Hasher};
use std::ops::DerefMut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::model::{
    Epoch, Expiry, HashedKey, KeyHasher, Millis, PartitionId, Prior, RecordRef, Stamp, Summary,
    Version,
};

pub use compare::{Rolled, Scrubbed, States};
use digests::{Digests, GROUP, Share};
use flush::HeldFlushes;
pub use packed::ReadyRecord;
use packed::{Layout, Packed};
use promises::Promises;
use slab::{Place, Slab};
pub use update::{Accepted, Promised, Proposal};

/// All records of one node.
#[derive(Debug)]
pub struct Store {
    hasher: KeyHasher,
    limits: Limits,
    groups: DashMap<u16, Group, BuildHasherDefault<GroupHasher>>,
    flushes: HeldFlushes,
    /// The last cut that any group was brought to.
    cut: AtomicU64,
    keys: AtomicU64,
    tombstones: AtomicU64,
    bytes: AtomicU64,
}

/// What a store is made for.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How many partitions there are.
    pub partitions: u32,
    /// How old a tombstone has to be before it may be purged: digests leave it out from then on.
    /// The same on all nodes.
    pub tombstone_age: Duration,
}

/// The part of a partition that is to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanSlice {
    /// The partition.
    pub partition: PartitionId,
    /// From after this hash on.
    pub after: Option<u64>,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It is what the store holds now.
    Applied {
        /// What it replaced.
        prior: Prior,
    },
    /// The store holds something newer and keeps that.
    Superseded {
        /// What it holds.
        by: Prior,
    },
    /// It holds nothing newer, but has promised to take nothing older than this.
    Promised {
        /// The ballot.
        ballot: Version,
    },
}

/// What became of a change of expiry alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpiryChange {
    /// It took effect, or there was no live value to take effect on.
    Done {
        /// What the store holds now.
        now_held: Option<Summary>,
        /// When the value was to end before.
        expired_at_before: Option<Millis>,
    },
    /// A newer write or change of expiry is there.
    Superseded {
        /// Its stamp.
        by: Stamp,
    },
}

impl Store {
    /// An empty store that finds keys by `hasher`.
    #[must_use]
    pub fn new(hasher: KeyHasher, limits: Limits) -> Self {
        Self {
            hasher,
            limits,
            groups: DashMap::default(),
            flushes: HeldFlushes::default(),
            cut: AtomicU64::new(0),
            keys: AtomicU64::new(0),
            tombstones: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Reads a record in place: `read` runs under the partition's lock and must be short. It gets
    /// `None` when there is no record, or one whose time is over at `now`. Tombstones are records.
    pub fn read<T>(
        &self,
        key: HashedKey<'_>,
        now: Millis,
        read: impl FnOnce(Option<RecordRef<'_>>) -> T,
    ) -> T {
        let Some(group) = self.groups.get(&group_of(key.partition)) else {
            return read(None);
        };
        let found = self.find_in(&group, key);
        let found = found.filter(|packed| !packed.is_expired(now));
        read(found.map(|packed| packed.record()))
    }

    /// What is held of a key, without its value.
    #[must_use]
    pub fn summary(&self, key: HashedKey<'_>, now: Millis) -> Option<Summary> {
        self.read(key, now, |record| record.map(Summary::of))
    }

    /// Takes a record if it is newer than what is held, and than what was promised. Taking the same one
    /// twice is harmless.
    pub fn apply(&self, key: HashedKey<'_>, record: RecordRef<'_>, now: Millis) -> Applied {
        if let Some(by) = self.flushes.passed_by(key.bytes, record.stamp()) {
            return Applied::Superseded { by };
        }
        let mut group = self.group_mut(key.partition);
        self.apply_in(&mut group, key, (record, None), now)
    }

    /// The same of a large record, packed already: without a copy.
    pub fn apply_ready(
        &self,
        key: HashedKey<'_>,
        (record, ready): (RecordRef<'_>, ReadyRecord),
        now: Millis,
    ) -> Applied {
        if let Some(by) = self.flushes.passed_by(key.bytes, record.stamp()) {
            return Applied::Superseded { by };
        }
        let mut group = self.group_mut(key.partition);
        self.apply_in(&mut group, key, (record, Some(ready)), now)
    }

    fn apply_in(
        &self,
        group: &mut Group,
        key: HashedKey<'_>,
        (record, ready): (RecordRef<'_>, Option<ReadyRecord>),
        now: Millis,
    ) -> Applied {
        let Group {
            table,
            slab,
            due,
            digests,
            has_aged,
            promises,
            total,
        } = group;
        let too_old = |held: Option<Version>| promises.keeps_out(key.hash, record, held);
        let at = place_in_group(key.partition);
        let is_key = |place: &Place| slab.get(*place).key() == key.bytes;
        let rehash = |place: &Place| table_hash(self.hasher.hash(slab.get(*place).key()));
        let (prior, before, held, share) = match table.entry(table_hash(key.hash), is_key, rehash) {
            Entry::Vacant(vacant) => {
                if let Some(ballot) = too_old(None) {
                    return Applied::Promised { ballot };
                }
                vacant.insert(insert(slab, key.bytes, (record, ready)));
                let share = self.share(key.hash, record);
                digests.change(at, None, share);
                (
                    Prior::default(),
                    Held::default(),
                    Held::new(key.bytes, record),
                    Some(share),
                )
            }
            Entry::Occupied(mut occupied) => {
                let place = occupied.get_mut();
                let packed = slab.get(*place);
                let prior = self.prior(packed, now);
                let held = packed.record();
                let is_older = held.stamp() > record.stamp();
                if is_older {
                    self.cover(key, record, (slab, digests), place);
                    return Applied::Superseded { by: prior };
                }
                if let Some(ballot) =
                    too_old(Some(held.version)).filter(|_| held.stamp() != record.stamp())
                {
                    return Applied::Promised { ballot };
                }
                let before = Held::of(packed);
                if packed.is_plain() && record.is_plain() {
                    // Most overwrites by far.
                    self.overwrite(digests, key, held.version, record.version);
                    *place = put(slab, *place, (record, ready));
                    (prior, before, Held::new(key.bytes, record), None)
                } else {
                    let share_before = self.share(key.hash, held);
                    let record = RecordRef {
                        covers: covers(record, held),
                        ..record
                    };
                    *place = put(slab, *place, (record, ready));
                    let share = self.share(key.hash, record);
                    digests.change(at, Some(share_before), share);
                    (prior, before, Held::new(key.bytes, record), Some(share))
                }
            }
        };
        if let Some(share) = share {
            due.note(share, record, digests.cut());
            *has_aged |= record.value.is_none() && !share.is_counted(digests.cut());
        }
        promises.on_taken(key.hash, record.stamp());
        self.compact(table, slab);
        self.count(total, before, held);
        Applied::Applied { prior }
    }

    /// Changes the digest for one plain record in the place of another. (To measure what digests cost:
    /// benches/store.rs.)
    #[inline]
    fn overwrite(&self, digests: &mut Digests, key: HashedKey<'_>, old: Version, new: Version) {
        if !cfg!(quorate_no_digest) {
            let digest = |of| self.hasher.digest_of_write(key.hash, of);
            let epoch = Epoch::of(new.hlc.millis());
            digests.overwrite(
                place_in_group(key.partition),
                epoch,
                digest(old),
                digest(new),
            );
        }
    }

    fn prior(&self, packed: Packed<'_>, now: Millis) -> Prior {
        if self.flushes.covers(packed.key(), packed.stamp()) {
            return Prior::default();
        }
        Prior {
            stamp: Some(packed.stamp()),
            live: packed.is_value() && !packed.is_expired(now),
        }
    }

    /// Notes that something older was seen that may end later than what is held: it must not come
    /// back when that has ended.
    fn cover(
        &self,
        key: HashedKey<'_>,
        older: RecordRef<'_>,
        (slab, digests): (&mut Slab, &mut Digests),
        place: &mut Place,
    ) {
        let held = slab.get(*place).record();
        if !covers(held, older) {
            return;
        }
        let before = self.share(key.hash, held);
        // The record is its own source: the value is copied out before it is moved.
        let held = held.to_record();
        let held = RecordRef {
            covers: true,
            ..(&held).into()
        };
        *place = slab.replace(*place, held);
        let after = self.share(key.hash, held);
        digests.change(place_in_group(key.partition), Some(before), after);
    }

    /// Changes when a live value ends and nothing else. `version` is the change's own: a write or
    /// another change that is newer wins.
    pub fn change_expiry(&self, key: HashedKey<'_>, expiry: Expiry, now: Millis) -> ExpiryChange {
        let nothing = ExpiryChange::Done {
            now_held: None,
            expired_at_before: None,
        };
        let Some(mut group) = self.groups.get_mut(&group_of(key.partition)) else {
            return nothing;
        };
        let Group {
            table,
            slab,
            due,
            digests,
            promises,
            total,
            ..
        } = &mut *group;
        if let Some(ballot) = promises.of(key.hash)
            && expiry.version < ballot
        {
            let by = Stamp::fresh(ballot);
            return ExpiryChange::Superseded { by };
        }
        let is_key = |place: &Place| slab.get(*place).key() == key.bytes;
        let Some(place) = table.find_mut(table_hash(key.hash), is_key) else {
            return nothing;
        };
        let packed = slab.get(*place);
        let held = packed.stamp();
        if self.flushes.covers(key.bytes, held) {
            return nothing;
        }
        if held.newest() > expiry.version {
            return ExpiryChange::Superseded { by: held };
        }
        if packed.is_expired(now) {
            return nothing;
        }
        let expired_at_before = packed.expires_at();
        let mut now_held = Summary::of(packed.record());
        // Nothing to persist: leave the stamp alone, cost no repair.
        let no_change = expired_at_before.is_none() && expiry.at.is_none();
        if packed.is_value() && !no_change {
            let before = Held::of(packed);
            let share_before = self.share(key.hash, packed.record());
            // The record is its own source: the value is copied out before it is moved.
            let record = packed.record().to_record();
            let held = RecordRef::from(&record);
            let changed = RecordRef { expiry, ..held };
            let changed = RecordRef {
                covers: covers(changed, held),
                ..changed
            };
            *place = slab.replace(*place, changed);
            let share = self.share(key.hash, changed);
            digests.change(place_in_group(key.partition), Some(share_before), share);
            self.count(total, before, Held::new(key.bytes, changed));
            now_held = Summary::of(changed);
            due.note(share, changed, digests.cut());
            self.compact(table, slab);
        }
        ExpiryChange::Done {
            now_held: Some(now_held),
            expired_at_before,
        }
    }

    /// The group of a partition. Most are there: find first, make one only when it is not.
    fn group_mut(&self, partition: PartitionId) -> impl DerefMut<Target = Group> {
        let number = group_of(partition);
        match self.groups.get_mut(&number) {
            Some(group) => group,
            None => {
                let cut = Epoch(self.cut.load(Ordering::Relaxed));
                let new = || Group::new(cut);
                self.groups.entry(number).or_insert_with(new)
            }
        }
    }

    /// What a record adds to the digest of its partition.
    #[inline]
    fn share(&self, key_hash: u64, record: RecordRef<'_>) -> Share {
        let stamp = record.stamp();
        // The clock of the newer of the two versions.
        let written = stamp.value.hlc.max(stamp.expiry.hlc).millis();
        let until = match (record.value, record.expiry.at) {
            (None, _) => Some(written.saturating_add(self.limits.tombstone_age)),
            // A tombstone will stay in its place: it is counted like one from the first moment on.
            (Some(_), Some(_)) if record.covers => None,
            (Some(_), Some(at)) => Some(left_out_from(at, self.partition_of(key_hash))),
            (Some(_), None) => None,
        };
        Share {
            digest: self.hasher.digest_of(key_hash, stamp),
            epoch: Epoch::of(written),
            until,
        }
    }

    /// Closes the holes that removals and replacements have left, when there are many.
    fn compact(&self, table: &mut HashTable<Place>, slab: &mut Slab) {
        slab.compact(|key, from, to| {
            let hash = table_hash(self.hasher.hash(key));
            if let Some(place) = table.find_mut(hash, |place| *place == from) {
                *place = to;
            }
        });
    }

    /// Shows the records of one partition in the order of their key hashes, from after `after` on,
    /// for as long as `show` wants more. Records of one hash are shown together. After which hash
    /// to go on; `None` at the end.
    ///
    /// It runs under the partition's lock: a page at a time.
    pub fn scan(
        &self,
        partition: PartitionId,
        after: Option<u64>,
        mut show: impl FnMut(&[u8], RecordRef<'_>) -> bool,
    ) -> Option<u64> {
        let slice = ScanSlice { partition, after };
        let mut next = None;
        self.scan_group(
            &[slice],
            |_, key, record| show(key, record),
            |_, n| next = n,
        );
        next
    }

    /// The same of several partitions of one group, under one lock and with one look at each record
    /// of the group: of each slice `show` gets its number with its records, and `end` where to go on
    /// once it is over. How many bytes of keys and headers were looked at.
    pub fn scan_group(
        &self,
        slices: &[ScanSlice],
        mut show: impl FnMut(usize, &[u8], RecordRef<'_>) -> bool,
        mut end: impl FnMut(usize, Option<u64>),
    ) -> usize {
        let group = slices.first().map(|slice| group_of(slice.partition));
        let Some(group) = group.and_then(|group| self.groups.get(&group)) else {
            (0..slices.len()).for_each(|number| end(number, None));
            return 0;
        };
        let mut of: Vec<Vec<(u64, Packed<'_>)>> = slices.iter().map(|_| Vec::new()).collect();
        let mut looked_at = 0;
        for packed in group.slab.iter() {
            looked_at += packed.key().len() + HEADER_BYTES;
            let hash = self.hasher.hash(packed.key());
            let partition = self.partition_of(hash);
            for (slice, found) in slices.iter().zip(&mut of) {
                if slice.partition == partition && slice.after.is_none_or(|after| hash > after) {
                    found.push((hash, packed));
                }
            }
        }
        for (number, mut found) in of.into_iter().enumerate() {
            found.sort_unstable_by_key(|(hash, _)| *hash);
            let next = self.show_in_order(&found, |key, record| show(number, key, record));
            end(number, next);
        }
        looked_at
    }

    fn show_in_order(
        &self,
        found: &[(u64, Packed<'_>)],
        mut show: impl FnMut(&[u8], RecordRef<'_>) -> bool,
    ) -> Option<u64> {
        let mut last = None;
        for &(hash, packed) in found {
            if let Some((shown, false)) = last
                && shown != hash
            {
                return Some(shown);
            }
            if self.flushes.covers(packed.key(), packed.stamp()) {
                continue;
            }
            last = Some((hash, show(packed.key(), packed.record())));
        }
        None
    }

    /// The partition of a key's hash: its top bits.
    fn partition_of(&self, hash: u64) -> PartitionId {
        // The product's upper half is below the number of partitions.
        let number = (u128::from(hash) * u128::from(self.limits.partitions)) >> 64;
        PartitionId(u16::try_from(number).unwrap_or(u16::MAX))
    }

    /// How many values are held; those whose time is over count until they are freed.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.keys.load(Ordering::Relaxed)
    }

    /// How many tombstones are held.
    #[must_use]
    pub fn tombstones(&self) -> u64 {
        self.tombstones.load(Ordering::Relaxed)
    }

    /// Bytes of all records: headers, keys and values.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Counts a change of what is held under one key of a group. An overwrite by a value of the same
    /// length, the most common one, touches no counter.
    fn count(&self, total: &mut Held, before: Held, after: Held) {
        // Wrapping: taking away is adding the two's complement, in one atomic step each.
        for (counter, of_group, before, after) in [
            (&self.keys, &mut total.values, before.values, after.values),
            (
                &self.tombstones,
                &mut total.tombstones,
                before.tombstones,
                after.tombstones,
            ),
            (&self.bytes, &mut total.bytes, before.bytes, after.bytes),
        ] {
            if before != after {
                let change = after.wrapping_sub(before);
                counter.fetch_add(change, Ordering::Relaxed);
                *of_group = of_group.wrapping_add(change);
            }
        }
    }
}

/// What a record, or all of a group, adds to the counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    values: u64,
    tombstones: u64,
    bytes: u64,
}

impl Held {
    fn of(packed: Packed<'_>) -> Self {
        let values = u64::from(packed.is_value());
        Self {
            values,
            tombstones: 1 - values,
            bytes: packed.bytes(),
        }
    }

    const fn plus(self, other: Self) -> Self {
        Self {
            values: self.values + other.values,
            tombstones: self.tombstones + other.tombstones,
            bytes: self.bytes + other.bytes,
        }
    }

    fn new(key: &[u8], record: RecordRef<'_>) -> Self {
        let values = u64::from(record.value.is_some());
        Self {
            values,
            tombstones: 1 - values,
            bytes: Layout::of(key, record).total() as u64,
        }
    }
}

fn insert(
    slab: &mut Slab,
    key: &[u8],
    (record, ready): (RecordRef<'_>, Option<ReadyRecord>),
) -> Place {
    match ready {
        Some(ready) => slab.insert_long(ready.into_run(record.covers)),
        None => slab.insert(key, record),
    }
}

fn put(
    slab: &mut Slab,
    place: Place,
    (record, ready): (RecordRef<'_>, Option<ReadyRecord>),
) -> Place {
    match ready {
        Some(ready) => slab.replace_by_long(place, ready.into_run(record.covers)),
        None => slab.replace(place, record),
    }
}

/// Whether `newer` leaves a tombstone when it ends because of `older`, which it replaces: a replica that
/// missed `newer` may hold `older` or something before it, which would come back.
fn covers(newer: RecordRef<'_>, older: RecordRef<'_>) -> bool {
    if newer.value.is_none() {
        return false;
    }
    let Some(at) = newer.expiry.at else {
        return false;
    };
    let is_other = newer.stamp() != older.stamp();
    let outlasts = is_other && older.expiry.at.is_none_or(|end| end > at);
    newer.covers || older.covers || older.value.is_none() || outlasts
}

/// Before these moments nothing has to be done about any record of a group.
#[derive(Debug, Clone, Copy, Default)]
struct Due {
    /// The first cut that has to leave a record out.
    leave_out: Option<Millis>,
    /// The first end of a record.
    free: Option<Millis>,
}

impl Due {
    fn note(&mut self, share: Share, record: RecordRef<'_>, cut: Epoch) {
        if share.is_counted(cut) {
            self.leave_out = earlier(self.leave_out, share.until);
        }
        self.free = earlier(self.free, record.expiry.at);
    }
}

/// Neighbouring partitions.
#[derive(Debug)]
struct Group {
    table: HashTable<Place>,
    slab: Slab,
    due: Due,
    digests: Digests,
    /// There may be tombstones that are old enough to be purged.
    has_aged: bool,
    promises: Promises,
    /// What its records add to the counters: of a damaged one nobody knows what it was.
    total: Held,
}

impl Group {
    fn new(cut: Epoch) -> Self {
        Self {
            table: HashTable::new(),
            slab: Slab::default(),
            due: Due::default(),
            digests: Digests::new(cut),
            has_aged: false,
            promises: Promises::default(),
            total: Held::default(),
        }
    }

    fn find(&self, key: HashedKey<'_>) -> Option<Packed<'_>> {
        let mut found = None;
        let is_key = |place: &Place| {
            let packed = self.slab.get(*place);
            let is_key = packed.key() == key.bytes;
            if is_key {
                found = Some(packed);
            }
            is_key
        };
        self.table.find(table_hash(key.hash), is_key)?;
        found
    }
}

fn earlier(a: Option<Millis>, b: Option<Millis>) -> Option<Millis> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The first moment whose cut leaves out what ends then. All records of a group are left out at the same
/// few cuts, so that it is looked through once in eight epochs and not at each; groups take turns.
fn left_out_from(end: Millis, partition: PartitionId) -> Millis {
    let soon = Epoch::of(Millis(end.0.saturating_sub(ENDS_SOON_MS))).0;
    let turn = u64::from(group_of(partition)) % LEAVE_OUT_EPOCHS;
    let round = (soon + turn) / LEAVE_OUT_EPOCHS * LEAVE_OUT_EPOCHS;
    Epoch(round.saturating_sub(turn)).begin()
}

const fn group_of(partition: PartitionId) -> u16 {
    partition.0 / GROUP
}

const fn place_in_group(partition: PartitionId) -> usize {
    (partition.0 % GROUP) as usize
}

/// All keys of a group share the top bits of their hash, and hashbrown tags entries with the
/// top seven: turn fresh bits up, or every probe would compare keys.
const fn table_hash(key_hash: u64) -> u64 {
    key_hash.rotate_left(32)
}

/// Spreads consecutive group numbers over dashmap's shards, which it picks by the top bits.
#[derive(Debug, Default)]
struct GroupHasher(u64);

impl Hasher for GroupHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u16(u16::from(byte));
        }
    }

    fn write_u16(&mut self, number: u16) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// What looking at a record costs besides its key, as bytes.
const HEADER_BYTES: usize = 32;
/// What ends within this time from a cut on, or a round of epochs longer, is not worth a repair, and
/// digests leave it out: longer than a cut is behind the clock.
const ENDS_SOON_MS: u64 = 25_000;
const LEAVE_OUT_EPOCHS: u64 = 8;

#[cfg(test)]
mod tests;
