//! Real clusters of real processes, for the tests that need them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use quorate::env::{Clock, SystemClock};
use redis::Commands;
use tempfile::TempDir;

pub(crate) const QUORATE: &str = env!("CARGO_BIN_EXE_quorate");

/// Generous: two busy cores, an unoptimised program.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster started by `quorate dev`, stopped when dropped.
pub(crate) struct Cluster {
    dev: Child,
    /// Removed after the nodes have stopped.
    dir: TempDir,
    pub(crate) nodes: Vec<Node>,
    restarted: Vec<Child>,
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) pid: u32,
    pub(crate) resp: String,
    pub(crate) http: String,
    pub(crate) socket: PathBuf,
    pub(crate) config: PathBuf,
}

impl Cluster {
    /// Starts so many nodes with these settings on top.
    pub(crate) fn start(nodes: u16, settings: &[&str]) -> Self {
        for _attempt in 0..5 {
            if let Some(cluster) = Self::try_start(nodes, settings) {
                return cluster;
            }
        }
        panic!("no cluster after five attempts");
    }

    fn try_start(nodes: u16, settings: &[&str]) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut command = program();
        command.args(["dev", "--nodes", &nodes.to_string()]);
        command.arg("--dir").arg(dir.path().join("c"));
        command.args(["--resp-port", &free_ports(nodes).to_string()]);
        settings
            .iter()
            .for_each(|setting| _ = command.args(["--set", setting]));
        let mut dev = command
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let lines = BufReader::new(dev.stdout.take().unwrap()).lines();
        let is_ready = lines.map_while(Result::ok).any(|line| line == "ready");
        if !is_ready {
            // Another test took one of its ports, most likely.
            dev.wait().unwrap();
            return None;
        }
        let text = std::fs::read_to_string(dir.path().join("c/cluster.json")).unwrap();
        let file: serde_json::Value = serde_json::from_str(&text).unwrap();
        let node = |node: &serde_json::Value| {
            let text = |field: &str| node[field].as_str().unwrap().to_owned();
            Node {
                pid: u32::try_from(node["pid"].as_u64().unwrap()).unwrap(),
                resp: text("resp"),
                http: text("http"),
                socket: text("socket").into(),
                config: text("config").into(),
            }
        };
        let nodes = file["nodes"].as_array().unwrap().iter().map(node).collect();
        Some(Self {
            dev,
            dir,
            nodes,
            restarted: Vec::new(),
        })
    }

    /// Where the cluster's authority and certificates are.
    pub(crate) fn certs(&self) -> PathBuf {
        self.dir.path().join("c/certs")
    }

    /// What a node has logged since the cluster was started.
    pub(crate) fn log(&self, node: usize) -> String {
        let log = self.dir.path().join(format!("c/node-{node}/log"));
        std::fs::read_to_string(log).unwrap()
    }

    /// What a command that asks a node prints, and whether it exited 0.
    pub(crate) fn ask(&self, node: usize, args: &[&str]) -> (String, bool) {
        let socket = self.nodes[node].socket.to_str().unwrap();
        let output = quorate(&[args, &["--socket", socket]].concat());
        let text = [output.stdout, output.stderr].concat();
        (
            String::from_utf8_lossy(&text).into_owned(),
            output.status.success(),
        )
    }

    /// All nodes see all others, and have caught up.
    pub(crate) fn settled(&self) -> bool {
        let ready = |node: &Node| {
            http_get(&node.http, "/readyz").is_some_and(|page| page.contains("200 OK"))
        };
        (0..self.nodes.len()).all(|node| self.reachable(node) == vec![true; self.nodes.len()])
            && self.nodes.iter().all(ready)
    }

    pub(crate) fn connect(&self, node: usize) -> redis::Connection {
        connect(&self.nodes[node].resp)
    }

    /// Kills a node as `kill -9` does.
    pub(crate) fn kill(&self, node: usize) {
        signal(self.nodes[node].pid, "-KILL");
    }

    /// Starts a node again that was killed.
    pub(crate) fn restart(&mut self, node: usize) {
        self.restart_with(node, &[]);
    }

    /// The same with variables in its environment.
    pub(crate) fn restart_with(&mut self, node: usize, variables: &[(&str, &str)]) {
        let child = program()
            .args(["run", "--config"])
            .arg(&self.nodes[node].config)
            .envs(variables.iter().copied())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.nodes[node].pid = child.id();
        self.restarted.push(child);
    }

    /// Starts so many new nodes that join, all at once.
    pub(crate) fn join(&mut self, count: u16) {
        let certs = self.certs();
        let ports = free_ports(count);
        for number in 0..count {
            let name = format!("node-{}", self.nodes.len());
            let issued = [
                "certs",
                "issue",
                "--dir",
                certs.to_str().unwrap(),
                "--node",
                &name,
            ];
            assert!(quorate(&issued).status.success());
            let dir = self.dir.path().join("c").join(&name);
            std::fs::create_dir_all(dir.join("data")).unwrap();
            let address = |offset: u16| format!("127.0.0.1:{}", ports + offset + number);
            let (resp, quic, http) = (address(0), address(100), address(200));
            // Those of a node that has seeds, with another name and other ports.
            let text = std::fs::read_to_string(&self.nodes[1].config).unwrap();
            let text = text.replace("node-1", &name);
            let line = |line: &str| match line.split_once(" = ") {
                Some((key @ "resp_listen", _)) => format!("{key} = \"{resp}\"\n"),
                Some((key @ "quic_listen", _)) => format!("{key} = \"{quic}\"\n"),
                Some((key @ "http_listen", _)) => format!("{key} = \"{http}\"\n"),
                _ => format!("{line}\n"),
            };
            let text: String = text.lines().map(line).collect();
            std::fs::write(dir.join("quorate.toml"), text).unwrap();
            self.nodes.push(Node {
                pid: 0,
                resp,
                http,
                socket: dir.join("admin.sock"),
                config: dir.join("quorate.toml"),
            });
        }
        let last = self.nodes.len();
        (last - usize::from(count)..last).for_each(|node| self.restart(node));
    }

    /// Which nodes a node can reach, by `ring status --json`.
    pub(crate) fn reachable(&self, seen_by: usize) -> Vec<bool> {
        let status = self.ring_status(seen_by);
        // None as long as the node does not answer.
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        nodes
            .iter()
            .map(|node| node["reachable"].as_bool().unwrap())
            .collect()
    }

    pub(crate) fn ring_status(&self, seen_by: usize) -> serde_json::Value {
        let socket = self.nodes[seen_by].socket.to_str().unwrap();
        let output = quorate(&["ring", "status", "--json", "--socket", socket]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// A metric without labels; `None`: the node does not answer, or has no such metric.
    pub(crate) fn metric(&self, node: usize, name: &str) -> Option<u64> {
        let page = http_get(&self.nodes[node].http, "/metrics")?;
        let line = page
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")))?;
        line.split_once(' ')?.1.trim().parse().ok()
    }

    /// Stops the cluster as Ctrl-C does; the exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        for child in &mut self.restarted {
            signal(child.id(), "-KILL");
            child.wait().unwrap();
        }
        self.restarted.clear();
        signal(self.dev.id(), "-TERM");
        self.dev.wait().unwrap().code()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.dev.try_wait().unwrap().is_none() {
            self.stop();
        }
    }
}

pub(crate) fn connect(addr: &str) -> redis::Connection {
    let client = redis::Client::open(format!("redis://{addr}")).unwrap();
    client
        .get_connection_with_timeout(Duration::from_secs(10))
        .unwrap()
}

/// The body of a page; `None`: nobody answered.
pub(crate) fn http_get(addr: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(addr).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

pub(crate) fn quorate(args: &[&str]) -> Output {
    program().args(args).output().unwrap()
}

/// The program, without the variables that are for the tests: it takes all of this kind for settings.
pub(crate) fn program() -> Command {
    let mut command = Command::new(QUORATE);
    let names = std::env::vars_os().map(|(name, _)| name);
    names
        .filter(|name| name.to_string_lossy().starts_with("QUORATE_"))
        .for_each(|name| _ = command.env_remove(name));
    command
}

/// What a command prints as JSON; `None`: it failed.
pub(crate) fn json(args: &[&str]) -> Option<serde_json::Value> {
    serde_json::from_slice(&quorate(args).stdout).ok()
}

pub(crate) fn signal(pid: u32, which: &str) {
    Command::new("kill")
        .args([which, &pid.to_string()])
        .status()
        .unwrap();
}

/// Waits until something is true; panics with `what` when it takes too long.
pub(crate) fn eventually(
    what: &str,
    deadline: Duration,
    mut is_true: impl FnMut() -> bool,
) -> Duration {
    let start = SystemClock.monotonic();
    while !is_true() {
        assert!(
            start.elapsed() < deadline,
            "not within {deadline:?}: {what}"
        );
        // Only the pace of asking: the condition decides.
        std::thread::park_timeout(Duration::from_millis(20));
    }
    start.elapsed()
}

/// A port such that it and its neighbours, and those 100 and 200 above, are free.
fn free_ports(nodes: u16) -> u16 {
    let is_free = |port: u16| {
        (port..port + nodes).all(|port| {
            TcpListener::bind(("127.0.0.1", port)).is_ok()
                && UdpSocket::bind(("127.0.0.1", port + 100)).is_ok()
                && TcpListener::bind(("127.0.0.1", port + 200)).is_ok()
        })
    };
    // Below the range that the system gives to clients. Parallel tests begin at different places.
    let start = 12_000 + u16::try_from(std::process::id() % 30).unwrap() * 500;
    let mut candidates = (0..40).map(|step| start + step * 300 % 15_000 + step * 7);
    candidates
        .find(|&port| is_free(port))
        .expect("some free ports")
}

/// A certificate authority and certificates below a directory, made by the program itself.
pub(crate) fn certificates(dir: &Path, cluster: &str, nodes: &[&str]) {
    let dir = dir.to_str().unwrap();
    assert!(
        quorate(&["certs", "init", "--dir", dir, "--cluster", cluster])
            .status
            .success()
    );
    for node in nodes {
        let issued = quorate(&["certs", "issue", "--dir", dir, "--node", node]);
        assert!(
            issued.status.success(),
            "{}",
            String::from_utf8_lossy(&issued.stderr)
        );
    }
}

/// So many clients that write and read what they have written, through some of the nodes.
pub(crate) struct Clients {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Clients {
    /// Of one address each, in turn. Those of one cluster begin with different addresses: that
    /// tells their keys apart.
    pub(crate) fn start(addresses: &[String], count: usize) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let threads = (0..count).map(|client| {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            let mut connection = connect(&addresses[client % addresses.len()]);
            let group = addresses[0].clone();
            std::thread::spawn(move || {
                let (key, mut failed) = (format!("client:{group}:{client}"), Vec::new());
                for number in 0u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let set: redis::RedisResult<()> = connection.set(&key, number);
                    let got: redis::RedisResult<u64> = connection.get(&key);
                    match (set, got) {
                        (Ok(()), Ok(got)) if got == number => {}
                        wrong => failed.push(format!("{wrong:?}, not {number}")),
                    }
                    done.fetch_add(2, Ordering::Relaxed);
                }
                failed
            })
        });
        let threads = threads.collect();
        Self {
            stop,
            done,
            threads,
        }
    }

    /// Waits until so many more requests are done.
    pub(crate) fn go_on(&self, more: u64) {
        let goal = self.done.load(Ordering::Relaxed) + more;
        eventually("requests go on", PATIENCE, || {
            self.done.load(Ordering::Relaxed) >= goal
        });
    }

    /// How many requests there were, and what failed.
    pub(crate) fn finish(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let threads = self.threads.into_iter();
        let failed = threads.flat_map(|thread| thread.join().unwrap()).collect();
        (self.done.load(Ordering::Relaxed), failed)
    }
}

/// A test cannot run here, because of this: said on the terminal past the harness, which keeps what a
/// test that passes prints to itself, and noted in `target/skipped-tests.txt`.
pub(crate) fn skipped(name: &str, why: &str) {
    let line = format!("SKIPPED: {name}: {why}\n");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/skipped-tests.txt");
    let options = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(file);
    options
        .and_then(|mut file| file.write_all(line.as_bytes()))
        .unwrap();
    // The harness captures what goes through Rust's own handles only.
    if let Ok(mut terminal) = std::fs::OpenOptions::new()
        .write(true)
        .open("/proc/self/fd/2")
    {
        drop(terminal.write_all(line.as_bytes()));
    }
}

/// Where libfaketime is, if it is installed.
pub(crate) fn faketime_library() -> Option<String> {
    let found = Command::new("sh")
        .args([
            "-c",
            "ls /usr/lib/*/faketime/libfaketime.so.1 2>/dev/null | head -1",
        ])
        .output()
        .ok()?;
    let path = String::from_utf8(found.stdout).ok()?.trim().to_owned();
    (!path.is_empty()).then_some(path)
}

/// A file system mounted for a test, unmounted when dropped: on a panic, too.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(&self.0).status();
        drop(done);
    }
}
