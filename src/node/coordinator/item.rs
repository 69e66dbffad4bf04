//! One request of a batch: its state machine, and what came of it.

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{Action, Inner, Outcome, Request, RequestError};
use crate::model::{
    Body, Expiry, HashedKey, Kind, Level, Millis, NodeTag, PartitionId, Stamp, Summary, Version,
};
use crate::node::handoff::Owed;
use crate::protocol::{
    QuorumNotMet, ReadOp, ReadPlan, StandIn, StandIns, Voters, Want, WriteOp, WritePlan,
};
use crate::ring::View;

/// One request under way.
pub(super) struct Item {
    pub(super) key: Bytes,
    pub(super) hash: u64,
    pub(super) partition: PartitionId,
    /// Only replicas in the coordinator's own zone count.
    pub(super) is_local_only: bool,
    /// A replica would not take what the others hold, for the sake of an update under way.
    pub(super) is_in_the_way: bool,
    /// The read is given up, to be made again later.
    pub(super) deferred: Option<Deferred>,
    /// Some home was not connected, or another than those of this ring was meant: it is worth a try a
    /// moment later.
    pub(super) is_to_retry: bool,
    wanted: Wanted,
    pub(super) operation: Op,
}

/// Why a read is made again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deferred {
    /// Its value did not fit.
    NoRoom,
    /// Its value is large: it has to have its turn, and more time.
    Large { bytes: usize },
}

/// How consistent a request is to be.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    level: Level,
    is_sloppy: bool,
}

/// A request that is tried again, and what its earlier tries have left behind.
pub(super) struct Again {
    pub(super) request: Request,
    earlier: Option<WriteOp>,
    before: Option<(Stamp, Option<Millis>)>,
}

impl From<Request> for Again {
    fn from(request: Request) -> Self {
        Self {
            request,
            earlier: None,
            before: None,
        }
    }
}

pub(super) enum Op {
    Read(ReadOp),
    Write { op: WriteOp, payload: Payload },
    Expire(ExpireOp),
}

/// What a write leaves behind.
pub(super) struct Payload {
    /// `None`: a tombstone.
    pub(super) value: Option<Bytes>,
    pub(super) expires_at: Option<Millis>,
}

/// A change of expiry: each replica applies it to what it holds and tells what it holds then. From
/// there on it is a read at w: those who hold less than the newest are repaired.
pub(super) struct ExpireOp {
    pub(super) read: ReadOp,
    pub(super) plan: ReadPlan,
    pub(super) expiry: Expiry,
    /// The newest value's end before the change.
    pub(super) before: Option<(Stamp, Option<Millis>)>,
    pub(super) restamps_left: u8,
}

/// What a batch was begun with.
pub(super) struct Start<'a> {
    pub(super) shared: &'a Inner,
    pub(super) view: &'a View,
    /// The wall clock, and the monotonic one.
    pub(super) wall: Millis,
    pub(super) moment: Instant,
    /// The cluster's clock.
    pub(super) now: Millis,
    /// Who is owed hints.
    pub(super) owed: &'a Owed,
}

impl Item {
    pub(super) fn new(start: &Start<'_>, again: Again) -> Self {
        let Again {
            request,
            earlier,
            before,
        } = again;
        let mut item = Self::of(start, request);
        match (&mut item.operation, earlier) {
            (Op::Write { op, .. }, Some(earlier)) => op.follow(&earlier),
            (Op::Expire(op), _) => op.before = before,
            _ => {}
        }
        item
    }

    fn of(start: &Start<'_>, request: Request) -> Self {
        let Start {
            shared,
            view,
            wall,
            now,
            owed,
            ..
        } = *start;
        let Request {
            key,
            action,
            level,
            is_sloppy,
        } = request;
        let HashedKey {
            hash, partition, ..
        } = shared.hashed(view, &key);
        let is_to_be_sloppy = is_sloppy && level != Level::Linearizable;
        let homes = Homes {
            is_sloppy: is_to_be_sloppy,
            owed: owed_homes(owed, view.homes(partition)),
            ..Homes::of(shared, view, partition)
        };
        let read = |need, want| ReadOp::new(homes.count(), homes.read_plan(level, need, want, now));
        let quorum = shared.config.quorum;
        let reads = level.read(quorum, homes.in_zone()).count;
        let writes = level.write(quorum, homes.in_zone()).count;
        let version = || Version {
            hlc: shared.clock.tick(wall),
            node: shared.replica.writer(shared.writer),
        };
        let write = |value, expires_at| {
            let plan = homes.write_plan(level, writes);
            let payload = Payload { value, expires_at };
            let op = WriteOp::new(homes.count(), plan, version());
            Op::Write { op, payload }
        };
        let operation = match action {
            Action::Get => Op::Read(read(reads, Want::Record)),
            Action::Look => Op::Read(read(reads, Want::Summary)),
            Action::Set { value, expires_at } => write(Some(value), expires_at),
            Action::Delete => write(None, None),
            // Updates queue up by themselves: none comes here.
            Action::Update(_) => Op::Read(read(reads, Want::Summary)),
            Action::Expire { at } => {
                let plan = homes.read_plan(level, writes, Want::Summary, now);
                let version = version();
                Op::Expire(ExpireOp::new(&homes, plan, Expiry { version, at }))
            }
        };
        // Other homes may be known a moment later.
        let is_to_retry = homes.count() < usize::from(reads.max(writes))
            && shared.hedging.on_unreachable(shared.self_tag, start.moment);
        Self {
            key,
            hash,
            partition,
            is_local_only: level == Level::LocalQuorum && homes.in_zone() > 0,
            is_in_the_way: false,
            deferred: None,
            is_to_retry,
            wanted: Wanted { level, is_sloppy },
            operation,
        }
    }

    /// The read of a value, as it was requested.
    pub(super) fn get(&self) -> Request {
        Request {
            key: self.key.clone(),
            action: Action::Get,
            level: self.wanted.level,
            is_sloppy: self.wanted.is_sloppy,
        }
    }

    /// Whether it reads a value, and has not been answered.
    pub(super) fn may_be_deferred(&self) -> bool {
        matches!(&self.operation, Op::Read(op) if op.wants_record() && op.outcome().is_none())
    }

    pub(super) fn hashed(&self) -> HashedKey<'_> {
        HashedKey {
            bytes: &self.key,
            hash: self.hash,
            partition: self.partition,
        }
    }

    /// Who stands in as this replica, if it is no home.
    pub(super) fn stand_in(&self, replica: usize) -> Option<StandIn> {
        match &self.operation {
            Op::Read(op) | Op::Expire(ExpireOp { read: op, .. }) => op.stand_in(replica),
            Op::Write { op, .. } => op.stand_in(replica),
        }
    }

    /// Whether stand-ins made up its quorum.
    pub(super) const fn was_sloppy(&self) -> bool {
        match &self.operation {
            Op::Read(op) | Op::Expire(ExpireOp { read: op, .. }) => op.was_sloppy(),
            Op::Write { op, .. } => op.was_sloppy(),
        }
    }

    /// The read in it, whatever it is for.
    pub(super) const fn read(&self) -> Option<&ReadOp> {
        match &self.operation {
            Op::Read(op) | Op::Expire(ExpireOp { read: op, .. }) => Some(op),
            Op::Write { .. } => None,
        }
    }

    /// How long the newest value is that a read has seen so far.
    pub(super) fn newest_bytes(&self) -> usize {
        let newest = self.read().and_then(ReadOp::newest);
        let bytes = newest.and_then(|held| held.value_bytes).unwrap_or(0);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    pub(super) const fn read_mut(&mut self) -> Option<&mut ReadOp> {
        match &mut self.operation {
            Op::Read(op) | Op::Expire(ExpireOp { read: op, .. }) => Some(op),
            Op::Write { .. } => None,
        }
    }

    pub(super) const fn has_failed(&self) -> bool {
        match &self.operation {
            Op::Read(op) | Op::Expire(ExpireOp { read: op, .. }) => {
                matches!(op.outcome(), Some(Err(_)))
            }
            Op::Write { op, .. } => matches!(op.outcome(), Some(Err(_))),
        }
    }

    /// The request, to be tried again; `None` when that is of no use.
    pub(super) fn again(&self) -> Option<Again> {
        if !self.is_to_retry || !self.has_failed() {
            return None;
        }
        let (action, earlier, before) = match &self.operation {
            Op::Read(op) if op.wants_record() => (Action::Get, None, None),
            Op::Read(_) => (Action::Look, None, None),
            Op::Write { op, payload } => {
                let expires_at = payload.expires_at;
                let action = match payload.value.clone() {
                    Some(value) => Action::Set { value, expires_at },
                    None => Action::Delete,
                };
                (action, Some(op.clone()), None)
            }
            Op::Expire(op) => (Action::Expire { at: op.expiry.at }, None, op.before),
        };
        let request = Request {
            key: self.key.clone(),
            action,
            level: self.wanted.level,
            is_sloppy: self.wanted.is_sloppy,
        };
        Some(Again {
            request,
            earlier,
            before,
        })
    }

    /// What the client is told. Every item has an outcome once the batch was waited for. `now`
    /// judges what has ended.
    pub(super) fn outcome(&self, now: Millis) -> Outcome {
        let live = |held: &Option<Summary>| held.filter(|summary| summary.is_live(now));
        match &self.operation {
            Op::Read(op) => match op.outcome() {
                Some(Ok(held)) if op.wants_record() => {
                    let record = live(held).and_then(|_| op.record());
                    match record.map(|record| (&record.body, record.kind)) {
                        Some((Body::Value(value), Kind::String)) => {
                            Outcome::Value(Some(value.clone()))
                        }
                        Some((Body::Value(value), Kind::Hash)) => Outcome::Hash(value.clone()),
                        Some((Body::Tombstone, _)) | None => Outcome::Value(None),
                    }
                }
                Some(Ok(held)) => Outcome::Look(live(held)),
                Some(Err(_)) if self.is_in_the_way => Outcome::Failed(RequestError::InTheWay),
                Some(Err(error)) => Outcome::Failed(RequestError::Read(*error)),
                None => unanswered(),
            },
            Op::Write { op, payload } => match op.outcome() {
                Some(Ok(prior)) if payload.value.is_none() => Outcome::Deleted(prior.live),
                Some(Ok(_)) => Outcome::Written,
                Some(Err(error)) => Outcome::Failed(RequestError::Write(*error)),
                None => unanswered(),
            },
            Op::Expire(op) => match op.read.outcome() {
                Some(Ok(held)) => Outcome::Expiry {
                    existed: live(held).is_some(),
                    had_end: op.before.is_some_and(|(_, at)| at.is_some()),
                },
                Some(Err(error)) => Outcome::Failed(RequestError::Write(*error)),
                None => unanswered(),
            },
        }
    }
}

impl ExpireOp {
    fn new(homes: &Homes<'_>, plan: ReadPlan, expiry: Expiry) -> Self {
        let plan = ReadPlan {
            // All homes are to hear of it.
            voters: Voters::EVERYONE,
            frugal: false,
            stand_ins: match homes.is_sloppy {
                true => StandIns::ForEachFailure,
                false => StandIns::Never,
            },
            ..plan
        };
        Self {
            read: ReadOp::new(homes.count(), plan),
            plan,
            expiry,
            before: None,
            restamps_left: RESTAMPS_MAX,
        }
    }

    /// What was written up to this version was flushed; see [`ReadOp::on_flush`].
    pub(super) fn on_flush(&mut self, up_to: Version) {
        self.read.on_flush(up_to);
        self.before = self.before.filter(|(stamp, _)| stamp.value > up_to);
    }

    pub(super) fn note_before(&mut self, held: Option<Summary>, before: Option<Millis>) {
        let Some(stamp) = held.map(|summary| summary.stamp) else {
            return;
        };
        if self.before.is_none_or(|(newest, _)| newest < stamp) {
            self.before = Some((stamp, before));
        }
    }
}

/// The homes of a key, as a coordinator sees them.
struct Homes<'a> {
    homes: &'a [NodeTag],
    /// Whether each is in the coordinator's own zone.
    near: SmallVec<[bool; 3]>,
    /// The coordinator's own number, if it is one of them.
    own: Option<usize>,
    is_sloppy: bool,
    owed: Voters,
}

impl<'a> Homes<'a> {
    fn of(shared: &Inner, view: &'a View, partition: PartitionId) -> Self {
        let homes = view.homes(partition);
        let zone = |tag| view.member(tag).map(|member| member.zone.as_str());
        let own_zone = zone(shared.self_tag);
        Self {
            homes,
            near: homes.iter().map(|&home| zone(home) == own_zone).collect(),
            own: homes.iter().position(|&home| home == shared.self_tag),
            is_sloppy: false,
            owed: Voters::NOBODY,
        }
    }

    const fn count(&self) -> usize {
        self.homes.len()
    }

    fn in_zone(&self) -> u8 {
        let near = self.near.iter().filter(|&&near| near).count();
        u8::try_from(near).unwrap_or(u8::MAX)
    }

    fn voters(&self, level: Level) -> Voters {
        if level == Level::LocalQuorum && self.in_zone() > 0 {
            Voters::those(self.count(), |home| self.near[home])
        } else {
            Voters::EVERYONE
        }
    }

    fn read_plan(&self, level: Level, need: u8, want: Want, now: Millis) -> ReadPlan {
        ReadPlan {
            need,
            voters: self.voters(level),
            strict: level == Level::Linearizable,
            frugal: level == Level::One,
            want,
            // The local copy costs no network, one in the same zone less than another.
            first: self
                .own
                .or_else(|| self.near.iter().position(|&near| near))
                .unwrap_or(0),
            stand_ins: match self.is_sloppy {
                true => StandIns::WhereNeeded,
                false => StandIns::Never,
            },
            owed: self.owed,
            now,
        }
    }

    fn write_plan(&self, level: Level, need: u8) -> WritePlan {
        WritePlan {
            need,
            voters: self.voters(level),
            is_sloppy: self.is_sloppy,
        }
    }
}

fn owed_homes(owed: &Owed, homes: &[NodeTag]) -> Voters {
    if owed.is_empty() {
        return Voters::NOBODY;
    }
    Voters::those(homes.len(), |home| !owed.holders(homes[home]).is_empty())
}

/// The deadline gives an outcome to every item that has none: this is never reached.
fn unanswered() -> Outcome {
    debug_assert!(false, "an item without an outcome");
    let none = QuorumNotMet {
        need: 0,
        got: 0,
        refusal: None,
    };
    Outcome::Failed(RequestError::Write(none))
}

/// See `VERSIONS_MAX` of [`WriteOp`].
const RESTAMPS_MAX: u8 = 32;
