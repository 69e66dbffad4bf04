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
mod table;
mod update;

#[cfg(test)]
mod tests;

pub use command::{Command, CommandError, DataCommand, Keys, Pairs, Part, TtlForm};
pub use connection::{ClientCommand, CommandQuery, ConnectionCommand, KeysQuery, SlowLogQuery};
pub use decode::{Reply, ReplyError, decode};
pub use expiry::ExpiryArg;
pub use glob::matches;
pub use kind::CommandKind;
pub use parser::{Args, Limits, Parsed, Parser, ProtocolError, integer};
pub use reply::{Encoder, Protocol};
pub use table::{CommandFacts, command_facts, commands};
pub use update::{Condition, ExpireCondition, HashRead, NewEnd, SetIf, SetTells, Update};
