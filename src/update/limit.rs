//! How long the work of a client may take. Knows no clock: one is handed in.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Watches over work that runs.
pub trait Watch: Debug + Send + Sync {
    /// For how long the work has run, by a clock that never goes back.
    fn elapsed(&self) -> Duration;

    /// Whether somebody wants it to end (`SCRIPT KILL`).
    fn is_killed(&self) -> bool;
}

/// What the scripts of one batch may take together, and each of them alone.
///
/// Work of a batch is done by one thread. Without a watch only steps and bytes are bounded: the same
/// work then always ends in the same way.
#[derive(Debug)]
pub struct Limit {
    watch: Option<Arc<dyn Watch>>,
    script_max: Duration,
    /// Steps that are left to the batch.
    steps: AtomicU64,
    /// Bytes of replies that are left to the batch.
    reply_bytes: AtomicU64,
}

/// Why work was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// It took too many steps.
    #[error("the script took more than {STEPS_MAX} steps")]
    Steps,
    /// It took too long.
    #[error("the script took longer than {} ms (script_timeout)", .0.as_millis())]
    Time(Duration),
    /// What ran before it in the same batch has taken all of the batch's time.
    #[error("the scripts before it took too long, it did not run: send it again")]
    Batch,
    /// Somebody wanted it to end.
    #[error("Script killed by user with SCRIPT KILL.")]
    Killed,
}

impl Limit {
    /// Bounded by steps alone.
    #[must_use]
    pub const fn of_steps() -> Self {
        Self {
            watch: None,
            script_max: Duration::MAX,
            steps: AtomicU64::new(BATCH_STEPS_MAX),
            reply_bytes: AtomicU64::new(REPLY_BYTES_MAX),
        }
    }

    /// Bounded by time as well: `script_max` for each script.
    #[must_use]
    pub fn watched(watch: Arc<dyn Watch>, script_max: Duration) -> Self {
        Self {
            watch: Some(watch),
            script_max,
            ..Self::of_steps()
        }
    }

    /// Now, as the watch has it.
    pub(super) fn elapsed(&self) -> Duration {
        let watch = self.watch.as_ref();
        watch.map_or(Duration::ZERO, |watch| watch.elapsed())
    }

    /// Whether a script can begin.
    pub(super) fn begin(&self) -> Result<(), Ended> {
        self.check_killed()?;
        let is_late = self.elapsed() >= self.script_max.saturating_mul(BATCH_SCRIPTS);
        if is_late || self.steps.load(Ordering::Relaxed) == 0 {
            return Err(Ended::Batch);
        }
        Ok(())
    }

    /// Whether a script that began then can go on.
    pub(super) fn check(&self, begun: Duration) -> Result<(), Ended> {
        self.check_killed()?;
        if self.watch.is_some() && self.elapsed().saturating_sub(begun) > self.script_max {
            return Err(Ended::Time(self.script_max));
        }
        Ok(())
    }

    /// Takes the steps of a script off those of the batch.
    pub(super) fn spend(&self, steps: u64) {
        // One thread works on a batch.
        let left = self.steps.load(Ordering::Relaxed).saturating_sub(steps);
        self.steps.store(left, Ordering::Relaxed);
    }

    /// Takes bytes of a reply off those of the batch, unless there are less.
    pub(super) fn spend_reply(&self, bytes: usize) -> bool {
        let left = self.reply_bytes.load(Ordering::Relaxed);
        match left.checked_sub(bytes.try_into().unwrap_or(u64::MAX)) {
            Some(left) => {
                self.reply_bytes.store(left, Ordering::Relaxed);
                true
            }
            None => false,
        }
    }

    fn check_killed(&self) -> Result<(), Ended> {
        match &self.watch {
            Some(watch) if watch.is_killed() => Err(Ended::Killed),
            _ => Ok(()),
        }
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self::of_steps()
    }
}

/// Of one script: some hundredths of a second.
pub(super) const STEPS_MAX: u64 = 5_000_000;
/// A batch has the time of this many scripts that use up theirs, and their steps. It is less than a
/// client waits, and scripts that take a few milliseconds fit in by the dozen.
const BATCH_SCRIPTS: u32 = 4;
const BATCH_STEPS_MAX: u64 = STEPS_MAX * BATCH_SCRIPTS as u64;
/// Of all replies of a batch.
const REPLY_BYTES_MAX: u64 = 32 * 1024 * 1024;
