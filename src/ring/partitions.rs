//! Equal slices of the hash space.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::model::PartitionId;

/// The most partitions a cluster can have.
pub const PARTITIONS_MAX: u32 = 32_768;

/// Why a number is no number of partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RingError {
    /// Not a power of two in range.
    #[error("partitions = {0}: it must be a power of two from 1 to {PARTITIONS_MAX}")]
    Partitions(u32),
}

/// How many partitions a cluster has. Fixed when it is born.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Partitions {
    count: u32,
}

impl Partitions {
    /// Checks and makes one.
    pub const fn new(count: u32) -> Result<Self, RingError> {
        if !count.is_power_of_two() || count > PARTITIONS_MAX {
            return Err(RingError::Partitions(count));
        }
        Ok(Self { count })
    }

    /// How many.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.count
    }

    /// The partition of a key's hash: its top bits.
    #[must_use]
    pub fn of(self, hash: u64) -> PartitionId {
        // The product's upper half is below `count`, which is at most 2^15.
        let number = (u128::from(hash) * u128::from(self.count)) >> 64;
        PartitionId(u16::try_from(number).unwrap_or(u16::MAX))
    }

    /// All partitions, in order.
    pub fn all(self) -> impl Iterator<Item = PartitionId> + Clone {
        (0..self.count).map(|number| PartitionId(u16::try_from(number).unwrap_or(u16::MAX)))
    }
}

impl TryFrom<u32> for Partitions {
    type Error = RingError;

    fn try_from(count: u32) -> Result<Self, RingError> {
        Self::new(count)
    }
}

impl From<Partitions> for u32 {
    fn from(partitions: Partitions) -> Self {
        partitions.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_powers_of_two_in_range() {
        for count in [0, 3, 4_095, 65_536, u32::MAX] {
            assert_eq!(Partitions::new(count), Err(RingError::Partitions(count)));
        }
        for count in [1, 2, 4_096, PARTITIONS_MAX] {
            assert_eq!(Partitions::new(count).map(Partitions::count), Ok(count));
        }
    }

    #[test]
    fn a_partition_is_the_top_bits() {
        let partitions = Partitions::new(4_096).unwrap();
        assert_eq!(partitions.of(0), PartitionId(0));
        assert_eq!(partitions.of(u64::MAX), PartitionId(4_095));
        assert_eq!(partitions.of(0xabc << 52), PartitionId(0xabc));
        assert_eq!(Partitions::new(1).unwrap().of(u64::MAX), PartitionId(0));
        assert_eq!(partitions.all().count(), 4_096);
    }

    #[test]
    fn a_number_that_is_none_is_refused_when_read() {
        let bytes = |count: u32| rmp_serde::to_vec(&count).unwrap();
        let read = |count| rmp_serde::from_slice::<Partitions>(&bytes(count));
        assert_eq!(read(64).unwrap(), Partitions::new(64).unwrap());
        assert!(read(65).is_err());
    }
}
