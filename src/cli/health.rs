//! `quorate health` and `quorate drain`: for containers, which have no `curl`.

use std::io::Write;

use anyhow::bail;
use clap::Args;

use super::admin::AdminArgs;
use crate::front::admin::{AdminReply, AdminRequest};

/// Whether a node is alive; exits 1 if it is not.
#[derive(Debug, Args)]
#[command(
    after_help = "Asks the node as all commands do, so that it works where there is no HTTP client: \
    health checks of containers, exec probes.\n\nExamples:\n  quorate health\n  quorate health --ready"
)]
pub struct HealthArgs {
    /// Whether it can serve all keys, as /readyz tells: enough nodes, caught up, not stopping
    #[arg(long)]
    ready: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Tell the other nodes that this one is about to stop: they ask it no more, and others stand in
/// for it. Its own clients are served until it stops.
#[derive(Debug, Args)]
#[command(
    after_help = "SIGTERM does the same and more. This is for what comes before it, a preStop hook \
    say.\n\nExamples:\n  quorate drain\n  quorate drain --undo"
)]
pub struct DrainArgs {
    /// It goes on after all
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Tells whether the node is alive, or ready.
pub fn health(args: &HealthArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let AdminReply::Ready(not_ready) = args.admin.ask(&AdminRequest::Ready)? else {
        bail!("the node gave an answer of another kind: it is of another version");
    };
    if args.admin.json {
        let answer =
            serde_json::json!({ "alive": true, "ready": not_ready.is_none(), "why": not_ready });
        writeln!(out, "{answer}")?;
    }
    match not_ready {
        Some(why) if args.ready => bail!("not ready: {why}"),
        _ if args.admin.json => Ok(()),
        Some(why) => Ok(writeln!(out, "alive, not ready: {why}")?),
        None => Ok(writeln!(out, "alive, ready")?),
    }
}

/// Tells the others.
pub fn drain(args: &DrainArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let request = AdminRequest::Drain {
        is_stopping: !args.undo,
    };
    let AdminReply::Drained = args.admin.ask(&request)? else {
        bail!("the node gave an answer of another kind: it is of another version");
    };
    if args.admin.json {
        writeln!(out, "{}", serde_json::json!({ "stopping": !args.undo }))?;
    } else if args.undo {
        writeln!(out, "the other nodes ask this one again")?;
    } else {
        writeln!(out, "the other nodes ask this one no more")?;
    }
    Ok(())
}
