//! Coordinator, replicas and the peer protocol over a network in memory, on virtual time: clocks
//! that are wrong, links that are cut, replicas that missed something.

#![cfg(test)]

mod edges;
mod flush;
mod moments;
mod sloppy;
#[cfg(feature = "scripts")]
mod slow;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quorate::env::{Clock, Disk, Durability, Env, MemoryDisk, SeededRng, SystemClock, Tasks};
use quorate::front::peer_server::{PeerServer, Served};
use quorate::model::{HashedKey, Hlc, KeyHasher, Level, Millis, NodeId, NodeTag, Quorum, Record};
use quorate::net::{MemoryNetwork, PeerService};
use quorate::node::anti_entropy::Responder;
use quorate::node::coordinator::{
    Action, Config, Coordinator, Outcome, Parts, Request, RequestError,
};
use quorate::node::handoff::replay::Replay;
use quorate::node::handoff::{self, Handoff, Owed};
use quorate::node::replica::{Replica, Standing};
use quorate::node::updates::UpdateError;
use quorate::protocol::HintLimits;
use quorate::ring::{Member, MemberState, Partitions, RingParams, Role, View};
use quorate::store::{Applied, Limits, Store};
use tokio::sync::watch;
use tokio::time::Instant;

/// Virtual time with an offset of its own for the wall clock.
#[derive(Debug)]
struct SkewedClock {
    started: Instant,
    offset_ms: AtomicI64,
}

impl Clock for SkewedClock {
    fn wall(&self) -> Millis {
        // Far enough from 1970 for an offset of hours.
        let virtual_ms = i64::try_from(self.started.elapsed().as_millis()).unwrap();
        let ms = 1_800_000_000_000 + virtual_ms + self.offset_ms.load(Ordering::Relaxed);
        Millis(u64::try_from(ms).unwrap())
    }

    fn monotonic(&self) -> Instant {
        SystemClock.monotonic()
    }
}

struct Node {
    id: NodeId,
    tag: NodeTag,
    clock: Arc<SkewedClock>,
    store: Arc<Store>,
    replica: Arc<Replica>,
    coordinator: Coordinator,
    handoff: Arc<Handoff>,
    view: watch::Sender<Arc<View>>,
    owed: watch::Sender<Arc<Owed>>,
    /// Its own: stopped, it is dead.
    tasks: Tasks,
    disk: Arc<MemoryDisk>,
}

struct Ring {
    nodes: Vec<Node>,
    network: MemoryNetwork,
    hasher: KeyHasher,
    partitions: Partitions,
    view: Arc<View>,
    quorum: Quorum,
    is_sloppy: bool,
    started: Instant,
    tasks: Tasks,
}

fn open_handoff(env: &Env, replica: &Arc<Replica>) -> Arc<Handoff> {
    let clock = Arc::clone(&env.clock);
    Handoff::open(HANDOFF, &*env.disk, clock, Arc::clone(replica)).unwrap()
}

impl Ring {
    fn new(count: u8, r: u8, w: u8) -> Self {
        Self::with_delay(count, r, w, Duration::from_millis(1))
    }

    fn with_delay(count: u8, r: u8, w: u8, delay: Duration) -> Self {
        let zones = vec![""; usize::from(count)];
        Self::in_zones(&zones, Quorum::new(count, r, w).unwrap(), delay)
    }

    /// A node in each of these zones.
    fn in_zones(zones: &[&str], quorum: Quorum, delay: Duration) -> Self {
        let tasks = Tasks::new();
        let network = MemoryNetwork::new(tasks.clone(), delay);
        let params = RingParams {
            cluster: "test".to_owned(),
            partitions: Partitions::new(64).unwrap(),
            n: quorum.n(),
        };
        let ids = (0..zones.len()).map(|i| format!("n{i}").parse().unwrap());
        let ids: Vec<NodeId> = ids.collect();
        let members = ids.iter().zip(zones).map(|(id, zone)| Member {
            zone: (*zone).to_owned(),
            ..member(id)
        });
        let mut ring = Self {
            nodes: Vec::new(),
            network,
            hasher: KeyHasher::new("test"),
            partitions: params.partitions,
            view: Arc::new(View::new(params, members.collect())),
            quorum,
            is_sloppy: true,
            started: SystemClock.monotonic(),
            tasks,
        };
        for id in &ids {
            let disk = Arc::new(MemoryDisk::default());
            let node = ring.start(id, Standing::sure(ring.partitions), 1, disk);
            ring.nodes.push(node);
        }
        ring
    }

    #[expect(clippy::too_many_lines, reason = "a node is put together")]
    fn start(
        &self,
        id: &NodeId,
        standing: Standing,
        incarnation: u64,
        disk: Arc<MemoryDisk>,
    ) -> Node {
        let tasks = self.tasks.child();
        let clock = Arc::new(SkewedClock {
            started: self.started,
            offset_ms: AtomicI64::new(0),
        });
        let env = Env {
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            rng: SeededRng::from_seed(1),
            tasks: tasks.clone(),
            disk: Arc::clone(&disk) as Arc<dyn Disk>,
        };
        let store = self.new_store();
        let hlc = Arc::new(Hlc::new(Duration::from_secs(10)));
        let replica = Replica::new(Arc::clone(&store), Arc::clone(&hlc), 1 << 20, standing);
        let replica = Arc::new(replica);
        let handoff = open_handoff(&env, &replica);
        let view = watch::Sender::new(Arc::clone(&self.view));
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
        self.network
            .connect(id.tag(), Arc::clone(&service) as Arc<dyn PeerService>);
        let owed = watch::Sender::new(Arc::<Owed>::default());
        let replay = Replay {
            self_tag: id.tag(),
            env: env.clone(),
            view: view.subscribe(),
            handoff: Arc::clone(&handoff),
            hasher: self.hasher,
            transport: Arc::new(self.network.transport(id.tag())),
        };
        tasks.spawn(replay.run());
        let coordinator = Coordinator::new(Parts {
            config: Config {
                quorum: self.quorum,
                timeout: Duration::from_secs(1),
            },
            self_tag: id.tag(),
            writer: id.writer_tag(incarnation),
            env,
            view: view.subscribe(),
            replica: Arc::clone(&replica),
            clock: hlc,
            hasher: self.hasher,
            transport: Arc::new(self.network.transport(id.tag())),
            handoff: Arc::clone(&handoff),
            owed: owed.subscribe(),
        });
        service.set_proposer(coordinator.updater().proposer().clone());
        Node {
            id: id.clone(),
            tag: id.tag(),
            clock,
            store,
            replica,
            coordinator,
            handoff,
            view,
            owed,
            tasks,
            disk,
        }
    }

    fn new_store(&self) -> Arc<Store> {
        let limits = Limits {
            partitions: self.partitions.count(),
            tombstone_age: Duration::from_secs(3_600),
        };
        Arc::new(Store::new(self.hasher, limits))
    }

    /// Starts a node anew with this much memory, not yet caught up.
    fn restart(&mut self, node: usize, held: Option<&Record>) {
        let id = self.nodes[node].id.clone();
        self.nodes[node].tasks.stop();
        let disk = Arc::clone(&self.nodes[node].disk);
        self.nodes[node] = self.start(&id, Standing::unsure(self.partitions), 2, disk);
        if let Some(held) = held {
            let applied = self.nodes[node]
                .store
                .apply(self.key(), held.into(), Millis(0));
            assert!(matches!(applied, Applied::Applied { .. }));
        }
    }

    fn key(&self) -> HashedKey<'static> {
        let hash = self.hasher.hash(b"key");
        HashedKey {
            bytes: b"key",
            hash,
            partition: self.partitions.of(hash),
        }
    }

    async fn run_at(&self, level: Level, node: usize, action: Action) -> Outcome {
        let request = Request {
            key: Bytes::from_static(b"key"),
            action,
            level,
            is_sloppy: self.is_sloppy,
        };
        let coordinator = &self.nodes[node].coordinator;
        coordinator.run(vec![request]).await.outcomes.pop().unwrap()
    }

    async fn run(&self, node: usize, action: Action) -> Outcome {
        self.run_at(Level::Quorum, node, action).await
    }

    async fn set(&self, node: usize, value: &'static str) -> Outcome {
        let value = Bytes::from_static(value.as_bytes());
        self.run(
            node,
            Action::Set {
                value,
                expires_at: None,
            },
        )
        .await
    }

    async fn get(&self, node: usize) -> Option<Bytes> {
        match self.run(node, Action::Get).await {
            Outcome::Value(value) => value,
            other => panic!("{other:?}"),
        }
    }

    /// What a node itself holds.
    fn held(&self, node: usize) -> Option<Record> {
        let now = self.nodes[node].clock.wall();
        self.nodes[node].store.read(self.key(), now, |record| {
            record.map(|record| record.to_record())
        })
    }

    /// The first of the key's preference list.
    fn first_home(&self) -> usize {
        let home = self.view.homes(self.key().partition)[0];
        let is_home = |node: &Node| node.tag == home;
        self.nodes.iter().position(is_home).unwrap()
    }

    /// Cuts a node off, in both directions.
    fn isolate(&self, node: usize) {
        self.others(node, |network, a, b| network.cut(a, b));
    }

    fn heal(&self, node: usize) {
        self.others(node, |network, a, b| network.heal(a, b));
    }

    fn others(&self, node: usize, change: impl Fn(&MemoryNetwork, NodeTag, NodeTag)) {
        let tag = self.nodes[node].tag;
        for other in self.nodes.iter().filter(|other| other.tag != tag) {
            change(&self.network, tag, other.tag);
            change(&self.network, other.tag, tag);
        }
    }
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

/// Lets everything that is on its way arrive.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(3)).await;
}

fn value(text: &'static str) -> Option<Bytes> {
    Some(Bytes::from_static(text.as_bytes()))
}

#[tokio::test(start_paused = true)]
async fn a_later_write_wins_although_an_earlier_one_had_a_fast_clock() {
    for offset_ms in [5_000, -5_000] {
        let ring = Ring::new(3, 2, 2);
        ring.nodes[1]
            .clock
            .offset_ms
            .store(offset_ms, Ordering::Relaxed);
        for (node, text) in [(1, "first"), (0, "second"), (1, "third"), (2, "fourth")] {
            assert_eq!(
                ring.set(node, text).await,
                Outcome::Written,
                "offset {offset_ms} ms"
            );
            for reader in 0..3 {
                assert_eq!(ring.get(reader).await, value(text), "offset {offset_ms} ms");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_never_met_the_fast_clock_is_stamped_anew() {
    // With w = 1 the write can be acknowledged by a replica that knows nothing of the first one.
    let ring = Ring::new(3, 3, 1);
    ring.nodes[1]
        .clock
        .offset_ms
        .store(5_000, Ordering::Relaxed);
    ring.isolate(1);
    assert_eq!(ring.set(1, "first").await, Outcome::Written);
    ring.heal(1);
    assert_eq!(ring.set(0, "second").await, Outcome::Written);
    settle().await;
    for node in 0..3 {
        assert_eq!(ring.get(node).await, value("second"), "node {node}");
    }
    let restamped = &ring.nodes[0].coordinator.stats().superseded_writes;
    assert_eq!(restamped.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_clock_beyond_the_limit_is_refused_and_not_believed() {
    let ring = Ring::new(3, 2, 2);
    ring.nodes[1]
        .clock
        .offset_ms
        .store(3_600_000, Ordering::Relaxed);
    let Outcome::Failed(error @ RequestError::Write(_)) = ring.set(1, "from the future").await
    else {
        panic!("two of three replicas refuse it")
    };
    assert!(
        error.to_string().contains("clock is too far ahead"),
        "{error}"
    );
    assert_eq!(ring.set(0, "now").await, Outcome::Written);
    assert_eq!(ring.get(2).await, value("now"));
}

#[tokio::test(start_paused = true)]
async fn a_node_an_hour_behind_is_told_so_and_harms_nobody() {
    let ring = Ring::new(3, 2, 2);
    ring.nodes[1]
        .clock
        .offset_ms
        .store(-3_600_000, Ordering::Relaxed);
    assert_eq!(ring.set(0, "now").await, Outcome::Written);
    // It cannot stamp a write above what the others hold without believing their clocks.
    let Outcome::Failed(error) = ring.set(1, "then").await else {
        panic!("it is refused")
    };
    assert!(error.to_string().contains("clock"), "{error}");
    assert_eq!(ring.set(2, "later").await, Outcome::Written);
    assert_eq!(ring.get(0).await, value("later"));
}

#[tokio::test(start_paused = true)]
async fn a_stale_replica_is_repaired_before_the_answer() {
    let ring = Ring::new(3, 2, 2);
    ring.set(0, "old").await;
    settle().await;
    ring.isolate(2);
    assert_eq!(ring.set(0, "new").await, Outcome::Written);
    settle().await;
    ring.heal(2);
    assert_eq!(
        ring.held(2).map(|record| record.body),
        Some(quorate::model::Body::Value(value("old").unwrap()))
    );
    // The stale node asks itself and one more: it must not answer with what it holds.
    assert_eq!(ring.get(2).await, value("new"));
    assert_eq!(ring.held(2), ring.held(0));
}

#[tokio::test(start_paused = true)]
async fn deletes_repair_like_writes() {
    let ring = Ring::new(3, 2, 2);
    ring.set(0, "value").await;
    settle().await;
    ring.isolate(2);
    assert_eq!(ring.run(0, Action::Delete).await, Outcome::Deleted(true));
    settle().await;
    ring.heal(2);
    assert_eq!(ring.get(2).await, None);
    assert_eq!(ring.run(1, Action::Delete).await, Outcome::Deleted(false));
    assert_eq!(
        ring.held(2).map(|record| record.body),
        Some(quorate::model::Body::Tombstone)
    );
}

#[tokio::test(start_paused = true)]
async fn an_expiry_reaches_all_replicas_and_is_undone() {
    let ring = Ring::new(3, 2, 3);
    ring.set(0, "value").await;
    settle().await;
    let at = Some(Millis(ring.nodes[0].clock.wall().0 + 60_000));
    let outcome = ring.run(1, Action::Expire { at }).await;
    assert_eq!(
        outcome,
        Outcome::Expiry {
            existed: true,
            had_end: false
        }
    );
    for node in 0..3 {
        assert_eq!(
            ring.held(node).and_then(|record| record.expiry.at),
            at,
            "node {node}"
        );
    }
    let outcome = ring.run(2, Action::Expire { at: None }).await;
    assert_eq!(
        outcome,
        Outcome::Expiry {
            existed: true,
            had_end: true
        }
    );
    ring.run(0, Action::Delete).await;
    let outcome = ring.run(0, Action::Expire { at }).await;
    assert_eq!(
        outcome,
        Outcome::Expiry {
            existed: false,
            had_end: false
        }
    );
}

#[tokio::test(start_paused = true)]
async fn an_expiry_repairs_a_replica_that_holds_an_older_value() {
    let ring = Ring::new(3, 2, 2);
    ring.set(0, "old").await;
    settle().await;
    ring.isolate(2);
    ring.set(0, "new").await;
    settle().await;
    ring.heal(2);
    let at = Some(Millis(ring.nodes[0].clock.wall().0 + 60_000));
    let outcome = ring.run(2, Action::Expire { at }).await;
    assert_eq!(
        outcome,
        Outcome::Expiry {
            existed: true,
            had_end: false
        }
    );
    settle().await;
    assert_eq!(ring.held(2), ring.held(0));
    assert_eq!(ring.get(2).await, value("new"));
}

#[tokio::test(start_paused = true)]
async fn without_a_quorum_the_answer_comes_at_the_timeout_and_says_how_many() {
    let ring = Ring::new(3, 2, 3);
    ring.set(0, "value").await;
    ring.isolate(2);
    let start = SystemClock.monotonic();
    let Outcome::Failed(RequestError::Write(quorum)) = ring.set(0, "other").await else {
        panic!("two of three acknowledge")
    };
    assert_eq!((quorum.need, quorum.got), (3, 2));
    assert!(
        start.elapsed() <= Duration::from_millis(1_100),
        "{:?}",
        start.elapsed()
    );
    assert!(ring.get(0).await.is_some(), "reads at r = 2 go on");
}

#[tokio::test(start_paused = true)]
async fn writes_of_one_key_in_one_batch_keep_their_order() {
    let ring = Ring::new(3, 2, 2);
    let write = |number: usize| Request {
        key: Bytes::from_static(b"key"),
        action: Action::Set {
            value: Bytes::from(number.to_string()),
            expires_at: None,
        },
        level: Level::Quorum,
        is_sloppy: true,
    };
    for round in 0..20 {
        // A competitor writes the same key at the same time.
        let batch = (0..50).map(|number| write(round * 100 + number)).collect();
        let (ran, _) = tokio::join!(ring.nodes[0].coordinator.run(batch), ring.set(1, "other"));
        assert!(
            ran.outcomes
                .iter()
                .all(|outcome| *outcome == Outcome::Written)
        );
        settle().await;
        let last = Bytes::from((round * 100 + 49).to_string());
        let read = ring.get(2).await;
        assert!(read == Some(last) || read == value("other"), "{read:?}");
    }
}

const HANDOFF: handoff::Config = handoff::Config {
    limits: HintLimits {
        bytes_max: 100_000,
        window: Duration::from_secs(3_600),
    },
    durability: Durability::Synced,
    replay_bytes_per_s: 1 << 20,
};
