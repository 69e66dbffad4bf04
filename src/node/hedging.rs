//! When a replica counts as slow, how many may be asked beside it, and who seems to be away.
//!
//! Dean and Barroso, *The Tail at Scale* (2013): what takes longer than the 95th percentile is asked
//! of another replica too, within a budget, so that a cluster that is slow as a whole is not made
//! slower.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use crate::model::NodeTag;

/// The latencies observed of each peer, and the budget of hedges.
#[derive(Debug)]
pub(super) struct Hedging {
    peers: Mutex<BTreeMap<NodeTag, Peer>>,
    credit: AtomicU32,
}

impl Default for Hedging {
    fn default() -> Self {
        Self {
            peers: Mutex::default(),
            credit: AtomicU32::new(HEDGE_COST),
        }
    }
}

impl Hedging {
    /// A peer was asked something.
    pub(super) fn on_sent(&self, peer: NodeTag, now: Instant) {
        self.peers()
            .entry(peer)
            .or_default()
            .silent_since
            .get_or_insert(now);
    }

    /// A peer took so long to answer.
    pub(super) fn on_answer(&self, peer: NodeTag, took: Duration) {
        let mut peers = self.peers();
        let peer = peers.entry(peer).or_default();
        peer.latency.add(took);
        (peer.silent_since, peer.unreachable) = (None, None);
    }

    /// A peer has answered something whose time tells nothing of the peer alone.
    pub(super) fn on_sign(&self, peer: NodeTag) {
        self.peers().entry(peer).or_default().silent_since = None;
    }

    /// There is no connection to a peer that was to be asked; whether that is so for a short time
    /// only, so that one is likely to be made within the time of a request.
    pub(super) fn on_unreachable(&self, peer: NodeTag, now: Instant) -> bool {
        let mut peers = self.peers();
        let peer = peers.entry(peer).or_default();
        let known = peer
            .unreachable
            .filter(|known| now < known.last + UNREACHABLE_NEWS);
        let since = known.map_or(now, |known| known.since);
        peer.unreachable = Some(Unreachable { since, last: now });
        now.saturating_duration_since(since) < UNREACHABLE_NEWS
    }

    /// Those who have said nothing for longer than they usually take, although they were asked:
    /// gone, most likely, and gossip has not noticed yet.
    pub(super) fn silent(&self, now: Instant) -> SmallVec<[NodeTag; 2]> {
        let is_silent = |peer: &Peer| {
            let silent = peer
                .silent_since
                .map(|since| now.saturating_duration_since(since));
            silent.is_some_and(|silent| silent > late_after(peer.latency.p95()))
        };
        let peers = self.peers();
        let silent = peers.iter().filter(|(_, peer)| is_silent(peer));
        silent.map(|(&tag, _)| tag).collect()
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<NodeTag, Peer>> {
        // std Mutex: never held across an await. One entry a member of the ring.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After how long one of these counts as slow.
    pub(super) fn slow_after(&self, asked: impl Iterator<Item = NodeTag>) -> Duration {
        let peers = self.peers();
        let p95 = asked.filter_map(|peer| Some(peers.get(&peer)?.latency.p95()));
        p95.max().unwrap_or(SLOW_MAX).clamp(SLOW_MIN, SLOW_MAX)
    }

    /// A read has begun: it earns a share of a hedge.
    pub(super) fn earn(&self, reads: usize) {
        let earned = u32::try_from(reads).unwrap_or(CREDIT_MAX).min(CREDIT_MAX);
        if self.credit.load(Ordering::Relaxed) < CREDIT_MAX {
            self.credit.fetch_add(earned, Ordering::Relaxed);
        }
    }

    /// Whether there is credit for one more hedge; it is spent.
    pub(super) fn take(&self) -> bool {
        let spend = |credit: u32| credit.checked_sub(HEDGE_COST);
        self.credit
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend)
            .is_ok()
    }

    /// The hedge was not needed.
    pub(super) fn give_back(&self) {
        self.credit.fetch_add(HEDGE_COST, Ordering::Relaxed);
    }
}

/// A home that takes so many times as long as nearly always is late: a disk of another node is worth
/// asking.
pub(super) fn late_after(p95: Duration) -> Duration {
    (p95 * LATE_FACTOR).clamp(LATE_MIN, LATE_MAX)
}

/// What is known of one peer.
#[derive(Debug, Default)]
struct Peer {
    latency: Percentile,
    /// When it was first asked something after its last answer.
    silent_since: Option<Instant>,
    unreachable: Option<Unreachable>,
}

/// For how long there was no connection to a peer, as far as there was one wanted.
#[derive(Debug, Clone, Copy)]
struct Unreachable {
    since: Instant,
    last: Instant,
}

/// A running estimate of the 95th percentile, in microseconds: each sample moves it a little, up
/// nineteen times as far as down (stochastic approximation, Robbins and Monro 1951).
#[derive(Debug, Clone, Copy)]
struct Percentile(f64);

impl Default for Percentile {
    fn default() -> Self {
        Self(SLOW_MAX.as_secs_f64() * 1e6)
    }
}

impl Percentile {
    fn add(&mut self, sample: Duration) {
        let sample = sample.as_secs_f64() * 1e6;
        let step = (self.0 * STEP).max(1.0);
        if sample > self.0 {
            self.0 += step * 0.95;
        } else {
            self.0 -= step * 0.05;
        }
        self.0 = self.0.clamp(1.0, 1e7);
    }

    fn p95(self) -> Duration {
        Duration::from_secs_f64(self.0 / 1e6)
    }
}

/// Twenty reads pay for a hedge: five extra requests in a hundred at most.
const HEDGE_COST: u32 = 20;
/// A pause does not save up more than so many hedges.
const CREDIT_MAX: u32 = 100 * HEDGE_COST;
/// The resolution of timers.
const SLOW_MIN: Duration = Duration::from_millis(1);
/// Before anything is known, and at most.
const SLOW_MAX: Duration = Duration::from_millis(50);
const STEP: f64 = 1.0 / 16.0;
/// Whoever is back from a start or a pause is connected to well within this time.
const UNREACHABLE_NEWS: Duration = Duration::from_secs(5);
const LATE_FACTOR: u32 = 4;
const LATE_MIN: Duration = Duration::from_millis(25);
const LATE_MAX: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_nears_the_95th_percentile() {
        let mut estimate = Percentile::default();
        // 1 to 100 ms in a fixed shuffle, many times over.
        for number in 0..20_000u64 {
            estimate.add(Duration::from_millis(number * 37 % 100 + 1));
        }
        let p95 = estimate.p95().as_secs_f64() * 1e3;
        assert!((85.0..=102.0).contains(&p95), "{p95} ms");
    }

    #[test]
    fn hedges_are_at_most_a_twentieth_of_the_reads() {
        let hedging = Hedging::default();
        let mut hedges = 0;
        for _ in 0..10_000 {
            hedging.earn(1);
            hedges += usize::from(hedging.take());
        }
        assert!((400..=501).contains(&hedges), "{hedges}");
    }

    #[test]
    fn a_peer_counts_as_slow_by_its_own_past() {
        let hedging = Hedging::default();
        let (fast, slow) = (NodeTag(1), NodeTag(2));
        for _ in 0..2_000 {
            hedging.on_answer(fast, Duration::from_micros(300));
            hedging.on_answer(slow, Duration::from_millis(8));
        }
        assert_eq!(hedging.slow_after([fast].into_iter()), SLOW_MIN);
        let both = hedging.slow_after([fast, slow].into_iter());
        assert!((Duration::from_millis(7)..Duration::from_millis(10)).contains(&both));
    }

    #[test]
    fn what_is_unreachable_for_seconds_is_no_news() {
        use crate::env::{Clock, SystemClock};
        let hedging = Hedging::default();
        let (peer, start) = (NodeTag(1), SystemClock.monotonic());
        let at = |ms| start + Duration::from_millis(ms);
        for ms in (0..5_000).step_by(500) {
            assert!(hedging.on_unreachable(peer, at(ms)), "{ms}");
        }
        assert!(!hedging.on_unreachable(peer, at(5_000)));
        assert!(!hedging.on_unreachable(peer, at(9_900)));
        // Nobody asked for it meanwhile, or it has answered.
        assert!(hedging.on_unreachable(peer, at(15_000)));
        hedging.on_answer(peer, Duration::from_millis(1));
        assert!(hedging.on_unreachable(peer, at(21_000)));
    }
}
