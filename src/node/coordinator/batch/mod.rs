//! Requests that travel together: their state machines, and the hands that carry actions out.

mod answer;
mod ask;
mod perform;
mod stand_in;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::item::{Again, Deferred, ExpireOp, Item, Op, Start};
use super::outbox::{Expected, Outbox, Parcel, What};
use super::reply::Reply;
use super::retries::Retries;
use super::{Action, Inner, Outcome, Ran, Request, RequestError};
use crate::model::{HlcTime, Millis, NodeTag, PartitionId, Prior, Summary, Version};
use crate::net::{CallError, FrameContext, Lane, ReplySink, Response, time_budget};
use crate::node::admission::Admitted;
use crate::node::handoff::Owed;
use crate::node::hedging::late_after;
use crate::protocol::{QuorumNotMet, WriteSample};
use crate::ring::View;
use crate::wire::{FrameError, Refusal};

/// A batch under way. It lives on after the answer, for late replies and the repairs they cause,
/// held by the calls that wait for them.
pub(super) struct Batch {
    shared: Arc<Inner>,
    view: Arc<View>,
    owed: Arc<Owed>,
    /// Nodes that are not to be waited for.
    away: SmallVec<[NodeTag; 2]>,
    /// How long it may take, by its size.
    timeout: Duration,
    /// It reads a value that is known to be large, and has its turn for that.
    takes_large: bool,
    /// Its turn among the large ones, until its last call has ended.
    _admitted: Arc<Admitted>,
    state: Mutex<State>,
    answered: Notify,
}

struct State {
    items: Vec<Item>,
    unanswered: usize,
    outbox: Outbox,
    sample: Option<Sample>,
    room: Room,
}

/// How many bytes of values are still kept. One value is, however long.
#[derive(Debug, Clone, Copy)]
struct Room {
    bytes: usize,
    is_untouched: bool,
    /// A value did not fit: no further one is read.
    is_full: bool,
}

impl Room {
    const fn of(bytes: usize) -> Self {
        Self {
            bytes,
            is_untouched: true,
            is_full: false,
        }
    }

    /// Whether a value fits. If not, none does from now on.
    const fn fits(&mut self, bytes: usize) -> bool {
        self.is_full |= !self.is_untouched && bytes > self.bytes;
        !self.is_full
    }

    /// A value is kept.
    const fn keep(&mut self, bytes: usize) {
        self.is_untouched = false;
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// One write of the batch, of which it is noted when each home acknowledged it.
struct Sample {
    item: usize,
    sent: Instant,
    arrivals: WriteSample,
}

impl Batch {
    /// Runs requests that may travel together to their outcomes. Those that found too few homes
    /// connected are tried again until the deadline. Of the values that are read about `room` bytes are
    /// kept, at least one value; the other reads are deferred.
    pub(super) async fn run(
        shared: &Arc<Inner>,
        requests: Vec<Request>,
        room: usize,
        ran: &mut Ran,
    ) {
        let bytes = requests.iter().map(sent_bytes).sum();
        let turn = Turn {
            bytes,
            takes_large: false,
        };
        Self::run_in_turn(shared, requests, (turn, room), ran).await;
    }

    /// The same of one read of a value of so many bytes, a large one.
    pub(super) async fn run_large(
        shared: &Arc<Inner>,
        requests: Vec<Request>,
        bytes: usize,
        ran: &mut Ran,
    ) {
        let turn = Turn {
            bytes,
            takes_large: true,
        };
        Self::run_in_turn(shared, requests, (turn, usize::MAX), ran).await;
    }

    async fn run_in_turn(
        shared: &Arc<Inner>,
        requests: Vec<Request>,
        (turn, mut room): (Turn, usize),
        ran: &mut Ran,
    ) {
        let Turn { bytes, takes_large } = turn;
        let Ok(admitted) = shared.admission.admit(bytes, shared.config.timeout).await else {
            let refused = Outcome::Failed(RequestError::Overloaded);
            let refused = std::iter::repeat_n(refused, requests.len());
            return ran.outcomes.extend(refused);
        };
        let admitted = Arc::new(admitted);
        if requests.len() == 1 {
            // There is nothing to wait for: a single value is read whatever it takes.
            room = usize::MAX;
        }
        // Its time begins with its turn.
        let timeout = time_budget(shared.config.timeout, bytes);
        let first = ran.outcomes.len();
        let mut retries = Retries::within(shared, timeout);
        let mut places: Vec<usize> = (first..first + requests.len()).collect();
        let mut requests: Vec<Again> = requests.into_iter().map(Again::from).collect();
        loop {
            let budget = Budget {
                deadline: retries.deadline(),
                timeout,
                takes_large,
                room,
                admitted: Arc::clone(&admitted),
            };
            let tried = Self::attempt(shared, requests, budget).await;
            let is_again = !tried.again.is_empty() && retries.pause().await;
            ran.sloppy_writes += tried.sloppy_writes;
            let deferred = tried.deferred.into_iter();
            ran.deferred
                .extend(deferred.map(|(number, request, why)| (places[number], request, why)));
            for (number, (outcome, &place)) in tried.outcomes.into_iter().zip(&places).enumerate() {
                if matches!(outcome, Outcome::Failed(_))
                    && !(is_again && tried.again.contains_key(&number))
                {
                    count_failure(shared, tried.is_read[number]);
                }
                room = room.saturating_sub(value_bytes(&outcome));
                match ran.outcomes.get_mut(place) {
                    Some(earlier) => *earlier = latest(earlier, outcome),
                    None => ran.outcomes.push(outcome),
                }
            }
            if !is_again {
                break;
            }
            places = tried.again.keys().map(|&number| places[number]).collect();
            requests = tried.again.into_values().collect();
        }
        ran.deferred.sort_unstable_by_key(|(place, ..)| *place);
    }

    async fn attempt(shared: &Arc<Inner>, requests: Vec<Again>, budget: Budget) -> Tried {
        let deadline = budget.deadline;
        let owed = Arc::clone(&shared.owed.borrow());
        let view = Arc::clone(&shared.view.borrow());
        let unanswered = requests.len();
        shared.hedging.earn(unanswered);
        let wall = shared.env.clock.wall();
        let start = Start {
            shared,
            view: &view,
            wall,
            moment: shared.env.clock.monotonic(),
            now: shared.clock.read(wall).millis(),
            owed: &owed,
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
            room: Room::of(budget.room),
        };
        let batch = Arc::new(Self {
            shared: Arc::clone(shared),
            away: away(shared, &view),
            view,
            owed,
            timeout: budget.timeout,
            takes_large: budget.takes_large,
            _admitted: budget.admitted,
            state: Mutex::new(state),
            answered: Notify::new(),
        });
        batch.with_state(deadline, |batch, state| {
            (0..state.items.len()).for_each(|item| batch.start(state, item));
        });
        batch.wait(deadline).await;
        // Later than what any replica had passed when it answered.
        let now = batch.clock().millis();
        let state = batch.lock();
        let is_sloppy_write = |item: &&Item| {
            matches!(item.operation, Op::Write { .. } | Op::Expire(_)) && item.was_sloppy()
        };
        let again = state.items.iter().enumerate().filter_map(|(number, item)| {
            // What was written after it must not be replaced by it.
            let again = item
                .again()
                .filter(|_| item.deferred.is_none() && !has_later_write(&state.items, number));
            Some((number, again?))
        });
        let mut ran = Ran::new(state.items.len());
        collect(&state.items, budget.room, now, &mut ran);
        Tried {
            outcomes: ran.outcomes,
            deferred: ran.deferred,
            is_read: state
                .items
                .iter()
                .map(|item| matches!(item.operation, Op::Read(_)))
                .collect(),
            sloppy_writes: state.items.iter().filter(is_sloppy_write).count() as u64,
            again: again.collect(),
        }
    }

    async fn wait(self: &Arc<Self>, deadline: Instant) {
        if self.lock().unanswered == 0 {
            return;
        }
        let begun = self.shared.env.clock.monotonic();
        // A large value takes its time on its way to a peer that is well.
        let transfer = self.timeout.saturating_sub(self.shared.config.timeout) / 2;
        let mut slow_after = self.slow_after();
        if self.takes_large {
            // The same value once more would make it slower.
            slow_after += transfer;
        }
        let late_after = transfer + late_after(slow_after).min(self.shared.config.timeout / 4);
        if self.answered_by((begun + slow_after).min(deadline)).await {
            return;
        }
        self.with_state(deadline, |batch, state| {
            (0..state.items.len()).for_each(|item| batch.on_slow(state, item));
        });
        let mut late = begun + late_after.max(slow_after);
        while late < deadline {
            if self.answered_by(late).await {
                return;
            }
            self.with_state(deadline, |batch, state| {
                (0..state.items.len()).for_each(|item| batch.on_late(state, item));
            });
            late += late_after;
        }
        if !self.answered_by(deadline).await {
            self.with_state(deadline, |batch, state| {
                (0..state.items.len()).for_each(|item| batch.on_deadline(state, item));
            });
        }
    }

    async fn answered_by(&self, moment: Instant) -> bool {
        timeout_at(moment, self.answered.notified()).await.is_ok()
    }

    /// After how long those who are asked count as slow: of a read, whoever is asked for the
    /// record, of a write all homes.
    fn slow_after(&self) -> Duration {
        let state = self.lock();
        let asked = state.items.iter().flat_map(|item| {
            let homes = self.homes(item.partition).iter().enumerate();
            homes.filter_map(move |(replica, &home)| {
                let is_asked = match &item.operation {
                    Op::Read(op) => op.is_asked_for_record(replica),
                    _ => true,
                };
                is_asked.then_some(home)
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
        if self.is_self(parcel.to) && parcel.has_hints {
            return self.keep_here(parcel, deadline);
        }
        if self.is_self(parcel.to) {
            return self.carry_out_here(state, &parcel, deadline);
        }
        let lane = parcel.lane();
        let Parcel {
            to,
            mut operations,
            expected,
            has_hints,
            ..
        } = parcel;
        operations.set_context(FrameContext {
            ring: Some(self.view.version()),
            ..self.shared.replica.frame_context(self.now())
        });
        // What happens after the answer has a time of its own.
        let deadline = match state.unanswered {
            0 => self.shared.env.clock.monotonic() + self.timeout,
            _ => deadline,
        };
        let transport = &self.shared.transport;
        let sink = CallSink {
            batch: Arc::clone(self),
            to,
            sent: self.shared.env.clock.monotonic(),
            // Hints wait for a disk as well.
            is_timed: lane == Lane::Foreground && !has_hints,
            expected,
        };
        if sink.is_timed {
            self.shared.hedging.on_sent(to, sink.sent);
        }
        // The sink is given away with the call: keep what is needed if the call is refused.
        let refused = sink.expected.clone();
        let called = transport.call(to, lane, &operations, deadline, Box::new(sink));
        if let Err(error) = called {
            let is_to_retry = error == CallError::Unreachable && self.is_missed_for_a_moment(to);
            for expected in refused {
                state.items[expected.item].is_to_retry |= is_to_retry;
                self.on_reply(state, expected, Reply::Failed(None));
            }
        }
    }

    /// Whether a peer without a connection is likely to have one within the time of a request.
    fn is_missed_for_a_moment(&self, peer: NodeTag) -> bool {
        let now = self.shared.env.clock.monotonic();
        self.shared.hedging.on_unreachable(peer, now)
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
            Op::Read(op) => op.on_deadline(&mut reads),
            Op::Expire(op) => op.read.on_deadline(&mut reads),
            Op::Write { op, .. } => op.on_deadline(&mut writes),
        }
        self.perform_read(state, item, reads);
        self.perform_write(state, item, writes);
    }

    fn on_finished(&self, state: &mut State, item: usize) {
        state.unanswered -= 1;
        let stats = &self.shared.stats;
        let item = &state.items[item];
        if item.has_failed() {
            // Counted once it is not tried again.
            return;
        }
        let outcomes = match item.operation {
            Op::Read(_) => &stats.reads,
            Op::Write { .. } | Op::Expire(_) => &stats.writes,
        };
        let outcome = match item.was_sloppy() {
            true => &outcomes.sloppy,
            false => &outcomes.met,
        };
        count(outcome, 1);
        if item.was_sloppy() {
            match &item.operation {
                Op::Read(_) => count(&stats.sloppy_reads, 1),
                Op::Write { .. } | Op::Expire(_) => count(&stats.sloppy_writes, 1),
            }
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

    /// Whether this node's own copy may take a write of this batch: a peer's would refuse it too.
    fn may_write_here(&self, partition: PartitionId, version: Version) -> Result<(), Refusal> {
        let now = self.shared.view.borrow();
        if now.has_moved_since(self.view.version(), partition) {
            return Err(Refusal::OtherRing);
        }
        drop(now);
        match self.may_keep(version) {
            true => Ok(()),
            false => Err(Refusal::ClockDrift),
        }
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
            arrivals: WriteSample(smallvec::smallvec![None; op.homes()]),
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
        let deadline = now + batch.timeout;
        if is_timed && reply.is_ok() {
            let took = now.saturating_duration_since(sent);
            batch.shared.hedging.on_answer(to, took);
        }
        let mut malformed = Ok(());
        let is_to_retry =
            matches!(reply, Err(CallError::ConnectionLost)) && batch.is_missed_for_a_moment(to);
        batch.with_state(deadline, |batch, state| {
            for expected in &expected {
                state.items[expected.item].is_to_retry |= is_to_retry;
            }
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

/// What requests have to have their turn for.
#[derive(Clone, Copy)]
struct Turn {
    bytes: usize,
    takes_large: bool,
}

/// How long an attempt may take, and its turn among the large ones.
struct Budget {
    deadline: Instant,
    timeout: Duration,
    takes_large: bool,
    /// For values that are read, in bytes.
    room: usize,
    admitted: Arc<Admitted>,
}

/// What came of one try of requests.
struct Tried {
    outcomes: Vec<Outcome>,
    /// Reads that are to be made again, by their numbers.
    deferred: Vec<(usize, Request, Deferred)>,
    is_read: Vec<bool>,
    sloppy_writes: u64,
    /// Those worth another try, by their numbers.
    again: BTreeMap<usize, Again>,
}

fn count_failure(shared: &Inner, is_read: bool) {
    let stats = &shared.stats;
    let outcomes = if is_read { &stats.reads } else { &stats.writes };
    count(&outcomes.not_met, 1);
    count(&stats.quorums_not_met, 1);
}

/// What of a request is sent to each home, nearly.
const fn sent_bytes(request: &Request) -> usize {
    match &request.action {
        Action::Set { value, .. } => value.len(),
        Action::Get | Action::Look | Action::Delete | Action::Expire { .. } | Action::Update(_) => {
            0
        }
    }
}

/// Those who cannot be reached, or do not answer although they were asked.
fn away(shared: &Inner, view: &View) -> SmallVec<[NodeTag; 2]> {
    let mut away = shared.hedging.silent(shared.env.clock.monotonic());
    if !view.is_whole() {
        let members = view.members().iter();
        let unreachable = members.filter(|member| !member.reachable);
        away.extend(unreachable.map(|member| member.tag));
    }
    away
}

/// Whether the batch has another write of the same key after this one.
fn has_later_write(items: &[Item], item: usize) -> bool {
    let is_write = |later: &Item| matches!(later.operation, Op::Write { .. });
    items[item + 1..]
        .iter()
        .any(|later| is_write(later) && later.key == items[item].key)
}

/// What a further try has come to. A home that acknowledged an earlier one holds the write, also if the
/// last try had no time left to hear from it.
fn latest(earlier: &Outcome, outcome: Outcome) -> Outcome {
    match (earlier, outcome) {
        (
            Outcome::Failed(RequestError::Write(before)),
            Outcome::Failed(RequestError::Write(now)),
        ) if before.got > now.got => Outcome::Failed(RequestError::Write(QuorumNotMet {
            got: before.got,
            ..now
        })),
        (_, outcome) => outcome,
    }
}

const fn value_bytes(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Value(Some(value)) | Outcome::Hash(value) => value.len(),
        Outcome::Value(None)
        | Outcome::Look(_)
        | Outcome::Written
        | Outcome::Deleted(_)
        | Outcome::Expiry { .. }
        | Outcome::Updated(_)
        | Outcome::Failed(_) => 0,
    }
}

/// The outcomes, with as many values as there is room for. What peers sent beyond that is read again:
/// it would hold their frames.
fn collect(items: &[Item], room: usize, now: Millis, ran: &mut Ran) {
    let mut room = Room::of(room);
    for item in items {
        let outcome = item.outcome(now);
        let bytes = value_bytes(&outcome);
        let deferred = match item.deferred {
            None if bytes == 0 || room.fits(bytes) => None,
            None => Some(Deferred::NoRoom),
            deferred => deferred,
        };
        let is_kept = deferred.is_none();
        if bytes > 0 && is_kept {
            room.keep(bytes);
        }
        if let Some(deferred) = deferred {
            // Nothing that comes after it would be taken before it.
            room.is_full |= deferred == Deferred::NoRoom;
            ran.deferred
                .push((ran.outcomes.len(), item.get(), deferred));
        }
        ran.outcomes.push(match is_kept {
            true => outcome,
            false => Outcome::Value(None),
        });
    }
    if room.is_full {
        // A slice of a frame keeps all of it: what stays is copied where much was left out.
        for outcome in &mut ran.outcomes {
            if let Outcome::Value(Some(value)) | Outcome::Hash(value) = outcome {
                *value = Bytes::copy_from_slice(value);
            }
        }
    }
}

fn count(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::Relaxed);
}
