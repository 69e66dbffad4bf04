//! Two replicas of everything, their clock and their cuts set by hand.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate::digest::Sheet;
use quorate::env::Durability;
use quorate::env::{Clock, Disk, Env, MemoryDisk, SeededRng, SystemClock, Tasks};
use quorate::front::peer_server::{PeerServer, Served};
use quorate::model::{
    Epoch, HashedKey, Hlc, HlcTime, KeyHasher, Millis, NodeId, NodeTag, Record, Version,
};
use quorate::net::{MemoryNetwork, PeerService};
use quorate::node::anti_entropy::{AntiEntropy, Config, DigestGossip, Parts, Responder};
use quorate::node::handoff::{self, Handoff, Owed};
use quorate::node::replica::{Replica, Standing};
use quorate::protocol::HintLimits;
use quorate::ring::{Member, MemberState, Partitions, RingParams, Role, View};
use quorate::store::{Limits, Store};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

pub(crate) struct Pair {
    pub(crate) sides: [Side; 2],
    pub(crate) network: MemoryNetwork,
    pub(crate) partitions: Partitions,
    clock: Arc<ManualClock>,
    hasher: KeyHasher,
    owed: watch::Sender<Arc<Owed>>,
    view: watch::Sender<Arc<View>>,
}

pub(crate) struct Side {
    pub(crate) id: NodeId,
    pub(crate) store: Arc<Store>,
    pub(crate) anti_entropy: Arc<AntiEntropy>,
    handoff: Arc<Handoff>,
    replica: Arc<Replica>,
    cut: watch::Sender<Epoch>,
}

#[derive(Debug)]
struct ManualClock(AtomicU64);

impl Clock for ManualClock {
    fn wall(&self) -> Millis {
        Millis(self.0.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Instant {
        SystemClock.monotonic()
    }
}

/// Gossip that arrives at once.
#[derive(Debug)]
struct Board {
    own: NodeTag,
    sheets: Arc<Mutex<BTreeMap<NodeTag, Arc<Sheet>>>>,
}

impl DigestGossip for Board {
    fn publish(&self, sheet: Arc<Sheet>) {
        let mut sheets = self.sheets.lock().unwrap_or_else(PoisonError::into_inner);
        sheets.insert(self.own, sheet);
    }

    fn heard(&self) -> BTreeMap<NodeTag, Arc<Sheet>> {
        let sheets = self.sheets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sheets = sheets.clone();
        sheets.remove(&self.own);
        sheets
    }
}

impl Pair {
    /// Two empty replicas of so many partitions. `a` is the lower name.
    pub(crate) fn new(partitions: u32, bytes_per_s: u64) -> Self {
        let tasks = Tasks::new();
        let network = MemoryNetwork::new(tasks.clone(), Duration::from_micros(50));
        let clock = Arc::new(ManualClock(AtomicU64::new(START_MS)));
        let partitions = Partitions::new(partitions).unwrap();
        let params = RingParams {
            cluster: "pair".to_owned(),
            partitions,
            n: 2,
        };
        let ids = ["a", "b"].map(|name| name.parse::<NodeId>().unwrap());
        let view = Arc::new(View::new(params, ids.iter().map(member).collect()));
        let view = watch::Sender::new(view);
        let sheets = Arc::default();
        let owed = watch::Sender::new(Arc::<Owed>::default());
        let hasher = KeyHasher::new("pair");
        let sides = ids.map(|id| {
            let env = Env {
                clock: Arc::clone(&clock) as Arc<dyn Clock>,
                rng: SeededRng::from_seed(id.tag().0),
                tasks: tasks.clone(),
                disk: Arc::new(MemoryDisk::default()) as Arc<dyn Disk>,
            };
            let (store, replica, handoff) = held(&env, hasher, partitions);
            let cut = watch::Sender::new(Epoch::default());
            let anti_entropy = AntiEntropy::new(Parts {
                config: Config {
                    digest_interval: Duration::from_secs(4),
                    bytes_per_s,
                    tombstone_age: TOMBSTONE_AGE,
                },
                self_tag: id.tag(),
                view: view.subscribe(),
                replica: Arc::clone(&replica),
                store: Arc::clone(&store),
                hasher,
                transport: Arc::new(network.transport(id.tag())),
                gossip: Arc::new(Board {
                    own: id.tag(),
                    sheets: Arc::clone(&sheets),
                }),
                owed: owed.subscribe(),
                cut: cut.subscribe(),
                env,
            });
            anti_entropy.start();
            Side {
                id,
                store,
                anti_entropy,
                handoff,
                replica,
                cut,
            }
        });
        let pair = Self {
            sides,
            network,
            partitions,
            clock,
            hasher,
            owed,
            view,
        };
        for side in 0..2 {
            let service = Arc::new(pair.service(side));
            pair.network.connect(pair.tag(side), service);
        }
        pair
    }

    pub(crate) fn tag(&self, side: usize) -> NodeTag {
        self.sides[side].id.tag()
    }

    /// What a side serves, as after a start: it knows of no comparison.
    pub(crate) fn service(&self, side: usize) -> PeerServer {
        let Side {
            store,
            replica,
            handoff,
            ..
        } = &self.sides[side];
        PeerServer::new(
            Served {
                replica: Arc::clone(replica),
                handoff: Arc::clone(handoff),
                responder: Responder::new(Arc::clone(store)),
            },
            Arc::clone(&self.clock) as Arc<dyn Clock>,
            self.hasher,
            self.view.subscribe(),
            Box::new(Bytes::new),
        )
    }

    /// Replaces what a side serves.
    pub(crate) fn serve(&self, side: usize, service: Arc<dyn PeerService>) {
        self.network.connect(self.tag(side), service);
    }

    pub(crate) fn now(&self) -> Millis {
        self.clock.wall()
    }

    /// A version that a write of now has.
    pub(crate) fn version(&self, counter: u64) -> Version {
        Version {
            hlc: HlcTime(HlcTime::from_millis(self.now()).0 + counter),
            node: NodeTag(7),
        }
    }

    pub(crate) fn hashed<'a>(&self, key: &'a [u8]) -> HashedKey<'a> {
        let hash = self.hasher.hash(key);
        HashedKey {
            bytes: key,
            hash,
            partition: self.partitions.of(hash),
        }
    }

    pub(crate) fn put(&self, side: usize, key: &str, record: &Record) {
        let key = self.hashed(key.as_bytes());
        self.sides[side].store.apply(key, record.into(), self.now());
    }

    pub(crate) fn held(&self, side: usize, key: &str) -> Option<Record> {
        let key = self.hashed(key.as_bytes());
        let store = &self.sides[side].store;
        store.read(key, Millis(0), |record| {
            record.map(|record| record.to_record())
        })
    }

    /// An epoch passes on both sides.
    pub(crate) fn pass_epoch(&self) {
        let epoch = u64::try_from(Epoch::DURATION.as_millis()).unwrap();
        self.clock.0.fetch_add(epoch, Ordering::Relaxed);
        let cut = Epoch::of(self.now()).before();
        for side in &self.sides {
            for group in 0..side.store.groups() {
                side.store.roll(group, cut, self.now());
            }
        }
        for side in &self.sides {
            side.cut.send_replace(cut);
        }
    }

    /// The same, and both have heard what the other tells.
    pub(crate) async fn pass(&self) {
        self.pass_epoch();
        sleep(Duration::from_millis(700)).await;
    }

    /// Sets who is in the ring, and who of them can be reached.
    pub(crate) fn set_members(&self, members: &[(&str, bool)]) {
        let members = members.iter().map(|(name, reachable)| Member {
            reachable: *reachable,
            ..member(&name.parse().unwrap())
        });
        let view = self.view.borrow().update(members.collect());
        self.view.send_replace(Arc::new(view));
    }

    /// Whether a side is a home of a key.
    pub(crate) fn is_home(&self, side: usize, key: &str) -> bool {
        let partition = self.hashed(key.as_bytes()).partition;
        self.view
            .borrow()
            .homes(partition)
            .contains(&self.tag(side))
    }

    /// Says that somebody holds hints for a side.
    pub(crate) fn owe(&self, side: usize, is_owed: bool) {
        let owed = [(NodeTag(99), self.tag(side))];
        let owed = Owed::new(owed.into_iter().filter(|_| is_owed));
        self.owed.send_replace(Arc::new(owed));
    }

    /// Lets time pass until all sessions that are due have ended, for so long at most.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = SystemClock.monotonic() + PATIENCE;
        while !is_so() {
            assert!(SystemClock.monotonic() < deadline, "never {what}");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// What a node holds: nothing.
fn held(
    env: &Env,
    hasher: KeyHasher,
    partitions: Partitions,
) -> (Arc<Store>, Arc<Replica>, Arc<Handoff>) {
    let limits = Limits {
        partitions: partitions.count(),
        tombstone_age: TOMBSTONE_AGE,
    };
    let store = Arc::new(Store::new(hasher, limits));
    let hlc = Arc::new(Hlc::new(Duration::from_secs(10)));
    let standing = Standing::sure(partitions);
    let replica = Arc::new(Replica::new(Arc::clone(&store), hlc, 16 << 20, standing));
    let clock = Arc::clone(&env.clock);
    let handoff = Handoff::open(HANDOFF, &*env.disk, clock, Arc::clone(&replica)).unwrap();
    (store, replica, handoff)
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

const HANDOFF: handoff::Config = handoff::Config {
    limits: HintLimits {
        bytes_max: 0,
        window: Duration::from_secs(60),
    },
    durability: Durability::Written,
    replay_bytes_per_s: 1,
};
/// 2027.
const START_MS: u64 = 1_800_000_000_000;
/// Sixty epochs or so.
pub(crate) const TOMBSTONE_AGE: Duration = Duration::from_secs(240);
const PATIENCE: Duration = Duration::from_secs(600);
