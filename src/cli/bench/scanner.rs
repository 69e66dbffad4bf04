//! Tells RESP2 replies apart without keeping them. Knows nothing of sockets or requests.

use thiserror::Error;

/// One whole reply, as far as a load generator cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply<'a> {
    /// `+...`
    Simple,
    /// `-...`: the text after the sign.
    Error(&'a [u8]),
    /// `:...`
    Integer(i64),
    /// `$n`, its body passed over.
    Bulk,
    /// `$-1`
    Null,
}

/// The bytes are not a reply that any request of ours can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the server's reply is not RESP2")]
pub(super) struct Malformed;

/// Where the last read ended, when that was inside the body of a bulk string.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    body_left: usize,
}

impl Scanner {
    /// The next reply of `input` from `*at` on; moves `*at` past what it took.
    ///
    /// `None`: more input is needed. What is left from `*at` on (part of one line at most, never a
    /// body) has to be handed in again, followed by more.
    pub(super) fn next<'a>(
        &mut self,
        input: &'a [u8],
        at: &mut usize,
    ) -> Result<Option<Reply<'a>>, Malformed> {
        if self.body_left > 0 {
            return Ok(self.pass_body(input, at));
        }
        let Some(line) = line(&input[*at..])? else {
            return Ok(None);
        };
        *at += line.len() + 2;
        let (sign, text) = line.split_first().ok_or(Malformed)?;
        match sign {
            b'+' => Ok(Some(Reply::Simple)),
            b'-' => Ok(Some(Reply::Error(text))),
            b':' => integer(text).map(|number| Some(Reply::Integer(number))),
            b'$' => match integer(text)? {
                -1 => Ok(Some(Reply::Null)),
                length => {
                    let length = usize::try_from(length).map_err(|_negative| Malformed)?;
                    if length > BODY_BYTES_MAX {
                        return Err(Malformed);
                    }
                    self.body_left = length + 2;
                    Ok(self.pass_body(input, at))
                }
            },
            _ => Err(Malformed),
        }
    }

    fn pass_body(&mut self, input: &[u8], at: &mut usize) -> Option<Reply<'static>> {
        let passed = self.body_left.min(input.len() - *at);
        *at += passed;
        self.body_left -= passed;
        (self.body_left == 0).then_some(Reply::Bulk)
    }
}

/// The first line without its line end; `None` while the line end is not there.
fn line(input: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    // A plain loop: the usual line is 3 or 4 bytes, too short for a vector search to pay.
    for (index, byte) in input.iter().enumerate() {
        if *byte == b'\r' {
            return match input.get(index + 1) {
                Some(b'\n') => Ok(Some(&input[..index])),
                Some(_) => Err(Malformed),
                None => Ok(None),
            };
        }
    }
    Ok(None)
}

fn integer(text: &[u8]) -> Result<i64, Malformed> {
    let (negative, digits) = match text.split_first() {
        Some((b'-', digits)) => (true, digits),
        _ => (false, text),
    };
    if digits.is_empty() || digits.len() > INTEGER_DIGITS_MAX {
        return Err(Malformed);
    }
    let mut number = 0_i64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return Err(Malformed);
        }
        number = number * 10 + i64::from(digit - b'0');
    }
    Ok(if negative { -number } else { number })
}

/// The largest bulk string of Redis.
const BODY_BYTES_MAX: usize = 512 * 1024 * 1024;

/// As many digits as never overflow 64 bits; no reply of ours comes near.
const INTEGER_DIGITS_MAX: usize = 18;

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] =
        b"+OK\r\n$5\r\nhe\r\nl\r\n$0\r\n\r\n$-1\r\n:3\r\n:-12\r\n-NOQUORUM 1 of 2\r\n+\r\n";

    fn expected() -> Vec<Reply<'static>> {
        vec![
            Reply::Simple,
            Reply::Bulk,
            Reply::Bulk,
            Reply::Null,
            Reply::Integer(3),
            Reply::Integer(-12),
            Reply::Error(b"NOQUORUM 1 of 2"),
            Reply::Simple,
        ]
    }

    /// Feeds the pieces one after the other, the way a read buffer does: what was not taken comes
    /// again in front of the next piece.
    fn scan(pieces: &[&[u8]]) -> Vec<String> {
        let mut scanner = Scanner::default();
        let mut buffer = Vec::new();
        let mut replies = Vec::new();
        for piece in pieces {
            buffer.extend_from_slice(piece);
            let mut at = 0;
            while let Some(reply) = scanner.next(&buffer, &mut at).unwrap() {
                replies.push(format!("{reply:?}"));
            }
            buffer.drain(..at);
        }
        assert!(buffer.is_empty());
        replies
    }

    #[test]
    fn any_two_splits_give_the_same_replies() {
        let expected: Vec<String> = expected()
            .iter()
            .map(|reply| format!("{reply:?}"))
            .collect();
        for first in 0..=STREAM.len() {
            for second in first..=STREAM.len() {
                let pieces = [&STREAM[..first], &STREAM[first..second], &STREAM[second..]];
                assert_eq!(scan(&pieces), expected, "split at {first} and {second}");
            }
        }
        let bytes: Vec<&[u8]> = STREAM.chunks(1).collect();
        assert_eq!(scan(&bytes), expected);
    }

    #[test]
    fn what_is_not_resp2_is_malformed() {
        for bad in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"\r\n",
            b"*1\r\n",
            b"_\r\n",
            b"$-2\r\n",
            b"$\r\n",
            b"$1x\r\n",
            b"$536870913\r\n",
            b":9999999999999999999\r\n",
            b"+OK\rx",
        ] {
            assert_eq!(Scanner::default().next(bad, &mut 0), Err(Malformed));
        }
    }
}
