//! From commands to requests for the coordinator, and from outcomes to replies.
//!
//! A plan holds what one client has sent in one go. Keys and values are copied once, into the
//! plan's own buffer, so that the read buffer is free for what comes next; large values are not copied
//! but shared with the request that they came in. It is carried out in
//! parts: no more values are read than fit [`VALUES_BYTES_MAX`] before the client has read those
//! before them.

use std::ops::Range;

use bytes::Bytes;
use tokio::time::Instant;

use crate::env::Clock;
use crate::model::{Database, Kind, Level, Levels, Millis};
use crate::net::LARGE_BYTES;
use crate::node::coordinator::{
    Action, Coordinator, Local, Outcome, Request, RequestError, Stream,
};
use crate::protocol::QuorumNotMet;
use crate::resp::{CommandKind, DataCommand, Encoder, Protocol};
use crate::update::{Change, Reply, WRONG_TYPE, is_slow, moment, tell};
use crate::wire::Refusal;

use super::clients::Client;
use super::output::{Closed, Output};
use super::replies::{Shape, count_read, counts, encode, encode_value, error_text, held};
use super::shapes::{is_read, tells_value};
use super::slowlog::{SlowEntry, SlowLog, SlowRules};
use super::span::Span;
use super::stats::{RespStats, Tally};

/// Which levels requests on a key have, and whether others may stand in for its homes.
pub(super) type LevelsOf<'a> = &'a (dyn Fn(&[u8]) -> (Levels, bool) + Sync);

/// Commands waiting to be carried out together.
#[derive(Debug, Default)]
pub(super) struct Plan {
    database: Database,
    buffer: Vec<u8>,
    /// The present request, if it is a large one: its parts are shared.
    lent: Bytes,
    shared: Vec<Bytes>,
    shared_bytes: usize,
    steps: Vec<Step>,
    replies: Vec<Planned>,
    /// It has a command that changes something.
    has_writes: bool,
    /// How many updates it has whose replies may hold a value.
    telling: usize,
    /// How many of those may be carried out together: fewer where values are long.
    telling_max: TellingMax,
}

#[derive(Debug, Clone, Copy)]
struct TellingMax(usize);

impl Default for TellingMax {
    fn default() -> Self {
        Self(TELLING_MAX)
    }
}

/// Where it is noted what became of commands.
pub(super) struct Counters<'a> {
    pub(super) stats: &'a RespStats,
    pub(super) tally: &'a mut Tally,
    pub(super) slow: &'a SlowLog,
    pub(super) rules: SlowRules,
    pub(super) client: &'a Client,
    pub(super) clock: &'a dyn Clock,
    /// When it was begun.
    pub(super) started: Instant,
}

/// A command that failed.
struct Failed<'a> {
    kind: CommandKind,
    level: Level,
    key: &'a [u8],
    error: RequestError,
}

impl Counters<'_> {
    fn note_failure(&self, coordinator: &Coordinator, failed: &Failed<'_>, now: Millis) {
        if !self.slow.wants_failure(now) {
            return;
        }
        let (partition, homes) = coordinator.homes_of(failed.key);
        let key = String::from_utf8_lossy(failed.key);
        let took = self
            .clock
            .monotonic()
            .saturating_duration_since(self.started);
        self.slow.push(SlowEntry {
            at_ms: now.0,
            took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            commands: failed.kind.name().to_owned(),
            level: Some(failed.level.name().to_owned()),
            client: self.client.address().to_owned(),
            partition: Some(partition.0),
            key: self.rules.with_keys.then(|| key.into_owned()),
            homes: homes
                .into_iter()
                .map(|(name, is_reachable)| match is_reachable {
                    true => name,
                    false => format!("{name} (unreachable)"),
                })
                .collect(),
            error: Some(error_text(failed.error)),
            ..SlowEntry::default()
        });
    }
}

#[derive(Debug)]
struct Step {
    key: Range<usize>,
    verb: Verb,
}

#[derive(Debug)]
enum Verb {
    Get,
    Look,
    Set {
        value: Span,
        expires_at: Option<Millis>,
    },
    Delete,
    Expire {
        at: Option<Millis>,
    },
    Update {
        request: Span,
    },
}

/// One reply to come.
#[derive(Debug)]
enum Planned {
    Command {
        kind: CommandKind,
        shape: Shape,
        steps: Range<usize>,
    },
    Error(String),
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Whether it is time to carry it out before more is added.
    pub(super) fn is_full(&self) -> bool {
        self.steps.len() >= STEPS_MAX
            || self.replies.len() >= STEPS_MAX
            || self.buffer.len() + self.shared_bytes >= BUFFER_BYTES_MAX
            || self.telling >= self.telling_max.0
    }

    /// Whether nothing in it changes anything.
    pub(super) const fn is_read_only(&self) -> bool {
        !self.has_writes
    }

    /// The keys of commands are those of this database from now on.
    pub(super) const fn select(&mut self, database: Database) {
        self.database = database;
    }

    /// The commands that are pushed from now on may be parts of this.
    pub(super) fn lend(&mut self, request: Bytes) {
        self.lent = request;
    }

    /// Adds an error in its place among the replies.
    pub(super) fn push_error(&mut self, text: String) {
        self.replies.push(Planned::Error(text));
    }

    /// Adds a command.
    pub(super) fn push(
        &mut self,
        kind: CommandKind,
        (command, request): (DataCommand<'_>, &[u8]),
        now: Millis,
    ) {
        let first = self.steps.len();
        self.has_writes |= !is_read(&command);
        self.telling += usize::from(tells_value(kind));
        let shape = match command {
            DataCommand::Get { key } => self.step(key, Verb::Get, Shape::Value),
            DataCommand::Set { key, value, expiry } => {
                let expires_at = expiry.map(|expiry| moment(expiry, now));
                self.set(key, value, expires_at)
            }
            DataCommand::MGet { keys } => {
                keys.iter()
                    .for_each(|key| _ = self.step(key, Verb::Get, Shape::Values));
                Shape::Values
            }
            DataCommand::MSet { pairs } => {
                pairs
                    .iter()
                    .for_each(|(key, value)| _ = self.set(key, value, None));
                Shape::Ok
            }
            DataCommand::Del { keys } => {
                keys.iter()
                    .for_each(|key| _ = self.step(key, Verb::Delete, Shape::Count));
                Shape::Count
            }
            DataCommand::Exists { keys } => {
                keys.iter()
                    .for_each(|key| _ = self.step(key, Verb::Look, Shape::Count));
                Shape::Count
            }
            DataCommand::Expire { key, at } => match moment(at, now) {
                // A moment that has passed deletes, as in Redis.
                at if at <= now => self.step(key, Verb::Delete, Shape::Count),
                at => self.step(key, Verb::Expire { at: Some(at) }, Shape::Count),
            },
            DataCommand::Persist { key } => {
                self.step(key, Verb::Expire { at: None }, Shape::Persisted)
            }
            DataCommand::Ttl { key, form } => self.step(key, Verb::Look, Shape::Ttl(form)),
            DataCommand::Type { key } => self.step(key, Verb::Look, Shape::Type),
            DataCommand::StrLen { key } => self.step(key, Verb::Look, Shape::Length),
            DataCommand::Part { key, .. } | DataCommand::Hash { key, .. } => {
                let request = self.copy(request);
                self.step(key, Verb::Get, Shape::Ask(request))
            }
            DataCommand::Script(script) | DataCommand::NamedScript(script) => {
                // One without a key was carried out at once.
                let key = script.keys().next().unwrap_or_default();
                let request = self.keep(request);
                self.step(key, Verb::Update { request }, Shape::Update)
            }
            DataCommand::Update { key, .. } => {
                let request = self.keep(request);
                self.step(key, Verb::Update { request }, Shape::Update)
            }
            DataCommand::Usage { key } => self.step(key, Verb::Look, Shape::Usage(key.len())),
        };
        let steps = first..self.steps.len();
        self.replies.push(Planned::Command { kind, shape, steps });
    }

    /// Carries everything out and empties the plan. How many writes counted stand-ins.
    pub(super) async fn run(
        &mut self,
        (coordinator, levels): (&Coordinator, LevelsOf<'_>),
        now: Millis,
        counters: Counters<'_>,
        out: (&mut Output, Protocol),
    ) -> u64 {
        // One copy of what the client sent, shared by all its requests.
        let buffer = Bytes::from(std::mem::take(&mut self.buffer));
        let shared = std::mem::take(&mut self.shared);
        self.shared_bytes = 0;
        let steps = std::mem::take(&mut self.steps);
        let mut replies = std::mem::take(&mut self.replies);
        self.has_writes = false;
        self.telling = 0;
        let requests = steps
            .iter()
            .map(|step| step.request((&buffer, &shared), levels));
        let mut run = Run {
            coordinator,
            levels,
            now,
            counters,
            output: out.0,
            protocol: out.1,
            buffer: &buffer,
            shared: &shared,
            steps: &steps,
            told_bytes: 0,
            stream: coordinator.stream(requests, VALUES_BYTES_MAX),
        };
        for planned in replies.drain(..) {
            match planned {
                Planned::Command { kind, shape, steps } => run.command(kind, shape, steps).await,
                Planned::Error(text) => run.reply().error(&text),
            }
            run.output.relieve().await;
            if run.output.closed().is_some() {
                // There is nobody who could learn what came of the rest.
                break;
            }
        }
        let told_bytes = run.told_bytes;
        let sloppy_writes = run.stream.sloppy_writes();
        self.telling_max = self.telling_max.after(told_bytes);
        (self.steps, self.replies) = (steps, replies);
        self.steps.clear();
        if self.steps.capacity() > 2 * STEPS_MAX {
            self.steps = Vec::new();
        }
        sloppy_writes
    }

    fn step(&mut self, key: &[u8], verb: Verb, shape: Shape) -> Shape {
        let key = self.copy(&self.database.key(key));
        self.steps.push(Step { key, verb });
        shape
    }

    fn set(&mut self, key: &[u8], value: &[u8], expires_at: Option<Millis>) -> Shape {
        let value = self.keep(value);
        self.step(key, Verb::Set { value, expires_at }, Shape::Ok)
    }

    /// Shares what is large and part of a request that is lent, and copies the rest.
    fn keep(&mut self, bytes: &[u8]) -> Span {
        let lent = self.lent.as_ptr_range();
        let is_part =
            bytes.as_ptr_range().start >= lent.start && bytes.as_ptr_range().end <= lent.end;
        if bytes.len() < LARGE_BYTES || !is_part {
            return Span::Copied(self.copy(bytes));
        }
        self.shared.push(self.lent.slice_ref(bytes));
        self.shared_bytes += bytes.len();
        Span::Shared(self.shared.len() - 1)
    }

    fn copy(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(bytes);
        start..self.buffer.len()
    }
}

impl TellingMax {
    /// After updates that replied with so many bytes.
    fn after(self, bytes: usize) -> Self {
        Self(match bytes > VALUES_BYTES_MAX {
            true => (self.0 / 4).max(1),
            false => (2 * self.0).min(TELLING_MAX),
        })
    }
}

impl Step {
    fn request(&self, (buffer, shared): (&Bytes, &[Bytes]), levels: LevelsOf<'_>) -> Request {
        let action = match &self.verb {
            Verb::Get => Action::Get,
            Verb::Look => Action::Look,
            Verb::Set { value, expires_at } => Action::Set {
                value: value.bytes(buffer, shared),
                expires_at: *expires_at,
            },
            Verb::Delete => Action::Delete,
            Verb::Expire { at } => Action::Expire { at: *at },
            Verb::Update { request } => {
                Action::Update(Change::Command(request.bytes(buffer, shared)))
            }
        };
        let (level, is_sloppy) = self.level(buffer, levels);
        Request {
            key: buffer.slice(self.key.clone()),
            action,
            level,
            is_sloppy,
        }
    }

    /// Its level, and whether others may stand in.
    fn level(&self, buffer: &[u8], levels: LevelsOf<'_>) -> (Level, bool) {
        let (levels, is_sloppy) = levels(Database::split(&buffer[self.key.clone()]).1);
        let level = match self.verb {
            Verb::Get | Verb::Look => levels.read,
            Verb::Set { .. } | Verb::Delete | Verb::Expire { .. } | Verb::Update { .. } => {
                levels.write
            }
        };
        (level, is_sloppy)
    }
}

/// A plan being carried out.
struct Run<'r, 'a, I> {
    coordinator: &'r Coordinator,
    levels: LevelsOf<'r>,
    now: Millis,
    counters: Counters<'a>,
    output: &'r mut Output,
    protocol: Protocol,
    buffer: &'r Bytes,
    shared: &'r [Bytes],
    steps: &'r [Step],
    /// Bytes that updates replied with.
    told_bytes: usize,
    stream: Stream<'r, I>,
}

/// What came of a command of several keys.
#[derive(Default)]
struct Folded {
    counted: i64,
    failed: Option<(usize, RequestError)>,
}

impl<I: Iterator<Item = Request>> Run<'_, '_, I> {
    /// Carries a command out and puts its reply into the output.
    async fn command(&mut self, kind: CommandKind, shape: Shape, steps: Range<usize>) {
        let count = steps.len();
        let failed = match shape {
            Shape::Values => self.values(steps.clone()).await,
            Shape::Value => self.value().await,
            Shape::Count if count > 1 => {
                let folded = self.fold(count).await;
                self.reply_folded(folded, |folded, reply| reply.integer(folded.counted))
            }
            Shape::Ok if count > 1 => {
                let folded = self.fold(count).await;
                self.reply_folded(folded, |_, reply| reply.simple("OK"))
            }
            shape => {
                let mut outcomes = Outcomes::new();
                for _ in 0..count {
                    outcomes.extend(self.stream.next().await);
                }
                let told = match &shape {
                    Shape::Ask(request) => {
                        Box::pin(self.ask_slowly(&outcomes, request.clone())).await
                    }
                    _ => None,
                };
                let shape = match told {
                    Some(told) => {
                        outcomes = one(told);
                        Shape::Update
                    }
                    None => shape,
                };
                let before = self.output.len();
                let (buffer, now, stats) = (self.buffer, self.now, self.counters.stats);
                let is_update = matches!(shape, Shape::Update);
                let failed = encode((&outcomes, buffer), shape, now, stats, &mut self.reply());
                if is_update {
                    self.told_bytes += self.output.len() - before;
                }
                failed
            }
        };
        let first = self.steps.get(steps.start);
        let level = first.map(|step| step.level(self.buffer, self.levels).0);
        self.counters.stats.count(kind, failed.is_none());
        self.counters.tally.add(kind, level);
        if let Some((place, error)) = failed {
            let step = &self.steps[steps.start + place];
            let failed = Failed {
                kind,
                level: step.level(self.buffer, self.levels).0,
                key: &self.buffer[step.key.clone()],
                error,
            };
            self.counters
                .note_failure(self.coordinator, &failed, self.now);
        }
    }

    /// What a request asks of a value, worked out where it is not in the way of others. `None`: it is
    /// short.
    async fn ask_slowly(&self, outcomes: &[Outcome], request: Range<usize>) -> Option<Outcome> {
        let (request, now) = (self.buffer.slice(request), self.now);
        let held = held(outcomes).filter(|held| is_slow(&request, held.value.len()))?;
        count_read(self.counters.stats, true);
        let tasks = self.coordinator.tasks();
        let told = tasks.compute(move || tell(&request, Some(held), now)).await;
        Some(Outcome::Updated(told.unwrap_or_else(|error| {
            Reply::Error(format!("BUSY {error}; the command was not run"))
        })))
    }

    async fn value(&mut self) -> Option<(usize, RequestError)> {
        let stats = self.counters.stats;
        match self.stream.next().await {
            Some(Outcome::Value(Some(value))) => {
                count_read(stats, true);
                self.output.bulk(&value, self.protocol).await;
            }
            Some(Outcome::Failed(error)) => {
                self.reply().error(&error_text(error));
                return Some((0, error));
            }
            outcome => outcome
                .iter()
                .for_each(|outcome| encode_value(outcome, true, stats, &mut self.reply())),
        }
        None
    }

    /// The values of several keys. Those that fit together are read before anything is sent: where one
    /// cannot be read, the reply is an error.
    async fn values(&mut self, steps: Range<usize>) -> Option<(usize, RequestError)> {
        let (mut read, mut bytes) = (Vec::new(), 0);
        while read.len() < steps.len() && bytes < VALUES_BYTES_MAX {
            match self.stream.next().await {
                Some(Outcome::Failed(error)) => {
                    self.stream.skip(steps.len() - read.len() - 1);
                    self.reply().error(&error_text(error));
                    return Some((read.len(), error));
                }
                Some(outcome) => {
                    bytes += value_bytes(&outcome);
                    read.push(outcome);
                }
                None => break,
            }
        }
        let rest = steps.start + read.len()..steps.end;
        if let Some((place, error)) = self.look(rest.clone()).await {
            self.stream.skip(rest.len());
            self.reply().error(&error_text(error));
            return Some((read.len() + place, error));
        }
        self.reply().array(steps.len());
        for outcome in read {
            self.send_value(outcome).await;
        }
        for place in rest {
            if self.output.closed().is_some() {
                break;
            }
            let mut outcome = self.stream.next().await;
            if matches!(outcome, Some(Outcome::Failed(_))) {
                // What is sent cannot be called back: it is given as long again.
                let request = self.steps[place].request((self.buffer, self.shared), self.levels);
                outcome = self.coordinator.run(vec![request]).await.outcomes.pop();
            }
            match outcome {
                Some(Outcome::Failed(error)) => {
                    // Neither a value nor its absence may be made up: the client learns that the
                    // reply is not whole.
                    self.output.close(Closed::CutShort);
                    return Some((place - steps.start, error));
                }
                Some(outcome) => self.send_value(outcome).await,
                None => self.output.close(Closed::CutShort),
            }
        }
        None
    }

    /// Whether keys can be read, before a reply is begun that takes several windows; the first that
    /// cannot.
    async fn look(&self, steps: Range<usize>) -> Option<(usize, RequestError)> {
        let looks = self.steps[steps].iter().map(|step| Request {
            action: Action::Look,
            ..step.request((self.buffer, self.shared), self.levels)
        });
        let mut looks = self.coordinator.stream(looks, VALUES_BYTES_MAX);
        let mut place = 0;
        while let Some(outcome) = looks.next().await {
            if let Outcome::Failed(error) = outcome {
                return Some((place, error));
            }
            place += 1;
        }
        None
    }

    async fn send_value(&mut self, outcome: Outcome) {
        if let Outcome::Value(Some(value)) = &outcome {
            count_read(self.counters.stats, true);
            self.output.bulk(value, self.protocol).await;
        } else {
            let stats = self.counters.stats;
            encode_value(&outcome, false, stats, &mut self.reply());
        }
        self.output.relieve().await;
    }

    /// Takes the outcomes of so many requests together, none of them kept.
    async fn fold(&mut self, count: usize) -> Folded {
        let mut folded = Folded::default();
        for place in 0..count {
            match self.stream.next().await {
                Some(Outcome::Failed(error)) => {
                    folded.failed = folded.failed.or(Some((place, error)));
                }
                Some(outcome) => folded.counted += i64::from(counts(&outcome)),
                None => break,
            }
        }
        folded
    }

    fn reply_folded(
        &mut self,
        folded: Folded,
        encode: impl FnOnce(&Folded, &mut Encoder<'_>),
    ) -> Option<(usize, RequestError)> {
        let mut reply = self.output.encoder(self.protocol);
        match &folded.failed {
            Some((_, error)) => reply.error(&error_text(*error)),
            None => encode(&folded, &mut reply),
        }
        folded.failed
    }

    fn reply(&mut self) -> Encoder<'_> {
        self.output.encoder(self.protocol)
    }
}

const fn value_bytes(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Value(Some(value)) | Outcome::Hash(value) => value.len(),
        _ => 0,
    }
}

/// Whether a command has so few keys that it is carried out in one go without others waiting long, and
/// so short values that its reply may be held.
fn is_short(local: &Local<'_>, command: &DataCommand<'_>) -> bool {
    match command {
        DataCommand::MGet { keys } if keys.len() <= LOCAL_KEYS_MAX => {
            let lengths = keys.iter().filter_map(|key| local.look(key)?.value_bytes);
            lengths.sum::<u64>() <= VALUES_BYTES_MAX as u64
        }
        DataCommand::MGet { .. } => false,
        DataCommand::Set { value, .. } => value.len() < LARGE_BYTES,
        DataCommand::MSet { pairs } => pairs.iter().count() <= LOCAL_KEYS_MAX,
        DataCommand::Del { keys } | DataCommand::Exists { keys } => keys.len() <= LOCAL_KEYS_MAX,
        _ => true,
    }
}

/// Carries a command out at once on a node that is alone in its ring, without a plan; whether it
/// was answered without an error. `None`: it is too much for that.
pub(super) fn run_local(
    local: &Local<'_>,
    (command, request): (DataCommand<'_>, &[u8]),
    now: Millis,
    stats: &RespStats,
    reply: &mut Encoder<'_>,
) -> Option<bool> {
    if !is_short(local, &command) {
        return None;
    }
    Some(match command {
        // Values go straight from the store into the output.
        DataCommand::Get { key } => {
            if !get_local(local, (key, true), stats, reply) {
                return None;
            }
            true
        }
        DataCommand::MGet { keys } => {
            reply.array(keys.len());
            keys.iter()
                .for_each(|key| _ = get_local(local, (key, false), stats, reply));
            true
        }
        DataCommand::Part { key, .. } | DataCommand::Hash { key, .. } => {
            let outcome = local.get(key, |record| match record {
                Some((value, _)) if is_slow(request, value.len()) => None,
                Some((value, Kind::Hash)) => Some(Outcome::Hash(Bytes::copy_from_slice(value))),
                value => {
                    let value = value.map(|(value, _)| Bytes::copy_from_slice(value));
                    Some(Outcome::Value(value))
                }
            })?;
            let shape = Shape::Ask(0..request.len());
            encode((&[outcome], request), shape, now, stats, reply);
            true
        }
        DataCommand::Script(script) => {
            let key = script.keys().next().unwrap_or_default();
            update_local(local, (key, request), now, stats, reply)?
        }
        DataCommand::Update { key, .. } => update_local(local, (key, request), now, stats, reply)?,
        command => {
            let (outcomes, shape) = local_outcomes(local, command, now);
            encode((&outcomes, b""), shape, now, stats, reply).is_none()
        }
    })
}

fn update_local(
    local: &Local<'_>,
    (key, request): (&[u8], &[u8]),
    now: Millis,
    stats: &RespStats,
    reply: &mut Encoder<'_>,
) -> Option<bool> {
    let change = Change::Command(Bytes::copy_from_slice(request));
    let updated = local.update(key, &change)?;
    let outcome = updated.map_or_else(refused, Outcome::Updated);
    Some(encode((&[outcome], b""), Shape::Update, now, stats, reply).is_none())
}

/// Encodes a value; hashes have none, and where `is_strict` that is an error.
fn get_local(
    local: &Local<'_>,
    (key, is_strict): (&[u8], bool),
    stats: &RespStats,
    reply: &mut Encoder<'_>,
) -> bool {
    local.get(key, |record| {
        if is_strict && record.is_some_and(|(value, _)| value.len() >= LARGE_BYTES) {
            return false;
        }
        count_read(stats, record.is_some());
        match record {
            Some((value, Kind::String)) => reply.bulk(value),
            Some((_, Kind::Hash)) if is_strict => reply.error(WRONG_TYPE),
            Some((_, Kind::Hash)) | None => reply.null(),
        }
        true
    })
}

/// Most commands have one key.
type Outcomes = smallvec::SmallVec<[Outcome; 1]>;

fn local_outcomes(local: &Local<'_>, command: DataCommand<'_>, now: Millis) -> (Outcomes, Shape) {
    let look = |key: &[u8]| Outcome::Look(local.look(key));
    let set = |key: &[u8], value: &[u8], expires_at| {
        local
            .write(key, Some(value), expires_at)
            .map_or_else(refused, |_| Outcome::Written)
    };
    let delete = |key: &[u8]| {
        local
            .write(key, None, None)
            .map_or_else(refused, Outcome::Deleted)
    };
    let expire = |key: &[u8], at| {
        let changed = local.change_expiry(key, at);
        changed.map_or_else(refused, |(held, before)| Outcome::Expiry {
            existed: held.is_some_and(|summary| summary.value_bytes.is_some()),
            had_end: before.is_some(),
        })
    };
    match command {
        DataCommand::Get { key } => (one(look(key)), Shape::Value),
        DataCommand::MGet { keys } => (keys.iter().map(look).collect(), Shape::Values),
        DataCommand::Set { key, value, expiry } => (
            one(set(key, value, expiry.map(|expiry| moment(expiry, now)))),
            Shape::Ok,
        ),
        DataCommand::MSet { pairs } => (
            pairs
                .iter()
                .map(|(key, value)| set(key, value, None))
                .collect(),
            Shape::Ok,
        ),
        DataCommand::Del { keys } => (keys.iter().map(delete).collect(), Shape::Count),
        DataCommand::Exists { keys } => (keys.iter().map(look).collect(), Shape::Count),
        DataCommand::Expire { key, at } => match moment(at, now) {
            at if at <= now => (one(delete(key)), Shape::Count),
            at => (one(expire(key, Some(at))), Shape::Count),
        },
        DataCommand::Persist { key } => (one(expire(key, None)), Shape::Persisted),
        DataCommand::Ttl { key, form } => (one(look(key)), Shape::Ttl(form)),
        DataCommand::Type { key } => (one(look(key)), Shape::Type),
        DataCommand::StrLen { key } => (one(look(key)), Shape::Length),
        // Carried out before.
        DataCommand::Part { key, .. }
        | DataCommand::Hash { key, .. }
        | DataCommand::Update { key, .. } => (one(look(key)), Shape::Type),
        DataCommand::Script(_) | DataCommand::NamedScript(_) => (one(look(b"")), Shape::Type),
        DataCommand::Usage { key } => (one(look(key)), Shape::Usage(key.len())),
    }
}

fn one(outcome: Outcome) -> Outcomes {
    smallvec::smallvec![outcome]
}

fn refused(refusal: Refusal) -> Outcome {
    let refusal = Some(refusal);
    Outcome::Failed(RequestError::Write(QuorumNotMet {
        need: 1,
        got: 0,
        refusal,
    }))
}

/// More commands than this in one go are carried out in several.
const STEPS_MAX: usize = 256;
const BUFFER_BYTES_MAX: usize = 1024 * 1024;
/// What is read of values before the client has taken what came before; a single value may be longer.
/// Enough that a round trip to other nodes is little beside copying it.
pub(super) const VALUES_BYTES_MAX: usize = 1024 * 1024;
/// Their replies come all at once, and nobody knows how long they are.
const TELLING_MAX: usize = 16;
/// About a tenth of a millisecond of work without a pause.
const LOCAL_KEYS_MAX: usize = 256;
