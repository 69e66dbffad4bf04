//! Updates that depend on what a key holds: from a client's node to the home that makes them.
//!
//! The node that a client talks to queues the updates of a key and sends what has gathered, with a
//! number, to the first home that can be reached; what comes meanwhile goes with the next. If that home
//! does not answer, the same goes to the next one: the state of the key says whether it was made
//! before (see [`crate::protocol::Lineage`]).

mod homes;
mod inbox;
mod post;
mod proposer;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_bytes::Bytes as ByteSlice;
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};

pub(in crate::node) use self::proposer::Parts;
pub use self::proposer::{Proposer, ProposerStats};
use crate::env::Clock;
use crate::model::{HlcTime, Millis, NodeTag};
use crate::net::{CallError, LARGE_BYTES, Lane, Operations, ReplySink, Response};
use crate::node::hedging::late_after;
use crate::node::replica::Replica;
use crate::protocol::{QuorumNotMet, UpdateId, Updated, Updates};
use crate::ring::View;
use crate::update::{Change, Reply};
use crate::wire::{Answer, FrameError, FrameReader, Operation, Refusal, WireUpdates, encode};

/// Why an update has no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum UpdateError {
    /// It was not made.
    #[error(
        "{} of {} home nodes needed for the update answered{}; nothing was changed",
        .0.got, .0.need, .0.refusal.map(|refusal| format!(" ({refusal})")).unwrap_or_default()
    )]
    NotMade(QuorumNotMet),
    /// It may have been made, or still be.
    #[error(
        "the home nodes stopped answering while the update was being made: it may have taken effect \
         or not; read the key before you try again"
    )]
    Uncertain,
    /// It was made, but what it told is no longer known.
    #[error("the update has taken effect, but what it answered is lost; read the key")]
    AnswerLost,
    /// More waits already than may.
    #[error("too many updates of this key are waiting; nothing was changed")]
    Busy,
}

/// Has updates made. Clones share their queues.
#[derive(Clone)]
pub struct Updater(Arc<Inner>);

struct Inner {
    parts: Arc<Parts>,
    proposer: Proposer,
    keys: Mutex<HashMap<Bytes, VecDeque<Pending>>>,
    sequence: AtomicU64,
    /// The latest moment at which updates began.
    begun: AtomicU64,
    /// Who did not answer a moment ago, and until when others are asked first.
    avoided: Mutex<BTreeMap<NodeTag, Instant>>,
}

/// An update that waits to be sent.
struct Pending {
    change: Change,
    tell: oneshot::Sender<Result<Reply, UpdateError>>,
}

/// An update under way.
pub type Pledge = oneshot::Receiver<Result<Reply, UpdateError>>;

impl Updater {
    pub(in crate::node) fn new(parts: Parts) -> Self {
        let parts = Arc::new(parts);
        Self(Arc::new(Inner {
            proposer: Proposer::new(Arc::clone(&parts)),
            parts,
            keys: Mutex::default(),
            sequence: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            avoided: Mutex::default(),
        }))
    }

    /// What makes the updates that this node is asked for by others.
    #[must_use]
    pub fn proposer(&self) -> &Proposer {
        &self.0.proposer
    }

    /// Queues an update. Those of one key are made in the order in which they are queued.
    pub fn submit(&self, key: &Bytes, change: Change) -> Result<Pledge, UpdateError> {
        let (tell, told) = oneshot::channel();
        let pending = Pending { change, tell };
        let mut keys = self.keys();
        if let Some(queue) = keys.get_mut(key) {
            if queue.len() >= PENDING_MAX {
                return Err(UpdateError::Busy);
            }
            queue.push_back(pending);
            return Ok(told);
        }
        if keys.len() >= KEYS_MAX {
            return Err(UpdateError::Busy);
        }
        keys.insert(key.clone(), VecDeque::from([pending]));
        drop(keys);
        let (this, key) = (self.clone(), key.clone());
        let tasks = &self.0.parts.env.tasks;
        tasks.spawn(async move { this.work(key).await });
        Ok(told)
    }

    /// Works a key's queue off.
    async fn work(&self, key: Bytes) {
        loop {
            let batch = self.take(&key);
            if batch.is_empty() {
                return;
            }
            let (changes, tells): (Vec<_>, Vec<_>) = batch
                .into_iter()
                .map(|pending| (pending.change, pending.tell))
                .unzip();
            let results = match self.carry_out(&key, changes.clone()).await {
                Ok(results) if results.len() <= tells.len() => results,
                Ok(_) => vec![Err(UpdateError::AnswerLost); tells.len()],
                Err(error) => vec![Err(error); tells.len()],
            };
            let mut pending = changes.into_iter().zip(tells);
            for (result, (_, tell)) in results.into_iter().zip(pending.by_ref()) {
                // The client may be gone.
                let _gone = tell.send(result);
            }
            self.put_back(&key, pending.map(|(change, tell)| Pending { change, tell }));
        }
    }

    /// Updates that were not begun, because the replies to those before them are long: they go with
    /// the next ones, under a new number, before what came later.
    fn put_back(&self, key: &Bytes, rest: impl DoubleEndedIterator<Item = Pending>) {
        let mut keys = self.keys();
        // It is open for as long as this task works it off.
        let queue = keys.entry(key.clone()).or_default();
        rest.rev().for_each(|pending| queue.push_front(pending));
    }

    /// What has gathered for a key; if nothing has, its queue is closed.
    fn take(&self, key: &Bytes) -> Vec<Pending> {
        let mut keys = self.keys();
        let Some(queue) = keys.get_mut(key) else {
            return Vec::new();
        };
        let (mut taken, mut bytes) = (Vec::<Pending>::new(), 0);
        while let Some(pending) = queue.front() {
            // What becomes of a script that takes too long must not become of the others.
            let is_script = |pending: &Pending| pending.change.is_script();
            if taken
                .first()
                .is_some_and(|first| is_script(first) != is_script(pending))
            {
                break;
            }
            bytes += pending.change.bytes();
            if !taken.is_empty() && (bytes > TOGETHER_BYTES_MAX || taken.len() >= TOGETHER_MAX) {
                break;
            }
            taken.extend(queue.pop_front());
        }
        if taken.is_empty() {
            keys.remove(key);
        }
        taken
    }

    /// Has changes made together, by whichever home can.
    async fn carry_out(&self, key: &Bytes, changes: Vec<Change>) -> Result<Results, UpdateError> {
        let parts = &self.0.parts;
        let deadline = parts.env.clock.monotonic() + parts.timeout;
        let mut attempt = Attempt {
            updates: Updates {
                id: self.next_id(),
                begun: self.begun(),
                is_open: false,
                changes,
            },
            is_renewed: false,
            refused_for_good: 0,
            not_made: QuorumNotMet {
                need: 1,
                got: 0,
                refusal: None,
            },
        };
        let (mut tried, mut pause, mut cut_off_at) = (Vec::new(), PAUSE_MIN, None);
        loop {
            let now = parts.env.clock.monotonic();
            if now >= deadline {
                return Err(attempt.given_up());
            }
            let reach = self.reach(key);
            if reach.got >= reach.need {
                cut_off_at = None;
            } else if now >= *cut_off_at.get_or_insert(now + CUT_OFF_FOR) {
                // Nothing can be decided here, and waiting does not help.
                attempt.not_made = reach;
                return Err(attempt.given_up());
            }
            let home = match cut_off_at {
                None => self.first_home(key, &tried),
                // Whoever is asked now cannot do it either.
                Some(_) => None,
            };
            let Some(home) = home else {
                if attempt.refused_for_good > 0 && attempt.refused_for_good == tried.len() {
                    // None of them would do it a moment later. One that was asked before may have.
                    return Err(attempt.given_up());
                }
                // All were asked. Membership, or who has caught up, may change meanwhile.
                tried.clear();
                attempt.refused_for_good = 0;
                sleep_until((now + pause).min(deadline)).await;
                pause = (pause * 2).min(PAUSE_MAX);
                continue;
            };
            let is_own = home == parts.self_tag;
            // A script may take its time, and is not given to another home when this one is silent.
            let is_patient = is_own || attempt.updates.changes.iter().any(Change::is_script);
            let end = if is_patient {
                deadline
            } else {
                self.patience(home, now, deadline)
            };
            let asked = match is_own {
                true => self.ask_here(key, &attempt.updates).await,
                false => self.ask(home, key, &attempt.updates, end).await,
            };
            tried.push(home);
            if Attempt::is_to_avoid(&asked) {
                self.avoid(home, now);
            }
            match attempt.judge(asked, || self.renewed()) {
                Judged::Over(result) => return result,
                Judged::SameAgain => _ = tried.pop(),
                Judged::Next => {}
            }
        }
    }

    /// The first home that can be reached and was not tried; rather one that answers.
    fn first_home(&self, key: &Bytes, tried: &[NodeTag]) -> Option<NodeTag> {
        let parts = &self.0.parts;
        let view = Arc::clone(&parts.view.borrow());
        let partition = view.params().partitions.of(parts.hasher.hash(key));
        let now = parts.env.clock.monotonic();
        let silent = parts.hedging.silent(now);
        let avoided = self.avoided();
        let is_avoided = |home: NodeTag| {
            let is_late = avoided.get(&home).is_some_and(|until| *until > now);
            home != parts.self_tag && (is_late || silent.contains(&home))
        };
        let can_be_asked = |&&home: &&NodeTag| {
            let is_reachable = view.member(home).is_some_and(|member| member.reachable);
            !tried.contains(&home) && (is_reachable || home == parts.self_tag)
        };
        let homes = view.homes(partition).iter();
        let mut homes: Vec<NodeTag> = homes.filter(can_be_asked).copied().collect();
        // Stable: in the order of the preference list otherwise.
        homes.sort_by_key(|home| is_avoided(*home));
        homes.first().copied()
    }

    /// How many homes this node can reach, and how many are needed.
    fn reach(&self, key: &Bytes) -> QuorumNotMet {
        let parts = &self.0.parts;
        reach(&parts.view.borrow(), parts.hasher.hash(key), parts.self_tag)
    }

    /// Until when a home may be silent before another is asked.
    fn patience(&self, home: NodeTag, now: Instant, deadline: Instant) -> Instant {
        let slow = self.0.parts.hedging.slow_after([home].into_iter());
        (now + PATIENCE * late_after(slow)).min(deadline)
    }

    fn avoid(&self, home: NodeTag, now: Instant) {
        self.avoided().insert(home, now + AVOIDED_FOR);
    }

    async fn ask_here(&self, key: &Bytes, updates: &Updates) -> Asked {
        let until = self.until(updates);
        match self.0.proposer.submit(key.clone(), updates.clone(), until) {
            Ok(told) => told.await.map_or(Asked::Silent, Asked::Told),
            Err(refusal) => Asked::Told(Updated::refused(refusal)),
        }
    }

    async fn ask(&self, home: NodeTag, key: &Bytes, updates: &Updates, end: Instant) -> Asked {
        let parts = &self.0.parts;
        let mut changes = Vec::new();
        encode(&updates.changes, &mut changes);
        let mut operations = Operations::new(parts.replica.frame_context(parts.env.clock.wall()));
        operations.push(&Operation::Update(
            ByteSlice::new(key),
            WireUpdates {
                coordinator: updates.id.coordinator,
                sequence: updates.id.sequence,
                begun: updates.begun,
                until: self.until(updates),
                is_open: updates.is_open,
                changes: ByteSlice::new(&changes),
            },
        ));
        let lane = match operations.bytes() {
            LARGE_BYTES.. => Lane::Large,
            _ => Lane::Foreground,
        };
        let (tell, told) = oneshot::channel();
        let sink = Box::new(UpdatedSink {
            replica: Arc::clone(&parts.replica),
            clock: Arc::clone(&parts.env.clock),
            tell,
        });
        let sent = parts.env.clock.monotonic();
        if parts
            .transport
            .call(home, lane, &operations, end, sink)
            .is_err()
        {
            return Asked::Unreached;
        }
        parts.hedging.on_sent(home, sent);
        match timeout_at(end, told).await {
            Ok(Ok(Some(told))) => {
                parts.hedging.on_sign(home);
                told
            }
            _ => Asked::Silent,
        }
    }

    fn until(&self, updates: &Updates) -> HlcTime {
        let begun = updates.begun.millis();
        HlcTime::from_millis(begun.saturating_add(self.0.parts.timeout))
    }

    fn next_id(&self) -> UpdateId {
        UpdateId {
            coordinator: self.0.parts.writer,
            sequence: self.0.sequence.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// The moment at which updates begin. It is not much ahead of the wall clock: ballots that are
    /// promised beforehand are ahead of it, and serve only what begins before them.
    fn begun(&self) -> HlcTime {
        let parts = &self.0.parts;
        let wall = parts.env.clock.wall();
        let now = parts.clock.tick(wall);
        let latest = HlcTime::from_millis(wall.saturating_add(BEGUN_AHEAD_MAX));
        // A wall clock far behind what was seen is wrong, or others are.
        let least = now.0.saturating_sub(BEGUN_BEHIND_MAX);
        self.begin_at(HlcTime(now.min(latest).0.max(least)))
    }

    /// The same after all that this node has seen, for what began before something that was.
    fn renewed(&self) -> HlcTime {
        let parts = &self.0.parts;
        self.begin_at(parts.clock.tick(parts.env.clock.wall()))
    }

    /// None of this node begins before one that it numbered earlier.
    fn begin_at(&self, moment: HlcTime) -> HlcTime {
        let before = self.0.begun.fetch_max(moment.0, Ordering::AcqRel);
        HlcTime(before.max(moment.0))
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<Bytes, VecDeque<Pending>>> {
        // std Mutex: never held across an await.
        self.0.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn avoided(&self) -> MutexGuard<'_, BTreeMap<NodeTag, Instant>> {
        // std Mutex: never held across an await. One entry a member of the ring.
        let avoided = &self.0.avoided;
        avoided.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Updater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Updater")
            .field("keys", &self.keys().len())
            .finish_non_exhaustive()
    }
}

/// Updates that one home after the other is asked to make.
struct Attempt {
    updates: Updates,
    /// It was begun anew.
    is_renewed: bool,
    /// How many homes have said that they never would.
    refused_for_good: usize,
    /// Why the last home that said so has not.
    not_made: QuorumNotMet,
}

/// What became of the first of some updates, at least one: the others were not begun.
type Results = Vec<Result<Reply, UpdateError>>;

/// What follows from what a home has answered.
enum Judged {
    Over(Result<Results, UpdateError>),
    SameAgain,
    Next,
}

impl Attempt {
    /// What follows from an answer.
    fn judge(&mut self, asked: Asked, renewed: impl FnOnce() -> HlcTime) -> Judged {
        match asked {
            Asked::Told(Updated::Made(replies)) if !replies.is_empty() => {
                return Judged::Over(Ok(replies.into_iter().map(Ok).collect()));
            }
            Asked::Told(Updated::Lost(count @ 1..)) => {
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                let count = count.min(self.updates.changes.len());
                return Judged::Over(Ok(vec![Err(UpdateError::AnswerLost); count]));
            }
            Asked::Told(Updated::NotMade(why)) => {
                self.not_made = why;
                self.refused_for_good += usize::from(is_for_good(why));
            }
            // Nobody else ever had them, and that home has not made them: they are new again.
            Asked::Told(Updated::TooOld) if !self.updates.is_open => {
                self.updates.begun = renewed();
                if !std::mem::replace(&mut self.is_renewed, true) {
                    return Judged::SameAgain;
                }
            }
            Asked::Told(Updated::TooOld) => return Judged::Over(Err(UpdateError::Uncertain)),
            // No home answers that none was made and no other outcome: as good as no answer.
            Asked::Told(Updated::Made(_) | Updated::Lost(_) | Updated::Unknown) | Asked::Silent => {
                self.updates.is_open = true;
                // What has made one home silent is not given to the next one.
                if self.updates.changes.iter().any(Change::is_script) {
                    return Judged::Over(Err(UpdateError::Uncertain));
                }
            }
            Asked::Unreached => {}
        }
        Judged::Next
    }

    /// What is known when nobody else is asked.
    const fn given_up(&self) -> UpdateError {
        match self.updates.is_open {
            true => UpdateError::Uncertain,
            false => UpdateError::NotMade(self.not_made),
        }
    }

    /// Whether others are to be asked first for a while.
    const fn is_to_avoid(asked: &Asked) -> bool {
        match asked {
            Asked::Told(Updated::NotMade(why)) => is_for_good(*why),
            Asked::Told(_) => false,
            Asked::Unreached | Asked::Silent => true,
        }
    }
}

/// How many homes of a key a node can reach, itself included, and how many decide.
fn reach(view: &View, key_hash: u64, self_tag: NodeTag) -> QuorumNotMet {
    let homes = view.homes(view.params().partitions.of(key_hash));
    let is_reachable = |home: NodeTag| {
        home == self_tag || view.member(home).is_some_and(|member| member.reachable)
    };
    let reachable = homes.iter().filter(|&&home| is_reachable(home)).count();
    QuorumNotMet {
        need: majority(homes.len()),
        got: u8::try_from(reachable).unwrap_or(u8::MAX),
        refusal: None,
    }
}

fn majority(homes: usize) -> u8 {
    // At most REPLICAS_MAX = 16 of them.
    u8::try_from(homes / 2 + 1).unwrap_or(u8::MAX)
}

/// Whether a home would not make them a moment later either.
const fn is_for_good(why: QuorumNotMet) -> bool {
    matches!(why.refusal, Some(Refusal::ClockDrift | Refusal::TooBig))
}

/// What came of asking one home.
enum Asked {
    Told(Updated),
    /// It never got them.
    Unreached,
    /// It may have got them.
    Silent,
}

struct UpdatedSink {
    replica: Arc<Replica>,
    clock: Arc<dyn Clock>,
    tell: oneshot::Sender<Option<Asked>>,
}

impl ReplySink for UpdatedSink {
    fn on_reply(self: Box<Self>, reply: Result<Response<'_>, CallError>) -> Result<(), FrameError> {
        let told = match reply {
            Ok(mut response) => {
                self.replica.note_clock(response.clock, self.clock.wall());
                Some(Asked::Told(match response.answers.read()? {
                    Answer::Updated(updated) => FrameReader::new(updated).read()?,
                    Answer::Refused(refusal) => Updated::refused(refusal),
                    // An answer to another question than the one asked: as good as none.
                    _ => Updated::Unknown,
                }))
            }
            Err(CallError::Unreachable | CallError::Busy | CallError::TooLong) => {
                Some(Asked::Unreached)
            }
            Err(CallError::ConnectionLost | CallError::TimedOut) => None,
        };
        // Whoever asked may have gone on.
        let _gone = self.tell.send(told);
        Ok(())
    }
}

/// Keys with updates under way.
const KEYS_MAX: usize = 100_000;
/// Updates of one key that wait.
const PENDING_MAX: usize = 16_384;
/// Sent together.
const TOGETHER_MAX: usize = 256;
const TOGETHER_BYTES_MAX: usize = 1024 * 1024;
/// So many times as long as a replica that is late: an update is two questions to replicas, behind
/// others of its key.
const PATIENCE: u32 = 2;
/// For so long fewer homes than decide may seem to be reachable: gossip errs for a moment.
const CUT_OFF_FOR: Duration = Duration::from_millis(100);
/// Less than ballots that stand are ahead, by more than clocks usually differ.
const BEGUN_AHEAD_MAX: Duration = Duration::from_millis(5);
/// As far as ballots that stand can have moved the hybrid clock.
const BEGUN_BEHIND_MAX: u64 = HlcTime::from_millis(Millis(25)).0;
const AVOIDED_FOR: Duration = Duration::from_secs(1);
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
