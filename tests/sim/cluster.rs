//! Whole nodes in one process: what `quorate run` puts together, over simulated doors.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate::digest::Sheet;
use quorate::env::{Clock, Disk, Durability, Env, SeededRng, SystemClock, Tasks};
use quorate::front::peer_server::{PeerServer, Served};
use quorate::model::{
    Database, Epoch, HashedKey, Hlc, KeyHasher, Millis, NodeId, NodeTag, Quorum, RecordRef,
};
use quorate::net::{MemoryGossip, PeerService, Transport};
use quorate::node::anti_entropy::{self, AntiEntropy, DigestGossip, Responder};
use quorate::node::catch_up::CatchUp;
use quorate::node::coordinator::{Config, Coordinator, Outcome, Parts, Request};
use quorate::node::handoff::replay::Replay;
use quorate::node::handoff::{self, Handoff, Owed};
use quorate::node::membership::{self, Membership as RealMembership};
use quorate::node::replica::{Replica, Standing, abstention};
use quorate::node::sweeper::sweep;
use quorate::protocol::HintLimits;
use quorate::ring::{Member, MemberState, Partitions, RingParams, Role, View};
use quorate::store::{Limits, Store};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::breakage::Breakage;
use crate::disk::SimDisk;
use crate::network::{Network, SimTransport};

/// Virtual time.
pub(crate) fn now() -> Instant {
    SystemClock.monotonic()
}

/// A wall clock that the simulation sets: an offset, and a drift from some moment on.
#[derive(Debug)]
pub(crate) struct SimClock {
    started: Instant,
    offset_ms: AtomicI64,
    /// Since when, and by how many parts in a million it is fast.
    drift: Mutex<(Instant, i64)>,
}

impl SimClock {
    fn new(started: Instant) -> Self {
        Self {
            started,
            offset_ms: AtomicI64::new(0),
            drift: Mutex::new((started, 0)),
        }
    }

    /// The true time.
    fn true_wall(&self) -> Millis {
        let elapsed = i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX);
        Millis(u64::try_from(EPOCH_MS + elapsed).unwrap_or(0))
    }

    /// Steps the clock to this distance from the true time.
    pub(crate) fn set_offset(&self, ms: i64) {
        self.set_drift(0);
        self.offset_ms.store(ms, Ordering::Relaxed);
    }

    /// Lets it run fast or slow from now on; what has gathered so far stays.
    pub(crate) fn set_drift(&self, ppm: i64) {
        let gathered = self.drifted();
        self.offset_ms.fetch_add(gathered, Ordering::Relaxed);
        *self.drift.lock().unwrap_or_else(PoisonError::into_inner) = (SystemClock.monotonic(), ppm);
    }

    fn drifted(&self) -> i64 {
        let (since, ppm) = *self.drift.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX);
        elapsed * ppm / 1_000_000
    }
}

impl Clock for SimClock {
    fn wall(&self) -> Millis {
        let elapsed = i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX);
        let ms = EPOCH_MS + elapsed + self.drifted() + self.offset_ms.load(Ordering::Relaxed);
        Millis(u64::try_from(ms).unwrap_or(0))
    }

    fn monotonic(&self) -> Instant {
        SystemClock.monotonic()
    }
}

/// What a node that starts holds.
pub(crate) enum Memory {
    Nothing,
    /// Everything that it held when it died.
    Kept,
    /// What it held some time ago.
    Earlier,
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) clock: Arc<SimClock>,
    pub(crate) epoch: u64,
    running: Option<Running>,
    pub(crate) disk: Arc<SimDisk>,
    /// What it held when it died, and what it held some time ago.
    kept: Option<Arc<Store>>,
    earlier: Option<Arc<Store>>,
}

struct Running {
    store: Arc<Store>,
    replica: Arc<Replica>,
    handoff: Arc<Handoff>,
    coordinator: Coordinator,
    anti_entropy: Arc<AntiEntropy>,
    tasks: Tasks,
}

/// What a node holds.
struct Own {
    store: Arc<Store>,
    replica: Arc<Replica>,
    handoff: Arc<Handoff>,
    view: watch::Sender<Arc<View>>,
}

/// Who holds hints for whom, as gossip would tell it.
type Holders = Arc<Mutex<BTreeMap<NodeTag, Arc<Handoff>>>>;

/// What a client talks to: one start of one node.
#[derive(Clone)]
pub(crate) struct Door {
    coordinator: Coordinator,
    tasks: Tasks,
}

impl Door {
    /// `None`: the node died before it answered.
    pub(crate) async fn run(&self, request: Request) -> Option<Outcome> {
        tokio::select! {
            biased;
            () = self.tasks.stopped() => None,
            ran = self.coordinator.run(vec![request]) => ran.outcomes.into_iter().next(),
        }
    }

    /// Several together, as of a pipeline.
    pub(crate) async fn run_all(&self, requests: Vec<Request>) -> Option<Vec<Outcome>> {
        tokio::select! {
            biased;
            () = self.tasks.stopped() => None,
            ran = self.coordinator.run(requests) => Some(ran.outcomes),
        }
    }

    /// Whether a flush of a database was acknowledged.
    pub(crate) async fn flush(&self, database: Database) -> bool {
        let databases = [database];
        tokio::select! {
            biased;
            () = self.tasks.stopped() => false,
            flushed = self.coordinator.flush(&databases) => flushed.is_ok(),
        }
    }
}

pub(crate) struct Cluster {
    pub(crate) network: Network,
    pub(crate) nodes: Vec<Node>,
    hasher: KeyHasher,
    view: Arc<View>,
    quorum: Quorum,
    breakage: Option<Breakage>,
    /// Carries real gossip. Without, every node knows the ring from the first moment on, and it
    /// never changes.
    gossip: Option<MemoryGossip>,
    holders: Holders,
    sheets: Sheets,
    plan: Plan,
}

/// What a cluster is like, the seed aside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) quorum: Quorum,
    pub(crate) breakage: Option<Breakage>,
    pub(crate) membership: Membership,
    /// How long hints are kept; tombstones are for a while longer.
    pub(crate) hint_window: Duration,
    /// How long a coordinator tries.
    pub(crate) timeout: Duration,
    pub(crate) partitions: u32,
}

impl Plan {
    fn handoff(&self) -> handoff::Config {
        handoff::Config {
            limits: HintLimits {
                bytes_max: 1 << 20,
                window: self.hint_window,
            },
            durability: Durability::Synced,
            replay_bytes_per_s: 1 << 20,
        }
    }

    fn quorum(&self) -> Config {
        Config {
            quorum: self.quorum,
            timeout: self.timeout,
        }
    }

    fn anti_entropy(&self) -> anti_entropy::Config {
        anti_entropy::Config {
            digest_interval: Duration::from_secs(4),
            bytes_per_s: 1 << 22,
            tombstone_age: self.tombstone_age(),
        }
    }

    pub(crate) fn tombstone_age(&self) -> Duration {
        self.hint_window + 2 * DRIFT_MAX
    }
}

/// Who says who is in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Membership {
    Oracle,
    Gossip,
}

impl Cluster {
    pub(crate) fn start(seed: u64, nodes: u8, plan: Plan) -> Self {
        let Plan {
            quorum,
            breakage,
            membership,
            ..
        } = plan;
        let params = RingParams {
            cluster: "sim".to_owned(),
            partitions: Partitions::new(plan.partitions).unwrap(),
            n: quorum.n(),
        };
        let ids: Vec<NodeId> = (0..nodes)
            .map(|i| format!("n{i}").parse().unwrap())
            .collect();
        let view = Arc::new(View::new(params, ids.iter().map(member).collect()));
        let started = SystemClock.monotonic();
        let mut cluster = Self {
            network: Network::new(seed, breakage),
            nodes: ids
                .into_iter()
                .map(|id| Node {
                    id,
                    clock: Arc::new(SimClock::new(started)),
                    epoch: 0,
                    running: None,
                    disk: Arc::default(),
                    kept: None,
                    earlier: None,
                })
                .collect(),
            hasher: KeyHasher::new("sim"),
            view,
            quorum,
            breakage,
            gossip: (membership == Membership::Gossip).then(MemoryGossip::default),
            holders: Holders::default(),
            sheets: Sheets::default(),
            plan,
        };
        for node in 0..cluster.nodes.len() {
            cluster.start_node(node, &Memory::Nothing);
        }
        cluster
    }

    /// What a node that starts has in memory.
    fn remembered(&mut self, number: usize, memory: &Memory) -> Arc<Store> {
        let store = self.new_store();
        if matches!(memory, Memory::Nothing) {
            // Neither memory nor disk.
            self.nodes[number].disk = Arc::default();
        }
        let held = match memory {
            Memory::Nothing => None,
            Memory::Kept => self.nodes[number].kept.clone(),
            Memory::Earlier => self.nodes[number].earlier.clone(),
        };
        if let Some(held) = held {
            self.copy(&held, &store);
        }
        store
    }

    pub(crate) fn start_node(&mut self, number: usize, memory: &Memory) {
        let store = self.remembered(number, memory);
        let node = &mut self.nodes[number];
        node.epoch += 1;
        let tasks = Tasks::inline();
        let env = Env {
            clock: Arc::clone(&node.clock) as Arc<dyn Clock>,
            rng: SeededRng::from_seed(node.epoch),
            tasks: tasks.clone(),
            disk: Arc::clone(&node.disk) as Arc<dyn Disk>,
        };
        let partitions = self.view.params().partitions;
        let hlc = Arc::new(Hlc::new(DRIFT_MAX));
        let is_first = node.epoch == 1;
        let standing = match self.breakage {
            Some(Breakage::CountAmnesiac) if !is_first => Standing::sure(partitions),
            _ => Standing::unsure(partitions).voting_from(now() + abstention(self.plan.timeout)),
        };
        let replica = Arc::new(Replica::new(
            Arc::clone(&store),
            Arc::clone(&hlc),
            1 << 20,
            standing,
        ));
        let lies = self.breakage == Some(Breakage::HintsUnsynced);
        node.disk.set_lying(lies);
        let handoff = Handoff::open(
            self.plan.handoff(),
            &*env.disk,
            Arc::clone(&env.clock),
            Arc::clone(&replica),
        )
        .expect("a journal of its own");
        let view = watch::Sender::new(match self.gossip {
            None => Arc::clone(&self.view),
            Some(_) => Arc::new(View::new(self.view.params().clone(), Vec::new())),
        });
        let service = PeerServer::new(
            Served {
                replica: Arc::clone(&replica),
                handoff: Arc::clone(&handoff),
                responder: Responder::new(Arc::clone(&store)),
            },
            Arc::clone(&env.clock),
            self.hasher,
            view.subscribe(),
            Box::new(Bytes::new),
        );
        let service = Arc::new(service);
        let peer = Arc::clone(&service) as Arc<dyn PeerService>;
        let transport = self.network.connect(node.id.tag(), node.epoch, peer);
        let transport = Arc::new(transport);
        let own = Own {
            store: Arc::clone(&store),
            replica: Arc::clone(&replica),
            handoff: Arc::clone(&handoff),
            view,
        };
        let (coordinator, anti_entropy) = self.assemble(number, &env, own, hlc, &transport);
        service.set_proposer(coordinator.updater().proposer().clone());
        self.nodes[number].running = Some(Running {
            store,
            replica,
            handoff,
            coordinator,
            anti_entropy,
            tasks,
        });
    }

    /// The coordinator of a node, and what works in the background.
    fn assemble(
        &self,
        number: usize,
        env: &Env,
        own: Own,
        clock: Arc<Hlc>,
        transport: &Arc<SimTransport>,
    ) -> (Coordinator, Arc<AntiEntropy>) {
        let node = &self.nodes[number];
        let transport = || Arc::clone(transport) as Arc<dyn Transport>;
        let Own {
            store,
            replica,
            handoff,
            view,
        } = own;
        let tag = node.id.tag();
        lock(&self.holders).insert(tag, Arc::clone(&handoff));
        let owed = watch::Sender::new(Arc::<Owed>::default());
        let coordinator = Coordinator::new(Parts {
            config: self.plan.quorum(),
            self_tag: node.id.tag(),
            writer: node.id.writer_tag(node.epoch),
            env: env.clone(),
            view: view.subscribe(),
            replica: Arc::clone(&replica),
            clock,
            hasher: self.hasher,
            transport: transport(),
            handoff: Arc::clone(&handoff),
            owed: owed.subscribe(),
        });
        let cut = watch::Sender::new(Epoch::default());
        let anti_entropy = AntiEntropy::new(anti_entropy::Parts {
            config: self.plan.anti_entropy(),
            self_tag: tag,
            env: env.clone(),
            view: view.subscribe(),
            replica: Arc::clone(&replica),
            store: Arc::clone(&store),
            hasher: self.hasher,
            transport: transport(),
            gossip: Arc::new(SimGossip {
                own: tag,
                sheets: Arc::clone(&self.sheets),
                network: self.network.clone(),
            }),
            owed: owed.subscribe(),
            cut: cut.subscribe(),
        });
        anti_entropy.start();
        env.tasks.spawn(sweep(store, cut, env.clone()));
        env.tasks.spawn(tell_owed(Arc::clone(&self.holders), owed));
        let replay = Replay {
            self_tag: tag,
            env: env.clone(),
            view: view.subscribe(),
            handoff,
            hasher: self.hasher,
            transport: transport(),
        };
        env.tasks.spawn(replay.run());
        let catch_up = CatchUp {
            self_tag: node.id.tag(),
            n: self.quorum.n(),
            env: env.clone(),
            view: view.subscribe(),
            replica,
            hasher: self.hasher,
            transport: transport(),
            begins_at: now() + REQUEST_MAX,
            has_room: Box::new(|| true),
        };
        if self.breakage != Some(Breakage::CountAmnesiac) || node.epoch == 1 {
            env.tasks.spawn(catch_up.run());
        }
        self.follow_gossip(number, env, view);
        (coordinator, anti_entropy)
    }

    fn new_store(&self) -> Arc<Store> {
        let limits = Limits {
            partitions: self.plan.partitions,
            tombstone_age: self.plan.tombstone_age(),
        };
        Arc::new(Store::new(self.hasher, limits))
    }

    /// Lets a node know the ring by gossip, if that is how it does.
    fn follow_gossip(&self, number: usize, env: &Env, view: watch::Sender<Arc<View>>) {
        let gossip = self.gossip.clone();
        let config = self.membership_config(number);
        let (env, id) = (env.clone(), self.nodes[number].id.clone());
        env.tasks.clone().spawn(async move {
            if let Some(gossip) = gossip {
                let membership = start_membership(&gossip, &config, &env).await;
                let table = membership.clone();
                gossip.serve_table(&id, move || table.table_bytes());
                let mut seen = membership.view();
                loop {
                    view.send_replace(Arc::clone(&seen.borrow_and_update()));
                    if seen.changed().await.is_err() {
                        break;
                    }
                }
            }
            // The view lives as long as the node.
            env.tasks.stopped().await;
            drop(view);
        });
    }

    fn membership_config(&self, number: usize) -> membership::Config {
        membership::Config {
            params: self.view.params().clone(),
            id: self.nodes[number].id.clone(),
            role: Role::Member,
            zone: String::new(),
            weight: 1,
            quic: addr(number),
            resp: String::new(),
            http: String::new(),
            seeds: vec![addr(0).to_string(), addr(1).to_string()],
            gossip_interval: Duration::from_millis(300),
        }
    }

    /// Loses everything from one node to another, or no longer. Gossip needs both directions.
    pub(crate) fn cut(&self, from: usize, to: usize, is_cut: bool) {
        self.network.cut(self.tag(from), self.tag(to), is_cut);
        let (from, to) = (&self.nodes[from].id, &self.nodes[to].id);
        match &self.gossip {
            Some(gossip) if is_cut => gossip.cut(from, to),
            Some(gossip) => gossip.heal(from, to),
            None => {}
        }
    }

    /// Whether every node that is up sees all of them.
    pub(crate) fn is_whole(&self) -> bool {
        let all = self.nodes.len();
        let mut running = self.nodes.iter().filter_map(|node| node.running.as_ref());
        running.all(|running| running.coordinator.view().members().len() == all)
    }

    /// Kills a node at once.
    pub(crate) fn kill(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        if let Some(running) = node.running.take() {
            self.network.kill(node.id.tag());
            if let Some(gossip) = &self.gossip {
                gossip.silence(&node.id);
            }
            running.tasks.stop();
            node.kept = Some(running.store);
        }
    }

    /// Keeps what a node holds now, for a restart with old data.
    pub(crate) fn remember(&mut self, number: usize) {
        let copy = self.new_store();
        if let Some(running) = &self.nodes[number].running {
            self.copy(&running.store, &copy);
            self.nodes[number].earlier = Some(copy);
        }
    }

    pub(crate) fn is_up(&self, number: usize) -> bool {
        self.nodes[number].running.is_some()
    }

    /// Whether every node is up and sure of every partition that it is a home of.
    pub(crate) fn is_sure(&self) -> bool {
        let partitions = self.view.params().partitions;
        self.nodes.iter().all(|node| {
            node.running.as_ref().is_some_and(|running| {
                let is_home = |p: &_| self.view.homes(*p).contains(&node.id.tag());
                let mut homes = partitions.all().filter(is_home);
                homes.all(|partition| running.replica.is_sure(partition))
            })
        })
    }

    /// In what homes differ: a partition, and how many values each home holds of it. Tombstones
    /// that are old enough go on each home when that knows that all agree.
    pub(crate) fn difference(&self) -> Option<String> {
        let values = |store: &Store, partition| {
            let mut values = BTreeMap::new();
            store.scan(partition, None, |key, record| {
                if record.value.is_some() {
                    values.insert(key.to_vec(), record.stamp());
                }
                true
            });
            values
        };
        self.view.params().partitions.all().find_map(|partition| {
            let of_homes = self.view.homes(partition).iter().map(|home| {
                let node = self.nodes.iter().find(|node| node.id.tag() == *home);
                let running = node.and_then(|node| node.running.as_ref());
                running.map(|running| values(&running.store, partition))
            });
            let of_homes: Vec<_> = of_homes.collect();
            let differs = of_homes.windows(2).any(|pair| pair[0] != pair[1]);
            let counts = of_homes
                .iter()
                .map(|values| values.as_ref().map(BTreeMap::len));
            differs.then(|| format!("partition {partition}: {:?}", counts.collect::<Vec<_>>()))
        })
    }

    /// Tombstones that anybody holds.
    pub(crate) fn tombstones(&self) -> u64 {
        let running = self.nodes.iter().filter_map(|node| node.running.as_ref());
        running.map(|running| running.store.tombstones()).sum()
    }

    /// The store of a node, and what keeps it like those of others.
    pub(crate) fn kept_alike(&self, number: usize) -> Option<(Arc<Store>, Arc<AntiEntropy>)> {
        let running = self.nodes[number].running.as_ref()?;
        Some((
            Arc::clone(&running.store),
            Arc::clone(&running.anti_entropy),
        ))
    }

    /// A key as stores know it.
    pub(crate) fn hashed<'a>(&self, key: &'a [u8]) -> HashedKey<'a> {
        let hash = self.hasher.hash(key);
        HashedKey {
            bytes: key,
            hash,
            partition: self.view.params().partitions.of(hash),
        }
    }

    /// Hints that have not been given back.
    pub(crate) fn hints(&self) -> u64 {
        let running = self.nodes.iter().filter_map(|node| node.running.as_ref());
        running.map(|running| running.handoff.count()).sum()
    }

    /// Hints kept and given back by those that are up, since they started.
    pub(crate) fn hints_handled(&self) -> (u64, u64) {
        let running = self.nodes.iter().filter_map(|node| node.running.as_ref());
        running.fold((0, 0), |(kept, replayed), running| {
            let stats = running.handoff.stats();
            (
                kept + stats.kept.load(Ordering::Relaxed),
                replayed + stats.replayed.load(Ordering::Relaxed),
            )
        })
    }

    /// The door of a node, if it is up.
    pub(crate) fn door(&self, number: usize) -> Option<Door> {
        let running = self.nodes[number].running.as_ref()?;
        Some(Door {
            coordinator: running.coordinator.clone(),
            tasks: running.tasks.clone(),
        })
    }

    /// Whether the clock of a node, or the hybrid one, is further off than others follow.
    pub(crate) fn is_astray(&self, number: usize) -> bool {
        let node = &self.nodes[number];
        let drift_max = u64::try_from(DRIFT_MAX.as_millis()).unwrap_or(u64::MAX);
        let wall = node.clock.wall();
        wall.0.abs_diff(node.clock.true_wall().0) > drift_max
            || node
                .running
                .as_ref()
                .is_some_and(|running| running.replica.clock_ahead(wall).is_some())
    }

    pub(crate) fn tag(&self, number: usize) -> NodeTag {
        self.nodes[number].id.tag()
    }

    fn copy(&self, from: &Store, to: &Store) {
        for partition in self.view.params().partitions.all() {
            from.scan(partition, None, |key, record: RecordRef<'_>| {
                let key = HashedKey {
                    bytes: key,
                    hash: self.hasher.hash(key),
                    partition,
                };
                to.apply(key, record, Millis(0));
                true
            });
        }
    }
}

/// What each node last told of its digests.
type Sheets = Arc<Mutex<BTreeMap<NodeTag, Arc<Sheet>>>>;

/// Digests, as gossip would carry them: from whoever can be reached.
struct SimGossip {
    own: NodeTag,
    sheets: Sheets,
    network: Network,
}

impl std::fmt::Debug for SimGossip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimGossip")
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

impl DigestGossip for SimGossip {
    fn publish(&self, sheet: Arc<Sheet>) {
        lock(&self.sheets).insert(self.own, sheet);
    }

    fn heard(&self) -> BTreeMap<NodeTag, Arc<Sheet>> {
        let mut heard = lock(&self.sheets).clone();
        let own = heard.remove(&self.own);
        let breakage = self.network.lock().breakage;
        let is_away = |peer: NodeTag| !self.network.is_connected(self.own, peer);
        match (breakage, own) {
            (Some(Breakage::PurgeByAge), Some(own)) => {
                heard
                    .values_mut()
                    .for_each(|sheet| *sheet = Arc::clone(&own));
            }
            (Some(Breakage::PurgeHomeAway), Some(own)) => {
                let away = heard.iter_mut().filter(|(peer, _)| is_away(**peer));
                away.for_each(|(_, sheet)| *sheet = Arc::clone(&own));
            }
            _ => heard.retain(|peer, _| !is_away(*peer)),
        }
        heard
    }
}

/// What gossip would tell a node of who holds hints for whom.
async fn tell_owed(holders: Holders, owed: watch::Sender<Arc<Owed>>) {
    loop {
        let holders = lock(&holders).clone();
        let held = holders.iter().flat_map(|(&holder, handoff)| {
            let homes = handoff.summaries().into_keys();
            homes.map(move |home| (holder, home)).collect::<Vec<_>>()
        });
        owed.send_replace(Arc::new(Owed::new(held)));
        // Gossip is never up to date.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn member(id: &NodeId) -> Member {
    Member {
        tag: id.tag(),
        id: id.clone(),
        incarnation: 1,
        zone: String::new(),
        weight: 1,
        role: Role::Member,
        state: MemberState::Up,
        quic: ([127, 0, 0, 1], 1).into(),
        resp: String::new(),
        http: String::new(),
        reachable: true,
    }
}

/// A node that cannot write its disk does not start; whoever watches over it tries again.
async fn start_membership(
    gossip: &MemoryGossip,
    config: &membership::Config,
    env: &Env,
) -> RealMembership {
    loop {
        let end = Arc::new(gossip.join(&config.id, config.quic));
        match RealMembership::start(config.clone(), env, end).await {
            Ok(membership) => return membership,
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

fn addr(number: usize) -> SocketAddr {
    (
        [127, 0, 0, 1],
        7_000 + u16::try_from(number).expect("few nodes"),
    )
        .into()
}

/// Few, so that catching up touches each and every key's neighbours.
pub(crate) const PARTITIONS: u32 = 4;
/// 2027: far enough from 1970 for clocks that are hours behind.
const EPOCH_MS: i64 = 1_800_000_000_000;
const DRIFT_MAX: Duration = Duration::from_secs(10);
/// How long a coordinator tries.
pub(crate) const REQUEST_MAX: Duration = Duration::from_millis(500);
