//! One UDP socket and port for everything a node says to its peers.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use quinn::{EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::admin::{AdminService, serve_admin};
use super::dial::DialBook;
use super::gossip::{GossipMessage, GossipNet};
use super::identity::Identity;
use super::link::run_link;
use super::peers::{CloseCode, Link, Made, Peers, RACE_WINDOW};
use super::refusals::{Refusals, RefusedConnection};
use super::tls::{admit, negotiated_alpn, peer_chain, peer_identity, quic_client, quic_server};
use super::transport::{CallError, Lane, Operations, PeerService, ReplySink, Response, Transport};
use super::{ADMIN_ALPN, Credentials, PEER_ALPN, SERVER_NAME, TlsError};
use crate::env::Env;
use crate::model::{Millis, NodeId, NodeTag};
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
    /// Gossip messages handed to connections.
    pub sent_gossip: AtomicU64,
    /// Gossip messages that came.
    pub received_gossip: AtomicU64,
}

/// A node's QUIC endpoint. Clones share it.
#[derive(Debug, Clone)]
pub struct Endpoint(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) quic: quinn::Endpoint,
    pub(super) self_id: NodeId,
    cluster: String,
    trust: RwLock<Trust>,
    /// Of receiving and of sending, in bytes, as the kernel has granted them.
    socket_buffers: (usize, usize),
    pub(super) env: Env,
    pub(super) peers: Peers,
    dials: Mutex<DialBook>,
    service: OnceLock<Arc<dyn PeerService>>,
    admin: OnceLock<Arc<dyn AdminService>>,
    gossip_in: mpsc::Sender<GossipMessage>,
    gossip_out: Mutex<Option<mpsc::Receiver<GossipMessage>>>,
    pub(super) stats: NetStats,
    refusals: Refusals,
    pub(super) frame_bytes_max: usize,
}

/// Who this node is to others, and whom it believes: exchanged whole.
#[derive(Debug)]
struct Trust {
    credentials: Credentials,
    dialling: quinn::ClientConfig,
    /// Grows with each certificate of this node.
    generation: u64,
}

/// What is known of the connection to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerFacts {
    /// The peer.
    pub id: NodeId,
    /// The smoothed time that a packet takes to it and back.
    pub round_trip: Duration,
    /// Packets lost on the way to it.
    pub lost_packets: u64,
    /// Packets sent to it.
    pub sent_packets: u64,
    /// The last moment of the certificate that it showed.
    pub certificate_until: Option<Millis>,
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
        let socket_buffers = socket_buffers(&socket);
        let (server, dialling) = quic_configs(credentials)?;
        let runtime = quinn::default_runtime()
            .ok_or_else(|| NetError::Runtime(std::io::Error::other("no tokio runtime")))?;
        let quic = quinn::Endpoint::new(EndpointConfig::default(), Some(server), socket, runtime)
            .map_err(NetError::Runtime)?;
        let trust = Trust {
            credentials: credentials.clone(),
            dialling,
            generation: 0,
        };
        let (gossip_in, gossip_out) = mpsc::channel(GOSSIP_INBOX_MAX);
        Ok(Self(Arc::new(Inner {
            quic,
            self_id: credentials.identity().name().clone(),
            cluster: credentials.identity().cluster().to_owned(),
            trust: RwLock::new(trust),
            socket_buffers,
            env: env.clone(),
            peers: Peers::new(),
            dials: Mutex::new(DialBook::new(env.rng.clone())),
            service: OnceLock::new(),
            admin: OnceLock::new(),
            gossip_in,
            gossip_out: Mutex::new(Some(gossip_out)),
            stats: NetStats::default(),
            refusals: Refusals::default(),
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

    /// Answers admins from now on. Has an effect once.
    pub fn serve_admins(&self, service: Arc<dyn AdminService>) {
        // The first one stays.
        drop(self.0.admin.set(service));
    }

    /// Shows other credentials from now on and judges by them, without losing a request:
    /// connections to peers are made anew with a new certificate before the old ones are closed.
    /// Peers whose certificate was taken back are cut off at once; those whose authority is not
    /// believed any more are, unless they show another one.
    pub fn renew(&self, credentials: &Credentials) -> Result<(), NetError> {
        let (server, dialling) = quic_configs(credentials)?;
        {
            let mut trust = self.0.trust.write().unwrap_or_else(PoisonError::into_inner);
            let is_new = !credentials.has_certificate_of(&trust.credentials);
            self.0.quic.set_server_config(Some(server));
            *trust = Trust {
                credentials: credentials.clone(),
                dialling,
                generation: trust.generation + u64::from(is_new),
            };
        }
        let now = self.0.env.clock.wall();
        for link in self.0.peers.all() {
            let chain = link.chain();
            let Err(reason) = credentials.still_trusts(&chain, now) else {
                continue;
            };
            if credentials.has_taken_back(&chain) {
                warn!(peer = %link.id, %reason, "cut off: it is no longer believed");
                link.close(CloseCode::NotAdmitted);
            } else {
                let inner = Arc::clone(&self.0);
                self.0
                    .env
                    .tasks
                    .spawn(inner.replace(link, Otherwise::Close));
            }
        }
        self.0.replace_outdated();
        Ok(())
    }

    /// Connections to peers that were made with an earlier certificate of this node, and are being
    /// made anew.
    #[must_use]
    pub fn outdated_connections(&self) -> usize {
        let generation = self.0.trust().generation;
        let links = self.0.peers.all();
        links
            .iter()
            .filter(|link| link.generation < generation)
            .count()
    }

    /// The credentials in use.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        self.0.credentials()
    }

    /// Sizes of the socket's buffers for receiving and for sending, in bytes, as the kernel has
    /// granted them, and the size that is asked for.
    #[must_use]
    pub fn socket_buffers(&self) -> (usize, usize, usize) {
        let (receive, send) = self.0.socket_buffers;
        (receive, send, SOCKET_BUFFER_BYTES)
    }

    /// The peers that there is a connection to.
    #[must_use]
    pub fn peer_facts(&self) -> Vec<PeerFacts> {
        let links = self.0.peers.all().into_iter();
        links.map(|link| link.facts()).collect()
    }

    /// The last connections that were refused, by either side of them.
    #[must_use]
    pub fn refusals(&self) -> Vec<RefusedConnection> {
        self.0.refusals.all()
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
        let stats = &self.0.stats;
        let counter = if sent {
            &stats.sent_gossip
        } else {
            &stats.dropped_gossip
        };
        counter.fetch_add(1, Ordering::Relaxed);
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
        self.stats.received_gossip.fetch_add(1, Ordering::Relaxed);
        if self.gossip_in.try_send(message).is_err() {
            self.stats.dropped_gossip.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn admin(&self) -> Option<&Arc<dyn AdminService>> {
        self.admin.get()
    }

    fn credentials(&self) -> Credentials {
        self.trust().credentials.clone()
    }

    fn trust(&self) -> RwLockReadGuard<'_, Trust> {
        // std RwLock: never held across an await.
        self.trust.read().unwrap_or_else(PoisonError::into_inner)
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
            let from = incoming.remote_address();
            let (accepted, generation) = {
                let trust = self.trust();
                (incoming.accept(), trust.generation)
            };
            let connecting = match accepted {
                Ok(connecting) => connecting,
                Err(error) => {
                    debug!(%from, %error, "a connection ended as it began");
                    continue;
                }
            };
            self.env.tasks.spawn(async move {
                match timeout(HANDSHAKE_MAX, connecting).await {
                    Ok(Ok(connection)) => inner.admit(connection, generation, None).await,
                    Ok(Err(error)) => {
                        inner
                            .stats
                            .refused_connections
                            .fetch_add(1, Ordering::Relaxed);
                        inner.on_refused(from, &error);
                        warn!(%from, %error, "refused a connection");
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
        let mut looked = self.env.clock.monotonic();
        loop {
            ticks.tick().await;
            let now = self.env.clock.monotonic();
            if now.saturating_duration_since(looked) >= OUTDATED_INTERVAL {
                looked = now;
                self.replace_outdated();
            }
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

    /// Whether the other end of a connection would be let in now.
    fn believe(&self, connection: &quinn::Connection) -> Result<(), rustls::Error> {
        let (chain, now) = (peer_chain(connection), self.env.clock.wall());
        self.credentials().still_trusts(&chain, now)
    }

    pub(super) fn is_believed(&self, connection: &quinn::Connection) -> bool {
        self.believe(connection).is_ok()
    }

    fn has_taken_back(&self, link: &Link) -> bool {
        self.trust().credentials.has_taken_back(&link.chain())
    }

    fn on_refused(&self, with: SocketAddr, reason: &impl ToString) {
        let now = self.env.clock.wall();
        self.refusals.note(with, &reason.to_string(), now);
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
        let connected = self.connect(addr).await;
        self.dialled(addr, connected.is_some());
        if let Some((connection, generation)) = connected {
            self.admit(connection, generation, Some(expected)).await;
        }
    }

    /// A connection, and with which of this node's certificates it was made.
    async fn connect(&self, addr: SocketAddr) -> Option<(quinn::Connection, u64)> {
        let (dialling, generation) = {
            let trust = self.trust();
            (trust.dialling.clone(), trust.generation)
        };
        let connecting = match self.quic.connect_with(dialling, addr, SERVER_NAME) {
            Ok(connecting) => connecting,
            Err(error) => {
                warn!(%addr, %error, "cannot dial");
                return None;
            }
        };
        match timeout(DIAL_MAX, connecting).await {
            Ok(Ok(connection)) => Some((connection, generation)),
            Ok(Err(error @ quinn::ConnectionError::TransportError(_))) => {
                self.on_refused(addr, &error);
                warn!(%addr, %error, "refused the node that was dialled");
                None
            }
            Ok(Err(error)) => {
                debug!(%addr, %error, "dialling failed");
                None
            }
            Err(_) => None,
        }
    }

    /// Makes those connections anew that were made with an earlier certificate of this node.
    fn replace_outdated(self: &Arc<Self>) {
        let generation = self.trust().generation;
        let now = self.env.clock.monotonic();
        for link in self.peers.all() {
            let is_old = link.generation < generation
                // A younger one might be kept, for one of two that were made at the same time.
                && now.saturating_duration_since(link.since) >= RACE_WINDOW;
            if is_old && !link.is_replaced.swap(true, Ordering::Relaxed) {
                let inner = Arc::clone(self);
                self.env.tasks.spawn(inner.replace(link, Otherwise::Keep));
            }
        }
    }

    /// Makes the connection to a peer anew. It replaces the old one as soon as it is there.
    async fn replace(self: Arc<Self>, link: Arc<Link>, otherwise: Otherwise) {
        let addr = link.connection.remote_address();
        match (self.connect(addr).await, otherwise) {
            (Some((connection, generation)), _) => {
                let expected = Some(Some(link.id.clone()));
                if otherwise == Otherwise::Close {
                    // Whatever becomes of the new one, the old one is over soon.
                    let old = Arc::clone(&link);
                    self.env.tasks.spawn(Arc::clone(&self).retire(old));
                }
                self.admit(connection, generation, expected).await;
                link.is_replaced.store(false, Ordering::Relaxed);
            }
            (None, Otherwise::Keep) => link.is_replaced.store(false, Ordering::Relaxed),
            (None, Otherwise::Close) => {
                warn!(peer = %link.id, "cut off: it is no longer believed");
                link.close(CloseCode::NotAdmitted);
            }
        }
    }

    /// Closes a connection that another has replaced, once nobody waits for an answer on it.
    async fn retire(self: Arc<Self>, link: Arc<Link>) {
        let retired = self.env.clock.monotonic();
        loop {
            tokio::time::sleep(HOUSEKEEPING).await;
            let since = self.env.clock.monotonic() - retired;
            // The peer may not have taken the new one yet.
            let is_done = since >= RETIRED_MIN && link.is_idle();
            if is_done || since >= RETIRED_MAX || self.has_taken_back(&link) {
                return link.close(CloseCode::Duplicate);
            }
        }
    }

    /// Checks who the peer is, then runs the connection until it ends. `dialled`: whom this node
    /// expected, if it dialled.
    async fn admit(
        self: Arc<Self>,
        connection: quinn::Connection,
        generation: u64,
        dialled: Option<Option<NodeId>>,
    ) {
        let from = connection.remote_address();
        let id = match self.identify(&connection, dialled.as_ref()) {
            Ok(Caller::Peer(id)) => id,
            Ok(Caller::Admin(identity)) => {
                return serve_admin(&self, &connection, &identity).await;
            }
            Err(reason) => {
                self.stats
                    .refused_connections
                    .fetch_add(1, Ordering::Relaxed);
                self.on_refused(from, &reason);
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
        let made = Made {
            dialler,
            since: self.env.clock.monotonic(),
            generation,
        };
        let (link, outbox) = Link::new(id, connection, made, self.frame_bytes_max);
        let link = Arc::new(link);
        let retired = self.peers.adopt(&link);
        if self.has_taken_back(&link) {
            // Since it was let in, and before it could be found among the others.
            link.close(CloseCode::NotAdmitted);
        }
        if let Some(retired) = retired {
            // Either way the peer may have calls under way on it.
            let inner = Arc::clone(&self);
            self.env.tasks.spawn(inner.retire(retired));
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
    ) -> Result<Caller, String> {
        let identity = peer_identity(connection).map_err(|error| error.to_string())?;
        let alpn = negotiated_alpn(connection).unwrap_or_default();
        let identity = admit(identity, &alpn, &self.cluster).map_err(|error| error.to_string())?;
        // By what is believed now: that may have changed since the handshake began.
        self.believe(connection)
            .map_err(|error| error.to_string())?;
        if alpn == ADMIN_ALPN {
            return Ok(Caller::Admin(identity));
        }
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
        Ok(Caller::Peer(id))
    }
}

/// What to do with a connection that cannot be made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Otherwise {
    Keep,
    Close,
}

/// Who is at the other end of a connection.
enum Caller {
    Peer(NodeId),
    Admin(Identity),
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

/// For accepting and for dialling.
fn quic_configs(
    credentials: &Credentials,
) -> Result<(quinn::ServerConfig, quinn::ClientConfig), NetError> {
    let transport = Arc::new(transport_config());
    let mut server = quinn::ServerConfig::with_crypto(quic_server(credentials)?);
    server.transport_config(Arc::clone(&transport));
    let mut client = quinn::ClientConfig::new(quic_client(credentials, PEER_ALPN)?);
    client.transport_config(transport);
    Ok((server, client))
}

fn transport_config() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MAX_MS))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(LANES_MAX * STREAM_WINDOW_BYTES))
        .send_window(u64::from(LANES_MAX * STREAM_WINDOW_BYTES))
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

fn socket_buffers(socket: &UdpSocket) -> (usize, usize) {
    let socket = socket2::SockRef::from(socket);
    // Linux tells twice what it grants (socket(7)): half is for its own book-keeping.
    let granted = |size: std::io::Result<usize>| size.unwrap_or(0) / 2;
    (
        granted(socket.recv_buffer_size()),
        granted(socket.send_buffer_size()),
    )
}

const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Five keep-alives: a connection is given up after that much silence.
const IDLE_MAX_MS: u32 = 2_000;
const KEEP_ALIVE: Duration = Duration::from_millis(400);
/// Sidecars share a data centre: without this the first lost packet of a handshake costs a second.
const INITIAL_RTT: Duration = Duration::from_millis(50);
/// What one lane may have on its way or unread at the peer. It bounds how long a small request waits
/// behind large ones: they share a socket, whose datagrams the peer takes in the order in which they
/// came, and it takes some half a gigabyte a second. It bounds throughput too, to this much a round
/// trip: 256 MB/s at 2 ms, more than a large value needs (see `time_budget`) up to 100 ms.
///
/// A connection's windows are those of all its lanes together: none of them is held up by another.
const STREAM_WINDOW_BYTES: u32 = 512 * 1024;
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
/// How often it is looked for connections to be made anew.
const OUTDATED_INTERVAL: Duration = Duration::from_secs(1);
/// Far longer than the new connection takes to be known at both ends.
const RETIRED_MIN: Duration = Duration::from_secs(1);
/// Whoever still waits by then has had its time.
const RETIRED_MAX: Duration = Duration::from_secs(10);
const GOODBYE_MAX: Duration = Duration::from_millis(500);
