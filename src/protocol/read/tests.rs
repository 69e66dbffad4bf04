use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::model::{HlcTime, NodeTag, Version};

fn record(hlc: u64) -> Record {
    let version = Version {
        hlc: HlcTime(hlc),
        node: NodeTag(1),
    };
    Record::value(version, None, Bytes::from(hlc.to_string()))
}

fn plan(need: u8, want: Want) -> ReadPlan {
    ReadPlan {
        need,
        voters: Voters::EVERYONE,
        strict: false,
        frugal: false,
        want,
        first: 0,
        stand_ins: StandIns::Never,
        owed: Voters::NOBODY,
        now: Millis(0),
    }
}

fn told(held: Option<Summary>, record: Option<Record>) -> Told {
    Told {
        held,
        record,
        is_sure: true,
    }
}

fn summary(hlc: u64) -> Option<Summary> {
    (hlc > 0).then(|| Summary::of((&record(hlc)).into()))
}

/// Replica `replica` holds version `hlc` (0: nothing) and answers what it was asked first.
fn reply(op: &mut ReadOp, replica: usize, hlc: u64) -> Vec<ReadAction> {
    let whole = op.is_asked_for_record(replica) && hlc > 0;
    let mut actions = Vec::new();
    let told = told(summary(hlc), whole.then(|| record(hlc)));
    op.on_told(replica, told, &mut actions);
    actions
}

#[test]
fn equal_replies_answer_at_once() {
    let mut op = ReadOp::new(3, plan(2, Want::Record));
    assert_eq!(reply(&mut op, 0, 5), []);
    assert_eq!(reply(&mut op, 2, 5), [ReadAction::Finished]);
    assert_eq!(op.outcome(), Some(&Ok(summary(5))));
    assert_eq!(op.record(), Some(&record(5)));
    assert_eq!(reply(&mut op, 1, 5), []);
}

#[test]
fn absent_everywhere_needs_no_record() {
    let mut op = ReadOp::new(3, plan(2, Want::Record));
    assert_eq!(reply(&mut op, 1, 0), []);
    assert_eq!(reply(&mut op, 2, 0), [ReadAction::Finished]);
    assert_eq!(op.outcome(), Some(&Ok(None)));
}

#[test]
fn a_stale_replica_is_repaired_before_the_answer() {
    let mut op = ReadOp::new(3, plan(2, Want::Record));
    reply(&mut op, 0, 5);
    assert_eq!(reply(&mut op, 1, 0), [ReadAction::Repair { replica: 1 }]);
    assert_eq!(op.outcome(), None);
    let mut actions = Vec::new();
    op.on_repaired(1, &mut actions);
    assert_eq!(actions, [ReadAction::Finished]);
    // The late reply is stale as well: repaired after the answer.
    assert_eq!(reply(&mut op, 2, 3), [ReadAction::Repair { replica: 2 }]);
}

#[test]
fn the_newest_is_fetched_from_whoever_holds_it() {
    let mut op = ReadOp::new(3, plan(2, Want::Record));
    reply(&mut op, 0, 5);
    assert_eq!(reply(&mut op, 1, 7), [ReadAction::Fetch { replica: 1 }]);
    let mut actions = Vec::new();
    op.on_told(1, told(summary(7), Some(record(7))), &mut actions);
    assert_eq!(actions, [ReadAction::Repair { replica: 0 }]);
    // A third reply that holds it too makes two: the answer need not wait for the repair.
    assert_eq!(reply(&mut op, 2, 7), [ReadAction::Finished]);
    assert_eq!(op.record(), Some(&record(7)));
}

#[test]
fn a_dead_replica_of_the_record_is_replaced() {
    let mut op = ReadOp::new(3, plan(2, Want::Record));
    assert_eq!(reply(&mut op, 1, 5), []);
    assert_eq!(reply(&mut op, 2, 5), []);
    let mut actions = Vec::new();
    op.on_slow(&mut actions);
    assert_eq!(actions, [ReadAction::Fetch { replica: 1 }]);
    actions.clear();
    op.on_failed(0, None, &mut actions);
    assert_eq!(actions, []);
    op.on_told(1, told(summary(5), Some(record(5))), &mut actions);
    assert_eq!(actions, [ReadAction::Finished]);
}

#[test]
fn when_all_have_answered_or_failed_it_ends() {
    let mut op = ReadOp::new(3, plan(2, Want::Summary));
    let mut actions = Vec::new();
    op.on_failed(1, None, &mut actions);
    assert_eq!(reply(&mut op, 0, 5), []);
    op.on_failed(2, None, &mut actions);
    assert_eq!(actions, [ReadAction::Finished]);
    assert_eq!(
        op.outcome(),
        Some(&Err(QuorumNotMet {
            need: 2,
            got: 1,
            refusal: None
        }))
    );
}

#[test]
fn who_has_lost_its_memory_counts_only_when_nobody_better_is_left() {
    for strict in [false, true] {
        let mut op = ReadOp::new(
            3,
            ReadPlan {
                strict,
                ..plan(2, Want::Summary)
            },
        );
        let mut actions = Vec::new();
        let unsure = Told {
            is_sure: false,
            ..told(None, None)
        };
        op.on_told(1, unsure, &mut actions);
        op.on_told(0, told(summary(5), None), &mut actions);
        assert_eq!(actions, [], "one more may know better");
        op.on_failed(2, None, &mut actions);
        assert_eq!(op.outcome().is_some_and(Result::is_err), strict);
    }
}

#[test]
fn a_frugal_read_asks_another_when_one_fails_or_is_slow() {
    let frugal = ReadPlan {
        frugal: true,
        first: 1,
        ..plan(1, Want::Record)
    };
    let mut op = ReadOp::new(3, frugal);
    assert_eq!(
        [0, 1, 2].map(|replica| op.is_asked(replica)),
        [false, true, false]
    );
    let mut actions = Vec::new();
    op.on_failed(1, None, &mut actions);
    assert_eq!(actions, [ReadAction::Ask { replica: 0 }]);
    assert!(op.is_asked_for_record(0));
    actions.clear();
    op.on_slow(&mut actions);
    assert_eq!(actions, [ReadAction::Ask { replica: 2 }]);
    actions.clear();
    op.on_told(2, told(summary(5), Some(record(5))), &mut actions);
    assert_eq!(actions, [ReadAction::Finished]);
}

#[test]
fn only_voters_are_asked_and_count() {
    let voters = Voters::those(3, |replica| replica != 0);
    let mut op = ReadOp::new(
        3,
        ReadPlan {
            voters,
            first: 1,
            ..plan(1, Want::Record)
        },
    );
    assert_eq!(
        [0, 1, 2].map(|replica| op.is_asked(replica)),
        [false, true, true]
    );
    assert_eq!(reply(&mut op, 1, 5), [ReadAction::Finished]);
}

#[test]
fn what_has_ended_is_not_brought_back_to_those_who_have_freed_it() {
    let over = Record::value(record(5).version, Some(Millis(7)), Bytes::new());
    let over = Some(Summary::of((&over).into()));
    let now = Millis(7);
    let mut op = ReadOp::new(
        3,
        ReadPlan {
            now,
            ..plan(2, Want::Record)
        },
    );
    assert_eq!(reply(&mut op, 0, 0), []);
    let mut actions = Vec::new();
    op.on_told(1, told(over, None), &mut actions);
    assert_eq!(actions, [ReadAction::Finished]);
    assert_eq!(op.outcome(), Some(&Ok(over)));
    // Who holds something older is told all the same.
    assert_eq!(reply(&mut op, 2, 3), [ReadAction::Fetch { replica: 1 }]);
}

fn stand_in(home: usize, place: usize) -> StandIn {
    StandIn {
        home,
        place,
        counts: true,
    }
}

fn unsure(hlc: u64) -> Told {
    Told {
        is_sure: false,
        ..told(summary(hlc), (hlc > 0).then(|| record(hlc)))
    }
}

#[test]
fn a_stand_in_is_asked_where_too_few_homes_are_left_and_its_hint_is_seen() {
    for sloppy in [false, true] {
        let plan = ReadPlan {
            stand_ins: if sloppy {
                StandIns::WhereNeeded
            } else {
                StandIns::Never
            },
            ..plan(3, Want::Record)
        };
        let mut op = ReadOp::new(3, plan);
        let mut actions = Vec::new();
        reply(&mut op, 0, 5);
        reply(&mut op, 1, 5);
        op.on_failed(2, None, &mut actions);
        if !sloppy {
            assert!(op.outcome().is_some_and(Result::is_err));
            continue;
        }
        assert_eq!(actions, [ReadAction::StandIns { home: 2 }]);
        actions.clear();
        op.on_stand_ins([stand_in(2, 0)], &mut actions);
        assert!(op.is_asked_for_record(3));
        op.on_told(3, unsure(7), &mut actions);
        // The homes are brought up to date before the answer.
        let repairs = [0, 1].map(|replica| ReadAction::Repair { replica });
        assert_eq!(actions, repairs);
        op.on_repaired(0, &mut actions);
        op.on_repaired(1, &mut actions);
        assert_eq!(op.outcome(), Some(&Ok(summary(7))));
        assert!(op.was_sloppy());
    }
}

#[test]
fn homes_enough_need_no_stand_ins() {
    let plan = ReadPlan {
        stand_ins: StandIns::WhereNeeded,
        ..plan(2, Want::Record)
    };
    let mut op = ReadOp::new(3, plan);
    let mut actions = Vec::new();
    op.on_failed(2, None, &mut actions);
    reply(&mut op, 0, 5);
    assert_eq!(actions, []);
    assert_eq!(reply(&mut op, 1, 5), [ReadAction::Finished]);
    assert!(!op.was_sloppy());
}

#[test]
fn an_owed_home_does_not_make_up_a_quorum_before_its_stand_ins_are_heard() {
    let plan = ReadPlan {
        stand_ins: StandIns::WhereNeeded,
        owed: Voters::those(3, |home| home != 0),
        ..plan(2, Want::Record)
    };
    let mut op = ReadOp::new(3, plan);
    let mut actions = Vec::new();
    reply(&mut op, 0, 5);
    assert_eq!(reply(&mut op, 1, 5), []);
    let sought = reply(&mut op, 2, 5);
    assert_eq!(sought, [1, 2].map(|home| ReadAction::StandIns { home }));
    op.on_stand_ins([stand_in(1, 0)], &mut actions);
    op.on_stand_ins([], &mut actions);
    assert_eq!(actions, []);
    op.on_told(3, unsure(0), &mut actions);
    assert_eq!(actions, [ReadAction::Finished]);
    assert_eq!(op.outcome(), Some(&Ok(summary(5))));
    assert!(!op.was_sloppy(), "homes answered");
}

#[test]
fn a_stand_in_counts_for_one_home_and_not_beside_it() {
    let plan = ReadPlan {
        stand_ins: StandIns::WhereNeeded,
        ..plan(3, Want::Summary)
    };
    let mut op = ReadOp::new(3, plan);
    let mut actions = Vec::new();
    op.on_failed(1, None, &mut actions);
    op.on_stand_ins([stand_in(1, 0), stand_in(1, 1)], &mut actions);
    op.on_failed(2, None, &mut actions);
    op.on_stand_ins([], &mut actions);
    actions.clear();
    reply(&mut op, 0, 5);
    op.on_told(3, unsure(5), &mut actions);
    assert_eq!(actions, []);
    op.on_told(4, unsure(5), &mut actions);
    // Two stand-ins for two homes that are away: distinct nodes.
    assert_eq!(actions, [ReadAction::Finished]);
    assert_eq!(op.outcome(), Some(&Ok(summary(5))));
}

#[test]
fn a_stand_in_that_knows_nothing_does_not_answer_for_a_home_that_is_only_late() {
    let plan = ReadPlan {
        stand_ins: StandIns::WhereNeeded,
        ..plan(1, Want::Record)
    };
    for hint in [0, 5] {
        let mut op = ReadOp::new(1, plan);
        let mut actions = Vec::new();
        op.on_late(0, &mut actions);
        op.on_stand_ins([stand_in(0, 0)], &mut actions);
        op.on_told(1, unsure(hint), &mut actions);
        assert_eq!(op.outcome().is_some(), hint > 0);
        if hint == 0 {
            assert_eq!(reply(&mut op, 0, 3), [ReadAction::Finished]);
            assert_eq!(op.outcome(), Some(&Ok(summary(3))));
        }
    }
}

#[test]
fn stand_ins_that_know_nothing_do_not_answer_without_any_home() {
    let plan = ReadPlan {
        stand_ins: StandIns::WhereNeeded,
        ..plan(1, Want::Record)
    };
    for hint in [0, 5] {
        let mut op = ReadOp::new(2, plan);
        let mut actions = Vec::new();
        op.on_failed(0, None, &mut actions);
        op.on_failed(1, None, &mut actions);
        op.on_stand_ins([stand_in(0, 0)], &mut actions);
        op.on_stand_ins([stand_in(1, 1)], &mut actions);
        op.on_told(2, unsure(hint), &mut actions);
        op.on_told(3, unsure(0), &mut actions);
        let outcome = *op.outcome().unwrap();
        assert_eq!(outcome.ok(), (hint > 0).then(|| summary(hint)));
    }
}

#[test]
fn a_home_that_is_away_is_not_waited_for_once_its_stand_in_has_answered() {
    let plan = ReadPlan {
        stand_ins: StandIns::WhereNeeded,
        ..plan(3, Want::Summary)
    };
    let mut op = ReadOp::new(3, plan);
    let mut actions = Vec::new();
    reply(&mut op, 0, 5);
    reply(&mut op, 1, 5);
    op.on_away(2, &mut actions);
    assert_eq!(actions, [ReadAction::StandIns { home: 2 }]);
    op.on_stand_ins([stand_in(2, 0)], &mut actions);
    actions.clear();
    op.on_told(3, unsure(0), &mut actions);
    assert_eq!(actions, [ReadAction::Finished]);
    // It answers after all: what repairs it is fetched.
    assert_eq!(reply(&mut op, 2, 3), [ReadAction::Fetch { replica: 0 }]);
}

proptest! {
    /// Whatever replicas hold, and in whatever order they answer: the answer is the newest of
    /// at least r replies, r replicas hold it by then, and in the end all that answered do.
    #[test]
    fn answers_are_newest_and_settled(
        (held, r) in (1usize..6).prop_flat_map(|n| (prop::collection::vec(0u64..4, n), 1..=n)),
        whole in any::<prop::sample::Index>(),
        order in any::<u64>(),
        wants_record in any::<bool>(),
        frugal in any::<bool>(),
    ) {
        let n = held.len();
        let mut held = held;
        let want = if wants_record { Want::Record } else { Want::Summary };
        let plan = ReadPlan {
            frugal,
            first: whole.index(n),
            ..plan(u8::try_from(r).unwrap(), want)
        };
        let mut op = ReadOp::new(n, plan);
        let mut asked: Vec<usize> = (0..n).filter(|&i| op.is_asked(i)).collect();
        prop_assert_eq!(asked.len(), if frugal { r } else { n });
        // Questions on their way; which is answered next is up to `order`.
        let mut open: Vec<(usize, bool, bool)> =
            asked.iter().map(|&i| (i, op.is_asked_for_record(i), false)).collect();
        let mut seed = order;
        let mut finished = false;
        while !open.is_empty() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let pick = usize::try_from(seed >> 33).unwrap() % open.len();
            let (replica, whole, repair) = open.swap_remove(pick);
            let mut actions = Vec::new();
            if repair {
                held[replica] = held[replica].max(op.record().unwrap().version.hlc.0);
                op.on_repaired(replica, &mut actions);
            } else {
                let hlc = held[replica];
                let record = (whole && hlc > 0).then(|| record(hlc));
                op.on_told(replica, told(summary(hlc), record), &mut actions);
            }
            for action in actions {
                match action {
                    ReadAction::Ask { replica } => {
                        asked.push(replica);
                        open.push((replica, op.is_asked_for_record(replica), false));
                    }
                    ReadAction::Fetch { replica } => open.push((replica, true, false)),
                    ReadAction::Repair { replica } => open.push((replica, false, true)),
                    ReadAction::StandIns { .. } => prop_assert!(false, "nobody may stand in"),
                    ReadAction::Finished => {
                        prop_assert!(!finished);
                        finished = true;
                        let answer = op.outcome().unwrap().unwrap();
                        let hlc = answer.map_or(0, |summary| summary.stamp.value.hlc.0);
                        prop_assert!(held.iter().filter(|&&h| h >= hlc).count() >= r);
                        if wants_record && hlc > 0 {
                            prop_assert_eq!(op.record(), Some(&record(hlc)));
                        }
                    }
                }
            }
        }
        prop_assert!(finished);
        prop_assert!(asked.iter().all(|&replica| held[replica] == held[asked[0]]));
    }
}

#[test]
fn a_value_that_a_promise_keeps_out_elsewhere_is_not_the_answer() {
    let mut op = ReadOp::new(3, plan(2, Want::Record));
    reply(&mut op, 0, 5);
    let repair = ReadAction::Repair { replica: 1 };
    assert_eq!(reply(&mut op, 1, 3), [repair]);
    let mut actions = Vec::new();
    op.on_promised(1, &mut actions);
    assert_eq!((actions, op.outcome()), (vec![], None));
    let repair = ReadAction::Repair { replica: 2 };
    assert_eq!(reply(&mut op, 2, 3), [repair]);
    let mut actions = Vec::new();
    op.on_promised(2, &mut actions);
    assert_eq!(actions, [ReadAction::Finished]);
    assert!(matches!(op.outcome(), Some(Err(_))));
}

#[test]
fn a_value_that_a_quorum_takes_is_the_answer_whatever_another_has_promised() {
    let mut op = ReadOp::new(3, plan(2, Want::Record));
    reply(&mut op, 0, 5);
    reply(&mut op, 1, 3);
    let mut actions = Vec::new();
    op.on_promised(1, &mut actions);
    assert_eq!(reply(&mut op, 2, 5), [ReadAction::Finished]);
    assert_eq!(op.outcome(), Some(&Ok(summary(5))));
}
