//! How long the work of a client may take. Knows no clock: one is handed in.

use std::cell::Cell;
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

    /// A script of the work begins.
    fn on_begin(&self) {}

    /// The script has ended.
    fn on_end(&self) {}
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
    /// It took too much memory.
    #[error("the script took more than {} MiB of memory", MEMORY_MAX / 1024 / 1024)]
    Memory,
    /// Its reply, or the replies of its batch, are too large.
    #[error("the reply of the script is larger than {} MiB", REPLY_BYTES_MAX / 1024 / 1024)]
    Reply,
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

    /// Whether a script can begin; what counts its steps.
    pub(super) fn begin(&self) -> Result<Meter, Ended> {
        let meter = Meter {
            watch: self.watch.clone(),
            begun: self.elapsed(),
            time_max: self.script_max,
            steps_max: self.steps.load(Ordering::Relaxed).min(STEPS_MAX),
            steps: Cell::new(0),
            next_check: Cell::new(STEPS_A_CHECK),
            ended: Cell::new(None),
            last_lap: Cell::new(Duration::ZERO),
        };
        if let Some(watch) = &meter.watch {
            watch.on_begin();
        }
        meter.check()?;
        if meter.steps_max == 0 || meter.begun >= self.script_max.saturating_mul(BATCH_SCRIPTS) {
            return Err(Ended::Batch);
        }
        Ok(meter)
    }

    /// Takes the steps of a script off those of the batch.
    pub(super) fn end(&self, meter: &Meter) {
        // One thread works on a batch.
        let left = self.steps.load(Ordering::Relaxed);
        let left = left.saturating_sub(meter.steps.get());
        self.steps.store(left, Ordering::Relaxed);
    }

    /// Takes bytes of a reply off those of the batch.
    pub(super) fn spend_reply(&self, bytes: usize) -> Result<(), Ended> {
        let left = self.reply_bytes.load(Ordering::Relaxed);
        let left = left.checked_sub(bytes.try_into().unwrap_or(u64::MAX));
        self.reply_bytes
            .store(left.ok_or(Ended::Reply)?, Ordering::Relaxed);
        Ok(())
    }

    fn elapsed(&self) -> Duration {
        let watch = self.watch.as_ref();
        watch.map_or(Duration::ZERO, |watch| watch.elapsed())
    }
}

/// Counts what one script takes.
#[derive(Debug)]
pub(super) struct Meter {
    watch: Option<Arc<dyn Watch>>,
    begun: Duration,
    time_max: Duration,
    steps_max: u64,
    steps: Cell<u64>,
    next_check: Cell<u64>,
    ended: Cell<Option<Ended>>,
    last_lap: Cell<Duration>,
}

impl Meter {
    /// Counts steps: some nanoseconds of work each.
    pub(super) fn spend(&self, steps: u64) -> Result<(), Ended> {
        if let Some(ended) = self.ended.get() {
            return Err(ended);
        }
        let spent = self.steps.get().saturating_add(steps);
        self.steps.set(spent);
        if spent > self.steps_max {
            return Err(self.end(Ended::Steps));
        }
        if spent >= self.next_check.get() {
            self.next_check.set(spent + STEPS_A_CHECK);
            self.check()?;
        }
        Ok(())
    }

    /// Counts the work on so many bytes that are copied, searched or made.
    pub(super) fn spend_bytes(&self, bytes: usize) -> Result<(), Ended> {
        self.spend(1 + bytes as u64 / BYTES_A_STEP)
    }

    /// Looks at the clock: after what may have taken long.
    pub(super) fn check(&self) -> Result<(), Ended> {
        if let Some(ended) = self.ended.get() {
            return Err(ended);
        }
        let Some(watch) = &self.watch else {
            return Ok(());
        };
        if watch.is_killed() {
            return Err(self.end(Ended::Killed));
        }
        if watch.elapsed().saturating_sub(self.begun) > self.time_max {
            return Err(self.end(Ended::Time(self.time_max)));
        }
        Ok(())
    }

    /// For how long it has run since the last call of this; nothing without a watch.
    pub(super) fn lap(&self) -> Duration {
        let now = self
            .watch
            .as_ref()
            .map_or(Duration::ZERO, |watch| watch.elapsed());
        now.saturating_sub(self.last_lap.replace(now))
    }

    /// It has come to its end; nothing makes it go on.
    pub(super) fn end(&self, why: Ended) -> Ended {
        self.ended.set(Some(why));
        why
    }

    /// Why it has ended, if it has.
    pub(super) const fn ended(&self) -> Option<Ended> {
        self.ended.get()
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.on_end();
        }
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self::of_steps()
    }
}

/// What one script may have in memory.
pub const MEMORY_MAX: usize = 32 * 1024 * 1024;
/// Of one script: some hundredths of a second.
pub(super) const STEPS_MAX: u64 = 5_000_000;
/// Some microseconds.
const STEPS_A_CHECK: u64 = 1_000;
/// As many as are copied in the time of a step, about.
const BYTES_A_STEP: u64 = 32;
/// A batch has the time of this many scripts that use up theirs, and their steps. It is less than a
/// client waits, and scripts that take a few milliseconds fit in by the dozen.
const BATCH_SCRIPTS: u32 = 4;
const BATCH_STEPS_MAX: u64 = STEPS_MAX * BATCH_SCRIPTS as u64;
/// Of all replies of a batch.
pub const REPLY_BYTES_MAX: u64 = 32 * 1024 * 1024;
