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
    Updated::Made(Some(vec![Reply::Integer(number)]))
}

const fn no_next() -> Option<Version> {
    None
}

#[test]
fn an_update_is_made_on_the_newest_that_a_majority_holds() {
    let mut op = begun(vec![incr(1)], 20);
    assert_eq!(op.on_promise(0, version(20), holds(3, "7"), no_next), None);
    let action = op.on_promise(2, version(20), holds(5, "8"), no_next);
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
        op.on_promise(0, version(20), holds(5, "v"), no_next);
        let told = op.on_promise(1, version(20), holds(other, "v"), no_next);
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
    op.on_promise(0, version(20), nothing(), no_next);
    op.on_promise(1, version(20), nothing(), no_next);
    assert_eq!(value(&op), b"21");
    op.on_accepted(1, version(20), false);
    op.on_accepted(2, version(20), false);
    let outcomes: Vec<Updated> = op.outcomes().0.into_iter().map(|(_, told)| told).collect();
    let last = Updated::Made(Some(vec![Reply::Integer(2), Reply::Integer(21)]));
    assert_eq!(outcomes, [made(1), made(2), last]);
}

#[test]
fn a_result_that_was_taken_by_some_is_not_made_again() {
    let mut op = begun(vec![incr(1)], 20);
    op.on_promise(0, version(20), nothing(), no_next);
    op.on_promise(1, version(20), nothing(), no_next);
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
    op.on_promise(2, version(31), nothing(), no_next);
    let action = op.on_promise(0, version(31), held, no_next);
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
    op.on_promise(0, version(20), nothing(), no_next);
    op.on_promise(1, version(20), nothing(), no_next);
    op.on_outbid(1, version(20), version(30));
    assert!(op.on_outbid(0, version(20), version(30)).is_some());
    op.begin(version(31), Millis(6));
    op.on_promise(1, version(31), holds(30, "50"), no_next);
    op.on_promise(0, version(31), holds(30, "50"), no_next);
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
    op.on_promise(0, version(20), unknown(12), no_next);
    let action = op.on_promise(1, version(20), unknown(12), no_next);
    assert_eq!(action, Some(UpdateAction::Finished));
    assert_eq!(only(op), Updated::TooOld);
    // It was given to homes, and something was written over it.
    let mut op = begun(vec![incr(1)], 20);
    op.on_promise(0, version(20), nothing(), no_next);
    op.on_promise(1, version(20), nothing(), no_next);
    op.on_slow();
    op.begin(version(31), Millis(6));
    op.on_promise(0, version(31), unknown(30), no_next);
    op.on_promise(1, version(31), unknown(30), no_next);
    assert_eq!(only(op), Updated::Unknown);
}

#[test]
fn without_a_majority_it_says_whether_something_may_have_been_made() {
    let mut op = begun(vec![incr(1)], 20);
    op.on_promise(0, version(20), nothing(), no_next);
    op.on_deadline();
    let Updated::NotMade(why) = only(op) else {
        panic!("nothing was given to anybody")
    };
    assert_eq!((why.got, why.need), (1, 2));
    let mut op = begun(vec![incr(1)], 20);
    op.on_promise(0, version(20), nothing(), no_next);
    op.on_promise(1, version(20), nothing(), no_next);
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
    op.on_promise(0, version(20), nothing(), next);
    op.on_promise(1, version(20), nothing(), next);
    assert_eq!(op.proposal().unwrap().next, next());
    op.on_accepted(0, version(20), true);
    op.on_accepted(1, version(20), true);
    let (_, standing) = op.outcomes();
    let standing = standing.unwrap();
    assert_eq!(standing.ballot(), version(21));
    let mut op = UpdateOp::new(PLAN, vec![incr(2)]);
    let action = op.begin_standing(standing.clone(), Millis(6), no_next);
    assert_eq!(action, UpdateAction::Accept);
    assert_eq!((value(&op), op.ballot()), (&b"2"[..], version(21)));
    // What only tells asks what a majority holds now.
    let mut op = UpdateOp::new(PLAN, vec![updates(2, &["GET k\r\n"])]);
    let action = op.begin_standing(standing, Millis(6), no_next);
    let pause = Duration::ZERO;
    let past = version(21);
    assert_eq!(action, UpdateAction::Again { past, pause });
    // One home without room for the promise is one too few.
    let mut op = begun(vec![incr(1)], 20);
    op.on_promise(0, version(20), nothing(), next);
    op.on_promise(1, version(20), nothing(), next);
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
    op.on_promise(0, version(20), holds(5, "1"), no_next);
    op.on_promise(1, version(20), holds(5, "1"), no_next);
    assert_eq!(value(&op), b"2");
    op.on_accepted(0, version(20), false);
    op.on_accepted(1, version(20), false);
    let outcomes: Vec<Updated> = op.outcomes().0.into_iter().map(|(_, told)| told).collect();
    let first = Updated::Made(Some(vec![Reply::Array(vec![Reply::Integer(2)])]));
    let second = Updated::Made(Some(vec![Reply::Nil]));
    assert_eq!(outcomes, [first, second]);
}
