//! Whom to dial, and when again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::env::SeededRng;
use crate::model::NodeId;

/// Addresses that someone wants a connection to, with their backoff.
#[derive(Debug)]
pub(super) struct DialBook {
    entries: BTreeMap<SocketAddr, Entry>,
    rng: SeededRng,
}

#[derive(Debug)]
struct Entry {
    expected: Option<NodeId>,
    /// Wanted since the last attempt.
    wanted: bool,
    under_way: bool,
    not_before: Instant,
    failures: u32,
}

impl DialBook {
    pub(super) const fn new(rng: SeededRng) -> Self {
        Self {
            entries: BTreeMap::new(),
            rng,
        }
    }

    /// Notes that a connection is wanted. Repeats are harmless.
    pub(super) fn want(&mut self, addr: SocketAddr, expected: Option<NodeId>, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&addr) {
            entry.wanted = true;
            entry.expected = expected.or_else(|| entry.expected.take());
            return;
        }
        if self.entries.len() >= ENTRIES_MAX {
            // Gossip can name more addresses than there are: those that wait longest to be tried
            // again make room, and are back as soon as someone wants them.
            self.entries
                .retain(|_, entry| entry.under_way || entry.not_before <= now);
        }
        if self.entries.len() < ENTRIES_MAX {
            let entry = Entry {
                expected,
                wanted: true,
                under_way: false,
                not_before: now,
                failures: 0,
            };
            self.entries.insert(addr, entry);
        }
    }

    /// The addresses to dial now; each until [`DialBook::on_result`].
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<(SocketAddr, Option<NodeId>)> {
        let under_way = self
            .entries
            .values()
            .filter(|entry| entry.under_way)
            .count();
        let room = UNDER_WAY_MAX.saturating_sub(under_way);
        let mut due = Vec::new();
        for (&addr, entry) in &mut self.entries {
            if due.len() == room {
                break;
            }
            if entry.wanted && !entry.under_way && entry.not_before <= now {
                (entry.wanted, entry.under_way) = (false, true);
                due.push((addr, entry.expected.clone()));
            }
        }
        due
    }

    /// An attempt has ended.
    pub(super) fn on_result(&mut self, addr: SocketAddr, is_connected: bool, now: Instant) {
        let Some(entry) = self.entries.get_mut(&addr) else {
            return;
        };
        entry.under_way = false;
        if is_connected {
            entry.failures = 0;
            entry.not_before = now + BACKOFF_MIN;
            return;
        }
        let backoff = BACKOFF_MIN.saturating_mul(1 << entry.failures.min(BACKOFF_DOUBLINGS_MAX));
        entry.failures = entry.failures.saturating_add(1);
        // Half of it is jitter: nodes that lost each other together do not dial together.
        entry.not_before = now + backoff.mul_f64(0.5 + self.rng.fraction() / 2.0);
    }
}

/// Beyond the largest cluster; gossip may name addresses that nobody has.
const ENTRIES_MAX: usize = 4_096;
const UNDER_WAY_MAX: usize = 64;
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// 100 ms doubled so often is 0.8 s: a node that comes back is met within two seconds.
const BACKOFF_DOUBLINGS_MAX: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{Clock, SystemClock};

    fn addr(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_up_to_a_bound_and_success_resets() {
        let mut book = DialBook::new(SeededRng::from_seed(1));
        let mut now = SystemClock.monotonic();
        let mut waits = Vec::new();
        for _ in 0..8 {
            book.want(addr(1), None, now);
            let start = now;
            while book.take_due(now).is_empty() {
                now += Duration::from_millis(1);
            }
            waits.push(now - start);
            assert!(book.take_due(now).is_empty(), "one attempt at a time");
            book.on_result(addr(1), false, now);
        }
        assert_eq!(waits[0], Duration::ZERO);
        assert!(waits[1] >= BACKOFF_MIN / 2);
        assert!(waits[7] >= 4 * BACKOFF_MIN && waits[7] <= 8 * BACKOFF_MIN + BACKOFF_MIN);
        now += Duration::from_secs(1);
        book.want(addr(1), None, now);
        assert_eq!(book.take_due(now).len(), 1);
        book.on_result(addr(1), true, now);
        book.want(addr(1), None, now);
        now += BACKOFF_MIN;
        assert_eq!(book.take_due(now).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn invented_addresses_are_bounded() {
        let mut book = DialBook::new(SeededRng::from_seed(1));
        let now = SystemClock.monotonic();
        for port in 1..u16::MAX {
            book.want(addr(port), None, now);
        }
        assert_eq!(book.entries.len(), ENTRIES_MAX);
        assert_eq!(book.take_due(now).len(), UNDER_WAY_MAX);
        assert!(book.take_due(now).is_empty());
    }
}
