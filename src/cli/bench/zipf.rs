//! Exact Zipf sampling. Knows nothing of keys or time.

use rand::{Rng, RngExt};

/// Draws ranks 1 to n, rank k in proportion to 1 / k^alpha, in constant time and memory.
///
/// Rejection-inversion: W. Hörmann, G. Derflinger, "Rejection-inversion to generate variates from
/// monotone discrete distributions", ACM TOMACS 6(3), 1996. The names follow the paper: h is the
/// density, H its integral.
#[derive(Debug, Clone)]
pub(super) struct Zipf {
    ranks: u64,
    alpha: f64,
    /// H(1.5) - h(1)
    area_first: f64,
    /// H(n + 0.5)
    area_last: f64,
    /// Ranks this close to the inverse are accepted without computing H.
    shortcut: f64,
}

impl Zipf {
    /// `ranks` is at least 1, `alpha` above 0.
    pub(super) fn new(ranks: u64, alpha: f64) -> Self {
        assert!(ranks >= 1 && alpha > 0.0);
        let mut zipf = Self {
            ranks,
            alpha,
            area_first: 0.0,
            area_last: 0.0,
            shortcut: 0.0,
        };
        zipf.area_first = zipf.integral(1.5) - 1.0;
        zipf.area_last = zipf.integral(ranks as f64 + 0.5);
        zipf.shortcut = 2.0 - zipf.integral_inverse(zipf.integral(2.5) - zipf.density(2.0));
        zipf
    }

    /// The next rank.
    pub(super) fn sample(&self, rng: &mut impl Rng) -> u64 {
        loop {
            let fraction: f64 = rng.random();
            let area = self.area_last + fraction * (self.area_first - self.area_last);
            let x = self.integral_inverse(area);
            let rank = nearest(x).clamp(1, self.ranks);
            let k = rank as f64;
            if k - x <= self.shortcut || area >= self.integral(k + 0.5) - self.density(k) {
                return rank;
            }
        }
    }

    fn density(&self, x: f64) -> f64 {
        (-self.alpha * x.ln()).exp()
    }

    /// (x^(1 - alpha) - 1) / (1 - alpha), which is ln x at alpha = 1.
    fn integral(&self, x: f64) -> f64 {
        let log = x.ln();
        expm1_over((1.0 - self.alpha) * log) * log
    }

    fn integral_inverse(&self, area: f64) -> f64 {
        // Rounding may go below -1, where the logarithm ends.
        let t = (area * (1.0 - self.alpha)).max(-1.0);
        (ln1p_over(t) * area).exp()
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float cast saturates, and the caller clamps to the ranks"
)]
fn nearest(x: f64) -> u64 {
    (x + 0.5) as u64
}

/// (e^x - 1) / x, by its series where the division loses digits.
fn expm1_over(x: f64) -> f64 {
    if x.abs() > SERIES_BELOW {
        x.exp_m1() / x
    } else {
        1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0))
    }
}

/// ln(1 + x) / x, by its series where the division loses digits.
fn ln1p_over(x: f64) -> f64 {
    if x.abs() > SERIES_BELOW {
        x.ln_1p() / x
    } else {
        1.0 - x * (1.0 / 2.0 - x * (1.0 / 3.0 - x / 4.0))
    }
}

/// The first term that the series leave out is below a double's precision here.
const SERIES_BELOW: f64 = 1e-8;

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    use super::*;

    /// Chi-squared against the exact frequencies, at the usual alphas and beside the pole at 1.
    #[test]
    fn frequencies_are_exact() {
        const RANKS: u32 = 50;
        const DRAWS: u32 = 400_000;
        for alpha in [0.2, 0.99, 1.0, 1.0 + 1e-10, 1.5, 3.0] {
            let zipf = Zipf::new(u64::from(RANKS), alpha);
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
            let mut seen = [0_u32; RANKS as usize];
            for _ in 0..DRAWS {
                seen[usize::try_from(zipf.sample(&mut rng)).unwrap() - 1] += 1;
            }
            let weights: Vec<f64> = (1..=RANKS).map(|k| f64::from(k).powf(-alpha)).collect();
            let total: f64 = weights.iter().sum();
            let chi_squared: f64 = weights
                .iter()
                .zip(seen)
                .map(|(weight, seen)| {
                    let expected = f64::from(DRAWS) * weight / total;
                    (f64::from(seen) - expected).powi(2) / expected
                })
                .sum();
            // 49 degrees of freedom: 85.4 is exceeded by chance once in a thousand.
            assert!(chi_squared < 85.4, "alpha {alpha}: {chi_squared}");
        }
    }

    #[test]
    fn a_single_rank_and_very_many_stay_in_range() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
        let one = Zipf::new(1, 0.99);
        let many = Zipf::new(1 << 40, 0.99);
        for _ in 0..1000 {
            assert_eq!(one.sample(&mut rng), 1);
            assert!((1..=1 << 40).contains(&many.sample(&mut rng)));
        }
    }
}
