//! One long-lived stream that carries many operations a frame and many frames a write.
//!
//! A caller appends its frame to the lane's buffer under a lock; the writer task takes the whole
//! buffer at once and hands it to QUIC. Under load a write carries the frames of many callers, and
//! there is neither a stream nor a task nor a channel message for each request. The peer works
//! frames off in order; responses find their callers by number.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::{RecvStream, SendStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::transport::{CallError, Operations, PeerService, ReplySink, Response};
use crate::wire::{
    self, FrameError, FrameReader, RequestHeader, ResponseHeader, finish_frame, split_frame,
    start_frame,
};

/// The caller's end of a lane.
pub(super) struct LaneQueue {
    state: Mutex<State>,
    /// There are bytes to write, or the lane was closed.
    wake: Notify,
    frame_bytes_max: usize,
}

struct State {
    /// Frames not yet handed to QUIC.
    buffer: Vec<u8>,
    /// Callers that wait, oldest first; the first one's frame has the number `first_id`.
    waiting: VecDeque<Option<Waiting>>,
    first_id: u64,
    closed: bool,
}

struct Waiting {
    deadline: Instant,
    operations: u32,
    sink: Box<dyn ReplySink>,
}

impl LaneQueue {
    pub(super) fn new(frame_bytes_max: usize) -> Arc<Self> {
        let state = State {
            buffer: Vec::new(),
            waiting: VecDeque::new(),
            first_id: 0,
            closed: false,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            wake: Notify::new(),
            frame_bytes_max,
        })
    }

    /// Queues a frame; see [`super::Transport::call`].
    pub(super) fn call(
        &self,
        operations: &Operations,
        deadline: Instant,
        budget: Duration,
        sink: Box<dyn ReplySink>,
    ) -> Result<(), CallError> {
        let bytes = operations.encoded().len() + HEADER_BYTES_MAX;
        if bytes > self.frame_bytes_max {
            return Err(CallError::TooLong);
        }
        let mut state = self.lock();
        if state.closed {
            return Err(CallError::Unreachable);
        }
        // One frame always fits an empty buffer, however large it is.
        let is_full = !state.buffer.is_empty() && state.buffer.len() + bytes > QUEUE_BYTES_MAX;
        if is_full || state.waiting.len() >= WAITING_MAX {
            return Err(CallError::Busy);
        }
        let id = state.first_id + state.waiting.len() as u64;
        let budget_ms = u32::try_from(budget.as_millis()).unwrap_or(u32::MAX);
        let header = RequestHeader {
            id,
            budget_ms,
            count: operations.count(),
            clock: operations.clock(),
        };
        let start = start_frame(&header, &mut state.buffer);
        state.buffer.extend_from_slice(operations.encoded());
        finish_frame(start, &mut state.buffer);
        let waiting = Waiting {
            deadline,
            operations: operations.count(),
            sink,
        };
        state.waiting.push_back(Some(waiting));
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    /// Whether nobody waits for an answer.
    pub(super) fn is_idle(&self) -> bool {
        self.lock().waiting.iter().all(Option::is_none)
    }

    /// Tells those whose time is up.
    pub(super) fn expire(&self, now: Instant) {
        let mut expired = Vec::new();
        let mut state = self.lock();
        for waiting in &mut state.waiting {
            if let Some(late) = waiting.take_if(|waiting| waiting.deadline <= now) {
                expired.push(late.sink);
            }
        }
        state.drop_answered();
        drop(state);
        tell_all(expired, CallError::TimedOut);
    }

    /// Ends the lane: whoever waits learns that the connection is lost.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.buffer = Vec::new();
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.wake.notify_one();
        tell_all(
            waiting.into_iter().flatten().map(|w| w.sink),
            CallError::ConnectionLost,
        );
    }

    /// Writes what is queued until the lane or the stream ends.
    pub(super) async fn write_to(&self, stream: &mut SendStream) {
        loop {
            let batch = {
                let mut state = self.lock();
                if state.closed {
                    return;
                }
                let next = Vec::with_capacity(state.buffer.len().min(BUFFER_BYTES_KEPT));
                std::mem::replace(&mut state.buffer, next)
            };
            if batch.is_empty() {
                self.wake.notified().await;
                // Whoever else is ready to run may have frames to add to this write.
                tokio::task::yield_now().await;
            } else if stream.write_chunk(Bytes::from(batch)).await.is_err() {
                return;
            }
        }
    }

    /// Reads responses and tells their callers until the stream ends or is broken.
    pub(super) async fn read_from(&self, stream: &mut RecvStream) -> Result<(), FrameError> {
        let mut input = BytesMut::new();
        while read_more(stream, &mut input).await {
            while let Some(frame) = split_frame(&mut input, self.frame_bytes_max)? {
                self.on_response(&frame)?;
            }
        }
        Ok(())
    }

    fn on_response(&self, frame: &Bytes) -> Result<(), FrameError> {
        let mut answers = FrameReader::new(frame);
        let header: ResponseHeader = answers.read()?;
        let waiting = self.lock().take(header.id);
        // Nobody: its time was up.
        let Some(waiting) = waiting else {
            return Ok(());
        };
        if header.count != waiting.operations {
            let error = FrameError::Count {
                got: header.count,
                want: waiting.operations,
            };
            // The caller learns that its request is lost, the peer that it is broken.
            waiting.sink.on_reply(Err(CallError::ConnectionLost))?;
            return Err(error);
        }
        waiting.sink.on_reply(Ok(Response {
            frame,
            answers,
            count: header.count,
            clock: header.clock,
            is_sure: header.is_sure,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // std Mutex: never held across an await. Each critical section leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, id: u64) -> Option<Waiting> {
        let position = usize::try_from(id.checked_sub(self.first_id)?).ok()?;
        let waiting = self.waiting.get_mut(position)?.take();
        self.drop_answered();
        waiting
    }

    fn drop_answered(&mut self) {
        while let Some(None) = self.waiting.front() {
            self.waiting.pop_front();
            self.first_id += 1;
        }
    }
}

impl fmt::Debug for LaneQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("LaneQueue")
            .field("buffered_bytes", &state.buffer.len())
            .field("waiting", &state.waiting.len())
            .field("closed", &state.closed)
            .finish()
    }
}

/// The peer's end of a lane: carries out request frames in order until the stream ends.
///
/// One write for all that was there to read. A peer that does not read its responses stops being
/// served when its flow control window is full: nothing piles up here. A response that waits for a
/// disk holds up no other; what may wait for a disk is bounded there.
pub(super) async fn serve_lane(
    recv: &mut RecvStream,
    send: &mut SendStream,
    service: &dyn PeerService,
    frame_bytes_max: usize,
) -> Result<(), FrameError> {
    let mut input = BytesMut::new();
    let mut late = JoinSet::new();
    loop {
        let mut out = Vec::new();
        tokio::select! {
            // Responses that waited first: they are the older ones.
            biased;
            Some(response) = late.join_next(), if !late.is_empty() => {
                out.extend(response.unwrap_or_default());
                while let Some(response) = late.try_join_next() {
                    out.extend(response.unwrap_or_default());
                }
            }
            has_more = read_more(recv, &mut input) => if !has_more {
                return Ok(());
            },
        }
        while let Some(frame) = split_frame(&mut input, frame_bytes_max)? {
            if let Some(response) = service.serve(&frame, &mut out)? {
                late.spawn(response);
            }
            // Large values: send what there is before reading the next one.
            if out.len() > wire::RESPONSE_VALUES_BYTES_MAX
                && send
                    .write_chunk(std::mem::take(&mut out).into())
                    .await
                    .is_err()
            {
                return Ok(());
            }
        }
        if !out.is_empty() && send.write_chunk(out.into()).await.is_err() {
            return Ok(());
        }
    }
}

/// Appends what has come to `input`; `false` when no more will.
async fn read_more(stream: &mut RecvStream, input: &mut BytesMut) -> bool {
    // All that has arrived in one go and one copy: frames are then whole and in one piece,
    // wherever packets cut them.
    let mut chunks = [const { Bytes::new() }; CHUNKS_A_READ];
    let Ok(Some(count)) = stream.read_chunks(&mut chunks).await else {
        return false;
    };
    let chunks = &chunks[..count];
    input.reserve(chunks.iter().map(Bytes::len).sum());
    chunks
        .iter()
        .for_each(|chunk| input.extend_from_slice(chunk));
    true
}

fn tell_all(sinks: impl IntoIterator<Item = Box<dyn ReplySink>>, error: CallError) {
    for sink in sinks {
        // Without a response there is nothing in it that could be malformed.
        let told = sink.on_reply(Err(error));
        debug_assert!(told.is_ok(), "no response, no malformed one: {told:?}");
    }
}

/// Length and header of a frame.
const HEADER_BYTES_MAX: usize = 64;
/// What may wait for the network to one peer before callers are told to come back later.
pub const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Calls to one peer that may be under way on a lane.
const WAITING_MAX: usize = 65_536;
/// A buffer is made as large as the last one was, but not larger than this.
const BUFFER_BYTES_KEPT: usize = 64 * 1024;
/// A chunk is what one packet brought.
const CHUNKS_A_READ: usize = 64;
