//! The table of all keys, and the settings that come of it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::check::{self, Finding};
use super::problem::{ConfigErrors, Problem, Warning};
use super::render;
use super::source::{Given, Sources};
use super::table::{Check, Key, Section, is_default, read, settings};
use super::units::ByteSize;
use super::value::{HintSync, HostPort, Keyspace, LogFormat, Replies, Role, SloppyKeyspace, Value};
use crate::model::{Levels, NodeId, Quorum};

settings! {
    /// All settings of one node, checked: only [`Settings::load`] makes them.
    ///
    /// Fields that mean something only together with others are private; ask the methods.
    struct Settings;

    "Who this node is" {
        /// The name of the cluster: 1 to 63 of a-z A-Z 0-9 . _ -. Nodes whose certificates name
        /// another cluster are refused.
        pub cluster: String = "quorate", like "shop", check check::name;

        /// The name of this node, unique in the cluster and the same after a restart. Required:
        /// nothing is guessed, because a node that changes its name is another node.
        pub node: NodeId = "", like "cache-1";

        /// The zone (rack, data hall, availability zone) this node stands in. Copies of a key are
        /// kept in distinct zones where there are enough. Empty: no zones.
        pub zone: String = "", like "zone-a", check check::name_or_empty;

        /// The share of the data this node takes, relative to the other nodes.
        pub weight: u32 = 1, like 2, within 1 to 1000;

        /// "member": holds its share of the data. "proxy": coordinates requests, holds no data.
        pub role: Role = "member", like "proxy";
    }

    "Files" {
        /// The directory for what this node must remember, above all the member table. Made when
        /// it is missing; two nodes cannot share one.
        pub data_dir: PathBuf = "/var/lib/quorate", like "/var/lib/quorate";

        /// The certificate of the cluster's own authority, PEM. Required. `quorate certs init`
        /// makes one.
        pub ca_file: PathBuf = "", like "/etc/quorate/ca.pem";

        /// The certificate of this node, PEM. Required. `quorate certs issue` makes one.
        pub cert_file: PathBuf = "", like "/etc/quorate/node-0.pem";

        /// The private key that belongs to the certificate, PEM, readable by its owner only.
        /// Required.
        pub key_file: PathBuf = "", like "/etc/quorate/node-0.key";

        /// Certificates that the authority has taken back, PEM: `quorate certs revoke` writes it.
        /// Empty: none. The four files are read again on SIGHUP and when they change.
        pub crl_file: Option<PathBuf> = "", like "/etc/quorate/ca.crl";
    }

    "Copies and quorums" {
        /// How many copies of each key the cluster keeps. The same on every node.
        n: u8 = 3, like 5, within 1 to 16;

        /// How many replicas must answer a read, 1 to n. Where r + w is more than n, a read sees
        /// every acknowledged write.
        r: Replies = "majority", like 2;

        /// How many replicas must acknowledge a write, 1 to n.
        w: Replies = "majority", like 2;

        /// How consistent requests of Redis clients over TCP are: `one`, `quorum`, `all`,
        /// `local_quorum` or `linearizable`, or two of them as READ/WRITE. A connection chooses
        /// another with QUORATE LEVEL.
        pub resp_level: Levels = "quorum", like "one/quorum";

        /// The same for `resp_socket`.
        pub resp_socket_level: Levels = "quorum", like "linearizable";

        /// The same for keys that begin with a prefix, whoever asks for them; the longest prefix
        /// that fits counts.
        pub keyspace_levels: Vec<Keyspace> = [], like ["lock:=linearizable", "seen:=one/quorum"];

        /// Into how many slices the keys are cut: a power of two, the same on every node, fixed
        /// when a cluster is born.
        pub partitions: u32 = 4096, like 1024, within 1 to 32768, check check::power_of_two;
    }

    "Home nodes that are away" {
        /// Whether the next nodes of a key's preference list stand in for home nodes that do not
        /// take a write. They keep it as a hint and give it back later; their acknowledgements
        /// count towards w. Never at level `linearizable`.
        pub sloppy: bool = true, like false;

        /// The same for keys that begin with a prefix; the longest prefix that fits counts.
        pub keyspace_sloppy: Vec<SloppyKeyspace> = [], like ["lock:=false"];

        /// What of a hint has to be on disk before it is acknowledged. "always": all of it, synced.
        /// "interval": handed to the operating system, and synced within 200 ms; a loss of power
        /// then loses what came last.
        pub hint_sync: HintSync = "always", like "interval";

        /// How much memory the hints of this node may take, and about as much of its disk; a write
        /// that has no room is refused and goes to the next node. 0: it keeps no hints.
        pub hint_max_bytes: ByteSize = "256MiB", like "1GiB";

        /// A hint older than this is dropped. The longer, the longer a node may be away and be
        /// given all it missed. The same on every node: tombstones are kept as long, and a while
        /// longer.
        pub hint_window: Duration = "3h", like "12h", within "1s" to "30d";

        /// How fast this node gives hints back, all together, in bytes a second.
        pub hint_replay_bytes_per_s: ByteSize = "2MiB", like "32MiB", within "1KiB" to "10GiB";
    }

    "Differences between replicas" {
        /// How often this node tells the digests of its partitions; where they differ from another
        /// home's twice in succession, the two reconcile. Rounded up to a multiple of 4.096 s.
        pub digest_interval: Duration = "4s", like "12s", within "1s" to "1h";

        /// How fast this node reconciles, in bytes a second sent and received.
        pub repair_bytes_per_s: ByteSize = "4MiB", like "32MiB", within "1KiB" to "10GiB";
    }

    "Redis clients (RESP)" {
        /// Where Redis clients connect over TCP; empty turns it off. An address that other
        /// machines can reach needs a password and TLS (protected mode).
        pub resp_listen: Option<SocketAddr> = "127.0.0.1:7379", like "127.0.0.1:6379";

        /// A Unix socket for Redis clients of this machine; empty turns it off.
        pub resp_socket: Option<PathBuf> = "", like "/run/quorate/resp.sock";

        /// A file with the hash of the password that clients must give (AUTH or HELLO), as
        /// `quorate passwd` prints it. Empty: no password.
        pub resp_password_file: Option<PathBuf> = "", like "/etc/quorate/resp.password";

        /// The certificate chain for TLS on `resp_listen`, PEM. Empty: no TLS.
        resp_tls_cert: Option<PathBuf> = "", like "/etc/quorate/resp.crt";

        /// The private key that belongs to `resp_tls_cert`, PEM.
        resp_tls_key: Option<PathBuf> = "", like "/etc/quorate/resp.key";

        /// How many Redis clients may be connected at once; the next one is told so and closed.
        pub connections_max: u32 = 10000, like 50000, within 1 to 1000000;

        /// A client that sends nothing for this long is closed. "0s": never.
        client_timeout: Duration = "0s", like "5m", within "0s" to "30d";

        /// A client that leaves a command unfinished and sends nothing for this long is closed; one
        /// that has not logged in, whatever it sends meanwhile.
        pub unfinished_timeout: Duration = "60s", like "10s", within "100ms" to "1h";

        /// How much memory unfinished commands and transactions of all Redis clients together may
        /// take; beyond, the clients that hold most are closed. One command of 4 times
        /// `max_value_bytes` is allowed in any case.
        client_input_bytes_max: ByteSize = "256MiB", like "1GiB", within "1MiB" to "1TiB";

        /// A client that leaves replies or messages unread for this long is closed. Until then
        /// nothing more is carried out for it.
        pub unread_timeout: Duration = "60s", like "10s", within "100ms" to "1h";
    }

    "Other nodes and tools" {
        /// The UDP address for everything between nodes: gossip, requests, native clients.
        pub quic_listen: SocketAddr = "127.0.0.1:7479", like "10.0.0.5:7479";

        /// The address under which other nodes reach `quic_listen`, where it differs, as behind
        /// address translation or with 0.0.0.0. Empty: `quic_listen`.
        quic_advertise: Option<SocketAddr> = "", like "10.0.0.5:7479";

        /// Where /healthz, /readyz, /metrics and the ring page are served, read-only; empty turns
        /// it off.
        pub http_listen: Option<SocketAddr> = "127.0.0.1:7579", like "0.0.0.0:7579";

        /// The Unix socket for `quorate ring` and the other commands. Empty: admin.sock in the
        /// `RUNTIME_DIRECTORY` of the environment, which systemd sets, or else in `data_dir`.
        admin_socket: Option<PathBuf> = "", like "/run/quorate/admin.sock";

        /// Other nodes to find the cluster by, names or addresses with their QUIC port. One that
        /// answers is enough; the first node of a cluster needs none.
        pub seeds: Vec<HostPort> = [], like ["10.0.0.6:7479", "10.0.0.7:7479"];
    }

    "Time" {
        /// How often this node gossips. The shorter, the sooner a dead node is noticed, and the
        /// more traffic there is.
        pub gossip_interval: Duration = "300ms", like "1s", within "10ms" to "1m";

        /// How long a request may take before its client gets an error.
        pub request_timeout: Duration = "1s", like "500ms", within "1ms" to "10m";

        /// How far another node's clock may be ahead of this one's; times further ahead are
        /// refused, counted and logged.
        pub max_clock_drift: Duration = "10s", like "1s", within "1ms" to "1d";

        /// How long requests that run may take to finish after the node was told to stop.
        pub shutdown_timeout: Duration = "10s", like "30s", within "0s" to "1h";
    }

    "Limits" {
        /// The longest value; a longer one is refused.
        pub max_value_bytes: ByteSize = "16MiB", like "1MiB", within "1B" to "512MiB";

        /// How much memory the records may take, 0: as much as they need. NOT YET ENFORCED: any
        /// other value is accepted with a warning.
        pub max_memory: ByteSize = "0", like "4GiB";

        /// How long one script (EVAL) may run. Longer ones are ended with an error, and nothing that
        /// they did is applied.
        pub script_timeout: Duration = "100ms", like "20ms", within "1ms" to "10s";

        /// How many threads serve requests. 0: one for each processor.
        pub threads: u32 = 0, like 2, within 0 to 1024;
    }

    "Log" {
        /// What is logged: off, error, warn, info, debug or trace, or one for each part of the
        /// program, with commas.
        pub log: String = "info", like "warn,quorate::node=debug", check check::log_filter;

        /// "text": a line an event, for people. "json": an object an event, for collectors.
        pub log_format: LogFormat = "text", like "json";

        /// Requests that took longer are kept for `quorate slowlog`, the last thousand of them;
        /// those that failed are kept in any case.
        pub slowlog_threshold: Duration = "100ms", like "10ms", within "0ms" to "1h";

        /// Whether `quorate slowlog` shows keys. Without, it shows their partition only.
        pub slowlog_keys: bool = false, like true;
    }
}

/// Settings that can be used, and what is doubtful about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The settings.
    pub settings: Settings,
    /// Legal, and probably not what was meant.
    pub warnings: Vec<Warning>,
}

/// The two files that make TLS possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsFiles<'a> {
    /// The certificate chain, PEM.
    pub cert: &'a Path,
    /// The private key, PEM.
    pub key: &'a Path,
}

impl Settings {
    /// Makes settings of what was given and of defaults, or tells everything that is wrong.
    pub fn load(sources: &Sources) -> Result<Checked, ConfigErrors> {
        let mut problems = Vec::new();
        let given = Given::gather(sources, &mut problems)?;
        let draft = Draft::read(&given, &mut problems);
        let Finding { quorum, warnings } = check::across_keys(&draft, &given, &mut problems);
        match (quorum.and_then(|quorum| draft.finish(quorum)), problems) {
            (Some(settings), none) if none.is_empty() => Ok(Checked { settings, warnings }),
            (_, mut problems) => {
                problems.sort_by(|a: &Problem, b| a.place.cmp(&b.place));
                Err(ConfigErrors(problems))
            }
        }
    }

    /// A configuration file with every key, its default, its unit and what it does.
    #[must_use]
    pub fn render_default() -> String {
        render::defaults(SECTIONS)
    }

    /// A configuration file with every key that does not have its default. [`Settings::load`]
    /// makes the same settings of it.
    #[must_use]
    pub fn to_toml(&self) -> String {
        render::chosen(&self.chosen())
    }

    /// Copies kept, replies a read needs, acknowledgements a write needs.
    #[must_use]
    pub const fn quorum(&self) -> Quorum {
        self.quorum
    }

    /// The address under which other nodes reach this one. Its port is 0 when the system chooses
    /// the port of `quic_listen` and nothing else was said.
    #[must_use]
    pub fn quic_advertise(&self) -> SocketAddr {
        self.quic_advertise.unwrap_or(self.quic_listen)
    }

    /// The Unix socket for the commands of an administrator. `runtime_dir` is what the
    /// environment names as `RUNTIME_DIRECTORY`.
    #[must_use]
    pub fn admin_socket(&self, runtime_dir: Option<&Path>) -> PathBuf {
        let beside = || runtime_dir.unwrap_or(&self.data_dir).join("admin.sock");
        self.admin_socket.clone().unwrap_or_else(beside)
    }

    /// The keys whose values differ, each with whether it can change while the node runs.
    #[must_use]
    pub fn changes(&self, other: &Self) -> Vec<(&'static str, bool)> {
        let (ours, theirs) = (self.all(), other.all());
        let pairs = ours.into_iter().zip(theirs);
        pairs
            .filter(|(our, their)| our != their)
            .map(|((key, _), _)| (key, is_reloadable(key)))
            .collect()
    }

    /// The keys that can change while the node runs, on SIGHUP, in the order of the table.
    #[must_use]
    pub fn reloadable() -> Vec<&'static str> {
        let names = SECTIONS.iter().flat_map(|section| section.keys);
        names
            .map(|key| key.name)
            .filter(|name| is_reloadable(name))
            .collect()
    }

    /// Takes over from other settings what can change while the node runs.
    pub fn reload(&mut self, from: &Self) {
        self.take_reloadable(from);
    }

    /// The certificate and key for TLS on `resp_listen`; `None` for no TLS.
    #[must_use]
    pub fn resp_tls(&self) -> Option<TlsFiles<'_>> {
        Some(TlsFiles {
            cert: self.resp_tls_cert.as_deref()?,
            key: self.resp_tls_key.as_deref()?,
        })
    }

    /// What unfinished commands of all clients may take together: at least one of the largest.
    #[must_use]
    pub fn client_input_bytes_max(&self) -> u64 {
        let command = self.max_value_bytes.0.saturating_mul(check::COMMAND_VALUES);
        self.client_input_bytes_max.0.max(command)
    }

    /// After how much silence a client is closed; `None` for never.
    #[must_use]
    pub fn client_timeout(&self) -> Option<Duration> {
        (!self.client_timeout.is_zero()).then_some(self.client_timeout)
    }
}

/// Whether a key can change while the node runs. All others are part of what was set up at the
/// start, or must be the same on every node.
pub(super) fn is_reloadable(key: &str) -> bool {
    RELOADABLE.contains(&key)
}

pub(super) const RELOADABLE: [&str; 23] = [
    "ca_file",
    "cert_file",
    "key_file",
    "crl_file",
    "resp_level",
    "resp_socket_level",
    "keyspace_levels",
    "sloppy",
    "keyspace_sloppy",
    "hint_replay_bytes_per_s",
    "repair_bytes_per_s",
    "resp_password_file",
    "resp_tls_cert",
    "resp_tls_key",
    "connections_max",
    "client_timeout",
    "unfinished_timeout",
    "client_input_bytes_max",
    "unread_timeout",
    "log",
    "slowlog_threshold",
    "slowlog_keys",
    "script_timeout",
];
