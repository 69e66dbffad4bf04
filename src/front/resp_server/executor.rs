//! What carries a connection's commands out, and the replies it has so far.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tracing::warn;

use super::clients::Client;
use super::keys;
use super::levels::{Door, level_of};
use super::listening::{self, Listening};
use super::login::{Attempt, Login};
use super::output::{BUFFER_BYTES_KEPT, Output, Signals, Socket};
use super::plan::{Counters, Plan, run_local};
use super::reading::whole_request;
use super::replies;
use super::ring_wide;
use super::session::{Next, Session, Step};
use super::shapes::is_read;
use super::slowlog::SlowEntry;
use super::stats::Tally;
use super::{Config, Shared};
use crate::front::channels::Heard;
use crate::model::Millis;
use crate::node::coordinator::Local;
use crate::resp::{
    Args, ClientCommand, Command, CommandError, CommandKind, ConnectionCommand, DataCommand,
    Encoder, KeysQuery, Limits, Parsed, Parser, ProtocolError, Replies, Script,
};
use crate::update;

/// What carries commands out, and the replies it has so far.
pub(super) struct Executor<'a> {
    pub(super) shared: &'a Shared,
    pub(super) config: Arc<Config>,
    pub(super) reloaded: watch::Receiver<Arc<Config>>,
    pub(super) door: Door,
    pub(super) peer_ip: Option<IpAddr>,
    pub(super) session: Session,
    pub(super) tally: Tally,
    pub(super) plan: Plan,
    pub(super) output: Output,
    /// Each command waits for the one before it: those of a transaction.
    pub(super) is_ordered: bool,
    /// The wall clock when the present input came.
    pub(super) now: Millis,
    pub(super) listening: Listening,
    /// The short cut, for as long as the present input is worked on.
    pub(super) local: Option<Local<'a>>,
}

impl<'a> Executor<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        client: Arc<Client>,
        (door, peer_ip): (Door, Option<IpAddr>),
        stream: Box<dyn Socket>,
    ) -> Self {
        let config = shared.config();
        let levels = config.levels.of_door(door);
        let signals = Signals {
            killed: client.killed(),
            draining: shared.draining.subscribe(),
        };
        let output = Output::new(
            stream,
            Arc::clone(&client),
            signals,
            Arc::clone(&shared.unread),
            (Arc::clone(&shared.env.clock), config.write_max),
        );
        let listening = Listening::new(client.close_switch());
        let session = Session::new(client, config.password.is_none(), levels);
        Self {
            shared,
            config,
            reloaded: shared.config.subscribe(),
            door,
            peer_ip,
            session,
            tally: Tally::default(),
            plan: Plan::default(),
            output,
            is_ordered: false,
            listening,
            now: shared.env.clock.wall(),
            local: None,
        }
    }
}

impl Executor<'_> {
    /// Begins with commands that came together, or goes on with them after a wait. Once for all of
    /// them: each look at the clock or the ring costs as much as a command.
    pub(super) fn begin(&mut self) {
        self.now = self.shared.env.clock.wall();
        self.local = self.shared.coordinator.local();
        self.select();
    }

    /// What came before it is answered, then it.
    pub(super) async fn on_protocol_error(&mut self, error: &ProtocolError) {
        self.flush().await;
        let stats = &self.shared.stats;
        stats.protocol_errors.fetch_add(1, Ordering::Relaxed);
        self.reply().error(&format!("ERR {error}"));
    }

    /// Takes over the database that the client has selected.
    pub(super) fn select(&mut self) {
        let database = self.session.database();
        self.plan.select(database);
        if let Some(local) = &mut self.local {
            local.select(database);
        }
    }

    /// One command: carried out, queued for a transaction, or refused.
    pub(super) async fn take(
        &mut self,
        command: Result<Command<'_>, CommandError>,
        request: &[u8],
    ) -> Next {
        if self.session.replies() == Replies::On {
            return self.take_answered(command, request).await;
        }
        // What came before is answered; what is answered to this one is not sent.
        self.flush().await;
        if self.session.replies() == Replies::Skip {
            self.session.set_replies(Replies::On);
        }
        let turns_on = matches!(
            command,
            Ok(Command::Connection(
                _,
                ConnectionCommand::Client(ClientCommand::Reply(Replies::On))
            ))
        );
        self.output.mute();
        let next = self.take_answered(command, request).await;
        self.flush().await;
        self.output.unmute(!turns_on);
        next
    }

    async fn take_answered(
        &mut self,
        command: Result<Command<'_>, CommandError>,
        request: &[u8],
    ) -> Next {
        if let Err(error) = &command {
            self.shared.stats.refused.fetch_add(1, Ordering::Relaxed);
            if let CommandError::Unknown { name, .. } = error {
                self.shared.stats.count_unknown(name);
            }
        }
        if let Ok(command) = &command {
            if let Some(text) = self.listening.refuses(command, self.session.protocol()) {
                self.plan.push_error(text);
                return Next::Go;
            }
            if self.shared.channels.is_monitored() {
                self.show(command, request);
            }
        }
        if let Ok(command) = &command
            && self.session.is_queueing()
            && may_write(command)
        {
            self.session.note_queued_write();
        }
        let whole = self.named_in_queue(&command);
        let request = whole.as_deref().unwrap_or(request);
        let limit = self.config.limits().request_bytes_max;
        match self.session.take(command, request, limit) {
            Step::Run(command) => self.run(command, request).await,
            Step::Simple(text) => {
                self.flush().await;
                self.reply().simple(text);
                Next::Go
            }
            Step::Refuse(text) => {
                self.plan.push_error(text);
                Next::Go
            }
            // Rare, and large.
            Step::Transaction(queue) => Box::pin(self.run_transaction(&queue)).await,
        }
    }

    pub(super) async fn run(&mut self, command: Command<'_>, request: &[u8]) -> Next {
        let kind = command.kind();
        match command {
            Command::Data(kind, DataCommand::NamedScript(script)) => {
                self.run_named(kind, script).await
            }
            Command::Data(_, DataCommand::Script(script)) if self.is_without_key(script) => {
                self.flush().await;
                let told = self.run_script(request).await;
                let is_ok = !matches!(told, update::Reply::Error(_));
                self.shared.stats.count(kind, is_ok);
                self.tally.add(kind, None);
                replies::told(&told, &mut self.reply());
                Next::Go
            }
            Command::Data(_, command) => {
                if self.is_ordered && !(is_read(&command) && self.plan.is_read_only()) {
                    self.flush().await;
                }
                if !self.run_here(kind, command, request) {
                    self.plan.push(kind, (command, request), self.now);
                    if self.plan.is_full() {
                        self.flush().await;
                    }
                }
                Next::Go
            }
            Command::Connection(_, command) => {
                // In the order of the commands: what came before is answered before.
                self.flush().await;
                if let Some(is_ok) = Box::pin(self.run_elsewhere(command)).await {
                    self.shared.stats.count(kind, is_ok);
                    self.tally.add(kind, None);
                    return Next::Go;
                }
                let login = self.log_in(&command).await;
                let is_ok = !matches!(login, Some(Login::Wrong | Login::Refused));
                self.shared.stats.count(kind, is_ok);
                self.tally.add(kind, None);
                let shared = (self.shared, &*self.config);
                let next = self
                    .session
                    .perform(kind, command, shared, login, self.output.buffer());
                self.select();
                next
            }
        }
    }

    /// Carries a command out at once if this node is alone in its ring and the command is short;
    /// whether it did.
    fn run_here(&mut self, kind: CommandKind, command: DataCommand<'_>, request: &[u8]) -> bool {
        // A script does not run here, where others wait.
        let is_script = matches!(command, DataCommand::Script(_));
        let is_first = self.plan.is_empty() && !is_script;
        let Some(local) = self.local.as_ref().filter(|_| is_first) else {
            return false;
        };
        let stats = &self.shared.stats;
        let mut reply = self.output.encoder(self.session.protocol());
        let ran = run_local(local, (command, request), self.now, stats, &mut reply);
        let Some(is_ok) = ran else {
            return false;
        };
        stats.count(kind, is_ok);
        let levels = self.session.levels().shown();
        self.tally.add(kind, Some(level_of(kind, levels)));
        true
    }

    /// Runs a script by its name: as if the client had sent it whole.
    async fn run_named(&mut self, kind: CommandKind, script: Script<'_>) -> Next {
        let Some(request) = self.whole_script(script) else {
            self.shared.stats.count(kind, false);
            self.plan.push_error(NO_SCRIPT.to_owned());
            return Next::Go;
        };
        let mut parser = Parser::new(Limits {
            value_bytes_max: request.len(),
            request_bytes_max: request.len(),
            args_max: request.len(),
        });
        if !matches!(parser.parse(&request), Ok(Parsed::Request { .. })) {
            self.plan.push_error(NO_SCRIPT.to_owned());
            return Next::Go;
        }
        match Command::parse(parser.args(&request)) {
            Ok(command) => Box::pin(self.run(command, &request)).await,
            Err(error) => {
                self.plan.push_error(error.to_string());
                Next::Go
            }
        }
    }

    /// The request of a script that is named, with its source in the place of its name.
    fn whole_script(&self, script: Script<'_>) -> Option<Vec<u8>> {
        let source = self.shared.scripts.get(script.source)?;
        let name: &[u8] = if script.is_read_only {
            b"EVAL_RO"
        } else {
            b"EVAL"
        };
        let keys = script.keys().count().to_string();
        let start = [name, &source, keys.as_bytes()];
        let words: Vec<&[u8]> = start.into_iter().chain(script.words()).collect();
        Some(whole_request(&words))
    }

    /// A script that is queued by its name, whole: what `EXEC` carries out together with other
    /// commands on its key must not depend on what this node still knows then.
    fn named_in_queue(&self, command: &Result<Command<'_>, CommandError>) -> Option<Vec<u8>> {
        match command {
            Ok(Command::Data(_, DataCommand::NamedScript(script)))
                if self.session.is_queueing() =>
            {
                self.whole_script(*script)
            }
            _ => None,
        }
    }

    /// Runs a script that has no key, where it is not in the way of others.
    async fn run_script(&self, request: &[u8]) -> update::Reply {
        let (request, now) = (Bytes::copy_from_slice(request), self.now);
        let work = move |limit: &update::Limit| update::run_script(&request, now, limit);
        match self.shared.env.compute_update(work).await {
            Ok(told) => told,
            Err(error) => update::Reply::Error(format!("BUSY {error}; the script was not run")),
        }
    }

    /// Whether a script has no key: then any node can run it at once. It is known by its name from now on.
    fn is_without_key(&self, script: Script<'_>) -> bool {
        let name = update::script_name(script.source);
        self.shared.scripts.keep(&name, script.source);
        script.keys().next().is_none()
    }

    /// Carries out what is neither of one key nor of the connection alone; whether it was no error.
    /// `None`: it is another command.
    async fn run_elsewhere(&mut self, command: ConnectionCommand<'_>) -> Option<bool> {
        use ConnectionCommand as C;
        let client = self.session.client().id;
        let (shared, database) = (self.shared, self.session.database());
        let mut reply = self.output.encoder(self.session.protocol());
        match command {
            C::Keys(query) => return Some(self.keys(&query).await),
            C::Watch(key) => return Some(self.watch(key).await),
            C::Subscribe(names, is_pattern) => {
                let names = (names, is_pattern);
                self.listening
                    .subscribe(client, names, &shared.channels, &mut reply);
            }
            C::Unsubscribe(names, is_pattern) => {
                let names = (names, is_pattern);
                self.listening
                    .unsubscribe(client, names, &shared.channels, &mut reply);
            }
            C::Ping(text) if self.listening.is_silent(self.session.protocol()) => {
                reply.array(2);
                reply.bulk(b"pong");
                reply.bulk(text.unwrap_or_default());
            }
            C::Monitor => {
                self.listening.monitor(client, &shared.channels);
                reply.simple("OK");
            }
            C::Client(ClientCommand::Reply(replies)) => {
                self.session.set_replies(replies);
                if replies == Replies::On {
                    reply.simple("OK");
                }
            }
            C::Reset => {
                self.listening.reset(client, &shared.channels);
                return None;
            }
            command => {
                let told = ring_wide::answer(command, database, shared).await?;
                replies::told(&told, &mut reply);
                return Some(!matches!(told, update::Reply::Error(_)));
            }
        }
        Some(true)
    }

    /// Sends a message, and what has come meanwhile with it.
    pub(super) async fn tell(&mut self, heard: &Heard) {
        listening::encode(heard, &mut self.reply());
        self.tell_waiting().await;
    }

    /// Sends the messages that are there, as many as go together.
    pub(super) async fn tell_waiting(&mut self) {
        while self.output.len() < BUFFER_BYTES_KEPT
            && let Some(heard) = self.listening.take()
        {
            listening::encode(&heard, &mut self.reply());
        }
        self.output.send().await;
    }

    /// Shows a command to those who monitor this node.
    fn show(&self, command: &Command<'_>, request: &[u8]) {
        if matches!(command.kind(), CommandKind::Auth | CommandKind::Hello) {
            return;
        }
        let mut parser = Parser::new(self.config.limits());
        if !matches!(parser.parse(request), Ok(Parsed::Request { .. })) {
            return;
        }
        let now = self.shared.env.clock.wall().0;
        let (seconds, ms) = (now / 1_000, now % 1_000);
        let (database, client) = (self.session.database().number(), self.session.client());
        let mut line = format!("{seconds}.{ms:03}000 [{database} {}]", client.address());
        show_words(parser.args(request), &mut line);
        self.shared.channels.show(&line);
    }

    /// Waits for as long as an administrator lets commands like this one wait.
    pub(super) async fn until_unpaused(&mut self, command: &Command<'_>) {
        let pause = &self.shared.pause;
        if !pause.is_set() || is_never_paused(command) {
            return;
        }
        let is_write = self.is_write(command);
        let clock = Arc::clone(&self.shared.env.clock);
        while pause.holds(is_write, clock.wall()) && self.output.closed().is_none() {
            // What came before has its replies meanwhile.
            self.flush().await;
            self.output.send().await;
            self.output.unless_ended(pause.changed(&*clock)).await;
            self.begin();
        }
    }

    /// Whether a command may change something, now: one that is queued does not.
    fn is_write(&self, command: &Command<'_>) -> bool {
        use ConnectionCommand as C;
        match command {
            Command::Connection(_, C::Exec) => self.session.has_queued_writes(),
            _ if self.session.is_queueing() => false,
            command => may_write(command),
        }
    }

    pub(super) fn too_big(&mut self, bytes: u64) {
        let limit = self.config.value_bytes_max;
        self.plan.push_error(format!(
            "TOOBIG the command has {bytes} bytes where at most {limit} (max_value_bytes) fit; \
             nothing was written"
        ));
        self.session.spoil_queue();
    }

    /// Carries out what is planned, so that all replies so far are in the output.
    pub(super) async fn flush(&mut self) {
        if self.plan.is_empty() {
            return;
        }
        let now = self.shared.env.clock.wall();
        let protocol = self.session.protocol();
        let rules = &self.config.levels;
        let levels = |key: &[u8]| {
            let levels = self.session.levels().of(key, rules);
            (levels, rules.is_sloppy(key))
        };
        let counters = Counters {
            stats: &self.shared.stats,
            tally: &mut self.tally,
            slow: &self.shared.slow,
            rules: self.config.slow,
            client: self.session.client(),
            clock: &*self.shared.env.clock,
            started: self.shared.env.clock.monotonic(),
        };
        let running = self.plan.run(
            (&self.shared.coordinator, &levels),
            now,
            counters,
            (&mut self.output, protocol),
        );
        // Large, and nothing beside what it does.
        let sloppy_writes = Box::pin(running).await;
        self.session.note_sloppy_writes(sloppy_writes);
    }

    /// Takes over settings that have changed.
    pub(super) fn follow_settings(&mut self) {
        // An atomic load, as long as nothing has changed.
        if self.reloaded.has_changed().unwrap_or(false) {
            self.config = Arc::clone(&self.reloaded.borrow_and_update());
            self.session.on_reload(&self.config, self.door);
            self.output.write_max = self.config.write_max;
        }
    }

    /// Answers what is asked about the keys of the ring; whether it was no error.
    async fn keys(&mut self, query: &KeysQuery<'_>) -> bool {
        let database = self.session.database();
        let shared = self.shared;
        let found = keys::answer(query, database, &shared.coordinator, &shared.env).await;
        let mut reply = self.output.encoder(self.session.protocol());
        let is_ok = found.is_ok();
        keys::encode(found, &mut reply);
        is_ok
    }

    /// Checks the password that a command brings, if it brings one.
    async fn log_in(&self, command: &ConnectionCommand<'_>) -> Option<Login> {
        let (user, given) = match command {
            ConnectionCommand::Auth { user, password } => (*user, *password),
            ConnectionCommand::Hello {
                auth: Some((user, password)),
                ..
            } => (Some(*user), *password),
            _ => return None,
        };
        let is_default = user.is_none_or(|user| user == b"default");
        let Some(expected) = &self.config.password else {
            return Some(match (user, is_default) {
                (Some(_), false) => Login::Wrong,
                (user, _) => Login::NotAsked {
                    is_default: user.is_some(),
                },
            });
        };
        // A wrong user waits as a wrong password does.
        let given = if is_default { given } else { b"" };
        let attempt = Attempt {
            expected,
            given,
            from: self.peer_ip,
        };
        let shared = self.shared;
        let login = shared.logins.check(attempt, &shared.env).await;
        shared.stats.count_login(login);
        if login == Login::Wrong {
            let client = self.session.client().address();
            warn!(client, "a login has failed");
        }
        Some(login)
    }

    /// All that came in one go has taken so long.
    pub(super) fn note_time(&mut self, took: Duration) {
        self.shared.stats.took(took, &self.tally);
        if took > self.config.slow.threshold && !self.tally.counts().is_empty() {
            self.note_slow(took);
        }
        self.tally.clear();
    }

    fn note_slow(&self, took: Duration) {
        let counts = self.tally.counts();
        let commands = counts.iter().map(|(kind, _, count)| match count {
            1 => kind.name().to_owned(),
            count => format!("{} x {count}", kind.name()),
        });
        let level = counts.iter().find_map(|(_, level, _)| *level);
        self.shared.slow.push(SlowEntry {
            at_ms: self.shared.env.clock.wall().0,
            took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            commands: commands.collect::<Vec<_>>().join(", "),
            level: level.map(|level| level.name().to_owned()),
            client: self.session.client().address().to_owned(),
            ..SlowEntry::default()
        });
    }

    pub(super) fn reply(&mut self) -> Encoder<'_> {
        self.output.encoder(self.session.protocol())
    }
}

/// Whether a command may change what others see.
fn may_write(command: &Command<'_>) -> bool {
    use ConnectionCommand as C;
    match command {
        Command::Data(_, command) => !is_read(command),
        Command::Connection(_, command) => matches!(
            command,
            C::Flush(_) | C::Rename { .. } | C::Copy { .. } | C::Publish(..)
        ),
    }
}

/// Whether a command is carried out whoever has let commands wait: it may be what ends the wait.
const fn is_never_paused(command: &Command<'_>) -> bool {
    use ConnectionCommand as C;
    matches!(
        command,
        Command::Connection(
            _,
            C::Client(_) | C::Auth { .. } | C::Hello { .. } | C::Quit | C::Reset
        )
    )
}

/// The words of a command as `MONITOR` shows them: as many as fit.
fn show_words(words: Args<'_>, line: &mut String) {
    for (place, word) in words.iter().enumerate() {
        if line.len() >= SHOWN_LINE_BYTES_MAX {
            // Writing to a String cannot fail.
            let _written = write!(line, " ... ({} more arguments)", words.len() - place);
            return;
        }
        let shown = &word[..word.len().min(SHOWN_WORD_BYTES_MAX)];
        let _written = write!(line, " \"{}", shown.escape_ascii());
        line.push_str(if shown.len() < word.len() {
            "...\""
        } else {
            "\""
        });
    }
}

/// Of a word of a command, for those who monitor.
const SHOWN_WORD_BYTES_MAX: usize = 1_024;
/// Of a whole command; the last word that is begun within it is shown, four bytes for one at most.
const SHOWN_LINE_BYTES_MAX: usize = 4_096;
pub(super) const NO_SCRIPT: &str = "NOSCRIPT No matching script. Please use EVAL.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_monitor_is_bounded_whatever_the_command() {
        let word = [0u8; 2_000];
        let request = whole_request(&[&word[..]; 1_000]);
        let mut parser = Parser::new(Limits {
            value_bytes_max: 1 << 20,
            request_bytes_max: 1 << 22,
            args_max: 1_000,
        });
        assert!(matches!(parser.parse(&request), Ok(Parsed::Request { .. })));
        let mut line = String::new();
        show_words(parser.args(&request), &mut line);
        assert!(line.len() < 3 * SHOWN_LINE_BYTES_MAX, "{}", line.len());
        assert!(line.ends_with(" ... (999 more arguments)"), "{line}");
    }
}
