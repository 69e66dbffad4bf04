//! One small state machine an operation: given replies it returns actions.
//!
//! Replicas are numbered by their place in the preference list. Knows nothing of names, sockets,
//! clocks or threads: the driver performs the actions and says when time is up.

mod read;
mod write;

pub use read::{ReadAction, ReadOp, Want};
pub use write::{WriteAction, WriteOp};

use thiserror::Error;

use crate::wire::Refusal;

/// Too few replicas answered in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{got} of {need} needed replicas answered")]
pub struct QuorumNotMet {
    /// How many had to.
    pub need: u8,
    /// How many did.
    pub got: u8,
    /// What a replica said that refused, if one did.
    pub refusal: Option<Refusal>,
}

/// Replica states of one operation; three fit without an allocation.
type Replicas<T> = smallvec::SmallVec<[T; 3]>;

fn count_u8<T>(replicas: &[T], of: impl Fn(&T) -> bool) -> u8 {
    // At most REPLICAS_MAX = 16 of them.
    u8::try_from(replicas.iter().filter(|replica| of(replica)).count()).unwrap_or(u8::MAX)
}
