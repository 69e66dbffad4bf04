//! The texts of `INFO` and `CONFIG GET`: what Redis tools look for, and what is ours.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use super::Shared;
use super::plan::VALUES_BYTES_MAX;
use crate::front::channels::{MAILBOX_BYTES_MAX, MAILBOX_SOFT_BYTES, MAILBOX_SOFT_MAX};
use crate::model::Database;
use crate::resp::{Args, CommandKind, REDIS_VERSION, matches};

/// The sections asked for; the default ones when none or `default` is; all when `all` or
/// `everything` is.
pub(super) fn text(shared: &Shared, wanted: &[&[u8]]) -> String {
    let is_wanted = |(name, by_default, _): &&Section| {
        let asked = |word: &str| {
            wanted
                .iter()
                .any(|w| w.eq_ignore_ascii_case(word.as_bytes()))
        };
        asked(name)
            || asked("all")
            || asked("everything")
            || (*by_default && (wanted.is_empty() || asked("default")))
    };
    let sections = SECTIONS.iter().filter(is_wanted).map(|(name, _, fields)| {
        let mut title = (*name).to_owned();
        if let Some(first) = title.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        let mut text = format!("# {title}\r\n");
        fields(shared, &mut text);
        text
    });
    sections.collect::<Vec<_>>().join("\r\n")
}

/// The value of a setting of Redis, if this node has it.
pub(super) fn setting(shared: &Shared, name: &[u8]) -> Option<String> {
    let mut known = settings(shared).into_iter();
    let found = known.find(|(known, _)| known.as_bytes() == name);
    found.map(|(_, value)| value)
}

/// What Redis would call its settings.
fn settings(shared: &Shared) -> Vec<(&'static str, String)> {
    let config = shared.config();
    vec![
        ("appendonly", "no".to_owned()),
        (
            "client-output-buffer-limit",
            // Class, hard limit, soft limit, and for how many seconds there may be more than that. Of
            // replies nobody has more waiting than the soft limit: nothing more is carried out for a
            // client before it has read them. No client is a replica.
            format!(
                "normal 0 {VALUES_BYTES_MAX} {seconds} slave 0 0 0 pubsub {MAILBOX_BYTES_MAX} \
                 {MAILBOX_SOFT_BYTES} {mailbox_seconds}",
                seconds = config.write_max.as_secs().max(1),
                mailbox_seconds = MAILBOX_SOFT_MAX.as_secs(),
            ),
        ),
        ("databases", Database::COUNT.to_string()),
        ("maxclients", config.connections_max.to_string()),
        ("maxmemory", "0".to_owned()),
        ("maxmemory-policy", "noeviction".to_owned()),
        // Nobody is told of what happens to keys.
        ("notify-keyspace-events", String::new()),
        ("proto-max-bulk-len", config.value_bytes_max.to_string()),
        ("save", String::new()),
        (
            "slowlog-log-slower-than",
            config.slow.threshold.as_micros().to_string(),
        ),
        ("timeout", config.idle_max.as_secs().to_string()),
    ]
}

/// Settings that match one of the patterns, as pairs of name and value.
pub(super) fn config(shared: &Shared, patterns: Args<'_>) -> Vec<(&'static str, String)> {
    let known = settings(shared);
    let patterns: Vec<Vec<u8>> = patterns.iter().map(<[u8]>::to_ascii_lowercase).collect();
    let is_wanted = |name: &str| patterns.iter().any(|p| matches(p, name.as_bytes()));
    known
        .into_iter()
        .filter(|(name, _)| is_wanted(name))
        .collect()
}

type Section = (&'static str, bool, fn(&Shared, &mut String));

const SECTIONS: &[Section] = &[
    ("server", true, server),
    ("clients", true, clients),
    ("memory", true, memory),
    ("persistence", true, persistence),
    ("stats", true, stats),
    ("replication", true, replication),
    ("cpu", true, cpu),
    ("commandstats", false, command_stats),
    ("errorstats", true, error_stats),
    ("cluster", true, cluster),
    ("keyspace", true, keyspace),
    ("quorate", true, quorate),
];

/// Writing to a String cannot fail.
macro_rules! line {
    ($text:expr, $($arg:tt)*) => {{ let _written = write!($text, "{}\r\n", format_args!($($arg)*)); }};
}

fn server(shared: &Shared, text: &mut String) {
    let uptime = shared.facts.local().uptime_s;
    line!(text, "redis_version:{REDIS_VERSION}");
    line!(text, "redis_mode:standalone");
    line!(
        text,
        "os:{} {}",
        std::env::consts::OS,
        std::env::consts::ARCH
    );
    line!(text, "arch_bits:{}", usize::BITS);
    line!(text, "process_id:{}", std::process::id());
    line!(
        text,
        "tcp_port:{}",
        shared.config().listen.map_or(0, |addr| addr.port())
    );
    line!(
        text,
        "server_time_usec:{}",
        shared.env.clock.wall().0.saturating_mul(1_000)
    );
    line!(text, "uptime_in_seconds:{uptime}");
    line!(text, "uptime_in_days:{}", uptime / 86_400);
    line!(text, "executable:quorate");
}

fn clients(shared: &Shared, text: &mut String) {
    line!(
        text,
        "connected_clients:{}",
        load(&shared.stats.connections_open)
    );
    line!(text, "maxclients:{}", shared.config().connections_max);
    line!(text, "blocked_clients:0");
}

fn memory(shared: &Shared, text: &mut String) {
    let bytes = shared.facts.local().bytes;
    line!(text, "used_memory:{bytes}");
    line!(text, "used_memory_human:{:.2}M", bytes_to_mib(bytes));
    line!(text, "used_memory_dataset:{bytes}");
    line!(text, "maxmemory:0");
    line!(text, "maxmemory_human:0B");
    line!(text, "maxmemory_policy:noeviction");
}

fn persistence(_: &Shared, text: &mut String) {
    line!(text, "loading:0");
    line!(text, "rdb_bgsave_in_progress:0");
    line!(text, "aof_enabled:0");
}

fn stats(shared: &Shared, text: &mut String) {
    let stats = &shared.stats;
    line!(
        text,
        "total_connections_received:{}",
        stats.since_reset(&stats.connections_accepted)
    );
    line!(
        text,
        "total_commands_processed:{}",
        stats.commands_since_reset()
    );
    line!(
        text,
        "rejected_connections:{}",
        stats.since_reset(&stats.connections_refused)
    );
    line!(text, "keyspace_hits:{}", stats.since_reset(&stats.hits));
    line!(text, "keyspace_misses:{}", stats.since_reset(&stats.misses));
    line!(text, "evicted_keys:0");
}

fn replication(_: &Shared, text: &mut String) {
    // Tools take anything but a master for read-only; every node takes writes here.
    line!(text, "role:master");
    line!(text, "connected_slaves:0");
}

fn cpu(_: &Shared, _: &mut String) {}

fn command_stats(shared: &Shared, text: &mut String) {
    for kind in CommandKind::ALL {
        let (answered, failed) = shared.stats.of_since_reset(kind);
        if answered + failed > 0 {
            let (name, calls) = (kind.name(), answered + failed);
            line!(
                text,
                "cmdstat_{name}:calls={calls},rejected_calls=0,failed_calls={failed}"
            );
        }
    }
}

fn error_stats(shared: &Shared, text: &mut String) {
    let refused = load(&shared.stats.refused);
    if refused > 0 {
        line!(text, "errorstat_ERR:count={refused}");
    }
}

fn cluster(_: &Shared, text: &mut String) {
    // To a client this is one server: it needs no cluster protocol to reach every key.
    line!(text, "cluster_enabled:0");
}

fn keyspace(shared: &Shared, text: &mut String) {
    let keys = shared.facts.ring_keys();
    if keys > 0 {
        line!(text, "db0:keys={keys},expires=0,avg_ttl=0");
    }
}

fn quorate(shared: &Shared, text: &mut String) {
    let view = shared.coordinator.view();
    let config = shared.coordinator.config();
    let facts = shared.facts.local();
    let counted = shared.coordinator.stats();
    line!(text, "quorate_version:{}", env!("CARGO_PKG_VERSION"));
    line!(text, "cluster:{}", view.params().cluster);
    line!(text, "n:{}", view.params().n);
    line!(text, "r:{}", config.quorum.r());
    line!(text, "w:{}", config.quorum.w());
    line!(text, "partitions:{}", view.params().partitions.count());
    line!(text, "ring_version:{:016x}", view.version());
    line!(text, "members:{}", view.members().len());
    line!(
        text,
        "members_reachable:{}",
        view.members().iter().filter(|m| m.reachable).count()
    );
    line!(text, "local_keys:{}", facts.keys);
    line!(text, "local_tombstones:{}", facts.tombstones);
    line!(text, "local_bytes:{}", facts.bytes);
    line!(text, "read_repairs:{}", load(&counted.read_repairs));
    line!(
        text,
        "superseded_writes:{}",
        load(&counted.superseded_writes)
    );
    line!(text, "quorums_not_met:{}", load(&counted.quorums_not_met));
}

fn load(counter: &std::sync::atomic::AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[expect(clippy::cast_precision_loss, reason = "for people to read, two digits")]
fn bytes_to_mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
