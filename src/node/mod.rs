//! A node's own doings: it coordinates requests and is a replica for others.

mod admission;
pub mod agreed_clock;
pub mod anti_entropy;
pub mod catch_up;
pub mod clock_probe;
pub mod clock_verdict;
pub mod coordinator;
mod flush_exchange;
pub mod handoff;
mod hedging;
mod holds;
pub mod key_pages;
pub mod membership;
mod pace;
mod peer_clocks;
pub mod replica;
pub mod staleness;
pub mod status;
pub mod sweeper;
pub mod updates;

pub use admission::{
    UNDER_WAY_BYTES_MAX as LARGE_UNDER_WAY_BYTES_MAX, WAITING_BYTES_MAX as LARGE_WAITING_BYTES_MAX,
};
