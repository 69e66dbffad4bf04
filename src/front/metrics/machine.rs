//! Metrics of what lies below the requests: connections to peers, certificates, the process.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::super::doctor::{memory_limit, open_files, resident_bytes};
use super::{Snapshot, count, gauge, seconds};
use crate::env::DELAY_BOUNDS_US;

impl Snapshot {
    /// Connections to peers, and how far their clocks are off.
    pub(super) fn connections(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let peers = self.status.endpoint.peer_facts();
        let help = "Smoothed time that a packet takes to a peer and back";
        let name = "peer_round_trip_seconds";
        let mut family = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for peer in &peers {
            let labels = [("peer", peer.id.as_str())];
            let seconds = ConstGauge::new(peer.round_trip.as_secs_f64());
            seconds.encode(family.encode_family(&labels)?)?;
        }
        for (name, help, counted) in [
            (
                "peer_packets_sent",
                "Packets sent over the connection of now to a peer",
                peers
                    .iter()
                    .map(|peer| peer.sent_packets)
                    .collect::<Vec<_>>(),
            ),
            (
                "peer_packets_lost",
                "Packets lost on the way to a peer, over the connection of now",
                peers.iter().map(|peer| peer.lost_packets).collect(),
            ),
        ] {
            let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (peer, counted) in peers.iter().zip(counted) {
                let labels = [("peer", peer.id.as_str())];
                ConstCounter::new(counted).encode(family.encode_family(&labels)?)?;
            }
        }
        let view = self.status.coordinator.view();
        let help = "How far a peer's clock is ahead of this node's";
        let name = "peer_clock_offset_seconds";
        let mut family = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (tag, offset) in self.status.clocks.known() {
            if let Some(member) = view.member(tag) {
                let labels = [("peer", member.id.as_str())];
                let seconds = ConstGauge::new(seconds_of(offset.ahead_ms));
                seconds.encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Connections made with an earlier certificate of this node, and to be made anew";
        let outdated = self.status.endpoint.outdated_connections();
        gauge(out, "peer_connections_outdated", help, outdated as u64)?;
        let help = "Nodes kept out of the ring for their parameters";
        let strangers = self.status.membership.strangers().len();
        gauge(out, "peers_with_other_parameters", help, strangers as u64)
    }

    pub(super) fn certificates(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let watch = &self.metrics.certificates;
        let credentials = self.status.endpoint.credentials();
        let help = "When a certificate ends, in seconds since 1970";
        let name = "certificate_expiry_timestamp_seconds";
        let mut family = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (which, until) in watch.ends(&credentials) {
            let labels = [("certificate", which)];
            ConstGauge::new(until.0 / 1_000).encode(family.encode_family(&labels)?)?;
        }
        let (reloads, failures) = watch.counts();
        let help = "New certificates taken while running";
        count(out, "certificate_reloads", help, reloads)?;
        let help = "Changed certificates that could not be taken";
        count(out, "certificate_reload_failures", help, failures)?;
        let help = "Certificates taken back by their authority, as crl_file has it";
        let revoked = credentials.revocations().len();
        gauge(out, "certificates_revoked", help, revoked as u64)
    }

    /// How long threads that serve requests went without a turn.
    pub(super) fn scheduler(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let watch = &self.metrics.scheduler;
        let help = "How long a thread that serves requests went without a turn, in seconds";
        let name = "scheduler_delay_seconds";
        let mut family = out.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (of, delays) in [("worker", watch.workers()), ("process", watch.process())] {
            let counts = delays.counts();
            let bounds = DELAY_BOUNDS_US.iter().map(|&us| seconds(us));
            let buckets: Vec<_> = bounds.chain([f64::INFINITY]).zip(counts).collect();
            let labels = [("of", of)];
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(
                    seconds(delays.sum_us()),
                    counts.iter().sum(),
                    &buckets,
                    None,
                )?;
        }
        let help = "For how long a thread that serves requests has gone without a turn now";
        let name = "scheduler_stalled_seconds";
        let encoder = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(watch.stalled().as_secs_f64()).encode(encoder)
    }

    pub(super) fn machine(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Memory of the process that is in RAM";
        let resident = resident_bytes().unwrap_or(0);
        gauge(out, "process_resident_memory_bytes", help, resident)?;
        if let Some(limit) = memory_limit() {
            let help = "Memory that the process may take";
            gauge(out, "process_memory_limit_bytes", help, limit)?;
        }
        let help = "Files that the process has open";
        gauge(out, "process_open_fds", help, open_files().unwrap_or(0))?;
        let help = "Files that the process may have open";
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        gauge(out, "process_max_fds", help, files.unwrap_or(u64::MAX))?;
        let help = "1 if requests for all keys can be served, as /readyz has it";
        let is_ready = self.status.readiness().is_ok();
        gauge(out, "ready", help, u64::from(is_ready))?;
        let help = "The release that runs";
        let mut family = out.encode_descriptor("build_info", help, None, MetricType::Gauge)?;
        let labels = [("version", env!("CARGO_PKG_VERSION"))];
        ConstGauge::new(1_u64).encode(family.encode_family(&labels)?)
    }
}

#[expect(clippy::cast_precision_loss, reason = "metrics are doubles")]
fn seconds_of(ms: i64) -> f64 {
    ms as f64 / 1e3
}
