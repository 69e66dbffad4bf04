//! The door for peers: request frames in, response frames out.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde_bytes::Bytes as ByteSlice;

use crate::env::Clock;
use crate::model::{HashedKey, KeyHasher, Millis, PartitionId, RecordRef, Summary, check_key};
use crate::net::PeerService;
use crate::node::replica::{Replica, Written};
use crate::ring::Partitions;
use crate::store::ExpiryChange;
use crate::wire::{
    Answer, FrameError, FrameReader, Operation, PAGE_BYTES_MAX, RESPONSE_VALUES_BYTES_MAX, Refusal,
    RequestHeader, ResponseFrame, ResponseHeader, WireRecord, encode,
};

/// Where a node's encoded member table comes from.
pub type MemberTableSource = Box<dyn Fn() -> Bytes + Send + Sync>;

/// Carries out what peers ask of this node as a replica.
pub struct PeerServer {
    replica: Arc<Replica>,
    clock: Arc<dyn Clock>,
    hasher: KeyHasher,
    partitions: Partitions,
    member_table: MemberTableSource,
}

impl PeerServer {
    /// A door to `replica`.
    #[must_use]
    pub fn new(
        replica: Arc<Replica>,
        clock: Arc<dyn Clock>,
        hasher: KeyHasher,
        partitions: Partitions,
        member_table: MemberTableSource,
    ) -> Self {
        Self {
            replica,
            clock,
            hasher,
            partitions,
            member_table,
        }
    }

    /// Answers one operation; whether the answer is sure.
    fn answer(
        &self,
        operation: Operation<'_>,
        wall: Millis,
        room: usize,
        out: &mut Vec<u8>,
    ) -> bool {
        match operation {
            Operation::Read(key) => {
                let Some(key) = self.key(key) else {
                    encode(&TOO_BIG, out);
                    return true;
                };
                self.read(key, room, out);
                return self.replica.is_sure(key.partition);
            }
            Operation::Summary(key) => {
                let Some(key) = self.key(key) else {
                    encode(&TOO_BIG, out);
                    return true;
                };
                encode(&Answer::Summary(self.replica.summary(key)), out);
                return self.replica.is_sure(key.partition);
            }
            Operation::Write(key, record) => {
                let written = self
                    .key(key)
                    .ok_or(Refusal::TooBig)
                    .and_then(|key| self.replica.write(key, RecordRef::from(record), wall));
                encode(
                    &match written {
                        Ok(Written::Applied(prior)) => Answer::Applied(prior),
                        Ok(Written::Superseded(by)) => Answer::Superseded(by),
                        Err(refusal) => Answer::Refused(refusal),
                    },
                    out,
                );
            }
            Operation::Expire(key, expiry) => {
                let key = self.key(key);
                let changed = key
                    .ok_or(Refusal::TooBig)
                    .and_then(|key| self.replica.change_expiry(key, expiry.into(), wall));
                encode(
                    &match changed {
                        Ok(ExpiryChange::Done {
                            now_held,
                            expired_at_before,
                        }) => Answer::Expiry(now_held, expired_at_before),
                        Ok(ExpiryChange::Superseded { by }) => Answer::ExpirySuperseded(by),
                        Err(refusal) => Answer::Refused(refusal),
                    },
                    out,
                );
                return key.is_none_or(|key| self.replica.is_sure(key.partition));
            }
            Operation::Scan(partition, after) => {
                self.scan(partition, after, out);
                return self.replica.is_sure(partition);
            }
            Operation::Members => {
                encode(
                    &Answer::Members(ByteSlice::new(&(self.member_table)())),
                    out,
                );
            }
        }
        true
    }

    fn scan(&self, partition: PartitionId, after: Option<u64>, out: &mut Vec<u8>) {
        let (mut count, mut page) = (0, Vec::new());
        let next = self.replica.scan(partition, after, |key, record| {
            encode(&(ByteSlice::new(key), WireRecord::from(record)), &mut page);
            count += 1;
            page.len() < PAGE_BYTES_MAX
        });
        encode(&Answer::Page(count, ByteSlice::new(&page), next), out);
    }

    /// The whole record while the response has room for values, its summary after that: the
    /// caller asks again for what it still needs.
    fn read(&self, key: HashedKey<'_>, room: usize, out: &mut Vec<u8>) {
        self.replica.read(key, |record| {
            // Encoded under the partition's lock, straight from the store: the one copy made.
            match record {
                Some(record) if room == 0 => {
                    encode(&Answer::Summary(Some(Summary::of(record))), out);
                }
                record => encode(&Answer::Record(record.map(Into::into)), out),
            }
        });
    }

    fn key<'a>(&self, bytes: &'a [u8]) -> Option<HashedKey<'a>> {
        check_key(bytes).ok()?;
        let hash = self.hasher.hash(bytes);
        Some(HashedKey {
            bytes,
            hash,
            partition: self.partitions.of(hash),
        })
    }
}

impl PeerService for PeerServer {
    fn serve(&self, frame: &Bytes, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let mut operations = FrameReader::new(frame);
        let RequestHeader {
            id, count, clock, ..
        } = operations.read()?;
        let wall = self.clock.wall();
        self.replica.note_clock(clock, wall);
        let header = ResponseHeader {
            id,
            count,
            clock: self.replica.now(wall),
            is_sure: true,
        };
        let frame = ResponseFrame::start(&header, out);
        let mut is_sure = true;
        for _ in 0..count {
            let operation = operations.read()?;
            let room = RESPONSE_VALUES_BYTES_MAX.saturating_sub(frame.bytes(out));
            is_sure &= self.answer(operation, wall, room, out);
        }
        frame.finish(is_sure, out);
        Ok(())
    }
}

impl fmt::Debug for PeerServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerServer")
            .field("replica", &self.replica)
            .finish_non_exhaustive()
    }
}

const TOO_BIG: Answer<'static> = Answer::Refused(Refusal::TooBig);
