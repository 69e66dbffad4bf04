//! Hybrid logical clock.
//!
//! Kulkarni, Demirbas, Madappa, Avva, Leone, *Logical Physical Clocks and Consistent Snapshots in
//! Globally Distributed Databases* (OPODIS 2014), in 64 bits: 48 bits of milliseconds since 1970,
//! then a 16 bit counter that overflows into the milliseconds.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A moment of the wall clock, in milliseconds since 1970-01-01 UTC.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// This moment and `duration` more, at most the last one that can be written.
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(ms))
    }
}

/// A slice of the hybrid logical clock's time, 4.096 s long; its last moment is a *cut*. Replicas
/// compare what they hold of the writes up to a cut: what is written after it differs between
/// them for a moment, as always while writes are under way.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// How long each is.
    pub const DURATION: Duration = Duration::from_millis(1 << EPOCH_BITS);

    /// The one that a moment is in.
    #[must_use]
    pub const fn of(moment: Millis) -> Self {
        Self(moment.0 >> EPOCH_BITS)
    }

    /// Its first moment.
    #[must_use]
    pub const fn begin(self) -> Millis {
        Millis(self.0 << EPOCH_BITS)
    }

    /// The first moment after it.
    #[must_use]
    pub const fn end(self) -> Millis {
        Millis((self.0 + 1) << EPOCH_BITS)
    }

    /// The one before.
    #[must_use]
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// A reading of a hybrid logical clock. Later readings of one clock are always greater.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct HlcTime(pub u64);

impl HlcTime {
    /// The first reading of a millisecond.
    #[must_use]
    pub const fn from_millis(now: Millis) -> Self {
        Self(now.0 << COUNTER_BITS)
    }

    /// The milliseconds of this reading.
    #[must_use]
    pub const fn millis(self) -> Millis {
        Millis(self.0 >> COUNTER_BITS)
    }
}

impl fmt::Display for HlcTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> COUNTER_BITS, self.0 & COUNTER_MASK)
    }
}

/// A reading that is further ahead of the wall clock than a healthy clock can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("clock reading is {ahead_ms} ms ahead of this node's clock, the limit is {limit_ms} ms")]
pub struct ClockDrift {
    /// How far ahead, in milliseconds.
    pub ahead_ms: u64,
    /// The limit it broke, in milliseconds.
    pub limit_ms: u64,
}

/// One node's hybrid logical clock. Reads no clock itself: `now` is handed in.
///
/// Lock-free, shared by all tasks of a node.
#[derive(Debug)]
pub struct Hlc {
    last: AtomicU64,
    drift_max: Duration,
}

impl Hlc {
    /// A clock that refuses readings more than `drift_max` ahead of the wall clock.
    #[must_use]
    pub const fn new(drift_max: Duration) -> Self {
        Self {
            last: AtomicU64::new(0),
            drift_max,
        }
    }

    /// How far ahead of the wall clock a reading may be.
    #[must_use]
    pub const fn drift_max(&self) -> Duration {
        self.drift_max
    }

    /// The next reading: greater than every one before it and every one observed.
    pub fn tick(&self, now: Millis) -> HlcTime {
        let wall = HlcTime::from_millis(now).0;
        let step = |last: u64| Some(wall.max(last.saturating_add(1)));
        // `step` always returns Some, so both arms hold the value before the update.
        let (Ok(last) | Err(last)) =
            self.last
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, step);
        HlcTime(wall.max(last.saturating_add(1)))
    }

    /// The present reading, without a new one: at least the wall clock, and every reading that was
    /// taken or observed.
    #[must_use]
    pub fn read(&self, now: Millis) -> HlcTime {
        HlcTime(
            HlcTime::from_millis(now)
                .0
                .max(self.last.load(Ordering::Acquire)),
        )
    }

    /// Moves this clock past a reading of another one, so that the next [`Hlc::tick`] is greater.
    ///
    /// A reading too far ahead is refused and never adopted: one broken clock must not drag the
    /// whole cluster into the future.
    pub fn observe(&self, seen: HlcTime, now: Millis) -> Result<(), ClockDrift> {
        // The common case first: nothing to learn from a reading this clock has passed.
        if seen.0 <= self.last.load(Ordering::Acquire) {
            return Ok(());
        }
        self.check(seen, now)?;
        self.last.fetch_max(seen.0, Ordering::AcqRel);
        Ok(())
    }

    /// Goes back to the wall clock. Readings can be repeated then: whoever makes versions of them has
    /// to do so under another name from before this on, and what was refused elsewhere has to go.
    pub fn drop_to(&self, now: Millis) {
        self.last
            .store(HlcTime::from_millis(now).0, Ordering::Release);
    }

    /// Whether a reading is near enough to the wall clock to be adopted.
    pub fn check(&self, seen: HlcTime, now: Millis) -> Result<(), ClockDrift> {
        let ahead_ms = seen.millis().0.saturating_sub(now.0);
        let limit_ms = u64::try_from(self.drift_max.as_millis()).unwrap_or(u64::MAX);
        if ahead_ms > limit_ms {
            return Err(ClockDrift { ahead_ms, limit_ms });
        }
        Ok(())
    }
}

/// A power of two, for the sake of those who need the epoch of each write.
const EPOCH_BITS: u32 = 12;
const COUNTER_BITS: u32 = 16;
const COUNTER_MASK: u64 = (1 << COUNTER_BITS) - 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DRIFT: Duration = Duration::from_secs(10);

    proptest! {
        #[test]
        fn ticks_grow_whatever_the_wall_clock_does(walls in prop::collection::vec(0u64..1 << 40, 1..50)) {
            let clock = Hlc::new(DRIFT);
            let readings: Vec<_> = walls.iter().map(|&ms| clock.tick(Millis(ms))).collect();
            prop_assert!(readings.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(readings.iter().zip(&walls).all(|(reading, &ms)| reading.millis().0 >= ms));
        }

        #[test]
        fn a_tick_after_an_observed_reading_is_greater(now in 0u64..1 << 40, ahead in 0u64..10_000) {
            let clock = Hlc::new(DRIFT);
            let seen = HlcTime::from_millis(Millis(now + ahead));
            clock.observe(seen, Millis(now)).unwrap();
            prop_assert!(clock.tick(Millis(now)) > seen);
        }
    }

    #[test]
    fn drift_over_the_limit_is_refused_and_not_adopted() {
        let clock = Hlc::new(DRIFT);
        let now = Millis(1_000_000);
        let seen = HlcTime::from_millis(Millis(now.0 + 10_001));
        let refused = clock.observe(seen, now);
        assert_eq!(
            refused,
            Err(ClockDrift {
                ahead_ms: 10_001,
                limit_ms: 10_000
            })
        );
        assert!(clock.tick(now) < seen);
    }

    #[test]
    fn a_clock_that_ran_ahead_is_dropped_to_the_wall_clock() {
        let clock = Hlc::new(DRIFT);
        let future = clock.tick(Millis(3_600_000));
        assert!(clock.tick(Millis(1_000)) > future);
        clock.drop_to(Millis(1_000));
        assert_eq!(clock.tick(Millis(1_000)).millis(), Millis(1_000));
    }

    #[test]
    fn a_full_counter_runs_into_the_next_millisecond() {
        let clock = Hlc::new(DRIFT);
        let now = Millis(5);
        let mut last = clock.tick(now);
        for _ in 0..=COUNTER_MASK {
            let next = clock.tick(now);
            assert!(next > last);
            last = next;
        }
        assert_eq!(last.millis(), Millis(6));
    }
}
