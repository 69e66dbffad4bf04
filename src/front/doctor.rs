//! What is wrong with a node and its cluster as it sees it, and what to do about it.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::certificates::{CertificateWatch, ending};
use super::resp_server::RespServer;
use crate::env::{LONG_DELAY, LongDelay, SchedulerWatch};
use crate::model::NodeTag;
use crate::node::membership::Load;
use crate::node::status::NodeStatus;
use crate::ring::Member;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// It works, and could be better or will not for long.
    Warning,
    /// Something is wrong.
    Problem,
}

/// One thing that was looked at. The JSON of `quorate doctor`: names are a contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// How it is.
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub advice: Option<String>,
}

/// All findings of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorReport {
    /// The node that tells this.
    #[serde(rename = "self")]
    pub self_id: String,
    /// The worst first.
    pub findings: Vec<Finding>,
}

/// What the doctor has to know of how the node was set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the node keeps what it must remember.
    pub data_dir: PathBuf,
    /// As much disk as its hints may take.
    pub hint_bytes_max: u64,
    /// TCP addresses that it listens on, with the keys that set them.
    pub listens: Vec<(&'static str, SocketAddr)>,
}

/// Looks at everything.
#[derive(Debug, Clone)]
pub struct Doctor {
    /// The node.
    pub status: NodeStatus,
    /// Its certificates.
    pub certificates: Arc<CertificateWatch>,
    /// Its Redis clients.
    pub resp: RespServer,
    /// How it was set up.
    pub config: Arc<Config>,
    /// How long its threads went without a turn.
    pub scheduler: Arc<SchedulerWatch>,
}

impl Finding {
    /// All is well.
    #[must_use]
    pub fn ok(check: &str, found: impl Into<String>) -> Self {
        Self {
            check: check.to_owned(),
            severity: Severity::Ok,
            found: found.into(),
            advice: None,
        }
    }

    /// It works, and could be better.
    #[must_use]
    pub fn warning(check: &str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            advice: Some(advice.into()),
            ..Self::ok(check, found)
        }
    }

    /// Something is wrong.
    #[must_use]
    pub fn problem(check: &str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            severity: Severity::Problem,
            ..Self::warning(check, found, advice)
        }
    }
}

impl Doctor {
    /// Looks at everything now.
    pub async fn examine(&self) -> DoctorReport {
        self.status.clocks.ask_all().await;
        let mut findings = self.members();
        findings.extend(self.refusals());
        findings.extend(self.quorums());
        findings.extend(self.ring().await);
        findings.extend(self.settings());
        findings.extend(self.clocks());
        findings.extend(self.certificates());
        findings.extend(self.disk());
        findings.extend(self.limits());
        findings.extend(self.ports().await);
        findings.extend(self.memory());
        findings.extend(self.threads());
        findings.extend(self.replicas());
        findings.extend(self.requests());
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        DoctorReport {
            self_id: self.status.self_id.to_string(),
            findings,
        }
    }

    fn others(&self) -> Vec<Member> {
        let view = self.status.coordinator.view();
        let members = view.members().iter();
        let others = members.filter(|member| member.id != self.status.self_id);
        others.cloned().collect()
    }

    fn load_of(&self, member: &Member) -> Option<Load> {
        self.status.membership.loads().get(&member.id).cloned()
    }

    fn members(&self) -> Vec<Finding> {
        const CHECK: &str = "nodes";
        let others = self.others();
        let mut findings = Vec::new();
        for member in others.iter().filter(|member| !member.reachable) {
            let load = self.load_of(member);
            if load.is_some_and(|load| load.is_stopping) {
                let found = format!("{} said that it was being stopped, and is away", member.id);
                let advice =
                    "start it again if it is to stay in the ring: requests go on without it";
                findings.push(Finding::problem(CHECK, found, advice));
                continue;
            }
            let found = format!("{} at {} cannot be reached", member.id, member.quic);
            let advice = format!(
                "look whether it runs there (`systemctl status quorate`; a process that is stopped \
                 by SIGSTOP or hangs looks the same), whether UDP to {} gets through, and in its \
                 log whether it refuses this node; requests go on without it",
                member.quic
            );
            findings.push(Finding::problem(CHECK, found, advice));
        }
        for stranger in self.status.membership.strangers() {
            let found = format!(
                "{} has other parameters and is kept out of the ring: `{}` there, `{}` here",
                stranger.id, stranger.theirs, stranger.ours
            );
            let advice = "give it the same n and partitions as the others, and the same release of \
                          quorate if `wire` differs, then restart it";
            findings.push(Finding::problem("parameters", found, advice));
        }
        if findings.is_empty() {
            let found = match others.len() {
                0 => "this node is alone in its ring".to_owned(),
                count => format!("all {count} other nodes can be reached"),
            };
            findings.push(Finding::ok(CHECK, found));
        }
        findings
    }

    /// Who was not let in of late, or did not let this node in.
    fn refusals(&self) -> Vec<Finding> {
        const CHECK: &str = "connections";
        let since = self
            .status
            .env
            .clock
            .wall()
            .0
            .saturating_sub(REFUSED_LATELY_MS);
        let refusals = self.status.endpoint.refusals().into_iter();
        let recent = refusals.filter(|refused| refused.at.0 >= since);
        let findings: Vec<_> = recent
            .map(|refused| {
                let found = format!("none with {}: {}", refused.with, refused.reason);
                let advice = "if that is a node of this cluster, give it a certificate that holds \
                              (`quorate certs show` and `quorate doctor` there), the right ca_file, \
                              or another name; if it is not, keep it from this port";
                // Anybody can knock: only who has a name in some cluster is somebody's fault.
                if refused.reason.contains("quorate://") {
                    Finding::problem(CHECK, found, advice)
                } else {
                    Finding::warning(CHECK, found, advice)
                }
            })
            .collect();
        if findings.is_empty() {
            return vec![Finding::ok(CHECK, "none was refused in the last minute")];
        }
        findings
    }

    fn quorums(&self) -> Vec<Finding> {
        const CHECK: &str = "quorums";
        let view = self.status.coordinator.view();
        let quorum = self.status.coordinator.config().quorum;
        let need = usize::from(quorum.r().max(quorum.w()));
        let is_up = |tag: &&NodeTag| view.member(**tag).is_some_and(|member| member.reachable);
        let partitions = view.params().partitions.all();
        let short = partitions
            .filter(|&partition| view.homes(partition).iter().filter(is_up).count() < need)
            .count();
        if short == 0 {
            let found = format!("{need} homes of every key can be reached");
            return vec![Finding::ok(CHECK, found)];
        }
        let found = format!(
            "{short} of {} partitions have fewer than the {need} reachable homes that r = {} and \
             w = {} need",
            view.params().partitions.count(),
            quorum.r(),
            quorum.w()
        );
        let advice = "start the nodes that are away, or add nodes: until then stand-ins take writes \
                      where there are any, and other requests answer NOQUORUM";
        vec![Finding::problem(CHECK, found, advice)]
    }

    async fn ring(&self) -> Vec<Finding> {
        const CHECK: &str = "ring";
        let mut differing = self.other_rings();
        if !differing.is_empty() {
            // News of a change takes a few rounds.
            tokio::time::sleep(NEWS_MAX).await;
            let still = self.other_rings();
            differing.retain(|id| still.contains(id));
        }
        if differing.is_empty() {
            return vec![Finding::ok(CHECK, "all reachable nodes place keys alike")];
        }
        let found = format!("{} see another ring than this node", differing.join(", "));
        let advice = "compare `quorate ring status` of both: a node that one of them lacks cannot \
                      reach it, or is refused by it";
        vec![Finding::problem(CHECK, found, advice)]
    }

    fn other_rings(&self) -> Vec<String> {
        let own = self.status.coordinator.view().version();
        let reachable = self.others().into_iter().filter(|member| member.reachable);
        let is_other = |member: &Member| self.load_of(member).is_some_and(|load| load.ring != own);
        let differing = reachable.filter(|member| is_other(member));
        differing.map(|member| member.id.to_string()).collect()
    }

    fn settings(&self) -> Vec<Finding> {
        const CHECK: &str = "parameters";
        let (own, mut findings) = (self.status.settings, Vec::new());
        for member in self.others().into_iter().filter(|member| member.reachable) {
            let Some(load) = self.load_of(&member) else {
                continue;
            };
            let (id, theirs) = (&member.id, load.settings);
            let pairs = [
                ("r", u64::from(theirs.r), u64::from(own.r)),
                ("w", u64::from(theirs.w), u64::from(own.w)),
                (
                    "hint_window (ms)",
                    theirs.hint_window_ms,
                    own.hint_window_ms,
                ),
                (
                    "max_clock_drift (ms)",
                    theirs.clock_drift_ms,
                    own.clock_drift_ms,
                ),
            ];
            for (key, theirs, ours) in pairs.into_iter().filter(|(_, a, b)| a != b) {
                let found = format!("{key} is {theirs} on {id} and {ours} here");
                let advice = format!("set {key} alike on all nodes and restart those that change");
                findings.push(Finding::problem(CHECK, found, advice));
            }
            let own_version = env!("CARGO_PKG_VERSION");
            if load.version != own_version {
                let found = format!(
                    "{id} runs release {}, this node {own_version}",
                    load.version
                );
                let advice = "finish the upgrade: one node after the other";
                findings.push(Finding::warning(CHECK, found, advice));
            }
        }
        if findings.is_empty() {
            findings.push(Finding::ok(CHECK, "the same on all reachable nodes"));
        }
        findings
    }

    fn clocks(&self) -> Vec<Finding> {
        const CHECK: &str = "clocks";
        let view = self.status.coordinator.view();
        let drift_max = i64::try_from(self.status.settings.clock_drift_ms).unwrap_or(i64::MAX);
        let known = self.status.clocks.known();
        let mut worst = 0;
        let mut findings = Vec::new();
        let wall = self.status.env.clock.wall();
        if let Some(drift) = self.status.replica.clock_ahead(wall) {
            let found = format!("the hybrid clock of this node: {drift}");
            let advice = "its writes are refused until most other nodes can be asked: it drops the \
                          clock then; look at their clocks and at this one";
            findings.push(Finding::problem(CHECK, found, advice));
        }
        if let Some(ahead) = self.status.replica.refused_ahead_ms() {
            let found = format!(
                "most nodes refuse the clock of this one, {} ahead: it coordinates no requests",
                seconds(ahead)
            );
            let advice = "set the clock of this machine right (`timedatectl`, chrony)";
            findings.push(Finding::problem(CHECK, found, advice));
        }
        // With all others off by the same, it is this node that is wrong.
        let is_off = |ms: i64| ms.abs() > OFFSET_WARN_MS;
        let is_own = known.len() > 1 && known.values().all(|offset| is_off(offset.ahead_ms));
        for (tag, offset) in &known {
            let Some(member) = view.member(*tag) else {
                continue;
            };
            let ms = offset.ahead_ms;
            worst = worst.max(ms.abs());
            if ms.abs() - offset.error_ms <= OFFSET_WARN_MS {
                continue;
            }
            let side = if ms > 0 { "ahead of" } else { "behind" };
            let found = format!(
                "the clock of {} is {} {side} this node's{}",
                member.id,
                seconds(ms.unsigned_abs()),
                if is_own {
                    ", like that of every other node"
                } else {
                    ""
                }
            );
            let whose = if is_own {
                "this machine"
            } else {
                member.id.as_str()
            };
            let advice = format!(
                "set the clock of {whose} right (`timedatectl`, chrony); beyond max_clock_drift = {} \
                 its writes are refused",
                seconds(self.status.settings.clock_drift_ms)
            );
            findings.push(if ms.abs() > drift_max / 2 {
                Finding::problem(CHECK, found, advice)
            } else {
                Finding::warning(CHECK, found, advice)
            });
        }
        if findings.is_empty() {
            let worst = u64::try_from(worst).unwrap_or(u64::MAX);
            let found = format!(
                "{} peers asked, at most {} off",
                known.len(),
                seconds(worst)
            );
            findings.push(Finding::ok(CHECK, found));
        }
        findings
    }

    fn certificates(&self) -> Vec<Finding> {
        const CHECK: &str = "certificates";
        let now = self.status.env.clock.wall();
        let credentials = self.status.endpoint.credentials();
        let own = &self.status.self_id;
        let mut findings = Vec::new();
        for (which, until) in self.certificates.ends(&credentials) {
            let (whose, advice) = match which {
                "ca" => (
                    "an authority in ca_file".to_owned(),
                    "change authorities in three steps: README, \"Certificates\"".to_owned(),
                ),
                "resp" => (
                    "the certificate for Redis clients (resp_tls_cert)".to_owned(),
                    "renew it: the node takes the new file by itself".to_owned(),
                ),
                _ => (
                    format!("the certificate of this node, {own}, (cert_file)"),
                    format!(
                        "`quorate certs issue --node {own} --force` where the authority is, and copy \
                         certificate and key here: the node takes them by itself"
                    ),
                ),
            };
            if let Some(found) = ending(&whose, until, now) {
                findings.push(Finding::problem(CHECK, found, advice));
            }
        }
        for member in self.others() {
            let until = self
                .load_of(&member)
                .and_then(|load| load.certificate_until);
            let whose = format!("the certificate of {}", member.id);
            if let Some(found) = until.and_then(|until| ending(&whose, until, now)) {
                let advice = format!(
                    "`quorate certs issue --node {} --force` where the authority is, and copy both \
                     files to its machine",
                    member.id
                );
                findings.push(Finding::problem(CHECK, found, advice));
            }
        }
        if let Some(error) = self.certificates.error() {
            let found = format!("the files have changed and cannot be used: {error}");
            let advice = "put them right: until then the node goes on with those it had";
            findings.push(Finding::problem(CHECK, found, advice));
        }
        let revocations = credentials.revocations();
        if revocations.foreign() > 0 {
            let found = "crl_file holds a list that no authority in ca_file has signed: it has no \
                         effect";
            let advice = "take it out, or write the list of the right authority";
            findings.push(Finding::warning(CHECK, found, advice));
        }
        if revocations.next_update().is_some_and(|due| due < now) {
            let found = "the revocation list in crl_file should have been followed by another; it \
                         still counts";
            let advice = "write it anew: `quorate certs revoke --dir DIR` without a name does that";
            findings.push(Finding::warning(CHECK, found, advice));
        }
        if findings.is_empty() {
            let found = format!("none ends soon, {} taken back", revocations.len());
            findings.push(Finding::ok(CHECK, found));
        }
        findings
    }

    fn disk(&self) -> Vec<Finding> {
        const CHECK: &str = "disk";
        let dir = self.config.data_dir.display();
        let mut findings = Vec::new();
        if let Some(error) = self.status.handoff.journal_health().error {
            let found = format!("the disk takes no hints: {error}");
            let advice = format!(
                "make room on the disk of {dir}, or replace it: this node refuses \
                                  to stand in for others until then, and tries again by itself"
            );
            findings.push(Finding::problem(CHECK, found, advice));
        }
        let free = match rustix::fs::statvfs(&self.config.data_dir) {
            Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
            Err(error) => {
                let found = format!("cannot look at {dir} (data_dir): {error}");
                let advice = "look at its permissions and whether its file system is mounted";
                findings.push(Finding::problem(CHECK, found, advice));
                return findings;
            }
        };
        let wanted = self.config.hint_bytes_max;
        let wanted = wanted.saturating_sub(self.status.handoff.bytes());
        let found = format!("{} free for {dir} (data_dir)", size(free));
        let advice = format!(
            "make room: the hints of this node may take {} more (hint_max_bytes), and a node that \
             cannot keep them cannot stand in for others",
            size(wanted)
        );
        if free < FREE_BYTES_MIN.min(wanted) {
            findings.push(Finding::problem(CHECK, format!("only {found}"), advice));
        } else if free < wanted {
            findings.push(Finding::warning(CHECK, format!("only {found}"), advice));
        } else if findings.is_empty() {
            findings.push(Finding::ok(CHECK, found));
        }
        findings
    }

    fn limits(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let clients = self.resp.connections_max();
        let wanted = clients + FILES_BESIDE_CLIENTS;
        match files {
            Some(files) if files < wanted => {
                let found = format!("{files} files may be open at once");
                let advice = format!(
                    "raise it to {wanted} for {clients} clients (connections_max): LimitNOFILE= in \
                     the unit, `ulimit -n` in a shell"
                );
                findings.push(Finding::warning("file limits", found, advice));
            }
            files => {
                let files = files.map_or_else(|| "any number of".to_owned(), |n| n.to_string());
                let found = format!("{files} files may be open at once");
                findings.push(Finding::ok("file limits", found));
            }
        }
        let (receive, send, wanted) = self.status.endpoint.socket_buffers();
        let found = format!(
            "{} for receiving, {} for sending",
            size(receive as u64),
            size(send as u64)
        );
        if receive.min(send) < wanted {
            let advice = format!(
                "`sysctl -w net.core.rmem_max={wanted} net.core.wmem_max={wanted}`, and the same in \
                 /etc/sysctl.d, then restart: with less, bursts between nodes lose packets and wait"
            );
            findings.push(Finding::warning("UDP buffers", found, advice));
        } else {
            findings.push(Finding::ok("UDP buffers", found));
        }
        findings
    }

    async fn ports(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (key, addr) in &self.config.listens {
            let to = match addr.ip().is_unspecified() {
                true if addr.is_ipv6() => SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], addr.port())),
                true => SocketAddr::from(([127, 0, 0, 1], addr.port())),
                false => *addr,
            };
            let failed = match timeout(CONNECT_MAX, TcpStream::connect(to)).await {
                Ok(Ok(_)) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            let found = format!("{addr} ({key}) does not take connections: {failed}");
            let advice = "look into the log for why, and whether a packet filter blocks it";
            findings.push(Finding::problem("ports", found, advice));
        }
        if findings.is_empty() {
            let all = self.config.listens.iter();
            let all: Vec<_> = all.map(|(key, addr)| format!("{key} {addr}")).collect();
            findings.push(Finding::ok("ports", all.join(", ")));
        }
        if self.resp.has_plain_password() {
            let found = "resp_password_file holds the password itself";
            let advice =
                "keep its hash there: `quorate passwd > FILE`, then `systemctl reload quorate`";
            findings.push(Finding::warning("password", found, advice));
        }
        findings
    }

    fn memory(&self) -> Vec<Finding> {
        const CHECK: &str = "memory";
        let own = resident_bytes().unwrap_or(0);
        let limit = memory_limit();
        let found = format!(
            "{} in use, {} of them records{}",
            size(own),
            size(self.status.store.bytes()),
            limit.map_or_else(String::new, |limit| format!(
                "; the limit is {}",
                size(limit)
            ))
        );
        let advice = "give keys an end (EX), add nodes, or raise the limit (MemoryMax=, resources in \
                      the manifest): records are not evicted yet";
        match limit {
            Some(limit) if own > limit / 20 * 19 => {
                vec![Finding::problem(CHECK, found, advice)]
            }
            Some(limit) if own > limit / 5 * 4 => vec![Finding::warning(CHECK, found, advice)],
            _ => vec![Finding::ok(CHECK, found)],
        }
    }

    /// Whether threads that serve requests were held up of late.
    fn threads(&self) -> Vec<Finding> {
        const CHECK: &str = "threads";
        let now = self.status.env.clock.monotonic();
        let lately = Duration::from_millis(LATELY_MS);
        let delays = self.scheduler.long_delays().into_iter();
        let (of_process, of_workers): (Vec<_>, Vec<_>) = delays
            .filter(|delay| now.saturating_duration_since(delay.at) < lately)
            .partition(|delay| delay.is_of_process);
        let longest = |delays: &[LongDelay]| {
            let lengths = delays.iter().map(|delay| delay.length);
            seconds(millis(lengths.max().unwrap_or_default()))
        };
        let mut findings = Vec::new();
        let stalled = self.scheduler.stalled();
        if stalled >= LONG_DELAY {
            let found = format!(
                "a thread that serves requests has had no turn for {}",
                seconds(millis(stalled))
            );
            findings.push(Finding::problem(CHECK, found, HELD_UP));
        } else if !of_workers.is_empty() {
            let found = format!(
                "threads that serve requests were held up {} times in the last five minutes, for {} at \
                 most",
                of_workers.len(),
                longest(&of_workers)
            );
            findings.push(Finding::problem(CHECK, found, HELD_UP));
        }
        if !of_process.is_empty() {
            let found = format!(
                "the machine gave this process no processor {} times in the last five minutes, for {} \
                 at most",
                of_process.len(),
                longest(&of_process)
            );
            let advice = "give it more: CPUWeight=, CPUQuota= in the unit, resources in the manifest; \
                          move what else runs there";
            findings.push(Finding::warning(CHECK, found, advice));
        }
        if findings.is_empty() {
            let found = "none was held up for 100 ms in the last five minutes";
            findings.push(Finding::ok(CHECK, found));
        }
        findings
    }

    fn replicas(&self) -> Vec<Finding> {
        const CHECK: &str = "replicas";
        let mut findings = Vec::new();
        let unsure = self.status.unsure_partitions();
        if self.status.replica.is_waiting_for_room() {
            let found = format!(
                "{unsure} partitions are not copied from other homes: there is no memory for them"
            );
            let advice = "raise the memory limit, delete keys, or add nodes; this node serves what it \
                          holds and goes on by itself when there is room";
            findings.push(Finding::problem(CHECK, found, advice));
        } else if unsure > 0 {
            let found = format!("{unsure} partitions are not caught up since this node started");
            let advice = "wait, and restart no other node until it is done; if it does not end, \
                          other homes are away";
            findings.push(Finding::warning(CHECK, found, advice));
        }
        let differing = self.status.anti_entropy.differing();
        if differing > 0 {
            let found = format!("{differing} partitions differ from those of other homes");
            let advice = "they are being repaired: `quorate repair status --watch`";
            findings.push(Finding::warning(CHECK, found, advice));
        }
        let hints = self.status.hints();
        if hints.count > 0 {
            let homes: Vec<_> = hints.homes.iter().map(|home| home.node.as_str()).collect();
            let found = format!(
                "{} hints wait here for {}, {} of {}",
                hints.count,
                homes.join(", "),
                size(hints.bytes),
                size(hints.bytes_max)
            );
            let advice = "they are given back as soon as that node can be reached: `quorate hints`";
            findings.push(Finding::warning(CHECK, found, advice));
        }
        if findings.is_empty() {
            findings.push(Finding::ok(CHECK, "caught up, no differences, no hints"));
        }
        findings
    }

    fn requests(&self) -> Vec<Finding> {
        const CHECK: &str = "requests";
        let since = self.status.env.clock.wall().0.saturating_sub(LATELY_MS);
        let entries = self.resp.slow_entries(usize::MAX).into_iter();
        let recent = entries.filter(|entry| entry.at_ms >= since && entry.error.is_some());
        match recent.count() {
            0 => vec![Finding::ok(
                CHECK,
                "none noted as failed in the last five minutes",
            )],
            failed => {
                let found = format!("{failed} noted as failed in the last five minutes");
                let advice = "`quorate slowlog` tells which and why";
                vec![Finding::warning(CHECK, found, advice)]
            }
        }
    }
}

/// Memory of this process that is in RAM.
pub(crate) fn resident_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(rustix::param::page_size() as u64))
}

/// Files that this process has open.
pub(super) fn open_files() -> Option<u64> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count() as u64)
}

/// The memory that the control group of this process may take, if it has a limit.
pub(crate) fn memory_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    // Version 2 has one line: `0::/path`.
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let path = PathBuf::from("/sys/fs/cgroup").join(path.trim_start_matches('/'));
    let limit = fs::read_to_string(path.join("memory.max")).ok()?;
    limit.trim().parse().ok()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "for people to read, two digits")]
fn seconds(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        _ => format!("{:.1} s", ms as f64 / 1_000.0),
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people to read, two digits")]
fn size(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1_024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

const HELD_UP: &str = "`quorate slowlog` tells which requests took long; look whether other programs of \
    the machine take its processors, and give the node more of them (threads)";
/// Clocks that are kept right differ by milliseconds.
const OFFSET_WARN_MS: i64 = 500;
/// With less, hardly anything can be kept.
const FREE_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// Peers, tools, the log, the journal.
const FILES_BESIDE_CLIENTS: u64 = 200;
/// Some rounds of gossip.
const NEWS_MAX: Duration = Duration::from_millis(1_500);
const CONNECT_MAX: Duration = Duration::from_secs(1);
const REFUSED_LATELY_MS: u64 = 60 * 1_000;
const LATELY_MS: u64 = 5 * 60 * 1_000;
