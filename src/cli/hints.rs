//! `quorate hints`: what a node holds for others, and how it gives it back.

use std::io::Write;

use anyhow::bail;
use clap::{Args, Subcommand};

use super::admin::AdminArgs;
use super::ring::repeat;
use super::table::{Table, bytes, duration};
use crate::front::admin::{AdminReply, AdminRequest};
use crate::node::handoff::{HintsReport, HomeHints};

/// Show the hints that a node holds for others.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  quorate hints\n  quorate hints --json\n  \
    quorate hints --watch --socket ./quorate-dev/node-0/admin.sock\n  \
    quorate hints replay cache-2\n  quorate hints drop cache-2 --yes"
)]
pub struct HintsArgs {
    #[command(subcommand)]
    command: Option<HintsCommand>,
    #[command(flatten)]
    admin: AdminArgs,
    /// Show it again every second.
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, Subcommand)]
enum HintsCommand {
    /// Give the hints for a node back now, without waiting for the next attempt.
    #[command(after_help = "Example:\n  quorate hints replay cache-2")]
    Replay(HomeArgs),
    /// Drop the hints for a node: it will miss those writes until reads or repair bring them.
    #[command(
        after_help = "Examples:\n  quorate hints drop cache-2        (tells what it would do)\n  \
        quorate hints drop cache-2 --yes"
    )]
    Drop(DropArgs),
}

/// Whose hints.
#[derive(Debug, Args)]
struct HomeArgs {
    /// The node they are for, as `quorate hints` names it.
    node: String,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Whose hints, and whether that is meant.
#[derive(Debug, Args)]
struct DropArgs {
    #[command(flatten)]
    home: HomeArgs,
    /// Do it. Without, it only says what it would do.
    #[arg(long)]
    yes: bool,
}

/// Runs the subcommand.
pub fn run(args: &HintsArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    match &args.command {
        None => repeat(&args.admin, args.watch, out, show),
        Some(HintsCommand::Replay(home)) => replay(home, out),
        Some(HintsCommand::Drop(args)) => drop_hints(args, out),
    }
}

fn report(admin: &AdminArgs) -> anyhow::Result<HintsReport> {
    match admin.ask(&AdminRequest::Hints)? {
        AdminReply::Hints(report) => Ok(report),
        _ => bail!("the node gave an answer of another kind: it is of another version"),
    }
}

fn show(admin: &AdminArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let report = report(admin)?;
    if admin.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
        return Ok(());
    }
    print(&report, out)
}

fn print(report: &HintsReport, out: &mut dyn Write) -> anyhow::Result<()> {
    writeln!(
        out,
        "{} holds {} hints for others, {} of {}; {} given back, {} too old, {} damaged",
        report.self_id,
        report.count,
        bytes(report.bytes),
        bytes(report.bytes_max),
        report.replayed,
        report.too_old,
        report.damaged,
    )?;
    if let Some(error) = &report.disk_error {
        writeln!(out, "its disk takes no hints: {error}")?;
    }
    if report.homes.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&[
        "FOR",
        "REACHABLE",
        "HINTS",
        "SIZE",
        "OLDEST",
        "GIVEN BACK",
        "RATE",
        "ETA",
        "LAST ERROR",
    ]);
    for home in &report.homes {
        let rate = match home.replay_bytes_per_s {
            0 => "-".to_owned(),
            rate => format!("{}/s", bytes(rate)),
        };
        table.push(
            vec![
                home.node.clone(),
                if home.reachable { "yes" } else { "NO" }.to_owned(),
                home.count.to_string(),
                bytes(home.bytes),
                duration(home.oldest_s),
                progress(home),
                rate,
                home.eta_s.map_or_else(|| "-".to_owned(), duration),
                home.last_error.clone().unwrap_or_else(|| "-".to_owned()),
            ],
            !home.reachable,
        );
    }
    table.print(out)?;
    Ok(())
}

/// How much of the present replay is done.
fn progress(home: &HomeHints) -> String {
    let HomeHints {
        replayed, count, ..
    } = *home;
    if replayed == 0 {
        return "-".to_owned();
    }
    let percent = replayed * 100 / (replayed + count).max(1);
    let done = usize::try_from(percent / 10).unwrap_or(0).min(10);
    format!(
        "{replayed} [{}{}] {percent} %",
        "#".repeat(done),
        ".".repeat(10 - done)
    )
}

fn replay(args: &HomeArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let node = args.node.clone();
    let count = count(&args.admin, &AdminRequest::HintsReplay { node })?;
    if args.admin.json {
        writeln!(out, "{{\"replaying\":{count}}}")?;
        return Ok(());
    }
    writeln!(
        out,
        "giving {count} hints back to {}, as soon as it can be reached; watch it with \
         `quorate hints --watch`",
        args.node
    )?;
    Ok(())
}

fn drop_hints(args: &DropArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let HomeArgs { node, admin } = &args.home;
    if !args.yes {
        let report = report(admin)?;
        let hints = report.homes.iter().find(|home| home.node == *node);
        let count = hints.map_or(0, |home| home.count);
        bail!(
            "this would drop {count} hints: writes that {node} has missed and that this node \
             alone may hold; add --yes to do it"
        );
    }
    let node = node.clone();
    let count = count(admin, &AdminRequest::HintsDrop { node })?;
    if admin.json {
        writeln!(out, "{{\"dropped\":{count}}}")?;
        return Ok(());
    }
    writeln!(out, "dropped {count} hints for {}", args.home.node)?;
    Ok(())
}

fn count(admin: &AdminArgs, request: &AdminRequest) -> anyhow::Result<u64> {
    match admin.ask(request)? {
        AdminReply::HintsCount(count) => Ok(count),
        _ => bail!("the node gave an answer of another kind: it is of another version"),
    }
}
