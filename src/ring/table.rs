//! The member table: who belongs to the ring, merged from what everyone knows.
//!
//! A state-based CRDT (Shapiro, Preguiça, Baquero, Zawirski, 2011): one register a node, the
//! greatest entry wins by a total order, so tables agree once they have seen the same entries, in
//! whatever order and however often.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;
use thiserror::Error;

use super::{Member, MemberState, Role};
use crate::model::NodeId;

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
    /// Law: commutative, associative and idempotent, up to [`ENTRIES_MAX`] entries.
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
        let mut hasher = SipHasher13::new();
        self.entries
            .values()
            .for_each(|entry| entry.hash(&mut hasher));
        hasher.finish()
    }

    /// Nodes that cannot be in the ring because of another one, with the reason. Every node draws
    /// the same conclusion from the same table.
    ///
    /// Of two names with one tag the one that sorts first stays: versions of both would be mixed
    /// up. Of two names with one QUIC address the one that started later stays: the other one has
    /// moved away or is gone.
    #[must_use]
    pub fn conflicts(&self) -> Vec<(NodeId, String)> {
        let mut losers = Vec::new();
        let mut by_tag = BTreeMap::new();
        let mut by_addr: BTreeMap<SocketAddr, &MemberEntry> = BTreeMap::new();
        let present = self
            .entries
            .values()
            .filter(|entry| entry.state != MemberState::Left);
        for entry in present {
            if let Some(first) = by_tag.insert(entry.id.tag(), &entry.id) {
                by_tag.insert(entry.id.tag(), first);
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
        // A struct of text and numbers always has a MessagePack form.
        let body = rmp_serde::to_vec(&(FORMAT, cluster, partitions, entries)).unwrap_or_default();
        let mut bytes = checksum(&body).to_le_bytes().to_vec();
        bytes.extend(body);
        bytes
    }

    /// A table from bytes; those of another cluster are refused.
    pub fn from_bytes(bytes: &[u8], cluster: &str, partitions: u32) -> Result<Self, TableError> {
        let (sum, body) = bytes
            .split_first_chunk()
            .ok_or(TableError::Damaged("too short"))?;
        if u64::from_le_bytes(*sum) != checksum(body) {
            return Err(TableError::Damaged("wrong checksum"));
        }
        // The format stands first and is read first: what follows may look otherwise.
        let format: (
            u32,
            serde::de::IgnoredAny,
            serde::de::IgnoredAny,
            serde::de::IgnoredAny,
        ) = rmp_serde::from_slice(body).map_err(|_error| TableError::Damaged("no table"))?;
        if format.0 != FORMAT {
            return Err(TableError::Format { found: format.0 });
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

fn checksum(body: &[u8]) -> u64 {
    SipHasher13::new().hash(body)
}

/// The format of [`MemberTable::to_bytes`].
const FORMAT: u32 = 1;
/// Twice the largest cluster: those who left are remembered too.
const ENTRIES_MAX: usize = 2_048;

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
