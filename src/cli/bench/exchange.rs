//! One batch: written, and each of its replies judged and counted.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::ReadBuf;
use tokio::time::{Instant, Sleep};

use super::pace::Schedule;
use super::record::Tally;
use super::scanner::{Malformed, Reply, Scanner};
use super::socket::{Loss, SILENCE_MAX, Socket};
use super::workload::{Batch, Kind};
use crate::env::{Clock, SystemClock};

/// Where all connections of one thread count.
#[derive(Debug)]
pub(super) struct Recorder {
    // std Mutex: held while the replies of one read are counted, never across an await. No other
    // thread takes it before the run is over.
    tally: Mutex<Tally>,
    /// Requests ended so far, warm-up included, for who looks on from another thread.
    pub(super) ended: AtomicU64,
    /// Those of them that failed.
    pub(super) failed: AtomicU64,
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self {
            tally: Mutex::new(Tally::new()),
            ended: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    pub(super) fn tally(&self) -> MutexGuard<'_, Tally> {
        // Counting does not panic half-way, so what a poisoned lock holds is still good.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From when the requests of a batch count as under way.
#[derive(Debug, Clone, Copy)]
pub(super) enum Since {
    /// All from the moment they were sent.
    Sent(Instant),
    /// Each from the moment it was due: if the server makes us late, that is its latency.
    Due {
        schedule: Schedule,
        connection: u64,
        /// Which of the connection's requests is the batch's first.
        first: u64,
    },
}

impl Since {
    pub(super) fn of(&self, place: usize) -> Instant {
        match *self {
            Self::Sent(at) => at,
            Self::Due {
                schedule,
                connection,
                first,
            } => schedule.due_at(connection, first + place as u64),
        }
    }
}

/// What one connection needs to exchange batches; used again for each.
#[derive(Debug)]
pub(super) struct Exchange {
    clock: SystemClock,
    /// Replicas that each write waits for.
    wait: Option<i64>,
    scanner: Scanner,
    buffer: Box<[u8]>,
    /// How much of the buffer holds bytes not scanned yet.
    filled: usize,
    /// How much of the batch is written.
    written: usize,
    /// How many of its requests are answered.
    answered: usize,
    /// The reply to the write whose `WAIT` is not answered yet: its error, if it was one.
    write_reply: Option<Option<Vec<u8>>>,
    /// Which requests of the batch missed.
    pub(super) misses: Vec<usize>,
    last_heard: Instant,
    /// Goes off at times to compare `last_heard` with the clock: cheaper than a timer a batch.
    watchdog: Pin<Box<Sleep>>,
}

/// A batch and how to count it.
#[derive(Debug)]
pub(super) struct Sending<'a> {
    pub(super) batch: &'a Batch,
    pub(super) since: Since,
    /// Whether it counts: not during the warm-up.
    pub(super) counts: bool,
    pub(super) recorder: &'a Recorder,
}

impl Exchange {
    /// To be made inside a runtime.
    pub(super) fn new(clock: SystemClock, read_bytes: usize, wait: Option<i64>) -> Self {
        let now = clock.monotonic();
        Self {
            clock,
            wait,
            scanner: Scanner::default(),
            buffer: vec![0; read_bytes].into_boxed_slice(),
            filled: 0,
            written: 0,
            answered: 0,
            write_reply: None,
            misses: Vec::new(),
            last_heard: now,
            watchdog: Box::pin(tokio::time::sleep_until(now + SILENCE_MAX)),
        }
    }

    /// Sends a batch and waits for all its replies.
    ///
    /// # Errors
    /// When the connection is lost: it must not be used again. Unanswered requests have failed.
    pub(super) async fn run(
        &mut self,
        socket: &mut Socket,
        sending: Sending<'_>,
    ) -> Result<(), Loss> {
        self.written = 0;
        self.answered = 0;
        self.misses.clear();
        self.last_heard = self.clock.monotonic();
        let done = std::future::poll_fn(|context| self.poll(socket, &sending, context)).await;
        if done.is_err() {
            self.on_loss(&sending);
        }
        done
    }

    /// Reads while it writes: a server that stops reading until its replies are taken would
    /// otherwise wait for us as we for it.
    fn poll(
        &mut self,
        socket: &mut Socket,
        sending: &Sending<'_>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Loss>> {
        loop {
            let mut moved = false;
            let unwritten = &sending.batch.bytes[self.written..];
            if !unwritten.is_empty()
                && let Poll::Ready(written) = socket.poll_write(context, unwritten)?
            {
                if written == 0 {
                    return Poll::Ready(Err(Loss::Closed));
                }
                self.written += written;
                moved = true;
            }
            let mut room = ReadBuf::new(&mut self.buffer[self.filled..]);
            if socket.poll_read(context, &mut room)?.is_ready() {
                match room.filled().len() {
                    0 => return Poll::Ready(Err(Loss::Closed)),
                    read => self.filled += read,
                }
                self.on_bytes(sending)?;
                if self.answered == sending.batch.len() {
                    return Poll::Ready(Ok(()));
                }
                moved = true;
            }
            if !moved {
                return self.poll_silence(context);
            }
        }
    }

    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Loss>> {
        while self.watchdog.as_mut().poll(context).is_ready() {
            let silent_at = self.last_heard + SILENCE_MAX;
            if self.clock.monotonic() >= silent_at {
                return Poll::Ready(Err(Loss::Silent(SILENCE_MAX)));
            }
            self.watchdog.as_mut().reset(silent_at);
        }
        Poll::Pending
    }

    /// Scans what was read: one look at the clock and one lock for all replies in it.
    fn on_bytes(&mut self, sending: &Sending<'_>) -> Result<(), Malformed> {
        let now = self.clock.monotonic();
        self.last_heard = now;
        let mut count = Count {
            now,
            sending,
            tally: sending.recorder.tally(),
            succeeded: [(Kind::Get, 0), (Kind::Set, 0), (Kind::Del, 0)],
        };
        let answered_before = self.answered;
        let mut at = 0;
        let scanned = self.scan(&mut at, &mut count);
        count.finish(self.answered - answered_before);
        scanned?;
        if at == 0 && self.filled == self.buffer.len() {
            // A line longer than the whole buffer.
            return Err(Malformed);
        }
        self.buffer.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(())
    }

    fn scan(&mut self, at: &mut usize, count: &mut Count<'_>) -> Result<(), Malformed> {
        while let Some(reply) = self.scanner.next(&self.buffer[..self.filled], at)? {
            let place = self.answered;
            let kind = *count.sending.batch.kinds.get(place).ok_or(Malformed)?;
            let verdict = match self.wait {
                Some(replicas) if kind != Kind::Get => {
                    match judge_waited(reply, replicas, &mut self.write_reply, kind)? {
                        Some(verdict) => verdict,
                        None => continue,
                    }
                }
                _ => judge(kind, reply)?,
            };
            if verdict == Verdict::Miss {
                self.misses.push(place);
            }
            count.add(place, kind, &verdict);
            self.answered += 1;
        }
        Ok(())
    }

    fn on_loss(&mut self, sending: &Sending<'_>) {
        let now = self.clock.monotonic();
        let unanswered = self.answered..sending.batch.len();
        let failed = unanswered.len() as u64;
        sending.recorder.ended.fetch_add(failed, Ordering::Relaxed);
        sending.recorder.failed.fetch_add(failed, Ordering::Relaxed);
        if sending.counts {
            let mut tally = sending.recorder.tally();
            for place in unanswered {
                tally.failed(None, now.saturating_duration_since(sending.since.of(place)));
            }
        }
        self.scanner = Scanner::default();
        self.filled = 0;
        self.write_reply = None;
    }
}

/// What a reply says of its request.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Hit,
    Miss,
    Done,
    Failed(Vec<u8>),
}

fn judge(kind: Kind, reply: Reply<'_>) -> Result<Verdict, Malformed> {
    match (kind, reply) {
        (_, Reply::Error(text)) => Ok(Verdict::Failed(text.to_owned())),
        (Kind::Get, Reply::Bulk) => Ok(Verdict::Hit),
        (Kind::Get, Reply::Null) => Ok(Verdict::Miss),
        // A write may be `SET`, `SET NX` or `INCR`.
        (Kind::Set, Reply::Simple | Reply::Null | Reply::Integer(_))
        | (Kind::Del, Reply::Integer(_)) => Ok(Verdict::Done),
        // A reply of another kind belongs to another request: nothing after it can be trusted.
        _ => Err(Malformed),
    }
}

/// A write with a `WAIT` behind it has two replies; the verdict comes with the second.
fn judge_waited(
    reply: Reply<'_>,
    replicas: i64,
    write_reply: &mut Option<Option<Vec<u8>>>,
    kind: Kind,
) -> Result<Option<Verdict>, Malformed> {
    let Some(write_error) = write_reply.take() else {
        *write_reply = Some(match judge(kind, reply)? {
            Verdict::Failed(text) => Some(text),
            Verdict::Hit | Verdict::Miss | Verdict::Done => None,
        });
        return Ok(None);
    };
    match (write_error, reply) {
        (Some(text), _) => Ok(Some(Verdict::Failed(text))),
        (None, Reply::Error(text)) => Ok(Some(Verdict::Failed(text.to_owned()))),
        (None, Reply::Integer(reached)) if reached >= replicas => Ok(Some(Verdict::Done)),
        (None, Reply::Integer(reached)) => {
            let text = format!("WAIT reached {reached} of {replicas} replicas in 1 s");
            Ok(Some(Verdict::Failed(text.into_bytes())))
        }
        _ => Err(Malformed),
    }
}

/// The replies of one read, counted.
struct Count<'a> {
    now: Instant,
    sending: &'a Sending<'a>,
    tally: MutexGuard<'a, Tally>,
    /// Successes that have the same latency.
    succeeded: [(Kind, u64); 3],
}

impl Count<'_> {
    fn add(&mut self, place: usize, kind: Kind, verdict: &Verdict) {
        if let Verdict::Failed(_) = verdict {
            self.sending.recorder.failed.fetch_add(1, Ordering::Relaxed);
        }
        if !self.sending.counts {
            return;
        }
        match verdict {
            Verdict::Hit => self.tally.hits += 1,
            Verdict::Miss => self.tally.misses += 1,
            Verdict::Done => {}
            Verdict::Failed(text) => {
                let latency = self.latency(place);
                return self.tally.failed(Some(text), latency);
            }
        }
        match self.sending.since {
            Since::Sent(_) => {
                for (each, count) in &mut self.succeeded {
                    *count += u64::from(*each == kind);
                }
            }
            Since::Due { .. } => {
                let latency = self.latency(place);
                self.tally.succeeded(kind, 1, latency);
            }
        }
    }

    fn finish(mut self, answered: usize) {
        let answered = answered as u64;
        self.sending
            .recorder
            .ended
            .fetch_add(answered, Ordering::Relaxed);
        if !self.sending.counts || answered == 0 {
            return;
        }
        self.tally.last_reply = self.tally.last_reply.max(Some(self.now));
        for (kind, count) in self.succeeded {
            if count > 0 {
                let latency = self.latency(0);
                self.tally.succeeded(kind, count, latency);
            }
        }
    }

    fn latency(&self, place: usize) -> std::time::Duration {
        self.now
            .saturating_duration_since(self.sending.since.of(place))
    }
}
