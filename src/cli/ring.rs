//! `quorate ring`: the ring as a node sees it, asked through its admin socket.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};

use super::admin::AdminArgs;
use super::table::{Table, bytes, duration};
use crate::front::admin::{AdminReply, AdminRequest};
use crate::front::certificates::WARN_DAYS;
use crate::node::staleness::StalenessReport;
use crate::node::status::{NodeRow, RingStatus};

/// Show the ring.
#[derive(Debug, Subcommand)]
pub enum RingCommand {
    /// Who is in the ring, who can be reached, who holds how much.
    #[command(
        after_help = "Examples:\n  quorate ring status\n  quorate ring status --json\n  \
        quorate ring status --watch --socket ./quorate-dev/node-0/admin.sock"
    )]
    Status(StatusArgs),
    /// Which nodes are home of a key, and who stands in for them.
    #[command(after_help = "Examples:\n  quorate ring owners user:42\n  \
        quorate ring owners user:42 --json")]
    Owners(OwnersArgs),
    /// How likely a read is fresh, a while after a write, as this node observes it.
    #[command(
        after_help = "Examples:\n  quorate ring staleness\n  quorate ring staleness --json\n  \
        quorate ring staleness --watch --socket ./quorate-dev/node-0/admin.sock"
    )]
    Staleness(StatusArgs),
}

/// Arguments of `ring status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Show it again every second.
    #[arg(long)]
    watch: bool,
}

/// Arguments of `ring owners`.
#[derive(Debug, Args)]
pub struct OwnersArgs {
    /// The key.
    key: String,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Runs the subcommand.
pub fn run(command: &RingCommand, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        RingCommand::Status(args) => repeat(&args.admin, args.watch, out, status),
        RingCommand::Owners(args) => owners(args, out),
        RingCommand::Staleness(args) => repeat(&args.admin, args.watch, out, staleness),
    }
}

/// Shows something once, or every second.
pub(super) fn repeat(
    admin: &AdminArgs,
    is_watched: bool,
    out: &mut dyn Write,
    show: fn(&AdminArgs, &mut dyn Write) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    loop {
        if is_watched && std::io::stdout().is_terminal() {
            // Home, and clear what is below.
            write!(out, "\x1b[H\x1b[2J")?;
        }
        show(admin, out)?;
        out.flush()?;
        if !is_watched {
            return Ok(());
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "a plain thread with nothing else to do"
        )]
        std::thread::sleep(WATCH_INTERVAL);
    }
}

fn status(args: &AdminArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let AdminReply::RingStatus(ring) = args.ask(&AdminRequest::RingStatus)? else {
        bail!("the node gave an answer of another kind: it is of another version");
    };
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&ring)?)?;
        return Ok(());
    }
    print_ring(&ring, out)
}

fn staleness(args: &AdminArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let AdminReply::RingStaleness(report) = args.ask(&AdminRequest::RingStaleness)? else {
        bail!("the node gave an answer of another kind: it is of another version");
    };
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
        return Ok(());
    }
    print_staleness(&report, out)
}

fn print_staleness(report: &StalenessReport, out: &mut dyn Write) -> anyhow::Result<()> {
    let StalenessReport { n, r, w, .. } = *report;
    writeln!(
        out,
        "n={n} r={r} w={w}: {} writes sampled, {} of {} reads saw replicas disagree",
        report.samples, report.reads_disagreed, report.reads
    )?;
    if report.samples == 0 {
        writeln!(
            out,
            "nothing to tell yet: this node has coordinated no write"
        )?;
        return Ok(());
    }
    let delay =
        |delay: Option<f64>| delay.map_or_else(|| "never".to_owned(), |ms| format!("{ms:.2} ms"));
    let delays = &report.delay_ms;
    writeln!(
        out,
        "homes follow a write's answer after: half {}, 99 % {}, 99.9 % {}",
        delay(delays.p50),
        delay(delays.p99),
        delay(delays.p999)
    )?;
    let columns = report.after_ms.iter().map(|ms| format!("{ms} ms"));
    let header: Vec<String> = ["R", "W"]
        .map(str::to_owned)
        .into_iter()
        .chain(columns)
        .collect();
    let mut table = Table::new(&header.iter().map(String::as_str).collect::<Vec<_>>());
    for fresh in &report.fresh {
        if fresh.probability.is_empty() {
            continue;
        }
        let is_configured = (fresh.r, fresh.w) == (r, w);
        let mark = if is_configured { "*" } else { "" };
        let mut cells = vec![fresh.r.to_string(), format!("{}{mark}", fresh.w)];
        let percent = |fresh: &f64| format!("{:.3} %", fresh * 100.0);
        cells.extend(fresh.probability.iter().map(percent));
        table.push(cells, false);
    }
    writeln!(
        out,
        "a read so long after a write is fresh with this probability (* as configured):"
    )?;
    table.print(out)?;
    Ok(())
}

fn owners(args: &OwnersArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let request = AdminRequest::RingOwners {
        key: args.key.clone(),
    };
    let AdminReply::RingOwners(owners) = args.admin.ask(&request)? else {
        bail!("the node gave an answer of another kind: it is of another version");
    };
    if args.admin.json {
        writeln!(out, "{}", serde_json::to_string(&owners)?)?;
        return Ok(());
    }
    writeln!(out, "key        {}", owners.key)?;
    writeln!(out, "partition  {}", owners.partition)?;
    writeln!(out, "homes      {}", owners.homes.join(" "))?;
    writeln!(out, "stand-ins  {}", owners.stand_ins.join(" "))?;
    Ok(())
}

/// Prints the ring for people; also what `dev` shows.
pub(super) fn print_ring(ring: &RingStatus, out: &mut dyn Write) -> anyhow::Result<()> {
    let RingStatus {
        cluster,
        self_id,
        partitions,
        n,
        r,
        w,
        ring_version,
        balance,
        nodes,
        refused,
        ready: _,
    } = ring;
    writeln!(
        out,
        "cluster {cluster}, seen by {self_id}: {partitions} partitions, n={n} r={r} w={w}, \
         balance {balance:.2}, ring {ring_version}"
    )?;
    let mut table = Table::new(&[
        "NODE",
        "ZONE",
        "ROLE",
        "STATE",
        "REACHABLE",
        "QUIC",
        "RESP",
        "PARTITIONS",
        "SHARE",
        "KEYS",
        "SIZE",
        "HINTS",
        "CERT",
        "UPTIME",
        "VERSION",
    ]);
    for node in nodes {
        let zone = match node.zone.as_str() {
            "" => "-",
            zone => zone,
        };
        table.push(
            vec![
                node.id.clone(),
                zone.to_owned(),
                node.role.clone(),
                node.state.clone(),
                if node.reachable { "yes" } else { "NO" }.to_owned(),
                node.quic.clone(),
                node.resp.clone(),
                node.partitions.to_string(),
                format!("{:.1} %", node.share * 100.0),
                node.keys.to_string(),
                bytes(node.bytes),
                node.hints_held.to_string(),
                certificate(node),
                node.uptime_s.map_or_else(|| "-".to_owned(), duration),
                node.version.clone(),
            ],
            !node.reachable || node.certificate_days.is_some_and(|days| days < WARN_DAYS),
        );
    }
    table.print(out)?;
    for refused in refused {
        writeln!(
            out,
            "{} is kept out of the ring for other parameters: `{}` there, `{}` here",
            refused.id, refused.theirs, refused.ours
        )?;
    }
    Ok(())
}

/// How long a node's certificate lasts.
fn certificate(node: &NodeRow) -> String {
    match node.certificate_days {
        None => "-".to_owned(),
        Some(days) if days < 0 => "EXPIRED".to_owned(),
        Some(days) => format!("{days}d"),
    }
}

const WATCH_INTERVAL: Duration = Duration::from_secs(1);
