//! `quorate bench`: a load generator for any server that speaks RESP2.
//!
//! One thread drives many connections. Each connection sends a batch, waits for its replies, and
//! sends the next, so the number of requests under way is connections times pipeline. Per batch
//! that is one write, as few reads as possible and two looks at the clock.

mod args;
mod commands;
mod connection;
mod exchange;
mod pace;
mod plan;
mod progress;
mod record;
mod replay;
mod report;
mod round;
mod scanner;
mod socket;
mod trace;
mod workload;
mod zipf;

#[cfg(test)]
mod tests;

pub use args::BenchArgs;

use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::error::ErrorKind;

use self::args::TargetGroup;
use self::plan::{Job, Plan};
use self::progress::Progress;
use self::report::Rounds;
use self::round::Outcome;
use self::socket::{Loss, PASSWORD_VARIABLE};

/// Runs the load that `args` asks for and writes the figures to `out`. Blocks until it is done.
///
/// Progress goes to `progress`, once a second on one line: for a terminal only.
///
/// # Errors
/// When nothing could be measured, or a trace cannot be read: one line that says why. Arguments
/// that do not go together are a [`clap::Error`] inside: wrong usage.
pub fn run(
    args: &BenchArgs,
    out: &mut dyn Write,
    progress: Option<&mut dyn Write>,
) -> anyhow::Result<()> {
    let password = std::env::var(PASSWORD_VARIABLE).ok();
    let plan = Plan::new(args, password)
        .map_err(|problem| clap::Error::raw(ErrorKind::ValueValidation, format!("{problem}\n")))?;
    let rounds = measure(&plan, &mut Progress::new(progress))?;
    let report = rounds.report(args);
    let written = if args.json {
        report.write_json(out)
    } else {
        report.write_table(out)
    };
    written.context("cannot write the figures")
}

fn measure(plan: &Plan, progress: &mut Progress<'_>) -> anyhow::Result<Rounds> {
    // All of them first: half a comparison is worth nothing.
    for group in &plan.groups {
        check_reachable(plan, group)?;
    }
    let mut rounds = Rounds::new(plan.groups.iter().map(TargetGroup::to_string));
    for round in 0..plan.rounds {
        for (index, group) in plan.groups.iter().enumerate() {
            if let Some(populate) = &plan.populate
                && (round == 0 || plan.populate_each_round)
            {
                succeed(plan, populate, group, progress).context("cannot write the keys first")?;
            }
            rounds.add(index, succeed(plan, &plan.measure, group, progress)?);
        }
    }
    Ok(rounds)
}

/// With several servers in a group, the one that answers is enough: losing some is a use of this
/// tool, and shows in the figures.
fn check_reachable(plan: &Plan, group: &TargetGroup) -> anyhow::Result<()> {
    let missing = round::probe(plan, group)?;
    let (target, loss) = match missing.first() {
        Some(first) if missing.len() == group.0.len() => first,
        _ => return Ok(()),
    };
    match loss {
        // These say themselves what to do.
        Loss::PasswordNeeded | Loss::PasswordRefused(_) => bail!("cannot use {target}: {loss}"),
        Loss::Io(_) | Loss::Closed | Loss::Silent(_) | Loss::Malformed(_) => bail!(
            "cannot use {target}: {loss}; is a server running there? Start one with \
             `quorate dev`, or name another one with --target"
        ),
    }
}

/// Does a job; an error when not one request succeeded.
fn succeed(
    plan: &Plan,
    job: &Arc<Job>,
    group: &TargetGroup,
    progress: &mut Progress<'_>,
) -> anyhow::Result<Outcome> {
    let outcome = round::run(plan, job, group, progress)?;
    let tally = &outcome.tally;
    if tally.done() > 0 {
        return Ok(outcome);
    }
    let mut seen = tally
        .errors
        .0
        .values()
        .chain(tally.connection_errors.0.values());
    let reason = seen.next().map_or(
        "none was sent; is the trace empty, the duration too short?",
        |first| first.example.as_str(),
    );
    bail!("no request to {group} succeeded: {reason}")
}
