//! What a node tells of itself through gossip: a handful of keys with short text values.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::model::{Millis, NodeTag};
use crate::ring::{MemberEntry, RingParams};
use crate::wire::WIRE_VERSION;

/// A node's entry in the member table, as JSON.
pub(super) const RING_KEY: &str = "ring";
/// What all members must agree on.
pub(super) const PARAMS_KEY: &str = "params";
/// The digest of the node's member table: peers whose own differs fetch the table.
pub(super) const TABLE_KEY: &str = "table";
/// [`Load`], as JSON.
pub(super) const LOAD_KEY: &str = "load";
/// As of which cut the digests are, and how many pages they take.
pub(super) const SHEET_KEY: &str = "digests";

/// One page of digests.
pub(super) fn page_key(number: usize) -> String {
    format!("d{number}")
}

/// What a node holds and how long it has been up, as it last told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Values held.
    pub keys: u64,
    /// Bytes of records.
    pub bytes: u64,
    /// Hints held for others.
    pub hints_held: u64,
    /// For whom.
    #[serde(default)]
    pub hints_for: Vec<NodeTag>,
    /// When the node started.
    pub started_at: Millis,
    /// The version of its software.
    pub version: String,
    /// The ring that it places keys by: equal where nodes agree.
    #[serde(default)]
    pub ring: u64,
    /// The last moment of its certificate.
    #[serde(default)]
    pub certificate_until: Option<Millis>,
    /// What its own configuration says that should be the same everywhere.
    #[serde(default)]
    pub settings: Shared,
    /// Up to which version it has emptied databases: their numbers, the clock, the writer.
    #[serde(default)]
    pub flushes: Vec<(u8, u64, u64)>,
    /// It is about to stop: nothing should be asked of it any more.
    #[serde(default)]
    pub is_stopping: bool,
}

/// Settings that a node does not refuse others for, and that should be the same on all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// Replies a read needs.
    pub r: u8,
    /// Acknowledgements a write needs.
    pub w: u8,
    /// How long hints are kept, in milliseconds.
    pub hint_window_ms: u64,
    /// How far a clock may be ahead, in milliseconds.
    pub clock_drift_ms: u64,
}

/// What all members of a ring must have in common, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Params {
    wire_version: u32,
    partitions: u32,
    n: u8,
}

impl Params {
    pub(super) fn of(ring: &RingParams) -> Self {
        Self {
            wire_version: WIRE_VERSION,
            partitions: ring.partitions.count(),
            n: ring.n,
        }
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "wire={} partitions={} n={}",
            self.wire_version, self.partitions, self.n
        )
    }
}

impl FromStr for Params {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.split(' ');
        let mut number = |name: &str| -> Result<u32, ()> {
            let (key, value) = words.next().and_then(|w| w.split_once('=')).ok_or(())?;
            if key == name {
                value.parse().map_err(drop)
            } else {
                Err(())
            }
        };
        let (wire_version, partitions) = (number("wire")?, number("partitions")?);
        let n = u8::try_from(number("n")?).map_err(drop)?;
        Ok(Self {
            wire_version,
            partitions,
            n,
        })
    }
}

pub(super) fn entry_text(entry: &MemberEntry) -> String {
    // A struct of text and numbers always has a JSON form.
    serde_json::to_string(entry).unwrap_or_default()
}

pub(super) fn parse_entry(text: &str) -> Option<MemberEntry> {
    (text.len() <= ENTRY_BYTES_MAX)
        .then(|| serde_json::from_str(text).ok())
        .flatten()
}

pub(super) fn load_text(load: &Load) -> String {
    serde_json::to_string(load).unwrap_or_default()
}

pub(super) fn parse_load(text: &str) -> Option<Load> {
    (text.len() <= ENTRY_BYTES_MAX)
        .then(|| serde_json::from_str(text).ok())
        .flatten()
}

/// A name, a zone and three addresses of sane length.
const ENTRY_BYTES_MAX: usize = 2_048;
