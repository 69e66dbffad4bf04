//! What a client sends, as far as it has come.

use std::io;
use std::time::Duration;

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;
use tracing::debug;

use super::inputs::HeldInput;
use super::output::BUFFER_BYTES_KEPT;
use crate::net::LARGE_BYTES;

/// How to wait for what comes next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    /// Zero: for ever.
    pub(super) wait_max: Duration,
    /// What the connection holds besides its input.
    pub(super) queued_bytes: usize,
    /// What all connections may hold.
    pub(super) all_bytes_max: usize,
    /// How much of an argument that has begun is still to come.
    pub(super) missing_bytes: usize,
}

/// What has become of waiting for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HasRead {
    Some,
    End,
    TooLate,
    /// All clients hold as much as they may, and this one most.
    TooMuch,
}

/// Reads what has come, a part at a time: other connections have their turn between two parts of a
/// large value.
pub(super) async fn read(
    input: &mut Vec<u8>,
    held: &mut HeldInput<'_>,
    reading: Reading,
    stream: &mut (impl AsyncRead + Unpin),
) -> io::Result<HasRead> {
    let is_large = input.capacity() > 2 * BUFFER_BYTES_KEPT;
    if input.is_empty() && (is_large || held.is_tight(reading.all_bytes_max)) {
        // One large value must not hold its memory until the connection ends.
        *input = Vec::new();
    }
    if is_to_fit(input, reading.missing_bytes) {
        held.wait_for_room(reading.missing_bytes, reading.all_bytes_max)
            .await;
    }
    let part = make_room(input, reading.missing_bytes);
    let bytes = input.capacity() + reading.queued_bytes;
    if !held.set(bytes, reading.all_bytes_max) {
        return Ok(HasRead::TooMuch);
    }
    let has_read = |bytes: usize| match bytes {
        0 => HasRead::End,
        _ => HasRead::Some,
    };
    let wait_max = reading.wait_max;
    let mut part = input.limit(part);
    if wait_max.is_zero() {
        return Ok(has_read(stream.read_buf(&mut part).await?));
    }
    match timeout(wait_max, stream.read_buf(&mut part)).await {
        Ok(read) => Ok(has_read(read?)),
        Err(_) => {
            debug!("closed a connection that was silent for too long");
            Ok(HasRead::TooLate)
        }
    }
}

/// Makes room for what comes next; how much of it to read at once. All in all it takes time in
/// proportion to what has come: the buffer at least doubles each time that it is moved.
fn make_room(input: &mut Vec<u8>, missing: usize) -> usize {
    let spare = input.capacity() - input.len();
    if input.len() < LARGE_BYTES {
        // As much again as there was: an idle connection costs little.
        let room = input.capacity().clamp(READ_BYTES_MIN, BUFFER_BYTES_KEPT);
        input.reserve(room);
        return READ_BYTES_MAX;
    }
    // Little of what is behind a large argument: that is moved when the argument is taken out.
    let part = missing.clamp(BEHIND_BYTES_MAX, READ_BYTES_MAX);
    if is_to_fit(input, missing) {
        input.reserve_exact(missing + BEHIND_BYTES_MAX);
    } else if spare < READ_BYTES_MIN {
        input.reserve(part);
    }
    part.min(input.capacity() - input.len())
}

/// Whether there is to be room for all that is missing at once. What is announced need not come: a part
/// of it has to, before.
fn is_to_fit(input: &Vec<u8>, missing: usize) -> bool {
    let has_come = input.len();
    let is_likely = has_come >= LARGE_BYTES && has_come >= missing / ANNOUNCED_PER_SENT;
    is_likely && missing >= has_come && input.capacity() - has_come < READ_BYTES_MIN
}

/// A request of these words, as a client would send it.
pub(super) fn whole_request(words: &[&[u8]]) -> Vec<u8> {
    let mut request = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        request.extend(format!("${}\r\n", word.len()).into_bytes());
        request.extend_from_slice(word);
        request.extend(b"\r\n");
    }
    request
}

/// A pipeline of small commands, and all that an idle connection needs.
const READ_BYTES_MIN: usize = 2 * 1024;
/// Of a large value at once: some hundredths of a millisecond.
const READ_BYTES_MAX: usize = 128 * 1024;
const BEHIND_BYTES_MAX: usize = 16 * 1024;
/// One mebibyte of a value of sixteen makes room for it.
const ANNOUNCED_PER_SENT: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    /// Appends what a stream would, and counts how often the buffer is moved.
    fn fill(input: &mut Vec<u8>, bytes: usize, missing: impl Fn(usize) -> usize) -> usize {
        let mut grown = 0;
        while input.len() < bytes {
            let before = input.capacity();
            let part = make_room(input, missing(input.len()));
            grown += usize::from(input.capacity() != before);
            assert!((1..=READ_BYTES_MAX).contains(&part));
            let part = part.min(input.capacity() - input.len());
            input.resize(input.len() + part.min(bytes - input.len()), 0);
        }
        grown
    }

    /// Finding S4: a value was read megabytes at a time, into a buffer that was moved again and again.
    #[test]
    fn a_large_value_is_read_in_parts_into_a_buffer_that_fits_it() {
        const BYTES: usize = 16 * 1024 * 1024;
        let mut input = Vec::new();
        let grown = fill(&mut input, BYTES, |has_come| BYTES - has_come);
        assert!(grown <= 12, "{grown}");
        assert!(input.capacity() <= BYTES + BEHIND_BYTES_MAX);
        // Many small arguments instead: nothing is known of what comes.
        let mut input = Vec::new();
        let grown = fill(&mut input, BYTES, |_| 10);
        assert!(grown <= 16, "{grown}");
    }

    #[test]
    fn what_is_announced_and_does_not_come_takes_no_memory() {
        let mut input = Vec::new();
        fill(&mut input, 100_000, |_| 1 << 40);
        assert!(input.capacity() <= 4 * 100_000);
        fill(&mut input, 1_000_000, |_| 1 << 40);
        assert!(input.capacity() <= 4 * 1_000_000);
    }
}
