//! What a node does as a replica: its own copy of a record, asked for by itself or by peers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::holds::Holds;
use super::peer_clocks::PeerClocks;
use crate::model::{
    ClockDrift, Database, DatabaseSet, Expiry, Flushes, HashedKey, Hlc, HlcTime, Millis, NodeTag,
    NotFlushes, PartitionId, Prior, RecordRef, Stamp, Summary, Version,
};
use crate::net::FrameContext;
use crate::ring::Partitions;
use crate::store::{
    Accepted, Applied, ExpiryChange, Promised, Proposal, ReadyRecord, ScanSlice, Store,
};
use crate::wire::{HoldWords, Refusal};

/// The local copy, guarded by the rules that every write keeps, wherever it comes from.
#[derive(Debug)]
pub struct Replica {
    store: Arc<Store>,
    clock: Arc<Hlc>,
    value_bytes_max: usize,
    standing: Standing,
    peer_clocks: PeerClocks,
    drift_refusals: AtomicU64,
    /// How often the clock was dropped to the wall clock.
    clock_drops: AtomicU64,
    /// How far the clock is ahead of those of most peers, in milliseconds, while they refuse it.
    refused_ahead_ms: AtomicU64,
    waits_for_room: AtomicBool,
    /// Something that was held is lost.
    lost: Notify,
    /// A database was emptied.
    flushed: Notify,
    holds: Holds,
}

/// Of which partitions a replica holds all that it ever acknowledged.
///
/// A node that starts holds nothing, but it may have acknowledged writes before: that it holds
/// nothing of a key then says nothing. It is sure of a partition again once it has caught up (see
/// [`crate::node::catch_up`]).
#[derive(Debug)]
pub struct Standing {
    is_sure: Box<[AtomicBool]>,
    /// It was sure of these until it was no home any more.
    was_sure: Box<[AtomicBool]>,
    votes_from: Option<Instant>,
}

impl Standing {
    /// That of a node that has just started.
    #[must_use]
    pub fn unsure(partitions: Partitions) -> Self {
        Self::all(partitions, false)
    }

    /// That of a node that has never been without its memory.
    #[must_use]
    pub fn sure(partitions: Partitions) -> Self {
        Self::all(partitions, true)
    }

    fn all(partitions: Partitions, is_sure: bool) -> Self {
        let new = |_| AtomicBool::new(is_sure);
        Self {
            is_sure: partitions.all().map(new).collect(),
            was_sure: partitions.all().map(|_| AtomicBool::new(false)).collect(),
            votes_from: None,
        }
    }

    /// It has no vote on updates before this moment: by then, whoever had a promise of an earlier
    /// life of this node has given up.
    #[must_use]
    pub fn voting_from(self, moment: Instant) -> Self {
        Self {
            votes_from: Some(moment),
            ..self
        }
    }

    fn of(&self, partition: PartitionId) -> Option<&AtomicBool> {
        self.is_sure.get(usize::from(partition.0))
    }
}

/// How long a node that starts has no vote on updates: whoever had a promise of its earlier life has
/// had time enough to make use of it.
#[must_use]
pub fn abstention(timeout: Duration) -> Duration {
    2 * timeout
}

/// What became of a write or of a change of expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// A record was taken; this was there before.
    Applied(Prior),
    /// A record was not taken; this is newer.
    Superseded(Prior),
    /// A record was not taken: nothing older than this ballot is, for the sake of an update.
    Promised(Version),
}

impl Replica {
    /// A replica that keeps its records in `store`.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        clock: Arc<Hlc>,
        value_bytes_max: usize,
        standing: Standing,
    ) -> Self {
        Self {
            store,
            clock,
            value_bytes_max,
            standing,
            peer_clocks: PeerClocks::default(),
            drift_refusals: AtomicU64::new(0),
            clock_drops: AtomicU64::new(0),
            refused_ahead_ms: AtomicU64::new(0),
            waits_for_room: AtomicBool::new(false),
            lost: Notify::new(),
            flushed: Notify::new(),
            holds: Holds::default(),
        }
    }

    /// Reads a record in place; see [`Store::read`]. One whose time is over is a record here: what
    /// has ended is for the coordinator to judge, by one clock for all replicas.
    pub fn read<T>(&self, key: HashedKey<'_>, read: impl FnOnce(Option<RecordRef<'_>>) -> T) -> T {
        self.store.read(key, Millis(0), read)
    }

    /// The longest value that it takes, in bytes.
    #[must_use]
    pub const fn value_bytes_max(&self) -> usize {
        self.value_bytes_max
    }

    /// What is held of a key, without its value; see [`Replica::read`].
    #[must_use]
    pub fn summary(&self, key: HashedKey<'_>) -> Option<Summary> {
        self.store.summary(key, Millis(0))
    }

    /// Whether it holds all that it ever acknowledged in this partition.
    #[must_use]
    pub fn is_sure(&self, partition: PartitionId) -> bool {
        let standing = self.standing.of(partition);
        standing.is_some_and(|is_sure| is_sure.load(Ordering::Acquire))
    }

    /// Says so, or no longer. Promises from before are not known any more: their ballots are not
    /// taken.
    pub fn set_sure(&self, partition: PartitionId, is_sure: bool, wall: Millis) {
        if let Some(standing) = self.standing.of(partition) {
            if is_sure {
                let floor = Version {
                    hlc: self.now(wall),
                    node: NodeTag(u64::MAX),
                };
                self.store.raise_floor(partition, floor);
            }
            standing.store(is_sure, Ordering::Release);
            if let Some(was_sure) = self.standing.was_sure.get(usize::from(partition.0)) {
                was_sure.store(false, Ordering::Release);
            }
        }
    }

    /// This node is no home of a partition any more.
    pub fn set_former(&self, partition: PartitionId) {
        let place = usize::from(partition.0);
        if let (Some(is_sure), Some(was_sure)) = (
            self.standing.is_sure.get(place),
            self.standing.was_sure.get(place),
        ) && is_sure.swap(false, Ordering::AcqRel)
        {
            was_sure.store(true, Ordering::Release);
        }
    }

    /// Whether what it holds of a partition is all that it ever acknowledged of it, as a home of now or
    /// until it was one no more.
    #[must_use]
    pub fn is_source(&self, partition: PartitionId) -> bool {
        let was_sure = self.standing.was_sure.get(usize::from(partition.0));
        self.is_sure(partition) || was_sure.is_some_and(|was| was.load(Ordering::Acquire))
    }

    /// Copying from other homes waits for memory, or no longer. Whether that is news.
    pub fn set_waiting_for_room(&self, waits: bool) -> bool {
        self.waits_for_room.swap(waits, Ordering::Relaxed) != waits
    }

    /// Whether copying from other homes waits for memory.
    #[must_use]
    pub fn is_waiting_for_room(&self) -> bool {
        self.waits_for_room.load(Ordering::Relaxed)
    }

    /// Something of a partition is lost: it has to be copied again.
    pub fn set_lost(&self, partition: PartitionId) {
        self.set_sure(partition, false, Millis(0));
        self.lost.notify_one();
    }

    /// Resolves when something is lost, or was since this was asked last.
    pub async fn lost(&self) {
        self.lost.notified().await;
    }

    /// Shows the records of a partition; see [`Store::scan`].
    pub fn scan(
        &self,
        partition: PartitionId,
        after: Option<u64>,
        show: impl FnMut(&[u8], RecordRef<'_>) -> bool,
    ) -> Option<u64> {
        self.store.scan(partition, after, show)
    }

    /// Shows the records of several partitions of a group; see [`Store::scan_group`].
    pub fn scan_group(
        &self,
        slices: &[ScanSlice],
        show: impl FnMut(usize, &[u8], RecordRef<'_>) -> bool,
        end: impl FnMut(usize, Option<u64>),
    ) -> usize {
        self.store.scan_group(slices, show, end)
    }

    /// This node's reading of the cluster's clock: what has ended is judged by it, so that no
    /// reader goes back in time because another node's wall clock is behind.
    #[must_use]
    pub fn now(&self, wall: Millis) -> HlcTime {
        self.clock.read(wall)
    }

    /// Passes another node's clock, if it is sane.
    pub fn note_clock(&self, seen: HlcTime, wall: Millis) {
        if let Err(drift) = self.clock.observe(seen, wall) {
            // Counted and told where it tries to write.
            debug!(%drift, "did not follow another node's clock");
        }
    }

    /// Notes what a peer's clock read when it answered.
    pub fn note_peer_clock(&self, peer: NodeTag, clock: HlcTime, now: Instant) {
        self.peer_clocks.note(peer, clock, now);
    }

    /// Whether this copy may take what this very node has stamped: only if some other node would
    /// take it too, as far as their clocks are known. Elsewhere it would be refused, and here it
    /// would replace what was acknowledged.
    #[must_use]
    pub fn may_keep(&self, version: Version, now: Instant) -> bool {
        let furthest = self.peer_clocks.furthest(now);
        furthest.is_none_or(|furthest| self.clock.check(version.hlc, furthest).is_ok())
    }

    /// Whether a node whose clock reads `clock` could believe this version.
    #[must_use]
    pub fn is_believable(&self, version: Version, clock: HlcTime) -> bool {
        self.clock.check(version.hlc, clock.millis()).is_ok()
    }

    /// Takes a record if it is newer and its clock is sane.
    pub fn write(
        &self,
        key: HashedKey<'_>,
        record: RecordRef<'_>,
        wall: Millis,
    ) -> Result<Written, Refusal> {
        self.admit(record, wall)?;
        let now = self.now(wall).millis();
        Ok(written(self.store.apply(key, record, now)))
    }

    /// The same of a record with a large value: it is copied and its checksum computed before its
    /// partition is locked. That takes milliseconds, so it is for a thread that serves nobody.
    pub fn write_large(
        &self,
        key: HashedKey<'_>,
        record: RecordRef<'_>,
        wall: Millis,
    ) -> Result<Written, Refusal> {
        self.admit(record, wall)?;
        let ready = ReadyRecord::new(key.bytes, record);
        let now = self.now(wall).millis();
        Ok(written(self.store.apply_ready(key, (record, ready), now)))
    }

    /// Takes a record if it replaces what has this stamp; whether it did.
    pub fn replace(
        &self,
        key: HashedKey<'_>,
        held: Option<Stamp>,
        record: RecordRef<'_>,
        wall: Millis,
    ) -> Result<bool, Refusal> {
        self.admit(record, wall)?;
        let now = self.now(wall).millis();
        Ok(self.store.replace(key, held, record, now))
    }

    /// Empties a database of all that was written up to a version; what it held is freed in the
    /// background. Whether that is news.
    pub fn flush(&self, database: Database, up_to: Version, wall: Millis) -> Result<bool, Refusal> {
        if self.store.flushes().of(database) >= up_to {
            return Ok(false);
        }
        self.observe(Stamp::fresh(up_to), wall)?;
        let is_news = self.store.flush(database, up_to);
        if is_news {
            self.flushed.notify_one();
        }
        Ok(is_news)
    }

    /// Empties databases of all that this copy holds, where it is the only one: `stamp` is called
    /// when nothing is being made of what is held.
    pub fn flush_alone(&self, databases: DatabaseSet, stamp: impl FnOnce() -> Version) {
        if self.store.flush_all(databases, stamp) {
            self.flushed.notify_one();
        }
    }

    /// Promises no ballot for keys of these databases until the flush of this number comes, or
    /// its time is over. All that was taken or promised before is not newer than what is returned.
    ///
    /// Without it, a proposer could be promised a ballot after the flush was stamped and before it
    /// came, and so make an update of what was to be flushed that is newer than the flush.
    pub fn hold(
        &self,
        databases: DatabaseSet,
        number: HoldWords,
        (wall, now): (Millis, Instant),
    ) -> Result<HlcTime, Refusal> {
        if !self.holds.begin(databases, number, now) {
            return Err(Refusal::Busy);
        }
        Ok(self.now(wall).max(self.holds.newest_ballot()))
    }

    /// Empties databases that were held for it; see [`Replica::hold`].
    ///
    /// # Errors
    /// When they were not held all the time: the databases are emptied, but this copy may have
    /// promised something newer.
    pub fn flush_held(
        &self,
        databases: DatabaseSet,
        up_to: Version,
        number: HoldWords,
        (wall, now): (Millis, Instant),
    ) -> Result<(), Refusal> {
        for database in databases.iter() {
            self.flush(database, up_to, wall)?;
        }
        match self.holds.end(number, now) {
            true => Ok(()),
            false => Err(Refusal::TooLate),
        }
    }

    /// Merges what a peer knows of flushes: before what it asks or answers is looked at.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn merge_flushes(&self, of_peer: Option<&[u8]>, wall: Millis) -> Result<(), NotFlushes> {
        let Some(of_peer) = of_peer else {
            return Ok(());
        };
        if self.store.encoded_flushes().as_deref() == Some(of_peer) {
            return Ok(());
        }
        for (database, up_to) in Flushes::decode(of_peer)?.iter() {
            // A clock that is not to be believed empties nothing; that was counted.
            let _refused = self.flush(database, up_to, wall);
        }
        Ok(())
    }

    /// What every frame to a peer says of this node.
    #[must_use]
    pub fn frame_context(&self, wall: Millis) -> FrameContext {
        FrameContext {
            clock: self.now(wall),
            flushes: self.store.encoded_flushes(),
            ring: None,
        }
    }

    /// The flushes that it knows of, as they travel; `None`: none.
    #[must_use]
    pub fn encoded_flushes(&self) -> Option<Bytes> {
        self.store.encoded_flushes()
    }

    /// Up to which version each database was emptied.
    #[must_use]
    pub fn flushes(&self) -> Flushes {
        self.store.flushes()
    }

    /// Up to which version the database of a key was emptied; `None`: none ever was.
    #[must_use]
    pub fn flush_of(&self, key: &[u8]) -> Option<Version> {
        self.store.flush_of(key)
    }

    /// Whether a state of this key was emptied out.
    #[must_use]
    pub fn is_flushed(&self, key: &[u8], stamp: Stamp) -> bool {
        self.store.is_flushed(key, stamp)
    }

    /// Frees what was emptied out, whenever something was, for as long as it is run.
    pub async fn free_flushed(self: Arc<Self>) {
        loop {
            self.flushed.notified().await;
            for group in 0..self.store.groups() {
                self.store.free_flushed(group);
                // Requests come first.
                tokio::task::yield_now().await;
            }
        }
    }

    /// How many live values it holds of a database, by partition.
    pub async fn count_live(&self, database: Database, wall: Millis) -> Vec<(PartitionId, u32)> {
        let now = self.now(wall).millis();
        let mut counts = Vec::new();
        for group in 0..self.store.groups() {
            counts.extend(self.store.count_live(group, database, now));
            tokio::task::yield_now().await;
        }
        counts
    }

    /// Promises to take nothing older than `ballot` for a key, and shows what is held of it, how that
    /// came to be, and the newest version of which nothing is known any more.
    pub fn promise<T>(
        &self,
        key: HashedKey<'_>,
        ballot: Version,
        (wall, now): (Millis, Instant),
        show: impl FnOnce(Option<RecordRef<'_>>, Option<&[u8]>) -> T,
    ) -> Result<Promised<T>, Refusal> {
        if !self.votes(key.partition, now) {
            return Err(Refusal::NoVote);
        }
        self.observe(Stamp::fresh(ballot), wall)?;
        if self.is_held(key, ballot, now) {
            // The flush is a round trip away: it is worth another try.
            return Ok(Promised::Refused { by: ballot });
        }
        Ok(self.store.promise(key, ballot, self.now(wall), show))
    }

    /// The newest version of which nothing is known any more; see [`Store::floor`].
    #[must_use]
    pub fn floor(&self, key: HashedKey<'_>) -> Version {
        self.store.floor(key)
    }

    /// A ballot that was promised is used for nothing; see [`Store::release`].
    pub fn release(&self, key: HashedKey<'_>, ballot: Version) {
        self.store.release(key, ballot);
    }

    /// Takes the state that an update has made.
    pub fn accept(
        &self,
        key: HashedKey<'_>,
        proposal: Proposal<'_>,
        (wall, now): (Millis, Instant),
    ) -> Result<Accepted, Refusal> {
        self.admit(proposal.record, wall)?;
        if !self.votes(key.partition, now) {
            // It may have promised otherwise before it lost its memory, so it does not count. What it
            // takes it need not be given later.
            self.write(key, proposal.record, wall)?;
            return Err(Refusal::NoVote);
        }
        let is_held = |next: &Version| self.is_held(key, *next, now);
        let next = proposal.next.filter(|next| !is_held(next));
        let proposal = Proposal { next, ..proposal };
        Ok(self.store.accept(key, proposal, self.now(wall)))
    }

    /// Whether no ballot is promised for a key, because a flush of its database is under way. One
    /// that begins now learns of this ballot.
    fn is_held(&self, key: HashedKey<'_>, ballot: Version, now: Instant) -> bool {
        self.holds.note_ballot(ballot.hlc);
        self.holds.contains(key.bytes, now)
    }

    /// Whether this copy counts among those that decide on updates of a partition: it holds what it
    /// ever acknowledged, and whoever had a promise that it does not know of has given up by now.
    #[must_use]
    pub fn votes(&self, partition: PartitionId, now: Instant) -> bool {
        let from = self.standing.votes_from;
        self.is_sure(partition) && from.is_none_or(|from| from <= now)
    }

    /// Whether a record keeps the rules for what any copy of it may be: its length and its clock,
    /// which this node's clock passes.
    pub fn admit(&self, record: RecordRef<'_>, wall: Millis) -> Result<(), Refusal> {
        if record
            .value
            .is_some_and(|value| value.len() > self.value_bytes_max)
        {
            return Err(Refusal::TooBig);
        }
        self.observe(record.stamp(), wall)
    }

    /// Changes when a live value ends.
    pub fn change_expiry(
        &self,
        key: HashedKey<'_>,
        expiry: Expiry,
        wall: Millis,
    ) -> Result<ExpiryChange, Refusal> {
        self.observe(Stamp::fresh(expiry.version), wall)?;
        let now = self.now(wall).millis();
        Ok(self.store.change_expiry(key, expiry, now))
    }

    /// How far this node's clock is ahead of those of most peers, if they refuse what it writes: it
    /// must not coordinate then.
    #[must_use]
    pub fn refused_ahead_ms(&self) -> Option<u64> {
        let ahead_ms = self.refused_ahead_ms.load(Ordering::Relaxed);
        (ahead_ms > 0).then_some(ahead_ms)
    }

    /// Most peers refuse this node's clock, which is so far ahead, or no longer. Whether that is news.
    pub fn set_refused(&self, ahead_ms: Option<u64>) -> bool {
        let ahead_ms = ahead_ms.map_or(0, |ms| ms.max(1));
        let before = self.refused_ahead_ms.swap(ahead_ms, Ordering::Relaxed);
        (before == 0) != (ahead_ms == 0)
    }

    /// By whose name this node makes versions, where `writer` is that of this start. It changes when
    /// the clock is dropped, so that no version is given twice.
    #[must_use]
    pub fn writer(&self, writer: NodeTag) -> NodeTag {
        match self.clock_drops.load(Ordering::Acquire) {
            0 => writer,
            drops => NodeTag(writer.0.wrapping_add(drops.wrapping_mul(WRITER_STEP))),
        }
    }

    /// Drops this node's clock to the wall clock, because peers have refused all that it has stamped.
    /// What it holds of that itself goes, and is copied from other homes where it replaced something.
    pub fn drop_clock(&self, wall: Millis) {
        // First the name, so that no tick of the dropped clock is under the one before.
        self.clock_drops.fetch_add(1, Ordering::AcqRel);
        self.clock.drop_to(wall);
        let last = Version {
            hlc: HlcTime::from_millis(wall.saturating_add(self.clock.drift_max())),
            node: NodeTag(u64::MAX),
        };
        for group in 0..self.store.groups() {
            for partition in self.store.forget_after(group, last) {
                self.set_lost(partition);
            }
        }
    }

    /// How far ahead of its clock a replica takes writes, in milliseconds.
    #[must_use]
    pub fn clock_drift_max_ms(&self) -> i64 {
        i64::try_from(self.clock.drift_max().as_millis()).unwrap_or(i64::MAX)
    }

    /// Whether the clock is further ahead of the wall clock than peers would follow, and by how much.
    #[must_use]
    pub fn clock_ahead(&self, wall: Millis) -> Option<ClockDrift> {
        self.clock.check(self.now(wall), wall).err()
    }

    /// Writes refused because their clock was too far ahead.
    #[must_use]
    pub fn drift_refusals(&self) -> u64 {
        self.drift_refusals.load(Ordering::Relaxed)
    }

    /// Passes a version's clock, if it is sane.
    pub fn observe(&self, stamp: Stamp, now: Millis) -> Result<(), Refusal> {
        self.clock
            .observe(stamp.newest().hlc, now)
            .map_err(|drift| self.refuse(stamp, drift))
    }

    fn refuse(&self, stamp: Stamp, drift: ClockDrift) -> Refusal {
        let refused = self.drift_refusals.fetch_add(1, Ordering::Relaxed) + 1;
        // 1, 2, 4, 8, ...: a broken clock must not flood the log as well.
        if refused.is_power_of_two() {
            let writer = stamp.newest().node.0;
            warn!(%drift, writer = format_args!("{writer:x}"), refused, "refused a write; check the clocks (max_clock_drift)");
        }
        Refusal::ClockDrift
    }
}

/// Odd: the names of one start do not repeat. (The golden ratio, in 64 bits.)
const WRITER_STEP: u64 = 0x9e37_79b9_7f4a_7c15;
fn written(applied: Applied) -> Written {
    match applied {
        Applied::Applied { prior } => Written::Applied(prior),
        Applied::Superseded { by } => Written::Superseded(by),
        Applied::Promised { ballot } => Written::Promised(ballot),
    }
}
