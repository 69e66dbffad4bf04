//! How even placement is, how much a join and a leave move, and what it costs to compute.

use std::io::Write;

use quorate::env::{Clock, SystemClock};
use quorate::model::NodeId;
use quorate::ring::{Candidate, Partitions, Placement};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = &mut std::io::stdout().lock();
    let partitions = Partitions::new(4_096)?;
    writeln!(
        out,
        "Q = 4096, n = 3, equal members; moved: times the least that must move"
    )?;
    writeln!(
        out,
        "members  max/mean  moved by a join  moved by a leave  ms to compute"
    )?;
    for count in [3, 5, 10, 30, 100, 300, 1_000] {
        let names = (0..=count).map(|number| format!("node-{number}").parse());
        let names: Vec<NodeId> = names.collect::<Result<_, _>>()?;
        let member = |name: &NodeId| Candidate {
            tag: name.tag(),
            weight: 1,
            zone: "",
        };
        let members: Vec<_> = names.iter().map(member).collect();
        let start = SystemClock.monotonic();
        let before = Placement::new(&members[..count], 3, partitions);
        let took = SystemClock.monotonic() - start;
        let after = Placement::new(&members, 3, partitions);
        let held = members[..count]
            .iter()
            .map(|member| before.homes_held(member.tag));
        let most = ratio(held.max().unwrap_or(0) * count, 4_096 * 3);
        let least = after.homes_held(members[count].tag);
        let join = ratio(moved(partitions, &before, &after), least);
        let leave = ratio(moved(partitions, &after, &before), least);
        let ms = took.as_secs_f64() * 1e3;
        writeln!(
            out,
            "{count:>7}  {most:>8.3}  {join:>15.3}  {leave:>16.3}  {ms:>13.1}"
        )?;
    }
    Ok(())
}

/// Homes of `after` that were no homes before.
fn moved(partitions: Partitions, before: &Placement, after: &Placement) -> usize {
    let fresh = |p| {
        after
            .homes(p)
            .iter()
            .filter(|home| !before.homes(p).contains(home))
            .count()
    };
    partitions.all().map(fresh).sum()
}

#[expect(clippy::cast_precision_loss, reason = "small counts")]
fn ratio(a: usize, b: usize) -> f64 {
    a as f64 / b as f64
}
