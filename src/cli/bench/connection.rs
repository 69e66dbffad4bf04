//! One connection's life: batch after batch, and back again when it is lost.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use super::args::Target;
use super::exchange::{Exchange, Recorder, Sending, Since};
use super::pace::Schedule;
use super::plan::{Job, Password};
use super::replay::Replay;
use super::socket::{Loss, Socket};
use super::workload::{Batch, Mix, Sweep};
use crate::env::{Clock, SystemClock};

/// Where a connection's requests come from.
#[derive(Debug)]
pub(super) enum Source {
    Mix(Mix),
    Sweep(Sweep),
    Trace(Replay),
}

impl Source {
    /// Fills a batch; leaves it empty at the end. Returns how many requests of the load it holds.
    async fn fill(&mut self, batch: &mut Batch, job: &Job, requests_max: usize) -> usize {
        batch.clear();
        match self {
            Self::Mix(mix) => mix.fill(batch, &job.commands, requests_max),
            Self::Sweep(sweep) => sweep.fill(batch, &job.commands, requests_max),
            Self::Trace(replay) => return replay.fill(batch, &job.commands, requests_max).await,
        }
        batch.len()
    }

    fn on_misses(&mut self, places: &[usize]) {
        if let Self::Trace(replay) = self {
            replay.on_misses(places);
        }
    }
}

/// One connection, before it runs.
#[derive(Debug)]
pub(super) struct Connection {
    /// From 0.
    pub(super) number: u64,
    pub(super) target: Target,
    pub(super) source: Source,
    /// How many requests it may send that count; `None`: any.
    pub(super) budget: Option<u64>,
    /// Told when its next request is due.
    pub(super) alarm: Arc<Notify>,
    pub(super) socket: Option<Socket>,
    /// How long to wait before connecting; grows from loss to loss, gone with a success.
    pub(super) pause: Duration,
}

/// What all connections of a thread share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) job: Arc<Job>,
    pub(super) password: Option<Arc<Password>>,
    pub(super) recorder: Arc<Recorder>,
    pub(super) clock: SystemClock,
}

/// When a run counts, and when it ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) measure_from: Instant,
    pub(super) until: Option<Instant>,
    pub(super) schedule: Option<Schedule>,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ended {
    /// Requests of the load that it sent, warm-up included.
    pub(super) sent: u64,
    /// What is left of its budget.
    pub(super) budget_left: u64,
}

impl Connection {
    /// Connects before the run starts, so that connecting is not part of it. A failure is counted;
    /// the run tries again.
    pub(super) async fn open(&mut self, shared: &Shared) {
        match Socket::open(&self.target, shared.password.as_deref()).await {
            Ok(socket) => self.socket = Some(socket),
            Err(loss) => {
                self.pause = PAUSE_MIN;
                count_loss(shared, &loss);
            }
        }
    }

    /// Sends batch after batch until time, budget or load is over.
    pub(super) async fn run(mut self, shared: Arc<Shared>, times: Times) -> Ended {
        let job = &shared.job;
        let mut exchange = Exchange::new(shared.clock, job.read_bytes, job.wait);
        let mut batch = Batch::default();
        let mut sent = 0;
        while let Some(requests_max) = self.allowed(&shared, &times, sent).await {
            let Some(mut socket) = self.connected(&shared, &times).await else {
                break;
            };
            let new = self.source.fill(&mut batch, job, requests_max).await as u64;
            if batch.len() == 0 {
                break;
            }
            let since = match times.schedule {
                None => Since::Sent(shared.clock.monotonic()),
                Some(schedule) => Since::Due {
                    schedule,
                    connection: self.number,
                    first: sent,
                },
            };
            let counts = since.of(0) >= times.measure_from;
            sent += new;
            if counts {
                self.budget = self.budget.map(|left| left.saturating_sub(new));
            }
            let sending = Sending {
                batch: &batch,
                since,
                counts,
                recorder: &shared.recorder,
            };
            match exchange.run(&mut socket, sending).await {
                Ok(()) => {
                    self.socket = Some(socket);
                    self.pause = Duration::ZERO;
                    self.source.on_misses(&exchange.misses);
                }
                Err(loss) => {
                    self.pause = longer(self.pause);
                    if counts {
                        count_loss(&shared, &loss);
                    }
                }
            }
        }
        Ended {
            sent,
            budget_left: self.budget.unwrap_or(0),
        }
    }

    /// How many requests the next batch may hold; `None` when the run is over for us.
    async fn allowed(&self, shared: &Shared, times: &Times, sent: u64) -> Option<usize> {
        let is_over = |now| times.until.is_some_and(|until| now >= until);
        let mut now = shared.clock.monotonic();
        let mut allowed = match self.budget {
            Some(0) => return None,
            // More than a batch is cut below.
            Some(left) => usize::try_from(left).unwrap_or(usize::MAX),
            None => usize::MAX,
        };
        if let Some(schedule) = times.schedule {
            while !is_over(now) && schedule.due(self.number, now) <= sent {
                self.alarmed(times.until).await;
                now = shared.clock.monotonic();
            }
            let due = schedule.due(self.number, now) - sent;
            allowed = allowed.min(usize::try_from(due).unwrap_or(usize::MAX));
        }
        (!is_over(now)).then_some(allowed.min(shared.job.pipeline))
    }

    async fn alarmed(&self, until: Option<Instant>) {
        match until {
            None => self.alarm.notified().await,
            // Either way the caller looks at the clock.
            Some(until) => drop(timeout_at(until, self.alarm.notified()).await),
        }
    }

    /// The open socket, or a new one; `None` when there was none to get for too long.
    async fn connected(&mut self, shared: &Shared, times: &Times) -> Option<Socket> {
        if let Some(socket) = self.socket.take() {
            return Some(socket);
        }
        let give_up_at = times
            .until
            .unwrap_or_else(|| shared.clock.monotonic() + RECONNECT_MAX);
        loop {
            if shared.clock.monotonic() + self.pause >= give_up_at {
                return None;
            }
            sleep(self.pause).await;
            let opening = Socket::open(&self.target, shared.password.as_deref());
            match timeout_at(give_up_at, opening).await {
                Ok(Ok(socket)) => return Some(socket),
                Ok(Err(loss)) if shared.clock.monotonic() >= times.measure_from => {
                    count_loss(shared, &loss);
                }
                Ok(Err(_)) => {}
                Err(_elapsed) => return None,
            }
            self.pause = longer(self.pause);
        }
    }
}

fn count_loss(shared: &Shared, loss: &Loss) {
    let mut tally = shared.recorder.tally();
    tally
        .connection_errors
        .add(loss.kind(), || loss.to_string());
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX)
}

/// How long a run without an end in time tries to come back to a server: a restart takes less.
const RECONNECT_MAX: Duration = Duration::from_secs(30);

/// A server that is back should not wait for us, one that is not should not be flooded.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);
