//! One small state machine an operation: given replies it returns actions.
//!
//! Replicas are numbered by their place in the preference list. Knows nothing of names, sockets,
//! clocks or threads: the driver performs the actions and says when time is up.

mod agreement;
mod exchange;
mod hints;
mod keys;
mod read;
mod staleness;
mod update;
mod write;

pub use agreement::{Agreement, PeerAgreement};
pub use exchange::{Differences, Exchange, STATE_BYTES, Step};
pub use hints::{
    Ended, HINT_BYTES, Hint, HintLimits, HintQueues, HintSummary, Kept, Missed, MissedExpiry,
};
pub use keys::{HomeTold, KeysPage, KeysTold, MergedKeys};
pub use read::{ReadAction, ReadOp, ReadPlan, StandIns, Told, Want};
pub use staleness::{Samples, WriteSample};
pub use update::{
    Evaluated, Evaluation, Lineage, Promise, Proposed, Standing, UpdateAction, UpdateId, UpdateOp,
    UpdatePlan, Updated, Updates,
};
pub use write::{WriteAction, WriteOp, WritePlan};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::wire::Refusal;

/// Too few replicas answered in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("{got} of {need} needed replicas answered")]
pub struct QuorumNotMet {
    /// How many had to.
    pub need: u8,
    /// How many did.
    pub got: u8,
    /// What a replica said that refused, if one did.
    pub refusal: Option<Refusal>,
}

/// Which replicas of an operation count, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Voters(u16);

impl Voters {
    /// All of them.
    pub const EVERYONE: Self = Self(u16::MAX);

    /// None of them.
    pub const NOBODY: Self = Self(0);

    /// Those that `is_voter` names among so many.
    #[must_use]
    pub fn those(replicas: usize, is_voter: impl Fn(usize) -> bool) -> Self {
        let numbers = (0..replicas).filter(|&number| is_voter(number));
        Self(numbers.fold(0, |voters, number| voters | Self::bit(number)))
    }

    /// Whether this one counts.
    #[must_use]
    pub const fn contains(self, replica: usize) -> bool {
        self.0 & Self::bit(replica) != 0
    }

    /// `REPLICAS_MAX` = 16 of them have a bit each.
    const fn bit(replica: usize) -> u16 {
        1 << (replica % 16)
    }
}

/// A node in a home's stead. It is a replica of the operation like the homes, numbered after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandIn {
    /// For which home.
    pub home: usize,
    /// Who: its place among the stand-ins of the preference list.
    pub place: usize,
    /// Whether it counts for the home, as it does not where only a zone's own replicas do.
    pub counts: bool,
}

/// Replica states of one operation; three fit without an allocation.
type Replicas<T> = smallvec::SmallVec<[T; 3]>;

fn count_u8<T>(replicas: impl IntoIterator<Item = T>, of: impl Fn(T) -> bool) -> u8 {
    // At most REPLICAS_MAX = 16 of them.
    let count = replicas
        .into_iter()
        .filter_map(|replica| of(replica).then_some(()))
        .count();
    u8::try_from(count).unwrap_or(u8::MAX)
}
