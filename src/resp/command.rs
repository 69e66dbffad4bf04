//! From arguments to commands: names, arity, options, and the errors of Redis 7.

use thiserror::Error;

use super::connection::{self, ConnectionCommand};
use super::expiry::Unit;
use super::parts;
use super::script::{self, Script};
use super::update::{self, HashRead, Update};
use super::{Args, CommandKind, ExpiryArg};
use crate::model::{KeyError, LevelError, check_key};

/// A command, its keys and values borrowed from the input.
#[derive(Debug, Clone, Copy)]
pub enum Command<'a> {
    /// One about keys.
    Data(CommandKind, DataCommand<'a>),
    /// One about the connection or the server.
    Connection(CommandKind, ConnectionCommand<'a>),
}

/// A command about keys.
#[derive(Debug, Clone, Copy)]
pub enum DataCommand<'a> {
    /// `GET`
    Get {
        /// The key.
        key: &'a [u8],
    },
    /// `SET`, `SETEX`, `PSETEX`
    Set {
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
        /// When it ends.
        expiry: Option<ExpiryArg>,
    },
    /// `MGET`
    MGet {
        /// The keys.
        keys: Keys<'a>,
    },
    /// `MSET`
    MSet {
        /// The keys and their values.
        pairs: Pairs<'a>,
    },
    /// `DEL`, `UNLINK`
    Del {
        /// The keys.
        keys: Keys<'a>,
    },
    /// `EXISTS`, `TOUCH`
    Exists {
        /// The keys.
        keys: Keys<'a>,
    },
    /// `EXPIRE`, `PEXPIRE`, `EXPIREAT`, `PEXPIREAT`
    Expire {
        /// The key.
        key: &'a [u8],
        /// When its value ends.
        at: ExpiryArg,
    },
    /// `PERSIST`
    Persist {
        /// The key.
        key: &'a [u8],
    },
    /// `TTL`, `PTTL`, `EXPIRETIME`, `PEXPIRETIME`
    Ttl {
        /// The key.
        key: &'a [u8],
        /// How to say it.
        form: TtlForm,
    },
    /// `TYPE`
    Type {
        /// The key.
        key: &'a [u8],
    },
    /// `STRLEN`
    StrLen {
        /// The key.
        key: &'a [u8],
    },
    /// `GETRANGE`, `SUBSTR`, `GETBIT`, `BITCOUNT`, `OBJECT`
    Part {
        /// The key.
        key: &'a [u8],
        /// What of its value is asked for.
        part: Part,
    },
    /// `MEMORY USAGE`
    Usage {
        /// The key.
        key: &'a [u8],
    },
    /// A command whose effect depends on what the key holds.
    Update {
        /// The key.
        key: &'a [u8],
        /// What is to become of it.
        update: Update<'a>,
    },
    /// `EVAL`
    Script(Script<'a>),
    /// `EVALSHA`: what stands for the program is its name.
    NamedScript(Script<'a>),
    /// `HGET` and other reads of a hash.
    Hash {
        /// The key.
        key: &'a [u8],
        /// What is asked.
        read: HashRead<'a>,
    },
}

/// What of a value is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Bytes; both ends belong to it, and count from the end where they are negative.
    Range(i64, i64),
    /// The bit of this number.
    Bit(u64),
    /// How many bits are set, in all or between these; whether those count bits.
    Count(Option<(i64, i64, bool)>),
    /// How Redis would keep it.
    Encoding,
    /// How long nobody has asked for it, in seconds: not noted, so 0.
    IdleTime,
    /// How many hold it.
    References,
}

/// How to say when a value ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TtlForm {
    /// Seconds left.
    Seconds,
    /// Milliseconds left.
    Millis,
    /// Seconds since 1970.
    AtSeconds,
    /// Milliseconds since 1970.
    AtMillis,
}

/// The keys of a command that has several.
#[derive(Debug, Clone, Copy)]
pub struct Keys<'a>(Args<'a>);

/// The keys of a command that has several, each with a value.
#[derive(Debug, Clone, Copy)]
pub struct Pairs<'a>(Args<'a>);

/// A command that cannot be carried out. The text is the whole reply, but for the leading `-`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CommandError {
    /// No command has this name.
    #[error("ERR unknown command '{name}', with args beginning with: {args}")]
    Unknown {
        /// The name.
        name: String,
        /// The first arguments, quoted.
        args: String,
    },
    /// No sub-command has this name.
    #[error("ERR unknown subcommand '{name}'. Try {command} HELP.")]
    UnknownSubcommand {
        /// The command, in upper case.
        command: &'static str,
        /// The name.
        name: String,
    },
    /// Too few or too many arguments.
    #[error("ERR wrong number of arguments for '{0}' command")]
    Arity(String),
    /// Options that do not go together or do not exist.
    #[error("ERR syntax error")]
    Syntax,
    /// `EXPIRE` with an option that does not exist.
    #[error("ERR Unsupported option {0}")]
    Unsupported(String),
    /// A number that is none.
    #[error("ERR value is not an integer or out of range")]
    NotAnInteger,
    /// A number that is beyond 32 bits.
    #[error("ERR value is out of range, value must between -2147483648 and 2147483647")]
    NotAnInt,
    /// A moment that cannot be.
    #[error("ERR invalid expire time in '{0}' command")]
    InvalidExpire(&'static str),
    /// `SCAN` from nowhere.
    #[error("ERR invalid cursor")]
    Cursor,
    /// A timeout that is no number.
    #[error("ERR timeout is not an integer or out of range")]
    TimeoutNumber,
    /// No sub-command has this name, or it has other arguments: where Redis does not say which.
    #[error(
        "ERR unknown subcommand or wrong number of arguments for '{name}'. Try {command} HELP."
    )]
    SubcommandOrArity {
        /// The command, in upper case.
        command: &'static str,
        /// The name.
        name: String,
    },
    /// A timeout below zero.
    #[error("ERR timeout is negative")]
    NegativeTimeout,
    /// Not a version of RESP that this node speaks.
    #[error("NOPROTO unsupported protocol version")]
    Protocol,
    /// `HELLO` with something that is no number.
    #[error("ERR Protocol version is not an integer or out of range")]
    ProtocolNumber,
    /// `HELLO` with an option that does not exist.
    #[error("ERR Syntax error in HELLO option '{0}'")]
    HelloOption(String),
    /// Not a key.
    #[error("ERR {0}")]
    Key(#[from] KeyError),
    /// `QUORATE LEVEL` with a level that does not exist.
    #[error("ERR {0}")]
    Level(#[from] LevelError),
    /// `SLOWLOG GET` of fewer than none.
    #[error("ERR count should be greater than or equal to -1")]
    SlowLogCount,
    /// `GETBIT` of a bit that cannot be.
    #[error("ERR bit offset is not an integer or out of range")]
    BitOffset,
    /// `OBJECT FREQ`, which is not noted.
    #[error(
        "ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note that \
         when switching between policies at runtime LRU and LFU data will take some time to adjust."
    )]
    NoFrequency,
    /// More keys than words.
    #[error("ERR Number of keys can't be greater than number of args")]
    TooManyKeys,
    /// Fewer keys than none.
    #[error("ERR Number of keys can't be negative")]
    NegativeKeys,
    /// `SCRIPT FLUSH` with something else than how.
    #[error("ERR SCRIPT FLUSH only support SYNC|ASYNC option")]
    ScriptFlush,
    /// `CLIENT PAUSE` of something else.
    #[error("ERR CLIENT PAUSE mode must be WRITE or ALL")]
    PauseMode,
    /// `CLIENT KILL` of a number that is none.
    #[error("ERR client-id should be greater than 0")]
    ClientId,
    /// A command of Redis that has no sense here.
    #[error("ERR {0} is not for Quorate: {1}")]
    Refused(&'static str, &'static str),
    /// A decrement that cannot be.
    #[error("ERR decrement would overflow")]
    DecrementOverflow,
    /// `SETRANGE` from before the beginning.
    #[error("ERR offset is out of range")]
    Offset,
    /// `SETBIT` to something else than 0 or 1.
    #[error("ERR bit is not an integer or out of range")]
    Bit,
    /// `MSET` or `HSET` with a key or field that has no value: enough words for the command, and yet too few.
    #[error("ERR wrong number of arguments for '{0}' command")]
    Unpaired(String),
    /// `WATCH` of several keys.
    #[error(
        "ERR WATCH is not for Quorate: keys live on different nodes, which decide on one key at a time: \
         watch one"
    )]
    WatchOfSeveral,
    /// `EXPIRE` with options that exclude each other.
    #[error("ERR {0} options at the same time are not compatible")]
    ExpireOptions(&'static str),
}

impl<'a> Command<'a> {
    /// Which command the arguments are. They are not empty: an empty request is no command.
    pub fn parse(args: Args<'a>) -> Result<Self, CommandError> {
        let name = args.get(0).unwrap_or_default();
        let Some(kind) = CommandKind::of(name) else {
            return Err(unknown(name, args));
        };
        Self::of_kind(kind, args).map_err(|error| match error {
            CommandError::Arity(name) if kind.name() == name && kind.takes(args.len()) => {
                CommandError::Unpaired(name)
            }
            error => error,
        })
    }

    fn of_kind(kind: CommandKind, args: Args<'a>) -> Result<Self, CommandError> {
        use CommandKind as K;
        let data = match kind {
            K::Get => DataCommand::Get {
                key: only_key(args, kind)?,
            },
            K::SetEx => set_for(args, kind, Unit::new(true, false))?,
            K::PSetEx => set_for(args, kind, Unit::new(false, false))?,
            K::MGet => DataCommand::MGet {
                keys: keys(args, kind)?,
            },
            K::MSet => DataCommand::MSet {
                pairs: pairs(args)?,
            },
            K::Del | K::Unlink => DataCommand::Del {
                keys: keys(args, kind)?,
            },
            K::Exists | K::Touch => DataCommand::Exists {
                keys: keys(args, kind)?,
            },
            K::Expire => update::expire(args, kind, Unit::new(true, false))?,
            K::PExpire => update::expire(args, kind, Unit::new(false, false))?,
            K::ExpireAt => update::expire(args, kind, Unit::new(true, true))?,
            K::PExpireAt => update::expire(args, kind, Unit::new(false, true))?,
            K::Persist => DataCommand::Persist {
                key: only_key(args, kind)?,
            },
            K::Ttl => ttl(args, kind, TtlForm::Seconds)?,
            K::PTtl => ttl(args, kind, TtlForm::Millis)?,
            K::ExpireTime => ttl(args, kind, TtlForm::AtSeconds)?,
            K::PExpireTime => ttl(args, kind, TtlForm::AtMillis)?,
            K::Type => DataCommand::Type {
                key: only_key(args, kind)?,
            },
            K::StrLen => DataCommand::StrLen {
                key: only_key(args, kind)?,
            },
            K::GetRange | K::SubStr => parts::range(args, kind)?,
            K::GetBit => parts::bit(args, kind)?,
            K::BitCount => parts::count(args, kind)?,
            K::Eval | K::EvalRo | K::EvalSha | K::EvalShaRo => script::eval(args, kind)?,
            K::Object if args.len() > 2 => parts::object(args)?,
            K::Memory if args.len() > 2 => parts::usage(args)?,
            _ => match update::parse(args, kind) {
                Some(data) => data?,
                None => return Ok(Self::Connection(kind, connection::parse(kind, args)?)),
            },
        };
        Ok(Self::Data(kind, data))
    }

    /// Which command it is.
    #[must_use]
    pub const fn kind(&self) -> CommandKind {
        match self {
            Self::Data(kind, _) | Self::Connection(kind, _) => *kind,
        }
    }
}

impl<'a> DataCommand<'a> {
    /// The keys that it is about.
    pub fn keys(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let (one, words, step) = match *self {
            Self::Get { key }
            | Self::Set { key, .. }
            | Self::Expire { key, .. }
            | Self::Persist { key }
            | Self::Ttl { key, .. }
            | Self::Type { key }
            | Self::StrLen { key }
            | Self::Part { key, .. }
            | Self::Usage { key }
            | Self::Update { key, .. }
            | Self::Hash { key, .. } => (Some(key), None, 1),
            Self::MGet { keys } | Self::Del { keys } | Self::Exists { keys } => {
                (None, Some(keys.0), 1)
            }
            Self::MSet { pairs } => (None, Some(pairs.0), 2),
            Self::Script(script) | Self::NamedScript(script) => (script.keys().next(), None, 1),
        };
        let several = words.into_iter().flat_map(Args::iter).step_by(step);
        one.into_iter().chain(several)
    }
}

impl CommandError {
    /// No command has this name.
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }

    /// It has too few or too many arguments.
    #[must_use]
    pub const fn is_arity(&self) -> bool {
        matches!(self, Self::Arity(_))
    }

    /// Whether it discards a transaction at once: there is no such command, or not with so many words. What
    /// else is wrong is reported in the place of the command when the transaction is carried out, as in
    /// Redis.
    #[must_use]
    pub const fn discards_transaction(&self) -> bool {
        match self {
            Self::Unknown { .. }
            | Self::UnknownSubcommand { .. }
            | Self::Arity(_)
            | Self::Refused(..) => true,
            Self::Syntax
            | Self::Unsupported(_)
            | Self::NotAnInteger
            | Self::NotAnInt
            | Self::InvalidExpire(_)
            | Self::Cursor
            | Self::TimeoutNumber
            | Self::SubcommandOrArity { .. }
            | Self::NegativeTimeout
            | Self::Protocol
            | Self::ProtocolNumber
            | Self::HelloOption(_)
            | Self::Key(_)
            | Self::Level(_)
            | Self::SlowLogCount
            | Self::BitOffset
            | Self::NoFrequency
            | Self::TooManyKeys
            | Self::NegativeKeys
            | Self::ScriptFlush
            | Self::PauseMode
            | Self::ClientId
            | Self::DecrementOverflow
            | Self::Offset
            | Self::Bit
            | Self::Unpaired(_)
            | Self::WatchOfSeveral
            | Self::ExpireOptions(_) => false,
        }
    }
}

impl<'a> Keys<'a> {
    /// All of these.
    pub(super) const fn new(args: Args<'a>) -> Self {
        Self(args)
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, in order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = &'a [u8]> {
        self.0.iter()
    }
}

impl<'a> Pairs<'a> {
    /// All of these, two by two.
    pub(super) const fn new(args: Args<'a>) -> Self {
        Self(args)
    }

    /// All of them, in order.
    pub fn iter(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        (0..self.0.len() / 2)
            .filter_map(move |pair| Some((self.0.get(2 * pair)?, self.0.get(2 * pair + 1)?)))
    }
}

pub(super) fn arity(kind: CommandKind) -> CommandError {
    CommandError::Arity(kind.name().to_owned())
}

pub(super) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(super) fn only_key<'a>(args: Args<'a>, kind: CommandKind) -> Result<&'a [u8], CommandError> {
    if args.len() != 2 {
        return Err(arity(kind));
    }
    key(args, 1)
}

pub(super) fn key<'a>(args: Args<'a>, number: usize) -> Result<&'a [u8], CommandError> {
    let key = args.get(number).unwrap_or_default();
    check_key(key)?;
    Ok(key)
}

fn keys(args: Args<'_>, kind: CommandKind) -> Result<Keys<'_>, CommandError> {
    if args.len() < 2 {
        return Err(arity(kind));
    }
    args.from(1).iter().try_for_each(check_key)?;
    Ok(Keys(args.from(1)))
}

fn pairs(args: Args<'_>) -> Result<Pairs<'_>, CommandError> {
    if args.len() < 3 || args.len().is_multiple_of(2) {
        return Err(arity(CommandKind::MSet));
    }
    args.from(1).iter().step_by(2).try_for_each(check_key)?;
    Ok(Pairs(args.from(1)))
}

fn set_for(args: Args<'_>, kind: CommandKind, unit: Unit) -> Result<DataCommand<'_>, CommandError> {
    let (4, Some(argument), Some(value)) = (args.len(), args.get(2), args.get(3)) else {
        return Err(arity(kind));
    };
    let expiry = Some(unit.read(argument, kind.name(), true)?);
    Ok(DataCommand::Set {
        key: key(args, 1)?,
        value,
        expiry,
    })
}

fn ttl(args: Args<'_>, kind: CommandKind, form: TtlForm) -> Result<DataCommand<'_>, CommandError> {
    Ok(DataCommand::Ttl {
        key: only_key(args, kind)?,
        form,
    })
}

fn unknown(name: &[u8], args: Args<'_>) -> CommandError {
    if let Some((name, why)) = refused(name) {
        return CommandError::Refused(name, why);
    }
    let mut shown = String::new();
    for arg in args.from(1).iter() {
        if shown.len() >= ARGS_SHOWN_BYTES_MAX {
            break;
        }
        let room = ARGS_SHOWN_BYTES_MAX - shown.len();
        shown.push('\'');
        shown.push_str(&lossy(&arg[..arg.len().min(room)]));
        shown.push_str("' ");
    }
    let name = lossy(&name[..name.len().min(ARGS_SHOWN_BYTES_MAX)]);
    CommandError::Unknown { name, args: shown }
}

/// Commands of Redis that will not come, and why.
fn refused(name: &[u8]) -> Option<(&'static str, &'static str)> {
    const WHY: [(&str, &str); 15] = [
        ("DUMP", OTHER_FORMAT),
        ("RESTORE", OTHER_FORMAT),
        ("MIGRATE", OTHER_FORMAT),
        ("MOVE", "read the value and set it in the other database"),
        ("SWAPDB", "databases are prefixes of keys in one ring"),
        ("DEBUG", "it would stop a node that others count on"),
        ("SAVE", NO_FILES),
        ("BGSAVE", NO_FILES),
        ("BGREWRITEAOF", NO_FILES),
        ("LASTSAVE", NO_FILES),
        (
            "SHUTDOWN",
            "stop it with SIGTERM, as `systemctl stop quorate` does",
        ),
        ("REPLICAOF", NO_PRIMARY),
        ("SLAVEOF", NO_PRIMARY),
        ("FAILOVER", NO_PRIMARY),
        (
            "CLUSTER",
            "a client sees one server; `quorate ring status` shows the nodes",
        ),
    ];
    const OTHER_FORMAT: &str = "the format is that of Redis's own memory";
    const NO_FILES: &str = "contents live in memory, on several nodes";
    const NO_PRIMARY: &str = "every node takes writes, none is a primary";
    WHY.into_iter()
        .find(|(refused, _)| name.eq_ignore_ascii_case(refused.as_bytes()))
}

/// As in Redis: enough to see what was meant.
const ARGS_SHOWN_BYTES_MAX: usize = 128;
