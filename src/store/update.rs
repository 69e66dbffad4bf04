//! What updates by consensus need of the store: to promise a ballot, and to take the state under one.

use super::{Applied, Group, Store};
use crate::model::{HashedKey, HlcTime, Millis, RecordRef, Stamp, Version};

/// What became of a request to promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promised<T> {
    /// Nothing older than the ballot is taken from now on. What is held now.
    Promised(T),
    /// Something at least as new is held, promised or forgotten.
    Refused {
        /// What a ballot must exceed.
        by: Version,
    },
    /// There are as many promises as there may be.
    Full,
}

/// What became of a state that was to be taken under a ballot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It is what the store holds now.
    Accepted {
        /// The ballot of what is likely to follow is promised.
        is_next_promised: bool,
    },
    /// Something newer is held, promised or forgotten.
    Refused {
        /// What a ballot must exceed.
        by: Version,
    },
}

/// A record that an update has made.
#[derive(Debug, Clone, Copy)]
pub struct Proposal<'a> {
    /// The record; its version is the ballot.
    pub record: RecordRef<'a>,
    /// How it came to be.
    pub lineage: &'a [u8],
    /// What must be held for it to be taken, if the ballot was promised with that.
    pub base: Option<Stamp>,
    /// The ballot of what is likely to follow: promised with it.
    pub next: Option<Version>,
}

impl Store {
    /// Promises to take nothing older than `ballot` for a key, and shows what is held of it and how
    /// that came to be: under the partition's lock, so `show` must be short.
    pub fn promise<T>(
        &self,
        key: HashedKey<'_>,
        ballot: Version,
        now: HlcTime,
        show: impl FnOnce(Option<RecordRef<'_>>, Option<&[u8]>) -> T,
    ) -> Promised<T> {
        let mut group = self.group_mut(key.partition);
        let group = &mut *group;
        let flushed = self.flushes.of(key.bytes).unwrap_or_default();
        let floor = group
            .promises
            .floor()
            .max(oldest(now.millis()))
            .max(flushed);
        if ballot <= floor {
            return Promised::Refused { by: floor };
        }
        if let Some(by) = group.promises.of(key.hash).filter(|by| *by > ballot) {
            return Promised::Refused { by };
        }
        let held = self
            .find_in(group, key)
            .map(|packed| packed.stamp().newest());
        if let Some(by) = held.filter(|by| *by >= ballot) {
            return Promised::Refused { by };
        }
        if !group.promises.promise(key.hash, ballot, now.millis()) {
            return Promised::Full;
        }
        let record = self.find_in(group, key).map(|packed| packed.record());
        let lineage = record.and_then(|record| group.promises.lineage(key.hash, record.version));
        Promised::Promised(show(record, lineage))
    }

    /// A ballot that was promised is used for nothing, and never will be.
    pub fn release(&self, key: HashedKey<'_>, ballot: Version) {
        self.group_mut(key.partition)
            .promises
            .release(key.hash, ballot);
    }

    /// Takes a record if it replaces what has this stamp; whether it did.
    pub fn replace(
        &self,
        key: HashedKey<'_>,
        held: Option<Stamp>,
        record: RecordRef<'_>,
        now: Millis,
    ) -> bool {
        // What is made of a record that a flush empties out meanwhile is older than that flush.
        let _held_off = self.flushes.hold_off();
        let mut group = self.group_mut(key.partition);
        let group = &mut *group;
        let is_same = self.find_in(group, key).map(|packed| packed.stamp()) == held;
        is_same
            && matches!(
                self.apply_in(group, key, (record, None), now),
                Applied::Applied { .. }
            )
    }

    /// The newest ballot of a key's group of which nothing is known any more: whatever was updated up
    /// to then may have been forgotten.
    #[must_use]
    pub fn floor(&self, key: HashedKey<'_>) -> Version {
        let flushed = self.flushes.of(key.bytes).unwrap_or_default();
        self.group_mut(key.partition).promises.floor().max(flushed)
    }

    /// Promises nothing up to this ballot, and takes nothing under one, in the group of a partition.
    pub fn raise_floor(&self, partition: crate::model::PartitionId, floor: Version) {
        self.group_mut(partition).promises.forget(floor);
    }

    /// Takes a record under the ballot that is its version, if nothing newer was promised. Taking the
    /// same one twice is harmless.
    pub fn accept(&self, key: HashedKey<'_>, proposal: Proposal<'_>, now: HlcTime) -> Accepted {
        let Proposal {
            record,
            lineage,
            base,
            next,
        } = proposal;
        let ballot = record.version;
        let mut group = self.group_mut(key.partition);
        let group = &mut *group;
        let flushed = self.flushes.of(key.bytes).unwrap_or_default();
        let floor = group
            .promises
            .floor()
            .max(oldest(now.millis()))
            .max(flushed);
        if ballot <= floor {
            return Accepted::Refused { by: floor };
        }
        let held = self.find_in(group, key).map(|packed| packed.stamp());
        if let Some(by) = held.map(|stamp| stamp.newest()).filter(|by| *by > ballot) {
            return Accepted::Refused { by };
        }
        if let Some(held) = held.filter(|stamp| stamp.value == ballot) {
            return Accepted::Accepted {
                is_next_promised: group.take_again(key.hash, held, (lineage, next), now.millis()),
            };
        }
        if base.is_some() && base != held {
            // A flush, or a change of expiry, has come between: what was made is not made of this.
            let by = held.map_or(floor, |stamp| stamp.newest().max(floor));
            return Accepted::Refused { by };
        }
        match self.apply_in(group, key, (record, None), now.millis()) {
            Applied::Applied { .. } => {}
            Applied::Superseded { by } => {
                let by = by.stamp.unwrap_or_default().newest();
                return Accepted::Refused { by };
            }
            Applied::Promised { ballot: by } => return Accepted::Refused { by },
        }
        let now = now.millis();
        group.promises.note(key.hash, ballot, lineage, now);
        let mut promise = |next| group.promises.promise(key.hash, next, now);
        Accepted::Accepted {
            is_next_promised: next.is_some_and(&mut promise),
        }
    }
}

impl Group {
    /// What came with a state that is held already; whether the next ballot is promised.
    ///
    /// It may have come by a plain repair, which says nothing of how it came to be: without its lineage
    /// whoever tries one of its updates again could not know that it is made.
    fn take_again(
        &mut self,
        key_hash: u64,
        held: Stamp,
        (lineage, next): (&[u8], Option<Version>),
        now: Millis,
    ) -> bool {
        let promises = &mut self.promises;
        if promises.lineage(key_hash, held.value).is_none() {
            promises.note(key_hash, held.value, lineage, now);
        }
        let Some(next) = next else { return false };
        match promises.of(key_hash) {
            Some(promise) if promise >= next => promise == next,
            _ => held.newest() < next && promises.promise(key_hash, next, now),
        }
    }
}

/// No ballot is as old as that: those who forget promises count on it.
pub(super) fn oldest(now: Millis) -> Version {
    let age_max = Millis(now.0.saturating_sub(BALLOT_AGE_MS_MAX));
    Version {
        hlc: HlcTime::from_millis(age_max),
        node: crate::model::NodeTag(0),
    }
}

/// How old a ballot may be, by the clock of whoever is asked to take it.
const BALLOT_AGE_MS_MAX: u64 = 5_000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::super::{ExpiryChange, Limits};
    use super::*;
    use crate::model::{Expiry, KeyHasher, NodeTag, PartitionId, Record};

    const KEY: HashedKey<'static> = HashedKey {
        bytes: b"k",
        hash: 7,
        partition: PartitionId(0),
    };

    fn store() -> Store {
        let limits = Limits {
            partitions: 16,
            tombstone_age: Duration::from_secs(600),
        };
        Store::new(KeyHasher::new("test"), limits)
    }

    /// Of the tenth second and so many ticks.
    fn version(ticks: u64) -> Version {
        Version {
            hlc: HlcTime(now().0 + ticks),
            node: NodeTag(1),
        }
    }

    fn now() -> HlcTime {
        HlcTime::from_millis(Millis(10_000))
    }

    fn record(ticks: u64, text: &'static str) -> Record {
        Record::value(version(ticks), None, Bytes::from_static(text.as_bytes()))
    }

    fn promise(store: &Store, ticks: u64) -> Promised<(bool, bool)> {
        store.promise(KEY, version(ticks), now(), |record, lineage| {
            (record.is_some(), lineage.is_some())
        })
    }

    fn accept(store: &Store, ticks: u64, next: Option<u64>) -> Accepted {
        let record = record(ticks, "v");
        let proposal = Proposal {
            record: (&record).into(),
            lineage: b"how",
            base: None,
            next: next.map(version),
        };
        store.accept(KEY, proposal, now())
    }

    fn outbid(by: u64) -> Promised<(bool, bool)> {
        Promised::Refused { by: version(by) }
    }

    const TAKEN: Accepted = Accepted::Accepted {
        is_next_promised: false,
    };

    #[test]
    fn nothing_older_than_a_promise_is_taken() {
        let store = store();
        assert_eq!(promise(&store, 5), Promised::Promised((false, false)));
        assert_eq!(promise(&store, 4), outbid(5));
        let ballot = version(5);
        let older = record(4, "plain");
        let taken = store.apply(KEY, (&older).into(), now().millis());
        assert_eq!(taken, Applied::Promised { ballot });
        assert_eq!(accept(&store, 4, None), Accepted::Refused { by: ballot });
        let expiry = Expiry {
            version: version(4),
            at: None,
        };
        let by = Stamp::fresh(ballot);
        let changed = store.change_expiry(KEY, expiry, now().millis());
        assert_eq!(changed, ExpiryChange::Superseded { by });
        assert_eq!(accept(&store, 5, None), TAKEN);
        // A second time, as when a message comes twice.
        assert_eq!(accept(&store, 5, None), TAKEN);
        assert_eq!(promise(&store, 5), outbid(5));
        assert_eq!(promise(&store, 6), Promised::Promised((true, true)));
        assert_eq!(accept(&store, 5, None), TAKEN, "it is held already");
    }

    #[test]
    fn a_newer_write_passes_a_promise_and_ends_it() {
        let store = store();
        promise(&store, 5);
        let newer = record(6, "plain");
        let taken = store.apply(KEY, (&newer).into(), now().millis());
        assert!(matches!(taken, Applied::Applied { .. }));
        let by = version(6);
        assert_eq!(accept(&store, 5, None), Accepted::Refused { by });
        // How a plain write came to be is not known.
        assert_eq!(promise(&store, 7), Promised::Promised((true, false)));
    }

    #[test]
    fn what_is_likely_to_follow_is_promised_too() {
        let store = store();
        promise(&store, 5);
        let is_next_promised = true;
        let both = Accepted::Accepted { is_next_promised };
        assert_eq!(accept(&store, 5, Some(6)), both);
        assert_eq!(accept(&store, 5, Some(6)), both);
        assert_eq!(promise(&store, 6), Promised::Promised((true, true)));
        assert_eq!(accept(&store, 6, None), TAKEN);
    }

    #[test]
    fn no_ballot_up_to_the_floor_or_too_old_is_promised_or_taken() {
        let store = store();
        store.raise_floor(PartitionId(3), version(5));
        assert_eq!(promise(&store, 5), outbid(5));
        assert_eq!(
            accept(&store, 5, None),
            Accepted::Refused { by: version(5) }
        );
        assert_eq!(accept(&store, 6, None), TAKEN);
        // A copy of what is held elsewhere is no vote.
        let older = record(4, "copy");
        let other = HashedKey {
            bytes: b"other",
            hash: 8,
            ..KEY
        };
        let taken = store.apply(other, (&older).into(), now().millis());
        assert!(matches!(taken, Applied::Applied { .. }));
        let later = HlcTime::from_millis(Millis(15_001));
        let late = store.promise(other, version(9), later, |_, _| ());
        assert!(matches!(late, Promised::Refused { by } if by > version(9)));
    }

    #[test]
    fn a_full_table_forgets_what_is_old_and_refuses_what_is_new() {
        let store = store();
        let key = |hash| HashedKey { hash, ..KEY };
        let all = |from: u64| {
            (from..).take_while(|hash| {
                let promised = store.promise(key(*hash), version(1), now(), |_, _| ());
                promised == Promised::Promised(())
            })
        };
        let kept = all(100).count();
        assert!(kept >= 1_000, "{kept}");
        let promised = store.promise(key(1), version(1), now(), |_, _| ());
        assert_eq!(promised, Promised::Full);
        // Half a minute later nobody counts on these any more.
        let later = HlcTime::from_millis(Millis(41_000));
        let ballot = Version {
            hlc: later,
            ..version(1)
        };
        let promised = store.promise(key(1), ballot, later, |_, _| ());
        assert_eq!(promised, Promised::Promised(()));
        assert_eq!(store.floor(KEY), version(1));
        // The sweeper does the same, room or not.
        store.roll(0, crate::model::Epoch(9), Millis(80_000));
        assert_eq!(store.floor(KEY), ballot);
    }

    #[test]
    fn promises_that_are_not_used_leave_room_for_others() {
        let store = store();
        let key = |hash| HashedKey { hash, ..KEY };
        for hash in 100..5_000 {
            let promised = store.promise(key(hash), version(1), now(), |_, _| ());
            assert_eq!(promised, Promised::Promised(()), "{hash}");
            store.release(key(hash), version(1));
        }
        assert_eq!(store.floor(KEY), Version::default());
    }

    #[test]
    fn what_another_was_promised_outlives_a_promise_that_is_not_used() {
        let store = store();
        let expect = |ticks| {
            let older = record(ticks - 1, "plain");
            let taken = store.apply(KEY, (&older).into(), now().millis());
            let ballot = version(ticks);
            assert_eq!(taken, Applied::Promised { ballot });
        };
        promise(&store, 5);
        promise(&store, 7);
        store.release(KEY, version(7));
        expect(5);
        promise(&store, 7);
        promise(&store, 9);
        // Of three, nobody knows any more what the one below was.
        store.release(KEY, version(9));
        expect(9);
        // One that is below, and one that was never made.
        store.release(KEY, version(7));
        store.release(KEY, version(8));
        expect(9);
    }

    #[test]
    fn promises_too_old_to_be_used_make_room() {
        let store = store();
        let key = |hash| HashedKey { hash, ..KEY };
        for hash in 100..1_124 {
            store.promise(key(hash), version(1), now(), |_, _| ());
        }
        let later = HlcTime::from_millis(Millis(10_000 + BALLOT_AGE_MS_MAX + 1));
        let ballot = Version {
            hlc: later,
            ..version(1)
        };
        let promised = store.promise(key(1), ballot, later, |_, _| ());
        assert_eq!(promised, Promised::Promised(()));
        // No younger ballot is refused for it.
        assert_eq!(store.floor(KEY), version(1));
    }

    #[test]
    fn a_state_that_was_repaired_first_still_gets_its_lineage_and_the_next_promise() {
        let store = store();
        promise(&store, 5);
        let repaired = record(5, "v");
        let taken = store.apply(KEY, (&repaired).into(), now().millis());
        assert!(matches!(taken, Applied::Applied { .. }));
        let is_next_promised = true;
        let both = Accepted::Accepted { is_next_promised };
        assert_eq!(accept(&store, 5, Some(6)), both);
        // Nor does a repair afterwards take it away.
        store.apply(KEY, (&repaired).into(), now().millis());
        assert_eq!(promise(&store, 6), Promised::Promised((true, true)));
    }

    #[test]
    fn a_state_made_of_what_is_no_longer_held_is_not_taken() {
        let store = store();
        let base = Stamp::fresh(version(5));
        let made = record(7, "made");
        let give = || {
            let proposal = Proposal {
                record: (&made).into(),
                lineage: b"how",
                base: Some(base),
                next: None,
            };
            store.accept(KEY, proposal, now())
        };
        assert!(
            matches!(give(), Accepted::Refused { .. }),
            "nothing is held"
        );
        accept(&store, 5, Some(7));
        let expiry = Expiry {
            version: version(7),
            at: Some(Millis(99_000)),
        };
        store.change_expiry(KEY, expiry, now().millis());
        assert_eq!(give(), Accepted::Refused { by: version(7) });
    }

    #[test]
    fn lineages_are_bounded_in_bytes() {
        let store = store();
        let key = |hash| HashedKey { hash, ..KEY };
        let lineage = vec![7; 2_000];
        for hash in 0..1_000 {
            let bytes = hash.to_string();
            let made = record(1, "v");
            let proposal = Proposal {
                record: (&made).into(),
                lineage: &lineage,
                base: None,
                next: None,
            };
            let key = HashedKey {
                bytes: bytes.as_bytes(),
                ..key(hash)
            };
            store.accept(key, proposal, now());
        }
        let kept = |hash: &u64| {
            let bytes = hash.to_string();
            let key = HashedKey {
                bytes: bytes.as_bytes(),
                ..key(*hash)
            };
            let promised = store.promise(key, version(2), now(), |_, lineage| lineage.is_some());
            promised == Promised::Promised(true)
        };
        let kept = (0..1_000).filter(kept).count();
        assert!((10..=70).contains(&kept), "{kept}");
    }

    #[test]
    fn a_record_is_replaced_only_if_it_is_the_one_that_was_seen() {
        let store = store();
        let (first, second) = (record(1, "a"), record(2, "b"));
        let now = now().millis();
        assert!(store.replace(KEY, None, (&first).into(), now));
        assert!(!store.replace(KEY, None, (&second).into(), now));
        assert!(store.replace(KEY, Some(first.stamp()), (&second).into(), now));
    }
}
