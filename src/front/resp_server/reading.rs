//! What a client sends, as far as it has come.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;
use tracing::debug;

use super::inputs::HeldInput;
use super::output::BUFFER_BYTES_KEPT;

/// How to wait for what comes next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    /// Zero: for ever.
    pub(super) wait_max: Duration,
    /// What the connection holds besides its input.
    pub(super) queued_bytes: usize,
    /// What all connections may hold.
    pub(super) all_bytes_max: usize,
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

/// Reads what has come.
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
    // As much again as there was: a large value arrives in a few large reads, and an idle
    // connection costs little.
    let room = input.capacity().clamp(READ_BYTES_MIN, BUFFER_BYTES_KEPT);
    input.reserve(room);
    let bytes = input.capacity() + reading.queued_bytes;
    if !held.set(bytes, reading.all_bytes_max) {
        return Ok(HasRead::TooMuch);
    }
    let has_read = |bytes: usize| match bytes {
        0 => HasRead::End,
        _ => HasRead::Some,
    };
    let wait_max = reading.wait_max;
    if wait_max.is_zero() {
        return Ok(has_read(stream.read_buf(input).await?));
    }
    match timeout(wait_max, stream.read_buf(input)).await {
        Ok(read) => Ok(has_read(read?)),
        Err(_) => {
            debug!("closed a connection that was silent for too long");
            Ok(HasRead::TooLate)
        }
    }
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
