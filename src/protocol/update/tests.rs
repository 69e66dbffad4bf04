use bytes::Bytes;

use super::*;
use crate::model::{Body, NodeTag};

const PLAN: UpdatePlan = UpdatePlan {
    homes: 3,
    need: 2,
    value_bytes_max: 1_000,
    ring: 7,
};

fn version(hlc: u64) -> Version {
    Version {
        hlc: HlcTime(hlc),
        node: NodeTag(1),
    }
}

fn updates(sequence: u64, commands: &[&'static str]) -> Updates {
    let change = |command: &&'static str| Change::Command(Bytes::from_static(command.as_bytes()));
    Updates {
        id: UpdateId {
            coordinator: NodeTag(9),
            sequence,
        },
        begun: HlcTime(10),
        is_open: false,
        changes: commands.iter().map(change).collect(),
    }
}

fn incr(sequence: u64) -> Updates {
    updates(sequence, &["INCR k\r\n"])
}

/// What a home holds: a value under a version, of which everything is known.
fn holds(hlc: u64, value: &str) -> Promise {
    let value = Bytes::copy_from_slice(value.as_bytes());
    Promise {
        record: Some(Record::value(version(hlc), None, value)),
        lineage: Lineage::default(),
    }
}

fn nothing() -> Promise {
    Promise {
        record: None,
        lineage: Lineage::default(),
    }
}

fn begun(of: Vec<Updates>, ballot: u64) -> UpdateOp {
    let mut op = UpdateOp::new(PLAN, of);
    let action = op.begin(version(ballot), Millis(5));
    assert_eq!(action, UpdateAction::Promise);
    op
}

/// A home has promised; what there is to evaluate then is evaluated at once.
fn promised(
    op: &mut UpdateOp,
    replica: usize,
    ballot: Version,
    promise: Promise,
    next: impl FnOnce() -> Option<Version>,
) -> Option<UpdateAction> {
    let action = op.on_promise(replica, ballot, promise);
    match op.evaluation(Millis(0)) {
        Some(evaluation) => op.on_evaluated(evaluation.run(&Limit::of_steps()), next),
        None => action,
    }
}

fn begun_standing(
    op: &mut UpdateOp,
    standing: Standing,
    now: Millis,
    next: impl FnOnce() -> Option<Version>,
) -> UpdateAction {
    let action = op.begin_standing(standing, now);
    match op.evaluation(Millis(0)) {
        Some(evaluation) => op
            .on_evaluated(evaluation.run(&Limit::of_steps()), next)
            .unwrap(),
        None => action,
    }
}

fn value(op: &UpdateOp) -> &[u8] {
    match &op.proposal().unwrap().record.body {
        Body::Value(value) => value,
        Body::Tombstone => b"-",
    }
}

fn only(op: UpdateOp) -> Updated {
    let (outcomes, _) = op.outcomes();
    assert_eq!(outcomes.len(), 1);
    outcomes.into_iter().next().unwrap().1
}

fn made(number: i64) -> Updated {
    Updated::Made(vec![Reply::Integer(number)])
}

const fn no_next() -> Option<Version> {
    None
}

#[test]
fn an_update_is_made_on_the_newest_that_a_majority_holds() {
    let mut op = begun(vec![incr(1)], 20);
    assert_eq!(
        promised(&mut op, 0, version(20), holds(3, "7"), no_next),
        None
    );
    let action = promised(&mut op, 2, version(20), holds(5, "8"), no_next);
    assert_eq!(action, Some(UpdateAction::Accept));
    assert_eq!(value(&op), b"9");
    assert_eq!(op.on_accepted(0, version(20), false), None);
    // The same home twice is one home.
    assert_eq!(op.on_accepted(0, version(20), false), None);
    let action = op.on_accepted(1, version(20), false);
    assert_eq!(action, Some(UpdateAction::Finished));
    assert_eq!(only(op), made(9));
}

#[test]
fn what_changes_nothing_is_told_at_once_if_a_majority_agrees() {
    for (other, action) in [(5, UpdateAction::Finished), (4, UpdateAction::Accept)] {
        let mut op = begun(vec![updates(1, &["GET k\r\n"])], 20);
        promised(&mut op, 0, version(20), holds(5, "v"), no_next);
        let told = promised(&mut op, 1, version(20), holds(other, "v"), no_next);
        assert_eq!(told, Some(action));
    }
}

#[test]
fn updates_together_are_made_one_after_the_other() {
    let mut second = incr(2);
    second.id.coordinator = NodeTag(8);
    let third = Updates {
        id: UpdateId {
            coordinator: NodeTag(7),
            sequence: 1,
        },
        ..updates(1, &["APPEND k 0\r\n", "INCR k\r\n"])
    };
    let mut op = begun(vec![incr(1), second, third], 20);
    promised(&mut op, 0, version(20), nothing(), no_next);
    promised(&mut op, 1, version(20), nothing(), no_next);
    assert_eq!(value(&op), b"21");
    op.on_accepted(1, version(20), false);
    op.on_accepted(2, version(20), false);
    let outcomes: Vec<Updated> = op.outcomes().0.into_iter().map(|(_, told)| told).collect();
    let last = Updated::Made(vec![Reply::Integer(2), Reply::Integer(21)]);
    assert_eq!(outcomes, [made(1), made(2), last]);
}

#[test]
fn a_result_that_was_taken_by_some_is_not_made_again() {
    let mut op = begun(vec![incr(1)], 20);
    promised(&mut op, 0, version(20), nothing(), no_next);
    promised(&mut op, 1, version(20), nothing(), no_next);
    let taken = op.proposal().unwrap().clone();
    assert_eq!(op.on_accepted(0, version(20), false), None);
    assert_eq!(op.on_outbid(1, version(20), version(30)), None);
    let again = op.on_failed(2, version(20), None);
    let Some(UpdateAction::Again { past, .. }) = again else {
        panic!("{again:?}")
    };
    assert_eq!(past, version(30));
    op.begin(version(31), Millis(6));
    let held = Promise {
        record: Some(taken.record),
        lineage: taken.lineage,
    };
    promised(&mut op, 2, version(31), nothing(), no_next);
    let action = promised(&mut op, 0, version(31), held, no_next);
    assert_eq!(
        action,
        Some(UpdateAction::Accept),
        "decided by being taken once more"
    );
    assert_eq!(value(&op), b"1");
    op.on_accepted(0, version(31), false);
    op.on_accepted(2, version(31), false);
    assert_eq!(only(op), made(1));
}

#[test]
fn what_another_made_on_the_state_before_is_built_upon() {
    let mut op = begun(vec![incr(1)], 20);
    promised(&mut op, 0, version(20), nothing(), no_next);
    promised(&mut op, 1, version(20), nothing(), no_next);
    op.on_outbid(1, version(20), version(30));
    assert!(op.on_outbid(0, version(20), version(30)).is_some());
    op.begin(version(31), Millis(6));
    promised(&mut op, 1, version(31), holds(30, "50"), no_next);
    promised(&mut op, 0, version(31), holds(30, "50"), no_next);
    assert_eq!(
        value(&op),
        b"51",
        "its own result is lost and was never decided"
    );
}

#[test]
fn of_what_was_written_over_nobody_knows() {
    let unknown = |hlc| Promise {
        lineage: Lineage::unknown_until(HlcTime(hlc)),
        ..holds(hlc, "5")
    };
    // Nobody had it before: it was not made, but this one does not know that.
    let mut op = begun(vec![incr(1)], 20);
    promised(&mut op, 0, version(20), unknown(12), no_next);
    let action = promised(&mut op, 1, version(20), unknown(12), no_next);
    assert_eq!(action, Some(UpdateAction::Finished));
    assert_eq!(only(op), Updated::TooOld);
    // It was given to homes, and something was written over it.
    let mut op = begun(vec![incr(1)], 20);
    promised(&mut op, 0, version(20), nothing(), no_next);
    promised(&mut op, 1, version(20), nothing(), no_next);
    op.on_slow();
    op.begin(version(31), Millis(6));
    promised(&mut op, 0, version(31), unknown(30), no_next);
    promised(&mut op, 1, version(31), unknown(30), no_next);
    assert_eq!(only(op), Updated::Unknown);
}

#[test]
fn without_a_majority_it_says_whether_something_may_have_been_made() {
    let mut op = begun(vec![incr(1)], 20);
    promised(&mut op, 0, version(20), nothing(), no_next);
    op.on_deadline();
    let Updated::NotMade(why) = only(op) else {
        panic!("nothing was given to anybody")
    };
    assert_eq!((why.got, why.need), (1, 2));
    let mut op = begun(vec![incr(1)], 20);
    promised(&mut op, 0, version(20), nothing(), no_next);
    promised(&mut op, 1, version(20), nothing(), no_next);
    op.on_deadline();
    assert_eq!(only(op), Updated::Unknown);
}

#[test]
fn clocks_that_no_majority_follows_end_it_at_once() {
    let mut op = begun(vec![incr(1)], 20);
    let drift = Some(Refusal::ClockDrift);
    assert_eq!(op.on_failed(0, version(20), drift), None);
    let action = op.on_failed(1, version(20), drift);
    assert_eq!(action, Some(UpdateAction::Finished));
    assert!(matches!(only(op), Updated::NotMade(why) if why.refusal == drift));
}

#[test]
fn a_promise_that_stands_saves_the_question() {
    let next = || Some(version(21));
    let mut op = begun(vec![incr(1)], 20);
    promised(&mut op, 0, version(20), nothing(), next);
    promised(&mut op, 1, version(20), nothing(), next);
    assert_eq!(op.proposal().unwrap().next, next());
    op.on_accepted(0, version(20), true);
    op.on_accepted(1, version(20), true);
    let (_, standing) = op.outcomes();
    let standing = standing.unwrap();
    assert_eq!(standing.ballot(), version(21));
    let mut op = UpdateOp::new(PLAN, vec![incr(2)]);
    let action = begun_standing(&mut op, standing.clone(), Millis(6), no_next);
    assert_eq!(action, UpdateAction::Accept);
    assert_eq!((value(&op), op.ballot()), (&b"2"[..], version(21)));
    // What only tells asks what a majority holds now.
    let mut op = UpdateOp::new(PLAN, vec![updates(2, &["GET k\r\n"])]);
    let action = begun_standing(&mut op, standing, Millis(6), no_next);
    let pause = Duration::ZERO;
    let past = version(21);
    assert_eq!(action, UpdateAction::Again { past, pause });
    // One home without room for the promise is one too few.
    let mut op = begun(vec![incr(1)], 20);
    promised(&mut op, 0, version(20), nothing(), next);
    promised(&mut op, 1, version(20), nothing(), next);
    op.on_accepted(0, version(20), true);
    op.on_accepted(1, version(20), false);
    assert!(op.outcomes().1.is_none());
}

#[test]
fn of_transactions_on_what_was_seen_together_the_first_one_is_made() {
    let transaction = |coordinator| Updates {
        id: UpdateId {
            coordinator: NodeTag(coordinator),
            sequence: 1,
        },
        changes: vec![Change::Transaction(
            Some(version(5)),
            vec![Bytes::from_static(b"INCR k\r\n")],
        )],
        ..incr(1)
    };
    let mut op = begun(vec![transaction(1), transaction(2)], 20);
    promised(&mut op, 0, version(20), holds(5, "1"), no_next);
    promised(&mut op, 1, version(20), holds(5, "1"), no_next);
    assert_eq!(value(&op), b"2");
    op.on_accepted(0, version(20), false);
    op.on_accepted(1, version(20), false);
    let outcomes: Vec<Updated> = op.outcomes().0.into_iter().map(|(_, told)| told).collect();
    let first = Updated::Made(vec![Reply::Array(vec![Reply::Integer(2)])]);
    let second = Updated::Made(vec![Reply::Nil]);
    assert_eq!(outcomes, [first, second]);
}

/// The state that a ballot stands on: an update was made under 20, and 30 was promised with it.
fn standing() -> (Standing, Proposed) {
    let next = || Some(version(30));
    let mut op = begun(vec![incr(1)], 20);
    promised(&mut op, 0, version(20), nothing(), next);
    promised(&mut op, 1, version(20), nothing(), next);
    let proposed = op.proposal().unwrap().clone();
    op.on_accepted(0, version(20), true);
    op.on_accepted(1, version(20), true);
    (op.outcomes().1.unwrap(), proposed)
}

#[test]
fn a_standing_ballot_serves_only_what_was_begun_before_it() {
    let (standing, before) = standing();
    let at = |begun| Updates {
        begun: HlcTime(begun),
        ..incr(2)
    };
    let mut op = UpdateOp::new(PLAN, vec![at(30)]);
    let action = begun_standing(&mut op, standing.clone(), Millis(6), no_next);
    assert_eq!(action, UpdateAction::Accept);
    // It is taken only where the state that it was promised with is still held.
    assert_eq!(op.proposal().unwrap().base, Some(before.record.stamp()));
    let mut op = UpdateOp::new(PLAN, vec![at(31)]);
    let action = begun_standing(&mut op, standing.clone(), Millis(6), no_next);
    assert!(matches!(action, UpdateAction::Again { past, .. } if past == version(30)));
    // Nor one of another ring.
    let plan = UpdatePlan { ring: 8, ..PLAN };
    let mut op = UpdateOp::new(plan, vec![at(30)]);
    let action = begun_standing(&mut op, standing, Millis(6), no_next);
    assert!(matches!(action, UpdateAction::Again { .. }));
}

#[test]
fn an_update_made_under_a_standing_ballot_is_not_made_again_where_its_lineage_is_lost() {
    let (standing, _) = standing();
    let second = Updates {
        begun: HlcTime(25),
        ..incr(2)
    };
    let mut op = UpdateOp::new(PLAN, vec![second.clone()]);
    begun_standing(&mut op, standing, Millis(6), no_next);
    // A plain read repairs the others with it, and its proposer is gone.
    let repaired = Promise {
        record: Some(op.proposal().unwrap().record.clone()),
        lineage: Lineage::unknown_until(HlcTime(30)),
    };
    let again = Updates {
        is_open: true,
        ..second
    };
    let mut op = begun(vec![again], 40);
    promised(&mut op, 1, version(40), repaired.clone(), no_next);
    promised(&mut op, 2, version(40), repaired, no_next);
    assert_eq!(only(op), Updated::TooOld);
}

#[test]
fn what_changes_nothing_is_noted_when_another_home_may_still_make_it() {
    let set = |is_open| Updates {
        is_open,
        ..updates(1, &["SET k mine NX\r\n"])
    };
    let mut op = begun(vec![set(true)], 20);
    promised(&mut op, 0, version(20), holds(5, "theirs"), no_next);
    let action = promised(&mut op, 1, version(20), holds(5, "theirs"), no_next);
    assert_eq!(action, Some(UpdateAction::Accept));
    let noted = op.proposal().unwrap().clone();
    op.on_accepted(0, version(20), false);
    op.on_accepted(1, version(20), false);
    assert_eq!(only(op), Updated::Made(vec![Reply::Nil]));
    // The lock is released by another update, then the first home wakes up.
    let release = Updates {
        id: UpdateId {
            coordinator: NodeTag(3),
            sequence: 1,
        },
        ..updates(1, &["GETDEL k\r\n"])
    };
    let noted = Promise {
        record: Some(noted.record),
        lineage: noted.lineage,
    };
    let mut op = begun(vec![release], 30);
    promised(&mut op, 0, version(30), noted.clone(), no_next);
    promised(&mut op, 1, version(30), noted, no_next);
    let released = op.proposal().unwrap().clone();
    let released = Promise {
        record: Some(released.record),
        lineage: released.lineage,
    };
    let mut op = begun(vec![set(false)], 40);
    promised(&mut op, 0, version(40), released.clone(), no_next);
    let action = promised(&mut op, 1, version(40), released, no_next);
    assert_eq!(action, Some(UpdateAction::Finished), "nothing is made");
    assert_eq!(only(op), Updated::Made(vec![Reply::Nil]));
}

#[test]
fn what_has_expired_undecided_is_decided_before_anything_depends_on_it() {
    let expired = Promise {
        record: Some(Record::value(
            version(8),
            Some(Millis(3)),
            Bytes::from_static(b"new"),
        )),
        lineage: Lineage::default(),
    };
    let set = || vec![updates(1, &["SET k x XX\r\n"])];
    let mut op = begun(set(), 20);
    promised(&mut op, 0, version(20), expired.clone(), no_next);
    let action = promised(&mut op, 1, version(20), holds(5, "old"), no_next);
    assert_eq!(action, Some(UpdateAction::Accept));
    assert_eq!(value(&op), b"-");
    op.on_accepted(0, version(20), false);
    op.on_accepted(1, version(20), false);
    assert_eq!(only(op), Updated::Made(vec![Reply::Nil]));
    // Where a majority holds it, it is decided.
    let mut op = begun(set(), 20);
    promised(&mut op, 0, version(20), expired.clone(), no_next);
    let action = promised(&mut op, 1, version(20), expired, no_next);
    assert_eq!(action, Some(UpdateAction::Finished));
    assert_eq!(op.unused(), Some(version(20)));
}

#[test]
fn no_more_updates_are_made_together_than_their_replies_fit_into_a_frame() {
    let value = "v".repeat(REPLIES_BYTES_MAX / 2);
    let held = Promise {
        record: Some(Record::value(version(5), None, Bytes::from(value))),
        lineage: Lineage::default(),
    };
    let many = updates(1, &["GETEX k PX 9\r\n"; 8]);
    let mut second = incr(2);
    second.id.coordinator = NodeTag(8);
    let mut op = begun(vec![many.clone(), second], 20);
    promised(&mut op, 0, version(20), held.clone(), no_next);
    promised(&mut op, 1, version(20), held, no_next);
    let lineage = op.proposal().unwrap().lineage.clone();
    op.on_accepted(0, version(20), false);
    op.on_accepted(1, version(20), false);
    let outcomes: Vec<Updated> = op.outcomes().0.into_iter().map(|(_, told)| told).collect();
    assert!(matches!(&outcomes[0], Updated::Made(replies) if replies.len() == 2));
    assert_eq!(outcomes[1], Updated::refused(Refusal::Busy));
    // Whoever asks once more learns how many were made.
    assert_eq!(lineage.verdict(many.id, many.begun), Verdict::Lost(2));
}
