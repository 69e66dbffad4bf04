//! Questions to replicas: to peers through the outbox, to this node's own copy at once.

use std::sync::Arc;

use bytes::Bytes;
use serde_bytes::Bytes as ByteSlice;
use tokio::time::Instant;

use super::{Batch, Expected, Item, Op, Parcel, Reply, State, What, count};
use crate::model::{Body, Expiry, HashedKey, Kind, Record, RecordRef, Summary};
use crate::net::LARGE_BYTES;
use crate::protocol::{ReadOp, Told};
use crate::wire::{Operation, to_wire};

impl Batch {
    pub(super) fn start(&self, state: &mut State, number: usize) {
        let homes = self.homes(state.items[number].partition);
        // The local copy first: if it is newer than this write, that is found out before a byte
        // is sent.
        let local = homes.iter().position(|&home| self.is_self(home));
        if let Some(local) = local {
            self.ask_first(state, number, local);
        }
        for replica in (0..homes.len()).filter(|&replica| Some(replica) != local) {
            self.ask_first(state, number, replica);
        }
        if homes.is_empty() {
            // No member holds data yet. The deadline answers, with how many replied: none.
            return self.on_deadline(state, number);
        }
        // Those who stood in for a write before it was stamped anew.
        let stand_ins = match &state.items[number].operation {
            Op::Write { op, .. } => op.stand_ins().map(|(number, _)| number).collect(),
            _ => Vec::new(),
        };
        for stand_in in stand_ins {
            self.ask_first(state, number, stand_in);
        }
        self.replace_absent(state, number);
    }

    /// Sends the first question of an operation to one replica.
    pub(super) fn ask_first(&self, state: &mut State, item: usize, replica: usize) {
        match &state.items[item].operation {
            Op::Read(op) => {
                if op.is_asked(replica) {
                    let whole = op.is_asked_for_record(replica);
                    self.ask_held(state, item, replica, whole);
                }
            }
            Op::Write { op, .. } => {
                if op.is_asked(replica) {
                    self.ask_write(state, item, replica);
                }
            }
            Op::Expire(op) => {
                let expiry = op.expiry;
                self.ask_expiry(state, item, replica, expiry);
            }
        }
    }

    pub(super) fn ask_held(&self, state: &mut State, item: usize, replica: usize, whole: bool) {
        let expected = Expected {
            item,
            replica,
            what: What::Held,
        };
        let to = self.replica(state, item, replica);
        let stands_in = state.items[item].stand_in(replica).is_some();
        // Known to be so where it is fetched for the sake of a repair.
        let is_large = self.takes_large || state.items[item].newest_bytes() >= LARGE_BYTES;
        let State { items, outbox, .. } = state;
        let key = &items[item].key;
        if whole && is_large && !stands_in {
            // Not at once on this node either: see [`Batch::read_here`].
            let ask = Operation::ReadLarge(ByteSlice::new(key));
            return outbox.push_alone(to, &ask, expected);
        }
        if to != self.shared.self_tag {
            let key = ByteSlice::new(key);
            let ask = match (stands_in, whole) {
                (false, true) => Operation::Read(key),
                (false, false) => Operation::Summary(key),
                (true, true) => Operation::HintedRead(key),
                (true, false) => Operation::HintedSummary(key),
            };
            outbox.push(to, true, &ask, expected);
            return;
        }
        if stands_in {
            let replica = &self.shared.replica;
            let room = &mut state.room;
            let reply = self.shared.handoff.read(key, |record| {
                let record = record.filter(|record| !replica.is_flushed(key, record.stamp()));
                let fits =
                    |record: &&Record| whole && room.fits(RecordRef::from(*record).value_bytes());
                Reply::Told(Told {
                    held: record.map(|record| Summary::of(record.into())),
                    record: record.filter(fits).cloned(),
                    is_sure: false,
                })
            });
            return self.on_reply(state, expected, reply);
        }
        let key = items[item].hashed();
        let is_sure = self.shared.replica.is_sure(key.partition);
        let room = &mut state.room;
        let reply = self.shared.replica.read(key, |record| {
            let record = record.as_ref();
            // Looked at before it is copied.
            let fits = |record: &&RecordRef<'_>| {
                let bytes = record.value_bytes();
                whole && bytes < LARGE_BYTES && room.fits(bytes)
            };
            Reply::Told(Told {
                held: record.map(|&record| Summary::of(record)),
                record: record.filter(fits).map(RecordRef::to_record),
                is_sure,
            })
        });
        self.on_reply(state, expected, reply);
    }

    pub(super) fn ask_write(&self, state: &mut State, item: usize, replica: usize) {
        let to = self.replica(state, item, replica);
        let stood_in_for = self.stood_in_for(state, item, replica);
        let State { items, outbox, .. } = state;
        let Op::Write { op, payload } = &items[item].operation else {
            return;
        };
        let version = op.version();
        let expected = Expected {
            item,
            replica,
            what: What::Written(version),
        };
        let expiry = Expiry {
            version,
            at: payload.expires_at,
        };
        let record = RecordRef {
            version,
            expiry,
            value: payload.value.as_deref(),
            kind: Kind::String,
            covers: false,
        };
        let key = ByteSlice::new(&items[item].key);
        if let Some(home) = stood_in_for {
            let is_urgent = op.outcome().is_none();
            let hint = Operation::Hint(home, key, record.into());
            let value = payload.value.as_ref().unwrap_or(&NO_VALUE);
            return outbox.push_sharing((to, is_urgent), &hint, expected, value);
        }
        if to != self.shared.self_tag {
            let write = Operation::Write(key, record.into());
            let value = payload.value.as_ref().unwrap_or(&NO_VALUE);
            return outbox.push_sharing((to, true), &write, expected, value);
        }
        if let Some(value) = payload.value.as_ref()
            && value.len() >= LARGE_BYTES
        {
            // Not at once: see [`Batch::carry_out_here`].
            let write = Operation::Write(key, record.into());
            return outbox.push_sharing((to, true), &write, expected, value);
        }
        let key = items[item].hashed();
        let written = match self.may_write_here(key.partition, version) {
            Ok(()) => self.shared.replica.write(key, record, self.now()),
            Err(refusal) => Err(refusal),
        };
        let reply = match written {
            Ok(written) => Reply::Written(written),
            Err(refusal) => Reply::Failed(Some(refusal)),
        };
        self.on_reply(state, expected, reply);
    }

    /// Reads a value that may be large from this node's own copy: on a thread that serves nobody, and
    /// answered like a peer's.
    fn read_here(self: &Arc<Self>, item: &Item, expected: Expected, deadline: Instant) {
        let (bytes, hash, partition) = (item.key.clone(), item.hash, item.partition);
        let replica = Arc::clone(&self.shared.replica);
        let (batch, tasks) = (Arc::clone(self), self.shared.env.tasks.clone());
        let read = move || {
            let key = HashedKey {
                bytes: &bytes,
                hash,
                partition,
            };
            let is_sure = replica.is_sure(partition);
            replica.read(key, |record| {
                let whole = |record: RecordRef<'_>| Record {
                    version: record.version,
                    expiry: record.expiry,
                    body: record.value.map_or(Body::Tombstone, |value| {
                        Body::Value(tasks.free_aside(value.to_vec()))
                    }),
                    kind: record.kind,
                    covers: record.covers,
                };
                Reply::Told(Told {
                    held: record.map(Summary::of),
                    record: record.map(whole),
                    is_sure,
                })
            })
        };
        self.shared.env.tasks.spawn(async move {
            let read = batch.shared.env.tasks.offload(read).await;
            let reply = read.unwrap_or(Reply::Failed(None));
            batch.with_state(deadline, |batch, state| {
                batch.on_reply(state, expected, reply);
            });
        });
    }

    /// Reads or writes a large value of this node's own copy: on a thread that serves nobody, because it
    /// takes milliseconds, and answered like a peer's.
    pub(super) fn carry_out_here(
        self: &Arc<Self>,
        state: &State,
        parcel: &Parcel,
        deadline: Instant,
    ) {
        for &expected in &parcel.expected {
            let item = &state.items[expected.item];
            if let What::Held = expected.what {
                self.read_here(item, expected, deadline);
                continue;
            }
            // Nothing else is packed for this node itself but hints.
            let (Op::Write { payload, .. }, What::Written(version)) =
                (&item.operation, expected.what)
            else {
                continue;
            };
            let (bytes, value, at) = (item.key.clone(), payload.value.clone(), payload.expires_at);
            let (hash, partition) = (item.hash, item.partition);
            let (batch, wall) = (Arc::clone(self), self.now());
            let may_write = self.may_write_here(partition, version);
            let replica = Arc::clone(&self.shared.replica);
            let write = move || {
                let record = RecordRef {
                    version,
                    expiry: Expiry { version, at },
                    value: value.as_deref(),
                    kind: Kind::String,
                    covers: false,
                };
                let key = HashedKey {
                    bytes: &bytes,
                    hash,
                    partition,
                };
                replica.write_large(key, record, wall)
            };
            self.shared.env.tasks.spawn(async move {
                let written = match may_write {
                    Ok(()) => batch.shared.env.tasks.offload(write).await,
                    Err(refusal) => Ok(Err(refusal)),
                };
                let reply = match written {
                    Ok(Ok(written)) => Reply::Written(written),
                    Ok(Err(refusal)) => Reply::Failed(Some(refusal)),
                    Err(_ended) => Reply::Failed(None),
                };
                batch.with_state(deadline, |batch, state| {
                    batch.on_reply(state, expected, reply);
                });
            });
        }
    }

    pub(super) fn ask_expiry(
        &self,
        state: &mut State,
        item: usize,
        replica: usize,
        expiry: Expiry,
    ) {
        let to = self.replica(state, item, replica);
        let stood_in_for = self.stood_in_for(state, item, replica);
        let expected = Expected {
            item,
            replica,
            what: What::Expiry(expiry.version),
        };
        let State { items, outbox, .. } = state;
        let key = ByteSlice::new(&items[item].key);
        if let Some(home) = stood_in_for {
            // Where a home has taken the change, that tells which value it is of.
            let newest = items[item].read().and_then(ReadOp::newest);
            let of = newest.map(|summary| to_wire(summary.stamp.value));
            let hint = Operation::HintExpiry(home, key, expiry.into(), of);
            return outbox.push(to, true, &hint, expected);
        }
        if to != self.shared.self_tag {
            let change = Operation::Expire(key, expiry.into());
            return outbox.push(to, true, &change, expected);
        }
        let key = state.items[item].hashed();
        let changed = match self.may_write_here(key.partition, expiry.version) {
            Ok(()) => self.shared.replica.change_expiry(key, expiry, self.now()),
            Err(refusal) => Err(refusal),
        };
        let reply = match changed {
            Ok(change) => Reply::Expiry {
                change,
                is_sure: self.shared.replica.is_sure(key.partition),
            },
            Err(refusal) => Reply::Failed(Some(refusal)),
        };
        self.on_reply(state, expected, reply);
    }

    pub(super) fn repair(&self, state: &mut State, item: usize, replica: usize) {
        let home = self.homes(state.items[item].partition)[replica];
        let State {
            items,
            outbox,
            unanswered,
            ..
        } = state;
        let Some(record) = items[item].read().and_then(ReadOp::record) else {
            return;
        };
        count(&self.shared.stats.read_repairs, 1);
        let expected = Expected {
            item,
            replica,
            what: What::Repaired,
        };
        if home != self.shared.self_tag {
            let key = ByteSlice::new(&items[item].key);
            let write = Operation::Write(key, RecordRef::from(record).into());
            let value = match &record.body {
                Body::Value(value) => value,
                Body::Tombstone => &NO_VALUE,
            };
            let to = (home, *unanswered > 0);
            outbox.push_sharing(to, &write, expected, value);
            return;
        }
        let written = self
            .shared
            .replica
            .write(items[item].hashed(), record.into(), self.now());
        let reply = match written {
            Ok(written) => Reply::Written(written),
            Err(refusal) => Reply::Failed(Some(refusal)),
        };
        self.on_reply(state, expected, reply);
    }
}

static NO_VALUE: Bytes = Bytes::new();
