//! What clients of real nodes saw, while those are killed, stopped and given wrong clocks.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quorate::env::SeededRng;
use redis::{Commands, RedisResult};

use crate::checker::{ABSENT, Kind, NEVER, Operation, check_linearizable, check_regular};
use crate::common::{Cluster, PATIENCE, connect, eventually, signal};

/// What happened to each key, in the order of a counter that all calls and ends share.
#[derive(Default)]
struct History {
    clock: AtomicU64,
    values: AtomicU64,
    answered: AtomicU64,
    of_key: [Mutex<Vec<Operation>>; KEYS],
}

impl History {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// One operation; an error means that the connection is of no more use.
    fn operate(
        &self,
        client: u32,
        connection: &mut redis::Connection,
        key: usize,
        is_write: bool,
    ) -> RedisResult<()> {
        let value = self.values.fetch_add(1, Ordering::Relaxed) + 1;
        let name = format!("key:{key}");
        let call = self.tick();
        let (kind, result) = if is_write {
            let result: RedisResult<()> = connection.set(name, value);
            match result {
                Ok(()) => (Some(Kind::Write(value)), Ok(())),
                // It says so when it has not even begun.
                Err(error) if error.to_string().contains("nothing was changed") => (None, Ok(())),
                Err(error) => (Some(Kind::MaybeWrite(value)), Err(error)),
            }
        } else {
            let result: RedisResult<Option<u64>> = connection.get(name);
            match result {
                Ok(found) => (Some(Kind::Read(found.unwrap_or(ABSENT))), Ok(())),
                Err(error) => (None, Err(error)),
            }
        };
        let end = match kind {
            Some(Kind::MaybeWrite(_)) => NEVER,
            _ => self.tick(),
        };
        if let Some(kind) = kind {
            self.answered.fetch_add(1, Ordering::Relaxed);
            let operation = Operation {
                client,
                call,
                end,
                kind,
            };
            self.of_key[key].lock().unwrap().push(operation);
        }
        result
    }

    /// A client of one node, through thick and thin.
    fn client(&self, client: u32, addr: &str, stop: &AtomicBool) {
        let rng = SeededRng::from_seed(u64::from(client));
        let mut connection = None;
        while !stop.load(Ordering::Relaxed) {
            if connection.is_none() {
                let client = redis::Client::open(format!("redis://{addr}")).unwrap();
                connection = client.get_connection_with_timeout(ANSWER_MAX).ok();
                if let Some(connection) = &connection {
                    connection.set_read_timeout(Some(ANSWER_MAX)).unwrap();
                }
            }
            let Some(open) = &mut connection else {
                // The node is down: no use in asking all the time.
                std::thread::park_timeout(Duration::from_millis(20));
                continue;
            };
            let key = usize::try_from(rng.next_u64() % KEYS as u64).unwrap();
            if self
                .operate(client, open, key, rng.fraction() < 0.4)
                .is_err()
            {
                connection = None;
            }
            std::thread::park_timeout(Duration::from_millis(rng.next_u64() % 4));
        }
    }
}

/// Until the node holds again all that it ever acknowledged.
fn until_caught_up(cluster: &Cluster, node: usize) {
    let http = cluster.nodes[node].http.clone();
    eventually("the node has caught up", PATIENCE, || {
        crate::common::http_get(&http, "/metrics")
            .is_some_and(|text| text.contains("quorate_partitions_unsure 0"))
    });
}

fn faults(cluster: &mut Cluster, history: &History) {
    let go_on = || {
        let goal = history.answered.load(Ordering::Relaxed) + 500;
        eventually("operations go on", PATIENCE, || {
            history.answered.load(Ordering::Relaxed) >= goal
        });
    };
    go_on();
    for round in 0..2 {
        // Short enough to stay unnoticed, and long enough to be taken for dead.
        signal(cluster.nodes[1].pid, "-STOP");
        std::thread::park_timeout(Duration::from_millis(600 + 3_000 * round));
        signal(cluster.nodes[1].pid, "-CONT");
        eventually("all are reachable", PATIENCE, || {
            cluster.reachable(0) == [true; 3] && cluster.reachable(2) == [true; 3]
        });
        go_on();
        cluster.kill(2);
        go_on();
        // Back without its memory, and with its clock 4 s ahead where that can be had.
        if Path::new(FAKETIME).exists() {
            let clock = [("LD_PRELOAD", FAKETIME), ("FAKETIME", "+4s")];
            let keep = ("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            cluster.restart_with(2, &[clock[0], clock[1], keep]);
        } else {
            cluster.restart(2);
        }
        eventually("it is reachable again", PATIENCE, || {
            cluster.reachable(0) == [true; 3] && cluster.reachable(2) == [true; 3]
        });
        until_caught_up(cluster, 2);
        go_on();
    }
}

/// Stops the clients, also when a fault could not be done.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn holds_under_faults(
    level: &str,
    check: fn(&[Operation]) -> Result<(), crate::checker::Violation>,
) {
    let mut cluster = Cluster::start(3, &[&format!("resp_level={level}")]);
    (0..3).for_each(|node| until_caught_up(&cluster, node));
    let history = History::default();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for client in 0..6u32 {
            let addr = cluster.nodes[client as usize % 3].resp.clone();
            let (history, stop) = (&history, &stop);
            scope.spawn(move || history.client(client, &addr, stop));
        }
        let _stop = StopOnDrop(&stop);
        faults(&mut cluster, &history);
    });
    for key in 0..KEYS {
        for node in 0..3 {
            let mut connection = connect(&cluster.nodes[node].resp);
            history.operate(100, &mut connection, key, false).unwrap();
        }
        let operations = history.of_key[key].lock().unwrap();
        if let Err(violation) = check(&operations) {
            panic!("key:{key} at level {level}: {violation}");
        }
        println!(
            "key:{key} at level {level}: {} operations",
            operations.len()
        );
    }
}

#[test]
fn linearizable_holds_while_real_nodes_are_killed_stopped_and_have_wrong_clocks() {
    holds_under_faults("linearizable", check_linearizable);
}

#[test]
fn quorum_holds_while_real_nodes_are_killed_stopped_and_have_wrong_clocks() {
    holds_under_faults("quorum", check_regular);
}

const KEYS: usize = 3;
/// More than a coordinator takes to give up.
const ANSWER_MAX: Duration = Duration::from_secs(3);
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
