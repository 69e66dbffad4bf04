//! Atomic updates through real nodes, while those are killed and started again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use redis::{Commands, RedisResult};

use crate::clients;
use crate::common::{Cluster, PATIENCE, eventually, skipped};

/// A connection to some node that answers.
fn connect_to_any(addresses: &[String], first: usize) -> redis::Connection {
    let mut found = None;
    let mut node = first;
    eventually("some node takes a connection", PATIENCE, || {
        let address = &addresses[node % addresses.len()];
        node += 1;
        let client = redis::Client::open(format!("redis://{address}")).unwrap();
        found = client.get_connection().ok();
        found.is_some()
    });
    found.unwrap()
}

/// What came of the increments of a client.
#[derive(Debug, Default)]
struct Counted {
    acknowledged: AtomicU64,
    /// Nobody knows whether they were made: the node said so, or died.
    uncertain: AtomicU64,
    /// Said to have changed nothing, and made again.
    again: AtomicU64,
}

/// The increments of one client.
fn count(client: usize, addresses: &[String], of_keys: &[Counted; KEYS], done: &AtomicU64) {
    let mut connection = connect_to_any(addresses, client);
    let mut number = 0;
    while number < INCREMENTS {
        let key = (client + number) % KEYS;
        let counted = &of_keys[key];
        let result: RedisResult<u64> = connection.incr(format!("count:{key}"), 1);
        match result {
            Ok(_) => counted.acknowledged.fetch_add(1, Ordering::Relaxed),
            Err(error) if error.to_string().contains("nothing was changed") => {
                counted.again.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            Err(error) => {
                if !error.to_string().contains("UNCERTAIN") {
                    connection = connect_to_any(addresses, client + number);
                }
                counted.uncertain.fetch_add(1, Ordering::Relaxed)
            }
        };
        number += 1;
        done.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn counters_are_exact_while_nodes_are_killed() {
    let mut cluster = Cluster::start(3, &[]);
    let addresses: Vec<String> = cluster.nodes.iter().map(|node| node.resp.clone()).collect();
    let of_keys: [Counted; KEYS] = Default::default();
    let done = AtomicU64::new(0);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (addresses, of_keys, done) = (&addresses, &of_keys, &done);
            scope.spawn(move || count(client, addresses, of_keys, done));
        }
        // One node after the other, each while all are at it.
        for (node, part) in [(1, 10), (2, 2)] {
            let goal = (CLIENTS * INCREMENTS) as u64 / part;
            eventually("increments go on", PATIENCE, || {
                done.load(Ordering::Relaxed) >= goal
            });
            cluster.kill(node);
            let goal = done.load(Ordering::Relaxed) + 1_000;
            eventually("two nodes go on", PATIENCE, || {
                done.load(Ordering::Relaxed) >= goal
            });
            cluster.restart(node);
            eventually("all nodes are back", PATIENCE, || cluster.settled());
        }
    });
    let mut all = (0, 0, 0);
    for (key, counted) in of_keys.iter().enumerate() {
        let [acknowledged, uncertain, again] =
            [&counted.acknowledged, &counted.uncertain, &counted.again]
                .map(|counter| counter.load(Ordering::Relaxed));
        let values: Vec<u64> = (0..3)
            .map(|node| cluster.connect(node).get(format!("count:{key}")).unwrap())
            .collect();
        assert!(
            values.windows(2).all(|pair| pair[0] == pair[1]),
            "{values:?}"
        );
        let could_be = acknowledged..=acknowledged + uncertain;
        assert!(
            could_be.contains(&values[0]),
            "count:{key}: {} {counted:?}",
            values[0]
        );
        all = (all.0 + acknowledged, all.1 + uncertain, all.2 + again);
    }
    println!(
        "{} increments acknowledged, {} uncertain, {} told to have changed nothing and made again",
        all.0, all.1, all.2
    );
    assert_eq!(all.0 + all.1, (CLIENTS * INCREMENTS) as u64);
}

#[test]
fn a_lock_has_one_holder_while_nodes_are_killed() {
    let Some(python) = clients::python() else {
        return skipped(
            "a_lock_has_one_holder_while_nodes_are_killed",
            "no Python libraries: run tests/clients/install",
        );
    };
    let mut cluster = Cluster::start(3, &[]);
    let mut args = vec!["20".to_owned()];
    args.extend(cluster.nodes.iter().map(|node| node.resp.clone()));
    let running = clients::start(&python, "lock.py", &args);
    for node in [0, 2] {
        // Whichever home makes them.
        let made = |cluster: &Cluster| -> u64 {
            let of = |node| cluster.metric(node, "quorate_updates_made_total");
            (0..3).filter_map(of).sum()
        };
        let before = made(&cluster);
        eventually("the lock goes round", PATIENCE, || {
            made(&cluster) > before + 20
        });
        cluster.kill(node);
        eventually("its death is noticed", PATIENCE, || {
            !cluster.reachable(1)[node]
        });
        cluster.restart(node);
        eventually("all nodes are back", PATIENCE, || cluster.settled());
    }
    let output = running.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "{text}");
}

const CLIENTS: usize = 50;
const INCREMENTS: usize = 2_000;
const KEYS: usize = 10;
