//! Quorate: a leaderless peer-to-peer cache node that speaks the Redis protocol.
//!
//! The house, floor by floor. A room imports only from floors below it, never from its own:
//!
//! ```text
//! F0  model     keys and their hash, hybrid logical clock, versions, records and their merge law
//! F1  ring      partitions, placement, the immutable View, the member table        pure
//!     digest    what replicas tell of their partitions; rateless set reconciliation pure
//!     store     records by partition and key, TTL, counters; `now` passed in       pure
//!     wire      peer messages, size limits, protocol version                       pure
//!     resp      RESP2/3 parse and encode, Command, Reply                           pure
//! F2  update    what commands make of what a key holds                         pure
//! F3  protocol  one small state machine an operation; hints, agreement, freshness  pure
//! F4  env       the only doors to time, chance, threads and files
//! F5  net       QUIC endpoint, identity, lanes, trait Transport, gossip messages
//! F6  node      coordinator, proposer, replica, membership, catch_up, handoff, anti_entropy, sweeper
//! F7  front     the doors: RESP, peers, HTTP, admin socket
//! F8  config    one file of settings, with defaults, checks and messages
//! F9  cli       subcommands
//! ```
//!
//! Decisions (is this quorum met, which replica is stale) live on floors 0 to 3: given events
//! they return actions, without `async`, clock, entropy or log. Rooms that do I/O are thin and
//! carry the actions out. `tests/tidy.rs` checks this map.

pub mod cli;
pub mod config;
pub mod digest;
pub mod env;
pub mod front;
pub mod model;
pub mod net;
pub mod node;
pub mod protocol;
pub mod resp;
pub mod ring;
pub mod store;
pub mod update;
pub mod wire;
