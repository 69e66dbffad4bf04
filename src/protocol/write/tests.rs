use super::*;
use crate::model::{HlcTime, NodeTag, Stamp};

fn plan(need: u8) -> WritePlan {
    WritePlan {
        need,
        voters: Voters::EVERYONE,
        is_sloppy: false,
    }
}

fn version(hlc: u64) -> Version {
    Version {
        hlc: HlcTime(hlc),
        node: NodeTag(1),
    }
}

fn held(hlc: u64) -> Prior {
    Prior {
        stamp: Some(Stamp::fresh(version(hlc))),
        live: true,
    }
}

#[test]
fn done_at_w_acknowledgements() {
    let mut op = WriteOp::new(3, plan(2), version(5));
    let mut actions = Vec::new();
    op.on_applied(0, version(5), held(3), &mut actions);
    assert_eq!(actions, []);
    op.on_applied(2, version(5), held(4), &mut actions);
    assert_eq!(actions, [WriteAction::Finished]);
    assert_eq!(
        op.outcome(),
        Some(&Ok(held(4))),
        "the newest of what was replaced"
    );
    op.on_applied(1, version(5), held(3), &mut actions);
    assert_eq!(actions.len(), 1, "finished once");
}

#[test]
fn impossible_quorums_say_how_many_acknowledged() {
    let mut op = WriteOp::new(3, plan(3), version(5));
    let mut actions = Vec::new();
    op.on_applied(0, version(5), Prior::default(), &mut actions);
    op.on_failed(1, version(5), Some(Refusal::ClockDrift), &mut actions);
    assert_eq!(actions, [], "the third one still counts");
    op.on_applied(2, version(5), Prior::default(), &mut actions);
    assert_eq!(actions, [WriteAction::Finished]);
    let error = QuorumNotMet {
        need: 3,
        got: 2,
        refusal: Some(Refusal::ClockDrift),
    };
    assert_eq!(op.outcome(), Some(&Err(error)));
}

#[test]
fn a_superseded_write_is_stamped_anew_and_counts_afresh() {
    let mut op = WriteOp::new(3, plan(2), version(5));
    let mut actions = Vec::new();
    op.on_applied(0, version(5), Prior::default(), &mut actions);
    op.on_superseded(1, version(5), held(9), &mut actions);
    assert_eq!(
        actions,
        [WriteAction::Restamp {
            replica: 1,
            past: version(9)
        }]
    );
    op.on_restamped(version(10));
    // The acknowledgement of the old version no longer counts.
    actions.clear();
    op.on_applied(2, version(5), Prior::default(), &mut actions);
    op.on_applied(0, version(10), held(5), &mut actions);
    assert_eq!(actions, []);
    op.on_applied(1, version(10), held(9), &mut actions);
    assert_eq!(actions, [WriteAction::Finished]);
    assert_eq!(
        op.outcome(),
        Some(&Ok(held(9))),
        "its own earlier version is no prior state"
    );
}

#[test]
fn after_the_answer_only_a_minority_write_is_stamped_anew() {
    for (need, restamps) in [(1, true), (2, false)] {
        let mut op = WriteOp::new(3, plan(need), version(5));
        let mut actions = Vec::new();
        (0..usize::from(need)).for_each(|replica| {
            op.on_applied(replica, version(5), Prior::default(), &mut actions);
        });
        assert_eq!(actions, [WriteAction::Finished]);
        op.on_superseded(2, version(5), held(9), &mut actions);
        assert_eq!(actions.len() == 2, restamps, "w = {need}");
    }
}

#[test]
fn a_write_that_was_promised_away_is_stamped_past_the_ballot() {
    let mut op = WriteOp::new(3, plan(2), version(5));
    let mut actions = Vec::new();
    op.on_applied(0, version(5), held(4), &mut actions);
    op.on_promised(1, version(5), version(8), &mut actions);
    let past = version(8);
    assert_eq!(actions, [WriteAction::Restamp { replica: 1, past }]);
    op.on_restamped(version(9));
    actions.clear();
    op.on_promised(2, version(5), version(8), &mut actions);
    op.on_applied(0, version(9), held(5), &mut actions);
    op.on_applied(1, version(9), held(4), &mut actions);
    assert_eq!(actions, [WriteAction::Finished]);
}

#[test]
fn only_voters_count() {
    let voters = Voters::those(3, |replica| replica != 1);
    let mut op = WriteOp::new(3, WritePlan { voters, ..plan(2) }, version(5));
    let mut actions = Vec::new();
    op.on_applied(1, version(5), Prior::default(), &mut actions);
    op.on_applied(0, version(5), Prior::default(), &mut actions);
    assert_eq!(actions, []);
    op.on_applied(2, version(5), Prior::default(), &mut actions);
    assert_eq!(actions, [WriteAction::Finished]);
}

#[test]
fn a_key_written_without_end_fails_instead_of_trying_for_ever() {
    let mut op = WriteOp::new(1, plan(1), version(1));
    let mut actions = Vec::new();
    let mut hlc = 1;
    while op.outcome().is_none() {
        actions.clear();
        op.on_superseded(0, version(hlc), held(hlc + 1), &mut actions);
        if let Some(WriteAction::Restamp { .. }) = actions.first() {
            hlc += 2;
            op.on_restamped(version(hlc));
        }
    }
    assert_eq!(op.restamps(), VERSIONS_MAX - 1);
}

fn sloppy(need: u8) -> WritePlan {
    WritePlan {
        is_sloppy: true,
        ..plan(need)
    }
}

fn stand_in(home: usize, place: usize) -> Option<StandIn> {
    Some(StandIn {
        home,
        place,
        counts: true,
    })
}

#[test]
fn a_stand_in_counts_in_the_place_of_its_home() {
    let mut op = WriteOp::new(3, sloppy(3), version(5));
    let mut actions = Vec::new();
    op.on_failed(1, version(5), None, &mut actions);
    assert_eq!(actions, [WriteAction::StandIn { home: 1 }]);
    actions.clear();
    assert_eq!(op.on_stand_in(1, stand_in(1, 0), &mut actions), Some(3));
    op.on_applied(0, version(5), Prior::default(), &mut actions);
    op.on_applied(2, version(5), Prior::default(), &mut actions);
    assert_eq!(actions, []);
    op.on_applied(3, version(5), Prior::default(), &mut actions);
    assert_eq!(actions, [WriteAction::Finished]);
    assert!(op.was_sloppy());
}

#[test]
fn a_home_and_its_stand_in_count_once() {
    let mut op = WriteOp::new(3, sloppy(2), version(5));
    let mut actions = Vec::new();
    op.on_late(1, &mut actions);
    op.on_stand_in(1, stand_in(1, 0), &mut actions);
    actions.clear();
    op.on_applied(1, version(5), Prior::default(), &mut actions);
    op.on_applied(3, version(5), Prior::default(), &mut actions);
    assert_eq!(actions, []);
    op.on_applied(0, version(5), Prior::default(), &mut actions);
    assert_eq!(actions, [WriteAction::Finished]);
    assert!(!op.was_sloppy());
}

#[test]
fn when_a_stand_in_refuses_the_next_one_is_asked_until_nobody_is_left() {
    let mut op = WriteOp::new(1, sloppy(1), version(5));
    let mut actions = Vec::new();
    op.on_failed(0, version(5), None, &mut actions);
    for place in 0..3 {
        assert_eq!(actions, [WriteAction::StandIn { home: 0 }]);
        actions.clear();
        let number = op.on_stand_in(0, stand_in(0, place), &mut actions).unwrap();
        op.on_failed(number, version(5), Some(Refusal::HintsFull), &mut actions);
    }
    actions.clear();
    assert_eq!(op.on_stand_in(0, None, &mut actions), None);
    assert_eq!(actions, [WriteAction::Finished]);
    let error = op.outcome().unwrap().unwrap_err();
    assert_eq!((error.got, error.refusal), (0, Some(Refusal::HintsFull)));
}

#[test]
fn a_write_that_is_done_still_leaves_hints_and_one_that_failed_leaves_none() {
    for is_done in [true, false] {
        let mut op = WriteOp::new(3, sloppy(2), version(5));
        let mut actions = Vec::new();
        op.on_applied(0, version(5), Prior::default(), &mut actions);
        if is_done {
            op.on_applied(1, version(5), Prior::default(), &mut actions);
        } else {
            op.on_deadline(&mut actions);
        }
        actions.clear();
        op.on_failed(2, version(5), None, &mut actions);
        assert_eq!(actions.len(), usize::from(is_done));
    }
}

#[test]
fn nobody_stands_in_for_what_is_refused_for_good() {
    for (plan, refusal) in [
        (plan(2), None),
        (sloppy(2), Some(Refusal::TooBig)),
        (sloppy(2), Some(Refusal::ClockDrift)),
    ] {
        let mut op = WriteOp::new(3, plan, version(5));
        let mut actions = Vec::new();
        op.on_failed(0, version(5), refusal, &mut actions);
        assert_eq!(actions, []);
    }
}

#[test]
fn a_write_stamped_anew_goes_to_its_stand_ins_as_well() {
    let mut op = WriteOp::new(2, sloppy(2), version(5));
    let mut actions = Vec::new();
    op.on_failed(1, version(5), None, &mut actions);
    op.on_stand_in(1, stand_in(1, 0), &mut actions);
    actions.clear();
    // The stand-in has heard of something newer.
    op.on_superseded(2, version(5), held(9), &mut actions);
    assert!(matches!(actions[..], [WriteAction::Restamp { .. }]));
    op.on_restamped(version(10));
    assert!([0, 1, 2].iter().all(|&replica| op.is_asked(replica)));
    actions.clear();
    op.on_applied(0, version(10), held(5), &mut actions);
    op.on_failed(1, version(10), None, &mut actions);
    assert_eq!(actions, [], "somebody stands in already");
    op.on_applied(2, version(10), held(9), &mut actions);
    assert_eq!(actions, [WriteAction::Finished]);
}

#[test]
fn a_stand_in_of_another_zone_does_not_count_for_a_local_quorum() {
    let mut op = WriteOp::new(1, sloppy(1), version(5));
    let mut actions = Vec::new();
    op.on_failed(0, version(5), None, &mut actions);
    let far = StandIn {
        home: 0,
        place: 0,
        counts: false,
    };
    op.on_stand_in(0, Some(far), &mut actions);
    actions.clear();
    op.on_applied(1, version(5), Prior::default(), &mut actions);
    assert_eq!(op.outcome().unwrap().unwrap_err().got, 0);
}
