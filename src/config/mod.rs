//! All settings of a node in one file, with defaults, checks and messages.
//!
//! One table (`settings.rs`) says for every key its type, default, limits and meaning; parsing,
//! `config default` and all messages come from it. Loading is pure: text in, settings or the full
//! list of problems out. Only [`Sources::read`] touches the file system and the environment.
//! Knows nothing of what the settings are used for.

mod check;
mod problem;
mod render;
mod settings;
mod source;
mod table;
#[cfg(test)]
mod tests;
mod units;
mod value;

pub use problem::{ConfigErrors, Fault, Place, Problem, Warning};
pub use settings::{Checked, Settings, TlsFiles};
pub use source::Sources;
pub use units::{ByteSize, UnitError};
pub use value::{HintSync, HostPort, Keyspace, LogFormat, Replies, Role, SloppyKeyspace};
