//! A quorum read with repair before the answer.
//!
//! One replica is asked for the whole record, the others for its stamp only. The answer is the
//! newest state seen, given once r replicas are known to hold it or something newer: a replica
//! that replied with less is repaired first, so that no later read at r > n / 2 goes back in time
//! (the write-back of Attiya, Bar-Noy, Dolev, *Sharing Memory Robustly*, 1995, done only where
//! replies differ). After the answer, late replies are still repaired.

use super::{QuorumNotMet, Replicas, count_u8};
use crate::model::{Record, Stamp, Summary};
use crate::wire::Refusal;

/// What a read is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// The value.
    Record,
    /// That it is there, when it ends, how long it is; no value crosses the network for it.
    Summary,
}

/// What the driver has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadAction {
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

/// The read of one key.
#[derive(Debug)]
pub struct ReadOp {
    need: u8,
    want: Want,
    replicas: Replicas<Replica>,
    /// The newest whole record seen.
    record: Option<Record>,
    refusal: Option<Refusal>,
    outcome: Option<Result<Option<Summary>, QuorumNotMet>>,
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
    #[default]
    Waiting,
    Failed,
    Holds(Option<Summary>),
}

impl ReadOp {
    /// A read that `need` of `replicas` have to answer. `whole` is asked for the record.
    ///
    /// The driver sends the first questions: [`ReadOp::is_asked_for_record`] says which.
    #[must_use]
    pub fn new(replicas: usize, need: u8, want: Want, whole: usize) -> Self {
        let mut states = Replicas::from_elem(Replica::default(), replicas);
        if want == Want::Record {
            states[whole].fetching = true;
        }
        let fetches_left = FETCHES_PER_REPLICA.saturating_mul(count_u8(&states, |_| true));
        Self {
            need,
            want,
            replicas: states,
            record: None,
            refusal: None,
            outcome: None,
            fetches_left,
        }
    }

    /// Whether the first question to this replica is for the whole record.
    #[must_use]
    pub fn is_asked_for_record(&self, replica: usize) -> bool {
        self.replicas[replica].fetching
    }

    /// Whether the answer is a value.
    #[must_use]
    pub fn wants_record(&self) -> bool {
        self.want == Want::Record
    }

    /// A replica told what it holds, with the record itself or without.
    pub fn on_held(
        &mut self,
        replica: usize,
        held: Option<Summary>,
        record: Option<Record>,
        actions: &mut Vec<ReadAction>,
    ) {
        self.replicas[replica].fetching = false;
        let stamp = held.map(|summary| summary.stamp);
        // Replies can overtake each other: a replica never holds less than it once said.
        if !matches!(self.replicas[replica].state, State::Holds(Some(h)) if Some(h.stamp) > stamp) {
            self.replicas[replica].state = State::Holds(held);
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
            let held = Summary {
                stamp,
                ..Summary::of(record.into())
            };
            self.replicas[replica].state = State::Holds(Some(held));
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

    /// The replica asked for the whole record is slow: ask another one as well.
    pub fn on_slow(&mut self, actions: &mut Vec<ReadAction>) {
        let waits = self.outcome.is_none() && self.want == Want::Record && self.record.is_none();
        if waits && self.replicas.iter().any(|replica| replica.fetching) {
            let newest = self.newest();
            self.fetch(
                |state| match state {
                    State::Waiting => true,
                    State::Holds(held) => held.map(|summary| summary.stamp) == newest,
                    State::Failed => false,
                },
                actions,
            );
        }
    }

    /// Time is up.
    pub fn on_deadline(&mut self, actions: &mut Vec<ReadAction>) {
        if self.outcome.is_none() {
            self.fail(actions);
        }
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
        if matches!(self.outcome, Some(Err(_))) {
            return;
        }
        let replied = count_u8(&self.replicas, |r| matches!(r.state, State::Holds(_)));
        let waiting = count_u8(&self.replicas, |r| matches!(r.state, State::Waiting));
        if replied < self.need {
            if waiting == 0 && self.outcome.is_none() {
                self.fail(actions);
            }
            return;
        }
        let newest = self.newest();
        let holders = count_u8(&self.replicas, |r| r.holds(newest));
        let disagree = holders < replied;
        let value_missing = self.want == Want::Record && self.outcome.is_none();
        if newest.is_some() && (disagree || value_missing) && !self.has_record(newest) {
            if !self.replicas.iter().any(|replica| replica.fetching) {
                self.fetch(|state| state.stamp() == newest && newest.is_some(), actions);
            }
            return;
        }
        if disagree {
            self.repair_stale(newest, actions);
        }
        if self.outcome.is_none() && (!disagree || holders >= self.need) {
            let summary = self
                .replicas
                .iter()
                .find(|r| r.holds(newest))
                .and_then(Replica::held);
            self.outcome = Some(Ok(summary));
            actions.push(ReadAction::Finished);
        }
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

    fn repair_stale(&mut self, newest: Option<Stamp>, actions: &mut Vec<ReadAction>) {
        for (number, replica) in self.replicas.iter_mut().enumerate() {
            let is_stale = matches!(replica.state, State::Holds(_)) && !replica.holds(newest);
            if is_stale && replica.repairing.is_none() {
                replica.repairing = newest;
                actions.push(ReadAction::Repair { replica: number });
            }
        }
    }

    fn fail(&mut self, actions: &mut Vec<ReadAction>) {
        let got = count_u8(&self.replicas, |r| matches!(r.state, State::Holds(_)));
        let error = QuorumNotMet {
            need: self.need,
            got,
            refusal: self.refusal,
        };
        self.outcome = Some(Err(error));
        actions.push(ReadAction::Finished);
    }

    fn newest(&self) -> Option<Stamp> {
        self.replicas
            .iter()
            .filter_map(|replica| replica.state.stamp())
            .max()
    }

    fn has_record(&self, newest: Option<Stamp>) -> bool {
        self.record.as_ref().map(Record::stamp) >= newest
    }
}

impl Replica {
    fn holds(&self, stamp: Option<Stamp>) -> bool {
        matches!(self.state, State::Holds(_)) && self.state.stamp() >= stamp
    }

    const fn held(&self) -> Option<Summary> {
        match self.state {
            State::Holds(held) => held,
            State::Waiting | State::Failed => None,
        }
    }
}

impl State {
    fn stamp(&self) -> Option<Stamp> {
        match self {
            Self::Holds(held) => held.map(|summary| summary.stamp),
            Self::Waiting | Self::Failed => None,
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

    fn summary(hlc: u64) -> Option<Summary> {
        (hlc > 0).then(|| Summary::of((&record(hlc)).into()))
    }

    /// Replica `replica` holds version `hlc` (0: nothing) and answers what it was asked first.
    fn reply(op: &mut ReadOp, replica: usize, hlc: u64) -> Vec<ReadAction> {
        let whole = op.is_asked_for_record(replica) && hlc > 0;
        let mut actions = Vec::new();
        op.on_held(
            replica,
            summary(hlc),
            whole.then(|| record(hlc)),
            &mut actions,
        );
        actions
    }

    #[test]
    fn equal_replies_answer_at_once() {
        let mut op = ReadOp::new(3, 2, Want::Record, 0);
        assert_eq!(reply(&mut op, 0, 5), []);
        assert_eq!(reply(&mut op, 2, 5), [ReadAction::Finished]);
        assert_eq!(op.outcome(), Some(&Ok(summary(5))));
        assert_eq!(op.record(), Some(&record(5)));
        assert_eq!(reply(&mut op, 1, 5), []);
    }

    #[test]
    fn absent_everywhere_needs_no_record() {
        let mut op = ReadOp::new(3, 2, Want::Record, 0);
        assert_eq!(reply(&mut op, 1, 0), []);
        assert_eq!(reply(&mut op, 2, 0), [ReadAction::Finished]);
        assert_eq!(op.outcome(), Some(&Ok(None)));
    }

    #[test]
    fn a_stale_replica_is_repaired_before_the_answer() {
        let mut op = ReadOp::new(3, 2, Want::Record, 0);
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
        let mut op = ReadOp::new(3, 2, Want::Record, 0);
        reply(&mut op, 0, 5);
        assert_eq!(reply(&mut op, 1, 7), [ReadAction::Fetch { replica: 1 }]);
        let mut actions = Vec::new();
        op.on_held(1, summary(7), Some(record(7)), &mut actions);
        assert_eq!(actions, [ReadAction::Repair { replica: 0 }]);
        // A third reply that holds it too makes two: the answer need not wait for the repair.
        assert_eq!(reply(&mut op, 2, 7), [ReadAction::Finished]);
        assert_eq!(op.record(), Some(&record(7)));
    }

    #[test]
    fn a_dead_replica_of_the_record_is_replaced() {
        let mut op = ReadOp::new(3, 2, Want::Record, 0);
        assert_eq!(reply(&mut op, 1, 5), []);
        assert_eq!(reply(&mut op, 2, 5), []);
        let mut actions = Vec::new();
        op.on_slow(&mut actions);
        assert_eq!(actions, [ReadAction::Fetch { replica: 1 }]);
        actions.clear();
        op.on_failed(0, None, &mut actions);
        assert_eq!(actions, []);
        op.on_held(1, summary(5), Some(record(5)), &mut actions);
        assert_eq!(actions, [ReadAction::Finished]);
    }

    #[test]
    fn when_all_have_answered_or_failed_it_ends() {
        let mut op = ReadOp::new(3, 2, Want::Summary, 0);
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

    proptest! {
        /// Whatever replicas hold, and in whatever order they answer: the answer is the newest of
        /// at least r replies, r replicas hold it by then, and in the end all that answered do.
        #[test]
        fn answers_are_newest_and_settled(
            (held, r) in (1usize..6).prop_flat_map(|n| (prop::collection::vec(0u64..4, n), 1..=n)),
            whole in any::<prop::sample::Index>(),
            order in any::<u64>(),
            wants_record in any::<bool>(),
        ) {
            let n = held.len();
            let mut held = held;
            let want = if wants_record { Want::Record } else { Want::Summary };
            let mut op = ReadOp::new(n, u8::try_from(r).unwrap(), want, whole.index(n));
            // Questions on their way; which is answered next is up to `order`.
            let mut open: Vec<(usize, bool, bool)> =
                (0..n).map(|i| (i, op.is_asked_for_record(i), false)).collect();
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
                    op.on_held(replica, summary(hlc), record, &mut actions);
                }
                for action in actions {
                    match action {
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
            prop_assert!(held.iter().all(|hlc| hlc == &held[0]));
        }
    }
}
