//! The language of Redis clients: requests in, commands, replies out. RESP2 and RESP3.
//!
//! Knows nothing of connections, of what a key holds or of the time.

mod command;
mod connection;
mod decode;
mod expiry;
mod glob;
mod kind;
mod parser;
mod parts;
mod reply;
mod script;
mod server;
mod table;
mod update;

/// The version of Redis that clients are told: whose replies are those of this node.
pub const REDIS_VERSION: &str = "7.2.4";

#[cfg(test)]
mod tests;

pub use command::{Command, CommandError, DataCommand, Keys, Pairs, Part, TtlForm};
pub use connection::{ClientCommand, CommandQuery, ConnectionCommand, KeysQuery, SlowLogQuery};
pub use decode::{Reply, ReplyError, decode};
pub use expiry::ExpiryArg;
pub use glob::matches;
pub use kind::CommandKind;
pub use parser::{Args, Limits, Parsed, Parser, ProtocolError, integer, parse_words};
pub use reply::{Encoder, Protocol};
pub use script::{Script, ScriptQuery};
pub use server::{ChannelQuery, KillFilter, LatencyQuery, Replies};
pub use table::{CommandFacts, command_facts, commands};
pub use update::{Condition, ExpireCondition, HashRead, NewEnd, SetIf, SetTells, Update};
