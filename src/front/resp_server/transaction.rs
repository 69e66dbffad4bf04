//! Transactions: the commands between `MULTI` and `EXEC`, and the key that `WATCH` names.

use std::collections::VecDeque;

use bytes::Bytes;

use super::executor::{Executor, NO_SCRIPT};
use super::replies;
use super::ring_wide;
use super::session::{Next, Queue, Watched};
use crate::model::Database;
use crate::node::coordinator::Action;
use crate::resp::{Command, ConnectionCommand, DataCommand, Parsed, Parser};
use crate::update::{self, Change};

impl Executor<'_> {
    /// Notes what a key holds, so that a transaction fails if that changes.
    pub(super) async fn watch(&mut self, key: &[u8]) -> bool {
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

    /// Carries out the commands of a `MULTI`, each after the one before it has its reply.
    ///
    /// Which of them are about the watched key is decided once, for the update that carries them
    /// out and for the replies: a command is in that update or is run by itself, never both.
    pub(super) async fn run_transaction(&mut self, queue: &Queue) -> Next {
        self.flush().await;
        let watched = self.session.take_watched();
        let queued = self.queued(queue, watched.as_ref().map(|(key, _)| key));
        let mut atomic = VecDeque::new();
        if let Some(watched) = watched {
            match self.run_watched(watched, &queued).await {
                Some(told) => atomic = told,
                None => return Next::Go,
            }
        }
        self.reply().array(queued.len());
        self.is_ordered = true;
        let mut parser = Parser::new(self.config.limits());
        let mut next = Next::Go;
        for Queued { request, part } in queued {
            // Each was parsed when it was queued; the bytes are the same.
            let Ok(Parsed::Request { .. }) = parser.parse(request) else {
                self.plan.push_error(LOST.to_owned());
                continue;
            };
            match (Command::parse(parser.args(request)), part) {
                (Err(error), _) => self.plan.push_error(error.to_string()),
                (Ok(command), Part::Alone) => next = next.max(self.run(command, request).await),
                (Ok(_), Part::Nameless) => self.plan.push_error(NO_SCRIPT.to_owned()),
                (Ok(command), Part::Watched) => {
                    self.flush().await;
                    let told = atomic.pop_front();
                    // One reply for each, as `run_watched` has made sure.
                    let told = told.unwrap_or_else(|| update::Reply::Error(LOST.to_owned()));
                    let is_ok = !matches!(told, update::Reply::Error(_));
                    self.shared.stats.count(command.kind(), is_ok);
                    replies::told(&told, &mut self.reply());
                }
            }
            self.output.relieve().await;
        }
        self.flush().await;
        self.is_ordered = false;
        next
    }

    /// The commands that were queued, and what each has to do with the watched key, in the
    /// database that is selected by then.
    fn queued<'q>(&self, queue: &'q Queue, watched: Option<&Bytes>) -> Vec<Queued<'q>> {
        let mut parser = Parser::new(self.config.limits());
        let mut database = self.session.database();
        let (mut at, mut queued) = (0, Vec::with_capacity(queue.commands));
        while let Ok(Parsed::Request { consumed }) = parser.parse(&queue.requests[at..]) {
            let request = &queue.requests[at..at + consumed];
            at += consumed;
            let part = match Command::parse(parser.args(request)) {
                Ok(Command::Connection(_, ConnectionCommand::Select(number))) => {
                    // An index out of range is an error and selects nothing.
                    database = Database::try_from(number).unwrap_or(database);
                    Part::Alone
                }
                Ok(Command::Data(_, command)) => match watched {
                    Some(key) if is_of(&command, database, key) => match command {
                        DataCommand::NamedScript(_) => Part::Nameless,
                        _ => Part::Watched,
                    },
                    _ => Part::Alone,
                },
                _ => Part::Alone,
            };
            queued.push(Queued { request, part });
        }
        queued
    }

    /// Carries out the commands of a transaction that are about the watched key, if that has not
    /// changed. Their replies; `None`: it has, and the client knows.
    async fn run_watched(
        &mut self,
        (key, seen): Watched,
        queued: &[Queued<'_>],
    ) -> Option<VecDeque<update::Reply>> {
        let requests = queued.iter().filter(|queued| queued.part == Part::Watched);
        let requests: Vec<_> = requests
            .map(|queued| Bytes::copy_from_slice(queued.request))
            .collect();
        let count = requests.len();
        let transaction = Action::Update(Change::Transaction(seen, requests));
        match ring_wide::ask(key, transaction, self.shared).await {
            Ok(update::Reply::Array(told)) if told.len() == count => return Some(told.into()),
            Ok(update::Reply::Array(_)) => self.reply().error(LOST),
            Ok(_) => self.reply().null_array(),
            Err(text) => self.reply().error(&text),
        }
        None
    }
}

/// A command of a transaction.
struct Queued<'q> {
    request: &'q [u8],
    part: Part,
}

/// What a command of a transaction has to do with the watched key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Nothing, or not with it alone: it is carried out in its turn.
    Alone,
    /// It is one of those that are one update, made if the key is as it was.
    Watched,
    /// It would be, but names a script that was not known when it was queued. Run by itself it would
    /// not be protected.
    Nameless,
}

/// Whether a command is about this key and no other.
fn is_of(command: &DataCommand<'_>, database: Database, key: &[u8]) -> bool {
    let mut keys = command.keys().peekable();
    keys.peek().is_some() && keys.all(|own| *database.key(own) == *key)
}

const LOST: &str = "UNCERTAIN the transaction was applied, what it replied is lost";
const WATCHED: &str = "ERR WATCH of several keys is not for Quorate: keys live on different nodes, which decide \
     on one key at a time: watch one";
