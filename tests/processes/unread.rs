//! Clients that send commands and do not read the replies.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use quorate::env::{Clock, SystemClock};
use quorate::resp::decode;
use redis::Commands;

use crate::common::{Cluster, PATIENCE, eventually, signal};

const MIB: u64 = 1024 * 1024;

fn settled(nodes: u16, settings: &[&str]) -> Cluster {
    let cluster = Cluster::start(nodes, settings);
    eventually("the nodes are ready", PATIENCE, || cluster.settled());
    let value = vec![b'v'; 1024 * 1024];
    cluster.connect(0).set::<_, _, ()>("m", value).unwrap();
    cluster
}

/// Bytes of memory that a process has.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

/// A client that has sent a request.
fn send(address: &str, request: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request).unwrap();
    stream
}

fn mget(count: usize) -> Vec<u8> {
    let mut request = format!("*{}\r\n$4\r\nMGET\r\n", count + 1).into_bytes();
    request.extend(b"$1\r\nm\r\n".repeat(count));
    request
}

const GET: &[u8] = b"*2\r\n$3\r\nGET\r\n$1\r\nm\r\n";

/// For so long nothing is to grow, and others are to be served.
fn watch(cluster: &Cluster, before: u64, growth_max: u64) {
    let mut canary = cluster.connect(0);
    canary.set::<_, _, ()>("canary", 1).unwrap();
    let start = SystemClock.monotonic();
    while start.elapsed() < Duration::from_secs(3) {
        let asked = SystemClock.monotonic();
        assert_eq!(canary.get::<_, u64>("canary").unwrap(), 1);
        assert!(asked.elapsed() < Duration::from_secs(2), "a stall");
        let grown = resident(cluster.nodes[0].pid).saturating_sub(before);
        assert!(grown < growth_max, "{} MiB more", grown / MIB);
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Finding 13, on nodes that read from each other and on one that is alone.
#[test]
fn a_reply_of_many_long_values_is_not_held() {
    for nodes in [3, 1] {
        let cluster = settled(nodes, &[]);
        let before = resident(cluster.nodes[0].pid);
        let mut stream = send(&cluster.nodes[0].resp, &mget(400));
        watch(&cluster, before, 100 * MIB);
        // It is whole for who reads it in the end.
        let mut reply = Vec::new();
        let mut bytes = vec![0; 1024 * 1024];
        let whole = 400 * (1024 * 1024 + "$1048576\r\n\r\n".len()) + "*400\r\n".len();
        while reply.len() < whole {
            let count = stream.read(&mut bytes).unwrap();
            assert!(count > 0, "closed after {} bytes", reply.len());
            reply.extend(&bytes[..count]);
        }
        let (_, length) = decode(&reply).unwrap().unwrap();
        assert_eq!((length, reply.len()), (whole, whole));
        let grown = resident(cluster.nodes[0].pid).saturating_sub(before);
        assert!(grown < 100 * MIB, "{} MiB more", grown / MIB);
    }
}

/// S3, a tenth of it: 20 clients with 100 values each.
#[test]
fn pipelines_that_are_not_read_do_not_fill_the_memory() {
    for nodes in [3, 1] {
        let cluster = settled(nodes, &[]);
        let before = resident(cluster.nodes[0].pid);
        let clients: Vec<_> = (0..20)
            .map(|_| send(&cluster.nodes[0].resp, &GET.repeat(100)))
            .collect();
        watch(&cluster, before, 150 * MIB);
        drop(clients);
    }
}

/// Finding 12: it stayed in the list, with all that waited for it.
#[test]
fn a_client_that_does_not_read_can_be_killed() {
    let cluster = settled(3, &[]);
    let victim = send(&cluster.nodes[0].resp, &GET.repeat(100));
    let address = victim.local_addr().unwrap().to_string();
    let mut admin = cluster.connect(0);
    let mut list = || -> String {
        let list = redis::cmd("CLIENT").arg("LIST").query(&mut admin);
        list.unwrap()
    };
    eventually("it is connected", PATIENCE, || list().contains(&address));
    std::thread::park_timeout(Duration::from_millis(500));
    let mut killer = cluster.connect(0);
    let killed: u64 = redis::cmd("CLIENT")
        .arg(&["KILL", "ADDR", &address])
        .query(&mut killer)
        .unwrap();
    assert_eq!(killed, 1);
    eventually("it is gone", Duration::from_secs(10), || {
        !list().contains(&address)
    });
}

/// Finding 12: held for good.
#[test]
fn a_client_that_reads_nothing_for_too_long_is_closed() {
    let cluster = settled(1, &["unread_timeout=300ms"]);
    let victim = send(&cluster.nodes[0].resp, &GET.repeat(100));
    eventually("it is closed", PATIENCE, || {
        cluster.metric(0, "quorate_unread_closed_total") == Some(1)
    });
    drop(victim);
}

/// Finding 12: the end of the node waited for it.
#[test]
fn a_node_does_not_wait_for_a_client_that_does_not_read_when_it_stops() {
    let cluster = settled(1, &["shutdown_timeout=50s"]);
    let _victim = send(&cluster.nodes[0].resp, &GET.repeat(100));
    std::thread::park_timeout(Duration::from_millis(500));
    signal(cluster.nodes[0].pid, "-TERM");
    eventually("it has stopped", Duration::from_secs(20), || {
        TcpStream::connect(&cluster.nodes[0].http).is_err()
    });
}

/// Finding 29: what a client sent was always looked at first.
#[test]
fn a_client_that_never_stops_sending_can_be_killed() {
    let cluster = settled(1, &[]);
    let mut victim = TcpStream::connect(&cluster.nodes[0].resp).unwrap();
    let address = victim.local_addr().unwrap().to_string();
    let mut reader = victim.try_clone().unwrap();
    let reading = std::thread::spawn(move || {
        let mut bytes = vec![0; 65_536];
        while reader.read(&mut bytes).is_ok_and(|count| count > 0) {}
    });
    let sending = std::thread::spawn(move || {
        let pings = b"PING\r\n".repeat(10_000);
        while victim.write_all(&pings).is_ok() {}
    });
    let mut admin = cluster.connect(0);
    eventually("it is killed", PATIENCE, || {
        let mut kill = redis::cmd("CLIENT");
        kill.arg(&["KILL", "ADDR", &address]);
        kill.query::<u64>(&mut admin).unwrap() == 1
    });
    eventually("it is closed", Duration::from_secs(20), || {
        sending.is_finished() && reading.is_finished()
    });
}
