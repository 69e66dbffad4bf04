//! Who is who: the name of a node and the number that stands for it in versions.

use std::borrow::Borrow;
use std::fmt;
use std::hash::Hasher;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;
use thiserror::Error;

/// The longest node name: it must fit a DNS label and a certificate's URI.
pub const NODE_NAME_BYTES_MAX: usize = 63;

/// The name of a node, unique in its cluster: 1 to 63 of `a-z A-Z 0-9 . _ -`.
///
/// Cheap to clone. A name is all that identifies a node; a restarted one is told apart by its
/// incarnation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(Arc<str>);

/// Sixty-four bits that stand for a node's name in a [`super::Version`] and in placement: a hash
/// of the name, the same on every machine. Two members with one tag are refused by the ring.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct NodeTag(pub u64);

/// Why text is not a node name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NodeIdError {
    /// Empty or too long.
    #[error("node name `{name}` has {} bytes, it must have 1 to {NODE_NAME_BYTES_MAX}", name.len())]
    Length {
        /// The name as given.
        name: String,
    },
    /// A character outside the allowed set.
    #[error("node name `{name}` contains {found:?}, allowed are a-z A-Z 0-9 . _ -")]
    Character {
        /// The name as given.
        name: String,
        /// The first character that is not allowed.
        found: char,
    },
}

impl NodeId {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The number that stands for this name.
    #[must_use]
    pub fn tag(&self) -> NodeTag {
        // The zero key is part of the wire version: every node must compute the same tag.
        let mut hasher = SipHasher13::new();
        hasher.write(self.0.as_bytes());
        NodeTag(hasher.finish())
    }

    /// The number that stands for one start of this node, in the versions of what it writes.
    #[must_use]
    pub fn writer_tag(&self, incarnation: u64) -> NodeTag {
        let mut hasher = SipHasher13::new();
        hasher.write(self.0.as_bytes());
        hasher.write_u64(incarnation);
        NodeTag(hasher.finish())
    }
}

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(name: &str) -> Result<Self, NodeIdError> {
        if name.is_empty() || name.len() > NODE_NAME_BYTES_MAX {
            return Err(NodeIdError::Length {
                name: name.to_owned(),
            });
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        match name.chars().find(|&c| !allowed(c)) {
            Some(found) => Err(NodeIdError::Character {
                name: name.to_owned(),
                found,
            }),
            None => Ok(Self(name.into())),
        }
    }
}

impl TryFrom<String> for NodeId {
    type Error = NodeIdError;

    fn try_from(name: String) -> Result<Self, NodeIdError> {
        name.parse()
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl Borrow<str> for NodeId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!("node-0".parse::<NodeId>().is_ok());
        assert!("a".repeat(NODE_NAME_BYTES_MAX).parse::<NodeId>().is_ok());
        assert!(matches!(
            "".parse::<NodeId>(),
            Err(NodeIdError::Length { .. })
        ));
        assert!(matches!(
            "a".repeat(64).parse::<NodeId>(),
            Err(NodeIdError::Length { .. })
        ));
        assert!(matches!(
            "a/b".parse::<NodeId>(),
            Err(NodeIdError::Character { found: '/', .. })
        ));
    }

    #[test]
    fn tag_is_fixed_for_ever() {
        // A change here is a new wire version.
        assert_eq!(
            "node-0".parse::<NodeId>().unwrap().tag(),
            NodeTag(NODE_0_TAG)
        );
    }

    const NODE_0_TAG: u64 = 2_147_889_344_157_549_554;
}
