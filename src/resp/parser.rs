//! Requests as they stand in a stream of bytes.
//!
//! The parser finds where a request and its arguments are and copies nothing. It remembers how far
//! it got, so a large request that arrives in many pieces is looked at once.

use std::ops::Range;

use bytes::Bytes;
use thiserror::Error;

use super::{Command, CommandError};

/// What a request may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The longest argument, in bytes.
    pub value_bytes_max: usize,
    /// All arguments of a request together, in bytes.
    pub request_bytes_max: usize,
    /// The most arguments.
    pub args_max: usize,
}

/// What the parser found at the start of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// Not yet a whole request. The first `discard` bytes are of no use to anyone: drop them.
    Incomplete {
        /// How many bytes to drop now.
        discard: usize,
    },
    /// A request: [`Parser::args`] has its arguments. It may be empty, as a lone newline is.
    Request {
        /// Its length.
        consumed: usize,
    },
    /// The end of a request over a limit, whose bytes were dropped as they came. The next request
    /// can be parsed after it.
    TooBig {
        /// How many bytes of it are in the input.
        consumed: usize,
        /// The bytes of the argument, or of all arguments, that broke the limit.
        bytes: u64,
    },
}

/// Bytes that are no request. The texts are Redis's; the connection has to be closed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProtocolError {
    /// The number of arguments is none, or too large.
    #[error("Protocol error: invalid multibulk length")]
    MultibulkLength,
    /// A line that should hold the number of arguments does not end.
    #[error("Protocol error: too big mbulk count string")]
    MultibulkLine,
    /// An argument does not begin as one.
    #[error("Protocol error: expected '$', got '{}'", char::from(*.0))]
    NotBulk(u8),
    /// The length of an argument is none, or too large.
    #[error("Protocol error: invalid bulk length")]
    BulkLength,
    /// A line that should hold the length of an argument does not end.
    #[error("Protocol error: too big bulk count string")]
    BulkLine,
    /// An inline command does not end.
    #[error("Protocol error: too big inline request")]
    InlineLine,
    /// More arguments than a client may send that has not logged in.
    #[error("Protocol error: unauthenticated multibulk length")]
    UnauthenticatedMultibulkLength,
    /// A longer argument, or a longer request.
    #[error("Protocol error: unauthenticated bulk length")]
    UnauthenticatedBulkLength,
    /// An inline command has an odd quote.
    #[error("Protocol error: unbalanced quotes in request")]
    Quotes,
}

/// The arguments of one request, borrowed from the input.
#[derive(Debug, Clone, Copy)]
pub struct Args<'a> {
    input: &'a [u8],
    ranges: &'a [Range<usize>],
}

/// Finds requests in a stream.
#[derive(Debug)]
pub struct Parser {
    limits: Limits,
    /// Whoever has not logged in may send no more than a login takes.
    is_authenticated: bool,
    state: State,
    /// How far the present request has been looked at, from its start.
    at: usize,
    ranges: Vec<Range<usize>>,
    /// Inline commands with quotes or escapes have arguments that stand nowhere in the input.
    unquoted: Vec<u8>,
    is_inline: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first byte of a request.
    Start,
    /// So many arguments to come; `bytes` is what the ones before them take.
    Arg { left: usize, bytes: usize },
    /// In an argument of this length.
    Body {
        left: usize,
        bytes: usize,
        length: usize,
    },
    /// In a request over a limit: `skip` bytes to drop, then `left` arguments.
    Skipping {
        left: usize,
        skip: usize,
        bytes: u64,
    },
}

impl Parser {
    /// A parser at the start of a stream.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            is_authenticated: true,
            state: State::Start,
            at: 0,
            ranges: Vec::new(),
            unquoted: Vec::new(),
            is_inline: false,
        }
    }

    /// Whether the client has logged in; until it has, requests are bounded as Redis bounds them.
    pub const fn set_authenticated(&mut self, is_authenticated: bool) {
        self.is_authenticated = is_authenticated;
    }

    /// See [`Parser::set_authenticated`].
    #[must_use]
    pub const fn is_authenticated(&self) -> bool {
        self.is_authenticated
    }

    /// Looks at the input, which begins with the first byte that was neither consumed nor
    /// discarded, and has grown at its end only since the last call.
    pub fn parse(&mut self, input: &[u8]) -> Result<Parsed, ProtocolError> {
        loop {
            let step = match self.state {
                State::Start => self.start(input)?,
                State::Arg { left: 0, .. } => {
                    Some(self.finish(Parsed::Request { consumed: self.at }))
                }
                State::Arg { left, bytes } => self.arg(input, left, bytes)?,
                State::Body {
                    left,
                    bytes,
                    length,
                } => self.body(input, left, bytes, length)?,
                State::Skipping { left, skip, bytes } => self.skip(input, left, skip, bytes)?,
            };
            if let Some(parsed) = step {
                return Ok(parsed);
            }
        }
    }

    /// How much of an argument that has begun is still to come, where `bytes` of the present request
    /// have; none where that is not known.
    #[must_use]
    pub const fn missing(&self, bytes: usize) -> usize {
        match self.state {
            State::Body { length, .. } => (self.at + length + 2).saturating_sub(bytes),
            State::Start | State::Arg { .. } | State::Skipping { .. } => 0,
        }
    }

    /// The arguments of the request that [`Parser::parse`] found last. `input` begins where it did
    /// then.
    #[must_use]
    pub fn args<'a>(&'a self, input: &'a [u8]) -> Args<'a> {
        let input = if self.is_inline {
            &self.unquoted
        } else {
            input
        };
        Args {
            input,
            ranges: &self.ranges,
        }
    }

    /// A first line: `*3`, or a command in words.
    fn start(&mut self, input: &[u8]) -> Result<Option<Parsed>, ProtocolError> {
        self.at = 0;
        self.ranges.clear();
        match input.first() {
            None => Ok(Some(Parsed::Incomplete { discard: 0 })),
            Some(b'*') => {
                let Some((line, next)) = line(input, 1) else {
                    return incomplete(input.len() > LINE_BYTES_MAX, ProtocolError::MultibulkLine);
                };
                let count = integer(line).ok_or(ProtocolError::MultibulkLength)?;
                let max = i64::try_from(self.limits.args_max).unwrap_or(i64::MAX);
                if count > max {
                    return Err(ProtocolError::MultibulkLength);
                }
                if !self.is_authenticated && count > UNAUTHENTICATED_ARGS_MAX {
                    return Err(ProtocolError::UnauthenticatedMultibulkLength);
                }
                self.at = next;
                self.is_inline = false;
                // Redis takes `*0` and `*-1` for nothing.
                let left = usize::try_from(count).unwrap_or(0);
                self.state = State::Arg { left, bytes: 0 };
                Ok(None)
            }
            Some(_) => self.inline(input),
        }
    }

    fn inline(&mut self, input: &[u8]) -> Result<Option<Parsed>, ProtocolError> {
        let line_bytes_max = if self.is_authenticated {
            LINE_BYTES_MAX
        } else {
            UNAUTHENTICATED_BYTES_MAX
        };
        let Some(end) = input.iter().position(|&byte| byte == b'\n') else {
            return incomplete(input.len() > line_bytes_max, ProtocolError::InlineLine);
        };
        if end > line_bytes_max {
            return Err(ProtocolError::InlineLine);
        }
        let line = input[..end].strip_suffix(b"\r").unwrap_or(&input[..end]);
        self.unquoted.clear();
        self.is_inline = true;
        split_words(line, &mut self.unquoted, &mut self.ranges)?;
        Ok(Some(self.finish(Parsed::Request { consumed: end + 1 })))
    }

    /// The line before an argument: `$5`.
    fn arg(
        &mut self,
        input: &[u8],
        left: usize,
        bytes: usize,
    ) -> Result<Option<Parsed>, ProtocolError> {
        let Some(length) = self.bulk_length(input)? else {
            return Ok(Some(Parsed::Incomplete { discard: 0 }));
        };
        if !self.is_authenticated && bytes + length > UNAUTHENTICATED_BYTES_MAX {
            return Err(ProtocolError::UnauthenticatedBulkLength);
        }
        if length > self.limits.value_bytes_max || bytes + length > self.limits.request_bytes_max {
            let over = if length > self.limits.value_bytes_max {
                length
            } else {
                bytes + length
            };
            self.ranges = Vec::new();
            let skip = length + 2;
            self.state = State::Skipping {
                left: left - 1,
                skip,
                bytes: over as u64,
            };
        } else {
            self.state = State::Body {
                left: left - 1,
                bytes: bytes + length,
                length,
            };
        }
        Ok(None)
    }

    fn bulk_length(&mut self, input: &[u8]) -> Result<Option<usize>, ProtocolError> {
        match input.get(self.at) {
            None => return Ok(None),
            Some(b'$') => {}
            Some(&other) => return Err(ProtocolError::NotBulk(other)),
        }
        let Some((line, next)) = line(input, self.at + 1) else {
            return match input.len() - self.at > LINE_BYTES_MAX {
                true => Err(ProtocolError::BulkLine),
                false => Ok(None),
            };
        };
        let length = integer(line).and_then(|length| usize::try_from(length).ok());
        let length = length.filter(|&length| length <= BULK_BYTES_MAX);
        self.at = next;
        length.map(Some).ok_or(ProtocolError::BulkLength)
    }

    fn body(
        &mut self,
        input: &[u8],
        left: usize,
        bytes: usize,
        length: usize,
    ) -> Result<Option<Parsed>, ProtocolError> {
        // Redis does not look at the two bytes after an argument, and neither is anything here.
        if input.len() < self.at + length + 2 {
            return Ok(Some(Parsed::Incomplete { discard: 0 }));
        }
        self.ranges.push(self.at..self.at + length);
        self.at += length + 2;
        self.state = State::Arg { left, bytes };
        Ok(None)
    }

    fn skip(
        &mut self,
        input: &[u8],
        left: usize,
        skip: usize,
        bytes: u64,
    ) -> Result<Option<Parsed>, ProtocolError> {
        let here = skip.min(input.len() - self.at);
        self.at += here;
        if here < skip {
            let discard = std::mem::take(&mut self.at);
            self.state = State::Skipping {
                left,
                skip: skip - here,
                bytes,
            };
            return Ok(Some(Parsed::Incomplete { discard }));
        }
        if left == 0 {
            return Ok(Some(self.finish(Parsed::TooBig {
                consumed: self.at,
                bytes,
            })));
        }
        self.state = State::Skipping {
            left,
            skip: 0,
            bytes,
        };
        let before = self.at;
        match self.bulk_length(input)? {
            Some(length) => {
                self.state = State::Skipping {
                    left: left - 1,
                    skip: length + 2,
                    bytes,
                };
                Ok(None)
            }
            None => {
                self.at = 0;
                Ok(Some(Parsed::Incomplete { discard: before }))
            }
        }
    }

    fn finish(&mut self, parsed: Parsed) -> Parsed {
        self.state = State::Start;
        parsed
    }
}

impl<'a> Args<'a> {
    /// How many there are, the command's name included.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// One of them; number 0 is the command's name.
    #[must_use]
    pub fn get(&self, number: usize) -> Option<&'a [u8]> {
        self.ranges
            .get(number)
            .map(|range| &self.input[range.clone()])
    }

    /// Those from `number` on.
    #[must_use]
    pub fn from(&self, number: usize) -> Self {
        Self {
            input: self.input,
            ranges: self.ranges.get(number..).unwrap_or_default(),
        }
    }

    /// All of them, in order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = &'a [u8]> {
        self.ranges
            .iter()
            .map(move |range| &self.input[range.clone()])
    }
}

/// The command that these words are.
pub fn parse_words<T>(
    words: &[Bytes],
    then: impl FnOnce(Result<Command<'_>, CommandError>) -> T,
) -> T {
    let mut input = Vec::with_capacity(words.iter().map(Bytes::len).sum());
    let ranges: Vec<Range<usize>> = words
        .iter()
        .map(|word| {
            let start = input.len();
            input.extend_from_slice(word);
            start..input.len()
        })
        .collect();
    then(Command::parse(Args {
        input: &input,
        ranges: &ranges,
    }))
}

/// The line that begins at `start`, without its end, and where the next one begins.
fn line(input: &[u8], start: usize) -> Option<(&[u8], usize)> {
    let rest = input.get(start..)?;
    let window = &rest[..rest.len().min(LINE_BYTES_MAX)];
    let end = window.iter().position(|&byte| byte == b'\r')?;
    // The newline is part of the end, and must have come.
    (rest.len() > end + 1).then(|| (&rest[..end], start + end + 2))
}

const fn incomplete(
    is_too_long: bool,
    error: ProtocolError,
) -> Result<Option<Parsed>, ProtocolError> {
    if is_too_long {
        Err(error)
    } else {
        Ok(Some(Parsed::Incomplete { discard: 0 }))
    }
}

/// An integer as Redis reads it: digits, perhaps a minus, no leading zeros or plus.
#[must_use]
pub fn integer(text: &[u8]) -> Option<i64> {
    let (is_negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [] => return None,
        [b'0'] => return (!is_negative).then_some(0),
        [b'0', ..] => return None,
        _ => {}
    }
    digits.iter().try_fold(0i64, |sum, &digit| {
        let digit = i64::from(digit.is_ascii_digit().then(|| digit - b'0')?);
        let sum = sum.checked_mul(10)?;
        if is_negative {
            sum.checked_sub(digit)
        } else {
            sum.checked_add(digit)
        }
    })
}

/// Splits an inline command into words as Redis does (`sdssplitargs`): in double quotes `\n`,
/// `\xff` and the like are escapes, in single quotes only `\'`; a closing quote ends its word.
fn split_words(
    line: &[u8],
    words: &mut Vec<u8>,
    ranges: &mut Vec<Range<usize>>,
) -> Result<(), ProtocolError> {
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        let start = words.len();
        match rest.first() {
            None => return Ok(()),
            Some(_) => rest = take_word(rest, words)?,
        }
        ranges.push(start..words.len());
    }
}

fn take_word<'a>(mut rest: &'a [u8], words: &mut Vec<u8>) -> Result<&'a [u8], ProtocolError> {
    loop {
        match rest {
            [] => return Ok(rest),
            [byte, ..] if byte.is_ascii_whitespace() || *byte == 0 => return Ok(&rest[1..]),
            [quote @ (b'"' | b'\''), quoted @ ..] => {
                rest = take_quoted(quoted, *quote, words)?;
                return match rest.first() {
                    Some(byte) if !byte.is_ascii_whitespace() => Err(ProtocolError::Quotes),
                    _ => Ok(rest),
                };
            }
            [byte, after @ ..] => {
                words.push(*byte);
                rest = after;
            }
        }
    }
}

fn take_quoted<'a>(
    mut rest: &'a [u8],
    quote: u8,
    words: &mut Vec<u8>,
) -> Result<&'a [u8], ProtocolError> {
    loop {
        let (byte, after) = match rest {
            [] => return Err(ProtocolError::Quotes),
            [byte, after @ ..] if *byte == quote => return Ok(after),
            [b'\\', b'x', high, low, after @ ..]
                if quote == b'"' && high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                (hex(*high) << 4 | hex(*low), after)
            }
            [b'\\', escaped, after @ ..] if quote == b'"' => (unescape(*escaped), after),
            [b'\\', b'\'', after @ ..] if quote == b'\'' => (b'\'', after),
            [byte, after @ ..] => (*byte, after),
        };
        words.push(byte);
        rest = after;
    }
}

const fn unescape(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        other => other,
    }
}

const fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit - b'A' + 10,
    }
}

/// As in Redis: `AUTH`, or `HELLO` with all its options.
const UNAUTHENTICATED_ARGS_MAX: i64 = 10;
/// As in Redis for one argument; here for all of them together.
const UNAUTHENTICATED_BYTES_MAX: usize = 16 * 1024;
/// As in Redis: longer than this, and it is not a line.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// As in Redis (`proto-max-bulk-len`): longer than this, and it is not an argument.
const BULK_BYTES_MAX: usize = 512 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        value_bytes_max: 100,
        request_bytes_max: 200,
        args_max: 50,
    };

    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Found {
        Request(Vec<Vec<u8>>),
        TooBig(u64),
        Broken(ProtocolError),
    }

    /// What a client may send that has not logged in (finding 14).
    #[test]
    fn before_the_login_a_request_is_short() {
        let mut parser = Parser::new(Limits {
            value_bytes_max: 1 << 20,
            request_bytes_max: 1 << 22,
            args_max: 1 << 20,
        });
        let argument = |length: usize| {
            [
                format!("${length}\r\n").into_bytes(),
                vec![b'x'; length],
                b"\r\n".to_vec(),
            ]
            .concat()
        };
        let of_ten = [b"*10\r\n".to_vec(), argument(1_638).repeat(10)].concat();
        let inline = [vec![b'x'; 16 * 1024], b"\n".to_vec()].concat();
        let too_much = [
            (
                b"*11\r\n".to_vec(),
                ProtocolError::UnauthenticatedMultibulkLength,
            ),
            (
                b"*2\r\n$16385\r\n".to_vec(),
                ProtocolError::UnauthenticatedBulkLength,
            ),
            (
                [b"*2\r\n".to_vec(), argument(16_000), b"$400\r\n".to_vec()].concat(),
                ProtocolError::UnauthenticatedBulkLength,
            ),
            (vec![b'x'; 16 * 1024 + 1], ProtocolError::InlineLine),
        ];
        for (bytes, error) in too_much {
            parser = Parser::new(parser.limits);
            parser.set_authenticated(false);
            assert_eq!(parser.parse(&bytes), Err(error));
            parser = Parser::new(parser.limits);
            let parsed = parser.parse(&bytes);
            assert!(
                matches!(parsed, Ok(Parsed::Incomplete { .. })),
                "{parsed:?}"
            );
        }
        parser = Parser::new(parser.limits);
        parser.set_authenticated(false);
        for bytes in [of_ten, inline] {
            let consumed = bytes.len();
            assert_eq!(parser.parse(&bytes), Ok(Parsed::Request { consumed }));
        }
    }

    /// Feeds the pieces one after the other, as a connection does.
    fn feed(pieces: &[&[u8]]) -> Vec<Found> {
        let mut parser = Parser::new(LIMITS);
        let mut input = Vec::new();
        let mut found = Vec::new();
        for piece in pieces {
            input.extend_from_slice(piece);
            loop {
                match parser.parse(&input) {
                    Ok(Parsed::Incomplete { discard }) => {
                        input.drain(..discard);
                        break;
                    }
                    Ok(Parsed::Request { consumed }) => {
                        let args = parser.args(&input).iter().map(<[u8]>::to_vec).collect();
                        found.push(Found::Request(args));
                        input.drain(..consumed);
                    }
                    Ok(Parsed::TooBig { consumed, bytes }) => {
                        found.push(Found::TooBig(bytes));
                        input.drain(..consumed);
                    }
                    Err(error) => {
                        found.push(Found::Broken(error));
                        return found;
                    }
                }
            }
            assert!(input.len() < 1_000 + LINE_BYTES_MAX, "memory is bounded");
        }
        found
    }

    fn words(words: &[&str]) -> Found {
        Found::Request(words.iter().map(|word| word.as_bytes().to_vec()).collect())
    }

    #[test]
    fn requests_in_both_forms() {
        assert_eq!(
            feed(&[b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"]),
            [words(&["GET", "k"])]
        );
        assert_eq!(
            feed(&[b"GET k\r\nPING\n"]),
            [words(&["GET", "k"]), words(&["PING"])]
        );
        assert_eq!(
            feed(&[b"*0\r\n*-1\r\n\r\nPING\r\n"]),
            [words(&[]), words(&[]), words(&[]), words(&["PING"])]
        );
    }

    #[test]
    fn inline_quotes_are_those_of_redis() {
        let line = b"SET \"a b\" \"\\x41\\n\\\"\" 'it\\'s' x\"y\"\r\n";
        assert_eq!(
            feed(&[line]),
            [words(&["SET", "a b", "A\n\"", "it's", "xy"])]
        );
        for broken in ["SET \"a", "SET 'a", "SET \"a\"b", "SET 'a'b"] {
            let line = format!("{broken}\r\n");
            assert_eq!(
                feed(&[line.as_bytes()]),
                [Found::Broken(ProtocolError::Quotes)],
                "{broken}"
            );
        }
    }

    #[test]
    fn broken_requests_have_the_errors_of_redis() {
        use ProtocolError as E;
        for (input, error) in [
            (&b"*2147483647\r\n"[..], E::MultibulkLength),
            (b"*abc\r\n", E::MultibulkLength),
            (b"*51\r\n", E::MultibulkLength),
            (b"*1\r\nGET\r\n", E::NotBulk(b'G')),
            (b"*1\r\n$-1\r\n", E::BulkLength),
            (b"*1\r\n$600000000\r\n", E::BulkLength),
            (b"*1\r\n$x\r\n", E::BulkLength),
        ] {
            assert_eq!(
                feed(&[input]),
                [Found::Broken(error)],
                "{}",
                input.escape_ascii()
            );
        }
        let endless = vec![b'x'; LINE_BYTES_MAX + 1];
        assert_eq!(feed(&[&endless]), [Found::Broken(E::InlineLine)]);
        let endless = [b"*1\r\n$".to_vec(), vec![b'1'; LINE_BYTES_MAX + 1]].concat();
        assert_eq!(feed(&[&endless]), [Found::Broken(E::BulkLine)]);
        let endless = [b"*".to_vec(), vec![b'1'; LINE_BYTES_MAX + 1]].concat();
        assert_eq!(feed(&[&endless]), [Found::Broken(E::MultibulkLine)]);
    }

    #[test]
    fn what_is_too_big_is_dropped_as_it_comes() {
        let mut stream = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1000000\r\n".to_vec();
        stream.extend(vec![b'v'; 1_000_000]);
        stream.extend(b"\r\nPING\r\n");
        let pieces: Vec<&[u8]> = stream.chunks(100).collect();
        assert_eq!(feed(&pieces), [Found::TooBig(1_000_000), words(&["PING"])]);
        // Each argument fits, together they do not.
        let arg = format!("$90\r\n{}\r\n", "v".repeat(90));
        let stream = format!("*4\r\n$4\r\nMSET\r\n{arg}{arg}{arg}PING\r\n");
        assert_eq!(
            feed(&[stream.as_bytes()]),
            [Found::TooBig(274), words(&["PING"])]
        );
    }

    proptest! {
        #[test]
        fn any_split_of_a_stream_parses_to_the_same(
            requests in prop::collection::vec(
                prop::collection::vec(prop::collection::vec(any::<u8>(), 0..130), 1..5), 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let mut stream = Vec::new();
            for request in &requests {
                stream.extend(format!("*{}\r\n", request.len()).bytes());
                for arg in request {
                    stream.extend(format!("${}\r\n", arg.len()).bytes());
                    stream.extend(arg);
                    stream.extend(b"\r\n");
                }
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &stream[w[0]..w[1]]).collect();
            let found = feed(&pieces);
            prop_assert_eq!(&found, &feed(&[&stream]));
            prop_assert_eq!(found.len(), requests.len());
            for (found, request) in found.iter().zip(&requests) {
                match found {
                    Found::Request(args) => prop_assert_eq!(args, request),
                    Found::TooBig(_) => {
                        let over = request.iter().any(|arg| arg.len() > LIMITS.value_bytes_max);
                        let sum: usize = request.iter().map(Vec::len).sum();
                        prop_assert!(over || sum > LIMITS.request_bytes_max);
                    }
                    Found::Broken(error) => prop_assert!(false, "{}", error),
                }
            }
        }

        #[test]
        fn any_bytes_end_in_requests_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            feed(&[&bytes]);
        }

        #[test]
        fn integers_are_read_as_redis_does(number: i64) {
            prop_assert_eq!(integer(number.to_string().as_bytes()), Some(number));
            let plus = format!("+{number}");
            prop_assert_eq!(integer(plus.as_bytes()), None);
            let zero = format!("0{number}");
            prop_assert_eq!(integer(zero.as_bytes()), None);
        }
    }
}
