//! The tasks of one connection: lanes in both directions and gossip.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{info, warn};

use super::endpoint::Inner;
use super::gossip::{GOSSIP_BYTES_MAX, GossipMessage};
use super::lane::serve_lane;
use super::peers::{CloseCode, Link};
use super::transport::Lane;

/// Runs a connection until it ends. Its tasks end with it.
pub(super) async fn run_link(inner: &Arc<Inner>, link: &Arc<Link>, outbox: mpsc::Receiver<Bytes>) {
    let tasks = inner.env.tasks.child();
    for lane in [Lane::Foreground, Lane::Large, Lane::Bulk] {
        tasks.spawn(call_lane(Arc::clone(inner), Arc::clone(link), lane));
    }
    tasks.spawn(serve_lanes(Arc::clone(inner), Arc::clone(link)));
    tasks.spawn(send_gossip(Arc::clone(inner), Arc::clone(link), outbox));
    tasks.spawn(receive_gossip(Arc::clone(inner), Arc::clone(link)));
    let reason = link.connection.closed().await;
    info!(peer = %link.id, %reason, "connection ended");
    tasks.stop();
}

/// This node's calls to the peer.
async fn call_lane(inner: Arc<Inner>, link: Arc<Link>, lane: Lane) {
    let Ok((mut send, mut recv)) = link.connection.open_bi().await else {
        return;
    };
    if open(&mut send, lane).await.is_err() {
        return;
    }
    let queue = link.lane(lane);
    let read = tokio::select! {
        biased;
        read = queue.read_from(&mut recv) => read,
        () = queue.write_to(&mut send) => Ok(()),
    };
    if let Err(error) = read {
        on_malformed(&inner, &link, &error);
    }
    // Without one of its lanes a connection is of no use.
    link.close(CloseCode::Shutdown);
}

/// The peer's calls to this node.
async fn serve_lanes(inner: Arc<Inner>, link: Arc<Link>) {
    let tasks = inner.env.tasks.child();
    while let Ok((send, recv)) = link.connection.accept_bi().await {
        let (inner, link) = (Arc::clone(&inner), Arc::clone(&link));
        tasks.spawn(serve_one(inner, link, send, recv));
    }
    tasks.stop();
}

async fn serve_one(inner: Arc<Inner>, link: Arc<Link>, mut send: SendStream, mut recv: RecvStream) {
    let Some(service) = inner.service() else {
        return;
    };
    let Some(priority) = accept(&mut recv).await else {
        return on_malformed(&inner, &link, &"a stream that names no lane");
    };
    if send.set_priority(priority).is_err() {
        return;
    }
    let served = serve_lane(&mut recv, &mut send, &**service, inner.frame_bytes_max).await;
    if let Err(error) = served {
        on_malformed(&inner, &link, &error);
    }
}

/// Each message has a stream of its own: a lost packet holds up no other.
async fn send_gossip(inner: Arc<Inner>, link: Arc<Link>, mut outbox: mpsc::Receiver<Bytes>) {
    while let Some(message) = outbox.recv().await {
        let sending = async {
            let mut stream = link.connection.open_uni().await.ok()?;
            stream.set_priority(GOSSIP_PRIORITY).ok()?;
            stream.write_chunk(message).await.ok()?;
            stream.finish().ok()
        };
        if !matches!(timeout(GOSSIP_SEND_MAX, sending).await, Ok(Some(()))) {
            inner.stats.dropped_gossip.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn receive_gossip(inner: Arc<Inner>, link: Arc<Link>) {
    // One after the other: a peer cannot make this node hold more than one message of its own.
    while let Ok(mut stream) = link.connection.accept_uni().await {
        let Ok(Ok(body)) = timeout(GOSSIP_SEND_MAX, stream.read_to_end(GOSSIP_BYTES_MAX)).await
        else {
            inner.stats.dropped_gossip.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let from_addr = link.connection.remote_address();
        inner.deliver_gossip(GossipMessage {
            from: link.id.clone(),
            from_addr,
            body: body.into(),
        });
    }
}

/// The first byte of a stream says which lane it is; a stream without bytes does not exist for
/// the peer.
async fn open(send: &mut SendStream, lane: Lane) -> Result<(), quinn::WriteError> {
    let (name, priority) = match lane {
        Lane::Foreground => (FOREGROUND, FOREGROUND_PRIORITY),
        Lane::Large => (LARGE, LARGE_PRIORITY),
        Lane::Bulk => (BULK, BULK_PRIORITY),
    };
    if send.set_priority(priority).is_err() {
        return Err(quinn::WriteError::ClosedStream);
    }
    send.write_all(&[name]).await
}

async fn accept(recv: &mut RecvStream) -> Option<i32> {
    let mut name = [0];
    recv.read_exact(&mut name).await.ok()?;
    match name[0] {
        FOREGROUND => Some(FOREGROUND_PRIORITY),
        LARGE => Some(LARGE_PRIORITY),
        BULK => Some(BULK_PRIORITY),
        _ => None,
    }
}

fn on_malformed(inner: &Inner, link: &Link, error: &dyn std::fmt::Display) {
    inner.stats.malformed_frames.fetch_add(1, Ordering::Relaxed);
    warn!(peer = %link.id, %error, "closed a connection");
    link.close(CloseCode::Malformed);
}

const FOREGROUND: u8 = b'f';
const LARGE: u8 = b'l';
const BULK: u8 = b'b';
/// Gossip first: a node under load must not look dead. Then requests, then what can wait.
const GOSSIP_PRIORITY: i32 = 3;
const FOREGROUND_PRIORITY: i32 = 2;
const LARGE_PRIORITY: i32 = 1;
const BULK_PRIORITY: i32 = 0;
const GOSSIP_SEND_MAX: Duration = Duration::from_secs(1);
