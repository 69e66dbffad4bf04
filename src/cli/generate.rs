//! `quorate completions` and `quorate man`: made from the command line's own definition.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

/// Print the completions for a shell.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  quorate completions bash > \
    /usr/share/bash-completion/completions/quorate\n  quorate completions zsh > \
    /usr/share/zsh/vendor-completions/_quorate\n  quorate completions fish > \
    ~/.config/fish/completions/quorate.fish")]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Write the manual pages of all subcommands.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quorate man --dir /usr/local/share/man/man1\n  \
    quorate man --dir . && man ./quorate-ring-status.1"
)]
pub struct ManArgs {
    /// Where to write them; made when it is missing
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

/// Prints completions.
pub fn completions(args: &CompletionsArgs, mut out: &mut dyn Write) {
    clap_complete::generate(args.shell, &mut Cli::command(), "quorate", &mut out);
}

/// Writes manual pages.
pub fn man(args: &ManArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let dir = &args.dir;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    clap_mangen::generate_to(Cli::command(), dir)
        .with_context(|| format!("cannot write into {}", dir.display()))?;
    writeln!(out, "manual pages written to {}", dir.display())?;
    Ok(())
}
