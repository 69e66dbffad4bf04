//! What clients of a mixed run do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate::env::SeededRng;
use quorate::model::{Database, Level, Version};
use quorate::node::coordinator::{Action, Outcome, Request, RequestError};
use quorate::node::updates::UpdateError;
use quorate::update::{Change, Reply};
use tokio::time::{Instant, sleep};

use super::history::{Fate, History, Seen};
use crate::cluster::{Cluster, Door, now};
use crate::faults::Fault;

/// A kind of work. Each has keys of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Work {
    /// `HINCRBY`, alone, in scripts and in transactions, of fields of their own.
    Tag,
    /// `SET NX`, given back by an update or by a plain delete.
    Add,
    /// Values with a TTL, by updates only.
    Expire,
    /// Counters and values in a database that is flushed.
    Flush,
}

impl Work {
    pub(crate) const ALL: [Self; 4] = [Self::Tag, Self::Add, Self::Expire, Self::Flush];
}

/// One request, and what it is to be checked for.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) key: usize,
    pub(super) what: What,
    pub(super) level: Level,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    /// An increment of this field.
    Tag(u64, Action),
    Add(u64),
    /// Deletes the value if it is this one.
    Free(u64),
    Delete,
    /// Writes a value with a TTL in milliseconds, under a condition.
    Put(u64, u64, &'static str),
    /// Writes a value and shows the one before it.
    Swap(u64),
    /// Shortens the TTL.
    Shorten(u64),
    Count,
    Write(u64),
    Get,
}

#[derive(Clone)]
pub(super) struct World {
    pub(super) cluster: Arc<Mutex<Cluster>>,
    pub(super) history: Arc<Mutex<History>>,
    pub(super) values: Arc<AtomicU64>,
    pub(super) works: Arc<[Work]>,
    pub(super) faults: Arc<[Fault]>,
    pub(super) batch_max: u64,
    pub(super) think_ms: u64,
    pub(super) started: Instant,
}

impl Job {
    fn key(&self) -> Bytes {
        let name = match self.work {
            Work::Tag => format!("t{}", self.key),
            Work::Add => format!("a{}", self.key),
            Work::Expire => format!("e{}", self.key),
            Work::Flush if matches!(self.what, What::Count) => format!("c{}", self.key),
            Work::Flush => format!("f{}", self.key),
        };
        let database = match self.work {
            Work::Flush => flushed(),
            Work::Tag | Work::Add | Work::Expire => Database::default(),
        };
        Bytes::from(database.key(name.as_bytes()).into_owned())
    }

    fn action(&self) -> Action {
        let name = self.key();
        let key = Database::split(&name).1;
        let update = |words: &[&[u8]]| Action::Update(Change::Command(request(words)));
        let text = |number: u64| number.to_string().into_bytes();
        match &self.what {
            What::Tag(_, action) => action.clone(),
            What::Add(value) => update(&[b"SET", key, &text(*value), b"NX"]),
            What::Free(value) => update(&[b"DELIFEQ", key, &text(*value)]),
            What::Put(value, ttl, "") => {
                // Atomic, so that what was there is known to have been replaced.
                update(&[b"SET", key, &text(*value), b"GET", b"PX", &text(*ttl)])
            }
            What::Put(value, ttl, condition) => update(&[
                b"SET",
                key,
                &text(*value),
                condition.as_bytes(),
                b"PX",
                &text(*ttl),
            ]),
            What::Swap(value) => update(&[b"GETSET", key, &text(*value)]),
            What::Shorten(ttl) => update(&[b"PEXPIRE", key, &text(*ttl), b"LT"]),
            What::Count => update(&[b"INCR", key]),
            What::Write(value) => Action::Set {
                value: Bytes::from(value.to_string()),
                expires_at: None,
            },
            What::Delete => Action::Delete,
            What::Get => Action::Get,
        }
    }

    fn request(&self) -> Request {
        Request {
            key: self.key(),
            action: self.action(),
            level: self.level,
            // Where fewer than r homes answer, a sloppy read answers what is left, perhaps an old value: the
            // README excepts it. A strict one answers NOQUORUM.
            is_sloppy: !matches!(self.what, What::Get),
        }
    }
}

impl World {
    pub(super) fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn value(&self) -> u64 {
        self.values.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The door of a node that can be asked now.
    fn open(&self, node: usize) -> Option<Door> {
        let cluster = self.cluster();
        let is_paused = cluster.network.is_paused(cluster.tag(node));
        if is_paused { None } else { cluster.door(node) }
    }

    /// Several requests together, as of a pipeline.
    async fn run(&self, node: usize, jobs: &[Job]) {
        let Some(door) = self.open(node) else { return };
        let call = self.history().tick();
        let was_astray = self.cluster().is_astray(node);
        let at = self.started.elapsed().as_millis();
        let requests = jobs.iter().map(Job::request).collect();
        let outcomes = door.run_all(requests).await;
        let is_astray = was_astray || self.cluster().is_astray(node);
        let mut history = self.history();
        let end = history.tick();
        let took = self.started.elapsed().as_millis() - at;
        for (number, job) in jobs.iter().enumerate() {
            let outcome = outcomes.as_ref().and_then(|outcomes| outcomes.get(number));
            let name = String::from_utf8_lossy(&job.key()).into_owned();
            let note = format!(
                "{at:>6} ms +{took:<4} {call:>5}-{end:<5} n{node} {name} {} {:?}: {outcome:?}",
                job.level, job.what
            );
            self.cluster().network.note((call, end, &note));
            history.note(job, (call, end), seen(outcome), (note, is_astray));
        }
    }

    /// What a client that wants to update if nothing has changed sees first.
    async fn watch(&self, node: usize, key: &Bytes) -> Option<Option<Version>> {
        let door = self.open(node)?;
        let look = Request {
            key: key.clone(),
            action: Action::Update(Change::Look),
            level: Level::Quorum,
            is_sloppy: true,
        };
        match door.run(look).await {
            Some(Outcome::Updated(Reply::Seen(_, version))) => Some(version),
            _ => None,
        }
    }

    async fn tag(&self, node: usize, key: usize, way: usize) -> What {
        let tag = self.value();
        let name = format!("t{key}");
        let (name, field) = (name.as_bytes(), tag.to_string());
        let count = [b"HINCRBY", name, field.as_bytes(), b"1"];
        let change = match way {
            0 => Change::Command(request(&count)),
            1 => Change::Command(request(&[
                b"EVAL",
                b"return redis.call('hincrby', KEYS[1], ARGV[1], 1)",
                b"1",
                name,
                field.as_bytes(),
            ])),
            _ => match self.watch(node, &Bytes::copy_from_slice(name)).await {
                Some(seen) => Change::Transaction(seen, vec![request(&count)]),
                None => Change::Command(request(&count)),
            },
        };
        What::Tag(tag, Action::Update(change))
    }

    async fn job(&self, node: usize, rng: &SeededRng) -> Job {
        let below = |bound: u64| usize::try_from(rng.next_u64() % bound).unwrap_or(0);
        let work = self.works[below(self.works.len() as u64)];
        let key = below(KEYS as u64);
        let level = LEVELS[below(LEVELS.len() as u64)];
        let what = match (work, below(10)) {
            (Work::Tag, way @ 0..7) => self.tag(node, key, way / 3).await,
            (Work::Add, 0..4) => What::Add(self.value()),
            (Work::Add, 4..6) => match self.history().added(key) {
                Some(value) => What::Free(value),
                None => What::Get,
            },
            (Work::Add, 6) => What::Delete,
            (Work::Expire, 0..2) => What::Put(self.value(), 100 + below(1_500) as u64, ""),
            (Work::Expire, 2) => What::Put(self.value(), 100 + below(1_500) as u64, "XX"),
            (Work::Expire, 3) => What::Put(self.value(), 100 + below(1_500) as u64, "NX"),
            (Work::Expire, 4) => What::Swap(self.value()),
            (Work::Expire, 5) => What::Shorten(50 + below(300) as u64),
            (Work::Flush, 0..4) => What::Count,
            (Work::Flush, 4..6) => What::Write(self.value()),
            (Work::Tag | Work::Add | Work::Expire | Work::Flush, _) => What::Get,
        };
        Job {
            work,
            key,
            what,
            level,
        }
    }

    async fn flush(&self, node: usize) {
        let Some(door) = self.open(node) else { return };
        let call = self.history().tick();
        let is_done = door.flush(flushed()).await;
        let mut history = self.history();
        let end = history.tick();
        let at = self.started.elapsed().as_millis();
        history.flush(
            (call, end),
            is_done,
            format!("{at:>6} ms {call:>5}-{end:<5} n{node} flush: {is_done}"),
        );
    }

    pub(super) async fn client(self, client: u32, seed: u64, until: Instant) {
        let rng = SeededRng::from_seed(seed ^ (u64::from(client) << 40));
        let below = |bound: u64| usize::try_from(rng.next_u64() % bound).unwrap_or(0);
        let nodes = self.cluster().nodes.len() as u64;
        let mut node = below(nodes);
        while now() < until {
            // Bursts and pauses: most races need two operations at the same time.
            let think = if rng.fraction() < 0.8 {
                self.think_ms
            } else {
                400
            };
            sleep(Duration::from_millis(below(think) as u64)).await;
            if rng.fraction() < 0.2 {
                node = below(nodes);
            }
            if self.works.contains(&Work::Flush) && rng.fraction() < 0.01 {
                self.flush(node).await;
                continue;
            }
            let mut jobs = Vec::new();
            for _ in 0..=below(self.batch_max) {
                jobs.push(self.job(node, &rng).await);
            }
            self.run(node, &jobs).await;
        }
    }

    /// One write and one read at a level through a node, of a key of its own; whether both were answered.
    pub(super) async fn goes_on(&self, node: usize, level: Level) -> bool {
        let Some(door) = self.open(node) else {
            sleep(Duration::from_millis(100)).await;
            return false;
        };
        let request = |action| Request {
            key: Bytes::from(format!("live{node}")),
            action,
            level,
            is_sloppy: true,
        };
        let set = Action::Set {
            value: Bytes::from_static(b"1"),
            expires_at: None,
        };
        let is_written = matches!(door.run(request(set)).await, Some(Outcome::Written));
        let is_read = matches!(
            door.run(request(Action::Get)).await,
            Some(Outcome::Value(Some(_)))
        );
        if !(is_written && is_read) {
            sleep(Duration::from_millis(50)).await;
        }
        is_written && is_read
    }

    /// Reads everything through every node, in peace.
    pub(super) async fn read_all(&self) -> Result<(), String> {
        let nodes = self.cluster().nodes.len();
        for work in self.works.iter().copied() {
            for key in 0..KEYS {
                let mut seen = Vec::new();
                for node in 0..nodes {
                    if self.cluster().is_astray(node) {
                        continue;
                    }
                    let job = Job {
                        work,
                        key,
                        what: What::Get,
                        level: Level::Linearizable,
                    };
                    let mut read = None;
                    for _ in 0..20 {
                        self.run(node, std::slice::from_ref(&job)).await;
                        read = self.history().last_read(&job);
                        if read.is_some() {
                            break;
                        }
                        sleep(Duration::from_millis(100)).await;
                    }
                    seen.push(read.ok_or_else(|| format!("{job:?} cannot be read in peace"))?);
                }
                if work != Work::Expire && seen.windows(2).any(|pair| pair[0] != pair[1]) {
                    return Err(format!("in peace nodes see {work:?} {key} as {seen:?}"));
                }
            }
        }
        Ok(())
    }
}

/// What a client learns from an outcome; `None`: its node died.
fn seen(outcome: Option<&Outcome>) -> Seen {
    match outcome {
        Some(Outcome::Updated(reply)) => Seen::Reply(reply.clone()),
        Some(Outcome::Value(value)) => Seen::Value(value.clone()),
        Some(Outcome::Hash(hash)) => Seen::Value(Some(hash.clone())),
        Some(
            Outcome::Written | Outcome::Deleted(_) | Outcome::Expiry { .. } | Outcome::Look(_),
        ) => Seen::Done,
        Some(Outcome::Failed(RequestError::Update(
            UpdateError::NotMade(_) | UpdateError::Busy,
        ))) => Seen::Fate(Fate::NotApplied),
        Some(Outcome::Failed(RequestError::Update(UpdateError::AnswerLost))) => {
            Seen::Fate(Fate::Applied)
        }
        Some(Outcome::Failed(_)) | None => Seen::Fate(Fate::Unknown),
    }
}

/// A request as clients send it.
fn request(words: &[&[u8]]) -> Bytes {
    let mut request = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        request.extend(format!("${}\r\n", word.len()).into_bytes());
        request.extend_from_slice(word);
        request.extend(b"\r\n");
    }
    request.into()
}

/// The database that is flushed.
fn flushed() -> Database {
    Database::try_from(1).expect("there are more")
}

pub(super) const KEYS: usize = 2;
/// Most clients use the default.
const LEVELS: [Level; 10] = [
    Level::One,
    Level::One,
    Level::Quorum,
    Level::Quorum,
    Level::Quorum,
    Level::Quorum,
    Level::Quorum,
    Level::Linearizable,
    Level::Linearizable,
    Level::Linearizable,
];
