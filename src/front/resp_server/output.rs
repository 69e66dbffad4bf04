//! What a client is sent: replies and messages, and what becomes of a client that does not read them.
//!
//! Knows nothing of commands. What waits is bounded by stopping: whoever puts replies in sends them
//! before it makes more, and sending waits for the client. The wait ends with the client reading, or
//! with the connection: when it is killed, when it has read nothing for too long, soon after the door
//! begins to close, or when so much waits for all clients together that the one that has not read for
//! longest is closed.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::clients::Client;
use super::unread::{Unread, Waiting};
use crate::env::Clock;
use crate::resp::{Encoder, Protocol};

/// A connection's stream, of whatever kind.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send + Sync {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Socket for S {}

/// What waits to be sent to one client.
pub(super) struct Output {
    pub(super) stream: Box<dyn Socket>,
    buffer: Vec<u8>,
    /// What comes after this place is not sent: the client wants no reply to it.
    muted_from: Option<usize>,
    client: Arc<Client>,
    killed: watch::Receiver<bool>,
    draining: watch::Receiver<bool>,
    unread: Arc<Unread>,
    clock: Arc<dyn Clock>,
    /// How long a client may read nothing.
    pub(super) write_max: Duration,
    closed: Option<Closed>,
    /// Bytes sent since others had their turn.
    sent: usize,
    has_waited: bool,
}

/// Why nothing more is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    /// The client is gone.
    Lost,
    /// By `CLIENT KILL`, or because too much waited for it.
    Killed,
    /// The door is being closed, and the client does not read.
    Draining,
    /// It has read nothing for too long.
    Unread,
    /// The rest of a reply that was begun could not be read from the ring.
    CutShort,
}

/// What a connection listens to beside its stream.
pub(super) struct Signals {
    pub(super) killed: watch::Receiver<bool>,
    pub(super) draining: watch::Receiver<bool>,
}

impl Output {
    pub(super) fn new(
        stream: Box<dyn Socket>,
        client: Arc<Client>,
        Signals { killed, draining }: Signals,
        unread: Arc<Unread>,
        (clock, write_max): (Arc<dyn Clock>, Duration),
    ) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            muted_from: None,
            client,
            killed,
            draining,
            unread,
            clock,
            write_max,
            closed: None,
            sent: 0,
            has_waited: false,
        }
    }

    /// Appends replies.
    pub(super) fn encoder(&mut self, protocol: Protocol) -> Encoder<'_> {
        Encoder::new(&mut self.buffer, protocol)
    }

    /// Where replies are put.
    pub(super) const fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Bytes that wait.
    pub(super) const fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Why nothing more is sent, if so.
    pub(super) const fn closed(&self) -> Option<Closed> {
        self.closed
    }

    /// Sends nothing more.
    pub(super) fn close(&mut self, why: Closed) {
        self.closed = self.closed.or(Some(why));
        self.buffer = Vec::new();
    }

    /// What is put in from now on is not sent, until [`Self::unmute`].
    pub(super) const fn mute(&mut self) {
        self.muted_from = Some(self.buffer.len());
    }

    /// Forgets what was put in meanwhile if `forgets`; what comes is sent again.
    pub(super) fn unmute(&mut self, forgets: bool) {
        if let Some(muted_from) = self.muted_from.take()
            && forgets
        {
            self.buffer.truncate(muted_from);
        }
    }

    /// Puts a value in. A long one is sent from where it is, behind what waits already.
    pub(super) async fn bulk(&mut self, value: &Bytes, protocol: Protocol) {
        if value.len() < BUFFER_BYTES_KEPT || self.muted_from.is_some() {
            return self.encoder(protocol).bulk(value);
        }
        self.encoder(protocol).bulk_start(value.len());
        self.send().await;
        self.write(value).await;
        self.buffer.extend_from_slice(b"\r\n");
    }

    /// Sends what waits if it is much.
    pub(super) async fn relieve(&mut self) {
        if self.buffer.len() >= BUFFER_BYTES_KEPT {
            self.send().await;
        }
    }

    /// Sends all that waits. Returns when it is sent, or the connection is closed.
    pub(super) async fn send(&mut self) {
        if let Some(muted_from) = self.muted_from {
            self.buffer.truncate(muted_from);
            self.muted_from = Some(0);
        }
        if self.buffer.is_empty() {
            return;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        self.write(&buffer).await;
        if buffer.capacity() <= 2 * BUFFER_BYTES_KEPT {
            buffer.clear();
            self.buffer = buffer;
        }
    }

    /// Waits for something else than the client, unless the connection ends before.
    pub(super) async fn unless_ended(&mut self, other: impl Future<Output = ()>) {
        let ended = tokio::select! {
            biased;
            _ = self.killed.wait_for(|is_killed| *is_killed) => Some(Closed::Killed),
            _ = self.draining.wait_for(|is_draining| *is_draining) => Some(Closed::Draining),
            () = other => None,
        };
        if let Some(ended) = ended {
            self.close(ended);
        }
    }

    /// Whether the client was waited for since this was last asked.
    pub(super) const fn has_waited(&mut self) -> bool {
        std::mem::replace(&mut self.has_waited, false)
    }

    /// Writes bytes to the stream, a part at a time.
    async fn write(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        let mut wait = Wait::default();
        while !rest.is_empty() && self.closed.is_none() {
            let part = &rest[..rest.len().min(PART_BYTES_MAX)];
            match self.step(Step::Write(part), rest.len(), &mut wait).await {
                Ok(0) => self.close(Closed::Lost),
                Ok(count) => {
                    rest = &rest[count..];
                    self.sent += count;
                }
                Err(closed) => self.close(closed),
            }
            if self.sent >= TURN_BYTES {
                // The socket may take gigabytes without ever making this task wait.
                self.sent = 0;
                tokio::task::yield_now().await;
            }
        }
        if self.closed.is_none()
            && let Err(closed) = self.step(Step::Flush, 0, &mut wait).await
        {
            self.close(closed);
        }
    }

    /// Does what the stream does at once, or waits for the client. `rest`: how much waits for it.
    async fn step(
        &mut self,
        step: Step<'_>,
        rest: usize,
        wait: &mut Wait,
    ) -> Result<usize, Closed> {
        if *self.killed.borrow() {
            return Err(Closed::Killed);
        }
        let stream = &mut self.stream;
        let at_once = poll_fn(|context| Poll::Ready(step.poll(stream, context))).await;
        if let Poll::Ready(done) = at_once {
            return done;
        }
        self.has_waited = true;
        // The client does not read as fast as it is sent to: from here on it is watched.
        let since = wait.slow.since(self.clock.monotonic(), rest);
        let waiting = wait
            .waiting
            .get_or_insert_with(|| self.unread.wait(&self.client, rest, since));
        waiting.update(rest, since);
        let drained = async |draining: &mut watch::Receiver<bool>| {
            // The sender lives as long as the door.
            drop(draining.wait_for(|is_draining| *is_draining).await);
            tokio::time::sleep(DRAIN_WRITE_MAX).await;
        };
        let stream = &mut self.stream;
        tokio::select! {
            biased;
            _ = self.killed.wait_for(|is_killed| *is_killed) => Err(Closed::Killed),
            () = sleep_until(since + self.write_max) => Err(Closed::Unread),
            done = poll_fn(|context| step.poll(stream, context)) => done,
            () = drained(&mut self.draining) => Err(Closed::Draining),
        }
    }
}

/// What is done with the stream.
#[derive(Clone, Copy)]
enum Step<'b> {
    Write(&'b [u8]),
    Flush,
}

impl Step<'_> {
    fn poll(
        self,
        stream: &mut Box<dyn Socket>,
        context: &mut Context<'_>,
    ) -> Poll<Result<usize, Closed>> {
        let stream = Pin::new(stream);
        let done = match self {
            Self::Write(bytes) => stream.poll_write(context, bytes),
            Self::Flush => stream.poll_flush(context).map_ok(|()| 0),
        };
        done.map_err(|_gone| Closed::Lost)
    }
}

/// The wait for one client, from when its stream first took nothing.
#[derive(Default)]
struct Wait {
    waiting: Option<Waiting>,
    slow: Slow,
}

/// Since when a client has read next to nothing.
#[derive(Debug, Default)]
struct Slow(Option<(Instant, usize)>);

impl Slow {
    /// `rest` bytes wait. A client that takes a byte now and then does not read: the time counts
    /// from when it last took [`PROGRESS_BYTES`].
    fn since(&mut self, now: Instant, rest: usize) -> Instant {
        match self.0 {
            Some((since, before)) if before.saturating_sub(rest) < PROGRESS_BYTES => since,
            _ => {
                self.0 = Some((now, rest));
                now
            }
        }
    }
}

/// What a busy connection reads or writes at once and keeps for the next time.
pub(super) const BUFFER_BYTES_KEPT: usize = 64 * 1024;
/// Of one long value at once: a tenth of a millisecond of copying.
const PART_BYTES_MAX: usize = 256 * 1024;
/// After so many bytes other connections have their turn.
const TURN_BYTES: usize = 256 * 1024;
/// At this rate, in a minute, a mebibyte takes a quarter of an hour: slower is not reading.
const PROGRESS_BYTES: usize = 64 * 1024;
/// A client that reads at all takes what a socket holds within this.
const DRAIN_WRITE_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_now_and_then_is_no_progress() {
        let start = crate::env::SystemClock.monotonic();
        let later = |ms| start + Duration::from_millis(ms);
        let mut slow = Slow::default();
        assert_eq!(slow.since(start, 1_000_000), start);
        assert_eq!(slow.since(later(10), 999_999), start);
        assert_eq!(slow.since(later(20), 940_000), start);
        assert_eq!(slow.since(later(30), 900_000), later(30));
        assert_eq!(slow.since(later(40), 899_000), later(30));
    }
}
