//! How rooms above talk to peers, whatever carries it: QUIC here, memory in the simulator.

use std::fmt::Debug;
use std::pin::Pin;

use bytes::Bytes;
use serde::Serialize;
use thiserror::Error;
use tokio::time::Instant;

use crate::model::{Body, HlcTime, NodeTag, Record, RecordRef};
use crate::wire::{self, FrameError, FrameReader};

/// Which stream to a peer carries a call. Bulk never delays a request, and one large value does
/// not delay the small ones behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Requests that someone waits for.
    Foreground,
    /// The same, over [`LARGE_BYTES`].
    Large,
    /// Repair after the answer, the member table, transfers.
    Bulk,
}

/// Requests over this size take a lane of their own: about a millisecond at a gigabit a second.
pub const LARGE_BYTES: usize = 128 * 1024;

/// Operations for one peer, encoded one behind the other.
#[derive(Debug, Default)]
pub struct Operations {
    count: u32,
    encoded: Vec<u8>,
    clock: HlcTime,
}

impl Operations {
    /// No operations yet, from a caller whose clock reads `clock`.
    #[must_use]
    pub fn new(clock: HlcTime) -> Self {
        Self {
            clock,
            ..Self::default()
        }
    }

    /// Adds one operation.
    pub fn push(&mut self, operation: &impl Serialize) {
        wire::encode(operation, &mut self.encoded);
        self.count += 1;
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Tells the time at which they are sent.
    pub const fn set_clock(&mut self, clock: HlcTime) {
        self.clock = clock;
    }

    /// The caller's clock.
    #[must_use]
    pub const fn clock(&self) -> HlcTime {
        self.clock
    }

    /// Their encoding.
    #[must_use]
    pub fn encoded(&self) -> &[u8] {
        &self.encoded
    }
}

/// Calls to peers. Made to be shared by all requests of a node.
pub trait Transport: Debug + Send + Sync + 'static {
    /// Queues operations for a peer and returns at once.
    ///
    /// If and only if this returns `Ok`, `sink` is told once: the response, or what went wrong,
    /// at `deadline` at the latest. It is never told from within this call.
    fn call(
        &self,
        to: NodeTag,
        lane: Lane,
        operations: &Operations,
        deadline: Instant,
        sink: Box<dyn ReplySink>,
    ) -> Result<(), CallError>;
}

/// Who waits for a response. Runs on the lane's task: it must not block.
pub trait ReplySink: Send {
    /// The response, with one answer for each operation in their order, or why there is none.
    /// An error returned from here says that the response is malformed: the lane is closed.
    fn on_reply(self: Box<Self>, reply: Result<Response<'_>, CallError>) -> Result<(), FrameError>;
}

/// The response to one call.
#[derive(Debug)]
pub struct Response<'a> {
    /// The whole frame: what `answers` borrows can be kept by slicing this.
    pub frame: &'a Bytes,
    /// Reads the answers.
    pub answers: FrameReader<'a>,
    /// How many there are.
    pub count: u32,
    /// The peer's clock.
    pub clock: HlcTime,
    /// See [`ResponseHeader::is_sure`](wire::ResponseHeader::is_sure).
    pub is_sure: bool,
}

impl Response<'_> {
    /// A record that was read from the answers, kept by a slice of the frame and not by a copy.
    #[must_use]
    pub fn keep(&self, record: RecordRef<'_>) -> Record {
        let slice = |value| Body::Value(self.frame.slice_ref(value));
        Record {
            version: record.version,
            expiry: record.expiry,
            body: record.value.map_or(Body::Tombstone, slice),
            kind: record.kind,
            covers: record.covers,
        }
    }
}

/// Why a call has no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum CallError {
    /// There is no connection to the peer now.
    #[error("no connection to the peer")]
    Unreachable,
    /// Too much is queued for the peer already.
    #[error("the queue to the peer is full")]
    Busy,
    /// The operations are over the size of a frame.
    #[error("the request is over the size of a frame")]
    TooLong,
    /// The connection ended before the response came: the operations may have been done.
    #[error("the connection ended before the response came")]
    ConnectionLost,
    /// No response in time: the operations may have been done.
    #[error("no response in time")]
    TimedOut,
}

/// What a node does with the request frames of its peers.
pub trait PeerService: Debug + Send + Sync + 'static {
    /// Carries out one request frame. Appends the response frame to `out`, or returns what the
    /// response has to wait for.
    ///
    /// # Errors
    /// When the frame is malformed: the connection is closed and the peer told why.
    fn serve(&self, frame: &Bytes, out: &mut Vec<u8>) -> Result<Option<LateResponse>, FrameError>;
}

/// A response frame that waits for a disk. Others overtake it.
pub type LateResponse = Pin<Box<dyn Future<Output = Vec<u8>> + Send>>;
