//! What the other nodes' clocks say, as far as their answers told.
//!
//! A node whose own clock is far ahead of all others must not keep what it stamps: the others refuse
//! it, and in its own copy it would replace what was acknowledged.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::model::{HlcTime, Millis, NodeTag};

/// The last reading of each peer's clock, and when it came.
#[derive(Debug, Default)]
pub(super) struct PeerClocks(Mutex<BTreeMap<NodeTag, (Millis, Instant)>>);

impl PeerClocks {
    /// A peer has told its clock.
    pub(super) fn note(&self, peer: NodeTag, clock: HlcTime, now: Instant) {
        // One entry a member of the ring.
        self.lock().insert(peer, (clock.millis(), now));
    }

    /// The furthest of the others' clocks, as they must read by now. `None`: nobody has told yet.
    pub(super) fn furthest(&self, now: Instant) -> Option<Millis> {
        let now_at = |(clock, at): &(Millis, Instant)| {
            clock.saturating_add(now.saturating_duration_since(*at))
        };
        self.lock().values().map(now_at).max()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeTag, (Millis, Instant)>> {
        // std Mutex: never held across an await.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::env::{Clock, SystemClock};

    #[test]
    fn clocks_go_on_after_they_were_told() {
        let clocks = PeerClocks::default();
        let start = SystemClock.monotonic();
        assert_eq!(clocks.furthest(start), None);
        clocks.note(NodeTag(1), HlcTime::from_millis(Millis(5_000)), start);
        clocks.note(NodeTag(2), HlcTime::from_millis(Millis(4_000)), start);
        let later = start + Duration::from_secs(3);
        assert_eq!(clocks.furthest(later), Some(Millis(8_000)));
    }
}
