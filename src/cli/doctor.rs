//! `quorate doctor`: what is wrong, and what to do about it.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;

use super::admin::AdminArgs;
use super::run::check_files;
use crate::config::{Checked, Settings, Sources};
use crate::env::{Clock, SystemClock};
use crate::front::admin::{AdminReply, AdminRequest};
use crate::front::doctor::{DoctorReport, Finding, Severity};

/// Look for what is wrong with a node and its cluster, and say what to do. Exits 1 on any problem.
#[derive(Debug, Args)]
#[command(
    after_help = "Looks at: reachability, refused connections, parameters, quorums, agreement on the ring, clocks, \
    certificates, disk, file limits, UDP buffers, ports, memory, replicas, failed requests. \
    Without a running node it looks at what the configuration names.\n\nExamples:\n  \
    quorate doctor\n  quorate doctor --json\n  quorate doctor --all --socket \
    ./quorate-dev/node-0/admin.sock\n  quorate doctor --connect 10.0.0.6:7479 --certs ./certs --as \
    ops"
)]
pub struct DoctorArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Show what is well, too
    #[arg(long)]
    all: bool,
    /// The configuration to look at when no node answers
    #[arg(long, value_name = "FILE", default_value = "/etc/quorate/quorate.toml")]
    config: PathBuf,
}

/// Runs the subcommand.
pub fn run(args: &DoctorArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let report = match args.admin.ask(&AdminRequest::Doctor) {
        Ok(AdminReply::Doctor(report)) => report,
        Ok(_) => bail!("the node gave an answer of another kind: it is of another version"),
        // What is configured here says nothing of a node elsewhere.
        Err(error) if args.admin.is_elsewhere() => return Err(error),
        Err(error) => without_node(&error, &args.config),
    };
    if args.admin.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        print(&report, args.all, out)?;
    }
    let is_problem = |finding: &&Finding| finding.severity == Severity::Problem;
    match report.findings.iter().filter(is_problem).count() {
        0 => Ok(()),
        1 => bail!("1 problem found"),
        problems => bail!("{problems} problems found"),
    }
}

/// No node answers: that is the first finding, and what it would start from are the others.
fn without_node(error: &anyhow::Error, config: &Path) -> DoctorReport {
    let mut findings = vec![Finding::problem(
        "node",
        format!("{error:#}"),
        "`systemctl status quorate` and `journalctl -u quorate` tell why it does not run",
    )];
    if config.exists() {
        findings.extend(without_node_from(config));
    }
    DoctorReport {
        self_id: String::new(),
        findings,
    }
}

fn without_node_from(config: &Path) -> Vec<Finding> {
    const CHECK: &str = "configuration";
    let advice = "put it right: `quorate config check FILE` says the same";
    let loaded = Sources::read(Some(config), Vec::new());
    let Checked { settings, warnings } = match loaded.and_then(|sources| Settings::load(&sources)) {
        Ok(checked) => checked,
        Err(error) => return vec![Finding::problem(CHECK, error.to_string(), advice)],
    };
    let mut findings: Vec<_> = warnings
        .iter()
        .map(|warning| Finding::warning(CHECK, warning.to_string(), advice))
        .collect();
    if let Err(error) = check_files(&settings, SystemClock.wall()) {
        let found = format!("{error:#}");
        let advice = "put the files right: certs/README.md says how they are made";
        findings.push(Finding::problem("certificates", found, advice));
    }
    if findings.is_empty() {
        let found = format!("{} and the files it names are good", config.display());
        findings.push(Finding::ok(CHECK, found));
    }
    findings
}

fn print(report: &DoctorReport, all: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let is_coloured = std::io::stdout().is_terminal();
    for finding in &report.findings {
        if finding.severity == Severity::Ok && !all {
            continue;
        }
        let (word, colour) = match finding.severity {
            Severity::Ok => ("ok", "32"),
            Severity::Warning => ("warning", "33"),
            Severity::Problem => ("PROBLEM", "31"),
        };
        if is_coloured {
            write!(out, "\x1b[{colour}m{word}\x1b[0m")?;
        } else {
            write!(out, "{word}")?;
        }
        writeln!(out, " {}: {}", finding.check, finding.found)?;
        if let Some(advice) = &finding.advice {
            writeln!(out, "    {advice}")?;
        }
    }
    let well = report.findings.iter();
    let well = well.filter(|finding| finding.severity == Severity::Ok);
    let well: Vec<_> = well.map(|finding| finding.check.as_str()).collect();
    if !all && !well.is_empty() {
        writeln!(out, "ok: {}", well.join(", "))?;
    }
    Ok(())
}
