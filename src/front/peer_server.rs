//! The door for peers: request frames in, response frames out.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde_bytes::Bytes as ByteSlice;

use crate::env::Clock;
use crate::model::{HashedKey, KeyHasher, Millis, RecordRef, Summary, check_key};
use crate::net::PeerService;
use crate::node::replica::{Replica, Written};
use crate::ring::Partitions;
use crate::store::ExpiryChange;
use crate::wire::{
    Answer, FrameError, FrameReader, Operation, RESPONSE_VALUES_BYTES_MAX, Refusal, RequestHeader,
    ResponseHeader, encode, finish_frame, start_frame,
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

    fn answer(&self, operation: Operation<'_>, now: Millis, room: usize, out: &mut Vec<u8>) {
        match operation {
            Operation::Read(key) => match self.key(key) {
                Some(key) => self.read(key, now, room, out),
                None => encode(&TOO_BIG, out),
            },
            Operation::Summary(key) => {
                let held = self.key(key).and_then(|key| self.replica.summary(key, now));
                encode(&Answer::Summary(held), out);
            }
            Operation::Write(key, record) => {
                let written = self
                    .key(key)
                    .ok_or(Refusal::TooBig)
                    .and_then(|key| self.replica.write(key, RecordRef::from(record), now));
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
                let changed = self
                    .key(key)
                    .ok_or(Refusal::TooBig)
                    .and_then(|key| self.replica.change_expiry(key, expiry.into(), now));
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
            }
            Operation::Members => {
                encode(
                    &Answer::Members(ByteSlice::new(&(self.member_table)())),
                    out,
                );
            }
        }
    }

    /// The whole record while the response has room for values, its summary after that: the
    /// caller asks again for what it still needs.
    fn read(&self, key: HashedKey<'_>, now: Millis, room: usize, out: &mut Vec<u8>) {
        self.replica.read(key, now, |record| {
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
        let RequestHeader { id, count, .. } = operations.read()?;
        let now = self.clock.wall();
        let start = start_frame(&ResponseHeader { id, count }, out);
        for _ in 0..count {
            let operation = operations.read()?;
            let room = RESPONSE_VALUES_BYTES_MAX.saturating_sub(out.len() - start);
            self.answer(operation, now, room, out);
        }
        finish_frame(start, out);
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
