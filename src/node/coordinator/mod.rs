//! Drives requests: fan-out to the home nodes, quorum, repair.
//!
//! Any node coordinates any request. The decisions are made by [`crate::protocol`]; here they are
//! carried out, a batch at a time: all operations of a client's pipeline that are for one peer
//! travel in one frame, and the replies of a peer are handled on the task that reads them. There
//! is no task, channel or timer for each operation.

mod batch;
mod databases;
mod item;
mod keyspace;
mod local;
mod outbox;
mod reply;
mod retries;
mod stream;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::watch;

use self::batch::Batch;
use self::item::Deferred;
pub use self::keyspace::KeyPage;
pub use self::local::Local;
pub use self::stream::Stream;
use super::admission::{Admission, Admitted, Overloaded};
use super::flush_exchange::FlushExchange;
use super::handoff::{Handoff, Owed};
use super::hedging::Hedging;
use super::replica::Replica;
use super::staleness::StalenessMeter;
use super::updates::{self, Pledge, UpdateError, Updater};
use crate::env::{Env, Tasks};
use crate::model::{
    HashedKey, Hlc, KeyHasher, Kind, Level, Millis, NodeTag, PartitionId, Quorum, Stamp, Summary,
};
use crate::net::{LARGE_BYTES, Transport};
use crate::protocol::QuorumNotMet;
use crate::ring::View;
use crate::update::{Change, Reply};

/// Settings of the coordinator.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Copies kept, replies a read and acknowledgements a write needs.
    pub quorum: Quorum,
    /// How long a small request may take before it is answered with an error; see
    /// [`crate::net::time_budget`] of large ones.
    pub timeout: Duration,
}

/// One operation on one key, as the door hands it in.
#[derive(Debug, Clone)]
pub struct Request {
    /// The key.
    pub key: Bytes,
    /// What to do.
    pub action: Action,
    /// How consistent it is to be.
    pub level: Level,
    /// Whether others may stand in for its home nodes; never at level `linearizable`.
    pub is_sloppy: bool,
}

/// What to do with a key.
#[derive(Debug, Clone)]
pub enum Action {
    /// Read the value.
    Get,
    /// Read all but the value.
    Look,
    /// Write a value.
    Set {
        /// The value.
        value: Bytes,
        /// When it ends.
        expires_at: Option<Millis>,
    },
    /// Delete.
    Delete,
    /// Change when the value ends; `None`: never.
    Expire {
        /// The moment.
        at: Option<Millis>,
    },
    /// Update it atomically.
    Update(Change),
}

/// What came of a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Of `Get`: the value, if there is one.
    Value(Option<Bytes>),
    /// Of `Get`: the value, which is a hash.
    Hash(Bytes),
    /// Of `Look`: a live value's summary, if there is one.
    Look(Option<Summary>),
    /// Of `Set`.
    Written,
    /// Of `Delete`: whether there was a live value.
    Deleted(bool),
    /// Of `Expire`.
    Expiry {
        /// Whether there was a live value.
        existed: bool,
        /// Whether it was to end before.
        had_end: bool,
    },
    /// Of `Update`.
    Updated(Reply),
    /// Of any.
    Failed(RequestError),
}

/// Why a request failed. The door says it in the words of its protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RequestError {
    /// Too few replicas replied to a read.
    #[error("{} of {} replies needed to read{}", .0.got, .0.need, why(*.0))]
    Read(QuorumNotMet),
    /// An update, or a linearizable write, has failed.
    #[error("{0}")]
    Update(#[from] UpdateError),
    /// An update was in the way of a read; it is read in another way.
    #[error("an update of the key was under way")]
    InTheWay,
    /// More bytes of large requests wait than may.
    #[error("too many bytes of large requests are waiting; nothing was changed")]
    Overloaded,
    /// Too few replicas acknowledged a write.
    #[error(
        "{} of {} acknowledgements needed to write{}; the write may still take effect",
        .0.got, .0.need, why(*.0)
    )]
    Write(QuorumNotMet),
    /// Most peers refuse this node's clock, which is so many milliseconds ahead.
    #[error(
        "this node's clock is {0} ms ahead of that of most other nodes, which refuse its writes: use \
         another node, and set the clock of this one right (max_clock_drift)"
    )]
    ClockRefused(u64),
}

/// Facts that the coordinator counts.
#[derive(Debug, Default)]
pub struct CoordinatorStats {
    /// Replicas brought up to date because a read saw them stale.
    pub read_repairs: AtomicU64,
    /// Writes stamped anew because a replica held something newer.
    pub superseded_writes: AtomicU64,
    /// What became of the quorums that reads needed.
    pub reads: QuorumOutcomes,
    /// The same of writes, deletes and changes of expiry.
    pub writes: QuorumOutcomes,
    /// Updates of which it is not known whether they took effect, or what they told.
    pub uncertain_updates: AtomicU64,
    /// Requests that did not meet their quorum.
    pub quorums_not_met: AtomicU64,
    /// Reads that asked another replica for the record because the first was slow.
    pub hedged_reads: AtomicU64,
    /// Writes whose quorum counted stand-ins.
    pub sloppy_writes: AtomicU64,
    /// Reads whose quorum counted stand-ins: these may be stale.
    pub sloppy_reads: AtomicU64,
}

/// What became of quorums.
#[derive(Debug, Default)]
pub struct QuorumOutcomes {
    /// Met by home nodes.
    pub met: AtomicU64,
    /// Met with the help of stand-ins.
    pub sloppy: AtomicU64,
    /// Not met.
    pub not_met: AtomicU64,
}

/// What came of requests that were run together.
#[derive(Debug)]
pub struct Ran {
    /// Of each, in their order.
    pub outcomes: Vec<Outcome>,
    /// How many of the writes counted stand-ins.
    pub sloppy_writes: u64,
    /// Reads that are to be made again, by their places, in their order: they have no outcome yet.
    deferred: Vec<(usize, Request, Deferred)>,
}

impl Ran {
    fn new(requests: usize) -> Self {
        Self {
            outcomes: Vec::with_capacity(requests.min(stream::WINDOW_MAX)),
            sloppy_writes: 0,
            deferred: Vec::new(),
        }
    }
}

/// Coordinates the requests of one node. Made to be shared by all its connections.
#[derive(Debug, Clone)]
pub struct Coordinator(Arc<Inner>);

pub(super) struct Inner {
    pub(super) config: Config,
    pub(super) self_tag: NodeTag,
    pub(super) writer: NodeTag,
    pub(super) env: Env,
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) replica: Arc<Replica>,
    pub(super) clock: Arc<Hlc>,
    pub(super) hasher: KeyHasher,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) flushes_begun: AtomicU64,
    pub(super) handoff: Arc<Handoff>,
    pub(super) owed: watch::Receiver<Arc<Owed>>,
    pub(super) stats: CoordinatorStats,
    hedging: Arc<Hedging>,
    admission: Admission,
    updater: Updater,
    counted: databases::Counted,
    staleness: StalenessMeter,
}

/// What a coordinator is made of.
#[derive(Debug)]
pub struct Parts {
    /// Settings.
    pub config: Config,
    /// The tag of this node.
    pub self_tag: NodeTag,
    /// What its versions carry: unlike `self_tag` it differs between two starts of a node, so that
    /// no version is given twice even when the wall clock is set back between them.
    pub writer: NodeTag,
    /// Time.
    pub env: Env,
    /// The ring, as it changes.
    pub view: watch::Receiver<Arc<View>>,
    /// This node's own copy.
    pub replica: Arc<Replica>,
    /// This node's clock for versions.
    pub clock: Arc<Hlc>,
    /// The cluster's hash.
    pub hasher: KeyHasher,
    /// Calls to peers.
    pub transport: Arc<dyn Transport>,
    /// The hints of this node.
    pub handoff: Arc<Handoff>,
    /// Who is owed hints, as it changes.
    pub owed: watch::Receiver<Arc<Owed>>,
}

impl Coordinator {
    /// Puts a coordinator together.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts {
            config,
            self_tag,
            writer,
            env,
            view,
            replica,
            clock,
            hasher,
            transport,
            handoff,
            owed,
        } = parts;
        let transport = FlushExchange::over(transport, &replica, &env.clock);
        let stats = CoordinatorStats::default();
        let hedging = Arc::<Hedging>::default();
        let updater = Updater::new(updates::Parts {
            self_tag,
            writer,
            timeout: config.timeout,
            env: env.clone(),
            view: view.clone(),
            replica: Arc::clone(&replica),
            clock: Arc::clone(&clock),
            hasher,
            transport: Arc::clone(&transport),
            hedging: Arc::clone(&hedging),
        });
        Self(Arc::new(Inner {
            config,
            self_tag,
            writer,
            env,
            view,
            replica,
            clock,
            hasher,
            transport,
            handoff,
            owed,
            stats,
            hedging,
            admission: Admission::default(),
            updater,
            counted: databases::Counted::default(),
            flushes_begun: AtomicU64::new(0),
            staleness: StalenessMeter::default(),
        }))
    }

    /// Carries out requests, together as far as their order allows, and returns their outcomes in
    /// the same order. Requests on the same key take effect in the order given. All values that are
    /// read are held at once: for few requests, or small ones.
    pub async fn run(&self, requests: Vec<Request>) -> Ran {
        let mut ran = Ran::new(requests.len());
        let mut stream = self.stream(requests.into_iter(), usize::MAX);
        while let Some(outcome) = stream.next().await {
            ran.outcomes.push(outcome);
        }
        ran.sloppy_writes = stream.sloppy_writes();
        ran
    }

    /// The same, with the outcomes one after the other and about `room` bytes of values held at a
    /// time.
    pub const fn stream<I: Iterator<Item = Request>>(
        &self,
        requests: I,
        room: usize,
    ) -> Stream<'_, I> {
        Stream::new(self, requests, room)
    }

    /// Carries out requests that may travel together. Reads whose values do not fit the room are
    /// deferred.
    async fn run_together(&self, requests: Vec<Request>, room: usize, ran: &mut Ran) {
        if let Some(ahead_ms) = self.0.replica.refused_ahead_ms() {
            let refused = Outcome::Failed(RequestError::ClockRefused(ahead_ms));
            return ran
                .outcomes
                .extend(std::iter::repeat_n(refused, requests.len()));
        }
        if !requests.iter().any(is_update) {
            let is_alone = requests.len() == 1;
            return self.run_plain(requests, (room, is_alone), ran).await;
        }
        let Ok(_admitted) = self.admit_updates(&requests).await else {
            let refused = Outcome::Failed(RequestError::Overloaded);
            let refused = std::iter::repeat_n(refused, requests.len());
            return ran.outcomes.extend(refused);
        };
        let (mut pledges, mut others) = (Vec::new(), Vec::new());
        for request in requests {
            if is_update(&request) {
                let change = change(request.action);
                let pledge = self.0.updater.submit(&request.key, change.0);
                pledges.push(Some((pledge, change.1)));
            } else {
                pledges.push(None);
                others.push(request);
            }
        }
        let mut of_others = Ran::new(others.len());
        if !others.is_empty() {
            self.run_plain(others, (room, false), &mut of_others).await;
        }
        ran.sloppy_writes += of_others.sloppy_writes;
        let mut deferred = of_others.deferred.into_iter().peekable();
        let mut of_others = of_others.outcomes.into_iter().enumerate();
        for pledge in pledges {
            match pledge {
                Some((pledge, form)) => {
                    let reply = self.redeem(pledge).await;
                    ran.outcomes.push(form.outcome(reply));
                }
                // One for each request that is no update.
                None => {
                    let Some((number, outcome)) = of_others.next() else {
                        continue;
                    };
                    if let Some((_, request, why)) =
                        deferred.next_if(|(place, ..)| *place == number)
                    {
                        ran.deferred.push((ran.outcomes.len(), request, why));
                    }
                    ran.outcomes.push(outcome);
                }
            }
        }
    }

    /// Waits until large updates among these may be begun.
    async fn admit_updates(&self, requests: &[Request]) -> Result<Admitted, Overloaded> {
        let (mut of_updates, mut of_others) = (0, 0);
        for request in requests {
            match &request.action {
                Action::Update(change) => of_updates += change.bytes(),
                Action::Set { value, .. } if is_update(request) => of_updates += value.len(),
                Action::Set { value, .. } => of_others += value.len(),
                Action::Get | Action::Look | Action::Delete | Action::Expire { .. } => {}
            }
        }
        if of_others >= LARGE_BYTES {
            // These are admitted by themselves: who has a turn must not wait for another.
            return Ok(Admitted::default());
        }
        self.0
            .admission
            .admit(of_updates, self.0.config.timeout)
            .await
    }

    /// Carries out requests that are no updates. One that `is_alone` may wait for its turn to read a
    /// large value.
    async fn run_plain(
        &self,
        requests: Vec<Request>,
        (room, is_alone): (usize, bool),
        ran: &mut Ran,
    ) {
        let looks: Vec<_> = requests.iter().map(Look::of).collect();
        // Boxed: its state is larger than all that is around it.
        Box::pin(Batch::run(&self.0, requests, room, ran)).await;
        if let [(0, _, Deferred::Large { bytes })] = ran.deferred[..]
            && is_alone
        {
            let requests = ran.deferred.drain(..).map(|(_, request, _)| request);
            let requests = requests.collect();
            ran.outcomes.clear();
            Box::pin(Batch::run_large(&self.0, requests, bytes, ran)).await;
        }
        self.look_again(looks, &mut ran.outcomes).await;
    }

    /// Waits for an update.
    async fn redeem(&self, pledge: Result<Pledge, UpdateError>) -> Result<Reply, UpdateError> {
        let reply = match pledge {
            // The node is stopping.
            Ok(pledge) => pledge.await.unwrap_or(Err(UpdateError::Uncertain)),
            Err(error) => Err(error),
        };
        let stats = &self.0.stats;
        let (outcome, is_failed) = match reply {
            Ok(_) => (&stats.writes.met, false),
            Err(_) => (&stats.writes.not_met, true),
        };
        outcome.fetch_add(1, Ordering::Relaxed);
        stats
            .quorums_not_met
            .fetch_add(u64::from(is_failed), Ordering::Relaxed);
        if matches!(reply, Err(UpdateError::Uncertain | UpdateError::AnswerLost)) {
            stats.uncertain_updates.fetch_add(1, Ordering::Relaxed);
        }
        reply
    }

    /// Reads that an update was in the way of: what they saw was held by some, and the others had
    /// promised not to take it any more. They are read as an update that changes nothing.
    async fn look_again(&self, looks: Vec<Option<Look>>, outcomes: &mut [Outcome]) {
        for (look, outcome) in looks.into_iter().zip(outcomes) {
            if *outcome != Outcome::Failed(RequestError::InTheWay) {
                continue;
            }
            let Some(Look { key, form }) = look else {
                continue;
            };
            let pledge = self.0.updater.submit(&key, Change::Look);
            *outcome = form.outcome(self.redeem(pledge).await);
        }
    }

    /// The tasks of this node, and its pool for what takes a processor for long.
    #[must_use]
    pub fn tasks(&self) -> &Tasks {
        &self.0.env.tasks
    }

    /// What makes the updates that other nodes ask this one for.
    #[must_use]
    pub fn updater(&self) -> &Updater {
        &self.0.updater
    }

    /// A short cut for a node that is alone in its ring: the same rules without a network.
    #[must_use]
    pub fn local(&self) -> Option<Local<'_>> {
        Local::new(&self.0)
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> Config {
        self.0.config
    }

    /// The ring as this node sees it now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.0.view.borrow())
    }

    /// The partition of a key, and its homes: their names, and whether they can be reached.
    #[must_use]
    pub fn homes_of(&self, key: &[u8]) -> (PartitionId, Vec<(String, bool)>) {
        let view = self.view();
        let partition = self.0.hashed(&view, key).partition;
        let member = |&tag: &NodeTag| view.member(tag);
        let homes = view.homes(partition).iter().filter_map(member);
        let homes = homes.map(|member| (member.id.to_string(), member.reachable));
        (partition, homes.collect())
    }

    /// What was observed of how fresh reads are.
    #[must_use]
    pub fn staleness(&self) -> &StalenessMeter {
        &self.0.staleness
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> &CoordinatorStats {
        &self.0.stats
    }

    /// How many of the first requests can travel together.
    ///
    /// Replicas work a frame off in order, so writes of one key keep theirs. But what a read of
    /// the same key shows may depend on a write being stamped anew, or the other way round: those
    /// wait for each other.
    fn independent(&self, requests: &[Request]) -> usize {
        let mut seen: BTreeMap<u64, Class> = BTreeMap::new();
        let mut recent: smallvec::SmallVec<[(u64, Class); SCANNED_MAX]> = smallvec::SmallVec::new();
        for (position, request) in requests.iter().enumerate() {
            let hash = self.0.hasher.hash(&request.key);
            let class = Class::of(request);
            let earlier = if requests.len() <= SCANNED_MAX {
                let earlier = recent
                    .iter()
                    .find(|(h, _)| *h == hash)
                    .map(|&(_, class)| class);
                recent.push((hash, class));
                earlier
            } else {
                seen.insert(hash, class)
            };
            if earlier.is_some_and(|earlier| !earlier.travels_with(class)) {
                return position;
            }
        }
        requests.len()
    }
}

impl Inner {
    pub(super) fn hashed<'a>(&self, view: &View, bytes: &'a [u8]) -> HashedKey<'a> {
        let hash = self.hasher.hash(bytes);
        HashedKey {
            bytes,
            hash,
            partition: view.params().partitions.of(hash),
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinator")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Which operations on one key may travel in one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Read,
    Write,
    /// They queue up by themselves.
    Update,
    /// It depends on what is there.
    Alone,
}

impl Class {
    fn of(request: &Request) -> Self {
        match request.action {
            Action::Get | Action::Look => Self::Read,
            _ if is_update(request) => Self::Update,
            Action::Set { .. } | Action::Delete => Self::Write,
            Action::Expire { .. } | Action::Update(_) => Self::Alone,
        }
    }

    fn travels_with(self, other: Self) -> bool {
        self == other && self != Self::Alone
    }
}

/// Whether a request is made by consensus: what depends on what is there, and all that changes
/// anything at level `linearizable`.
fn is_update(request: &Request) -> bool {
    match request.action {
        Action::Update(_) => true,
        Action::Set { .. } | Action::Delete | Action::Expire { .. } => {
            request.level == Level::Linearizable
        }
        Action::Get | Action::Look => false,
    }
}

/// How the reply to an update becomes an outcome.
#[derive(Debug, Clone, Copy)]
enum Form {
    Update,
    Write,
    Delete,
    Expire,
    Get,
    Look,
}

/// A read that may have to be made as an update.
struct Look {
    key: Bytes,
    form: Form,
}

impl Look {
    fn of(request: &Request) -> Option<Self> {
        let form = match request.action {
            _ if request.level != Level::Linearizable => return None,
            Action::Get => Form::Get,
            Action::Look => Form::Look,
            _ => return None,
        };
        let key = request.key.clone();
        Some(Self { key, form })
    }
}

fn change(action: Action) -> (Change, Form) {
    match action {
        Action::Get => (Change::Look, Form::Get),
        Action::Look => (Change::Look, Form::Look),
        Action::Set { value, expires_at } => (Change::Set(value, expires_at), Form::Write),
        Action::Delete => (Change::Delete, Form::Delete),
        Action::Expire { at } => (Change::Expire(at), Form::Expire),
        Action::Update(change) => (change, Form::Update),
    }
}

impl Form {
    fn outcome(self, reply: Result<Reply, UpdateError>) -> Outcome {
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => return Outcome::Failed(RequestError::Update(error)),
        };
        match (self, reply) {
            (Self::Write, Reply::Ok) => Outcome::Written,
            (Self::Delete, Reply::Integer(count)) => Outcome::Deleted(count > 0),
            (Self::Expire, Reply::Array(told)) => Outcome::Expiry {
                existed: told.first() == Some(&Reply::Integer(1)),
                had_end: told.get(1) == Some(&Reply::Integer(1)),
            },
            (Self::Get, Reply::Seen(None, _)) => Outcome::Value(None),
            (Self::Get, Reply::Seen(Some((value, Kind::String, _)), _)) => {
                Outcome::Value(Some(value))
            }
            (Self::Get, Reply::Seen(Some((value, Kind::Hash, _)), _)) => Outcome::Hash(value),
            (Self::Look, Reply::Seen(seen, version)) => {
                Outcome::Look(seen.map(|(value, kind, expires_at)| Summary {
                    stamp: Stamp::fresh(version.unwrap_or_default()),
                    expires_at,
                    value_bytes: Some(value.len() as u64),
                    kind,
                }))
            }
            (_, reply) => Outcome::Updated(reply),
        }
    }
}

fn why(error: QuorumNotMet) -> String {
    match error.refusal {
        Some(refusal) => format!(" ({refusal})"),
        None => String::new(),
    }
}

/// Up to so many requests, looking through all is faster than a map.
const SCANNED_MAX: usize = 32;
