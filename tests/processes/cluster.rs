//! A ring of real processes, used through a real Redis client.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::common::{Cluster, PATIENCE, eventually, quorate};
use quorate::env::{Clock, SystemClock};
use redis::{Commands, RedisResult};

#[test]
fn what_is_written_through_one_node_is_read_through_the_others() {
    let cluster = Cluster::start(3, &[]);
    let mut writer = cluster.connect(0);
    for batch in 0..100 {
        let mut pipe = redis::pipe();
        (0..100).for_each(|i| {
            let number = batch * 100 + i;
            pipe.set(format!("key:{number}"), format!("value:{number}"))
                .ignore();
        });
        pipe.exec(&mut writer).unwrap();
    }
    for node in [1, 2] {
        let mut reader = cluster.connect(node);
        for batch in 0..100 {
            let keys: Vec<_> = (0..100)
                .map(|i| format!("key:{}", batch * 100 + i))
                .collect();
            let values: Vec<Option<String>> = reader.mget(&keys).unwrap();
            for (i, value) in values.into_iter().enumerate() {
                assert_eq!(
                    value,
                    Some(format!("value:{}", batch * 100 + i)),
                    "node {node}"
                );
            }
        }
    }
    let keys: u64 = redis::cmd("DBSIZE").query(&mut cluster.connect(0)).unwrap();
    assert_eq!(keys, 10_000);
}

#[test]
fn killing_a_node_fails_no_request_and_it_comes_back() {
    // What fails on a machine that is busy with other tests is not what is tested here.
    let mut cluster = Cluster::start(3, &["request_timeout=10s"]);
    let stop = AtomicBool::new(false);
    let requests = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..20)
            .map(|client| {
                let (stop, requests) = (&stop, &requests);
                let mut connection = cluster.connect(client % 2);
                scope.spawn(move || {
                    let key = format!("client:{client}");
                    let mut longest = Duration::ZERO;
                    for count in 0u64.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let start = SystemClock.monotonic();
                        let () = connection.set(&key, count).unwrap();
                        longest = longest.max(start.elapsed());
                        let read: Option<u64> = connection.get(&key).unwrap();
                        assert_eq!(read, Some(count), "a client reads what it wrote");
                        requests.fetch_add(2, Ordering::Relaxed);
                    }
                    longest
                })
            })
            .collect();
        let so_far = |more: u64| {
            let goal = requests.load(Ordering::Relaxed) + more;
            eventually("requests go on", PATIENCE, || {
                requests.load(Ordering::Relaxed) >= goal
            });
        };
        so_far(2_000);
        cluster.kill(2);
        eventually("the others see that it is gone", PATIENCE, || {
            cluster.reachable(0) == [true, true, false]
                && cluster.reachable(1) == [true, true, false]
        });
        so_far(2_000);
        cluster.restart(2);
        eventually("it is reachable again", PATIENCE, || {
            cluster.reachable(0) == [true; 3] && cluster.reachable(2) == [true; 3]
        });
        so_far(2_000);
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().unwrap();
        }
    });
    // It lost its memory; reads through it are answered by the others and heal it.
    let mut through_restarted = cluster.connect(2);
    for client in 0..20 {
        let through_other: Option<u64> =
            cluster.connect(0).get(format!("client:{client}")).unwrap();
        let value: Option<u64> = through_restarted.get(format!("client:{client}")).unwrap();
        assert!(value.is_some());
        assert_eq!(value, through_other);
    }
}

#[test]
fn without_enough_replicas_writes_say_so_and_reads_go_on() {
    let cluster = Cluster::start(3, &["w=3", "request_timeout=2s"]);
    let mut connection = cluster.connect(0);
    let () = connection.set("before", "value").unwrap();
    cluster.kill(2);
    eventually("the node is seen as gone", PATIENCE, || {
        cluster.reachable(0) == [true, true, false]
    });
    let start = SystemClock.monotonic();
    let refused: RedisResult<()> = connection.set("after", "value");
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "at most the timeout and some patience"
    );
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("2 of 3 acknowledgements"), "{text}");
    assert!(text.contains("may still take effect"), "{text}");
    let read: String = connection.get("before").unwrap();
    assert_eq!(read, "value");
}

#[test]
fn any_node_serves_keys_of_which_it_is_no_home() {
    let cluster = Cluster::start(5, &[]);
    let mut connections: Vec<_> = (0..4).map(|node| cluster.connect(node)).collect();
    for number in 0..400usize {
        let () = connections[number % 4].set(number, number).unwrap();
    }
    cluster.kill(4);
    for number in 0..400usize {
        let value: Option<usize> = connections[(number + 1) % 4].get(number).unwrap();
        assert_eq!(value, Some(number));
        let () = connections[number % 4].set(number, number + 1).unwrap();
    }
    let socket = cluster.nodes[0].socket.to_str().unwrap();
    let output = quorate(&["ring", "owners", "7", "--json", "--socket", socket]);
    let owners: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(owners["homes"].as_array().unwrap().len(), 3);
    assert_eq!(owners["stand_ins"].as_array().unwrap().len(), 2);
}

#[test]
fn pipelines_and_transactions_keep_the_order_of_each_key() {
    for nodes in [1, 3] {
        let cluster = Cluster::start(nodes, &[]);
        let mut connection = cluster.connect(0);
        let replies: (String, i64, String, i64, Option<String>, i64, i64) = redis::pipe()
            .set("k", "1")
            .ignore()
            .get("k")
            .expire("k", 100)
            .get("k")
            .del("k")
            .get("k")
            .exists("k")
            .del("k")
            .query(&mut connection)
            .unwrap();
        assert_eq!(
            replies,
            ("1".to_owned(), 1, "1".to_owned(), 1, None, 0, 0),
            "{nodes} nodes"
        );
        let replies: (String, String, i64) = redis::pipe()
            .atomic()
            .set("t", "x")
            .ignore()
            .get("t")
            .set("t", "y")
            .ignore()
            .get("t")
            .exists("t")
            .query(&mut connection)
            .unwrap();
        assert_eq!(replies, ("x".to_owned(), "y".to_owned(), 1));
        for value in 0..50 {
            let mut pipe = redis::pipe();
            (0..20).for_each(|i| _ = pipe.set("same", value * 20 + i).ignore());
            let (last,): (i64,) = pipe.get("same").query(&mut connection).unwrap();
            assert_eq!(last, value * 20 + 19);
        }
    }
}

#[test]
fn expiry_is_the_same_for_all_nodes() {
    let cluster = Cluster::start(3, &[]);
    let (mut a, mut b) = (cluster.connect(0), cluster.connect(1));
    let () = a.pset_ex("short", "value", 1_500).unwrap();
    let () = a.set("long", "value").unwrap();
    let left: i64 = b.pttl("short").unwrap();
    assert!((1..=1_500).contains(&left), "{left}");
    eventually("it ends", PATIENCE, || {
        b.get::<_, Option<String>>("short").unwrap().is_none()
    });
    for node in 0..3 {
        let value: Option<String> = cluster.connect(node).get("short").unwrap();
        assert_eq!(value, None);
    }
    assert_eq!(b.ttl::<_, i64>("long").unwrap(), -1);
    assert_eq!(b.ttl::<_, i64>("absent").unwrap(), -2);
    assert!(b.expire::<_, bool>("long", 100).unwrap());
    assert!(!b.expire::<_, bool>("absent", 100).unwrap());
    assert!((99..=100).contains(&a.ttl::<_, i64>("long").unwrap()));
    assert!(a.persist::<_, bool>("long").unwrap());
    assert!(!a.persist::<_, bool>("long").unwrap());
    assert_eq!(b.ttl::<_, i64>("long").unwrap(), -1);
    // The past deletes.
    assert!(a.expire_at::<_, bool>("long", 1).unwrap());
    assert!(!b.exists::<_, bool>("long").unwrap());
}

#[test]
fn dev_stops_its_nodes_and_ends_well() {
    let mut cluster = Cluster::start(3, &[]);
    let addresses: Vec<String> = cluster.nodes.iter().map(|node| node.resp.clone()).collect();
    assert_eq!(cluster.stop(), Some(0));
    for address in addresses {
        assert!(
            std::net::TcpStream::connect(&address).is_err(),
            "{address} still listens"
        );
    }
}

#[test]
fn the_admin_commands_read_and_write_keys() {
    let cluster = Cluster::start(3, &[]);
    let socket = |node: usize| cluster.nodes[node].socket.to_str().unwrap();
    assert!(
        quorate(&["set", "greeting", "hello", "--socket", socket(0)])
            .status
            .success()
    );
    let got = quorate(&["get", "greeting", "--socket", socket(1)]);
    assert_eq!(got.stdout, b"hello\n");
    let value: String = cluster.connect(2).get("greeting").unwrap();
    assert_eq!(value, "hello");
    assert_eq!(
        quorate(&["del", "greeting", "--socket", socket(2)]).stdout,
        b"1\n"
    );
    let gone = quorate(&["get", "greeting", "--socket", socket(0)]);
    assert_eq!(gone.status.code(), Some(1));
    assert_eq!(
        quorate(&["ring", "status", "--what"]).status.code(),
        Some(2)
    );
}
