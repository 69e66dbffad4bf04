//! Commands that run scripts.

use super::command::{arity, key, lossy};
use super::parser::integer;
use super::{Args, CommandError, CommandKind, ConnectionCommand, DataCommand};

/// A script and what it is given.
#[derive(Debug, Clone, Copy)]
pub struct Script<'a> {
    /// The program.
    pub source: &'a [u8],
    /// It must not change anything.
    pub is_read_only: bool,
    /// Its keys, then its other arguments.
    words: Args<'a>,
    keys: usize,
}

impl<'a> Script<'a> {
    /// Its keys: one, or none.
    pub fn keys(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.words.iter().take(self.keys)
    }

    /// Its other arguments.
    pub fn args(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.words.iter().skip(self.keys)
    }

    /// All of them, the number of keys first.
    pub fn words(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.words.iter()
    }
}

/// What is asked of the scripts that a node knows.
#[derive(Debug, Clone, Copy)]
pub enum ScriptQuery<'a> {
    /// `SCRIPT LOAD`
    Load(&'a [u8]),
    /// `SCRIPT EXISTS`
    Exists(Args<'a>),
    /// `SCRIPT FLUSH`
    Flush,
    /// `SCRIPT KILL`
    Kill,
    /// `SCRIPT HELP`
    Help,
}

/// `EVAL script numkeys [key] [arg]...`, and by name.
pub(super) fn eval(args: Args<'_>, kind: CommandKind) -> Result<DataCommand<'_>, CommandError> {
    let (3.., Some(source), Some(count)) = (args.len(), args.get(1), args.get(2)) else {
        return Err(arity(kind));
    };
    let keys = integer(count).ok_or(CommandError::NotAnInteger)?;
    let words = args.from(3);
    let keys = match usize::try_from(keys) {
        Ok(keys) if keys <= words.len() => keys,
        Ok(_) => return Err(CommandError::TooManyKeys),
        Err(_) => return Err(CommandError::NegativeKeys),
    };
    if keys > 1 {
        return Err(CommandError::Refused(
            "a script on several keys",
            OF_SEVERAL,
        ));
    }
    if keys == 1 {
        key(words, 0)?;
    }
    let script = Script {
        source,
        is_read_only: matches!(kind, CommandKind::EvalRo | CommandKind::EvalShaRo),
        words,
        keys,
    };
    Ok(match kind {
        CommandKind::EvalSha | CommandKind::EvalShaRo => DataCommand::NamedScript(script),
        _ => DataCommand::Script(script),
    })
}

/// `SCRIPT LOAD | EXISTS | FLUSH | KILL`
pub(super) fn query(args: Args<'_>) -> Result<ConnectionCommand<'_>, CommandError> {
    let name = args.get(1).unwrap_or_default();
    let wrong = || CommandError::Arity(format!("script|{}", lossy(name).to_ascii_lowercase()));
    let query = match (name.to_ascii_uppercase().as_slice(), args.len()) {
        (b"", _) => return Err(arity(CommandKind::Script)),
        (b"LOAD", 3) => ScriptQuery::Load(args.get(2).unwrap_or_default()),
        (b"EXISTS", 3..) => ScriptQuery::Exists(args.from(2)),
        (b"FLUSH", 2) => ScriptQuery::Flush,
        (b"FLUSH", 3) => match args
            .get(2)
            .unwrap_or_default()
            .to_ascii_uppercase()
            .as_slice()
        {
            b"SYNC" | b"ASYNC" => ScriptQuery::Flush,
            _ => return Err(CommandError::ScriptFlush),
        },
        (b"KILL", 2) => ScriptQuery::Kill,
        (b"HELP", 2) => ScriptQuery::Help,
        (b"LOAD" | b"EXISTS" | b"FLUSH" | b"KILL" | b"HELP", _) => return Err(wrong()),
        _ => {
            return Err(CommandError::UnknownSubcommand {
                command: "SCRIPT",
                name: lossy(name),
            });
        }
    };
    Ok(ConnectionCommand::Script(query))
}

/// `FUNCTION FLUSH`: there are none.
pub(super) fn functions(args: Args<'_>) -> Result<ConnectionCommand<'_>, CommandError> {
    let name = args.get(1).unwrap_or_default();
    match (name.to_ascii_uppercase().as_slice(), args.len()) {
        (b"", _) => Err(arity(CommandKind::Function)),
        (b"FLUSH", 2 | 3) => Ok(ConnectionCommand::FunctionFlush),
        _ => Err(CommandError::Refused("FUNCTION", NO_FUNCTIONS)),
    }
}

const OF_SEVERAL: &str = "keys live on different nodes, which decide on one key at a time";
const NO_FUNCTIONS: &str = "send scripts with EVAL";
