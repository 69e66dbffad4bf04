//! Whole nodes in one process: what `quorate run` puts together, over simulated doors.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate::env::{Clock, Disk, Durability, Env, SeededRng, SystemClock, Tasks};
use quorate::front::peer_server::PeerServer;
use quorate::model::{HashedKey, Hlc, KeyHasher, Millis, NodeId, NodeTag, Quorum, RecordRef};
use quorate::net::{MemoryGossip, Transport};
use quorate::node::catch_up::CatchUp;
use quorate::node::coordinator::{Config, Coordinator, Outcome, Parts, Request};
use quorate::node::handoff::replay::Replay;
use quorate::node::handoff::{self, Handoff, Owed};
use quorate::node::membership::{self, Membership as RealMembership};
use quorate::node::replica::{Replica, Standing};
use quorate::node::sweeper::sweep;
use quorate::protocol::HintLimits;
use quorate::ring::{Member, MemberState, Partitions, RingParams, Role, View};
use quorate::store::Store;
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
    tasks: Tasks,
}

/// What a node holds.
struct Own {
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
}

/// Who says who is in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Membership {
    Oracle,
    Gossip,
}

impl Cluster {
    pub(crate) fn start(
        seed: u64,
        nodes: u8,
        quorum: Quorum,
        breakage: Option<Breakage>,
        membership: Membership,
    ) -> Self {
        let params = RingParams {
            cluster: "sim".to_owned(),
            partitions: Partitions::new(PARTITIONS).unwrap(),
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
        };
        for node in 0..cluster.nodes.len() {
            cluster.start_node(node, &Memory::Nothing);
        }
        cluster
    }

    /// What a node that starts has in memory.
    fn remembered(&mut self, number: usize, memory: &Memory) -> Arc<Store> {
        let store = Arc::new(Store::new(self.hasher, PARTITIONS));
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
        let tasks = Tasks::new();
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
            _ => Standing::unsure(partitions),
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
            HANDOFF,
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
            Arc::clone(&replica),
            Arc::clone(&handoff),
            Arc::clone(&env.clock),
            self.hasher,
            view.subscribe(),
            Box::new(Bytes::new),
        );
        let transport = self
            .network
            .connect(node.id.tag(), node.epoch, Arc::new(service));
        let transport = Arc::new(transport);
        let own = Own {
            replica: Arc::clone(&replica),
            handoff: Arc::clone(&handoff),
            view,
        };
        let coordinator = self.assemble(number, &env, own, hlc, &transport);
        tasks.spawn(sweep(Arc::clone(&store), partitions, env));
        self.nodes[number].running = Some(Running {
            store,
            replica,
            handoff,
            coordinator,
            tasks,
        });
    }

    /// The coordinator of a node, and the task that catches up.
    fn assemble(
        &self,
        number: usize,
        env: &Env,
        own: Own,
        clock: Arc<Hlc>,
        transport: &Arc<SimTransport>,
    ) -> Coordinator {
        let node = &self.nodes[number];
        let transport = || Arc::clone(transport) as Arc<dyn Transport>;
        let Own {
            replica,
            handoff,
            view,
        } = own;
        let tag = node.id.tag();
        lock(&self.holders).insert(tag, Arc::clone(&handoff));
        let owed = watch::Sender::new(Arc::<Owed>::default());
        let coordinator = Coordinator::new(Parts {
            config: Config {
                quorum: self.quorum,
                timeout: REQUEST_MAX,
            },
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
        };
        if self.breakage != Some(Breakage::CountAmnesiac) || node.epoch == 1 {
            env.tasks.spawn(catch_up.run());
        }
        self.follow_gossip(number, env, view);
        coordinator
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
        let copy = Arc::new(Store::new(self.hasher, PARTITIONS));
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

const HANDOFF: handoff::Config = handoff::Config {
    limits: HintLimits {
        bytes_max: 1 << 20,
        window: Duration::from_secs(3_600),
    },
    durability: Durability::Synced,
    replay_bytes_per_s: 1 << 20,
};
/// Few, so that catching up touches each and every key's neighbours.
const PARTITIONS: u32 = 4;
/// 2027: far enough from 1970 for clocks that are hours behind.
const EPOCH_MS: i64 = 1_800_000_000_000;
const DRIFT_MAX: Duration = Duration::from_secs(10);
/// How long a coordinator tries.
pub(crate) const REQUEST_MAX: Duration = Duration::from_millis(500);
