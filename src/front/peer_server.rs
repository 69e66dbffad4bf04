//! The door for peers: request frames in, response frames out.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde_bytes::Bytes as ByteSlice;
use tokio::sync::{Semaphore, oneshot, watch};

use super::answers::{TOO_BIG, answer_of, finish, to_answer};
use super::channels::Channels;
use crate::env::{Clock, Tasks};
use crate::model::{
    Database, DatabaseSet, HashedKey, KeyHasher, Millis, PartitionId, RecordRef, Summary, Version,
    check_key,
};
use crate::net::{LARGE_BYTES, LateResponse, PeerService};
use crate::node::anti_entropy::Responder;
use crate::node::handoff::{Handoff, MissedRef, NewHint};
use crate::node::key_pages::{KeysWanted, key_pages};
use crate::node::replica::Replica;
use crate::node::updates::Proposer;
use crate::protocol::{MissedExpiry, UpdateId, Updated, Updates};
use crate::ring::{Partitions, View};
use crate::store::{Accepted, ExpiryChange, Promised, Proposal};
use crate::wire::{
    Answer, FrameError, FrameReader, Operation, PAGE_BYTES_MAX, RESPONSE_VALUES_BYTES_MAX, Refusal,
    RequestHeader, ResponseFrame, ResponseHeader, WireExpiry, WireProposal, WireRecord,
    WireUpdates, encode, frame_bytes_max, from_wire, to_wire,
};

/// Where a node's encoded member table comes from.
pub type MemberTableSource = Box<dyn Fn() -> Bytes + Send + Sync>;

/// What peers are served from.
#[derive(Debug)]
pub struct Served {
    /// This node's copies.
    pub replica: Arc<Replica>,
    /// What it holds in the stead of others.
    pub handoff: Arc<Handoff>,
    /// What it tells of its copies to be compared.
    pub responder: Responder,
}

/// Carries out what peers ask of this node as a replica.
pub struct PeerServer {
    replica: Arc<Replica>,
    handoff: Arc<Handoff>,
    responder: Responder,
    clock: Arc<dyn Clock>,
    hasher: KeyHasher,
    partitions: Partitions,
    view: watch::Receiver<Arc<View>>,
    member_table: MemberTableSource,
    proposer: OnceLock<Proposer>,
    channels: OnceLock<Arc<Channels>>,
    /// Bytes of large records that may be taken at the same time, in KiB.
    taking: Arc<Semaphore>,
    /// The same of those that are given.
    giving: Arc<Semaphore>,
    tasks: Tasks,
}

impl PeerServer {
    /// A door to what a node holds.
    #[must_use]
    pub fn new(
        served: Served,
        clock: Arc<dyn Clock>,
        hasher: KeyHasher,
        view: watch::Receiver<Arc<View>>,
        member_table: MemberTableSource,
    ) -> Self {
        let partitions = view.borrow().params().partitions;
        let Served {
            replica,
            handoff,
            responder,
        } = served;
        Self {
            replica,
            handoff,
            responder,
            clock,
            hasher,
            partitions,
            view,
            member_table,
            proposer: OnceLock::new(),
            channels: OnceLock::new(),
            taking: Arc::new(Semaphore::new(TAKING_KIB_MAX as usize)),
            giving: Arc::new(Semaphore::new(TAKING_KIB_MAX as usize)),
            tasks: Tasks::new(),
        }
    }

    /// Answers one operation; whether the answer is sure.
    fn answer(
        &self,
        operation: Operation<'_>,
        wall: Millis,
        room: usize,
        out: &mut Vec<u8>,
    ) -> bool {
        match operation {
            Operation::Read(key) => {
                let Some(key) = self.key(key) else {
                    encode(&TOO_BIG, out);
                    return true;
                };
                self.read(key, room, out);
                return self.replica.is_sure(key.partition);
            }
            Operation::Summary(key) => {
                let Some(key) = self.key(key) else {
                    encode(&TOO_BIG, out);
                    return true;
                };
                encode(&Answer::Summary(self.replica.summary(key)), out);
                return self.replica.is_sure(key.partition);
            }
            Operation::Write(key, record) => {
                let key = self.key(key).ok_or(Refusal::TooBig);
                let written = key.and_then(|key| self.replica.write(key, record.into(), wall));
                encode(&written.map_or_else(Answer::Refused, to_answer), out);
            }
            Operation::Expire(key, expiry) => return self.expire(key, expiry, wall, out),
            Operation::Scan(partition, after, ring) => {
                if ring != self.view.borrow().version() {
                    encode(&Answer::Refused(Refusal::OtherRing), out);
                    return false;
                }
                self.scan(partition, after, out);
                return self.replica.is_source(partition);
            }
            Operation::HintedRead(key) => {
                self.hinted(key, room, out);
                return false;
            }
            Operation::HintedSummary(key) => {
                let held = self.handoff.summary(key);
                let held = held.filter(|held| !self.replica.is_flushed(key, held.stamp));
                encode(&Answer::Summary(held), out);
                return false;
            }
            Operation::Members => {
                let table = (self.member_table)();
                encode(&Answer::Members(ByteSlice::new(&table)), out);
            }
            Operation::Clock => encode(&Answer::Clock(self.clock.machine_wall()), out),
            Operation::Compare(..)
            | Operation::Symbols(..)
            | Operation::States(..)
            | Operation::Fetch(..) => self.compare(operation, room, out),
            Operation::Publish(..) | Operation::Hold(..) | Operation::Flush(..) => {
                encode(&self.hear(operation, wall), out);
            }
            Operation::Promise(..) | Operation::Accept(..) | Operation::Release(..) => {
                self.decide(operation, wall, room, out);
            }
            // They wait for the disk, or for other homes, or take a while: see `serve`.
            Operation::Keys(..)
            | Operation::Hint(..)
            | Operation::HintExpiry(..)
            | Operation::Update(..)
            | Operation::ReadLarge(_)
            | Operation::Count(_) => {
                encode(&Answer::Refused(Refusal::Busy), out);
            }
        }
        true
    }

    /// Answers what is asked to find and move differences between replicas.
    fn compare(&self, operation: Operation<'_>, room: usize, out: &mut Vec<u8>) {
        let responder = &self.responder;
        match operation {
            Operation::Compare(partition, key, cut, count) => {
                responder.compare(partition, key, cut, count, out);
            }
            Operation::Symbols(key, from, count) => responder.symbols(key, from, count, out),
            Operation::States(partition, cut, after) => {
                responder.states(partition, cut, after, out);
            }
            Operation::Fetch(partition, hash, than) => {
                responder.fetch(partition, hash, than, room, out);
            }
            // It is asked for these four only.
            _ => encode(&Answer::Refused(Refusal::NoSession), out),
        }
    }

    /// Answers what all nodes are told.
    fn hear(&self, operation: Operation<'_>, wall: Millis) -> Answer<'static> {
        match operation {
            Operation::Publish(channel, message) => {
                let heard = self.channels.get().map_or(0, |channels| {
                    let channel = Bytes::copy_from_slice(channel);
                    let message = Bytes::copy_from_slice(message);
                    channels.publish(&channel, &message, self.clock.monotonic())
                });
                Answer::Heard(u32::try_from(heard).unwrap_or(u32::MAX))
            }
            Operation::Hold(databases, number) => {
                let databases = DatabaseSet::from_bits(databases);
                let moment = (wall, self.clock.monotonic());
                let held = self.replica.hold(databases, number, moment);
                held.map_or_else(Answer::Refused, Answer::Held)
            }
            Operation::Flush(databases, up_to, number) => {
                let databases = DatabaseSet::from_bits(databases);
                let moment = (wall, self.clock.monotonic());
                let up_to = from_wire(up_to);
                let flushed = self.replica.flush_held(databases, up_to, number, moment);
                flushed.map_or_else(Answer::Refused, |()| Answer::Flushed)
            }
            // It is asked for these three only.
            _ => Answer::Refused(Refusal::OtherRing),
        }
    }

    /// Answers what is asked to decide on an update.
    fn decide(&self, operation: Operation<'_>, wall: Millis, room: usize, out: &mut Vec<u8>) {
        match operation {
            Operation::Promise(key, ballot, ring) => {
                self.promise(key, from_wire(ballot), (ring, room), wall, out);
            }
            Operation::Accept(key, proposal, ring) => {
                encode(&self.accept(key, proposal, ring, wall), out);
            }
            Operation::Release(key, ballot) => {
                if let Some(key) = self.key(key) {
                    self.replica.release(key, from_wire(ballot));
                }
                encode(&Answer::Released, out);
            }
            // It is asked for these three only.
            _ => encode(&Answer::Refused(Refusal::NoVote), out),
        }
    }

    /// Promises a ballot, and tells what is held.
    fn promise(
        &self,
        key: &[u8],
        ballot: Version,
        (ring, room): (u64, usize),
        wall: Millis,
        out: &mut Vec<u8>,
    ) {
        let refused = |refusal| Answer::Refused(refusal);
        let Some(key) = self.key(key) else {
            return encode(&TOO_BIG, out);
        };
        if ring != self.view.borrow().version() {
            return encode(&refused(Refusal::OtherRing), out);
        }
        if room == 0 {
            return encode(&refused(Refusal::Busy), out);
        }
        let floor = to_wire(self.replica.floor(key));
        let moment = (wall, self.clock.monotonic());
        let promised = self
            .replica
            .promise(key, ballot, moment, |record, lineage| {
                // Encoded under the partition's lock, straight from the store: the one copy made.
                let (record, lineage) = (record.map(Into::into), lineage.map(ByteSlice::new));
                encode(&Answer::Promise(record, lineage, floor), out);
            });
        match promised {
            Ok(Promised::Promised(())) => {}
            Ok(Promised::Refused { by }) => encode(&Answer::Outbid(to_wire(by)), out),
            Ok(Promised::Full) => encode(&refused(Refusal::Busy), out),
            Err(refusal) => encode(&refused(refusal), out),
        }
    }

    /// Takes the state that an update has made.
    fn accept(
        &self,
        key: &[u8],
        proposal: WireProposal<'_>,
        ring: u64,
        wall: Millis,
    ) -> Answer<'static> {
        let Some(key) = self.key(key) else {
            return TOO_BIG;
        };
        if ring != self.view.borrow().version() {
            return Answer::Refused(Refusal::OtherRing);
        }
        let next = proposal.next();
        let proposal = Proposal {
            record: proposal.record.into(),
            lineage: proposal.lineage,
            base: proposal.base,
            next,
        };
        let moment = (wall, self.clock.monotonic());
        match self.replica.accept(key, proposal, moment) {
            Ok(Accepted::Accepted { is_next_promised }) => Answer::Accepted(is_next_promised),
            Ok(Accepted::Refused { by }) => Answer::Outbid(to_wire(by)),
            Err(refusal) => Answer::Refused(refusal),
        }
    }

    /// Makes the updates of a frame that holds nothing else. Its response waits for other homes.
    fn update(
        &self,
        frame: &Bytes,
        mut header: ResponseHeader<'static>,
    ) -> Result<LateResponse, FrameError> {
        let mut operations = FrameReader::new(frame);
        let _header: RequestHeader<'_> = operations.read()?;
        let mut pledges = Vec::new();
        for _ in 0..header.count {
            let Operation::Update(key, updates) = operations.read()? else {
                return Err(FrameError::Mixed);
            };
            pledges.push(self.submit(key, updates)?);
        }
        header.is_sure = false;
        let replica = Arc::clone(&self.replica);
        // Room is left for the answers without replies, and for flushes.
        let spare = RESPONSE_VALUES_BYTES_MAX / 2;
        let bytes_max = frame_bytes_max(replica.value_bytes_max()).saturating_sub(spare);
        Ok(Box::pin(async move {
            let mut out = Vec::new();
            let frame = ResponseFrame::start(&header, &mut out);
            for pledge in pledges {
                let updated = match pledge {
                    // The node is stopping.
                    Ok(told) => told.await.unwrap_or(Updated::Unknown),
                    Err(refusal) => {
                        encode(&Answer::Refused(refusal), &mut out);
                        continue;
                    }
                };
                let mut told = Vec::new();
                encode(&updated, &mut told);
                if let Updated::Made(replies) = &updated
                    && out.len().saturating_add(told.len()) > bytes_max
                {
                    // A longer frame would end the connection for all.
                    let count = u32::try_from(replies.len()).unwrap_or(u32::MAX);
                    told.clear();
                    encode(&Updated::Lost(count), &mut told);
                }
                encode(&Answer::Updated(ByteSlice::new(&told)), &mut out);
            }
            finish(frame, &replica, false, &mut out);
            out
        }))
    }

    /// Takes a large record: on a thread that serves nobody, because it takes milliseconds. `None`:
    /// as many bytes as may are being taken already.
    fn write_large(
        &self,
        (frame, key): (&Bytes, &[u8]),
        record: RecordRef<'_>,
        (header, wall): (ResponseHeader<'static>, Millis),
    ) -> Option<LateResponse> {
        let kib = u32::try_from(frame.len() / 1024).unwrap_or(u32::MAX);
        let kib = kib.min(TAKING_KIB_MAX);
        let taking = Arc::clone(&self.taking);
        let taking = taking.try_acquire_many_owned(kib).ok()?;
        let (replica, hasher) = (Arc::clone(&self.replica), self.hasher);
        let partitions = self.partitions;
        let value = record.value.map(|value| frame.slice_ref(value));
        let key = frame.slice_ref(key);
        let (version, expiry) = (record.version, record.expiry);
        let (kind, covers) = (record.kind, record.covers);
        let write = move || {
            let _taking = taking;
            let hash = hasher.hash(&key);
            let record = RecordRef {
                version,
                expiry,
                value: value.as_deref(),
                kind,
                covers,
            };
            let key = HashedKey {
                bytes: &key,
                hash,
                partition: partitions.of(hash),
            };
            replica.write_large(key, record, wall)
        };
        let tasks = self.tasks.clone();
        let serving = Arc::clone(&self.replica);
        Some(Box::pin(async move {
            let written = tasks.offload(write).await.unwrap_or(Err(Refusal::Busy));
            let mut out = Vec::new();
            let frame = ResponseFrame::start(&header, &mut out);
            encode(&written.map_or_else(Answer::Refused, to_answer), &mut out);
            finish(frame, &serving, true, &mut out);
            out
        }))
    }

    /// Gives a record that may be large: on a thread that serves nobody, because it takes milliseconds.
    /// `None`: as many bytes as may are being given already.
    fn read_large(
        &self,
        key: HashedKey<'_>,
        header: ResponseHeader<'static>,
    ) -> Option<LateResponse> {
        let held = self.replica.summary(key).and_then(|held| held.value_bytes);
        let bytes = usize::try_from(held.unwrap_or(0)).unwrap_or(usize::MAX);
        let kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
        let giving = Arc::clone(&self.giving);
        let giving = giving
            .try_acquire_many_owned(kib.min(TAKING_KIB_MAX))
            .ok()?;
        let (hash, partition) = (key.hash, key.partition);
        let bytes_of_key = Bytes::copy_from_slice(key.bytes);
        let replica = Arc::clone(&self.replica);
        let read = move || {
            let _giving = giving;
            // Room for all of it at once, and for what is around it.
            let mut out = Vec::with_capacity(bytes.saturating_add(LARGE_BYTES / 2));
            let frame = ResponseFrame::start(&header, &mut out);
            let key = HashedKey {
                bytes: &bytes_of_key,
                hash,
                partition,
            };
            replica.read(key, |record| {
                encode(&Answer::Record(record.map(Into::into)), &mut out);
            });
            finish(frame, &replica, replica.is_sure(partition), &mut out);
            out
        };
        let tasks = self.tasks.clone();
        let refused = Arc::clone(&self.replica);
        Some(Box::pin(async move {
            tasks.offload(read).await.unwrap_or_else(|_ended| {
                let mut out = Vec::new();
                let frame = ResponseFrame::start(&header, &mut out);
                encode(&Answer::Refused(Refusal::Busy), &mut out);
                finish(frame, &refused, false, &mut out);
                out
            })
        }))
    }

    /// Counts what is held of a database. That takes a while: others overtake it.
    fn count(&self, database: u8, header: ResponseHeader<'static>) -> LateResponse {
        let replica = Arc::clone(&self.replica);
        let wall = self.clock.wall();
        Box::pin(async move {
            let mut out = Vec::new();
            let frame = ResponseFrame::start(&header, &mut out);
            let mut counts = Vec::new();
            if let Ok(database) = Database::try_from(i64::from(database)) {
                for (partition, count) in replica.count_live(database, wall).await {
                    if replica.is_sure(partition) {
                        encode(&(partition, count), &mut counts);
                    }
                }
            }
            encode(&Answer::Counts(ByteSlice::new(&counts)), &mut out);
            finish(frame, &replica, true, &mut out);
            out
        })
    }

    fn submit(
        &self,
        key: &[u8],
        updates: WireUpdates<'_>,
    ) -> Result<Result<oneshot::Receiver<Updated>, Refusal>, FrameError> {
        let changes = FrameReader::new(updates.changes).read()?;
        if check_key(key).is_err() {
            return Ok(Err(Refusal::TooBig));
        }
        let Some(proposer) = self.proposer.get() else {
            return Ok(Err(Refusal::NoVote));
        };
        let id = UpdateId {
            coordinator: updates.coordinator,
            sequence: updates.sequence,
        };
        let until = updates.until;
        let updates = Updates {
            id,
            begun: updates.begun,
            is_open: updates.is_open,
            changes,
        };
        Ok(proposer.submit(Bytes::copy_from_slice(key), updates, until))
    }

    /// Makes updates by this proposer from now on. Before, it refuses them.
    pub fn set_proposer(&self, proposer: Proposer) {
        // The first one stays.
        let _set = self.proposer.set(proposer);
    }

    /// Gives messages to those who listen here from now on.
    pub fn set_channels(&self, channels: Arc<Channels>) {
        // The first ones stay.
        let _set = self.channels.set(channels);
    }

    /// Changes an expiry; whether the answer is sure.
    fn expire(&self, key: &[u8], expiry: WireExpiry, wall: Millis, out: &mut Vec<u8>) -> bool {
        let key = self.key(key);
        let changed = key
            .ok_or(Refusal::TooBig)
            .and_then(|key| self.replica.change_expiry(key, expiry.into(), wall));
        encode(
            &match changed {
                Ok(ExpiryChange::Done {
                    now_held,
                    expired_at_before,
                }) => Answer::Expiry(now_held, expired_at_before),
                Ok(ExpiryChange::Superseded { by }) => Answer::ExpirySuperseded(by),
                Err(refusal) => Answer::Refused(refusal),
            },
            out,
        );
        key.is_none_or(|key| self.replica.is_sure(key.partition))
    }

    /// The newest hint for a key, as [`Self::read`] gives a record.
    fn hinted(&self, key: &[u8], room: usize, out: &mut Vec<u8>) {
        let is_flushed = |stamp| self.replica.is_flushed(key, stamp);
        self.handoff.read(key, |record| {
            match record.filter(|record| !is_flushed(record.stamp())) {
                Some(record) if room == 0 => {
                    encode(&Answer::Summary(Some(Summary::of(record.into()))), out);
                }
                record => {
                    let record = record.map(|record| RecordRef::from(record).into());
                    encode(&Answer::Record(record), out);
                }
            }
        });
    }

    /// Keeps the hints of a frame that holds nothing else. Its response waits for the disk.
    fn keep(
        &self,
        frame: &Bytes,
        mut header: ResponseHeader<'static>,
    ) -> Result<LateResponse, FrameError> {
        let mut operations = FrameReader::new(frame);
        let _header: RequestHeader<'_> = operations.read()?;
        let mut hints = Vec::new();
        for _ in 0..header.count {
            let hint = match operations.read()? {
                Operation::Hint(home, key, record) => NewHint {
                    home,
                    key,
                    missed: MissedRef::Write(record.into()),
                },
                Operation::HintExpiry(home, key, expiry, of) => NewHint {
                    home,
                    key,
                    missed: MissedRef::Expiry(MissedExpiry {
                        expiry: expiry.into(),
                        of: of.map(from_wire),
                    }),
                },
                _ => return Err(FrameError::Mixed),
            };
            if check_key(hint.key).is_err() {
                return Err(FrameError::Mixed);
            }
            hints.push(hint);
        }
        let kept = self.handoff.keep(&hints);
        // What a stand-in says of a key is never all there is.
        header.is_sure = false;
        let replica = Arc::clone(&self.replica);
        Ok(Box::pin(async move {
            let mut out = Vec::new();
            let frame = ResponseFrame::start(&header, &mut out);
            for reply in kept.await {
                encode(&answer_of(reply), &mut out);
            }
            finish(frame, &replica, false, &mut out);
            out
        }))
    }

    fn scan(&self, partition: PartitionId, after: Option<u64>, out: &mut Vec<u8>) {
        let (mut count, mut page) = (0, Vec::new());
        let next = self.replica.scan(partition, after, |key, record| {
            encode(&(ByteSlice::new(key), WireRecord::from(record)), &mut page);
            count += 1;
            page.len() < PAGE_BYTES_MAX
        });
        encode(&Answer::Page(count, ByteSlice::new(&page), next), out);
    }

    /// Tells the keys of some partitions, asked for by a frame that holds nothing else. That takes a
    /// while: others overtake it. The caller asks again for partitions that are left out.
    fn keys(
        &self,
        frame: &Bytes,
        mut header: ResponseHeader<'static>,
    ) -> Result<LateResponse, FrameError> {
        let mut operations = FrameReader::new(frame);
        let _header: RequestHeader<'_> = operations.read()?;
        let mut wanted = Vec::new();
        for _ in 0..header.count {
            let Operation::Keys(partition, after, limit) = operations.read()? else {
                return Err(FrameError::Mixed);
            };
            if wanted.len() < KEYS_WANTED_MAX {
                wanted.push(KeysWanted {
                    partition,
                    after,
                    limit: usize::try_from(limit).unwrap_or(usize::MAX),
                });
            }
        }
        header.is_sure = false;
        let replica = Arc::clone(&self.replica);
        Ok(Box::pin(async move {
            let pages = key_pages(&replica, &wanted).await;
            let mut out = Vec::new();
            let frame = ResponseFrame::start(&header, &mut out);
            for page in &pages {
                let mut entries = Vec::new();
                for (key, held) in &page.entries {
                    encode(&(ByteSlice::new(key), held), &mut entries);
                }
                let count = u32::try_from(page.entries.len()).unwrap_or(u32::MAX);
                encode(
                    &Answer::Keys(count, ByteSlice::new(&entries), page.next),
                    &mut out,
                );
            }
            let told = u32::try_from(pages.len()).unwrap_or(u32::MAX);
            for _ in told..header.count {
                encode(&Answer::Refused(Refusal::Busy), &mut out);
            }
            let is_sure = |wanted: &KeysWanted| replica.is_sure(wanted.partition);
            let is_sure = wanted.iter().take(pages.len()).all(is_sure);
            finish(frame, &replica, is_sure, &mut out);
            out
        }))
    }

    /// The whole record unless it is large, while the response has room for values, its summary after
    /// that: the caller asks again for what it still needs.
    fn read(&self, key: HashedKey<'_>, room: usize, out: &mut Vec<u8>) {
        self.replica.read(key, |record| {
            // Encoded under the partition's lock, straight from the store: the one copy made.
            match record {
                Some(record) if room == 0 || record.value_bytes() >= LARGE_BYTES => {
                    encode(&Answer::Summary(Some(Summary::of(record))), out);
                }
                record => encode(&Answer::Record(record.map(Into::into)), out),
            }
        });
    }

    fn key<'a>(&self, bytes: &'a [u8]) -> Option<HashedKey<'a>> {
        check_key(bytes).ok()?;
        let hash = self.hasher.hash(bytes);
        Some(HashedKey {
            bytes,
            hash,
            partition: self.partitions.of(hash),
        })
    }
}

impl PeerService for PeerServer {
    #[expect(
        clippy::too_many_lines,
        reason = "an arm an operation, each a few lines"
    )]
    fn serve(&self, frame: &Bytes, out: &mut Vec<u8>) -> Result<Option<LateResponse>, FrameError> {
        let mut operations = FrameReader::new(frame);
        let RequestHeader {
            id,
            count,
            clock,
            flushes,
            ring,
            ..
        } = operations.read()?;
        let wall = self.clock.wall();
        self.replica.note_clock(clock, wall);
        // Before anything is looked at: what was flushed is not there for who knows that.
        self.replica
            .merge_flushes(flushes.map(|flushes| &flushes[..]), wall)?;
        let header = ResponseHeader {
            id,
            count,
            clock: self.replica.now(wall),
            flushes: None,
            is_sure: true,
        };
        let started = ResponseFrame::start(&header, out);
        let mut is_sure = true;
        let other_ring = ring.and_then(|ring| OtherRing::of(ring, &self.view));
        for number in 0..count {
            let operation = operations.read()?;
            if let (Some(ring), Operation::Write(key, _) | Operation::Expire(key, _)) =
                (&other_ring, &operation)
                && self.key(key).is_some_and(|key| ring.has_moved(key))
            {
                encode(&Answer::Refused(Refusal::OtherRing), out);
                continue;
            }
            let is_hint = matches!(operation, Operation::Hint(..) | Operation::HintExpiry(..));
            if is_hint && number == 0 {
                started.cancel(out);
                return self.keep(frame, header).map(Some);
            }
            if let Operation::Count(database) = operation
                && count == 1
            {
                started.cancel(out);
                return Ok(Some(self.count(database, header)));
            }
            if matches!(operation, Operation::Keys(..)) && number == 0 {
                started.cancel(out);
                return self.keys(frame, header).map(Some);
            }
            if matches!(operation, Operation::Update(..)) && number == 0 {
                started.cancel(out);
                return self.update(frame, header).map(Some);
            }
            if let Operation::Write(key, record) = operation
                && count == 1
                && frame.len() >= LARGE_BYTES
                && self.key(key).is_some()
            {
                let record = RecordRef::from(record);
                let written = self.write_large((frame, key), record, (header, wall));
                if let Some(late) = written {
                    started.cancel(out);
                    return Ok(Some(late));
                }
                // As many as may are being taken.
                encode(&Answer::Refused(Refusal::Busy), out);
                continue;
            }
            if let Operation::ReadLarge(key) = operation
                && count == 1
                && let Some(late) = self.key(key).and_then(|key| self.read_large(key, header))
            {
                started.cancel(out);
                return Ok(Some(late));
            }
            let room = RESPONSE_VALUES_BYTES_MAX.saturating_sub(started.bytes(out));
            is_sure &= self.answer(operation, wall, room, out);
        }
        finish(started, &self.replica, is_sure, out);
        Ok(None)
    }
}

impl fmt::Debug for PeerServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerServer")
            .field("replica", &self.replica)
            .finish_non_exhaustive()
    }
}

/// A caller's ring that is not the one of now.
struct OtherRing {
    version: u64,
    now: Arc<View>,
}

impl OtherRing {
    fn of(version: u64, view: &watch::Receiver<Arc<View>>) -> Option<Self> {
        let now = view.borrow();
        (now.version() != version).then(|| Self {
            version,
            now: Arc::clone(&now),
        })
    }

    /// Whether the key has other homes by now: a node that has become one may have copied from this
    /// one already, and would miss what is written to the earlier homes.
    fn has_moved(&self, key: HashedKey<'_>) -> bool {
        self.now.has_moved_since(self.version, key.partition)
    }
}

/// Twice as many partitions as a coordinator asks for at once.
const KEYS_WANTED_MAX: usize = 1_024;
/// 256 MiB of large records, from all peers together: beyond, a peer's write is answered with `Busy`.
const TAKING_KIB_MAX: u32 = 256 * 1024;
/// The same in bytes.
pub const TAKING_BYTES_MAX: u64 = TAKING_KIB_MAX as u64 * 1024;
