//! Updates of one key that depend on what it holds, by consensus of its homes.
//!
//! `CASPaxos` (Rystsov, *`CASPaxos`: Replicated State Machines without logs*, 2018): a majority promises
//! to take nothing older than a ballot and tells what it holds; the newest of that is the state. The
//! updates are made on it, and a majority takes the result under the ballot. What a majority has
//! taken is decided: whoever asks a majority later meets it. The ballot is the version of the record,
//! so that plain writes and updates of a key stand in one order.
//!
//! When some homes took a result and the others did not answer, nobody can tell yet whether it is
//! decided. Then the homes are asked for a newer promise: the state that is found either holds the
//! updates (its [`Lineage`] says so), and is decided by being taken once more, or it never will, and
//! they are made on it. So none is made twice.
//!
//! What was proposed once, or given to another home before, may still be made by whoever has it. So
//! what is told of it then goes into the lineage even if it changes nothing: nobody makes it later, on
//! another state, when the client was told already that it was not.
//!
//! Who took a result may promise the next ballot with it: then the next updates need no promise. Such
//! a [`Standing`] ballot is bound by rules:
//!
//! - It serves only updates that were begun before it. A state whose lineage was lost (a plain read
//!   repair or a copy of it carries none) is known by its version alone: updates that began later are
//!   taken for ones that are not in it. Were they, they would be made once more.
//! - It is the ballot that was promised with the result, no other: a newer one that nobody promised
//!   could pass over what another proposer has decided in between.
//! - It counts at homes that still hold the very state that it was promised with: a flush or a change
//!   of expiry in between is seen.
//! - It ends with the ring: homes of another ring have not promised it. It is used once.
//!
//! A promise tells what homes hold, and what a majority does not hold alike is not decided, also when
//! it has expired: before a reply that depends on it, it is decided by a majority, as a tombstone if
//! need be. Otherwise the state before it could be seen later.

mod lineage;

use std::sync::Arc;
use std::time::Duration;

pub use lineage::{Lineage, UpdateId};

use serde::{Deserialize, Serialize};

use super::{QuorumNotMet, Replicas, count_u8};
use crate::model::{Body, HlcTime, Millis, Record, Stamp, Version};
use crate::update::{Change, Context, Limit, Reply, State};
use crate::wire::{RESPONSE_VALUES_BYTES_MAX, Refusal};
use lineage::Verdict;

/// Updates that one coordinator sent together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Updates {
    /// Which.
    pub id: UpdateId,
    /// Nobody had them before this moment.
    pub begun: HlcTime,
    /// A home that was asked before may have made them, or may still.
    pub is_open: bool,
    /// What is to be done, in order.
    pub changes: Vec<Change>,
}

/// What became of [`Updates`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Updated {
    /// The first of them are made, as many as there are replies: at least one. The others were not
    /// begun, because the replies to these are long.
    Made(Vec<Reply>),
    /// The first of them are made, so many; what was told is no longer known. The others were not begun.
    Lost(u32),
    /// They were not made and will not be.
    NotMade(QuorumNotMet),
    /// They may have been made, or still be.
    Unknown,
    /// They were not made in this attempt. Whether in an earlier one, nobody knows any more.
    TooOld,
}

/// What the driver has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateAction {
    /// Ask all homes to promise [`UpdateOp::ballot`].
    Promise,
    /// Apply the updates to the state that is known now: [`UpdateOp::evaluation`], and then
    /// [`UpdateOp::on_evaluated`].
    Evaluate,
    /// Give all homes [`UpdateOp::proposal`].
    Accept,
    /// Others are at it as well, or homes did not answer. Wait a little, and begin again under a
    /// ballot past this one: [`UpdateOp::begin`].
    Again {
        /// What the ballot must exceed.
        past: Version,
        /// About how long to wait.
        pause: Duration,
    },
    /// All [`UpdateOp::outcomes`] are there.
    Finished,
}

/// What a home says of a key when it promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    /// What it holds.
    pub record: Option<Record>,
    /// How that came to be.
    pub lineage: Lineage,
}

impl Promise {
    /// What was written up to this version was flushed.
    pub fn on_flush(&mut self, up_to: Version) {
        let is_flushed = |record: &mut Record| record.version <= up_to;
        if self.record.take_if(is_flushed).is_some() {
            let known_from = self.lineage.known_from().max(up_to.hlc);
            self.lineage = Lineage::unknown_until(known_from);
        }
    }
}

/// What whoever made the last update knows: the state that a majority holds, which has promised a
/// ballot already.
#[derive(Debug, Clone)]
pub struct Standing {
    ballot: Version,
    promise: Promise,
    ring: u64,
}

impl Standing {
    /// The ballot that is promised.
    #[must_use]
    pub const fn ballot(&self) -> Version {
        self.ballot
    }

    /// The ring whose homes have promised it.
    #[must_use]
    pub const fn ring(&self) -> u64 {
        self.ring
    }

    /// What the majority holds.
    #[must_use]
    pub fn stamp(&self) -> Option<Stamp> {
        self.promise.record.as_ref().map(Record::stamp)
    }

    /// When the state expires.
    #[must_use]
    pub fn expires_at(&self) -> Option<Millis> {
        self.promise.record.as_ref()?.expiry.at
    }

    /// Whether the state was flushed, if that was done up to this version: it is not known then what
    /// homes hold.
    #[must_use]
    pub fn is_flushed(&self, up_to: Version) -> bool {
        let record = self.promise.record.as_ref();
        record.is_none_or(|record| record.version <= up_to)
    }
}

/// A result, to be taken by a majority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposed {
    /// The state; its version is the ballot.
    pub record: Record,
    /// How it came to be.
    pub lineage: Lineage,
    /// What a home must hold to take it, if the ballot was promised with that.
    pub base: Option<Stamp>,
    /// The ballot of what is likely to follow.
    pub next: Option<Version>,
}

/// The rules that do not change while updates are made.
#[derive(Debug, Clone, Copy)]
pub struct UpdatePlan {
    /// How many homes there are.
    pub homes: usize,
    /// How many of them are a majority.
    pub need: u8,
    /// The longest value that homes take.
    pub value_bytes_max: usize,
    /// The ring whose homes these are.
    pub ring: u64,
}

/// Updates of one key under way.
#[derive(Debug)]
pub struct UpdateOp {
    plan: UpdatePlan,
    of: Arc<Vec<Updates>>,
    ballot: Version,
    now: Millis,
    phase: Phase,
    /// What a ballot must exceed, as far as is known.
    past: Version,
    refusal: Option<Refusal>,
    refused_for_good: usize,
    rounds: u32,
    /// A result that holds some of the updates was sent to homes, and may be decided later.
    has_proposed: bool,
    most: u8,
    outcomes: Vec<Updated>,
    standing: Option<Standing>,
    /// Homes were asked to promise the ballot, and nothing was or will be proposed under it.
    is_unused: bool,
}

#[derive(Debug)]
enum Phase {
    Idle,
    Asking(Replicas<Option<Told<Promise>>>),
    /// The state is known, and what becomes of it is being evaluated.
    Evaluating {
        /// What is to be evaluated, until it is taken.
        on: Option<Promise>,
        basis: Basis,
    },
    Giving {
        proposed: Proposed,
        outcomes: Vec<Updated>,
        taken: Replicas<Option<Told<bool>>>,
    },
    Done,
}

/// Where the state comes from that updates are applied to.
#[derive(Debug, Clone, Copy)]
enum Basis {
    /// Homes have shown it under this ballot; whether a majority holds it.
    Promised { is_decided: bool },
    /// It is what the ballot was promised with; homes must still hold this.
    Standing { base: Option<Stamp> },
}

/// Updates, and the state that they are to be applied to. It needs nothing else, so that it may be
/// moved to where slow work is not in the way of others.
#[derive(Debug)]
pub struct Evaluation {
    of: Arc<Vec<Updates>>,
    on: Promise,
    ballot: Version,
    now: Millis,
    value_bytes_max: usize,
    has_proposed: bool,
}

/// What came of an [`Evaluation`].
#[derive(Debug)]
pub struct Evaluated {
    ballot: Version,
    proposed: Proposed,
    outcomes: Vec<Updated>,
    /// A majority has to take it: something is changed, or what is told has to be noted.
    is_news: bool,
}

/// A home's answer.
#[derive(Debug)]
enum Told<T> {
    Yes(T),
    No,
}

impl Updated {
    /// They were not even begun.
    #[must_use]
    pub const fn refused(refusal: Refusal) -> Self {
        Self::NotMade(QuorumNotMet {
            need: 1,
            got: 0,
            refusal: Some(refusal),
        })
    }
}

impl UpdateOp {
    /// Updates of a key, those that came first first.
    #[must_use]
    pub fn new(plan: UpdatePlan, of: Vec<Updates>) -> Self {
        let none = Version {
            hlc: HlcTime(0),
            node: crate::model::NodeTag(0),
        };
        Self {
            plan,
            of: Arc::new(of),
            ballot: none,
            now: Millis(0),
            phase: Phase::Idle,
            past: none,
            refusal: None,
            refused_for_good: 0,
            rounds: 0,
            has_proposed: false,
            most: 0,
            outcomes: Vec::new(),
            standing: None,
            is_unused: false,
        }
    }

    /// The ballot of the present round.
    #[must_use]
    pub const fn ballot(&self) -> Version {
        self.ballot
    }

    /// What the homes are to take now.
    #[must_use]
    pub const fn proposal(&self) -> Option<&Proposed> {
        match &self.phase {
            Phase::Giving { proposed, .. } => Some(proposed),
            _ => None,
        }
    }

    /// Begins a round under a new ballot.
    pub fn begin(&mut self, ballot: Version, now: Millis) -> UpdateAction {
        debug_assert!(ballot > self.past, "a ballot exceeds those before");
        debug_assert!(self.is_before(ballot), "a ballot is newer than its updates");
        (self.ballot, self.now) = (ballot, now);
        self.rounds += 1;
        self.refused_for_good = 0;
        self.is_unused = true;
        self.phase = Phase::Asking(none(self.plan.homes));
        UpdateAction::Promise
    }

    /// Begins under a ballot that a majority has promised already, if it may serve these updates.
    pub fn begin_standing(&mut self, standing: Standing, now: Millis) -> UpdateAction {
        let Standing {
            ballot,
            promise,
            ring,
        } = standing;
        (self.ballot, self.now) = (ballot, now);
        self.rounds += 1;
        if ring != self.plan.ring || !self.is_before(ballot) {
            return self.again(Duration::ZERO);
        }
        let base = promise.record.as_ref().map(Record::stamp);
        self.evaluate(promise, Basis::Standing { base })
    }

    /// A home has promised the ballot.
    pub fn on_promise(
        &mut self,
        replica: usize,
        ballot: Version,
        promise: Promise,
    ) -> Option<UpdateAction> {
        let Phase::Asking(told) = &mut self.phase else {
            return None;
        };
        if ballot != self.ballot || told[replica].is_some() {
            return None;
        }
        told[replica] = Some(Told::Yes(promise));
        let promised = count_u8(&*told, |told| matches!(told, Some(Told::Yes(_))));
        self.most = self.most.max(promised);
        if promised < self.plan.need {
            return self.settle();
        }
        let promises = std::mem::take(told)
            .into_iter()
            .filter_map(|told| match told {
                Some(Told::Yes(promise)) => Some(promise),
                Some(Told::No) | None => None,
            });
        let (newest, is_decided) = newest(promises);
        Some(self.evaluate(newest, Basis::Promised { is_decided }))
    }

    /// What is to be evaluated now; once. `now` is read after the homes have answered, so that it is
    /// later than what their clocks had passed: what anybody has seen expire has expired.
    pub fn evaluation(&mut self, now: Millis) -> Option<Evaluation> {
        let Phase::Evaluating { on, .. } = &mut self.phase else {
            return None;
        };
        self.now = self.now.max(now);
        Some(Evaluation {
            of: Arc::clone(&self.of),
            on: on.take()?,
            ballot: self.ballot,
            now: self.now,
            value_bytes_max: self.plan.value_bytes_max,
            has_proposed: self.has_proposed,
        })
    }

    /// The evaluation is done. `next`: the ballot of what is likely to follow.
    pub fn on_evaluated(
        &mut self,
        evaluated: Evaluated,
        next: impl FnOnce() -> Option<Version>,
    ) -> Option<UpdateAction> {
        let Phase::Evaluating { basis, .. } = self.phase else {
            return None;
        };
        if evaluated.ballot != self.ballot {
            return None;
        }
        let Evaluated {
            proposed,
            outcomes,
            is_news,
            ..
        } = evaluated;
        self.has_proposed |= is_news;
        Some(match basis {
            Basis::Promised { is_decided: true } if !is_news => {
                self.outcomes = outcomes;
                self.finish()
            }
            Basis::Promised { .. } => self.give(proposed, outcomes, next()),
            Basis::Standing { base } if is_news => {
                self.give(Proposed { base, ..proposed }, outcomes, next())
            }
            // What is told must be what a majority holds now.
            Basis::Standing { .. } => self.again(Duration::ZERO),
        })
    }

    /// What was written up to this version was flushed: homes that have shown it missed that, and hold
    /// nothing.
    pub fn on_flush(&mut self, up_to: Version) {
        let Phase::Asking(told) = &mut self.phase else {
            return;
        };
        for told in told.iter_mut().flatten() {
            if let Told::Yes(promise) = told {
                promise.on_flush(up_to);
            }
        }
    }

    /// A home has taken the result of this ballot; whether it promised the next one as well.
    pub fn on_accepted(
        &mut self,
        replica: usize,
        ballot: Version,
        is_next_promised: bool,
    ) -> Option<UpdateAction> {
        let Phase::Giving { taken, .. } = &mut self.phase else {
            return None;
        };
        if ballot != self.ballot || taken[replica].is_some() {
            return None;
        }
        taken[replica] = Some(Told::Yes(is_next_promised));
        let by = count_u8(&*taken, |told| matches!(told, Some(Told::Yes(_))));
        self.most = self.most.max(by);
        if by < self.plan.need {
            return self.settle();
        }
        let promised = count_u8(&*taken, |told| matches!(told, Some(Told::Yes(true))));
        if let Phase::Giving {
            proposed, outcomes, ..
        } = std::mem::replace(&mut self.phase, Phase::Done)
        {
            let next = proposed.next.filter(|_| promised >= self.plan.need);
            self.standing = next.map(|ballot| Standing {
                ring: self.plan.ring,
                ballot,
                promise: Promise {
                    record: Some(proposed.record),
                    lineage: proposed.lineage,
                },
            });
            self.outcomes = outcomes;
        }
        Some(self.finish())
    }

    /// A home holds, or has promised, something newer than this ballot.
    pub fn on_outbid(
        &mut self,
        replica: usize,
        ballot: Version,
        by: Version,
    ) -> Option<UpdateAction> {
        self.past = self.past.max(by);
        self.on_no(replica, ballot)
    }

    /// A home did not do what it was asked, and will not.
    pub fn on_failed(
        &mut self,
        replica: usize,
        ballot: Version,
        refusal: Option<Refusal>,
    ) -> Option<UpdateAction> {
        self.refusal = refusal.or(self.refusal);
        let is_final = matches!(refusal, Some(Refusal::ClockDrift | Refusal::TooBig));
        if is_final && ballot == self.ballot {
            // Nor would it take the next one.
            self.refused_for_good += 1;
            let left = self.plan.homes.saturating_sub(self.refused_for_good);
            if left < usize::from(self.plan.need) && !matches!(self.phase, Phase::Done) {
                return Some(self.on_deadline());
            }
        }
        self.on_no(replica, ballot)
    }

    /// The homes had time enough for this round.
    pub fn on_slow(&mut self) -> Option<UpdateAction> {
        match self.phase {
            Phase::Asking(_) | Phase::Giving { .. } => Some(self.again(PAUSE_MIN)),
            Phase::Idle | Phase::Evaluating { .. } | Phase::Done => None,
        }
    }

    /// Time is up, or nothing more can come of it.
    pub fn on_deadline(&mut self) -> UpdateAction {
        if !matches!(self.phase, Phase::Done) {
            let outcome = match self.has_proposed {
                true => Updated::Unknown,
                false => Updated::NotMade(QuorumNotMet {
                    need: self.plan.need,
                    got: self.most.min(self.plan.need.saturating_sub(1)),
                    refusal: self.refusal,
                }),
            };
            self.outcomes = vec![outcome; self.of.len()];
        }
        self.finish()
    }

    /// There is no ballot that homes would take.
    pub fn on_hopeless(&mut self, refusal: Refusal) -> UpdateAction {
        self.refusal = Some(refusal);
        self.on_deadline()
    }

    /// What became of the updates, in their order.
    #[must_use]
    pub fn outcomes(self) -> (Vec<(Updates, Updated)>, Option<Standing>) {
        // Nobody else has them any more, unless an evaluation was given up while it ran.
        let of = Arc::unwrap_or_clone(self.of);
        let outcomes = of.into_iter().zip(self.outcomes);
        (outcomes.collect(), self.standing)
    }

    /// The ballot that homes may have promised and that is used for nothing: they need not keep it.
    #[must_use]
    pub fn unused(&self) -> Option<Version> {
        self.is_unused.then_some(self.ballot)
    }

    /// How many rounds it took, or has taken so far.
    #[must_use]
    pub const fn rounds(&self) -> u32 {
        self.rounds
    }

    fn on_no(&mut self, replica: usize, ballot: Version) -> Option<UpdateAction> {
        if ballot != self.ballot {
            return None;
        }
        match &mut self.phase {
            Phase::Asking(told) if told[replica].is_none() => told[replica] = Some(Told::No),
            Phase::Giving { taken, .. } if taken[replica].is_none() => {
                taken[replica] = Some(Told::No);
            }
            _ => return None,
        }
        self.settle()
    }

    /// Whether a majority can still come together; if not, the round is over.
    fn settle(&mut self) -> Option<UpdateAction> {
        let no = match &self.phase {
            Phase::Asking(told) => count_u8(told, |told| matches!(told, Some(Told::No))),
            Phase::Giving { taken, .. } => count_u8(taken, |told| matches!(told, Some(Told::No))),
            Phase::Idle | Phase::Evaluating { .. } | Phase::Done => return None,
        };
        let left = self.plan.homes.saturating_sub(usize::from(no));
        (left < usize::from(self.plan.need)).then(|| self.again(PAUSE_MIN))
    }

    fn again(&mut self, pause: Duration) -> UpdateAction {
        self.phase = Phase::Idle;
        self.past = self.past.max(self.ballot);
        let pause = pause * 2_u32.saturating_pow(self.rounds.min(DOUBLINGS_MAX));
        UpdateAction::Again {
            past: self.past,
            pause,
        }
    }

    fn finish(&mut self) -> UpdateAction {
        self.phase = Phase::Done;
        UpdateAction::Finished
    }

    fn give(
        &mut self,
        proposed: Proposed,
        outcomes: Vec<Updated>,
        next: Option<Version>,
    ) -> UpdateAction {
        self.is_unused = false;
        self.phase = Phase::Giving {
            proposed: Proposed { next, ..proposed },
            outcomes,
            taken: none(self.plan.homes),
        };
        UpdateAction::Accept
    }

    fn evaluate(&mut self, on: Promise, basis: Basis) -> UpdateAction {
        let on = Some(on);
        self.phase = Phase::Evaluating { on, basis };
        UpdateAction::Evaluate
    }

    /// Whether all updates were begun before a ballot.
    fn is_before(&self, ballot: Version) -> bool {
        self.of.iter().all(|updates| updates.begun <= ballot.hlc)
    }
}

impl Evaluation {
    /// Whether it may take longer than a millisecond: then it must not be in the way of requests.
    #[must_use]
    pub fn is_slow(&self) -> bool {
        let held = self
            .on
            .record
            .as_ref()
            .map_or(0, |record| match &record.body {
                Body::Value(value) => value.len(),
                Body::Tombstone => 0,
            });
        let changes = || self.of.iter().flat_map(|updates| &updates.changes);
        // What one of them writes, the others find.
        let found = changes().fold(held, |found, change| found.saturating_add(change.bytes()));
        let count = changes().count();
        changes().any(|change| change.is_slow(found.saturating_mul(count)))
    }

    /// Applies the updates to the state, within a limit for all of them together.
    #[must_use]
    pub fn run(self, limit: &Limit) -> Evaluated {
        let record = self.on.record.as_ref();
        let mut lineage = self.on.lineage.clone();
        let context = Context {
            now: self.now,
            value_bytes_max: self.value_bytes_max,
            limit,
        };
        let mut state = State::of(record, self.now);
        let (mut is_news, mut room) = (false, REPLIES_BYTES_MAX);
        let outcomes =
            self.of
                .iter()
                .map(|updates| match lineage.verdict(updates.id, updates.begun) {
                    Verdict::Made(replies) => Updated::Made(replies),
                    Verdict::Lost(count) => Updated::Lost(count),
                    Verdict::Unknown if self.has_proposed => Updated::Unknown,
                    Verdict::Unknown => Updated::TooOld,
                    // An earlier result with them may be decided yet.
                    Verdict::NotMade if room == 0 && self.has_proposed => Updated::Unknown,
                    Verdict::NotMade if room == 0 => Updated::refused(Refusal::Busy),
                    Verdict::NotMade => {
                        state.set_changed(false);
                        let mut replies = Vec::new();
                        for change in &updates.changes {
                            let reply = change.make(&mut state, context);
                            room = room.saturating_sub(reply.bytes());
                            replies.push(reply);
                            if room == 0 {
                                break;
                            }
                        }
                        if state.is_changed() || self.is_open(updates) {
                            lineage.add(updates.id, self.ballot.hlc, &replies);
                            is_news = true;
                        }
                        Updated::Made(replies)
                    }
                });
        let outcomes = outcomes.collect();
        let proposed = Proposed {
            record: state.record(self.ballot),
            lineage,
            base: None,
            next: None,
        };
        Evaluated {
            ballot: self.ballot,
            proposed,
            outcomes,
            is_news,
        }
    }

    /// Whether updates may still be made from elsewhere, or by a result of this very operation.
    fn is_open(&self, updates: &Updates) -> bool {
        let is_look = |change: &Change| matches!(change, Change::Look);
        (updates.is_open || self.has_proposed) && !updates.changes.iter().all(is_look)
    }
}

/// The newest of what homes hold, and whether that is decided: all of them hold it, and they are a
/// majority.
fn newest(promises: impl Iterator<Item = Promise>) -> (Promise, bool) {
    let stamp = |promise: &Promise| promise.record.as_ref().map(Record::stamp);
    let mut stamps: Replicas<Option<Stamp>> = Replicas::new();
    let mut floor = HlcTime(0);
    let newest = promises
        .inspect(|promise| stamps.push(stamp(promise)))
        .reduce(|a, b| {
            // Of the same state, somebody may know more of how it came to be than the others.
            let knows_more = b.lineage.knows_more_than(&a.lineage);
            match stamp(&a).cmp(&stamp(&b)) {
                std::cmp::Ordering::Less => b,
                std::cmp::Ordering::Equal if stamp(&a).is_some() && knows_more => b,
                std::cmp::Ordering::Equal if stamp(&a).is_none() => {
                    floor = floor
                        .max(a.lineage.known_from())
                        .max(b.lineage.known_from());
                    a
                }
                _ => a,
            }
        });
    let Some(mut newest) = newest else {
        let nothing = Promise {
            record: None,
            lineage: Lineage::default(),
        };
        return (nothing, false);
    };
    if newest.record.is_none() {
        newest.lineage = Lineage::unknown_until(floor.max(newest.lineage.known_from()));
    }
    let held = stamp(&newest);
    let is_decided = stamps.iter().all(|stamp| *stamp == held);
    (newest, is_decided)
}

fn none<T>(homes: usize) -> Replicas<Option<T>> {
    (0..homes).map(|_| None).collect()
}

/// When replies have so many bytes, no further update is made together with these: a reply as long as
/// a value fits into a frame beside them.
const REPLIES_BYTES_MAX: usize = RESPONSE_VALUES_BYTES_MAX;
/// Doubled with each round: those who are at it as well get out of step.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const DOUBLINGS_MAX: u32 = 5;

#[cfg(test)]
mod tests;
