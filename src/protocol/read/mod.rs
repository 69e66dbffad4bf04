//! A quorum read with repair before the answer.
//!
//! One replica is asked for the whole record, the others for its stamp only. The answer is the
//! newest state seen, given once r replicas are known to hold it or something newer: a replica
//! that replied with less is repaired first, so that no later read at r > n / 2 goes back in time
//! (the write-back of Attiya, Bar-Noy, Dolev, *Sharing Memory Robustly*, 1995, done only where
//! replies differ). After the answer, late replies are still repaired.
//!
//! Where stand-ins may take writes in the stead of homes, a home that others hold hints for may have
//! missed what was acknowledged: it is *owed*, and counts like one that has lost its memory, only
//! when there are not enough others. Then the stand-ins are asked as well. So a read meets every
//! acknowledged write at r + w > n, as without stand-ins, if it knows who is owed: each home that it
//! counted has taken the write itself, or has been given its hint, or its stand-ins have been heard.

use super::{QuorumNotMet, Replicas, StandIn, Voters, count_u8};
use crate::model::{Millis, Record, Stamp, Summary, Version};
use crate::wire::Refusal;

/// What a read is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// The value.
    Record,
    /// That it is there, when it ends, how long it is; no value crosses the network for it.
    Summary,
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
    /// Who else is asked.
    pub stand_ins: StandIns,
    /// Homes that others hold hints for.
    pub owed: Voters,
    /// When it was begun: a replica need not hold what had ended by then.
    pub now: Millis,
}

/// When others are asked in the stead of homes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandIns {
    /// Never.
    Never,
    /// Where there are not enough homes that can be counted on.
    WhereNeeded,
    /// For every home that fails: they are to keep something for it.
    ForEachFailure,
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
    /// Find those who stand in for this home: [`ReadOp::on_stand_ins`], at once.
    StandIns {
        /// The home.
        home: usize,
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
    /// The homes, then those who stand in for some of them.
    replicas: Replicas<Replica>,
    homes: usize,
    /// Homes for which stand-ins were looked for.
    sought: u16,
    /// The newest whole record seen.
    record: Option<Record>,
    refusal: Option<Refusal>,
    outcome: Option<Result<Option<Summary>, QuorumNotMet>>,
    /// The replies differed.
    has_disagreed: bool,
    is_late: bool,
    was_sloppy: bool,
    fetches_left: u8,
}

#[derive(Debug, Clone, Copy, Default)]
struct Replica {
    state: State,
    stand_in: Option<StandIn>,
    /// Has not answered for so long that others are asked in its stead.
    is_late: bool,
    /// Known to be away.
    is_away: bool,
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
    /// A read of `homes`.
    ///
    /// The driver sends the first questions, to those that [`ReadOp::is_asked`] names.
    #[must_use]
    pub fn new(homes: usize, plan: ReadPlan) -> Self {
        let mut states = Replicas::from_elem(Replica::default(), homes);
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
            homes,
            sought: 0,
            record: None,
            refusal: None,
            outcome: None,
            has_disagreed: false,
            is_late: false,
            was_sloppy: false,
            fetches_left,
        };
        if plan.first < homes {
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

    /// Whether it is to take effect at one moment.
    #[must_use]
    pub const fn is_strict(&self) -> bool {
        self.plan.strict
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
        let is_owed = !self.plan.strict && self.plan.owed.contains(replica);
        let is_sure = is_sure && !is_owed;
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

    /// What was written up to this version was flushed: replicas that have shown it missed that, and
    /// hold nothing. Nobody knows better than who knows of the flush.
    pub fn on_flush(&mut self, up_to: Version) {
        let is_flushed = |stamp: Stamp| stamp.value <= up_to;
        for replica in &mut self.replicas {
            if let State::Holds { held, .. } = &mut replica.state {
                *held = held.filter(|summary| !is_flushed(summary.stamp));
            }
            replica.repairing = replica.repairing.filter(|stamp| !is_flushed(*stamp));
        }
        let record = self.record.take();
        self.record = record.filter(|record| !is_flushed(record.stamp()));
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
        let stand_in = self.replicas[replica].stand_in;
        self.replicas[replica] = Replica {
            state: State::Failed,
            stand_in,
            ..Replica::default()
        };
        let is_replaced = self.plan.stand_ins == StandIns::ForEachFailure;
        if stand_in.is_none() && is_replaced && !self.has_failed() {
            self.seek(replica, actions);
        }
        self.advance(actions);
    }

    /// A replica did not take the record it was repaired with: it has promised to take nothing older than
    /// what an update will make, perhaps without that record.
    ///
    /// It fails, and nobody stands in for it: only replicas that hold the record confirm it.
    pub fn on_promised(&mut self, replica: usize, actions: &mut Vec<ReadAction>) {
        self.plan.stand_ins = StandIns::Never;
        self.on_failed(replica, None, actions);
    }

    /// A home is known to be away: it may still answer, but it is not waited for.
    pub fn on_away(&mut self, home: usize, actions: &mut Vec<ReadAction>) {
        self.replicas[home].is_away = true;
        self.on_late(home, actions);
    }

    /// A home is late, and so is who was asked in its stead: others are asked. Who stands in and
    /// knows nothing of the key does not count for a home that is only late, before time is up.
    pub fn on_late(&mut self, home: usize, actions: &mut Vec<ReadAction>) {
        if self.outcome.is_some() || self.plan.stand_ins == StandIns::Never {
            return;
        }
        let mut is_news = false;
        for (number, replica) in self.replicas.iter_mut().enumerate() {
            let is_concerned = replica.stand_in.map_or(number, |s| s.home) == home;
            if is_concerned && replica.is_waited_for() {
                replica.is_late = true;
                is_news = true;
            }
        }
        if is_news && self.plan.stand_ins == StandIns::ForEachFailure {
            self.seek(home, actions);
        }
        if is_news {
            self.advance(actions);
        }
    }

    /// These stand in for a home, and are asked. Their numbers are the next ones, in this order.
    pub fn on_stand_ins(
        &mut self,
        stand_ins: impl IntoIterator<Item = StandIn>,
        actions: &mut Vec<ReadAction>,
    ) {
        let fetching = self.wants_record();
        let replicas = stand_ins.into_iter().map(|stand_in| Replica {
            state: State::Waiting,
            stand_in: Some(stand_in),
            fetching,
            ..Replica::default()
        });
        let before = self.replicas.len();
        self.replicas.extend(replicas);
        if self.replicas.len() == before {
            self.advance(actions);
        }
    }

    /// How many replicas there are, stand-ins included.
    #[must_use]
    pub fn replicas(&self) -> usize {
        self.replicas.len()
    }

    /// Who stands in as this replica, if it is no home.
    #[must_use]
    pub fn stand_in(&self, replica: usize) -> Option<StandIn> {
        self.replicas[replica].stand_in
    }

    /// Whether stand-ins made up the quorum that the caller was answered with.
    #[must_use]
    pub const fn was_sloppy(&self) -> bool {
        self.was_sloppy
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
        let agreeing = self.count(|replica| replica.agrees(newest, is_over));
        let replied = self.count(Replica::has_replied);
        let disagree = agreeing < replied;
        let holders = agreeing + self.stood_in(replied, |r| r.agrees(newest, is_over));
        self.has_disagreed |= disagree;
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
        let mut waiting = self.count(Replica::is_waited_for);
        while sure + waiting < self.plan.need
            && let Some(next) = self.next_idle()
        {
            self.ask(next, actions);
            waiting += 1;
        }
        if sure + waiting < self.plan.need && !self.is_late && self.seek_all(actions) {
            return false;
        }
        let is_heard = |replica: &Replica| replica.stand_in.is_none() || !replica.is_waited_for();
        if (waiting > 0 || !self.replicas.iter().all(is_heard)) && !self.is_late {
            return false;
        }
        if !self.plan.strict && self.replied_or_stood_in() >= self.plan.need {
            return true;
        }
        if !self.replicas.iter().any(Replica::is_waiting) && self.outcome.is_none() {
            self.fail(actions);
        }
        false
    }

    /// Looks for stand-ins for all homes that cannot be counted on, once each; whether there are
    /// any to look for.
    fn seek_all(&mut self, actions: &mut Vec<ReadAction>) -> bool {
        let before = actions.len();
        for home in 0..self.homes {
            let is_owed = self.plan.owed.contains(home);
            let replica = self.replicas[home];
            let is_missing = matches!(replica.state, State::Failed) || replica.is_late;
            let counts = !matches!(replica.state, State::Out);
            if counts && (is_missing || is_owed) {
                self.seek(home, actions);
            }
        }
        actions.len() > before
    }

    fn seek(&mut self, home: usize, actions: &mut Vec<ReadAction>) {
        let bit = 1 << (home % 16);
        if self.plan.stand_ins != StandIns::Never && self.sought & bit == 0 {
            self.sought |= bit;
            actions.push(ReadAction::StandIns { home });
        }
    }

    /// Stand-ins of which this is true, as many as there are homes that have not replied.
    fn stood_in(&self, replied: u8, of: impl Fn(&Replica) -> bool) -> u8 {
        let counts = |replica: &&Replica| replica.stand_in.is_some_and(|s| s.counts) && of(replica);
        let stand_ins = self.replicas[self.homes..].iter().filter(counts).count();
        let voters = self.count(|replica| !matches!(replica.state, State::Out));
        u8::try_from(stand_ins)
            .unwrap_or(u8::MAX)
            .min(voters.saturating_sub(replied))
    }

    /// Homes that have replied, or in whose stead somebody has.
    fn replied_or_stood_in(&self) -> u8 {
        let replied = self.count(Replica::has_replied);
        let any = self.stood_in(replied, Replica::has_replied);
        let telling = self.stood_in(replied, |replica| replica.held().is_some());
        if replied == 0 && self.plan.stand_ins == StandIns::WhereNeeded {
            // A node that is cut off from all homes must not say that there is nothing.
            return telling;
        }
        // Those who keep something for a home acknowledge that, whatever they know of the key.
        if self.is_late || self.plan.stand_ins == StandIns::ForEachFailure {
            return replied + any;
        }
        let is_gone = |replica: &Replica| {
            matches!(replica.state, State::Failed) || (replica.is_waiting() && replica.is_away)
        };
        replied + any.min(telling + self.count(is_gone))
    }

    const fn has_failed(&self) -> bool {
        matches!(self.outcome, Some(Err(_)))
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
            // What a stand-in keeps is for a home, not for itself.
            let is_stale = replica.stand_in.is_none()
                && replica.has_replied()
                && !replica.agrees(newest, is_over);
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
        self.was_sloppy = self.count(Replica::has_replied) < self.plan.need;
        self.outcome = Some(Ok(holder.and_then(Replica::held)));
        actions.push(ReadAction::Finished);
    }

    fn fail(&mut self, actions: &mut Vec<ReadAction>) {
        let got = if self.plan.strict {
            self.count(Replica::is_sure)
        } else {
            self.replied_or_stood_in()
        };
        let error = QuorumNotMet {
            need: self.plan.need,
            got,
            refusal: self.refusal,
        };
        self.outcome = Some(Err(error));
        actions.push(ReadAction::Finished);
    }

    /// Homes of which this is true.
    fn count(&self, of: impl Fn(&Replica) -> bool) -> u8 {
        count_u8(&self.replicas[..self.homes], of)
    }

    /// The newest state that a replica holds, so far.
    #[must_use]
    pub fn newest(&self) -> Option<Summary> {
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

    const fn is_waited_for(&self) -> bool {
        self.is_waiting() && !self.is_late
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
mod tests;
