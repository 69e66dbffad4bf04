//! What commands make of a key: from what it holds to what it is to hold, and to a reply.
//!
//! Whoever updates a key by consensus runs this on the state that a majority holds. Knows nothing of
//! replicas: the state, the time and the limits are handed in.

mod apply;
mod hash;
#[cfg(test)]
#[cfg(feature = "scripts")]
mod hostile;
#[cfg(feature = "scripts")]
mod json;
#[cfg(feature = "scripts")]
mod library;
#[cfg_attr(
    not(feature = "scripts"),
    expect(dead_code, reason = "scripts alone are limited")
)]
mod limit;
mod number;
#[cfg(feature = "scripts")]
mod pattern;
mod reply;
#[cfg(feature = "scripts")]
mod script;
#[cfg(test)]
#[cfg(feature = "scripts")]
mod tests;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::model::{Body, Kind, Millis, Record, Version};
use crate::resp::{Command, Limits, Parsed, Parser};

pub use apply::{WRONG_TYPE, apply, moment, ttl, usage};
pub use hash::Fields;
pub use limit::{
    Ended, Limit, MEMORY_MAX as SCRIPT_MEMORY_MAX, REPLY_BYTES_MAX as SCRIPT_REPLY_BYTES_MAX, Watch,
};
pub use reply::Reply;

/// What a key holds, or is to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The bytes.
    pub value: Bytes,
    /// How they are to be understood.
    pub kind: Kind,
    /// When it ends.
    pub expires_at: Option<Millis>,
}

/// The state of a key while it is worked on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    held: Option<Held>,
    /// The version of what was there at first.
    version: Option<Version>,
    /// It is no longer what was there at first: others have been at it, in the same round.
    is_another: bool,
    is_changed: bool,
}

/// What an update is made under.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The moment it is made at.
    pub now: Millis,
    /// The longest value that replicas take.
    pub value_bytes_max: usize,
    /// How long scripts may run.
    pub limit: &'a Limit,
}

/// What is to be done to a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Nothing: what is there is told.
    #[serde(rename = "l")]
    Look,
    /// Write a value that ends then.
    #[serde(rename = "s")]
    Set(Bytes, Option<Millis>),
    /// Delete.
    #[serde(rename = "d")]
    Delete,
    /// Write a value of a kind that ends then, perhaps only if there is none.
    #[serde(rename = "p")]
    Put(Bytes, Kind, Option<Millis>, bool),
    /// Let the value end then.
    #[serde(rename = "e")]
    Expire(Option<Millis>),
    /// Carry out a command, as a client has sent it.
    #[serde(rename = "c")]
    Command(Bytes),
    /// Carry out commands if what the client has seen, a value or none, is still of this version, and
    /// nothing otherwise.
    #[serde(rename = "t")]
    Transaction(Option<Version>, Vec<Bytes>),
}

impl State {
    /// What a record holds at a moment.
    #[must_use]
    pub fn of(record: Option<&Record>, now: Millis) -> Self {
        let live = record.filter(|record| !record.is_expired(now));
        let held = live.and_then(|record| match &record.body {
            Body::Value(value) => Some(Held {
                value: value.clone(),
                kind: record.kind,
                expires_at: record.expiry.at,
            }),
            Body::Tombstone => None,
        });
        Self {
            version: record.map(|record| record.stamp().newest()),
            held,
            is_another: false,
            is_changed: false,
        }
    }

    /// What it is now.
    #[must_use]
    pub const fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// Whether it is to be written.
    #[must_use]
    pub const fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// The record of it, under this version.
    #[must_use]
    pub fn record(&self, version: Version) -> Record {
        match &self.held {
            Some(held) => Record {
                kind: held.kind,
                ..Record::value(version, held.expires_at, held.value.clone())
            },
            None => Record::tombstone(version),
        }
    }

    /// Says so.
    pub const fn set_changed(&mut self, is_changed: bool) {
        self.is_changed = is_changed;
    }

    fn set(&mut self, held: Option<Held>) {
        self.held = held;
        self.is_changed = true;
        self.is_another = true;
    }
}

impl Change {
    /// Does it to a state. What is told of it.
    pub fn make(&self, state: &mut State, context: Context<'_>) -> Reply {
        match self {
            Self::Look => {
                let held = state.held.clone();
                let seen = held.map(|held| (held.value, held.kind, held.expires_at));
                Reply::Seen(seen, state.version)
            }
            Self::Set(value, expires_at) => {
                state.set(Some(Held {
                    value: value.clone(),
                    kind: Kind::String,
                    expires_at: *expires_at,
                }));
                Reply::Ok
            }
            Self::Put(value, kind, expires_at, if_absent) => {
                if *if_absent && state.held.is_some() {
                    return Reply::Integer(0);
                }
                state.set(Some(Held {
                    value: value.clone(),
                    kind: *kind,
                    expires_at: *expires_at,
                }));
                Reply::Integer(1)
            }
            Self::Delete => {
                let was_there = state.held.is_some();
                if was_there {
                    state.set(None);
                }
                Reply::Integer(i64::from(was_there))
            }
            Self::Expire(at) => {
                let Some(held) = &state.held else {
                    return Reply::Array(vec![Reply::Integer(0), Reply::Integer(0)]);
                };
                let before = held.expires_at;
                if before != *at {
                    let held = Held {
                        expires_at: *at,
                        ..held.clone()
                    };
                    state.set(Some(held));
                }
                let had_end = i64::from(before.is_some());
                Reply::Array(vec![Reply::Integer(1), Reply::Integer(had_end)])
            }
            Self::Command(request) => run(request, state, context),
            Self::Transaction(seen, commands) => {
                if state.is_another || state.version != *seen {
                    return Reply::Nil;
                }
                let (before, mut replies) = (state.clone(), Vec::new());
                let mut room = context.value_bytes_max.saturating_add(REPLIES_BYTES_MAX);
                for request in commands {
                    let reply = run(request, state, context);
                    let Some(left) = room.checked_sub(reply.bytes()) else {
                        *state = before;
                        return Reply::Error(TOO_LONG.to_owned());
                    };
                    room = left;
                    replies.push(reply);
                }
                Reply::Array(replies)
            }
        }
    }

    /// Whether it runs a script.
    #[must_use]
    pub fn is_script(&self) -> bool {
        let is_script = |request: &[u8]| {
            let name = command_name(request);
            name.eq_ignore_ascii_case(b"EVAL") || name.eq_ignore_ascii_case(b"EVAL_RO")
        };
        self.requests().iter().any(|request| is_script(request))
    }

    /// Whether it may take longer than a millisecond on a value of so many bytes: then it is made where
    /// it is not in the way of requests. It costs little to ask.
    #[must_use]
    pub fn is_slow(&self, held_bytes: usize) -> bool {
        let mut requests = self.requests().iter();
        self.is_script() || requests.any(|request| is_slow(request, held_bytes))
    }

    /// The commands that it carries out.
    const fn requests(&self) -> &[Bytes] {
        match self {
            Self::Look | Self::Set(..) | Self::Delete | Self::Put(..) | Self::Expire(_) => &[],
            Self::Command(request) => std::slice::from_ref(request),
            Self::Transaction(_, requests) => requests.as_slice(),
        }
    }

    /// About how many bytes it has.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let varied = match self {
            Self::Look | Self::Delete | Self::Expire(_) => 0,
            Self::Set(value, _) | Self::Put(value, ..) | Self::Command(value) => value.len(),
            Self::Transaction(_, commands) => commands.iter().map(Bytes::len).sum(),
        };
        varied + OVERHEAD_BYTES
    }
}

/// Whether a command, as a client has sent it, may take longer than a millisecond on a value of so
/// many bytes. Scripts are not looked at here.
#[must_use]
pub fn is_slow(request: &[u8], held_bytes: usize) -> bool {
    let bytes = held_bytes.saturating_add(request.len());
    // Strings are copied, the fields of hashes are taken apart.
    let is_hash = matches!(command_name(request).first(), Some(b'h' | b'H'));
    bytes > SLOW_BYTES || (is_hash && bytes > SLOW_HASH_BYTES)
}

/// The name under which a script is known, 40 hexadecimal digits.
#[must_use]
pub fn script_name(source: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, source);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// What a command, as a client has sent it, reads of what a key holds.
#[must_use]
pub fn tell(request: &[u8], held: Option<Held>, now: Millis) -> Reply {
    run_on(request, held, now, &Limit::of_steps())
}

/// Runs a script that has no key.
#[must_use]
pub fn run_script(request: &[u8], now: Millis, limit: &Limit) -> Reply {
    run_on(request, None, now, limit)
}

fn run_on(request: &[u8], held: Option<Held>, now: Millis, limit: &Limit) -> Reply {
    let mut state = State {
        held,
        ..State::default()
    };
    let context = Context {
        now,
        value_bytes_max: usize::MAX,
        limit,
    };
    run(request, &mut state, context)
}

/// Carries out a command as a client has sent it.
fn run(request: &[u8], state: &mut State, context: Context<'_>) -> Reply {
    // It was parsed at the door; what is said here is for nodes of other versions.
    let mut parser = Parser::new(Limits {
        value_bytes_max: request.len(),
        request_bytes_max: request.len(),
        args_max: request.len(),
    });
    let args = match parser.parse(request) {
        Ok(Parsed::Request { .. }) => parser.args(request),
        _ => return Reply::Error("ERR Protocol error: not a whole request".to_owned()),
    };
    match Command::parse(args) {
        Ok(Command::Data(_, command)) => apply(command, state, context),
        Ok(Command::Connection(..)) => {
            Reply::Error("ERR this command cannot be part of an atomic update".to_owned())
        }
        Err(error) => Reply::Error(error.to_string()),
    }
}

/// The first word of a command as a client has sent it, in either of the two forms.
fn command_name(request: &[u8]) -> &[u8] {
    // `*2\r\n$3\r\nGET\r\n...`, or `GET ...`.
    let skipped = if request.first() == Some(&b'*') { 2 } else { 0 };
    let mut lines = request.split(|byte| *byte == b'\n');
    let line = lines.nth(skipped).unwrap_or_default().trim_ascii();
    let end = line.iter().position(u8::is_ascii_whitespace);
    &line[..end.unwrap_or(line.len())]
}

const OVERHEAD_BYTES: usize = 32;
/// Of a transaction, beside one value of the longest: so that they fit into a frame between nodes.
const REPLIES_BYTES_MAX: usize = 4 * 1024 * 1024;
const TOO_LONG: &str = "ERR the replies of the transaction are too large; nothing was changed";
/// A millisecond's copying.
const SLOW_BYTES: usize = 2 * 1024 * 1024;
/// A millisecond for fields of a few bytes each.
const SLOW_HASH_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod slow_tests {
    use super::*;

    #[test]
    fn scripts_and_large_hashes_are_slow() {
        let command = |text: &'static str| Change::Command(Bytes::from_static(text.as_bytes()));
        for script in [
            "*3\r\n$4\r\nEVAL\r\n$8\r\nreturn 1\r\n$1\r\n0\r\n",
            "*3\r\n$7\r\neval_ro\r\n$8\r\nreturn 1\r\n$1\r\n0\r\n",
            "eval x 0\r\n",
        ] {
            assert!(command(script).is_script() && command(script).is_slow(0));
            let Change::Command(request) = command(script) else {
                panic!()
            };
            let others = vec![Bytes::from_static(b"GET k\r\n"), request];
            assert!(Change::Transaction(None, others).is_script());
        }
        for (text, held, is_slow) in [
            ("*2\r\n$4\r\nINCR\r\n$1\r\nk\r\n", 100_000, false),
            ("*2\r\n$4\r\nINCR\r\n$1\r\nk\r\n", 3_000_000, true),
            ("*2\r\n$4\r\nHSET\r\n$1\r\nk\r\n", 1_000, false),
            ("*2\r\n$4\r\nhset\r\n$1\r\nk\r\n", 100_000, true),
            ("", 0, false),
            ("*", 0, false),
        ] {
            assert!(!command(text).is_script());
            assert_eq!(command(text).is_slow(held), is_slow, "{text:?}, {held}");
        }
    }
}
