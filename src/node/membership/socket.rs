//! chitchat's messages over the node's own network, and which of them are believed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatId, ChitchatMessage, Deserializable, NodeState, Serializable};
use tokio::sync::mpsc;
use tracing::debug;

use crate::net::{GossipMessage, GossipNet};

/// The nodes that chitchat knows of, and those that it is about to be told of: what a message may
/// still add to them is bounded.
#[derive(Debug, Default)]
pub(super) struct KnownIds(Mutex<BTreeSet<ChitchatId>>);

impl KnownIds {
    /// Takes over what chitchat knows now.
    pub(super) fn refresh(&self, nodes: &BTreeMap<ChitchatId, NodeState>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() != nodes.len() {
            *known = nodes.keys().cloned().collect();
        }
    }

    /// Whether there is room for these; if so they are known from now on.
    fn admit(&self, ids: BTreeSet<ChitchatId>) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh: Vec<_> = ids.into_iter().filter(|id| !known.contains(id)).collect();
        let has_room = known.len() + fresh.len() <= usize::from(NODES_NAMED_MAX);
        if has_room {
            known.extend(fresh);
        }
        has_room
    }
}

/// Opens the one socket that a node's chitchat has.
pub(super) struct GossipTransport {
    net: Arc<dyn GossipNet>,
    inbox: Mutex<Option<mpsc::Receiver<GossipMessage>>>,
    known: Arc<KnownIds>,
    refused: Arc<AtomicU64>,
}

impl GossipTransport {
    /// `None` when the network's receiving end is taken already.
    pub(super) fn new(
        net: Arc<dyn GossipNet>,
        known: Arc<KnownIds>,
        refused: Arc<AtomicU64>,
    ) -> Option<Self> {
        let inbox = Mutex::new(Some(net.take_gossip()?));
        Some(Self {
            net,
            inbox,
            known,
            refused,
        })
    }
}

impl fmt::Debug for GossipTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GossipTransport")
    }
}

#[async_trait]
impl Transport for GossipTransport {
    async fn open(&self, _listen_addr: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let inbox = self
            .inbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let inbox = inbox.ok_or_else(|| anyhow::Error::msg("the gossip socket is open already"))?;
        let (net, known) = (Arc::clone(&self.net), Arc::clone(&self.known));
        let refused = Arc::clone(&self.refused);
        Ok(Box::new(GossipSocket {
            net,
            inbox,
            known,
            refused,
        }))
    }
}

struct GossipSocket {
    net: Arc<dyn GossipNet>,
    inbox: mpsc::Receiver<GossipMessage>,
    known: Arc<KnownIds>,
    refused: Arc<AtomicU64>,
}

#[async_trait]
impl Socket for GossipSocket {
    /// Only queues: chitchat's loop waits for this, and must not wait for a dead peer.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        self.net
            .send_gossip(to, Bytes::from(message.serialize_to_vec()));
        Ok(())
    }

    /// Skips what is not believed. An error from here would end chitchat's loop for good: there is
    /// one only when the network is gone.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            let received = self.inbox.recv().await;
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

/// Decodes a message if its sender may say it.
///
/// A message does not name its sender, the connection's certificate does. But whoever begins a
/// round or answers one sends a digest of all it knows, itself included: one without the
/// sender is not its own. A digest also names third nodes, which is what Scuttlebutt is for; it
/// cannot name more than a cluster has, and none of them enters the ring by being named.
fn believe(from: &str, body: &[u8], known: &KnownIds) -> Result<ChitchatMessage, &'static str> {
    let named = match digest_bytes(body)? {
        Some(mut digest) => digest_ids(&mut digest).ok_or("malformed digest")?,
        None => BTreeSet::new(),
    };
    let is_begun_or_answered = digest_bytes(body)?.is_some();
    if is_begun_or_answered && !named.iter().any(|id| *id.node_id == *from) {
        return Err("a digest that does not name its sender");
    }
    let mut rest = body;
    let message = ChitchatMessage::deserialize(&mut rest).map_err(|_error| "malformed message")?;
    if !rest.is_empty() {
        return Err("bytes after the message");
    }
    if !known.admit(named) {
        return Err("more nodes than a cluster can have");
    }
    Ok(message)
}

/// The part of a message that begins with its digest; `None` for kinds without one. Layout of
/// chitchat 0.11: magic number 2, protocol version 1, kind 1, then the digest.
fn digest_bytes(body: &[u8]) -> Result<Option<&[u8]>, &'static str> {
    const HEADER_BYTES: usize = 4;
    const SYN: u8 = 0;
    const SYN_ACK: u8 = 1;
    match body.get(HEADER_BYTES - 1) {
        None => Err("shorter than a header"),
        Some(&(SYN | SYN_ACK)) => Ok(Some(&body[HEADER_BYTES..])),
        Some(_) => Ok(None),
    }
}

fn digest_ids(digest: &mut &[u8]) -> Option<BTreeSet<ChitchatId>> {
    let nodes = u16::deserialize(digest).ok()?;
    if nodes > NODES_NAMED_MAX {
        return None;
    }
    let mut ids = BTreeSet::new();
    for _ in 0..nodes {
        let id = ChitchatId::deserialize(digest).ok()?;
        // Heartbeat and two versions.
        (0..3)
            .try_for_each(|_| u64::deserialize(digest).map(drop))
            .ok()?;
        ids.insert(id);
    }
    Some(ids)
}

/// chitchat writes a digest of everyone into each message of at most 64 KiB and panics when it
/// does not fit: at 24 + 17 + 15 bytes for a name of 13 characters, 1,150 nodes do. Restarted
/// nodes count twice until they are forgotten.
const NODES_NAMED_MAX: u16 = 1_100;

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> KnownIds {
        KnownIds::default()
    }

    fn syn(names: &[&str]) -> Vec<u8> {
        let mut bytes = 45_139u16.to_le_bytes().to_vec();
        bytes.extend([0, 0]);
        u16::try_from(names.len()).unwrap().serialize(&mut bytes);
        for name in names {
            ChitchatId::new(*name, 1, ([127, 0, 0, 1], 1).into()).serialize(&mut bytes);
            (0..3).for_each(|number: u64| number.serialize(&mut bytes));
        }
        "blue".serialize(&mut bytes);
        bytes
    }

    #[test]
    fn a_node_speaks_for_itself_and_of_others() {
        assert!(matches!(
            believe("a", &syn(&["a", "b"]), &known()),
            Ok(ChitchatMessage::Syn { .. })
        ));
        assert!(believe("c", &syn(&["a", "b"]), &known()).is_err());
        assert!(believe("a", &syn(&[]), &known()).is_err());
    }

    #[test]
    fn invented_crowds_and_broken_messages_are_refused() {
        let crowd: Vec<String> = (0..=NODES_NAMED_MAX).map(|n| format!("n{n}")).collect();
        let crowd: Vec<&str> = crowd.iter().map(String::as_str).collect();
        assert!(believe("n0", &syn(&crowd), &known()).is_err());
        let whole = syn(&["a"]);
        for end in 0..whole.len() {
            assert!(
                believe("a", &whole[..end], &known()).is_err(),
                "cut at {end}"
            );
        }
        assert!(believe("a", &[whole, vec![0]].concat(), &known()).is_err());
    }

    #[test]
    fn many_messages_cannot_name_more_than_one_may() {
        let known = known();
        let crowd =
            |from: u16| -> Vec<String> { (from..from + 600).map(|n| format!("n{n}")).collect() };
        let message = |crowd: &[String]| syn(&crowd.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(believe("n0", &message(&crowd(0)), &known).is_ok());
        assert!(believe("n600", &message(&crowd(600)), &known).is_err());
        assert!(
            believe("n0", &message(&crowd(0)), &known).is_ok(),
            "the known go on"
        );
    }
}
