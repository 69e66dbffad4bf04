//! From commands to requests for the coordinator, and from outcomes to replies.
//!
//! A plan holds what one client has sent in one go. Keys and values are copied once, into the
//! plan's own buffer, so that the read buffer is free for what comes next.

use std::ops::Range;

use bytes::Bytes;
use tokio::time::Instant;

use crate::env::Clock;
use crate::model::{Database, Kind, Level, Levels, Millis};
use crate::node::coordinator::{Action, Coordinator, Local, Outcome, Ran, Request, RequestError};
use crate::protocol::QuorumNotMet;
use crate::resp::{CommandKind, DataCommand, Encoder};
use crate::update::{Change, WRONG_TYPE, moment};
use crate::wire::Refusal;

use super::clients::Client;
use super::replies::{Shape, count_read, encode, error_text};
use super::slowlog::{SlowEntry, SlowLog, SlowRules};
use super::stats::{RespStats, Tally};

/// Which levels requests on a key have, and whether others may stand in for its homes.
pub(super) type LevelsOf<'a> = &'a (dyn Fn(&[u8]) -> (Levels, bool) + Sync);

/// Commands waiting to be carried out together.
#[derive(Debug, Default)]
pub(super) struct Plan {
    database: Database,
    buffer: Vec<u8>,
    steps: Vec<Step>,
    replies: Vec<Planned>,
    /// Key and level of what is being carried out.
    asked: Vec<(Range<usize>, Level)>,
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
        value: Range<usize>,
        expires_at: Option<Millis>,
    },
    Delete,
    Expire {
        at: Option<Millis>,
    },
    Update {
        request: Range<usize>,
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
        self.steps.len() >= STEPS_MAX || self.buffer.len() >= BUFFER_BYTES_MAX
    }

    /// The keys of commands are those of this database from now on.
    pub(super) const fn select(&mut self, database: Database) {
        self.database = database;
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
                let request = self.copy(request);
                self.step(key, Verb::Update { request }, Shape::Update)
            }
            DataCommand::Update { key, .. } => {
                let request = self.copy(request);
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
        reply: &mut Encoder<'_>,
    ) -> u64 {
        // One copy of what the client sent, shared by all its requests.
        let buffer = Bytes::from(std::mem::take(&mut self.buffer));
        self.asked.clear();
        let requests = self.steps.drain(..).map(|step| {
            let action = match step.verb {
                Verb::Get => Action::Get,
                Verb::Look => Action::Look,
                Verb::Set { value, expires_at } => Action::Set {
                    value: buffer.slice(value),
                    expires_at,
                },
                Verb::Delete => Action::Delete,
                Verb::Expire { at } => Action::Expire { at },
                Verb::Update { request } => Action::Update(Change::Command(buffer.slice(request))),
            };
            let span = step.key.clone();
            let key = buffer.slice(step.key);
            let (levels, is_sloppy) = levels(Database::split(&key).1);
            let level = match action {
                Action::Get | Action::Look => levels.read,
                Action::Set { .. } | Action::Delete | Action::Expire { .. } | Action::Update(_) => {
                    levels.write
                }
            };
            self.asked.push((span, level));
            Request {
                key,
                action,
                level,
                is_sloppy,
            }
        });
        let Ran {
            outcomes,
            sloppy_writes,
        } = coordinator.run(requests.collect()).await;
        for planned in self.replies.drain(..) {
            match planned {
                Planned::Command { kind, shape, steps } => {
                    let stats = counters.stats;
                    let level = self.asked.get(steps.start).map(|(_, level)| *level);
                    let outcomes = &outcomes[steps.clone()];
                    let failed = encode((outcomes, &buffer), shape, now, stats, reply);
                    stats.count(kind, failed.is_none());
                    counters.tally.add(kind, level);
                    if let Some((place, error)) = failed {
                        let (span, level) = &self.asked[steps.start + place];
                        let failed = Failed {
                            kind,
                            level: *level,
                            key: &buffer[span.clone()],
                            error,
                        };
                        counters.note_failure(coordinator, &failed, now);
                    }
                }
                Planned::Error(text) => reply.error(&text),
            }
        }
        sloppy_writes
    }

    fn step(&mut self, key: &[u8], verb: Verb, shape: Shape) -> Shape {
        let key = self.copy(&self.database.key(key));
        self.steps.push(Step { key, verb });
        shape
    }

    fn set(&mut self, key: &[u8], value: &[u8], expires_at: Option<Millis>) -> Shape {
        let value = self.copy(value);
        self.step(key, Verb::Set { value, expires_at }, Shape::Ok)
    }

    fn copy(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(bytes);
        start..self.buffer.len()
    }
}

/// Carries a command out at once on a node that is alone in its ring, without a plan; whether it
/// was answered without an error.
pub(super) fn run_local(
    local: &Local<'_>,
    (command, request): (DataCommand<'_>, &[u8]),
    now: Millis,
    stats: &RespStats,
    reply: &mut Encoder<'_>,
) -> bool {
    match command {
        // Values go straight from the store into the output.
        DataCommand::Get { key } => get_local(local, (key, true), stats, reply),
        DataCommand::MGet { keys } => {
            reply.array(keys.len());
            keys.iter()
                .for_each(|key| get_local(local, (key, false), stats, reply));
        }
        DataCommand::Part { key, .. } | DataCommand::Hash { key, .. } => {
            let outcome = local.get(key, |record| match record {
                Some((value, Kind::Hash)) => Outcome::Hash(Bytes::copy_from_slice(value)),
                value => Outcome::Value(value.map(|(value, _)| Bytes::copy_from_slice(value))),
            });
            let shape = Shape::Ask(0..request.len());
            encode((&[outcome], request), shape, now, stats, reply);
        }
        DataCommand::Script(script) => {
            let key = script.keys().next().unwrap_or_default();
            return update_local(local, (key, request), now, stats, reply);
        }
        DataCommand::Update { key, .. } => {
            return update_local(local, (key, request), now, stats, reply);
        }
        command => {
            let (outcomes, shape) = local_outcomes(local, command, now);
            return encode((&outcomes, b""), shape, now, stats, reply).is_none();
        }
    }
    true
}

fn update_local(
    local: &Local<'_>,
    (key, request): (&[u8], &[u8]),
    now: Millis,
    stats: &RespStats,
    reply: &mut Encoder<'_>,
) -> bool {
    let change = Change::Command(Bytes::copy_from_slice(request));
    let updated = local.update(key, &change);
    let outcome = updated.map_or_else(refused, Outcome::Updated);
    encode((&[outcome], b""), Shape::Update, now, stats, reply).is_none()
}

/// Encodes a value; hashes have none, and where `is_strict` that is an error.
fn get_local(
    local: &Local<'_>,
    (key, is_strict): (&[u8], bool),
    stats: &RespStats,
    reply: &mut Encoder<'_>,
) {
    local.get(key, |record| {
        count_read(stats, record.is_some());
        match record {
            Some((value, Kind::String)) => reply.bulk(value),
            Some((_, Kind::Hash)) if is_strict => reply.error(WRONG_TYPE),
            Some((_, Kind::Hash)) | None => reply.null(),
        }
    });
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
