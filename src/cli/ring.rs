//! `quorate ring`: the ring as a node sees it, asked through its admin socket.

use std::io::{IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::table::{Table, bytes, duration};
use crate::front::admin::{self, AdminReply, AdminRequest};
use crate::node::status::RingStatus;

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

/// How to reach the node and how to print.
#[derive(Debug, Args)]
pub struct AdminArgs {
    /// The node's admin socket.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub(super) socket: PathBuf,
    /// Print one JSON document.
    #[arg(long)]
    pub(super) json: bool,
}

/// Runs the subcommand.
pub fn run(command: &RingCommand, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        RingCommand::Status(args) => status(args, out),
        RingCommand::Owners(args) => owners(args, out),
    }
}

fn status(args: &StatusArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    loop {
        let AdminReply::RingStatus(ring) = ask(&args.admin.socket, &AdminRequest::RingStatus)?
        else {
            bail!("the node gave an answer of another kind: it is of another version");
        };
        if args.watch && std::io::stdout().is_terminal() {
            // Home, and clear what is below.
            write!(out, "\x1b[H\x1b[2J")?;
        }
        if args.admin.json {
            writeln!(out, "{}", serde_json::to_string(&ring)?)?;
        } else {
            print_ring(&ring, out)?;
        }
        out.flush()?;
        if !args.watch {
            return Ok(());
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "a plain thread with nothing else to do"
        )]
        std::thread::sleep(WATCH_INTERVAL);
    }
}

fn owners(args: &OwnersArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let request = AdminRequest::RingOwners {
        key: args.key.clone(),
    };
    let AdminReply::RingOwners(owners) = ask(&args.admin.socket, &request)? else {
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
        "KEYS",
        "SIZE",
        "HINTS",
        "UPTIME",
        "VERSION",
    ]);
    for node in nodes {
        let zone = if node.zone.is_empty() {
            "-"
        } else {
            &node.zone
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
                node.keys.to_string(),
                bytes(node.bytes),
                node.hints_held.to_string(),
                node.uptime_s.map_or_else(|| "-".to_owned(), duration),
                node.version.clone(),
            ],
            !node.reachable,
        );
    }
    table.print(out)?;
    Ok(())
}

/// Asks a node through its admin socket.
pub(super) fn ask(socket: &Path, request: &AdminRequest) -> anyhow::Result<AdminReply> {
    let path = socket.display();
    let stream = UnixStream::connect(socket).with_context(|| {
        format!("cannot reach a node at {path}: is it running? name its socket with --socket")
    })?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let answer = admin::ask(&stream, request);
    match answer.with_context(|| format!("the node at {path} does not answer"))? {
        AdminReply::Error(message) => bail!("{message}"),
        reply => Ok(reply),
    }
}

/// Where a node that was installed as a service has it.
const DEFAULT_SOCKET: &str = "/var/lib/quorate/admin.sock";
const ANSWER_MAX: Duration = Duration::from_secs(5);
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
