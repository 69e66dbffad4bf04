//! How even placement is, how much a join and a leave move, and how long it takes.
//!
//! `cargo bench --bench placement`, with the number of partitions as an argument if not 4096.

use std::io::{self, Write};
use std::time::Instant;

use quorate::model::NodeId;
use quorate::ring::{Candidate, Partitions, Placement};

const HOMES: u8 = 3;
/// One set of names says little: the bound is felt unevenly.
const TRIALS: u32 = 8;

fn main() -> anyhow::Result<()> {
    // Cargo itself adds `--bench`.
    let count = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let partitions = Partitions::new(count.map_or(Ok(4_096), |count| count.parse())?)?;
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{} partitions, n = {HOMES}, equal members",
        partitions.count()
    )?;
    writeln!(
        out,
        "fullest: times the mean; join, leave: homes moved, times the least possible;"
    )?;
    writeln!(
        out,
        "each from the best to the worst of {TRIALS} sets of names; ms: the slowest"
    )?;
    writeln!(
        out,
        "{:>7} {:>12} {:>12} {:>12} {:>8}",
        "members", "fullest", "join", "leave", "ms"
    )?;
    for members in [3, 5, 10, 30, 50, 99, 100, 101, 200, 300, 1_000] {
        let rows = (0..TRIALS).map(|trial| measure(members, trial, partitions));
        let rows: Vec<Row> = rows.collect::<anyhow::Result<_>>()?;
        let range = |value: fn(&Row) -> f64| {
            let worst = rows.iter().map(value).fold(f64::MIN, f64::max);
            let best = rows.iter().map(value).fold(f64::MAX, f64::min);
            format!("{best:.3}-{worst:.3}")
        };
        let millis = rows.iter().map(|row| row.millis).fold(0.0, f64::max);
        writeln!(
            out,
            "{members:>7} {:>12} {:>12} {:>12} {millis:>8.1}",
            range(|row| row.fullest),
            range(|row| row.join),
            range(|row| row.leave),
        )?;
    }
    Ok(())
}

struct Row {
    fullest: f64,
    join: f64,
    leave: f64,
    millis: f64,
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn measure(count: usize, trial: u32, partitions: Partitions) -> anyhow::Result<Row> {
    let member = |number: usize| {
        Ok(Candidate {
            tag: format!("node-{trial}-{number}").parse::<NodeId>()?.tag(),
            weight: 1,
            zone: "",
        })
    };
    let members: Vec<_> = (0..=count).map(member).collect::<anyhow::Result<_>>()?;
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    let few = Placement::new(&members[..count], HOMES, partitions);
    let millis = start.elapsed().as_secs_f64() * 1_000.0;
    let more = Placement::new(&members, HOMES, partitions);
    let held = members[..count]
        .iter()
        .map(|member| few.homes_held(member.tag));
    let mean = f64::from(partitions.count()) * f64::from(HOMES) / count as f64;
    // The least that can move is what the newcomer has in the end, or the leaver had.
    let least = more.homes_held(members[count].tag) as f64;
    Ok(Row {
        fullest: held.max().unwrap_or(0) as f64 / mean,
        join: moved(&few, &more, partitions) as f64 / least,
        leave: moved(&more, &few, partitions) as f64 / least,
        millis,
    })
}

/// Homes after that were none before.
fn moved(before: &Placement, after: &Placement, partitions: Partitions) -> usize {
    let new_homes = |partition| {
        let had = before.homes(partition);
        let has = after.homes(partition).iter();
        has.filter(|home| !had.contains(home)).count()
    };
    partitions.all().map(new_homes).sum()
}
