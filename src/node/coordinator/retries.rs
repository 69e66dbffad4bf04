//! When a request that found too few homes connected is tried again.
//!
//! A node that has just started, or was stopped for a while, has no connections: it makes them within
//! a moment, and a request has until its deadline. But what has been down for seconds is not waited
//! for: a request fails at once then, as it always did.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Inner;

/// The retries of one request or batch, until its deadline.
pub(super) struct Retries<'a> {
    inner: &'a Inner,
    deadline: Instant,
    pause: Duration,
}

impl<'a> Retries<'a> {
    /// From now on, for as long as a request may take.
    pub(super) fn new(inner: &'a Inner) -> Self {
        Self::within(inner, inner.config.timeout)
    }

    /// From now on, for so long.
    pub(super) fn within(inner: &'a Inner, timeout: Duration) -> Self {
        Self {
            inner,
            deadline: inner.env.clock.monotonic() + timeout,
            pause: PAUSE_MIN,
        }
    }

    /// When the request is over.
    pub(super) const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Waits for the next try; `false` when there is none: too few were connected for too long, or
    /// there is no time left. Call it after an attempt that lacked connected homes.
    pub(super) async fn wait(&mut self) -> bool {
        let now = self.inner.env.clock.monotonic();
        let is_news = self.inner.hedging.on_unreachable(self.inner.self_tag, now);
        is_news && self.pause().await
    }

    /// Waits for the next try; `false` when there is no time left.
    pub(super) async fn pause(&mut self) -> bool {
        let now = self.inner.env.clock.monotonic();
        if now + self.pause >= self.deadline {
            return false;
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        true
    }
}

const PAUSE_MIN: Duration = Duration::from_millis(5);
/// A handshake with a peer takes some milliseconds.
const PAUSE_MAX: Duration = Duration::from_millis(80);
