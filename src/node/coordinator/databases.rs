//! What concerns all keys of a database: to empty it, and to count them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_bytes::Bytes as ByteSlice;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::retries::Retries;
use super::{Coordinator, Inner, RequestError};
use crate::model::{Database, NodeTag, PartitionId, Version};
use crate::net::{CallError, Lane, Operations, ReplySink, Response};
use crate::protocol::QuorumNotMet;
use crate::ring::View;
use crate::wire::{Answer, FrameError, FrameReader, Operation, to_wire};

/// The last counts of databases: who asks again at once is told the same.
#[derive(Debug, Default)]
pub(super) struct Counted(Mutex<BTreeMap<Database, (Instant, u64)>>);

impl Coordinator {
    /// Empties databases of all that was written before now. Every node that can be reached is told;
    /// a majority of the homes of each partition has to hear it.
    pub async fn flush(&self, databases: &[Database]) -> Result<(), RequestError> {
        let inner = &self.0;
        if let Some(ahead_ms) = inner.replica.refused_ahead_ms() {
            return Err(RequestError::ClockRefused(ahead_ms));
        }
        let view = self.view();
        let wall = inner.env.clock.wall();
        let up_to = Version {
            hlc: inner.clock.tick(wall),
            node: inner.replica.writer(inner.writer),
        };
        let mut operations = Operations::new(inner.clock.read(wall));
        for database in databases {
            let number = u8::try_from(database.number()).unwrap_or(0);
            operations.push(&Operation::Flush(number, to_wire(up_to)));
            // This node's clock is its own.
            let _is_news = inner.replica.flush(*database, up_to, wall);
        }
        inner.forget_counts();
        let mut heard = vec![inner.self_tag];
        let mut told = inner.ask_all(&view, &operations, |response| {
            let answers = (0..response.count).map(|_| response.answers.read());
            let answers: Result<Vec<Answer<'_>>, FrameError> = answers.collect();
            let is_done = |answer: &Answer<'_>| matches!(answer, Answer::Flushed);
            Ok(answers?.iter().all(is_done))
        });
        let deadline = inner.env.clock.monotonic() + inner.config.timeout;
        while let Ok(Some((node, is_done))) = timeout_at(deadline, told.recv()).await {
            if is_done {
                heard.push(node);
            }
        }
        let need = |homes: usize| homes / 2 + 1;
        let partitions = view.params().partitions.all();
        let lacking = partitions.map(|partition| {
            let homes = view.homes(partition);
            let got = homes.iter().filter(|home| heard.contains(home)).count();
            (need(homes.len()), got)
        });
        let lacking = lacking.into_iter().find(|(need, got)| got < need);
        match lacking {
            None => Ok(()),
            Some((need, got)) => Err(RequestError::Write(QuorumNotMet {
                need: u8::try_from(need).unwrap_or(u8::MAX),
                got: u8::try_from(got).unwrap_or(u8::MAX),
                refusal: None,
            })),
        }
    }

    /// Gives a message to the other members that can be reached. How many of their clients have it.
    pub async fn publish(&self, channel: &Bytes, message: &Bytes) -> u64 {
        let inner = &self.0;
        let mut operations = Operations::new(inner.clock.read(inner.env.clock.wall()));
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
            match self.count_now(database, now).await {
                // Homes are about to be connected to, it may be.
                Err(_) if retries.wait().await => {}
                counted => return counted,
            }
        }
    }

    async fn count_now(&self, database: Database, now: Instant) -> Result<u64, RequestError> {
        let inner = &self.0;
        let view = self.view();
        let wall = inner.env.clock.wall();
        let mut operations = Operations::new(inner.clock.read(wall));
        operations.push(&Operation::Count(
            u8::try_from(database.number()).unwrap_or(0),
        ));
        let mut told = inner.ask_all(&view, &operations, |response| {
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
        let own = inner.replica.count_live(database, wall).await.into_iter();
        let own = own.filter(|(partition, _)| inner.replica.is_sure(*partition));
        let mut of_nodes = BTreeMap::from([(inner.self_tag, own.collect::<BTreeMap<_, _>>())]);
        let deadline = now + inner.config.timeout;
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
        inner.note_count(database, all);
        Ok(all)
    }
}

impl Inner {
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
const COUNTED_FOR: Duration = Duration::from_secs(1);
