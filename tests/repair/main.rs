//! Anti-entropy between two replicas, step by step.

#![cfg(test)]

mod pair;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use quorate::front::peer_server::PeerServer;
use quorate::model::{Body, Millis, PartitionId, Record};
use quorate::net::{LateResponse, PeerService};
use quorate::node::anti_entropy::RepairReport;
use quorate::wire::{FrameError, FrameReader, Operation, RequestHeader};

use self::pair::{Pair, TOMBSTONE_AGE};

fn value(pair: &Pair, counter: u64, text: &'static str) -> Record {
    Record::value(
        pair.version(counter),
        None,
        Bytes::from_static(text.as_bytes()),
    )
}

fn report(pair: &Pair, side: usize) -> RepairReport {
    pair.sides[side].anti_entropy.report("")
}

/// Whether both sides hold the same, and how many sessions that took.
fn assert_alike(pair: &Pair, keys: &[String]) {
    for key in keys {
        assert_eq!(pair.held(0, key), pair.held(1, key), "{key}");
    }
}

fn keys(count: u64) -> Vec<String> {
    (0..count).map(|number| format!("key-{number}")).collect()
}

#[tokio::test(start_paused = true)]
async fn two_cuts_of_difference_move_exactly_what_differs() {
    let pair = Pair::new(64, 1 << 20);
    let keys = keys(500);
    for (number, key) in keys.iter().enumerate() {
        for side in 0..2 {
            pair.put(side, key, &value(&pair, number as u64, "both"));
        }
    }
    pair.pass().await;
    pair.pass().await;
    assert_eq!(report(&pair, 0).in_agreement, 64);
    // Missing here, missing there, older here, older there, deleted there; each with its own end.
    let ends = Some(Millis(pair.now().0 + 1_000_000));
    let (mut of_a, mut of_b) = (value(&pair, 1, "a"), value(&pair, 2, "b"));
    (of_a.expiry.at, of_b.expiry.at) = (ends, ends);
    pair.put(0, "only-a", &of_a);
    pair.put(1, "only-b", &of_b);
    pair.put(0, &keys[0], &of_a);
    pair.put(1, &keys[1], &of_b);
    pair.put(1, &keys[2], &Record::tombstone(pair.version(3)));
    pair.pass().await;
    assert_eq!(
        report(&pair, 0).sessions,
        0,
        "one cut may be a write that came late"
    );
    pair.pass().await;
    pair.until("repaired", || report(&pair, 0).fixed == 5).await;
    assert_alike(&pair, &keys);
    assert_eq!(
        pair.held(1, "only-a"),
        Some(of_a.clone()),
        "its end is what it was"
    );
    assert_eq!(pair.held(0, "only-b"), Some(of_b.clone()));
    assert_eq!(
        pair.held(1, &keys[0]).map(|r| (r.version, r.expiry)),
        Some((of_a.version, of_a.expiry))
    );
    assert_eq!(
        pair.held(0, &keys[1]).map(|r| (r.version, r.expiry)),
        Some((of_b.version, of_b.expiry))
    );
    assert_eq!(
        pair.held(0, &keys[2]).map(|r| r.body),
        Some(Body::Tombstone)
    );
    let (a, b) = (report(&pair, 0), report(&pair, 1));
    assert_eq!(
        (a.differences, b.sessions, a.failed),
        (5, 0, 0),
        "the lower name begins"
    );
    assert!(a.sessions <= 5 && a.compare_bytes < 5 * 600, "{a:?}");
    pair.pass().await;
    pair.pass().await;
    assert_eq!(report(&pair, 0).in_agreement, 64);
    assert_eq!(report(&pair, 1).in_agreement, 64);
    assert_eq!(report(&pair, 0).sessions, a.sessions, "and that was all");
}

#[tokio::test(start_paused = true)]
async fn values_that_one_response_cannot_hold_come_in_several() {
    let pair = Pair::new(1, 1 << 30);
    let large = Bytes::from(vec![7; 1_500_000]);
    let keys = keys(10);
    for (number, key) in keys.iter().enumerate() {
        let record = Record::value(pair.version(number as u64), None, large.clone());
        pair.put(1, key, &record);
    }
    pair.pass().await;
    pair.pass().await;
    pair.until("repaired", || report(&pair, 0).fixed == 10)
        .await;
    assert_alike(&pair, &keys);
}

#[tokio::test(start_paused = true)]
async fn replicas_that_have_little_in_common_compare_lists() {
    let pair = Pair::new(1, 1 << 30);
    let keys = keys(6_000);
    for (number, key) in keys.iter().enumerate() {
        let record = value(&pair, number as u64, "one of them");
        pair.put(number % 2, key, &record);
    }
    pair.pass().await;
    pair.pass().await;
    pair.until("repaired", || report(&pair, 0).fixed == 6_000)
        .await;
    assert_alike(&pair, &keys);
    let stats = pair.sides[0].anti_entropy.stats();
    assert_eq!(stats.fallbacks.load(Ordering::Relaxed), 1);
    // Both sets once in a list, and as much again in symbols.
    assert!(report(&pair, 0).compare_bytes < 3 * 3_000 * 16 + 10_000);
}

/// Forgets, at one of its frames, what it was asked before: it was started anew.
#[derive(Debug)]
struct Restarting {
    before: PeerServer,
    after: PeerServer,
    frames_left: AtomicU64,
}

impl PeerService for Restarting {
    fn serve(&self, frame: &Bytes, out: &mut Vec<u8>) -> Result<Option<LateResponse>, FrameError> {
        let step = |left: u64| left.checked_sub(1);
        let left = self
            .frames_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
        match left {
            Ok(_) => self.before.serve(frame, out),
            Err(_) => self.after.serve(frame, out),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_starts_anew_in_mid_session_is_asked_again() {
    for frames_left in 1..6 {
        let pair = Pair::new(1, 1 << 30);
        let keys = keys(3_000);
        for (number, key) in keys.iter().enumerate() {
            let record = value(&pair, number as u64, "value");
            pair.put(0, key, &record);
            if number >= 300 {
                pair.put(1, key, &record);
            }
        }
        pair.serve(
            1,
            Arc::new(Restarting {
                before: pair.service(1),
                after: pair.service(1),
                frames_left: AtomicU64::new(frames_left),
            }),
        );
        pair.pass().await;
        pair.pass().await;
        pair.until("noticed", || report(&pair, 0).failed == 1).await;
        let error = report(&pair, 0).peers[0].last_error.clone();
        assert_eq!(
            error.as_deref(),
            Some("the replica knows of no such comparison")
        );
        for _ in 0..3 {
            pair.pass().await;
        }
        pair.until("repaired", || report(&pair, 0).fixed == 300)
            .await;
        assert_alike(&pair, &keys);
        assert_eq!(report(&pair, 0).peers[0].last_error, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_dies_in_mid_session_costs_that_session_only() {
    /// Whether it is asked to move records.
    #[derive(Debug)]
    struct Mute(PeerServer);
    impl PeerService for Mute {
        fn serve(
            &self,
            frame: &Bytes,
            out: &mut Vec<u8>,
        ) -> Result<Option<LateResponse>, FrameError> {
            let mut operations = FrameReader::new(frame);
            let _header: RequestHeader<'_> = operations.read()?;
            match operations.read()? {
                Operation::Write(..) => Ok(Some(Box::pin(std::future::pending()))),
                _ => self.0.serve(frame, out),
            }
        }
    }
    let pair = Pair::new(16, 1 << 20);
    let keys = keys(40);
    for (number, key) in keys.iter().enumerate() {
        pair.put(0, key, &value(&pair, number as u64, "value"));
    }
    pair.serve(1, Arc::new(Mute(pair.service(1))));
    pair.pass().await;
    pair.pass().await;
    pair.until("noticed", || report(&pair, 0).failed > 0).await;
    let error = report(&pair, 0).peers[0].last_error.clone();
    assert_eq!(error.as_deref(), Some("no response in time"));
    pair.serve(1, Arc::new(pair.service(1)));
    for _ in 0..4 {
        pair.pass().await;
    }
    pair.until("repaired", || report(&pair, 0).fixed == 40)
        .await;
    assert_alike(&pair, &keys);
}

#[tokio::test(start_paused = true)]
async fn an_administrator_has_partitions_compared_whatever_their_digests_say() {
    let pair = Pair::new(64, 1 << 20);
    pair.put(1, "key", &value(&pair, 1, "value"));
    let partition = pair.hashed(b"key").partition;
    let other = PartitionId((partition.0 + 1) % 64);
    let b = &pair.sides[1].anti_entropy;
    assert_eq!(b.want(Some(other), None), 1);
    pair.until("compared", || report(&pair, 1).wanted == 0)
        .await;
    assert_eq!(pair.held(0, "key"), None);
    // The higher name may as well, if it is told to.
    assert_eq!(b.want(None, Some(pair.tag(0))), 64);
    pair.until("compared", || report(&pair, 1).wanted == 0)
        .await;
    assert!(pair.held(0, "key").is_some());
    let report = report(&pair, 1);
    assert_eq!(
        (report.sessions, report.differences, report.fixed),
        (65, 1, 1)
    );
    assert_eq!(b.want(Some(other), Some(pair.tag(1))), 0, "not with itself");
}

#[tokio::test(start_paused = true)]
async fn tombstones_go_when_all_homes_agree_and_nobody_is_owed_a_hint() {
    let pair = Pair::new(16, 1 << 20);
    for side in 0..2 {
        pair.put(side, "key", &Record::tombstone(pair.version(1)));
    }
    let tombstones = || [0, 1].map(|side| pair.sides[side].store.tombstones());
    let epochs = TOMBSTONE_AGE.as_millis() / 4_096;
    pair.owe(1, true);
    for _ in 0..epochs + 30 {
        assert_eq!(tombstones(), [1, 1]);
        pair.pass().await;
    }
    pair.owe(1, false);
    // One that differs, and that cannot be reached to be healed.
    pair.network.cut(pair.tag(0), pair.tag(1));
    pair.network.cut(pair.tag(1), pair.tag(0));
    let partition = pair.hashed(b"key").partition;
    let other = (0..).map(|number| format!("other-{number}"));
    let other = other
        .into_iter()
        .find(|other| pair.hashed(other.as_bytes()).partition == partition);
    pair.put(0, &other.unwrap(), &value(&pair, 1, "value"));
    // It counts from the next cut on, and both sides have agreed until then.
    pair.owe(1, true);
    pair.pass().await;
    pair.pass().await;
    pair.owe(1, false);
    for _ in 0..5 {
        pair.pass().await;
        assert_eq!(tombstones(), [1, 1], "a partition that differs keeps them");
    }
    pair.network.heal(pair.tag(0), pair.tag(1));
    pair.network.heal(pair.tag(1), pair.tag(0));
    for _ in 0..12 {
        pair.pass().await;
    }
    assert_eq!(tombstones(), [0, 0]);
    assert_eq!(report(&pair, 0).tombstones_purged, 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_forgets_what_it_is_no_home_of_any_more() {
    let pair = Pair::new(64, 1 << 20);
    let keys = keys(200);
    for (number, key) in keys.iter().enumerate() {
        for side in 0..2 {
            pair.put(side, key, &value(&pair, number as u64, "value"));
        }
    }
    let held = |side: usize| {
        keys.iter()
            .filter(|key| pair.held(side, key).is_some())
            .count()
    };
    let homes = |side: usize| keys.iter().filter(|key| pair.is_home(side, key)).count();
    pair.set_members(&[("a", true), ("b", true), ("c", true)]);
    let epochs = TOMBSTONE_AGE.as_millis() / 4_096;
    for _ in 0..epochs / 4 {
        pair.pass().await;
    }
    assert_eq!(
        (held(0), held(1)),
        (200, 200),
        "not at once: rings that are hardly known change"
    );
    // As long as a home of now cannot be reached, the old ones may be all there is.
    pair.set_members(&[("a", true), ("b", true), ("c", false)]);
    for _ in 0..2 * epochs {
        pair.pass().await;
    }
    assert_eq!((held(0), held(1)), (200, 200));
    pair.set_members(&[("a", true), ("b", true), ("c", true)]);
    for _ in 0..3 {
        pair.pass().await;
    }
    for side in 0..2 {
        assert!(homes(side) < 200);
        assert_eq!(held(side), homes(side), "side {side}");
    }
}
