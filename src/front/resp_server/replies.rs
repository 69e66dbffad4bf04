//! From outcomes to replies.

use std::ops::Range;

use super::stats::RespStats;
use crate::model::{Kind, Millis, Summary};
use crate::node::coordinator::{Outcome, RequestError};
use crate::node::updates::UpdateError;
use crate::resp::{Encoder, TtlForm};
use crate::update::{Held, Reply, WRONG_TYPE, tell, ttl, usage};
use crate::wire::Refusal;

/// How outcomes become a reply.
#[derive(Debug, Clone)]
pub(super) enum Shape {
    Value,
    Values,
    Ok,
    Count,
    Ttl(TtlForm),
    Type,
    Length,
    Persisted,
    /// What the request asks of the value.
    Ask(Range<usize>),
    Update,
    /// What a key of so many bytes takes.
    Usage(usize),
}

/// Encodes the reply to one command; the first outcome that is an error, if there is one.
pub(super) fn encode(
    (outcomes, buffer): (&[Outcome], &[u8]),
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
            .for_each(|outcome| encode_value(outcome, true, stats, reply)),
        Shape::Values => {
            reply.array(outcomes.len());
            outcomes
                .iter()
                .for_each(|outcome| encode_value(outcome, false, stats, reply));
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
        Shape::Ttl(form) => reply.integer(match looked(outcomes) {
            None => -2,
            Some(summary) => ttl(summary.expires_at, form, now),
        }),
        Shape::Type => reply.simple(looked(outcomes).map_or("none", |held| held.kind.name())),
        Shape::Length => match looked(outcomes) {
            Some(summary) if summary.kind != Kind::String => reply.error(WRONG_TYPE),
            held => {
                let length = held.and_then(|summary| summary.value_bytes).unwrap_or(0);
                reply.integer(i64::try_from(length).unwrap_or(i64::MAX));
            }
        },
        Shape::Ask(request) => {
            let held = held(outcomes);
            count_read(stats, held.is_some());
            told(&tell(&buffer[request], held, now), reply);
        }
        Shape::Update => match outcomes {
            [Outcome::Updated(update)] => told(update, reply),
            _ => reply.null(),
        },
        Shape::Usage(key_bytes) => match looked(outcomes) {
            None => reply.null(),
            Some(summary) => {
                let value_bytes = usize::try_from(summary.value_bytes.unwrap_or(0));
                let bytes = usage(key_bytes, value_bytes.unwrap_or(usize::MAX));
                reply.integer(i64::try_from(bytes).unwrap_or(i64::MAX));
            }
        },
    }
    None
}

/// Hashes have no value, and where `is_strict` that is an error.
pub(super) fn encode_value(
    outcome: &Outcome,
    is_strict: bool,
    stats: &RespStats,
    reply: &mut Encoder<'_>,
) {
    count_read(stats, !matches!(outcome, Outcome::Value(None)));
    match outcome {
        Outcome::Value(Some(value)) => reply.bulk(value),
        Outcome::Hash(_) if is_strict => reply.error(WRONG_TYPE),
        _ => reply.null(),
    }
}

/// What a read has found.
pub(super) fn held(outcomes: &[Outcome]) -> Option<Held> {
    let (value, kind) = match outcomes {
        [Outcome::Value(Some(value))] => (value, Kind::String),
        [Outcome::Hash(value)] => (value, Kind::Hash),
        _ => return None,
    };
    Some(Held {
        value: value.clone(),
        kind,
        expires_at: None,
    })
}

/// What an update has told.
pub(super) fn told(update: &Reply, reply: &mut Encoder<'_>) {
    match update {
        Reply::Nil => reply.null(),
        Reply::Ok => reply.simple("OK"),
        Reply::Integer(number) => reply.integer(*number),
        Reply::Bulk(bytes) => reply.bulk(bytes),
        Reply::Status(text) => reply.simple(text),
        Reply::Error(text) => reply.error(text),
        Reply::Array(replies) => {
            reply.array(replies.len());
            replies.iter().for_each(|each| told(each, reply));
        }
        Reply::Map(pairs) => {
            reply.map(pairs.len());
            for bytes in pairs.iter().flat_map(|(field, value)| [field, value]) {
                reply.bulk(bytes);
            }
        }
        Reply::Seen(seen, _) => match seen {
            Some((value, ..)) => reply.bulk(value),
            None => reply.null(),
        },
    }
}

pub(super) fn count_read(stats: &RespStats, is_hit: bool) {
    let counter = if is_hit { &stats.hits } else { &stats.misses };
    counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
}

pub(super) const fn counts(outcome: &Outcome) -> bool {
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

/// The words of an error.
pub(super) fn error_text(error: RequestError) -> String {
    match error {
        RequestError::Read(quorum)
        | RequestError::Write(quorum)
        | RequestError::Update(UpdateError::NotMade(quorum))
            if quorum.refusal == Some(Refusal::TooBig) =>
        {
            format!("TOOBIG {error}")
        }
        RequestError::Update(UpdateError::Uncertain | UpdateError::AnswerLost) => {
            format!("UNCERTAIN {error}")
        }
        RequestError::Update(UpdateError::Busy) | RequestError::Overloaded => {
            format!("BUSY {error}")
        }
        error => format!("NOQUORUM {error}"),
    }
}
