//! The kinds of value a key can have: how each is read, and how it is written as TOML.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::{FromStr, ParseBoolError};
use std::time::Duration;

use toml::de::{DeInteger, DeValue};

use super::units::{self, ByteSize, UnitError};
use crate::model::{LevelError, Levels, NodeId};

/// What was written for a key, before its kind is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Raw {
    /// Text from the environment or the command line, where a number is text as well.
    Word(String),
    /// A string in a file.
    Text(String),
    /// A whole number in a file.
    Integer(i128),
    /// A list in a file.
    List(Vec<Self>),
    /// What no key takes: a float, a boolean, a date, an integer of over 127 bits.
    Other,
}

/// Why something is not a value of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is empty, and this kind must not be.
    Missing,
    /// It is of another type.
    WrongType,
    /// It is a number, beyond what the type can hold.
    OutOfRange,
    /// It is of the right type, but not good.
    Bad(String),
}

/// A kind of value.
pub(super) trait Value: Sized + PartialOrd {
    /// What to write, for messages and comments.
    const FORM: &'static str;

    /// Reads what was given.
    fn parse(raw: &Raw) -> Result<Self, Refusal>;

    /// Writes it as TOML, so that [`Value::parse`] reads the same value.
    fn to_toml(&self) -> String;
}

/// How many of n replies or acknowledgements to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Replies {
    /// More than half of n.
    Majority,
    /// This many.
    Exactly(u8),
}

impl Replies {
    /// The number, where n copies are kept.
    #[must_use]
    pub const fn of(self, n: u8) -> u8 {
        match self {
            Self::Majority => n / 2 + 1,
            Self::Exactly(replies) => replies,
        }
    }
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors.
    Json,
}

/// What a node does in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Holds its share of the data.
    Member,
    /// Coordinates requests, holds no data.
    Proxy,
}

/// What of a hint has to be on disk before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HintSync {
    /// All of it, synced: it survives the loss of power.
    Always,
    /// Handed to the operating system, and synced a fifth of a second later.
    Interval,
}

/// Whether others may stand in for the home nodes of keys that begin with a prefix:
/// `lock:=false`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SloppyKeyspace {
    /// What the keys begin with.
    pub prefix: String,
    /// Whether they may.
    pub is_sloppy: bool,
}

impl fmt::Display for SloppyKeyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.prefix, self.is_sloppy)
    }
}

/// A host, by name or address, and a port: `cache-1.example:7479`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// A name to be looked up, or an IP address (an IPv6 address without brackets).
    pub host: String,
    /// Never 0.
    pub port: u16,
}

/// The levels of all keys that begin with a prefix: `lock:=linearizable`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Keyspace {
    /// What the keys begin with.
    pub prefix: String,
    /// The levels of requests on them.
    pub levels: Levels,
}

impl fmt::Display for Keyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.prefix, self.levels)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Raw {
    /// The value that stands in TOML text such as `3`, `"1s"` or `["a", "b"]`.
    pub(super) fn from_toml(text: &str) -> Self {
        DeValue::parse(text).map_or(Self::Other, |value| Self::from(value.get_ref()))
    }

    fn text(&self) -> Result<&str, Refusal> {
        match self {
            Self::Word(text) | Self::Text(text) => Ok(text),
            _ => Err(Refusal::WrongType),
        }
    }

    fn integer(&self) -> Result<i128, Refusal> {
        match self {
            Self::Integer(number) => Ok(*number),
            Self::Word(text) => text.trim().parse().or(Err(Refusal::WrongType)),
            _ => Err(Refusal::WrongType),
        }
    }
}

impl From<&DeValue<'_>> for Raw {
    fn from(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.clone().into_owned()),
            DeValue::Boolean(truth) => Self::Word(truth.to_string()),
            DeValue::Integer(number) => integer(number).map_or(Self::Other, Self::Integer),
            DeValue::Array(items) => Self::List(
                items
                    .iter()
                    .map(|item| Self::from(item.get_ref()))
                    .collect(),
            ),
            _ => Self::Other,
        }
    }
}

impl Value for String {
    const FORM: &'static str = "text";

    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        Ok(raw.text()?.to_owned())
    }

    fn to_toml(&self) -> String {
        quote(self)
    }
}

impl Value for NodeId {
    const FORM: &'static str = "1 to 63 of a-z A-Z 0-9 . _ -";

    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        match raw.text()? {
            "" => Err(Refusal::Missing),
            name => name.parse().map_err(bad),
        }
    }

    fn to_toml(&self) -> String {
        quote(self.as_str())
    }
}

/// Whole numbers of one Rust type.
macro_rules! whole_number {
    ($($type:ty),+) => { $(
        impl Value for $type {
            const FORM: &'static str = "a whole number";

            fn parse(raw: &Raw) -> Result<Self, Refusal> {
                Self::try_from(raw.integer()?).or(Err(Refusal::OutOfRange))
            }

            fn to_toml(&self) -> String {
                self.to_string()
            }
        }
    )+ };
}
whole_number!(u8, u32, usize);

impl Value for Replies {
    const FORM: &'static str = "a whole number or \"majority\"";

    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        match raw.text() {
            Ok("majority") => Ok(Self::Majority),
            _ => u8::parse(raw).map(Self::Exactly),
        }
    }

    fn to_toml(&self) -> String {
        match self {
            Self::Majority => quote("majority"),
            Self::Exactly(replies) => replies.to_toml(),
        }
    }
}

impl Value for bool {
    const FORM: &'static str = "true or false";

    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        match raw {
            Raw::Word(word) => word.trim().parse().or(Err(Refusal::WrongType)),
            _ => Err(Refusal::WrongType),
        }
    }

    fn to_toml(&self) -> String {
        self.to_string()
    }
}

impl Value for LogFormat {
    const FORM: &'static str = "\"text\" or \"json\"";

    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        match raw.text()? {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(Refusal::Bad(format!("it must be {}", Self::FORM))),
        }
    }

    fn to_toml(&self) -> String {
        quote(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

impl Value for HintSync {
    const FORM: &'static str = "\"always\" or \"interval\"";

    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        match raw.text()? {
            "always" => Ok(Self::Always),
            "interval" => Ok(Self::Interval),
            _ => Err(Refusal::Bad(format!("it must be {}", Self::FORM))),
        }
    }

    fn to_toml(&self) -> String {
        quote(match self {
            Self::Always => "always",
            Self::Interval => "interval",
        })
    }
}

impl Value for Role {
    const FORM: &'static str = "\"member\" or \"proxy\"";

    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        match raw.text()? {
            "member" => Ok(Self::Member),
            "proxy" => Ok(Self::Proxy),
            _ => Err(Refusal::Bad(format!("it must be {}", Self::FORM))),
        }
    }

    fn to_toml(&self) -> String {
        quote(match self {
            Self::Member => "member",
            Self::Proxy => "proxy",
        })
    }
}

impl Value for Duration {
    const FORM: &'static str = "a duration in ms, s, m, h, d";

    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        match raw {
            // Left to the parser of units, which asks for one unless the number is 0.
            Raw::Integer(number) => units::parse_duration(&number.to_string()),
            _ => units::parse_duration(raw.text()?),
        }
        .map_err(bad_unit)
    }

    fn to_toml(&self) -> String {
        quote(&units::format_duration(*self))
    }
}

impl Value for ByteSize {
    const FORM: &'static str = "a size in bytes, or in KB, MB, GB (1000), KiB, MiB, GiB (1024)";

    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        match raw {
            Raw::Integer(number) => u64::try_from(*number)
                .map(ByteSize)
                .or(Err(Refusal::OutOfRange)),
            _ => units::parse_size(raw.text()?).map_err(bad_unit),
        }
    }

    fn to_toml(&self) -> String {
        quote(&self.to_string())
    }
}

impl Value for PathBuf {
    const FORM: &'static str = "a path";

    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        match raw.text()? {
            "" => Err(Refusal::Missing),
            path => Ok(Self::from(path)),
        }
    }

    fn to_toml(&self) -> String {
        // Paths come from text, so nothing is lost.
        quote(&self.to_string_lossy())
    }
}

impl Value for SocketAddr {
    const FORM: &'static str = "an IP address and a port";

    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        match raw.text()? {
            "" => Err(Refusal::Missing),
            text => match text.parse() {
                Ok(address) => Ok(address),
                Err(_) => Err(Refusal::Bad(format!("not {}", Self::FORM))),
            },
        }
    }

    fn to_toml(&self) -> String {
        quote(&self.to_string())
    }
}

/// What may be left empty.
macro_rules! optional {
    ($($type:ty, $form:literal);+) => { $(
        impl Value for Option<$type> {
            const FORM: &'static str = $form;

            fn parse(raw: &Raw) -> Result<Self, Refusal> {
                match <$type>::parse(raw) {
                    Err(Refusal::Missing) => Ok(None),
                    other => other.map(Some),
                }
            }

            fn to_toml(&self) -> String {
                self.as_ref().map_or_else(|| quote(""), Value::to_toml)
            }
        }
    )+ };
}
optional!(PathBuf, "a path or \"\""; SocketAddr, "an IP address and a port, or \"\"");

impl Value for Vec<HostPort> {
    const FORM: &'static str = "a list of \"host:port\"";

    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        list(raw, host_port)
    }

    fn to_toml(&self) -> String {
        list_to_toml(self)
    }
}

impl Value for Vec<Keyspace> {
    const FORM: &'static str = "a list of \"PREFIX=LEVEL\" or \"PREFIX=READ/WRITE\"";

    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        list(raw, keyspace)
    }

    fn to_toml(&self) -> String {
        list_to_toml(self)
    }
}

impl Value for Vec<SloppyKeyspace> {
    const FORM: &'static str = "a list of \"PREFIX=true\" or \"PREFIX=false\"";

    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        list(raw, sloppy_keyspace)
    }

    fn to_toml(&self) -> String {
        list_to_toml(self)
    }
}

impl Value for Levels {
    const FORM: &'static str =
        "one of one, quorum, all, local_quorum, linearizable, or two of them as \"READ/WRITE\"";

    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        levels(raw.text()?)
    }

    fn to_toml(&self) -> String {
        quote(&self.to_string())
    }
}

/// A list in a file, or its items with commas on a command line.
fn list<T>(raw: &Raw, item: impl Fn(&str) -> Result<T, Refusal>) -> Result<Vec<T>, Refusal> {
    match raw {
        Raw::List(items) => items.iter().map(|raw| item(raw.text()?)).collect(),
        Raw::Word(text) if text.starts_with('[') => list(&Raw::from_toml(text), item),
        Raw::Word(text) if text.is_empty() => Ok(Vec::new()),
        Raw::Word(text) => text.split(',').map(item).collect(),
        _ => Err(Refusal::WrongType),
    }
}

fn list_to_toml(items: &[impl fmt::Display]) -> String {
    let items: Vec<_> = items.iter().map(|item| quote(&item.to_string())).collect();
    format!("[{}]", items.join(", "))
}

fn levels(text: &str) -> Result<Levels, Refusal> {
    text.parse()
        .map_err(|error: LevelError| Refusal::Bad(error.to_string()))
}

fn keyspace(text: &str) -> Result<Keyspace, Refusal> {
    let (prefix, named) = text
        .rsplit_once('=')
        .ok_or_else(|| Refusal::Bad(format!("`{text}` is not PREFIX=LEVEL: the `=` is missing")))?;
    if prefix.is_empty() {
        let why = format!("`{text}` names no prefix; for all keys set `resp_level`");
        return Err(Refusal::Bad(why));
    }
    Ok(Keyspace {
        prefix: prefix.to_owned(),
        levels: levels(named)?,
    })
}

fn sloppy_keyspace(text: &str) -> Result<SloppyKeyspace, Refusal> {
    let refuse = |why: &str| {
        Refusal::Bad(format!(
            "`{text}` is not PREFIX=true or PREFIX=false: {why}"
        ))
    };
    let (prefix, truth) = text
        .rsplit_once('=')
        .ok_or_else(|| refuse("the `=` is missing"))?;
    if prefix.is_empty() {
        return Err(refuse("it names no prefix; for all keys set `sloppy`"));
    }
    Ok(SloppyKeyspace {
        prefix: prefix.to_owned(),
        is_sloppy: truth.parse().map_err(|_error: ParseBoolError| {
            refuse("after the `=` stands neither true nor false")
        })?,
    })
}

fn host_port(text: &str) -> Result<HostPort, Refusal> {
    let refuse = |why: &str| Refusal::Bad(format!("`{text}` is not host:port: {why}"));
    let (host, port) = text
        .trim()
        .rsplit_once(':')
        .ok_or_else(|| refuse("the port is missing"))?;
    let in_brackets = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let is_host = match in_brackets {
        Some(address) => Ipv6Addr::from_str(address).is_ok(),
        None => !host.is_empty() && host.chars().all(is_host_character),
    };
    if !is_host {
        return Err(refuse("the host is neither a name nor an IP address"));
    }
    match port.parse() {
        Ok(port) if port > 0 => Ok(HostPort {
            host: in_brackets.unwrap_or(host).to_owned(),
            port,
        }),
        _ => Err(refuse("the port must be 1 to 65535")),
    }
}

const fn is_host_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
}

fn integer(number: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(number.as_str(), number.radix()).ok()
}

fn bad(error: impl fmt::Display) -> Refusal {
    Refusal::Bad(error.to_string())
}

fn bad_unit(error: UnitError) -> Refusal {
    match error {
        UnitError::TooLarge => Refusal::OutOfRange,
        other => bad(other),
    }
}

/// A TOML basic string.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn word(text: &str) -> Raw {
        Raw::Word(text.to_owned())
    }

    #[test]
    fn numbers_come_as_numbers_in_a_file_and_as_text_elsewhere() {
        assert_eq!(u8::parse(&Raw::from_toml("3")), Ok(3));
        assert_eq!(u32::parse(&Raw::from_toml("1_000")), Ok(1_000));
        assert_eq!(u32::parse(&Raw::from_toml("0x10")), Ok(16));
        assert_eq!(u8::parse(&word(" 3 ")), Ok(3));
        assert_eq!(u8::parse(&Raw::from_toml("\"3\"")), Err(Refusal::WrongType));
        assert_eq!(u8::parse(&Raw::from_toml("3.0")), Err(Refusal::WrongType));
        assert_eq!(u8::parse(&Raw::from_toml("true")), Err(Refusal::WrongType));
        assert_eq!(u8::parse(&word("three")), Err(Refusal::WrongType));
        assert_eq!(u8::parse(&Raw::from_toml("256")), Err(Refusal::OutOfRange));
        assert_eq!(u8::parse(&word("-1")), Err(Refusal::OutOfRange));
    }

    #[test]
    fn sizes_and_durations_come_as_numbers_or_text() {
        let size = |toml| ByteSize::parse(&Raw::from_toml(toml));
        assert_eq!(size("1048576"), Ok(ByteSize(1 << 20)));
        assert_eq!(size("\"1MiB\""), Ok(ByteSize(1 << 20)));
        assert_eq!(size("-1"), Err(Refusal::OutOfRange));
        let duration = |toml| Duration::parse(&Raw::from_toml(toml));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(duration("\"1s\""), Ok(Duration::from_secs(1)));
        assert!(matches!(duration("5"), Err(Refusal::Bad(why)) if why.contains("unit")));
    }

    #[test]
    fn hosts_are_names_or_addresses_with_a_port() {
        let read = |text: &str| host_port(text).map(|parsed| parsed.to_string());
        for good in ["cache-1.example:7479", "10.0.0.1:1", "[::1]:65535"] {
            assert_eq!(read(good), Ok(good.to_owned()));
        }
        for wrong in [
            "", "a", ":1", "a:", "a:0", "a:65536", "::1:1", "[a]:1", "a b:1",
        ] {
            assert!(matches!(read(wrong), Err(Refusal::Bad(_))), "{wrong}");
        }
    }

    #[test]
    fn lists_come_from_a_file_or_with_commas() {
        let expected = Vec::parse(&Raw::from_toml("[\"a:1\", \"b:2\"]"));
        assert_eq!(expected.as_ref().map(Vec::len), Ok(2));
        assert_eq!(Vec::<HostPort>::parse(&word("a:1, b:2")), expected);
        assert_eq!(
            Vec::<HostPort>::parse(&word("[\"a:1\", \"b:2\"]")),
            expected
        );
        assert_eq!(Vec::<HostPort>::parse(&word("")), Ok(Vec::new()));
        assert_eq!(
            Vec::<HostPort>::parse(&Raw::from_toml("\"a:1\"")),
            Err(Refusal::WrongType)
        );
    }

    #[test]
    fn empty_is_none_where_it_may_be() {
        assert_eq!(Option::<PathBuf>::parse(&word("")), Ok(None));
        assert_eq!(PathBuf::parse(&word("")), Err(Refusal::Missing));
        assert_eq!(SocketAddr::parse(&word("")), Err(Refusal::Missing));
        assert!(matches!(
            Option::<SocketAddr>::parse(&word("localhost:1")),
            Err(Refusal::Bad(_))
        ));
    }

    proptest! {
        #[test]
        fn any_text_survives_quoting(text: String) {
            prop_assert_eq!(Raw::from_toml(&quote(&text)), Raw::Text(text));
        }
    }
}
