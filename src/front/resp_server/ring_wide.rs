//! Commands that ask the ring about more than one key: databases, other names for keys, messages.

use bytes::Bytes;

use super::Shared;
use super::replies::error_text;
use crate::model::{Database, Level, Millis, Version};
use crate::node::coordinator::{Action, Outcome, Request};
use crate::resp::ConnectionCommand;
use crate::update::{Change, Reply};

/// What a key holds.
type Seen = (Bytes, crate::model::Kind, Option<Millis>);

/// Answers one of these commands; `None`: it is none.
pub(super) async fn answer(
    command: ConnectionCommand<'_>,
    database: Database,
    shared: &Shared,
) -> Option<Reply> {
    let answered = match command {
        ConnectionCommand::DbSize => count(database, shared).await,
        ConnectionCommand::Flush(is_all) => flush(is_all, database, shared).await,
        ConnectionCommand::Rename {
            from,
            to,
            if_absent,
        } => rename((from, to, if_absent), database, shared).await,
        ConnectionCommand::Copy {
            from,
            to,
            database: other,
            replaces,
        } => {
            let into = other.map_or(Ok(database), Database::try_from);
            match into {
                Ok(into) => copy((from, database), (to, into), replaces, shared).await,
                Err(_) => Err("ERR DB index is out of range".to_owned()),
            }
        }
        ConnectionCommand::Publish(channel, message) => {
            let (channel, message) = (
                Bytes::copy_from_slice(channel),
                Bytes::copy_from_slice(message),
            );
            let now = shared.env.clock.monotonic();
            let here = shared.channels.publish(&channel, &message, now);
            let there = shared.coordinator.publish(&channel, &message).await;
            Ok(number(here as u64 + there))
        }
        _ => return None,
    };
    Some(answered.unwrap_or_else(Reply::Error))
}

async fn count(database: Database, shared: &Shared) -> Result<Reply, String> {
    let count = shared.coordinator.count(database).await;
    count.map(number).map_err(error_text)
}

async fn flush(is_all: bool, database: Database, shared: &Shared) -> Result<Reply, String> {
    let databases = match is_all {
        true => Database::all().collect(),
        false => vec![database],
    };
    let flushed = shared.coordinator.flush(&databases).await;
    flushed.map(|()| Reply::Ok).map_err(error_text)
}

/// Reads a key, writes the other, deletes the first if it is still the same: each by itself.
async fn rename(
    (from, to, if_absent): (&[u8], &[u8], bool),
    database: Database,
    shared: &Shared,
) -> Result<Reply, String> {
    let (Some(seen), version) = look(from, database, shared).await? else {
        return Err("ERR no such key".to_owned());
    };
    let done = |is_done: bool| match if_absent {
        true => number(u64::from(is_done)),
        false => Reply::Ok,
    };
    if from == to {
        return Ok(done(false));
    }
    let is_written = put(to, database, (seen, if_absent), shared).await?;
    if is_written {
        let delete = Change::Transaction(version, vec![Bytes::from_static(b"DEL k\r\n")]);
        update(from, database, delete, shared).await?;
    }
    Ok(done(is_written))
}

async fn copy(
    (from, database): (&[u8], Database),
    (to, into): (&[u8], Database),
    replaces: bool,
    shared: &Shared,
) -> Result<Reply, String> {
    if (from, database) == (to, into) {
        return Err("ERR source and destination objects are the same".to_owned());
    }
    let (Some(seen), _) = look(from, database, shared).await? else {
        return Ok(Reply::Integer(0));
    };
    let is_written = put(to, into, (seen, !replaces), shared).await?;
    Ok(number(u64::from(is_written)))
}

async fn look(
    key: &[u8],
    database: Database,
    shared: &Shared,
) -> Result<(Option<Seen>, Option<Version>), String> {
    match update(key, database, Change::Look, shared).await? {
        Reply::Seen(seen, version) => Ok((seen, version)),
        _ => Ok((None, None)),
    }
}

async fn put(
    key: &[u8],
    database: Database,
    ((value, kind, expires_at), if_absent): (Seen, bool),
    shared: &Shared,
) -> Result<bool, String> {
    let put = Change::Put(value, kind, expires_at, if_absent);
    let told = update(key, database, put, shared).await?;
    Ok(told == Reply::Integer(1))
}

async fn update(
    key: &[u8],
    database: Database,
    change: Change,
    shared: &Shared,
) -> Result<Reply, String> {
    let key = Bytes::copy_from_slice(&database.key(key));
    ask(key, Action::Update(change), shared).await
}

/// Carries one update out.
pub(super) async fn ask(key: Bytes, action: Action, shared: &Shared) -> Result<Reply, String> {
    let request = Request {
        key,
        action,
        level: Level::Quorum,
        is_sloppy: false,
    };
    let ran = shared.coordinator.run(vec![request]).await;
    match ran.outcomes.into_iter().next() {
        Some(Outcome::Updated(Reply::Error(text))) => Err(text),
        Some(Outcome::Updated(reply)) => Ok(reply),
        Some(Outcome::Failed(error)) => Err(error_text(error)),
        // One request has one outcome, and this one is an update.
        _ => Err("ERR no answer".to_owned()),
    }
}

fn number(number: u64) -> Reply {
    Reply::Integer(i64::try_from(number).unwrap_or(i64::MAX))
}
