//! One connection: bytes in, commands carried out, replies out.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::Shared;
use super::clients::Client;
use super::executor::Executor;
use super::inputs::{EXPLAIN_MAX, HeldInput, OVER_INPUT};
use super::levels::Door;
use super::output::{Closed, Socket};
use super::reading::{HasRead, Reading, read};
use super::session::Next;
use crate::front::channels::Heard;
use crate::front::places::{Place, Source};
use crate::net::LARGE_BYTES;
use crate::resp::{Command, Parsed, Parser};

/// A connection's state between two reads.
pub(super) struct Connection<'a> {
    shared: &'a Shared,
    parser: Parser,
    input: Vec<u8>,
    held: HeldInput<'a>,
    /// Since when a request of a client that has not logged in is unfinished.
    unfinished_since: Option<Instant>,
    /// Of a client that has not logged in.
    place: Option<Place>,
    executor: Executor<'a>,
}

impl<'a> Connection<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        client: Arc<Client>,
        door: (Door, Option<IpAddr>),
        stream: Box<dyn Socket>,
    ) -> Self {
        let held = HeldInput::new(&shared.inputs, &shared.clients, Arc::clone(&client));
        let executor = Executor::new(shared, client, door, stream);
        let mut connection = Self {
            shared,
            parser: Parser::new(executor.config.limits()),
            input: Vec::new(),
            held,
            unfinished_since: None,
            place: None,
            executor,
        };
        connection.follow_login();
        connection
    }

    /// A client that has not logged in takes one of few places, and sends no more than a login takes.
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
    pub(super) async fn run(&mut self) {
        let is_client_gone = !Box::pin(self.serve()).await;
        let output = &mut self.executor.output;
        match output.closed() {
            // There is nobody to take leave of.
            None if is_client_gone => {}
            None => {
                // What was sent is on its way; an error here changes nothing for anyone. TLS takes
                // leave with a message, which the client may not read.
                drop(timeout(SHUTDOWN_MAX, output.stream.shutdown()).await);
            }
            Some(closed) => self.note_closed(closed),
        }
    }

    fn note_closed(&self, closed: Closed) {
        let stats = &self.shared.stats;
        let client = self.executor.session.client().address();
        match closed {
            Closed::Lost | Closed::Killed | Closed::Draining => {
                debug!(client, ?closed, "closed a connection with replies unread");
            }
            Closed::Unread => {
                stats.unread_closed.fetch_add(1, Ordering::Relaxed);
                debug!(client, "closed a connection that does not read its replies");
            }
            Closed::CutShort => {
                stats.replies_cut.fetch_add(1, Ordering::Relaxed);
                warn!(
                    client,
                    "closed a connection in the middle of a reply: the rest could not be read"
                );
            }
        }
    }

    /// Serves; whether it was this side that had enough.
    async fn serve(&mut self) -> bool {
        let mut killed = self.executor.session.client().killed();
        let mut draining = self.shared.draining.subscribe();
        let mut rounds_left = DRAIN_ROUNDS;
        loop {
            let reading = self.reading();
            let Self {
                input,
                held,
                executor,
                ..
            } = self;
            let Executor {
                output, listening, ..
            } = executor;
            let event = tokio::select! {
                // Whatever a client sends, it can be closed. What has come is carried out before
                // the door closes, and messages do not keep it open.
                biased;
                _ = killed.wait_for(|is_killed| *is_killed) => Event::Killed,
                has_read = read(input, held, reading, &mut output.stream) => match has_read {
                    Ok(HasRead::Some) => Event::Input,
                    Ok(HasRead::TooLate) => return true,
                    Ok(HasRead::TooMuch) => Event::Killed,
                    Ok(HasRead::End) | Err(_) => return false,
                },
                _ = draining.wait_for(|is_draining| *is_draining) => return true,
                heard = listening.next() => Event::Heard(heard),
            };
            match event {
                Event::Killed => {
                    self.explain().await;
                    return true;
                }
                Event::Heard(heard) => executor.tell(&heard).await,
                Event::Input => {
                    executor.follow_settings();
                    let next = self.process().await;
                    if self.shared.stats.connections_open.load(Ordering::Relaxed) > 1 {
                        // Let the others that have something to do come first: replies then leave
                        // together, and a client of many connections is woken once and not for each.
                        tokio::task::yield_now().await;
                    }
                    self.executor.output.send().await;
                    // Commands do not hold messages back.
                    self.executor.tell_waiting().await;
                    rounds_left -= usize::from(*draining.borrow());
                    if next == Next::Close || rounds_left == 0 {
                        return true;
                    }
                }
            }
            if self.executor.output.closed().is_some() {
                return true;
            }
            if self.executor.listening.is_behind() {
                debug!("closed a connection that does not read its messages");
                return true;
            }
        }
    }

    /// Says why a client is closed that holds too much.
    async fn explain(&mut self) {
        let Executor {
            session, output, ..
        } = &mut self.executor;
        if session.client().is_over_input() {
            drop(timeout(EXPLAIN_MAX, output.stream.write_all(OVER_INPUT)).await);
        }
    }

    /// Carries out all whole commands of the input.
    #[expect(clippy::too_many_lines, reason = "one loop over what the parser finds")]
    async fn process(&mut self) -> Next {
        let Self {
            shared,
            parser,
            input,
            executor,
            ..
        } = self;
        let started = shared.env.clock.monotonic();
        executor.begin();
        let (mut at, mut next) = (0, Next::Go);
        let (mut has_logged_in_or_out, mut has_taken_large) = (false, false);
        while next == Next::Go && executor.output.closed().is_none() {
            match parser.parse(&input[at..]) {
                Ok(Parsed::Request { consumed }) => {
                    let large;
                    let request = if consumed >= LARGE_BYTES {
                        large = take_whole(input, at..at + consumed, executor);
                        (at, has_taken_large) = (0, true);
                        &large[..]
                    } else {
                        at += consumed;
                        &input[at - consumed..at]
                    };
                    let args = parser.args(request);
                    if !args.is_empty() {
                        let command = Command::parse(args);
                        if let Ok(command) = &command
                            && shared.pause.is_set()
                        {
                            // Rare, and large.
                            Box::pin(executor.until_unpaused(command)).await;
                        }
                        next = executor.take(command, request).await;
                    }
                    executor.plan.lend(Bytes::new());
                    let is_logged_in = executor.session.is_logged_in();
                    has_logged_in_or_out |= parser.is_authenticated() != is_logged_in;
                    parser.set_authenticated(is_logged_in);
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
                    executor.on_protocol_error(&error).await;
                    next = Next::Close;
                }
            }
            executor.output.relieve().await;
            if executor.output.has_waited() {
                // What is to be carried out now is not of the moment when it came.
                executor.begin();
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
            (false, 0, Some(since)) if !has_taken_large => Some(since),
            (false, ..) => Some(ended),
        };
        next
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
            // A client that waits for messages has nothing to say.
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
            missing_bytes: self.parser.missing(self.input.len()),
        }
    }
}

/// Takes a large request as it is, without a copy, and what is before it. Little has come behind it: see
/// [`read`].
fn take_whole(input: &mut Vec<u8>, request: Range<usize>, executor: &mut Executor<'_>) -> Bytes {
    let behind = input.split_off(request.end);
    let whole = std::mem::replace(input, behind);
    let tasks = &executor.shared.env.tasks;
    let large = tasks.free_aside(whole).slice(request.start..);
    executor.plan.lend(large.clone());
    large
}

/// What happens next on a connection.
enum Event {
    Input,
    Heard(Heard),
    Killed,
}

/// What a client has sent before it could know that the door is being closed, in reads of 64 KiB.
const DRAIN_ROUNDS: usize = 8;
const SHUTDOWN_MAX: Duration = Duration::from_secs(1);
