//! Requests that travel together: their state machines, and the hands that carry actions out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_bytes::Bytes as ByteSlice;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::item::{Item, Op, Payload, Start};
use super::outbox::{Expected, Outbox, Parcel, What};
use super::reply::Reply;
use super::{Inner, Outcome, Request};
use crate::model::{
    Expiry, HlcTime, Millis, NodeTag, PartitionId, Prior, RecordRef, Stamp, Summary, Version,
};
use crate::net::{CallError, Lane, ReplySink, Response};
use crate::node::replica::Written;
use crate::protocol::{ReadAction, ReadOp, Told, WriteAction, WriteOp, WriteSample};
use crate::ring::View;
use crate::store::ExpiryChange;
use crate::wire::{FrameError, Operation, Refusal};

/// A batch under way. It lives on after the answer, for late replies and the repairs they cause,
/// held by the calls that wait for them.
pub(super) struct Batch {
    shared: Arc<Inner>,
    view: Arc<View>,
    state: Mutex<State>,
    answered: Notify,
}

struct State {
    items: Vec<Item>,
    unanswered: usize,
    outbox: Outbox,
    sample: Option<Sample>,
}

/// One write of the batch, of which it is noted when each home acknowledged it.
struct Sample {
    item: usize,
    sent: Instant,
    arrivals: WriteSample,
}

impl Batch {
    /// Runs requests that may travel together to their outcomes.
    pub(super) async fn run(shared: &Arc<Inner>, requests: Vec<Request>) -> Vec<Outcome> {
        let view = Arc::clone(&shared.view.borrow());
        let unanswered = requests.len();
        shared.hedging.earn(unanswered);
        let wall = shared.env.clock.wall();
        let start = Start {
            shared,
            view: &view,
            wall,
            now: shared.clock.read(wall).millis(),
        };
        let items: Vec<Item> = requests
            .into_iter()
            .map(|request| Item::new(&start, request))
            .collect();
        let state = State {
            sample: Sample::of(shared, &items),
            items,
            unanswered,
            outbox: Outbox::default(),
        };
        let batch = Arc::new(Self {
            shared: Arc::clone(shared),
            view,
            state: Mutex::new(state),
            answered: Notify::new(),
        });
        let deadline = shared.env.clock.monotonic() + shared.config.timeout;
        batch.with_state(deadline, |batch, state| {
            (0..state.items.len()).for_each(|item| batch.start(state, item));
        });
        batch.wait(deadline).await;
        // Later than what any replica had passed when it answered.
        let now = batch.clock().millis();
        let state = batch.lock();
        state.items.iter().map(|item| item.outcome(now)).collect()
    }

    async fn wait(self: &Arc<Self>, deadline: Instant) {
        if self.lock().unanswered == 0 {
            return;
        }
        let slow = self.shared.env.clock.monotonic() + self.slow_after();
        if timeout_at(slow.min(deadline), self.answered.notified())
            .await
            .is_ok()
        {
            return;
        }
        self.with_state(deadline, |batch, state| {
            (0..state.items.len()).for_each(|item| batch.on_slow(state, item));
        });
        if timeout_at(deadline, self.answered.notified())
            .await
            .is_err()
        {
            self.with_state(deadline, |batch, state| {
                (0..state.items.len()).for_each(|item| batch.on_deadline(state, item));
            });
        }
    }

    /// After how long those who were asked for a record count as slow.
    fn slow_after(&self) -> Duration {
        let state = self.lock();
        let asked = state.items.iter().flat_map(|item| {
            let homes = self.homes(item.partition).iter().enumerate();
            let read = match &item.operation {
                Op::Read(op) => Some(op),
                _ => None,
            };
            homes.filter_map(move |(replica, &home)| {
                read.is_some_and(|op| op.is_asked_for_record(replica))
                    .then_some(home)
            })
        });
        self.shared.hedging.slow_after(asked)
    }

    /// Changes the state, then sends what came of it, then wakes the client if all is answered.
    fn with_state(self: &Arc<Self>, deadline: Instant, change: impl FnOnce(&Self, &mut State)) {
        let mut state = self.lock();
        let was_answered = state.unanswered == 0;
        change(self, &mut state);
        // Failures to send are replies too, and may cause further messages; each replica of each
        // item fails once, so this ends.
        loop {
            let parcels = state.outbox.take();
            if parcels.is_empty() {
                break;
            }
            for parcel in parcels {
                self.send(&mut state, parcel, deadline);
            }
        }
        let is_answered = state.unanswered == 0;
        drop(state);
        if is_answered && !was_answered {
            self.answered.notify_one();
        }
    }

    fn send(self: &Arc<Self>, state: &mut State, parcel: Parcel, deadline: Instant) {
        let lane = parcel.lane();
        let Parcel {
            to,
            mut operations,
            expected,
            ..
        } = parcel;
        operations.set_clock(self.clock());
        // What happens after the answer has a time of its own.
        let deadline = match state.unanswered {
            0 => self.shared.env.clock.monotonic() + self.shared.config.timeout,
            _ => deadline,
        };
        let transport = &self.shared.transport;
        let sink = CallSink {
            batch: Arc::clone(self),
            to,
            sent: self.shared.env.clock.monotonic(),
            is_timed: lane == Lane::Foreground,
            expected,
        };
        // The sink is given away with the call: keep what is needed if the call is refused.
        let refused = sink.expected.clone();
        if transport
            .call(to, lane, &operations, deadline, Box::new(sink))
            .is_err()
        {
            for expected in refused {
                self.on_reply(state, expected, Reply::Failed(None));
            }
        }
    }

    fn start(&self, state: &mut State, number: usize) {
        let homes = self.homes(state.items[number].partition);
        // The local copy first: if it is newer than this write, that is found out before a byte
        // is sent.
        if let Some(local) = homes.iter().position(|&home| self.is_self(home)) {
            self.ask_first(state, number, local, self.shared.self_tag);
        }
        for (replica, &home) in homes.iter().enumerate() {
            if !self.is_self(home) {
                self.ask_first(state, number, replica, home);
            }
        }
        if homes.is_empty() {
            // No member holds data yet. The deadline answers, with how many replied: none.
            self.on_deadline(state, number);
        }
    }

    /// Sends the first question of an operation to one replica.
    fn ask_first(&self, state: &mut State, item: usize, replica: usize, home: NodeTag) {
        match &state.items[item].operation {
            Op::Read(op) | Op::Learn { op, .. } => {
                if op.is_asked(replica) {
                    let whole = op.is_asked_for_record(replica);
                    self.ask_held(state, item, replica, home, whole);
                }
            }
            Op::Write { .. } => self.ask_write(state, item, replica, home),
            Op::Expire(op) => {
                let expiry = op.expiry;
                self.ask_expiry(state, item, replica, home, expiry);
            }
        }
    }

    fn ask_held(&self, state: &mut State, item: usize, replica: usize, home: NodeTag, whole: bool) {
        let expected = Expected {
            item,
            replica,
            what: What::Held,
        };
        let State { items, outbox, .. } = state;
        let key = &items[item].key;
        if home != self.shared.self_tag {
            let key = ByteSlice::new(key);
            let ask = if whole {
                Operation::Read(key)
            } else {
                Operation::Summary(key)
            };
            outbox.push(home, true, &ask, expected);
            return;
        }
        let key = items[item].hashed();
        let is_sure = self.shared.replica.is_sure(key.partition);
        let reply = self.shared.replica.read(key, |record| {
            let record = record.as_ref();
            Reply::Told(Told {
                held: record.map(|&record| Summary::of(record)),
                record: record.filter(|_| whole).map(RecordRef::to_record),
                is_sure,
            })
        });
        self.on_reply(state, expected, reply);
    }

    fn ask_write(&self, state: &mut State, item: usize, replica: usize, home: NodeTag) {
        let State { items, outbox, .. } = state;
        let Op::Write { op, payload } = &items[item].operation else {
            return;
        };
        let version = op.version();
        let expected = Expected {
            item,
            replica,
            what: What::Written(version),
        };
        let expiry = Expiry {
            version,
            at: payload.expires_at,
        };
        let record = RecordRef {
            version,
            expiry,
            value: payload.value.as_deref(),
        };
        if home != self.shared.self_tag {
            let write = Operation::Write(ByteSlice::new(&items[item].key), record.into());
            outbox.push(home, true, &write, expected);
            return;
        }
        let written = if self.may_keep(version) {
            let key = items[item].hashed();
            self.shared.replica.write(key, record, self.now())
        } else {
            Err(Refusal::ClockDrift)
        };
        let reply = match written {
            Ok(written) => Reply::Written(written),
            Err(refusal) => Reply::Failed(Some(refusal)),
        };
        self.on_reply(state, expected, reply);
    }

    fn ask_expiry(
        &self,
        state: &mut State,
        item: usize,
        replica: usize,
        home: NodeTag,
        expiry: Expiry,
    ) {
        let expected = Expected {
            item,
            replica,
            what: What::Expiry(expiry.version),
        };
        if home != self.shared.self_tag {
            let change = Operation::Expire(ByteSlice::new(&state.items[item].key), expiry.into());
            state.outbox.push(home, true, &change, expected);
            return;
        }
        let key = state.items[item].hashed();
        let changed = if self.may_keep(expiry.version) {
            let replica = &self.shared.replica;
            replica.change_expiry(key, expiry, self.now())
        } else {
            Err(Refusal::ClockDrift)
        };
        let reply = match changed {
            Ok(change) => Reply::Expiry {
                change,
                is_sure: self.shared.replica.is_sure(key.partition),
            },
            Err(refusal) => Reply::Failed(Some(refusal)),
        };
        self.on_reply(state, expected, reply);
    }

    /// One answer of one replica to one operation.
    fn on_reply(&self, state: &mut State, expected: Expected, reply: Reply) {
        match &state.items[expected.item].operation {
            Op::Read(_) | Op::Learn { .. } => self.on_read_reply(state, expected, reply),
            Op::Write { .. } => self.on_write_reply(state, expected, reply),
            Op::Expire(_) => self.on_expire_reply(state, expected, reply),
        }
    }

    fn on_read_reply(&self, state: &mut State, expected: Expected, reply: Reply) {
        let Expected {
            item,
            replica,
            what,
        } = expected;
        let Some(op) = state.items[item].read_mut() else {
            return;
        };
        let mut actions = Vec::new();
        match (what, reply) {
            (What::Held, Reply::Told(told)) => match self.observe(told.held) {
                Ok(()) => op.on_told(replica, told, &mut actions),
                // What no other replica would take is no answer either.
                Err(refusal) => op.on_failed(replica, Some(refusal), &mut actions),
            },
            (What::Repaired, Reply::Written(_)) => op.on_repaired(replica, &mut actions),
            (_, Reply::Failed(refusal)) => op.on_failed(replica, refusal, &mut actions),
            // An answer to another question than the one asked: as good as none.
            _ => op.on_failed(replica, None, &mut actions),
        }
        self.perform_read(state, item, actions);
    }

    fn on_expire_reply(&self, state: &mut State, expected: Expected, reply: Reply) {
        let Expected {
            item,
            replica,
            what,
        } = expected;
        let Op::Expire(op) = &mut state.items[item].operation else {
            return;
        };
        let What::Expiry(version) = what else {
            return self.on_read_reply(state, expected, reply);
        };
        if op.expiry.version != version {
            // To a question that has been asked anew since.
            return;
        }
        match reply {
            Reply::Expiry {
                change:
                    ExpiryChange::Done {
                        now_held,
                        expired_at_before,
                    },
                is_sure,
            } => {
                op.note_before(now_held, expired_at_before);
                let mut actions = Vec::new();
                let told = Told {
                    held: now_held,
                    record: None,
                    is_sure,
                };
                op.read.on_told(replica, told, &mut actions);
                self.perform_read(state, item, actions);
            }
            Reply::Expiry {
                change: ExpiryChange::Superseded { by },
                ..
            } => self.restamp_expiry(state, expected, by),
            other => self.on_read_reply(state, expected, other),
        }
    }

    fn on_write_reply(&self, state: &mut State, expected: Expected, reply: Reply) {
        let Expected {
            item,
            replica,
            what,
        } = expected;
        let is_superseded = matches!(&reply, Reply::Written(Written::Superseded(_)));
        let is_overtaken = is_superseded && has_later_write(&state.items, item);
        let Op::Write { op, .. } = &mut state.items[item].operation else {
            return;
        };
        let What::Written(version) = what else { return };
        if let Some(sample) = &mut state.sample
            && sample.item == item
            && matches!(reply, Reply::Written(_))
        {
            sample.on_arrival(replica, self.shared.env.clock.monotonic());
        }
        let mut actions = Vec::new();
        match reply {
            Reply::Written(Written::Applied(prior)) => {
                op.on_applied(replica, version, prior, &mut actions);
            }
            // What nobody else would take does not stand in for this write either.
            Reply::Written(Written::Superseded(by)) if !self.is_sane(by) => {
                op.on_failed(replica, version, Some(Refusal::ClockDrift), &mut actions);
            }
            Reply::Written(Written::Superseded(by)) if is_overtaken => {
                op.on_overtaken(replica, version, by, &mut actions);
            }
            Reply::Written(Written::Superseded(by)) => {
                op.on_superseded(replica, version, by, &mut actions);
            }
            Reply::Failed(refusal) => op.on_failed(replica, version, refusal, &mut actions),
            // An answer to another question than the one asked: as good as none.
            _ => op.on_failed(replica, version, None, &mut actions),
        }
        self.perform_write(state, item, actions);
    }

    fn on_slow(&self, state: &mut State, item: usize) {
        let mut actions = Vec::new();
        if let Op::Read(op) = &mut state.items[item].operation
            && op.outcome().is_none()
            && self.shared.hedging.take()
        {
            op.on_slow(&mut actions);
            if actions.is_empty() {
                self.shared.hedging.give_back();
            }
        }
        count(&self.shared.stats.hedged_reads, actions.len());
        self.perform_read(state, item, actions);
    }

    fn on_deadline(&self, state: &mut State, item: usize) {
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        match &mut state.items[item].operation {
            Op::Read(op) | Op::Learn { op, .. } => op.on_deadline(&mut reads),
            Op::Expire(op) => op.read.on_deadline(&mut reads),
            Op::Write { op, .. } => op.on_deadline(&mut writes),
        }
        self.perform_read(state, item, reads);
        self.perform_write(state, item, writes);
    }

    fn perform_read(&self, state: &mut State, item: usize, actions: Vec<ReadAction>) {
        for action in actions {
            match action {
                ReadAction::Ask { replica } => {
                    let home = self.homes(state.items[item].partition)[replica];
                    self.ask_first(state, item, replica, home);
                }
                ReadAction::Fetch { replica } => {
                    let home = self.homes(state.items[item].partition)[replica];
                    self.ask_held(state, item, replica, home, true);
                }
                ReadAction::Repair { replica } => self.repair(state, item, replica),
                ReadAction::Finished => match &state.items[item].operation {
                    Op::Learn { op, .. } if !state.items[item].has_failed() => {
                        let past = op.outcome().and_then(|learnt| learnt.ok().flatten());
                        let past = past.map(|held| held.stamp.newest()).unwrap_or_default();
                        self.begin_write(state, item, past);
                    }
                    _ => self.on_finished(state, item),
                },
            }
        }
    }

    /// Turns what has learnt what it must exceed into the write itself.
    fn begin_write(&self, state: &mut State, item: usize, past: Version) {
        let stamped = self.stamp_past(past);
        let homes = self.homes(state.items[item].partition).len();
        let Op::Learn { op, then, payload } = &mut state.items[item].operation else {
            return;
        };
        let version = match stamped {
            Ok(version) => version,
            Err(refusal) => {
                op.refuse(refusal);
                return self.on_finished(state, item);
            }
        };
        let payload = Payload {
            value: payload.value.take(),
            expires_at: payload.expires_at,
        };
        let op = WriteOp::new(homes, *then, version);
        state.items[item].operation = Op::Write { op, payload };
        self.start(state, item);
    }

    fn perform_write(&self, state: &mut State, item: usize, actions: Vec<WriteAction>) {
        for action in actions {
            match action {
                WriteAction::Restamp { replica, past } => self.restamp(state, item, replica, past),
                WriteAction::Finished => self.on_finished(state, item),
            }
        }
    }

    /// Stamps a superseded write anew and sends it to all homes.
    fn restamp(&self, state: &mut State, item: usize, replica: usize, past: Version) {
        let stamped = self.stamp_past(past);
        let Op::Write { op, .. } = &mut state.items[item].operation else {
            return;
        };
        match stamped {
            Ok(version) => {
                count(&self.shared.stats.superseded_writes, 1);
                op.on_restamped(version);
                self.start(state, item);
            }
            Err(refusal) => {
                let version = op.version();
                let mut actions = Vec::new();
                op.on_failed(replica, version, Some(refusal), &mut actions);
                self.perform_write(state, item, actions);
            }
        }
    }

    /// Stamps a superseded change of expiry anew and begins it again.
    fn restamp_expiry(&self, state: &mut State, expected: Expected, by: Stamp) {
        let Expected { item, replica, .. } = expected;
        let homes = self.homes(state.items[item].partition).len();
        let stamped = self.stamp_past(by.newest());
        let Op::Expire(op) = &mut state.items[item].operation else {
            return;
        };
        if op.read.outcome().is_some() {
            return;
        }
        match stamped {
            Ok(version) if op.restamps_left > 0 => {
                count(&self.shared.stats.superseded_writes, 1);
                op.restamps_left -= 1;
                op.expiry.version = version;
                op.before = None;
                op.read = ReadOp::new(homes, op.plan);
                self.start(state, item);
            }
            stamped => {
                let mut actions = Vec::new();
                op.read.on_failed(replica, stamped.err(), &mut actions);
                self.perform_read(state, item, actions);
            }
        }
    }

    fn stamp_past(&self, past: Version) -> Result<Version, Refusal> {
        let now = self.now();
        let clock = &self.shared.clock;
        clock
            .observe(past.hlc, now)
            .map_err(|_drift| Refusal::ClockDrift)?;
        Ok(Version {
            hlc: clock.tick(now),
            node: self.shared.writer,
        })
    }

    fn repair(&self, state: &mut State, item: usize, replica: usize) {
        let home = self.homes(state.items[item].partition)[replica];
        let State {
            items,
            outbox,
            unanswered,
            ..
        } = state;
        let Some(record) = items[item].read().and_then(ReadOp::record) else {
            return;
        };
        count(&self.shared.stats.read_repairs, 1);
        let expected = Expected {
            item,
            replica,
            what: What::Repaired,
        };
        if home != self.shared.self_tag {
            let write = Operation::Write(
                ByteSlice::new(&items[item].key),
                RecordRef::from(record).into(),
            );
            outbox.push(home, *unanswered > 0, &write, expected);
            return;
        }
        let written = self
            .shared
            .replica
            .write(items[item].hashed(), record.into(), self.now());
        let reply = match written {
            Ok(written) => Reply::Written(written),
            Err(refusal) => Reply::Failed(Some(refusal)),
        };
        self.on_reply(state, expected, reply);
    }

    fn on_finished(&self, state: &mut State, item: usize) {
        state.unanswered -= 1;
        if state.items[item].has_failed() {
            count(&self.shared.stats.quorums_not_met, 1);
        }
    }

    fn observe(&self, held: Option<Summary>) -> Result<(), Refusal> {
        let Some(summary) = held else { return Ok(()) };
        let seen = summary.stamp.newest().hlc;
        self.shared
            .clock
            .observe(seen, self.now())
            .map_err(|_drift| Refusal::ClockDrift)
    }

    /// What is observed when there is nothing more to come.
    fn report(&self, state: &mut State) {
        let meter = &self.shared.staleness;
        let of_read = |item: &Item| match &item.operation {
            Op::Read(op) => Some(u64::from(op.has_disagreed())),
            _ => None,
        };
        let (reads, disagreed) = state
            .items
            .iter()
            .filter_map(of_read)
            .fold((0, 0), |(reads, sum), disagreed| {
                (reads + 1, sum + disagreed)
            });
        if reads > 0 {
            meter.on_reads(reads, disagreed);
        }
        if let Some(sample) = state.sample.take() {
            meter.on_write_sample(sample.arrivals);
        }
    }

    /// Whether this node's own copy may take what this node has stamped.
    fn may_keep(&self, version: Version) -> bool {
        let now = self.shared.env.clock.monotonic();
        self.shared.replica.may_keep(version, now)
    }

    fn is_sane(&self, held: Prior) -> bool {
        let newest = held.stamp.unwrap_or_default().newest();
        self.shared.clock.check(newest.hlc, self.now()).is_ok()
    }

    fn homes(&self, partition: PartitionId) -> &[NodeTag] {
        self.view.homes(partition)
    }

    fn is_self(&self, home: NodeTag) -> bool {
        home == self.shared.self_tag
    }

    fn now(&self) -> Millis {
        self.shared.env.clock.wall()
    }

    fn clock(&self) -> HlcTime {
        self.shared.clock.read(self.now())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // std Mutex: never held across an await.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        // The last one who waited for a reply has let go.
        let mut state = self.lock();
        self.report(&mut state);
    }
}

impl Sample {
    fn of(shared: &Inner, items: &[Item]) -> Option<Self> {
        let is_write = |item: &Item| matches!(item.operation, Op::Write { .. });
        let item = items.iter().position(is_write)?;
        let Op::Write { op, .. } = &items[item].operation else {
            return None;
        };
        let sent = shared.env.clock.monotonic();
        shared.staleness.wants_sample(sent).then(|| Self {
            item,
            sent,
            arrivals: WriteSample(smallvec::smallvec![None; op.replicas()]),
        })
    }

    fn on_arrival(&mut self, replica: usize, now: Instant) {
        if let Some(arrival) = self.arrivals.0.get_mut(replica) {
            *arrival = Some(now.saturating_duration_since(self.sent));
        }
    }
}

/// Hands the answers of one frame to their items.
struct CallSink {
    batch: Arc<Batch>,
    to: NodeTag,
    sent: Instant,
    /// How long it takes tells how fast the peer is.
    is_timed: bool,
    expected: Vec<Expected>,
}

impl ReplySink for CallSink {
    fn on_reply(self: Box<Self>, reply: Result<Response<'_>, CallError>) -> Result<(), FrameError> {
        let Self {
            batch,
            to,
            sent,
            is_timed,
            expected,
        } = *self;
        let now = batch.shared.env.clock.monotonic();
        let deadline = now + batch.shared.config.timeout;
        if is_timed && !matches!(reply, Err(CallError::ConnectionLost)) {
            let took = now.saturating_duration_since(sent);
            batch.shared.hedging.on_answer(to, took);
        }
        let mut malformed = Ok(());
        batch.with_state(deadline, |batch, state| {
            let mut response = reply.ok();
            if let Some(response) = &response {
                let replica = &batch.shared.replica;
                replica.note_peer_clock(to, response.clock, now);
                replica.note_clock(response.clock, batch.now());
            }
            for expected in expected {
                // After one malformed answer there is no telling where the next begins.
                let reply = match response.as_mut().map(Reply::read) {
                    Some(Ok(reply)) => reply,
                    Some(Err(error)) => {
                        (response, malformed) = (None, Err(error));
                        Reply::Failed(None)
                    }
                    None => Reply::Failed(None),
                };
                batch.on_reply(state, expected, reply);
            }
        });
        malformed
    }
}

/// Whether the batch has another write of the same key after this one.
fn has_later_write(items: &[Item], item: usize) -> bool {
    let is_write = |later: &Item| matches!(later.operation, Op::Write { .. });
    items[item + 1..]
        .iter()
        .any(|later| is_write(later) && later.key == items[item].key)
}

fn count(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::Relaxed);
}
