//! Subcommands of `quorate`.

pub mod admin;
pub mod bench;
pub mod bounds;
pub mod certs;
pub mod config;
pub mod dev;
pub mod doctor;
pub mod generate;
pub mod health;
pub mod hints;
pub mod kv;
pub mod passwd;
pub mod repair;
pub mod ring;
pub mod run;
pub mod slowlog;
mod table;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser, Subcommand};

use crate::env::{Clock, SystemClock};

/// A leaderless peer-to-peer cache that speaks the Redis protocol.
#[derive(Debug, Parser)]
#[command(
    name = "quorate",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one node in the foreground.
    Run(run::RunArgs),
    /// Run a cluster on this machine, to try it.
    Dev(dev::DevArgs),
    /// Show the ring.
    #[command(subcommand)]
    Ring(ring::RingCommand),
    /// Show the hints that a node holds for others; give them back or drop them.
    Hints(hints::HintsArgs),
    /// Show how far a node's replicas agree with others; compare and repair them now.
    Repair(repair::RepairArgs),
    /// Look for what is wrong with a node and its cluster, and say what to do.
    Doctor(doctor::DoctorArgs),
    /// Tell whether a node is alive, and ready.
    Health(health::HealthArgs),
    /// Tell the other nodes that this one is about to stop.
    Drain(health::DrainArgs),
    /// Show the requests that were slow or failed.
    Slowlog(slowlog::SlowlogArgs),
    /// Make and show certificates.
    Certs(certs::CertsArgs),
    /// Show and check configuration.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Hash a password for Redis clients.
    Passwd(passwd::PasswdArgs),
    /// Measure the throughput and latency of a RESP server.
    Bench(Box<bench::BenchArgs>),
    /// Print the value of a key.
    Get(kv::GetArgs),
    /// Set a key.
    Set(kv::SetArgs),
    /// Delete keys.
    Del(kv::DelArgs),
    /// Print the completions for a shell.
    Completions(generate::CompletionsArgs),
    /// Write the manual pages.
    Man(generate::ManArgs),
}

/// The error with the subcommand that was most likely meant: letters that changed places, which
/// are the most frequent slip, are one mistake here, and two and more to clap.
fn corrected(mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(given)) = error.get(ContextKind::InvalidSubcommand) else {
        return error;
    };
    let given = given.clone();
    let mut command = Cli::command();
    for word in std::env::args().skip(1).take_while(|word| *word != given) {
        if let Some(sub) = command.find_subcommand(&word) {
            command = sub.clone();
        }
    }
    let names = command.get_subcommands().map(clap::Command::get_name);
    let likeness = |name: &str| strsim::normalized_damerau_levenshtein(&given, name);
    let likely = names
        .filter(|name| likeness(name) >= LIKENESS_MIN)
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    if let Some(name) = likely {
        let likely = ContextValue::Strings(vec![name.to_owned()]);
        error.insert(ContextKind::SuggestedSubcommand, likely);
    }
    error
}

/// One slip in a name of three letters.
const LIKENESS_MIN: f64 = 0.6;

/// Runs the program with the arguments of the process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| corrected(error).exit());
    let out = &mut io::stdout().lock();
    let done = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Dev(args) => dev::run(&args, out),
        Command::Ring(command) => ring::run(&command, out),
        Command::Hints(args) => hints::run(&args, out),
        Command::Repair(args) => repair::run(&args, out),
        Command::Doctor(args) => doctor::run(&args, out),
        Command::Health(args) => health::health(&args, out),
        Command::Drain(args) => health::drain(&args, out),
        Command::Slowlog(args) => slowlog::run(&args, out),
        Command::Passwd(args) => passwd::run(&args, out),
        Command::Completions(args) => {
            generate::completions(&args, out);
            Ok(())
        }
        Command::Man(args) => generate::man(&args, out),
        Command::Certs(args) => certs::run(&args, SystemClock.wall(), out),
        Command::Config(command) => config::run(&command, out),
        Command::Bench(args) => {
            let progress = &mut io::stderr();
            let is_watched = progress.is_terminal();
            bench::run(&args, out, is_watched.then_some(progress as &mut dyn Write))
        }
        Command::Get(args) => kv::get(&args, out),
        Command::Set(args) => kv::set(&args, out),
        Command::Del(args) => kv::del(&args, out),
    };
    let Err(error) = done else {
        return ExitCode::SUCCESS;
    };
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        // It prints itself, in colour where there is a terminal.
        drop(usage.print());
        return ExitCode::from(2);
    }
    // A reader that has seen enough (`| head`) is no failure.
    let broken_pipe = error.downcast_ref::<io::Error>().map(io::Error::kind);
    if broken_pipe == Some(io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    // Nowhere is left to say it if this fails.
    drop(writeln!(io::stderr(), "quorate: {error:#}"));
    ExitCode::FAILURE
}
