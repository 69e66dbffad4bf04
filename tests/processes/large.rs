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
                let mut connection = cluster.connect(client % 3);
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

const CLIENTS: usize = 10;
const WRITES: usize = 3;
const VALUE_BYTES: usize = 8 * 1024 * 1024;
/// Far longer than all of them take together.
const TURNS_MAX: Duration = Duration::from_secs(120);
