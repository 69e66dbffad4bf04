//! A quorum read with repair before the answer.
//!
//! One replica is asked for the whole record, the others for its stamp only. The answer is the
//! newest state seen, given once r replicas are known to hold it or something newer: a replica
//! that replied with less is repaired first, so that no later read at r > n / 2 goes back in time
//! (the write-back of Attiya, Bar-Noy, Dolev, *Sharing Memory Robustly*, 1995, done only where
//! replies differ). After the answer, late replies are still repaired.

use super::{QuorumNotMet, Replicas, Voters, count_u8};
use crate::model::{Millis, Record, Stamp, Summary};
use crate::wire::Refusal;

/// What a read is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// The value.
    Record,
    /// That it is there, when it ends, how long it is; no value crosses the network for it.
    Summary,
    /// What orders it, to write something newer: nothing is repaired for it.
    Stamp,
}

/// Whom a read asks, and how many have to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadPlan {
    /// How many of `voters` have to answer.
    pub need: u8,
    /// Whose answers count. The others are not asked.
    pub voters: Voters,
    /// A replica that may have lost what it held never counts. Otherwise it does when nobody
    /// better is left.
    pub strict: bool,
    /// Only as many as are needed are asked at first.
    pub frugal: bool,
    /// What the answer is to hold.
    pub want: Want,
    /// Who is asked first, and for the whole record.
    pub first: usize,
    /// When it was begun: a replica need not hold what had ended by then.
    pub now: Millis,
}

/// What the driver has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadAction {
    /// Ask this replica what it holds, for the first time.
    Ask {
        /// Its number.
        replica: usize,
    },
    /// Ask this replica for the whole record.
    Fetch {
        /// Its number.
        replica: usize,
    },
    /// Write [`ReadOp::record`] to this replica.
    Repair {
        /// Its number.
        replica: usize,
    },
    /// [`ReadOp::outcome`] is there: answer the caller.
    Finished,
}

/// What one replica told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// What it holds, without the value.
    pub held: Option<Summary>,
    /// The record itself, if it was asked for that.
    pub record: Option<Record>,
    /// It has held everything since it was last empty: what it does not hold was not written to
    /// it.
    pub is_sure: bool,
}

/// The read of one key.
#[derive(Debug)]
pub struct ReadOp {
    plan: ReadPlan,
    replicas: Replicas<Replica>,
    /// The newest whole record seen.
    record: Option<Record>,
    refusal: Option<Refusal>,
    outcome: Option<Result<Option<Summary>, QuorumNotMet>>,
    /// The replies differed.
    has_disagreed: bool,
    is_late: bool,
    fetches_left: u8,
}

#[derive(Debug, Clone, Copy, Default)]
struct Replica {
    state: State,
    /// Asked for the whole record, and has not answered that yet.
    fetching: bool,
    /// Being repaired to this stamp.
    repairing: Option<Stamp>,
}

#[derive(Debug, Clone, Copy, Default)]
enum State {
    /// Not asked, and may be.
    #[default]
    Idle,
    /// Does not count, and is not asked.
    Out,
    Waiting,
    Failed,
    Holds {
        held: Option<Summary>,
        is_sure: bool,
    },
}

impl ReadOp {
    /// A read of `replicas`.
    ///
    /// The driver sends the first questions, to those that [`ReadOp::is_asked`] names.
    #[must_use]
    pub fn new(replicas: usize, plan: ReadPlan) -> Self {
        let mut states = Replicas::from_elem(Replica::default(), replicas);
        for (number, replica) in states.iter_mut().enumerate() {
            replica.state = if !plan.voters.contains(number) {
                State::Out
            } else if plan.frugal {
                State::Idle
            } else {
                State::Waiting
            };
        }
        let fetches_left = FETCHES_PER_REPLICA.saturating_mul(count_u8(&states, |_| true));
        let mut op = Self {
            plan,
            replicas: states,
            record: None,
            refusal: None,
            outcome: None,
            has_disagreed: false,
            is_late: false,
            fetches_left,
        };
        if plan.first < replicas {
            op.first_question(plan.first);
        }
        while op.count(Replica::is_waiting) < plan.need
            && let Some(next) = op.next_idle()
        {
            op.first_question(next);
        }
        op
    }

    /// Whether this replica is asked at the beginning.
    #[must_use]
    pub fn is_asked(&self, replica: usize) -> bool {
        self.replicas[replica].is_waiting()
    }

    /// Whether the first question to this replica is for the whole record.
    #[must_use]
    pub fn is_asked_for_record(&self, replica: usize) -> bool {
        self.replicas[replica].fetching
    }

    /// Whether the answer is a value.
    #[must_use]
    pub fn wants_record(&self) -> bool {
        self.plan.want == Want::Record
    }

    /// Whether the replies differed, so far.
    #[must_use]
    pub const fn has_disagreed(&self) -> bool {
        self.has_disagreed
    }

    /// A replica told what it holds.
    pub fn on_told(&mut self, replica: usize, told: Told, actions: &mut Vec<ReadAction>) {
        let Told {
            held,
            record,
            is_sure,
        } = told;
        self.replicas[replica].fetching = false;
        let stamp = held.map(|summary| summary.stamp);
        // Replies can overtake each other: a replica never holds less than it once said.
        if !matches!(self.replicas[replica].state, State::Holds { held: Some(h), .. } if Some(h.stamp) > stamp)
        {
            self.replicas[replica].state = State::Holds { held, is_sure };
        }
        if let Some(record) = record
            && self
                .record
                .as_ref()
                .is_none_or(|known| known.stamp() < record.stamp())
        {
            self.record = Some(record);
        }
        self.advance(actions);
    }

    /// A replica took the record it was repaired with, or holds something newer.
    pub fn on_repaired(&mut self, replica: usize, actions: &mut Vec<ReadAction>) {
        if let Some(stamp) = self.replicas[replica].repairing.take()
            && let Some(record) = &self.record
        {
            // At least the repair's stamp; if the record has moved on, it is repaired again.
            let held = Some(Summary {
                stamp,
                ..Summary::of(record.into())
            });
            let is_sure = self.replicas[replica].is_sure();
            self.replicas[replica].state = State::Holds { held, is_sure };
        }
        self.advance(actions);
    }

    /// A replica did not do what it was asked, and will not.
    pub fn on_failed(
        &mut self,
        replica: usize,
        refusal: Option<Refusal>,
        actions: &mut Vec<ReadAction>,
    ) {
        self.refusal = self.refusal.or(refusal);
        self.replicas[replica] = Replica {
            state: State::Failed,
            ..Replica::default()
        };
        self.advance(actions);
    }

    /// Those who were asked are slow: ask another one as well.
    pub fn on_slow(&mut self, actions: &mut Vec<ReadAction>) {
        if self.outcome.is_some() {
            return;
        }
        if let Some(next) = self.next_idle() {
            self.ask(next, actions);
        } else if self.wants_record()
            && self.record.is_none()
            && self.replicas.iter().any(|replica| replica.fetching)
        {
            let newest = self.newest().map(|summary| summary.stamp);
            self.fetch(
                |state| match state {
                    State::Waiting => true,
                    State::Holds { held, .. } => held.map(|summary| summary.stamp) == newest,
                    State::Idle | State::Out | State::Failed => false,
                },
                actions,
            );
        }
    }

    /// Time is up.
    pub fn on_deadline(&mut self, actions: &mut Vec<ReadAction>) {
        if self.outcome.is_none() {
            // Those who are not sure are better than no answer.
            self.is_late = true;
            self.advance(actions);
        }
        if self.outcome.is_none() {
            self.fail(actions);
        }
    }

    /// The caller cannot make use of what was learnt, and is told why.
    pub fn refuse(&mut self, refusal: Refusal) {
        self.outcome = Some(Err(QuorumNotMet {
            need: self.plan.need,
            got: 0,
            refusal: Some(refusal),
        }));
    }

    /// What the caller gets; `None` until [`ReadAction::Finished`].
    #[must_use]
    pub const fn outcome(&self) -> Option<&Result<Option<Summary>, QuorumNotMet>> {
        self.outcome.as_ref()
    }

    /// The newest whole record seen: the value of the answer, and what repairs write.
    #[must_use]
    pub const fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    fn advance(&mut self, actions: &mut Vec<ReadAction>) {
        if matches!(self.outcome, Some(Err(_))) || !self.has_quorum(actions) {
            return;
        }
        let newest = self.newest();
        let is_over = newest.is_some_and(|summary| summary.is_over(self.plan.now));
        let newest = newest.map(|summary| summary.stamp);
        let holders = self.count(|replica| replica.agrees(newest, is_over));
        let disagree = holders < self.count(Replica::has_replied);
        self.has_disagreed |= disagree;
        if self.plan.want == Want::Stamp {
            return self.finish(newest, actions);
        }
        let value_missing = self.wants_record() && self.outcome.is_none() && !is_over;
        if newest.is_some() && (disagree || value_missing) && !self.has_record(newest) {
            if !self.replicas.iter().any(|replica| replica.fetching) {
                self.fetch(|state| state.stamp() == newest && newest.is_some(), actions);
            }
            return;
        }
        if disagree {
            self.repair_stale(newest, is_over, actions);
        }
        if !disagree || holders >= self.plan.need {
            self.finish(newest, actions);
        }
    }

    /// Whether enough have answered; if not, asks others or fails.
    fn has_quorum(&mut self, actions: &mut Vec<ReadAction>) -> bool {
        let sure = self.count(Replica::is_sure);
        if sure >= self.plan.need || matches!(self.outcome, Some(Ok(_))) {
            return true;
        }
        let mut waiting = self.count(Replica::is_waiting);
        while sure + waiting < self.plan.need
            && let Some(next) = self.next_idle()
        {
            self.ask(next, actions);
            waiting += 1;
        }
        if waiting > 0 && !self.is_late {
            return false;
        }
        if !self.plan.strict && self.count(Replica::has_replied) >= self.plan.need {
            return true;
        }
        if waiting == 0 && self.outcome.is_none() {
            self.fail(actions);
        }
        false
    }

    fn ask(&mut self, replica: usize, actions: &mut Vec<ReadAction>) {
        self.first_question(replica);
        actions.push(ReadAction::Ask { replica });
    }

    fn first_question(&mut self, replica: usize) {
        let wants_record = self.wants_record() && self.record.is_none();
        let is_fetching = self.replicas.iter().any(|replica| replica.fetching);
        let state = &mut self.replicas[replica];
        if !matches!(state.state, State::Out) {
            state.state = State::Waiting;
            state.fetching = wants_record && (self.plan.frugal || !is_fetching);
        }
    }

    fn next_idle(&self) -> Option<usize> {
        self.replicas
            .iter()
            .position(|replica| matches!(replica.state, State::Idle))
    }

    /// Asks the first replica whose state fits and that is not being asked.
    fn fetch(&mut self, fits: impl Fn(&State) -> bool, actions: &mut Vec<ReadAction>) {
        let candidate = self
            .replicas
            .iter()
            .position(|r| !r.fetching && fits(&r.state));
        match candidate {
            Some(replica) if self.fetches_left > 0 => {
                self.fetches_left -= 1;
                self.replicas[replica].fetching = true;
                actions.push(ReadAction::Fetch { replica });
            }
            // It keeps changing faster than it can be fetched: the deadline ends it.
            Some(_) | None => {}
        }
    }

    fn repair_stale(
        &mut self,
        newest: Option<Stamp>,
        is_over: bool,
        actions: &mut Vec<ReadAction>,
    ) {
        for (number, replica) in self.replicas.iter_mut().enumerate() {
            let is_stale = replica.has_replied() && !replica.agrees(newest, is_over);
            if is_stale && replica.repairing.is_none() {
                replica.repairing = newest;
                actions.push(ReadAction::Repair { replica: number });
            }
        }
    }

    fn finish(&mut self, newest: Option<Stamp>, actions: &mut Vec<ReadAction>) {
        if self.outcome.is_some() {
            return;
        }
        let holder = self.replicas.iter().find(|replica| replica.holds(newest));
        self.outcome = Some(Ok(holder.and_then(Replica::held)));
        actions.push(ReadAction::Finished);
    }

    fn fail(&mut self, actions: &mut Vec<ReadAction>) {
        let got = if self.plan.strict {
            self.count(Replica::is_sure)
        } else {
            self.count(Replica::has_replied)
        };
        let error = QuorumNotMet {
            need: self.plan.need,
            got,
            refusal: self.refusal,
        };
        self.outcome = Some(Err(error));
        actions.push(ReadAction::Finished);
    }

    fn count(&self, of: impl Fn(&Replica) -> bool) -> u8 {
        count_u8(&self.replicas, of)
    }

    fn newest(&self) -> Option<Summary> {
        let held = self.replicas.iter().filter_map(Replica::held);
        held.max_by_key(|summary| summary.stamp)
    }

    fn has_record(&self, newest: Option<Stamp>) -> bool {
        self.record.as_ref().map(Record::stamp) >= newest
    }
}

impl Replica {
    const fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting)
    }

    const fn has_replied(&self) -> bool {
        matches!(self.state, State::Holds { .. })
    }

    const fn is_sure(&self) -> bool {
        matches!(self.state, State::Holds { is_sure: true, .. })
    }

    fn holds(&self, stamp: Option<Stamp>) -> bool {
        self.has_replied() && self.state.stamp() >= stamp
    }

    /// Whether there is nothing to repair. What is over is freed sooner by one than by another.
    fn agrees(&self, newest: Option<Stamp>, is_over: bool) -> bool {
        self.holds(newest) || (is_over && self.has_replied() && self.held().is_none())
    }

    const fn held(&self) -> Option<Summary> {
        match self.state {
            State::Holds { held, .. } => held,
            State::Idle | State::Out | State::Waiting | State::Failed => None,
        }
    }
}

impl State {
    fn stamp(&self) -> Option<Stamp> {
        match self {
            Self::Holds { held, .. } => held.map(|summary| summary.stamp),
            Self::Idle | Self::Out | Self::Waiting | Self::Failed => None,
        }
    }
}

/// A key that changes between the stamp and the fetch is fetched again, but not for ever.
const FETCHES_PER_REPLICA: u8 = 2;

#[cfg(test)]
mod tests {
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

    #[test]
    fn a_stamp_is_learnt_without_repairs() {
        let mut op = ReadOp::new(3, plan(2, Want::Stamp));
        assert_eq!(reply(&mut op, 0, 3), []);
        assert_eq!(reply(&mut op, 1, 5), [ReadAction::Finished]);
        assert_eq!(op.outcome(), Some(&Ok(summary(5))));
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
}
