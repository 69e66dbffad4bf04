//! All keys of the ring, a page at a time.
//!
//! Keys come in the order of their hashes, so that a cursor is a hash: it means the same on every
//! node, whoever joins, leaves or dies between two pages. A key that is there from the first page
//! to the last is shown; one that comes or goes meanwhile may be.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde_bytes::Bytes as ByteSlice;
use tokio::sync::mpsc;
use tokio::time::timeout_at;

use super::{Coordinator, Inner, RequestError};
use crate::model::{NodeTag, PartitionId, Summary};
use crate::net::{CallError, Lane, Operations, ReplySink, Response};
use crate::protocol::QuorumNotMet;
use crate::ring::View;
use crate::wire::{Answer, FrameError, FrameReader, Operation};

/// Keys, and where to go on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyPage {
    /// Live keys.
    pub keys: Vec<Bytes>,
    /// The cursor of the next page; 0: this was the last one.
    pub next: u64,
}

/// What one home has told of some partitions, in their order.
struct Told {
    home: NodeTag,
    is_sure: bool,
    pages: Vec<HomePage>,
}

/// What one home holds of a partition.
#[derive(Debug, Default)]
struct HomePage {
    entries: Vec<(Bytes, Summary)>,
    /// After which hash it goes on.
    next: Option<u64>,
}

impl Coordinator {
    /// The keys from a cursor on, at least `count` of them unless these are all; 0 is the
    /// beginning. Of every partition r homes are asked, and what the newest of them says counts.
    ///
    /// # Errors
    /// With a partition that has fewer homes to ask.
    pub async fn keys(&self, cursor: u64, count: usize) -> Result<KeyPage, RequestError> {
        let inner = &self.0;
        let view = Arc::clone(&inner.view.borrow());
        let mut page = KeyPage {
            keys: Vec::new(),
            next: cursor,
        };
        let mut width = WIDTH_MIN;
        let limit = count.clamp(LIMIT_MIN, LIMIT_MAX);
        loop {
            let partitions = from(&view, page.next, width);
            page.next = inner
                .take_keys(&view, &partitions, limit, &mut page)
                .await?;
            if page.next == 0 || page.keys.len() >= count {
                return Ok(page);
            }
            // Hardly anything is held: more at once.
            width = (width * 4).min(WIDTH_MAX);
        }
    }
}

/// So many partitions, from that of a hash on.
fn from(view: &View, hash: u64, width: usize) -> Vec<PartitionId> {
    let partitions = view.params().partitions;
    let first = partitions.of(hash);
    let wanted = partitions.all().skip(usize::from(first.0)).take(width);
    wanted.collect()
}

impl Inner {
    /// Adds the live keys of some partitions to a page, from its cursor on; where to go on.
    async fn take_keys(
        &self,
        view: &View,
        partitions: &[PartitionId],
        limit: usize,
        page: &mut KeyPage,
    ) -> Result<u64, RequestError> {
        let cursor = page.next;
        let told = self.ask_keys(view, partitions, cursor, limit).await?;
        let count = view.params().partitions.count();
        for (place, &partition) in partitions.iter().enumerate() {
            let of_homes: Vec<&HomePage> = told
                .iter()
                .filter_map(|told| told.get(&partition))
                .collect();
            // As far as all of them have come.
            let until = of_homes.iter().filter_map(|home| home.next).min();
            let mut newest: BTreeMap<(u64, &Bytes), Summary> = BTreeMap::new();
            for (key, held) in of_homes.iter().flat_map(|home| &home.entries) {
                let hash = self.hasher.hash(key);
                if until.is_some_and(|until| hash > until) {
                    continue;
                }
                let known = newest.entry((hash, key)).or_insert(*held);
                if known.stamp < held.stamp {
                    *known = *held;
                }
            }
            let now = self.replica.now(self.env.clock.wall()).millis();
            let live = newest.into_iter().filter(|(_, held)| held.is_live(now));
            page.keys.extend(live.map(|((_, key), _)| key.clone()));
            if let Some(until) = until {
                return Ok(until.saturating_add(1));
            }
            let is_last = u32::from(partition.0) + 1 == count;
            if is_last {
                return Ok(0);
            }
            if place + 1 == partitions.len() {
                return Ok(first_hash(u32::from(partition.0) + 1, count));
            }
        }
        Ok(0)
    }

    /// Asks the homes of partitions for their keys, until r of each have told: by partition, one
    /// map a home.
    async fn ask_keys(
        &self,
        view: &View,
        partitions: &[PartitionId],
        cursor: u64,
        limit: usize,
    ) -> Result<Vec<BTreeMap<PartitionId, HomePage>>, RequestError> {
        let mut wanted: BTreeMap<NodeTag, Vec<PartitionId>> = BTreeMap::new();
        for &partition in partitions {
            for &home in view.homes(partition) {
                wanted.entry(home).or_default().push(partition);
            }
        }
        let deadline = self.env.clock.monotonic() + self.config.timeout;
        let (tell, mut told) = mpsc::channel(wanted.len().max(1));
        let mut collected = Collected::new(partitions, self.config.quorum.r());
        let after = |partition| after(view, partition, cursor);
        for (&home, partitions) in &wanted {
            if home == self.self_tag {
                collected.add(self.own_keys(partitions, limit, &after), &wanted);
                continue;
            }
            let mut operations = Operations::new(self.replica.now(self.env.clock.wall()));
            let limit = u32::try_from(limit).unwrap_or(u32::MAX);
            partitions.iter().for_each(|&partition| {
                operations.push(&Operation::Keys(partition, after(partition), limit));
            });
            let sink = Box::new(KeysSink {
                home,
                tell: tell.clone(),
            });
            // One that cannot be asked is one less.
            let _queued = self
                .transport
                .call(home, Lane::Foreground, &operations, deadline, sink);
        }
        drop(tell);
        while !collected.is_enough(true) {
            match timeout_at(deadline, told.recv()).await {
                Ok(Some(told)) => collected.add(told, &wanted),
                Ok(None) | Err(_) => break,
            }
        }
        collected.finish()
    }

    fn own_keys(
        &self,
        partitions: &[PartitionId],
        limit: usize,
        after: &dyn Fn(PartitionId) -> Option<u64>,
    ) -> Told {
        let page = |&partition: &PartitionId| {
            let mut page = HomePage::default();
            page.next = self
                .replica
                .scan(partition, after(partition), |key, record| {
                    let key = Bytes::copy_from_slice(key);
                    page.entries.push((key, Summary::of(record)));
                    page.entries.len() < limit
                });
            page
        };
        Told {
            home: self.self_tag,
            is_sure: partitions
                .iter()
                .all(|&partition| self.replica.is_sure(partition)),
            pages: partitions.iter().map(page).collect(),
        }
    }
}

/// After which hash to begin in a partition, for a cursor.
fn after(view: &View, partition: PartitionId, cursor: u64) -> Option<u64> {
    let is_first = view.params().partitions.of(cursor) == partition;
    if is_first {
        cursor.checked_sub(1)
    } else {
        None
    }
}

/// The lowest hash of a partition: of those `h` with `h * count >> 64 == number`.
fn first_hash(number: u32, count: u32) -> u64 {
    // Counts are powers of two.
    u64::from(number) << (u64::BITS - count.trailing_zeros())
}

/// What has been told so far.
struct Collected {
    need: u8,
    sure: BTreeMap<PartitionId, u8>,
    all: BTreeMap<PartitionId, u8>,
    pages: Vec<BTreeMap<PartitionId, HomePage>>,
}

impl Collected {
    fn new(partitions: &[PartitionId], need: u8) -> Self {
        let none: BTreeMap<_, _> = partitions.iter().map(|&partition| (partition, 0)).collect();
        Self {
            need,
            sure: none.clone(),
            all: none,
            pages: Vec::new(),
        }
    }

    fn add(&mut self, told: Told, wanted: &BTreeMap<NodeTag, Vec<PartitionId>>) {
        let Some(partitions) = wanted.get(&told.home) else {
            return;
        };
        let pages: BTreeMap<_, _> = partitions.iter().copied().zip(told.pages).collect();
        for partition in pages.keys() {
            for counted in [Some(&mut self.all), told.is_sure.then_some(&mut self.sure)] {
                if let Some(count) = counted.and_then(|counted| counted.get_mut(partition)) {
                    *count += 1;
                }
            }
        }
        self.pages.push(pages);
    }

    /// Whether enough homes of each partition have told; of those that are sure of what they hold,
    /// if there is a choice.
    fn is_enough(&self, of_sure: bool) -> bool {
        let counted = if of_sure { &self.sure } else { &self.all };
        counted.values().all(|count| *count >= self.need)
    }

    fn finish(self) -> Result<Vec<BTreeMap<PartitionId, HomePage>>, RequestError> {
        if self.is_enough(false) {
            return Ok(self.pages);
        }
        Err(RequestError::Read(QuorumNotMet {
            need: self.need,
            got: self.all.values().copied().min().unwrap_or(0),
            refusal: None,
        }))
    }
}

struct KeysSink {
    home: NodeTag,
    tell: mpsc::Sender<Told>,
}

impl ReplySink for KeysSink {
    fn on_reply(self: Box<Self>, reply: Result<Response<'_>, CallError>) -> Result<(), FrameError> {
        let Ok(mut response) = reply else {
            return Ok(());
        };
        let mut pages = Vec::new();
        for _ in 0..response.count {
            let Answer::Keys(count, entries, next) = response.answers.read()? else {
                // Not what was asked for: those behind it are not told either.
                break;
            };
            let mut reader = FrameReader::new(entries);
            let mut page = HomePage {
                entries: Vec::new(),
                next,
            };
            for _ in 0..count {
                let (key, held): (&ByteSlice, Summary) = reader.read()?;
                page.entries.push((Bytes::copy_from_slice(key), held));
            }
            pages.push(page);
        }
        // Whoever asked may have enough already.
        drop(self.tell.try_send(Told {
            home: self.home,
            is_sure: response.is_sure,
            pages,
        }));
        Ok(())
    }
}

/// Partitions of the first question, and of the largest.
const WIDTH_MIN: usize = 4;
const WIDTH_MAX: usize = 512;
/// Keys of a partition in one answer.
const LIMIT_MIN: usize = 10;
const LIMIT_MAX: usize = 1_000;
