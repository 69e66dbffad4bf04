//! From commands to requests for the coordinator, and from outcomes to replies.
//!
//! A plan holds what one client has sent in one go. Keys and values are copied once, into the
//! plan's own buffer, so that the read buffer is free for what comes next.

use std::ops::Range;

use bytes::Bytes;
use tokio::time::Instant;

use crate::env::Clock;
use crate::model::{Level, Levels, Millis, Summary};
use crate::node::coordinator::{Action, Coordinator, Local, Outcome, Ran, Request, RequestError};
use crate::protocol::QuorumNotMet;
use crate::resp::{CommandKind, DataCommand, Encoder, ExpiryArg, Part, TtlForm};
use crate::wire::Refusal;

use super::clients::Client;
use super::slowlog::{SlowEntry, SlowLog, SlowRules};
use super::stats::{RespStats, Tally};

/// Which levels requests on a key have, and whether others may stand in for its homes.
pub(super) type LevelsOf<'a> = &'a (dyn Fn(&[u8]) -> (Levels, bool) + Sync);

/// Commands waiting to be carried out together.
#[derive(Debug, Default)]
pub(super) struct Plan {
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

/// How outcomes become a reply.
#[derive(Debug, Clone, Copy)]
enum Shape {
    Value,
    Values,
    Ok,
    Count,
    Ttl(TtlForm),
    Type,
    Length,
    Persisted,
    Part(Part),
    /// What a key of so many bytes takes.
    Usage(usize),
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Whether it is time to carry it out before more is added.
    pub(super) fn is_full(&self) -> bool {
        self.steps.len() >= STEPS_MAX || self.buffer.len() >= BUFFER_BYTES_MAX
    }

    /// Adds an error in its place among the replies.
    pub(super) fn push_error(&mut self, text: String) {
        self.replies.push(Planned::Error(text));
    }

    /// Adds a command.
    pub(super) fn push(&mut self, kind: CommandKind, command: DataCommand<'_>, now: Millis) {
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
            DataCommand::Part { key, part } => self.step(key, Verb::Get, Shape::Part(part)),
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
            };
            let span = step.key.clone();
            let key = buffer.slice(step.key);
            let (levels, is_sloppy) = levels(&key);
            let level = match action {
                Action::Get | Action::Look => levels.read,
                Action::Set { .. } | Action::Delete | Action::Expire { .. } => levels.write,
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
                    let failed = encode(&outcomes[steps.clone()], shape, now, stats, reply);
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
        let key = self.copy(key);
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
    command: DataCommand<'_>,
    now: Millis,
    stats: &RespStats,
    reply: &mut Encoder<'_>,
) -> bool {
    match command {
        // Values go straight from the store into the output.
        DataCommand::Get { key } => get_local(local, key, stats, reply),
        DataCommand::MGet { keys } => {
            reply.array(keys.len());
            keys.iter()
                .for_each(|key| get_local(local, key, stats, reply));
        }
        DataCommand::Part { key, part } => {
            local.get(key, |value| encode_part(value, part, stats, reply));
        }
        command => {
            let (outcomes, shape) = local_outcomes(local, command, now);
            return encode(&outcomes, shape, now, stats, reply).is_none();
        }
    }
    true
}

fn get_local(local: &Local<'_>, key: &[u8], stats: &RespStats, reply: &mut Encoder<'_>) {
    local.get(key, |value| {
        count_read(stats, value.is_some());
        match value {
            Some(value) => reply.bulk(value),
            None => reply.null(),
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
        DataCommand::Part { key, part } => (one(look(key)), Shape::Part(part)),
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

/// Encodes the reply to one command; the first outcome that is an error, if there is one.
fn encode(
    outcomes: &[Outcome],
    shape: Shape,
    now: Millis,
    stats: &RespStats,
    reply: &mut Encoder<'_>,
) -> Option<(usize, RequestError)> {
    let mut numbered = outcomes.iter().enumerate();
    let failed = numbered.find_map(|(place, outcome)| match outcome {
        Outcome::Failed(error) => Some((place, *error)),
        _ => None,
    });
    if let Some((_, error)) = failed {
        reply.error(&error_text(error));
        return failed;
    }
    match shape {
        Shape::Value => outcomes
            .iter()
            .for_each(|outcome| encode_value(outcome, stats, reply)),
        Shape::Values => {
            reply.array(outcomes.len());
            outcomes
                .iter()
                .for_each(|outcome| encode_value(outcome, stats, reply));
        }
        Shape::Ok => reply.simple("OK"),
        Shape::Count => {
            let counted = outcomes.iter().filter(|outcome| counts(outcome)).count();
            reply.integer(i64::try_from(counted).unwrap_or(i64::MAX));
        }
        Shape::Persisted => {
            let is_persisted = matches!(
                outcomes,
                [Outcome::Expiry {
                    existed: true,
                    had_end: true
                }]
            );
            reply.integer(i64::from(is_persisted));
        }
        Shape::Ttl(form) => reply.integer(ttl(looked(outcomes), form, now)),
        Shape::Type => reply.simple(if looked(outcomes).is_some() {
            "string"
        } else {
            "none"
        }),
        Shape::Length => {
            let length = looked(outcomes)
                .and_then(|summary| summary.value_bytes)
                .unwrap_or(0);
            reply.integer(i64::try_from(length).unwrap_or(i64::MAX));
        }
        Shape::Part(part) => {
            let value = match outcomes {
                [Outcome::Value(Some(value))] => Some(&value[..]),
                _ => None,
            };
            encode_part(value, part, stats, reply);
        }
        Shape::Usage(key_bytes) => match looked(outcomes) {
            None => reply.null(),
            Some(summary) => {
                let value_bytes = summary.value_bytes.unwrap_or(0);
                let bytes = value_bytes.saturating_add(key_bytes as u64) + RECORD_BYTES;
                reply.integer(i64::try_from(bytes).unwrap_or(i64::MAX));
            }
        },
    }
    None
}

fn encode_part(value: Option<&[u8]>, part: Part, stats: &RespStats, reply: &mut Encoder<'_>) {
    count_read(stats, value.is_some());
    let held = value.unwrap_or_default();
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    match (part, value) {
        (Part::Range(start, end), _) => reply.bulk(Part::range(held, start, end)),
        (Part::Bit(offset), _) => reply.integer(i64::from(Part::bit(held, offset))),
        (Part::Count(range), _) => reply.integer(number(Part::count(held, range))),
        (Part::Encoding | Part::IdleTime | Part::References, None) => reply.null(),
        (Part::Encoding, Some(value)) => reply.bulk(Part::encoding(value).as_bytes()),
        (Part::IdleTime, Some(_)) => reply.integer(0),
        (Part::References, Some(_)) => reply.integer(1),
    }
}

fn encode_value(outcome: &Outcome, stats: &RespStats, reply: &mut Encoder<'_>) {
    let value = match outcome {
        Outcome::Value(value) => value.as_ref(),
        _ => None,
    };
    count_read(stats, value.is_some());
    match value {
        Some(value) => reply.bulk(value),
        None => reply.null(),
    }
}

fn count_read(stats: &RespStats, is_hit: bool) {
    let counter = if is_hit { &stats.hits } else { &stats.misses };
    counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
}

const fn counts(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Look(Some(_)) | Outcome::Deleted(true) | Outcome::Expiry { existed: true, .. }
    )
}

const fn looked(outcomes: &[Outcome]) -> Option<Summary> {
    match outcomes {
        [Outcome::Look(summary)] => *summary,
        _ => None,
    }
}

/// As Redis: -2 without a value, -1 without an end; seconds are rounded to the nearest.
fn ttl(held: Option<Summary>, form: TtlForm, now: Millis) -> i64 {
    let Some(summary) = held else { return -2 };
    let Some(Millis(at)) = summary.expires_at else {
        return -1;
    };
    let answer = match form {
        TtlForm::Seconds => (at.saturating_sub(now.0) + 500) / 1_000,
        TtlForm::Millis => at.saturating_sub(now.0),
        TtlForm::AtSeconds => (at + 500) / 1_000,
        TtlForm::AtMillis => at,
    };
    i64::try_from(answer).unwrap_or(i64::MAX)
}

/// The moment that an argument means; one before 1970 is 1970.
fn moment(expiry: ExpiryArg, now: Millis) -> Millis {
    let at = match expiry {
        ExpiryArg::At(ms) => ms,
        ExpiryArg::After(ms) => i64::try_from(now.0).unwrap_or(i64::MAX).saturating_add(ms),
    };
    Millis(u64::try_from(at).unwrap_or(0))
}

fn error_text(error: RequestError) -> String {
    match error {
        RequestError::Read(quorum) | RequestError::Learn(quorum) | RequestError::Write(quorum)
            if quorum.refusal == Some(Refusal::TooBig) =>
        {
            format!("TOOBIG {error}")
        }
        error => format!("NOQUORUM {error}"),
    }
}

/// What a record takes beyond key and value, measured with a million of them.
const RECORD_BYTES: u64 = 80;
/// More commands than this in one go are carried out in several.
const STEPS_MAX: usize = 256;
const BUFFER_BYTES_MAX: usize = 1024 * 1024;
