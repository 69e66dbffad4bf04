//! What a coordinator observes of freshness: samples of its writes, disagreements of its reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::model::Quorum;
use crate::protocol::{Samples, WriteSample};

/// Observes one coordinator.
#[derive(Debug, Default)]
pub struct StalenessMeter {
    samples: Mutex<Samples>,
    last_sample: Mutex<Option<Instant>>,
    sampled: AtomicU64,
    reads: AtomicU64,
    disagreed: AtomicU64,
}

/// What was observed, and what follows for readers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StalenessReport {
    /// Copies kept.
    pub n: u8,
    /// The r of the configuration.
    pub r: u8,
    /// The w of the configuration.
    pub w: u8,
    /// Writes observed, of which the last 1,024 count.
    pub samples: u64,
    /// Reads answered.
    pub reads: u64,
    /// Reads whose replicas did not all hold the same.
    pub reads_disagreed: u64,
    /// How long after a write was acknowledged to its client another home acknowledged it, in
    /// milliseconds; `null`: never.
    pub delay_ms: Delays,
    /// From how long after a write on a read at the configured r and w is fresh with a
    /// probability of 0.999, in milliseconds.
    pub fresh_999_after_ms: Option<u64>,
    /// The moments after a write that the columns of `fresh` stand for, in milliseconds.
    pub after_ms: Vec<u64>,
    /// For each r and w, the probability that a read is fresh at each of these moments.
    pub fresh: Vec<Freshness>,
}

/// Percentiles of a delay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delays {
    /// The median.
    pub p50: Option<f64>,
    /// One in a hundred is longer.
    pub p99: Option<f64>,
    /// One in a thousand is longer.
    pub p999: Option<f64>,
}

/// How fresh reads are at one r and w.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Freshness {
    /// Replies a read waits for.
    pub r: u8,
    /// Acknowledgements a write waits for.
    pub w: u8,
    /// The probabilities; empty without a sample that got w acknowledgements.
    pub probability: Vec<f64>,
}

impl StalenessMeter {
    /// Whether a write that begins now is to be observed: a hundred in a second at most.
    pub fn wants_sample(&self, now: Instant) -> bool {
        let mut last = self
            .last_sample
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= SAMPLE_INTERVAL);
        if is_due {
            *last = Some(now);
        }
        is_due
    }

    /// A write was observed to its end.
    pub fn on_write_sample(&self, sample: WriteSample) {
        self.sampled.fetch_add(1, Ordering::Relaxed);
        self.lock().push(sample);
    }

    /// Reads were answered, some of whose replicas did not hold the same.
    pub fn on_reads(&self, reads: u64, disagreed: u64) {
        self.reads.fetch_add(reads, Ordering::Relaxed);
        self.disagreed.fetch_add(disagreed, Ordering::Relaxed);
    }

    /// Writes observed so far.
    #[must_use]
    pub fn sampled(&self) -> u64 {
        self.sampled.load(Ordering::Relaxed)
    }

    /// Reads answered so far, and how many of them saw disagreement.
    #[must_use]
    pub fn reads(&self) -> (u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.reads), load(&self.disagreed))
    }

    /// What follows from the samples.
    #[must_use]
    pub fn report(&self, quorum: Quorum) -> StalenessReport {
        let samples = self.lock().clone();
        let (n, r, w) = (quorum.n(), quorum.r(), quorum.w());
        let probability = |r, w| {
            let at = |&ms: &u64| samples.fresh(r, w, Duration::from_millis(ms));
            AFTER_MS.iter().filter_map(at).collect::<Vec<f64>>()
        };
        let pairs = (1..=n).flat_map(|r| (1..=n).map(move |w| (r, w)));
        let fresh = pairs.map(|(r, w)| Freshness {
            r,
            w,
            probability: probability(r, w),
        });
        let configured = probability(r, w);
        let fresh_at = configured.iter().position(|fresh| *fresh >= 0.999);
        let delays = samples.delays(w, &[50.0, 99.0, 99.9]);
        let delay = |index: usize| {
            let delay = delays.get(index).copied().flatten();
            delay.map(|delay| delay.as_secs_f64() * 1e3)
        };
        let (reads, reads_disagreed) = self.reads();
        StalenessReport {
            n,
            r,
            w,
            samples: self.sampled(),
            reads,
            reads_disagreed,
            delay_ms: Delays {
                p50: delay(0),
                p99: delay(1),
                p999: delay(2),
            },
            fresh_999_after_ms: fresh_at.map(|index| AFTER_MS[index]),
            after_ms: AFTER_MS.to_vec(),
            fresh: fresh.collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Samples> {
        // std Mutex: never held across an await.
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const SAMPLE_INTERVAL: Duration = Duration::from_millis(10);
const AFTER_MS: [u64; 9] = [0, 1, 2, 5, 10, 50, 100, 500, 1_000];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{Clock, SystemClock};

    #[test]
    fn a_report_says_from_when_on_reads_are_fresh() {
        let meter = StalenessMeter::default();
        let arrivals = [Some(1), Some(2), Some(7)].map(|ms| ms.map(Duration::from_millis));
        for _ in 0..10 {
            meter.on_write_sample(WriteSample(arrivals.into_iter().collect()));
        }
        meter.on_reads(4, 1);
        let one = meter.report(Quorum::new(3, 1, 2).unwrap());
        assert_eq!((one.samples, one.reads, one.reads_disagreed), (10, 4, 1));
        // Done at 2 ms, the last home follows 5 ms later.
        assert_eq!(one.fresh_999_after_ms, Some(5));
        assert_eq!(one.delay_ms.p999, Some(5.0));
        assert_eq!(one.fresh.len(), 9);
        let meeting = meter.report(Quorum::new(3, 2, 2).unwrap());
        assert_eq!(meeting.fresh_999_after_ms, Some(0));
    }

    #[test]
    fn a_hundred_writes_a_second_are_observed_at_most() {
        let meter = StalenessMeter::default();
        let start = SystemClock.monotonic();
        let wanted = (0..1_000).filter(|&ms| meter.wants_sample(start + Duration::from_millis(ms)));
        assert_eq!(wanted.count(), 100);
    }
}
