//! What a stand-in keeps for homes that could not take a write: one queue a home.
//!
//! A hint for a key replaces an older one for the same home, and moves to the end of its queue:
//! queues are in order of age. All of them together are bounded in bytes, each hint in age.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use hashlink::LinkedHashMap;

use crate::model::{Body, Expiry, Millis, NodeTag, Prior, Record, RecordRef, Stamp, Version};

/// What may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HintLimits {
    /// Bytes of all hints, [`HINT_BYTES`] for each of them included.
    pub bytes_max: u64,
    /// How old a hint may get.
    pub window: Duration,
}

/// A change of expiry that a home missed, of a value that its stand-in does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissedExpiry {
    /// The change.
    pub expiry: Expiry,
    /// The version of the value that it is of, if whoever sent it knew that.
    pub of: Option<Version>,
}

/// What a home missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missed {
    /// A write; its expiry may have changed since.
    Write(Record),
    /// A change of expiry.
    Expiry(MissedExpiry),
    /// A change of expiry, and a write that came after it and need not be the value that it is of:
    /// the home is given one after the other.
    // Boxed: it is rare, and must not make every hint larger.
    ExpiryThenWrite(Box<MissedExpiry>, Record),
}

impl Missed {
    /// What orders it, and tells it from others of the key.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        match self {
            Self::Write(record) => record.stamp(),
            Self::Expiry(missed) => Stamp::fresh(missed.expiry.version),
            Self::ExpiryThenWrite(missed, record) => Stamp {
                value: record.version,
                expiry: record.expiry.version.max(missed.expiry.version),
            },
        }
    }

    /// The write in it.
    #[must_use]
    pub const fn write(&self) -> Option<&Record> {
        match self {
            Self::Write(record) | Self::ExpiryThenWrite(_, record) => Some(record),
            Self::Expiry(_) => None,
        }
    }

    /// The change of expiry in it, which comes before the write.
    #[must_use]
    pub const fn expiry(&self) -> Option<MissedExpiry> {
        match self {
            Self::Expiry(missed) => Some(*missed),
            Self::ExpiryThenWrite(missed, _) => Some(**missed),
            Self::Write(_) => None,
        }
    }

    /// Whether it is of no use any more: a value that has expired by itself.
    #[must_use]
    pub fn is_over(&self, now: Millis) -> bool {
        matches!(self, Self::Write(record) if record.is_expired(now))
    }

    fn value_bytes(&self) -> u64 {
        let body = self.write().map(|record| &record.body);
        match body {
            Some(Body::Value(value)) => value.len() as u64,
            Some(Body::Tombstone) | None => 0,
        }
    }

    fn prior(&self, now: Millis) -> Prior {
        let is_live =
            |record: &Record| matches!(record.body, Body::Value(_)) && !record.is_expired(now);
        let stamp = match self.write() {
            Some(record) => record.stamp(),
            None => self.stamp(),
        };
        Prior {
            stamp: Some(stamp),
            live: self.write().is_some_and(is_live),
        }
    }

    /// What is missed with a write that comes after this. A change of expiry is of one value: it is
    /// merged into that one only, never into a later one, which it would pass as the newest state of it.
    fn then_write(&self, record: Record) -> Self {
        let Some(missed) = self.expiry() else {
            return Self::Write(record);
        };
        let MissedExpiry { expiry, of } = missed;
        if expiry.version <= record.expiry.version || expiry.version <= record.version {
            return Self::Write(record);
        }
        if of == Some(record.version) {
            return Self::Write(Record { expiry, ..record });
        }
        Self::ExpiryThenWrite(Box::new(missed), record)
    }

    /// What is missed with a change of expiry that comes after this; `None`: no more than before.
    fn then_expiry(&self, missed: MissedExpiry, now: Millis) -> Option<Self> {
        let Some(record) = self.write() else {
            return Some(Self::Expiry(missed));
        };
        let MissedExpiry { expiry, of } = missed;
        if of.is_some_and(|of| of > record.version) {
            return Some(Self::ExpiryThenWrite(Box::new(missed), record.clone()));
        }
        if matches!(record.body, Body::Tombstone) || record.is_expired(now) {
            // There is no value for it to change.
            return None;
        }
        let record = Record {
            expiry,
            ..record.clone()
        };
        Some(match self.expiry() {
            Some(earlier) => Self::ExpiryThenWrite(Box::new(earlier), record),
            None => Self::Write(record),
        })
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
        let held = self.get(home, key).map(|held| &held.missed);
        let prior = held.map_or_else(Prior::default, |held| held.prior(since));
        let write = held.and_then(Missed::write);
        if write.is_some_and(|write| write.stamp() > record.stamp()) {
            return Kept::Superseded(prior);
        }
        // Copied: a slice would keep the whole frame that it came in.
        let record = record.to_record();
        let missed = match held {
            Some(held) => held.then_write(record),
            None => Missed::Write(record),
        };
        self.put(home, key, Hint { missed, since }, prior)
    }

    /// Keeps a change of expiry for a home.
    pub fn keep_expiry(
        &mut self,
        home: NodeTag,
        key: &[u8],
        expiry: MissedExpiry,
        since: Millis,
    ) -> Kept {
        let held = self.get(home, key).map(|held| &held.missed);
        let prior = held.map_or_else(Prior::default, |held| held.prior(since));
        let missed = match held {
            Some(held) if held.stamp().newest() > expiry.expiry.version => {
                return Kept::Superseded(Prior {
                    stamp: Some(held.stamp()),
                    ..prior
                });
            }
            Some(held) => held.then_expiry(expiry, since),
            None => Some(Missed::Expiry(expiry)),
        };
        match missed {
            Some(missed) => self.put(home, key, Hint { missed, since }, prior),
            None => Kept::Kept(prior),
        }
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
        let records = hints.filter_map(|hint| hint.missed.write());
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
pub const HINT_BYTES: u64 = 240;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::HlcTime;

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

    fn missed(hlc: u64, at: u64, of: Option<u64>) -> MissedExpiry {
        let of = of.map(version);
        let expiry = expiry(hlc, at);
        MissedExpiry { expiry, of }
    }

    #[test]
    fn a_change_of_expiry_meets_its_value_in_either_order() {
        for expiry_first in [false, true] {
            let mut queues = queues(10_000);
            let change = |queues: &mut HintQueues| {
                queues.keep_expiry(HOME, b"a", missed(7, 99_000, Some(5)), Millis(7))
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

    /// The home held a value of version 3, which was given an expiry at 7; then somebody whose clock is
    /// behind wrote the value anew, at 5, without an expiry.
    #[test]
    fn an_older_change_of_expiry_does_not_end_a_later_value() {
        for of in [Some(3), None] {
            let mut queues = queues(10_000);
            queues.keep_expiry(HOME, b"a", missed(7, 9_000, of), Millis(7));
            keep(&mut queues, "a", 5);
            assert_eq!(queues.read(b"a").unwrap().expiry.at, None);
            let hint = queues.get(HOME, b"a").unwrap();
            let write = record(5, 10);
            let both = Missed::ExpiryThenWrite(Box::new(missed(7, 9_000, of)), write.clone());
            assert_eq!(hint.missed, both);
            let given = given_to(&record(3, 1), &hint.missed);
            assert_eq!(given.stamp(), write.stamp());
            assert_eq!(given.expiry.at, None);
        }
    }

    /// What a home that held this holds when it was given a hint.
    fn given_to(held: &Record, missed: &Missed) -> Record {
        let mut held = held.clone();
        if let Some(MissedExpiry { expiry, .. }) = missed.expiry()
            && held.stamp().newest() <= expiry.version
        {
            held.expiry = expiry;
        }
        match missed.write() {
            Some(write) if write.stamp() > held.stamp() => write.clone(),
            _ => held,
        }
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Set,
        Expire(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
        let step = prop_oneof![Just(Step::Set), (9_000_u64..9_009).prop_map(Step::Expire)];
        // Clocks differ: in the order of the commands, versions go up and down.
        let versions = Just((2_u64..14).collect::<Vec<_>>()).prop_shuffle();
        (versions, prop::collection::vec(step, 1..8))
            .prop_map(|(versions, steps)| versions.into_iter().zip(steps).collect())
    }

    proptest! {
        /// The law of merging: a home that is given the hint holds what one holds that took each
        /// command when it came, or something that other homes hold too, and never a value with an
        /// expiry that no home has given it.
        #[test]
        fn a_hint_gives_no_value_an_expiry_that_it_has_nowhere_else(steps in steps()) {
            let first = record(1, 1);
            let mut queues = queues(10_000);
            let mut home = first.clone();
            for (hlc, step) in steps {
                match step {
                    Step::Set => {
                        let write = record(hlc, 10);
                        queues.keep(HOME, b"a", (&write).into(), Millis(1));
                        if write.stamp() > home.stamp() {
                            home = write;
                        }
                    }
                    Step::Expire(at) => {
                        let of = Some(home.version.hlc.0);
                        if home.stamp().newest() <= version(hlc) {
                            queues.keep_expiry(HOME, b"a", missed(hlc, at, of), Millis(1));
                            home.expiry = expiry(hlc, at);
                        }
                    }
                }
            }
            let given = queues.get(HOME, b"a").map_or_else(|| first.clone(), |hint| given_to(&first, &hint.missed));
            prop_assert!(given.stamp() <= home.stamp(), "{given:?} is newer than {home:?}");
            if given.version == home.version && given.expiry.version == home.expiry.version {
                prop_assert_eq!(given.expiry, home.expiry);
            }
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
