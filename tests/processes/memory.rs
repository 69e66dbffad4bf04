//! Memory of what is gone goes back to the system.

use std::time::Duration;

use crate::common::{Cluster, eventually};

/// Finding S7: a node that held nothing any more stayed as large as it had been.
#[test]
fn memory_of_what_was_flushed_is_given_back() {
    let cluster = Cluster::start(1, &[]);
    let resident = || cluster.metric(0, "quorate_process_resident_memory_bytes");
    let mut connection = cluster.connect(0);
    let before = resident().unwrap();
    let mut written = 0;
    let mut key = 0_usize;
    while written < FILLED_BYTES {
        let mut pipeline = redis::pipe();
        let mut bytes = 0;
        while bytes < PIPELINE_BYTES {
            let length = LENGTHS[key % LENGTHS.len()];
            let value = vec![b'v'; length];
            pipeline.set(format!("key:{key}"), value).ignore();
            bytes += length;
            key += 1;
        }
        let () = pipeline.query(&mut connection).unwrap();
        written += bytes as u64;
    }
    let filled = resident().unwrap();
    assert!(filled > before + FILLED_BYTES, "{before}, then {filled}");
    let () = redis::cmd("FLUSHALL").query(&mut connection).unwrap();
    eventually("most of it is given back", GIVEN_BACK_WITHIN, || {
        resident().is_some_and(|now| now < before + FILLED_BYTES / 4)
    });
}

const FILLED_BYTES: u64 = 150_000_000;
const PIPELINE_BYTES: usize = 500_000;
/// Short ones share segments, the others have an allocation each, above and below what an allocator
/// takes for large.
const LENGTHS: [usize; 7] = [100, 300, 1_000, 3_000, 10_000, 30_000, 100_000];
/// Ten seconds, and more for a busy machine.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(40);
