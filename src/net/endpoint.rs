//! One UDP socket and port for everything a node says to its peers.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use quinn::{EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::dial::DialBook;
use super::gossip::{GossipMessage, GossipNet};
use super::link::run_link;
use super::peers::{CloseCode, Link, Peers};
use super::tls::{admit, negotiated_alpn, peer_identity, quic_client, quic_server};
use super::transport::{CallError, Lane, Operations, PeerService, ReplySink, Response, Transport};
use super::{Credentials, PEER_ALPN, SERVER_NAME, TlsError};
use crate::env::Env;
use crate::model::{NodeId, NodeTag};
use crate::wire::{Answer, FrameError, Operation, frame_bytes_max};

/// Settings of the endpoint.
#[derive(Debug, Clone)]
pub struct Config {
    /// The UDP address to listen on, for everything.
    pub listen: SocketAddr,
    /// The longest value, in bytes: frames are bounded by it.
    pub value_bytes_max: usize,
}

/// Why an endpoint cannot be opened.
#[derive(Debug, Error)]
pub enum NetError {
    /// The address is taken or is not one of this machine.
    #[error(
        "cannot listen on UDP {addr} (quic_listen): {cause}; stop what uses it or choose another port"
    )]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// The certificates do not make a TLS configuration.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Not within a tokio runtime.
    #[error("cannot start the QUIC endpoint: {0}")]
    Runtime(std::io::Error),
}

/// Facts that the endpoint counts.
#[derive(Debug, Default)]
pub struct NetStats {
    /// Connections refused because of who the peer is or is not.
    pub refused_connections: AtomicU64,
    /// Connections closed because of a malformed frame.
    pub malformed_frames: AtomicU64,
    /// Gossip messages dropped: no connection, or a full queue.
    pub dropped_gossip: AtomicU64,
    /// Calls refused because a queue was full.
    pub busy_calls: AtomicU64,
}

/// A node's QUIC endpoint. Clones share it.
#[derive(Debug, Clone)]
pub struct Endpoint(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) quic: quinn::Endpoint,
    pub(super) self_id: NodeId,
    cluster: String,
    pub(super) env: Env,
    pub(super) peers: Peers,
    dials: Mutex<DialBook>,
    service: OnceLock<Arc<dyn PeerService>>,
    gossip_in: mpsc::Sender<GossipMessage>,
    gossip_out: Mutex<Option<mpsc::Receiver<GossipMessage>>>,
    pub(super) stats: NetStats,
    pub(super) frame_bytes_max: usize,
}

impl Endpoint {
    /// Opens the socket. Nothing is accepted before [`Endpoint::serve`].
    pub fn bind(config: &Config, credentials: &Credentials, env: &Env) -> Result<Self, NetError> {
        let bind_failed = |cause| NetError::Bind {
            addr: config.listen,
            cause,
        };
        let socket = UdpSocket::bind(config.listen).map_err(bind_failed)?;
        enlarge_buffers(&socket);
        let transport = Arc::new(transport_config());
        let mut server = quinn::ServerConfig::with_crypto(quic_server(credentials)?);
        server.transport_config(Arc::clone(&transport));
        let mut client = quinn::ClientConfig::new(quic_client(credentials, PEER_ALPN)?);
        client.transport_config(transport);
        let runtime = quinn::default_runtime()
            .ok_or_else(|| NetError::Runtime(std::io::Error::other("no tokio runtime")))?;
        let mut quic =
            quinn::Endpoint::new(EndpointConfig::default(), Some(server), socket, runtime)
                .map_err(NetError::Runtime)?;
        quic.set_default_client_config(client);
        let (gossip_in, gossip_out) = mpsc::channel(GOSSIP_INBOX_MAX);
        Ok(Self(Arc::new(Inner {
            quic,
            self_id: credentials.identity().name().clone(),
            cluster: credentials.identity().cluster().to_owned(),
            env: env.clone(),
            peers: Peers::new(),
            dials: Mutex::new(DialBook::new(env.rng.clone())),
            service: OnceLock::new(),
            gossip_in,
            gossip_out: Mutex::new(Some(gossip_out)),
            stats: NetStats::default(),
            frame_bytes_max: frame_bytes_max(config.value_bytes_max),
        })))
    }

    /// Accepts peers, dials those that are to be met, and carries out what peers ask for. Ends
    /// with the tasks of the environment. Has an effect once.
    pub fn serve(&self, service: Arc<dyn PeerService>) {
        if self.0.service.set(service).is_err() {
            return;
        }
        let tasks = &self.0.env.tasks;
        tasks.spawn(Arc::clone(&self.0).accept_all());
        tasks.spawn(Arc::clone(&self.0).keep_house());
    }

    /// The address the socket is bound to.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.quic.local_addr()
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> &NetStats {
        &self.0.stats
    }

    /// Closes all connections and waits a moment, so that the peers learn of it.
    pub async fn close(&self) {
        self.0
            .peers
            .all()
            .iter()
            .for_each(|link| link.close(CloseCode::Shutdown));
        self.0.quic.close(
            CloseCode::Shutdown.into(),
            CloseCode::Shutdown.text().as_bytes(),
        );
        if timeout(GOODBYE_MAX, self.0.quic.wait_idle()).await.is_err() {
            debug!("closed without waiting for every peer to confirm");
        }
    }
}

impl Transport for Endpoint {
    fn call(
        &self,
        to: NodeTag,
        lane: Lane,
        operations: &Operations,
        deadline: Instant,
        sink: Box<dyn ReplySink>,
    ) -> Result<(), CallError> {
        let link = self.0.peers.link(to).ok_or(CallError::Unreachable)?;
        let budget = deadline.saturating_duration_since(self.0.env.clock.monotonic());
        let queued = link.lane(lane).call(operations, deadline, budget, sink);
        if queued == Err(CallError::Busy) {
            self.0.stats.busy_calls.fetch_add(1, Ordering::Relaxed);
        }
        queued
    }
}

#[async_trait]
impl GossipNet for Endpoint {
    fn send_gossip(&self, to: SocketAddr, message: Bytes) {
        let sent = match self.0.peers.link_at(to) {
            Some(link) => link.gossip.try_send(message).is_ok(),
            None => {
                self.0.want(to, None);
                false
            }
        };
        if !sent {
            self.0.stats.dropped_gossip.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn take_gossip(&self) -> Option<mpsc::Receiver<GossipMessage>> {
        self.0
            .gossip_out
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn meet(&self, id: &NodeId, addr: SocketAddr) {
        if *id != self.0.self_id && self.0.peers.link(id.tag()).is_none() {
            self.0.want(addr, Some(id.clone()));
        }
    }

    fn peers(&self) -> watch::Receiver<Arc<BTreeMap<NodeId, SocketAddr>>> {
        self.0.peers.watch()
    }

    async fn fetch_table(&self, peer: &NodeId) -> Result<Bytes, CallError> {
        let mut operations = Operations::default();
        operations.push(&Operation::Members);
        let deadline = self.0.env.clock.monotonic() + FETCH_TABLE_MAX;
        let (tell, told) = oneshot::channel();
        self.call(
            peer.tag(),
            Lane::Bulk,
            &operations,
            deadline,
            Box::new(TableSink(tell)),
        )?;
        told.await.unwrap_or(Err(CallError::ConnectionLost))
    }
}

impl Inner {
    pub(super) fn service(&self) -> Option<&Arc<dyn PeerService>> {
        self.service.get()
    }

    pub(super) fn deliver_gossip(&self, message: GossipMessage) {
        if self.gossip_in.try_send(message).is_err() {
            self.stats.dropped_gossip.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn accept_all(self: Arc<Self>) {
        while let Some(incoming) = self.quic.accept().await {
            if self.quic.open_connections() > CONNECTIONS_MAX {
                incoming.refuse();
                self.stats
                    .refused_connections
                    .fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let inner = Arc::clone(&self);
            self.env.tasks.spawn(async move {
                let from = incoming.remote_address();
                match timeout(HANDSHAKE_MAX, incoming).await {
                    Ok(Ok(connection)) => inner.admit(connection, None).await,
                    Ok(Err(error)) => {
                        inner
                            .stats
                            .refused_connections
                            .fetch_add(1, Ordering::Relaxed);
                        info!(%from, %error, "refused a connection");
                    }
                    Err(_) => debug!(%from, "a handshake took too long"),
                }
            });
        }
    }

    /// Expires calls and dials whom membership wants to meet.
    async fn keep_house(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(HOUSEKEEPING);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now = self.env.clock.monotonic();
            for link in self.peers.all() {
                link.lanes().into_iter().for_each(|lane| lane.expire(now));
            }
            let due = self
                .dials
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take_due(now);
            for (addr, expected) in due {
                let is_met = expected
                    .as_ref()
                    .is_some_and(|id| self.peers.link(id.tag()).is_some());
                if is_met || self.peers.link_at(addr).is_some() {
                    self.dialled(addr, true);
                } else {
                    self.env.tasks.spawn(Arc::clone(&self).dial(addr, expected));
                }
            }
        }
    }

    fn want(&self, addr: SocketAddr, expected: Option<NodeId>) {
        let now = self.env.clock.monotonic();
        self.dials
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .want(addr, expected, now);
    }

    fn dialled(&self, addr: SocketAddr, is_connected: bool) {
        let now = self.env.clock.monotonic();
        self.dials
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .on_result(addr, is_connected, now);
    }

    async fn dial(self: Arc<Self>, addr: SocketAddr, expected: Option<NodeId>) {
        let connecting = match self.quic.connect(addr, SERVER_NAME) {
            Ok(connecting) => connecting,
            Err(error) => {
                warn!(%addr, %error, "cannot dial");
                return self.dialled(addr, false);
            }
        };
        match timeout(DIAL_MAX, connecting).await {
            Ok(Ok(connection)) => {
                self.dialled(addr, true);
                self.admit(connection, Some(expected)).await;
            }
            Ok(Err(error)) => {
                debug!(%addr, %error, "dialling failed");
                self.dialled(addr, false);
            }
            Err(_) => self.dialled(addr, false),
        }
    }

    /// Checks who the peer is, then runs the connection until it ends. `dialled`: whom this node
    /// expected, if it dialled.
    async fn admit(
        self: Arc<Self>,
        connection: quinn::Connection,
        dialled: Option<Option<NodeId>>,
    ) {
        let from = connection.remote_address();
        let id = match self.identify(&connection, dialled.as_ref()) {
            Ok(id) => id,
            Err(reason) => {
                self.stats
                    .refused_connections
                    .fetch_add(1, Ordering::Relaxed);
                warn!(%from, reason, "closed a connection");
                connection.close(CloseCode::NotAdmitted.into(), reason.as_bytes());
                return;
            }
        };
        let dialler = if dialled.is_some() {
            self.self_id.tag()
        } else {
            id.tag()
        };
        let since = self.env.clock.monotonic();
        let (link, outbox) = Link::new(id, connection, dialler, since, self.frame_bytes_max);
        let link = Arc::new(link);
        if !self.peers.adopt(&link) {
            link.close(CloseCode::Duplicate);
            return;
        }
        debug!(peer = %link.id, %from, "connected");
        run_link(&self, &link, outbox).await;
        self.peers.forget(&link);
        link.lanes().into_iter().for_each(|lane| lane.close());
    }

    fn identify(
        &self,
        connection: &quinn::Connection,
        dialled: Option<&Option<NodeId>>,
    ) -> Result<NodeId, String> {
        let identity = peer_identity(connection).map_err(|error| error.to_string())?;
        let alpn = negotiated_alpn(connection).unwrap_or_default();
        let identity = admit(identity, &alpn, &self.cluster).map_err(|error| error.to_string())?;
        let id = identity.name().clone();
        if let Some(Some(expected)) = dialled
            && *expected != id
        {
            return Err(format!(
                "node `{id}` answered where `{expected}` was expected"
            ));
        }
        if id == self.self_id {
            return Err(format!(
                "another node uses this node's name `{id}`, or it dialled itself"
            ));
        }
        Ok(id)
    }
}

struct TableSink(oneshot::Sender<Result<Bytes, CallError>>);

impl ReplySink for TableSink {
    fn on_reply(self: Box<Self>, reply: Result<Response<'_>, CallError>) -> Result<(), FrameError> {
        let table = match reply {
            Ok(mut response) => match response.answers.read()? {
                Answer::Members(table) => Ok(response.frame.slice_ref(table)),
                _ => Err(CallError::ConnectionLost),
            },
            Err(error) => Err(error),
        };
        // Whoever asked may be gone: then nobody needs the answer.
        drop(self.0.send(table));
        Ok(())
    }
}

fn transport_config() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MAX_MS))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(4 * STREAM_WINDOW_BYTES))
        .send_window(4 * u64::from(STREAM_WINDOW_BYTES))
        .max_concurrent_bidi_streams(VarInt::from_u32(LANES_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(GOSSIP_STREAMS_MAX))
        .datagram_receive_buffer_size(None);
    config
}

/// Bursts from many peers must not overflow the kernel's default of 208 KiB. The kernel caps this
/// at `net.core.rmem_max`; less is slower, not wrong.
fn enlarge_buffers(socket: &UdpSocket) {
    let socket = socket2::SockRef::from(socket);
    for enlarged in [
        socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES),
        socket.set_send_buffer_size(SOCKET_BUFFER_BYTES),
    ] {
        if let Err(error) = enlarged {
            debug!(%error, "cannot enlarge a UDP buffer");
        }
    }
}

const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Five keep-alives: a connection is given up after that much silence.
const IDLE_MAX_MS: u32 = 2_000;
const KEEP_ALIVE: Duration = Duration::from_millis(400);
/// Sidecars share a data centre: without this the first lost packet of a handshake costs a second.
const INITIAL_RTT: Duration = Duration::from_millis(50);
/// Room for a value of the default limit in flight.
const STREAM_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Three lanes from each side, and as many again while a connection is replaced.
const LANES_MAX: u32 = 8;
const GOSSIP_STREAMS_MAX: u32 = 64;
const GOSSIP_INBOX_MAX: usize = 1_024;
/// 1,000 nodes, each connected twice for a moment.
const CONNECTIONS_MAX: usize = 2_000;
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
const DIAL_MAX: Duration = Duration::from_millis(1_500);
const HOUSEKEEPING: Duration = Duration::from_millis(20);
const FETCH_TABLE_MAX: Duration = Duration::from_secs(5);
const GOODBYE_MAX: Duration = Duration::from_millis(500);
