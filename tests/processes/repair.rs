//! Homes that were away, without hints and without reads: anti-entropy alone has to heal them.

use redis::Commands;

use crate::common::{Cluster, PATIENCE, eventually, json, quorate, signal};

fn socket(cluster: &Cluster, node: usize) -> String {
    cluster.nodes[node].socket.to_str().unwrap().to_owned()
}

fn status(cluster: &Cluster, node: usize) -> Option<serde_json::Value> {
    json(&[
        "repair",
        "status",
        "--json",
        "--socket",
        &socket(cluster, node),
    ])
}

/// A figure of all nodes; `None`: one of them does not answer.
fn sum(cluster: &Cluster, field: &str) -> Option<u64> {
    (0..3)
        .map(|node| status(cluster, node)?[field].as_u64())
        .sum()
}

/// Whether every node agrees with every other in all partitions.
fn is_agreed(cluster: &Cluster) -> bool {
    (0..3).all(|node| {
        status(cluster, node).is_some_and(|status| {
            status["total"] == 2 * 4_096 && status["in_agreement"] == status["total"]
        })
    })
}

/// How a node is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Absence {
    /// It comes back with its old data.
    Stopped,
    Killed,
    KilledAndEmptied,
}

#[test]
fn a_home_that_was_away_is_healed_without_hints_and_reads() {
    for absence in [Absence::Stopped, Absence::Killed, Absence::KilledAndEmptied] {
        let mut cluster = Cluster::start(3, &["hint_max_bytes=0"]);
        let mut writer = cluster.connect(0);
        let key = |number: u64| format!("key:{number}");
        for number in 0..1_000 {
            let () = writer.set(key(number), "before").unwrap();
        }
        eventually("all agree", PATIENCE, || is_agreed(&cluster));
        let pid = cluster.nodes[2].pid;
        match absence {
            Absence::Stopped => signal(pid, "-STOP"),
            _ => cluster.kill(2),
        }
        eventually("its death is seen", PATIENCE, || {
            (0..2).all(|node| cluster.reachable(node) == [true, true, false])
        });
        for number in 500..2_000 {
            let () = writer.set(key(number), number).unwrap();
        }
        for number in 0..500 {
            let existed: u64 = writer.del(key(number)).unwrap();
            assert_eq!(existed, 1);
        }
        let data = cluster.nodes[2].config.parent().unwrap().join("data");
        match absence {
            Absence::Stopped => signal(pid, "-CONT"),
            Absence::Killed => cluster.restart(2),
            Absence::KilledAndEmptied => {
                std::fs::remove_dir_all(data).unwrap();
                cluster.restart(2);
            }
        }
        if absence == Absence::Stopped {
            eventually("all is found", PATIENCE, || {
                sum(&cluster, "fixed") >= Some(2_000)
            });
            // A node that has lost its memory copies all of it, and nothing is left to find.
            assert_eq!(sum(&cluster, "differences"), Some(2_000));
        }
        eventually("it holds what the others hold", PATIENCE, || {
            cluster.metric(2, "quorate_store_keys") == Some(1_500) && is_agreed(&cluster)
        });
        let mut reader = cluster.connect(2);
        let set = ["LEVEL", "READ", "one"];
        let () = redis::cmd("QUORATE").arg(&set).query(&mut reader).unwrap();
        for number in 0..2_000 {
            let read: Option<u64> = reader.get(key(number)).unwrap();
            assert_eq!(read, (number >= 500).then_some(number), "{absence:?}");
        }
    }
}

#[test]
fn repairs_can_be_watched_and_asked_for() {
    let cluster = Cluster::start(4, &["partitions=256"]);
    let at = |node: usize| socket(&cluster, node);
    let mut writer = cluster.connect(0);
    for number in 0..100 {
        let () = writer.set(format!("key:{number}"), number).unwrap();
    }
    let table = quorate(&["repair", "status", "--socket", &at(0)]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.starts_with("node-0 agrees in "), "{table}");
    assert!(table.contains("node-3"), "{table}");
    let owners = json(&["ring", "owners", "key:1", "--json", "--socket", &at(0)]).unwrap();
    let partition = owners["partition"].to_string();
    let number = |name: &serde_json::Value| {
        let name = name.as_str().unwrap().strip_prefix("node-").unwrap();
        name.parse::<usize>().unwrap()
    };
    let (home, peer) = (
        number(&owners["homes"][0]),
        owners["homes"][1].as_str().unwrap(),
    );
    let run = |node: usize, more: &[&str]| {
        let at = at(node);
        quorate(&[&["repair", "run", "--socket", &at], more].concat())
    };
    let compared = run(home, &["--partition", &partition, "--peer", peer]);
    assert_eq!(
        String::from_utf8_lossy(&compared.stdout),
        "1 comparisons: 0 differences found, 0 records repaired\n"
    );
    let all = run(home, &["--json"]);
    let all: serde_json::Value = serde_json::from_slice(&all.stdout).unwrap();
    // It is a home of three partitions in four, with two others each.
    let sessions = all["sessions"].as_u64().unwrap();
    assert!((300..500).contains(&sessions), "{all}");
    assert_eq!(
        (&all["failed"], &all["differences"]),
        (&0.into(), &0.into())
    );

    let stranger = (0..4).find(|node| {
        let name = format!("node-{node}");
        !owners["homes"]
            .as_array()
            .unwrap()
            .iter()
            .any(|home| *home == name)
    });
    for (node, more, wanted) in [
        (
            home,
            ["--partition", "256"],
            "there is no partition 256, the last one is 255",
        ),
        (
            home,
            ["--peer", "nobody"],
            "there is no other node `nobody` in the ring",
        ),
        (
            stranger.unwrap(),
            ["--partition", &partition],
            "is no home of partition",
        ),
    ] {
        let refused = run(node, &more);
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{error}");
        assert!(error.contains(wanted), "{error}");
    }
}
