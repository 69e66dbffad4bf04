//! `quorate slowlog`: which requests were slow or failed, and why.

use std::io::Write;

use anyhow::bail;
use clap::Args;

use super::admin::AdminArgs;
use super::table::Table;
use crate::front::admin::{AdminReply, AdminRequest};
use crate::front::resp_server::SlowEntry;
use crate::model::Millis;
use crate::net::utc_text;

/// Show the requests of a node that were slow or failed, the newest first.
#[derive(Debug, Args)]
#[command(
    after_help = "Slow is what took longer than slowlog_threshold (100ms), with all that was sent \
    in one go with it. Keys are shown only where slowlog_keys = true.\n\nExamples:\n  \
    quorate slowlog\n  quorate slowlog --count 100 --json\n  quorate slowlog --failed\n  \
    quorate slowlog --clear"
)]
pub struct SlowlogArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How many
    #[arg(long, default_value_t = 20)]
    count: usize,
    /// Only those that failed
    #[arg(long)]
    failed: bool,
    /// Forget all of them
    #[arg(long, conflicts_with_all = ["count", "failed"])]
    clear: bool,
}

/// Runs the subcommand.
pub fn run(args: &SlowlogArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    if args.clear {
        let AdminReply::SlowCleared(count) = args.admin.ask(&AdminRequest::SlowClear)? else {
            bail!("the node gave an answer of another kind: it is of another version");
        };
        writeln!(out, "{count} entries forgotten")?;
        return Ok(());
    }
    let count = if args.failed { usize::MAX } else { args.count };
    let AdminReply::Slow(mut entries) = args.admin.ask(&AdminRequest::Slow { count })? else {
        bail!("the node gave an answer of another kind: it is of another version");
    };
    if args.failed {
        entries.retain(|entry| entry.error.is_some());
        entries.truncate(args.count);
    }
    if args.admin.json {
        writeln!(out, "{}", serde_json::to_string(&entries)?)?;
        return Ok(());
    }
    if entries.is_empty() {
        writeln!(out, "nothing was slow or failed")?;
        return Ok(());
    }
    let mut table = Table::new(&[
        "AT",
        "TOOK",
        "COMMANDS",
        "LEVEL",
        "CLIENT",
        "PARTITION",
        "KEY",
        "HOMES",
        "ERROR",
    ]);
    for entry in &entries {
        table.push(row(entry), entry.error.is_some());
    }
    table.print(out)?;
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "for people to read, one digit")]
fn row(entry: &SlowEntry) -> Vec<String> {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let took = match entry.took_us {
        0 => "-".to_owned(),
        us => format!("{:.1} ms", us as f64 / 1e3),
    };
    let homes = match entry.homes.is_empty() {
        true => "-".to_owned(),
        false => entry.homes.join(", "),
    };
    vec![
        utc_text(Millis(entry.at_ms)),
        took,
        entry.commands.clone(),
        or_dash(&entry.level),
        entry.client.clone(),
        entry
            .partition
            .map_or_else(|| "-".to_owned(), |p| p.to_string()),
        or_dash(&entry.key),
        homes,
        or_dash(&entry.error),
    ]
}
