//! Connections that hear messages: subscriptions and `MONITOR`.

use tokio::sync::watch;

use crate::front::channels::{Channels, Heard, Mail, Mailbox};
use crate::resp::{Args, Command, ConnectionCommand, Encoder, Keys, Protocol};

/// What one connection listens to.
#[derive(Debug)]
pub(super) struct Listening {
    mailbox: Option<(Mailbox, Mail)>,
    /// Closes the connection.
    close: watch::Sender<bool>,
    /// How many channels and patterns.
    count: usize,
    monitors: bool,
}

impl Listening {
    /// To nothing yet. `close` is set when messages were not read fast enough.
    pub(super) const fn new(close: watch::Sender<bool>) -> Self {
        Self {
            mailbox: None,
            close,
            count: 0,
            monitors: false,
        }
    }

    /// The next message. Never, for those who do not listen.
    pub(super) async fn next(&mut self) -> Heard {
        let Some((_, mail)) = &mut self.mailbox else {
            return std::future::pending().await;
        };
        // It holds a sender of its own: there is no end.
        while let Some(heard) = mail.next().await {
            if is_wanted(&heard, self.count) {
                return heard;
            }
        }
        std::future::pending().await
    }

    /// A message that is there already.
    pub(super) fn take(&mut self) -> Option<Heard> {
        let (_, mail) = self.mailbox.as_mut()?;
        std::iter::from_fn(|| mail.take()).find(|heard| is_wanted(heard, self.count))
    }

    /// Whether it listens to anything.
    pub(super) const fn is_active(&self) -> bool {
        self.mailbox.is_some()
    }

    /// Whether messages were left out because they were not read fast enough.
    pub(super) fn is_behind(&self) -> bool {
        let mailbox = self.mailbox.as_ref();
        mailbox.is_some_and(|(_, mail)| mail.is_behind())
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
            match channels.listen(client, (name, is_pattern), &mailbox) {
                Ok(count) => self.count = count,
                Err(error) => return reply.error(&error.to_string()),
            }
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
        // What was published before is sent before.
        while let Some(heard) = self.take() {
            encode(&heard, reply);
        }
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
            *self = Self::new(self.close.clone());
        }
    }

    fn mailbox(&mut self) -> Mailbox {
        let new = || Mailbox::new(self.close.clone());
        self.mailbox.get_or_insert_with(new).0.clone()
    }
}

/// Encodes what was heard.
pub(super) fn encode(heard: &Heard, reply: &mut Encoder<'_>) {
    match heard {
        Heard::Message(message) => {
            reply.push(3);
            reply.bulk(b"message");
            reply.bulk(&message.channel);
            reply.bulk(&message.text);
        }
        Heard::Matched(pattern, message) => {
            reply.push(4);
            reply.bulk(b"pmessage");
            reply.bulk(pattern);
            reply.bulk(&message.channel);
            reply.bulk(&message.text);
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

/// A message may have been on its way when the client left its last channel: then it expects none.
const fn is_wanted(heard: &Heard, count: usize) -> bool {
    count > 0 || matches!(heard, Heard::Seen(_))
}
