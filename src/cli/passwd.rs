//! `quorate passwd`: the hash of a password, for `resp_password_file`.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{bail, ensure};
use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::front::resp_server::Password;

/// Hash a password for Redis clients (Argon2id): the content of `resp_password_file`.
#[derive(Debug, Args)]
#[command(
    after_help = "Reads the password from the terminal, twice and unseen, or one line from a pipe; \
    never from an argument, which others could see.\n\nExamples:\n  \
    quorate passwd > /etc/quorate/resp.password\n  \
    openssl rand -base64 24 | tee secret | quorate passwd > resp.password"
)]
pub struct PasswdArgs {}

/// Runs the subcommand.
pub fn run(_args: &PasswdArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let stdin = std::io::stdin();
    let password = if stdin.is_terminal() {
        let first = ask_unseen("Password: ")?;
        let second = ask_unseen("Again: ")?;
        ensure!(
            first == second,
            "the two are not the same: nothing was written"
        );
        first
    } else {
        line(&mut stdin.lock())?
    };
    if password.is_empty() {
        bail!("an empty password protects nothing: nothing was written");
    }
    writeln!(out, "{}", Password::hash(&password)?)?;
    Ok(())
}

fn line(input: &mut dyn BufRead) -> anyhow::Result<String> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn ask_unseen(prompt: &str) -> anyhow::Result<String> {
    let stdin = std::io::stdin();
    let mut err = std::io::stderr();
    write!(err, "{prompt}")?;
    err.flush()?;
    let before = tcgetattr(&stdin)?;
    let mut unseen = before.clone();
    unseen.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &unseen)?;
    let read = line(&mut stdin.lock());
    // In any case: a terminal that shows nothing any more is of no use.
    tcsetattr(&stdin, OptionalActions::Flush, &before)?;
    writeln!(err)?;
    read
}
