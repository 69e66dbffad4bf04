//! Homes that die under writes, stand-ins that die with their hints.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use redis::{Commands, RedisResult};

use crate::common::{Cluster, PATIENCE, eventually, json, quorate, signal};

/// Five nodes, three copies, all of which must acknowledge a write.
fn cluster() -> Cluster {
    Cluster::start(5, &["n=3", "r=2", "w=3"])
}

fn hints(cluster: &Cluster, node: usize) -> Option<u64> {
    let socket = cluster.nodes[node].socket.to_str()?.to_owned();
    json(&["hints", "--json", "--socket", &socket])?["count"].as_u64()
}

/// `None`: one of them does not answer.
fn all_hints(cluster: &Cluster, nodes: &[usize]) -> Option<u64> {
    nodes.iter().map(|&node| hints(cluster, node)).sum()
}

/// Writes numbered keys through these nodes until told to stop; how many, none of which failed.
fn write(cluster: &Cluster, through: &[usize], until: impl FnOnce(&AtomicU64)) -> u64 {
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    /// Also when the test fails: its writers must not go on for ever.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let failed = std::thread::scope(|scope| {
        let writers: Vec<_> = through
            .iter()
            .map(|&node| {
                let (stop, written) = (&stop, &written);
                let mut connection = cluster.connect(node);
                scope.spawn(move || {
                    let mut failed = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let number = written.fetch_add(1, Ordering::Relaxed);
                        let set: RedisResult<()> = connection.set(format!("key:{number}"), number);
                        failed.extend(set.err());
                    }
                    failed
                })
            })
            .collect();
        let stopped = Stop(&stop);
        until(&written);
        drop(stopped);
        let failed = writers
            .into_iter()
            .flat_map(|writer| writer.join().unwrap());
        failed.collect::<Vec<_>>()
    });
    assert!(
        failed.is_empty(),
        "{} failed: {:?}",
        failed.len(),
        failed.first()
    );
    written.into_inner()
}

fn until_more(written: &AtomicU64, more: u64) {
    let goal = written.load(Ordering::Relaxed) + more;
    eventually("writes go on", PATIENCE, || {
        written.load(Ordering::Relaxed) >= goal
    });
}

/// Every key, asked of one node alone as far as it is a home of it.
fn read_at_one(cluster: &Cluster, node: usize, keys: std::ops::Range<u64>) {
    let mut reader = cluster.connect(node);
    let set = ["LEVEL", "READ", "one"];
    let () = redis::cmd("QUORATE").arg(&set).query(&mut reader).unwrap();
    for number in keys {
        let read: Option<u64> = reader.get(format!("key:{number}")).unwrap();
        if read != Some(number) {
            let socket = cluster.nodes[node].socket.to_str().unwrap();
            let key = format!("key:{number}");
            let owners = json(&["ring", "owners", &key, "--json", "--socket", socket]);
            let again: Option<u64> = reader.get(&key).unwrap();
            panic!(
                "{read:?} of key:{number} through node {node}, then {again:?}: {owners:?} {}",
                cluster.ring_status(node)
            );
        }
    }
}

#[test]
fn a_home_that_dies_costs_no_write_and_is_given_all_it_missed() {
    for is_emptied in [false, true] {
        let mut cluster = cluster();
        let left = [0, 1, 3, 4];
        let keys = write(&cluster, &left, |written| {
            until_more(written, 300);
            cluster.kill(2);
            until_more(written, 3_000);
        });
        let held = all_hints(&cluster, &left).unwrap();
        // A node is one of three homes of three keys in five.
        assert!(held > keys / 3, "{held} hints for {keys} keys");
        let mut writer = cluster.connect(0);
        let sloppy = (0..50).any(|number| {
            let () = writer.set(format!("key:{number}"), number).unwrap();
            let last = redis::cmd("QUORATE").arg("LAST").query(&mut writer);
            let last: (String, u64) = last.unwrap();
            last == ("sloppy_writes".to_owned(), 1)
        });
        assert!(sloppy, "the client can see that stand-ins counted");
        if is_emptied {
            std::fs::remove_dir_all(cluster.nodes[2].config.parent().unwrap().join("data"))
                .unwrap();
        }
        cluster.restart(2);
        eventually("hints are given back", PATIENCE, || {
            all_hints(&cluster, &left) == Some(0)
        });
        eventually("it has caught up", PATIENCE, || {
            cluster.metric(2, "quorate_partitions_unsure") == Some(0)
        });
        read_at_one(&cluster, 2, 0..keys);
    }
}

#[test]
fn with_two_of_five_away_and_a_stand_in_killed_no_write_is_lost() {
    let mut cluster = cluster();
    let left = [0, 1, 4];
    // What was written before has three copies in memory, and three nodes are about to lose theirs.
    let first = AtomicU64::new(0);
    let keys = write(&cluster, &left, |written| {
        until_more(written, 300);
        cluster.kill(2);
        cluster.kill(3);
        first.store(written.load(Ordering::Relaxed), Ordering::Relaxed);
        until_more(written, 2_000);
    });
    let first = first.into_inner();
    let held = hints(&cluster, 4).unwrap();
    assert!(held > 0);
    cluster.kill(4);
    cluster.restart(4);
    eventually("it takes up its hints", PATIENCE, || {
        hints(&cluster, 4) == Some(held)
    });
    cluster.restart(2);
    cluster.restart(3);
    eventually("hints are given back", PATIENCE, || {
        all_hints(&cluster, &[0, 1, 2, 3, 4]) == Some(0)
    });
    for node in [2, 3] {
        eventually("it has caught up", PATIENCE, || {
            cluster.metric(node, "quorate_partitions_unsure") == Some(0)
        });
        read_at_one(&cluster, node, first..keys);
    }
    // The one that lost its memory as well finds it with the others.
    let mut reader = cluster.connect(4);
    for number in first..keys {
        let read: Option<u64> = reader.get(format!("key:{number}")).unwrap();
        assert_eq!(read, Some(number));
    }
}

#[test]
fn a_home_that_comes_and_goes_costs_no_write() {
    let cluster = cluster();
    let left = [0, 1, 3, 4];
    let flaps = 5;
    let pid = cluster.nodes[2].pid;
    let keys = write(&cluster, &left, |written| {
        for _ in 0..flaps {
            signal(pid, "-STOP");
            until_more(written, 300);
            std::thread::park_timeout(Duration::from_secs(2));
            signal(pid, "-CONT");
            until_more(written, 300);
        }
    });
    eventually("hints are given back", PATIENCE, || {
        all_hints(&cluster, &left) == Some(0)
    });
    read_at_one(&cluster, 2, 0..keys);
    // And it can be told to drop or to give back what it has none of.
    let socket = cluster.nodes[0].socket.to_str().unwrap().to_owned();
    let dropped = quorate(&["hints", "drop", "node-2", "--yes", "--socket", &socket]);
    assert_eq!(dropped.status.code(), Some(1));
    let error = String::from_utf8_lossy(&dropped.stderr);
    assert!(error.contains("there are no hints for `node-2`"), "{error}");
}
