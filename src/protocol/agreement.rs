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

    /// Compares with all peers what has become comparable; whether anything has.
    pub fn compare(&mut self, own: NodeTag, view: &View) -> bool {
        let before = self.rounds;
        self.peers.retain(|peer, _| view.member(*peer).is_some());
        for (&tag, peer) in &mut self.peers {
            let Some((ours, theirs)) = self.own.common(&peer.history) else {
                continue;
            };
            if peer.compared == Some(ours.cut) {
                continue;
            }
            // One of the last few cuts, however far apart those are.
            let is_recent = |before: Epoch| self.own.0.contains_key(&before);
            if !peer.compared.is_some_and(is_recent) {
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
        self.rounds != before
    }

    /// The partitions that this node is to reconcile with a peer, by peer.
    #[must_use]
    pub fn due(&self, own: NodeTag, view: &View) -> BTreeMap<NodeTag, BTreeSet<PartitionId>> {
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
                let mut others = homes.filter(|&home| home != own && home != tag);
                // A lower home that holds the same as this one meets that peer; a lower one that
                // holds the same as that peer is met in its stead.
                let is_left_to_another = others.any(|home| {
                    (name(home) < name(own) && self.agrees(home, **partition, view))
                        || (name(home) < name(tag) && self.are_alike(home, tag, **partition, view))
                });
                rounds >= ROUNDS_MIN && is_lower && !is_left_to_another
            };
            let partitions: BTreeSet<PartitionId> = peer
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

    /// A session begins: what is compared while it lasts tells nothing.
    pub fn on_session_begin(&mut self, peer: NodeTag, partition: PartitionId) {
        self.on_session_end(peer, partition, Epoch(u64::MAX));
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

    /// Whether two peers, the first of which can be reached, told the same of a partition when they
    /// were compared last.
    fn are_alike(&self, one: NodeTag, other: NodeTag, partition: PartitionId, view: &View) -> bool {
        let told = |tag: NodeTag| {
            let peer = self.peers.get(&tag)?;
            let cut = peer.compared?;
            let sheet = peer.history.0.get(&cut)?;
            Some((cut, *sheet.digests.get(&partition)?))
        };
        let is_reachable = view.member(one).is_some_and(|member| member.reachable);
        is_reachable && told(one).is_some_and(|one| told(other) == Some(one))
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
/// From then on anybody begins who sees the difference.
const ROUNDS_PATIENCE: u32 = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Digest, NodeId};
    use crate::ring::{Member, MemberState, Partitions, RingParams, Role};

    const P: PartitionId = PartitionId(0);

    fn tag(name: &str) -> NodeTag {
        name.parse::<NodeId>().unwrap().tag()
    }

    /// Three homes of one partition; those named cannot be reached.
    fn view(away: &[&str]) -> View {
        let member = |name: &str| Member {
            tag: tag(name),
            id: name.parse().unwrap(),
            incarnation: 1,
            zone: String::new(),
            weight: 1,
            role: Role::Member,
            state: MemberState::Up,
            quic: ([127, 0, 0, 1], 1).into(),
            resp: String::new(),
            http: String::new(),
            reachable: !away.contains(&name),
        };
        let params = RingParams {
            cluster: "c".to_owned(),
            partitions: Partitions::new(1).unwrap(),
            n: 3,
        };
        View::new(params, ["a", "b", "c"].map(member).to_vec())
    }

    fn sheet(cut: u64, digest: u64) -> Arc<Sheet> {
        Arc::new(Sheet {
            cut: Epoch(cut),
            tombstone_age_ms: 9,
            digests: BTreeMap::from([(P, Digest(digest))]),
        })
    }

    /// What `own` knows after these cuts; each home holds this.
    fn after(own: &str, cuts: std::ops::Range<u64>, held: [u64; 3]) -> Agreement {
        let mut agreement = Agreement::default();
        for cut in cuts {
            for (name, held) in ["a", "b", "c"].into_iter().zip(held) {
                let sheet = sheet(cut, held);
                if name == own {
                    agreement.on_own(&sheet);
                } else {
                    agreement.on_peer(tag(name), &sheet);
                }
            }
            agreement.compare(tag(own), &view(&[]));
        }
        agreement
    }

    fn partners(agreement: &Agreement, own: &str, view: &View) -> Vec<NodeTag> {
        let due = agreement.due(tag(own), view).into_keys();
        let mut due: Vec<NodeTag> = due.collect();
        due.sort_by_key(|tag| view.member(*tag).map(|member| member.id.clone()));
        due
    }

    #[test]
    fn of_homes_that_agree_the_lowest_meets_the_one_that_differs() {
        let all = view(&[]);
        for (held, a, b, c) in [
            ([1, 1, 1], vec![], vec![], vec![]),
            ([1, 1, 2], vec!["c"], vec![], vec![]),
            ([1, 2, 1], vec!["b"], vec![], vec![]),
            ([1, 2, 2], vec!["b"], vec![], vec![]),
            ([1, 2, 3], vec!["b", "c"], vec!["c"], vec![]),
        ] {
            for (own, wanted) in [("a", a), ("b", b), ("c", c)] {
                let agreement = after(own, 1..3, held);
                let wanted: Vec<NodeTag> = wanted.into_iter().map(tag).collect();
                assert_eq!(partners(&agreement, own, &all), wanted, "{own} of {held:?}");
            }
        }
    }

    #[test]
    fn one_cut_is_not_enough_and_a_session_starts_the_count_anew() {
        let all = view(&[]);
        let mut agreement = after("a", 1..2, [1, 2, 1]);
        assert!(partners(&agreement, "a", &all).is_empty());
        agreement = after("a", 1..3, [1, 2, 1]);
        agreement.on_session_begin(tag("b"), P);
        assert!(partners(&agreement, "a", &all).is_empty());
        agreement.on_session_end(tag("b"), P, Epoch(4));
        for (cut, is_due) in [(3, false), (4, false), (5, true)] {
            agreement.on_own(&sheet(cut, 1));
            agreement.on_peer(tag("b"), &sheet(cut, 2));
            assert!(agreement.compare(tag("a"), &all));
            assert_eq!(
                !partners(&agreement, "a", &all).is_empty(),
                is_due,
                "cut {cut}"
            );
        }
        agreement.on_own(&sheet(6, 3));
        agreement.on_peer(tag("b"), &sheet(6, 3));
        agreement.compare(tag("a"), &all);
        assert!(partners(&agreement, "a", &all).is_empty());
        assert_eq!((agreement.agreements, agreement.agreement_rounds), (1, 4));
    }

    #[test]
    fn only_those_that_can_be_reached_are_met_and_others_take_over() {
        let agreement = after("b", 1..3, [1, 1, 2]);
        assert!(
            partners(&agreement, "b", &view(&[])).is_empty(),
            "a does it"
        );
        assert_eq!(partners(&agreement, "b", &view(&["a"])), [tag("c")]);
        assert!(partners(&agreement, "b", &view(&["a", "c"])).is_empty());
        // Whoever should have, has not, for long.
        let agreement = after("c", 1..8, [1, 1, 2]);
        assert_eq!(partners(&agreement, "c", &view(&[])), [tag("a"), tag("b")]);
    }

    #[test]
    fn different_cuts_and_different_ages_are_not_compared() {
        let mut agreement = Agreement::default();
        agreement.on_own(&sheet(5, 1));
        agreement.on_peer(tag("b"), &sheet(6, 2));
        assert!(!agreement.compare(tag("a"), &view(&[])));
        // A clock that was set back by an hour.
        agreement.on_own(&sheet(1_000, 1));
        agreement.on_own(&sheet(100, 1));
        agreement.on_peer(tag("b"), &sheet(100, 1));
        assert!(agreement.compare(tag("a"), &view(&[])));
        let other = Sheet {
            tombstone_age_ms: 8,
            ..(*sheet(101, 1)).clone()
        };
        agreement.on_own(&sheet(101, 1));
        agreement.on_peer(tag("b"), &Arc::new(other));
        assert!(!agreement.compare(tag("a"), &view(&[])));
        assert!(agreement.with(tag("b")).has_other_age);
    }

    #[test]
    fn unanimity_takes_all_homes_for_a_minute() {
        let all = view(&[]);
        let is_unanimous =
            |agreement: &Agreement, view: &View| agreement.is_unanimous(tag("a"), P, view);
        assert!(!is_unanimous(&after("a", 1..10, [1, 1, 1]), &all));
        let agreement = after("a", 1..20, [1, 1, 1]);
        assert!(is_unanimous(&agreement, &all));
        assert!(!is_unanimous(&agreement, &view(&["c"])));
        assert!(!is_unanimous(&after("a", 1..20, [1, 1, 2]), &all));
        // However rarely digests are told.
        let mut rarely = Agreement::default();
        for cut in [900, 1_800, 2_700] {
            rarely.on_own(&sheet(cut, 1));
            for peer in ["b", "c"] {
                rarely.on_peer(tag(peer), &sheet(cut, 1));
            }
            rarely.compare(tag("a"), &all);
            assert_eq!(is_unanimous(&rarely, &all), cut > 900);
        }
        // What was told long ago says nothing of now.
        let mut agreement = agreement;
        for cut in 20..24 {
            agreement.on_own(&sheet(cut, 1));
            agreement.on_peer(tag("b"), &sheet(cut, 1));
            agreement.compare(tag("a"), &all);
        }
        assert!(!is_unanimous(&agreement, &all));
    }
}
