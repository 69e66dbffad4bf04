//! What a node knows of the ring and of itself, for people and tools.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::anti_entropy::{AntiEntropy, RepairReport};
use super::clock_probe::ClockProbe;
use super::coordinator::Coordinator;
use super::handoff::{Handoff, HintsReport};
use super::membership::{Load, Membership, Shared};
use super::replica::Replica;
use crate::env::Env;
use crate::model::{Database, HlcTime, KeyHasher, Millis, NodeId, NodeTag, PartitionId, Version};
use crate::net::{Endpoint, days_left, utc_text};
use crate::store::Store;

/// Where the facts of a node come from.
#[derive(Debug, Clone)]
pub struct NodeStatus {
    /// This node.
    pub self_id: NodeId,
    /// When it started.
    pub started_at: Millis,
    /// Time.
    pub env: Env,
    /// The ring.
    pub membership: Membership,
    /// Its quorums and counters.
    pub coordinator: Coordinator,
    /// What it holds.
    pub store: Arc<Store>,
    /// What it holds for others.
    pub handoff: Arc<Handoff>,
    /// What keeps its replicas like those of others.
    pub anti_entropy: Arc<AntiEntropy>,
    /// The cluster's hash.
    pub hasher: KeyHasher,
    /// The network.
    pub endpoint: Endpoint,
    /// This node's own copy.
    pub replica: Arc<Replica>,
    /// How far other clocks are off.
    pub clocks: Arc<ClockProbe>,
    /// Settings that should be the same on all nodes.
    pub settings: Shared,
    /// Whether the node is being stopped.
    pub is_stopping: Arc<AtomicBool>,
}

/// The ring as one node sees it. The JSON of `quorate ring status`: names are a contract.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RingStatus {
    /// The cluster's name.
    pub cluster: String,
    /// The node that tells this.
    #[serde(rename = "self")]
    pub self_id: String,
    /// How many partitions the cluster has.
    pub partitions: u32,
    /// Copies kept.
    pub n: u8,
    /// Replies a read needs.
    pub r: u8,
    /// Acknowledgements a write needs.
    pub w: u8,
    /// Equal on two nodes that place keys alike.
    pub ring_version: String,
    /// How much more than its share the fullest member has.
    pub balance: f64,
    /// All nodes, by name.
    pub nodes: Vec<NodeRow>,
    /// Whether the node that tells this is ready, as `/readyz` says.
    #[serde(default)]
    pub ready: bool,
    /// Nodes of the cluster that are kept out of the ring.
    #[serde(default)]
    pub refused: Vec<RefusedRow>,
}

/// One node of a [`RingStatus`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Its name.
    pub id: String,
    /// Its zone.
    pub zone: String,
    /// What it does.
    pub role: String,
    /// Where it is in its life.
    pub state: String,
    /// Whether the node that tells this can reach it.
    pub reachable: bool,
    /// Where peers reach it.
    pub quic: String,
    /// Where clients reach it.
    pub resp: String,
    /// Values it holds: exact for the node that tells this, of the others as last gossiped.
    pub keys: u64,
    /// Bytes of records it holds.
    pub bytes: u64,
    /// How many partitions it is a home of.
    pub partitions: usize,
    /// Hints it holds for others.
    pub hints_held: u64,
    /// How long it has been up, in seconds; `null` when it never told.
    pub uptime_s: Option<u64>,
    /// The version of its software.
    pub version: String,
    /// Of all copies of all keys, the part that this node is to hold: 0 to 1.
    #[serde(default)]
    pub share: f64,
    /// When its certificate ends, as `2026-11-20T22:26:00Z`; `null` when it never told.
    #[serde(default)]
    pub certificate_until: Option<String>,
    /// Whole days until then; negative once it has expired.
    #[serde(default)]
    pub certificate_days: Option<i64>,
}

/// A node that is kept out of the ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRow {
    /// Its name.
    pub id: String,
    /// What is different there.
    pub theirs: String,
    /// What this node has.
    pub ours: String,
}

/// Who is home of a key. The JSON of `quorate ring owners`: names are a contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyOwners {
    /// The key, as text.
    pub key: String,
    /// Its partition.
    pub partition: u16,
    /// Its home nodes, the first one first.
    pub homes: Vec<String>,
    /// Those who stand in for them, in order.
    pub stand_ins: Vec<String>,
}

impl NodeStatus {
    /// What this node holds now.
    #[must_use]
    pub fn load(&self) -> Load {
        let homes = self.handoff.summaries().into_keys();
        Load {
            keys: self.store.keys(),
            bytes: self.store.bytes(),
            hints_held: self.handoff.count(),
            hints_for: homes.take(HINTS_FOR_MAX).collect(),
            started_at: self.started_at,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ring: self.coordinator.view().version(),
            certificate_until: Some(self.endpoint.credentials().not_after()),
            settings: self.settings,
            flushes: self.flushes(),
            is_stopping: false,
        }
    }

    /// Up to which version databases were emptied.
    fn flushes(&self) -> Vec<(u8, u64, u64)> {
        let flushes = self.replica.flushes();
        let number = |database: Database| u8::try_from(database.number()).unwrap_or(u8::MAX);
        let all = flushes.iter();
        all.map(|(database, up_to)| (number(database), up_to.hlc.0, up_to.node.0))
            .collect()
    }

    /// Empties databases that others have emptied.
    pub fn follow_flushes(&self, of_peer: &[(u8, u64, u64)]) {
        let wall = self.env.clock.wall();
        for &(number, hlc, node) in of_peer {
            let up_to = Version {
                hlc: HlcTime(hlc),
                node: NodeTag(node),
            };
            if let Ok(database) = Database::try_from(i64::from(number)) {
                // A clock that is not to be believed empties nothing.
                let _refused = self.replica.flush(database, up_to, wall);
            }
        }
    }

    /// The hints that this node holds.
    #[must_use]
    pub fn hints(&self) -> HintsReport {
        let view = self.coordinator.view();
        self.handoff.report(self.self_id.as_str(), &view)
    }

    /// How far the replicas of this node agree with others.
    #[must_use]
    pub fn repairs(&self) -> RepairReport {
        self.anti_entropy.report(self.self_id.as_str())
    }

    /// How long this node has been up.
    #[must_use]
    pub fn uptime_s(&self) -> u64 {
        self.env.clock.wall().0.saturating_sub(self.started_at.0) / 1_000
    }

    /// Keys in the whole ring: exact where this node is home of all, elsewhere what all nodes hold,
    /// as last gossiped, divided by the copies kept.
    #[must_use]
    pub fn ring_keys(&self) -> u64 {
        let view = self.coordinator.view();
        if u32::try_from(view.homes_held(self.self_id.tag()))
            == Ok(view.params().partitions.count())
        {
            return self.store.keys();
        }
        let loads = self.membership.loads();
        let others = view
            .members()
            .iter()
            .filter(|member| member.id != self.self_id);
        let theirs = others
            .filter_map(|m| loads.get(&m.id))
            .map(|load| load.keys)
            .sum::<u64>();
        let copies = view.homes(PartitionId(0)).len().max(1) as u64;
        (self.store.keys() + theirs + copies / 2) / copies
    }

    /// The ring as this node sees it.
    #[must_use]
    pub fn ring(&self) -> RingStatus {
        let view = self.coordinator.view();
        let loads = self.membership.loads();
        let config = self.coordinator.config();
        let now = self.env.clock.wall();
        let copies = view.members().iter().map(|m| view.homes_held(m.tag)).sum();
        let nodes = view.members().iter().map(|member| {
            let load = match member.id == self.self_id {
                true => Some(self.load()),
                false => loads.get(&member.id).cloned(),
            };
            let told = load.as_ref().map(|load| load.started_at);
            let load = load.unwrap_or_default();
            NodeRow {
                id: member.id.to_string(),
                zone: member.zone.clone(),
                role: member.role.to_string(),
                state: member.state.to_string(),
                reachable: member.reachable,
                quic: member.quic.to_string(),
                resp: member.resp.clone(),
                keys: load.keys,
                bytes: load.bytes,
                partitions: view.homes_held(member.tag),
                hints_held: load.hints_held,
                uptime_s: told.map(|started| now.0.saturating_sub(started.0) / 1_000),
                version: load.version,
                share: share(view.homes_held(member.tag), copies),
                certificate_until: load.certificate_until.map(utc_text),
                certificate_days: load.certificate_until.map(|end| days_left(end, now)),
            }
        });
        let refused = self.membership.strangers().into_iter();
        let refused = refused.map(|stranger| RefusedRow {
            id: stranger.id.to_string(),
            theirs: stranger.theirs,
            ours: stranger.ours,
        });
        RingStatus {
            cluster: view.params().cluster.clone(),
            self_id: self.self_id.to_string(),
            partitions: view.params().partitions.count(),
            n: view.params().n,
            r: config.quorum.r(),
            w: config.quorum.w(),
            ring_version: format!("{:016x}", view.version()),
            balance: view.balance(),
            nodes: nodes.collect(),
            ready: self.readiness().is_ok(),
            refused: refused.collect(),
        }
    }

    /// Partitions of this node that it has not caught up on since its memory was lost.
    #[must_use]
    pub fn unsure_partitions(&self) -> usize {
        let view = self.coordinator.view();
        let own = self.self_id.tag();
        let is_unsure = |partition: &PartitionId| {
            view.homes(*partition).contains(&own) && !self.replica.is_sure(*partition)
        };
        view.params().partitions.all().filter(is_unsure).count()
    }

    /// Whether it has a say in the updates of every partition that it is sure of.
    fn has_votes(&self) -> bool {
        let now = self.env.clock.monotonic();
        let mut partitions = self.coordinator.view().params().partitions.all();
        partitions.all(|p| !self.replica.is_sure(p) || self.replica.votes(p, now))
    }

    /// Tells the others that this node is about to stop, so that they ask it no more; its own
    /// clients are served on. Or takes that back.
    pub async fn drain(&self, is_stopping: bool) {
        self.is_stopping.store(is_stopping, Ordering::Relaxed);
        self.membership.tell_stopping(is_stopping).await;
    }

    /// Whether requests for all keys can be served now; if not, why.
    pub fn readiness(&self) -> Result<(), String> {
        if self.is_stopping.load(Ordering::Relaxed) {
            return Err("the node is being stopped".to_owned());
        }
        if let Some(ahead_ms) = self.replica.refused_ahead_ms() {
            return Err(format!(
                "most nodes refuse this node's clock, which is {ahead_ms} ms ahead"
            ));
        }
        if let Some(drift) = self.replica.clock_ahead(self.env.clock.wall()) {
            return Err(format!("the hybrid clock is wrong: {drift}"));
        }
        let view = self.coordinator.view();
        let quorum = self.coordinator.config().quorum;
        let need = usize::from(quorum.r().max(quorum.w()));
        let members = view.members().iter();
        let there = members.filter(|m| m.reachable && view.homes_held(m.tag) > 0);
        let there = there.count();
        if there < need {
            return Err(format!(
                "{there} nodes with data can be reached, {need} are needed"
            ));
        }
        // Those who restart one node after the other wait for this. Not for ever: with others
        // dead there may be nobody to catch up from.
        match (self.unsure_partitions(), self.has_votes()) {
            (0, true) => Ok(()),
            _ if self.uptime_s() >= CATCH_UP_MAX_S => Ok(()),
            (0, false) => Err("it has no say in atomic updates yet".to_owned()),
            (unsure, _) => Err(format!("{unsure} partitions are not caught up yet")),
        }
    }

    /// Who is home of a key, and who stands in.
    #[must_use]
    pub fn owners(&self, key: &str) -> KeyOwners {
        let view = self.coordinator.view();
        let partition = view
            .params()
            .partitions
            .of(self.hasher.hash(key.as_bytes()));
        let name = |tag| view.member(tag).map(|member| member.id.to_string());
        KeyOwners {
            key: key.to_owned(),
            partition: partition.0,
            homes: view
                .homes(partition)
                .iter()
                .filter_map(|&tag| name(tag))
                .collect(),
            stand_ins: view
                .stand_ins(partition)
                .into_iter()
                .filter_map(name)
                .collect(),
        }
    }
}

fn share(held: usize, copies: usize) -> f64 {
    if copies == 0 {
        return 0.0;
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "at most 16 copies of 32,768 partitions"
    )]
    let share = held as f64 / copies as f64;
    share
}

/// Far longer than catching up takes where there is somebody to catch up from.
const CATCH_UP_MAX_S: u64 = 60;
/// So many names of twenty digits at most fit what gossip carries of a node. With more homes away
/// at once than that, reads may miss the hints of some.
const HINTS_FOR_MAX: usize = 48;
