//! How many copies, how many replies, how many acknowledgements.

use thiserror::Error;

/// The most copies of a record: more would make every write wait for a crowd.
pub const REPLICAS_MAX: u8 = 16;

/// n copies kept, r replies a read needs, w acknowledgements a write needs.
///
/// Made by [`Quorum::new`] only, so 1 <= r <= n and 1 <= w <= n hold wherever one is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quorum {
    n: u8,
    r: u8,
    w: u8,
}

/// Why three numbers are not a quorum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum QuorumError {
    /// n is out of its range.
    #[error("n = {n}: the number of copies must be 1 to {REPLICAS_MAX}")]
    Replicas {
        /// The n given.
        n: u8,
    },
    /// r is out of its range.
    #[error("r = {r}: a read can wait for 1 to n = {n} replies")]
    Read {
        /// The r given.
        r: u8,
        /// The n given.
        n: u8,
    },
    /// w is out of its range.
    #[error("w = {w}: a write can wait for 1 to n = {n} acknowledgements")]
    Write {
        /// The w given.
        w: u8,
        /// The n given.
        n: u8,
    },
}

impl Quorum {
    /// Checks and makes one.
    pub const fn new(n: u8, r: u8, w: u8) -> Result<Self, QuorumError> {
        if n == 0 || n > REPLICAS_MAX {
            return Err(QuorumError::Replicas { n });
        }
        if r == 0 || r > n {
            return Err(QuorumError::Read { r, n });
        }
        if w == 0 || w > n {
            return Err(QuorumError::Write { w, n });
        }
        Ok(Self { n, r, w })
    }

    /// n copies; a majority for reads and for writes.
    pub const fn majority(n: u8) -> Result<Self, QuorumError> {
        Self::new(n, n / 2 + 1, n / 2 + 1)
    }

    /// Copies kept.
    #[must_use]
    pub const fn n(self) -> u8 {
        self.n
    }

    /// Replies a read needs.
    #[must_use]
    pub const fn r(self) -> u8 {
        self.r
    }

    /// Acknowledgements a write needs.
    #[must_use]
    pub const fn w(self) -> u8 {
        self.w
    }

    /// More than half of n.
    #[must_use]
    pub const fn majority_of_n(self) -> u8 {
        self.n / 2 + 1
    }

    /// Whether every read quorum meets every write quorum: r + w > n.
    #[must_use]
    pub const fn reads_meet_writes(self) -> bool {
        self.r + self.w > self.n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_quorums_are_refused() {
        assert!(Quorum::new(3, 2, 2).is_ok_and(Quorum::reads_meet_writes));
        assert!(Quorum::new(3, 1, 2).is_ok_and(|quorum| !quorum.reads_meet_writes()));
        assert_eq!(Quorum::new(0, 1, 1), Err(QuorumError::Replicas { n: 0 }));
        assert_eq!(Quorum::new(17, 1, 1), Err(QuorumError::Replicas { n: 17 }));
        assert_eq!(Quorum::new(3, 4, 1), Err(QuorumError::Read { r: 4, n: 3 }));
        assert_eq!(Quorum::new(3, 1, 0), Err(QuorumError::Write { w: 0, n: 3 }));
        assert_eq!(Quorum::majority(5), Quorum::new(5, 3, 3));
    }
}
