//! Channels: who of this node's clients listens to what.
//!
//! A message goes to those who listen when it is published, on every node that can be reached, and to
//! nobody else: nothing is kept.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::resp::matches;

/// Who listens.
#[derive(Debug, Default)]
pub struct Channels {
    listeners: Mutex<Listeners>,
    /// How many look at what clients send: one load tells whether anybody does.
    monitors: AtomicUsize,
}

#[derive(Debug, Default)]
struct Listeners {
    /// By channel, by client.
    channels: BTreeMap<Bytes, BTreeMap<u64, Mailbox>>,
    patterns: BTreeMap<Bytes, BTreeMap<u64, Mailbox>>,
    monitors: BTreeMap<u64, Mailbox>,
}

/// Where a client's messages are put. It is bounded: who does not keep up is let go.
pub(super) type Mailbox = mpsc::Sender<Heard>;

/// What a client hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    /// A message on a channel.
    Message(Bytes, Bytes),
    /// A message on a channel that matches a pattern.
    Matched(Bytes, Bytes, Bytes),
    /// What a client of this node has sent.
    Seen(String),
}

impl Channels {
    /// Gives a message to those who listen here. How many there are.
    pub fn publish(&self, channel: &Bytes, message: &Bytes) -> usize {
        let listeners = self.listeners();
        let mut heard = 0;
        if let Some(clients) = listeners.channels.get(channel) {
            let message = Heard::Message(channel.clone(), message.clone());
            heard += tell(clients, &message);
        }
        for (pattern, clients) in &listeners.patterns {
            if matches(pattern, channel) {
                let message = Heard::Matched(pattern.clone(), channel.clone(), message.clone());
                heard += tell(clients, &message);
            }
        }
        heard
    }

    /// Lets a client listen; how many channels and patterns it listens to then.
    pub(super) fn listen(
        &self,
        client: u64,
        (name, is_pattern): (&[u8], bool),
        mailbox: &Mailbox,
    ) -> usize {
        let mut listeners = self.listeners();
        let name = Bytes::copy_from_slice(name);
        let clients = listeners.of(is_pattern).entry(name).or_default();
        clients.insert(client, mailbox.clone());
        listeners.count(client)
    }

    /// Lets a client listen no longer; how many channels and patterns it still listens to.
    pub(super) fn leave(&self, client: u64, (name, is_pattern): (&[u8], bool)) -> usize {
        let mut listeners = self.listeners();
        let of = listeners.of(is_pattern);
        if let Some(clients) = of.get_mut(name) {
            clients.remove(&client);
            if clients.is_empty() {
                of.remove(name);
            }
        }
        listeners.count(client)
    }

    /// The channels, or the patterns, that a client listens to.
    pub(super) fn of_client(&self, client: u64, is_pattern: bool) -> Vec<Bytes> {
        let mut listeners = self.listeners();
        let of = listeners.of(is_pattern).iter();
        let of = of.filter(|(_, clients)| clients.contains_key(&client));
        of.map(|(name, _)| name.clone()).collect()
    }

    /// A client has gone.
    pub(super) fn forget(&self, client: u64) {
        let mut listeners = self.listeners();
        for is_pattern in [false, true] {
            listeners.of(is_pattern).retain(|_, clients| {
                clients.remove(&client);
                !clients.is_empty()
            });
        }
        listeners.monitors.remove(&client);
        let monitors = listeners.monitors.len();
        self.monitors.store(monitors, Ordering::Relaxed);
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
        let mut listeners = self.listeners();
        listeners.monitors.insert(client, mailbox.clone());
        let monitors = listeners.monitors.len();
        self.monitors.store(monitors, Ordering::Relaxed);
    }

    /// Whether anybody looks.
    pub(super) fn is_monitored(&self) -> bool {
        self.monitors.load(Ordering::Relaxed) > 0
    }

    /// Shows what a client has sent to those who look. What does not fit is left out.
    pub(super) fn show(&self, line: &str) {
        let seen = Heard::Seen(line.to_owned());
        tell(&self.listeners().monitors, &seen);
    }

    fn listeners(&self) -> MutexGuard<'_, Listeners> {
        // std Mutex: never held across an await.
        self.listeners
            .lock()
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

    fn count(&self, client: u64) -> usize {
        let all = self.channels.values().chain(self.patterns.values());
        all.filter(|clients| clients.contains_key(&client)).count()
    }
}

/// Puts a message into mailboxes; into how many.
fn tell(clients: &BTreeMap<u64, Mailbox>, message: &Heard) -> usize {
    let told = clients
        .values()
        .filter(|mailbox| mailbox.try_send(message.clone()).is_ok());
    told.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_reach_those_who_listen() {
        let channels = Channels::default();
        let (mailbox, mut heard) = mpsc::channel(2);
        assert_eq!(channels.listen(1, (b"news", false), &mailbox), 1);
        assert_eq!(channels.listen(1, (b"n*", true), &mailbox), 2);
        assert_eq!(channels.listen(1, (b"n*", true), &mailbox), 2);
        let (news, message) = (Bytes::from_static(b"news"), Bytes::from_static(b"m"));
        assert_eq!(channels.publish(&news, &message), 2);
        assert_eq!(channels.publish(&Bytes::from_static(b"old"), &message), 0);
        // There is no room for more.
        assert_eq!(channels.publish(&news, &message), 0);
        let plain = Heard::Message(news.clone(), message.clone());
        assert_eq!(heard.try_recv(), Ok(plain));
        let matched = Heard::Matched(Bytes::from_static(b"n*"), news.clone(), message.clone());
        assert_eq!(heard.try_recv(), Ok(matched));
        assert_eq!(channels.names(None), vec![news.clone()]);
        assert_eq!((channels.count(b"news"), channels.patterns()), (1, 1));
        assert_eq!(channels.leave(1, (b"n*", true)), 1);
        channels.forget(1);
        assert_eq!(channels.publish(&news, &message), 0);
        assert!(channels.of_client(1, false).is_empty());
    }
}
