//! The keys of the whole ring, asked of any node.

use std::collections::{BTreeMap, BTreeSet};

use redis::Commands;

use crate::common::{Cluster, PATIENCE, eventually, signal};

/// All keys that a scan shows, and how often each.
fn scan(connection: &mut redis::Connection, options: &[&str]) -> BTreeMap<String, u32> {
    let (mut seen, mut cursor) = (BTreeMap::new(), "0".to_owned());
    loop {
        let (next, keys): (String, Vec<String>) = redis::cmd("SCAN")
            .arg(&cursor)
            .arg(options)
            .query(connection)
            .unwrap();
        keys.into_iter()
            .for_each(|key| *seen.entry(key).or_default() += 1);
        if next == "0" {
            return seen;
        }
        cursor = next;
    }
}

#[test]
fn a_scan_shows_every_key_through_any_node_and_through_a_death() {
    let cluster = Cluster::start(3, &[]);
    eventually("all is settled", PATIENCE, || cluster.settled());
    let mut connection = cluster.connect(0);
    let mut pipe = redis::pipe();
    (0..5_000).for_each(|i| _ = pipe.set(format!("key:{i}"), "v").ignore());
    (0..100).for_each(|i| _ = pipe.del(format!("key:{i}")).ignore());
    (100..200).for_each(|i| _ = pipe.pexpire(format!("key:{i}"), 1).ignore());
    pipe.exec(&mut connection).unwrap();
    let expected: BTreeSet<String> = (200..5_000).map(|i| format!("key:{i}")).collect();
    for node in 0..3 {
        for options in [&[][..], &["COUNT", "1"], &["COUNT", "1000"]] {
            if node > 0 && options.len() == 2 && options[1] == "1" {
                continue;
            }
            let seen = scan(&mut cluster.connect(node), options);
            let keys: BTreeSet<String> = seen.keys().cloned().collect();
            assert_eq!(keys, expected, "through node {node}, {options:?}");
            assert!(
                seen.values().all(|times| *times == 1),
                "nothing changes meanwhile"
            );
        }
    }
    let matching = scan(&mut cluster.connect(1), &["MATCH", "key:49?[05]"]);
    assert_eq!(matching.len(), 20, "{matching:?}");
    assert!(scan(&mut cluster.connect(1), &["TYPE", "hash"]).is_empty());
    assert_eq!(
        scan(&mut cluster.connect(1), &["TYPE", "string"]).len(),
        4_800
    );
    let all: Vec<String> = redis::cmd("KEYS")
        .arg("*")
        .query(&mut cluster.connect(2))
        .unwrap();
    assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), expected);
    let random: String = redis::cmd("RANDOMKEY").query(&mut connection).unwrap();
    assert!(expected.contains(&random), "{random}");

    // A cursor means the same on another node, and goes on when one dies.
    let (cursor, first): (String, Vec<String>) = redis::cmd("SCAN")
        .arg("0")
        .arg(&["COUNT", "1000"])
        .query(&mut connection)
        .unwrap();
    cluster.kill(2);
    let mut seen: BTreeSet<String> = first.into_iter().collect();
    let (mut cursor, mut other) = (cursor, cluster.connect(1));
    let mut written = 0;
    while cursor != "0" {
        // Others come meanwhile.
        let () = other.set(format!("new:{written}"), "v").unwrap();
        written += 1;
        let (next, keys): (String, Vec<String>) = redis::cmd("SCAN")
            .arg(&cursor)
            .arg(&["COUNT", "100"])
            .query(&mut other)
            .unwrap();
        seen.extend(keys);
        cursor = next;
    }
    let missing: Vec<_> = expected.difference(&seen).collect();
    assert!(
        missing.is_empty(),
        "{} are missing: {missing:?}",
        missing.len()
    );
}

#[test]
fn many_tombstones_and_long_keys_do_not_burst_an_answer() {
    // Frames are as long as a value and some megabytes.
    let cluster = Cluster::start(3, &["max_value_bytes=64KiB"]);
    eventually("all is settled", PATIENCE, || cluster.settled());
    let mut connection = cluster.connect(0);
    // Hundreds of partitions are asked at once where there are few keys: these are 9 MB to tell.
    let key = |i: usize| format!("{i}:{}", "k".repeat(48_000));
    for batch in 0..30 {
        let mut pipe = redis::pipe();
        for i in batch * 50..(batch + 1) * 50 {
            pipe.set(key(i), "v").ignore();
            if i != 1_234 {
                pipe.del(key(i)).ignore();
            }
        }
        pipe.exec(&mut connection).unwrap();
    }
    let seen = scan(&mut cluster.connect(1), &["COUNT", "1000"]);
    assert_eq!(seen.len(), 1);
    assert!(seen.contains_key(&key(1_234)));
    for node in 0..3 {
        let malformed = cluster.metric(node, "quorate_peer_malformed_frames_total");
        assert_eq!(malformed, Some(0));
    }
}

#[test]
fn without_a_quorum_there_is_no_scan() {
    let cluster = Cluster::start(3, &["request_timeout=500ms"]);
    eventually("all is settled", PATIENCE, || cluster.settled());
    cluster.kill(1);
    cluster.kill(2);
    let mut connection = cluster.connect(0);
    let refused: redis::RedisResult<redis::Value> =
        redis::cmd("SCAN").arg("0").query(&mut connection);
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("1 of 2 replies needed to read"), "{text}");
}

/// How many keys a database has, through each node.
fn sizes(cluster: &Cluster, database: u8) -> Vec<u64> {
    let size = |node: usize| {
        let mut connection = cluster.connect(node);
        let _: () = redis::cmd("SELECT")
            .arg(database)
            .query(&mut connection)
            .unwrap();
        redis::cmd("DBSIZE").query(&mut connection).unwrap()
    };
    (0..cluster.nodes.len()).map(size).collect()
}

fn fill(cluster: &Cluster, database: u8, keys: u64) {
    let mut connection = cluster.connect(0);
    let mut pipeline = redis::pipe();
    pipeline.cmd("SELECT").arg(database).ignore();
    (0..keys).for_each(|key| _ = pipeline.set(format!("key:{key}"), key).ignore());
    let _: () = pipeline.query(&mut connection).unwrap();
}

#[test]
fn a_flush_empties_one_database_on_every_node_and_on_those_that_were_away() {
    let cluster = Cluster::start(3, &[]);
    fill(&cluster, 0, 1_000);
    fill(&cluster, 1, 100);
    assert_eq!(
        (sizes(&cluster, 0), sizes(&cluster, 1)),
        (vec![1_000; 3], vec![100; 3])
    );
    let mut first = cluster.connect(0);
    let _: () = redis::cmd("FLUSHDB").query(&mut first).unwrap();
    assert_eq!(
        (sizes(&cluster, 0), sizes(&cluster, 1)),
        (vec![0; 3], vec![100; 3])
    );
    fill(&cluster, 0, 50);
    assert_eq!(sizes(&cluster, 0), vec![50; 3]);
    // One does not hear it, and neither do the hints that are kept for it.
    signal(cluster.nodes[2].pid, "-STOP");
    eventually("it is missed", PATIENCE, || !cluster.reachable(0)[2]);
    fill(&cluster, 0, 60);
    let _: () = redis::cmd("FLUSHDB").query(&mut first).unwrap();
    signal(cluster.nodes[2].pid, "-CONT");
    let mut last = cluster.connect(2);
    let level = redis::cmd("QUORATE")
        .arg(&["LEVEL", "READ", "one"])
        .query(&mut last);
    let () = level.unwrap();
    eventually("it is empty as well", PATIENCE, || {
        let keys: u64 = (0..60)
            .map(|key| last.exists::<_, u64>(format!("key:{key}")).unwrap())
            .sum();
        keys == 0 && cluster.metric(0, "quorate_hints_held") == Some(0)
    });
    assert_eq!(
        (sizes(&cluster, 0), sizes(&cluster, 1)),
        (vec![0; 3], vec![100; 3])
    );
    let _: () = redis::cmd("FLUSHALL").query(&mut last).unwrap();
    assert_eq!(sizes(&cluster, 1), vec![0; 3]);
}
