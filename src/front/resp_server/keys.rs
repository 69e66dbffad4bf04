//! `SCAN`, `KEYS` and `RANDOMKEY`: the keys of the whole ring.

use bytes::Bytes;

use crate::env::Env;
use crate::node::coordinator::{Coordinator, KeyPage};
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
    coordinator: &Coordinator,
    env: &Env,
) -> Result<Found, String> {
    match *query {
        KeysQuery::Scan {
            cursor,
            count,
            pattern,
            is_known_type,
        } => {
            let KeyPage { mut keys, next } = page(coordinator, cursor, count).await?;
            keys.retain(|key| is_known_type && pattern.is_none_or(|p| matches(p, key)));
            Ok(Found::Page(next, keys))
        }
        KeysQuery::All { pattern } => all(pattern, coordinator).await,
        KeysQuery::Random => random(coordinator, env).await,
    }
}

async fn page(coordinator: &Coordinator, cursor: u64, count: usize) -> Result<KeyPage, String> {
    let page = coordinator.keys(cursor, count).await;
    page.map_err(|error| format!("NOQUORUM {error}"))
}

async fn all(pattern: &[u8], coordinator: &Coordinator) -> Result<Found, String> {
    let (mut found, mut bytes, mut cursor) = (Vec::new(), 0, 0);
    loop {
        let KeyPage { keys, next } = page(coordinator, cursor, KEYS_A_PAGE).await?;
        for key in keys.into_iter().filter(|key| matches(pattern, key)) {
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
async fn random(coordinator: &Coordinator, env: &Env) -> Result<Found, String> {
    for start in [env.rng.next_u64(), 0] {
        let KeyPage { keys, .. } = page(coordinator, start, 1).await?;
        if !keys.is_empty() {
            let place = usize::try_from(env.rng.next_u64() % keys.len() as u64).unwrap_or(0);
            return Ok(Found::One(keys.into_iter().nth(place)));
        }
    }
    Ok(Found::One(None))
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
/// What one reply may hold.
const KEYS_MAX: usize = 1_000_000;
const KEYS_BYTES_MAX: usize = 64 * 1024 * 1024;
