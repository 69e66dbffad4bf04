//! `quorate repair`: how far a node's replicas agree with others, and comparisons on demand.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};

use super::admin::AdminArgs;
use super::ring::repeat;
use super::table::{Table, bytes, duration};
use crate::front::admin::{AdminReply, AdminRequest};
use crate::node::anti_entropy::{PeerRepair, RepairReport};

/// Show how far a node's replicas agree with others, or compare them now.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  quorate repair status\n  quorate repair status --watch\n  \
    quorate repair run --peer cache-2\n  quorate repair run --partition 412 --json"
)]
pub struct RepairArgs {
    #[command(subcommand)]
    command: Option<RepairCommand>,
    #[command(flatten)]
    status: StatusArgs,
}

#[derive(Debug, Subcommand)]
enum RepairCommand {
    /// Show agreement, differences and sessions, peer by peer.
    #[command(after_help = "Examples:\n  quorate repair status\n  \
        quorate repair status --watch --socket ./quorate-dev/node-0/admin.sock")]
    Status(StatusArgs),
    /// Compare partitions with their other homes now and repair what differs; wait for the end.
    #[command(after_help = "Examples:\n  quorate repair run\n  \
        quorate repair run --peer cache-2\n  quorate repair run --partition 412 --json")]
    Run(RunArgs),
}

/// What to show, and how often.
#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Show it again every second.
    #[arg(long)]
    watch: bool,
}

/// What to compare.
#[derive(Debug, Args)]
struct RunArgs {
    /// This partition only (`quorate ring owners KEY` tells that of a key).
    #[arg(long, value_name = "P")]
    partition: Option<u16>,
    /// With this node only.
    #[arg(long, value_name = "NODE")]
    peer: Option<String>,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Runs the subcommand.
pub fn run(args: &RepairArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    match &args.command {
        None => repeat(&args.status.admin, args.status.watch, out, show),
        Some(RepairCommand::Status(status)) => repeat(&status.admin, status.watch, out, show),
        Some(RepairCommand::Run(args)) => compare(args, out),
    }
}

fn report(admin: &AdminArgs) -> anyhow::Result<RepairReport> {
    match admin.ask(&AdminRequest::Repairs)? {
        AdminReply::Repairs(report) => Ok(report),
        _ => bail!("the node gave an answer of another kind: it is of another version"),
    }
}

fn show(admin: &AdminArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let report = report(admin)?;
    if admin.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
        return Ok(());
    }
    writeln!(
        out,
        "{} agrees in {} of {} partitions with their other homes; {} differences found, {} records \
         repaired, {} sessions, {} to compare, {} of records; {} tombstones purged, {} records damaged",
        report.self_id,
        report.in_agreement,
        report.total,
        report.differences,
        report.fixed,
        report.sessions,
        bytes(report.compare_bytes),
        bytes(report.record_bytes),
        report.tombstones_purged,
        report.damaged_records,
    )?;
    let mut table = Table::new(&[
        "WITH",
        "REACHABLE",
        "AGREE",
        "COMPARED",
        "DIFFERENCES",
        "REPAIRED",
        "SESSIONS",
        "WAITING",
        "BYTES",
        "ETA",
        "LAST ERROR",
    ]);
    for peer in &report.peers {
        let is_well = peer.reachable && peer.in_agreement == peer.partitions;
        table.push(row(peer), !is_well);
    }
    table.print(out)?;
    Ok(())
}

fn row(peer: &PeerRepair) -> Vec<String> {
    let ago = |s: u64| format!("{} ago", duration(s));
    vec![
        peer.node.clone(),
        if peer.reachable { "yes" } else { "NO" }.to_owned(),
        format!("{}/{}", peer.in_agreement, peer.partitions),
        peer.compared_s_ago.map_or_else(|| "-".to_owned(), ago),
        peer.differences.to_string(),
        peer.fixed.to_string(),
        peer.sessions.to_string(),
        peer.queued.to_string(),
        bytes(peer.bytes),
        peer.eta_s.map_or_else(|| "-".to_owned(), duration),
        peer.last_error.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

fn compare(args: &RunArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let before = report(&args.admin)?;
    let request = AdminRequest::RepairRun {
        partition: args.partition,
        peer: args.peer.clone(),
    };
    let AdminReply::RepairCount(count) = args.admin.ask(&request)? else {
        bail!("the node gave an answer of another kind: it is of another version");
    };
    let is_shown = !args.admin.json && std::io::stderr().is_terminal();
    let after = loop {
        let now = report(&args.admin)?;
        let ended = now.sessions + now.failed - before.sessions - before.failed;
        let ended = usize::try_from(ended).unwrap_or(count).min(count);
        if is_shown {
            bar(ended, count)?;
        }
        if now.wanted == 0 {
            break now;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "a command of its own process, without a runtime"
        )]
        std::thread::sleep(POLL);
    };
    if is_shown {
        writeln!(std::io::stderr())?;
    }
    let (differences, fixed) = (
        after.differences - before.differences,
        after.fixed - before.fixed,
    );
    let failed = after.failed - before.failed;
    if args.admin.json {
        writeln!(
            out,
            "{{\"sessions\":{count},\"failed\":{failed},\"differences\":{differences},\"fixed\":{fixed}}}"
        )?;
    } else {
        writeln!(
            out,
            "{count} comparisons: {differences} differences found, {fixed} records repaired"
        )?;
    }
    if failed > 0 {
        let errors = after.peers.iter().filter_map(|peer| {
            let why = peer.last_error.as_ref()?;
            Some(format!("{}: {why}", peer.node))
        });
        let why = errors.collect::<Vec<_>>().join("; ");
        bail!(
            "{failed} of {count} comparisons failed ({why}); run it again once the node can be reached"
        );
    }
    Ok(())
}

fn bar(ended: usize, count: usize) -> std::io::Result<()> {
    let percent = (ended * 100).checked_div(count).unwrap_or(100);
    let done = percent / 5;
    let mut err = std::io::stderr();
    write!(
        err,
        "\r[{}{}] {percent:>3} % {ended} of {count}",
        "#".repeat(done),
        ".".repeat(20 - done)
    )?;
    err.flush()
}

const POLL: Duration = Duration::from_millis(200);
