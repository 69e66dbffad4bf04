//! One long-lived stream that carries many operations a frame and many frames a write.
//!
//! A caller appends its frame to the lane's buffer under a lock; the writer task takes the whole
//! buffer at once and hands it to QUIC. Under load a write carries the frames of many callers, and
//! there is neither a stream nor a task nor a channel message for each request. The peer works
//! frames off in order; responses find their callers by number.
//!
//! A large value is handed to QUIC as it is, without a copy. QUIC takes no more of it than the peer's
//! flow control lets it (see `STREAM_WINDOW_BYTES` of the endpoint): what waits does so here, and is
//! dropped here when nobody waits for its response any more, unless it has been begun.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::{RecvStream, SendStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::transport::{CallError, LARGE_BYTES, Operations, PeerService, ReplySink, Response};
use crate::wire::{
    self, FrameError, FrameReader, LENGTH_BYTES, RequestHeader, ResponseHeader, finish_frame,
    split_frame, start_frame,
};

/// The caller's end of a lane.
pub(super) struct LaneQueue {
    state: Mutex<State>,
    /// There are bytes to write, or the lane was closed.
    wake: Notify,
    frame_bytes_max: usize,
}

struct State {
    /// Frames not yet handed to QUIC, in order.
    queue: VecDeque<Queued>,
    /// Their bytes, and those of a large frame that is being handed to QUIC.
    queued_bytes: usize,
    /// The size that the last buffer of small frames had.
    buffer_bytes: usize,
    /// Callers that wait, oldest first; the first one's frame has the number `first_id`.
    waiting: VecDeque<Option<Waiting>>,
    first_id: u64,
    closed: bool,
}

enum Queued {
    /// Frames one behind the other.
    Small(Vec<u8>),
    Large(LargeFrame),
}

struct LargeFrame {
    id: u64,
    pieces: Vec<Bytes>,
    bytes: usize,
}

struct Waiting {
    deadline: Instant,
    operations: u32,
    sink: Box<dyn ReplySink>,
}

impl LaneQueue {
    pub(super) fn new(frame_bytes_max: usize) -> Arc<Self> {
        let state = State {
            queue: VecDeque::new(),
            queued_bytes: 0,
            buffer_bytes: 0,
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
        let bytes = operations.bytes() + HEADER_BYTES_MAX;
        if bytes > self.frame_bytes_max {
            return Err(CallError::TooLong);
        }
        let mut state = self.lock();
        if state.closed {
            return Err(CallError::Unreachable);
        }
        // One frame always fits an empty queue, however large it is.
        let is_full = state.queued_bytes > 0 && state.queued_bytes + bytes > QUEUE_BYTES_MAX;
        if is_full || state.waiting.len() >= WAITING_MAX {
            return Err(CallError::Busy);
        }
        let id = state.first_id + state.waiting.len() as u64;
        let budget_ms = u32::try_from(budget.as_millis()).unwrap_or(u32::MAX);
        state.push(&operations.header(id, budget_ms), operations);
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
        state.queue = VecDeque::new();
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
            let next = {
                let mut state = self.lock();
                if state.closed {
                    return;
                }
                state.next()
            };
            match next {
                None => {
                    self.wake.notified().await;
                    // Whoever else is ready to run may have frames to add to this write.
                    tokio::task::yield_now().await;
                }
                Some(Queued::Small(frames)) => {
                    if stream.write_chunk(Bytes::from(frames)).await.is_err() {
                        return;
                    }
                }
                Some(Queued::Large(mut frame)) => {
                    // Once begun, it is sent to its end: the peer has to find where the next begins.
                    let sent = stream.write_all_chunks(&mut frame.pieces).await;
                    self.lock().queued_bytes -= frame.bytes;
                    if sent.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Reads responses and tells their callers until the stream ends or is broken.
    pub(super) async fn read_from(&self, stream: &mut RecvStream) -> Result<(), FrameError> {
        let mut input = BytesMut::new();
        while read_more(stream, &mut input, self.frame_bytes_max).await {
            while let Some(frame) = split_frame(&mut input, self.frame_bytes_max)? {
                self.on_response(&frame)?;
            }
        }
        Ok(())
    }

    fn on_response(&self, frame: &Bytes) -> Result<(), FrameError> {
        let mut answers = FrameReader::new(frame);
        let header: ResponseHeader<'_> = answers.read()?;
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
            flushes: header.flushes.map(|flushes| &flushes[..]),
            is_sure: header.is_sure,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // std Mutex: never held across an await. Each critical section leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, header: &RequestHeader<'_>, operations: &Operations) {
        if operations.bytes() >= LARGE_BYTES {
            let mut head = Vec::with_capacity(HEADER_BYTES_MAX);
            let start = start_frame(header, &mut head);
            let bytes = head.len() + operations.bytes();
            let length = u32::try_from(bytes - LENGTH_BYTES).unwrap_or(u32::MAX);
            head[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
            let pieces = operations.pieces(head);
            self.queued_bytes += bytes;
            let id = header.id;
            let frame = LargeFrame { id, pieces, bytes };
            return self.queue.push_back(Queued::Large(frame));
        }
        if !matches!(self.queue.back(), Some(Queued::Small(_))) {
            let buffer = Vec::with_capacity(self.buffer_bytes.min(BUFFER_BYTES_KEPT));
            self.queue.push_back(Queued::Small(buffer));
        }
        if let Some(Queued::Small(buffer)) = self.queue.back_mut() {
            let before = buffer.len();
            let start = start_frame(header, buffer);
            buffer.extend_from_slice(&operations.encoded());
            finish_frame(start, buffer);
            self.queued_bytes += buffer.len() - before;
        }
    }

    /// What is to be written next. A large frame whose caller has given up is not sent.
    fn next(&mut self) -> Option<Queued> {
        loop {
            match self.queue.pop_front()? {
                Queued::Small(frames) => {
                    self.queued_bytes -= frames.len();
                    self.buffer_bytes = frames.len();
                    return Some(Queued::Small(frames));
                }
                Queued::Large(frame) if self.is_waited_for(frame.id) => {
                    return Some(Queued::Large(frame));
                }
                Queued::Large(frame) => self.queued_bytes -= frame.bytes,
            }
        }
    }

    fn is_waited_for(&self, id: u64) -> bool {
        let place = id.checked_sub(self.first_id);
        let place = place.and_then(|place| usize::try_from(place).ok());
        place.is_some_and(|place| matches!(self.waiting.get(place), Some(Some(_))))
    }

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
            .field("queued_bytes", &state.queued_bytes)
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
                out = response.unwrap_or_default();
                while out.len() < LARGE_BYTES && let Some(response) = late.try_join_next() {
                    out.extend(response.unwrap_or_default());
                }
            }
            has_more = read_more(recv, &mut input, frame_bytes_max) => if !has_more {
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
async fn read_more(stream: &mut RecvStream, input: &mut BytesMut, frame_bytes_max: usize) -> bool {
    // All that has arrived in one go and one copy: frames are then whole and in one piece,
    // wherever packets cut them.
    let mut chunks = [const { Bytes::new() }; CHUNKS_A_READ];
    let Ok(Some(count)) = stream.read_chunks(&mut chunks).await else {
        return false;
    };
    let chunks = &chunks[..count];
    let more = chunks.iter().map(Bytes::len).sum();
    // Room for the whole of a large frame at once: it is not copied again each time that the buffer
    // has doubled. Memory that is not written to costs nothing.
    let announced = input.first_chunk::<LENGTH_BYTES>();
    let announced = announced.map_or(0, |length| u32::from_le_bytes(*length) as usize);
    let rest = (LENGTH_BYTES + announced.min(frame_bytes_max)).saturating_sub(input.len());
    input.reserve(rest.max(more));
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
const HEADER_BYTES_MAX: usize = 64 + crate::model::Flushes::BYTES_MAX;
/// What may wait for the network to one peer before callers are told to come back later.
pub const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Calls to one peer that may be under way on a lane.
const WAITING_MAX: usize = 65_536;
/// A buffer is made as large as the last one was, but not larger than this.
const BUFFER_BYTES_KEPT: usize = 64 * 1024;
/// A chunk is what one packet brought.
const CHUNKS_A_READ: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{Clock, SystemClock};
    use crate::net::FrameContext;

    struct Nobody;

    impl ReplySink for Nobody {
        fn on_reply(
            self: Box<Self>,
            _reply: Result<Response<'_>, CallError>,
        ) -> Result<(), FrameError> {
            Ok(())
        }
    }

    fn operations(bytes: usize) -> Operations {
        let mut operations = Operations::new(FrameContext::default());
        let value = Bytes::from(vec![7; bytes]);
        operations.push_sharing(&serde_bytes::Bytes::new(&value), &value);
        operations
    }

    fn call(lane: &LaneQueue, bytes: usize, until: Instant) -> Result<(), CallError> {
        lane.call(&operations(bytes), until, Duration::ZERO, Box::new(Nobody))
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_frame_that_nobody_waits_for_any_more_is_not_sent() {
        let lane = LaneQueue::new(64 * 1024 * 1024);
        let now = SystemClock.monotonic();
        let (soon, later) = (now + Duration::from_secs(1), now + Duration::from_secs(9));
        for (bytes, until) in [(LARGE_BYTES, soon), (10, soon), (2 * LARGE_BYTES, later)] {
            call(&lane, bytes, until).unwrap();
        }
        lane.expire(soon);
        let mut state = lane.lock();
        // The small one is in one buffer with what others wait for.
        assert!(matches!(state.next(), Some(Queued::Small(_))));
        let Some(Queued::Large(frame)) = state.next() else {
            panic!("the other large one is waited for");
        };
        assert_eq!(frame.bytes, state.queued_bytes);
        assert!(frame.bytes > 2 * LARGE_BYTES);
        assert!(state.next().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_a_peer_is_bounded_in_bytes_large_or_small() {
        let lane = LaneQueue::new(64 * 1024 * 1024);
        let until = SystemClock.monotonic() + Duration::from_secs(1);
        let mut calls = 0;
        while call(&lane, 8 * 1024 * 1024, until).is_ok() {
            calls += 1;
        }
        assert_eq!(calls, 7);
        assert_eq!(call(&lane, 8 * 1024 * 1024, until), Err(CallError::Busy));
        call(&lane, 1_000, until).unwrap();
        assert!(lane.lock().queued_bytes <= QUEUE_BYTES_MAX);
    }
}
