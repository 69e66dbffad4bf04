//! What happened, counted. Knows nothing of sockets.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::Instant;

use super::workload::Kind;

/// Figures of one run, or of several added up.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    latency_ns: [Histogram<u64>; 3],
    /// The longest successful request of each kind: the histograms round.
    longest_each: [Duration; 3],
    /// Reads that found a value.
    pub(super) hits: u64,
    /// Reads that found none.
    pub(super) misses: u64,
    /// Requests without success: answered with an error, or never.
    pub(super) failed: u64,
    /// Error replies by their first word.
    pub(super) errors: Kinds,
    /// Connections lost or not made, by cause.
    pub(super) connection_errors: Kinds,
    /// The longest any request took, failed ones too.
    pub(super) longest: Duration,
    /// When the last answer came.
    pub(super) last_reply: Option<Instant>,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            latency_ns: [latencies(), latencies(), latencies()],
            longest_each: [Duration::ZERO; 3],
            hits: 0,
            misses: 0,
            failed: 0,
            errors: Kinds::default(),
            connection_errors: Kinds::default(),
            longest: Duration::ZERO,
            last_reply: None,
        }
    }

    /// `count` requests were answered with success, each after `latency`.
    pub(super) fn succeeded(&mut self, kind: Kind, count: u64, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let place = place(kind);
        self.latency_ns[place].saturating_record_n(nanos, count);
        self.longest_each[place] = self.longest_each[place].max(latency);
        self.longest = self.longest.max(latency);
    }

    /// A request failed after `latency`; `reply` is the text of an error reply.
    pub(super) fn failed(&mut self, reply: Option<&[u8]>, latency: Duration) {
        self.failed += 1;
        self.longest = self.longest.max(latency);
        if let Some(reply) = reply {
            self.errors.add_reply(reply);
        }
    }

    /// Adds the figures of another thread or round.
    pub(super) fn merge(&mut self, other: &Self) {
        for (ours, theirs) in self.latency_ns.iter_mut().zip(&other.latency_ns) {
            assert!(ours.add(theirs).is_ok(), "all have the same bounds");
        }
        for (ours, theirs) in self.longest_each.iter_mut().zip(other.longest_each) {
            *ours = theirs.max(*ours);
        }
        self.hits += other.hits;
        self.misses += other.misses;
        self.failed += other.failed;
        self.errors.merge(&other.errors);
        self.connection_errors.merge(&other.connection_errors);
        self.longest = self.longest.max(other.longest);
        self.last_reply = self.last_reply.max(other.last_reply);
    }

    /// Requests answered with success.
    pub(super) fn done(&self) -> u64 {
        self.latency_ns.iter().map(Histogram::len).sum()
    }

    /// Requests of a kind answered with success.
    pub(super) fn count(&self, kind: Kind) -> u64 {
        self.latency_ns[place(kind)].len()
    }

    /// The latency that this part of the successful requests did not exceed, to three digits.
    pub(super) fn latency(&self, kind: Kind, quantile: f64) -> Duration {
        let nanos = self.latency_ns[place(kind)].value_at_quantile(quantile);
        // Rounded up, it may be above the longest there was.
        Duration::from_nanos(nanos).min(self.longest(kind))
    }

    /// The longest successful request of a kind.
    pub(super) fn longest(&self, kind: Kind) -> Duration {
        self.longest_each[place(kind)]
    }
}

/// How often each kind of error came, with one example of each.
#[derive(Debug, Clone, Default)]
pub(super) struct Kinds(pub(super) BTreeMap<String, Seen>);

/// One kind of error.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) count: u64,
    pub(super) example: String,
}

impl Kinds {
    /// Counts an error; `example` is asked for only when the kind is new.
    pub(super) fn add(&mut self, kind: &str, example: impl FnOnce() -> String) {
        self.add_many(kind, 1, example);
    }

    fn add_reply(&mut self, reply: &[u8]) {
        let word = reply.split(|byte| *byte == b' ').next().unwrap_or_default();
        let word = &word[..word.len().min(WORD_BYTES_MAX)];
        let example = || String::from_utf8_lossy(reply).into_owned();
        self.add(&String::from_utf8_lossy(word), example);
    }

    fn merge(&mut self, other: &Self) {
        for (kind, seen) in &other.0 {
            self.add_many(kind, seen.count, || seen.example.clone());
        }
    }

    fn add_many(&mut self, kind: &str, count: u64, example: impl FnOnce() -> String) {
        // The words come from a server: without a bound a broken one could fill the memory.
        let kind = if self.0.len() < KINDS_MAX || self.0.contains_key(kind) {
            kind
        } else {
            OTHER_KINDS
        };
        match self.0.get_mut(kind) {
            Some(seen) => seen.count += count,
            None => {
                let example = example();
                self.0.insert(kind.to_owned(), Seen { count, example });
            }
        }
    }
}

fn place(kind: Kind) -> usize {
    match kind {
        Kind::Get => 0,
        Kind::Set => 1,
        Kind::Del => 2,
    }
}

#[expect(
    clippy::expect_used,
    reason = "the bounds are constants that a test opens"
)]
fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(LATENCY_NS_MIN, LATENCY_NS_MAX, 3).expect("bounds are in order")
}

/// Finer than what a socket can do.
const LATENCY_NS_MIN: u64 = 100;

/// Two minutes, well above the longest wait for a reply. Longer ones count as this long, except in
/// the longest single request.
const LATENCY_NS_MAX: u64 = 120_000_000_000;

const WORD_BYTES_MAX: usize = 32;

const KINDS_MAX: usize = 64;

const OTHER_KINDS: &str = "(others)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_is_as_if_counted_together() {
        let mut together = Tally::new();
        let mut merged = Tally::new();
        for part in 0..3 {
            let mut tally = Tally::new();
            for tally in [&mut tally, &mut together] {
                for i in 0..100 {
                    let latency = Duration::from_micros(part * 100 + i);
                    tally.succeeded(Kind::Get, 2, latency);
                }
                tally.failed(Some(b"NOQUORUM 1 of 2"), Duration::from_secs(part));
                tally.failed(None, Duration::ZERO);
            }
            merged.merge(&tally);
        }
        assert_eq!(merged.latency_ns, together.latency_ns);
        assert_eq!(merged.longest(Kind::Get), Duration::from_micros(299));
        assert_eq!(merged.done(), 600);
        assert_eq!(merged.failed, 6);
        assert_eq!(merged.errors.0["NOQUORUM"].count, 3);
        assert_eq!(merged.errors.0["NOQUORUM"].example, "NOQUORUM 1 of 2");
        assert_eq!(merged.longest, Duration::from_secs(2));
    }

    #[test]
    fn quantiles_are_within_a_thousandth() {
        let mut tally = Tally::new();
        for micros in 1..=10_000 {
            tally.succeeded(Kind::Get, 1, Duration::from_micros(micros));
        }
        for (quantile, micros) in [
            (0.5, 5000.0),
            (0.9, 9000.0),
            (0.999, 9990.0),
            (1.0, 10_000.0),
        ] {
            let measured = tally.latency(Kind::Get, quantile).as_secs_f64() * 1e6;
            let error = (measured - micros).abs() / micros;
            assert!(error <= 0.001, "{quantile}: {measured}");
        }
        assert_eq!(tally.longest(Kind::Get), Duration::from_millis(10));
    }

    #[test]
    fn kinds_of_errors_are_bounded() {
        let mut tally = Tally::new();
        for i in 0..1000 {
            tally.failed(
                Some(format!("E{i} {}", "x".repeat(100)).as_bytes()),
                Duration::ZERO,
            );
        }
        tally.failed(Some(&[b'W'; 1000]), Duration::ZERO);
        assert_eq!(tally.errors.0.len(), KINDS_MAX + 1);
        let counted: u64 = tally.errors.0.values().map(|seen| seen.count).sum();
        assert_eq!(counted, 1001);
    }

    #[test]
    fn latency_beyond_the_bound_is_kept_at_the_bound() {
        let mut tally = Tally::new();
        tally.succeeded(Kind::Set, 1, Duration::from_secs(1000));
        assert_eq!(tally.done(), 1);
        assert_eq!(tally.longest(Kind::Set), Duration::from_secs(1000));
    }
}
