//! `quorate config`: the settings and whether they are right.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::bounds::Bounds;
use crate::config::{Checked, Settings, Sources};

/// Show and check configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print a configuration file with every key, its default and what it does.
    #[command(after_help = "Example:\n  quorate config default > quorate.toml")]
    Default,
    /// Check a configuration file, with the environment and --set on top of it.
    #[command(
        after_help = "Examples:\n  quorate config check /etc/quorate/quorate.toml\n  \
        quorate config check quorate.toml --set n=5"
    )]
    Check(CheckArgs),
}

/// Arguments of `config check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The file.
    file: PathBuf,
    /// A key to set on top of the file.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Runs the subcommand.
pub fn run(command: &ConfigCommand, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Default => write!(out, "{}", Settings::render_default())?,
        ConfigCommand::Check(args) => {
            let sources = Sources::read(Some(&args.file), args.set.clone())?;
            let Checked { warnings, settings } = Settings::load(&sources)?;
            for warning in &warnings {
                writeln!(out, "warning: {warning}")?;
            }
            writeln!(out, "{}: the configuration is good", args.file.display())?;
            write!(out, "{}", Bounds::of(&settings))?;
            writeln!(
                out,
                "these keys change on SIGHUP (systemctl reload quorate), all others with a \
                 restart: {}",
                Settings::reloadable().join(", ")
            )?;
        }
    }
    Ok(())
}
