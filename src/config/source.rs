//! Where settings come from, and which of several values for one key counts.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::problem::{ConfigErrors, Fault, Place, Problem, VARIABLE_PREFIX, variable};
use super::settings::SECTIONS;
use super::table::Key;
use super::value::Raw;

/// What a configuration is made of. For one key, `set` counts more than `env`, and `env` more than
/// `file`.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The configuration file: its path, for messages, and its text.
    pub file: Option<(PathBuf, String)>,
    /// Environment variables, name and value. Those that are not ours are left alone.
    pub env: Vec<(String, String)>,
    /// `KEY=VALUE`, as given with `--set`. Of two for one key the later counts.
    pub set: Vec<String>,
}

impl Sources {
    /// Reads the file, if any, and the environment of this process.
    pub fn read(file: Option<&Path>, set: Vec<String>) -> Result<Self, ConfigErrors> {
        let file = match file {
            Some(path) => Some((path.to_owned(), read_text(path)?)),
            None => None,
        };
        // Text that is not UTF-8 is kept as near as can be: what it is for then says what is wrong.
        let env = env::vars_os()
            .map(|(name, value)| {
                let text = |os: OsString| os.to_string_lossy().into_owned();
                (text(name), text(value))
            })
            .collect();
        Ok(Self { file, env, set })
    }
}

/// For each key that was given, the value that counts.
#[derive(Debug)]
pub(super) struct Given {
    entries: BTreeMap<&'static str, Entry>,
    file: Option<PathBuf>,
}

#[derive(Debug)]
struct Entry {
    raw: Raw,
    /// As written, made fit for a message.
    text: String,
    place: Place,
}

impl Given {
    /// Takes the sources apart. Notes keys that do not exist; goes no further than a file that is
    /// not TOML.
    pub(super) fn gather(
        sources: &Sources,
        problems: &mut Vec<Problem>,
    ) -> Result<Self, ConfigErrors> {
        let mut given = Self {
            entries: BTreeMap::new(),
            file: sources.file.as_ref().map(|(path, _)| path.clone()),
        };
        // In rising order of weight: a later value for a key replaces an earlier one.
        if let Some((path, text)) = &sources.file {
            given.add_file(path, text, problems)?;
        }
        given.add_environment(&sources.env, problems);
        given.add_command_line(&sources.set, problems);
        Ok(given)
    }

    /// What was given for a key, or else its default.
    pub(super) fn raw(&self, key: &Key) -> Raw {
        let entry = self.entries.get(key.name);
        entry.map_or_else(|| Raw::from_toml(key.default), |entry| entry.raw.clone())
    }

    /// Where a key was given.
    pub(super) fn place(&self, key: &str) -> Place {
        match (self.entries.get(key), &self.file) {
            (Some(entry), _) => entry.place.clone(),
            (None, Some(path)) => Place::File { path: path.clone() },
            (None, None) => Place::Nowhere,
        }
    }

    /// What was given for a key, as it was written.
    pub(super) fn assignment(&self, key: &Key) -> String {
        let text = self.entries.get(key.name).map(|entry| entry.text.as_str());
        let text = text.unwrap_or(key.default);
        self.place(key.name).assignment(key.name, text)
    }

    fn add_file(
        &mut self,
        path: &Path,
        text: &str,
        problems: &mut Vec<Problem>,
    ) -> Result<(), ConfigErrors> {
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let problem = |error: &toml::de::Error| syntax_problem(path, text, error);
            return Err(ConfigErrors(errors.iter().map(problem).collect()));
        }
        for (name, value) in table.get_ref() {
            let place = Place::Line {
                path: path.to_owned(),
                line: position(text, name.span().start).0,
                column: None,
            };
            match (known_key(name.get_ref()), value.get_ref()) {
                (_, DeValue::Table(_)) => problems.push(Problem {
                    place,
                    fault: Fault::Section {
                        name: printable(name.get_ref()),
                    },
                }),
                (Some(key), raw) => {
                    let as_written = text.get(value.span()).unwrap_or_default();
                    self.put(key, raw.into(), as_written, place);
                }
                (None, _) => problems.push(unknown_key(name.get_ref(), name.get_ref(), place)),
            }
        }
        Ok(())
    }

    fn add_environment(&mut self, env: &[(String, String)], problems: &mut Vec<Problem>) {
        for (name, value) in env {
            let Some(suffix) = name.strip_prefix(VARIABLE_PREFIX) else {
                continue;
            };
            if OTHER_VARIABLES.contains(&suffix) || suffix.starts_with(SIMULATOR_VARIABLES) {
                continue;
            }
            let raw = Raw::Word(value.clone());
            match keys().find(|key| variable(key.name) == *name) {
                Some(key) => self.put(key, raw, value, Place::Environment),
                None => {
                    let like = suffix.to_ascii_lowercase();
                    problems.push(unknown_key(name, &like, Place::Environment));
                }
            }
        }
    }

    fn add_command_line(&mut self, set: &[String], problems: &mut Vec<Problem>) {
        for argument in set {
            let Some((name, value)) = argument.split_once('=') else {
                let argument = printable(argument);
                problems.push(Problem {
                    place: Place::CommandLine,
                    fault: Fault::NotAssignment { argument },
                });
                continue;
            };
            let (name, value) = (name.trim(), value.trim());
            let raw = Raw::Word(value.to_owned());
            match known_key(name) {
                Some(key) => self.put(key, raw, value, Place::CommandLine),
                None => problems.push(unknown_key(name, name, Place::CommandLine)),
            }
        }
    }

    fn put(&mut self, key: &Key, raw: Raw, as_written: &str, place: Place) {
        let text = printable(as_written);
        self.entries.insert(key.name, Entry { raw, text, place });
    }
}

/// All keys of the table.
pub(super) fn keys() -> impl Iterator<Item = &'static Key> {
    SECTIONS.iter().flat_map(|section| section.keys)
}

fn known_key(name: &str) -> Option<&'static Key> {
    keys().find(|key| key.name == name)
}

/// The value is left out: what somebody took for a key may be a password.
fn unknown_key(name: &str, like: &str, place: Place) -> Problem {
    Problem {
        fault: Fault::UnknownKey {
            name: printable(name),
            nearest: nearest_key(like).map(|key| place.advice(key.name, key.example)),
        },
        place,
    }
}

/// The known key that looks most like a wrong one, if it is near enough to be a slip.
fn nearest_key(name: &str) -> Option<&'static Key> {
    // A longer name is no slip of a key, and measuring costs the product of the lengths.
    if name.len() > 2 * LIKENESS_LENGTH_MAX {
        return None;
    }
    keys()
        .map(|key| (strsim::normalized_damerau_levenshtein(name, key.name), key))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, key)| key)
}

fn syntax_problem(path: &Path, text: &str, error: &toml::de::Error) -> Problem {
    // An error without a place is one at the end of the file.
    let start = error.span().map_or(text.len(), |span| span.start);
    let (line, column) = position(text, start);
    let line_text = text.lines().nth(line - 1).unwrap_or_default();
    Problem {
        place: Place::Line {
            path: path.to_owned(),
            line,
            column: Some(column),
        },
        fault: Fault::Syntax {
            reason: error.message().to_owned(),
            text: printable(line_text),
        },
    }
}

/// Line and column of a byte, both from 1.
fn position(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().count() - text.get(..line_start).map_or(0, |s| s.chars().count());
    (line, column + 1)
}

/// Text from outside as part of a message: on one line, without control characters, not too long.
fn printable(text: &str) -> String {
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    let mut shown: String = text.trim().chars().take(SHOWN_MAX).map(visible).collect();
    if text.trim().chars().count() > SHOWN_MAX {
        shown.push_str("...");
    }
    shown
}

fn read_text(path: &Path) -> Result<String, ConfigErrors> {
    let read = || -> io::Result<String> {
        let mut text = String::new();
        let mut file = File::open(path)?.take(FILE_BYTES_MAX + 1);
        file.read_to_string(&mut text)?;
        if file.limit() == 0 {
            let reason = format!("it has more than {FILE_BYTES_MAX} bytes");
            return Err(io::Error::other(reason));
        }
        Ok(text)
    };
    read().map_err(|error| {
        let place = Place::File {
            path: path.to_owned(),
        };
        let fault = Fault::Unreadable {
            reason: error.to_string(),
        };
        ConfigErrors(vec![Problem { place, fault }])
    })
}

/// A hundred times what all keys with all their comments need.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Variables of our programs that are no keys, without the prefix.
const OTHER_VARIABLES: [&str; 1] = ["BENCH_PASSWORD"];
/// What the variables of the simulator begin with, without the prefix of all.
const SIMULATOR_VARIABLES: &str = "SIM_";

/// Two slips in a name of six letters.
const LIKENESS_MIN: f64 = 0.6;
/// No key is longer.
const LIKENESS_LENGTH_MAX: usize = 32;

/// In characters: more of a wrong value helps nobody.
const SHOWN_MAX: usize = 60;
