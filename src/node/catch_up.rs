//! How a replica that has lost its memory gets a vote again.
//!
//! A node that starts, or that becomes a home of a partition, holds nothing of it. Writes count its
//! acknowledgements from the first one on, for what it has taken it holds. But that it holds *nothing*
//! of a key, or something old, says nothing: it may have acknowledged something newer before. Until
//! it has copied what the other homes hold it is *unsure*, and says so with every answer; at level
//! `linearizable` such answers do not count, at the others only when there is none better.
//!
//! How many homes are enough: a write was acknowledged by a majority of n, so by at least
//! majority - 1 of the others. Whoever has copied from n - majority + 1 others that are sure has met
//! one of them, and whoever has copied from all others has everything that there is. (The recovery
//! of Liskov and Cowling, *Viewstamped Replication Revisited*, 2012, for registers.) So nothing that
//! was acknowledged is lost while at most n - majority homes of a key are without their memory at
//! the same time.
//!
//! When nodes join, homes change: who was a home until then, and was sure, counts like a home that is,
//! for what it holds it has not lost.
//!
//! In a ring of so few nodes that there are not even so many others, nobody is sure. A node that has
//! lost its disk as well starts as if it were the first of a new cluster: that it finds nobody to ask
//! does not mean that there is nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_bytes::Bytes as ByteSlice;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, info, warn};

use super::flush_exchange::FlushExchange;
use super::replica::{Replica, Written};
use crate::env::Env;
use crate::model::{HashedKey, HlcTime, KeyHasher, NodeTag, PartitionId, RecordRef};
use crate::net::{CallError, Lane, Operations, ReplySink, Response, Transport};
use crate::ring::View;
use crate::wire::{Answer, FrameError, FrameReader, Operation, WireRecord};

/// What the task of one node needs.
pub struct CatchUp {
    /// This node.
    pub self_tag: NodeTag,
    /// Copies kept.
    pub n: u8,
    /// Time.
    pub env: Env,
    /// The ring, as it changes.
    pub view: watch::Receiver<Arc<View>>,
    /// What is to be sure again.
    pub replica: Arc<Replica>,
    /// The cluster's hash.
    pub hasher: KeyHasher,
    /// Calls to peers.
    pub transport: Arc<dyn Transport>,
    /// Not before this moment: a write that an earlier life of this node has acknowledged may be on its
    /// way to the homes that are copied from for as long as a request takes.
    pub begins_at: Instant,
    /// Whether there is memory for what is to be copied.
    pub has_room: Box<dyn Fn() -> bool + Send + Sync>,
}

impl fmt::Debug for CatchUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CatchUp")
            .field("self_tag", &self.self_tag)
            .finish_non_exhaustive()
    }
}

/// What is still to be copied.
#[derive(Debug, Default)]
struct Progress {
    /// The ring in which these are the homes: who sees another one is not asked. A node that has
    /// lost its disk learns of the members one by one, and whoever seems to be a home of a partition
    /// meanwhile need not be.
    ring: u64,
    /// The other nodes that hold data and can be reached: those that are no homes of a partition may
    /// have been until nodes joined.
    holders: BTreeSet<NodeTag>,
    homes: BTreeMap<PartitionId, Copying>,
}

#[derive(Debug, Default)]
struct Copying {
    /// The other homes.
    others: BTreeSet<NodeTag>,
    /// Who has shown everything, and was sure of it.
    sure: BTreeSet<NodeTag>,
    /// Who has shown everything.
    copied: BTreeSet<NodeTag>,
    /// After which key hash to go on, and whether all pages so far were sure.
    at: BTreeMap<NodeTag, (Option<u64>, bool)>,
}

impl Copying {
    /// Where several nodes join at once, all homes of a partition may be new: none of them holds
    /// anything, and who does is no home any more. So it takes enough that are sure, former homes
    /// among them, or all homes and all others.
    fn is_done(&self, n: u8, holders: &BTreeSet<NodeTag>) -> bool {
        let has_all = self.has_all_homes() && holders.is_subset(&self.copied);
        let is_known = self.others.len() >= enough(n);
        is_known && (has_all || self.sure.len() >= enough(n))
    }

    fn has_all_homes(&self) -> bool {
        self.others.is_subset(&self.copied)
    }

    /// Who is to be asked now: the other homes, and once they have shown everything, all others.
    fn missing<'a>(&'a self, holders: &'a BTreeSet<NodeTag>) -> impl Iterator<Item = NodeTag> + 'a {
        let from = if self.has_all_homes() {
            holders
        } else {
            &self.others
        };
        from.difference(&self.copied).copied()
    }
}

/// How many others that are sure have to be copied from. With one copy there are none.
fn enough(n: u8) -> usize {
    let majority = n / 2 + 1;
    usize::from((n - majority + 1).min(n - 1))
}

impl CatchUp {
    /// Catches up, now and whenever the homes change, for as long as the environment's tasks run.
    pub async fn run(mut self) {
        self.transport = FlushExchange::over(self.transport, &self.replica, &self.env.clock);
        let mut progress = Progress::default();
        let mut pause = PAUSE_MIN;
        let mut view = self.view.clone();
        // Whoever joins must know at once of which partitions it is a home no more.
        let begins_at = match enough(self.n) {
            // Nobody to copy from.
            0 => self.env.clock.monotonic(),
            _ => self.begins_at,
        };
        while timeout_at(begins_at, view.changed())
            .await
            .is_ok_and(|changed| changed.is_ok())
        {
            self.follow(&Arc::clone(&view.borrow_and_update()), &mut progress);
        }
        loop {
            let view = Arc::clone(&self.view.borrow_and_update());
            self.follow(&view, &mut progress);
            let before = progress.homes.len();
            if before > 0 && !self.waits_for_room() {
                self.copy(&mut progress).await;
            }
            if before > 0 && progress.homes.is_empty() {
                info!("caught up: holds all that the other homes hold");
            }
            if progress.homes.is_empty() {
                pause = PAUSE_MIN;
                tokio::select! {
                    biased;
                    changed = self.view.changed() => if changed.is_err() { return },
                    () = self.replica.lost() => {}
                }
            } else if progress.homes.len() == before {
                // Somebody is away. Ask again soon, but not all the time.
                if timeout(pause, self.view.changed()).await.is_err() {
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// Whether there is no memory for more records. The node stays incomplete until there is, and serves
    /// what it holds.
    fn waits_for_room(&self) -> bool {
        let waits = !(self.has_room)();
        if self.replica.set_waiting_for_room(waits) {
            match waits {
                true => warn!(
                    "copies nothing more from other homes: memory is nearly as much as it may be \
                     (quorate_process_memory_limit_bytes)"
                ),
                false => info!("goes on copying from other homes: there is memory for it"),
            }
        }
        waits
    }

    /// Takes over who the homes are now.
    fn follow(&self, view: &View, progress: &mut Progress) {
        progress.ring = view.version();
        let members = view.members().iter();
        let holders = members.filter(|member| {
            member.reachable && member.tag != self.self_tag && view.homes_held(member.tag) > 0
        });
        progress.holders = holders.map(|member| member.tag).collect();
        for partition in view.params().partitions.all() {
            let homes = view.homes(partition);
            if !homes.contains(&self.self_tag) {
                self.replica.set_former(partition);
                progress.homes.remove(&partition);
                continue;
            }
            if self.replica.is_sure(partition) {
                continue;
            }
            let others = homes.iter().copied().filter(|&home| home != self.self_tag);
            let others: BTreeSet<NodeTag> = others.collect();
            let copying = progress.homes.entry(partition).or_default();
            if copying.others != others {
                *copying = Copying {
                    others,
                    ..Copying::default()
                };
            }
        }
        self.conclude(progress);
    }

    fn conclude(&self, progress: &mut Progress) {
        let n = self.n;
        let holders = &progress.holders;
        progress.homes.retain(|&partition, copying| {
            let is_done = copying.is_done(n, holders);
            if is_done {
                if !copying.others.is_empty() && copying.sure.is_empty() {
                    debug!(partition = partition.0, "no other home was sure either");
                }
                let wall = self.env.clock.wall();
                self.replica.set_sure(partition, true, wall);
            }
            !is_done
        });
    }

    /// Asks every other home for one page of each of some partitions, until all is copied or
    /// nobody answers any more.
    async fn copy(&self, progress: &mut Progress) {
        loop {
            let mut calls = Vec::new();
            let mut wanted: BTreeMap<NodeTag, Vec<PartitionId>> = BTreeMap::new();
            for (&partition, copying) in &progress.homes {
                for home in copying.missing(&progress.holders) {
                    let partitions = wanted.entry(home).or_default();
                    if partitions.len() < PARTITIONS_A_CALL {
                        partitions.push(partition);
                    }
                }
            }
            for (home, partitions) in wanted {
                if let Ok(told) = self.ask(home, &partitions, progress) {
                    calls.push((home, partitions, told));
                }
            }
            let mut has_moved = false;
            for (home, partitions, told) in calls {
                // At the call's deadline at the latest.
                if let Ok(Ok(pages)) = told.await {
                    let now = self.env.clock.monotonic();
                    self.replica.note_peer_clock(home, pages.clock, now);
                    for (partition, page) in partitions.into_iter().zip(pages.pages) {
                        let told = (pages.is_sure, pages.clock);
                        has_moved |= self.take(progress, home, partition, page, told);
                    }
                }
            }
            self.conclude(progress);
            if !has_moved || self.waits_for_room() {
                return;
            }
        }
    }

    fn ask(
        &self,
        home: NodeTag,
        partitions: &[PartitionId],
        progress: &Progress,
    ) -> Result<oneshot::Receiver<Result<Pages, CallError>>, CallError> {
        let mut operations = Operations::new(self.replica.frame_context(self.env.clock.wall()));
        for partition in partitions {
            let at = progress.homes.get(partition).and_then(|c| c.at.get(&home));
            let after = at.and_then(|(after, _)| *after);
            operations.push(&Operation::Scan(*partition, after, progress.ring));
        }
        let (tell, told) = oneshot::channel();
        let deadline = self.env.clock.monotonic() + CALL_MAX;
        let sink = Box::new(PagesSink(tell));
        self.transport
            .call(home, Lane::Bulk, &operations, deadline, sink)?;
        Ok(told)
    }

    /// Takes one page of one home; whether that was of use.
    fn take(
        &self,
        progress: &mut Progress,
        home: NodeTag,
        partition: PartitionId,
        page: Page,
        (is_sure, clock): (bool, HlcTime),
    ) -> bool {
        let Some(copying) = progress.homes.get_mut(&partition) else {
            return false;
        };
        match self.store(partition, &page, clock) {
            Ok(true) => {}
            // What it holds in the place of something this node might take is not known.
            Ok(false) => return false,
            Err(error) => {
                warn!(%error, "a page of records is malformed");
                return false;
            }
        }
        let (after, was_sure) = copying.at.entry(home).or_insert((None, true));
        *was_sure &= is_sure;
        *after = page.next;
        if page.next.is_none() {
            let was_sure = *was_sure;
            copying.at.remove(&home);
            copying.copied.insert(home);
            if was_sure {
                copying.sure.insert(home);
            }
        }
        true
    }

    /// Takes the records of a page; whether all of them are held now, or something newer that the
    /// sender, whose clock read `clock`, could believe.
    fn store(
        &self,
        partition: PartitionId,
        page: &Page,
        clock: HlcTime,
    ) -> Result<bool, FrameError> {
        let wall = self.env.clock.wall();
        let mut has_all = true;
        let mut records = FrameReader::new(&page.records);
        for _ in 0..page.count {
            let (key, record): (&ByteSlice, WireRecord<'_>) = records.read()?;
            let key = HashedKey {
                bytes: key,
                hash: self.hasher.hash(key),
                partition,
            };
            // Newer wins, as for every write.
            match self.replica.write(key, RecordRef::from(record), wall) {
                Ok(Written::Applied(_)) => {}
                Ok(Written::Superseded(by)) => {
                    let held = by.stamp.unwrap_or_default().newest();
                    has_all &= self.replica.is_believable(held, clock);
                }
                // An update is under way. It asks again.
                Ok(Written::Promised(_)) => has_all = false,
                Err(refusal) => {
                    debug!(%refusal, "left a record out");
                    has_all = false;
                }
            }
        }
        Ok(has_all)
    }
}

/// One page of a partition.
#[derive(Debug)]
struct Page {
    count: u32,
    records: Vec<u8>,
    next: Option<u64>,
}

#[derive(Debug)]
struct Pages {
    pages: Vec<Page>,
    is_sure: bool,
    clock: HlcTime,
}

struct PagesSink(oneshot::Sender<Result<Pages, CallError>>);

impl ReplySink for PagesSink {
    fn on_reply(self: Box<Self>, reply: Result<Response<'_>, CallError>) -> Result<(), FrameError> {
        let result = match reply {
            Ok(response) => Ok(read_pages(response)?),
            Err(error) => Err(error),
        };
        // Nobody waits any more: the node is stopping.
        drop(self.0.send(result));
        Ok(())
    }
}

fn read_pages(mut response: Response<'_>) -> Result<Pages, FrameError> {
    let mut pages = Vec::new();
    for _ in 0..response.count {
        let page = match response.answers.read()? {
            Answer::Page(count, records, next) => Page {
                count,
                records: records.to_vec(),
                next,
            },
            // Not what was asked for: those behind it are asked for again.
            _ => break,
        };
        pages.push(page);
    }
    Ok(Pages {
        pages,
        is_sure: response.is_sure,
        clock: response.clock,
    })
}

/// Small enough for a response of some megabytes at most, large enough that 4,096 empty partitions
/// take no time.
const PARTITIONS_A_CALL: usize = 32;
/// One home that hangs holds up the copying from the others for so long.
const CALL_MAX: Duration = Duration::from_secs(1);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(tags: &[u64]) -> BTreeSet<NodeTag> {
        tags.iter().map(|&tag| NodeTag(tag)).collect()
    }

    #[test]
    fn new_homes_are_not_done_with_each_other_while_a_former_home_was_not_asked() {
        // Homes 4, 5 and 6 are new; 1 to 3 were the homes. This is 4.
        let holders = tags(&[1, 2, 3, 5, 6]);
        let mut copying = Copying {
            others: tags(&[5, 6]),
            copied: tags(&[5, 6]),
            ..Copying::default()
        };
        assert!(!copying.is_done(3, &holders));
        assert_eq!(
            copying.missing(&holders).collect::<BTreeSet<_>>(),
            tags(&[1, 2, 3])
        );
        copying.copied.insert(NodeTag(1));
        copying.sure.insert(NodeTag(1));
        assert!(!copying.is_done(3, &holders));
        copying.copied.insert(NodeTag(3));
        copying.sure.insert(NodeTag(3));
        assert!(copying.is_done(3, &holders));
        // Nobody holds anything: a new cluster.
        let copying = Copying {
            others: tags(&[5, 6]),
            copied: tags(&[1, 2, 3, 5, 6]),
            ..Copying::default()
        };
        assert!(copying.is_done(3, &holders));
    }
}
