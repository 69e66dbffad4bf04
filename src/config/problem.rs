//! What can be wrong with a configuration, said so that it can be put right.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use crate::model::QuorumError;

/// All that is wrong with a configuration: at least one problem, in the order of the file, then
/// of the environment, then of the command line. Displayed one a line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}", lines(.0))]
pub struct ConfigErrors(pub Vec<Problem>);

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{place}: {fault}")]
pub struct Problem {
    /// Where it was written.
    pub place: Place,
    /// What is wrong, and what to write instead.
    pub fault: Fault,
}

/// One thing that is legal, and probably not what was meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Where it was written.
    pub place: Place,
    /// What it means, and what to write instead.
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}

/// Where a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A line of the file.
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in characters; only where the syntax is wrong.
        column: Option<usize>,
    },
    /// Nowhere in the file: it is missing there.
    File {
        /// The file.
        path: PathBuf,
    },
    /// The environment.
    Environment,
    /// `--set`.
    CommandLine,
    /// Nowhere, and there is no file.
    Nowhere,
}

/// What is wrong. The texts `given` and `write` are assignments in the form of their place:
/// `n = 3` in a file, `QUORATE_N=3` in the environment, `--set n=3` on the command line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Fault {
    /// The file cannot be read.
    #[error("cannot read the configuration: {reason}; `quorate config default` prints one")]
    Unreadable {
        /// What the operating system said.
        reason: String,
    },
    /// The file is not TOML, or has a key twice.
    #[error("{reason}, in `{text}`")]
    Syntax {
        /// What the parser said.
        reason: String,
        /// The line as it stands.
        text: String,
    },
    /// A table, where all keys are flat.
    #[error("`{name}` is a section; write every key on a line of its own, outside any section")]
    Section {
        /// Its name.
        name: String,
    },
    /// A `--set` without `=`.
    #[error("`--set {argument}` has no value; write --set KEY=VALUE")]
    NotAssignment {
        /// As given.
        argument: String,
    },
    /// A key that does not exist.
    #[error("there is no key `{name}`; {}", instead_of_unknown(.nearest))]
    UnknownKey {
        /// As given.
        name: String,
        /// How to give the known key that looks most like it, if any does.
        nearest: Option<String>,
    },
    /// A key that must be given.
    #[error("{key} is not set; write {form}, for example {write}")]
    Missing {
        /// Its name.
        key: &'static str,
        /// What to write.
        form: &'static str,
        /// An example.
        write: String,
    },
    /// A value of another type.
    #[error("{given}: expected {form}; write for example {write}")]
    WrongType {
        /// As given.
        given: String,
        /// What to write.
        form: &'static str,
        /// An example.
        write: String,
    },
    /// A value outside the limits of its key.
    #[error("{given}: out of range, it must be {least} to {most}; write for example {write}")]
    OutOfRange {
        /// As given.
        given: String,
        /// The least allowed.
        least: &'static str,
        /// The most allowed.
        most: &'static str,
        /// An example.
        write: String,
    },
    /// A value that is not good, alone or together with others.
    #[error("{given}: {reason}; write {write}")]
    BadValue {
        /// As given.
        given: String,
        /// Why it is not good.
        reason: String,
        /// What to write instead.
        write: String,
    },
    /// Three numbers that are no quorum.
    #[error("{error}; write {write}")]
    Quorum {
        /// Which number is wrong, and why.
        error: QuorumError,
        /// What to write instead.
        write: String,
    },
}

impl Place {
    /// What was given for a key, as its place has it.
    pub(super) fn assignment(&self, key: &str, value: &str) -> String {
        match self {
            Self::Line { .. } | Self::File { .. } | Self::Nowhere => format!("{key} = {value}"),
            Self::Environment => format!("{}={value}", variable(key)),
            Self::CommandLine => format!("--set {key}={value}"),
        }
    }

    /// How to write a value, given as TOML, at this place: only a file wants quotes and brackets.
    pub(super) fn advice(&self, key: &str, toml: &str) -> String {
        match self {
            Self::Line { .. } | Self::File { .. } | Self::Nowhere => self.assignment(key, toml),
            Self::Environment | Self::CommandLine => {
                self.assignment(key, &toml.replace(['"', '[', ']', ' '], ""))
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { path, line, column } => {
                write!(f, "{}:{line}", path.display())?;
                match column {
                    Some(column) => write!(f, ":{column}"),
                    None => Ok(()),
                }
            }
            Self::File { path } => write!(f, "{}", path.display()),
            Self::Environment => f.write_str("environment"),
            Self::CommandLine => f.write_str("command line"),
            Self::Nowhere => f.write_str("configuration"),
        }
    }
}

/// The environment variable of a key.
pub(super) fn variable(key: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", key.to_ascii_uppercase())
}

/// What the names of all environment variables of ours begin with.
pub(super) const VARIABLE_PREFIX: &str = "QUORATE_";

fn instead_of_unknown(nearest: &Option<String>) -> String {
    match nearest {
        Some(nearest) => format!("did you mean {nearest}?"),
        None => "`quorate config default` lists all keys".to_owned(),
    }
}

fn lines(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(Problem::to_string).collect();
    lines.join("\n")
}
