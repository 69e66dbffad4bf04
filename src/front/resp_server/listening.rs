//! Connections that hear messages: subscriptions and `MONITOR`.

use tokio::sync::mpsc;

use crate::front::channels::{Channels, Heard, Mailbox};
use crate::resp::{Args, Command, ConnectionCommand, Encoder, Keys, Protocol};

/// What one connection listens to.
#[derive(Debug, Default)]
pub(super) struct Listening {
    mailbox: Option<(Mailbox, mpsc::Receiver<Heard>)>,
    /// How many channels and patterns.
    count: usize,
    monitors: bool,
}

impl Listening {
    /// The next message. Never, for those who do not listen.
    pub(super) async fn next(&mut self) -> Heard {
        match &mut self.mailbox {
            // It holds a sender of its own: there is no end.
            Some((_, heard)) => match heard.recv().await {
                Some(heard) => heard,
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    /// A message that is there already.
    pub(super) fn take(&mut self) -> Option<Heard> {
        let (_, heard) = self.mailbox.as_mut()?;
        heard.try_recv().ok()
    }

    /// Whether it listens to anything.
    pub(super) const fn is_active(&self) -> bool {
        self.mailbox.is_some()
    }

    /// Whether messages were left out because they were not read fast enough.
    pub(super) fn is_behind(&self) -> bool {
        let mailbox = self.mailbox.as_ref();
        !self.monitors && mailbox.is_some_and(|(mailbox, _)| mailbox.capacity() == 0)
    }

    /// Why a command cannot be carried out: RESP2 cannot tell replies from messages.
    pub(super) fn refuses(&self, command: &Command<'_>, protocol: Protocol) -> Option<String> {
        use ConnectionCommand as C;
        let is_allowed = matches!(
            command,
            Command::Connection(
                _,
                C::Subscribe(..) | C::Unsubscribe(..) | C::Ping(_) | C::Quit | C::Reset
            )
        );
        let is_refused = self.count > 0 && protocol == Protocol::Resp2 && !is_allowed;
        is_refused.then(|| {
            let name = command.kind().name();
            format!(
                "ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / \
                 RESET are allowed in this context"
            )
        })
    }

    /// Whether it listens and speaks RESP2: then replies are messages.
    pub(super) const fn is_silent(&self, protocol: Protocol) -> bool {
        self.count > 0 && matches!(protocol, Protocol::Resp2)
    }

    pub(super) fn subscribe(
        &mut self,
        client: u64,
        (names, is_pattern): (Keys<'_>, bool),
        channels: &Channels,
        reply: &mut Encoder<'_>,
    ) {
        let mailbox = self.mailbox();
        for name in names.iter() {
            self.count = channels.listen(client, (name, is_pattern), &mailbox);
            let word: &[u8] = if is_pattern {
                b"psubscribe"
            } else {
                b"subscribe"
            };
            answer(word, Some(name), self.count, reply);
        }
    }

    pub(super) fn unsubscribe(
        &mut self,
        client: u64,
        (names, is_pattern): (Args<'_>, bool),
        channels: &Channels,
        reply: &mut Encoder<'_>,
    ) {
        let word: &[u8] = if is_pattern {
            b"punsubscribe"
        } else {
            b"unsubscribe"
        };
        let all = match names.is_empty() {
            true => channels.of_client(client, is_pattern),
            false => names.iter().map(bytes::Bytes::copy_from_slice).collect(),
        };
        if all.is_empty() {
            answer(word, None, self.count, reply);
        }
        for name in all {
            self.count = channels.leave(client, (&name, is_pattern));
            answer(word, Some(&name), self.count, reply);
        }
    }

    pub(super) fn monitor(&mut self, client: u64, channels: &Channels) {
        let mailbox = self.mailbox();
        channels.monitor(client, &mailbox);
        self.monitors = true;
    }

    /// Listens to nothing any more.
    pub(super) fn reset(&mut self, client: u64, channels: &Channels) {
        if self.mailbox.is_some() {
            channels.forget(client);
            *self = Self::default();
        }
    }

    fn mailbox(&mut self) -> Mailbox {
        let new = || mpsc::channel(MAILBOX_MAX);
        self.mailbox.get_or_insert_with(new).0.clone()
    }
}

/// Encodes what was heard.
pub(super) fn encode(heard: &Heard, reply: &mut Encoder<'_>) {
    match heard {
        Heard::Message(channel, message) => {
            reply.push(3);
            reply.bulk(b"message");
            reply.bulk(channel);
            reply.bulk(message);
        }
        Heard::Matched(pattern, channel, message) => {
            reply.push(4);
            reply.bulk(b"pmessage");
            reply.bulk(pattern);
            reply.bulk(channel);
            reply.bulk(message);
        }
        Heard::Seen(line) => reply.simple(line),
    }
}

fn answer(word: &[u8], name: Option<&[u8]>, count: usize, reply: &mut Encoder<'_>) {
    reply.push(3);
    reply.bulk(word);
    match name {
        Some(name) => reply.bulk(name),
        None => reply.null(),
    }
    reply.integer(i64::try_from(count).unwrap_or(i64::MAX));
}

/// Messages that wait for a client; one that is that far behind is let go.
const MAILBOX_MAX: usize = 4_096;
