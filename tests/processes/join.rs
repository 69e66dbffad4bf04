//! Nodes that join a ring that holds something.

use crate::common::{Cluster, PATIENCE, eventually};

/// Finding S9: partitions all of whose homes were new stayed empty, and the new nodes said that they
/// were complete.
#[test]
fn three_nodes_that_join_three_at_once_lose_nothing() {
    let mut cluster = Cluster::start(3, &[]);
    let mut connection = cluster.connect(0);
    let mut pipeline = redis::pipe();
    (0..KEYS).for_each(|key| _ = pipeline.set(format!("key:{key}"), key).ignore());
    let () = pipeline.query(&mut connection).unwrap();
    eventually("all homes hold everything", PATIENCE, || {
        (0..3).all(|node| cluster.metric(node, "quorate_store_keys") == Some(KEYS))
    });
    cluster.join(3);
    eventually("all six are complete", 2 * PATIENCE, || cluster.settled());
    for node in 0..6 {
        let mut connection = cluster.connect(node);
        let mut pipeline = redis::pipe();
        (0..KEYS).for_each(|key| _ = pipeline.get(format!("key:{key}")));
        let got: Vec<Option<u64>> = pipeline.query(&mut connection).unwrap();
        let wrong = got.iter().zip(0..).filter(|(got, key)| **got != Some(*key));
        assert_eq!(wrong.count(), 0, "missing through node {node}");
    }
}

const KEYS: u64 = 5_000;
