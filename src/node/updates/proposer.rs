//! Makes the updates of keys, one key's one after the other, for whoever asks.
//!
//! Any node may do it for any key at any time; that one home does it for all is what keeps proposers
//! from getting in each other's way, and what lets updates that come together be made together.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::homes::{Homes, Told};
use super::inbox::Inbox;
use super::post::Post;
use super::reach;
use crate::env::{ComputeError, Env};
use crate::model::{HashedKey, Hlc, HlcTime, KeyHasher, NodeTag, Version};
use crate::net::Transport;
use crate::node::hedging::Hedging;
use crate::node::replica::Replica;
use crate::protocol::{Standing, UpdateAction, UpdateOp, UpdatePlan, Updated, Updates};
use crate::ring::View;
use crate::update::Limit;
use crate::wire::Refusal;

/// What a proposer is made of.
#[derive(Debug)]
pub(in crate::node) struct Parts {
    pub(in crate::node) self_tag: NodeTag,
    /// What its ballots carry.
    pub(in crate::node) writer: NodeTag,
    /// How long updates may take.
    pub(in crate::node) timeout: Duration,
    pub(in crate::node) env: Env,
    pub(in crate::node) view: watch::Receiver<Arc<View>>,
    pub(in crate::node) replica: Arc<Replica>,
    pub(in crate::node) clock: Arc<Hlc>,
    pub(in crate::node) hasher: KeyHasher,
    pub(in crate::node) transport: Arc<dyn Transport>,
    pub(in crate::node) hedging: Arc<Hedging>,
}

/// Makes updates. Clones share their queues.
#[derive(Clone)]
pub struct Proposer(Arc<Inner>);

struct Inner {
    parts: Arc<Parts>,
    post: Arc<Post>,
    keys: Mutex<HashMap<Bytes, Queue>>,
    /// The last moment for which a ballot was reserved.
    reserved: AtomicU64,
    stats: ProposerStats,
}

/// Facts that a proposer counts.
#[derive(Debug, Default)]
pub struct ProposerStats {
    /// Updates that were made, and those that turned out to change nothing.
    pub made: AtomicU64,
    /// Updates of which it is not known whether they were made.
    pub uncertain: AtomicU64,
    /// Updates that were not made.
    pub not_made: AtomicU64,
    /// Times that homes were asked for a promise.
    pub promises_asked: AtomicU64,
    /// Times that homes were given a result to take.
    pub results_given: AtomicU64,
    /// Rounds that had to be begun again.
    pub rounds_again: AtomicU64,
}

/// Updates of one key that wait for their turn.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    wake: Arc<Notify>,
}

#[derive(Debug)]
struct Waiting {
    updates: Updates,
    /// They are not begun after this moment, by the clock of versions.
    until: HlcTime,
    tell: oneshot::Sender<Updated>,
}

/// Updates of one key being made.
struct Round<'a> {
    key: &'a Bytes,
    homes: Homes<'a>,
    deadline: Instant,
    /// More is waiting, or was a moment ago.
    is_busy: bool,
}

impl Proposer {
    pub(in crate::node) fn new(parts: Arc<Parts>) -> Self {
        let post = Arc::<Post>::default();
        let posting = Arc::clone(&post).run(Arc::clone(&parts));
        parts.env.tasks.spawn(posting);
        Self(Arc::new(Inner {
            parts,
            post,
            keys: Mutex::default(),
            reserved: AtomicU64::new(0),
            stats: ProposerStats::default(),
        }))
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> &ProposerStats {
        &self.0.stats
    }

    /// Queues updates of a key. They are not begun after `until`.
    pub fn submit(
        &self,
        key: Bytes,
        updates: Updates,
        until: HlcTime,
    ) -> Result<oneshot::Receiver<Updated>, Refusal> {
        let (tell, told) = oneshot::channel();
        let waiting = Waiting {
            updates,
            until,
            tell,
        };
        let mut keys = self.keys();
        if let Some(queue) = keys.get_mut(&key) {
            if queue.waiting.len() >= WAITING_MAX {
                return Err(Refusal::Busy);
            }
            queue.waiting.push_back(waiting);
            queue.wake.notify_one();
            return Ok(told);
        }
        if keys.len() >= KEYS_MAX {
            return Err(Refusal::Busy);
        }
        let mut queue = Queue::default();
        queue.waiting.push_back(waiting);
        let wake = Arc::clone(&queue.wake);
        keys.insert(key.clone(), queue);
        drop(keys);
        let this = self.clone();
        let tasks = &self.0.parts.env.tasks;
        tasks.spawn(async move { this.work(key, wake).await });
        Ok(told)
    }

    /// Works a key's queue off, until nothing has come for a while.
    async fn work(&self, key: Bytes, wake: Arc<Notify>) {
        let (mut standing, mut turns) = (None::<Standing>, 0_u32);
        loop {
            let batch = self.take(&key);
            if !batch.is_empty() {
                standing = self.make(&key, batch, standing, turns > 0).await;
                turns = turns.saturating_add(1);
                continue;
            }
            // Where many keys are updated, most are so once in a while: it is worth to wait for those only
            // that others follow on.
            let keys = self.keys().len();
            let is_followed = turns > 1 || standing.is_some() || keys <= FEW_KEYS;
            if keys <= LINGERING_MAX
                && is_followed
                && timeout(LINGER, wake.notified()).await.is_ok()
            {
                continue;
            }
            if let Some(standing) = standing.take() {
                self.release(&key, &standing);
            }
            let mut keys = self.keys();
            if keys.get(&key).is_some_and(|queue| queue.waiting.is_empty()) {
                keys.remove(&key);
                return;
            }
        }
    }

    /// Tells the homes that a ballot that stood is used for nothing.
    fn release(&self, key: &Bytes, standing: &Standing) {
        let parts = &self.0.parts;
        let view = Arc::clone(&parts.view.borrow());
        let homes = Homes::new((parts, &self.0.post), &view, self.hashed(key, &view));
        homes.release(standing.ballot());
    }

    fn hashed<'a>(&self, key: &'a Bytes, view: &View) -> HashedKey<'a> {
        let hash = self.0.parts.hasher.hash(key);
        HashedKey {
            bytes: key,
            hash,
            partition: view.params().partitions.of(hash),
        }
    }

    /// As many of those that wait as are made together.
    fn take(&self, key: &Bytes) -> Vec<Waiting> {
        let mut keys = self.keys();
        let Some(queue) = keys.get_mut(key) else {
            return Vec::new();
        };
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(waiting) = queue.waiting.front() {
            let changes = waiting.updates.changes.iter();
            bytes += changes.map(crate::update::Change::bytes).sum::<usize>();
            if !taken.is_empty() && (bytes > TOGETHER_BYTES_MAX || taken.len() >= TOGETHER_MAX) {
                break;
            }
            taken.extend(queue.waiting.pop_front());
        }
        taken
    }

    /// Makes updates together and tells those who wait.
    async fn make(
        &self,
        key: &Bytes,
        batch: Vec<Waiting>,
        standing: Option<Standing>,
        was_busy: bool,
    ) -> Option<Standing> {
        let parts = &self.0.parts;
        let now = parts.clock.read(parts.env.clock.wall());
        let mut timely = Vec::with_capacity(batch.len());
        for waiting in batch {
            let refusal = match self.observe_moment(waiting.updates.begun) {
                Ok(()) if waiting.until > now => {
                    timely.push(waiting);
                    continue;
                }
                Ok(()) => Refusal::TooLate,
                Err(refusal) => refusal,
            };
            // Whoever waited may have given up.
            let _gone = waiting.tell.send(Updated::refused(refusal));
        }
        if timely.is_empty() {
            return standing;
        }
        let view = Arc::clone(&parts.view.borrow());
        let hashed = self.hashed(key, &view);
        let reach = reach(&view, hashed.hash, parts.self_tag);
        if reach.got < reach.need {
            // Nothing can be decided: whoever waits is to know at once, and that nothing was begun.
            for waiting in timely {
                let _gone = waiting.tell.send(Updated::NotMade(reach));
            }
            return standing;
        }
        let homes = Homes::new((parts, &self.0.post), &view, hashed);
        let plan = UpdatePlan {
            homes: homes.count(),
            need: reach.need,
            value_bytes_max: parts.replica.value_bytes_max(),
            ring: homes.ring(),
        };
        let (updates, tells): (Vec<_>, Vec<_>) = timely
            .into_iter()
            .map(|waiting| (waiting.updates, waiting.tell))
            .unzip();
        let round = Round {
            key,
            homes,
            deadline: parts.env.clock.monotonic() + parts.timeout,
            is_busy: was_busy || tells.len() > 1,
        };
        let mut op = UpdateOp::new(plan, updates);
        self.drive(&mut op, &round, standing).await;
        if let Some(ballot) = op.unused() {
            round.homes.release(ballot);
        }
        let (outcomes, standing) = op.outcomes();
        for (tell, (updates, updated)) in tells.into_iter().zip(outcomes) {
            self.count(&updates, &updated);
            let _gone = tell.send(updated);
        }
        standing
    }

    /// Carries out what the state machine asks for, until it is finished.
    async fn drive(&self, op: &mut UpdateOp, round: &Round<'_>, standing: Option<Standing>) {
        let parts = &self.0.parts;
        let told = Inbox::default();
        let mut action = match standing.filter(|standing| self.stands(standing, round)) {
            Some(standing) => op.begin_standing(standing, self.now()),
            None => UpdateAction::Again {
                past: Version::default(),
                pause: Duration::ZERO,
            },
        };
        let mut is_first = true;
        loop {
            let round_end = (parts.env.clock.monotonic() + parts.timeout / 3).min(round.deadline);
            let mut own = None;
            match action {
                UpdateAction::Finished => return,
                UpdateAction::Again { past, pause } => {
                    if !is_first {
                        self.0.stats.rounds_again.fetch_add(1, Ordering::Relaxed);
                        self.pause(pause, round).await;
                    }
                    if parts.env.clock.monotonic() >= round.deadline {
                        op.on_deadline();
                        return;
                    }
                    let ballot = match self.stamp_past(past) {
                        Ok(ballot) => ballot,
                        Err(refusal) => {
                            op.on_hopeless(refusal);
                            return;
                        }
                    };
                    action = op.begin(ballot, self.now());
                    is_first = false;
                    continue;
                }
                UpdateAction::Evaluate => {
                    action = self.evaluate(op, round).await;
                    continue;
                }
                UpdateAction::Promise => {
                    self.0.stats.promises_asked.fetch_add(1, Ordering::Relaxed);
                    own = round.homes.ask_promise(op.ballot(), round_end, &told);
                }
                UpdateAction::Accept => {
                    self.0.stats.results_given.fetch_add(1, Ordering::Relaxed);
                    if let Some(proposed) = op.proposal() {
                        own = round.homes.give(proposed, round_end, &told);
                    }
                }
            }
            is_first = false;
            // This node's own copy answers at once.
            let asked = own.and_then(|own| self.on_told(op, own, round));
            action = match asked {
                Some(action) => action,
                None => self.hear(op, round, round_end, &told).await,
            };
        }
    }

    /// Applies the updates to the state that is known: at once if that is short, and on the pool for
    /// slow work otherwise, so that no request of another key waits for a script of this one.
    async fn evaluate(&self, op: &mut UpdateOp, round: &Round<'_>) -> UpdateAction {
        let Some(evaluation) = op.evaluation(self.now()) else {
            return op.on_deadline();
        };
        let ballot = op.ballot();
        let evaluated = if evaluation.is_slow() {
            let env = &self.0.parts.env;
            let work = env.compute_update(move |limit| evaluation.run(limit));
            match timeout_at(round.deadline, work).await {
                Ok(Ok(evaluated)) => evaluated,
                // Nothing of it was proposed.
                Ok(Err(ComputeError::Busy | ComputeError::Ended)) => {
                    return op.on_hopeless(Refusal::Busy);
                }
                Err(_elapsed) => return op.on_deadline(),
            }
        } else {
            evaluation.run(&Limit::of_steps())
        };
        let action = op.on_evaluated(evaluated, || self.next(round, ballot));
        action.unwrap_or_else(|| op.on_deadline())
    }

    /// Waits for the answers of homes, until they make a difference.
    async fn hear(
        &self,
        op: &mut UpdateOp,
        round: &Round<'_>,
        round_end: Instant,
        told: &Inbox,
    ) -> UpdateAction {
        loop {
            let action = match told.next(round_end).await {
                Some(answer) => self.on_told(op, answer, round),
                None if round_end >= round.deadline => Some(op.on_deadline()),
                None => op.on_slow(),
            };
            if let Some(action) = action {
                return action;
            }
        }
    }

    fn on_told(&self, op: &mut UpdateOp, answer: Told, round: &Round<'_>) -> Option<UpdateAction> {
        match answer {
            Told::Promised {
                home,
                ballot,
                mut promise,
            } => {
                if let Some(up_to) = self.0.parts.replica.flush_of(round.key) {
                    promise.on_flush(up_to);
                    op.on_flush(up_to);
                }
                let newest = promise
                    .record
                    .as_ref()
                    .map(|record| record.stamp().newest());
                match self.observe(newest.unwrap_or_default()) {
                    Ok(()) => op.on_promise(home, ballot, promise),
                    Err(refusal) => op.on_failed(home, ballot, Some(refusal)),
                }
            }
            Told::Accepted {
                home,
                ballot,
                is_next_promised,
            } => op.on_accepted(home, ballot, is_next_promised),
            Told::Outbid { home, ballot, by } => match self.observe(by) {
                Ok(()) => op.on_outbid(home, ballot, by),
                Err(refusal) => op.on_failed(home, ballot, Some(refusal)),
            },
            Told::Failed {
                home,
                ballot,
                refusal,
            } => op.on_failed(home, ballot, refusal),
        }
    }

    /// The ballot of what is likely to follow, if more is.
    ///
    /// It is a little ahead of the clock: it serves only updates that begin before it, and those are to
    /// come yet. It is never taken from the hybrid clock, which would run away with it round by round,
    /// and is of a writer of its own, so that nothing else has that version.
    fn next(&self, round: &Round<'_>, present: Version) -> Option<Version> {
        let is_waited_for = || {
            let keys = self.keys();
            let queue = keys.get(round.key);
            queue.is_some_and(|queue| !queue.waiting.is_empty())
        };
        if !round.is_busy && !is_waited_for() {
            return None;
        }
        let parts = &self.0.parts;
        let ahead = parts.env.clock.wall().saturating_add(RESERVED_AHEAD);
        let least = HlcTime::from_millis(ahead)
            .0
            .max(present.hlc.0 + RESERVED_STEP);
        let step = |last: u64| Some(least.max(last + 1));
        // `step` always returns Some, so both arms hold the value before the update.
        let reserved = &self.0.reserved;
        let (Ok(last) | Err(last)) =
            reserved.fetch_update(Ordering::AcqRel, Ordering::Acquire, step);
        Some(Version {
            hlc: HlcTime(least.max(last + 1)),
            node: NodeTag(!parts.writer.0),
        })
    }

    /// Whether a promise is young enough to count on, and the state is still what this node holds: after
    /// a plain write nobody would take what is made of the one before, and whether it was taken by
    /// some could not be known.
    fn stands(&self, standing: &Standing, round: &Round<'_>) -> bool {
        let parts = &self.0.parts;
        if !round.homes.may_be_held(standing.stamp()) {
            return false;
        }
        let flushed = parts.replica.flush_of(round.key);
        if flushed.is_some_and(|up_to| standing.is_flushed(up_to)) {
            return false;
        }
        let now = parts.clock.read(parts.env.clock.wall()).millis();
        let ballot = standing.ballot();
        let age_ms = now.0.saturating_sub(ballot.hlc.millis().0);
        let wall = parts.env.clock.wall();
        let is_believable = parts.clock.check(ballot.hlc, wall).is_ok()
            && parts.replica.may_keep(ballot, parts.env.clock.monotonic());
        // Nobody is asked before it is evaluated: another node's clock may be past the expiry already.
        let may_have_expired = standing
            .expires_at()
            .is_some_and(|at| at > now && at.0 - now.0 < EXPIRY_APART_MS);
        is_believable && age_ms < STANDING_MS_MAX && !may_have_expired
    }

    /// Waits about so long: others may be at it as well.
    async fn pause(&self, about: Duration, round: &Round<'_>) {
        if about.is_zero() {
            return;
        }
        let env = &self.0.parts.env;
        let pause = about.mul_f64(0.5 + env.rng.fraction());
        let until = (env.clock.monotonic() + pause).min(round.deadline);
        tokio::time::sleep_until(until).await;
    }

    fn count(&self, updates: &Updates, updated: &Updated) {
        let stats = &self.0.stats;
        let counter = match updated {
            Updated::Made(_) | Updated::Lost(_) => &stats.made,
            Updated::NotMade(_) => &stats.not_made,
            Updated::Unknown => &stats.uncertain,
            Updated::TooOld => return,
        };
        counter.fetch_add(updates.changes.len() as u64, Ordering::Relaxed);
    }

    fn now(&self) -> crate::model::Millis {
        let parts = &self.0.parts;
        parts.clock.read(parts.env.clock.wall()).millis()
    }

    fn stamp(&self) -> Version {
        let parts = &self.0.parts;
        Version {
            hlc: parts.clock.tick(parts.env.clock.wall()),
            node: parts.replica.writer(parts.writer),
        }
    }

    fn stamp_past(&self, past: Version) -> Result<Version, Refusal> {
        self.observe(past)?;
        let ballot = self.stamp();
        let now = self.0.parts.env.clock.monotonic();
        // Nobody else would promise it, and here it would be in the way of others.
        if !self.0.parts.replica.may_keep(ballot, now) {
            return Err(Refusal::ClockDrift);
        }
        Ok(ballot)
    }

    fn observe(&self, version: Version) -> Result<(), Refusal> {
        self.observe_moment(version.hlc)
    }

    fn observe_moment(&self, moment: HlcTime) -> Result<(), Refusal> {
        let parts = &self.0.parts;
        let seen = parts.clock.observe(moment, parts.env.clock.wall());
        seen.map_err(|_drift| Refusal::ClockDrift)
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<Bytes, Queue>> {
        // std Mutex: never held across an await.
        self.0.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Proposer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proposer")
            .field("keys", &self.keys().len())
            .finish_non_exhaustive()
    }
}

/// Keys whose updates are made at the same time.
const KEYS_MAX: usize = 100_000;
/// Those of one key that wait; each may hold hundreds.
const WAITING_MAX: usize = 1_024;
/// Made together: what one ballot carries.
const TOGETHER_MAX: usize = 64;
const TOGETHER_BYTES_MAX: usize = 1024 * 1024;
/// A promise is kept up for what may follow so long.
const LINGER: Duration = Duration::from_millis(20);
/// With more keys than that nobody lingers.
const LINGERING_MAX: usize = 1_000;
const FEW_KEYS: usize = 32;
/// As far as clocks that are followed may be apart: the default of `max_clock_drift`, and some more.
const EXPIRY_APART_MS: u64 = 20_000;
/// Far younger than what homes refuse as too old.
const STANDING_MS_MAX: u64 = 1_000;
/// About as long as a promise is kept up for what may follow, see `LINGER`.
const RESERVED_AHEAD: Duration = Duration::from_millis(20);
/// A sixteenth of a millisecond: faster than that no round is, so the clock does not run away. Less
/// would be passed by what begins after this round.
const RESERVED_STEP: u64 = 1 << 12;
