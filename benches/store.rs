//! What one write costs the store: `cargo bench --bench store`.
//!
//! Overwrites and first writes of keys of 16 bytes with values of 100, in 4,096 partitions. To count
//! instructions, and to see the share of the digest, build it a second time without digests:
//!
//! ```text
//! perf stat -e instructions:u cargo bench --bench store
//! RUSTFLAGS="--cfg quorate_no_digest" cargo bench --bench store
//! ```

#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::time::Duration;

use quorate::env::{Clock, SystemClock};
use quorate::model::{Expiry, HashedKey, HlcTime, KeyHasher, Millis, NodeTag, RecordRef, Version};
use quorate::ring::Partitions;
use quorate::store::{Limits, Store};

fn main() {
    let hasher = KeyHasher::new("bench");
    let Ok(partitions) = Partitions::new(4_096) else {
        return;
    };
    let limits = Limits {
        partitions: partitions.count(),
        tombstone_age: Duration::from_secs(10_000),
    };
    let store = Store::new(hasher, limits);
    let keys: Vec<Vec<u8>> = (0..KEYS)
        .map(|n| format!("key-{n:012}").into_bytes())
        .collect();
    let value = [b'v'; 100];
    for round in 0..ROUNDS {
        let begun = SystemClock.monotonic();
        for (number, key) in keys.iter().enumerate() {
            let hash = hasher.hash(key);
            let key = HashedKey {
                bytes: key,
                hash,
                partition: partitions.of(hash),
            };
            let version = Version {
                hlc: HlcTime(HlcTime::from_millis(NOW).0 + (round << 24) + number as u64),
                node: NodeTag(7),
            };
            let record = RecordRef {
                version,
                expiry: Expiry { version, at: None },
                value: Some(&value),
                kind: quorate::model::Kind::String,
                covers: false,
            };
            store.apply(key, record, NOW);
        }
        let ns = begun.elapsed().as_nanos() as f64 / KEYS as f64;
        if round < 2 || round + 1 == ROUNDS {
            println!("round {round}: {ns:.0} ns a write");
        }
    }
}

const KEYS: u64 = 100_000;
/// Large enough that the first one and the start are lost in the count of instructions.
const ROUNDS: u64 = 50;
const NOW: Millis = Millis(1_800_000_000_000);
