//! What a replica holds for a key, and the law by which two holdings become one.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{HlcTime, Millis, NodeTag};

/// The order of writes on one key: clock first, the writer's tag breaks ties. A total order.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Version {
    /// When, by the writer's hybrid logical clock.
    pub hlc: HlcTime,
    /// Who wrote it.
    pub node: NodeTag,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{:x}", self.hlc, self.node.0)
    }
}

/// All that orders two states of one key: the value's version, then the expiry's.
///
/// A change of expiry alone moves `expiry` and leaves `value`, so it can beat an older expiry of
/// the same value and never a newer value.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Stamp {
    /// The version of the value (or tombstone).
    pub value: Version,
    /// The version of the expiry; equal to `value` until `EXPIRE` or a like command changes it.
    pub expiry: Version,
}

impl Stamp {
    /// The stamp of a fresh write: its expiry is as old as its value.
    #[must_use]
    pub const fn fresh(version: Version) -> Self {
        Self {
            value: version,
            expiry: version,
        }
    }

    /// The newest version in it: what a clock must pass to write after it.
    #[must_use]
    pub fn newest(self) -> Version {
        self.value.max(self.expiry)
    }
}

/// When a record ends, and which write said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Expiry {
    /// The version of the write that set it.
    pub version: Version,
    /// The moment from which on the record is gone; `None`: it stays.
    pub at: Option<Millis>,
}

/// How the bytes of a value are to be understood.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Kind {
    /// As they are.
    #[default]
    #[serde(rename = "s")]
    String,
    /// As fields, each with a value.
    #[serde(rename = "h")]
    Hash,
}

impl Kind {
    /// Its name, as Redis has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Hash => "hash",
        }
    }
}

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A value.
    Value(Bytes),
    /// "Deleted at this version."
    Tombstone,
}

/// One key's state on one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The version of `body`.
    pub version: Version,
    /// When it ends; its own version is at least `version`.
    pub expiry: Expiry,
    /// The value or the tombstone.
    pub body: Body,
    /// What kind of value it is.
    pub kind: Kind,
    /// An older state of this key was seen that would end later: when this one ends, a tombstone has
    /// to stay in its place, or a replica that missed it would bring the older one back.
    pub covers: bool,
}

impl Record {
    /// A fresh write of a value.
    #[must_use]
    pub const fn value(version: Version, expires_at: Option<Millis>, value: Bytes) -> Self {
        Self {
            version,
            expiry: Expiry {
                version,
                at: expires_at,
            },
            body: Body::Value(value),
            kind: Kind::String,
            covers: false,
        }
    }

    /// A delete.
    #[must_use]
    pub const fn tombstone(version: Version) -> Self {
        Self {
            version,
            expiry: Expiry { version, at: None },
            body: Body::Tombstone,
            kind: Kind::String,
            covers: false,
        }
    }

    /// What orders this state among all states of its key.
    #[must_use]
    pub const fn stamp(&self) -> Stamp {
        Stamp {
            value: self.version,
            expiry: self.expiry.version,
        }
    }

    /// Whether its time is over at `now`.
    #[must_use]
    pub fn is_expired(&self, now: Millis) -> bool {
        self.expiry.at.is_some_and(|at| at <= now)
    }

    /// The newer of two states of one key: the one with the greater [`Stamp`].
    ///
    /// Law: `a.merge(b) == b.merge(a)`, `a.merge(a) == a`,
    /// `a.merge(b).merge(c) == a.merge(b.merge(c))`, as long as equal stamps mean equal states,
    /// which holds because a version is given to one write only.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        if other.stamp() > self.stamp() {
            other
        } else {
            self
        }
    }
}

/// A [`Record`] that borrows its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// The version of the value or tombstone.
    pub version: Version,
    /// When it ends.
    pub expiry: Expiry,
    /// The value; `None`: a tombstone.
    pub value: Option<&'a [u8]>,
    /// What kind of value it is.
    pub kind: Kind,
    /// See [`Record::covers`].
    pub covers: bool,
}

impl RecordRef<'_> {
    /// The length of its value in bytes; 0: a tombstone.
    #[must_use]
    pub const fn value_bytes(&self) -> usize {
        match self.value {
            Some(value) => value.len(),
            None => 0,
        }
    }

    /// What orders this record.
    #[must_use]
    pub const fn stamp(&self) -> Stamp {
        Stamp {
            value: self.version,
            expiry: self.expiry.version,
        }
    }

    /// Whether its time is over at `now`.
    #[must_use]
    pub fn is_expired(&self, now: Millis) -> bool {
        self.expiry.at.is_some_and(|at| at <= now)
    }

    /// Whether it is a value without an end, with no other version than its own.
    #[inline]
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.value.is_some() && self.expiry.at.is_none() && self.expiry.version == self.version
    }

    /// The tombstone that takes its place when its time is over.
    #[must_use]
    pub const fn ended(self) -> Self {
        Self {
            expiry: Expiry {
                version: self.expiry.version,
                at: None,
            },
            value: None,
            kind: Kind::String,
            covers: false,
            ..self
        }
    }

    /// A copy that stands on its own.
    #[must_use]
    pub fn to_record(&self) -> Record {
        let body = self
            .value
            .map_or(Body::Tombstone, |v| Body::Value(Bytes::copy_from_slice(v)));
        Record {
            version: self.version,
            expiry: self.expiry,
            body,
            kind: self.kind,
            covers: self.covers,
        }
    }
}

impl<'a> From<&'a Record> for RecordRef<'a> {
    fn from(record: &'a Record) -> Self {
        let value = match &record.body {
            Body::Value(value) => Some(&value[..]),
            Body::Tombstone => None,
        };
        Self {
            version: record.version,
            expiry: record.expiry,
            value,
            kind: record.kind,
            covers: record.covers,
        }
    }
}

/// What a replica holds of a key, without the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// What orders it.
    pub stamp: Stamp,
    /// When it ends.
    pub expires_at: Option<Millis>,
    /// The length of its value in bytes; `None`: a tombstone.
    pub value_bytes: Option<u64>,
    /// What kind of value it is.
    pub kind: Kind,
}

impl Summary {
    /// The summary of a record.
    #[must_use]
    pub fn of(record: RecordRef<'_>) -> Self {
        Self {
            stamp: record.stamp(),
            expires_at: record.expiry.at,
            value_bytes: record.value.map(|value| value.len() as u64),
            kind: record.kind,
        }
    }

    /// Whether its time is over at `now`.
    #[must_use]
    pub fn is_over(&self, now: Millis) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Whether there is a value that a client may see at `now`.
    #[must_use]
    pub fn is_live(&self, now: Millis) -> bool {
        self.value_bytes.is_some() && !self.is_over(now)
    }
}

/// What a replica held of a key before a change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prior {
    /// The stamp of what was there, an expired record included; `None`: nothing was.
    pub stamp: Option<Stamp>,
    /// Whether it was a value whose time was not over.
    pub live: bool,
}

impl Prior {
    /// Of nothing but a version.
    #[must_use]
    pub const fn of(version: Version) -> Self {
        Self {
            stamp: Some(Stamp::fresh(version)),
            live: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// States as writes make them: the body is a function of the version and the end a function
    /// of the expiry's version, because a version is given to one write only.
    fn record() -> impl Strategy<Value = Record> {
        (0u64..4, 0u64..3, 0u64..4).prop_map(|(hlc, node, later)| {
            let version = Version {
                hlc: HlcTime(hlc),
                node: NodeTag(node),
            };
            let expiry_version = Version {
                hlc: HlcTime(hlc + later),
                node: NodeTag(node),
            };
            let body = match hlc {
                0 => Body::Tombstone,
                _ => Body::Value(Bytes::from(format!("{version}"))),
            };
            let at = (later % 2 == 1).then_some(Millis(hlc + later));
            Record {
                version,
                expiry: Expiry {
                    version: expiry_version,
                    at,
                },
                body,
                kind: Kind::String,
                covers: false,
            }
        })
    }

    proptest! {
        #[test]
        fn merge_is_commutative(a in record(), b in record()) {
            prop_assert_eq!(a.clone().merge(b.clone()), b.merge(a));
        }

        #[test]
        fn merge_is_associative(a in record(), b in record(), c in record()) {
            let left = a.clone().merge(b.clone()).merge(c.clone());
            prop_assert_eq!(left, a.merge(b.merge(c)));
        }

        #[test]
        fn merge_is_idempotent(a in record(), b in record()) {
            let once = a.clone().merge(b.clone());
            prop_assert_eq!(a.clone().merge(a.clone()), a);
            prop_assert_eq!(once.clone().merge(b), once);
        }

        #[test]
        fn an_expiry_never_beats_a_newer_value(a in record(), b in record()) {
            prop_assume!(a.version < b.version);
            prop_assert_eq!(a.merge(b.clone()).body, b.body);
        }
    }
}
