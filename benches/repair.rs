//! What it costs to find and heal so many differences between two replicas of a million records:
//! `cargo bench --bench repair`.
//!
//! Keys of 16 bytes, values of 100, 4,096 partitions. Half of the differences are records that one
//! side lacks, half are records of which it holds an older state. The sides talk in memory; bytes are
//! those of frames, both directions. `optimum` is what the states that differ take themselves, 16
//! bytes each: a record that both hold has two.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]
#![allow(dead_code, clippy::unwrap_used, reason = "shared with tests")]

#[path = "../tests/repair/pair.rs"]
mod pair;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use quorate::env::{Clock, SystemClock};
use quorate::model::Record;
use tokio::time::sleep;

use self::pair::Pair;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(run()),
        Err(error) => println!("no runtime: {error}"),
    }
}

async fn run() {
    let pair = Pair::new(4_096, 1 << 40);
    for number in 0..RECORDS {
        let record = record(&pair, number);
        for side in 0..2 {
            pair.put(side, &name(number), &record);
        }
    }
    pair.pass().await;
    pair.pass().await;
    println!(
        "{:>11} {:>10} {:>11} {:>11} {:>8} {:>13} {:>9} {:>9}",
        "differences",
        "partitions",
        "compare B",
        "optimum B",
        "ratio",
        "records B",
        "seconds",
        "CPU s"
    );
    let mut next = RECORDS;
    for differences in [0, 1, 10, 100, 10_000, 100_000] {
        let mut partitions = BTreeSet::new();
        let mut states = 0;
        for number in 0..differences {
            // Spread over all keys.
            let (key, items) = if number % 2 == 0 {
                next += 1;
                (next, 1)
            } else {
                (number * 7_919 % RECORDS, 2)
            };
            states += items;
            let key = name(key);
            pair.put(0, &key, &record(&pair, RECORDS + number));
            partitions.insert(pair.hashed(key.as_bytes()).partition);
        }
        measure(&pair, differences, partitions.len(), states).await;
    }
}

async fn measure(pair: &Pair, differences: u64, partitions: usize, states: u64) {
    let report = || pair.sides[0].anti_entropy.report("");
    let before = report();
    pair.pass().await;
    let (cpu, begun) = (cpu_s(), SystemClock.monotonic());
    // The second cut at which they differ.
    pair.pass_epoch();
    if differences == 0 {
        sleep(Duration::from_secs(1)).await;
    }
    pair.until("repaired", || report().fixed - before.fixed == differences)
        .await;
    let (cpu, took) = (cpu_s() - cpu, begun.elapsed().as_secs_f64());
    let after = report();
    let bytes = after.compare_bytes - before.compare_bytes;
    let optimum = states * 16;
    let ratio = match optimum {
        0 => "-".to_owned(),
        optimum => format!("{:.2}", bytes as f64 / optimum as f64),
    };
    println!(
        "{differences:>11} {partitions:>10} {bytes:>11} {optimum:>11} {ratio:>8} {:>13} {took:>9.2} {cpu:>9.2}",
        after.record_bytes - before.record_bytes,
    );
    let fallbacks = pair.sides[0]
        .anti_entropy
        .stats()
        .fallbacks
        .load(Ordering::Relaxed);
    if fallbacks > 0 {
        println!("({fallbacks} sessions compared lists)");
    }
    for _ in 0..2 {
        pair.pass().await;
    }
    let left = report();
    if left.in_agreement != left.total {
        println!("NOT in agreement: {} of {}", left.in_agreement, left.total);
    }
}

fn record(pair: &Pair, counter: u64) -> Record {
    Record::value(pair.version(counter), None, Bytes::from(vec![b'v'; 100]))
}

fn name(number: u64) -> String {
    format!("key-{number:012}")
}

/// Processor time of this thread, which does everything; 0 where the system does not tell.
fn cpu_s() -> f64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns: u64 = told
        .split(' ')
        .next()
        .and_then(|ns| ns.parse().ok())
        .unwrap_or(0);
    ns as f64 / 1e9
}

const RECORDS: u64 = 1_000_000;
