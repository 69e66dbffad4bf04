//! The side of a comparison that is asked: it makes coded symbols of what this node holds.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use serde_bytes::Bytes as ByteSlice;

use crate::digest::{Encoder, Item, SYMBOL_BYTES, SessionKey};
use crate::model::{Digest, Epoch, PartitionId, Stamp};
use crate::protocol::STATE_BYTES;
use crate::store::{States, Store};
use crate::wire::{Answer, Refusal, SessionWords, StateWords, WireRecord, encode};

/// The comparisons that peers have begun with this node.
#[derive(Debug)]
pub struct Responder {
    store: Arc<Store>,
    /// The newest one at the end.
    sessions: Mutex<VecDeque<Session>>,
    /// What was read with the partition asked for last: its neighbours, which are asked for next.
    neighbours: Mutex<Neighbours>,
}

#[derive(Debug, Default)]
struct Neighbours {
    cut: Epoch,
    /// With the digest of all that each held then.
    states: BTreeMap<PartitionId, (Digest, States)>,
}

#[derive(Debug)]
struct Session {
    key: SessionWords,
    states: u64,
    made: u64,
    encoder: Encoder,
}

impl Responder {
    /// Tells of what is in this store.
    #[must_use]
    pub fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            sessions: Mutex::default(),
            neighbours: Mutex::default(),
        }
    }

    /// Begins a comparison.
    pub fn compare(
        &self,
        partition: PartitionId,
        key: SessionWords,
        cut: Epoch,
        count: u32,
        out: &mut Vec<u8>,
    ) {
        let states = self.read(partition, cut);
        let items = states.iter().map(|&(key, state)| Item { key, state });
        let mut session = Session {
            key,
            states: states.len() as u64,
            made: 0,
            encoder: Encoder::new(SessionKey(key.0, key.1), items),
        };
        session.tell(count, out);
        let mut sessions = self.sessions();
        sessions.push_back(session);
        // Whoever asks does not say when it has ended: the oldest ones make room.
        let mut states: u64 = sessions.iter().map(|session| session.states).sum();
        while sessions.len() > SESSIONS_MAX || (states > STATES_MAX && sessions.len() > 1) {
            states -= sessions.pop_front().map_or(0, |oldest| oldest.states);
        }
    }

    /// Goes on with one.
    pub fn symbols(&self, key: SessionWords, from: u64, count: u32, out: &mut Vec<u8>) {
        let mut sessions = self.sessions();
        let found = sessions.iter_mut().find(|session| session.key == key);
        match found.filter(|session| session.made == from) {
            Some(session) => session.tell(count, out),
            None => encode(&Answer::Refused(Refusal::NoSession), out),
        }
    }

    /// A page of states in their order, from after `after` on.
    pub fn states(
        &self,
        partition: PartitionId,
        cut: Epoch,
        after: Option<StateWords>,
        out: &mut Vec<u8>,
    ) {
        let mut states = self.read(partition, cut);
        states.sort_unstable();
        let from = after.map_or(0, |after| states.partition_point(|state| *state <= after));
        let page = &states[from..states.len().min(from + STATES_A_PAGE)];
        let mut bytes = Vec::with_capacity(page.len() * STATE_BYTES);
        for (key, state) in page {
            bytes.extend_from_slice(&key.to_le_bytes());
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        let has_more = from + page.len() < states.len();
        encode(&Answer::States(ByteSlice::new(&bytes), has_more), out);
    }

    /// The records whose key has this hash and that are newer than `than`, if there is room for values.
    pub fn fetch(
        &self,
        partition: PartitionId,
        hash: u64,
        than: Option<Stamp>,
        room: usize,
        out: &mut Vec<u8>,
    ) {
        if room == 0 {
            encode(&Answer::Refused(Refusal::Busy), out);
            return;
        }
        let (mut count, mut page) = (0, Vec::new());
        self.store.find(partition, hash, |key, record| {
            if than.is_none_or(|than| record.stamp() > than) {
                encode(&(ByteSlice::new(key), WireRecord::from(record)), &mut page);
                count += 1;
            }
        });
        encode(&Answer::Page(count, ByteSlice::new(&page), None), out);
    }

    /// What this node holds of a partition. Its neighbours are read with it, and not again as long
    /// as they are what they were.
    fn read(&self, partition: PartitionId, cut: Epoch) -> States {
        // std Mutex: never held across an await.
        let mut neighbours = self
            .neighbours
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let present = self.store.present(partition);
        let known = neighbours.states.get(&partition);
        if neighbours.cut != cut || known.is_none_or(|(as_of, _)| *as_of != present) {
            let group = Store::group(partition);
            // Before what they are the digests of: what changes in between is read again.
            let as_of: Vec<_> = Store::partitions_of(group)
                .map(|partition| (partition, self.store.present(partition)))
                .collect();
            let mut states = self.store.group_states(group, cut);
            let states = as_of.into_iter().map(|(partition, as_of)| {
                let states = states.remove(&partition).unwrap_or_default();
                (partition, (as_of, states))
            });
            *neighbours = Neighbours {
                cut,
                states: states.collect(),
            };
        }
        let states = neighbours.states.get(&partition);
        states.map_or_else(States::new, |(_, states)| states.clone())
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, VecDeque<Session>> {
        // std Mutex: never held across an await.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    fn tell(&mut self, count: u32, out: &mut Vec<u8>) {
        let count = count.min(SYMBOLS_MAX);
        let mut bytes = Vec::with_capacity(count as usize * SYMBOL_BYTES);
        for symbol in self.encoder.by_ref().take(count as usize) {
            symbol.encode(&mut bytes);
        }
        self.made += u64::from(count);
        let symbols = Answer::Symbols(self.states, ByteSlice::new(&bytes));
        encode(&symbols, out);
    }
}

/// A few peers with a batch each.
const SESSIONS_MAX: usize = 128;
/// States in all of them: some hundred megabytes at most.
const STATES_MAX: u64 = 2_000_000;
const SYMBOLS_MAX: u32 = 16_384;
/// Pages of 64 kB.
const STATES_A_PAGE: usize = 4_096;
