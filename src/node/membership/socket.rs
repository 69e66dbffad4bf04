//! chitchat's messages over the node's own network.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Serializable};
use tokio::sync::mpsc;
use tracing::debug;

use super::belief::{KnownIds, believe};
use crate::net::{GossipMessage, GossipNet};

/// The network's receiving end, which one socket at a time has.
#[derive(Debug, Clone)]
pub(super) struct Inbox(Arc<Mutex<Option<mpsc::Receiver<GossipMessage>>>>);

impl Inbox {
    /// `None` when the network's receiving end is taken already.
    pub(super) fn of(net: &dyn GossipNet) -> Option<Self> {
        Some(Self(Arc::new(Mutex::new(Some(net.take_gossip()?)))))
    }

    fn take(&self) -> Option<mpsc::Receiver<GossipMessage>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put_back(&self, receiver: mpsc::Receiver<GossipMessage>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(receiver);
    }
}

/// Opens the one socket that a chitchat has.
pub(super) struct GossipTransport {
    /// Where this node is: an earlier life of it may still be told of as dead.
    pub(super) own: SocketAddr,
    pub(super) net: Arc<dyn GossipNet>,
    pub(super) inbox: Inbox,
    pub(super) known: Arc<KnownIds>,
    pub(super) refused: Arc<AtomicU64>,
}

impl fmt::Debug for GossipTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GossipTransport")
    }
}

#[async_trait]
impl Transport for GossipTransport {
    async fn open(&self, _listen_addr: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let receiver = self
            .inbox
            .take()
            .ok_or_else(|| anyhow::Error::msg("the gossip socket is open already"))?;
        Ok(Box::new(GossipSocket {
            own: self.own,
            net: Arc::clone(&self.net),
            inbox: self.inbox.clone(),
            receiver: Some(receiver),
            known: Arc::clone(&self.known),
            refused: Arc::clone(&self.refused),
        }))
    }
}

struct GossipSocket {
    own: SocketAddr,
    net: Arc<dyn GossipNet>,
    inbox: Inbox,
    /// There until the socket is dropped.
    receiver: Option<mpsc::Receiver<GossipMessage>>,
    known: Arc<KnownIds>,
    refused: Arc<AtomicU64>,
}

impl Drop for GossipSocket {
    fn drop(&mut self) {
        if let Some(receiver) = self.receiver.take() {
            self.inbox.put_back(receiver);
        }
    }
}

#[async_trait]
impl Socket for GossipSocket {
    /// Only queues: chitchat's loop waits for this, and must not wait for a dead peer.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        if to != self.own {
            self.net
                .send_gossip(to, Bytes::from(message.serialize_to_vec()));
        }
        Ok(())
    }

    /// Skips what is not believed. An error from here would end chitchat's loop: there is none.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            let received = match &mut self.receiver {
                Some(receiver) => receiver.recv().await,
                None => None,
            };
            let Some(GossipMessage {
                from,
                from_addr,
                body,
            }) = received
            else {
                // The node is stopping and takes this task with it.
                std::future::pending::<()>().await;
                continue;
            };
            match believe(from.as_str(), &body, &self.known) {
                Ok(message) => return Ok((from_addr, message)),
                Err(reason) => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    debug!(%from, reason, "refused a gossip message");
                }
            }
        }
    }
}
