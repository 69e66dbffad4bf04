//! What peers say to each other: frames of `MessagePack` operations.
//!
//! A frame is a length (4 bytes, little endian), a header, then as many operations as the header
//! counts. Keys and values borrow from the received frame. Knows nothing of sockets or of what an
//! operation does.
//!
//! Variant names are one letter because `MessagePack` carries them.

mod frame;

pub use frame::{
    FrameError, FrameReader, LENGTH_BYTES, ResponseFrame, encode, encode_to, finish_frame,
    split_frame, start_frame,
};

use serde::{Deserialize, Serialize};
use serde_bytes::Bytes;
use thiserror::Error;

use crate::model::{
    Epoch, Expiry, HlcTime, Kind, Millis, NodeTag, PartitionId, Prior, RecordRef, Stamp, Summary,
    Version,
};

/// The version of everything peers must agree on: frames, hashes, placement.
pub const WIRE_VERSION: u32 = 4;

/// Values in one response frame, in bytes, before the replica answers with summaries instead: many
/// large values are fetched a few at a time, so that no frame is without bound.
pub const RESPONSE_VALUES_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Records in one page of a scan, in bytes; it has one at least, however long.
pub const PAGE_BYTES_MAX: usize = 64 * 1024;

/// The size of the longest frame where values have at most `value_bytes_max`: one value over all
/// that a frame may hold otherwise.
#[must_use]
pub const fn frame_bytes_max(value_bytes_max: usize) -> usize {
    // A value, the longest key, a batch of small operations or of values up to the bound above.
    value_bytes_max + crate::model::KEY_BYTES_MAX + 2 * RESPONSE_VALUES_BYTES_MAX
}

/// What a request frame starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestHeader<'a> {
    /// The caller's number for this frame; the response repeats it.
    pub id: u64,
    /// How long the caller still waits for the response, in milliseconds.
    pub budget_ms: u32,
    /// How many operations follow.
    pub count: u32,
    /// The caller's clock: the replica judges by it what has ended, and its own clock passes it.
    pub clock: HlcTime,
    /// The flushes that the caller knows of, as [`Flushes`](crate::model::Flushes) encodes them. The
    /// replica merges them before it looks at the operations.
    #[serde(borrow)]
    pub flushes: Option<&'a Bytes>,
    /// The version of the ring whose homes clients' writes are for. A replica that knows that others
    /// are the homes by now refuses them.
    pub ring: Option<u64>,
}

/// What a response frame starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseHeader<'a> {
    /// The number of the request frame.
    pub id: u64,
    /// How many answers follow, one for each operation, in their order.
    pub count: u32,
    /// The replica's clock.
    pub clock: HlcTime,
    /// The flushes that the replica knew of when it had answered all operations. The caller merges
    /// them before any answer counts.
    #[serde(borrow)]
    pub flushes: Option<&'a Bytes>,
    /// Whether the replica holds all that it ever acknowledged, in every partition concerned. One
    /// that has lost its memory and has not caught up yet does not.
    pub is_sure: bool,
}

/// One operation for a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation<'a> {
    /// Give the whole record; without its value where that is large.
    #[serde(rename = "r", borrow)]
    Read(&'a Bytes),
    /// Give the whole record however large it is. Alone in its frame.
    #[serde(rename = "g", borrow)]
    ReadLarge(&'a Bytes),
    /// Give what is known of the record without its value.
    #[serde(rename = "s", borrow)]
    Summary(&'a Bytes),
    /// Take a record if it is newer.
    #[serde(rename = "w")]
    Write(#[serde(borrow)] &'a Bytes, #[serde(borrow)] WireRecord<'a>),
    /// Change when a value ends.
    #[serde(rename = "e")]
    Expire(#[serde(borrow)] &'a Bytes, WireExpiry),
    /// Give the member table.
    #[serde(rename = "m")]
    Members,
    /// Give the wall clock.
    #[serde(rename = "k")]
    Clock,
    /// Give a page of a partition's records: those whose key hash is greater than this, from the
    /// lowest on; if the ring is of this version for both.
    #[serde(rename = "p")]
    Scan(PartitionId, Option<u64>, u64),
    /// Give a page of a partition's keys, tombstones too, with what is held of them: those whose hash
    /// is greater than this, from the lowest on, so many at most.
    #[serde(rename = "l")]
    Keys(PartitionId, Option<u64>, u32),
    /// Keep a record as a hint for this home, which could not take it.
    #[serde(rename = "h")]
    Hint(
        NodeTag,
        #[serde(borrow)] &'a Bytes,
        #[serde(borrow)] WireRecord<'a>,
    ),
    /// Keep a change of expiry as a hint for this home: of the value of this version, if that is
    /// known.
    #[serde(rename = "x")]
    HintExpiry(
        NodeTag,
        #[serde(borrow)] &'a Bytes,
        WireExpiry,
        Option<WireVersion>,
    ),
    /// Give the whole record of the newest hint for a key. Whoever is asked is no home of it, so
    /// its answer is never sure.
    #[serde(rename = "i", borrow)]
    HintedRead(&'a Bytes),
    /// The same without its value.
    #[serde(rename = "j", borrow)]
    HintedSummary(&'a Bytes),
    /// Begin a comparison of a partition as of a cut, under this key, and give the first so many coded
    /// symbols.
    #[serde(rename = "c")]
    Compare(PartitionId, SessionWords, Epoch, u32),
    /// Give so many more symbols of the comparison under this key, from this one on.
    #[serde(rename = "y")]
    Symbols(SessionWords, u64, u32),
    /// Give a page of the states of a partition's keys as of a cut, in order, from after this one.
    #[serde(rename = "t")]
    States(PartitionId, Epoch, Option<StateWords>),
    /// Give the records whose key has this hash and that are newer than this.
    #[serde(rename = "f")]
    Fetch(PartitionId, u64, Option<Stamp>),
    /// Promise to take nothing older than this ballot for the key, and give its record; if the ring is
    /// of this version for both.
    #[serde(rename = "b")]
    Promise(#[serde(borrow)] &'a Bytes, WireVersion, u64),
    /// Take the state that an update has made, if the ring is of this version for both.
    #[serde(rename = "a")]
    Accept(#[serde(borrow)] &'a Bytes, WireProposal<'a>, u64),
    /// The promise of this ballot for the key is used for nothing, and never will be.
    #[serde(rename = "o")]
    Release(#[serde(borrow)] &'a Bytes, WireVersion),
    /// Promise no ballot for keys of these databases until the flush of this number comes or a
    /// moment has passed.
    #[serde(rename = "v")]
    Hold(u16, HoldWords),
    /// Empty these databases of all that was written up to this version: the flush of this number.
    #[serde(rename = "z")]
    Flush(u16, WireVersion, HoldWords),
    /// Tell how many live values there are of this database, by partition.
    #[serde(rename = "n")]
    Count(u8),
    /// Give a message to those who listen to this channel.
    #[serde(rename = "q")]
    Publish(#[serde(borrow)] &'a Bytes, #[serde(borrow)] &'a Bytes),
    /// Carry out these updates of the key, in order, each once.
    #[serde(rename = "u")]
    Update(#[serde(borrow)] &'a Bytes, WireUpdates<'a>),
}

/// The state that an update has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireProposal<'a> {
    /// It; its version is the ballot.
    #[serde(borrow)]
    pub record: WireRecord<'a>,
    /// How it came to be.
    #[serde(borrow)]
    pub lineage: &'a Bytes,
    /// What a home must hold to take it, if the ballot was promised with that.
    pub base: Option<Stamp>,
    next: Option<WireVersion>,
}

impl<'a> WireProposal<'a> {
    /// A state, how it came to be, and the ballot of what is likely to follow.
    #[must_use]
    pub fn new(record: RecordRef<'a>, lineage: &'a [u8], next: Option<Version>) -> Self {
        Self {
            record: record.into(),
            lineage: Bytes::new(lineage),
            base: None,
            next: next.map(to_wire),
        }
    }

    /// The same, where a home holds this.
    #[must_use]
    pub const fn on(self, base: Option<Stamp>) -> Self {
        Self { base, ..self }
    }

    /// The ballot of what is likely to follow.
    #[must_use]
    pub fn next(&self) -> Option<Version> {
        self.next.map(from_wire)
    }
}

/// Updates that one coordinator sends together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireUpdates<'a> {
    /// The coordinator, unlike in two starts of it.
    pub coordinator: NodeTag,
    /// Its number for them; later ones are greater.
    pub sequence: u64,
    /// Nobody had them before this moment.
    pub begun: HlcTime,
    /// They are not to be begun after this one.
    pub until: HlcTime,
    /// A home that was asked before may have made them, or may still.
    pub is_open: bool,
    /// What is to be done.
    #[serde(borrow)]
    pub changes: &'a Bytes,
}

/// A record on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireRecord<'a> {
    version: WireVersion,
    /// The expiry's own version, where it differs from the value's.
    expiry_version: Option<WireVersion>,
    expires_at: Option<Millis>,
    #[serde(borrow)]
    value: Option<&'a Bytes>,
    /// Hints of earlier versions on disk lack it, and what follows.
    #[serde(default)]
    covers: bool,
    #[serde(default)]
    kind: Kind,
}

/// An expiry on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireExpiry {
    version: WireVersion,
    at: Option<Millis>,
}

/// A replica's answer to one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer<'a> {
    /// To `Read` and `HintedRead`: the record, or that there is none.
    #[serde(rename = "r", borrow)]
    Record(Option<WireRecord<'a>>),
    /// To `Summary` and `HintedSummary`, and to reads where the response frame has no room for one more value.
    #[serde(rename = "s")]
    Summary(Option<Summary>),
    /// To `Write` and `Hint`: taken; what was there before.
    #[serde(rename = "a")]
    Applied(Prior),
    /// To `Write` and `Hint`: not taken, because of this.
    #[serde(rename = "n")]
    Superseded(Prior),
    /// To `Expire` and `HintExpiry`: what is held now, and when the value was to end before.
    #[serde(rename = "e")]
    Expiry(Option<Summary>, Option<Millis>),
    /// To `Expire` and `HintExpiry`: not changed, because of this.
    #[serde(rename = "x")]
    ExpirySuperseded(Stamp),
    /// To `Members`: the encoded member table.
    #[serde(rename = "m", borrow)]
    Members(&'a Bytes),
    /// To `Keys`: so many keys and summaries, one behind the other, and after which key hash the next
    /// page begins, if there is one.
    #[serde(rename = "l")]
    Keys(u32, #[serde(borrow)] &'a Bytes, Option<u64>),
    /// To `Clock`.
    #[serde(rename = "k")]
    Clock(Millis),
    /// To `Compare` and `Symbols`: how many states the set has, and coded symbols.
    #[serde(rename = "c")]
    Symbols(u64, #[serde(borrow)] &'a Bytes),
    /// To `States`: states, 16 bytes each, and whether there are more.
    #[serde(rename = "t")]
    States(#[serde(borrow)] &'a Bytes, bool),
    /// To `Scan` and `Fetch`: so many keys and records, one behind the other, and after which key hash
    /// the next page begins, if there is one.
    #[serde(rename = "p")]
    Page(u32, #[serde(borrow)] &'a Bytes, Option<u64>),
    /// To `Write`: not taken, because nothing older than this ballot is.
    #[serde(rename = "b")]
    Promised(WireVersion),
    /// To `Promise`: promised. The record, how it came to be if that is known, and the newest version
    /// of which nothing is known any more.
    #[serde(rename = "o")]
    Promise(
        #[serde(borrow)] Option<WireRecord<'a>>,
        #[serde(borrow)] Option<&'a Bytes>,
        WireVersion,
    ),
    /// To `Accept`: taken, and whether what is likely to follow is promised.
    #[serde(rename = "v")]
    Accepted(bool),
    /// To `Promise` and `Accept`: not done; a ballot must exceed this.
    #[serde(rename = "g")]
    Outbid(WireVersion),
    /// To `Release`: done.
    #[serde(rename = "y")]
    Released,
    /// To `Hold`: held. All that the replica has taken or promised so far is not newer than this.
    #[serde(rename = "h")]
    Held(HlcTime),
    /// To `Flush`: done, and no ballot was promised since it was held.
    #[serde(rename = "z")]
    Flushed,
    /// To `Count`: partitions and counts.
    #[serde(rename = "d", borrow)]
    Counts(&'a Bytes),
    /// To `Publish`: how many have it.
    #[serde(rename = "q")]
    Heard(u32),
    /// To `Update`: what became of each.
    #[serde(rename = "u", borrow)]
    Updated(&'a Bytes),
    /// To any: not done.
    #[serde(rename = "f")]
    Refused(Refusal),
}

/// Why a replica did not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Error)]
pub enum Refusal {
    /// The version is too far ahead of the replica's clock.
    #[error("the write's clock is too far ahead of the replica's clock")]
    #[serde(rename = "c")]
    ClockDrift,
    /// The key or the value breaks a limit of the replica.
    #[error("the key or value is over a limit of the replica")]
    #[serde(rename = "b")]
    TooBig,
    /// It sees another ring: what it holds says nothing of what a home in the caller's ring holds.
    #[error("the replica sees another ring")]
    #[serde(rename = "r")]
    OtherRing,
    /// It keeps as many hints as it may, or none at all.
    #[error("the stand-in has no room for hints")]
    #[serde(rename = "f")]
    HintsFull,
    /// Its disk does not take hints.
    #[error("the stand-in cannot write hints to its disk")]
    #[serde(rename = "d")]
    HintsFailed,
    /// It has no such comparison under way: it has started anew, or has forgotten it.
    #[error("the replica knows of no such comparison")]
    #[serde(rename = "g")]
    NoSession,
    /// It has as much to do as it may. To `Fetch`: the response is full; ask for the rest.
    #[error("the replica has too much to do")]
    #[serde(rename = "o")]
    Busy,
    /// It has started a moment ago, or has not caught up yet: it has no say in updates.
    #[error("the replica has not caught up yet")]
    #[serde(rename = "v")]
    NoVote,
    /// Whoever asked has given up by now, or its clock is behind.
    #[error("the request came too late, or the clock of who sent it is behind")]
    #[serde(rename = "l")]
    TooLate,
}

/// The number of a flush: who does it, and its own number for it.
pub type HoldWords = (u64, u64);

/// The key of a comparison.
pub type SessionWords = (u64, u64);

/// The hash of a key, and a hash of what is held of it.
pub type StateWords = (u64, u64);

/// A version as two numbers; flat in `MessagePack`.
pub type WireVersion = (u64, u64);

impl<'a> From<RecordRef<'a>> for WireRecord<'a> {
    fn from(record: RecordRef<'a>) -> Self {
        let expiry_version = record.expiry.version;
        Self {
            version: to_wire(record.version),
            expiry_version: (expiry_version != record.version).then(|| to_wire(expiry_version)),
            expires_at: record.expiry.at,
            value: record.value.map(Bytes::new),
            covers: record.covers,
            kind: record.kind,
        }
    }
}

impl<'a> From<WireRecord<'a>> for RecordRef<'a> {
    fn from(record: WireRecord<'a>) -> Self {
        let version = from_wire(record.version);
        let expiry_version = record.expiry_version.map_or(version, from_wire);
        Self {
            version,
            expiry: Expiry {
                version: expiry_version,
                at: record.expires_at,
            },
            value: record.value.map(|value| &**value),
            kind: record.kind,
            covers: record.covers,
        }
    }
}

impl From<Expiry> for WireExpiry {
    fn from(expiry: Expiry) -> Self {
        Self {
            version: to_wire(expiry.version),
            at: expiry.at,
        }
    }
}

impl From<WireExpiry> for Expiry {
    fn from(expiry: WireExpiry) -> Self {
        Self {
            version: from_wire(expiry.version),
            at: expiry.at,
        }
    }
}

/// A version, for the wire.
#[must_use]
pub const fn to_wire(version: Version) -> WireVersion {
    (version.hlc.0, version.node.0)
}

/// A version from the wire.
#[must_use]
pub const fn from_wire((hlc, node): WireVersion) -> Version {
    Version {
        hlc: HlcTime(hlc),
        node: NodeTag(node),
    }
}
