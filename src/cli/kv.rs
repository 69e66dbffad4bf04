//! `quorate get`, `set`, `del`: single keys, asked through a node's admin socket.

use std::io::{Read, Write};

use anyhow::{bail, ensure};
use clap::Args;

use super::admin::AdminArgs;
use crate::front::admin::{AdminReply, AdminRequest};

/// Arguments of `get`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  quorate get user:42\n  quorate get user:42 --json")]
pub struct GetArgs {
    /// The key.
    key: String,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Arguments of `set`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quorate set user:42 Ada\n  quorate set user:42 Ada --ttl 60\n  \
    quorate set logo - < logo.png"
)]
pub struct SetArgs {
    /// The key.
    key: String,
    /// The value; `-` reads it from standard input.
    value: String,
    /// Seconds until it ends.
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u64>,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Arguments of `del`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  quorate del user:42 user:43")]
pub struct DelArgs {
    /// The keys.
    #[arg(required = true)]
    keys: Vec<String>,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Prints the value of a key; fails when there is none.
pub fn get(args: &GetArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let key = args.key.clone().into_bytes();
    let AdminReply::Value(value) = args.admin.ask(&AdminRequest::Get { key })? else {
        bail!(OTHER_VERSION);
    };
    if args.admin.json {
        let text = value.map(|value| String::from_utf8_lossy(&value).into_owned());
        writeln!(
            out,
            "{}",
            serde_json::json!({ "key": args.key, "value": text })
        )?;
        return Ok(());
    }
    match value {
        Some(value) => {
            out.write_all(&value)?;
            writeln!(out)?;
            Ok(())
        }
        None => bail!("there is no key `{}`", args.key),
    }
}

/// Sets a key.
pub fn set(args: &SetArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    ensure!(
        args.ttl != Some(0),
        "--ttl 0: a value has to live for at least a second"
    );
    let mut value = Vec::new();
    if args.value == "-" {
        std::io::stdin().lock().read_to_end(&mut value)?;
    } else {
        value = args.value.clone().into_bytes();
    }
    let ttl_ms = args.ttl.map(|seconds| seconds.saturating_mul(MS_A_SECOND));
    let request = AdminRequest::Set {
        key: args.key.clone().into_bytes(),
        value,
        ttl_ms,
    };
    let AdminReply::Written = args.admin.ask(&request)? else {
        bail!(OTHER_VERSION)
    };
    if args.admin.json {
        writeln!(
            out,
            "{}",
            serde_json::json!({ "key": args.key, "written": true })
        )?;
    } else {
        writeln!(out, "OK")?;
    }
    Ok(())
}

/// Deletes keys and tells how many there were.
pub fn del(args: &DelArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut deleted = 0;
    for key in &args.keys {
        let request = AdminRequest::Delete {
            key: key.clone().into_bytes(),
        };
        let AdminReply::Deleted(existed) = args.admin.ask(&request)? else {
            bail!(OTHER_VERSION);
        };
        deleted += u64::from(existed);
    }
    if args.admin.json {
        writeln!(out, "{}", serde_json::json!({ "deleted": deleted }))?;
    } else {
        writeln!(out, "{deleted}")?;
    }
    Ok(())
}

const OTHER_VERSION: &str = "the node gave an answer of another kind: it is of another version";
const MS_A_SECOND: u64 = 1_000;
