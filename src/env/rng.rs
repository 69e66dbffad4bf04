//! Chance, all of it from one seed.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::{StdRng, SysRng};
use rand::{Rng, SeedableRng, TryRng};

/// A shared generator: the same seed and the same order of calls give the same numbers.
///
/// For jitter, sampling and ids, not for keys: rustls has its own source for those.
#[derive(Clone)]
pub struct SeededRng(Arc<Mutex<StdRng>>);

impl SeededRng {
    /// A generator that a seed decides.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// A generator seeded by the operating system.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn from_system() -> std::io::Result<Self> {
        let seed = SysRng.try_next_u64().map_err(std::io::Error::other)?;
        Ok(Self::from_seed(seed))
    }

    /// Sixty-four random bits.
    pub fn next_u64(&self) -> u64 {
        // std Mutex: held for one step of the generator, never across an await. A panic inside
        // that step cannot leave it half done, so a poisoned lock is still good.
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .next_u64()
    }

    /// A number from 0 (included) to 1 (excluded).
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
    pub fn fraction(&self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl fmt::Debug for SeededRng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SeededRng")
    }
}
