//! What an administrator is told of hints.

use serde::{Deserialize, Serialize};

use super::Handoff;
use crate::model::NodeTag;
use crate::ring::View;

/// The hints of one node. The JSON of `quorate hints`: names are a contract.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HintsReport {
    /// The node that tells this.
    #[serde(rename = "self")]
    pub self_id: String,
    /// All hints it holds.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many bytes it may hold.
    pub bytes_max: u64,
    /// How many were given back since it started.
    pub replayed: u64,
    /// How many were dropped since it started because they were too old.
    pub too_old: u64,
    /// Damaged hints found on disk when it started.
    pub damaged: u64,
    /// Why its disk takes no hints at present.
    pub disk_error: Option<String>,
    /// One for each home there are hints for.
    pub homes: Vec<HomeHints>,
}

/// The hints for one home.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HomeHints {
    /// Its name.
    pub node: String,
    /// Whether it can be reached.
    pub reachable: bool,
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long the oldest one has been kept, in seconds.
    pub oldest_s: u64,
    /// Given back in the present replay.
    pub replayed: u64,
    /// How fast, in bytes a second; 0 while nothing is given back.
    pub replay_bytes_per_s: u64,
    /// When all will be given back at that speed, in seconds.
    pub eta_s: Option<u64>,
    /// Why the last attempt ended.
    pub last_error: Option<String>,
}

impl Handoff {
    /// What this node holds for others.
    #[must_use]
    pub fn report(&self, self_id: &str, view: &View) -> HintsReport {
        let health = self.journal_health();
        let now = self.clock.wall();
        let progress = self.progress().clone();
        let homes = self.summaries().into_iter().map(|(home, hints)| {
            let progress = progress.get(&home).cloned().unwrap_or_default();
            let member = view.member(home);
            let speed = progress.bytes_per_s();
            HomeHints {
                node: name(home, view),
                reachable: member.is_some_and(|member| member.reachable),
                count: hints.count,
                bytes: hints.bytes,
                oldest_s: hints
                    .oldest
                    .map_or(0, |since| now.0.saturating_sub(since.0) / 1_000),
                replayed: progress.replayed,
                replay_bytes_per_s: speed,
                eta_s: hints.bytes.checked_div(speed),
                last_error: progress.last_error,
            }
        });
        let count = |counter: &std::sync::atomic::AtomicU64| {
            counter.load(std::sync::atomic::Ordering::Relaxed)
        };
        HintsReport {
            self_id: self_id.to_owned(),
            count: self.count(),
            bytes: self.bytes(),
            bytes_max: self.config.limits.bytes_max,
            replayed: count(&self.stats.replayed),
            too_old: count(&self.stats.too_old),
            damaged: health.damaged,
            disk_error: health.error,
            homes: homes.collect(),
        }
    }
}

/// The name of a home; its tag, when it is not in the ring any more.
fn name(home: NodeTag, view: &View) -> String {
    match view.member(home) {
        Some(member) => member.id.to_string(),
        None => format!("{:016x}", home.0),
    }
}
