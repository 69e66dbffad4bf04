//! The classical edge cases of r + w > n, and what the levels make of them.

use super::*;

const LEVELS: [Level; 2] = [Level::Quorum, Level::Linearizable];

fn set(text: &'static str) -> Action {
    Action::Set {
        value: Bytes::from_static(text.as_bytes()),
        expires_at: None,
    }
}

async fn get(ring: &Ring, level: Level, node: usize) -> Option<Bytes> {
    match ring.run_at(level, node, Action::Get).await {
        Outcome::Value(value) => value,
        other => panic!("{level}: {other:?}"),
    }
}

/// Reads through all nodes, again and again, until all say the same. Once the new value was seen,
/// the old one must not come back.
async fn reads_never_go_back(ring: &Ring, level: Level, new: &'static str) {
    let mut has_seen_new = false;
    for round in 0..4 {
        for node in 0..3 {
            let is_new = get(ring, level, node).await == value(new);
            assert!(
                is_new || !has_seen_new,
                "{level}, round {round}, node {node}"
            );
            has_seen_new |= is_new;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_racing_reads_is_seen_or_not_but_never_unseen() {
    for level in LEVELS {
        for after_ms in 0..8 {
            let ring = Ring::new(3, 2, 2);
            assert_eq!(ring.run_at(level, 0, set("old")).await, Outcome::Written);
            let reads = async {
                tokio::time::sleep(Duration::from_millis(after_ms)).await;
                reads_never_go_back(&ring, level, "new").await;
            };
            let (written, ()) = tokio::join!(ring.run_at(level, 0, set("new")), reads);
            assert_eq!(written, Outcome::Written);
            assert_eq!(get(&ring, level, 1).await, value("new"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_reached_fewer_than_w_says_so_and_never_comes_and_goes() {
    for level in LEVELS {
        let ring = Ring::with_delay(3, 2, 2, Duration::from_millis(10));
        // Through the home that makes the updates of this key.
        let first = ring.first_home();
        let other = (first + 1) % 3;
        assert_eq!(
            ring.run_at(level, first, set("old")).await,
            Outcome::Written
        );
        settle().await;
        // After homes have promised what a linearizable write asks first, before it arrives itself.
        let cut = async {
            let promised = if level == Level::Linearizable { 25 } else { 5 };
            tokio::time::sleep(Duration::from_millis(promised)).await;
            ring.isolate(first);
        };
        let (outcome, ()) = tokio::join!(ring.run_at(level, first, set("new")), cut);
        let Outcome::Failed(error) = outcome else {
            panic!("{level}: {outcome:?}")
        };
        match error {
            RequestError::Write(quorum) => assert_eq!((quorum.got, quorum.need), (1, 2), "{level}"),
            error => assert_eq!(
                error,
                RequestError::Update(UpdateError::Uncertain),
                "{level}"
            ),
        }
        assert!(error.to_string().contains("take"), "{error}");
        // While its one holder is away, the value before it is the last one.
        assert_eq!(get(&ring, level, other).await, value("old"), "{level}");
        ring.heal(first);
        reads_never_go_back(&ring, level, "new").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_linearizable_write_that_finds_no_majority_writes_nothing() {
    let ring = Ring::new(3, 2, 2);
    ring.set(0, "old").await;
    settle().await;
    let first = ring.first_home();
    ring.isolate(first);
    let outcome = ring.run_at(Level::Linearizable, first, set("new")).await;
    let Outcome::Failed(error @ RequestError::Update(UpdateError::NotMade(_))) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(error.to_string().contains("nothing was changed"), "{error}");
    ring.heal(first);
    for node in 0..3 {
        assert_eq!(get(&ring, Level::Linearizable, node).await, value("old"));
    }
}

/// `new` was acknowledged by nodes 0 and 1, then node 1 came back with what it held before.
async fn restored_with_old_data(level: Level) -> Ring {
    let mut ring = Ring::new(3, 2, 2);
    assert_eq!(ring.run_at(level, 0, set("old")).await, Outcome::Written);
    settle().await;
    let old = ring.held(1);
    ring.isolate(2);
    assert_eq!(ring.run_at(level, 0, set("new")).await, Outcome::Written);
    settle().await;
    ring.heal(2);
    ring.restart(1, old.as_ref());
    ring
}

#[tokio::test(start_paused = true)]
async fn a_node_restored_with_old_data_does_not_vote_it_back() {
    for level in LEVELS {
        let ring = restored_with_old_data(level).await;
        for node in [1, 2, 0] {
            assert_eq!(
                get(&ring, level, node).await,
                value("new"),
                "{level} {node}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_last_holder_quorum_answers_what_is_left_and_linearizable_refuses() {
    for level in LEVELS {
        let ring = restored_with_old_data(level).await;
        ring.isolate(0);
        let outcome = ring.run_at(level, 2, Action::Get).await;
        match level {
            Level::Linearizable => {
                let Outcome::Failed(RequestError::Read(quorum)) = outcome else {
                    panic!("{outcome:?}")
                };
                assert_eq!((quorum.got, quorum.need), (1, 2));
            }
            _ => assert_eq!(outcome, Outcome::Value(value("old"))),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn of_concurrent_writes_all_nodes_agree_on_one() {
    for level in LEVELS {
        for _ in 0..20 {
            let ring = Ring::new(3, 2, 2);
            let (one, other, third) = tokio::join!(
                ring.run_at(level, 0, set("one")),
                ring.run_at(level, 1, set("other")),
                ring.run_at(level, 2, set("third")),
            );
            assert_eq!([one, other, third], [const { Outcome::Written }; 3]);
            let last = get(&ring, level, 0).await;
            for node in [1, 2, 0] {
                assert_eq!(get(&ring, level, node).await, last, "{level}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_an_hour_wrong_stops_its_own_node_at_most() {
    for level in LEVELS {
        for hours in [1, -1] {
            let ring = Ring::new(3, 2, 2);
            assert_eq!(ring.run_at(level, 0, set("old")).await, Outcome::Written);
            settle().await;
            let offset = &ring.nodes[1].clock.offset_ms;
            offset.store(hours * 3_600_000, Ordering::Relaxed);
            match ring.run_at(level, 1, set("wrong")).await {
                Outcome::Failed(error) => {
                    assert!(error.to_string().contains("clock"), "{level}: {error}");
                }
                // Set back, it goes on from where its own readings had come to.
                outcome => assert_eq!((hours, outcome), (-1, Outcome::Written)),
            }
            assert_eq!(ring.run_at(level, 0, set("new")).await, Outcome::Written);
            for node in [0, 2] {
                assert_eq!(get(&ring, level, node).await, value("new"), "{level}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_asks_one_and_all_asks_all() {
    let ring = Ring::new(3, 2, 2);
    assert_eq!(
        ring.run_at(Level::All, 0, set("old")).await,
        Outcome::Written
    );
    ring.isolate(2);
    let outcome = ring.run_at(Level::All, 0, Action::Get).await;
    assert!(matches!(outcome, Outcome::Failed(RequestError::Read(_))));
    assert_eq!(
        ring.run_at(Level::One, 0, set("new")).await,
        Outcome::Written
    );
    // Cut off from the others it still answers, with what it holds.
    assert_eq!(get(&ring, Level::One, 2).await, value("old"));
    assert_eq!(
        ring.run_at(Level::One, 2, set("own")).await,
        Outcome::Written
    );
}

#[tokio::test(start_paused = true)]
async fn reads_through_any_node_heal_one_that_lost_its_memory() {
    for level in LEVELS {
        for reader in 0..3 {
            let mut ring = Ring::new(3, 2, 2);
            assert_eq!(ring.run_at(level, 0, set("value")).await, Outcome::Written);
            settle().await;
            // Nothing catches up here: read repair is all there is.
            ring.restart(1, None);
            assert_eq!(get(&ring, level, reader).await, value("value"));
            settle().await;
            assert_eq!(ring.held(1), ring.held(0), "{level}, read through {reader}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_local_quorum_needs_its_own_zone_only() {
    let quorum = Quorum::majority(5).unwrap();
    let ring = Ring::in_zones(&["a", "a", "a", "b", "b"], quorum, Duration::from_millis(1));
    let local = Level::LocalQuorum;
    assert_eq!(ring.run_at(local, 0, set("old")).await, Outcome::Written);
    settle().await;
    assert_eq!(ring.held(4), ring.held(0), "other zones hear of it too");
    // Without the other zone and one node of its own, two of its three are left.
    [2, 3, 4].into_iter().for_each(|node| ring.isolate(node));
    assert_eq!(ring.run_at(local, 0, set("new")).await, Outcome::Written);
    assert_eq!(get(&ring, local, 1).await, value("new"));
    let outcome = ring.run_at(Level::Quorum, 0, Action::Get).await;
    assert!(matches!(outcome, Outcome::Failed(RequestError::Read(_))));
    ring.isolate(1);
    let outcome = ring.run_at(local, 0, Action::Get).await;
    assert!(matches!(outcome, Outcome::Failed(RequestError::Read(quorum)) if quorum.need == 2));
}
