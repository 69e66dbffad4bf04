//! Commands about databases, other keys, channels and the server.

use super::command::{arity, key, lossy};
use super::parser::integer;
use super::{Args, ClientCommand, CommandError, CommandKind, ConnectionCommand, Keys};

type Parsed<'a> = Result<ConnectionCommand<'a>, CommandError>;

/// Whose connections `CLIENT KILL` ends.
#[derive(Debug, Clone, Copy, Default)]
pub struct KillFilter<'a> {
    /// The one of this number.
    pub id: Option<u64>,
    /// Those from this address.
    pub address: Option<&'a [u8]>,
    /// Those to this address.
    pub local_address: Option<&'a [u8]>,
    /// Not the one that asks.
    pub skips_own: bool,
    /// The old form: an address that has to be there.
    pub is_old: bool,
}

/// Whether a connection is answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Replies {
    /// It is.
    #[default]
    On,
    /// It is not.
    Off,
    /// The next command is not.
    Skip,
}

/// What is asked of channels.
#[derive(Debug, Clone, Copy)]
pub enum ChannelQuery<'a> {
    /// `PUBSUB CHANNELS`
    Channels(Option<&'a [u8]>),
    /// `PUBSUB NUMSUB`
    Subscribers(Args<'a>),
    /// `PUBSUB NUMPAT`
    Patterns,
    /// `PUBSUB HELP`
    Help,
}

/// What is asked of latencies: none are kept in this form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LatencyQuery {
    /// `LATENCY LATEST`, `LATENCY HISTORY`
    Nothing,
    /// `LATENCY RESET`
    Reset,
    /// `LATENCY DOCTOR`
    Doctor,
    /// `LATENCY HELP`
    Help,
}

/// One of these commands. `None`: it is none.
pub(super) fn parse(args: Args<'_>, kind: CommandKind) -> Option<Parsed<'_>> {
    use CommandKind as K;
    use ConnectionCommand as C;
    let word = |place| args.get(place).unwrap_or_default();
    Some(match (kind, args.len()) {
        (K::Watch, 2) => key(args, 1).map(C::Watch),
        (K::Watch, 3..) => Err(CommandError::WatchOfSeveral),
        (K::Unwatch, 1) => Ok(C::Unwatch),
        (K::FlushDb | K::FlushAll, 1) => Ok(C::Flush(kind == K::FlushAll)),
        (K::FlushDb | K::FlushAll, 2) => match word(1).to_ascii_uppercase().as_slice() {
            b"SYNC" | b"ASYNC" => Ok(C::Flush(kind == K::FlushAll)),
            _ => Err(CommandError::Syntax),
        },
        (K::FlushDb | K::FlushAll, _) => Err(CommandError::Syntax),
        (K::Rename | K::RenameNx, 3) => rename(args, kind == K::RenameNx),
        (K::Copy, 3..) => copy(args),
        (K::Publish, 3) => Ok(C::Publish(word(1), word(2))),
        (K::Subscribe | K::PSubscribe, 2..) => {
            Ok(C::Subscribe(Keys::new(args.from(1)), kind == K::PSubscribe))
        }
        (K::Unsubscribe | K::PUnsubscribe, _) => {
            Ok(C::Unsubscribe(args.from(1), kind == K::PUnsubscribe))
        }
        (K::PubSub, 2..) => channels(args).map(C::Channels),
        (K::Latency, 2..) => latency(args).map(C::Latency),
        (K::Monitor, 1) => Ok(C::Monitor),
        (
            K::Watch
            | K::Unwatch
            | K::Rename
            | K::RenameNx
            | K::Copy
            | K::Publish
            | K::Subscribe
            | K::PSubscribe
            | K::PubSub
            | K::Latency
            | K::Monitor,
            _,
        ) => Err(arity(kind)),
        _ => return None,
    })
}

fn rename(args: Args<'_>, if_absent: bool) -> Parsed<'_> {
    Ok(ConnectionCommand::Rename {
        from: key(args, 1)?,
        to: key(args, 2)?,
        if_absent,
    })
}

/// `COPY from to [DB number] [REPLACE]`
fn copy(args: Args<'_>) -> Parsed<'_> {
    let (mut database, mut replaces) = (None, false);
    let mut number = 3;
    while let Some(option) = args.get(number) {
        if option.eq_ignore_ascii_case(b"replace") {
            replaces = true;
            number += 1;
        } else if option.eq_ignore_ascii_case(b"db") {
            let given = args.get(number + 1).ok_or(CommandError::Syntax)?;
            database = Some(integer(given).ok_or(CommandError::NotAnInteger)?);
            number += 2;
        } else {
            return Err(CommandError::Syntax);
        }
    }
    Ok(ConnectionCommand::Copy {
        from: key(args, 1)?,
        to: key(args, 2)?,
        database,
        replaces,
    })
}

fn channels(args: Args<'_>) -> Result<ChannelQuery<'_>, CommandError> {
    use ChannelQuery as Q;
    let name = args.get(1).unwrap_or_default();
    match (name.to_ascii_uppercase().as_slice(), args.len()) {
        (b"CHANNELS", 2 | 3) => Ok(Q::Channels(args.get(2))),
        (b"NUMSUB", _) => Ok(Q::Subscribers(args.from(2))),
        (b"NUMPAT", 2) => Ok(Q::Patterns),
        (b"HELP", 2) => Ok(Q::Help),
        (b"CHANNELS" | b"NUMPAT" | b"HELP", _) => Err(wrong_arity("pubsub", name)),
        _ => Err(unknown("PUBSUB", name)),
    }
}

fn latency(args: Args<'_>) -> Result<LatencyQuery, CommandError> {
    use LatencyQuery as Q;
    let name = args.get(1).unwrap_or_default();
    match (name.to_ascii_uppercase().as_slice(), args.len()) {
        (b"LATEST", 2) | (b"HISTORY", 3) => Ok(Q::Nothing),
        (b"RESET", _) => Ok(Q::Reset),
        (b"DOCTOR", 2) => Ok(Q::Doctor),
        (b"HELP", 2) => Ok(Q::Help),
        (b"LATEST" | b"HISTORY" | b"DOCTOR" | b"HELP", _) => Err(wrong_arity("latency", name)),
        _ => Err(unknown("LATENCY", name)),
    }
}

/// `CLIENT KILL | PAUSE | UNPAUSE | UNBLOCK | REPLY`. `None`: it is none of these.
pub(super) fn client(args: Args<'_>) -> Option<Result<ClientCommand<'_>, CommandError>> {
    use ClientCommand as C;
    let name = args.get(1).unwrap_or_default();
    let word = |place| args.get(place).unwrap_or_default();
    Some(match (name.to_ascii_uppercase().as_slice(), args.len()) {
        (b"KILL", 3) => Ok(C::Kill(KillFilter {
            address: args.get(2),
            is_old: true,
            ..KillFilter::default()
        })),
        (b"KILL", 4..) => kill(args),
        (b"PAUSE", 3 | 4) => pause(args),
        (b"UNPAUSE", 2) => Ok(C::Unpause),
        (b"UNBLOCK", 3 | 4) => match integer(word(2)) {
            Some(_) => Ok(C::Unblock),
            None => Err(CommandError::NotAnInteger),
        },
        (b"REPLY", 3) => match word(2).to_ascii_uppercase().as_slice() {
            b"ON" => Ok(C::Reply(Replies::On)),
            b"OFF" => Ok(C::Reply(Replies::Off)),
            b"SKIP" => Ok(C::Reply(Replies::Skip)),
            _ => Err(CommandError::Syntax),
        },
        (b"KILL" | b"PAUSE" | b"UNPAUSE" | b"UNBLOCK" | b"REPLY", _) => {
            Err(wrong_arity("client", name))
        }
        _ => return None,
    })
}

/// `CLIENT KILL [ID id] [ADDR address] [LADDR address] [TYPE type] [USER user] [SKIPME yes | no]`
fn kill(args: Args<'_>) -> Result<ClientCommand<'_>, CommandError> {
    let mut filter = KillFilter {
        skips_own: true,
        ..KillFilter::default()
    };
    if !args.len().is_multiple_of(2) {
        return Err(CommandError::Syntax);
    }
    for place in (2..args.len()).step_by(2) {
        let value = args.get(place + 1).unwrap_or_default();
        let option = args.get(place).unwrap_or_default().to_ascii_uppercase();
        match option.as_slice() {
            b"ID" => {
                let id = integer(value).and_then(|id| u64::try_from(id).ok());
                filter.id = Some(id.filter(|id| *id > 0).ok_or(CommandError::ClientId)?);
            }
            b"ADDR" => filter.address = Some(value),
            b"LADDR" => filter.local_address = Some(value),
            b"SKIPME" if value.eq_ignore_ascii_case(b"no") => filter.skips_own = false,
            b"SKIPME" if value.eq_ignore_ascii_case(b"yes") => filter.skips_own = true,
            // All are of one type and one user.
            b"TYPE" if value.eq_ignore_ascii_case(b"normal") => {}
            b"USER" if value == b"default" => {}
            _ => return Err(CommandError::Syntax),
        }
    }
    Ok(ClientCommand::Kill(filter))
}

/// `CLIENT PAUSE ms [WRITE | ALL]`
fn pause(args: Args<'_>) -> Result<ClientCommand<'_>, CommandError> {
    let ms = args
        .get(2)
        .and_then(integer)
        .ok_or(CommandError::TimeoutNumber)?;
    let ms = u64::try_from(ms).map_err(|_negative| CommandError::NegativeTimeout)?;
    let is_of_all = match args.get(3).map(<[u8]>::to_ascii_uppercase).as_deref() {
        None | Some(b"ALL") => true,
        Some(b"WRITE") => false,
        Some(_) => return Err(CommandError::PauseMode),
    };
    Ok(ClientCommand::Pause { ms, is_of_all })
}

fn wrong_arity(command: &str, name: &[u8]) -> CommandError {
    CommandError::Arity(format!("{command}|{}", lossy(name).to_ascii_lowercase()))
}

fn unknown(command: &'static str, name: &[u8]) -> CommandError {
    let name = lossy(name);
    CommandError::UnknownSubcommand { command, name }
}
