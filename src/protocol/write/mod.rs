//! A quorum write that no skewed clock can lose.
//!
//! The record goes to all homes at once and is done at w acknowledgements. A replica that holds
//! something newer says so; then the write is stamped anew, above that, and sent again: its caller
//! made it later than what it found, whatever the clocks say.
//!
//! Sloppy quorum (*Dynamo*, Vogels and others, 2007): a home that fails, or is late, is replaced by a
//! stand-in, which keeps the record for it and whose acknowledgement counts in its stead. A home and
//! its stand-in count once.

use super::{QuorumNotMet, Replicas, StandIn, Voters};
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
    /// Find somebody to stand in for this home: [`WriteOp::on_stand_in`], at once.
    StandIn {
        /// The home.
        home: usize,
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
    /// Whether others may stand in for homes.
    pub is_sloppy: bool,
}

/// The write of one key.
#[derive(Debug, Clone)]
pub struct WriteOp {
    plan: WritePlan,
    /// The homes, then those who stand in for some of them, or did.
    replicas: Replicas<Replica>,
    homes: usize,
    /// Homes without anybody left to stand in for them.
    forsaken: u16,
    /// The versions this write has had; the last is the present one.
    versions: smallvec::SmallVec<[Version; 1]>,
    /// The newest state that this write replaced, its own earlier versions aside.
    prior: Prior,
    refusal: Option<Refusal>,
    outcome: Option<Result<Prior, QuorumNotMet>>,
    was_sloppy: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Replica {
    state: State,
    stand_in: Option<StandIn>,
    /// Has not answered for so long that others are asked as well.
    is_late: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Waiting,
    Applied,
    Failed,
}

impl WriteOp {
    /// A write to `homes`.
    #[must_use]
    pub fn new(homes: usize, plan: WritePlan, version: Version) -> Self {
        Self {
            plan,
            replicas: Replicas::from_elem(Replica::default(), homes),
            homes,
            forsaken: 0,
            versions: smallvec::smallvec![version],
            prior: Prior::default(),
            refusal: None,
            outcome: None,
            was_sloppy: false,
        }
    }

    /// This write is another try of one that too few homes have taken: what that one left is not
    /// what this one replaces.
    pub fn follow(&mut self, earlier: &Self) {
        let known = earlier.versions.len().min(FOLLOWED_MAX);
        let known = &earlier.versions[earlier.versions.len() - known..];
        self.versions.insert_many(0, known.iter().copied());
        self.prior = earlier.prior;
    }

    /// How many homes are written to.
    #[must_use]
    pub const fn homes(&self) -> usize {
        self.homes
    }

    /// All that stand in or were asked to, by number.
    pub fn stand_ins(&self) -> impl Iterator<Item = (usize, StandIn)> {
        let replicas = self.replicas.iter().enumerate();
        replicas.filter_map(|(number, replica)| Some((number, replica.stand_in?)))
    }

    /// Who stands in as this replica, if it is no home.
    #[must_use]
    pub fn stand_in(&self, replica: usize) -> Option<StandIn> {
        self.replicas[replica].stand_in
    }

    /// Whether this replica is to be sent the record, and has not answered.
    #[must_use]
    pub fn is_asked(&self, replica: usize) -> bool {
        self.replicas[replica].state == State::Waiting
    }

    /// Whether stand-ins made up the quorum that the caller was told of.
    #[must_use]
    pub const fn was_sloppy(&self) -> bool {
        self.was_sloppy
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
            let replica = &mut self.replicas[replica];
            (replica.state, replica.is_late) = (State::Applied, false);
            self.advance(actions);
        }
    }

    /// What was written up to this version was flushed: it was not there before this write.
    pub fn on_flush(&mut self, up_to: Version) {
        if self.prior.stamp.is_some_and(|stamp| stamp.value <= up_to) {
            self.prior = Prior::default();
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

    /// A replica has promised to take nothing older than a ballot, for the sake of an update: this
    /// write is to come after that one.
    pub fn on_promised(
        &mut self,
        replica: usize,
        version: Version,
        ballot: Version,
        actions: &mut Vec<WriteAction>,
    ) {
        if version != self.version() {
            return;
        }
        if self.outcome.is_none() && self.versions.len() < VERSIONS_MAX {
            let past = ballot;
            actions.push(WriteAction::Restamp { replica, past });
        } else {
            self.on_failed(replica, version, None, actions);
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
        for replica in &mut self.replicas {
            // A stand-in that failed was replaced by another.
            if replica.stand_in.is_none() || replica.state != State::Failed {
                (replica.state, replica.is_late) = (State::Waiting, false);
            }
        }
    }

    /// A home is late, or known to be away, and so is who was asked in its stead: they may still
    /// answer, but somebody else is asked too.
    pub fn on_late(&mut self, home: usize, actions: &mut Vec<WriteAction>) {
        let mut is_missing = false;
        for (number, replica) in self.replicas.iter_mut().enumerate() {
            let is_concerned = replica.stand_in.map_or(number, |s| s.home) == home;
            if is_concerned && replica.state == State::Waiting {
                replica.is_late = true;
                is_missing = true;
            }
        }
        if is_missing {
            self.seek(home, actions);
        }
    }

    /// Somebody stands in for a home, and is sent the record; `None`: there is nobody left. The
    /// stand-in's number.
    pub fn on_stand_in(
        &mut self,
        home: usize,
        stand_in: Option<StandIn>,
        actions: &mut Vec<WriteAction>,
    ) -> Option<usize> {
        if stand_in.is_some() {
            self.replicas.push(Replica {
                state: State::Waiting,
                stand_in,
                is_late: false,
            });
            return Some(self.replicas.len() - 1);
        }
        self.forsaken |= 1 << (home % 16);
        self.advance(actions);
        None
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
            self.replicas[replica].state = State::Failed;
            // Nobody else would take it either, or it is for other homes.
            let is_final = matches!(
                refusal,
                Some(Refusal::ClockDrift | Refusal::TooBig | Refusal::OtherRing)
            );
            let home = self.replicas[replica].stand_in.map_or(replica, |s| s.home);
            if is_final || !self.seek(home, actions) {
                self.advance(actions);
            }
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

    /// Looks for a stand-in if there is to be one; whether there is.
    fn seek(&self, home: usize, actions: &mut Vec<WriteAction>) -> bool {
        let may = self.plan.is_sloppy
            && self.forsaken & (1 << (home % 16)) == 0
            // The caller was told that it failed: it must not take effect more than it has.
            && !matches!(self.outcome, Some(Err(_)))
            && !self.is_stood_in_for(home);
        if may {
            actions.push(WriteAction::StandIn { home });
        }
        may
    }

    fn is_stood_in_for(&self, home: usize) -> bool {
        self.replicas.iter().any(|replica| {
            replica.state != State::Failed
                && !replica.is_late
                && replica
                    .stand_in
                    .is_some_and(|stand_in| stand_in.home == home)
        })
    }

    fn advance(&mut self, actions: &mut Vec<WriteAction>) {
        if self.outcome.is_some() {
            return;
        }
        if self.count(State::Applied) >= self.plan.need {
            self.was_sloppy = self.homes_that_are(State::Applied) < self.plan.need;
            self.outcome = Some(Ok(self.prior));
            actions.push(WriteAction::Finished);
        } else if !self.replicas.iter().any(|r| r.state == State::Waiting) {
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

    /// Homes in this state, by themselves or by a stand-in that counts.
    fn count(&self, state: State) -> u8 {
        if self.replicas.len() == self.homes {
            return self.homes_that_are(state);
        }
        let is_by_stand_in = |home: usize| {
            self.replicas.iter().any(|replica| {
                let stand_in = replica.stand_in.filter(|stand_in| stand_in.counts);
                replica.state == state && stand_in.is_some_and(|stand_in| stand_in.home == home)
            })
        };
        let voters = (0..self.homes).filter(|&home| self.plan.voters.contains(home));
        let counted =
            voters.filter(|&home| self.replicas[home].state == state || is_by_stand_in(home));
        u8::try_from(counted.count()).unwrap_or(u8::MAX)
    }

    fn homes_that_are(&self, state: State) -> u8 {
        let homes = self.replicas[..self.homes].iter().enumerate();
        let counted = homes
            .filter(|(home, replica)| self.plan.voters.contains(*home) && replica.state == state);
        u8::try_from(counted.count()).unwrap_or(u8::MAX)
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
        2 * usize::from(self.plan.need) > self.homes
    }
}

/// Each new stamp costs a round trip; so many in a row mean that others write this key without
/// end. The caller then learns that its write may or may not have taken effect.
const VERSIONS_MAX: usize = 32;

/// Versions of earlier tries that are remembered: a write may have many more of its own.
const FOLLOWED_MAX: usize = 16;

#[cfg(test)]
mod tests;
