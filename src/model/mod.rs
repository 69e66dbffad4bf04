//! The nouns of the house: keys, nodes, time, versions, records, quorums.
//!
//! Everything here is a value with laws. Knows nothing of rings, sockets, clocks or threads.

mod database;
mod flushes;
mod hash;
mod hlc;
mod key;
mod level;
mod node;
mod quorum;
mod record;

pub use database::{Database, NoDatabase};
pub use flushes::{DatabaseSet, Flushes, NotFlushes};
pub use hash::{Digest, HashedKey, KeyHasher, PartitionId};
pub use hlc::{ClockDrift, Epoch, Hlc, HlcTime, Millis};
pub use key::{KEY_BYTES_MAX, KeyError, check_key};
pub use level::{Level, LevelError, Levels, Need};
pub use node::{NODE_NAME_BYTES_MAX, NodeId, NodeIdError, NodeTag};
pub use quorum::{Quorum, QuorumError, REPLICAS_MAX};
pub use record::{Body, Expiry, Kind, Prior, Record, RecordRef, Stamp, Summary, Version};
