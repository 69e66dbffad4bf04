//! How likely a read is fresh, from what was observed of writes.
//!
//! After Bailis, Venkataraman, Franklin, Hellerstein, Stoica, *Probabilistically Bounded Staleness
//! for Practical Partial Quorums* (VLDB 2012), with samples in place of fitted distributions: of some
//! writes it is known when each home acknowledged. At w acknowledgements the write is done; `t`
//! later those homes are late whose acknowledgement came after that. A read takes r of the n homes,
//! any of them as likely as the others, and is stale if all r are late.
//!
//! It errs on the side of stale: an acknowledgement comes later than the write it is for, and a
//! read's own way to the homes is not counted. A home that never acknowledged is late for ever.
//! Repairs and anti-entropy, which make it less late, are not counted either.

use std::collections::VecDeque;
use std::time::Duration;

use smallvec::SmallVec;

/// When each home of a key acknowledged one write, from when it was sent; `None`: it did not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteSample(pub SmallVec<[Option<Duration>; 3]>);

impl WriteSample {
    /// When it was done at `w` acknowledgements; `None`: it never was.
    fn done(&self, w: usize) -> Option<Duration> {
        let mut arrivals: SmallVec<[Duration; 3]> = self.0.iter().copied().flatten().collect();
        arrivals.sort_unstable();
        arrivals.get(w.checked_sub(1)?).copied()
    }

    /// How many homes are late `after` it was done.
    fn late(&self, done: Duration, after: Duration) -> usize {
        let is_late = |arrival: &Option<Duration>| arrival.is_none_or(|at| at > done + after);
        self.0.iter().filter(|arrival| is_late(arrival)).count()
    }
}

/// The samples of the recent past.
#[derive(Debug, Clone, Default)]
pub struct Samples(VecDeque<WriteSample>);

impl Samples {
    /// Adds one; the oldest makes room.
    pub fn push(&mut self, sample: WriteSample) {
        if self.0.len() >= SAMPLES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The probability that a read of `r` homes is fresh `after` a write was done at `w`
    /// acknowledgements. `None` without a sample that got so many.
    #[must_use]
    pub fn fresh(&self, r: u8, w: u8, after: Duration) -> Option<f64> {
        let (r, w) = (usize::from(r), usize::from(w));
        let (mut count, mut stale) = (0.0, 0.0);
        for sample in &self.0 {
            let Some(done) = sample.done(w) else { continue };
            count += 1.0;
            stale += all_of(sample.late(done, after), r, sample.0.len());
        }
        (count > 0.0).then(|| 1.0 - stale / count)
    }

    /// How long after a write was done at `w` acknowledgements a home acknowledged it, at these
    /// percentiles (0 to 100). Homes that never did count as the longest: `None`.
    #[must_use]
    pub fn delays(&self, w: u8, percentiles: &[f64]) -> Vec<Option<Duration>> {
        let mut delays: Vec<Option<Duration>> = Vec::new();
        for sample in &self.0 {
            let Some(done) = sample.done(usize::from(w)) else {
                continue;
            };
            let delay = |at: &Option<Duration>| at.map(|at| at.saturating_sub(done));
            delays.extend(sample.0.iter().map(delay));
        }
        delays.sort_unstable_by_key(|delay| delay.unwrap_or(Duration::MAX));
        let at = |percentile: &f64| {
            let last = delays.len().checked_sub(1)?;
            delays[rank(*percentile, last)]
        };
        percentiles.iter().map(at).collect()
    }
}

/// The probability that `r` out of `n`, any of them, are all among `late` of them:
/// C(late, r) / C(n, r).
fn all_of(late: usize, r: usize, n: usize) -> f64 {
    if r > n {
        return 0.0;
    }
    (0..r)
        .map(|taken| ratio(late.saturating_sub(taken), n - taken))
        .product()
}

#[expect(clippy::cast_precision_loss, reason = "at most 16 homes")]
fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a few thousand samples, and a percentile between 0 and 100"
)]
fn rank(percentile: f64, last: usize) -> usize {
    ((percentile.clamp(0.0, 100.0) / 100.0 * last as f64).round() as usize).min(last)
}

/// Enough for three digits, and some tens of kilobytes.
const SAMPLES_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(arrivals_ms: &[Option<u64>]) -> WriteSample {
        let arrivals = arrivals_ms.iter();
        WriteSample(arrivals.map(|ms| ms.map(Duration::from_millis)).collect())
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn near(got: Option<f64>, want: f64) -> bool {
        got.is_some_and(|got| (got - want).abs() < 1e-9)
    }

    #[test]
    fn one_slow_home_of_three() {
        let mut samples = Samples::default();
        samples.push(sample(&[Some(1), Some(2), Some(50)]));
        // Done at 2 ms; until 50 ms one of three is late.
        assert!(near(samples.fresh(1, 2, ms(0)), 2.0 / 3.0));
        assert!(near(samples.fresh(1, 2, ms(47)), 2.0 / 3.0));
        assert!(near(samples.fresh(1, 2, ms(48)), 1.0));
        assert!(near(samples.fresh(2, 2, ms(0)), 1.0));
        // Done at 1 ms, two are late: two of three are both late in one case of three.
        assert!(near(samples.fresh(2, 1, ms(0)), 2.0 / 3.0));
        assert_eq!(
            samples.delays(2, &[0.0, 100.0]),
            [Some(ms(0)), Some(ms(48))]
        );
    }

    #[test]
    fn a_home_that_never_acknowledged_is_late_for_ever() {
        let mut samples = Samples::default();
        samples.push(sample(&[Some(1), None, Some(1)]));
        assert!(near(samples.fresh(1, 2, ms(3_600_000)), 2.0 / 3.0));
        assert_eq!(samples.fresh(1, 3, ms(0)), None, "it was never done at 3");
        assert_eq!(samples.delays(2, &[100.0]), [None]);
    }

    #[test]
    fn only_the_recent_past_counts() {
        let mut samples = Samples::default();
        assert!(samples.is_empty() && samples.fresh(1, 1, ms(0)).is_none());
        samples.push(sample(&[Some(1), None, None]));
        for _ in 0..SAMPLES_MAX {
            samples.push(sample(&[Some(1), Some(1), Some(1)]));
        }
        assert_eq!(samples.len(), SAMPLES_MAX);
        assert!(near(samples.fresh(1, 1, ms(0)), 1.0));
    }

    /// All r-subsets of the homes, one by one.
    fn by_enumeration(sample: &WriteSample, r: u32, w: usize, after: Duration) -> Option<f64> {
        let done = sample.done(w)?;
        let n = sample.0.len();
        let subsets = (0u32..1 << n).filter(|subset| subset.count_ones() == r);
        let (mut all, mut fresh) = (0.0, 0.0);
        for subset in subsets {
            all += 1.0;
            let has_it = |home: usize| sample.0[home].is_some_and(|at| at <= done + after);
            if (0..n).any(|home| subset >> home & 1 == 1 && has_it(home)) {
                fresh += 1.0;
            }
        }
        Some(fresh / all)
    }

    proptest! {
        #[test]
        fn the_formula_is_what_enumeration_gives(
            arrivals in prop::collection::vec(prop::option::of(0u64..20), 1..6),
            r in any::<prop::sample::Index>(),
            w in any::<prop::sample::Index>(),
            after in 0u64..25,
        ) {
            let n = arrivals.len();
            let (r, w) = (r.index(n) + 1, w.index(n) + 1);
            let sample = sample(&arrivals);
            let mut samples = Samples::default();
            samples.push(sample.clone());
            let (r8, w8) = (u8::try_from(r).unwrap(), u8::try_from(w).unwrap());
            let got = samples.fresh(r8, w8, ms(after));
            let want = by_enumeration(&sample, u32::try_from(r).unwrap(), w, ms(after));
            let agrees = match (got, want) {
                (Some(got), Some(want)) => (got - want).abs() < 1e-9,
                (got, want) => got.is_none() && want.is_none(),
            };
            prop_assert!(agrees);
            if r + w > n && let Some(got) = got {
                prop_assert!((got - 1.0).abs() < 1e-9, "quorums that meet are always fresh");
            }
        }
    }
}
