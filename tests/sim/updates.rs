//! Atomic updates among plain reads and writes, with everything that can go wrong: what each key's
//! clients saw must have been possible, counters must be exact, and a lock has one holder at a time.

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
use quorate::update::{Change, Reply};
use tokio::time::{Instant, sleep};

use crate::breakage::Breakage;
use crate::chains::{Kind, Operation, check};
use crate::checker::{ABSENT, NEVER};
use crate::cluster::{Cluster, Door, Membership, PARTITIONS, Plan, REQUEST_MAX, now};
use crate::faults::{Fault, Faults};
use crate::run::{run_seed, spawn};

/// What came of one run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// Updates that had an answer.
    pub(crate) updates: u64,
    /// Updates of which nobody knows.
    pub(crate) uncertain: u64,
    /// Plain reads and writes that had an answer.
    pub(crate) plain: u64,
    /// Times that a lock was held.
    pub(crate) held: u64,
    pub(crate) faults: BTreeMap<Fault, u64>,
    pub(crate) trace: u64,
}

/// What clients have seen, in the order of a counter that all calls and ends share.
#[derive(Debug, Default)]
struct History {
    clock: u64,
    of_key: BTreeMap<usize, Vec<Operation>>,
    counters: BTreeMap<usize, Counter>,
    held: Vec<(u64, u64)>,
    notes: Vec<String>,
    tally: Tally,
}

/// What was seen of a key that is only counted up.
#[derive(Debug, Default)]
struct Counter {
    /// Call, end and value of each increment that was answered, and of each read.
    counted: Vec<(u64, u64, u64)>,
    read: Vec<(u64, u64, u64)>,
    /// Calls of those that had no answer.
    open: Vec<u64>,
}

#[derive(Clone)]
struct World {
    cluster: Arc<Mutex<Cluster>>,
    history: Arc<Mutex<History>>,
    values: Arc<AtomicU64>,
    started: Instant,
}

/// What came of one request.
enum Seen {
    Reply(Reply),
    Value(Option<u64>),
    Written,
    /// It was not begun, or says that it changed nothing.
    Nothing,
    /// It may have taken effect, or may still.
    Open,
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

    fn value(&self) -> u64 {
        self.values.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The door of a node that can be asked now.
    fn open(&self, node: usize) -> Option<Door> {
        let cluster = self.cluster();
        let is_paused = cluster.network.is_paused(cluster.tag(node));
        if is_paused { None } else { cluster.door(node) }
    }

    /// One request: when it began and ended, and what came of it.
    async fn ask(&self, node: usize, key: &str, action: Action) -> (u64, u64, Seen) {
        let call = self.tick();
        let at = self.started.elapsed().as_millis();
        let Some(door) = self.open(node) else {
            return (call, call, Seen::Nothing);
        };
        let shown = format!("{action:?}");
        let request = Request {
            key: Bytes::copy_from_slice(key.as_bytes()),
            action,
            level: Level::Linearizable,
            is_sloppy: true,
        };
        let outcome = door.run(request).await;
        let end = self.tick();
        let took = self.started.elapsed().as_millis() - at;
        let note =
            format!("{at:>6} ms +{took:<4} {call:>5}-{end:<5} n{node} {key} {shown}: {outcome:?}");
        self.cluster().network.note((call, end, &note));
        self.history().notes.push(note);
        let seen = match outcome {
            Some(Outcome::Updated(reply)) => Seen::Reply(reply),
            Some(Outcome::Written) => Seen::Written,
            Some(Outcome::Value(value)) => Seen::Value(value.as_ref().map(number)),
            Some(Outcome::Failed(
                RequestError::Update(UpdateError::NotMade(_) | UpdateError::Busy)
                | RequestError::Read(_),
            )) => Seen::Nothing,
            _ => Seen::Open,
        };
        (call, end, seen)
    }

    async fn command(&self, node: usize, key: &str, command: String) -> (u64, u64, Seen) {
        let change = Change::Command(Bytes::from(command + "\r\n"));
        let told = self.ask(node, key, Action::Update(change)).await;
        let mut history = self.history();
        match &told.2 {
            Seen::Reply(_) => history.tally.updates += 1,
            Seen::Open => history.tally.uncertain += 1,
            _ => {}
        }
        drop(history);
        told
    }

    fn note(&self, key: usize, call: u64, end: u64, kind: Kind) {
        let mut history = self.history();
        let of_key = history.of_key.entry(key).or_default();
        of_key.push(Operation { call, end, kind });
    }

    async fn read(&self, node: usize, key: usize) -> Option<u64> {
        let (call, end, seen) = self.ask(node, &format!("r{key}"), Action::Get).await;
        let Seen::Value(value) = seen else {
            return None;
        };
        let value = value.unwrap_or(ABSENT);
        self.note(key, call, end, Kind::Read(value));
        self.history().tally.plain += 1;
        Some(value)
    }

    async fn write(&self, node: usize, key: usize) {
        let value = self.value();
        let action = Action::Set {
            value: Bytes::from(value.to_string()),
            expires_at: None,
        };
        let (call, end, seen) = self.ask(node, &format!("r{key}"), action).await;
        match seen {
            Seen::Written => {
                self.note(key, call, end, Kind::Write(value));
                self.history().tally.plain += 1;
            }
            Seen::Open => self.note(key, call, NEVER, Kind::Write(value)),
            _ => {}
        }
    }

    /// Replaces the value, whatever it is, or only that which the client expects.
    async fn swap(&self, node: usize, key: usize, expected: Option<u64>) {
        let value = self.value();
        let command = match expected {
            None => format!("GETSET r{key} {value}"),
            Some(ABSENT) => format!("SET r{key} {value} NX GET"),
            Some(expected) => format!("SET r{key} {value} IFEQ {expected} GET"),
        };
        let (call, end, seen) = self.command(node, &format!("r{key}"), command).await;
        let before = match seen {
            Seen::Reply(Reply::Nil) => ABSENT,
            Seen::Reply(Reply::Bulk(before)) => number(&before),
            Seen::Open => {
                let kind = expected.map_or(Kind::Write(value), |before| Kind::Swap(before, value));
                return self.note(key, call, NEVER, kind);
            }
            _ => return,
        };
        let kind = match expected {
            Some(expected) if expected != before => Kind::Read(before),
            _ => Kind::Swap(before, value),
        };
        self.note(key, call, end, kind);
    }

    async fn count(&self, node: usize, key: usize) {
        let name = format!("c{key}");
        let (call, end, seen) = self.command(node, &name, format!("INCR {name}")).await;
        let mut history = self.history();
        let counter = history.counters.entry(key).or_default();
        match seen {
            Seen::Reply(Reply::Integer(value)) => {
                let value = u64::try_from(value).expect("it is only counted up");
                counter.counted.push((call, end, value));
            }
            Seen::Open => counter.open.push(call),
            _ => {}
        }
    }

    async fn read_count(&self, node: usize, key: usize) -> Option<u64> {
        let (call, end, seen) = self.ask(node, &format!("c{key}"), Action::Get).await;
        let Seen::Value(value) = seen else {
            return None;
        };
        let value = value.unwrap_or(0);
        let mut history = self.history();
        let counter = history.counters.entry(key).or_default();
        counter.read.push((call, end, value));
        history.tally.plain += 1;
        Some(value)
    }

    /// Tries to get the lock, holds it for a while, and gives it back.
    async fn lock(&self, rng: &SeededRng, until: Instant) {
        let nodes = self.cluster().nodes.len() as u64;
        let node = || usize::try_from(rng.next_u64() % nodes).unwrap_or(0);
        let token = self.value();
        let (_, begin, seen) = self
            .command(node(), "lock", format!("SET lock {token} NX"))
            .await;
        let is_held = match seen {
            Seen::Reply(Reply::Ok) => true,
            // It may hold it, or come to hold it: it gives it back in any case.
            Seen::Open => false,
            _ => return,
        };
        sleep(Duration::from_millis(rng.next_u64() % 40)).await;
        let mut end = None;
        // Long enough after the end of the run for everything to be healed.
        while now() < until + Duration::from_secs(60) {
            let release = format!("DELIFEQ lock {token}");
            let (call, _, seen) = self.command(node(), "lock", release).await;
            end.get_or_insert(call);
            if let Seen::Reply(Reply::Integer(_)) = seen {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        if is_held {
            let mut history = self.history();
            history.tally.held += 1;
            history.held.push((begin, end.unwrap_or(NEVER)));
        }
    }

    async fn client(self, client: u32, seed: u64, until: Instant) {
        let rng = SeededRng::from_seed(seed ^ (u64::from(client) << 40));
        let below = |bound: u64| usize::try_from(rng.next_u64() % bound).unwrap_or(0);
        let nodes = self.cluster().nodes.len() as u64;
        let (mut node, mut seen) = (below(nodes), [None; KEYS]);
        while now() < until {
            // Bursts and pauses: most races need two operations at the same time.
            let think = if rng.fraction() < 0.8 { 4 } else { 120 };
            sleep(Duration::from_millis(below(think) as u64)).await;
            if rng.fraction() < 0.2 {
                node = below(nodes);
            }
            let key = below(KEYS as u64);
            match below(20) {
                0..3 => seen[key] = self.read(node, key).await.or(seen[key]),
                3 => self.write(node, key).await,
                4..7 => self.swap(node, key, None).await,
                7..10 => self.swap(node, key, seen[key].or(Some(ABSENT))).await,
                10..16 => self.count(node, key).await,
                16 => _ = self.read_count(node, key).await,
                _ => self.lock(&rng, until).await,
            }
        }
    }

    /// After everything is healed: what the counters have come to.
    async fn settle(&self) -> Result<BTreeMap<usize, u64>, String> {
        for _ in 0..600 {
            if self.cluster().is_sure() {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        // Whoever started last has a vote by then.
        sleep(Duration::from_secs(2)).await;
        let mut counts = BTreeMap::new();
        for key in 0..KEYS {
            let nodes = self.cluster().nodes.len();
            for node in 0..nodes {
                let mut count = None;
                for _ in 0..20 {
                    count = self.read_count(node, key).await;
                    if count.is_some() {
                        break;
                    }
                    sleep(Duration::from_millis(100)).await;
                }
                let count = count.ok_or_else(|| format!("c{key} cannot be read in peace"))?;
                let before = *counts.entry(key).or_insert(count);
                if before != count {
                    return Err(format!("in peace c{key} is {before} and {count}"));
                }
                self.read(node, key).await;
            }
        }
        Ok(counts)
    }
}

impl Counter {
    /// Whether it was counted up by one each time, in an order that could have been.
    fn check(&self, last: u64) -> Result<(), String> {
        let (acknowledged, open) = (self.counted.len() as u64, self.open.len() as u64);
        if !(acknowledged..=acknowledged + open).contains(&last) {
            return Err(format!(
                "it is {last} after {acknowledged} increments and {open} that had no answer"
            ));
        }
        let mut values: Vec<u64> = self.counted.iter().map(|(.., value)| *value).collect();
        values.sort_unstable();
        if let Some(pair) = values.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("two increments both made it {}", pair[0]));
        }
        let counted = self.counted.iter().map(|(c, e, v)| (*c, *e, *v, true));
        let read = self.read.iter().map(|(c, e, v)| (*c, *e, *v, false));
        let mut all: Vec<(u64, u64, u64, bool)> = counted.chain(read).collect();
        all.sort_unstable();
        // What had been seen by each end, and how many had begun by then.
        let mut ends: Vec<(u64, u64)> = all
            .iter()
            .map(|(_, end, value, _)| (*end, *value))
            .collect();
        ends.sort_unstable();
        let mut newest = 0;
        for (_, value) in &mut ends {
            newest = newest.max(*value);
            *value = newest;
        }
        let mut calls: Vec<u64> = self.counted.iter().map(|(call, ..)| *call).collect();
        calls.extend(&self.open);
        calls.sort_unstable();
        for (call, end, value, is_increment) in all {
            let before = ends.partition_point(|(end, _)| *end < call);
            let least = before.checked_sub(1).map_or(0, |index| ends[index].1);
            if value < least + u64::from(is_increment) {
                return Err(format!("it was {least} before {call} and {value} after"));
            }
            let begun = calls.partition_point(|begun| *begun < end) as u64;
            if value > begun {
                return Err(format!("it was {value} when {begun} increments had begun"));
            }
        }
        Ok(())
    }
}

impl History {
    fn check(&self, counts: &BTreeMap<usize, u64>) -> Result<(), (String, String)> {
        for (key, operations) in &self.of_key {
            check(operations).map_err(|why| (format!("r{key}"), why.to_string()))?;
        }
        for (key, counter) in &self.counters {
            let last = counts.get(key).copied().unwrap_or(0);
            counter
                .check(last)
                .map_err(|why| (format!("c{key}"), why))?;
        }
        let mut held = self.held.clone();
        held.sort_unstable();
        match held.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            Some(pair) => Err((
                "lock".to_owned(),
                format!("two held the lock: from {:?} and {:?}", pair[0], pair[1]),
            )),
            None => Ok(()),
        }
    }

    /// What happened to one key, and what went wrong meanwhile.
    fn timeline(&self, key: &str, faults: &[(u64, String)]) -> String {
        let mut lines = String::new();
        let of_key = format!(" {key} ");
        for note in self.notes.iter().filter(|note| note.contains(&of_key)) {
            writeln!(lines, "{note}").expect("a string takes everything");
        }
        for (at, fault) in faults {
            writeln!(lines, "{at:>6} ms fault {fault}").expect("a string takes everything");
        }
        lines
    }
}

/// Runs a seed; what is wrong, if anything is.
pub(crate) fn run(seed: u64, breakage: Option<Breakage>) -> Result<Tally, String> {
    run_seed(seed, simulate(seed, breakage))
}

async fn simulate(seed: u64, breakage: Option<Breakage>) -> Result<Tally, String> {
    let rng = SeededRng::from_seed(seed);
    let nodes = 3 + u8::try_from(rng.next_u64() % 3).unwrap_or(0);
    let plan = Plan {
        quorum: Quorum::majority(3).expect("three"),
        breakage,
        // Gossip costs more than all the rest: one seed in ten has the real one.
        membership: if seed % 10 == 9 {
            Membership::Gossip
        } else {
            Membership::Oracle
        },
        hint_window: Duration::from_secs(3_600),
        timeout: REQUEST_MAX,
        partitions: PARTITIONS,
    };
    let cluster = Cluster::start(seed, nodes, plan);
    let network = cluster.network.clone();
    let world = World {
        cluster: Arc::new(Mutex::new(cluster)),
        history: Arc::default(),
        values: Arc::default(),
        started: now(),
    };
    for _ in 0..300 {
        sleep(Duration::from_millis(100)).await;
        if world.cluster().is_whole() && world.cluster().is_sure() {
            break;
        }
    }
    let until = now() + VIRTUAL_TIME;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| spawn(world.clone().client(client, seed, until)))
        .collect();
    let mut faults = Faults::new(seed, Fault::ALL.to_vec());
    while now() < until {
        sleep(TICK).await;
        faults.advance(TICK, &mut world.cluster());
    }
    faults.heal(&mut world.cluster());
    for client in clients {
        client.await.expect("a client that ends by itself");
    }
    let settled = world.settle().await;
    let history = world.history();
    let none = BTreeMap::new();
    // What clients saw comes first: it says more than that the cluster came to no rest.
    let checked = match &settled {
        Ok(counts) => history.check(counts),
        Err(_) => history.check(&none).and_then(|()| {
            let why = settled.as_ref().err().cloned().unwrap_or_default();
            Err(("c0".to_owned(), why))
        }),
    };
    if let Err((key, why)) = checked {
        return Err(format!(
            "{key}: {why}\n{}",
            history.timeline(&key, &faults.log)
        ));
    }
    Ok(Tally {
        faults: faults.counts,
        trace: network.trace(),
        ..history.tally.clone()
    })
}

fn number(value: &Bytes) -> u64 {
    let text = std::str::from_utf8(value).ok();
    let number = text.and_then(|text| text.parse().ok());
    number.expect("values are the numbers that were written")
}

const CLIENTS: u32 = 5;
const KEYS: usize = 2;
const TICK: Duration = Duration::from_millis(100);
const VIRTUAL_TIME: Duration = Duration::from_secs(60);
