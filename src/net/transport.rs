//! How rooms above talk to peers, whatever carries it: QUIC here, memory in the simulator.

use std::borrow::Cow;
use std::fmt::Debug;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_bytes::Bytes as ByteSlice;
use thiserror::Error;
use tokio::time::Instant;

use crate::model::{Body, HlcTime, NodeTag, Record, RecordRef};
use crate::wire::{self, FrameError, FrameReader, RequestHeader};

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

/// How long an operation that moves so many bytes may take where a small one has `timeout`: as long
/// as they need at `RATE_MIN`. Every wait for a large request is derived from this one.
#[must_use]
pub fn time_budget(timeout: Duration, bytes: usize) -> Duration {
    match bytes {
        LARGE_BYTES.. => timeout.saturating_add(Duration::from_millis((bytes / RATE_MIN) as u64)),
        _ => timeout,
    }
}

/// What every frame says of the node that it comes from.
#[derive(Debug, Clone, Default)]
pub struct FrameContext {
    /// Its clock.
    pub clock: HlcTime,
    /// The flushes that it knows of; see [`crate::model::Flushes::encode`].
    pub flushes: Option<Bytes>,
    /// The ring whose homes it writes to, where it writes for a client.
    pub ring: Option<u64>,
}

/// Operations for one peer, encoded one behind the other. Large values are not copied into the
/// encoding but shared with it.
#[derive(Debug, Default)]
pub struct Operations {
    count: u32,
    encoded: Vec<u8>,
    /// Values, and where in `encoded` each belongs.
    shared: Vec<(usize, Bytes)>,
    shared_bytes: usize,
    context: FrameContext,
}

impl Operations {
    /// No operations yet, from a node of which this is said.
    #[must_use]
    pub fn new(context: FrameContext) -> Self {
        Self {
            context,
            ..Self::default()
        }
    }

    /// Adds one operation.
    pub fn push(&mut self, operation: &impl Serialize) {
        wire::encode(operation, &mut self.encoded);
        self.count += 1;
    }

    /// Adds one operation that holds `value`, which is shared and not copied where it is large.
    pub fn push_sharing(&mut self, operation: &impl Serialize, value: &Bytes) {
        let before = self.shared.len();
        let mut writer = Sharing { into: self, value };
        wire::encode_to(operation, &mut writer);
        let shared = self.shared[before..].iter().map(|(_, value)| value.len());
        self.shared_bytes += shared.sum::<usize>();
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

    /// Sets what is said of the node that sends them.
    pub fn set_context(&mut self, context: FrameContext) {
        self.context = context;
    }

    /// The header of the frame that carries them.
    #[must_use]
    pub fn header(&self, id: u64, budget_ms: u32) -> RequestHeader<'_> {
        RequestHeader {
            id,
            budget_ms,
            count: self.count,
            clock: self.context.clock,
            flushes: self.context.flushes.as_deref().map(ByteSlice::new),
            ring: self.context.ring,
        }
    }

    /// The length of their encoding.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.encoded.len() + self.shared_bytes
    }

    /// Their encoding in one piece: a copy, if values are shared.
    #[must_use]
    pub fn encoded(&self) -> Cow<'_, [u8]> {
        if self.shared.is_empty() {
            return Cow::Borrowed(&self.encoded);
        }
        let mut whole = Vec::with_capacity(self.bytes());
        let mut at = 0;
        for (place, value) in &self.shared {
            whole.extend_from_slice(&self.encoded[at..*place]);
            whole.extend_from_slice(value);
            at = *place;
        }
        whole.extend_from_slice(&self.encoded[at..]);
        Cow::Owned(whole)
    }

    /// Their encoding as pieces to be sent one after the other, the first one behind `head`.
    pub(super) fn pieces(&self, mut head: Vec<u8>) -> Vec<Bytes> {
        let mut pieces = Vec::with_capacity(2 * self.shared.len() + 1);
        let mut at = 0;
        for (place, value) in &self.shared {
            head.extend_from_slice(&self.encoded[at..*place]);
            pieces.push(Bytes::from(std::mem::take(&mut head)));
            pieces.push(value.clone());
            at = *place;
        }
        head.extend_from_slice(&self.encoded[at..]);
        pieces.push(Bytes::from(head));
        pieces
    }
}

/// Writes an encoding, and notes the place of a large value instead of copying it.
struct Sharing<'a> {
    into: &'a mut Operations,
    value: &'a Bytes,
}

impl io::Write for Sharing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The encoder hands a value on as the slice that it was given.
        let is_value = bytes.as_ptr() == self.value.as_ptr() && bytes.len() == self.value.len();
        if is_value && bytes.len() >= LARGE_BYTES {
            let place = self.into.encoded.len();
            self.into.shared.push((place, self.value.clone()));
        } else {
            self.into.encoded.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
    /// See [`ResponseHeader::flushes`](wire::ResponseHeader::flushes).
    pub flushes: Option<&'a [u8]>,
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

/// Bytes a millisecond that a large value moves at least, 4 MB/s: a third of a link of 100 Mbit/s,
/// which two copies of it share.
const RATE_MIN: usize = 4 * 1024 * 1024 / 1_000;

#[cfg(test)]
mod tests {
    use serde_bytes::Bytes as ByteSlice;

    use super::*;
    use crate::model::{Expiry, Kind, Version};
    use crate::wire::Operation;

    #[test]
    fn a_shared_value_makes_the_encoding_that_a_copied_one_makes() {
        for len in [0, 100, LARGE_BYTES - 1, LARGE_BYTES, 3 * LARGE_BYTES] {
            let value = Bytes::from(vec![7; len]);
            let version = Version::default();
            let record = RecordRef {
                version,
                expiry: Expiry { version, at: None },
                value: Some(&value),
                kind: Kind::String,
                covers: false,
            };
            let write = Operation::Write(ByteSlice::new(b"key"), record.into());
            let (mut copied, mut shared) = (Operations::default(), Operations::default());
            for _ in 0..2 {
                copied.push(&write);
                shared.push_sharing(&write, &value);
            }
            assert_eq!(copied.encoded(), shared.encoded());
            assert_eq!(copied.bytes(), shared.bytes());
            assert_eq!(shared.shared.len(), if len < LARGE_BYTES { 0 } else { 2 });
            let mut head = vec![1, 2];
            let pieces = shared.pieces(head.clone()).concat();
            head.extend_from_slice(&copied.encoded());
            assert_eq!(pieces, head);
        }
    }

    #[test]
    fn time_grows_with_size_and_not_for_small_requests() {
        let second = Duration::from_secs(1);
        assert_eq!(time_budget(second, LARGE_BYTES - 1), second);
        let large = time_budget(second, 16 * 1024 * 1024);
        assert!(
            (Duration::from_secs(4)..Duration::from_secs(6)).contains(&large),
            "{large:?}"
        );
        assert!(time_budget(Duration::MAX, usize::MAX) == Duration::MAX);
    }
}
