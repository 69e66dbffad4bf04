//! `quorate run`: one node in the foreground, as systemd and containers want it.

mod log;
mod node;
mod notify;
mod parts;
mod trust;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use self::log::Log;
pub use self::node::Node;
use crate::config::{Checked, Settings, Sources};
use crate::env::{Env, RealDisk, SeededRng, SystemClock, Tasks};
use crate::model::Millis;

/// Arguments of `run`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quorate run --config /etc/quorate/quorate.toml\n  \
    quorate run --config quorate.toml --set log=debug\n  \
    QUORATE_NODE=node-3 quorate run --config quorate.toml\n  \
    QUORATE_NODE=node-3 QUORATE_CA_FILE=ca.pem QUORATE_CERT_FILE=node-3.pem \
    QUORATE_KEY_FILE=node-3.key quorate run"
)]
pub struct RunArgs {
    /// The configuration file; without, the environment and --set say all.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A key to set on top of the file and the environment.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Whether the certificates, keys and passwords that the settings name can be used.
pub fn check_files(settings: &Settings, now: Millis) -> anyhow::Result<()> {
    parts::credentials(settings, now)?;
    parts::resp_config(settings).map(drop)
}

/// Runs a node until it is told to stop.
pub fn run(args: &RunArgs) -> anyhow::Result<()> {
    let Checked { settings, warnings } = load(args)?;
    let log = Log::start(&settings.log, settings.log_format)?;
    for warning in &warnings {
        warn!("{warning}");
    }
    raise_file_limit();
    let served = runtime(settings.threads)?.block_on(serve(args, &settings, &log));
    if let Err(error) = &served {
        // In the log as well: it may be all that somebody looks at.
        error!("{error:#}");
    }
    served
}

fn load(args: &RunArgs) -> anyhow::Result<Checked> {
    let sources = Sources::read(args.config.as_deref(), args.set.clone())?;
    Ok(Settings::load(&sources)?)
}

async fn serve(args: &RunArgs, settings: &Settings, log: &Log) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let env = system_env(settings)?;
    let mut node = Node::start(settings, &env).await?;
    log.tell_left_out(&env.tasks);
    notify::ready(&node.summary());
    notify::feed_watchdog(node.admin_socket(), &env.tasks);
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => break info!("told to stop (SIGTERM)"),
            _ = interrupt.recv() => break info!("told to stop (SIGINT)"),
            _ = hangup.recv() => {
                info!("told to read the configuration again (SIGHUP)");
                notify::reloading();
                if let Err(error) = reload(args, &mut node, log) {
                    error!("nothing was changed: {error:#}");
                }
                notify::ready(&node.summary());
            }
            _ = looks.tick() => {
                node.look_after_certificates();
                notify::status(&node.summary());
            }
        }
    }
    notify::stopping(settings.shutdown_timeout);
    node.stop(settings.shutdown_timeout).await;
    info!("stopped");
    Ok(())
}

fn reload(args: &RunArgs, node: &mut Node, log: &Log) -> anyhow::Result<()> {
    let Checked { settings, warnings } = load(args)?;
    for warning in &warnings {
        warn!("{warning}");
    }
    node.reload(&settings)?;
    log.set_filter(&settings.log)
}

/// A node needs a file a client. What the system would grant it anyway is taken at once.
fn raise_file_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, "cannot raise the limit of open files");
    }
}

fn system_env(settings: &Settings) -> anyhow::Result<Env> {
    let tasks = Tasks::new();
    tasks.watchdog().set_script_max(settings.script_timeout);
    Ok(Env {
        clock: Arc::new(SystemClock),
        rng: SeededRng::from_system().context("no randomness from the operating system")?,
        tasks,
        disk: Arc::new(RealDisk::open(&settings.data_dir).context("data_dir")?),
    })
}

/// One thread where there is one core: a scheduler of several costs more than it gives there.
fn runtime(threads: u32) -> anyhow::Result<Runtime> {
    let threads = match usize::try_from(threads)? {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .build()
        .context("cannot start the runtime")
}

/// Turns of tasks between two looks at the sockets. While large values are on their way a turn takes up
/// to half a millisecond, and what comes meanwhile waits for so many of them; tokio's default is 61.
const EVENT_INTERVAL: u32 = 8;
/// How often files are looked at, and systemd is told what the node does.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
