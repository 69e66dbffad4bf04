//! Replies, encoded straight into the output.

/// The version of RESP that a connection speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    /// What a connection begins with.
    #[default]
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

/// Appends replies to an output.
#[derive(Debug)]
pub struct Encoder<'a> {
    out: &'a mut Vec<u8>,
    protocol: Protocol,
}

impl<'a> Encoder<'a> {
    /// An encoder for a connection that speaks `protocol`.
    #[must_use]
    pub const fn new(out: &'a mut Vec<u8>, protocol: Protocol) -> Self {
        Self { out, protocol }
    }

    /// A short text without line breaks.
    pub fn simple(&mut self, text: &str) {
        self.line(b'+', text);
    }

    /// An error: a word in capitals, then a sentence.
    pub fn error(&mut self, text: &str) {
        self.line(b'-', text);
    }

    /// A number.
    pub fn integer(&mut self, number: i64) {
        self.number(b':', number.is_negative(), number.unsigned_abs());
    }

    /// Any bytes.
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.length(b'$', bytes.len());
        self.out.extend_from_slice(bytes);
        self.out.extend_from_slice(b"\r\n");
    }

    /// The start of any bytes: so many of them and a line break follow.
    pub fn bulk_start(&mut self, bytes: usize) {
        self.length(b'$', bytes);
    }

    /// Text for people: `INFO` and the like.
    pub fn verbatim(&mut self, text: &str) {
        match self.protocol {
            Protocol::Resp2 => self.bulk(text.as_bytes()),
            Protocol::Resp3 => {
                self.length(b'=', text.len() + VERBATIM_TEXT.len());
                self.out.extend_from_slice(VERBATIM_TEXT);
                self.out.extend_from_slice(text.as_bytes());
                self.out.extend_from_slice(b"\r\n");
            }
        }
    }

    /// Nothing, where a value could be.
    pub fn null(&mut self) {
        self.out.extend_from_slice(match self.protocol {
            Protocol::Resp2 => b"$-1\r\n",
            Protocol::Resp3 => b"_\r\n",
        });
    }

    /// Nothing, where several replies could be.
    pub fn null_array(&mut self) {
        self.out.extend_from_slice(match self.protocol {
            Protocol::Resp2 => b"*-1\r\n",
            Protocol::Resp3 => b"_\r\n",
        });
    }

    /// The start of an array: `items` replies follow.
    pub fn array(&mut self, items: usize) {
        self.length(b'*', items);
    }

    /// The start of a message that is no reply: `items` replies follow.
    pub fn push(&mut self, items: usize) {
        match self.protocol {
            Protocol::Resp2 => self.length(b'*', items),
            Protocol::Resp3 => self.length(b'>', items),
        }
    }

    /// The start of a map: twice `entries` replies follow, each key before its value.
    pub fn map(&mut self, entries: usize) {
        match self.protocol {
            Protocol::Resp2 => self.length(b'*', 2 * entries),
            Protocol::Resp3 => self.length(b'%', entries),
        }
    }

    /// The start of a set: `items` replies follow.
    pub fn set(&mut self, items: usize) {
        match self.protocol {
            Protocol::Resp2 => self.length(b'*', items),
            Protocol::Resp3 => self.length(b'~', items),
        }
    }

    fn length(&mut self, kind: u8, length: usize) {
        self.number(kind, false, length as u64);
    }

    fn number(&mut self, kind: u8, is_negative: bool, mut number: u64) {
        // Twenty digits, a sign, a kind, from the right.
        let mut text = [0; 24];
        let mut at = text.len() - 2;
        text[at..].copy_from_slice(b"\r\n");
        loop {
            at -= 1;
            text[at] = b'0' + u8::try_from(number % 10).unwrap_or(0);
            number /= 10;
            if number == 0 {
                break;
            }
        }
        if is_negative {
            at -= 1;
            text[at] = b'-';
        }
        at -= 1;
        text[at] = kind;
        self.out.extend_from_slice(&text[at..]);
    }

    /// Texts may quote what a client sent: a line break in it must not become a reply.
    fn line(&mut self, kind: u8, text: &str) {
        self.out.push(kind);
        self.out.extend(
            text.bytes()
                .map(|byte| if byte.is_ascii_control() { b' ' } else { byte }),
        );
        self.out.extend_from_slice(b"\r\n");
    }
}

const VERBATIM_TEXT: &[u8] = b"txt:";

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(protocol: Protocol, encode: impl FnOnce(&mut Encoder<'_>)) -> String {
        let mut out = Vec::new();
        encode(&mut Encoder::new(&mut out, protocol));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_have_all_their_digits() {
        for number in [0, 7, -7, 10, 12_345, i64::MAX, i64::MIN] {
            assert_eq!(
                encoded(Protocol::Resp2, |e| e.integer(number)),
                format!(":{number}\r\n")
            );
        }
    }

    #[test]
    fn both_versions() {
        let reply = |e: &mut Encoder<'_>| {
            e.null();
            e.map(1);
            e.set(2);
            e.verbatim("hi");
        };
        assert_eq!(
            encoded(Protocol::Resp2, reply),
            "$-1\r\n*2\r\n*2\r\n$2\r\nhi\r\n"
        );
        assert_eq!(
            encoded(Protocol::Resp3, reply),
            "_\r\n%1\r\n~2\r\n=6\r\ntxt:hi\r\n"
        );
    }

    #[test]
    fn no_reply_is_smuggled_in_by_an_error() {
        let text = encoded(Protocol::Resp2, |e| e.error("ERR 'a\r\n+OK\r\n'"));
        assert_eq!(text, "-ERR 'a  +OK  '\r\n");
    }
}
