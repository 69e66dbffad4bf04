//! What follows from the clocks of peers. Pure.

use super::clock_probe::ClockOffset;

/// What follows from how far the clocks of peers are ahead of this machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// By how much this machine's clock is to be corrected, where most of the ring has told; `None`:
    /// too few have to say whose clock is wrong.
    pub correction_ms: Option<i64>,
    /// How many peers would refuse what this node writes, and how many have told their clocks.
    pub refusing: usize,
    /// How many peers have told their clocks.
    pub asked: usize,
}

impl Verdict {
    /// `own_ahead_ms`: how far what this node stamps is ahead of this machine's clock, before any new
    /// correction.
    pub(super) fn of(
        offsets: impl Iterator<Item = ClockOffset>,
        (own_ahead_ms, drift_max_ms): (i64, i64),
        members: usize,
    ) -> Self {
        let ahead: Vec<i64> = offsets.map(|offset| offset.ahead_ms).collect();
        let refuses = |&&ahead: &&i64| own_ahead_ms.saturating_sub(ahead) > drift_max_ms;
        let refusing = ahead.iter().filter(refuses).count();
        let asked = ahead.len();
        let mut all = ahead;
        all.push(0);
        all.sort_unstable();
        let is_most = all.len() >= 3 && all.len() > members / 2;
        // Of two in the middle the one that is nearer to this machine's.
        let (low, high) = (all[(all.len() - 1) / 2], all[all.len() / 2]);
        let median = if low.abs() <= high.abs() { low } else { high };
        let correction_ms = is_most.then_some(match median.abs() {
            0..=TOLERATED_MS => 0,
            _ => median,
        });
        Self {
            correction_ms,
            refusing,
            asked,
        }
    }

    /// Whether most peers that were asked would refuse what this node writes.
    #[must_use]
    pub const fn is_refused(&self) -> bool {
        2 * self.refusing > self.asked
    }
}

/// Clocks that are kept right differ by less; peers' readings are off by half a round trip.
const TOLERATED_MS: i64 = 500;

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(ahead: &[i64], own: i64, members: usize) -> Verdict {
        let offsets = ahead.iter().map(|&ahead_ms| ClockOffset {
            ahead_ms,
            error_ms: 1,
        });
        Verdict::of(offsets, (own, 10_000), members)
    }

    #[test]
    fn the_median_of_most_nodes_corrects_a_clock() {
        assert_eq!(
            verdict(&[-60_000, -60_010], 0, 3).correction_ms,
            Some(-60_000)
        );
        assert_eq!(verdict(&[60_000, 3], 0, 3).correction_ms, Some(0));
        assert_eq!(verdict(&[20, -400], 0, 3).correction_ms, Some(0));
        // Of two nobody knows which is wrong, and a few of many are not most.
        assert_eq!(verdict(&[-60_000], 0, 2).correction_ms, None);
        assert_eq!(verdict(&[-60_000, -60_000], 0, 7).correction_ms, None);
    }

    #[test]
    fn a_clock_is_refused_by_those_whose_limit_it_breaks() {
        assert!(!verdict(&[], 0, 1).is_refused());
        assert!(verdict(&[-10_001], 0, 2).is_refused());
        assert!(!verdict(&[-10_000], 0, 2).is_refused());
        assert!(!verdict(&[60_000], 0, 2).is_refused());
        // The machine's clock is right again, what it stamps is not.
        assert!(verdict(&[0, 5], 3_600_000, 3).is_refused());
    }
}
