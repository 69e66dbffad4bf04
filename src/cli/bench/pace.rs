//! When requests are due in a run of a fixed rate. Knows nothing of what they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::env::Clock;

/// Evenly spaced requests, dealt round robin to connections: request k is due k / rate seconds
/// after the start and belongs to connection k mod connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    pub(super) start: Instant,
    /// Requests a second, at least 1.
    pub(super) rate: u64,
    pub(super) connections: u64,
}

impl Schedule {
    /// When the `nth` request (from 0) of a connection is due.
    pub(super) fn due_at(&self, connection: u64, nth: u64) -> Instant {
        self.request_due_at(
            nth.saturating_mul(self.connections)
                .saturating_add(connection),
        )
    }

    /// How many requests of a connection are due by `now`.
    pub(super) fn due(&self, connection: u64, now: Instant) -> u64 {
        self.due_in_all(now)
            .saturating_sub(connection)
            .div_ceil(self.connections)
    }

    /// How many requests of all connections are due by `now`.
    pub(super) fn due_in_all(&self, now: Instant) -> u64 {
        match now.checked_duration_since(self.start) {
            None => 0,
            Some(elapsed) => {
                let due = elapsed.as_nanos() * u128::from(self.rate) / NANOS;
                u64::try_from(due).unwrap_or(u64::MAX).saturating_add(1)
            }
        }
    }

    fn request_due_at(&self, request: u64) -> Instant {
        let nanos = (u128::from(request) * NANOS).div_ceil(u128::from(self.rate));
        self.start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Wakes each connection when its next request is due, until `stop`.
///
/// A thread of its own: timers of the runtime tick in milliseconds, which would show in the
/// latency, and a spinning one would take the core from whom it measures.
pub(super) fn wake_when_due(
    schedule: Schedule,
    connections: &[Arc<Notify>],
    clock: &dyn Clock,
    stop: &AtomicBool,
) {
    let mut woken = 0;
    while !stop.load(Ordering::Relaxed) {
        let now = clock.monotonic();
        let due = schedule.due_in_all(now);
        // One call wakes a connection for all it has due, so further ones tell it nothing new.
        for request in woken.max(due.saturating_sub(schedule.connections))..due {
            let connection = usize::try_from(request % schedule.connections).unwrap_or(0);
            connections[connection].notify_one();
        }
        woken = due;
        let wait = schedule.request_due_at(due).saturating_duration_since(now);
        thread::park_timeout(wait.min(STOP_CHECK));
    }
}

const NANOS: u128 = 1_000_000_000;

/// How late a stop may be noticed at a low rate.
const STOP_CHECK: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::env::SystemClock;

    proptest! {
        /// Each request is due exactly from its own time on, and the connections' shares add up.
        #[test]
        fn due_and_due_at_agree(
            rate in 1_u64..2_000_000, connections in 1_u64..20, nth in 0_u64..100_000,
        ) {
            let start = SystemClock.monotonic();
            let schedule = Schedule { start, rate, connections };
            let connection = nth % connections;
            let at = schedule.due_at(connection, nth);
            prop_assert_eq!(schedule.due(connection, at), nth + 1);
            if nth > 0 {
                let before = at - Duration::from_nanos(1);
                prop_assert_eq!(schedule.due(connection, before), nth);
            }
            let shares: u64 = (0..connections).map(|each| schedule.due(each, at)).sum();
            prop_assert_eq!(shares, schedule.due_in_all(at));
        }
    }

    #[test]
    fn nothing_is_due_before_the_start() {
        let start = SystemClock.monotonic() + Duration::from_secs(1);
        let schedule = Schedule {
            start,
            rate: 10,
            connections: 1,
        };
        assert_eq!(schedule.due_in_all(start - Duration::from_millis(1)), 0);
        assert_eq!(schedule.due_in_all(start), 1);
        assert_eq!(schedule.due_in_all(start + Duration::from_secs(1)), 11);
    }
}
