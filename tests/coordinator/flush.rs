//! FLUSHDB and FLUSHALL: what was acknowledged before is gone, and stays so.

use super::*;
use quorate::model::Database;
use quorate::update::{Change, Reply};

async fn flush(ring: &Ring, node: usize) {
    let all: Vec<Database> = Database::all().collect();
    let flushed = ring.nodes[node].coordinator.flush(&all).await;
    assert!(flushed.is_ok(), "{flushed:?}");
}

async fn increment(ring: &Ring, node: usize) -> Outcome {
    let command = b"*2\r\n$4\r\nINCR\r\n$3\r\nkey\r\n";
    let change = Change::Command(Bytes::from_static(command));
    ring.run(node, Action::Update(change)).await
}

/// A node that was cut off while the others flushed, and is back.
async fn one_missed_it(missed: usize) -> Ring {
    let ring = Ring::new(3, 2, 2);
    assert_eq!(ring.set(0, "41").await, Outcome::Written);
    settle().await;
    ring.isolate(missed);
    flush(&ring, (missed + 1) % 3).await;
    ring.heal(missed);
    assert!(ring.held(missed).is_some(), "it does not know yet");
    ring
}

async fn is_gone(ring: &Ring) {
    for level in [Level::Quorum, Level::Linearizable, Level::All] {
        for node in 0..3 {
            let got = ring.run_at(level, node, Action::Get).await;
            assert_eq!(got, Outcome::Value(None), "{level} through {node}");
        }
    }
    settle().await;
    for node in 0..3 {
        assert_eq!(ring.held(node), None, "node {node}");
        let count = ring.nodes[node]
            .coordinator
            .count(Database::default())
            .await;
        assert_eq!(count.unwrap(), 0, "through {node}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_through_any_node_shows_nothing_that_was_flushed_though_a_home_missed_that() {
    for missed in 0..3 {
        for node in 0..3 {
            let ring = one_missed_it(missed).await;
            let got = ring.run(node, Action::Get).await;
            assert_eq!(
                got,
                Outcome::Value(None),
                "{missed} missed it, through {node}"
            );
            let look = ring.run(node, Action::Look).await;
            assert_eq!(look, Outcome::Look(None));
            is_gone(&ring).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_expiry_does_not_bring_back_what_was_flushed() {
    for missed in 0..3 {
        for node in 0..3 {
            let ring = one_missed_it(missed).await;
            let at = Some(Millis(ring.nodes[0].clock.wall().0 + 100_000));
            let outcome = ring.run(node, Action::Expire { at }).await;
            let nothing = Outcome::Expiry {
                existed: false,
                had_end: false,
            };
            assert_eq!(outcome, nothing, "{missed} missed it, through {node}");
            is_gone(&ring).await;
            assert_eq!(
                ring.run(node, Action::Delete).await,
                Outcome::Deleted(false)
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_begins_with_nothing_after_a_flush_that_a_home_missed() {
    for missed in 0..3 {
        for node in 0..3 {
            let ring = one_missed_it(missed).await;
            let outcome = increment(&ring, node).await;
            let one = Outcome::Updated(Reply::Integer(1));
            assert_eq!(outcome, one, "{missed} missed it, through {node}");
            for reader in 0..3 {
                assert_eq!(ring.get(reader).await, value("1"));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_flush_passes_what_a_fast_clock_has_acknowledged() {
    for node in 0..3 {
        let ring = Ring::new(3, 2, 2);
        let fast = (node + 1) % 3;
        let offset = &ring.nodes[fast].clock.offset_ms;
        offset.store(5_000, Ordering::Relaxed);
        // The node that flushes has not seen the clock of the one that wrote.
        ring.network.cut(ring.nodes[fast].tag, ring.nodes[node].tag);
        ring.network.cut(ring.nodes[node].tag, ring.nodes[fast].tag);
        assert_eq!(ring.set(fast, "ahead").await, Outcome::Written);
        flush(&ring, node).await;
        ring.heal(fast);
        for reader in 0..3 {
            assert_eq!(ring.get(reader).await, None, "through {reader}");
        }
        assert_eq!(ring.set(node, "after").await, Outcome::Written);
        assert_eq!(ring.get(node).await, value("after"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_counter_that_is_flushed_while_it_is_counted_begins_at_one() {
    for after_ms in 0..12 {
        let ring = Ring::with_delay(3, 2, 2, Duration::from_millis(3));
        for _ in 0..20 {
            increment(&ring, 0).await;
        }
        let counting = async {
            for number in 0..10 {
                increment(&ring, number % 3).await;
            }
        };
        let flushing = async {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            flush(&ring, 1).await;
        };
        tokio::join!(counting, flushing);
        let Outcome::Updated(Reply::Integer(count)) = increment(&ring, 2).await else {
            panic!("not counted");
        };
        assert!(count <= 11, "{count} after {after_ms} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flush_without_a_majority_says_so_and_lets_updates_go_on() {
    let ring = Ring::new(3, 2, 2);
    ring.isolate(0);
    let all: Vec<Database> = Database::all().collect();
    let flushed = ring.nodes[0].coordinator.flush(&all).await;
    assert!(
        matches!(flushed, Err(RequestError::Write(_))),
        "{flushed:?}"
    );
    ring.heal(0);
    let one = Outcome::Updated(Reply::Integer(1));
    assert_eq!(increment(&ring, 0).await, one);
}
