//! Who is connected: at most one connection a pair of peers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::certificate::CertificateFacts;
use super::endpoint::PeerFacts;
use super::lane::LaneQueue;
use super::tls::peer_chain;
use super::transport::Lane;
use crate::model::{NodeId, NodeTag};

/// A live, authenticated connection to a peer.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: NodeId,
    pub(super) connection: Connection,
    /// Who dialled.
    pub(super) dialler: NodeTag,
    pub(super) since: Instant,
    /// With which of this node's certificates.
    pub(super) generation: u64,
    /// Another is being made in its stead.
    pub(super) is_replaced: AtomicBool,
    pub(super) gossip: mpsc::Sender<Bytes>,
    foreground: Arc<LaneQueue>,
    large: Arc<LaneQueue>,
    bulk: Arc<LaneQueue>,
}

/// How a link came to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Made {
    /// Who dialled.
    pub(super) dialler: NodeTag,
    pub(super) since: Instant,
    /// With which of this node's certificates.
    pub(super) generation: u64,
}

impl Link {
    pub(super) fn new(
        id: NodeId,
        connection: Connection,
        made: Made,
        frame_bytes_max: usize,
    ) -> (Self, mpsc::Receiver<Bytes>) {
        let (gossip, outbox) = mpsc::channel(GOSSIP_QUEUE_MAX);
        let lane = || LaneQueue::new(frame_bytes_max);
        let (foreground, large, bulk) = (lane(), lane(), lane());
        (
            Self {
                id,
                connection,
                dialler: made.dialler,
                since: made.since,
                generation: made.generation,
                is_replaced: AtomicBool::new(false),
                gossip,
                foreground,
                large,
                bulk,
            },
            outbox,
        )
    }

    pub(super) const fn lane(&self, lane: Lane) -> &Arc<LaneQueue> {
        match lane {
            Lane::Foreground => &self.foreground,
            Lane::Large => &self.large,
            Lane::Bulk => &self.bulk,
        }
    }

    pub(super) const fn lanes(&self) -> [&Arc<LaneQueue>; 3] {
        [&self.foreground, &self.large, &self.bulk]
    }

    /// Whether nobody waits for an answer of the peer.
    pub(super) fn is_idle(&self) -> bool {
        self.lanes().into_iter().all(|lane| lane.is_idle())
    }

    /// What the peer proved itself with.
    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        peer_chain(&self.connection)
    }

    pub(super) fn facts(&self) -> PeerFacts {
        let chain = self.chain();
        let facts = chain.first().map(|der| CertificateFacts::from_der(der));
        let path = self.connection.stats().path;
        PeerFacts {
            id: self.id.clone(),
            round_trip: self.connection.rtt(),
            lost_packets: path.lost_packets,
            sent_packets: path.sent_packets,
            certificate_until: facts.and_then(|facts| Some(facts.ok()?.not_after)),
        }
    }

    pub(super) fn close(&self, code: CloseCode) {
        self.connection.close(code.into(), code.text().as_bytes());
        self.lanes().into_iter().for_each(|lane| lane.close());
    }
}

/// Why this node closed a connection; on the wire, and in the peer's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CloseCode {
    Shutdown = 0,
    Duplicate = 1,
    NotAdmitted = 2,
    Malformed = 3,
}

impl CloseCode {
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Shutdown => "shutting down",
            Self::Duplicate => "another connection to this node is in use",
            Self::NotAdmitted => "not admitted",
            Self::Malformed => "malformed frame",
        }
    }
}

impl From<CloseCode> for VarInt {
    fn from(code: CloseCode) -> Self {
        Self::from_u32(code as u32)
    }
}

/// The links of one node, by peer.
#[derive(Debug)]
pub(super) struct Peers {
    links: RwLock<BTreeMap<NodeTag, Arc<Link>>>,
    published: watch::Sender<Arc<BTreeMap<NodeId, SocketAddr>>>,
}

impl Peers {
    pub(super) fn new() -> Self {
        Self {
            links: RwLock::default(),
            published: watch::Sender::default(),
        }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Arc<BTreeMap<NodeId, SocketAddr>>> {
        self.published.subscribe()
    }

    pub(super) fn link(&self, to: NodeTag) -> Option<Arc<Link>> {
        // std RwLock: never held across an await.
        self.links
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&to)
            .cloned()
    }

    pub(super) fn link_at(&self, addr: SocketAddr) -> Option<Arc<Link>> {
        let links = self.links.read().unwrap_or_else(PoisonError::into_inner);
        links
            .values()
            .find(|link| link.connection.remote_address() == addr)
            .cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Link>> {
        self.links
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Makes this the link to its peer, or keeps the one there is; the one that is not in use
    /// from now on, if there are two.
    ///
    /// When two nodes dial each other at the same time, both keep the connection that the node
    /// with the smaller tag dialled. When the link there is older than that, the peer has lost it
    /// without our knowing or makes it anew, and the new one replaces it.
    pub(super) fn adopt(&self, link: &Arc<Link>) -> Option<Arc<Link>> {
        let tag = link.id.tag();
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = links.get(&tag) {
            let is_race = link.since.duration_since(old.since) < RACE_WINDOW;
            let is_open = old.connection.close_reason().is_none();
            if is_race && is_open && old.dialler != link.dialler && old.dialler < link.dialler {
                return Some(Arc::clone(link));
            }
        }
        let old = links.insert(tag, Arc::clone(link));
        drop(links);
        self.publish();
        old
    }

    /// Forgets a link that has ended, if it is still the one in use.
    pub(super) fn forget(&self, link: &Arc<Link>) {
        let tag = link.id.tag();
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        if links
            .get(&tag)
            .is_some_and(|present| Arc::ptr_eq(present, link))
        {
            links.remove(&tag);
            drop(links);
            self.publish();
        }
    }

    fn publish(&self) {
        let links = self.links.read().unwrap_or_else(PoisonError::into_inner);
        let connected = links
            .values()
            .map(|link| (link.id.clone(), link.connection.remote_address()))
            .collect();
        // While the lock is held: the last one published is the last one true.
        self.published.send_replace(Arc::new(connected));
    }
}

/// A handshake's length, generously: two that began together are both done within it.
pub(super) const RACE_WINDOW: Duration = Duration::from_secs(2);
/// A gossip round sends a handful of messages to a peer; more than this are stale anyway.
const GOSSIP_QUEUE_MAX: usize = 64;
