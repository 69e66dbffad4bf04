//! Anti-entropy: what neither hints nor reads repair is found by gossiped digests and healed.
//!
//! Every `digest_interval` a node tells, through gossip, the digests of the partitions that it is a
//! home of, as of a cut. Where two homes differ at two cuts in succession, one of them compares
//! that partition with the other by rateless set reconciliation, and exactly the records that one
//! of them lacks or holds an older state of are moved, through the same rules as any write.
//!
//! # What gossip carries
//!
//! A partition takes 9 bytes, 12 characters in base64 (see [`Sheet`]); a node is a home of
//! Q n / N partitions of N nodes. With Q = 4096 and n = 3, if every partition was written to since
//! the last cut, a node tells, a cut (4.096 s):
//!
//! | nodes | partitions | characters | pages | told by all nodes | a second |
//! | --- | --- | --- | --- | --- | --- |
//! | 3 | 4,096 | 49,152 | 16 | 147 kB | 36 kB |
//! | 10 | 1,229 | 14,748 | 5 | 147 kB | 36 kB |
//! | 100 | 123 | 1,476 | 1 | 148 kB | 36 kB |
//! | 1,000 | 12 | 147 | 1 | 147 kB | 36 kB |
//!
//! Everybody hears everybody, so the last column is what each node has to hear, whatever their
//! number; chitchat's compression takes a quarter off, down to the nine bytes, and several peers
//! telling a node the same in one round put it up again: measured are 2.1 to 2.4 times nine bytes
//! a partition, 37 kB a second a node at 3 nodes, 58 at 10, 61 at 50 (a test of `membership`).
//! Without writes only the heads change: about 22 characters a node and cut, 0.06, 0.2 and 0.5 kB a
//! second beside 1.9, 9 and 44 that gossip takes anyway. The largest page has 3,080 characters: it fits a gossip message
//! (65,507 bytes) beside the digest of 1,000 nodes (54 kB).

mod responder;
mod session;
mod status;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

pub use self::responder::Responder;
pub use self::status::{PeerRepair, RepairReport};
use super::flush_exchange::FlushExchange;
use super::handoff::Owed;
use super::pace::Pace;
use super::replica::Replica;
use crate::digest::Sheet;
use crate::env::Env;
use crate::model::{Epoch, KeyHasher, NodeTag, PartitionId};
use crate::net::Transport;
use crate::protocol::Agreement;
use crate::ring::View;
use crate::store::Store;

/// Settings of anti-entropy.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// How often digests are told at most; rounded up to whole epochs.
    pub digest_interval: Duration,
    /// How many bytes a second repairs may send and receive.
    pub bytes_per_s: u64,
    /// From which age on tombstones may be purged.
    pub tombstone_age: Duration,
}

/// Gossip, as far as it carries digests.
pub trait DigestGossip: Debug + Send + Sync + 'static {
    /// Tells this node's digests.
    fn publish(&self, sheet: Arc<Sheet>);
    /// What each other node last told.
    fn heard(&self) -> BTreeMap<NodeTag, Arc<Sheet>>;
}

/// What the tasks of one node need.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Settings.
    pub config: Config,
    /// This node.
    pub self_tag: NodeTag,
    /// Time, chance, tasks.
    pub env: Env,
    /// The ring, as it changes.
    pub view: watch::Receiver<Arc<View>>,
    /// What is compared and repaired.
    pub replica: Arc<Replica>,
    /// The same, by group and hash.
    pub store: Arc<Store>,
    /// The cluster's hash.
    pub hasher: KeyHasher,
    /// Calls to peers.
    pub transport: Arc<dyn Transport>,
    /// Digests from and to peers.
    pub gossip: Arc<dyn DigestGossip>,
    /// Who holds hints for whom.
    pub owed: watch::Receiver<Arc<Owed>>,
    /// The last cut that the store was brought to.
    pub cut: watch::Receiver<Epoch>,
}

/// The anti-entropy of one node.
#[derive(Debug)]
pub struct AntiEntropy {
    parts: Parts,
    pace: Pace,
    agreement: Mutex<Agreement>,
    /// What is to be reconciled with whom, as of the last comparison of digests.
    due: Mutex<BTreeMap<NodeTag, BTreeSet<PartitionId>>>,
    /// What an administrator wants compared, whatever the digests say.
    wanted: Mutex<VecDeque<(NodeTag, PartitionId)>>,
    /// How many of those are under way.
    wanted_running: AtomicUsize,
    wake: Notify,
    peers: Mutex<BTreeMap<NodeTag, Progress>>,
    stats: Stats,
}

/// How it goes with one peer.
#[derive(Debug, Clone, Default)]
struct Progress {
    sessions: u64,
    differences: u64,
    fixed: u64,
    bytes: u64,
    /// Partitions that are waiting for a session now.
    queued: usize,
    /// Coded symbols that a comparison took last, on average.
    symbols_taken: u32,
    /// How long a partition took last, on average.
    took: Duration,
    last_error: Option<String>,
    failures: u32,
    not_before: Option<Instant>,
}

/// Counters, since the node started.
#[derive(Debug, Default)]
pub struct Stats {
    /// Bytes of requests and responses that found differences.
    pub compare_bytes: AtomicU64,
    /// Bytes of records that were moved, and of asking for them.
    pub record_bytes: AtomicU64,
    /// Keys that two replicas held differently.
    pub differences: AtomicU64,
    /// Records that a replica took because of a session of this node.
    pub fixed: AtomicU64,
    /// Sessions that found differences, that found none, that failed.
    pub repaired: AtomicU64,
    /// See `repaired`.
    pub equal: AtomicU64,
    /// See `repaired`.
    pub failed: AtomicU64,
    /// Sessions that compared whole lists because symbols would have cost more.
    pub fallbacks: AtomicU64,
    /// Tombstones purged.
    pub purged: AtomicU64,
    /// Damaged records found in memory.
    pub damaged: AtomicU64,
}

impl AntiEntropy {
    /// What keeps the replicas of a node alike. It does nothing until [`Self::start`].
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        let transport = FlushExchange::over(parts.transport, &parts.replica, &parts.env.clock);
        let parts = Parts { transport, ..parts };
        Arc::new(Self {
            pace: Pace::new(parts.config.bytes_per_s),
            parts,
            agreement: Mutex::default(),
            due: Mutex::default(),
            wanted: Mutex::default(),
            wanted_running: AtomicUsize::new(0),
            wake: Notify::new(),
            peers: Mutex::default(),
            stats: Stats::default(),
        })
    }

    /// Repairs faster or slower from now on.
    pub fn set_pace(&self, bytes_per_s: u64) {
        self.pace.set(bytes_per_s);
    }

    /// Starts its tasks; they end with those of the environment.
    pub fn start(self: &Arc<Self>) {
        let tasks = &self.parts.env.tasks;
        tasks.spawn(Arc::clone(self).watch());
        tasks.spawn(Arc::clone(self).repair());
    }

    /// Compares partitions with peers now, whatever their digests say: this partition or all, with
    /// this peer or all that are homes of it. How many sessions that makes.
    pub fn want(&self, partition: Option<PartitionId>, peer: Option<NodeTag>) -> usize {
        let view = Arc::clone(&self.parts.view.borrow());
        let own = self.parts.self_tag;
        let mut wanted = lock(&self.wanted);
        wanted.clear();
        for one in view.params().partitions.all() {
            let homes = view.homes(one);
            if partition.is_some_and(|wanted| wanted != one) || !homes.contains(&own) {
                continue;
            }
            let others = homes.iter().filter(|&&home| home != own);
            let others = others.filter(|&&home| peer.is_none_or(|wanted| wanted == home));
            wanted.extend(others.map(|&home| (home, one)));
        }
        let count = wanted.len();
        drop(wanted);
        self.wake.notify_one();
        count
    }

    /// Its counters.
    #[must_use]
    pub const fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Comparisons of a partition with a peer by their digests; how often a partition that had
    /// differed was seen to agree again, and how many comparisons those took.
    #[must_use]
    pub fn rounds(&self) -> (u64, u64, u64) {
        let agreement = lock(&self.agreement);
        (
            agreement.rounds,
            agreement.agreements,
            agreement.agreement_rounds,
        )
    }

    /// Partitions that differ from some peer's.
    #[must_use]
    pub fn differing(&self) -> usize {
        let agreement = lock(&self.agreement);
        let view = self.parts.view.borrow();
        let members = view.members().iter();
        members
            .map(|member| agreement.with(member.tag).differing)
            .sum()
    }

    /// Tells digests, hears those of others, purges what all agree on, looks for damage.
    async fn watch(self: Arc<Self>) {
        let mut cut = self.parts.cut.clone();
        let (mut scrubbed, mut left) = (0, BTreeMap::new());
        loop {
            let changed = timeout(LOOK_INTERVAL, cut.changed()).await;
            if matches!(changed, Ok(Err(_))) {
                return;
            }
            let is_new = changed.is_ok();
            let view = Arc::clone(&self.parts.view.borrow());
            if is_new {
                let cut = *cut.borrow_and_update();
                if cut.0.is_multiple_of(self.epochs()) {
                    self.publish(cut, &view);
                }
                self.scrub(&mut scrubbed);
                self.forget(&view, &mut left);
            }
            self.hear(&view);
            if is_new {
                self.purge(&view);
            }
        }
    }

    /// After how many epochs digests are told again.
    fn epochs(&self) -> u64 {
        let interval = self.parts.config.digest_interval.as_millis();
        u64::try_from(interval.div_ceil(Epoch::DURATION.as_millis()))
            .unwrap_or(1)
            .max(1)
    }

    fn publish(&self, cut: Epoch, view: &View) {
        let own = self.parts.self_tag;
        let partitions = view.params().partitions.all();
        let held = partitions.filter(|&partition| view.homes(partition).contains(&own));
        let age = self.parts.config.tombstone_age.as_millis();
        let sheet = Arc::new(Sheet {
            cut,
            tombstone_age_ms: u64::try_from(age).unwrap_or(u64::MAX),
            digests: held.map(|p| (p, self.parts.store.digest(p))).collect(),
        });
        lock(&self.agreement).on_own(&sheet);
        self.parts.gossip.publish(sheet);
    }

    fn hear(&self, view: &View) {
        let mut agreement = lock(&self.agreement);
        for (peer, sheet) in self.parts.gossip.heard() {
            agreement.on_peer(peer, &sheet);
        }
        if agreement.compare(self.parts.self_tag, view) {
            let due = agreement.due(self.parts.self_tag, view);
            let has_due = !due.is_empty();
            *lock(&self.due) = due;
            if has_due {
                self.wake.notify_one();
            }
        }
    }

    /// Purges the tombstones that are old enough where all homes are up and agree.
    fn purge(&self, view: &View) {
        let Parts {
            store,
            owed,
            self_tag,
            ..
        } = &self.parts;
        let owed = Arc::clone(&owed.borrow());
        let mut groups: BTreeMap<u16, Vec<PartitionId>> = BTreeMap::new();
        let agreement = lock(&self.agreement);
        for partition in view.params().partitions.all() {
            let is_owed = |home: &NodeTag| !owed.holders(*home).is_empty();
            if store.has_aged(partition)
                && agreement.is_unanimous(*self_tag, partition, view)
                // A hint may be older than what it would come after.
                && !view.homes(partition).iter().any(is_owed)
            {
                groups
                    .entry(Store::group(partition))
                    .or_default()
                    .push(partition);
            }
        }
        drop(agreement);
        let purged: u64 = groups
            .values()
            .map(|partitions| store.purge(partitions))
            .sum();
        if purged > 0 {
            self.stats.purged.fetch_add(purged, Ordering::Relaxed);
            debug!(purged, "purged tombstones that all homes have agreed on");
        }
    }

    /// Forgets the partitions that this node has not been a home of for a while. The homes of now have
    /// copied them from each other; and were it to become a home again, what it held would be from
    /// before deletes that nobody remembers any more.
    fn forget(&self, view: &View, left: &mut BTreeMap<PartitionId, Instant>) {
        let Parts {
            store, self_tag, ..
        } = &self.parts;
        let now = self.parts.env.clock.monotonic();
        // Long enough for a view to settle, short against the age of tombstones.
        let after = (self.parts.config.tombstone_age / 4).min(LEFT_MAX);
        let is_up = |home: &NodeTag| view.member(*home).is_some_and(|member| member.reachable);
        for partition in view.params().partitions.all() {
            let homes = view.homes(partition);
            if homes.contains(self_tag) {
                left.remove(&partition);
                continue;
            }
            let since = *left.entry(partition).or_insert(now);
            if now >= since + after && homes.iter().all(is_up) {
                let cleared = store.clear(partition);
                if cleared > 0 {
                    debug!(
                        partition = partition.0,
                        cleared, "forgot a partition of other homes"
                    );
                }
            }
        }
    }

    /// Looks at the next few groups for damage.
    fn scrub(&self, next: &mut u16) {
        let Parts { store, replica, .. } = &self.parts;
        let groups = store.groups();
        for _ in 0..groups.div_ceil(SCRUB_EPOCHS) {
            let found = store.scrub(*next);
            *next = (*next + 1) % groups;
            self.stats
                .damaged
                .fetch_add(found.damaged, Ordering::Relaxed);
            for partition in found.partitions {
                warn!(
                    partition = partition.0,
                    records = found.damaged,
                    "damaged records in memory: they are copied from the other homes again"
                );
                replica.set_lost(partition);
            }
        }
    }

    /// Reconciles what has to be, a peer at a time.
    async fn repair(self: Arc<Self>) {
        let mut was_idle = true;
        loop {
            let Some((peer, partitions, is_wanted)) = self.next() else {
                was_idle = true;
                drop(timeout(LOOK_INTERVAL, self.wake.notified()).await);
                continue;
            };
            if was_idle && !is_wanted {
                // Not all nodes at once.
                sleep(JITTER_MAX.mul_f64(self.parts.env.rng.fraction())).await;
            }
            was_idle = false;
            let begun = self.parts.env.clock.monotonic();
            let result = self.reconcile(peer, &partitions).await;
            let now = self.parts.env.clock.monotonic();
            let epoch = Epoch::of(self.parts.env.clock.wall());
            let mut agreement = lock(&self.agreement);
            for partition in &partitions {
                agreement.on_session_end(peer, *partition, epoch);
            }
            drop(agreement);
            let took = now.saturating_duration_since(begun);
            self.note(peer, partitions.len(), took, now, result);
            self.wanted_running.store(0, Ordering::Relaxed);
        }
    }

    fn note(
        &self,
        peer: NodeTag,
        partitions: usize,
        took: Duration,
        now: Instant,
        result: Result<(), String>,
    ) {
        let mut peers = lock(&self.peers);
        let progress = peers.entry(peer).or_default();
        progress.took = took / u32::try_from(partitions).unwrap_or(1).max(1);
        match result {
            Ok(()) => {
                (progress.failures, progress.not_before) = (0, None);
                progress.last_error = None;
            }
            Err(why) => {
                debug!(why, "a repair session has failed");
                progress.failures = progress.failures.saturating_add(1);
                let pause = PAUSE_MIN * 2_u32.saturating_pow(progress.failures.min(8));
                progress.not_before = Some(now + pause.min(PAUSE_MAX));
                progress.last_error = Some(why);
                let failed = partitions as u64;
                self.stats.failed.fetch_add(failed, Ordering::Relaxed);
            }
        }
    }

    /// With whom to reconcile what next, and whether an administrator wants it. That counts as begun.
    fn next(&self) -> Option<(NodeTag, Vec<PartitionId>, bool)> {
        let view = Arc::clone(&self.parts.view.borrow());
        let now = self.parts.env.clock.monotonic();
        let mut agreement = lock(&self.agreement);
        let mut due = lock(&self.due);
        let mut wanted = lock(&self.wanted);
        let mut peers = lock(&self.peers);
        for progress in peers.values_mut() {
            progress.queued = 0;
        }
        for (peer, partitions) in &*due {
            peers.entry(*peer).or_default().queued += partitions.len();
        }
        for (peer, _) in &*wanted {
            peers.entry(*peer).or_default().queued += 1;
        }
        if let Some(&(peer, _)) = wanted.front() {
            let of_peer = wanted.iter().take_while(|wanted| wanted.0 == peer);
            let batch = batch(of_peer.map(|(_, partition)| *partition));
            wanted.drain(..batch.len());
            self.wanted_running.store(batch.len(), Ordering::Relaxed);
            return Some((peer, batch, true));
        }
        let is_free = |peer: &NodeTag| {
            let not_before = peers.get(peer).and_then(|progress| progress.not_before);
            let is_reachable = view.member(*peer).is_some_and(|member| member.reachable);
            is_reachable && not_before.is_none_or(|at| at <= now)
        };
        let mut waiting = due.iter_mut();
        let (&peer, partitions) =
            waiting.find(|(peer, partitions)| is_free(peer) && !partitions.is_empty())?;
        let batch = batch(partitions.iter().copied());
        for partition in &batch {
            partitions.remove(partition);
            agreement.on_session_begin(peer, *partition);
        }
        Some((peer, batch, false))
    }
}

/// The first few of these partitions, in their order, that lie close together in the store.
fn batch(partitions: impl IntoIterator<Item = PartitionId>) -> Vec<PartitionId> {
    let (mut batch, mut groups) = (Vec::new(), BTreeSet::new());
    for partition in partitions {
        groups.insert(Store::group(partition));
        if batch.len() == BATCH || groups.len() > BATCH_GROUPS {
            break;
        }
        batch.push(partition);
    }
    batch
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // std Mutex: never held across an await.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sessions at a time: their questions share frames.
const BATCH: usize = 16;
/// Each is read under its lock, by either side.
const BATCH_GROUPS: usize = 2;
/// About five minutes for all groups.
const SCRUB_EPOCHS: u16 = 75;
/// A node that joins has copied what it needs long before.
const LEFT_MAX: Duration = Duration::from_secs(600);
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
const JITTER_MAX: Duration = Duration::from_millis(500);
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(30);
