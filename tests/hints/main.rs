//! Hints on a real disk, kept by a process that is killed at any moment.
//!
//! `QUORATE_KILL_ROUNDS=1000 cargo test --test hints` runs more rounds.

#![cfg(test)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate::env::{Durability, RealDisk, SeededRng, SystemClock};
use quorate::model::{Hlc, HlcTime, KeyHasher, NodeTag, Record, Version};
use quorate::node::handoff::{Config, Handoff, HintReply, MissedRef, NewHint};
use quorate::node::replica::{Replica, Standing, Written};
use quorate::protocol::HintLimits;
use quorate::ring::Partitions;
use quorate::store::{Limits, Store};
use tokio::time::sleep;

fn open(dir: &Path) -> Option<Arc<Handoff>> {
    let replica = Replica::new(
        Arc::new(Store::new(
            KeyHasher::new("kill"),
            Limits {
                partitions: 1,
                tombstone_age: Duration::from_secs(3_600),
            },
        )),
        Arc::new(Hlc::new(Duration::from_secs(10))),
        1 << 20,
        Standing::sure(Partitions::new(1).unwrap()),
    );
    let config = Config {
        limits: HintLimits {
            bytes_max: 1 << 28,
            window: Duration::from_secs(36_000),
        },
        durability: Durability::Synced,
        replay_bytes_per_s: 1 << 20,
    };
    let disk = RealDisk::open(dir).unwrap();
    // The process before is dead, but its lock may take a moment to go.
    Handoff::open(config, &disk, Arc::new(SystemClock), Arc::new(replica)).ok()
}

fn key(number: u64) -> Vec<u8> {
    format!("key-{number:08}").into_bytes()
}

/// Keeps hints and tells on its standard output which ones were acknowledged, until it is killed.
/// Before, what it found of the round before.
#[tokio::test]
async fn child() {
    let Some((round, dir)) = std::env::var("QUORATE_KILL_CHILD").ok().and_then(|text| {
        let (round, dir) = text.split_once(' ')?;
        Some((round.parse::<u64>().ok()?, dir.to_owned()))
    }) else {
        return;
    };
    let mut out = std::io::stdout().lock();
    let handoff = loop {
        match open(Path::new(&dir)) {
            Some(handoff) => break handoff,
            None => sleep(Duration::from_millis(5)).await,
        }
    };
    let before = NodeTag(round.saturating_sub(1));
    let found = handoff.numbers(before);
    let damaged = handoff.journal_health().damaged;
    writeln!(out, "\nfound {damaged} {found:?}").unwrap();
    // All rounds but the last are done with.
    handoff.drop_all(before);
    let rng = SeededRng::from_seed(round);
    let mut next = 0;
    loop {
        let count = 1 + rng.next_u64() % 20;
        let version = Version {
            hlc: HlcTime::default(),
            node: NodeTag(1),
        };
        let length = usize::try_from(rng.next_u64() % 600).unwrap();
        let record = Record::value(version, None, Bytes::from(vec![7; length]));
        let keys: Vec<_> = (next..next + count).map(key).collect();
        let hints: Vec<_> = keys
            .iter()
            .map(|key| NewHint {
                home: NodeTag(round),
                key,
                missed: MissedRef::Write((&record).into()),
            })
            .collect();
        for reply in handoff.keep(&hints).await {
            assert!(matches!(reply, HintReply::Written(Written::Applied(_))));
        }
        next += count;
        writeln!(out, "\nkept {next}").unwrap();
        out.flush().unwrap();
    }
}

/// The numbers of the hints for a home.
trait Numbers {
    fn numbers(&self, home: NodeTag) -> Vec<u64>;
}

impl Numbers for Handoff {
    fn numbers(&self, home: NodeTag) -> Vec<u64> {
        let count = self.summaries().get(&home).map_or(0, |hints| hints.count);
        // They were numbered without gaps, and each batch came as a whole.
        (0..count + 100)
            .filter(|&number| self.summary(&key(number)).is_some())
            .collect()
    }
}

/// Starts the writer of a round; what it found of the round before, and its further output.
fn start(round: u64, dir: &Path) -> (Child, impl Iterator<Item = String>, u64, BTreeSet<u64>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture", "--test-threads=1"])
        .env("QUORATE_KILL_CHILD", format!("{round} {}", dir.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let found = lines.find(|line| line.starts_with("found "));
    let found = found.expect("the journal opens");
    let mut words = found.split_ascii_whitespace().skip(1);
    let damaged = words.next().unwrap().parse().unwrap();
    let numbers = words
        .map(|word| word.trim_matches(['[', ']', ',']))
        .filter(|word| !word.is_empty())
        .map(|word| word.parse().unwrap());
    let numbers = numbers.collect();
    (child, lines, damaged, numbers)
}

#[test]
fn no_acknowledged_hint_is_lost_to_a_kill() {
    let rounds = std::env::var("QUORATE_KILL_ROUNDS").ok();
    let rounds: u64 = rounds.and_then(|text| text.parse().ok()).unwrap_or(200);
    let dir = tempfile::tempdir().unwrap();
    let rng = SeededRng::from_seed(9);
    let (mut kept, mut all, mut torn) = (0, 0, 0);
    for round in 1..=rounds + 1 {
        let (mut child, mut lines, damaged, found) = start(round, dir.path());
        torn += damaged;
        let lost: Vec<u64> = (0..kept).filter(|number| !found.contains(number)).collect();
        assert!(lost.is_empty(), "round {round} lost {lost:?} of {kept}");
        // Until some batch has been acknowledged, and a random moment longer.
        let (mut batches, wanted) = (0, 1 + rng.next_u64() % 12);
        kept = 0;
        let number = |line: &str| line.strip_prefix("kept ")?.parse().ok();
        while batches < wanted {
            let line = lines.next().expect("it goes on until it is killed");
            if let Some(number) = number(&line) {
                kept = number;
                batches += 1;
            }
        }
        let spins = rng.next_u64() % 400_000;
        (0..spins).for_each(|spin| _ = std::hint::black_box(spin));
        child.kill().unwrap();
        // What it said before it died counts as well.
        kept = lines
            .filter_map(|line| number(&line))
            .last()
            .unwrap_or(kept);
        child.wait().unwrap();
        all += kept;
    }
    println!("{rounds} rounds, {all} hints acknowledged, 0 lost; {torn} torn entries found");
}
