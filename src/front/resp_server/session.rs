//! What a connection remembers, and the commands that are about the connection and not about keys.

use std::sync::Arc;

use bytes::Bytes;

use super::clients::Client;
use super::levels::{ConnectionLevels, Door};
use super::login::Login;
use super::{Config, Shared, command_info, server};
use crate::model::{Database, Level, Levels, Millis, Version};
use crate::resp::{
    ClientCommand, Command, CommandError, CommandKind, ConnectionCommand, Encoder, Protocol,
    REDIS_VERSION, Replies,
};

/// A key, and the version that it had.
pub(super) type Watched = (Bytes, Option<Version>);

/// What the connection does after a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Next {
    Go,
    Close,
}

/// What is to be done with a command.
#[derive(Debug)]
pub(super) enum Step<'a> {
    Run(Command<'a>),
    /// Answer this.
    Simple(&'static str),
    /// Answer this error.
    Refuse(String),
    /// Carry out what was queued.
    Transaction(Queue),
}

/// The commands between `MULTI` and `EXEC`, as they came.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) requests: Vec<u8>,
    pub(super) commands: usize,
    has_writes: bool,
    spoilt: bool,
}

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Session {
    client: Arc<Client>,
    protocol: Protocol,
    is_logged_in: bool,
    queue: Option<Queue>,
    watched: Option<Watched>,
    replies: Replies,
    database: Database,
    levels: ConnectionLevels,
    /// Writes of the last requests that stand-ins acknowledged.
    sloppy_writes: u64,
}

impl Session {
    pub(super) fn new(client: Arc<Client>, is_logged_in: bool, door: Levels) -> Self {
        Self {
            levels: ConnectionLevels::of_door(door),
            client,
            protocol: Protocol::Resp2,
            is_logged_in,
            queue: None,
            watched: None,
            replies: Replies::On,
            database: Database::default(),
            sloppy_writes: 0,
        }
    }

    /// What came of requests that were carried out together.
    pub(super) const fn note_sloppy_writes(&mut self, sloppy_writes: u64) {
        self.sloppy_writes = sloppy_writes;
    }

    pub(super) const fn protocol(&self) -> Protocol {
        self.protocol
    }

    pub(super) const fn levels(&self) -> &ConnectionLevels {
        &self.levels
    }

    /// Whether commands are queued for a transaction.
    pub(super) const fn is_queueing(&self) -> bool {
        self.queue.is_some()
    }

    /// Whether a command is queued that may change something.
    pub(super) fn has_queued_writes(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.has_writes)
    }

    /// Notes that a command that may change something is being queued.
    pub(super) const fn note_queued_write(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.has_writes = true;
        }
    }

    /// Decides what is to be done with a command. `request` are the bytes it was parsed from.
    pub(super) fn take<'a>(
        &mut self,
        command: Result<Command<'a>, CommandError>,
        request: &[u8],
        queue_bytes_max: usize,
    ) -> Step<'a> {
        use ConnectionCommand as C;
        if !self.is_logged_in && !command.as_ref().is_ok_and(is_open_to_all) {
            return Step::Refuse("NOAUTH Authentication required.".to_owned());
        }
        match (command, &mut self.queue) {
            (Ok(Command::Connection(_, C::Multi)), None) => {
                self.queue = Some(Queue::default());
                Step::Simple("OK")
            }
            (Ok(Command::Connection(_, C::Multi)), Some(_)) => {
                Step::Refuse("ERR MULTI calls can not be nested".to_owned())
            }
            (Ok(Command::Connection(_, C::Exec)), queue) => match queue.take() {
                None => Step::Refuse("ERR EXEC without MULTI".to_owned()),
                Some(queue) if queue.spoilt => {
                    self.watched = None;
                    let text = "EXECABORT Transaction discarded because of previous errors.";
                    Step::Refuse(text.to_owned())
                }
                Some(queue) => Step::Transaction(queue),
            },
            (Ok(Command::Connection(_, C::Discard)), queue) => match queue.take() {
                None => Step::Refuse("ERR DISCARD without MULTI".to_owned()),
                Some(_) => {
                    self.watched = None;
                    Step::Simple("OK")
                }
            },
            (
                Ok(Command::Connection(_, C::Watch(_))) | Err(CommandError::WatchOfSeveral),
                Some(_),
            ) => Step::Refuse("ERR WATCH inside MULTI is not allowed".to_owned()),
            // These take effect at once, transaction or not, as in Redis.
            (Ok(command @ Command::Connection(_, C::Quit | C::Reset)), _) | (Ok(command), None) => {
                Step::Run(command)
            }
            (Err(error), None) => Step::Refuse(error.to_string()),
            (Err(error), Some(queue)) if error.discards_transaction() => {
                queue.spoilt = true;
                Step::Refuse(error.to_string())
            }
            (_, Some(queue)) if queue.requests.len() + request.len() > queue_bytes_max => {
                queue.spoilt = true;
                Step::Refuse(format!(
                    "TOOBIG a transaction has at most {queue_bytes_max} bytes"
                ))
            }
            // What is wrong with it is said in its place among the replies.
            (_, Some(queue)) => {
                queue.requests.extend_from_slice(request);
                queue.commands += 1;
                Step::Simple("QUEUED")
            }
        }
    }

    /// Notes what a key held when it was watched; `false`: another one is watched already.
    pub(super) fn watch(&mut self, key: Bytes, seen: Option<Version>) -> bool {
        match &self.watched {
            Some((watched, _)) => *watched == key,
            None => {
                self.watched = Some((key, seen));
                true
            }
        }
    }

    /// The key that is watched, if one is: it is no longer.
    pub(super) const fn take_watched(&mut self) -> Option<Watched> {
        self.watched.take()
    }

    /// Whether it is answered.
    pub(super) const fn replies(&self) -> Replies {
        self.replies
    }

    /// Answers from now on, or not.
    pub(super) const fn set_replies(&mut self, replies: Replies) {
        self.replies = replies;
    }

    /// A command that could not be queued makes `EXEC` refuse the rest.
    pub(super) fn spoil_queue(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.spoilt = true;
        }
    }

    /// Carries out a command about the connection or the server and answers it.
    pub(super) fn perform(
        &mut self,
        kind: CommandKind,
        command: ConnectionCommand<'_>,
        (shared, config): (&Shared, &Config),
        login: Option<Login>,
        output: &mut Vec<u8>,
    ) -> Next {
        let now = shared.env.clock.wall();
        self.client.note(
            kind.name(),
            self.queue.as_ref().map(|queue| queue.commands),
            now,
        );
        let mut reply = Encoder::new(output, self.protocol);
        match command {
            ConnectionCommand::Ping(None) => reply.simple("PONG"),
            ConnectionCommand::Ping(Some(text)) | ConnectionCommand::Echo(text) => reply.bulk(text),
            ConnectionCommand::Unwatch => {
                self.watched = None;
                reply.simple("OK");
            }
            ConnectionCommand::Quit => {
                reply.simple("OK");
                return Next::Close;
            }
            ConnectionCommand::Reset => {
                self.reset(config);
                Encoder::new(output, self.protocol).simple("RESET");
            }
            ConnectionCommand::Select(number) => match Database::try_from(number) {
                Ok(database) => {
                    self.database = database;
                    self.client.set_database(database);
                    reply.simple("OK");
                }
                Err(_) => reply.error("ERR DB index is out of range"),
            },
            ConnectionCommand::Auth { .. } => match self.log_in(login) {
                Ok(()) => reply.simple("OK"),
                Err(text) => reply.error(text),
            },
            ConnectionCommand::Hello {
                version, setname, ..
            } => {
                self.hello(version, setname, login, output);
            }
            ConnectionCommand::Client(command) => self.about_client(&command, shared, &mut reply),
            ConnectionCommand::Command(query) => command_info::answer(query, &mut reply),
            ConnectionCommand::Level { read, write } => self.level(read, write, &mut reply),
            ConnectionCommand::Last => {
                reply.map(1);
                reply.bulk(b"sloppy_writes");
                reply.integer(i64::try_from(self.sloppy_writes).unwrap_or(i64::MAX));
            }
            // Decided before: none of these comes here.
            ConnectionCommand::Keys(_)
            | ConnectionCommand::Multi
            | ConnectionCommand::Exec
            | ConnectionCommand::Discard => {
                reply.error("ERR MULTI calls can not be nested");
            }
            command => server::answer(command, shared, now, &mut reply),
        }
        Next::Go
    }

    /// Sets the levels that are given, or shows both.
    fn level(&mut self, read: Option<Level>, write: Option<Level>, reply: &mut Encoder<'_>) {
        if read.is_some() || write.is_some() {
            self.levels.ask(read, write);
            return reply.simple("OK");
        }
        let levels = self.levels.shown();
        reply.map(2);
        for (name, level) in [("read", levels.read), ("write", levels.write)] {
            reply.bulk(name.as_bytes());
            reply.bulk(level.name().as_bytes());
        }
    }

    fn reset(&mut self, config: &Config) {
        self.queue = None;
        self.watched = None;
        self.replies = Replies::On;
        self.levels.reset();
        self.database = Database::default();
        self.client.set_database(self.database);
        self.protocol = Protocol::Resp2;
        self.is_logged_in = config.password.is_none();
        self.client.set_name(b"");
        self.client.set_protocol(self.protocol);
    }

    /// The settings have changed. Whoever is logged in stays so, as in Redis.
    pub(super) fn on_reload(&mut self, config: &Config, door: Door) {
        self.levels.set_door(config.levels.of_door(door));
        self.is_logged_in |= config.password.is_none();
    }

    /// The database that commands are about.
    pub(super) const fn database(&self) -> Database {
        self.database
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) const fn is_logged_in(&self) -> bool {
        self.is_logged_in
    }

    /// Bytes of commands that are queued for `EXEC`.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queue
            .as_ref()
            .map_or(0, |queue| queue.requests.capacity())
    }

    fn log_in(&mut self, login: Option<Login>) -> Result<(), &'static str> {
        match login {
            Some(Login::Right) => {
                self.is_logged_in = true;
                Ok(())
            }
            Some(Login::Wrong) | None => Err(WRONG_PASSWORD),
            Some(Login::Refused) => Err(TOO_MANY_WRONG),
            Some(Login::NotAsked { is_default: true }) => Ok(()),
            Some(Login::NotAsked { is_default: false }) => Err(NO_PASSWORD_SET),
        }
    }

    fn hello(
        &mut self,
        version: Option<i64>,
        name: Option<&[u8]>,
        login: Option<Login>,
        output: &mut Vec<u8>,
    ) {
        let mut reply = Encoder::new(output, self.protocol);
        // First of all, as in Redis: then nothing of the command takes effect.
        if !name.is_none_or(is_printable) {
            return reply.error(BAD_NAME);
        }
        if login.is_some()
            && let Err(text) = self.log_in(login)
        {
            return reply.error(text);
        }
        if !self.is_logged_in {
            return reply.error(HELLO_WITHOUT_AUTH);
        }
        if let Some(name) = name {
            self.client.set_name(name);
        }
        match version {
            Some(3) => self.protocol = Protocol::Resp3,
            Some(_) => self.protocol = Protocol::Resp2,
            None => {}
        }
        self.client.set_protocol(self.protocol);
        let mut reply = Encoder::new(output, self.protocol);
        reply.map(7);
        for (field, value) in [("server", "redis"), ("version", REDIS_VERSION)] {
            reply.bulk(field.as_bytes());
            reply.bulk(value.as_bytes());
        }
        reply.bulk(b"proto");
        reply.integer(if self.protocol == Protocol::Resp3 {
            3
        } else {
            2
        });
        reply.bulk(b"id");
        reply.integer(i64::try_from(self.client.id).unwrap_or(i64::MAX));
        for (field, value) in [("mode", "standalone"), ("role", "master")] {
            reply.bulk(field.as_bytes());
            reply.bulk(value.as_bytes());
        }
        reply.bulk(b"modules");
        reply.array(0);
    }

    fn about_client(&self, command: &ClientCommand<'_>, shared: &Shared, reply: &mut Encoder<'_>) {
        let now = shared.env.clock.wall();
        match *command {
            ClientCommand::Id => reply.integer(i64::try_from(self.client.id).unwrap_or(i64::MAX)),
            ClientCommand::SetName(name) => {
                if !is_printable(name) {
                    return reply.error(BAD_NAME);
                }
                self.client.set_name(name);
                reply.simple("OK");
            }
            ClientCommand::GetName => match self.client.name() {
                name if name.is_empty() => reply.null(),
                name => reply.bulk(name.as_bytes()),
            },
            ClientCommand::SetInfo { attribute, value } => {
                let is_name = attribute.eq_ignore_ascii_case(b"lib-name");
                let shown = String::from_utf8_lossy(attribute);
                if !is_name && !attribute.eq_ignore_ascii_case(b"lib-ver") {
                    return reply.error(&format!("ERR Unrecognized option '{shown}'"));
                }
                if !is_printable(value) {
                    return reply.error(&format!(
                        "ERR {shown} cannot contain spaces, newlines or special characters."
                    ));
                }
                if is_name {
                    self.client.set_library(value);
                } else {
                    self.client.set_library_version(value);
                }
                reply.simple("OK");
            }
            ClientCommand::Info => reply.verbatim(&self.client.line(now)),
            ClientCommand::List => reply.verbatim(&shared.clients.list(now)),
            // Nothing is evicted for a connection's memory, and no command changes idle times.
            ClientCommand::NoEvict(_) | ClientCommand::NoTouch(_) => reply.simple("OK"),
            ClientCommand::Kill(filter) => {
                let killed = shared.clients.kill(&filter, self.client.id);
                match (filter.is_old, killed) {
                    (true, 0) => reply.error("ERR No such client"),
                    (true, _) => reply.simple("OK"),
                    (false, killed) => reply.integer(i64::try_from(killed).unwrap_or(i64::MAX)),
                }
            }
            ClientCommand::Pause { ms, is_of_all } => {
                let until = Millis(now.0.saturating_add(ms.min(PAUSE_MS_MAX)));
                shared.pause.set(until, is_of_all, now);
                reply.simple("OK");
            }
            ClientCommand::Unpause => {
                shared.pause.end();
                reply.simple("OK");
            }
            // Nobody is ever blocked.
            ClientCommand::Unblock => reply.integer(0),
            // Decided before.
            ClientCommand::Reply(_) => reply.simple("OK"),
            ClientCommand::Help => {
                server::lines(CLIENT_HELP, reply);
            }
        }
    }
}

/// What may stand in a line of `CLIENT LIST`, as in Redis; and not at any length.
fn is_printable(name: &[u8]) -> bool {
    name.len() <= NAME_BYTES_MAX && name.iter().all(u8::is_ascii_graphic)
}

fn is_open_to_all(command: &Command<'_>) -> bool {
    matches!(
        command,
        Command::Connection(
            _,
            ConnectionCommand::Auth { .. }
                | ConnectionCommand::Hello { .. }
                | ConnectionCommand::Quit
                | ConnectionCommand::Reset
        )
    )
}

const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";
const TOO_MANY_WRONG: &str = "ERR a wrong password came from this address: passwords are not looked at \
    for some seconds, try again";
const NO_PASSWORD_SET: &str = "ERR AUTH <password> called without any password configured for the \
    default user. Are you sure your configuration is correct?";
const HELLO_WITHOUT_AUTH: &str = "NOAUTH HELLO must be called with the client already \
    authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to \
    authenticate the client and select the RESP protocol version at the same time";
const NAME_BYTES_MAX: usize = 1_024;
/// A node that answers nobody is of use to nobody.
const PAUSE_MS_MAX: u64 = 60_000;
const BAD_NAME: &str = "ERR Client names cannot contain spaces, newlines or special characters.";
const CLIENT_HELP: &[&str] = &[
    "CLIENT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "GETNAME",
    "    Return the name of the current connection.",
    "ID",
    "    Return the ID of the current connection.",
    "INFO",
    "    Return information about the current client connection.",
    "LIST",
    "    Return information about client connections.",
    "KILL <option> <value> [<option> <value> ...]",
    "    Close the connections with this ID, ADDR or LADDR; not the own one unless SKIPME no.",
    "NO-EVICT (ON|OFF)",
    "    Accepted, has no effect.",
    "NO-TOUCH (ON|OFF)",
    "    Accepted, has no effect.",
    "PAUSE <timeout> [WRITE|ALL]",
    "    Let commands that write, or all, wait for so many milliseconds, a minute at most.",
    "REPLY (ON|OFF|SKIP)",
    "    Answer this connection from now on, or not, or not the next command.",
    "SETINFO <option> <value>",
    "    Set client meta attr. Options are: LIB-NAME, LIB-VER.",
    "SETNAME <name>",
    "    Assign the name <name> to the current connection.",
    "UNPAUSE",
    "    Let commands wait no longer.",
    "HELP",
    "    Print this help.",
];
