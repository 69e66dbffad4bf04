//! One connection: bytes in, commands carried out, replies out.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::clients::Client;
use super::inputs::{EXPLAIN_MAX, HeldInput, OVER_INPUT};
use super::keys;
use super::levels::{Door, level_of};
use super::listening::{self, Listening};
use super::login::{Attempt, Login};
use super::plan::{Counters, Plan, run_local};
use super::reading::{BUFFER_BYTES_KEPT, Reading, read, whole_request};
use super::replies;
use super::ring_wide;
use super::session::{Next, Queue, Session, Step, Watched};
use super::slowlog::SlowEntry;
use super::stats::Tally;
use super::{Config, Shared};
use crate::front::channels::Heard;
use crate::front::places::{Place, Source};
use crate::model::Millis;
use crate::node::coordinator::{Action, Local};
use crate::resp::{
    ClientCommand, Command, CommandError, CommandKind, ConnectionCommand, DataCommand, Encoder,
    KeysQuery, Limits, Parsed, Parser, Replies, Script,
};
use crate::update::{self, Change};

/// A connection's state between two reads.
pub(super) struct Connection<'a> {
    shared: &'a Shared,
    parser: Parser,
    input: Vec<u8>,
    held: HeldInput<'a>,
    /// Since when a request of who has not logged in is unfinished.
    unfinished_since: Option<Instant>,
    /// Of who has not logged in.
    place: Option<Place>,
    executor: Executor<'a>,
}

/// What carries commands out, and the replies it has so far.
struct Executor<'a> {
    shared: &'a Shared,
    config: Arc<Config>,
    reloaded: watch::Receiver<Arc<Config>>,
    door: Door,
    peer_ip: Option<IpAddr>,
    session: Session,
    tally: Tally,
    plan: Plan,
    output: Vec<u8>,
    /// The wall clock when the present input came.
    now: Millis,
    listening: Listening,
    /// The short cut, for as long as the present input is worked on.
    local: Option<Local<'a>>,
}

impl<'a> Connection<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        client: Arc<Client>,
        (door, peer_ip): (Door, Option<IpAddr>),
    ) -> Self {
        let config = shared.config();
        let levels = config.levels.of_door(door);
        let listening = Listening::new(client.close_switch());
        let held = HeldInput::new(&shared.inputs, &shared.clients, Arc::clone(&client));
        let session = Session::new(client, config.password.is_none(), levels);
        let mut connection = Self {
            shared,
            parser: Parser::new(config.limits()),
            input: Vec::new(),
            held,
            unfinished_since: None,
            place: None,
            executor: Executor {
                shared,
                config,
                reloaded: shared.config.subscribe(),
                door,
                peer_ip,
                session,
                tally: Tally::default(),
                plan: Plan::default(),
                output: Vec::new(),
                listening,
                now: shared.env.clock.wall(),
                local: None,
            },
        };
        connection.follow_login();
        connection
    }

    /// Who has not logged in takes one of few places, and sends no more than a login takes.
    fn follow_login(&mut self) {
        let Executor {
            session, peer_ip, ..
        } = &self.executor;
        let is_logged_in = session.is_logged_in();
        self.parser.set_authenticated(is_logged_in);
        self.place = (!is_logged_in).then(|| {
            let lost = session.client().close_switch();
            let places = &self.shared.unauthenticated;
            places.take(Source::of(*peer_ip), lost)
        });
    }

    /// Serves the connection until either side has enough of it, or the door is being closed.
    pub(super) async fn run(
        mut self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        draining: &mut watch::Receiver<bool>,
    ) {
        if let Err(error) = self.serve(&mut stream, draining).await {
            debug!(%error, "connection lost");
            return;
        }
        // What was sent is on its way; an error here changes nothing for anyone.
        drop(stream.shutdown().await);
    }

    async fn serve(
        &mut self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        draining: &mut watch::Receiver<bool>,
    ) -> io::Result<()> {
        let mut next = Next::Go;
        let mut killed = self.executor.session.client().killed();
        loop {
            let waiting = self.reading();
            let Self {
                input,
                executor,
                held,
                ..
            } = self;
            let event = tokio::select! {
                // What has come is carried out before the door closes.
                biased;
                has_read = read(input, held, waiting, stream) => {
                    if has_read? { Event::Input } else { Event::End }
                }
                heard = executor.listening.next() => Event::Heard(heard),
                _ = draining.wait_for(|is_draining| *is_draining) => Event::End,
                _ = killed.wait_for(|is_killed| *is_killed) => Event::End,
            };
            match event {
                Event::End => {
                    if executor.session.client().is_over_input() {
                        drop(timeout(EXPLAIN_MAX, stream.write_all(OVER_INPUT)).await);
                    }
                    return Ok(());
                }
                Event::Heard(heard) => {
                    executor.tell(&heard);
                    executor.write(stream).await?;
                    if executor.listening.is_behind() {
                        debug!("closed a connection that does not read its messages");
                        return Ok(());
                    }
                    continue;
                }
                Event::Input => {}
            }
            self.executor.follow_settings();
            next = next.max(self.process(stream).await?);
            if self.shared.stats.connections_open.load(Ordering::Relaxed) > 1 {
                // Let the others that have something to do come first: replies then leave
                // together, and a client of many connections is woken once and not for each.
                tokio::task::yield_now().await;
            }
            self.executor.write(stream).await?;
            if next == Next::Close {
                return Ok(());
            }
        }
    }

    /// Carries out all whole commands of the input.
    async fn process(&mut self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<Next> {
        let Self {
            shared,
            parser,
            input,
            executor,
            ..
        } = self;
        let started = shared.env.clock.monotonic();
        // Once for all that came together: each look at the clock or the ring costs as much as a
        // command.
        executor.now = shared.env.clock.wall();
        executor.until_unpaused().await;
        executor.local = shared.coordinator.local();
        executor.select();
        let (mut at, mut next) = (0, Next::Go);
        let mut has_logged_in_or_out = false;
        while next == Next::Go {
            match parser.parse(&input[at..]) {
                Ok(Parsed::Request { consumed }) => {
                    let request = &input[at..at + consumed];
                    at += consumed;
                    let args = parser.args(request);
                    if !args.is_empty() {
                        next = executor.take(Command::parse(args), request).await;
                    }
                    if parser.is_authenticated() != executor.session.is_logged_in() {
                        has_logged_in_or_out = true;
                        parser.set_authenticated(executor.session.is_logged_in());
                    }
                }
                Ok(Parsed::TooBig { consumed, bytes }) => {
                    at += consumed;
                    executor.too_big(bytes);
                }
                Ok(Parsed::Incomplete { discard }) => {
                    at += discard;
                    break;
                }
                Err(error) => {
                    executor.flush().await;
                    shared.stats.protocol_errors.fetch_add(1, Ordering::Relaxed);
                    executor.reply().error(&format!("ERR {error}"));
                    next = Next::Close;
                }
            }
            if executor.output.len() > BUFFER_BYTES_KEPT {
                executor.write(stream).await?;
            }
        }
        executor.flush().await;
        executor.local = None;
        input.drain(..at.min(input.len()));
        let ended = shared.env.clock.monotonic();
        executor.note_time(ended.saturating_duration_since(started));
        if has_logged_in_or_out {
            self.follow_login();
        }
        self.unfinished_since = match (self.input.is_empty(), at, self.unfinished_since) {
            (true, ..) => None,
            (false, 0, Some(since)) => Some(since),
            (false, ..) => Some(ended),
        };
        Ok(next)
    }

    /// How to wait for what comes next.
    fn reading(&self) -> Reading {
        let Executor {
            config,
            session,
            listening,
            ..
        } = &self.executor;
        let wait_max = if listening.is_active() {
            // Who waits for messages has nothing to say.
            Duration::ZERO
        } else if self.input.is_empty() {
            config.idle_max
        } else if let (Some(since), false) = (self.unfinished_since, session.is_logged_in()) {
            // However many bytes come meanwhile.
            let now = self.shared.env.clock.monotonic();
            let left = config
                .unfinished_max
                .saturating_sub(now.saturating_duration_since(since));
            // Zero is for ever.
            left.max(Duration::from_nanos(1))
        } else {
            config.unfinished_max
        };
        Reading {
            wait_max,
            queued_bytes: session.queued_bytes(),
            all_bytes_max: config.input_bytes_max,
        }
    }
}

/// What happens next on a connection.
enum Event {
    Input,
    Heard(Heard),
    End,
}

impl Executor<'_> {
    /// Takes over the database that the client has selected.
    fn select(&mut self) {
        let database = self.session.database();
        self.plan.select(database);
        if let Some(local) = &mut self.local {
            local.select(database);
        }
    }

    /// One command: carried out, queued for a transaction, or refused.
    async fn take(&mut self, command: Result<Command<'_>, CommandError>, request: &[u8]) -> Next {
        if self.session.replies() == Replies::On {
            return self.take_answered(command, request).await;
        }
        // What came before is answered; what is answered to this one is not sent.
        self.flush().await;
        let answered = self.output.len();
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
        let next = self.take_answered(command, request).await;
        self.flush().await;
        if !turns_on {
            self.output.truncate(answered);
        }
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
            Step::Transaction(queue) => self.run_transaction(&queue).await,
        }
    }

    async fn run(&mut self, command: Command<'_>, request: &[u8]) -> Next {
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
                // A script does not run here, where others wait.
                let is_script = matches!(command, DataCommand::Script(_));
                if self.plan.is_empty()
                    && !is_script
                    && let Some(local) = &self.local
                {
                    let mut reply = Encoder::new(&mut self.output, self.session.protocol());
                    let stats = &self.shared.stats;
                    let is_ok = run_local(local, (command, request), self.now, stats, &mut reply);
                    stats.count(kind, is_ok);
                    let levels = self.session.levels().shown();
                    self.tally.add(kind, Some(level_of(kind, levels)));
                } else {
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
                if let Some(is_ok) = self.run_elsewhere(command).await {
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
                    .perform(kind, command, shared, login, &mut self.output);
                self.select();
                next
            }
        }
    }

    /// Runs a script by its name: as if the client had sent it whole.
    async fn run_named(&mut self, kind: CommandKind, script: Script<'_>) -> Next {
        let Some(source) = self.shared.scripts.get(script.source) else {
            self.shared.stats.count(kind, false);
            self.plan.push_error(NO_SCRIPT.to_owned());
            return Next::Go;
        };
        let name: &[u8] = if script.is_read_only {
            b"EVAL_RO"
        } else {
            b"EVAL"
        };
        let keys = script.keys().count().to_string();
        let start = [name, &source, keys.as_bytes()];
        let words: Vec<&[u8]> = start.into_iter().chain(script.words()).collect();
        let request = whole_request(&words);
        let mut parser = Parser::new(Limits {
            value_bytes_max: request.len(),
            request_bytes_max: request.len(),
            args_max: request.len(),
        });
        if !matches!(parser.parse(&request), Ok(Parsed::Request { .. })) {
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
        let mut reply = Encoder::new(&mut self.output, self.session.protocol());
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

    /// Notes what a key holds, so that a transaction fails if that changes.
    async fn watch(&mut self, key: &[u8]) -> bool {
        let key = Bytes::copy_from_slice(&self.session.database().key(key));
        let look = Action::Update(Change::Look);
        let told = match ring_wide::ask(key.clone(), look, self.shared).await {
            Ok(update::Reply::Seen(_, version)) => match self.session.watch(key, version) {
                true => update::Reply::Ok,
                false => update::Reply::Error(WATCHED.to_owned()),
            },
            Ok(_) => update::Reply::Ok,
            Err(text) => update::Reply::Error(text),
        };
        replies::told(&told, &mut self.reply());
        !matches!(told, update::Reply::Error(_))
    }

    /// The commands of a `MULTI`, in one ordered batch.
    async fn run_transaction(&mut self, queue: &Queue) -> Next {
        self.flush().await;
        let mut atomic = match self.session.take_watched() {
            None => None,
            Some(watched) => match self.run_watched(watched, queue).await {
                Some(told) => Some(told),
                None => return Next::Go,
            },
        };
        self.reply().array(queue.commands);
        let mut parser = Parser::new(self.config.limits());
        let mut at = 0;
        let mut next = Next::Go;
        // Each was parsed when it was queued; the bytes are the same.
        while let Ok(Parsed::Request { consumed }) = parser.parse(&queue.requests[at..]) {
            let request = &queue.requests[at..at + consumed];
            at += consumed;
            let command = match Command::parse(parser.args(request)) {
                Ok(command) => command,
                Err(error) => {
                    self.plan.push_error(error.to_string());
                    continue;
                }
            };
            let told = atomic
                .as_mut()
                .filter(|(key, _)| self.is_of(&command, key))
                .and_then(|(_, told)| told.pop_front());
            match told {
                Some(told) => {
                    self.flush().await;
                    replies::told(&told, &mut self.reply());
                }
                None => next = next.max(self.run(command, request).await),
            }
        }
        self.flush().await;
        next
    }

    /// Carries out the commands of a transaction that are about the watched key, if that has not
    /// changed. What they told; `None`: it has, and the client knows.
    async fn run_watched(
        &mut self,
        (key, seen): Watched,
        queue: &Queue,
    ) -> Option<(Bytes, VecDeque<update::Reply>)> {
        let mut parser = Parser::new(self.config.limits());
        let (mut at, mut requests) = (0, Vec::new());
        while let Ok(Parsed::Request { consumed }) = parser.parse(&queue.requests[at..]) {
            let request = &queue.requests[at..at + consumed];
            at += consumed;
            let command = Command::parse(parser.args(request));
            if command.is_ok_and(|command| self.is_of(&command, &key)) {
                requests.push(Bytes::copy_from_slice(request));
            }
        }
        let transaction = Action::Update(Change::Transaction(seen, requests));
        match ring_wide::ask(key.clone(), transaction, self.shared).await {
            Ok(update::Reply::Array(told)) => return Some((key, told.into())),
            Ok(_) => self.reply().null_array(),
            Err(text) => self.reply().error(&text),
        }
        None
    }

    /// Whether a command is about this key and no other.
    fn is_of(&self, command: &Command<'_>, key: &[u8]) -> bool {
        let Command::Data(_, command) = command else {
            return false;
        };
        let database = self.session.database();
        let is_named = matches!(command, DataCommand::NamedScript(_));
        let mut keys = command.keys().peekable();
        keys.peek().is_some() && !is_named && keys.all(|own| *database.key(own) == *key)
    }

    /// Sends a message.
    fn tell(&mut self, heard: &Heard) {
        let mut reply = Encoder::new(&mut self.output, self.session.protocol());
        listening::encode(heard, &mut reply);
        // What has come meanwhile goes with it.
        while self.output.len() < BUFFER_BYTES_KEPT
            && let Some(heard) = self.listening.take()
        {
            let mut reply = Encoder::new(&mut self.output, self.session.protocol());
            listening::encode(&heard, &mut reply);
        }
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
        for word in parser.args(request).iter() {
            let word = &word[..word.len().min(SHOWN_BYTES_MAX)];
            // Writing to a String cannot fail.
            let _written = write!(line, " \"{}\"", word.escape_ascii());
        }
        self.shared.channels.show(&line);
    }

    /// Waits for as long as somebody has let all commands wait.
    async fn until_unpaused(&mut self) {
        while self.shared.paused_until.load(Ordering::Relaxed) > self.now.0 {
            tokio::time::sleep(PAUSE_LOOK).await;
            self.now = self.shared.env.clock.wall();
        }
    }

    fn too_big(&mut self, bytes: u64) {
        let limit = self.config.value_bytes_max;
        self.plan.push_error(format!(
            "TOOBIG the command has {bytes} bytes where at most {limit} (max_value_bytes) fit; \
             nothing was written"
        ));
        self.session.spoil_queue();
    }

    /// Carries out what is planned, so that all replies so far are in the output.
    async fn flush(&mut self) {
        if self.plan.is_empty() {
            return;
        }
        let now = self.shared.env.clock.wall();
        let mut reply = Encoder::new(&mut self.output, self.session.protocol());
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
        let sloppy_writes = self
            .plan
            .run(
                (&self.shared.coordinator, &levels),
                now,
                counters,
                &mut reply,
            )
            .await;
        self.session.note_sloppy_writes(sloppy_writes);
    }

    /// Takes over settings that have changed.
    fn follow_settings(&mut self) {
        // An atomic load, as long as nothing has changed.
        if self.reloaded.has_changed().unwrap_or(false) {
            self.config = Arc::clone(&self.reloaded.borrow_and_update());
            self.session.on_reload(&self.config, self.door);
        }
    }

    /// Answers what is asked about the keys of the ring; whether it was no error.
    async fn keys(&mut self, query: &KeysQuery<'_>) -> bool {
        let database = self.session.database();
        let shared = self.shared;
        let found = keys::answer(query, database, &shared.coordinator, &shared.env).await;
        let mut reply = Encoder::new(&mut self.output, self.session.protocol());
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
    fn note_time(&mut self, took: Duration) {
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

    fn reply(&mut self) -> Encoder<'_> {
        Encoder::new(&mut self.output, self.session.protocol())
    }

    async fn write(&mut self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        stream.write_all(&self.output).await?;
        stream.flush().await?;
        self.output.clear();
        if self.output.capacity() > 2 * BUFFER_BYTES_KEPT {
            self.output = Vec::new();
        }
        Ok(())
    }
}

const WATCHED: &str = "ERR WATCH of several keys is not for Quorate: keys live on different nodes, which decide \
     on one key at a time: watch one";
/// Of a word of a command, for those who monitor.
const SHOWN_BYTES_MAX: usize = 1_024;
const PAUSE_LOOK: Duration = Duration::from_millis(10);
const NO_SCRIPT: &str = "NOSCRIPT No matching script. Please use EVAL.";
