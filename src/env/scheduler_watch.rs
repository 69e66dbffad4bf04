//! How long the threads that serve requests go without a turn.
//!
//! What holds a thread for long holds up all that waits for it: clients, peers, timers. A thread of its
//! own looks every few milliseconds whether each worker of the runtime has come by the place, at least
//! once in 61 tasks, where it looks for input and timers. It sees a single worker that does not, which a
//! task that measures its own delay does not: the other workers take it over. It does not see what runs
//! where there is no worker, as in `spawn_blocking`, and no delay that is shorter than it looks.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeMetrics};
use tokio::time::Instant;

use super::Clock;

/// What was seen.
#[derive(Debug)]
pub struct SchedulerWatch {
    /// Of single workers.
    workers: Delays,
    /// Of the watch itself: the machine gave the process no processor.
    process: Delays,
    /// The longest delay that goes on, in microseconds.
    stalled_us: AtomicU64,
    long: Mutex<VecDeque<LongDelay>>,
}

/// Delays by their length.
#[derive(Debug, Default)]
pub struct Delays {
    counts: [AtomicU64; DELAY_BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

/// A delay that somebody has felt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongDelay {
    /// Whether the machine gave the process no processor, as opposed to a worker that was held up.
    pub is_of_process: bool,
    /// When it ended.
    pub at: Instant,
    /// How long it took.
    pub length: Duration,
}

impl SchedulerWatch {
    /// Watches the runtime of the caller for as long as somebody holds what this returns.
    pub fn start(clock: Arc<dyn Clock>) -> io::Result<Arc<Self>> {
        let watch = Arc::new(Self {
            workers: Delays::default(),
            process: Delays::default(),
            stalled_us: AtomicU64::new(0),
            long: Mutex::default(),
        });
        let metrics = Handle::current().metrics();
        let weak = Arc::downgrade(&watch);
        let mut looks = Looks::new(&metrics, clock.monotonic());
        let run = move || {
            while let Some(watch) = weak.upgrade() {
                looks.look(&metrics, clock.monotonic(), &watch);
                drop(watch);
                #[expect(clippy::disallowed_methods, reason = "a thread that does nothing else")]
                std::thread::sleep(LOOK_INTERVAL);
            }
        };
        let thread = std::thread::Builder::new().name("scheduler-watch".to_owned());
        thread.spawn(run)?;
        Ok(watch)
    }

    /// Delays of single workers.
    #[must_use]
    pub const fn workers(&self) -> &Delays {
        &self.workers
    }

    /// Delays of the whole process.
    #[must_use]
    pub const fn process(&self) -> &Delays {
        &self.process
    }

    /// How long a worker has gone without a turn that has none yet.
    #[must_use]
    pub fn stalled(&self) -> Duration {
        Duration::from_micros(self.stalled_us.load(Ordering::Relaxed))
    }

    /// The last delays of [`LONG_DELAY`] and more, the oldest first.
    #[must_use]
    pub fn long_delays(&self) -> Vec<LongDelay> {
        let long = self.long.lock().unwrap_or_else(PoisonError::into_inner);
        long.iter().copied().collect()
    }

    fn note(&self, delay: LongDelay) {
        let of = if delay.is_of_process {
            &self.process
        } else {
            &self.workers
        };
        of.add(delay.length);
        if delay.length >= LONG_DELAY {
            let mut long = self.long.lock().unwrap_or_else(PoisonError::into_inner);
            if long.len() >= LONG_DELAYS_KEPT {
                long.pop_front();
            }
            long.push_back(delay);
        }
    }
}

impl Delays {
    /// How many there were up to each of [`DELAY_BOUNDS_US`] and beyond the one before, and longer ones.
    #[must_use]
    pub fn counts(&self) -> [u64; DELAY_BOUNDS_US.len() + 1] {
        self.counts
            .each_ref()
            .map(|count| count.load(Ordering::Relaxed))
    }

    /// All together, in microseconds.
    #[must_use]
    pub fn sum_us(&self) -> u64 {
        self.sum_us.load(Ordering::Relaxed)
    }

    fn add(&self, delay: Duration) {
        let us = micros(delay);
        let place = DELAY_BOUNDS_US.partition_point(|bound| *bound < us);
        if let Some(count) = self.counts.get(place) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }
}

/// What the watch remembers from one look to the next.
struct Looks {
    last: Instant,
    workers: Vec<Worker>,
}

/// One worker, as it was when it was last seen to have a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Worker {
    turns: Turns,
    without: Duration,
}

/// Either changes with each turn. Odd parks: it has nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Turns {
    parks: u64,
    busy: Duration,
}

impl Looks {
    fn new(metrics: &RuntimeMetrics, now: Instant) -> Self {
        let workers = (0..metrics.num_workers()).map(|number| Worker {
            turns: Turns::of(metrics, number),
            without: Duration::ZERO,
        });
        Self {
            last: now,
            workers: workers.collect(),
        }
    }

    fn look(&mut self, metrics: &RuntimeMetrics, now: Instant, watch: &SchedulerWatch) {
        let passed = now.saturating_duration_since(self.last);
        self.last = now;
        watch.note(LongDelay {
            is_of_process: true,
            at: now,
            length: passed.saturating_sub(LOOK_INTERVAL),
        });
        // Of a time in which not even this thread had a turn, workers are not to blame for all.
        let passed = passed.min(2 * LOOK_INTERVAL);
        let mut stalled = Duration::ZERO;
        for (number, worker) in self.workers.iter_mut().enumerate() {
            if let Some(length) = worker.look(Turns::of(metrics, number), passed) {
                watch.note(LongDelay {
                    is_of_process: false,
                    at: now,
                    length,
                });
            }
            stalled = stalled.max(worker.without);
        }
        watch.stalled_us.store(micros(stalled), Ordering::Relaxed);
    }
}

impl Worker {
    /// How long it was without a turn before the one that it had meanwhile, if it had one and has been
    /// at work.
    fn look(&mut self, turns: Turns, passed: Duration) -> Option<Duration> {
        let is_parked = turns.parks % 2 == 1;
        if turns == self.turns && !is_parked {
            self.without += passed;
            return None;
        }
        let was_at_work = turns.busy != self.turns.busy;
        self.turns = turns;
        let without = std::mem::take(&mut self.without);
        was_at_work.then_some(without)
    }
}

impl Turns {
    fn of(metrics: &RuntimeMetrics, worker: usize) -> Self {
        Self {
            parks: metrics.worker_park_unpark_count(worker),
            busy: metrics.worker_total_busy_duration(worker),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Upper bounds of [`Delays::counts`], in microseconds.
pub const DELAY_BOUNDS_US: [u64; 9] = [
    10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 10_000_000,
];
/// A peer is thought down after some of them, and a client notices.
pub const LONG_DELAY: Duration = Duration::from_millis(100);
const LONG_DELAYS_KEPT: usize = 64;
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SystemClock;

    #[test]
    fn a_worker_is_without_a_turn_while_nothing_of_it_changes() {
        let turns = |parks, busy_ms| Turns {
            parks,
            busy: Duration::from_millis(busy_ms),
        };
        let ms = Duration::from_millis;
        let mut worker = Worker {
            turns: turns(0, 0),
            without: Duration::ZERO,
        };
        assert_eq!(worker.look(turns(0, 5), ms(10)), Some(ms(0)));
        assert_eq!(worker.look(turns(0, 5), ms(10)), None);
        assert_eq!(worker.look(turns(0, 5), ms(20)), None);
        assert_eq!(worker.without, ms(30));
        assert_eq!(worker.look(turns(1, 40), ms(10)), Some(ms(30)));
        // Parked: it has nothing to do.
        assert_eq!(worker.look(turns(1, 40), ms(10)), None);
        assert_eq!(
            (worker.look(turns(2, 40), ms(10)), worker.without),
            (None, ms(0))
        );
    }

    /// One of two workers is held up, and the other one serves all that there is.
    #[test]
    fn one_blocked_worker_of_two_is_seen() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let watch = SchedulerWatch::start(Arc::new(SystemClock)).unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            let tasks = crate::env::Tasks::new();
            tasks.spawn(async {
                #[expect(clippy::disallowed_methods, reason = "it is to be blocked")]
                std::thread::sleep(Duration::from_millis(400));
            });
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(watch.stalled() >= LONG_DELAY, "{:?}", watch.stalled());
            assert!(tasks.shutdown(Duration::from_secs(10)).await);
            tokio::time::sleep(Duration::from_millis(100)).await;
            let long = watch.long_delays();
            assert!(long.iter().any(|delay| !delay.is_of_process), "{long:?}");
            let counts = watch.workers().counts();
            let long = DELAY_BOUNDS_US.partition_point(|bound| *bound < micros(LONG_DELAY));
            assert!(counts[long..].iter().sum::<u64>() >= 1, "{counts:?}");
        });
    }

    #[test]
    fn a_runtime_of_one_thread_is_watched_as_well() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let watch = SchedulerWatch::start(Arc::new(SystemClock)).unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            let tasks = crate::env::Tasks::new();
            tasks.spawn(async {
                #[expect(clippy::disallowed_methods, reason = "it is to be blocked")]
                std::thread::sleep(Duration::from_millis(400));
            });
            // It would be stopped before it begins.
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(tasks.shutdown(Duration::from_secs(10)).await);
            tokio::time::sleep(Duration::from_millis(100)).await;
            let long = watch.long_delays();
            assert!(long.iter().any(|delay| !delay.is_of_process), "{long:?}");
        });
    }
}
