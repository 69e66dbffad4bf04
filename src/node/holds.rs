//! Databases about to be flushed: no ballot is promised for their keys meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::{Database, DatabaseSet, HlcTime};
use crate::wire::HoldWords;

/// The flushes that have begun and not come yet.
#[derive(Debug, Default)]
pub(super) struct Holds {
    /// Nearly always there are none: one look tells.
    is_any: AtomicBool,
    held: Mutex<Vec<Hold>>,
    newest_ballot: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
struct Hold {
    number: HoldWords,
    databases: DatabaseSet,
    until: Instant,
}

impl Holds {
    /// Begins one. `false`: there are as many as there may be.
    pub(super) fn begin(&self, databases: DatabaseSet, number: HoldWords, now: Instant) -> bool {
        let mut held = self.held();
        held.retain(|hold| hold.until > now && hold.number != number);
        if held.len() >= HOLDS_MAX {
            return false;
        }
        held.push(Hold {
            number,
            databases,
            until: now + HOLD,
        });
        // Together with the order in `note_ballot` and `contains`: a ballot either is noted before
        // the flush reads the newest, or sees that it is held.
        self.is_any.store(true, Ordering::SeqCst);
        true
    }

    /// Ends one. Whether it was still held.
    pub(super) fn end(&self, number: HoldWords, now: Instant) -> bool {
        let mut held = self.held();
        let is_this = |hold: &Hold| hold.number == number && hold.until > now;
        let was_held = held.iter().any(is_this);
        held.retain(|hold| hold.number != number && hold.until > now);
        self.is_any.store(!held.is_empty(), Ordering::SeqCst);
        was_held
    }

    /// Whether the database of a key is held.
    #[inline]
    pub(super) fn contains(&self, key: &[u8], now: Instant) -> bool {
        if !self.is_any.load(Ordering::SeqCst) {
            return false;
        }
        let database = Database::split(key).0;
        let is_held = |hold: &Hold| hold.until > now && hold.databases.contains(database);
        self.held().iter().any(is_held)
    }

    /// Notes a ballot that may be promised.
    #[inline]
    pub(super) fn note_ballot(&self, ballot: HlcTime) {
        self.newest_ballot.fetch_max(ballot.0, Ordering::SeqCst);
    }

    /// The newest ballot that was or may be promised.
    pub(super) fn newest_ballot(&self) -> HlcTime {
        HlcTime(self.newest_ballot.load(Ordering::SeqCst))
    }

    fn held(&self) -> MutexGuard<'_, Vec<Hold>> {
        // std Mutex: never held across an await.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Some round trips, slow ones too; if the node that flushes dies in between, updates wait so long.
pub(super) const HOLD: Duration = Duration::from_millis(500);
/// Flushes under way at the same time.
const HOLDS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_hold_ends_with_its_flush_or_its_time() {
        let holds = Holds::default();
        let now = crate::env::Clock::monotonic(&crate::env::SystemClock);
        let zero = DatabaseSet::from_bits(1);
        assert!(holds.begin(zero, (1, 1), now));
        assert!(holds.begin(zero, (2, 1), now));
        assert!(holds.contains(b"k", now) && !holds.contains(b"\xfe\x01k", now));
        assert!(holds.end((1, 1), now) && !holds.end((1, 1), now));
        assert!(holds.contains(b"k", now), "the other one is under way");
        assert!(!holds.contains(b"k", now + HOLD));
        assert!(!holds.end((2, 1), now + HOLD), "it came too late");
        for number in 0..64 {
            assert!(holds.begin(zero, (3, number), now));
        }
        assert!(!holds.begin(zero, (4, 1), now));
        assert!(holds.begin(zero, (4, 1), now + HOLD));
    }
}
