//! What a stand-in keeps for homes that could not take a write: one queue a home.
//!
//! A hint for a key replaces an older one for the same home, and moves to the end of its queue:
//! queues are in order of age. All of them together are bounded in bytes, each hint in age.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use hashlink::LinkedHashMap;

use crate::model::{Body, Expiry, Millis, NodeTag, Prior, Record, RecordRef, Stamp};

/// What may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HintLimits {
    /// Bytes of all hints, [`HINT_BYTES`] for each of them included.
    pub bytes_max: u64,
    /// How old a hint may get.
    pub window: Duration,
}

/// What a home missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missed {
    /// A write; its expiry may have changed since.
    Write(Record),
    /// A change of expiry of a value that this stand-in does not know.
    Expiry(Expiry),
}

impl Missed {
    /// What orders it.
    #[must_use]
    pub const fn stamp(&self) -> Stamp {
        match self {
            Self::Write(record) => record.stamp(),
            Self::Expiry(expiry) => Stamp::fresh(expiry.version),
        }
    }

    fn is_over(&self, now: Millis) -> bool {
        matches!(self, Self::Write(record) if record.is_expired(now))
    }

    fn value_bytes(&self) -> u64 {
        match self {
            Self::Write(Record {
                body: Body::Value(value),
                ..
            }) => value.len() as u64,
            _ => 0,
        }
    }

    fn prior(&self, now: Millis) -> Prior {
        Prior {
            stamp: Some(self.stamp()),
            live: match self {
                Self::Write(record) => {
                    matches!(record.body, Body::Value(_)) && !record.is_expired(now)
                }
                Self::Expiry(_) => false,
            },
        }
    }
}

/// A hint as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// What was missed.
    pub missed: Missed,
    /// Since when it is kept.
    pub since: Millis,
}

/// What became of a hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is kept, in the place of this.
    Kept(Prior),
    /// What is kept already is newer.
    Superseded(Prior),
    /// There is no room.
    Full,
}

/// Hints that are of no use any more.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// For whom and of which key.
    pub hints: Vec<(NodeTag, Box<[u8]>)>,
    /// How many of them were too old; the others' time was over.
    pub too_old: u64,
}

/// What is kept for one home.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HintSummary {
    /// How many.
    pub count: u64,
    /// How many bytes.
    pub bytes: u64,
    /// Since when the oldest is kept.
    pub oldest: Option<Millis>,
}

/// All hints of one stand-in.
#[derive(Debug)]
pub struct HintQueues {
    limits: HintLimits,
    homes: BTreeMap<NodeTag, Queue>,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Queue {
    hints: LinkedHashMap<Box<[u8]>, Hint>,
    bytes: u64,
}

impl HintQueues {
    /// No hints yet.
    #[must_use]
    pub const fn new(limits: HintLimits) -> Self {
        Self {
            limits,
            homes: BTreeMap::new(),
            bytes: 0,
        }
    }

    /// Keeps a write for a home.
    pub fn keep(
        &mut self,
        home: NodeTag,
        key: &[u8],
        record: RecordRef<'_>,
        since: Millis,
    ) -> Kept {
        let held = self.get(home, key);
        let prior = held.map_or_else(Prior::default, |held| held.missed.prior(since));
        let mut record_expiry = record.expiry;
        match held.map(|held| &held.missed) {
            Some(Missed::Write(held)) if held.stamp() > record.stamp() => {
                return Kept::Superseded(prior);
            }
            // A change of expiry that came first, of this value or a later one.
            Some(Missed::Expiry(expiry)) if expiry.version > record.expiry.version => {
                record_expiry = *expiry;
            }
            _ => {}
        }
        let record = RecordRef {
            expiry: record_expiry,
            ..record
        };
        // Copied: a slice would keep the whole frame that it came in.
        let missed = Missed::Write(record.to_record());
        self.put(home, key, Hint { missed, since }, prior)
    }

    /// Keeps a change of expiry for a home.
    pub fn keep_expiry(
        &mut self,
        home: NodeTag,
        key: &[u8],
        expiry: Expiry,
        since: Millis,
    ) -> Kept {
        let held = self.get(home, key);
        let prior = held.map_or_else(Prior::default, |held| held.missed.prior(since));
        let missed = match held.map(|held| &held.missed) {
            Some(held) if held.stamp().newest() > expiry.version => {
                return Kept::Superseded(prior);
            }
            Some(Missed::Write(record)) => match &record.body {
                Body::Value(_) if !record.is_expired(since) => Missed::Write(Record {
                    expiry,
                    ..record.clone()
                }),
                // There is no value for it to change.
                _ => return Kept::Kept(prior),
            },
            Some(Missed::Expiry(_)) | None => Missed::Expiry(expiry),
        };
        self.put(home, key, Hint { missed, since }, prior)
    }

    /// Takes over a hint that was kept before, as from a disk. The newest of several for a key
    /// stays, whatever their order.
    pub fn restore(&mut self, home: NodeTag, key: &[u8], hint: Hint) {
        let is_older = |held: &Hint| held.missed.stamp() > hint.missed.stamp();
        if !self.get(home, key).is_some_and(is_older) {
            // What was taken once is not refused when the bound has become smaller.
            self.replace(home, key, hint);
        }
    }

    /// The newest that is kept of a key, for whichever home.
    #[must_use]
    pub fn read(&self, key: &[u8]) -> Option<&Record> {
        let hints = self.homes.values().filter_map(|queue| queue.hints.get(key));
        let records = hints.filter_map(|hint| match &hint.missed {
            Missed::Write(record) => Some(record),
            Missed::Expiry(_) => None,
        });
        records.max_by_key(|record| record.stamp())
    }

    /// What is kept of a key for one home.
    #[must_use]
    pub fn get(&self, home: NodeTag, key: &[u8]) -> Option<&Hint> {
        self.homes.get(&home)?.hints.get(key)
    }

    /// The oldest hints for a home, up to about so many bytes.
    #[must_use]
    pub fn oldest(&self, home: NodeTag, bytes_max: u64) -> Vec<(Bytes, Missed)> {
        let mut bytes = 0;
        let hints = self.homes.get(&home).into_iter();
        hints
            .flat_map(|queue| queue.hints.iter())
            .take_while(|(key, hint)| {
                let is_first = bytes == 0;
                bytes += size(key, hint);
                is_first || bytes <= bytes_max
            })
            .map(|(key, hint)| (Bytes::copy_from_slice(key), hint.missed.clone()))
            .collect()
    }

    /// Removes a hint if it is still this one. Whether it was.
    pub fn remove(&mut self, home: NodeTag, key: &[u8], stamp: Stamp) -> bool {
        let is_same = |hint: &Hint| hint.missed.stamp() == stamp;
        if !self.get(home, key).is_some_and(is_same) {
            return false;
        }
        self.take(home, key).is_some()
    }

    /// Puts a hint behind all others of its home.
    pub fn postpone(&mut self, home: NodeTag, key: &[u8]) {
        if let Some(queue) = self.homes.get_mut(&home) {
            queue.hints.to_back(key);
        }
    }

    /// Removes all hints for a home. Their keys.
    pub fn remove_all(&mut self, home: NodeTag) -> Vec<Box<[u8]>> {
        let Some(queue) = self.homes.remove(&home) else {
            return Vec::new();
        };
        self.bytes -= queue.bytes;
        queue.hints.into_iter().map(|(key, _)| key).collect()
    }

    /// Removes what is over or too old at `now`.
    pub fn expire(&mut self, now: Millis) -> Ended {
        let window = u64::try_from(self.limits.window.as_millis()).unwrap_or(u64::MAX);
        let since_min = Millis(now.0.saturating_sub(window));
        let mut ended = Ended::default();
        for (&home, queue) in &self.homes {
            for (key, hint) in &queue.hints {
                let is_too_old = hint.since < since_min;
                ended.too_old += u64::from(is_too_old);
                if is_too_old || hint.missed.is_over(now) {
                    ended.hints.push((home, key.clone()));
                }
            }
        }
        for (home, key) in &ended.hints {
            self.take(*home, key);
        }
        ended
    }

    /// Every hint there is.
    pub fn iter(&self) -> impl Iterator<Item = (NodeTag, &[u8], &Hint)> {
        self.homes.iter().flat_map(|(&home, queue)| {
            let hints = queue.hints.iter();
            hints.map(move |(key, hint)| (home, &key[..], hint))
        })
    }

    /// Whom there are hints for, and how many.
    #[must_use]
    pub fn summaries(&self) -> BTreeMap<NodeTag, HintSummary> {
        let summary = |queue: &Queue| HintSummary {
            count: queue.hints.len() as u64,
            bytes: queue.bytes,
            oldest: queue.hints.front().map(|(_, hint)| hint.since),
        };
        let homes = self.homes.iter();
        homes.map(|(&home, queue)| (home, summary(queue))).collect()
    }

    /// How many hints there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.homes
            .values()
            .map(|queue| queue.hints.len() as u64)
            .sum()
    }

    /// Their bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    fn put(&mut self, home: NodeTag, key: &[u8], hint: Hint, prior: Prior) -> Kept {
        let before = self.get(home, key).map_or(0, |held| size(key, held));
        let after = size(key, &hint);
        if after > before && self.bytes - before + after > self.limits.bytes_max {
            return Kept::Full;
        }
        self.replace(home, key, hint);
        Kept::Kept(prior)
    }

    fn replace(&mut self, home: NodeTag, key: &[u8], hint: Hint) {
        self.take(home, key);
        let bytes = size(key, &hint);
        let queue = self.homes.entry(home).or_default();
        queue.hints.insert(key.into(), hint);
        queue.bytes += bytes;
        self.bytes += bytes;
    }

    fn take(&mut self, home: NodeTag, key: &[u8]) -> Option<Hint> {
        let queue = self.homes.get_mut(&home)?;
        let hint = queue.hints.remove(key)?;
        let bytes = size(key, &hint);
        queue.bytes -= bytes;
        self.bytes -= bytes;
        if queue.hints.is_empty() {
            // With its table: an outage long past must not hold on to memory.
            self.homes.remove(&home);
        }
        Some(hint)
    }
}

fn size(key: &[u8], hint: &Hint) -> u64 {
    HINT_BYTES + key.len() as u64 + hint.missed.value_bytes()
}

/// What a hint takes beyond its key and its value, in memory.
pub const HINT_BYTES: u64 = 232;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{HlcTime, Version};

    const HOME: NodeTag = NodeTag(1);

    fn version(hlc: u64) -> Version {
        Version {
            hlc: HlcTime(hlc),
            node: NodeTag(9),
        }
    }

    fn record(hlc: u64, length: usize) -> Record {
        Record::value(version(hlc), None, Bytes::from(vec![7; length]))
    }

    fn expiry(hlc: u64, at: u64) -> Expiry {
        Expiry {
            version: version(hlc),
            at: Some(Millis(at)),
        }
    }

    fn queues(bytes_max: u64) -> HintQueues {
        HintQueues::new(HintLimits {
            bytes_max,
            window: Duration::from_secs(10),
        })
    }

    fn keep(queues: &mut HintQueues, key: &str, hlc: u64) -> Kept {
        queues.keep(HOME, key.as_bytes(), (&record(hlc, 10)).into(), Millis(hlc))
    }

    #[test]
    fn the_newest_hint_of_a_key_stays_and_goes_to_the_end() {
        let mut queues = queues(10_000);
        assert_eq!(keep(&mut queues, "a", 5), Kept::Kept(Prior::default()));
        keep(&mut queues, "b", 6);
        let held = |hlc| Prior {
            stamp: Some(Stamp::fresh(version(hlc))),
            live: true,
        };
        assert_eq!(keep(&mut queues, "a", 4), Kept::Superseded(held(5)));
        assert_eq!(keep(&mut queues, "a", 7), Kept::Kept(held(5)));
        let order: Vec<_> = queues
            .oldest(HOME, 10_000)
            .into_iter()
            .map(|(k, _)| k)
            .collect();
        assert_eq!(order, ["b", "a"]);
        assert!(
            !queues.remove(HOME, b"a", Stamp::fresh(version(5))),
            "replaced since"
        );
        assert!(queues.remove(HOME, b"a", Stamp::fresh(version(7))));
        assert_eq!(queues.summaries()[&HOME].count, 1);
    }

    #[test]
    fn a_full_store_refuses_but_lets_values_be_replaced() {
        let mut queues = queues(2 * (HINT_BYTES + 11));
        keep(&mut queues, "a", 1);
        keep(&mut queues, "b", 2);
        assert_eq!(keep(&mut queues, "c", 3), Kept::Full);
        assert!(matches!(keep(&mut queues, "a", 4), Kept::Kept(_)));
        assert_eq!(queues.count(), 2);
        assert_eq!(queues.remove_all(HOME).len(), 2);
        assert_eq!((queues.count(), queues.bytes()), (0, 0));
    }

    #[test]
    fn what_is_over_or_too_old_is_dropped() {
        let mut queues = queues(10_000);
        keep(&mut queues, "old", 1_000);
        let ends = Record::value(version(2), Some(Millis(12_000)), Bytes::new());
        queues.keep(HOME, b"ends", (&ends).into(), Millis(9_000));
        keep(&mut queues, "stays", 9_500);
        let Ended { hints, too_old } = queues.expire(Millis(12_000));
        let keys: Vec<_> = hints.iter().map(|(_, key)| &key[..]).collect();
        assert_eq!((keys, too_old), (vec![&b"old"[..], b"ends"], 1));
        assert_eq!(queues.count(), 1);
    }

    #[test]
    fn a_change_of_expiry_meets_its_value_in_either_order() {
        for expiry_first in [false, true] {
            let mut queues = queues(10_000);
            let change = |queues: &mut HintQueues| {
                queues.keep_expiry(HOME, b"a", expiry(7, 99_000), Millis(7))
            };
            if expiry_first {
                change(&mut queues);
                assert_eq!(queues.read(b"a"), None);
            }
            keep(&mut queues, "a", 5);
            if !expiry_first {
                change(&mut queues);
            }
            let held = queues.read(b"a").unwrap();
            assert_eq!((held.version, held.expiry), (version(5), expiry(7, 99_000)));
            // A newer value ends when it says itself.
            keep(&mut queues, "a", 8);
            assert_eq!(queues.read(b"a").unwrap().expiry.at, None);
            assert!(matches!(change(&mut queues), Kept::Superseded(_)));
        }
    }

    proptest! {
        /// Whatever comes in whatever order: the bytes add up, and of each key the newest is left.
        #[test]
        fn sums_are_right_and_the_newest_is_kept(
            steps in prop::collection::vec((0u64..3, 0u8..6, 1u64..50, 0usize..40, any::<bool>()), 1..200)
        ) {
            let mut queues = queues(4_000);
            let mut newest = BTreeMap::new();
            for (home, key, hlc, length, is_write) in steps {
                let home = NodeTag(home);
                let stamp = Stamp::fresh(version(hlc));
                if is_write {
                    let kept = queues.keep(home, &[key], (&record(hlc, length)).into(), Millis(hlc));
                    if matches!(kept, Kept::Kept(_)) {
                        newest.insert((home, key), hlc);
                    }
                } else if queues.remove(home, &[key], stamp) {
                    prop_assert_eq!(newest.remove(&(home, key)), Some(hlc));
                }
                let all: u64 = queues.iter().map(|(_, key, hint)| size(key, hint)).sum();
                prop_assert_eq!(all, queues.bytes());
                prop_assert!(queues.bytes() <= 4_000);
                prop_assert_eq!(queues.summaries().values().map(|s| s.bytes).sum::<u64>(), all);
            }
            let kept: BTreeMap<_, _> = queues
                .iter()
                .map(|(home, key, hint)| ((home, key[0]), hint.missed.stamp().value.hlc.0))
                .collect();
            prop_assert_eq!(kept, newest);
        }
    }
}
