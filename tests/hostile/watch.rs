//! Starts cluster, canaries and attackers, and watches: no freeze, no growth, no death.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use quorate::env::{Clock, SeededRng, SystemClock};
use tokio::time::Instant;

use super::attack::{self, Orders, PREFIX, Sent, pause};
use super::canary::{Canary, Seen};
use super::classes::CLASSES;
use super::common::{Cluster, Node};

/// What the environment asks for.
struct Wishes {
    seed: u64,
    time: Duration,
    p99_min: Duration,
    growth_bytes_max: u64,
    only: Vec<String>,
    table: Option<String>,
}

/// Everything that was seen; its end is the verdict.
struct Watch {
    wishes: Wishes,
    cluster: Cluster,
    canaries: Vec<Canary>,
    total: Vec<Seen>,
    attackers: Option<Attackers>,
    resident_before: Vec<u64>,
    resident_most: Vec<u64>,
    start: Instant,
}

pub(crate) fn run() {
    let wishes = Wishes::read();
    println!("hostile clients: QUORATE_HOSTILE_SEED={}", wishes.seed);
    let cluster = Cluster::start(3, &[]);
    let canary = |name, node: usize| Canary::start(name, &cluster.nodes[node].resp);
    let canaries = vec![canary("attacked", 0), canary("other", 1)];
    // What all this costs in quiet: the machine's part in what is measured later.
    pause(WARM_UP);
    canaries.iter().for_each(|canary| drop(canary.take()));
    pause(QUIET);
    let quiet: Vec<Seen> = canaries.iter().map(Canary::take).collect();
    let p99_max: Vec<Duration> = quiet
        .iter()
        .map(|seen| wishes.p99_min.max(5 * seen.p99()))
        .collect();
    println!(
        "p99 in quiet {:?}, demanded {p99_max:?}",
        quiet.iter().map(Seen::p99).collect::<Vec<_>>()
    );
    let resident: Vec<u64> = cluster
        .nodes
        .iter()
        .map(|node| resident_bytes(node).unwrap())
        .collect();
    let mut watch = Watch {
        attackers: Some(Attackers::start(&wishes, &cluster.nodes[0])),
        total: canaries.iter().map(|_| Seen::new()).collect(),
        wishes,
        canaries,
        cluster,
        resident_most: resident.clone(),
        resident_before: resident,
        start: SystemClock.monotonic(),
    };
    let outcome = watch.watch().and_then(|()| watch.verdict(&p99_max));
    if let Err(failure) = outcome {
        let report = watch.report(&failure);
        panic!("{report}");
    }
}

impl Wishes {
    fn read() -> Self {
        let text = |name: &str| std::env::var(format!("QUORATE_HOSTILE_{name}")).ok();
        let number = |name: &str| text(name).map(|text| text.parse::<u64>().unwrap());
        let only: Vec<String> = text("ONLY")
            .iter()
            .flat_map(|only| only.split(',').map(str::to_owned))
            .collect();
        for name in &only {
            assert!(
                CLASSES.iter().any(|(class, _)| class == name),
                "no class `{name}`: {:?}",
                CLASSES.iter().map(|(name, _)| name).collect::<Vec<_>>()
            );
        }
        Self {
            seed: number("SEED").unwrap_or_else(|| SeededRng::from_system().unwrap().next_u64()),
            time: Duration::from_secs(number("SECONDS").unwrap_or(20)),
            p99_min: Duration::from_millis(number("P99_MS").unwrap_or(50)),
            growth_bytes_max: number("GROWTH_MB").map_or(GROWTH_BYTES_MAX, |mb| mb << 20),
            only,
            table: text("TABLE"),
        }
    }
}

impl Watch {
    /// Until the time is over, or something is wrong.
    fn watch(&mut self) -> Result<(), String> {
        let mut row_at = ROW;
        self.row(
            "seconds | canary | p50 | p99 | longest | resident MB of each node | sent".to_owned(),
        );
        while self.start.elapsed() < self.wishes.time {
            pause(LOOK);
            self.look()?;
            if self.start.elapsed() >= row_at {
                row_at += ROW;
                self.rows();
            }
        }
        self.rows();
        Ok(())
    }

    fn look(&mut self) -> Result<(), String> {
        for canary in &self.canaries {
            let waits = canary.waits();
            if waits > FREEZE {
                return Err(format!(
                    "freeze: canary `{}` waits for {waits:?}",
                    canary.name()
                ));
            }
        }
        for number in 0..self.cluster.nodes.len() {
            let Some(resident) = resident_bytes(&self.cluster.nodes[number]) else {
                let log = self.cluster.log(number);
                let lines: Vec<&str> = log.lines().rev().take(15).collect();
                return Err(format!(
                    "death: node {number} is gone; its log, newest first: {lines:#?}"
                ));
            };
            self.resident_most[number] = self.resident_most[number].max(resident);
            let before = self.resident_before[number];
            if resident > before + self.wishes.growth_bytes_max {
                let (before, now) = (before >> 20, resident >> 20);
                return Err(format!(
                    "growth: node {number} from {before} to {now} MB resident"
                ));
            }
        }
        Ok(())
    }

    /// What the canaries have seen since the last time, into the table and the total.
    fn rows(&mut self) {
        let seconds = self.start.elapsed().as_secs();
        let resident: Vec<u64> = self
            .cluster
            .nodes
            .iter()
            .map(|node| resident_bytes(node).unwrap_or(0) >> 20)
            .collect();
        let sent = self
            .attackers
            .as_mut()
            .map_or(0, |attackers| attackers.count().requests);
        for number in 0..self.canaries.len() {
            let seen = self.canaries[number].take();
            let name = self.canaries[number].name();
            let (p50, p99, longest) = (seen.p50(), seen.p99(), seen.longest());
            let row = format!(
                "{seconds} | {name} | {p50:.1?} | {p99:.1?} | {longest:.1?} | {resident:?} | {sent}"
            );
            self.row(row);
            self.total[number].add(seen);
        }
    }

    fn row(&self, row: String) {
        println!("{row}");
        if let Some(path) = &self.wishes.table {
            let file = fs::OpenOptions::new().append(true).create(true).open(path);
            writeln!(file.unwrap(), "{row}").unwrap();
        }
    }

    /// What all that was seen comes to.
    fn verdict(&mut self, p99_max: &[Duration]) -> Result<(), String> {
        let sent = self
            .attackers
            .as_mut()
            .map(Attackers::count)
            .unwrap_or_default();
        println!("sent: {sent:?}");
        for ((seen, canary), &p99_max) in self.total.iter().zip(&self.canaries).zip(p99_max) {
            let name = canary.name();
            let count = seen.latencies.len();
            let (p99, longest) = (seen.p99(), seen.longest());
            println!(
                "canary `{name}`: {count} requests, p99 {p99:?}, longest {longest:?}, {} hang-ups, {} resets",
                seen.hang_ups, seen.resets
            );
            if let Some(wrong) = seen.wrong.first() {
                return Err(format!(
                    "canary `{name}` got {} wrong replies: {wrong}",
                    seen.wrong.len()
                ));
            }
            if longest > FREEZE {
                return Err(format!("freeze: canary `{name}` waited for {longest:?}"));
            }
            if p99 > p99_max {
                return Err(format!(
                    "canary `{name}`: p99 {p99:?}, more than {p99_max:?}"
                ));
            }
            // SET and INCR may each find their key emptied by each flush.
            if seen.resets > 2 * sent.flushes {
                return Err(format!(
                    "canary `{name}` lost its keys {} times, {} flushes",
                    seen.resets, sent.flushes
                ));
            }
            let errors = u64::try_from(seen.errors.len()).unwrap();
            if errors * ERRORS_ONE_IN > count {
                return Err(format!(
                    "canary `{name}`: {errors} errors of {count}: {:?}",
                    &seen.errors[..seen.errors.len().min(5)]
                ));
            }
        }
        if self.wishes.only.is_empty() {
            let unattacked: Vec<_> = CLASSES
                .iter()
                .filter(|(name, _)| !sent.classes.contains_key(*name))
                .map(|(name, _)| name)
                .collect();
            if !unattacked.is_empty() || !sent.missing.is_empty() {
                return Err(format!(
                    "not attacked: classes {unattacked:?}, commands {:?}",
                    sent.missing
                ));
            }
        }
        Ok(())
    }

    /// What is needed to find the cause: seed, what was sent before, how to run it again.
    fn report(&mut self, failure: &str) -> String {
        let Wishes { seed, only, .. } = &self.wishes;
        let mut text = format!(
            "{failure}\n\nafter {:?}, seed {seed}, classes {only:?}\n",
            self.start.elapsed()
        );
        let resident = |bytes: &[u64]| bytes.iter().map(|bytes| bytes >> 20).collect::<Vec<_>>();
        _ = writeln!(
            text,
            "resident MB before {:?}, at most {:?}",
            resident(&self.resident_before),
            resident(&self.resident_most)
        );
        if let Some(attackers) = &mut self.attackers {
            let recent = attackers.ask("recent");
            let mut classes: Vec<&str> = recent
                .iter()
                .filter_map(|line| line.split(' ').nth(2))
                .collect();
            classes.sort_unstable();
            classes.dedup();
            let skipped = recent.len().saturating_sub(SHOWN);
            _ = writeln!(
                text,
                "sent in the seconds before ({skipped} lines left out), newest last:\n{}",
                recent[skipped..].join("\n")
            );
            _ = writeln!(text, "classes at work: {}", classes.join(","));
            _ = writeln!(
                text,
                "again: QUORATE_HOSTILE_SEED={seed} QUORATE_HOSTILE_ONLY={} cargo test --test hostile",
                classes.join(",")
            );
        }
        text
    }
}

/// The process of the attackers.
struct Attackers {
    child: Child,
    orders: ChildStdin,
    replies: BufReader<ChildStdout>,
}

impl Attackers {
    fn start(wishes: &Wishes, node: &Node) -> Self {
        let resp: std::net::SocketAddr = node.resp.parse().unwrap();
        let orders = Orders {
            resp,
            http: node.http.parse().unwrap(),
            // `quorate dev` has it there.
            quic: (resp.ip(), resp.port() + 100).into(),
            seed: wishes.seed,
            only: wishes.only.clone(),
        };
        let mut child = Command::new("nice")
            .args(["-n", "10"])
            .arg(std::env::current_exe().unwrap())
            .args(["--nocapture", "--exact"])
            .arg("tests::hostile_clients_stop_no_node_and_no_canary_notices_them")
            .env(attack::VARIABLE, serde_json::to_string(&orders).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            orders: child.stdin.take().unwrap(),
            replies: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    /// The lines of a reply.
    fn ask(&mut self, what: &str) -> Vec<String> {
        if writeln!(self.orders, "{what}").is_err() {
            return vec!["the attackers are gone".to_owned()];
        }
        let lines = self.replies.by_ref().lines().map_while(Result::ok);
        let ours = lines.filter_map(|line| line.strip_prefix(PREFIX).map(str::to_owned));
        ours.take_while(|line| line != ".").collect()
    }

    fn count(&mut self) -> Sent {
        let lines = self.ask("count");
        serde_json::from_str(&lines.concat()).unwrap()
    }
}

impl Drop for Attackers {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The memory that a node has; `None`: it is dead.
fn resident_bytes(node: &Node) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid)).ok()?;
    // A process that is dead and not waited for has no such line.
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes << 10)
}

const WARM_UP: Duration = Duration::from_secs(1);
const QUIET: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(100);
const ROW: Duration = Duration::from_secs(30);
/// No machine is so busy that a node that works makes a client wait for so long.
const FREEZE: Duration = Duration::from_secs(1);
const ERRORS_ONE_IN: u64 = 1_000;
const SHOWN: usize = 200;
/// What a node may take above what it has when idle: 24 keys that an attacker can make as long as a
/// value may be (16 MiB), 300 MiB for all that is queued for clients that do not read, and as much
/// for requests in flight, what is replaced and what the allocator has not given back yet.
const GROWTH_BYTES_MAX: u64 = 1 << 30;
