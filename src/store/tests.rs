use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::model::{Body, Digest, HlcTime, Kind, NodeTag, Record, Version};

const NOW: Millis = Millis(1_000);

fn store() -> Store {
    let limits = Limits {
        partitions: 16,
        tombstone_age: Duration::from_secs(600),
    };
    Store::new(KeyHasher::new("test"), limits)
}

fn key(store: &Store, bytes: &'static [u8]) -> HashedKey<'static> {
    let hash = store.hasher.hash(bytes);
    HashedKey {
        bytes,
        hash,
        partition: PartitionId(u16::try_from(hash >> 60).unwrap()),
    }
}

fn version(hlc: u64) -> Version {
    Version {
        hlc: HlcTime(hlc),
        node: NodeTag(1),
    }
}

fn value(hlc: u64, ends: Option<u64>, text: &'static str) -> Record {
    Record::value(
        version(hlc),
        ends.map(Millis),
        Bytes::from_static(text.as_bytes()),
    )
}

fn put(store: &Store, name: &'static [u8], record: &Record) -> Applied {
    store.apply(key(store, name), record.into(), NOW)
}

fn held(store: &Store, name: &'static [u8], now: u64) -> Option<Record> {
    store.read(key(store, name), Millis(now), |record| {
        record.map(|r| r.to_record())
    })
}

#[test]
fn only_newer_writes_are_applied() {
    let store = store();
    assert_eq!(
        put(&store, b"k", &value(5, None, "a")),
        Applied::Applied {
            prior: Prior::default()
        }
    );
    let by = Prior {
        stamp: Some(Stamp::fresh(version(5))),
        live: true,
    };
    assert_eq!(
        put(&store, b"k", &value(4, None, "b")),
        Applied::Superseded { by }
    );
    assert_eq!(held(&store, b"k", 1_000), Some(value(5, None, "a")));
    assert_eq!(
        put(&store, b"k", &value(6, None, "c")),
        Applied::Applied { prior: by }
    );
    assert_eq!((store.keys(), store.tombstones()), (1, 0));
}

#[test]
fn a_delete_leaves_a_tombstone_that_older_writes_cannot_pass() {
    let store = store();
    put(&store, b"k", &value(5, None, "a"));
    put(&store, b"k", &Record::tombstone(version(7)));
    assert!(
        matches!(put(&store, b"k", &value(6, None, "b")), Applied::Superseded { by } if !by.live)
    );
    assert_eq!(
        held(&store, b"k", 1_000).map(|r| r.body),
        Some(Body::Tombstone)
    );
    assert_eq!((store.keys(), store.tombstones()), (0, 1));
}

#[test]
fn an_expired_record_is_never_returned_and_freed_by_the_sweep() {
    let store = store();
    let k = key(&store, b"k");
    put(&store, b"k", &value(5, Some(2_000), "a"));
    assert!(held(&store, b"k", 1_999).is_some());
    assert_eq!(held(&store, b"k", 2_000), None);
    assert_eq!(store.roll(0, Epoch(0), Millis(1_999)).freed, 0);
    assert_eq!(store.roll(0, Epoch(0), Millis(2_000)).freed, 1);
    assert_eq!((store.keys(), store.bytes()), (0, 0));
    // It was to end so soon that it was never counted.
    assert_eq!(store.digest(k.partition), Digest::default());
}

#[test]
fn an_expiry_changes_the_end_alone_and_loses_to_newer_writes() {
    let store = store();
    let k = key(&store, b"k");
    put(&store, b"k", &value(5, None, "a"));
    let expiry = |hlc, at: Option<u64>| Expiry {
        version: version(hlc),
        at: at.map(Millis),
    };
    let superseded = store.change_expiry(k, expiry(4, Some(9_000)), NOW);
    assert_eq!(
        superseded,
        ExpiryChange::Superseded {
            by: Stamp::fresh(version(5))
        }
    );
    let ExpiryChange::Done {
        now_held: Some(summary),
        expired_at_before: None,
    } = store.change_expiry(k, expiry(6, Some(9_000)), NOW)
    else {
        panic!("the expiry is newer than the value")
    };
    assert_eq!(
        summary.stamp,
        Stamp {
            value: version(5),
            expiry: version(6)
        }
    );
    assert_eq!(summary.expires_at, Some(Millis(9_000)));
    // The value is still the write at 5: a write at 6 or later replaces it, expiry and all.
    put(&store, b"k", &value(7, None, "b"));
    assert_eq!(held(&store, b"k", 9_000), Some(value(7, None, "b")));
    let absent = store.change_expiry(key(&store, b"absent"), expiry(8, Some(9_000)), NOW);
    assert_eq!(
        absent,
        ExpiryChange::Done {
            now_held: None,
            expired_at_before: None
        }
    );
}

proptest! {
    /// Replicas that saw the same writes in any order hold the same and have the same digest. That a
    /// record leaves a tombstone one of them may know without the other, until they have met.
    #[test]
    fn digests_agree_when_contents_do(
        writes in prop::collection::vec((0usize..5, 1u64..50, prop::option::of(500u64..5_000), any::<bool>()), 0..40),
        seed in any::<u64>(),
    ) {
        const NAMES: [&[u8]; 5] = [b"a", b"b", b"c", b"d", b"e"];
        let record = |hlc: u64, ends: Option<u64>, delete: bool| {
            if delete { Record::tombstone(version(hlc)) } else { value(hlc, ends, "v") }
        };
        let mut once = BTreeMap::new();
        for &(name, hlc, ends, delete) in &writes {
            // A version is given to one write only.
            once.entry(hlc).or_insert((name, ends, delete));
        }
        let (forward, shuffled) = (store(), store());
        let mut order: Vec<_> = once.iter().collect();
        for (hlc, (name, ends, delete)) in &order {
            put(&forward, NAMES[*name], &record(**hlc, *ends, *delete));
        }
        order.sort_by_key(|(hlc, _)| (*hlc ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for (hlc, (name, ends, delete)) in &order {
            put(&shuffled, NAMES[*name], &record(**hlc, *ends, *delete));
        }
        for name in NAMES {
            for (from, to) in [(&forward, &shuffled), (&shuffled, &forward)] {
                if let Some(record) = held(from, name, 0) {
                    put(to, name, &record);
                }
            }
        }
        let mut bytes = 0;
        for name in NAMES {
            let k = key(&forward, name);
            prop_assert_eq!(held(&forward, name, 0), held(&shuffled, name, 0));
            prop_assert_eq!(forward.digest(k.partition), shuffled.digest(k.partition));
            bytes += forward.groups.get(&group_of(k.partition)).map_or(0, |p| p.find(k).map_or(0, Packed::bytes));
        }
        prop_assert_eq!(forward.bytes(), bytes);
        prop_assert_eq!(forward.keys() + forward.tombstones(), shuffled.keys() + shuffled.tombstones());
    }
}

/// A moment so many epochs after the first one.
fn epoch(number: u64) -> u64 {
    number * u64::try_from(Epoch::DURATION.as_millis()).unwrap()
}

/// A version written in this millisecond.
fn at(ms: u64) -> Version {
    Version {
        hlc: HlcTime::from_millis(Millis(ms)),
        node: NodeTag(1),
    }
}

fn roll(store: &Store, cut: u64) -> Rolled {
    store.roll(0, Epoch(cut), Epoch(cut).end())
}

#[test]
fn a_digest_is_of_the_writes_up_to_its_cut() {
    let (one, other) = (store(), store());
    let k = key(&one, b"k");
    for store in [&one, &other] {
        roll(store, 9);
        store.apply(
            k,
            (&Record::value(at(epoch(8)), None, Bytes::new())).into(),
            NOW,
        );
        roll(store, 10);
    }
    let before = one.digest(k.partition);
    assert_eq!(before, other.digest(k.partition));
    // What is written after the cut changes nothing, until the cut moves on.
    let later = Record::value(at(epoch(11) + 5), None, Bytes::new());
    one.apply(k, (&later).into(), NOW);
    assert_eq!(one.digest(k.partition), before);
    roll(&one, 11);
    assert_ne!(one.digest(k.partition), before);
    roll(&other, 11);
    assert_eq!(other.digest(k.partition), before);
    // What comes late counts at once.
    other.apply(k, (&later).into(), NOW);
    assert_eq!(one.digest(k.partition), other.digest(k.partition));
    // A clock that was set back.
    roll(&one, 10);
    assert_eq!(one.digest(k.partition), Digest::default());
    roll(&one, 12);
    assert_eq!(one.digest(k.partition), other.digest(k.partition));
}

#[test]
fn what_ends_soon_is_not_counted_whenever_it_is_swept() {
    let (one, other) = (store(), store());
    let k = key(&one, b"k");
    let ends = epoch(30);
    for store in [&one, &other] {
        let record = Record::value(at(epoch(1)), Some(Millis(ends)), Bytes::new());
        store.apply(k, (&record).into(), NOW);
        roll(store, 10);
        assert_ne!(store.digest(k.partition), Digest::default());
        assert!(!store.states(k.partition, Epoch(10)).is_empty());
        roll(store, 25);
        assert_eq!(store.digest(k.partition), Digest::default());
        assert!(store.states(k.partition, Epoch(25)).is_empty());
    }
    // One sweeps by a clock that is ahead.
    assert_eq!(one.roll(0, Epoch(27), Millis(ends)).freed, 1);
    assert_eq!(roll(&other, 27).freed, 0);
    assert_eq!(one.digest(k.partition), other.digest(k.partition));
    assert_eq!((one.keys(), other.keys()), (0, 1));
}

#[test]
fn what_ends_before_the_state_it_replaced_leaves_a_tombstone() {
    let long = Record::value(at(epoch(1)), None, Bytes::from_static(b"long"));
    let short = Record::value(
        at(epoch(2)),
        Some(Millis(epoch(5))),
        Bytes::from_static(b"short"),
    );
    for order in [[&long, &short], [&short, &long]] {
        let store = store();
        let k = key(&store, b"k");
        for record in order {
            store.apply(k, record.into(), NOW);
        }
        roll(&store, 3);
        let digest = store.digest(k.partition);
        assert_ne!(digest, Digest::default(), "it is counted to its end");
        assert_eq!(roll(&store, 9).freed, 1);
        assert_eq!((store.keys(), store.tombstones()), (0, 1));
        assert_eq!(store.digest(k.partition), digest, "the end changes nothing");
        // A replica that missed the second write cannot bring the first one back.
        assert!(matches!(
            store.apply(k, (&long).into(), NOW),
            Applied::Superseded { by } if !by.live
        ));
        // Neither does the value itself come back from one that has not swept yet.
        let late = Record {
            kind: Kind::String,
            covers: false,
            ..short.clone()
        };
        store.apply(k, (&late).into(), Millis(epoch(10)));
        roll(&store, 12);
        assert_eq!((store.keys(), store.tombstones()), (0, 1));
    }
    // One that outlasts what it replaced leaves nothing.
    let store = store();
    let k = key(&store, b"k");
    for (written, ends) in [(1, 4), (2, 5), (3, 6)] {
        let record = Record::value(at(epoch(written)), Some(Millis(epoch(ends))), Bytes::new());
        store.apply(k, (&record).into(), NOW);
    }
    roll(&store, 9);
    assert_eq!((store.keys(), store.tombstones()), (0, 0));
}

#[test]
fn tombstones_are_left_out_when_they_are_old_and_purged_when_that_is_said() {
    let store = store();
    let k = key(&store, b"k");
    store.apply(k, (&Record::tombstone(at(epoch(1)))).into(), NOW);
    roll(&store, 2);
    assert_ne!(store.digest(k.partition), Digest::default());
    assert!(!store.has_aged(k.partition));
    assert_eq!(store.purge(&[k.partition]), 0);
    // Ten minutes.
    roll(&store, 148);
    assert_eq!(store.digest(k.partition), Digest::default());
    assert!(store.has_aged(k.partition));
    assert_eq!(
        store.states(k.partition, Epoch(148)).len(),
        1,
        "others may need it"
    );
    let other = PartitionId((k.partition.0 + 1) % 16);
    assert_eq!(store.purge(&[other]), 0);
    assert_eq!(store.purge(&[k.partition]), 1);
    assert_eq!((store.tombstones(), store.bytes()), (0, 0));
    assert!(!store.has_aged(k.partition));
}

#[test]
fn a_partition_is_cleared_and_its_neighbours_are_not() {
    let store = store();
    let (a, b) = (key(&store, b"a"), key(&store, b"b"));
    assert_ne!(a.partition, b.partition);
    for k in [a, b] {
        store.apply(
            k,
            (&Record::value(at(epoch(1)), None, Bytes::new())).into(),
            NOW,
        );
    }
    roll(&store, 2);
    let digest = store.digest(b.partition);
    assert_eq!((store.clear(a.partition), store.clear(a.partition)), (1, 0));
    assert_eq!(
        (store.keys(), store.digest(a.partition)),
        (1, Digest::default())
    );
    assert_eq!(store.digest(b.partition), digest);
    assert_eq!(store.scrub(0), Scrubbed::default());
}

#[test]
fn damage_is_found_and_taken_out() {
    let store = store();
    let names: [&[u8]; 3] = [b"a", b"b", b"c"];
    for name in names {
        let long = Bytes::from(vec![7; 5_000]);
        for value in [Bytes::from_static(b"short"), long] {
            let version = at(epoch(1) + value.len() as u64);
            store.apply(
                key(&store, name),
                (&Record::value(version, None, value)).into(),
                NOW,
            );
        }
        roll(&store, 2);
        assert_eq!(store.scrub(0), Scrubbed::default());
    }
    for (name, at) in [(b"a" as &[u8], 0), (b"b", 40)] {
        let k = key(&store, if name == b"a" { b"a" } else { b"b" });
        assert!(store.alter(k, |bytes| bytes[at] ^= 4));
        let found = store.scrub(0);
        assert_eq!((found.damaged, found.partitions), (1, vec![k.partition]));
        assert_eq!(held(&store, k.bytes, 0), None);
    }
    assert_eq!(store.keys(), 1);
    assert_eq!(store.scrub(0), Scrubbed::default());
}

proptest! {
    /// A fault anywhere in a record, flags and lengths included, takes that record and no other.
    #[test]
    fn damage_anywhere_in_a_record_takes_that_record_alone(
        victim in 0u8..40, at_byte in any::<prop::sample::Index>(), flip in 1u8.., deleted in 0u8..40,
    ) {
        let store = store();
        let names: Vec<&'static [u8]> = (0..40u8).map(|n| &*format!("key-{n}").into_bytes().leak()).collect();
        let mut held_before = Vec::new();
        // Hashes decide which partition a key is of: one group holds all of them in tests.
        for (n, name) in names.iter().enumerate() {
            let value = Bytes::from(vec![7; n * 7]);
            let record = Record::value(at(epoch(1) + n as u64), None, value);
            store.apply(key(&store, name), (&record).into(), NOW);
            held_before.push(held(&store, name, 0));
        }
        let k = key(&store, names[usize::from(victim)]);
        let is_altered = store.alter(k, |bytes| {
            let place = at_byte.index(bytes.len());
            bytes[place] ^= flip;
        });
        prop_assert!(is_altered);
        // Whatever goes through the records, or closes holes among them, meanwhile.
        for n in (0..40u8).filter(|n| *n != victim && n.is_multiple_of(2)) {
            let name = names[usize::from(n)];
            let record = Record::value(at(epoch(1) + 100 + u64::from(n)), None, Bytes::from(vec![8; 900]));
            store.apply(key(&store, name), (&record).into(), NOW);
            held_before[usize::from(n)] = held(&store, name, 0);
        }
        let _shown = store.states(k.partition, Epoch(0));
        let _left = store.scan(k.partition, None, |_, _| true);
        let gone = deleted != victim;
        if gone {
            let k = key(&store, names[usize::from(deleted)]);
            store.apply(k, (&Record::tombstone(at(epoch(1) + 1_000))).into(), NOW);
            held_before[usize::from(deleted)] = held(&store, k.bytes, 0);
        }
        let damaged: u64 = (0..store.groups()).map(|group| store.scrub(group).damaged).sum();
        prop_assert_eq!(damaged, 1);
        for (n, name) in names.iter().enumerate() {
            let expected = if n == usize::from(victim) { &None } else { &held_before[n] };
            prop_assert_eq!(&held(&store, name, 0), expected, "{}", n);
        }
        prop_assert_eq!(store.keys(), 39 - u64::from(gone));
        prop_assert_eq!(store.tombstones(), u64::from(gone));
        for group in 0..store.groups() {
            prop_assert_eq!(store.scrub(group), Scrubbed::default());
        }
    }

    /// Whatever is done in whatever order, digests are what a count from the beginning gives.
    #[test]
    fn digests_kept_at_each_step_are_those_of_a_recount(
        steps in prop::collection::vec((0usize..4, 0u64..12, prop::option::of(0u64..60), 0u8..4), 1..60),
    ) {
        const NAMES: [&[u8]; 4] = [b"a", b"b", b"c", b"d"];
        let store = store();
        let (mut now, mut cut) = (10, 5);
        for (number, (name, ahead, ends, what)) in steps.into_iter().enumerate() {
            now += u64::from(what == 3);
            let version = at(epoch(now + ahead).saturating_sub(epoch(3)) + number as u64);
            let ends = ends.map(|ends| Millis(epoch(now + ends)));
            let k = key(&store, NAMES[name]);
            match what {
                0 => { store.apply(k, (&Record::tombstone(version)).into(), NOW); }
                1 => { store.change_expiry(k, Expiry { version, at: ends }, NOW); }
                2 => { store.apply(k, (&Record::value(version, ends, Bytes::new())).into(), NOW); }
                _ => {
                    cut = if ahead == 0 { cut - 1 } else { now - 1 };
                    store.roll(0, Epoch(cut), Millis(epoch(now)));
                }
            }
            prop_assert_eq!(store.scrub(0), Scrubbed::default());
        }
    }
}

proptest! {
    #[test]
    fn a_record_packed_before_is_taken_as_any_other(
        writes in prop::collection::vec((1u64..20, prop::option::of(900u64..2_000), any::<bool>(), any::<bool>()), 1..30),
    ) {
        let (copied, ready) = (store(), store());
        for (hlc, ends, is_long, is_deleted) in writes {
            let text = if is_long { "long ".repeat(20_000) } else { "short".to_owned() };
            let mut record = Record::value(version(hlc), ends.map(Millis), Bytes::from(text));
            if is_deleted {
                record.body = Body::Tombstone;
            }
            let at = key(&ready, b"k");
            let packed = ReadyRecord::new(b"k", (&record).into());
            let applied = ready.apply_ready(at, ((&record).into(), packed), NOW);
            prop_assert_eq!(put(&copied, b"k", &record), applied);
            prop_assert_eq!(held(&copied, b"k", 0), held(&ready, b"k", 0));
            prop_assert_eq!(copied.keys(), ready.keys());
            prop_assert_eq!(copied.bytes(), ready.bytes());
        }
    }
}
