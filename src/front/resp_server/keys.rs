//! `SCAN`, `KEYS` and `RANDOMKEY`: the keys of the whole ring.

use bytes::Bytes;

use crate::env::Env;
use crate::model::{Database, Kind};
use crate::node::coordinator::Coordinator;
use crate::resp::{Encoder, KeysQuery, matches};

/// What was found.
#[derive(Debug)]
pub(super) enum Found {
    /// A page, and the cursor of the next one.
    Page(u64, Vec<Bytes>),
    All(Vec<Bytes>),
    One(Option<Bytes>),
}

/// Looks for it; an error is the text of the reply.
pub(super) async fn answer(
    query: &KeysQuery<'_>,
    database: Database,
    coordinator: &Coordinator,
    env: &Env,
) -> Result<Found, String> {
    match *query {
        KeysQuery::Scan {
            cursor,
            count,
            pattern,
            kind,
        } => {
            let (keys, next) = page((coordinator, database), cursor, count).await?;
            let is_of_kind = |own: Kind| {
                kind.is_none_or(|kind| kind.eq_ignore_ascii_case(own.name().as_bytes()))
            };
            let wanted = keys.into_iter().filter_map(|(key, kind)| {
                let is_wanted = is_of_kind(kind) && pattern.is_none_or(|p| matches(p, &key));
                is_wanted.then_some(key)
            });
            Ok(Found::Page(next, wanted.collect()))
        }
        KeysQuery::All { pattern } => all(pattern, (coordinator, database)).await,
        KeysQuery::Random => random((coordinator, database), env).await,
    }
}

/// The coordinator, and which of the ring's keys are asked for.
type Of<'a> = (&'a Coordinator, Database);

async fn page(
    (coordinator, database): Of<'_>,
    cursor: u64,
    count: usize,
) -> Result<(Vec<(Bytes, Kind)>, u64), String> {
    let page = coordinator.keys(cursor, count).await;
    let page = page.map_err(|error| format!("NOQUORUM {error}"))?;
    let keys = page.keys.into_iter().filter_map(|(key, kind)| {
        let (of, rest) = Database::split(&key);
        (of == database).then(|| (key.slice_ref(rest), kind))
    });
    Ok((keys.collect(), page.next))
}

async fn all(pattern: &[u8], of: Of<'_>) -> Result<Found, String> {
    let (mut found, mut bytes, mut cursor) = (Vec::new(), 0, 0);
    loop {
        let (keys, next) = page(of, cursor, KEYS_A_PAGE).await?;
        let keys = keys.into_iter().map(|(key, _)| key);
        for key in keys.filter(|key| matches(pattern, key)) {
            bytes += key.len();
            found.push(key);
        }
        if bytes > KEYS_BYTES_MAX || found.len() > KEYS_MAX {
            return Err(format!(
                "TOOBIG more than {KEYS_MAX} keys or {KEYS_BYTES_MAX} bytes of them match: use SCAN"
            ));
        }
        if next == 0 {
            return Ok(Found::All(found));
        }
        cursor = next;
    }
}

/// A key somewhere behind a place taken by chance: keys behind wide gaps come more often.
async fn random(of: Of<'_>, env: &Env) -> Result<Found, String> {
    let start = env.rng.next_u64();
    let (mut cursor, mut has_turned) = (start, false);
    loop {
        let (keys, next) = page(of, cursor, RANDOM_A_PAGE).await?;
        if !keys.is_empty() {
            let place = usize::try_from(env.rng.next_u64() % keys.len() as u64).unwrap_or(0);
            return Ok(Found::One(keys.into_iter().nth(place).map(|(key, _)| key)));
        }
        // Other databases may hold the keys in between. Once around, and no further.
        if has_turned && (next == 0 || next > start) {
            return Ok(Found::One(None));
        }
        has_turned |= next == 0;
        cursor = next;
    }
}

pub(super) fn encode(found: Result<Found, String>, reply: &mut Encoder<'_>) {
    let list = |keys: &[Bytes], reply: &mut Encoder<'_>| {
        reply.array(keys.len());
        keys.iter().for_each(|key| reply.bulk(key));
    };
    match found {
        Err(text) => reply.error(&text),
        Ok(Found::Page(next, keys)) => {
            reply.array(2);
            reply.bulk(next.to_string().as_bytes());
            list(&keys, reply);
        }
        Ok(Found::All(keys)) => list(&keys, reply),
        Ok(Found::One(Some(key))) => reply.bulk(&key),
        Ok(Found::One(None)) => reply.null(),
    }
}

const KEYS_A_PAGE: usize = 1_000;
const RANDOM_A_PAGE: usize = 10;
/// What one reply may hold.
const KEYS_MAX: usize = 1_000_000;
const KEYS_BYTES_MAX: usize = 64 * 1024 * 1024;
