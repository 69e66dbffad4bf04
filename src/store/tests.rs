use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::model::{Body, HlcTime, NodeTag, Record, Version};

const NOW: Millis = Millis(1_000);

fn store() -> Store {
    Store::new(KeyHasher::new("test"), 16)
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
    let with_record = store.digest(k.partition);
    assert!(held(&store, b"k", 1_999).is_some());
    assert_eq!(held(&store, b"k", 2_000), None);
    assert_eq!(store.sweep(k.partition, Millis(1_999)), 0);
    assert_eq!(store.digest(k.partition), with_record);
    assert_eq!(store.sweep(k.partition, Millis(2_000)), 1);
    assert_eq!((store.keys(), store.bytes()), (0, 0));
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
    /// Replicas that saw the same writes in any order hold the same and have the same digest.
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
