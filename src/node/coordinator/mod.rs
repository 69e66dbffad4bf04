//! Drives requests: fan-out to the home nodes, quorum, repair.
//!
//! Any node coordinates any request. The decisions are made by [`crate::protocol`]; here they are
//! carried out, a batch at a time: all operations of a client's pipeline that are for one peer
//! travel in one frame, and the replies of a peer are handled on the task that reads them. There
//! is no task, channel or timer for each operation.

mod batch;
mod hedging;
mod item;
mod keyspace;
mod local;
mod outbox;
mod reply;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::watch;

use self::batch::Batch;
use self::hedging::Hedging;
pub use self::keyspace::KeyPage;
pub use self::local::Local;
use super::handoff::{Handoff, Owed};
use super::replica::Replica;
use super::staleness::StalenessMeter;
use crate::env::Env;
use crate::model::{
    HashedKey, Hlc, KeyHasher, Level, Millis, NodeTag, PartitionId, Quorum, Summary,
};
use crate::net::Transport;
use crate::protocol::QuorumNotMet;
use crate::ring::View;

/// Settings of the coordinator.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Copies kept, replies a read and acknowledgements a write needs.
    pub quorum: Quorum,
    /// How long a request may take before it is answered with an error.
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
}

/// What came of a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Of `Get`: the value, if there is one.
    Value(Option<Bytes>),
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
    /// Of any.
    Failed(RequestError),
}

/// Why a request failed. The door says it in the words of its protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RequestError {
    /// Too few replicas replied to a read.
    #[error("{} of {} replies needed to read{}", .0.got, .0.need, why(*.0))]
    Read(QuorumNotMet),
    /// Too few replicas told a linearizable write what it must exceed: it was not begun.
    #[error(
        "{} of {} replies needed to begin the write{}; nothing was written",
        .0.got, .0.need, why(*.0)
    )]
    Learn(QuorumNotMet),
    /// Too few replicas acknowledged a write.
    #[error(
        "{} of {} acknowledgements needed to write{}; the write may still take effect",
        .0.got, .0.need, why(*.0)
    )]
    Write(QuorumNotMet),
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
    pub(super) handoff: Arc<Handoff>,
    pub(super) owed: watch::Receiver<Arc<Owed>>,
    pub(super) stats: CoordinatorStats,
    hedging: Hedging,
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
        let stats = CoordinatorStats::default();
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
            hedging: Hedging::default(),
            staleness: StalenessMeter::default(),
        }))
    }

    /// Carries out requests, together as far as their order allows, and returns their outcomes in
    /// the same order. Requests on the same key take effect in the order given.
    pub async fn run(&self, requests: Vec<Request>) -> Ran {
        let mut ran = Ran {
            outcomes: Vec::with_capacity(requests.len()),
            sloppy_writes: 0,
        };
        let mut rest = requests;
        while !rest.is_empty() {
            let later = rest.split_off(self.independent(&rest));
            Batch::run(&self.0, rest, &mut ran).await;
            rest = later;
        }
        ran
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
    /// It depends on what is there.
    Alone,
}

impl Class {
    fn of(request: &Request) -> Self {
        match request.action {
            Action::Get | Action::Look => Self::Read,
            Action::Set { .. } | Action::Delete if request.level == Level::Linearizable => {
                Self::Alone
            }
            Action::Set { .. } | Action::Delete => Self::Write,
            Action::Expire { .. } => Self::Alone,
        }
    }

    fn travels_with(self, other: Self) -> bool {
        self == other && self != Self::Alone
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
