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

use super::retries::Retries;
use super::{Coordinator, Inner, RequestError};
use crate::model::{Kind, NodeTag, PartitionId, Summary};
use crate::net::{CallError, Lane, Operations, ReplySink, Response};
use crate::node::key_pages::{KeysWanted, key_pages};
use crate::protocol::{HomeTold, KeysPage, KeysTold};
use crate::ring::View;
use crate::wire::{Answer, FrameError, FrameReader, Operation};

/// Keys, and where to go on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyPage {
    /// Live keys, each with the kind of its value.
    pub keys: Vec<(Bytes, Kind)>,
    /// The cursor of the next page; 0: this was the last one.
    pub next: u64,
}

impl Coordinator {
    /// Keys from a cursor on; 0 is the beginning. Of every partition r homes are asked, and what the
    /// newest of them says counts.
    ///
    /// A page ends with `count` keys, or once its homes have told `PAGE_TOLD_BYTES_MAX` of keys and
    /// tombstones, whatever it found: it may be empty and not the last.
    ///
    /// # Errors
    /// With a partition that has fewer homes to ask.
    pub async fn keys(&self, cursor: u64, count: usize) -> Result<KeyPage, RequestError> {
        let inner = &self.0;
        if let Some(ahead_ms) = inner.replica.refused_ahead_ms() {
            return Err(RequestError::ClockRefused(ahead_ms));
        }
        let mut page = KeyPage {
            keys: Vec::new(),
            next: cursor,
        };
        let mut told_bytes = 0;
        let mut width = WIDTH_MIN;
        let limit = count.clamp(LIMIT_MIN, LIMIT_MAX);
        let mut retries = Retries::new(inner);
        loop {
            let view = Arc::clone(&inner.view.borrow());
            let partitions = from(&view, page.next, width);
            let taken = inner
                .take_keys(&view, &partitions, limit, (&mut page, &mut told_bytes))
                .await;
            match taken {
                Ok(next) => page.next = next,
                // Homes are about to be connected to, it may be.
                Err(_) if retries.wait().await => continue,
                Err(error) => return Err(error),
            }
            let is_full = page.keys.len() >= count || told_bytes >= PAGE_TOLD_BYTES_MAX;
            if page.next == 0 || is_full {
                return Ok(page);
            }
            // As many as an answer had room for; all of them: hardly anything is held.
            let ring = view.params().partitions;
            let reached = ring.of(page.next).0 - partitions.first().map_or(0, |first| first.0);
            width = match usize::from(reached) {
                reached if reached < partitions.len() => reached.max(1),
                _ => (width * 4).min(WIDTH_MAX),
            };
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
        (page, told_bytes): (&mut KeyPage, &mut usize),
    ) -> Result<u64, RequestError> {
        let told = self.ask_keys(view, partitions, page.next, limit).await;
        *told_bytes += told.bytes();
        let now = self.replica.now(self.env.clock.wall()).millis();
        let count = view.params().partitions.count();
        for (place, &partition) in partitions.iter().enumerate() {
            // Homes leave out what does not fit an answer, but never the first.
            match told.check(partition) {
                Err(_) if place > 0 => return Ok(first_hash(u32::from(partition.0), count)),
                enough => enough.map_err(RequestError::Read)?,
            }
            let merged = told.merge(partition, now, |key| self.hasher.hash(key));
            page.keys.extend(merged.keys);
            if let Some(until) = merged.until {
                return Ok(until.saturating_add(1));
            }
        }
        // Partitions come in order, and there is one at least: that of the cursor.
        let next = partitions
            .last()
            .map_or(count, |last| u32::from(last.0) + 1);
        if next >= count {
            return Ok(0);
        }
        Ok(first_hash(next, count))
    }

    /// Asks the homes of partitions for their keys, until r of each have told or nobody else will.
    async fn ask_keys(
        &self,
        view: &View,
        partitions: &[PartitionId],
        cursor: u64,
        limit: usize,
    ) -> KeysTold {
        let mut wanted: BTreeMap<NodeTag, Vec<PartitionId>> = BTreeMap::new();
        for &partition in partitions {
            for &home in view.homes(partition) {
                wanted.entry(home).or_default().push(partition);
            }
        }
        let deadline = self.env.clock.monotonic() + self.config.timeout;
        let (tell, mut told) = mpsc::channel(wanted.len().max(1));
        let mut collected = KeysTold::new(partitions, self.config.quorum.r());
        let after = |partition| after(view, partition, cursor);
        for (&home, partitions) in &wanted {
            if home == self.self_tag {
                continue;
            }
            let mut operations = Operations::new(self.replica.frame_context(self.env.clock.wall()));
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
        if let Some(partitions) = wanted.get(&self.self_tag) {
            let own = |&partition: &PartitionId| KeysWanted {
                partition,
                after: after(partition),
                limit,
            };
            let own: Vec<KeysWanted> = partitions.iter().map(own).collect();
            let pages = key_pages(&self.replica, &own).await;
            let is_sure = |&partition: &PartitionId| self.replica.is_sure(partition);
            let is_sure = partitions.iter().take(pages.len()).all(is_sure);
            collected.on_told(partitions, HomeTold { is_sure, pages });
        }
        while !collected.is_enough() {
            match timeout_at(deadline, told.recv()).await {
                Ok(Some((home, told))) => {
                    let partitions = wanted.get(&home).map_or(&[][..], Vec::as_slice);
                    collected.on_told(partitions, told);
                }
                Ok(None) | Err(_) => break,
            }
        }
        collected
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

struct KeysSink {
    home: NodeTag,
    tell: mpsc::Sender<(NodeTag, HomeTold)>,
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
            let mut page = KeysPage {
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
        let told = HomeTold {
            is_sure: response.is_sure,
            pages,
        };
        drop(self.tell.try_send((self.home, told)));
        Ok(())
    }
}

/// Partitions of the first question, and of the largest.
const WIDTH_MIN: usize = 4;
const WIDTH_MAX: usize = 512;
/// What the homes tell for one page before it ends, in bytes: some ten thousand short keys.
const PAGE_TOLD_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Keys of a partition in one answer.
const LIMIT_MIN: usize = 10;
const LIMIT_MAX: usize = 1_000;
