//! The counters of all rooms as metrics, read when someone asks.

mod machine;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::certificates::CertificateWatch;
use super::resp_server::{BOUNDS_US, RespServer};
use crate::env::SchedulerWatch;
use crate::model::Level;
use crate::node::staleness::Freshness;
use crate::node::status::NodeStatus;
use crate::resp::CommandKind;

/// Where the counters are.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Those of the RESP door.
    pub resp: RespServer,
    /// What is known of the certificates.
    pub certificates: Arc<CertificateWatch>,
    /// How long threads went without a turn.
    pub scheduler: Arc<SchedulerWatch>,
}

impl Metrics {
    /// What `/metrics` says that it is.
    pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// All metrics as text.
    pub fn render(&self, status: &NodeStatus) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("quorate");
        let snapshot = Snapshot {
            metrics: self.clone(),
            status: status.clone(),
        };
        registry.register_collector(Box::new(snapshot));
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

const fn counter(name: &'static str, help: &'static str, counted: u64) -> Counter {
    Counter {
        name,
        help,
        counted,
    }
}

#[derive(Debug)]
struct Snapshot {
    metrics: Metrics,
    status: NodeStatus,
}

/// A counter without labels.
struct Counter {
    name: &'static str,
    help: &'static str,
    counted: u64,
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut encoder;
        self.requests(out)?;
        self.store(out)?;
        self.peers(out)?;
        self.staleness(out)?;
        self.hints(out)?;
        self.entropy(out)?;
        self.connections(out)?;
        self.certificates(out)?;
        self.machine(out)?;
        self.scheduler(out)?;
        let counters = self.door_counters().into_iter();
        let counters = counters.chain(self.room_counters());
        let counters = counters.chain(self.update_counters());
        for Counter {
            name,
            help,
            counted,
        } in counters
        {
            count(out, name, help, counted)?;
        }
        Ok(())
    }
}

impl Snapshot {
    fn requests(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let stats = self.metrics.resp.stats();
        let help = "Commands carried out";
        let mut family = out.encode_descriptor("requests", help, None, MetricType::Counter)?;
        for kind in CommandKind::ALL {
            let (answered, failed) = stats.of(kind);
            for (outcome, counted) in [("ok", answered), ("error", failed)] {
                if counted > 0 {
                    let labels = [("command", kind.name()), ("outcome", outcome)];
                    ConstCounter::new(counted).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        let help = "How long commands took, each with all that came in one go with it, in seconds";
        let mut family =
            out.encode_descriptor("request_seconds", help, None, MetricType::Histogram)?;
        let levels = Level::EVERY.into_iter().map(Some).chain([None]);
        let series = levels.flat_map(|level| CommandKind::ALL.map(|kind| (kind, level)));
        for (kind, level) in series {
            let latencies = stats.seconds(kind, level);
            let counts = latencies.counts();
            let count: u64 = counts.iter().sum();
            if count == 0 {
                continue;
            }
            let bounds = BOUNDS_US.iter().map(|&us| seconds(us));
            let buckets: Vec<_> = bounds.chain([f64::INFINITY]).zip(counts).collect();
            let level = level.map_or("none", Level::name);
            let labels = [("command", kind.name()), ("level", level)];
            let sum = seconds(latencies.sum_us());
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        let help = "Commands that do not exist, by name";
        let mut family =
            out.encode_descriptor("unknown_commands", help, None, MetricType::Counter)?;
        for (name, counted) in stats.unknown() {
            let labels = [("command", name.as_str())];
            ConstCounter::new(counted).encode(family.encode_family(&labels)?)?;
        }
        self.quorums(out)?;
        gauge(
            out,
            "connections_open",
            "RESP connections open now",
            load(&stats.connections_open),
        )
    }

    fn quorums(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let stats = self.status.coordinator.stats();
        let help = "What became of the quorums that requests needed";
        let mut family = out.encode_descriptor("quorums", help, None, MetricType::Counter)?;
        for (operation, outcomes) in [("read", &stats.reads), ("write", &stats.writes)] {
            for (outcome, counted) in [
                ("met", &outcomes.met),
                ("sloppy", &outcomes.sloppy),
                ("not_met", &outcomes.not_met),
            ] {
                let labels = [("operation", operation), ("outcome", outcome)];
                ConstCounter::new(load(counted)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    /// Counters of the RESP door.
    fn door_counters(&self) -> [Counter; 10] {
        let stats = self.metrics.resp.stats();
        let counter = |name, help, counter| Counter {
            name,
            help,
            counted: load(counter),
        };
        [
            counter("read_hits", "Reads that found a value", &stats.hits),
            counter("read_misses", "Reads that found none", &stats.misses),
            counter("failed_logins", "Wrong passwords", &stats.failed_logins),
            counter(
                "refused_logins",
                "Passwords not looked at, soon after a wrong one of the same address",
                &stats.refused_logins,
            ),
            counter(
                "protocol_errors",
                "Clients closed for broken RESP",
                &stats.protocol_errors,
            ),
            counter(
                "refused_commands",
                "Commands unknown or misused",
                &stats.refused,
            ),
            counter(
                "connections_accepted",
                "Clients accepted",
                &stats.connections_accepted,
            ),
            counter(
                "connections_refused",
                "Clients over the limit",
                &stats.connections_refused,
            ),
            counter(
                "unread_closed",
                "Clients closed for not reading",
                &stats.unread_closed,
            ),
            counter(
                "replies_cut",
                "Clients closed in the middle of a reply",
                &stats.replies_cut,
            ),
        ]
    }

    /// Counters of coordinator, replica, membership and network.
    fn room_counters(&self) -> [Counter; 12] {
        let stats = self.status.coordinator.stats();
        let net = self.status.endpoint.stats();
        let drift = self.status.replica.drift_refusals();
        let gossip = self.status.membership.refused_messages();
        let of = load;
        [
            counter(
                "read_repairs",
                "Stale replicas that a read repaired",
                of(&stats.read_repairs),
            ),
            counter(
                "superseded_writes",
                "Writes stamped anew",
                of(&stats.superseded_writes),
            ),
            counter(
                "quorums_not_met",
                "Requests without a quorum",
                of(&stats.quorums_not_met),
            ),
            counter(
                "hedged_reads",
                "Reads that asked one more",
                of(&stats.hedged_reads),
            ),
            counter(
                "peer_connections_refused",
                "Peers refused",
                of(&net.refused_connections),
            ),
            counter(
                "peer_malformed_frames",
                "Peers closed",
                of(&net.malformed_frames),
            ),
            counter(
                "peer_busy_calls",
                "Calls that found a full queue",
                of(&net.busy_calls),
            ),
            counter(
                "gossip_sent",
                "Gossip handed to connections",
                of(&net.sent_gossip),
            ),
            counter(
                "gossip_received",
                "Gossip that came",
                of(&net.received_gossip),
            ),
            counter(
                "gossip_dropped",
                "Gossip without a connection",
                of(&net.dropped_gossip),
            ),
            counter("gossip_refused", "Gossip that was not believed", gossip),
            counter(
                "clock_drift_refusals",
                "Writes too far ahead of the clock",
                drift,
            ),
        ]
    }

    fn update_counters(&self) -> [Counter; 6] {
        let stats = self.status.coordinator.stats();
        let updates = self.status.coordinator.updater().proposer().stats();
        let of = load;
        [
            counter(
                "updates_made",
                "Atomic updates that this node has made",
                of(&updates.made),
            ),
            counter(
                "updates_not_made",
                "Atomic updates that this node could not make",
                of(&updates.not_made),
            ),
            counter(
                "updates_uncertain",
                "Atomic updates whose clients were told UNCERTAIN",
                of(&stats.uncertain_updates),
            ),
            counter(
                "update_promises_asked",
                "Times that homes were asked to promise a ballot",
                of(&updates.promises_asked),
            ),
            counter(
                "update_results_given",
                "Times that homes were given a result to take",
                of(&updates.results_given),
            ),
            counter(
                "update_rounds_again",
                "Rounds of updates that were begun again",
                of(&updates.rounds_again),
            ),
        ]
    }

    fn store(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let store = &self.status.store;
        gauge(out, "store_keys", "Values held", store.keys())?;
        gauge(
            out,
            "store_tombstones",
            "Tombstones held",
            store.tombstones(),
        )?;
        gauge(
            out,
            "store_bytes",
            "Bytes of records: headers, keys and values",
            store.bytes(),
        )?;
        gauge(
            out,
            "uptime_seconds",
            "Seconds since the node started",
            self.status.uptime_s(),
        )
    }

    fn peers(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let view = self.status.coordinator.view();
        let help = "Whether this node can reach a peer";
        let mut family = out.encode_descriptor("peer_reachable", help, None, MetricType::Gauge)?;
        for member in view
            .members()
            .iter()
            .filter(|m| m.id != self.status.self_id)
        {
            let labels = [("peer", member.id.as_str())];
            let reachable = ConstGauge::new(u64::from(member.reachable));
            reachable.encode(family.encode_family(&labels)?)?;
        }
        let help = "Partitions this node is a home of";
        let own = self.status.self_id.tag();
        gauge(out, "partitions_held", help, view.homes_held(own) as u64)?;
        let unsure = self.status.unsure_partitions();
        let help = "Partitions whose memory was lost and is not caught up yet";
        gauge(out, "partitions_unsure", help, unsure as u64)
    }
}

impl Snapshot {
    /// How fresh reads are; see [`crate::protocol::Samples`].
    fn staleness(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let coordinator = &self.status.coordinator;
        let report = coordinator.staleness().report(coordinator.config().quorum);
        let help = "Writes of which it was noted when each home acknowledged them";
        count(out, "staleness_samples", help, report.samples)?;
        count(out, "reads", "Reads answered", report.reads)?;
        let help = "Reads whose replicas did not all hold the same";
        count(out, "reads_disagreed", help, report.reads_disagreed)?;
        let help = "Probability that a read so long after a write is fresh, at the configured r, w";
        let name = "fresh_read_probability";
        let mut family = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
        let configured = |fresh: &&Freshness| (fresh.r, fresh.w) == (report.r, report.w);
        let fresh = report.fresh.iter().find(configured);
        let probability = fresh.map_or(&[][..], |fresh| &fresh.probability);
        for (after_ms, probability) in report.after_ms.iter().zip(probability) {
            let labels = [("t_ms", after_ms.to_string())];
            ConstGauge::new(*probability).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Snapshot {
    /// Stand-ins and what they hold.
    fn hints(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let handoff = &self.status.handoff;
        let (health, stats) = (handoff.journal_health(), handoff.stats());
        gauge(out, "hints_held", "Hints held for others", handoff.count())?;
        gauge(out, "hint_bytes", "Bytes of hints held", handoff.bytes())?;
        let view = self.status.coordinator.view();
        let help = "Hints held for a home";
        let mut family = out.encode_descriptor("hints_held_for", help, None, MetricType::Gauge)?;
        for (home, hints) in handoff.summaries() {
            if let Some(member) = view.member(home) {
                let labels = [("home", member.id.as_str())];
                ConstGauge::new(hints.count).encode(family.encode_family(&labels)?)?;
            }
        }
        count(out, "hints_kept", "Hints taken", load(&stats.kept))?;
        let help = "Hints that their homes acknowledged";
        count(out, "hints_replayed", help, load(&stats.replayed))?;
        let help = "Hints given to the homes of now in the place of a removed one";
        count(out, "hints_readdressed", help, load(&stats.readdressed))?;
        let by_reason = [
            (
                "hints_refused",
                "Hints refused",
                &[
                    ("full", load(&stats.refused_full)),
                    ("disk", load(&stats.refused_failed)),
                ][..],
            ),
            (
                "hints_dropped",
                "Hints dropped before their homes had them",
                &[
                    ("expired", load(&stats.expired)),
                    ("window", load(&stats.too_old)),
                    ("dropped", load(&stats.dropped)),
                ],
            ),
        ];
        for (name, help, counts) in by_reason {
            let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (reason, counted) in counts {
                let counter = ConstCounter::new(*counted);
                counter.encode(family.encode_family(&[("reason", *reason)])?)?;
            }
        }
        let help = "Whether the disk takes no hints";
        gauge(
            out,
            "hint_disk_failing",
            help,
            u64::from(health.error.is_some()),
        )?;
        let help = "Hint writes that the disk failed";
        count(out, "hint_disk_failures", help, health.failures)?;
        let help = "Damaged hints found on disk at the start";
        gauge(out, "hints_damaged", help, health.damaged)?;
        let stats = self.status.coordinator.stats();
        let help = "Writes acknowledged with the help of stand-ins";
        count(out, "sloppy_writes", help, load(&stats.sloppy_writes))?;
        let help = "Reads answered with the help of stand-ins, which may be stale";
        count(out, "sloppy_reads", help, load(&stats.sloppy_reads))
    }

    fn entropy(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let anti_entropy = &self.status.anti_entropy;
        let stats = anti_entropy.stats();
        let help = "Bytes sent and received by repairs: to find differences, and to move records";
        let mut family = out.encode_descriptor("entropy_bytes", help, None, MetricType::Counter)?;
        for (kind, counted) in [
            ("compare", &stats.compare_bytes),
            ("records", &stats.record_bytes),
        ] {
            ConstCounter::new(load(counted)).encode(family.encode_family(&[("kind", kind)])?)?;
        }
        let help = "Repair sessions begun by this node, by what they found";
        let mut family =
            out.encode_descriptor("entropy_sessions", help, None, MetricType::Counter)?;
        for (outcome, counted) in [
            ("repaired", &stats.repaired),
            ("equal", &stats.equal),
            ("failed", &stats.failed),
        ] {
            let labels = [("outcome", outcome)];
            ConstCounter::new(load(counted)).encode(family.encode_family(&labels)?)?;
        }
        let (rounds, agreements, agreement_rounds) = anti_entropy.rounds();
        let help = "Comparisons of a partition's digest with a peer's";
        count(out, "entropy_rounds", help, rounds)?;
        let help = "Partitions that had differed from a peer's and agree again";
        count(out, "entropy_agreements", help, agreements)?;
        let help = "Comparisons that those took to agree again";
        count(out, "entropy_rounds_to_agreement", help, agreement_rounds)?;
        for (name, help, counter) in [
            (
                "entropy_differences",
                "Keys that replicas held differently",
                &stats.differences,
            ),
            (
                "entropy_fixed",
                "Records brought up to date by repairs",
                &stats.fixed,
            ),
            (
                "entropy_fallbacks",
                "Sessions that compared whole lists",
                &stats.fallbacks,
            ),
            (
                "entropy_tombstones_purged",
                "Tombstones purged",
                &stats.purged,
            ),
            (
                "entropy_damaged_records",
                "Records found damaged in memory",
                &stats.damaged,
            ),
        ] {
            count(out, name, help, load(counter))?;
        }
        let help = "Partitions whose digest differs from a peer's now";
        gauge(
            out,
            "entropy_partitions_differing",
            help,
            anti_entropy.differing() as u64,
        )
    }
}

fn count(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, counted: u64) -> fmt::Result {
    let counter = ConstCounter::new(counted);
    let encoder: MetricEncoder<'_> =
        out.encode_descriptor(name, help, None, MetricType::Counter)?;
    counter.encode(encoder)
}

fn gauge(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let encoder = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(encoder)
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[expect(clippy::cast_precision_loss, reason = "metrics are doubles")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}
