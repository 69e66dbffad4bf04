//! Large values: clients that write them at the same time do not take each other's time away.

use std::thread;
use std::time::Duration;

use redis::Commands;

use crate::common::Cluster;

/// Finding S4: all of them were begun at once, each missed its deadline, and the next were begun.
#[test]
fn large_values_of_many_clients_are_all_written() {
    let cluster = Cluster::start(3, &[]);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let cluster = &cluster;
            scope.spawn(move || {
                // One node takes them all: together they are more than it may hold unfinished.
                let mut connection = cluster.connect(0);
                connection.set_read_timeout(Some(TURNS_MAX)).unwrap();
                let value = vec![b'a'; VALUE_BYTES];
                for write in 0..WRITES {
                    let key = format!("large:{client}:{write}");
                    let written: redis::RedisResult<()> = connection.set(&key, &value);
                    assert_eq!(written, Ok(()), "{key}");
                    let length: usize = connection.strlen(&key).unwrap();
                    assert_eq!(length, VALUE_BYTES);
                }
            });
        }
    });
}

/// Finding S4: they were copied where others waited, sent before the answers to small requests, and
/// had no more time than those.
#[test]
fn large_values_of_many_clients_are_all_read() {
    let cluster = Cluster::start(3, &[]);
    let value = vec![b'a'; VALUE_BYTES];
    let mut connection = cluster.connect(0);
    connection.set_read_timeout(Some(TURNS_MAX)).unwrap();
    for key in 0..READ_KEYS {
        let _: () = connection.set(format!("large:{key}"), &value).unwrap();
    }
    let _: () = connection.set("small", "value").unwrap();
    thread::scope(|scope| {
        for client in 0..READERS {
            let (cluster, value) = (&cluster, &value);
            scope.spawn(move || {
                let mut connection = cluster.connect(client % 3);
                connection.set_read_timeout(Some(TURNS_MAX)).unwrap();
                let key = format!("large:{}", client % READ_KEYS);
                let read: redis::RedisResult<Vec<u8>> = connection.get(&key);
                assert!(
                    read.as_ref() == Ok(value),
                    "{:?}",
                    read.map(|read| read.len())
                );
                // Large and small ones together, each in its place.
                let keys = ["small", &key, "none", &key, "small"];
                let several: Vec<Option<Vec<u8>>> = connection.mget(&keys).unwrap();
                let lengths: Vec<_> = several
                    .iter()
                    .map(|one| one.as_ref().map(Vec::len))
                    .collect();
                let large = Some(VALUE_BYTES);
                assert_eq!(lengths, [Some(5), large, None, large, Some(5)]);
            });
        }
    });
}

const CLIENTS: usize = 40;
const WRITES: usize = 1;
const READERS: usize = 12;
const READ_KEYS: usize = 4;
const VALUE_BYTES: usize = 8 * 1024 * 1024;
/// Far longer than all of them take together.
const TURNS_MAX: Duration = Duration::from_secs(120);
