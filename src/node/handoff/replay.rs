//! Gives hints back to their homes.
//!
//! A home that can be reached gets its hints oldest first, a batch at a time, and a hint is removed
//! once the home has acknowledged it. A home takes them as any write: what it holds that is newer
//! stays. The pause after a batch is what the limit in bytes a second asks for, or six times the
//! time that the batch took, whichever is longer: a home that is slow to answer is busy with its clients.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_bytes::Bytes as ByteSlice;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info};

use super::super::flush_exchange::FlushExchange;
use super::Handoff;
use crate::env::Env;
use crate::model::{KeyHasher, NodeTag, RecordRef, Stamp};
use crate::net::{CallError, Lane, Operations, ReplySink, Response, Transport};
use crate::protocol::Missed;
use crate::ring::{MemberState, View};
use crate::wire::{Answer, FrameError, Operation, Refusal};

/// What the task of one node needs.
#[derive(Debug, Clone)]
pub struct Replay {
    /// This node.
    pub self_tag: NodeTag,
    /// Time and chance.
    pub env: Env,
    /// The ring, as it changes.
    pub view: watch::Receiver<Arc<View>>,
    /// The hints.
    pub handoff: Arc<Handoff>,
    /// The cluster's hash.
    pub hasher: KeyHasher,
    /// Calls to peers.
    pub transport: Arc<dyn Transport>,
}

/// How the replay to one home goes.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// A task is at it.
    is_running: bool,
    /// Since it last began to give hints back: how many hints and bytes, and how long it took.
    pub(super) replayed: u64,
    bytes: u64,
    since: Option<Instant>,
    lasted: Duration,
    pub(super) last_error: Option<String>,
    /// Attempts that failed in a row.
    failures: u32,
    /// Not before this.
    next: Option<Instant>,
    /// Since when the home is no member of the ring.
    absent: Option<Instant>,
}

impl Progress {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rough figure for people"
    )]
    pub(super) fn bytes_per_s(&self) -> u64 {
        if !self.is_running || self.lasted.is_zero() {
            return 0;
        }
        (self.bytes as f64 / self.lasted.as_secs_f64()) as u64
    }
}

impl Handoff {
    /// Tries to give hints back to a home now, whatever was tried before. Whether there are any.
    pub fn replay_now(&self, home: NodeTag) -> bool {
        let has_hints = self.summaries().contains_key(&home);
        if has_hints {
            let mut progress = self.progress();
            let progress = progress.entry(home).or_default();
            (progress.next, progress.failures) = (None, 0);
            self.wake.notify_one();
        }
        has_hints
    }
}

impl Replay {
    /// Gives hints back, for as long as the environment's tasks run.
    pub async fn run(mut self) {
        let replica = &self.handoff.replica;
        self.transport = FlushExchange::over(self.transport, replica, &self.env.clock);
        let mut expire_at = self.env.clock.monotonic();
        let mut generation = 0;
        loop {
            let now = self.env.clock.monotonic();
            if now >= expire_at {
                let wall = self.env.clock.wall();
                self.handoff.expire(self.handoff.replica.now(wall).millis());
                expire_at = now + EXPIRE_INTERVAL;
            }
            let health = self.handoff.journal.health();
            if health.generation != generation {
                generation = health.generation;
                self.handoff.rewrite();
            }
            let view = Arc::clone(&self.view.borrow());
            for home in self.due(&view, now) {
                let this = self.clone();
                self.env.tasks.spawn(async move { this.replay(home).await });
            }
            if self.handoff.count() == 0 {
                drop(timeout(EXPIRE_INTERVAL, self.handoff.wake.notified()).await);
            } else {
                // Members and the time of the next attempt change; a look costs little.
                sleep(LOOK_INTERVAL).await;
            }
        }
    }

    /// The homes to begin with now; they count as begun.
    fn due(&self, view: &View, now: Instant) -> Vec<NodeTag> {
        let homes: BTreeSet<NodeTag> = self.handoff.summaries().into_keys().collect();
        let mut due = Vec::new();
        let mut progress = self.handoff.progress();
        progress.retain(|home, progress| progress.is_running || homes.contains(home));
        for home in homes {
            let progress = progress.entry(home).or_default();
            let member = view.member(home);
            let is_gone = member.is_none_or(|member| member.state == MemberState::Left);
            if !is_gone {
                progress.absent = None;
            }
            let is_due = progress.next.is_none_or(|next| next <= now) && !progress.is_running;
            if !is_due {
                continue;
            }
            if is_gone {
                // A node that starts learns of the others one by one.
                let absent = *progress.absent.get_or_insert(now);
                if now >= absent + ABSENT_MIN {
                    progress.is_running = true;
                    due.push(home);
                }
            } else if member.is_some_and(|member| member.reachable) {
                progress.is_running = true;
                (progress.replayed, progress.bytes) = (0, 0);
                (progress.since, progress.lasted) = (Some(now), Duration::ZERO);
                due.push(home);
            }
        }
        due
    }

    /// Gives hints back to one home until there are none or it fails.
    async fn replay(&self, home: NodeTag) {
        let pace = &self.handoff.pace;
        let is_gone = |view: &View| {
            let member = view.member(home);
            member.is_none_or(|member| member.state == MemberState::Left)
        };
        let result = loop {
            if is_gone(&self.view.borrow()) {
                self.readdress(home);
                break Ok(());
            }
            let hints = self.handoff.queues().oldest(home, BATCH_BYTES);
            if hints.is_empty() {
                break Ok(());
            }
            let begun = self.env.clock.monotonic();
            let result = self.give_back(home, &hints).await;
            let now = self.env.clock.monotonic();
            let took = now.saturating_duration_since(begun);
            match result {
                Ok((count, bytes)) => {
                    self.note(home, count, bytes, now);
                    let pause = pace.take(bytes, begun).max(now + took * PAUSE_FACTOR);
                    sleep_until(pause).await;
                }
                Err(why) => break Err(why),
            }
        };
        let mut all = self.handoff.progress();
        let progress = all.entry(home).or_default();
        progress.is_running = false;
        match result {
            Ok(()) => {
                (progress.failures, progress.last_error) = (0, None);
                info!(home = %self.name(home), hints = progress.replayed, "gave all hints back");
            }
            Err(why) => {
                let pause = backoff(progress.failures, self.env.rng.fraction());
                debug!(home = %self.name(home), why, ?pause, "cannot give hints back");
                progress.failures += 1;
                progress.last_error = Some(why);
                progress.next = Some(self.env.clock.monotonic() + pause);
            }
        }
    }

    /// Gives one batch back; how many hints and bytes the home acknowledged.
    async fn give_back(
        &self,
        home: NodeTag,
        hints: &[(bytes::Bytes, Missed)],
    ) -> Result<(u64, u64), String> {
        let wall = self.env.clock.wall();
        let now = self.handoff.replica.now(wall);
        let is_over = |(_, missed): &&(bytes::Bytes, Missed)| missed.is_over(now.millis());
        let (over, hints): (Vec<_>, Vec<_>) = hints.iter().partition(is_over);
        let gone: Vec<_> = over.iter().map(|hint| key_and_stamp(hint)).collect();
        self.handoff.remove(home, &gone);
        self.handoff
            .stats
            .expired
            .fetch_add(over.len() as u64, Ordering::Relaxed);
        if hints.is_empty() {
            return Ok((0, 0));
        }
        let mut operations = Operations::new(self.handoff.replica.frame_context(wall));
        let mut counts = Vec::with_capacity(hints.len());
        for (key, missed) in &hints {
            let key = ByteSlice::new(key);
            let before = operations.count();
            // In this order: see `Missed::ExpiryThenWrite`.
            if let Some(missed) = missed.expiry() {
                operations.push(&Operation::Expire(key, missed.expiry.into()));
            }
            if let Some(record) = missed.write() {
                operations.push(&Operation::Write(key, RecordRef::from(record).into()));
            }
            counts.push(operations.count() - before);
        }
        let bytes = operations.bytes() as u64;
        let (tell, told) = oneshot::channel();
        let deadline = self.env.clock.monotonic() + CALL_MAX;
        let sink = Box::new(AcksSink {
            tell,
            operations: counts,
        });
        self.transport
            .call(home, Lane::Bulk, &operations, deadline, sink)
            .map_err(|error| error.to_string())?;
        let acks = match told.await {
            Ok(Ok(acks)) => acks,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("the answer was malformed".to_owned()),
        };
        self.settle(home, &hints, &acks, bytes)
    }

    /// Removes what was acknowledged, and what will never be.
    fn settle(
        &self,
        home: NodeTag,
        hints: &[&(bytes::Bytes, Missed)],
        acks: &[Ack],
        bytes: u64,
    ) -> Result<(u64, u64), String> {
        let with = |wanted: Ack| -> Vec<(&[u8], Stamp)> {
            let pairs = hints.iter().zip(acks);
            let answered = pairs.filter(|(_, ack)| **ack == wanted);
            answered.map(|(hint, _)| key_and_stamp(hint)).collect()
        };
        let (taken, never) = (with(Ack::Taken), with(Ack::Never));
        let (taken_count, never_count) = (taken.len() as u64, never.len() as u64);
        self.handoff.remove(home, &taken);
        self.handoff.remove(home, &never);
        let stats = &self.handoff.stats;
        stats.replayed.fetch_add(taken_count, Ordering::Relaxed);
        stats.dropped.fetch_add(never_count, Ordering::Relaxed);
        let later = with(Ack::Later);
        if !later.is_empty() {
            let mut queues = self.handoff.queues();
            for (key, _) in later {
                queues.postpone(home, key);
            }
            if taken_count + never_count == 0 {
                return Err("the home refuses what it is given (its clock is behind)".to_owned());
            }
        }
        stats.replayed_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok((taken_count, bytes))
    }

    /// Hands the hints of a node that is no longer in the ring to those who are homes now.
    fn readdress(&self, gone: NodeTag) {
        let view = Arc::clone(&self.view.borrow());
        let hints = self.handoff.queues().oldest(gone, u64::MAX);
        let wall = self.env.clock.wall();
        let mut moved = Vec::new();
        for (key, missed) in &hints {
            let hash = self.hasher.hash(key);
            let partition = view.params().partitions.of(hash);
            for &home in view.homes(partition) {
                if home == self.self_tag {
                    let key = crate::model::HashedKey {
                        bytes: key,
                        hash,
                        partition,
                    };
                    let replica = &self.handoff.replica;
                    let expiry = missed.expiry();
                    let changed = expiry
                        .map(|missed| replica.change_expiry(key, missed.expiry, wall).map(|_| ()));
                    let write = missed.write();
                    let written =
                        write.map(|record| replica.write(key, record.into(), wall).map(|_| ()));
                    for refusal in changed.into_iter().chain(written).filter_map(Result::err) {
                        debug!(%refusal, "left a removed node's hint out");
                    }
                } else {
                    moved.push((home, key, missed));
                }
            }
        }
        self.handoff.readdress(gone, &moved);
        info!(
            hints = hints.len(),
            gone = format_args!("{:016x}", gone.0),
            "gave a removed node's hints to the homes of now"
        );
    }

    fn note(&self, home: NodeTag, count: u64, bytes: u64, now: Instant) {
        let mut all = self.handoff.progress();
        let progress = all.entry(home).or_default();
        progress.replayed += count;
        progress.bytes += bytes;
        (progress.failures, progress.last_error) = (0, None);
        progress.lasted = progress
            .since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
    }

    fn name(&self, home: NodeTag) -> String {
        let view = self.view.borrow();
        let member = view.member(home);
        member.map_or_else(
            || format!("{:016x}", home.0),
            |member| member.id.to_string(),
        )
    }
}

fn key_and_stamp((key, missed): &(bytes::Bytes, Missed)) -> (&[u8], Stamp) {
    (key, missed.stamp())
}

/// Doubles from a tenth of a second to ten seconds, less up to half by chance.
fn backoff(failures: u32, fraction: f64) -> Duration {
    let pause = PAUSE_MIN * 2_u32.saturating_pow(failures.min(10));
    pause.min(PAUSE_MAX).mul_f64(1.0 - fraction / 2.0)
}

/// What a home says to one hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ack {
    /// It holds that, or something newer.
    Taken,
    /// It never will.
    Never,
    /// Not now.
    Later,
}

struct AcksSink {
    tell: oneshot::Sender<Result<Vec<Ack>, CallError>>,
    /// How many operations each hint took.
    operations: Vec<u32>,
}

impl ReplySink for AcksSink {
    fn on_reply(self: Box<Self>, reply: Result<Response<'_>, CallError>) -> Result<(), FrameError> {
        let acks = match reply {
            Ok(mut response) => Ok(read_acks(&mut response, &self.operations)?),
            Err(error) => Err(error),
        };
        // Nobody waits any more: the node is stopping.
        drop(self.tell.send(acks));
        Ok(())
    }
}

fn read_acks(response: &mut Response<'_>, operations: &[u32]) -> Result<Vec<Ack>, FrameError> {
    let mut acks = Vec::with_capacity(operations.len());
    for &count in operations {
        // A hint of two operations is done with when both are.
        let mut ack = Ack::Taken;
        for _ in 0..count {
            ack = ack.max(match response.answers.read()? {
                Answer::Applied(_) | Answer::Superseded(_) => Ack::Taken,
                Answer::Expiry(..) | Answer::ExpirySuperseded(_) => Ack::Taken,
                Answer::Refused(Refusal::TooBig) => Ack::Never,
                _ => Ack::Later,
            });
        }
        acks.push(ack);
    }
    Ok(acks)
}

/// About a millisecond of work for the home.
const BATCH_BYTES: u64 = 16 * 1024;
const CALL_MAX: Duration = Duration::from_secs(5);
/// Measured with 206,000 hints and all cores busy: at 3 the p99 of requests was 1.3 to 1.5 times what
/// it is without a replay, at 6 it is 1.0 times that.
const PAUSE_FACTOR: u32 = 6;
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const EXPIRE_INTERVAL: Duration = Duration::from_secs(10);
const ABSENT_MIN: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);
