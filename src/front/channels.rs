//! Channels: who of this node's clients listens to what.
//!
//! A message goes to those who listen when it is published, on every node that can be reached, and to
//! nobody else: nothing is kept. What waits for a client is bounded in bytes, for each and for all; who
//! does not read in time is closed, as Redis does it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::resp::matches;

/// Who listens.
#[derive(Debug, Default)]
pub struct Channels {
    /// Read to publish, written to subscribe; messages are handed over without it.
    listeners: RwLock<Listeners>,
    /// How many look at what clients send: one load tells whether anybody does.
    monitors: AtomicUsize,
    /// Bytes of all messages that wait for clients.
    waiting: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Listeners {
    /// By channel, by client.
    channels: BTreeMap<Bytes, BTreeMap<u64, Mailbox>>,
    patterns: BTreeMap<Bytes, BTreeMap<u64, Mailbox>>,
    monitors: BTreeMap<u64, Mailbox>,
    clients: BTreeMap<u64, Subscribed>,
    /// What all subscriptions take.
    bytes: usize,
}

/// What one client listens to.
#[derive(Debug, Default)]
struct Subscribed {
    channels: BTreeSet<Bytes>,
    patterns: BTreeSet<Bytes>,
    bytes: usize,
}

/// Why a client cannot listen to one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum SubscribeError {
    /// It is too long.
    #[error(
        "ERR a channel has at most {CHANNEL_BYTES_MAX} bytes and a pattern {PATTERN_BYTES_MAX}"
    )]
    TooLong,
    /// The client has too many.
    #[error("ERR a client listens to at most {SUBSCRIPTIONS_MAX} channels and patterns")]
    TooMany,
    /// All clients together have too many.
    #[error("ERR the clients of this node listen to too many channels")]
    NodeFull,
}

/// Where a client's messages are put.
#[derive(Debug, Clone)]
pub(super) struct Mailbox(Arc<Inbox>);

/// Where a client takes them from.
#[derive(Debug)]
pub(super) struct Mail {
    inbox: Arc<Inbox>,
    messages: mpsc::UnboundedReceiver<Heard>,
}

#[derive(Debug)]
struct Inbox {
    /// Bounded by `bytes`.
    sender: mpsc::UnboundedSender<Heard>,
    /// What waits in it.
    bytes: AtomicUsize,
    /// Since when that is more than the soft limit.
    over_soft: Mutex<Option<Instant>>,
    /// A message did not fit: no other one is put in.
    is_behind: AtomicBool,
    /// Closes the client.
    close: watch::Sender<bool>,
}

/// What a client hears.
#[derive(Debug, Clone)]
pub(super) enum Heard {
    /// A message on a channel.
    Message(Arc<Message>),
    /// A message on a channel that matches a pattern.
    Matched(Bytes, Arc<Message>),
    /// What a client of this node has sent.
    Seen(Arc<str>),
}

/// What was published. All who listen share it.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) channel: Bytes,
    pub(super) text: Bytes,
    waiting: Arc<AtomicUsize>,
}

impl Channels {
    /// Gives a message to those who listen here. How many there are.
    pub fn publish(&self, channel: &Bytes, text: &Bytes, now: Instant) -> usize {
        let to = self.listeners().of_message(channel);
        if to.is_empty() {
            return 0;
        }
        let message = Message::new(channel.clone(), text.clone(), &self.waiting);
        let is_tight = self.waiting.load(Ordering::Relaxed) > WAITING_BYTES_MAX;
        let sent = to.into_iter().filter(|(pattern, mailbox)| {
            let message = Arc::clone(&message);
            mailbox.send(
                match pattern {
                    None => Heard::Message(message),
                    Some(pattern) => Heard::Matched(pattern.clone(), message),
                },
                is_tight,
                Some(now),
            )
        });
        sent.count()
    }

    /// Lets a client listen; how many channels and patterns it listens to then.
    pub(super) fn listen(
        &self,
        client: u64,
        (name, is_pattern): (&[u8], bool),
        mailbox: &Mailbox,
    ) -> Result<usize, SubscribeError> {
        let bytes_max = match is_pattern {
            true => PATTERN_BYTES_MAX,
            false => CHANNEL_BYTES_MAX,
        };
        if name.len() > bytes_max {
            return Err(SubscribeError::TooLong);
        }
        let mut listeners = self.listeners_mut();
        let listeners = &mut *listeners;
        let subscribed = listeners.clients.entry(client).or_default();
        if subscribed.of(is_pattern).contains(name) {
            return Ok(subscribed.count());
        }
        let bytes = name.len() + SUBSCRIPTION_BYTES;
        if subscribed.count() >= SUBSCRIPTIONS_MAX
            || subscribed.bytes + bytes > CLIENT_SUBSCRIPTION_BYTES_MAX
        {
            return Err(SubscribeError::TooMany);
        }
        if listeners.bytes + bytes > SUBSCRIPTION_BYTES_MAX {
            return Err(SubscribeError::NodeFull);
        }
        let name = Bytes::copy_from_slice(name);
        subscribed.of(is_pattern).insert(name.clone());
        subscribed.bytes += bytes;
        listeners.bytes += bytes;
        let count = subscribed.count();
        let clients = listeners.of(is_pattern).entry(name).or_default();
        clients.insert(client, mailbox.clone());
        Ok(count)
    }

    /// Lets a client listen no longer; how many channels and patterns it still listens to.
    pub(super) fn leave(&self, client: u64, (name, is_pattern): (&[u8], bool)) -> usize {
        let mut listeners = self.listeners_mut();
        let listeners = &mut *listeners;
        let Some(subscribed) = listeners.clients.get_mut(&client) else {
            return 0;
        };
        if subscribed.of(is_pattern).remove(name) {
            let bytes = name.len() + SUBSCRIPTION_BYTES;
            subscribed.bytes -= bytes;
            listeners.bytes -= bytes;
            listeners.remove(client, name, is_pattern);
        }
        listeners.clients.get(&client).map_or(0, Subscribed::count)
    }

    /// The channels, or the patterns, that a client listens to.
    pub(super) fn of_client(&self, client: u64, is_pattern: bool) -> Vec<Bytes> {
        let listeners = self.listeners();
        let subscribed = listeners.clients.get(&client);
        let of = subscribed.map(|subscribed| match is_pattern {
            true => &subscribed.patterns,
            false => &subscribed.channels,
        });
        of.into_iter().flatten().cloned().collect()
    }

    /// A client has gone.
    pub(super) fn forget(&self, client: u64) {
        let mut listeners = self.listeners_mut();
        let Some(subscribed) = listeners.clients.remove(&client) else {
            let was_monitor = listeners.monitors.remove(&client).is_some();
            if was_monitor {
                self.count_monitors(&listeners);
            }
            return;
        };
        listeners.bytes -= subscribed.bytes;
        for (names, is_pattern) in [(subscribed.channels, false), (subscribed.patterns, true)] {
            for name in names {
                listeners.remove(client, &name, is_pattern);
            }
        }
        listeners.monitors.remove(&client);
        self.count_monitors(&listeners);
    }

    /// The channels that somebody listens to.
    pub(super) fn names(&self, pattern: Option<&[u8]>) -> Vec<Bytes> {
        let listeners = self.listeners();
        let names = listeners.channels.keys();
        let names = names.filter(|name| pattern.is_none_or(|pattern| matches(pattern, name)));
        names.cloned().collect()
    }

    /// How many listen to a channel.
    pub(super) fn count(&self, channel: &[u8]) -> usize {
        let listeners = self.listeners();
        listeners.channels.get(channel).map_or(0, BTreeMap::len)
    }

    /// How many patterns there are.
    pub(super) fn patterns(&self) -> usize {
        self.listeners().patterns.len()
    }

    /// Shows a client what others send from now on.
    pub(super) fn monitor(&self, client: u64, mailbox: &Mailbox) {
        let mut listeners = self.listeners_mut();
        listeners.monitors.insert(client, mailbox.clone());
        self.count_monitors(&listeners);
    }

    /// Whether anybody looks.
    pub(super) fn is_monitored(&self) -> bool {
        self.monitors.load(Ordering::Relaxed) > 0
    }

    /// Shows what a client has sent to those who look. What does not fit is left out.
    pub(super) fn show(&self, line: &str) {
        let line: Arc<str> = line.into();
        let monitors: Vec<Mailbox> = self.listeners().monitors.values().cloned().collect();
        for mailbox in monitors {
            mailbox.send(Heard::Seen(Arc::clone(&line)), false, None);
        }
    }

    fn count_monitors(&self, listeners: &Listeners) {
        self.monitors
            .store(listeners.monitors.len(), Ordering::Relaxed);
    }

    // std RwLock: never held across an await.
    fn listeners(&self) -> RwLockReadGuard<'_, Listeners> {
        self.listeners
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn listeners_mut(&self) -> RwLockWriteGuard<'_, Listeners> {
        self.listeners
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listeners {
    const fn of(&mut self, is_pattern: bool) -> &mut BTreeMap<Bytes, BTreeMap<u64, Mailbox>> {
        if is_pattern {
            &mut self.patterns
        } else {
            &mut self.channels
        }
    }

    /// Those who listen to a channel, with the patterns by which they do.
    fn of_message(&self, channel: &Bytes) -> Vec<(Option<Bytes>, Mailbox)> {
        let clients = self.channels.get(channel).into_iter();
        let named = clients.flat_map(|clients| clients.values().map(|to| (None, to.clone())));
        let patterns = self.patterns.iter();
        let patterns = patterns.filter(|(pattern, _)| matches(pattern, channel));
        let matched = patterns.flat_map(|(pattern, clients)| {
            clients
                .values()
                .map(|to| (Some(pattern.clone()), to.clone()))
        });
        named.chain(matched).collect()
    }

    fn remove(&mut self, client: u64, name: &[u8], is_pattern: bool) {
        let of = self.of(is_pattern);
        if let Some(clients) = of.get_mut(name) {
            clients.remove(&client);
            if clients.is_empty() {
                of.remove(name);
            }
        }
    }
}

impl Subscribed {
    const fn of(&mut self, is_pattern: bool) -> &mut BTreeSet<Bytes> {
        if is_pattern {
            &mut self.patterns
        } else {
            &mut self.channels
        }
    }

    fn count(&self) -> usize {
        self.channels.len() + self.patterns.len()
    }
}

impl Mailbox {
    /// A mailbox of a client that is closed when a message does not fit into it.
    pub(super) fn new(close: watch::Sender<bool>) -> (Self, Mail) {
        let (sender, messages) = mpsc::unbounded_channel();
        let inbox = Arc::new(Inbox {
            sender,
            bytes: AtomicUsize::new(0),
            over_soft: Mutex::default(),
            is_behind: AtomicBool::new(false),
            close,
        });
        let mailbox = Self(Arc::clone(&inbox));
        (mailbox, Mail { inbox, messages })
    }

    /// Puts a message in; whether there was room. `is_tight`: what waits for all clients is too much,
    /// and only those who have read everything get more. `now`: where the client is closed if that is
    /// more than the soft limit and has been for long; `None`: it never is.
    fn send(&self, heard: Heard, is_tight: bool, now: Option<Instant>) -> bool {
        let inbox = &*self.0;
        if inbox.is_behind.load(Ordering::Relaxed) {
            return false;
        }
        let bytes = heard.bytes();
        let before = inbox.bytes.fetch_add(bytes, Ordering::Relaxed);
        let is_late = now.is_some_and(|now| inbox.is_late(before + bytes, now));
        let fits = before == 0 || (!is_tight && !is_late && before + bytes <= MAILBOX_BYTES_MAX);
        if fits {
            return inbox.sender.send(heard).is_ok();
        }
        inbox.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if !matches!(heard, Heard::Seen(_)) {
            inbox.is_behind.store(true, Ordering::Relaxed);
            inbox.close.send_replace(true);
        }
        false
    }
}

impl Mail {
    /// The next message; `None`: there will be no more.
    pub(super) async fn next(&mut self) -> Option<Heard> {
        let heard = self.messages.recv().await?;
        Some(self.taken(heard))
    }

    /// A message that is there already.
    pub(super) fn take(&mut self) -> Option<Heard> {
        let heard = self.messages.try_recv().ok()?;
        Some(self.taken(heard))
    }

    /// Whether a message did not fit.
    pub(super) fn is_behind(&self) -> bool {
        self.inbox.is_behind.load(Ordering::Relaxed)
    }

    fn taken(&self, heard: Heard) -> Heard {
        let bytes = heard.bytes();
        let before = self.inbox.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if before > MAILBOX_SOFT_BYTES && before - bytes <= MAILBOX_SOFT_BYTES {
            *self.inbox.over_soft() = None;
        }
        heard
    }
}

impl Inbox {
    /// Whether so much has been waiting for too long.
    fn is_late(&self, bytes: usize, now: Instant) -> bool {
        if bytes <= MAILBOX_SOFT_BYTES {
            return false;
        }
        let since = *self.over_soft().get_or_insert(now);
        now.saturating_duration_since(since) > MAILBOX_SOFT_MAX
    }

    // std Mutex: never held across an await.
    fn over_soft(&self) -> MutexGuard<'_, Option<Instant>> {
        self.over_soft
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    /// What it takes where it waits.
    fn bytes(&self) -> usize {
        let bytes = match self {
            Self::Message(message) => message.bytes(),
            Self::Matched(pattern, message) => pattern.len() + message.bytes(),
            Self::Seen(line) => line.len(),
        };
        bytes + size_of::<Self>()
    }
}

impl Message {
    fn new(channel: Bytes, text: Bytes, waiting: &Arc<AtomicUsize>) -> Arc<Self> {
        let message = Self {
            channel,
            text,
            waiting: Arc::clone(waiting),
        };
        waiting.fetch_add(message.bytes(), Ordering::Relaxed);
        Arc::new(message)
    }

    fn bytes(&self) -> usize {
        self.channel.len() + self.text.len() + size_of::<Self>()
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.bytes(), Ordering::Relaxed);
    }
}

/// What may wait for one client, as Redis has it for its class `pubsub`.
pub(super) const MAILBOX_BYTES_MAX: usize = 32 * 1024 * 1024;
/// More than this waits for a client for [`MAILBOX_SOFT_MAX`] at most: the next message closes it. As in
/// Redis as well.
pub(super) const MAILBOX_SOFT_BYTES: usize = 8 * 1024 * 1024;
pub(super) const MAILBOX_SOFT_MAX: Duration = Duration::from_secs(60);
/// Messages that wait for clients, each counted once however many it waits for. Beyond, only those get
/// one who have read all before it.
pub const WAITING_BYTES_MAX: usize = 128 * 1024 * 1024;
/// What all subscriptions of a node may take.
pub const SUBSCRIPTION_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Of one client: ten thousand names of ordinary length.
const CLIENT_SUBSCRIPTION_BYTES_MAX: usize = 4 * 1024 * 1024;
pub(super) const SUBSCRIPTIONS_MAX: usize = 10_000;
/// What the maps take for each.
const SUBSCRIPTION_BYTES: usize = 256;
const CHANNEL_BYTES_MAX: usize = 64 * 1024;
/// To match one takes as long as it is, for each byte of a channel.
const PATTERN_BYTES_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{Clock, SystemClock};

    fn start() -> Instant {
        SystemClock.monotonic()
    }

    fn mailbox() -> (Mailbox, Mail, watch::Receiver<bool>) {
        let close = watch::Sender::new(false);
        let closed = close.subscribe();
        let (mailbox, mail) = Mailbox::new(close);
        (mailbox, mail, closed)
    }

    #[test]
    fn messages_reach_those_who_listen() {
        let channels = Channels::default();
        let (mailbox, mut mail, _closed) = mailbox();
        assert_eq!(channels.listen(1, (b"news", false), &mailbox), Ok(1));
        assert_eq!(channels.listen(1, (b"n*", true), &mailbox), Ok(2));
        assert_eq!(channels.listen(1, (b"n*", true), &mailbox), Ok(2));
        let (news, text) = (Bytes::from_static(b"news"), Bytes::from_static(b"m"));
        assert_eq!(channels.publish(&news, &text, start()), 2);
        assert_eq!(
            channels.publish(&Bytes::from_static(b"old"), &text, start()),
            0
        );
        assert!(matches!(mail.take(), Some(Heard::Message(m)) if m.text == text));
        assert!(
            matches!(mail.take(), Some(Heard::Matched(p, m)) if p == "n*" && m.channel == news)
        );
        assert!(mail.take().is_none());
        assert_eq!(channels.waiting.load(Ordering::Relaxed), 0);
        assert_eq!(channels.names(None), vec![news]);
        assert_eq!((channels.count(b"news"), channels.patterns()), (1, 1));
        assert_eq!(channels.leave(1, (b"n*", true)), 1);
        assert_eq!(channels.leave(1, (b"n*", true)), 1);
    }

    #[test]
    fn nothing_is_left_of_a_client_that_has_gone() {
        let channels = Channels::default();
        let (mailbox, _mail, _closed) = mailbox();
        for (name, is_pattern) in [(b"news", false), (b"new*", true)] {
            channels.listen(1, (name, is_pattern), &mailbox).unwrap();
        }
        channels.forget(1);
        let news = Bytes::from_static(b"news");
        assert_eq!(channels.publish(&news, &news, start()), 0);
        assert!(channels.of_client(1, false).is_empty());
        let listeners = channels.listeners();
        assert!(listeners.clients.is_empty() && listeners.channels.is_empty());
        assert!(listeners.patterns.is_empty() && listeners.bytes == 0);
    }

    #[test]
    fn who_does_not_read_is_closed_by_the_first_message_that_does_not_fit() {
        let channels = Channels::default();
        let (mailbox, mut mail, closed) = mailbox();
        channels.listen(1, (b"news", false), &mailbox).unwrap();
        let (news, text) = (Bytes::from_static(b"news"), Bytes::from(vec![7; 1 << 20]));
        let fit = (0..100).take_while(|_| channels.publish(&news, &text, start()) == 1);
        assert_eq!(fit.count(), 31);
        assert!(*closed.borrow() && mail.is_behind());
        // Nothing goes missing in between: there is no later one.
        assert!(mail.take().is_some());
        assert_eq!(channels.publish(&news, &text, start()), 0);
        assert_eq!(channels.waiting.load(Ordering::Relaxed) >> 20, 30);
        drop((mail, mailbox));
        channels.forget(1);
        assert_eq!(channels.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn who_is_behind_by_the_soft_limit_is_closed_after_a_minute_and_not_before() {
        let channels = Channels::default();
        let (mailbox, mut mail, closed) = mailbox();
        channels.listen(1, (b"news", false), &mailbox).unwrap();
        let (news, text) = (Bytes::from_static(b"news"), Bytes::from(vec![7; 1 << 20]));
        let began = start();
        let publish =
            |seconds| channels.publish(&news, &text, began + Duration::from_secs(seconds));
        for _ in 0..9 {
            assert_eq!(publish(0), 1);
        }
        // It reads, though slowly, but was never less behind: at 60 s it is still let be.
        assert!(mail.take().is_some());
        assert_eq!((publish(60), *closed.borrow()), (1, false));
        // It was less behind for a moment: the minute begins again.
        for _ in 0..3 {
            assert!(mail.take().is_some());
        }
        for second in 61..=63 {
            assert_eq!(publish(second), 1);
        }
        assert_eq!((publish(121), *closed.borrow()), (1, false));
        assert_eq!((publish(125), *closed.borrow()), (0, true));
        assert!(mail.is_behind());
    }

    #[test]
    fn what_waits_for_all_is_bounded_and_those_who_read_get_theirs() {
        let channels = Channels::default();
        let text = Bytes::from(vec![7; 8 << 20]);
        let mut slow = Vec::new();
        for client in 0..100u64 {
            let name = format!("c{client}").into_bytes();
            let (mailbox, mail, closed) = mailbox();
            channels.listen(client, (&name, false), &mailbox).unwrap();
            channels.publish(&Bytes::from(name.clone()), &text, start());
            channels.publish(&Bytes::from(name), &text, start());
            slow.push((mail, closed));
        }
        let waiting = channels.waiting.load(Ordering::Relaxed);
        // One message each, and those that came before it was tight.
        assert!(waiting < WAITING_BYTES_MAX + 100 * (9 << 20), "{waiting}");
        assert!(slow.iter().any(|(_, closed)| *closed.borrow()));
        let (mailbox, mut mail, closed) = mailbox();
        channels.listen(100, (b"fast", false), &mailbox).unwrap();
        for _ in 0..10 {
            assert_eq!(
                channels.publish(&Bytes::from_static(b"fast"), &text, start()),
                1
            );
            assert!(mail.take().is_some());
        }
        assert!(!*closed.borrow());
    }

    #[test]
    fn subscriptions_of_a_client_are_bounded_in_number_and_bytes() {
        let channels = Channels::default();
        let (mailbox, _mail, _closed) = mailbox();
        for number in 1..=SUBSCRIPTIONS_MAX {
            let name = number.to_string();
            let listened = channels.listen(1, (name.as_bytes(), number % 2 == 0), &mailbox);
            assert_eq!(listened, Ok(number));
        }
        let one_more = channels.listen(1, (b"one more", false), &mailbox);
        assert_eq!(one_more, Err(SubscribeError::TooMany));
        // Those it has are no more.
        assert_eq!(
            channels.listen(1, (b"1", false), &mailbox),
            Ok(SUBSCRIPTIONS_MAX)
        );
        let long = vec![b'*'; PATTERN_BYTES_MAX + 1];
        let listened = channels.listen(2, (&long, true), &mailbox);
        assert_eq!(listened, Err(SubscribeError::TooLong));
        let long = |n: usize| [n.to_string().into_bytes(), vec![b'c'; 60_000]].concat();
        let taken = (0..).take_while(|n| channels.listen(2, (&long(*n), false), &mailbox).is_ok());
        assert_eq!(
            taken.count(),
            CLIENT_SUBSCRIPTION_BYTES_MAX / (60_000 + SUBSCRIPTION_BYTES + 2)
        );
    }
}
