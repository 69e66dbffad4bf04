//! Requests as bytes. Knows nothing of which are sent when.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

/// Writes requests into a buffer: numbered keys by patching prepared bytes, others from parts.
#[derive(Debug)]
pub(super) struct Commands {
    get: Template,
    set: Template,
    /// The `WAIT` after each write; empty without.
    wait: Vec<u8>,
    filler: Vec<u8>,
}

/// What all requests of a run have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Bytes a numbered key; at least the digits of the largest number.
    pub(super) key_size: usize,
    /// Bytes the value of a numbered key.
    pub(super) value_size: usize,
    /// What a write is.
    pub(super) write: WriteCommand,
    /// Seconds that numbered keys live; `None`: for ever.
    pub(super) ttl: Option<u64>,
    /// Replicas to wait for after each write.
    pub(super) wait: Option<u64>,
    /// Decides the bytes of values.
    pub(super) seed: u64,
}

/// What a write is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum WriteCommand {
    /// `SET key value`
    #[default]
    Set,
    /// `SET key value NX`
    SetNx,
    /// `INCR key`
    Incr,
}

/// A write of a key that is not a number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Write<'a> {
    pub(super) key: &'a [u8],
    pub(super) value_size: usize,
    pub(super) ttl: Option<u64>,
}

impl Commands {
    pub(super) fn new(shape: Shape) -> Self {
        let mut commands = Self {
            get: Template::default(),
            set: Template::default(),
            wait: Vec::new(),
            filler: filler(shape.seed),
        };
        if let Some(replicas) = shape.wait {
            let replicas = replicas.to_string();
            push_array(&mut commands.wait, 3);
            for word in [b"WAIT", replicas.as_bytes(), WAIT_MS] {
                push_bulk(&mut commands.wait, word);
            }
        }
        let key = key_of_zeros(shape.key_size);
        let write = Write {
            key: &key,
            value_size: shape.value_size,
            ttl: shape.ttl,
        };
        let mut get = Vec::new();
        commands.get_key(&mut get, &key);
        let mut set = Vec::new();
        match shape.write {
            WriteCommand::Set => commands.set_key(&mut set, write),
            WriteCommand::SetNx => commands.add_key(&mut set, write),
            WriteCommand::Incr => commands.incr_key(&mut set, &key),
        }
        commands.get = Template::new(get, &key);
        commands.set = Template::new(set, &key);
        commands
    }

    /// Reads the `number`-th key.
    pub(super) fn get(&self, out: &mut Vec<u8>, number: u64) {
        self.get.push(out, number);
    }

    /// Writes the `number`-th key.
    pub(super) fn set(&self, out: &mut Vec<u8>, number: u64) {
        self.set.push(out, number);
    }

    pub(super) fn get_key(&self, out: &mut Vec<u8>, key: &[u8]) {
        push_array(out, 2);
        push_bulk(out, b"GET");
        push_bulk(out, key);
    }

    pub(super) fn set_key(&self, out: &mut Vec<u8>, write: Write<'_>) {
        push_array(out, if write.ttl.is_some() { 5 } else { 3 });
        self.push_write(out, write);
        out.extend_from_slice(&self.wait);
    }

    /// The same, if there is none.
    fn add_key(&self, out: &mut Vec<u8>, write: Write<'_>) {
        push_array(out, if write.ttl.is_some() { 6 } else { 4 });
        self.push_write(out, write);
        push_bulk(out, b"NX");
        out.extend_from_slice(&self.wait);
    }

    fn incr_key(&self, out: &mut Vec<u8>, key: &[u8]) {
        push_array(out, 2);
        push_bulk(out, b"INCR");
        push_bulk(out, key);
        out.extend_from_slice(&self.wait);
    }

    fn push_write(&self, out: &mut Vec<u8>, write: Write<'_>) {
        push_bulk(out, b"SET");
        push_bulk(out, write.key);
        push_header(out, b'$', write.value_size);
        let mut left = write.value_size;
        while left > 0 {
            let piece = left.min(self.filler.len());
            out.extend_from_slice(&self.filler[..piece]);
            left -= piece;
        }
        out.extend_from_slice(b"\r\n");
        if let Some(seconds) = write.ttl {
            push_bulk(out, b"EX");
            push_bulk(out, seconds.to_string().as_bytes());
        }
    }

    pub(super) fn del_key(&self, out: &mut Vec<u8>, key: &[u8]) {
        push_array(out, 2);
        push_bulk(out, b"DEL");
        push_bulk(out, key);
        out.extend_from_slice(&self.wait);
    }
}

/// A request with a numbered key, ready but for the number.
#[derive(Debug, Default)]
struct Template {
    bytes: Vec<u8>,
    /// Where the key ends: digits are written backwards from here.
    key_end: usize,
}

impl Template {
    fn new(bytes: Vec<u8>, key: &[u8]) -> Self {
        // The name of the command comes before its key, and is no number.
        let name = bytes.iter().position(u8::is_ascii_alphabetic).unwrap_or(0);
        let name = name
            + bytes[name..]
                .iter()
                .take_while(|b| b.is_ascii_alphabetic())
                .count();
        let mut head = Vec::new();
        push_header(&mut head, b'$', key.len());
        Self {
            bytes,
            key_end: name + b"\r\n".len() + head.len() + key.len(),
        }
    }

    fn push(&self, out: &mut Vec<u8>, number: u64) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        write_digits(&mut out[start..start + self.key_end], number);
    }
}

/// How many decimal digits a number has.
pub(super) fn digits(number: u64) -> u64 {
    u64::from(number.checked_ilog10().unwrap_or(0)) + 1
}

/// `key:0000...`, or zeros alone where that has no room for the largest number.
fn key_of_zeros(size: usize) -> Vec<u8> {
    let mut key = vec![b'0'; size];
    if size >= KEY_PREFIX.len() + NUMBER_DIGITS_MAX {
        key[..KEY_PREFIX.len()].copy_from_slice(KEY_PREFIX);
    }
    key
}

/// Bytes that do not compress, so that a server that does gains nothing by it.
fn filler(seed: u64) -> Vec<u8> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    (0..FILLER_BYTES)
        .map(|_| rng.random_range(b'0'..=b'z'))
        .collect()
}

fn push_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    push_header(out, b'$', bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

fn push_array(out: &mut Vec<u8>, length: usize) {
    push_header(out, b'*', length);
}

fn push_header(out: &mut Vec<u8>, sign: u8, length: usize) {
    out.push(sign);
    let mut text = [0; NUMBER_DIGITS_MAX_64];
    // A usize has at most 64 bits on every platform there is.
    let start = write_digits(&mut text, u64::try_from(length).unwrap_or(u64::MAX));
    out.extend_from_slice(&text[start..]);
    out.extend_from_slice(b"\r\n");
}

/// Writes decimal digits so that they end where `out` ends; returns where they start.
fn write_digits(out: &mut [u8], number: u64) -> usize {
    let mut at = out.len();
    let mut left = number;
    loop {
        at -= 1;
        out[at] = b'0' + u8::try_from(left % 10).unwrap_or(0);
        left /= 10;
        if left == 0 {
            return at;
        }
    }
}

const KEY_PREFIX: &[u8] = b"key:";

/// Of the last of `KEYS_MAX` keys: with the prefix that makes the default key size, 16.
const NUMBER_DIGITS_MAX: usize = 12;

const NUMBER_DIGITS_MAX_64: usize = 20;

/// How long a `WAIT` waits at most.
const WAIT_MS: &[u8] = b"1000";

/// Longer values repeat it; longer than the window of usual compression.
const FILLER_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            write: WriteCommand::Set,
            key_size: 16,
            value_size: 3,
            ttl: None,
            wait: None,
            seed: 1,
        }
    }

    #[test]
    fn numbered_and_named_keys_give_the_same_request() {
        for wait in [None, Some(2)] {
            for ttl in [None, Some(60)] {
                let commands = Commands::new(Shape {
                    ttl,
                    wait,
                    ..shape()
                });
                let mut numbered = Vec::new();
                commands.get(&mut numbered, 1_234_567);
                commands.set(&mut numbered, 1_234_567);
                let mut named = Vec::new();
                commands.get_key(&mut named, b"key:000001234567");
                commands.set_key(
                    &mut named,
                    Write {
                        key: b"key:000001234567",
                        value_size: 3,
                        ttl,
                    },
                );
                assert_eq!(numbered, named);
            }
        }
    }

    #[test]
    fn requests_are_resp_arrays() {
        let commands = Commands::new(Shape {
            wait: Some(2),
            ttl: Some(9),
            value_size: 0,
            key_size: 2,
            ..shape()
        });
        let mut out = Vec::new();
        commands.set(&mut out, 42);
        commands.del_key(&mut out, b"\0");
        assert_eq!(
            out.escape_ascii().to_string().replace("\\r\\n", " "),
            "*5 $3 SET $2 42 $0  $2 EX $1 9 *3 $4 WAIT $1 2 $4 1000 \
             *2 $3 DEL $1 \\x00 *3 $4 WAIT $1 2 $4 1000 "
        );
    }

    #[test]
    fn values_longer_than_the_filler_are_whole() {
        let commands = Commands::new(shape());
        let mut out = Vec::new();
        let write = Write {
            key: b"k",
            value_size: 200_000,
            ttl: None,
        };
        commands.set_key(&mut out, write);
        let head = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$200000\r\n".len();
        assert_eq!(out.len(), head + 200_000 + 2);
    }

    #[test]
    fn digits_are_counted() {
        for (number, count) in [(0, 1), (9, 1), (10, 2), (99_999, 5), (100_000, 6)] {
            assert_eq!(digits(number), count);
        }
    }
}
