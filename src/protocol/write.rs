//! A quorum write that no skewed clock can lose.
//!
//! The record goes to all homes at once and is done at w acknowledgements. A replica that holds
//! something newer says so; then the write is stamped anew, above that, and sent again: its caller
//! made it later than what it found, whatever the clocks say.

use super::{QuorumNotMet, Replicas, Voters, count_u8};
use crate::model::{Prior, Version};
use crate::wire::Refusal;

/// What the driver has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteAction {
    /// Move the clock past this, stamp the record anew, call [`WriteOp::on_restamped`] and send it
    /// to all replicas.
    ///
    /// Where the clock must not be moved so far, that replica is not to be believed:
    /// [`WriteOp::on_failed`] for it instead.
    Restamp {
        /// Who holds something newer.
        replica: usize,
        /// What the next stamp must exceed.
        past: Version,
    },
    /// [`WriteOp::outcome`] is there: answer the caller.
    Finished,
}

/// Whose acknowledgements a write needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WritePlan {
    /// How many of `voters` have to acknowledge.
    pub need: u8,
    /// Whose acknowledgements count. All replicas are sent the record.
    pub voters: Voters,
    /// The version exceeds what a majority held when the write began. Whatever is newer was then
    /// written beside this write, not before it: it may as well have come after, and this write
    /// counts as taken. To stamp it anew would let readers see it, then the other, then it again.
    pub is_ordered: bool,
}

/// The write of one key.
#[derive(Debug)]
pub struct WriteOp {
    plan: WritePlan,
    replicas: Replicas<State>,
    /// The versions this write has had; the last is the present one.
    versions: smallvec::SmallVec<[Version; 1]>,
    /// The newest state that this write replaced, its own earlier versions aside.
    prior: Prior,
    refusal: Option<Refusal>,
    outcome: Option<Result<Prior, QuorumNotMet>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Waiting,
    Applied,
    Failed,
}

impl WriteOp {
    /// A write to `replicas`.
    #[must_use]
    pub fn new(replicas: usize, plan: WritePlan, version: Version) -> Self {
        Self {
            plan,
            replicas: Replicas::from_elem(State::default(), replicas),
            versions: smallvec::smallvec![version],
            prior: Prior::default(),
            refusal: None,
            outcome: None,
        }
    }

    /// How many replicas are written to.
    #[must_use]
    pub fn replicas(&self) -> usize {
        self.replicas.len()
    }

    /// The version to write now.
    #[must_use]
    pub fn version(&self) -> Version {
        // `new` puts one in and none is ever taken out.
        self.versions.last().copied().unwrap_or_default()
    }

    /// A replica took the record of this version.
    pub fn on_applied(
        &mut self,
        replica: usize,
        version: Version,
        prior: Prior,
        actions: &mut Vec<WriteAction>,
    ) {
        self.note_prior(prior);
        if version == self.version() {
            self.replicas[replica] = State::Applied;
            self.advance(actions);
        }
    }

    /// A replica holds something newer than this version.
    pub fn on_superseded(
        &mut self,
        replica: usize,
        version: Version,
        by: Prior,
        actions: &mut Vec<WriteAction>,
    ) {
        if self.plan.is_ordered {
            return self.on_applied(replica, version, by, actions);
        }
        self.note_prior(by);
        if version != self.version() {
            return;
        }
        let past = by.stamp.unwrap_or_default().newest();
        match self.outcome {
            None if self.versions.len() < VERSIONS_MAX => {
                actions.push(WriteAction::Restamp { replica, past });
            }
            // Two majorities share a replica: what was acknowledged before this write began would
            // have been met among its acknowledgements. With fewer, it may only show up now.
            Some(Ok(_)) if !self.is_majority() && self.versions.len() < VERSIONS_MAX => {
                actions.push(WriteAction::Restamp { replica, past });
            }
            None => self.on_failed(replica, version, None, actions),
            Some(_) => {}
        }
    }

    /// A replica holds something newer, and this caller has a later write of the same key under
    /// way: being replaced by that one is what the caller asked for, and a new stamp would put
    /// this one after it.
    pub fn on_overtaken(
        &mut self,
        replica: usize,
        version: Version,
        by: Prior,
        actions: &mut Vec<WriteAction>,
    ) {
        self.on_applied(replica, version, by, actions);
    }

    /// The write has a new version: all replicas have to take that one.
    pub fn on_restamped(&mut self, version: Version) {
        debug_assert!(version > self.version(), "a new stamp is a later one");
        self.versions.push(version);
        self.replicas.fill(State::Waiting);
    }

    /// A replica did not take this version, and will not.
    pub fn on_failed(
        &mut self,
        replica: usize,
        version: Version,
        refusal: Option<Refusal>,
        actions: &mut Vec<WriteAction>,
    ) {
        self.refusal = self.refusal.or(refusal);
        if version == self.version() {
            self.replicas[replica] = State::Failed;
            self.advance(actions);
        }
    }

    /// Time is up.
    pub fn on_deadline(&mut self, actions: &mut Vec<WriteAction>) {
        if self.outcome.is_none() {
            self.fail(actions);
        }
    }

    /// What the caller gets: what was replaced; `None` until [`WriteAction::Finished`].
    #[must_use]
    pub const fn outcome(&self) -> Option<&Result<Prior, QuorumNotMet>> {
        self.outcome.as_ref()
    }

    /// How often it was stamped anew.
    #[must_use]
    pub fn restamps(&self) -> usize {
        self.versions.len() - 1
    }

    fn advance(&mut self, actions: &mut Vec<WriteAction>) {
        if self.outcome.is_some() {
            return;
        }
        let (applied, waiting) = (self.count(State::Applied), self.count(State::Waiting));
        if applied >= self.plan.need {
            self.outcome = Some(Ok(self.prior));
            actions.push(WriteAction::Finished);
        } else if waiting == 0 {
            // Not before: the caller is told how many acknowledged, and all have had their say.
            self.fail(actions);
        }
    }

    fn fail(&mut self, actions: &mut Vec<WriteAction>) {
        self.outcome = Some(Err(QuorumNotMet {
            need: self.plan.need,
            got: self.count(State::Applied),
            refusal: self.refusal,
        }));
        actions.push(WriteAction::Finished);
    }

    fn count(&self, state: State) -> u8 {
        let voters = self.replicas.iter().enumerate();
        let voters = voters.filter(|(number, _)| self.plan.voters.contains(*number));
        count_u8(voters, |(_, &held)| held == state)
    }

    fn note_prior(&mut self, prior: Prior) {
        let is_own = prior
            .stamp
            .is_some_and(|stamp| self.versions.contains(&stamp.value));
        if !is_own && prior.stamp > self.prior.stamp {
            self.prior = prior;
        }
    }

    fn is_majority(&self) -> bool {
        2 * usize::from(self.plan.need) > self.replicas.len()
    }
}

/// Each new stamp costs a round trip; so many in a row mean that others write this key without
/// end. The caller then learns that its write may or may not have taken effect.
const VERSIONS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{HlcTime, NodeTag, Stamp};

    fn plan(need: u8) -> WritePlan {
        WritePlan {
            need,
            voters: Voters::EVERYONE,
            is_ordered: false,
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
    fn an_ordered_write_is_not_stamped_anew() {
        let mut op = WriteOp::new(
            3,
            WritePlan {
                is_ordered: true,
                ..plan(2)
            },
            version(5),
        );
        let mut actions = Vec::new();
        op.on_applied(0, version(5), held(4), &mut actions);
        op.on_superseded(1, version(5), held(9), &mut actions);
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
}
