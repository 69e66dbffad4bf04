//! Commands about the connection or the server.

use super::command::{arity, lossy};
use super::parser::integer;
use super::script::{self, ScriptQuery};
use super::server::{self, ChannelQuery, KillFilter, LatencyQuery, Replies};
use super::{Args, CommandError, CommandKind, Keys};
use crate::model::Level;

/// A command about the connection or the server.
#[derive(Debug, Clone, Copy)]
pub enum ConnectionCommand<'a> {
    /// `PING`, perhaps with a text to say back.
    Ping(Option<&'a [u8]>),
    /// `ECHO`
    Echo(&'a [u8]),
    /// `HELLO`
    Hello {
        /// The version of RESP to speak, 2 or 3; `None`: as before.
        version: Option<i64>,
        /// User and password.
        auth: Option<(&'a [u8], &'a [u8])>,
        /// The connection's name.
        setname: Option<&'a [u8]>,
    },
    /// `AUTH`
    Auth {
        /// The user, if one is named.
        user: Option<&'a [u8]>,
        /// The password.
        password: &'a [u8],
    },
    /// `QUIT`
    Quit,
    /// `RESET`
    Reset,
    /// `SELECT`
    Select(i64),
    /// `CLIENT ...`
    Client(ClientCommand<'a>),
    /// `COMMAND ...`
    Command(CommandQuery<'a>),
    /// `INFO`
    Info {
        /// The sections asked for.
        sections: Args<'a>,
    },
    /// `CONFIG GET`
    ConfigGet {
        /// The patterns of names asked for.
        patterns: Args<'a>,
    },
    /// `MULTI`
    Multi,
    /// `EXEC`
    Exec,
    /// `DISCARD`
    Discard,
    /// `WAIT`
    Wait {
        /// How many replicas.
        replicas: i64,
        /// For how long, in milliseconds.
        timeout_ms: i64,
    },
    /// `DBSIZE`
    DbSize,
    /// `SCAN`, `KEYS`, `RANDOMKEY`
    Keys(KeysQuery<'a>),
    /// `SLOWLOG ...`
    SlowLog(SlowLogQuery),
    /// `SCRIPT ...`
    Script(ScriptQuery<'a>),
    /// `WATCH` of a key
    Watch(&'a [u8]),
    /// `UNWATCH`
    Unwatch,
    /// `FLUSHDB`; `true`: `FLUSHALL`
    Flush(bool),
    /// `RENAME`, `RENAMENX`
    Rename {
        /// The key as it is.
        from: &'a [u8],
        /// The key as it is to be.
        to: &'a [u8],
        /// Only if there is none.
        if_absent: bool,
    },
    /// `COPY`
    Copy {
        /// The key.
        from: &'a [u8],
        /// The other one.
        to: &'a [u8],
        /// In another database.
        database: Option<i64>,
        /// Also if there is one.
        replaces: bool,
    },
    /// `PUBLISH`: the channel and the message.
    Publish(&'a [u8], &'a [u8]),
    /// `SUBSCRIBE`; `true`: `PSUBSCRIBE`
    Subscribe(Keys<'a>, bool),
    /// `UNSUBSCRIBE`; `true`: `PUNSUBSCRIBE`
    Unsubscribe(Args<'a>, bool),
    /// `PUBSUB ...`
    Channels(ChannelQuery<'a>),
    /// `LATENCY ...`
    Latency(LatencyQuery),
    /// `MONITOR`
    Monitor,
    /// `CONFIG SET`
    ConfigSet {
        /// Names and values.
        pairs: Args<'a>,
    },
    /// `CONFIG RESETSTAT`
    ConfigResetStat,
    /// `CONFIG HELP`
    ConfigHelp,
    /// `FUNCTION FLUSH`
    FunctionFlush,
    /// `OBJECT HELP`
    ObjectHelp,
    /// `MEMORY HELP`
    MemoryHelp,
    /// `TIME`
    Time,
    /// `QUORATE LEVEL`: sets what is given, shows the levels if nothing is.
    Level {
        /// The level of reads from now on.
        read: Option<Level>,
        /// The level of writes from now on.
        write: Option<Level>,
    },
    /// `QUORATE LAST`: what there is to know of the last requests.
    Last,
    /// `QUORATE HELP`
    QuorateHelp,
}

/// A sub-command of `CLIENT`.
#[derive(Debug, Clone, Copy)]
pub enum ClientCommand<'a> {
    /// `CLIENT ID`
    Id,
    /// `CLIENT SETNAME`
    SetName(&'a [u8]),
    /// `CLIENT GETNAME`
    GetName,
    /// `CLIENT SETINFO`
    SetInfo {
        /// `LIB-NAME` or `LIB-VER`.
        attribute: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
    /// `CLIENT INFO`
    Info,
    /// `CLIENT LIST`
    List,
    /// `CLIENT NO-EVICT`
    NoEvict(bool),
    /// `CLIENT NO-TOUCH`
    NoTouch(bool),
    /// `CLIENT KILL`
    Kill(KillFilter<'a>),
    /// `CLIENT PAUSE`
    Pause {
        /// For so many milliseconds.
        ms: u64,
        /// Commands that only read as well.
        is_of_all: bool,
    },
    /// `CLIENT UNPAUSE`
    Unpause,
    /// `CLIENT UNBLOCK`: nobody ever is.
    Unblock,
    /// `CLIENT REPLY`
    Reply(Replies),
    /// `CLIENT HELP`
    Help,
}

/// A question about the keys of the whole ring.
#[derive(Debug, Clone, Copy)]
pub enum KeysQuery<'a> {
    /// `SCAN`
    Scan {
        /// Where to go on; 0: the beginning.
        cursor: u64,
        /// How many are wanted.
        count: usize,
        /// Only those that match.
        pattern: Option<&'a [u8]>,
        /// Only those whose values are of this type.
        kind: Option<&'a [u8]>,
    },
    /// `KEYS`: all that match.
    All {
        /// The pattern.
        pattern: &'a [u8],
    },
    /// `RANDOMKEY`
    Random,
}

/// A sub-command of `SLOWLOG`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlowLogQuery {
    /// `SLOWLOG GET`: so many; `None`: all.
    Get(Option<usize>),
    /// `SLOWLOG LEN`
    Len,
    /// `SLOWLOG RESET`
    Reset,
    /// `SLOWLOG HELP`
    Help,
}

/// A sub-command of `COMMAND`.
#[derive(Debug, Clone, Copy)]
pub enum CommandQuery<'a> {
    /// `COMMAND`
    All,
    /// `COMMAND COUNT`
    Count,
    /// `COMMAND DOCS`
    Docs(Args<'a>),
    /// `COMMAND INFO`
    Info(Args<'a>),
    /// `COMMAND LIST`
    List,
    /// `COMMAND HELP`
    Help,
}

pub(super) fn parse<'a>(
    kind: CommandKind,
    args: Args<'a>,
) -> Result<ConnectionCommand<'a>, CommandError> {
    use CommandKind as K;
    use ConnectionCommand as C;
    let arg = |number| args.get(number);
    match (kind, args.len()) {
        (K::Ping, 1 | 2) => Ok(C::Ping(arg(1))),
        (K::Echo, 2) => Ok(C::Echo(arg(1).unwrap_or_default())),
        (K::Hello, _) => hello(args),
        (K::Auth, 2) => Ok(C::Auth {
            user: None,
            password: arg(1).unwrap_or_default(),
        }),
        (K::Auth, 3) => Ok(C::Auth {
            user: arg(1),
            password: arg(2).unwrap_or_default(),
        }),
        // Any number of arguments: a client that leaves is let go.
        (K::Quit, _) => Ok(C::Quit),
        (K::Reset, 1) => Ok(C::Reset),
        (K::Select, 2) => {
            let database = arg(1).and_then(integer).ok_or(CommandError::NotAnInteger)?;
            let is_int = i32::try_from(database).is_ok();
            if is_int {
                Ok(C::Select(database))
            } else {
                Err(CommandError::NotAnInt)
            }
        }
        (K::Client, 2..) => client(args).map(C::Client),
        (K::Command, _) => query(args).map(C::Command),
        (K::Info, _) => Ok(C::Info {
            sections: args.from(1),
        }),
        (K::Config, 2..) => config(args),
        (K::Multi, 1) => Ok(C::Multi),
        (K::Exec, 1) => Ok(C::Exec),
        (K::Discard, 1) => Ok(C::Discard),
        (K::Wait, 3) => {
            let number = |number| arg(number).and_then(integer);
            let replicas = number(1).ok_or(CommandError::NotAnInteger)?;
            let timeout_ms = number(2).ok_or(CommandError::TimeoutNumber)?;
            if timeout_ms < 0 {
                return Err(CommandError::NegativeTimeout);
            }
            Ok(C::Wait {
                replicas,
                timeout_ms,
            })
        }
        (K::Quorate, 2..) => quorate(args),
        (K::DbSize, 1) => Ok(C::DbSize),
        (K::Scan, 2..) => scan(args).map(C::Keys),
        (K::Keys, 2) => Ok(C::Keys(KeysQuery::All {
            pattern: arg(1).unwrap_or_default(),
        })),
        (K::RandomKey, 1) => Ok(C::Keys(KeysQuery::Random)),
        (K::SlowLog, 2..) => slow_log(args).map(C::SlowLog),
        (K::Object, 2) => help(args, "OBJECT", C::ObjectHelp),
        (K::Memory, 2) => help(args, "MEMORY", C::MemoryHelp),
        (K::Time, 1) => Ok(C::Time),
        (K::Script, _) => script::query(args),
        (K::Function, _) => script::functions(args),
        _ => server::parse(args, kind).unwrap_or_else(|| Err(arity(kind))),
    }
}

/// `QUORATE LEVEL [READ level] [WRITE level]`
fn quorate(args: Args<'_>) -> Result<ConnectionCommand<'_>, CommandError> {
    let name = args.get(1).unwrap_or_default();
    if name.eq_ignore_ascii_case(b"help") && args.len() == 2 {
        return Ok(ConnectionCommand::QuorateHelp);
    }
    if name.eq_ignore_ascii_case(b"last") && args.len() == 2 {
        return Ok(ConnectionCommand::Last);
    }
    if !name.eq_ignore_ascii_case(b"level") {
        return Err(CommandError::UnknownSubcommand {
            command: "QUORATE",
            name: lossy(name),
        });
    }
    let (mut read, mut write) = (None, None);
    let mut number = 2;
    while let Some(option) = args.get(number) {
        let level = args.get(number + 1).ok_or(CommandError::Syntax)?;
        let level = Some(lossy(level).parse::<Level>()?);
        if option.eq_ignore_ascii_case(b"read") {
            read = level;
        } else if option.eq_ignore_ascii_case(b"write") {
            write = level;
        } else {
            return Err(CommandError::Syntax);
        }
        number += 2;
    }
    Ok(ConnectionCommand::Level { read, write })
}

fn hello(args: Args<'_>) -> Result<ConnectionCommand<'_>, CommandError> {
    let mut version = None;
    let (mut auth, mut setname) = (None, None);
    if let Some(text) = args.get(1) {
        let number = integer(text).ok_or(CommandError::ProtocolNumber)?;
        if !(2..=3).contains(&number) {
            return Err(CommandError::Protocol);
        }
        version = Some(number);
    }
    let mut number = 2;
    while let Some(option) = args.get(number) {
        let wrong = || CommandError::HelloOption(lossy(option));
        if option.eq_ignore_ascii_case(b"AUTH") {
            let user = args.get(number + 1).ok_or_else(wrong)?;
            auth = Some((user, args.get(number + 2).ok_or_else(wrong)?));
            number += 3;
        } else if option.eq_ignore_ascii_case(b"SETNAME") {
            setname = Some(args.get(number + 1).ok_or_else(wrong)?);
            number += 2;
        } else {
            return Err(wrong());
        }
    }
    Ok(ConnectionCommand::Hello {
        version,
        auth,
        setname,
    })
}

fn client(args: Args<'_>) -> Result<ClientCommand<'_>, CommandError> {
    use ClientCommand as C;
    let name = args.get(1).unwrap_or_default();
    let arg = |number| args.get(number).unwrap_or_default();
    match (name.to_ascii_uppercase().as_slice(), args.len()) {
        (b"ID", 2) => Ok(C::Id),
        (b"SETNAME", 3) => Ok(C::SetName(arg(2))),
        (b"GETNAME", 2) => Ok(C::GetName),
        (b"SETINFO", 4) => Ok(C::SetInfo {
            attribute: arg(2),
            value: arg(3),
        }),
        (b"INFO", 2) => Ok(C::Info),
        (b"LIST", 2..) => Ok(C::List),
        (b"NO-EVICT", 3) => on_or_off(arg(2)).map(C::NoEvict),
        (b"NO-TOUCH", 3) => on_or_off(arg(2)).map(C::NoTouch),
        (b"HELP", 2) => Ok(C::Help),
        (
            b"ID" | b"SETNAME" | b"GETNAME" | b"SETINFO" | b"INFO" | b"NO-EVICT" | b"NO-TOUCH"
            | b"HELP",
            _,
        ) => Err(sub_arity("client", name)),
        _ => server::client(args).unwrap_or_else(|| {
            Err(CommandError::UnknownSubcommand {
                command: "CLIENT",
                name: lossy(name),
            })
        }),
    }
}

/// The one sub-command that takes no key.
fn help<'a>(
    args: Args<'a>,
    command: &'static str,
    help: ConnectionCommand<'a>,
) -> Result<ConnectionCommand<'a>, CommandError> {
    let name = args.get(1).unwrap_or_default();
    if name.eq_ignore_ascii_case(b"help") {
        return Ok(help);
    }
    let known: &[&str] = match command {
        "OBJECT" => &["ENCODING", "FREQ", "IDLETIME", "REFCOUNT"],
        _ => &["USAGE"],
    };
    if known
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
    {
        return Err(sub_arity(&command.to_ascii_lowercase(), name));
    }
    Err(CommandError::UnknownSubcommand {
        command,
        name: lossy(name),
    })
}

/// `SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]`
fn scan(args: Args<'_>) -> Result<KeysQuery<'_>, CommandError> {
    let cursor = std::str::from_utf8(args.get(1).unwrap_or_default());
    let cursor = cursor.ok().filter(|text| !text.starts_with('+'));
    let cursor = cursor.and_then(|text| text.parse().ok());
    let cursor = cursor.ok_or(CommandError::Cursor)?;
    let (mut count, mut pattern, mut kind) = (SCAN_COUNT, None, None);
    let mut number = 2;
    while let Some(option) = args.get(number) {
        let value = args.get(number + 1).ok_or(CommandError::Syntax)?;
        if option.eq_ignore_ascii_case(b"match") {
            pattern = Some(value);
        } else if option.eq_ignore_ascii_case(b"count") {
            let given = integer(value).ok_or(CommandError::NotAnInteger)?;
            if given < 1 {
                return Err(CommandError::Syntax);
            }
            count = usize::try_from(given).unwrap_or(usize::MAX);
        } else if option.eq_ignore_ascii_case(b"type") {
            kind = Some(value);
        } else {
            return Err(CommandError::Syntax);
        }
        number += 2;
    }
    Ok(KeysQuery::Scan {
        cursor,
        count: count.min(SCAN_COUNT_MAX),
        pattern,
        kind,
    })
}

fn slow_log(args: Args<'_>) -> Result<SlowLogQuery, CommandError> {
    use SlowLogQuery as Q;
    let name = args.get(1).unwrap_or_default();
    match (name.to_ascii_uppercase().as_slice(), args.get(2)) {
        (b"GET", None) => Ok(Q::Get(Some(SLOW_ENTRIES))),
        (b"GET", Some(count)) if args.len() == 3 => {
            let count = integer(count).ok_or(CommandError::SlowLogCount)?;
            match usize::try_from(count) {
                Ok(count) => Ok(Q::Get(Some(count))),
                Err(_negative) if count == -1 => Ok(Q::Get(None)),
                Err(_negative) => Err(CommandError::SlowLogCount),
            }
        }
        (b"LEN", None) => Ok(Q::Len),
        (b"RESET", None) => Ok(Q::Reset),
        (b"HELP", None) => Ok(Q::Help),
        (b"GET", _) => Err(CommandError::SubcommandOrArity {
            command: "SLOWLOG",
            name: lossy(name),
        }),
        (b"LEN" | b"RESET" | b"HELP", _) => Err(sub_arity("slowlog", name)),
        _ => Err(CommandError::UnknownSubcommand {
            command: "SLOWLOG",
            name: lossy(name),
        }),
    }
}

fn query(args: Args<'_>) -> Result<CommandQuery<'_>, CommandError> {
    use CommandQuery as Q;
    let Some(name) = args.get(1) else {
        return Ok(Q::All);
    };
    match (name.to_ascii_uppercase().as_slice(), args.len()) {
        (b"COUNT", 2) => Ok(Q::Count),
        (b"DOCS", _) => Ok(Q::Docs(args.from(2))),
        (b"INFO", _) => Ok(Q::Info(args.from(2))),
        (b"LIST", 2) => Ok(Q::List),
        (b"HELP", 2) => Ok(Q::Help),
        (b"COUNT" | b"HELP", _) => Err(sub_arity("command", name)),
        (b"LIST", _) => Err(CommandError::Syntax),
        _ => Err(CommandError::UnknownSubcommand {
            command: "COMMAND",
            name: lossy(name),
        }),
    }
}

fn config(args: Args<'_>) -> Result<ConnectionCommand<'_>, CommandError> {
    let name = args.get(1).unwrap_or_default();
    match (name.to_ascii_uppercase().as_slice(), args.len()) {
        (b"GET", 3..) => Ok(ConnectionCommand::ConfigGet {
            patterns: args.from(2),
        }),
        (b"SET", 4..) if args.len().is_multiple_of(2) => Ok(ConnectionCommand::ConfigSet {
            pairs: args.from(2),
        }),
        (b"RESETSTAT", 2) => Ok(ConnectionCommand::ConfigResetStat),
        (b"HELP", 2) => Ok(ConnectionCommand::ConfigHelp),
        (b"GET" | b"SET" | b"RESETSTAT" | b"HELP", _) => Err(sub_arity("config", name)),
        (b"REWRITE", _) => Err(CommandError::Refused("CONFIG REWRITE", NO_REWRITE)),
        _ => Err(CommandError::UnknownSubcommand {
            command: "CONFIG",
            name: lossy(name),
        }),
    }
}

const NO_REWRITE: &str = "the configuration is a file of yours";
/// As many as Redis gives unless asked for more, and as many as one page may have.
const SCAN_COUNT: usize = 10;
const SCAN_COUNT_MAX: usize = 10_000;
/// As many as Redis shows unless asked for more.
const SLOW_ENTRIES: usize = 10;

fn on_or_off(word: &[u8]) -> Result<bool, CommandError> {
    match word.to_ascii_uppercase().as_slice() {
        b"ON" => Ok(true),
        b"OFF" => Ok(false),
        _ => Err(CommandError::Syntax),
    }
}

fn sub_arity(command: &str, name: &[u8]) -> CommandError {
    CommandError::Arity(format!("{command}|{}", lossy(name).to_ascii_lowercase()))
}
