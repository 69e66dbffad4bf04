//! The ring as one node sees it at one moment.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::content::content_hash;
use super::{Candidate, Partitions, Placement};
use crate::model::{NodeId, NodeTag, PartitionId};

/// What all members of a ring agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingParams {
    /// The cluster's name.
    pub cluster: String,
    /// How many partitions it has.
    pub partitions: Partitions,
    /// Copies kept.
    pub n: u8,
}

/// What a node does in the ring.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Holds data.
    #[default]
    Member,
    /// Coordinates and holds no data.
    Proxy,
}

/// Where a node is in its life in the ring. Whether it can be reached is another matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// Takes over its share.
    Joining,
    /// Holds its share.
    Up,
    /// Hands its share over.
    Leaving,
    /// Is out; kept so that the news cannot be forgotten.
    Left,
}

/// A node of the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub id: NodeId,
    /// The number that stands for its name.
    pub tag: NodeTag,
    /// Which of its starts this is.
    pub incarnation: u64,
    /// Members of one zone fail together.
    pub zone: String,
    /// Its share of the data, relative to the others.
    pub weight: u32,
    /// What it does.
    pub role: Role,
    /// Where it is in its life.
    pub state: MemberState,
    /// Where peers reach it.
    pub quic: SocketAddr,
    /// Where its clients reach it.
    pub resp: String,
    /// Where its metrics are.
    pub http: String,
    /// Whether this node can reach it now.
    pub reachable: bool,
}

/// The ring at one moment: immutable, shared by all who need it.
#[derive(Debug, Clone)]
pub struct View {
    params: Arc<RingParams>,
    version: u64,
    members: Vec<Member>,
    is_whole: bool,
    placement: Arc<Placement>,
    /// The last rings before this one, the latest first.
    former: Arc<[FormerRing]>,
}

/// Where the homes were in a ring that is no more.
#[derive(Debug, Clone)]
struct FormerRing {
    version: u64,
    placement: Arc<Placement>,
}

impl View {
    /// The ring of these members.
    #[must_use]
    pub fn new(params: RingParams, members: Vec<Member>) -> Self {
        let members = sorted(members);
        let version = version(&params, &members);
        let placement = Arc::new(place(&params, &members));
        Self {
            params: Arc::new(params),
            version,
            is_whole: members.iter().all(|member| member.reachable),
            members,
            placement,
            former: Arc::new([]),
        }
    }

    /// The ring after a change. Homes are placed anew only if it is one of the ring and not just
    /// of who can be reached.
    #[must_use]
    pub fn update(&self, members: Vec<Member>) -> Self {
        let members = sorted(members);
        let version = version(&self.params, &members);
        let (placement, former) = if version == self.version {
            (Arc::clone(&self.placement), Arc::clone(&self.former))
        } else {
            (Arc::new(place(&self.params, &members)), self.followed())
        };
        Self {
            params: Arc::clone(&self.params),
            version,
            is_whole: members.iter().all(|member| member.reachable),
            members,
            placement,
            former,
        }
    }

    /// The same ring with another opinion of who can be reached. Homes stay where they are.
    #[must_use]
    pub fn with_reachability(&self, is_reachable: impl Fn(&NodeId) -> bool) -> Self {
        let mut view = self.clone();
        for member in &mut view.members {
            member.reachable = is_reachable(&member.id);
        }
        view.is_whole = view.members.iter().all(|member| member.reachable);
        view
    }

    /// What all members agree on.
    #[must_use]
    pub fn params(&self) -> &RingParams {
        &self.params
    }

    /// A number for this state of the ring: equal on two nodes that place keys alike.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// All nodes of the ring, by name.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Whether this node can reach all members.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// The member with this tag.
    #[must_use]
    pub fn member(&self, tag: NodeTag) -> Option<&Member> {
        self.members.iter().find(|member| member.tag == tag)
    }

    /// The home nodes of a partition: n of them, or all that hold data where there are fewer.
    #[must_use]
    pub fn homes(&self, partition: PartitionId) -> &[NodeTag] {
        self.placement.homes(partition)
    }

    /// Whether a partition has other homes now than in the ring of this version, as far as that is
    /// known: of one that this node has not seen, or not lately, nothing is.
    #[must_use]
    pub fn has_moved_since(&self, version: u64, partition: PartitionId) -> bool {
        if version == self.version {
            return false;
        }
        let mut former = self.former.iter();
        let former = former.find(|former| former.version == version);
        former.is_some_and(|former| former.placement.homes(partition) != self.homes(partition))
    }

    /// The rest of a partition's preference list.
    #[must_use]
    pub fn stand_ins(&self, partition: PartitionId) -> Vec<NodeTag> {
        self.placement.stand_ins(partition)
    }

    /// How many partitions a member is a home of.
    #[must_use]
    pub fn homes_held(&self, tag: NodeTag) -> usize {
        self.placement.homes_held(tag)
    }

    /// How much more than its share the fullest member has; 1.0 is even.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    pub fn balance(&self) -> f64 {
        let holders = || self.members.iter().filter(|member| holds_data(member));
        let weights: u64 = holders()
            .map(|member| u64::from(member.weight.max(1)))
            .sum();
        let slots: usize = holders().map(|member| self.homes_held(member.tag)).sum();
        let fullness = |member: &Member| {
            let share = slots as f64 * f64::from(member.weight.max(1)) / weights as f64;
            self.homes_held(member.tag) as f64 / share
        };
        holders().map(fullness).fold(1.0, f64::max)
    }
}

impl View {
    /// The former rings of the one that comes after this.
    fn followed(&self) -> Arc<[FormerRing]> {
        let this = FormerRing {
            version: self.version,
            placement: Arc::clone(&self.placement),
        };
        let former = self.former.iter().cloned();
        std::iter::once(this)
            .chain(former)
            .take(FORMER_MAX)
            .collect()
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Member => "member",
            Self::Proxy => "proxy",
        })
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Joining => "joining",
            Self::Up => "up",
            Self::Leaving => "leaving",
            Self::Left => "left",
        })
    }
}

fn sorted(mut members: Vec<Member>) -> Vec<Member> {
    members.sort_by(|a, b| a.id.cmp(&b.id));
    members
}

fn holds_data(member: &Member) -> bool {
    member.role == Role::Member && matches!(member.state, MemberState::Up | MemberState::Leaving)
}

fn place(params: &RingParams, members: &[Member]) -> Placement {
    let holders = members.iter().filter(|member| holds_data(member));
    let holders: Vec<_> = holders
        .map(
            |Member {
                 tag, weight, zone, ..
             }| Candidate {
                tag: *tag,
                weight: *weight,
                zone,
            },
        )
        .collect();
    Placement::new(&holders, params.n, params.partitions)
}

/// Of everything that decides where keys live, and nothing else.
fn version(params: &RingParams, members: &[Member]) -> u64 {
    let members: Vec<_> = members
        .iter()
        .map(|member| {
            (
                member.tag,
                member.weight,
                &member.zone,
                member.role,
                member.state,
            )
        })
        .collect();
    content_hash(&(&params.cluster, params.partitions, params.n, members))
}

/// Nodes that join at once change the ring one by one. Some 100 kB each, at 4,096 partitions.
const FORMER_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str) -> Member {
        let id: NodeId = name.parse().unwrap();
        Member {
            tag: id.tag(),
            id,
            incarnation: 1,
            zone: String::new(),
            weight: 1,
            role: Role::Member,
            state: MemberState::Up,
            quic: ([127, 0, 0, 1], 7_479).into(),
            resp: String::new(),
            http: String::new(),
            reachable: true,
        }
    }

    fn view(members: Vec<Member>) -> View {
        let partitions = Partitions::new(64).unwrap();
        View::new(
            RingParams {
                cluster: "blue".to_owned(),
                partitions,
                n: 3,
            },
            members,
        )
    }

    #[test]
    fn reachability_changes_no_homes_and_no_version() {
        let before = view(vec![member("a"), member("b"), member("c"), member("d")]);
        let mut members = before.members().to_vec();
        members[1].reachable = false;
        let after = before.update(members);
        assert_eq!(after.version(), before.version());
        assert!(Arc::ptr_eq(&after.placement, &before.placement));
        let alone = before.with_reachability(|id| id.as_str() == "a");
        let reachable: Vec<_> = alone.members().iter().map(|m| m.reachable).collect();
        assert_eq!(reachable, [true, false, false, false]);
        assert_eq!(alone.version(), before.version());
        assert!(Arc::ptr_eq(&alone.placement, &before.placement));
        let fewer = before.update(before.members()[..3].to_vec());
        assert_ne!(fewer.version(), before.version());
        assert_eq!(fewer.homes(PartitionId(0)).len(), 3);
    }

    #[test]
    fn a_ring_knows_which_partitions_had_other_homes_before_it() {
        let names = ["a", "b", "c", "d"];
        let all: Vec<_> = names.map(member).to_vec();
        let before = view(all[..3].to_vec());
        let after = before.update(all);
        let moved = |partition| after.homes(partition) != before.homes(partition);
        let partitions = || before.params().partitions.all();
        assert!(partitions().any(moved) && !partitions().all(moved));
        for partition in partitions() {
            let version = before.version();
            assert_eq!(after.has_moved_since(version, partition), moved(partition));
            assert!(!after.has_moved_since(after.version(), partition));
            // Nothing is known of rings to come.
            assert!(!before.has_moved_since(after.version(), partition));
        }
    }

    #[test]
    fn proxies_and_those_not_up_hold_nothing() {
        let mut members = vec![member("a"), member("b"), member("c"), member("d")];
        members[1].role = Role::Proxy;
        members[2].state = MemberState::Joining;
        let view = view(members);
        assert_eq!(view.homes(PartitionId(9)).len(), 2);
        assert_eq!(view.homes_held(view.members()[1].tag), 0);
        assert!((view.balance() - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn version_is_of_what_places_keys_and_is_fixed_for_ever() {
        let before = view(vec![member("a"), member("b")]);
        // Nodes compare it: a change here looks to them like another ring.
        assert_eq!(before.version(), VERSION_OF_A_B);
        assert_eq!(
            view(vec![member("b"), member("a")]).version(),
            VERSION_OF_A_B
        );
        let changed = |change: fn(&mut Member)| {
            let mut members = before.members().to_vec();
            change(&mut members[0]);
            before.update(members).version()
        };
        assert_eq!(changed(|m| m.incarnation = 9), VERSION_OF_A_B);
        assert_eq!(changed(|m| m.http = "h".to_owned()), VERSION_OF_A_B);
        assert_ne!(changed(|m| m.weight = 2), VERSION_OF_A_B);
        assert_ne!(changed(|m| m.zone = "z".to_owned()), VERSION_OF_A_B);
        assert_ne!(changed(|m| m.role = Role::Proxy), VERSION_OF_A_B);
        assert_ne!(changed(|m| m.state = MemberState::Leaving), VERSION_OF_A_B);
    }

    const VERSION_OF_A_B: u64 = 10_839_540_876_157_715_885;
}
