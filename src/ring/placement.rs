//! Which members are the homes of which partition: a pure function of the members.
//!
//! Weighted rendezvous hashing (Thaler, Ravishankar, 1998; weights after Schindelhauer, Schomaker,
//! 2005) gives each partition an order of all members, in which a member's place depends on nobody
//! else: when one comes or goes, only what it takes or leaves moves. Left alone it is uneven (1.22
//! times the mean at 100 members), so no member becomes home of more than [`LOAD_BOUND`] times its
//! share, after Mirrokni, Thorup, Zadimoghaddam, *Consistent Hashing with Bounded Loads* (2018).
//! Homes are dealt out rank by rank: first a first home for each partition, then the second ones.
//!
//! All arithmetic is on integers: equal members give equal homes on every machine.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{NodeTag, PartitionId};

use super::Partitions;

/// How much more than its share of homes a member may have.
pub const LOAD_BOUND: f64 = 1.10;

/// A member that can hold data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Who.
    pub tag: NodeTag,
    /// Its share of the data, relative to the others; at least 1.
    pub weight: u32,
    /// Members of one zone fail together.
    pub zone: &'a str,
}

/// The homes of all partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    homes: Vec<NodeTag>,
    homes_each: usize,
    /// All members in each partition's order, one partition after the other.
    orders: Vec<NodeTag>,
    members: usize,
    /// How many partitions each member is a home of.
    held: BTreeMap<NodeTag, usize>,
}

impl Placement {
    /// Places n homes for each partition. With fewer members than n, all of them are homes.
    #[must_use]
    pub fn new(candidates: &[Candidate<'_>], n: u8, partitions: Partitions) -> Self {
        let mut members = candidates.to_vec();
        members.sort_by_key(|member| member.tag);
        members.dedup_by_key(|member| member.tag);
        let homes_each = usize::from(n).min(members.len());
        let orders: Vec<Vec<usize>> = partitions
            .all()
            .map(|partition| order(&members, partition))
            .collect();
        let mut deal = Deal::new(&members, homes_each, partitions);
        for _rank in 0..homes_each {
            for (partition, order) in orders.iter().enumerate() {
                deal.next_home(partition, order);
            }
        }
        let tag = |&member: &usize| members[member].tag;
        let homes: Vec<NodeTag> = deal.homes.iter().flatten().map(tag).collect();
        let mut held = BTreeMap::new();
        for &home in &homes {
            *held.entry(home).or_default() += 1;
        }
        Self {
            homes,
            held,
            homes_each,
            orders: orders.iter().flatten().map(tag).collect(),
            members: members.len(),
        }
    }

    /// The homes of a partition, the first one first.
    #[must_use]
    pub fn homes(&self, partition: PartitionId) -> &[NodeTag] {
        let start = usize::from(partition.0) * self.homes_each;
        &self.homes[start..start + self.homes_each]
    }

    /// The members that are no homes of a partition, in the order in which they stand in.
    #[must_use]
    pub fn stand_ins(&self, partition: PartitionId) -> Vec<NodeTag> {
        let start = usize::from(partition.0) * self.members;
        let homes = self.homes(partition);
        let order = self.orders[start..start + self.members].iter();
        order.filter(|tag| !homes.contains(tag)).copied().collect()
    }

    /// How many partitions a member is a home of.
    #[must_use]
    pub fn homes_held(&self, tag: NodeTag) -> usize {
        self.held.get(&tag).copied().unwrap_or(0)
    }
}

/// Homes as they are dealt out.
struct Deal<'a> {
    members: &'a [Candidate<'a>],
    zones: usize,
    /// The most partitions that each member may be a home of.
    caps: Vec<u64>,
    held: Vec<u64>,
    homes: Vec<Vec<usize>>,
}

impl<'a> Deal<'a> {
    fn new(members: &'a [Candidate<'a>], homes_each: usize, partitions: Partitions) -> Self {
        let zones = members
            .iter()
            .map(|member| member.zone)
            .collect::<BTreeSet<_>>()
            .len();
        let slots = u64::from(partitions.count()) * homes_each as u64;
        let all: u64 = members.iter().map(|member| weight(member)).sum();
        let cap = |member: &Candidate<'_>| {
            let share = bounded_share(slots, weight(member), all);
            if zones != homes_each {
                return share.min(u64::from(partitions.count()));
            }
            // With as many zones as homes, each zone holds everything: a member of a small zone
            // cannot have less than its part of that.
            let zone = members.iter().filter(|other| other.zone == member.zone);
            let zone_weight = zone.map(weight).sum();
            let in_zone = bounded_share(u64::from(partitions.count()), weight(member), zone_weight);
            share.max(in_zone).min(u64::from(partitions.count()))
        };
        Self {
            members,
            zones,
            caps: members.iter().map(cap).collect(),
            held: vec![0; members.len()],
            homes: vec![Vec::with_capacity(homes_each); partitions.count() as usize],
        }
    }

    /// Gives a partition one home more.
    fn next_home(&mut self, partition: usize, order: &[usize]) {
        let homes = &self.homes[partition];
        let used: BTreeSet<&str> = homes.iter().map(|&home| self.members[home].zone).collect();
        // Once each zone has a home, zones start over.
        let fresh_zone_left = used.len() < self.zones;
        let fits = |&member: &usize| {
            let is_zone_taken = fresh_zone_left && used.contains(self.members[member].zone);
            !is_zone_taken && !homes.contains(&member)
        };
        let has_room = |&member: &usize| self.held[member] < self.caps[member];
        let fullness = |member: usize| (self.held[member] << 32) / self.caps[member].max(1);
        let best = order
            .iter()
            .copied()
            .find(|member| fits(member) && has_room(member));
        // Where every member that fits is full, zones count for more than load.
        let chosen = best.or_else(|| {
            order
                .iter()
                .copied()
                .filter(fits)
                .min_by_key(|&member| fullness(member))
        });
        if let Some(chosen) = chosen {
            self.held[chosen] += 1;
            self.homes[partition].push(chosen);
        }
    }
}

/// All members, the one with the lowest cost first.
fn order(members: &[Candidate<'_>], partition: PartitionId) -> Vec<usize> {
    let cost = |member: &Candidate<'_>| {
        let hash = mix(member.tag.0 ^ mix(u64::from(partition.0) + 1));
        // -log2 of a uniform number is exponentially distributed; divided by the weight, the
        // smallest of several is each one's as often as its weight says.
        minus_log2(hash) / weight(member)
    };
    let mut order: Vec<(u64, usize)> = members
        .iter()
        .enumerate()
        .map(|(number, member)| (cost(member), number))
        .collect();
    order.sort_unstable();
    order.into_iter().map(|(_, number)| number).collect()
}

fn weight(member: &Candidate<'_>) -> u64 {
    u64::from(member.weight.max(1))
}

/// [`LOAD_BOUND`] times the share of `slots` that a weight has, rounded up.
fn bounded_share(slots: u64, weight: u64, all: u64) -> u64 {
    (slots * weight * 110).div_ceil(all.max(1) * 100)
}

/// -log2(hash / 2^64) as a fixed-point number with 48 fractional bits, exact to 30 of them. By
/// repeated squaring (Knuth, *The Art of Computer Programming* 1.2.2, exercise 25): a floating
/// point logarithm may differ between machines.
fn minus_log2(hash: u64) -> u64 {
    const BITS: u32 = 30;
    let hash = hash | 1;
    let zeros = hash.leading_zeros();
    // The mantissa, from 1 (included) to 2, with 63 fractional bits.
    let mut mantissa = hash << zeros;
    let mut fraction = 0u64;
    for _ in 0..BITS {
        let square = (u128::from(mantissa) * u128::from(mantissa)) >> 63;
        let is_two_or_more = square >> 64 != 0;
        fraction = (fraction << 1) | u64::from(is_two_or_more);
        let scaled = if is_two_or_more { square >> 1 } else { square };
        // Below 2^64: the square of a number below 2, halved if it is 2 or more.
        mantissa = u64::try_from(scaled).unwrap_or(u64::MAX);
    }
    // log2 = 63 - zeros + fraction, and what is wanted is 64 - log2.
    ((u64::from(zeros) + 1) << 48) - (fraction << (48 - BITS))
}

/// A bijection of 64 bits without pattern: the finaliser of `SplitMix64` (Steele, Lea, Flood, 2014).
const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const Q: u32 = 4_096;

    fn equal(count: u64) -> Vec<Candidate<'static>> {
        let member = |n| Candidate {
            tag: NodeTag(mix(n + 77)),
            weight: 1,
            zone: "",
        };
        (0..count).map(member).collect()
    }

    fn place(members: &[Candidate<'_>], n: u8) -> Placement {
        Placement::new(members, n, Partitions::new(Q).unwrap())
    }

    fn all() -> impl Iterator<Item = PartitionId> {
        Partitions::new(Q).unwrap().all()
    }

    /// Homes of `after` that were no homes before, over all partitions.
    fn moved(before: &Placement, after: &Placement) -> usize {
        all()
            .map(|p| {
                after
                    .homes(p)
                    .iter()
                    .filter(|home| !before.homes(p).contains(home))
                    .count()
            })
            .sum()
    }

    #[test]
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    fn balance_and_movement_keep_their_bounds() {
        for count in [3u64, 5, 10, 30, 100] {
            let members = equal(count + 1);
            let before = place(&members[..members.len() - 1], 3);
            let after = place(&members, 3);
            let mean = f64::from(Q) * 3.0 / count as f64;
            let most = before.held.values().copied().max().unwrap() as f64 / mean;
            assert!(
                most <= 1.11,
                "{count} members: the fullest has {most:.3} times the mean"
            );
            // The least that can move is what the newcomer gets, and what the leaver had.
            let newcomer = members.last().unwrap().tag;
            let joined = moved(&before, &after) as f64 / after.homes_held(newcomer) as f64;
            let left = moved(&after, &before) as f64 / after.homes_held(newcomer) as f64;
            assert!(
                joined <= 1.2,
                "{count} members: a join moves {joined:.3} times the least"
            );
            assert!(
                left <= 1.2,
                "{count} members: a leave moves {left:.3} times the least"
            );
        }
    }

    #[test]
    fn homes_are_in_distinct_zones() {
        for (zones, count) in [(3u64, 9u64), (3, 4), (4, 10), (5, 30)] {
            const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
            let mut members = equal(count);
            for (member, zone) in members.iter_mut().zip((0..zones).cycle()) {
                member.zone = NAMES[usize::try_from(zone).unwrap()];
            }
            let zone = |tag| members.iter().find(|m| m.tag == tag).unwrap().zone;
            let placement = place(&members, 3);
            for partition in all() {
                let homes = placement.homes(partition).iter();
                let distinct: BTreeSet<&str> = homes.map(|&tag| zone(tag)).collect();
                assert_eq!(distinct.len(), 3, "{count} members in {zones} zones");
            }
        }
    }

    #[test]
    fn weights_are_shares() {
        let mut members = equal(9);
        members[0].weight = 3;
        let placement = place(&members, 2);
        let share = usize::try_from(Q * 2 * 3 / 11).unwrap();
        let heavy = placement.homes_held(members[0].tag);
        assert!(
            heavy > share * 9 / 10 && heavy <= share * 11 / 10 + 1,
            "{heavy} of {share}"
        );
    }

    #[test]
    fn logarithm_is_right() {
        for hash in [1u64, 2, 3, 1 << 20, u64::MAX / 3, u64::MAX / 2, u64::MAX] {
            #[expect(clippy::cast_precision_loss, reason = "compared to 20 bits")]
            let (got, want) = (
                minus_log2(hash) as f64 / 2f64.powi(48),
                64.0 - ((hash | 1) as f64).log2(),
            );
            assert!((got - want).abs() < 1e-6, "{hash}: {got} {want}");
        }
    }

    proptest! {
        #[test]
        fn equal_members_in_any_order_give_equal_homes(
            tags in prop::collection::btree_set(any::<u64>(), 0..12),
            n in 1u8..6,
            turn in 0usize..12,
        ) {
            const ZONES: [&str; 3] = ["x", "y", "z"];
            let mut members: Vec<_> = tags.iter().map(|&tag| Candidate {
                tag: NodeTag(tag),
                weight: 1 + u32::try_from(tag % 3).unwrap(),
                zone: ZONES[usize::try_from(tag % 5 % 3).unwrap()],
            }).collect();
            let partitions = Partitions::new(64).unwrap();
            let placement = Placement::new(&members, n, partitions);
            for partition in partitions.all() {
                let homes = placement.homes(partition);
                let distinct: BTreeSet<_> = homes.iter().collect();
                prop_assert_eq!(distinct.len(), usize::from(n).min(members.len()));
                let list = homes.len() + placement.stand_ins(partition).len();
                prop_assert_eq!(list, members.len(), "a preference list has all members");
            }
            let by = turn.min(members.len());
            members.rotate_left(by);
            members.reverse();
            prop_assert_eq!(Placement::new(&members, n, partitions), placement);
        }
    }

    #[test]
    fn homes_are_fixed_for_ever() {
        // A change here is a new wire version: nodes of both versions would disagree.
        let homes = place(&equal(5), 3).homes(PartitionId(7)).to_vec();
        let tags: Vec<_> = equal(5).iter().map(|member| member.tag).collect();
        let numbers: Vec<_> = homes
            .iter()
            .map(|home| tags.iter().position(|tag| tag == home).unwrap())
            .collect();
        assert_eq!(numbers, HOMES_OF_7);
    }

    const HOMES_OF_7: [usize; 3] = [4, 2, 1];
}
