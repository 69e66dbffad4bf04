//! Frames: where one ends in a stream of bytes, and what is in it.

use bytes::{Buf, Bytes, BytesMut};
use rmp_serde::decode::ReadRefReader;
use serde::{Deserialize, Serialize};
use serde_bytes::Bytes as ByteSlice;
use thiserror::Error;

use super::ResponseHeader;

/// Bytes of the length that a frame starts with.
pub const LENGTH_BYTES: usize = 4;

/// Why bytes from a peer are not a frame.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The announced length is over the limit. Nothing was allocated for it.
    #[error("frame of {bytes} bytes announced, the limit is {limit}")]
    TooLong {
        /// The announced length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Not the `MessagePack` expected here.
    #[error("malformed frame: {0}")]
    Malformed(#[from] rmp_serde::decode::Error),
    /// Hints travel in frames of their own, under legal keys.
    #[error("a frame mixes hints with other operations, or has a hint without a legal key")]
    Mixed,
    /// What its header says of flushes is not that.
    #[error("malformed frame: {0}")]
    Flushes(#[from] crate::model::NotFlushes),
    /// The response has another number of answers than the request had operations.
    #[error("response has {got} answers, {want} were asked for")]
    Count {
        /// How many there are.
        got: u32,
        /// How many there should be.
        want: u32,
    },
}

/// Appends one header or operation.
pub fn encode(item: &impl Serialize, out: &mut Vec<u8>) {
    // Writing to a Vec cannot fail, and the wire types have no shape that MessagePack lacks.
    let encoded = rmp_serde::encode::write(out, item);
    debug_assert!(
        encoded.is_ok(),
        "wire types are always encodable: {encoded:?}"
    );
}

/// Appends one header or operation to what takes every byte: a writer that never fails.
pub fn encode_to(item: &impl Serialize, out: &mut impl std::io::Write) {
    let encoded = rmp_serde::encode::write(out, item);
    debug_assert!(
        encoded.is_ok(),
        "wire types are always encodable: {encoded:?}"
    );
}

/// Starts a frame at the end of `out`; what it returns goes to [`finish_frame`].
#[must_use]
pub fn start_frame(header: &impl Serialize, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    encode(header, out);
    start
}

/// Ends the frame that began at `start`, by writing its length there.
pub fn finish_frame(start: usize, out: &mut [u8]) {
    let bytes = out.len() - start - LENGTH_BYTES;
    // Frames are bounded far below 4 GiB by whoever fills them.
    let length = u32::try_from(bytes).unwrap_or(u32::MAX);
    out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
}

/// A response frame being written.
#[derive(Debug, Clone, Copy)]
pub struct ResponseFrame {
    start: usize,
    /// The header's last two fields are known only at the end: flushes, and then a boolean, one byte
    /// in `MessagePack`.
    flushes_at: usize,
    is_sure_at: usize,
}

impl ResponseFrame {
    /// Starts one at the end of `out`.
    #[must_use]
    pub fn start(header: &ResponseHeader<'_>, out: &mut Vec<u8>) -> Self {
        let start = start_frame(header, out);
        let is_sure_at = out.len() - 1;
        Self {
            start,
            flushes_at: is_sure_at - encoded_bytes(header.flushes),
            is_sure_at,
        }
    }

    /// Bytes written since it was started.
    #[must_use]
    pub const fn bytes(self, out: &[u8]) -> usize {
        out.len() - self.start
    }

    /// Takes back what was written.
    pub fn cancel(self, out: &mut Vec<u8>) {
        out.truncate(self.start);
    }

    /// Ends it. Whether its answers are sure is known only now; so is which flushes they are judged
    /// by: one may have come while they were written.
    pub fn finish(self, is_sure: bool, flushes: Option<&[u8]>, out: &mut Vec<u8>) {
        const FALSE: u8 = 0xc2;
        const TRUE: u8 = 0xc3;
        out[self.is_sure_at] = if is_sure { TRUE } else { FALSE };
        let written = &out[self.flushes_at..self.is_sure_at];
        let flushes = flushes.map(ByteSlice::new);
        let is_same = written.len() == encoded_bytes(flushes)
            && flushes.is_none_or(|flushes| written.ends_with(flushes));
        if !is_same {
            let mut encoded = Vec::new();
            encode(&flushes, &mut encoded);
            out.splice(self.flushes_at..self.is_sure_at, encoded);
        }
        finish_frame(self.start, out);
    }
}

/// As how many bytes [`encode`] writes them.
fn encoded_bytes(flushes: Option<&ByteSlice>) -> usize {
    match flushes.map(|flushes| flushes.len()) {
        None => 1,
        Some(bytes @ ..256) => 2 + bytes,
        // At most 272 bytes of them.
        Some(bytes) => 3 + bytes,
    }
}

/// Takes the next whole frame off `input`, without its length. `None`: wait for more bytes.
pub fn split_frame(
    input: &mut BytesMut,
    frame_bytes_max: usize,
) -> Result<Option<Bytes>, FrameError> {
    let Some(length) = input.first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let bytes = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if bytes > frame_bytes_max {
        return Err(FrameError::TooLong {
            bytes,
            limit: frame_bytes_max,
        });
    }
    if input.len() < LENGTH_BYTES + bytes {
        return Ok(None);
    }
    input.advance(LENGTH_BYTES);
    Ok(Some(input.split_to(bytes).freeze()))
}

/// Reads the header and the operations of a frame, one after the other.
#[derive(Debug)]
pub struct FrameReader<'a> {
    decoder: rmp_serde::Deserializer<ReadRefReader<'a, [u8]>>,
}

impl<'a> FrameReader<'a> {
    /// A reader of a frame without its length.
    #[must_use]
    pub fn new(frame: &'a [u8]) -> Self {
        let mut decoder = rmp_serde::Deserializer::from_read_ref(frame);
        // The wire types nest a handful of levels: a frame of brackets must not exhaust the stack.
        decoder.set_max_depth(DEPTH_MAX);
        Self { decoder }
    }

    /// The next header or operation.
    pub fn read<T: Deserialize<'a>>(&mut self) -> Result<T, FrameError> {
        Ok(T::deserialize(&mut self.decoder)?)
    }
}

const DEPTH_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_bytes::Bytes as ByteSlice;

    use super::*;
    use crate::model::{
        Expiry, HlcTime, Kind, Millis, NodeTag, PartitionId, Prior, RecordRef, Stamp, Summary,
        Version,
    };
    use crate::wire::{Answer, Operation, Refusal, RequestHeader};

    fn version(hlc: u64, node: u64) -> Version {
        Version {
            hlc: HlcTime(hlc),
            node: NodeTag(node),
        }
    }

    proptest! {
        #[test]
        fn operations_survive_the_wire(
            key in prop::collection::vec(any::<u8>(), 1..80),
            value in prop::option::of(prop::collection::vec(any::<u8>(), 0..80)),
            numbers in any::<[u64; 4]>(),
            at in prop::option::of(any::<u64>()),
        ) {
            let expiry = Expiry { version: version(numbers[2], numbers[3]), at: at.map(Millis) };
            let record = RecordRef {
                version: version(numbers[0], numbers[1]),
                expiry,
                value: value.as_deref(),
                kind: Kind::Hash,
                covers: at.is_some(),
            };
            let key = ByteSlice::new(&key);
            let sent = [
                Operation::Read(key),
                Operation::Summary(key),
                Operation::Write(key, record.into()),
                Operation::Expire(key, expiry.into()),
                Operation::Members,
                Operation::Scan(PartitionId(7), at, numbers[3]),
                Operation::Hint(NodeTag(numbers[0]), key, record.into()),
                Operation::HintExpiry(NodeTag(numbers[1]), key, expiry.into(), at.map(|at| (at, 1))),
                Operation::HintedRead(key),
                Operation::HintedSummary(key),
            ];
            let header = RequestHeader {
                id: numbers[0],
                budget_ms: 7,
                count: 10,
                clock: HlcTime(numbers[1]),
                flushes: value.as_deref().map(ByteSlice::new),
                ring: at,
            };
            let mut out = Vec::new();
            let start = start_frame(&header, &mut out);
            sent.iter().for_each(|operation| encode(operation, &mut out));
            finish_frame(start, &mut out);

            let mut input = BytesMut::from(&out[..out.len() - 1]);
            prop_assert!(split_frame(&mut input, 10_000).unwrap().is_none());
            input.extend_from_slice(&out[out.len() - 1..]);
            let frame = split_frame(&mut input, 10_000).unwrap().unwrap();
            prop_assert!(input.is_empty());
            let mut reader = FrameReader::new(&frame);
            prop_assert_eq!(reader.read::<RequestHeader<'_>>().unwrap(), header);
            for operation in sent {
                prop_assert_eq!(reader.read::<Operation<'_>>().unwrap(), operation);
            }
            let Operation::Write(_, written) = sent[2] else { unreachable!() };
            prop_assert_eq!(RecordRef::from(written), record);
        }

        #[test]
        fn any_bytes_are_an_error_or_an_operation_but_never_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut reader = FrameReader::new(&bytes);
            while reader.read::<Operation<'_>>().is_ok() {}
            let mut reader = FrameReader::new(&bytes);
            while reader.read::<Answer<'_>>().is_ok() {}
            let mut input = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = split_frame(&mut input, 1_000) {}
        }
    }

    #[test]
    fn answers_survive_the_wire() {
        let stamp = Stamp {
            value: version(1, 2),
            expiry: version(u64::MAX, 4),
        };
        let summary = Summary {
            stamp,
            expires_at: Some(Millis(9)),
            value_bytes: None,
            kind: Kind::String,
        };
        let answers = [
            Answer::Record(None),
            Answer::Summary(Some(summary)),
            Answer::Applied(Prior::default()),
            Answer::Superseded(Prior {
                stamp: Some(stamp),
                live: true,
            }),
            Answer::Expiry(Some(summary), Some(Millis(3))),
            Answer::ExpirySuperseded(stamp),
            Answer::Members(ByteSlice::new(b"table")),
            Answer::Page(1, ByteSlice::new(b"records"), Some(7)),
            Answer::Refused(Refusal::ClockDrift),
        ];
        let mut out = Vec::new();
        answers.iter().for_each(|answer| encode(answer, &mut out));
        let mut reader = FrameReader::new(&out);
        for answer in answers {
            assert_eq!(reader.read::<Answer<'_>>().unwrap(), answer);
        }
        assert!(reader.read::<Answer<'_>>().is_err());
    }

    #[test]
    fn a_response_tells_at_its_end_whether_it_is_sure_and_what_was_flushed() {
        let lengths = [0, 17, 34, 16 * 17];
        let flushes = lengths.map(|length| vec![3; length]);
        let flushes = || flushes.iter().map(|f| (!f.is_empty()).then_some(&f[..]));
        for (before, after) in flushes().flat_map(|a| flushes().map(move |b| (a, b))) {
            for is_sure in [true, false] {
                let header = ResponseHeader {
                    id: 300,
                    count: 1,
                    clock: HlcTime(u64::MAX),
                    flushes: before.map(ByteSlice::new),
                    is_sure: !is_sure,
                };
                let mut out = vec![7];
                let frame = ResponseFrame::start(&header, &mut out);
                encode(&Answer::Record(None), &mut out);
                frame.finish(is_sure, after, &mut out);
                let mut input = BytesMut::from(&out[1..]);
                let frame = split_frame(&mut input, 10_000).unwrap().unwrap();
                assert!(input.is_empty());
                let mut reader = FrameReader::new(&frame);
                let read: ResponseHeader<'_> = reader.read().unwrap();
                let flushes = after.map(ByteSlice::new);
                let want = ResponseHeader {
                    is_sure,
                    flushes,
                    ..header
                };
                assert_eq!(read, want);
                assert_eq!(reader.read::<Answer<'_>>().unwrap(), Answer::Record(None));
            }
        }
    }

    #[test]
    fn an_announced_length_over_the_limit_is_refused_before_it_arrives() {
        let mut input = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
        assert!(matches!(
            split_frame(&mut input, 1_000),
            Err(FrameError::TooLong { limit: 1_000, .. })
        ));
    }

    #[test]
    fn deep_nesting_is_refused() {
        // 0x91: an array of one element, again and again.
        let brackets = vec![0x91; 100_000];
        assert!(FrameReader::new(&brackets).read::<Operation<'_>>().is_err());
    }
}
