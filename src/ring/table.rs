//! The member table: who belongs to the ring, merged from what everyone knows.
//!
//! A state-based CRDT (Shapiro, Preguiça, Baquero, Zawirski, 2011): one register a node, the
//! greatest entry wins by a total order, so tables agree once they have seen the same entries, in
//! whatever order and however often.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use super::content::{bytes_hash, content_hash, packed};
use super::{Member, MemberState, Role};
use crate::model::{NodeId, NodeTag};

/// What the ring knows of one node.
///
/// Ordered as the fields stand: a later start of the node beats an earlier one; of one start, a
/// higher revision, whoever made it (the node itself, or an admin who takes it out). What follows
/// only breaks ties, so that no two entries are equal in rank and different.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MemberEntry {
    /// Its name: the key of the register.
    pub id: NodeId,
    /// Which of its starts this is about; grows at each.
    pub incarnation: u64,
    /// Counts the changes within one start.
    pub revision: u64,
    /// Where it is in its life.
    pub state: MemberState,
    /// What it does.
    pub role: Role,
    /// Members of one zone fail together.
    pub zone: String,
    /// Its share of the data, relative to the others.
    pub weight: u32,
    /// Where peers reach it.
    pub quic: SocketAddr,
    /// Where its clients reach it.
    pub resp: String,
    /// Where its metrics are.
    pub http: String,
}

/// The entries of all nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberTable {
    entries: BTreeMap<NodeId, MemberEntry>,
}

/// Why bytes are not a member table of this cluster.
#[derive(Debug, Error)]
pub enum TableError {
    /// Damaged or cut off.
    #[error("the member table is damaged ({0}); restore the file, or delete it to join anew")]
    Damaged(&'static str),
    /// Of a later version of this program.
    #[error("the member table has format {found}, this version knows {FORMAT}; do not downgrade")]
    Format {
        /// The format found.
        found: u32,
    },
    /// Of another cluster.
    #[error(
        "the member table is of cluster `{found}`, this node is configured for `{expected}`: \
         use another data_dir, or set cluster = \"{found}\""
    )]
    Cluster {
        /// The cluster in the table.
        found: String,
        /// The cluster configured.
        expected: String,
    },
    /// Of a cluster with another number of partitions.
    #[error(
        "the cluster was born with partitions = {found}, this node is configured for {expected}: \
         the number cannot change"
    )]
    Partitions {
        /// The number in the table.
        found: u32,
        /// The number configured.
        expected: u32,
    },
}

impl MemberEntry {
    /// The member as a ring has it.
    #[must_use]
    pub fn to_member(&self, reachable: bool) -> Member {
        Member {
            id: self.id.clone(),
            tag: self.id.tag(),
            incarnation: self.incarnation,
            zone: self.zone.clone(),
            weight: self.weight,
            role: self.role,
            state: self.state,
            quic: self.quic,
            resp: self.resp.clone(),
            http: self.http.clone(),
            reachable,
        }
    }
}

impl MemberTable {
    /// Takes an entry if it is newer than what is known; whether it was.
    pub fn merge_entry(&mut self, entry: MemberEntry) -> bool {
        match self.entries.get(&entry.id) {
            Some(known) if *known >= entry => false,
            Some(_) => self.entries.insert(entry.id.clone(), entry).is_some(),
            None if self.entries.len() >= ENTRIES_MAX => false,
            None => self.entries.insert(entry.id.clone(), entry).is_none(),
        }
    }

    /// Takes what is newer in another table; whether anything was.
    ///
    /// Law: commutative, associative and idempotent, up to `ENTRIES_MAX` entries.
    pub fn merge(&mut self, other: &Self) -> bool {
        let merged = other
            .entries
            .values()
            .map(|entry| self.merge_entry(entry.clone()));
        merged.fold(false, |any, changed| any | changed)
    }

    /// All entries, by name.
    pub fn entries(&self) -> impl Iterator<Item = &MemberEntry> {
        self.entries.values()
    }

    /// The entry of a node.
    #[must_use]
    pub fn get(&self, id: &NodeId) -> Option<&MemberEntry> {
        self.entries.get(id)
    }

    /// A number for the content: equal tables have equal ones, on every machine.
    #[must_use]
    pub fn digest(&self) -> u64 {
        content_hash(&self.entries.values().collect::<Vec<_>>())
    }

    /// Nodes that cannot be in the ring because of another one, with the reason. Every node draws
    /// the same conclusion from the same table.
    ///
    /// Of two names with one tag the one that sorts first stays: versions of both would be mixed
    /// up. Of two names with one QUIC address the one that started later stays: the other one has
    /// moved away or is gone.
    #[must_use]
    pub fn conflicts(&self) -> Vec<(NodeId, String)> {
        self.conflicts_by(NodeId::tag)
    }

    fn conflicts_by(&self, tag: impl Fn(&NodeId) -> NodeTag) -> Vec<(NodeId, String)> {
        let mut losers = Vec::new();
        let mut by_tag = BTreeMap::new();
        let mut by_addr: BTreeMap<SocketAddr, &MemberEntry> = BTreeMap::new();
        let present = self
            .entries
            .values()
            .filter(|entry| entry.state != MemberState::Left);
        for entry in present {
            if let Some(first) = by_tag.insert(tag(&entry.id), &entry.id) {
                by_tag.insert(tag(&entry.id), first);
                losers.push((
                    entry.id.clone(),
                    format!("its name hashes like that of {first}"),
                ));
                continue;
            }
            let Some(other) = by_addr.insert(entry.quic, entry) else {
                continue;
            };
            let newer = |e: &MemberEntry| (e.incarnation, e.id.clone());
            let (stays, goes) = if newer(other) > newer(entry) {
                (other, entry)
            } else {
                (entry, other)
            };
            by_addr.insert(entry.quic, stays);
            let reason = format!("{} now listens on its address {}", stays.id, stays.quic);
            losers.push((goes.id.clone(), reason));
        }
        losers
    }

    /// The table as bytes, for the disk and for peers.
    #[must_use]
    pub fn to_bytes(&self, cluster: &str, partitions: u32) -> Vec<u8> {
        let entries: Vec<_> = self.entries.values().collect();
        let body = packed(&(FORMAT, cluster, partitions, entries));
        let mut bytes = bytes_hash(&body).to_le_bytes().to_vec();
        bytes.extend(body);
        bytes
    }

    /// A table from bytes; those of another cluster are refused.
    pub fn from_bytes(bytes: &[u8], cluster: &str, partitions: u32) -> Result<Self, TableError> {
        if bytes.len() > TABLE_BYTES_MAX {
            return Err(TableError::Damaged("too long"));
        }
        let (sum, body) = bytes
            .split_first_chunk()
            .ok_or(TableError::Damaged("too short"))?;
        if u64::from_le_bytes(*sum) != bytes_hash(body) {
            return Err(TableError::Damaged("wrong checksum"));
        }
        let Format(found) =
            rmp_serde::from_slice(body).map_err(|_not_one| TableError::Damaged("no table"))?;
        if found != FORMAT {
            return Err(TableError::Format { found });
        }
        let (_, found_cluster, found, entries): (u32, String, u32, Vec<MemberEntry>) =
            rmp_serde::from_slice(body).map_err(|_error| TableError::Damaged("no table"))?;
        if found_cluster != cluster {
            let expected = cluster.to_owned();
            return Err(TableError::Cluster {
                found: found_cluster,
                expected,
            });
        }
        if found != partitions {
            return Err(TableError::Partitions {
                found,
                expected: partitions,
            });
        }
        let mut table = Self::default();
        entries
            .into_iter()
            .for_each(|entry| _ = table.merge_entry(entry));
        Ok(table)
    }
}

/// The format of a table, read without what follows: in a later one that may look otherwise.
struct Format(u32);

impl<'de> Deserialize<'de> for Format {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct First;

        impl<'de> Visitor<'de> for First {
            type Value = Format;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list that starts with a format")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Format, A::Error> {
                let format = list.next_element()?;
                while list.next_element::<IgnoredAny>()?.is_some() {}
                format
                    .map(Format)
                    .ok_or_else(|| A::Error::invalid_length(0, &self))
            }
        }

        deserializer.deserialize_seq(First)
    }
}

/// The format of [`MemberTable::to_bytes`].
const FORMAT: u32 = 1;
/// Twice the largest cluster: those who left are remembered too.
const ENTRIES_MAX: usize = 2_048;
/// Two KiB an entry: names and addresses take a tenth of it.
const TABLE_BYTES_MAX: usize = ENTRIES_MAX * 2_048;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> impl Strategy<Value = MemberEntry> {
        (0u8..5, 0u64..3, 0u64..3, 0u8..4, 0u16..3).prop_map(
            |(name, incarnation, revision, state, port)| {
                use MemberState::{Joining, Leaving, Left, Up};
                MemberEntry {
                    id: format!("n{name}").parse().unwrap(),
                    incarnation,
                    revision,
                    state: [Joining, Up, Leaving, Left][usize::from(state)],
                    role: Role::Member,
                    zone: String::new(),
                    weight: 1,
                    quic: ([127, 0, 0, 1], port).into(),
                    resp: String::new(),
                    http: String::new(),
                }
            },
        )
    }

    fn table() -> impl Strategy<Value = MemberTable> {
        prop::collection::vec(entry(), 0..12).prop_map(|entries| {
            let mut table = MemberTable::default();
            entries
                .into_iter()
                .for_each(|entry| _ = table.merge_entry(entry));
            table
        })
    }

    fn merged(a: &MemberTable, b: &MemberTable) -> MemberTable {
        let mut table = a.clone();
        table.merge(b);
        table
    }

    proptest! {
        #[test]
        fn merge_is_commutative(a in table(), b in table()) {
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&a, &b).digest(), merged(&b, &a).digest());
        }

        #[test]
        fn merge_is_associative(a in table(), b in table(), c in table()) {
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
        }

        #[test]
        fn merge_is_idempotent(a in table(), b in table()) {
            let mut once = merged(&a, &b);
            prop_assert!(!once.merge(&b));
            prop_assert!(!once.merge(&a));
        }

        #[test]
        fn bytes_survive_and_damage_is_seen(a in table(), at in any::<prop::sample::Index>()) {
            let bytes = a.to_bytes("blue", 64);
            prop_assert_eq!(&MemberTable::from_bytes(&bytes, "blue", 64).unwrap(), &a);
            let mut damaged = bytes.clone();
            damaged[at.index(bytes.len())] ^= 1;
            prop_assert!(MemberTable::from_bytes(&damaged, "blue", 64).is_err());
            prop_assert!(MemberTable::from_bytes(&bytes[..at.index(bytes.len())], "blue", 64).is_err());
        }

        #[test]
        fn without_its_conflicts_a_table_has_each_address_once(a in table()) {
            let losers: Vec<_> = a.conflicts().into_iter().map(|(loser, _)| loser).collect();
            let rest = a.entries().filter(|e| e.state != MemberState::Left && !losers.contains(&e.id));
            let mut addresses: Vec<_> = rest.map(|entry| entry.quic).collect();
            let all = addresses.len();
            addresses.sort();
            addresses.dedup();
            prop_assert_eq!(addresses.len(), all);
        }
    }

    fn up(name: &str, incarnation: u64, port: u16) -> MemberEntry {
        MemberEntry {
            id: name.parse().unwrap(),
            incarnation,
            revision: 0,
            state: MemberState::Up,
            role: Role::Member,
            zone: String::new(),
            weight: 1,
            quic: ([127, 0, 0, 1], port).into(),
            resp: String::new(),
            http: String::new(),
        }
    }

    fn table_of(entries: impl IntoIterator<Item = MemberEntry>) -> MemberTable {
        let mut table = MemberTable::default();
        for entry in entries {
            table.merge_entry(entry);
        }
        table
    }

    fn names(losers: Vec<(NodeId, String)>) -> Vec<String> {
        losers.into_iter().map(|(loser, _)| loser.into()).collect()
    }

    #[test]
    fn who_left_comes_back_by_a_new_start_or_a_higher_revision_only() {
        let left = MemberEntry {
            state: MemberState::Left,
            revision: 1,
            ..up("a", 5, 1)
        };
        let mut table = table_of([left.clone()]);
        for revision in [0, 1] {
            assert!(!table.merge_entry(MemberEntry {
                revision,
                ..up("a", 5, 1)
            }));
        }
        assert_eq!(table.get(&left.id), Some(&left));
        let revised = MemberEntry {
            revision: 2,
            ..up("a", 5, 1)
        };
        assert!(table.clone().merge_entry(revised));
        assert!(table.merge_entry(up("a", 6, 1)));
    }

    #[test]
    fn of_two_at_one_address_the_later_start_stays() {
        let table = table_of([up("a", 7, 1), up("b", 9, 1), up("c", 8, 1), up("d", 1, 2)]);
        assert_eq!(names(table.conflicts()), ["a", "c"]);
    }

    #[test]
    fn of_two_with_one_tag_the_first_by_name_stays() {
        // Names whose tags are equal cannot be found in reasonable time.
        let first_letter = |id: &NodeId| NodeTag(u64::from(id.as_str().as_bytes()[0]));
        let entries = [
            up("a1", 1, 1),
            up("a2", 9, 2),
            up("b1", 1, 2),
            up("b2", 9, 1),
        ];
        let table = table_of(entries);
        // Who is out for its tag takes nobody's address: `b1` stays though `a2` started later.
        assert_eq!(names(table.conflicts_by(first_letter)), ["a2", "b2"]);
    }

    #[test]
    fn digest_is_fixed_for_ever() {
        // Nodes compare it: a change here makes those of two versions fetch without end.
        let table = table_of([up("a", 5, 1), up("b", 6, 2)]);
        assert_eq!(table.digest(), DIGEST_OF_A_B);
    }

    const DIGEST_OF_A_B: u64 = 2_874_610_650_480_638_617;

    #[test]
    fn a_later_format_is_told_from_damage_whatever_it_looks_like() {
        for body in [packed(&(2, "more", 1, 2, 3)), packed(&(2,))] {
            let mut bytes = bytes_hash(&body).to_le_bytes().to_vec();
            bytes.extend(body);
            let error = MemberTable::from_bytes(&bytes, "blue", 64).unwrap_err();
            assert!(matches!(error, TableError::Format { found: 2 }), "{error}");
        }
    }

    #[test]
    fn the_largest_table_fits_its_bound_and_more_is_refused_unread() {
        let long = |n: usize| MemberEntry {
            zone: "z".repeat(63),
            resp: "r".repeat(300),
            http: "h".repeat(300),
            ..up(&format!("{n:063}"), u64::MAX, u16::MAX)
        };
        let bytes = table_of((0..ENTRIES_MAX).map(long)).to_bytes("blue", 64);
        assert!(MemberTable::from_bytes(&bytes, "blue", 64).is_ok());
        let error = MemberTable::from_bytes(&vec![0; TABLE_BYTES_MAX + 1], "blue", 64);
        assert!(matches!(error, Err(TableError::Damaged("too long"))));
    }

    #[test]
    fn a_table_of_another_cluster_is_refused() {
        let bytes = MemberTable::default().to_bytes("blue", 64);
        let error = MemberTable::from_bytes(&bytes, "green", 64)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`blue`") && error.contains("`green`"),
            "{error}"
        );
        assert!(matches!(
            MemberTable::from_bytes(&bytes, "blue", 128),
            Err(TableError::Partitions {
                found: 64,
                expected: 128
            })
        ));
    }
}
