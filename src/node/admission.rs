//! How many bytes of large requests a node has under way at once.
//!
//! Large writes that are all begun at once share the network and the processors, and each misses its
//! deadline though all its homes hold it in the end: goodput falls to nothing as clients are added.
//! Here they take turns, in the order in which they came. The time of a request begins when its turn
//! does, and grows with its size ([`crate::net::time_budget`]); its turn ends when the last home has
//! acknowledged or has been given up, not when the client is answered, so that what is still on its
//! way to the slowest home counts.
//!
//! Small requests (below [`LARGE_BYTES`]) neither wait nor count. What waits is bounded in bytes, and
//! in time by [`Admission::wait_max`]: beyond, [`Overloaded`], and nothing was begun.
//!
//! The bounds elsewhere on the way: what clients have sent and is not carried out, by the RESP door;
//! what waits for one peer, by the lane's queue (64 MiB); what is on its way to one peer, by the lane's
//! flow control window; what a node takes from its peers at once, by the door for peers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::net::{LARGE_BYTES, time_budget};

/// Lets large requests in, in their order.
#[derive(Debug)]
pub(super) struct Admission {
    /// Of [`UNIT_BYTES`] each. A semaphore serves in the order of arrival, large and small alike.
    units: Arc<Semaphore>,
    waiting_bytes: Arc<AtomicUsize>,
}

/// A large request that is under way, until it is dropped. Empty for a small one.
#[derive(Debug, Default)]
pub(super) struct Admitted {
    _units: Option<OwnedSemaphorePermit>,
}

/// More waits already than may, or it has waited for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("too many bytes of large requests are waiting")]
pub(super) struct Overloaded;

impl Default for Admission {
    fn default() -> Self {
        Self {
            units: Arc::new(Semaphore::new(UNITS)),
            waiting_bytes: Arc::default(),
        }
    }
}

impl Admission {
    /// Waits until a request of so many bytes may be begun. `request_timeout`: of a small one.
    pub(super) async fn admit(
        &self,
        bytes: usize,
        request_timeout: Duration,
    ) -> Result<Admitted, Overloaded> {
        if bytes < LARGE_BYTES {
            return Ok(Admitted::default());
        }
        // One that is over all there is takes all there is.
        let units = bytes.div_ceil(UNIT_BYTES).min(UNITS);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let turn = Arc::clone(&self.units).acquire_many_owned(units);
        let _waiting = Waiting::enter(&self.waiting_bytes, bytes)?;
        match timeout(Self::wait_max(request_timeout, bytes), turn).await {
            Ok(Ok(units)) => Ok(Admitted {
                _units: Some(units),
            }),
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => Err(Overloaded),
        }
    }

    /// For how long a request waits for its turn at most.
    fn wait_max(request_timeout: Duration, bytes: usize) -> Duration {
        time_budget(request_timeout, bytes).saturating_mul(TURNS_WAITED_MAX)
    }
}

/// Counts what waits, for as long as it does: whoever stops waiting is not counted any more.
struct Waiting {
    bytes: usize,
    all: Arc<AtomicUsize>,
}

impl Waiting {
    fn enter(all: &Arc<AtomicUsize>, bytes: usize) -> Result<Self, Overloaded> {
        let more = |waiting: usize| {
            // One alone may wait however large it is: no request is refused for ever.
            let all = waiting.saturating_add(bytes);
            (waiting == 0 || all <= WAITING_BYTES_MAX).then_some(all)
        };
        all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map_err(|_full| Overloaded)?;
        let all = Arc::clone(all);
        Ok(Self { bytes, all })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Two values of the default limit: one is prepared while the other is on its way.
pub const UNDER_WAY_BYTES_MAX: usize = 32 * 1024 * 1024;
const UNIT_BYTES: usize = 1024;
const UNITS: usize = UNDER_WAY_BYTES_MAX / UNIT_BYTES;
/// 64 clients with values of the default limit. These are copies: what clients have sent is
/// bounded on its own.
pub const WAITING_BYTES_MAX: usize = 1024 * 1024 * 1024;
const TURNS_WAITED_MAX: u32 = 10;

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MIB: usize = 1024 * 1024;

    /// What a future has to say now.
    fn now<T>(future: &mut Pin<Box<impl Future<Output = T>>>) -> Option<T> {
        match future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn large_requests_take_turns_in_the_order_in_which_they_came() {
        let admission = Admission::default();
        let first = admission.admit(UNDER_WAY_BYTES_MAX, SECOND).await;
        let sizes = [LARGE_BYTES, UNDER_WAY_BYTES_MAX, LARGE_BYTES, 16 * MIB];
        let mut waiting: Vec<_> = sizes
            .into_iter()
            .map(|bytes| Box::pin(admission.admit(bytes, SECOND)))
            .collect();
        for admitted in &mut waiting {
            assert!(now(admitted).is_none());
        }
        drop(first);
        // One that would fit does not overtake one that needs all there is.
        for later in [3, 2, 1] {
            assert!(now(&mut waiting[later]).is_none(), "{later}");
        }
        let [a, b, c, d] = &mut waiting[..] else {
            panic!("four of them");
        };
        let a = now(a).unwrap().unwrap();
        assert!(now(b).is_none());
        drop(a);
        let b = now(b).unwrap().unwrap();
        assert!(now(c).is_none());
        drop(b);
        // These two fit together.
        let _both = (now(c).unwrap().unwrap(), now(d).unwrap().unwrap());
        assert_eq!(admission.waiting_bytes.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_under_way_are_bounded_and_small_requests_are_not_held_up() {
        let admission = Admission::default();
        let mut under_way = Vec::new();
        while let Some(admitted) = now(&mut Box::pin(admission.admit(16 * MIB, SECOND))) {
            under_way.push(admitted.unwrap());
        }
        assert_eq!(under_way.len(), UNDER_WAY_BYTES_MAX / (16 * MIB));
        let small = now(&mut Box::pin(admission.admit(LARGE_BYTES - 1, SECOND)));
        assert!(small.is_some_and(|small| small.is_ok()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_bounded_in_bytes_and_whoever_gives_up_is_not_counted() {
        let admission = Admission::default();
        let _all = admission.admit(usize::MAX / 2, SECOND).await.unwrap();
        let mut waiting = Vec::new();
        loop {
            let mut admitted = Box::pin(admission.admit(64 * MIB, SECOND));
            match now(&mut admitted) {
                None => waiting.push(admitted),
                Some(refused) => break assert!(refused.is_err()),
            }
        }
        assert_eq!(waiting.len(), WAITING_BYTES_MAX / (64 * MIB));
        waiting.pop();
        assert!(now(&mut Box::pin(admission.admit(64 * MIB, SECOND))).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_does_not_come_is_not_waited_for_without_end() {
        let admission = Admission::default();
        let _all = admission.admit(usize::MAX / 2, SECOND).await.unwrap();
        assert!(admission.admit(16 * MIB, SECOND).await.is_err());
    }
}
