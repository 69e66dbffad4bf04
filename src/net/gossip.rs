//! What membership needs of the network: gossip messages and connections to named peers.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::transport::CallError;
use crate::model::NodeId;

/// A message as it came, with who sent it.
#[derive(Debug, Clone)]
pub struct GossipMessage {
    /// The sender, as its certificate names it.
    pub from: NodeId,
    /// Where it came from.
    pub from_addr: SocketAddr,
    /// The message.
    pub body: Bytes,
}

/// Gossip between nodes, and who is connected. Nothing here waits for the network.
#[async_trait]
pub trait GossipNet: Debug + Send + Sync + 'static {
    /// Queues a message for the node that listens at `to`; dials in the background when there is
    /// no connection. A message that finds no connection or a full queue is dropped and counted:
    /// the next round brings the same news.
    fn send_gossip(&self, to: SocketAddr, message: Bytes);

    /// The receiving end. The first caller gets it.
    fn take_gossip(&self) -> Option<mpsc::Receiver<GossipMessage>>;

    /// Asks for a connection to `addr`, whose certificate must name `id`. Returns at once; backs
    /// off by itself, so that it can be called as often as it is true.
    fn meet(&self, id: &NodeId, addr: SocketAddr);

    /// The peers with a live, authenticated connection, and where they are.
    fn peers(&self) -> watch::Receiver<Arc<BTreeMap<NodeId, SocketAddr>>>;

    /// The encoded member table of a connected peer.
    async fn fetch_table(&self, peer: &NodeId) -> Result<Bytes, CallError>;
}

/// chitchat's messages stay below 64 KiB, the size of a UDP datagram it was made for.
pub(super) const GOSSIP_BYTES_MAX: usize = 64 * 1024;
