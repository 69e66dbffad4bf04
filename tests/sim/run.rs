//! One run: a cluster, clients, faults, and what came of it. The seed decides everything.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate::env::SeededRng;
use quorate::model::{Level, Quorum};
use quorate::node::coordinator::{Action, Outcome, Request, RequestError};
use quorate::node::updates::UpdateError;
use tokio::time::{Instant, sleep};

use crate::breakage::Breakage;
use crate::checker::{
    ABSENT, Kind, NEVER, Operation, check_linearizable, check_regular, stale_reads,
};
use crate::cluster::{Cluster, Door, Membership, PARTITIONS, Plan, REQUEST_MAX, now};
use crate::entropy::seed_this_thread;
use crate::faults::{Fault, Faults};

/// What a run is like, the seed aside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) level: Level,
    /// Others may stand in for homes. Then `quorum` promises less: no acknowledged write is lost,
    /// and all nodes come to agree; how many reads are stale is counted.
    pub(crate) is_sloppy: bool,
    pub(crate) breakage: Option<Breakage>,
    pub(crate) membership: Membership,
    pub(crate) virtual_time: Duration,
}

impl Setting {
    /// Half of the seeds prove one level, nearly half the other; some measure what `one` costs.
    pub(crate) fn of_seed(seed: u64) -> Self {
        let level = match seed % 20 {
            17 => Level::One,
            even if even.is_multiple_of(2) => Level::Linearizable,
            _ => Level::Quorum,
        };
        Self {
            level,
            // At `linearizable` it must make no difference.
            is_sloppy: level == Level::Linearizable || matches!(seed % 40, 3 | 9 | 19 | 29),
            breakage: None,
            // Gossip costs more than all the rest: one seed in ten has the real one.
            membership: if seed % 20 >= 18 {
                Membership::Gossip
            } else {
                Membership::Oracle
            },
            virtual_time: Duration::from_secs(72),
        }
    }
}

impl Setting {
    /// Whether it is about what stand-ins promise.
    fn is_of_hints(&self) -> bool {
        self.is_sloppy && self.level == Level::Quorum
    }

    /// See [`World::grain`]. Breakages are so much worse that it makes no difference to them.
    fn grain(&self, quorum: Quorum) -> Duration {
        let is_ordered_by_clocks = quorum.w() == 1 && self.breakage.is_none();
        Duration::from_millis(if is_ordered_by_clocks { 2 } else { 0 })
    }

    fn plan(&self, seed: u64) -> Plan {
        Plan {
            quorum: match self.breakage {
                Some(breakage) => breakage.quorum(),
                None => self.quorum(seed),
            },
            breakage: self.breakage,
            membership: self.membership,
            hint_window: Duration::from_secs(3_600),
            timeout: REQUEST_MAX,
            partitions: PARTITIONS,
        }
    }

    /// Of three.
    fn quorum(&self, seed: u64) -> Quorum {
        let quorum = match seed % 3 {
            0 if self.is_of_hints() => Quorum::new(3, 2, 3),
            1 if self.is_of_hints() => Quorum::new(3, 3, 1),
            _ => Quorum::majority(3),
        };
        quorum.expect("at most three")
    }
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) operations: u64,
    pub(crate) answered: u64,
    pub(crate) messages: u64,
    pub(crate) virtual_time: Duration,
    pub(crate) faults: BTreeMap<Fault, u64>,
    /// Reads at level `one` or of sloppy quorums, and how many of them were stale.
    pub(crate) stale: (u64, u64),
    pub(crate) is_sloppy: bool,
    /// Hints kept and given back.
    pub(crate) hints: (u64, u64),
    pub(crate) trace: u64,
    /// What is wrong, with a timeline.
    pub(crate) violation: Option<String>,
}

/// What happened to one key, in the order of a counter that all calls and ends share.
#[derive(Debug, Default)]
struct History {
    clock: u64,
    of_key: BTreeMap<usize, Vec<Operation>>,
    notes: BTreeMap<(usize, u64), String>,
    answered: u64,
}

impl History {
    /// Of how many reads how many were stale.
    fn stale_reads(&self) -> (u64, u64) {
        let of_keys = self.of_key.values().map(|of_key| stale_reads(of_key));
        of_keys.fold((0, 0), |(a, b), (reads, stale)| (a + reads, b + stale))
    }
}

#[derive(Clone)]
struct World {
    cluster: Arc<Mutex<Cluster>>,
    history: Arc<Mutex<History>>,
    values: Arc<AtomicU64>,
    level: Level,
    is_sloppy: bool,
    /// With w = 1 clocks alone order two writes through different nodes, and they tell milliseconds:
    /// one that begins in the millisecond in which another ends counts as begun before that.
    grain: Duration,
    started: Instant,
}

impl World {
    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self) -> u64 {
        let mut history = self.history();
        history.clock += 1;
        history.clock
    }

    /// One operation of a client through a node, into the history.
    async fn operate(&self, client: u32, node: usize, key: usize, is_write: bool) -> Option<u64> {
        let level = self.level;
        self.operate_at(level, client, node, key, is_write).await
    }

    async fn operate_at(
        &self,
        level: Level,
        client: u32,
        node: usize,
        key: usize,
        is_write: bool,
    ) -> Option<u64> {
        let door = self.open(node)?;
        let value = self.values.fetch_add(1, Ordering::Relaxed) + 1;
        let action = if is_write {
            let value = Bytes::from(value.to_string());
            Action::Set {
                value,
                expires_at: None,
            }
        } else {
            Action::Get
        };
        let call = self.tick();
        let at = self.started.elapsed().as_millis();
        let request = Request {
            key: Bytes::from(format!("key-{key}")),
            action,
            level,
            is_sloppy: self.is_sloppy,
        };
        let outcome = door.run(request).await;
        if is_write && !self.grain.is_zero() {
            sleep(self.grain).await;
        }
        let end = self.tick();
        let (kind, end, read) = match &outcome {
            Some(Outcome::Written) => (Kind::Write(value), end, None),
            Some(Outcome::Value(found)) => {
                let found = found.as_ref().map_or(ABSENT, number);
                (Kind::Read(found), end, Some(found))
            }
            // It says that it was not begun: it must not show up.
            Some(Outcome::Failed(RequestError::Update(
                UpdateError::NotMade(_) | UpdateError::Busy,
            ))) => {
                return None;
            }
            _ if is_write => (Kind::MaybeWrite(value), NEVER, None),
            _ => return None,
        };
        let operation = Operation {
            client,
            call,
            end,
            kind,
        };
        let mut history = self.history();
        history.answered += u64::from(end != NEVER);
        history.of_key.entry(key).or_default().push(operation);
        let took = self.started.elapsed().as_millis() - at;
        let note = format!("{at:>6} ms +{took:<4} client {client:<3} n{node} {kind:?}");
        history.notes.insert((key, call), note);
        drop(history);
        let cluster = self.cluster();
        cluster.network.note((call, end, format!("{kind:?}")));
        read
    }

    /// The door of a node that can be asked now.
    fn open(&self, node: usize) -> Option<Door> {
        let cluster = self.cluster();
        let is_paused = cluster.network.is_paused(cluster.tag(node));
        if is_paused { None } else { cluster.door(node) }
    }

    async fn client(self, client: u32, seed: u64, until: Instant) {
        let rng = SeededRng::from_seed(seed ^ (u64::from(client) << 40));
        let below = |bound: u64| usize::try_from(rng.next_u64() % bound).unwrap_or(0);
        let nodes = self.cluster().nodes.len() as u64;
        let mut node = below(nodes);
        while now() < until {
            // Bursts and pauses: most races need two operations at the same time.
            let think = if rng.fraction() < 0.5 { 5 } else { 400 };
            sleep(Duration::from_millis(below(think) as u64)).await;
            if rng.fraction() < 0.3 {
                node = below(nodes);
            }
            let (key, is_write) = (below(KEYS as u64), rng.fraction() < 0.5);
            self.operate(client, node, key, is_write).await;
        }
    }

    /// After everything is healed: all nodes must come to say the same of every key.
    async fn settle(&self) -> Result<(), String> {
        for _ in 0..600 {
            if self.cluster().is_sure() && self.cluster().hints() == 0 {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        let hints = self.cluster().hints();
        if hints > 0 {
            return Err(format!(
                "{hints} hints were not given back within 30 s of peace"
            ));
        }
        if !self.cluster().is_sure() {
            return Err(NOT_CAUGHT_UP.to_owned());
        }
        sleep(Duration::from_secs(2)).await;
        let nodes = self.cluster().nodes.len();
        for key in 0..KEYS {
            for round in 0..2 {
                let mut seen = Vec::new();
                for node in 0..nodes {
                    let client = READERS_IN_PEACE + u32::try_from(node).unwrap_or(0);
                    // Reads at `one` repair nothing: others have to.
                    let level = self.level.max(Level::Quorum);
                    if let Some(value) = self.operate_at(level, client, node, key, false).await {
                        seen.push(value);
                    }
                }
                if round == 1 && seen.windows(2).any(|pair| pair[0] != pair[1]) {
                    return Err(format!("key-{key} did not converge: nodes see {seen:?}"));
                }
                if seen.is_empty() {
                    return Err(format!("key-{key} cannot be read after peace"));
                }
            }
        }
        Ok(())
    }
}

/// Runs a seed. On a thread of its own: nothing of an earlier run is left on it.
pub(crate) fn run(seed: u64, setting: Setting) -> Report {
    run_seed(seed, simulate(seed, setting))
}

/// Runs what belongs to a seed on a thread and in a runtime of its own, in virtual time.
pub(crate) fn run_seed<T: Send + 'static>(
    seed: u64,
    simulation: impl Future<Output = T> + Send + 'static,
) -> T {
    let runner = std::thread::Builder::new().stack_size(4 << 20);
    let running = runner.spawn(move || {
        seed_this_thread(seed);
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true);
        // See .cargo/config.toml.
        #[cfg(tokio_unstable)]
        builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
        let runtime = builder.build().expect("a runtime without I/O");
        runtime.block_on(simulation)
    });
    let ended = running.expect("a thread for the seed").join();
    ended.unwrap_or_else(|_panic| panic!("seed {seed} panicked; {}", replay(seed)))
}

async fn simulate(seed: u64, setting: Setting) -> Report {
    let rng = SeededRng::from_seed(seed);
    let is_of_hints = setting.is_of_hints();
    let nodes = 3 + u8::try_from(rng.next_u64() % 3).unwrap_or(0);
    let nodes = if is_of_hints { 5 } else { nodes };
    let plan = setting.plan(seed);
    let quorum = plan.quorum;
    let cluster = Cluster::start(seed, nodes, plan);
    let network = cluster.network.clone();
    let started = now();
    let world = World {
        cluster: Arc::new(Mutex::new(cluster)),
        history: Arc::default(),
        values: Arc::default(),
        level: setting.level,
        is_sloppy: setting.is_sloppy,
        grain: setting.grain(quorum),
        started,
    };
    for _ in 0..300 {
        sleep(Duration::from_millis(100)).await;
        if world.cluster().is_whole() && world.cluster().is_sure() {
            break;
        }
    }
    let until = now() + setting.virtual_time;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| spawn(world.clone().client(client, seed, until)))
        .collect();
    let mut faults = faults_of(seed, &setting, quorum);
    while now() < until {
        sleep(TICK).await;
        faults.advance(TICK, &mut world.cluster());
    }
    for client in clients {
        client.await.expect("a client that ends by itself");
    }
    faults.heal(&mut world.cluster());
    let settled = world.settle().await;

    let history = world.history();
    // What clients saw comes first: it says more than that the cluster came to no rest.
    let violation = violation(&history, &setting)
        .or_else(|| settled.err().map(|why| (0, why)))
        .map(|(key, why)| format!("{why}\n{}", timeline(&history, key, &faults.log)));
    let messages = network.lock().messages;
    Report {
        operations: history
            .of_key
            .values()
            .map(|of_key| of_key.len() as u64)
            .sum(),
        answered: history.answered,
        messages,
        virtual_time: started.elapsed(),
        faults: faults.counts,
        stale: match is_of_hints || setting.level == Level::One {
            true => history.stale_reads(),
            false => (0, 0),
        },
        is_sloppy: is_of_hints,
        hints: world.cluster().hints_handled(),
        trace: network.trace(),
        violation,
    }
}

/// Some node is still not sure of some partition after 30 s of peace.
pub(crate) const NOT_CAUGHT_UP: &str = "some node did not catch up within 30 s of peace";

/// What may go wrong in a run.
fn faults_of(seed: u64, setting: &Setting, quorum: Quorum) -> Faults {
    // `quorum` promises nothing while replicas are without their memory.
    let may_forget = setting.level == Level::Linearizable;
    let is_of_hints = setting.is_of_hints();
    let kinds = Fault::ALL.into_iter().filter(|fault| match is_of_hints {
        // Clocks order writes that no home has in common.
        true => !fault.is_of_clocks() && (!fault.loses_memory() || fault.keeps_disk()),
        false => may_forget || !fault.loses_memory(),
    });
    let mut faults = Faults::new(seed, kinds.collect());
    if is_of_hints {
        // What is acknowledged by two, homes in memory or stand-ins on disk, survives one loss of
        // memory; what is acknowledged by one survives none.
        faults.losses_left = u64::from(quorum.w() > 1);
    }
    faults
}

fn violation(history: &History, setting: &Setting) -> Option<(usize, String)> {
    let level = setting.level;
    history.of_key.iter().find_map(|(&key, operations)| {
        let checked = match level {
            Level::Linearizable => check_linearizable(operations).map_err(|why| why.to_string()),
            Level::Quorum if setting.is_sloppy => check_nothing_lost(operations),
            Level::Quorum => check_regular(operations).map_err(|why| why.to_string()),
            // It promises no more than to come to rest, which was seen already.
            _ => Ok(()),
        };
        let why = checked.err()?;
        Some((key, format!("key-{key} at level {level}: {why}")))
    })
}

/// Whether the last reads, made in peace, show a write that was not replaced by one that began after
/// its end. Reads before may be stale.
fn check_nothing_lost(operations: &[Operation]) -> Result<(), String> {
    let counts = |operation: &&Operation| {
        let is_write = !matches!(operation.kind, Kind::Read(_));
        is_write || operation.client >= READERS_IN_PEACE
    };
    let of_peace: Vec<Operation> = operations.iter().filter(counts).copied().collect();
    match stale_reads(&of_peace) {
        (_, 0) => Ok(()),
        (_, stale) => Err(format!(
            "an acknowledged write was lost ({stale} reads in peace)"
        )),
    }
}

/// What happened to one key, and what went wrong meanwhile.
fn timeline(history: &History, key: usize, faults: &[(u64, String)]) -> String {
    let mut lines = String::new();
    for ((of, _), note) in &history.notes {
        if *of == key {
            writeln!(lines, "{note}").expect("a string takes everything");
        }
    }
    for (at, fault) in faults {
        writeln!(lines, "{at:>6} ms fault {fault}").expect("a string takes everything");
    }
    lines
}

pub(crate) fn replay(seed: u64) -> String {
    format!("replay it with QUORATE_SIM_SEED={seed} cargo test --test sim one_seed -- --nocapture")
}

fn number(value: &Bytes) -> u64 {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .expect("values are the numbers that were written")
}

#[expect(
    clippy::disallowed_methods,
    reason = "clients belong to no node; the runtime of the seed ends them"
)]
pub(crate) fn spawn(
    client: impl Future<Output = ()> + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(client)
}

/// Clients from this number on read after everything is healed.
const READERS_IN_PEACE: u32 = 100;
const CLIENTS: u32 = 4;
const KEYS: usize = 2;
const TICK: Duration = Duration::from_millis(100);
