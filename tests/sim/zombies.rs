//! Deletes, a home that is away for longer than every window, and its return with what it held:
//! nothing that was deleted, or replaced by something that has ended, ever comes back; all homes
//! come to hold the same without a read; tombstones go in the end.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate::env::{Clock, SeededRng};
use quorate::model::{Level, Quorum};
use quorate::node::coordinator::{Action, Outcome, Request};
use tokio::time::sleep;

use crate::breakage::Breakage;
use crate::cluster::{Cluster, Membership, Memory, PARTITIONS, Plan, REQUEST_MAX};
use crate::entropy::seed_this_thread;
use crate::network::Weather;

/// How a home is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Absence {
    Isolated,
    Paused,
    /// Killed, and started with what it held.
    KilledWithMemory,
    /// Killed, and started with what it held before.
    KilledWithOldMemory,
    KilledWithoutMemory,
}

impl Absence {
    pub(crate) const ALL: [Self; 5] = [
        Self::Isolated,
        Self::Paused,
        Self::KilledWithMemory,
        Self::KilledWithOldMemory,
        Self::KilledWithoutMemory,
    ];
}

/// What came of one run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) gone: u64,
    pub(crate) reads: u64,
    pub(crate) purged: u64,
    pub(crate) sessions: u64,
    pub(crate) fixed: u64,
}

/// Runs a seed; what is wrong, if anything is.
pub(crate) fn run(seed: u64, breakage: Option<Breakage>) -> Result<Tally, String> {
    let running = std::thread::spawn(move || {
        seed_this_thread(seed);
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true);
        #[cfg(tokio_unstable)]
        builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
        let runtime = builder.build().expect("a runtime without I/O");
        runtime.block_on(simulate(seed, breakage))
    });
    running
        .join()
        .unwrap_or_else(|_panic| panic!("seed {seed} panicked"))
}

struct World {
    cluster: Arc<Mutex<Cluster>>,
    rng: SeededRng,
    is_sloppy: bool,
    victim: usize,
    tally: Tally,
}

async fn simulate(seed: u64, breakage: Option<Breakage>) -> Result<Tally, String> {
    let rng = SeededRng::from_seed(seed ^ 0x7a6f_6d62);
    let nodes = 3 + u8::try_from(rng.next_u64() % 3).unwrap_or(0);
    let plan = Plan {
        quorum: Quorum::majority(3).expect("two of three"),
        breakage,
        membership: Membership::Oracle,
        hint_window: Duration::from_secs(5),
        timeout: REQUEST_MAX,
        partitions: PARTITIONS,
    };
    let cluster = Cluster::start(seed, nodes, plan);
    let victim = usize::try_from(rng.next_u64() % u64::from(nodes)).unwrap_or(0);
    let absence = Absence::ALL[usize::try_from(seed % 5).unwrap_or(0)];
    let mut world = World {
        cluster: Arc::new(Mutex::new(cluster)),
        is_sloppy: rng.fraction() < 0.5,
        rng,
        victim,
        tally: Tally::default(),
    };
    sleep(Duration::from_secs(5)).await;
    // Restarts of this cluster are not the first ones: what is written now is what may come back.
    for key in 0..KEYS {
        world.write(key, "old", None, false).await;
    }
    sleep(Duration::from_secs(2)).await;
    world.cluster().remember(victim);
    for key in 0..KEYS / 4 {
        world.write(key, "old again", None, false).await;
    }
    sleep(Duration::from_secs(1)).await;

    world.leave(absence);
    let gone = world.delete().await;
    let lossy = Weather {
        loss: 0.02,
        ..Weather::default()
    };
    world.cluster().network.lock().weather = lossy;
    // Longer than what is to end, than hints are kept, than tombstones have to be.
    let away = plan.tombstone_age() * 2 + Duration::from_secs(world.rng.next_u64() % 60);
    world.watch(&gone, away).await?;
    world.come_back(absence);
    world.cluster().network.lock().weather = Weather::default();
    world.watch(&gone, AGREEMENT_MAX).await?;
    world.check(&gone).await?;
    // In peace tombstones go, and still nothing comes back.
    world.watch(&gone, plan.tombstone_age() + PURGE_MAX).await?;
    world.check(&gone).await?;
    let left = world.cluster().tombstones();
    if left > 0 {
        return Err(format!("{left} tombstones are still there"));
    }
    for node in 0..usize::from(nodes) {
        let running = world.cluster().kept_alike(node);
        if let Some((_, anti_entropy)) = running {
            let report = anti_entropy.report("");
            world.tally.purged += report.tombstones_purged;
            world.tally.sessions += report.sessions;
            world.tally.fixed += report.fixed;
        }
    }
    Ok(world.tally)
}

impl World {
    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node that is not the one that leaves, if that has left.
    fn node(&self, without_victim: bool) -> usize {
        let nodes = self.cluster().nodes.len() as u64;
        loop {
            let node = usize::try_from(self.rng.next_u64() % nodes).unwrap_or(0);
            if !without_victim || node != self.victim {
                return node;
            }
        }
    }

    async fn request(
        &self,
        node: usize,
        key: usize,
        action: Action,
        level: Level,
    ) -> Option<Outcome> {
        let door = self.cluster().door(node)?;
        let request = Request {
            key: Bytes::from(name(key)),
            action,
            level,
            is_sloppy: self.is_sloppy,
        };
        door.run(request).await
    }

    /// Writes until it is acknowledged.
    async fn write(&self, key: usize, value: &'static str, ttl: Option<Duration>, is_away: bool) {
        for _ in 0..ATTEMPTS {
            let node = self.node(is_away);
            let now = self.cluster().nodes[node].clock.wall();
            let action = Action::Set {
                value: Bytes::from_static(value.as_bytes()),
                expires_at: ttl.map(|ttl| now.saturating_add(ttl)),
            };
            let outcome = self.request(node, key, action, Level::Quorum).await;
            if matches!(outcome, Some(Outcome::Written)) {
                return;
            }
        }
        panic!("{} cannot be written", name(key));
    }

    /// Deletes every other key, and replaces some by what soon ends. The keys that must be gone.
    async fn delete(&mut self) -> BTreeSet<usize> {
        let mut gone = BTreeSet::new();
        for key in (0..KEYS).step_by(2) {
            if key % 8 == 0 {
                self.write(key, "short", Some(TTL), true).await;
                gone.insert(key);
                continue;
            }
            for _ in 0..ATTEMPTS {
                let node = self.node(true);
                let outcome = self.request(node, key, Action::Delete, Level::Quorum).await;
                if matches!(outcome, Some(Outcome::Deleted(_))) {
                    gone.insert(key);
                    break;
                }
            }
        }
        self.tally.gone += gone.len() as u64;
        sleep(TTL).await;
        gone
    }

    fn leave(&self, absence: Absence) {
        let mut cluster = self.cluster();
        let (victim, nodes) = (self.victim, cluster.nodes.len());
        match absence {
            Absence::Isolated => {
                for other in (0..nodes).filter(|other| *other != victim) {
                    cluster.cut(victim, other, true);
                    cluster.cut(other, victim, true);
                }
            }
            Absence::Paused => cluster.network.set_paused(cluster.tag(victim), true),
            _ => cluster.kill(victim),
        }
    }

    fn come_back(&self, absence: Absence) {
        let mut cluster = self.cluster();
        let (victim, nodes) = (self.victim, cluster.nodes.len());
        match absence {
            Absence::Isolated => {
                for other in (0..nodes).filter(|other| *other != victim) {
                    cluster.cut(victim, other, false);
                    cluster.cut(other, victim, false);
                }
            }
            Absence::Paused => cluster.network.set_paused(cluster.tag(victim), false),
            Absence::KilledWithMemory => cluster.start_node(victim, &Memory::Kept),
            Absence::KilledWithOldMemory => cluster.start_node(victim, &Memory::Earlier),
            Absence::KilledWithoutMemory => cluster.start_node(victim, &Memory::Nothing),
        }
    }

    /// Reads now and then what must be gone, through nodes that can be asked.
    async fn watch(&mut self, gone: &BTreeSet<usize>, time: Duration) -> Result<(), String> {
        let ends = crate::cluster::now() + time;
        while crate::cluster::now() < ends {
            sleep(Duration::from_millis(1_500)).await;
            let at = usize::try_from(self.rng.next_u64()).unwrap_or(0) % gone.len();
            let key = *gone.iter().nth(at).expect("within the set");
            let node = self.node(false);
            let is_there = self.is_there(node);
            if is_there {
                self.read(node, key, Level::Quorum).await?;
            }
        }
        Ok(())
    }

    fn is_there(&self, node: usize) -> bool {
        let cluster = self.cluster();
        let tag = cluster.tag(node);
        cluster.network.is_connected(tag, tag)
    }

    async fn read(&mut self, node: usize, key: usize, level: Level) -> Result<(), String> {
        let outcome = self.request(node, key, Action::Get, level).await;
        self.tally.reads += 1;
        match outcome {
            Some(Outcome::Value(Some(value))) => Err(format!(
                "{} is back at level {level} on n{node}: {value:?}",
                name(key)
            )),
            _ => Ok(()),
        }
    }

    /// Reads what must be there. Now and then the network loses a message.
    async fn find(&self, node: usize, key: usize) -> Result<(), String> {
        for _ in 0..ATTEMPTS {
            match self.request(node, key, Action::Get, Level::Quorum).await {
                Some(Outcome::Value(Some(_))) => return Ok(()),
                Some(Outcome::Failed(_)) => {}
                other => return Err(format!("{} is lost: {other:?}", name(key))),
            }
        }
        Err(format!("{} cannot be read", name(key)))
    }

    /// After enough peace all homes hold the same, and no node shows what is gone.
    async fn check(&mut self, gone: &BTreeSet<usize>) -> Result<(), String> {
        let difference = self.cluster().difference();
        if let Some(difference) = difference {
            return Err(format!("homes still differ: {difference}"));
        }
        let nodes = self.cluster().nodes.len();
        for node in 0..nodes {
            for key in 0..KEYS {
                if gone.contains(&key) {
                    self.read(node, key, Level::One).await?;
                } else {
                    self.find(node, key).await?;
                }
            }
        }
        Ok(())
    }
}

/// Alters a record in one home's memory; whether it is found, counted and healed.
pub(crate) fn damage(seed: u64) -> Result<(), String> {
    let running = std::thread::spawn(move || {
        seed_this_thread(seed);
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true);
        let runtime = builder.build().expect("a runtime without I/O");
        runtime.block_on(simulate_damage(seed))
    });
    running
        .join()
        .unwrap_or_else(|_panic| panic!("seed {seed} panicked"))
}

async fn simulate_damage(seed: u64) -> Result<(), String> {
    let plan = Plan {
        quorum: Quorum::majority(3).expect("two of three"),
        breakage: None,
        membership: Membership::Oracle,
        hint_window: Duration::from_secs(3_600),
        timeout: REQUEST_MAX,
        partitions: PARTITIONS,
    };
    let world = World {
        cluster: Arc::new(Mutex::new(Cluster::start(seed, 3, plan))),
        rng: SeededRng::from_seed(seed),
        is_sloppy: true,
        victim: 0,
        tally: Tally::default(),
    };
    sleep(Duration::from_secs(5)).await;
    for key in 0..KEYS {
        world.write(key, "value", None, false).await;
    }
    sleep(Duration::from_secs(30)).await;
    let key = name(usize::try_from(seed).unwrap_or(0) % KEYS);
    let (store, anti_entropy) = world.cluster().kept_alike(1).expect("it is up");
    let whole = world.cluster().hashed(key.as_bytes());
    let states = store.states(whole.partition, quorate::model::Epoch::default());
    let is_altered = store.alter(whole, |bytes| {
        // The stamp, the key or the value.
        let at = usize::try_from(world.rng.next_u64()).unwrap_or(0) % bytes.len();
        bytes[at] ^= 1 << (seed % 8);
    });
    assert!(is_altered, "all keys are there");
    sleep(Duration::from_secs(400)).await;
    if anti_entropy.report("").damaged_records != 1 {
        return Err("the damage was not counted".to_owned());
    }
    let healed = store.states(whole.partition, quorate::model::Epoch::default());
    let sorted = |mut states: Vec<(u64, u64)>| {
        states.sort_unstable();
        states
    };
    if sorted(healed) != sorted(states) {
        return Err("the damage was not healed".to_owned());
    }
    let value = store.read(whole, quorate::model::Millis(0), |record| {
        record.and_then(|record| record.value.map(<[u8]>::to_vec))
    });
    match value.as_deref() {
        Some(b"value") => Ok(()),
        other => Err(format!("healed to {other:?}")),
    }
}

fn name(key: usize) -> String {
    format!("key-{key}")
}

const KEYS: usize = 32;
const TTL: Duration = Duration::from_secs(4);
const ATTEMPTS: usize = 50;
/// Two cuts, a session and one more cut take half a minute.
const AGREEMENT_MAX: Duration = Duration::from_secs(60);
/// A minute of agreement comes before a purge.
const PURGE_MAX: Duration = Duration::from_secs(90);
