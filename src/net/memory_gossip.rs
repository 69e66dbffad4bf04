//! Gossip between nodes of one process, for tests and simulations.
//!
//! Connections are as authenticated as those of QUIC: a message carries the name under which its
//! sender joined, and a dial that finds another name than it asked for fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::gossip::{GossipMessage, GossipNet};
use super::transport::CallError;
use crate::model::NodeId;

/// A network in memory that carries gossip. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryGossip(Arc<Mutex<State>>);

/// One node's end of a [`MemoryGossip`].
#[derive(Debug)]
pub struct MemoryGossipEnd {
    network: MemoryGossip,
    id: NodeId,
    addr: SocketAddr,
    peers: watch::Receiver<Arc<BTreeMap<NodeId, SocketAddr>>>,
    inbox: Mutex<Option<mpsc::Receiver<GossipMessage>>>,
}

#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<NodeId, Node>,
    /// Pairs, the lesser name first, between which nothing passes.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// Bytes of messages that each node has sent.
    sent: BTreeMap<NodeId, u64>,
}

struct Node {
    addr: SocketAddr,
    peers: watch::Sender<Arc<BTreeMap<NodeId, SocketAddr>>>,
    inbox: mpsc::Sender<GossipMessage>,
    table: Box<dyn Fn() -> Bytes + Send>,
    is_silent: bool,
}

impl MemoryGossip {
    /// Starts a node: the only one of its name, and the one that listens at `addr`. One that had
    /// the name or the address before is gone, and its connections with it.
    #[must_use]
    pub fn join(&self, id: &NodeId, addr: SocketAddr) -> MemoryGossipEnd {
        let (sender, inbox) = mpsc::channel(INBOX_MESSAGES_MAX);
        let (peers, watched) = watch::channel(Arc::default());
        let node = Node {
            addr,
            peers,
            inbox: sender,
            table: Box::new(Bytes::new),
            is_silent: false,
        };
        let mut state = self.lock();
        let before = state.nodes.iter().filter(|(_, node)| node.addr == addr);
        let before: Vec<NodeId> = before.map(|(id, _)| id.clone()).collect();
        for gone in before.iter().chain([id]) {
            state.hang_up(gone);
            state.nodes.remove(gone);
        }
        state.nodes.insert(id.clone(), node);
        drop(state);
        MemoryGossipEnd {
            network: self.clone(),
            id: id.clone(),
            addr,
            peers: watched,
            inbox: Mutex::new(Some(inbox)),
        }
    }

    /// What a node answers to those who fetch its member table.
    pub fn serve_table(&self, id: &NodeId, table: impl Fn() -> Bytes + Send + 'static) {
        if let Some(node) = self.lock().nodes.get_mut(id) {
            node.table = Box::new(table);
        }
    }

    /// Loses everything from and to a node, as when its process is killed: the others believe in
    /// their connections to it until someone [hangs up](Self::hang_up).
    pub fn silence(&self, id: &NodeId) {
        if let Some(node) = self.lock().nodes.get_mut(id) {
            node.is_silent = true;
        }
    }

    /// How many bytes of messages a node has sent.
    #[must_use]
    pub fn sent_bytes(&self, id: &NodeId) -> u64 {
        self.lock().sent.get(id).copied().unwrap_or(0)
    }

    /// Ends a node's connections; both sides learn of it. They can be made again.
    pub fn hang_up(&self, id: &NodeId) {
        self.lock().hang_up(id);
    }

    /// Ends the connection of two nodes, and lets none be made.
    pub fn cut(&self, one: &NodeId, other: &NodeId) {
        let mut state = self.lock();
        state.cut.insert(pair(one, other));
        state.disconnect(one, other);
    }

    /// Undoes [`MemoryGossip::cut`].
    pub fn heal(&self, one: &NodeId, other: &NodeId) {
        self.lock().cut.remove(&pair(one, other));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // std Mutex: never held across an await.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Connects a node to whoever listens at `addr`, and says who that is.
    fn dial(&self, from: &MemoryGossipEnd, addr: SocketAddr) -> Option<NodeId> {
        let (to, node) = self.nodes.iter().find(|(_, node)| node.addr == addr)?;
        let caller = self.nodes.get(&from.id)?;
        let is_possible = !node.is_silent
            && !caller.is_silent
            && caller.addr == from.addr
            && *to != from.id
            && !self.cut.contains(&pair(&from.id, to));
        if !is_possible {
            return None;
        }
        caller.add_peer(to, addr);
        node.add_peer(&from.id, from.addr);
        Some(to.clone())
    }

    fn hang_up(&self, id: &NodeId) {
        for other in self.nodes.keys() {
            self.disconnect(id, other);
        }
    }

    fn disconnect(&self, one: &NodeId, other: &NodeId) {
        for (node, gone) in [(one, other), (other, one)] {
            if let Some(node) = self.nodes.get(node) {
                node.peers
                    .send_if_modified(|peers| Arc::make_mut(peers).remove(gone).is_some());
            }
        }
    }
}

impl Node {
    fn add_peer(&self, id: &NodeId, addr: SocketAddr) {
        self.peers.send_if_modified(|peers| {
            let is_new = peers.get(id) != Some(&addr);
            if is_new {
                Arc::make_mut(peers).insert(id.clone(), addr);
            }
            is_new
        });
    }
}

#[async_trait]
impl GossipNet for MemoryGossipEnd {
    fn send_gossip(&self, to: SocketAddr, message: Bytes) {
        let mut state = self.network.lock();
        *state.sent.entry(self.id.clone()).or_default() += message.len() as u64;
        let found = state
            .dial(self, to)
            .and_then(|to| state.nodes.get(&to).map(|node| node.inbox.clone()));
        if let Some(inbox) = found {
            // A full inbox loses the message, as a full queue to a peer does.
            drop(inbox.try_send(GossipMessage {
                from: self.id.clone(),
                from_addr: self.addr,
                body: message,
            }));
        }
    }

    fn take_gossip(&self) -> Option<mpsc::Receiver<GossipMessage>> {
        self.inbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn meet(&self, id: &NodeId, addr: SocketAddr) {
        let state = self.network.lock();
        if state.nodes.get(id).is_some_and(|node| node.addr == addr) {
            // Whoever answers is known by now to bear that name.
            drop(state.dial(self, addr));
        }
    }

    fn peers(&self) -> watch::Receiver<Arc<BTreeMap<NodeId, SocketAddr>>> {
        self.peers.clone()
    }

    async fn fetch_table(&self, peer: &NodeId) -> Result<Bytes, CallError> {
        let state = self.network.lock();
        let is_connected = self.peers.borrow().contains_key(peer);
        match state.nodes.get(peer).filter(|_| is_connected) {
            None => Err(CallError::Unreachable),
            Some(node) if node.is_silent => Err(CallError::TimedOut),
            Some(node) => Ok((node.table)()),
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({})", self.addr)
    }
}

fn pair(one: &NodeId, other: &NodeId) -> (NodeId, NodeId) {
    let (lesser, greater) = if one < other {
        (one, other)
    } else {
        (other, one)
    };
    (lesser.clone(), greater.clone())
}

/// As many as QUIC keeps for a node that is busy; then messages are lost.
const INBOX_MESSAGES_MAX: usize = 1_024;
