//! What concerns all keys of a database: to empty it, and to count them.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_bytes::Bytes as ByteSlice;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::retries::Retries;
use super::{Coordinator, Inner, RequestError};
use crate::model::{Database, DatabaseSet, HlcTime, Millis, NodeTag, PartitionId, Version};
use crate::net::{CallError, Lane, Operations, ReplySink, Response};
use crate::node::holds::HOLD;
use crate::protocol::QuorumNotMet;
use crate::ring::View;
use crate::wire::{Answer, FrameError, FrameReader, HoldWords, Operation, Refusal, to_wire};

/// The last counts of databases: who asks again at once is told the same.
#[derive(Debug, Default)]
pub(super) struct Counted(Mutex<BTreeMap<Database, (Instant, u64)>>);

impl Coordinator {
    /// Empties databases of all that was acknowledged before now, whichever clock has stamped it.
    ///
    /// Two rounds, for each of which a majority of the homes of each partition has to answer. In the
    /// first one the homes tell what their clocks have passed, and promise no ballots until the second
    /// one; the flush is stamped past all of that. So it passes what was acknowledged, and whatever
    /// an update under way may still make of that: its ballot was promised by one of these homes before.
    pub async fn flush(&self, databases: &[Database]) -> Result<(), RequestError> {
        let inner = &self.0;
        if let Some(ahead_ms) = inner.replica.refused_ahead_ms() {
            return Err(RequestError::ClockRefused(ahead_ms));
        }
        let databases: DatabaseSet = databases.iter().copied().collect();
        inner.forget_counts();
        if self.local().is_some() {
            let stamp = || inner.stamp(inner.env.clock.wall());
            inner.replica.flush_alone(databases, stamp);
            return Ok(());
        }
        let deadline = inner.env.clock.monotonic() + inner.config.timeout;
        loop {
            let begun = inner.env.clock.monotonic();
            let flushed = inner.flush_once(databases, deadline).await;
            inner.forget_counts();
            // Held for too short a time: some home was slow.
            let is_worth_it = inner.env.clock.monotonic() + (HOLD / 2) < deadline;
            match flushed {
                Ok(()) => return Ok(()),
                Err(NotFlushed { is_late: true, .. }) if is_worth_it => {
                    sleep_until(begun + PAUSE).await;
                }
                Err(NotFlushed { why, .. }) => return Err(RequestError::Write(why)),
            }
        }
    }

    /// Gives a message to the other members that can be reached. How many of their clients have it.
    pub async fn publish(&self, channel: &Bytes, message: &Bytes) -> u64 {
        let inner = &self.0;
        let mut operations = Operations::new(inner.replica.frame_context(inner.env.clock.wall()));
        operations.push(&Operation::Publish(
            ByteSlice::new(channel),
            ByteSlice::new(message),
        ));
        let mut told = inner.ask_all(&self.view(), &operations, |response| {
            match response.answers.read()? {
                Answer::Heard(clients) => Ok(u64::from(clients)),
                _ => Ok(0),
            }
        });
        let deadline = inner.env.clock.monotonic() + inner.config.timeout;
        let mut heard = 0;
        while let Ok(Some((_, clients))) = timeout_at(deadline, told.recv()).await {
            heard += clients;
        }
        heard
    }

    /// How many live values a database has in the whole ring, each counted once. What was counted in
    /// the last second is not counted again.
    pub async fn count(&self, database: Database) -> Result<u64, RequestError> {
        let inner = &self.0;
        let mut retries = Retries::new(inner);
        loop {
            let now = inner.env.clock.monotonic();
            if let Some(count) = inner.counted(database, now) {
                return Ok(count);
            }
            match self.count_now(database).await {
                // Homes are about to be connected to, it may be.
                Err(_) if retries.wait().await => {}
                counted => return counted,
            }
        }
    }

    async fn count_now(&self, database: Database) -> Result<u64, RequestError> {
        let inner = &self.0;
        let mut known = inner.replica.encoded_flushes();
        let mut all = inner.count_all(database).await?;
        // What a node has counted that did not know of a flush does not count; it does now.
        for _ in 0..RECOUNTS_MAX {
            let before = std::mem::replace(&mut known, inner.replica.encoded_flushes());
            if before == known {
                break;
            }
            all = inner.count_all(database).await?;
        }
        inner.note_count(database, all);
        Ok(all)
    }
}

impl Inner {
    /// One attempt to flush: see [`Coordinator::flush`].
    async fn flush_once(
        &self,
        databases: DatabaseSet,
        deadline: Instant,
    ) -> Result<(), NotFlushed> {
        let clock = &self.env.clock;
        let view = Arc::clone(&self.view.borrow());
        let sequence = self.flushes_begun.fetch_add(1, Ordering::Relaxed);
        let number: HoldWords = (self.writer.0, sequence);
        let moment = || (clock.wall(), clock.monotonic());
        let mut operations = Operations::new(self.replica.frame_context(clock.wall()));
        operations.push(&Operation::Hold(databases.bits(), number));
        let mut held = Vec::new();
        if let Ok(newest) = self.replica.hold(databases, number, moment()) {
            self.pass(newest, self.self_tag, &mut held);
        }
        let mut told = self.ask_all(&view, &operations, |response| {
            Ok(match response.answers.read()? {
                Answer::Held(newest) => Some(newest),
                _ => None,
            })
        });
        let round_end = (clock.monotonic() + HOLD).min(deadline);
        let mut lacking = self.lacking(&view, &held);
        while lacking.is_some()
            && let Ok(Some((node, newest))) = timeout_at(round_end, told.recv()).await
        {
            if let Some(newest) = newest {
                self.pass(newest, node, &mut held);
                lacking = self.lacking(&view, &held);
            }
        }
        if let Some(lacking) = lacking {
            let is_late = round_end < deadline && !told.is_closed();
            self.release(&view, number, moment());
            return Err(NotFlushed::new(lacking, is_late));
        }
        let up_to = self.stamp(clock.wall());
        if !self.replica.may_keep(up_to, clock.monotonic()) {
            // Nobody else would take it, and here it would hide what is acknowledged.
            self.release(&view, number, moment());
            return Err(NotFlushed::refused(Refusal::ClockDrift));
        }
        self.flush_up_to(&view, (databases, up_to, number), &held, deadline)
            .await
    }

    /// Empties databases that are held for it by these nodes.
    async fn flush_up_to(
        &self,
        view: &View,
        (databases, up_to, number): (DatabaseSet, Version, HoldWords),
        held: &[NodeTag],
        deadline: Instant,
    ) -> Result<(), NotFlushed> {
        let clock = &self.env.clock;
        let moment = || (clock.wall(), clock.monotonic());
        let mut operations = Operations::new(self.replica.frame_context(clock.wall()));
        operations.push(&Operation::Flush(databases.bits(), to_wire(up_to), number));
        let mut flushed = Vec::new();
        let own = self.replica.flush_held(databases, up_to, number, moment());
        if own.is_ok() {
            flushed.push(self.self_tag);
        }
        let mut told = self.ask_all(view, &operations, |response| {
            Ok(matches!(response.answers.read()?, Answer::Flushed))
        });
        let mut lacking = self.lacking(view, &flushed);
        let mut round_end = deadline;
        while let Ok(Some((node, is_done))) = timeout_at(round_end, told.recv()).await {
            // Only one of which it is known what its clock had passed.
            if is_done && held.contains(&node) {
                flushed.push(node);
            }
            let was_lacking = lacking.is_some();
            lacking = self.lacking(view, &flushed);
            if was_lacking && lacking.is_none() {
                // The others learn of it too, at once if they can: reads at level `one` ask nobody else.
                round_end = (clock.monotonic() + STRAGGLERS).min(deadline);
            }
        }
        lacking.map_or(Ok(()), |lacking| Err(NotFlushed::new(lacking, true)))
    }

    /// Lets updates go on: the flush of this number does not come.
    fn release(&self, view: &View, number: HoldWords, (wall, now): (Millis, Instant)) {
        let none = DatabaseSet::default();
        let mut operations = Operations::new(self.replica.frame_context(wall));
        let nothing = to_wire(Version::default());
        operations.push(&Operation::Flush(none.bits(), nothing, number));
        let moment = (wall, now);
        let _late = self
            .replica
            .flush_held(none, Version::default(), number, moment);
        // Where it does not arrive the time is over soon.
        drop(self.ask_all(view, &operations, |response| {
            response.answers.read::<Answer<'_>>().map(|_| ())
        }));
    }

    /// Notes that a node holds databases for a flush, if its clock is sane: the flush is stamped past it.
    fn pass(&self, newest: HlcTime, node: NodeTag, held: &mut Vec<NodeTag>) {
        if self.clock.observe(newest, self.env.clock.wall()).is_ok() {
            held.push(node);
        }
    }

    /// Of how many homes of some partition more answers are needed than there are, and how many there
    /// are: a majority, and so many that every read meets one.
    fn lacking(&self, view: &View, nodes: &[NodeTag]) -> Option<(usize, usize)> {
        let r = usize::from(self.config.quorum.r());
        let need = |homes: usize| (homes / 2 + 1).max((homes + 1).saturating_sub(r));
        let partitions = view.params().partitions.all();
        let mut counts = partitions.map(|partition| {
            let homes = view.homes(partition);
            let got = homes.iter().filter(|home| nodes.contains(home)).count();
            (need(homes.len()), got)
        });
        counts.find(|(need, got)| got < need)
    }

    fn stamp(&self, wall: Millis) -> Version {
        Version {
            hlc: self.clock.tick(wall),
            node: self.replica.writer(self.writer),
        }
    }

    /// Counts the live values of a database in the whole ring, each once.
    async fn count_all(&self, database: Database) -> Result<u64, RequestError> {
        let view = Arc::clone(&self.view.borrow());
        let wall = self.env.clock.wall();
        let mut operations = Operations::new(self.replica.frame_context(wall));
        operations.push(&Operation::Count(
            u8::try_from(database.number()).unwrap_or(0),
        ));
        let mut told = self.ask_all(&view, &operations, |response| {
            let Answer::Counts(counts) = response.answers.read()? else {
                return Ok(None);
            };
            let mut reader = FrameReader::new(counts);
            let mut of: BTreeMap<PartitionId, u32> = BTreeMap::new();
            // To the end of what was told.
            while let Ok((partition, count)) = reader.read() {
                of.insert(partition, count);
            }
            Ok(Some(of))
        });
        let own = self.replica.count_live(database, wall).await.into_iter();
        let own = own.filter(|(partition, _)| self.replica.is_sure(*partition));
        let mut of_nodes = BTreeMap::from([(self.self_tag, own.collect::<BTreeMap<_, _>>())]);
        let deadline = self.env.clock.monotonic() + self.config.timeout;
        while let Ok(Some((node, counts))) = timeout_at(deadline, told.recv()).await {
            of_nodes.extend(counts.map(|counts| (node, counts)));
        }
        let mut all = 0;
        for partition in view.params().partitions.all() {
            let of_home = |home: &NodeTag| of_nodes.get(home)?.get(&partition).copied();
            let count = view.homes(partition).iter().find_map(of_home);
            all += u64::from(count.ok_or(RequestError::Read(QuorumNotMet {
                need: 1,
                got: 0,
                refusal: None,
            }))?);
        }
        Ok(all)
    }

    /// Asks every other member that can be reached; what they answer, until all have or the deadline.
    pub(super) fn ask_all<T: Send + 'static>(
        &self,
        view: &View,
        operations: &Operations,
        read: impl Fn(&mut Response<'_>) -> Result<T, FrameError> + Send + Sync + 'static,
    ) -> mpsc::Receiver<(NodeTag, T)> {
        let (tell, told) = mpsc::channel(view.members().len().max(1));
        let read: Arc<Read<T>> = Arc::new(read);
        let deadline = self.env.clock.monotonic() + self.config.timeout;
        for member in view.members() {
            if member.tag == self.self_tag || !member.reachable {
                continue;
            }
            let sink = Box::new(Sink {
                node: member.tag,
                read: Arc::clone(&read),
                tell: tell.clone(),
            });
            // One that cannot be asked is one less.
            let _queued =
                self.transport
                    .call(member.tag, Lane::Foreground, operations, deadline, sink);
        }
        told
    }

    fn counted(&self, database: Database, now: Instant) -> Option<u64> {
        let counted = self
            .counted
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (at, count) = counted.get(&database)?;
        (now < *at + COUNTED_FOR).then_some(*count)
    }

    fn note_count(&self, database: Database, count: u64) {
        let now = self.env.clock.monotonic();
        let mut counted = self
            .counted
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if count >= LARGE {
            counted.insert(database, (now, count));
        }
    }

    fn forget_counts(&self) {
        let mut counted = self
            .counted
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        counted.clear();
    }
}

/// Why databases are not known to be flushed.
struct NotFlushed {
    why: QuorumNotMet,
    /// Some home was slow: another attempt may do.
    is_late: bool,
}

impl NotFlushed {
    fn new((need, got): (usize, usize), is_late: bool) -> Self {
        let why = QuorumNotMet {
            need: u8::try_from(need).unwrap_or(u8::MAX),
            got: u8::try_from(got).unwrap_or(u8::MAX),
            refusal: None,
        };
        Self { why, is_late }
    }

    fn refused(refusal: Refusal) -> Self {
        let why = QuorumNotMet {
            need: 1,
            got: 0,
            refusal: Some(refusal),
        };
        let is_late = false;
        Self { why, is_late }
    }
}

type Read<T> = dyn Fn(&mut Response<'_>) -> Result<T, FrameError> + Send + Sync;

struct Sink<T> {
    node: NodeTag,
    read: Arc<Read<T>>,
    tell: mpsc::Sender<(NodeTag, T)>,
}

impl<T: Send> ReplySink for Sink<T> {
    fn on_reply(self: Box<Self>, reply: Result<Response<'_>, CallError>) -> Result<(), FrameError> {
        if let Ok(mut response) = reply {
            let told = (self.read)(&mut response)?;
            // Whoever asked may have enough already.
            let _gone = self.tell.try_send((self.node, told));
        }
        Ok(())
    }
}

/// Where counting takes no time it is done anew each time.
const LARGE: u64 = 100_000;
/// A flush is learnt of while it is counted: seldom once, hardly ever twice.
const RECOUNTS_MAX: usize = 2;
/// Between attempts to flush.
const PAUSE: Duration = Duration::from_millis(50);
/// What a node that is slow may delay a flush that is acknowledged by the others.
const STRAGGLERS: Duration = Duration::from_millis(100);
const COUNTED_FOR: Duration = Duration::from_secs(1);
