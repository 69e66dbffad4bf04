//! Figures as tables and as JSON.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use super::args::{BenchArgs, VALUE_SIZE};
use super::progress::grouped;
use super::record::{Kinds, Tally};
use super::round::Outcome;
use super::workload::Kind;

/// All that a run found. Field names are a contract with other tools.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    settings: Settings,
    /// Each round of each target, in the order they ran.
    rounds: Vec<RoundReport>,
    /// Each target: rounds added up, throughput their median.
    targets: Vec<TargetReport>,
    /// Throughput of each target relative to the first.
    ratios: Vec<RatioReport>,
}

#[derive(Debug, Serialize)]
struct Settings {
    connections: u64,
    threads: u64,
    pipeline: u64,
    rate: Option<u64>,
    /// From when latency counts: `sent`, or `due` in a run of a fixed rate.
    latency_since: &'static str,
    ratio: Option<String>,
    keys: Option<u64>,
    distribution: Option<String>,
    key_size: Option<u64>,
    value_size: Option<u64>,
    ttl: Option<u64>,
    wait: Option<u64>,
    trace: Option<String>,
    seed: u64,
}

#[derive(Debug, Serialize)]
struct RoundReport {
    round: u32,
    #[serde(flatten)]
    figures: TargetReport,
}

#[derive(Debug, Serialize)]
struct TargetReport {
    target: String,
    /// Successful requests a second.
    throughput: f64,
    elapsed_s: f64,
    get: Latency,
    set: Latency,
    del: Latency,
    hits: u64,
    misses: u64,
    /// `null` without reads.
    hit_ratio: Option<f64>,
    /// Requests answered with an error or never.
    failed: u64,
    unsent: u64,
    /// The longest single request, failed ones too.
    longest_us: f64,
    /// Error replies by first word.
    errors: BTreeMap<String, u64>,
    connection_errors: BTreeMap<String, u64>,
    /// For people: an error of each kind in full.
    #[serde(skip)]
    examples: Vec<String>,
    #[serde(skip)]
    connection_examples: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Latency {
    count: u64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
}

#[derive(Debug, Serialize)]
struct RatioReport {
    target: String,
    ratio: f64,
}

/// Gathers the rounds of a run.
#[derive(Debug)]
pub(super) struct Rounds {
    targets: Vec<(String, Vec<Outcome>)>,
}

impl Rounds {
    pub(super) fn new(targets: impl Iterator<Item = String>) -> Self {
        Self {
            targets: targets.map(|target| (target, Vec::new())).collect(),
        }
    }

    /// Adds a round of the `nth` target.
    pub(super) fn add(&mut self, nth: usize, outcome: Outcome) {
        self.targets[nth].1.push(outcome);
    }

    pub(super) fn report(&self, args: &BenchArgs) -> Report {
        let targets: Vec<_> = self
            .targets
            .iter()
            .map(|(target, outcomes)| TargetReport::of(target, outcomes))
            .collect();
        let first = targets.first().map_or(0.0, |target| target.throughput);
        let ratios = targets
            .iter()
            .map(|each| RatioReport {
                target: each.target.clone(),
                ratio: if first > 0.0 {
                    each.throughput / first
                } else {
                    0.0
                },
            })
            .collect();
        Report {
            settings: Settings::of(args),
            rounds: self.each_round(),
            targets,
            ratios,
        }
    }

    fn each_round(&self) -> Vec<RoundReport> {
        let rounds = self
            .targets
            .iter()
            .map(|(_, outcomes)| outcomes.len())
            .max();
        (0..rounds.unwrap_or(0))
            .zip(1..)
            .flat_map(|(index, round)| {
                self.targets.iter().filter_map(move |(target, outcomes)| {
                    let outcome = outcomes.get(index..=index)?;
                    let figures = TargetReport::of(target, outcome);
                    Some(RoundReport { round, figures })
                })
            })
            .collect()
    }
}

impl Settings {
    fn of(args: &BenchArgs) -> Self {
        let mixed = args.trace.is_none();
        Self {
            connections: args.connections,
            threads: args.threads,
            pipeline: args.pipeline,
            rate: args.rate,
            latency_since: if args.rate.is_some() { "due" } else { "sent" },
            ratio: mixed.then(|| args.ratio.to_string()),
            keys: mixed.then_some(args.keys),
            distribution: mixed.then(|| args.distribution.to_string()),
            key_size: mixed.then_some(args.key_size),
            value_size: args.value_size.or_else(|| mixed.then_some(VALUE_SIZE)),
            ttl: args.ttl,
            wait: args.wait,
            trace: args.trace.as_ref().map(|path| path.display().to_string()),
            seed: args.seed,
        }
    }
}

impl TargetReport {
    fn of(target: &str, outcomes: &[Outcome]) -> Self {
        let mut tally = Tally::new();
        for outcome in outcomes {
            tally.merge(&outcome.tally);
        }
        let elapsed: Duration = outcomes.iter().map(|each| each.elapsed).sum();
        let reads = tally.hits + tally.misses;
        let kinds = |kinds: &Kinds| {
            let counts = kinds
                .0
                .iter()
                .map(|(kind, seen)| (kind.clone(), seen.count));
            counts.collect()
        };
        Self {
            target: target.to_owned(),
            throughput: tenths(median(outcomes.iter().map(throughput).collect())),
            elapsed_s: elapsed.as_millis() as f64 / 1000.0,
            get: Latency::of(&tally, Kind::Get),
            set: Latency::of(&tally, Kind::Set),
            del: Latency::of(&tally, Kind::Del),
            hits: tally.hits,
            misses: tally.misses,
            hit_ratio: (reads > 0).then(|| tally.hits as f64 / reads as f64),
            failed: tally.failed,
            unsent: outcomes.iter().map(|each| each.unsent).sum(),
            longest_us: micros(tally.longest),
            errors: kinds(&tally.errors),
            connection_errors: kinds(&tally.connection_errors),
            examples: examples(&tally.errors),
            connection_examples: examples(&tally.connection_errors),
        }
    }
}

impl Latency {
    fn of(tally: &Tally, kind: Kind) -> Self {
        let at = |quantile| micros(tally.latency(kind, quantile));
        Self {
            count: tally.count(kind),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: micros(tally.longest(kind)),
        }
    }
}

impl Report {
    /// One JSON document.
    pub(super) fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer(&mut *out, self)?;
        writeln!(out)
    }

    /// A table for each target and, with several, one that compares them.
    pub(super) fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        for target in &self.targets {
            self.write_target(target, out)?;
        }
        if self.targets.len() > 1 {
            self.write_comparison(out)?;
        }
        Ok(())
    }

    fn write_target(&self, target: &TargetReport, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", target.target)?;
        writeln!(
            out,
            "  throughput  {} requests/s",
            rounded(target.throughput)
        )?;
        let head = ["count", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms"];
        write_row(out, "", &head.map(str::to_owned))?;
        for (name, latency) in [
            ("GET", &target.get),
            ("SET", &target.set),
            ("DEL", &target.del),
        ] {
            if latency.count > 0 {
                write_row(out, name, &latency.cells())?;
            }
        }
        if let Some(hit_ratio) = target.hit_ratio {
            let (hits, misses) = (grouped(target.hits), grouped(target.misses));
            writeln!(
                out,
                "  hit ratio   {hit_ratio:.4} ({hits} hits, {misses} misses)"
            )?;
        }
        writeln!(
            out,
            "  longest     {} ms, failed ones too",
            millis(target.longest_us)
        )?;
        writeln!(out, "  failed      {}", grouped(target.failed))?;
        for example in &target.examples {
            writeln!(out, "    {example}")?;
        }
        if !target.connection_examples.is_empty() {
            writeln!(out, "  connections lost or not made")?;
        }
        for example in &target.connection_examples {
            writeln!(out, "    {example}")?;
        }
        if target.unsent > 0 {
            writeln!(
                out,
                "  never sent  {} that should have been",
                grouped(target.unsent)
            )?;
        }
        match self.settings.rate {
            Some(rate) => writeln!(
                out,
                "  latency     from when each request was due, at {} requests/s",
                grouped(rate)
            )?,
            None => writeln!(
                out,
                "  latency     from when each was sent: waits before sending do not show (--rate does)"
            )?,
        }
        writeln!(out)
    }

    fn write_comparison(&self, out: &mut dyn Write) -> io::Result<()> {
        let width = self.targets.iter().map(|each| each.target.len()).max();
        let width = width.unwrap_or(0).max(CELL_WIDTH);
        let mut row = |name: &str, cells: Vec<String>| {
            write!(out, "{name:<13}")?;
            for cell in cells {
                write!(out, "  {cell:>width$}")?;
            }
            writeln!(out)
        };
        let names = self.targets.iter().map(|each| each.target.clone());
        row("requests/s", names.collect())?;
        for round in self.rounds.chunks(self.targets.len()) {
            let number = round.first().map_or(0, |first| first.round);
            let cells = round.iter().map(|each| rounded(each.figures.throughput));
            row(&format!("round {number}"), cells.collect())?;
        }
        let medians = self.targets.iter().map(|each| rounded(each.throughput));
        row("median", medians.collect())?;
        let ratios = self
            .ratios
            .iter()
            .map(|each| format!("{:.2} x", each.ratio));
        row("ratio", ratios.collect())
    }
}

impl Latency {
    fn cells(&self) -> [String; 6] {
        [
            grouped(self.count),
            millis(self.p50_us),
            millis(self.p90_us),
            millis(self.p99_us),
            millis(self.p999_us),
            millis(self.max_us),
        ]
    }
}

fn write_row(out: &mut dyn Write, name: &str, cells: &[String]) -> io::Result<()> {
    write!(out, "  {name:<4}")?;
    for cell in cells {
        write!(out, "  {cell:>CELL_WIDTH$}")?;
    }
    writeln!(out)
}

fn throughput(outcome: &Outcome) -> f64 {
    if outcome.elapsed.is_zero() {
        0.0
    } else {
        outcome.tally.done() as f64 / outcome.elapsed.as_secs_f64()
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.as_slice() {
        [] => 0.0,
        odd if odd.len() % 2 == 1 => odd[middle],
        even => f64::midpoint(even[middle - 1], even[middle]),
    }
}

fn micros(duration: Duration) -> f64 {
    tenths(duration.as_nanos() as f64 / 1000.0)
}

/// Finer than what is measured, and JSON stays readable.
fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

fn examples(kinds: &Kinds) -> Vec<String> {
    let lines = kinds
        .0
        .values()
        .map(|seen| format!("{} x {}", seen.count, seen.example));
    lines.collect()
}

fn millis(micros: f64) -> String {
    format!("{:.3}", micros / 1000.0)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "not negative, and a float cast saturates"
)]
fn rounded(number: f64) -> String {
    grouped(number.round() as u64)
}

const CELL_WIDTH: usize = 11;

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(requests: u64, seconds: u64) -> Outcome {
        let mut tally = Tally::new();
        tally.succeeded(Kind::Get, requests, Duration::from_micros(1500));
        tally.hits = requests / 4;
        tally.misses = requests - requests / 4;
        tally.failed(Some(b"NOQUORUM 1 of 2"), Duration::from_secs(2));
        Outcome {
            tally,
            elapsed: Duration::from_secs(seconds),
            unsent: 0,
        }
    }

    fn report(json: bool) -> String {
        use clap::Parser;

        #[derive(Debug, Parser)]
        struct Cli {
            #[command(flatten)]
            bench: BenchArgs,
        }

        let mut rounds = Rounds::new(["a:1", "b:2"].map(str::to_owned).into_iter());
        for requests in [1000, 4000, 2000] {
            rounds.add(0, outcome(requests, 1));
            rounds.add(1, outcome(requests, 2));
        }
        let report = rounds.report(&Cli::parse_from(["bench"]).bench);
        let mut out = Vec::new();
        if json {
            report.write_json(&mut out).unwrap();
        } else {
            report.write_table(&mut out).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_names_are_stable() {
        let text = report(true);
        assert_eq!(text.lines().count(), 1);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let order: Vec<_> = json["rounds"].as_array().unwrap().iter().collect();
        let order: Vec<_> = order
            .iter()
            .map(|each| each["target"].as_str().unwrap())
            .collect();
        assert_eq!(order, ["a:1", "b:2", "a:1", "b:2", "a:1", "b:2"]);
        assert_eq!(json["rounds"][2]["round"], 2);
        assert_eq!(json["rounds"][2]["throughput"], 4000.0);
        let target = &json["targets"][0];
        assert_eq!(target["throughput"], 2000.0);
        assert_eq!(target["get"]["count"], 7000);
        for quantile in ["p50_us", "p90_us", "p99_us", "p999_us", "max_us"] {
            assert_eq!(target["get"][quantile], 1500.0, "{quantile}");
        }
        assert_eq!(target["set"]["count"], 0);
        assert_eq!(target["hits"], 1750);
        assert_eq!(target["misses"], 5250);
        assert_eq!(target["hit_ratio"], 0.25);
        assert_eq!(target["failed"], 3);
        assert_eq!(target["longest_us"], 2e6);
        assert_eq!(target["errors"], serde_json::json!({"NOQUORUM": 3}));
        assert_eq!(target["connection_errors"], serde_json::json!({}));
        assert_eq!(json["ratios"][1]["target"], "b:2");
        assert_eq!(json["ratios"][1]["ratio"], 0.5);
    }

    #[test]
    fn the_table_tells_what_people_look_for() {
        let text = report(false);
        for line in [
            "  throughput  2,000 requests/s",
            "  GET         7,000        1.500        1.500        1.500        1.500        1.500",
            "  hit ratio   0.2500 (1,750 hits, 5,250 misses)",
            "  longest     2000.000 ms, failed ones too",
            "  failed      3",
            "    3 x NOQUORUM 1 of 2",
            "round 2              4,000        2,000",
            "median               2,000        1,000",
            "ratio               1.00 x       0.50 x",
        ] {
            assert!(text.lines().any(|each| each == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn medians_of_even_and_odd_counts() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }
}
