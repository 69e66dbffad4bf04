//! One connection: bytes in, commands carried out, replies out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tracing::debug;

use super::Shared;
use super::clients::Client;
use super::plan::{Plan, run_local};
use super::session::{Next, Queue, Session, Step};
use crate::model::Levels;
use crate::model::Millis;
use crate::node::coordinator::Local;
use crate::resp::{Command, CommandError, Encoder, Parsed, Parser};

/// A connection's state between two reads.
pub(super) struct Connection<'a> {
    shared: &'a Shared,
    parser: Parser,
    input: Vec<u8>,
    executor: Executor<'a>,
}

/// What carries commands out, and the replies it has so far.
struct Executor<'a> {
    shared: &'a Shared,
    session: Session,
    plan: Plan,
    output: Vec<u8>,
    /// The wall clock when the present input came.
    now: Millis,
    /// The short cut, for as long as the present input is worked on.
    local: Option<Local<'a>>,
}

impl<'a> Connection<'a> {
    pub(super) fn new(shared: &'a Shared, client: Arc<Client>, door: Levels) -> Self {
        let session = Session::new(client, shared.config.password.is_none(), door);
        Self {
            shared,
            parser: Parser::new(shared.config.limits()),
            input: Vec::new(),
            executor: Executor {
                shared,
                session,
                plan: Plan::default(),
                output: Vec::new(),
                now: shared.env.clock.wall(),
                local: None,
            },
        }
    }

    /// Serves the connection until either side has enough of it.
    pub(super) async fn run(mut self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        if let Err(error) = self.serve(&mut stream).await {
            debug!(%error, "connection lost");
            return;
        }
        // What was sent is on its way; an error here changes nothing for anyone.
        drop(stream.shutdown().await);
    }

    async fn serve(
        &mut self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> io::Result<()> {
        let mut next = Next::Go;
        while next == Next::Go && self.read(stream).await? {
            next = self.process(stream).await?;
            if self.shared.stats.connections_open.load(Ordering::Relaxed) > 1 {
                // Let the others that have something to do come first: replies then leave
                // together, and a client of many connections is woken once and not for each.
                tokio::task::yield_now().await;
            }
            self.executor.write(stream).await?;
        }
        Ok(())
    }

    /// Reads what has come; `false` at the end.
    async fn read(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> io::Result<bool> {
        if self.input.is_empty() && self.input.capacity() > 2 * BUFFER_BYTES_KEPT {
            // One large value must not hold its memory until the connection ends.
            self.input = Vec::new();
        }
        // As much again as there was: a large value arrives in a few large reads, and an idle
        // connection costs little.
        let room = self
            .input
            .capacity()
            .clamp(READ_BYTES_MIN, BUFFER_BYTES_KEPT);
        self.input.reserve(room);
        let config = &self.shared.config;
        let wait_max = if self.input.is_empty() {
            config.idle_max
        } else {
            config.unfinished_max
        };
        if wait_max.is_zero() {
            return Ok(stream.read_buf(&mut self.input).await? > 0);
        }
        match timeout(wait_max, stream.read_buf(&mut self.input)).await {
            Ok(read) => Ok(read? > 0),
            Err(_) => {
                debug!("closed a connection that was silent for too long");
                Ok(false)
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
        } = self;
        let started = shared.env.clock.monotonic();
        // Once for all that came together: each look at the clock or the ring costs as much as a
        // command.
        executor.now = shared.env.clock.wall();
        executor.local = shared.coordinator.local();
        let (mut commands, mut at, mut next) = (0, 0, Next::Go);
        while next == Next::Go {
            match parser.parse(&input[at..]) {
                Ok(Parsed::Request { consumed }) => {
                    let request = &input[at..at + consumed];
                    at += consumed;
                    let args = parser.args(request);
                    if !args.is_empty() {
                        commands += 1;
                        next = executor.take(Command::parse(args), request).await;
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
        if commands > 0 {
            let took = shared
                .env
                .clock
                .monotonic()
                .saturating_duration_since(started);
            shared.stats.seconds.record(took, commands);
        }
        Ok(next)
    }
}

impl Executor<'_> {
    /// One command: carried out, queued for a transaction, or refused.
    async fn take(&mut self, command: Result<Command<'_>, CommandError>, request: &[u8]) -> Next {
        if command.is_err() {
            self.shared.stats.refused.fetch_add(1, Ordering::Relaxed);
        }
        let limit = self.shared.config.limits().request_bytes_max;
        match self.session.take(command, request, limit) {
            Step::Run(command) => self.run(command).await,
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

    async fn run(&mut self, command: Command<'_>) -> Next {
        let kind = command.kind();
        match command {
            Command::Data(_, command) => {
                if self.plan.is_empty()
                    && let Some(local) = &self.local
                {
                    let mut reply = Encoder::new(&mut self.output, self.session.protocol());
                    let stats = &self.shared.stats;
                    let is_ok = run_local(local, command, self.now, stats, &mut reply);
                    stats.count(kind, is_ok);
                } else {
                    self.plan.push(kind, command, self.now);
                    if self.plan.is_full() {
                        self.flush().await;
                    }
                }
                Next::Go
            }
            Command::Connection(_, command) => {
                // In the order of the commands: what came before is answered before.
                self.flush().await;
                self.shared.stats.count(kind, true);
                self.session
                    .perform(kind, command, self.shared, &mut self.output)
            }
        }
    }

    /// The commands of a `MULTI`, in one ordered batch.
    async fn run_transaction(&mut self, queue: &Queue) -> Next {
        self.flush().await;
        self.reply().array(queue.commands);
        let mut parser = Parser::new(self.shared.config.limits());
        let mut at = 0;
        let mut next = Next::Go;
        // Each was parsed when it was queued; the bytes are the same.
        while let Ok(Parsed::Request { consumed }) = parser.parse(&queue.requests[at..]) {
            let request = &queue.requests[at..at + consumed];
            at += consumed;
            match Command::parse(parser.args(request)) {
                Ok(command) => next = next.max(self.run(command).await),
                Err(error) => self.plan.push_error(error.to_string()),
            }
        }
        self.flush().await;
        next
    }

    fn too_big(&mut self, bytes: u64) {
        let limit = self.shared.config.value_bytes_max;
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
        let rules = &self.shared.config.levels;
        let levels = |key: &[u8]| {
            let levels = self.session.levels().of(key, rules);
            (levels, rules.is_sloppy(key))
        };
        let sloppy_writes = self
            .plan
            .run(
                (&self.shared.coordinator, &levels),
                now,
                &self.shared.stats,
                &mut reply,
            )
            .await;
        self.session.note_sloppy_writes(sloppy_writes);
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

/// A pipeline of small commands, and all that an idle connection needs.
const READ_BYTES_MIN: usize = 2 * 1024;
/// What a busy connection reads or writes at once and keeps for the next time.
const BUFFER_BYTES_KEPT: usize = 64 * 1024;
