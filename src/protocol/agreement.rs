//! Which replicas of which partitions agree, and who reconciles with whom.
//!
//! Digests are compared at the same cut only. Two that differ at one cut may do so because of a write
//! that came late; two that differ at two cuts in succession are reconciled, by the node whose name
//! is the lower one. Of several homes that agree with each other, the lowest one meets the one that
//! differs: not every pair has to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::digest::Sheet;
use crate::model::{Epoch, NodeTag, PartitionId};
use crate::ring::View;

/// What one node knows of agreement with its peers.
#[derive(Debug, Default)]
pub struct Agreement {
    own: History,
    peers: BTreeMap<NodeTag, Peer>,
    /// Comparisons of a partition with a peer.
    pub rounds: u64,
    /// How often a partition that had differed was seen to agree, and how many cuts that took.
    pub agreements: u64,
    /// See `agreements`.
    pub agreement_rounds: u64,
}

/// The last few sheets of one node: clocks differ, and so do the moments when cuts are told.
#[derive(Debug, Default)]
struct History(BTreeMap<Epoch, Arc<Sheet>>);

#[derive(Debug, Default)]
struct Peer {
    history: History,
    /// At which cut it was compared last, and how many partitions were.
    compared: Option<Epoch>,
    /// Since which cut it has been compared again and again, without a break.
    since: Epoch,
    partitions: usize,
    differing: BTreeMap<PartitionId, Differing>,
    has_other_age: bool,
}

/// A partition that differs from a peer's.
#[derive(Debug, Clone, Copy, Default)]
struct Differing {
    /// Cuts in succession at which it did, since the last session.
    rounds: u32,
    /// The same, since it agreed last.
    rounds_in_all: u32,
    /// Cuts before this one tell nothing of what the last session has done.
    not_before: Epoch,
}

/// How a node agrees with a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeerAgreement {
    /// The last cut at which both could be compared.
    pub cut: Option<Epoch>,
    /// Partitions of both that were compared.
    pub partitions: usize,
    /// Those of them that differ.
    pub differing: usize,
    /// It leaves tombstones out at another age (`hint_window`): nothing can be compared.
    pub has_other_age: bool,
}

impl History {
    fn push(&mut self, sheet: &Arc<Sheet>) {
        if self
            .0
            .last_key_value()
            .is_some_and(|(cut, _)| sheet.cut.0 + KEPT as u64 * 4 < cut.0)
        {
            // Its clock was set back.
            self.0.clear();
        }
        self.0.insert(sheet.cut, Arc::clone(sheet));
        while self.0.len() > KEPT {
            self.0.pop_first();
        }
    }

    /// The newest cut that both tell of.
    fn common<'a>(&'a self, other: &'a Self) -> Option<(&'a Sheet, &'a Sheet)> {
        let mut newest = self.0.iter().rev();
        newest.find_map(|(cut, sheet)| Some((&**sheet, &**other.0.get(cut)?)))
    }
}

impl Agreement {
    /// This node's sheet as of a new cut.
    pub fn on_own(&mut self, sheet: &Arc<Sheet>) {
        self.own.push(sheet);
    }

    /// What a peer tells.
    pub fn on_peer(&mut self, peer: NodeTag, sheet: &Arc<Sheet>) {
        self.peers.entry(peer).or_default().history.push(sheet);
    }

    /// Compares with all peers what has become comparable.
    pub fn compare(&mut self, own: NodeTag, view: &View) {
        self.peers.retain(|peer, _| view.member(*peer).is_some());
        for (&tag, peer) in &mut self.peers {
            let Some((ours, theirs)) = self.own.common(&peer.history) else {
                continue;
            };
            if peer.compared == Some(ours.cut) {
                continue;
            }
            let is_next = |before: Epoch| (before.0..=before.0 + BREAK_MIN).contains(&ours.cut.0);
            if !peer.compared.is_some_and(is_next) {
                peer.since = ours.cut;
            }
            peer.compared = Some(ours.cut);
            peer.has_other_age = ours.tombstone_age_ms != theirs.tombstone_age_ms;
            if peer.has_other_age {
                continue;
            }
            let mut compared = BTreeSet::new();
            for (&partition, digest) in &ours.digests {
                let homes = view.homes(partition);
                let Some(other) = theirs.digests.get(&partition) else {
                    continue;
                };
                if !homes.contains(&own) || !homes.contains(&tag) {
                    continue;
                }
                compared.insert(partition);
                if digest != other {
                    let differing = peer.differing.entry(partition).or_default();
                    if ours.cut >= differing.not_before {
                        differing.rounds += 1;
                        differing.rounds_in_all += 1;
                    }
                } else if let Some(ended) = peer.differing.remove(&partition) {
                    self.agreements += 1;
                    self.agreement_rounds += u64::from(ended.rounds_in_all);
                }
            }
            peer.differing
                .retain(|partition, _| compared.contains(partition));
            peer.partitions = compared.len();
            self.rounds += compared.len() as u64;
        }
    }

    /// The partitions that this node is to reconcile with a peer, by peer.
    #[must_use]
    pub fn due(&self, own: NodeTag, view: &View) -> BTreeMap<NodeTag, Vec<PartitionId>> {
        let name = |tag: NodeTag| view.member(tag).map(|member| &member.id);
        let mut due = BTreeMap::new();
        for (&tag, peer) in &self.peers {
            if !view.member(tag).is_some_and(|member| member.reachable) {
                continue;
            }
            let is_lower = name(own) < name(tag);
            let is_mine = |(partition, differing): &(&PartitionId, &Differing)| {
                let rounds = differing.rounds;
                if rounds >= ROUNDS_PATIENCE {
                    // Whoever should have, has not.
                    return true;
                }
                let homes = view.homes(**partition).iter().copied();
                let mut lower =
                    homes.filter(|&home| home != own && home != tag && name(home) < name(own));
                let is_left_to_another = lower.any(|home| self.agrees(home, **partition, view));
                rounds >= ROUNDS_MIN && is_lower && !is_left_to_another
            };
            let partitions: Vec<PartitionId> = peer
                .differing
                .iter()
                .filter(is_mine)
                .map(|(p, _)| *p)
                .collect();
            if !partitions.is_empty() {
                due.insert(tag, partitions);
            }
        }
        due
    }

    /// A session has ended, well or not, in this epoch: it counts as new what differs from then on.
    pub fn on_session_end(&mut self, peer: NodeTag, partition: PartitionId, epoch: Epoch) {
        let peer = self.peers.get_mut(&peer);
        if let Some(differing) = peer.and_then(|peer| peer.differing.get_mut(&partition)) {
            differing.rounds = 0;
            differing.not_before = epoch;
        }
    }

    /// Whether all n homes of a partition, this node among them, could be reached and held the same
    /// at the last cut, and have been compared for so long that what digests left out at first
    /// because it was to end soon has ended.
    #[must_use]
    pub fn is_unanimous(&self, own: NodeTag, partition: PartitionId, view: &View) -> bool {
        let homes = view.homes(partition);
        let is_steady = |home: NodeTag| {
            let peer = self.peers.get(&home);
            peer.is_some_and(|peer| peer.compared >= Some(Epoch(peer.since.0 + STEADY)))
        };
        let agrees = |home: NodeTag| is_steady(home) && self.agrees(home, partition, view);
        homes.len() == usize::from(view.params().n)
            && homes.contains(&own)
            && homes.iter().all(|&home| home == own || agrees(home))
    }

    /// How this node agrees with a peer.
    #[must_use]
    pub fn with(&self, peer: NodeTag) -> PeerAgreement {
        let peer = self.peers.get(&peer);
        peer.map_or_else(PeerAgreement::default, |peer| PeerAgreement {
            cut: peer.compared,
            partitions: peer.partitions,
            differing: peer.differing.len(),
            has_other_age: peer.has_other_age,
        })
    }

    /// Whether a peer can be reached and held the same of a partition at one of the last two cuts of
    /// this node.
    fn agrees(&self, peer: NodeTag, partition: PartitionId, view: &View) -> bool {
        let is_reachable = view.member(peer).is_some_and(|member| member.reachable);
        let Some(peer) = self.peers.get(&peer).filter(|_| is_reachable) else {
            return false;
        };
        let newest = self
            .own
            .0
            .keys()
            .rev()
            .nth(1)
            .or_else(|| self.own.0.keys().next());
        let is_fresh = peer.compared.is_some() && peer.compared >= newest.copied();
        let told = peer.history.0.last_key_value();
        let is_told = told.is_some_and(|(_, sheet)| sheet.digests.contains_key(&partition));
        is_fresh && is_told && !peer.has_other_age && !peer.differing.contains_key(&partition)
    }
}

/// Sheets kept of each node: sixteen seconds of them, more than sane clocks differ by.
const KEPT: usize = 4;
/// One cut's difference may be a write that came late.
const ROUNDS_MIN: u32 = 2;
/// Fifteen cuts, a minute: longer than what ends soon is left out before it does.
const STEADY: u64 = 15;
/// Fewer cuts than this between two comparisons are no break.
const BREAK_MIN: u64 = 32;
/// From then on anybody begins who sees the difference.
const ROUNDS_PATIENCE: u32 = 6;
