//! `quorate dev`: a cluster on this machine, each node a process of its own.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use super::admin::ask_socket;
use super::ring::print_ring;
use crate::config::{Checked, Settings, Sources};
use crate::env::{Clock, SystemClock};
use crate::front::admin::{AdminReply, AdminRequest};
use crate::model::NodeId;
use crate::net::{CertificateAuthority, Existing, Identity, Role};
use crate::node::status::RingStatus;

/// Arguments of `dev`.
#[derive(Debug, Args)]
#[command(
    after_help = "Node i (from 0) listens on 127.0.0.1: for Redis clients on the RESP port + i, \
    for its peers on that + 100, for HTTP on that + 200.\n\nExamples:\n  quorate dev\n  \
    quorate dev --nodes 5 --set n=3 --set w=3\n  redis-cli -p 7380 set greeting hello"
)]
pub struct DevArgs {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    nodes: u16,
    /// Where certificates, configurations, sockets and logs go.
    #[arg(long, default_value = "quorate-dev")]
    dir: PathBuf,
    /// The RESP port of the first node.
    #[arg(long, default_value_t = 7379, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    resp_port: u16,
    /// A key of every node's configuration.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// `cluster.json`: what scripts need to find the nodes. Names are a contract.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterFile {
    /// The nodes, in order.
    pub nodes: Vec<ClusterNode>,
}

/// One node of a [`ClusterFile`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterNode {
    /// Its name.
    pub id: String,
    /// Its process.
    pub pid: u32,
    /// Where Redis clients reach it.
    pub resp: String,
    /// Where peers reach it.
    pub quic: String,
    /// Where its metrics are.
    pub http: String,
    /// Its admin socket.
    pub socket: PathBuf,
    /// Its configuration file.
    pub config: PathBuf,
}

struct Planned {
    id: NodeId,
    dir: PathBuf,
    settings: Settings,
}

struct Running {
    planned: Planned,
    child: Child,
}

/// Runs a cluster until it is told to stop.
pub fn run(args: &DevArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let planned = prepare(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut running = Vec::new();
        for planned in planned {
            running.push(start(planned)?);
        }
        write_cluster_file(&args.dir, &running)?;
        let ready = tokio::select! {
            biased;
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            ring = wait_until_met(&mut running) => Some(ring),
        };
        let outcome = match ready {
            Some(Ok(ring)) => announce(&ring, &args.dir, out).map(|()| true),
            Some(Err(error)) => Err(error),
            None => Ok(false),
        };
        if matches!(outcome, Ok(true)) {
            tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
        }
        stop(running).await;
        outcome.map(drop)
    })
}

/// Directories, certificates and configurations.
fn prepare(args: &DevArgs) -> anyhow::Result<Vec<Planned>> {
    let made = fs::create_dir_all(&args.dir);
    made.with_context(|| format!("cannot make {}", args.dir.display()))?;
    // Absolute, so that the files that name each other can be used from anywhere.
    let dir = fs::canonicalize(&args.dir)?;
    let is_ours = dir.join(CLUSTER_FILE).exists();
    let is_empty = fs::read_dir(&dir)?.next().is_none();
    ensure!(
        is_ours || is_empty,
        "{} is neither empty nor made by `quorate dev`: choose another --dir",
        dir.display()
    );
    let certs = dir.join("certs");
    let now = SystemClock.wall();
    let authority = match CertificateAuthority::load(&certs) {
        Ok(authority) => authority,
        Err(_) => {
            let authority = CertificateAuthority::create(CLUSTER, CERTIFICATE_DAYS, now)?;
            authority.save(&certs)?;
            authority
        }
    };
    (0..args.nodes)
        .map(|number| plan(args, &dir, &authority, number))
        .collect()
}

fn plan(
    args: &DevArgs,
    dir: &Path,
    authority: &CertificateAuthority,
    number: u16,
) -> anyhow::Result<Planned> {
    let id: NodeId = format!("node-{number}").parse()?;
    let node_dir = dir.join(id.as_str());
    let data = node_dir.join("data");
    // A new cluster each time: the last one may have had other nodes and other settings.
    if data.exists() {
        fs::remove_dir_all(&data)?;
    }
    fs::create_dir_all(&data)?;
    let now = SystemClock.wall();
    let identity = Identity::new(CLUSTER, Role::Node, id.clone())?;
    let issued = authority.issue(&identity, &[], CERTIFICATE_DAYS, now)?;
    let files = issued.save(&dir.join("certs"), Existing::Replace)?;

    let port = |offset: u16| -> anyhow::Result<u16> {
        let port = args
            .resp_port
            .checked_add(offset)
            .and_then(|port| port.checked_add(number));
        port.context("the ports of the last node would be over 65535: choose a lower --resp-port")
    };
    let n = args.nodes.min(3);
    let quic_port = port(QUIC_OFFSET)?;
    let mut set = vec![
        format!("cluster={CLUSTER}"),
        format!("node={id}"),
        format!("n={n}"),
        format!("threads={}", threads_each(args.nodes)),
        format!("data_dir={}", data.display()),
        format!("ca_file={}", dir.join("certs").join("ca.pem").display()),
        format!("cert_file={}", files.cert.display()),
        format!("key_file={}", files.key.display()),
        format!("resp_listen=127.0.0.1:{}", port(0)?),
        format!("quic_listen=127.0.0.1:{quic_port}"),
        format!("http_listen=127.0.0.1:{}", port(HTTP_OFFSET)?),
        format!("admin_socket={}", node_dir.join("admin.sock").display()),
    ];
    if number > 0 {
        set.push(format!("seeds=[\"127.0.0.1:{}\"]", quic_port - number));
    }
    set.extend(args.set.iter().cloned());
    let Checked { settings, .. } = Settings::load(&Sources {
        file: None,
        env: Vec::new(),
        set,
    })?;
    fs::write(node_dir.join("quorate.toml"), settings.to_toml())?;
    Ok(Planned {
        id,
        dir: node_dir,
        settings,
    })
}

/// The machine's cores shared among the nodes: more threads than cores only get in each other's
/// way.
fn threads_each(nodes: u16) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / usize::from(nodes)).max(1)
}

fn start(planned: Planned) -> anyhow::Result<Running> {
    let log = File::create(planned.dir.join("log"))?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let child = Command::new(program)
        .arg("run")
        .arg("--config")
        .arg(planned.dir.join("quorate.toml"))
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C in the terminal is for this process: it stops the nodes itself.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", planned.id))?;
    Ok(Running { planned, child })
}

fn write_cluster_file(dir: &Path, running: &[Running]) -> anyhow::Result<()> {
    let nodes = running.iter().map(|Running { planned, child }| {
        let settings = &planned.settings;
        let shown =
            |addr: Option<std::net::SocketAddr>| addr.map_or_else(String::new, |a| a.to_string());
        ClusterNode {
            id: planned.id.to_string(),
            pid: child.id().unwrap_or(0),
            resp: shown(settings.resp_listen),
            quic: settings.quic_listen.to_string(),
            http: shown(settings.http_listen),
            socket: settings.admin_socket(None),
            config: planned.dir.join("quorate.toml"),
        }
    });
    let file = ClusterFile {
        nodes: nodes.collect(),
    };
    fs::write(
        dir.join(CLUSTER_FILE),
        serde_json::to_string_pretty(&file)? + "\n",
    )?;
    Ok(())
}

/// Waits until every node sees every other and is ready; what the first one sees then.
async fn wait_until_met(running: &mut [Running]) -> anyhow::Result<RingStatus> {
    let deadline = SystemClock.monotonic() + MEET_MAX;
    let all = running.len();
    let mut met = None;
    loop {
        for node in running.iter_mut() {
            if let Some(status) = node.child.try_wait()? {
                let log = node.planned.dir.join("log");
                bail!("{} ended ({status}): {}", node.planned.id, last_line(&log));
            }
        }
        let seen: Vec<_> = running
            .iter()
            .filter_map(|node| seen_by(&node.planned))
            .collect();
        let has_met_all =
            |ring: &RingStatus| ring.nodes.iter().filter(|n| n.reachable).count() == all;
        let alike = seen
            .windows(2)
            .all(|pair| pair[0].ring_version == pair[1].ring_version);
        if let Some(first) = seen.first()
            && seen.len() == all
            && alike
            && seen.iter().all(has_met_all)
        {
            let met = *met.get_or_insert_with(|| SystemClock.monotonic());
            // Where there are fewer nodes than copies nobody may ever be sure of all.
            if seen.iter().all(|ring| ring.ready) || met.elapsed() > READY_MAX {
                return Ok(first.clone());
            }
        }
        ensure!(
            SystemClock.monotonic() < deadline,
            "the nodes have not met within {} s: see the logs in their directories",
            MEET_MAX.as_secs()
        );
        sleep(POLL).await;
    }
}

fn seen_by(planned: &Planned) -> Option<RingStatus> {
    match ask_socket(
        &planned.settings.admin_socket(None),
        &AdminRequest::RingStatus,
    ) {
        Ok(AdminReply::RingStatus(ring)) => Some(ring),
        // Not open yet: it is asked again.
        Ok(_) | Err(_) => None,
    }
}

fn announce(ring: &RingStatus, dir: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    print_ring(ring, out)?;
    writeln!(out, "files in {}, Ctrl-C stops all nodes", dir.display())?;
    writeln!(out, "ready")?;
    out.flush()?;
    Ok(())
}

/// Tells all nodes to stop, then waits; those that do not are killed.
async fn stop(running: Vec<Running>) {
    for node in &running {
        if let Some(pid) = node.child.id() {
            // There is no safe call for it in std.
            let told = Command::new("kill")
                .arg("-TERM")
                .arg(pid.to_string())
                .status()
                .await;
            drop(told);
        }
    }
    let deadline: Instant = SystemClock.monotonic() + STOP_MAX;
    for mut node in running {
        let left = deadline.saturating_duration_since(SystemClock.monotonic());
        if timeout(left, node.child.wait()).await.is_err() {
            drop(node.child.kill().await);
        }
    }
}

fn last_line(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let start = file.metadata()?.len().saturating_sub(LOG_BYTES_SHOWN);
        file.seek(SeekFrom::Start(start))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text)
            .trim_end()
            .lines()
            .last()
            .unwrap_or_default()
            .to_owned())
    };
    match read() {
        Ok(line) if !line.is_empty() => line,
        Ok(_) | Err(_) => format!("see {}", log.display()),
    }
}

const CLUSTER: &str = "dev";
const CLUSTER_FILE: &str = "cluster.json";
const CERTIFICATE_DAYS: u32 = 365;
const QUIC_OFFSET: u16 = 100;
const HTTP_OFFSET: u16 = 200;
/// How long nodes that have met may take to be ready.
const READY_MAX: Duration = Duration::from_secs(5);
const MEET_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(12);
const POLL: Duration = Duration::from_millis(50);
const LOG_BYTES_SHOWN: u64 = 2_048;
