//! Replies as a client reads them, RESP2 and RESP3.

use thiserror::Error;

use super::parser::integer;

/// A reply.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// A short text.
    Simple(String),
    /// An error.
    Error(String),
    /// A number.
    Integer(i64),
    /// Any bytes.
    Bulk(Vec<u8>),
    /// Nothing.
    Null,
    /// A number with a fraction.
    Double(f64),
    /// Yes or no.
    Boolean(bool),
    /// Several replies; of a map, keys and values in turn.
    Array(Vec<Self>),
}

/// Bytes that are no reply.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReplyError {
    /// No reply begins with this byte.
    #[error("a reply cannot begin with {0:?}")]
    Kind(char),
    /// A length or number that is none.
    #[error("a reply has a length or number that is none")]
    Number,
    /// Replies within replies beyond all need.
    #[error("a reply is nested too deeply")]
    Depth,
}

/// The first reply of the input and its length; `None`: it is not whole yet.
pub fn decode(input: &[u8]) -> Result<Option<(Reply, usize)>, ReplyError> {
    let mut rest = input;
    let reply = take(&mut rest, DEPTH_MAX)?;
    Ok(reply.map(|reply| (reply, input.len() - rest.len())))
}

fn take(rest: &mut &[u8], depth: usize) -> Result<Option<Reply>, ReplyError> {
    let depth = depth.checked_sub(1).ok_or(ReplyError::Depth)?;
    let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else {
        return Ok(None);
    };
    let (line, after) = (&rest[..end], &rest[end + 2..]);
    let Some((&kind, text)) = line.split_first() else {
        return Err(ReplyError::Kind('\r'));
    };
    *rest = after;
    let lossy = || String::from_utf8_lossy(text).into_owned();
    let number = || integer(text).ok_or(ReplyError::Number);
    Ok(Some(match kind {
        b'+' => Reply::Simple(lossy()),
        b'-' => Reply::Error(lossy()),
        b':' => Reply::Integer(number()?),
        b',' => Reply::Double(
            lossy()
                .parse()
                .map_err(|_not_a_number| ReplyError::Number)?,
        ),
        b'#' => Reply::Boolean(text == b"t"),
        b'_' => Reply::Null,
        b'$' | b'=' | b'!' | b'*' | b'~' | b'>' | b'%' if number()? < 0 => Reply::Null,
        b'$' | b'=' | b'!' => {
            let length = usize::try_from(number()?).map_err(|_negative| ReplyError::Number)?;
            if rest.len() < length.saturating_add(2) {
                return Ok(None);
            }
            let bytes = &rest[..length];
            *rest = &rest[length + 2..];
            match kind {
                b'!' => Reply::Error(String::from_utf8_lossy(bytes).into_owned()),
                b'=' => Reply::Bulk(bytes.get(4..).unwrap_or_default().to_vec()),
                _ => Reply::Bulk(bytes.to_vec()),
            }
        }
        b'*' | b'~' | b'>' | b'%' => {
            let count = number()?.saturating_mul(if kind == b'%' { 2 } else { 1 });
            let mut items = Vec::new();
            for _ in 0..count {
                let Some(item) = take(rest, depth)? else {
                    return Ok(None);
                };
                items.push(item);
            }
            Reply::Array(items)
        }
        other => return Err(ReplyError::Kind(char::from(other))),
    }))
}

/// Deeper than any command answers.
const DEPTH_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Encoder, Protocol};
    use super::*;

    fn reply() -> impl Strategy<Value = Reply> {
        let leaf = prop_oneof![
            "[a-z ]{0,9}".prop_map(Reply::Simple),
            "[a-z ]{0,9}".prop_map(Reply::Error),
            any::<i64>().prop_map(Reply::Integer),
            prop::collection::vec(any::<u8>(), 0..20).prop_map(Reply::Bulk),
            Just(Reply::Null),
        ];
        leaf.prop_recursive(3, 20, 5, |inner| {
            prop::collection::vec(inner, 0..5).prop_map(Reply::Array)
        })
    }

    fn encode(reply: &Reply, encoder: &mut Encoder<'_>) {
        match reply {
            Reply::Simple(text) => encoder.simple(text),
            Reply::Error(text) => encoder.error(text),
            Reply::Integer(number) => encoder.integer(*number),
            Reply::Bulk(bytes) => encoder.bulk(bytes),
            Reply::Null => encoder.null(),
            Reply::Array(items) => {
                encoder.array(items.len());
                items.iter().for_each(|item| encode(item, encoder));
            }
            Reply::Double(_) | Reply::Boolean(_) => unreachable!("not made by `reply`"),
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(reply in reply(), is_resp3: bool) {
            let protocol = if is_resp3 { Protocol::Resp3 } else { Protocol::Resp2 };
            let mut out = Vec::new();
            encode(&reply, &mut Encoder::new(&mut out, protocol));
            for end in 0..out.len() {
                prop_assert_eq!(decode(&out[..end]).unwrap(), None);
            }
            let length = out.len();
            out.extend(b"+next\r\n");
            prop_assert_eq!(decode(&out).unwrap(), Some((reply, length)));
        }

        #[test]
        fn any_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            drop(decode(&bytes));
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let brackets = "*1\r\n".repeat(1_000);
        assert_eq!(decode(brackets.as_bytes()), Err(ReplyError::Depth));
    }
}
