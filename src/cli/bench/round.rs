//! One job on one target: threads, connections, and their figures added up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::args::{Target, TargetGroup};
use super::connection::{Connection, Ended, Shared, Source, Times};
use super::exchange::Recorder;
use super::pace::{Schedule, wake_when_due};
use super::plan::{Job, Load, Plan};
use super::progress::{Progress, grouped};
use super::record::Tally;
use super::replay::{CHUNKS_WAITING_MAX, Chunk, Replay, deal};
use super::socket::{Loss, Socket};
use super::trace::{Trace, TraceError};
use super::workload::{Mix, Sweep};
use crate::env::{Clock, SystemClock};

/// What a round gave.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) tally: Tally,
    /// From when figures counted to the last reply, or as long as was asked for.
    pub(super) elapsed: Duration,
    /// Requests that should have been sent and never were: the server was too slow, or gone.
    pub(super) unsent: u64,
}

/// Whether the group's servers are there; the cause for each that is not.
pub(super) fn probe(plan: &Plan, group: &TargetGroup) -> anyhow::Result<Vec<(Target, Loss)>> {
    let password = plan.password.as_deref();
    runtime()?.block_on(async {
        let mut missing = Vec::new();
        for target in &group.0 {
            if let Err(loss) = Socket::probe(target, password).await {
                missing.push((target.clone(), loss));
            }
        }
        Ok(missing)
    })
}

/// Does a job on a group of servers.
pub(super) fn run(
    plan: &Plan,
    job: &Arc<Job>,
    group: &TargetGroup,
    progress: &mut Progress<'_>,
) -> anyhow::Result<Outcome> {
    let mut trace = match &job.load {
        Load::Trace { path, .. } => Some(Trace::open(path)?),
        Load::Mix { .. } | Load::Sweep { .. } => None,
    };
    let (connections, queues) = connections(plan, job, group);
    let alarms: Vec<_> = connections
        .iter()
        .map(|each| Arc::clone(&each.alarm))
        .collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let dealer = trace.as_mut().map(|trace| {
            let job = &**job;
            scope.spawn(move || deal_out(trace, queues, job))
        });
        let mut workers = Workers::spawn(scope, plan, job, connections)?;
        let times = workers.start(plan, job);
        if let Some(schedule) = times.schedule {
            let (alarms, stop) = (&alarms, &stop);
            scope.spawn(move || wake_when_due(schedule, alarms, &SystemClock, stop));
        }
        let ended = workers.wait(|line| progress.show(&format!("{group}  {line}")));
        stop.store(true, Ordering::Relaxed);
        progress.show("");
        // Its queues are closed now, so it ends if it has not yet.
        let dealt = match dealer.map(thread::ScopedJoinHandle::join) {
            Some(Ok(dealt)) => Some(dealt?),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => None,
        };
        Ok(outcome(&workers, &times, job, ended?, dealt))
    })
}

fn deal_out(
    trace: &mut Trace,
    queues: Vec<tokio::sync::mpsc::Sender<Chunk>>,
    job: &Job,
) -> Result<u64, TraceError> {
    match &job.load {
        Load::Trace { writes, .. } => {
            deal(trace, queues, *writes, job.requests.unwrap_or(u64::MAX))
        }
        Load::Mix { .. } | Load::Sweep { .. } => Ok(0),
    }
}

/// The connections of a job and, for a trace, the queues that feed them.
fn connections(
    plan: &Plan,
    job: &Job,
    group: &TargetGroup,
) -> (Vec<Connection>, Vec<tokio::sync::mpsc::Sender<Chunk>>) {
    let mut queues = Vec::new();
    let targets = group.0.iter().cycle();
    let connections = (0..plan.connections)
        .zip(targets)
        .map(|(number, target)| {
            let mut budget = None;
            let source = match &job.load {
                Load::Mix { ratio, keys } => {
                    budget = job.requests.map(|all| share(all, number, plan.connections));
                    Source::Mix(Mix::new(*ratio, keys.clone(), plan.seed, number))
                }
                Load::Sweep { keys } => Source::Sweep(Sweep::new(number, plan.connections, *keys)),
                Load::Trace { .. } => {
                    let (queue, chunks) = tokio::sync::mpsc::channel(CHUNKS_WAITING_MAX);
                    queues.push(queue);
                    Source::Trace(Replay::new(chunks))
                }
            };
            Connection {
                number,
                target: target.clone(),
                source,
                budget,
                alarm: Arc::new(Notify::new()),
                socket: None,
                pause: Duration::ZERO,
            }
        })
        .collect();
    (connections, queues)
}

/// The `nth` of `parts` nearly equal shares that add up to `all`.
fn share(all: u64, nth: u64, parts: u64) -> u64 {
    all / parts + u64::from(nth < all % parts)
}

/// The threads of a round, as the thread that started them sees them.
struct Workers {
    recorders: Vec<Arc<Recorder>>,
    opened: mpsc::Receiver<()>,
    go: Vec<mpsc::Sender<Times>>,
    ended: mpsc::Receiver<std::io::Result<Ended>>,
    clock: SystemClock,
    started: Instant,
}

impl Workers {
    fn spawn<'scope>(
        scope: &'scope thread::Scope<'scope, '_>,
        plan: &Plan,
        job: &Arc<Job>,
        connections: Vec<Connection>,
    ) -> anyhow::Result<Self> {
        let clock = SystemClock;
        let (opened_sender, opened) = mpsc::channel();
        let (ended_sender, ended) = mpsc::channel();
        let mut workers = Self {
            recorders: Vec::new(),
            opened,
            go: Vec::new(),
            ended,
            clock,
            started: clock.monotonic(),
        };
        for connections in dealt_to_threads(connections, plan.threads) {
            let (go, times) = mpsc::channel();
            let recorder = Arc::new(Recorder::new());
            workers.go.push(go);
            workers.recorders.push(Arc::clone(&recorder));
            let worker = Worker {
                shared: Arc::new(Shared {
                    job: Arc::clone(job),
                    password: plan.password.clone(),
                    recorder,
                    clock,
                }),
                connections,
                opened: opened_sender.clone(),
                times,
            };
            let ended = ended_sender.clone();
            // Should one fail to start, the others end when `go` is dropped.
            thread::Builder::new()
                .spawn_scoped(scope, move || {
                    // Nobody listens only when the round has failed already.
                    ended.send(worker.run()).ok();
                })
                .context("cannot start a thread; try fewer --threads")?;
        }
        Ok(workers)
    }

    /// Waits until all connections are made, then lets all threads begin at the same time.
    fn start(&mut self, plan: &Plan, job: &Job) -> Times {
        for _ in &self.go {
            if self.opened.recv().is_err() {
                break;
            }
        }
        self.started = self.clock.monotonic();
        let measure_from = self.started + job.warmup;
        let times = Times {
            measure_from,
            until: job.duration.map(|duration| measure_from + duration),
            schedule: job.rate.map(|rate| Schedule {
                start: self.started,
                rate,
                connections: plan.connections,
            }),
        };
        for go in &self.go {
            // One that failed before is told by `wait`.
            go.send(times).ok();
        }
        times
    }

    /// Waits until all threads have ended; `show` gets a line each second.
    fn wait(&self, mut show: impl FnMut(&str)) -> anyhow::Result<Ended> {
        let mut all = Ended::default();
        let mut left = self.recorders.len();
        let mut before = 0;
        while left > 0 {
            match self.ended.recv_timeout(SHOW_EACH) {
                Ok(ended) => {
                    let ended = ended.context("cannot drive connections")?;
                    all.sent += ended.sent;
                    all.budget_left += ended.budget_left;
                    left -= 1;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let ended = self.sum(|recorder| recorder.ended.load(Ordering::Relaxed));
                    let failed = self.sum(|recorder| recorder.failed.load(Ordering::Relaxed));
                    let seconds = (self.clock.monotonic() - self.started).as_secs();
                    let rate = grouped(ended - before);
                    show(&format!("{seconds} s  {rate} requests/s  {failed} failed"));
                    before = ended;
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    anyhow::bail!("a thread of the load generator ended before its time");
                }
            }
        }
        Ok(all)
    }

    fn sum(&self, figure: impl Fn(&Recorder) -> u64) -> u64 {
        self.recorders.iter().map(|recorder| figure(recorder)).sum()
    }
}

/// A thread and the connections it drives.
struct Worker {
    shared: Arc<Shared>,
    connections: Vec<Connection>,
    opened: mpsc::Sender<()>,
    times: mpsc::Receiver<Times>,
}

impl Worker {
    fn run(self) -> std::io::Result<Ended> {
        let Self {
            shared,
            mut connections,
            opened,
            times,
        } = self;
        let runtime = runtime()?;
        runtime.block_on(async {
            for connection in &mut connections {
                connection.open(&shared).await;
            }
        });
        opened.send(()).ok();
        // So that who waits for a worker that failed sees that no more will come.
        drop(opened);
        let Ok(times) = times.recv() else {
            return Ok(Ended::default());
        };
        runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for connection in connections {
                tasks.spawn(connection.run(Arc::clone(&shared), times));
            }
            let mut all = Ended::default();
            while let Some(ended) = tasks.join_next().await {
                let ended = ended.map_err(std::io::Error::other)?;
                all.sent += ended.sent;
                all.budget_left += ended.budget_left;
            }
            Ok(all)
        })
    }
}

fn dealt_to_threads(connections: Vec<Connection>, threads: u64) -> Vec<Vec<Connection>> {
    let mut dealt: Vec<_> = (0..threads).map(|_| Vec::new()).collect();
    let count = dealt.len();
    for (index, connection) in connections.into_iter().enumerate() {
        dealt[index % count].push(connection);
    }
    dealt
}

fn outcome(
    workers: &Workers,
    times: &Times,
    job: &Job,
    ended: Ended,
    dealt: Option<u64>,
) -> Outcome {
    let mut tally = Tally::new();
    for recorder in &workers.recorders {
        tally.merge(&recorder.tally());
    }
    let counted = tally
        .last_reply
        .map_or(Duration::ZERO, |last| last - times.measure_from);
    let planned = match (dealt, times.schedule, times.until) {
        // A trace cut by time is as it should be.
        (Some(_), _, Some(_)) => None,
        (Some(dealt), _, None) => Some(dealt),
        (None, Some(schedule), Some(until)) => Some(schedule.due_in_all(until - LATE)),
        (None, ..) => None,
    };
    let backlog = planned.map(|planned| planned.saturating_sub(ended.sent));
    let unsent = match (backlog, job.requests, times.until) {
        (Some(backlog), Some(_), _) if dealt.is_none() => backlog.min(ended.budget_left),
        (Some(backlog), ..) => backlog,
        (None, Some(_), None) => ended.budget_left,
        (None, ..) => 0,
    };
    Outcome {
        tally,
        elapsed: counted.max(
            job.duration
                .filter(|_| job.requests.is_none() && dealt.is_none())
                .unwrap_or_default(),
        ),
        unsent,
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// What was due this shortly before the end and not sent is not a backlog: it had no time.
const LATE: Duration = Duration::from_millis(20);

const SHOW_EACH: Duration = Duration::from_secs(1);
