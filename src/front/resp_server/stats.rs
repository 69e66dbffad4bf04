//! What the RESP door counts. Plain atomics: they are touched by every request.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use smallvec::SmallVec;

use super::login::Login;
use crate::model::Level;
use crate::resp::CommandKind;

/// Counters of the RESP door.
#[derive(Debug)]
pub struct RespStats {
    answered: [AtomicU64; CommandKind::COUNT],
    failed: [AtomicU64; CommandKind::COUNT],
    /// Requests that are no command: unknown names, broken syntax.
    pub refused: AtomicU64,
    /// Connections closed because the protocol was broken.
    pub protocol_errors: AtomicU64,
    /// Connections ever accepted.
    pub connections_accepted: AtomicU64,
    /// Connections refused because there were too many.
    pub connections_refused: AtomicU64,
    /// Connections open now.
    pub connections_open: AtomicU64,
    /// Connections closed because the client did not read its replies.
    pub unread_closed: AtomicU64,
    /// Connections closed in the middle of a reply whose rest could not be read.
    pub replies_cut: AtomicU64,
    /// Reads that found a value.
    pub hits: AtomicU64,
    /// Reads that found none.
    pub misses: AtomicU64,
    /// Commands that do not exist, by name.
    unknown: Mutex<BTreeMap<String, u64>>,
    /// What the counters that `INFO` shows were at when a client reset them.
    reset: Mutex<Baseline>,
    /// Passwords that were wrong.
    pub failed_logins: AtomicU64,
    /// Passwords that were not looked at, soon after a wrong one of the same address.
    pub refused_logins: AtomicU64,
    /// How long requests took: of each command at each level, and without one last.
    seconds: Box<[[Latencies; LEVELS]; CommandKind::COUNT]>,
}

/// Counters as they were.
#[derive(Debug, Default)]
struct Baseline {
    /// By the place of the counter in [`RespStats`].
    counters: Vec<u64>,
    commands: Vec<(u64, u64)>,
}

/// Each level, and none: commands that are about the connection have none.
const LEVELS: usize = Level::EVERY.len() + 1;

/// What was carried out together: so many of each command at each level.
#[derive(Debug, Default)]
pub(super) struct Tally(SmallVec<[(CommandKind, Option<Level>, u64); TALLIED_INLINE]>);

impl Tally {
    /// Counts one command.
    pub(super) fn add(&mut self, kind: CommandKind, level: Option<Level>) {
        // The last one is the likeliest to come again.
        let same = |(k, l, _): &&mut (CommandKind, Option<Level>, u64)| (*k, *l) == (kind, level);
        match self.0.iter_mut().rev().find(same) {
            Some((.., count)) => *count += 1,
            None => self.0.push((kind, level, 1)),
        }
    }

    /// How many of each.
    pub(super) fn counts(&self) -> &[(CommandKind, Option<Level>, u64)] {
        &self.0
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// A pipeline rarely has more kinds.
const TALLIED_INLINE: usize = 4;

impl Default for RespStats {
    fn default() -> Self {
        Self {
            answered: [const { AtomicU64::new(0) }; CommandKind::COUNT],
            failed: [const { AtomicU64::new(0) }; CommandKind::COUNT],
            refused: AtomicU64::new(0),
            protocol_errors: AtomicU64::new(0),
            connections_accepted: AtomicU64::new(0),
            connections_refused: AtomicU64::new(0),
            connections_open: AtomicU64::new(0),
            unread_closed: AtomicU64::new(0),
            replies_cut: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            unknown: Mutex::default(),
            reset: Mutex::default(),
            failed_logins: AtomicU64::new(0),
            refused_logins: AtomicU64::new(0),
            seconds: Box::new(std::array::from_fn(|_| {
                std::array::from_fn(|_| Latencies::default())
            })),
        }
    }
}

impl RespStats {
    /// Counts one command that was carried out.
    pub fn count(&self, kind: CommandKind, is_ok: bool) {
        let counters = if is_ok { &self.answered } else { &self.failed };
        counters[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a password that was not right.
    pub(super) fn count_login(&self, login: Login) {
        let counter = match login {
            Login::Wrong => &self.failed_logins,
            Login::Refused => &self.refused_logins,
            Login::Right | Login::NotAsked { .. } => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Lets what `INFO` shows begin from nothing. Metrics go on: they are never set back.
    pub(super) fn reset(&self) {
        let now = Baseline {
            counters: self
                .shown()
                .iter()
                .map(|c| c.load(Ordering::Relaxed))
                .collect(),
            commands: CommandKind::ALL.iter().map(|kind| self.of(*kind)).collect(),
        };
        *self.reset.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// A counter that `INFO` shows, since it was reset.
    pub(super) fn since_reset(&self, counter: &AtomicU64) -> u64 {
        let place = self
            .shown()
            .iter()
            .position(|shown| std::ptr::eq(*shown, counter));
        let baseline = self.reset.lock().unwrap_or_else(PoisonError::into_inner);
        let before = place.and_then(|place| baseline.counters.get(place));
        let before = before.copied().unwrap_or(0);
        counter.load(Ordering::Relaxed).saturating_sub(before)
    }

    /// How many commands of a kind were answered and failed since the reset.
    pub(super) fn of_since_reset(&self, kind: CommandKind) -> (u64, u64) {
        let baseline = self.reset.lock().unwrap_or_else(PoisonError::into_inner);
        let before = baseline.commands.get(kind as usize);
        let before = before.copied().unwrap_or_default();
        let now = self.of(kind);
        (
            now.0.saturating_sub(before.0),
            now.1.saturating_sub(before.1),
        )
    }

    /// All commands since the reset.
    pub(super) fn commands_since_reset(&self) -> u64 {
        let of = CommandKind::ALL
            .iter()
            .map(|kind| self.of_since_reset(*kind));
        of.map(|(answered, failed)| answered + failed).sum()
    }

    const fn shown(&self) -> [&AtomicU64; 4] {
        [
            &self.connections_accepted,
            &self.connections_refused,
            &self.hits,
            &self.misses,
        ]
    }

    /// Notes how long commands took that were carried out together: each took all of it.
    pub(super) fn took(&self, took: Duration, tally: &Tally) {
        for &(kind, level, count) in tally.counts() {
            self.seconds[kind as usize][place(level)].record(took, count);
        }
    }

    /// How long the commands of a kind took at a level.
    #[must_use]
    pub fn seconds(&self, kind: CommandKind, level: Option<Level>) -> &Latencies {
        &self.seconds[kind as usize][place(level)]
    }

    /// Counts a command that does not exist. Names are bounded in number, length and letters: they
    /// are whatever a client has sent.
    pub fn count_unknown(&self, name: &str) {
        let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_name =
            !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.chars().all(is_letter);
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        let name = name.to_ascii_lowercase();
        let has_room = unknown.len() < NAMES_MAX || unknown.contains_key(&name);
        let name = if is_name && has_room {
            name
        } else {
            OTHER.to_owned()
        };
        *unknown.entry(name).or_default() += 1;
    }

    /// The commands that do not exist and were asked for, and how often.
    #[must_use]
    pub fn unknown(&self) -> BTreeMap<String, u64> {
        self.unknown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How many commands of a kind were answered, and how many with an error.
    #[must_use]
    pub fn of(&self, kind: CommandKind) -> (u64, u64) {
        let load = |counters: &[AtomicU64]| counters[kind as usize].load(Ordering::Relaxed);
        (load(&self.answered), load(&self.failed))
    }

    /// How many commands were carried out in all.
    #[must_use]
    pub fn commands(&self) -> u64 {
        let all = self.answered.iter().chain(&self.failed);
        all.map(|counter| counter.load(Ordering::Relaxed)).sum()
    }
}

/// Redis has no longer one.
const NAME_BYTES_MAX: usize = 24;
const NAMES_MAX: usize = 64;
/// What is counted together: what is no name, and what comes when there are enough.
const OTHER: &str = "(other)";

const fn place(level: Option<Level>) -> usize {
    match level {
        Some(level) => level as usize,
        None => LEVELS - 1,
    }
}

/// A histogram of durations: counts below each of [`BOUNDS_US`], and above all of them.
#[derive(Debug)]
pub struct Latencies {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BOUNDS_US.len() + 1],
            sum_us: AtomicU64::new(0),
        }
    }
}

impl Latencies {
    /// Counts `requests` that took `each`.
    pub fn record(&self, each: Duration, requests: u64) {
        let us = u64::try_from(each.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|&bound| bound < us);
        self.buckets[bucket].fetch_add(requests, Ordering::Relaxed);
        self.sum_us
            .fetch_add(us.saturating_mul(requests), Ordering::Relaxed);
    }

    /// The counts, bucket by bucket, not cumulated; the last one has no upper bound.
    #[must_use]
    pub fn counts(&self) -> [u64; BOUNDS_US.len() + 1] {
        std::array::from_fn(|bucket| self.buckets[bucket].load(Ordering::Relaxed))
    }

    /// All durations together, in microseconds.
    #[must_use]
    pub fn sum_us(&self) -> u64 {
        self.sum_us.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the buckets in microseconds: from a local hit to the patience of a client.
pub const BOUNDS_US: [u64; 16] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_are_counted_and_bounded() {
        let stats = RespStats::default();
        stats.count_unknown("FooBar");
        stats.count_unknown("foobar");
        stats.count_unknown("pass word");
        stats.count_unknown(&"x".repeat(100));
        (0..1_000).for_each(|number| stats.count_unknown(&format!("c{number}")));
        let unknown = stats.unknown();
        assert_eq!((unknown["foobar"], unknown.len()), (2, NAMES_MAX));
        assert_eq!(unknown.values().sum::<u64>(), 1_004);
        assert!(unknown[OTHER] > 900);
    }

    #[test]
    fn bounds_are_inclusive_as_prometheus_has_them() {
        let latencies = Latencies::default();
        latencies.record(Duration::from_micros(50), 3);
        latencies.record(Duration::from_micros(51), 1);
        latencies.record(Duration::from_secs(60), 1);
        let counts = latencies.counts();
        assert_eq!((counts[0], counts[1], counts[BOUNDS_US.len()]), (3, 1, 1));
        assert_eq!(latencies.sum_us(), 3 * 50 + 51 + 60_000_000);
    }
}
