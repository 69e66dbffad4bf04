//! Where keys live: partitions, placement, the ring as one node sees it, the member table.
//!
//! Knows nothing of time, sockets or how it is learnt who is alive.

mod content;
mod partitions;
mod placement;
mod table;
mod view;

pub use partitions::{PARTITIONS_MAX, Partitions, RingError};
pub use placement::{Candidate, LOAD_BOUND, Placement};
pub use table::{MemberEntry, MemberTable, TableError};
pub use view::{Member, MemberState, RingParams, Role, View};
