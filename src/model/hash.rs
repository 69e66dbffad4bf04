//! Where a key lives: its hash, its partition, and its share of a digest.

use std::fmt;
use std::hash::Hasher;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;
use siphasher::sip128::{Hasher128, SipHasher13 as SipHasher13x128};

use super::{Stamp, Version};

/// The number of one of the equal slices of the hash space.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct PartitionId(pub u16);

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A key together with its hash, so that it is computed once a request.
#[derive(Debug, Clone, Copy)]
pub struct HashedKey<'a> {
    /// The key.
    pub bytes: &'a [u8],
    /// Its hash by the cluster's [`KeyHasher`].
    pub hash: u64,
    /// The partition that holds it.
    pub partition: PartitionId,
}

/// The keyed 64 bit hash that places keys: SipHash-1-3 (Aumasson, Bernstein, 2012), its key
/// derived from the cluster's name. A change here is a new wire version.
#[derive(Debug, Clone, Copy)]
pub struct KeyHasher {
    siphash: SipHasher13,
    digest_seeds: [u64; 2],
}

impl KeyHasher {
    /// The hasher of the cluster with this name.
    #[must_use]
    pub fn new(cluster: &str) -> Self {
        let mut name = SipHasher13x128::new();
        name.write(cluster.as_bytes());
        let key = name.finish128();
        Self {
            siphash: SipHasher13::new_with_keys(key.h1, key.h2),
            digest_seeds: [key.h1 | 1, key.h2 | 1],
        }
    }

    /// The hash of a key.
    #[must_use]
    pub fn hash(&self, key: &[u8]) -> u64 {
        self.siphash.hash(key)
    }

    /// What one record adds to the digest of its partition.
    #[inline]
    #[must_use]
    pub fn digest_of(&self, key_hash: u64, stamp: Stamp) -> Digest {
        let digest = self.digest_of_write(key_hash, stamp.value);
        if stamp.expiry == stamp.value {
            return digest;
        }
        self.digest_of_write(digest.0 ^ MIX, stamp.expiry)
    }

    /// The same for a record whose expiry is as old as its value.
    ///
    /// The hash of the key and the seeds are as good as random already, and this is on the way of
    /// every write: two multiplications.
    #[inline]
    #[must_use]
    pub const fn digest_of_write(&self, key_hash: u64, version: Version) -> Digest {
        let [a, b] = self.digest_seeds;
        let written = version.hlc.0.wrapping_mul(MIX);
        Digest(fold(
            key_hash ^ written ^ a,
            version.node.0.rotate_left(32) ^ b,
        ))
    }
}

/// A fixed-size summary of everything one replica holds of one partition: the sum, modulo 2^64,
/// of a keyed hash of each record's key and [`Stamp`].
///
/// Law: it depends on what is held, not on the order in which it came; adding and taking away the
/// same record changes nothing. After Bellare and Micciancio, *A New Paradigm for Collision-free
/// Hashing* (1997), at a size that guards against accidents, not against a peer that lies: two
/// replicas that differ look alike once in 2^64 times. (128 bits would cost a write twice as much.)
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest(pub u64);

impl Digest {
    /// With one record more.
    #[must_use]
    pub const fn plus(self, record: Self) -> Self {
        Self(self.0.wrapping_add(record.0))
    }

    /// With one record less.
    #[must_use]
    pub const fn minus(self, record: Self) -> Self {
        Self(self.0.wrapping_sub(record.0))
    }
}

/// The two halves of a full product, folded: one multiplication mixes all bits (wyhash).
#[inline]
const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the low half is what is wanted"
    )]
    let low = product as u64;
    low ^ (product >> 64) as u64
}

/// The fractional digits of the golden ratio: an odd number without pattern.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{HlcTime, NodeTag, Version};

    fn stamp(hlc: u64, later: u64) -> Stamp {
        let at = |hlc| Version {
            hlc: HlcTime(hlc),
            node: NodeTag(7),
        };
        Stamp {
            value: at(hlc),
            expiry: at(hlc + later),
        }
    }

    proptest! {
        #[test]
        fn a_digest_forgets_what_is_taken_away(held: u64, hash: u64, hlc in 0u64..1 << 60, later in 0u64..9) {
            let record = KeyHasher::new("c").digest_of(hash, stamp(hlc, later));
            prop_assert_eq!(Digest(held).plus(record).minus(record), Digest(held));
        }

        #[test]
        fn a_digest_sees_each_part_of_a_stamp(hash: u64, hlc in 0u64..1 << 60) {
            let hasher = KeyHasher::new("c");
            let digest = hasher.digest_of(hash, stamp(hlc, 0));
            prop_assert_ne!(digest, hasher.digest_of(hash, stamp(hlc, 1)));
            prop_assert_ne!(digest, hasher.digest_of(hash, stamp(hlc + 1, 0)));
            prop_assert_ne!(digest, hasher.digest_of(hash ^ 1, stamp(hlc, 0)));
        }
    }

    #[test]
    fn the_hash_is_fixed_for_ever_and_differs_between_clusters() {
        // A change here is a new wire version.
        assert_eq!(KeyHasher::new("quorate").hash(b"key"), HASH_OF_KEY);
        assert_ne!(KeyHasher::new("other").hash(b"key"), HASH_OF_KEY);
    }

    const HASH_OF_KEY: u64 = 8_225_639_932_160_353_985;
}
