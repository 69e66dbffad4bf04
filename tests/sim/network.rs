//! The network between simulated nodes: every delay, loss and duplicate comes from the seed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quorate::env::SeededRng;
use quorate::model::{NodeTag, Version};
use quorate::net::{CallError, Lane, Operations, PeerService, ReplySink, Response, Transport};
use quorate::wire::{
    FrameReader, LENGTH_BYTES, ResponseHeader, finish_frame, split_frame, start_frame,
};
use tokio::time::{Instant, sleep, timeout_at};

use crate::breakage::{
    Breakage, Cache, Sent, Served, Told, broken_call, broken_request, broken_response,
    broken_serve, has_to_wait, made_up, stand_in_as_home,
};
use crate::cluster::now;

/// A network that loses, delays, doubles and reorders what the seed says. Clones share it.
#[derive(Clone)]
pub(crate) struct Network(Arc<Mutex<State>>);

pub(crate) struct State {
    rng: SeededRng,
    peers: BTreeMap<NodeTag, Peer>,
    /// From, to: what is sent is lost.
    cut: BTreeSet<(NodeTag, NodeTag)>,
    /// From, to: the sender believes that there is no connection.
    believed_away: BTreeSet<(NodeTag, NodeTag)>,
    pub(crate) weather: Weather,
    pub(crate) breakage: Option<Breakage>,
    /// Versions by the node that sent them first, for breakages of repairs.
    first_sent: BTreeMap<Version, NodeTag>,
    cache: Cache,
    told: Told,
    trace: DefaultHasher,
    started: Instant,
    pub(crate) messages: u64,
}

struct Peer {
    service: Arc<dyn PeerService>,
    /// Which start of the node it is; an odd one out is dead.
    epoch: u64,
    is_up: bool,
    is_paused: bool,
    slow: Duration,
}

/// What all links have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) loss: f64,
    pub(crate) duplication: f64,
    pub(crate) delay_ms: u64,
    pub(crate) jitter_ms: u64,
}

impl Default for Weather {
    fn default() -> Self {
        Self {
            loss: 0.002,
            duplication: 0.002,
            delay_ms: 1,
            jitter_ms: 3,
        }
    }
}

/// The network as one start of one node sees it.
#[derive(Clone)]
pub(crate) struct SimTransport {
    network: Network,
    from: NodeTag,
    epoch: u64,
}

impl Network {
    pub(crate) fn new(seed: u64, breakage: Option<Breakage>) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng: SeededRng::from_seed(seed ^ 0x006e_6574),
            peers: BTreeMap::new(),
            cut: BTreeSet::new(),
            believed_away: BTreeSet::new(),
            weather: Weather::default(),
            breakage,
            first_sent: BTreeMap::new(),
            cache: Cache::default(),
            told: Told::default(),
            trace: DefaultHasher::new(),
            started: now(),
            messages: 0,
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node has started.
    pub(crate) fn connect(
        &self,
        tag: NodeTag,
        epoch: u64,
        service: Arc<dyn PeerService>,
    ) -> SimTransport {
        let peer = Peer {
            service,
            epoch,
            is_up: true,
            is_paused: false,
            slow: Duration::ZERO,
        };
        self.lock().peers.insert(tag, peer);
        SimTransport {
            network: self.clone(),
            from: tag,
            epoch,
        }
    }

    /// A node is dead: what it has sent may still arrive, what is sent to it does not.
    pub(crate) fn kill(&self, tag: NodeTag) {
        self.with(tag, |peer| peer.is_up = false);
    }

    pub(crate) fn set_paused(&self, tag: NodeTag, is_paused: bool) {
        self.with(tag, |peer| peer.is_paused = is_paused);
    }

    pub(crate) fn is_paused(&self, tag: NodeTag) -> bool {
        self.lock()
            .peers
            .get(&tag)
            .is_some_and(|peer| peer.is_paused)
    }

    pub(crate) fn set_slow(&self, tag: NodeTag, slow: Duration) {
        self.with(tag, |peer| peer.slow = slow);
    }

    pub(crate) fn cut(&self, from: NodeTag, to: NodeTag, is_cut: bool) {
        set(&mut self.lock().cut, (from, to), is_cut);
    }

    /// Whether both are up and hear each other.
    pub(crate) fn is_connected(&self, one: NodeTag, other: NodeTag) -> bool {
        let state = self.lock();
        let is_up = |tag| {
            let peer = state.peers.get(&tag);
            peer.is_some_and(|peer: &Peer| peer.is_up && !peer.is_paused)
        };
        let is_cut = state.cut.contains(&(one, other)) || state.cut.contains(&(other, one));
        is_up(one) && is_up(other) && !is_cut
    }

    pub(crate) fn believe_away(&self, from: NodeTag, to: NodeTag, is_away: bool) {
        set(&mut self.lock().believed_away, (from, to), is_away);
    }

    /// Undoes everything but deaths.
    pub(crate) fn heal(&self) {
        let mut state = self.lock();
        state.cut.clear();
        state.believed_away.clear();
        state.weather = Weather::default();
        for peer in state.peers.values_mut() {
            peer.is_paused = false;
            peer.slow = Duration::ZERO;
        }
    }

    /// Adds something to the trace that two runs of one seed must have in common.
    pub(crate) fn note(&self, what: impl Hash) {
        self.lock().note(what);
    }

    /// The trace so far.
    pub(crate) fn trace(&self) -> u64 {
        self.lock().trace.finish()
    }

    fn with(&self, tag: NodeTag, change: impl FnOnce(&mut Peer)) {
        if let Some(peer) = self.lock().peers.get_mut(&tag) {
            change(peer);
        }
    }

    fn is_alive(&self, tag: NodeTag, epoch: u64) -> bool {
        let state = self.lock();
        let peer = state.peers.get(&tag);
        peer.is_some_and(|peer| peer.is_up && peer.epoch == epoch)
    }

    /// Waits until a message may be handed to a node.
    async fn until_running(&self, tag: NodeTag) {
        while self.is_paused(tag) {
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Takes a request to its node and its response back. Never, if either is lost.
    async fn carry(&self, from: NodeTag, to: NodeTag, lane: Lane, request: Bytes) -> Bytes {
        let (there, back) = self.lock().delays(from, to);
        sleep(there).await;
        self.until_running(to).await;
        let Some(response) = self.serve(from, to, lane, &request).await else {
            return std::future::pending().await;
        };
        sleep(back).await;
        self.until_running(from).await;
        if self.lock().is_lost(to, from) {
            return std::future::pending().await;
        }
        response
    }

    async fn serve(
        &self,
        from: NodeTag,
        to: NodeTag,
        lane: Lane,
        request: &Bytes,
    ) -> Option<Bytes> {
        let instead = {
            let state = self.lock();
            if state.is_lost(from, to) {
                let instead = match state.breakage {
                    Some(Breakage::CountStandIns) => state.somebody_else(from, to),
                    _ => None,
                };
                Some(instead?)
            } else {
                None
            }
        };
        if let Some(instead) = instead {
            return stand_in_as_home(request, to, &instead).await;
        }
        let (service, breakage) = {
            let mut state = self.lock();
            state.messages += 1;
            let at = state.started.elapsed();
            state.note((at, from.0, to.0, request));
            let peer = state.peers.get(&to).filter(|peer| peer.is_up)?;
            (Arc::clone(&peer.service), state.breakage)
        };
        let broken;
        let request = match breakage {
            Some(breakage) => {
                broken = broken_request(breakage, request);
                &broken
            }
            None => request,
        };
        if let Some(breakage) = breakage
            && !has_to_wait(request)
        {
            let link = Sent { from, to, lane };
            let response = broken_serve(breakage, self, link, request, &service);
            return Some(broken_response(breakage, response));
        }
        let mut out = Vec::new();
        if let Some(late) = service.serve(request, &mut out).ok()? {
            out = late.await;
            // It waited for a disk, and the node may have died meanwhile.
            let state = self.lock();
            let peer = state.peers.get(&to)?;
            if !peer.is_up || !Arc::ptr_eq(&peer.service, &service) {
                return None;
            }
        }
        let response = split_frame(&mut BytesMut::from(&out[..]), usize::MAX).ok()??;
        Some(match breakage {
            Some(breakage) => broken_response(breakage, response),
            None => response,
        })
    }

    fn breakage(&self) -> Option<Breakage> {
        self.lock().breakage
    }

    /// Who sent a version first.
    pub(crate) fn first_sent(&self, version: Version, by: NodeTag) -> NodeTag {
        *self.lock().first_sent.entry(version).or_insert(by)
    }

    /// A node's own replica.
    pub(crate) fn service(&self, of: NodeTag) -> Option<Arc<dyn PeerService>> {
        let state = self.lock();
        state.peers.get(&of).map(|peer| Arc::clone(&peer.service))
    }

    /// What a home told before what it tells now.
    pub(crate) fn older(&self, key: (NodeTag, Vec<u8>), now: Served) -> Served {
        self.lock().told.older(key, now)
    }

    /// An answer of the recent past, or a new one.
    pub(crate) fn cached(
        &self,
        key: (NodeTag, Vec<u8>, bool),
        serve: impl FnOnce() -> Served,
    ) -> Served {
        if let Some(served) = self.lock().cache.fresh(&key) {
            return served;
        }
        let served = serve();
        self.lock().cache.put(key, served.clone());
        served
    }
}

impl State {
    fn note(&mut self, what: impl Hash) {
        what.hash(&mut self.trace);
    }

    fn chance(&self, of: f64) -> bool {
        self.rng.fraction() < of
    }

    fn is_lost(&self, from: NodeTag, to: NodeTag) -> bool {
        let loss = self.weather.loss;
        self.cut.contains(&(from, to)) || self.chance(loss)
    }

    /// A node that could stand in for another.
    fn somebody_else(&self, from: NodeTag, to: NodeTag) -> Option<Arc<dyn PeerService>> {
        let is_fit = |tag: NodeTag, peer: &Peer| {
            tag != from && tag != to && peer.is_up && !self.cut.contains(&(from, tag))
        };
        let mut peers = self.peers.iter();
        let (_, peer) = peers.find(|(tag, peer)| is_fit(**tag, peer))?;
        Some(Arc::clone(&peer.service))
    }

    fn delays(&self, from: NodeTag, to: NodeTag) -> (Duration, Duration) {
        let slow = |tag| {
            self.peers
                .get(&tag)
                .map_or(Duration::ZERO, |peer| peer.slow)
        };
        let slow = slow(from) + slow(to);
        let delay = || {
            let jitter = self.rng.next_u64() % (self.weather.jitter_ms + 1);
            Duration::from_millis(self.weather.delay_ms + jitter) + slow
        };
        (delay(), delay())
    }
}

impl Transport for SimTransport {
    fn call(
        &self,
        to: NodeTag,
        lane: Lane,
        operations: &Operations,
        deadline: Instant,
        sink: Box<dyn ReplySink>,
    ) -> Result<(), CallError> {
        let Self {
            network,
            from,
            epoch,
        } = self.clone();
        let (to, is_doubled, is_connection_lost) = {
            let state = network.lock();
            if state.believed_away.contains(&(from, to)) {
                return Err(CallError::Unreachable);
            }
            let everyone: Vec<NodeTag> = state.peers.keys().copied().collect();
            let to = match state.breakage {
                Some(breakage) => broken_call(breakage, from, to, &everyone),
                None => to,
            };
            let duplication = state.weather.duplication;
            (to, state.chance(duplication), state.chance(0.3))
        };
        let request = frame(operations);
        if is_doubled {
            let (network, request) = (network.clone(), request.clone());
            spawn(async move {
                let lost = network.carry(from, to, lane, request);
                drop(timeout_at(deadline + Duration::from_secs(1), lost).await);
            });
        }
        spawn(async move {
            let reply = match network.breakage() {
                Some(Breakage::TimeoutIsAck) => {
                    let soon = now() + Duration::from_millis(60);
                    let reply = network.carry(from, to, lane, request.clone());
                    match (timeout_at(soon, reply).await, made_up(&request)) {
                        (Err(_), Some(made_up)) => Ok(made_up),
                        (reply, _) => reply,
                    }
                }
                _ => timeout_at(deadline, network.carry(from, to, lane, request)).await,
            };
            // The dead hear nothing, and do nothing more.
            if !network.is_alive(from, epoch) {
                return;
            }
            match reply {
                Ok(frame) => answer(&frame, sink),
                Err(_) if is_connection_lost => {
                    drop(sink.on_reply(Err(CallError::ConnectionLost)));
                }
                Err(_) => drop(sink.on_reply(Err(CallError::TimedOut))),
            }
        });
        Ok(())
    }
}

fn answer(frame: &Bytes, sink: Box<dyn ReplySink>) {
    let mut answers = FrameReader::new(frame);
    let header: ResponseHeader<'_> = answers.read().expect("replicas answer in frames");
    let response = Response {
        frame,
        answers,
        count: header.count,
        clock: header.clock,
        flushes: header.flushes.map(|flushes| &flushes[..]),
        is_sure: header.is_sure,
    };
    sink.on_reply(Ok(response))
        .expect("replicas answer what they were asked");
}

/// The request frame that QUIC would carry, without its length.
fn frame(operations: &Operations) -> Bytes {
    let mut frame = Vec::new();
    let start = start_frame(&operations.header(0, 0), &mut frame);
    frame.extend_from_slice(&operations.encoded());
    finish_frame(start, &mut frame);
    Bytes::from(frame).slice(LENGTH_BYTES..)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a message on its way belongs to no node; the runtime of the seed ends it"
)]
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

fn set<T: Ord>(set: &mut BTreeSet<T>, item: T, is_in: bool) {
    if is_in {
        set.insert(item);
    } else {
        set.remove(&item);
    }
}

impl fmt::Debug for SimTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimTransport({:x})", self.from.0)
    }
}
