//! What an administrator is told of repairs.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::{AntiEntropy, lock};
use crate::model::Epoch;

/// The repairs of one node. The JSON of `quorate repair status`: names are a contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairReport {
    /// The node that tells this.
    #[serde(rename = "self")]
    pub self_id: String,
    /// Partitions that this node is a home of and all others agree on that could be asked.
    pub in_agreement: usize,
    /// Partitions that this node is a home of, counted once for each other home.
    pub total: usize,
    /// Keys that sessions of this node found in different states, since it started.
    pub differences: u64,
    /// Records that were brought up to date by them, on either side.
    pub fixed: u64,
    /// Sessions that this node began and ended.
    pub sessions: u64,
    /// Bytes that they sent and received to find differences.
    pub compare_bytes: u64,
    /// Bytes that they sent and received to move records.
    pub record_bytes: u64,
    /// Tombstones that were purged.
    pub tombstones_purged: u64,
    /// Records that were found damaged in memory.
    pub damaged_records: u64,
    /// Sessions of this node that failed.
    pub failed: u64,
    /// Sessions that wait to be begun by this node.
    pub queued: usize,
    /// Those that an administrator wants and that have not ended.
    pub wanted: usize,
    /// One for each other node.
    pub peers: Vec<PeerRepair>,
}

/// How a node agrees with one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRepair {
    /// Its name.
    pub node: String,
    /// Whether it can be reached.
    pub reachable: bool,
    /// Partitions that both are homes of.
    pub partitions: usize,
    /// Those in which they agreed at the last cut that both told of.
    pub in_agreement: usize,
    /// How long ago that cut was, in seconds; `null`: there was none yet.
    pub compared_s_ago: Option<u64>,
    /// Sessions that this node began with it.
    pub sessions: u64,
    /// Sessions that wait to be begun.
    pub queued: usize,
    /// Keys that were found in different states.
    pub differences: u64,
    /// Records that were brought up to date, on either side.
    pub fixed: u64,
    /// Bytes sent to it and received from it.
    pub bytes: u64,
    /// When the waiting sessions will have ended, in seconds.
    pub eta_s: Option<u64>,
    /// Why the last session failed, if it did.
    pub last_error: Option<String>,
}

impl AntiEntropy {
    /// How far this node agrees with its peers.
    #[must_use]
    pub fn report(&self, self_id: &str) -> RepairReport {
        let view = self.parts.view.borrow().clone();
        let own = self.parts.self_tag;
        let now = self.parts.env.clock.wall();
        let mut shared = std::collections::BTreeMap::new();
        for partition in view.params().partitions.all() {
            let homes = view.homes(partition);
            if homes.contains(&own) {
                for home in homes.iter().filter(|&&home| home != own) {
                    *shared.entry(*home).or_insert(0) += 1;
                }
            }
        }
        let agreement = lock(&self.agreement);
        let progress = lock(&self.peers);
        let others = view.members().iter().filter(|member| member.tag != own);
        let peers: Vec<PeerRepair> = others
            .map(|member| {
                let with = agreement.with(member.tag);
                let progress = progress.get(&member.tag).cloned().unwrap_or_default();
                let error = match with.has_other_age {
                    true => Some(
                        "its hint_window or max_clock_drift differs from this node's".to_owned(),
                    ),
                    false => progress.last_error,
                };
                let waiting = u32::try_from(progress.queued).unwrap_or(u32::MAX);
                PeerRepair {
                    node: member.id.to_string(),
                    reachable: member.reachable,
                    partitions: shared.get(&member.tag).copied().unwrap_or(0),
                    in_agreement: with.partitions - with.differing,
                    compared_s_ago: with
                        .cut
                        .map(|cut: Epoch| now.0.saturating_sub(cut.end().0) / 1_000),
                    sessions: progress.sessions,
                    queued: progress.queued,
                    differences: progress.differences,
                    fixed: progress.fixed,
                    bytes: progress.bytes,
                    eta_s: (waiting > 0).then(|| (progress.took * waiting).as_secs()),
                    last_error: error,
                }
            })
            .collect();
        drop((agreement, progress));
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let stats = &self.stats;
        RepairReport {
            self_id: self_id.to_owned(),
            in_agreement: peers.iter().map(|peer| peer.in_agreement).sum(),
            total: peers.iter().map(|peer| peer.partitions).sum(),
            differences: count(&stats.differences),
            fixed: count(&stats.fixed),
            sessions: count(&stats.equal) + count(&stats.repaired),
            compare_bytes: count(&stats.compare_bytes),
            record_bytes: count(&stats.record_bytes),
            tombstones_purged: count(&stats.purged),
            damaged_records: count(&stats.damaged),
            failed: count(&stats.failed),
            queued: peers.iter().map(|peer| peer.queued).sum(),
            wanted: lock(&self.wanted).len() + self.wanted_running.load(Ordering::Relaxed),
            peers,
        }
    }
}
