//! Canaries: clients that ask for little, at a steady pace, and must get it at once.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hdrhistogram::Histogram;
use quorate::env::{Clock, SystemClock};
use quorate::resp::{Reply, decode};
use tokio::time::Instant;

use super::attack::pause;
use super::words::encode;

/// One client of one node. PING, SET, GET and INCR in turn.
pub(crate) struct Canary {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    name: String,
    stop: AtomicBool,
    start: Instant,
    /// When the request began that is under way, in ms since the start; 0: none is.
    waits_since_ms: AtomicU64,
    seen: Mutex<Seen>,
}

/// What a canary has seen since it was asked last.
#[derive(Debug)]
pub(crate) struct Seen {
    /// In microseconds.
    pub(crate) latencies: Histogram<u64>,
    /// Replies that are wrong: they are so for ever.
    pub(crate) wrong: Vec<String>,
    /// Errors where a value was due.
    pub(crate) errors: Vec<String>,
    /// How often the node hung up.
    pub(crate) hang_ups: u64,
    /// How often a key was found empty: a FLUSHALL empties it.
    pub(crate) resets: u64,
}

impl Canary {
    pub(crate) fn start(name: &str, addr: &str) -> Self {
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            stop: AtomicBool::new(false),
            start: SystemClock.monotonic(),
            waits_since_ms: AtomicU64::new(0),
            seen: Mutex::new(Seen::new()),
        });
        let (sings, addr) = (Arc::clone(&shared), addr.to_owned());
        let thread = std::thread::spawn(move || Song::new(&sings, &addr).go_on());
        Self {
            shared,
            thread: Some(thread),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.shared.name
    }

    /// For how long the request under way has waited.
    pub(crate) fn waits(&self) -> Duration {
        match self.shared.waits_since_ms.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self
                .shared
                .start
                .elapsed()
                .saturating_sub(Duration::from_millis(since)),
        }
    }

    /// What was seen since the last time.
    pub(crate) fn take(&self) -> Seen {
        std::mem::replace(&mut *self.shared.seen.lock().unwrap(), Seen::new())
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Seen {
    pub(crate) fn new() -> Self {
        Self {
            latencies: Histogram::new(3).unwrap(),
            wrong: Vec::new(),
            errors: Vec::new(),
            hang_ups: 0,
            resets: 0,
        }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.latencies.add(&other.latencies).unwrap();
        self.wrong.extend(other.wrong);
        self.errors.extend(other.errors);
        self.hang_ups += other.hang_ups;
        self.resets += other.resets;
    }

    pub(crate) fn p99(&self) -> Duration {
        Duration::from_micros(self.latencies.value_at_quantile(0.99))
    }

    pub(crate) fn p50(&self) -> Duration {
        Duration::from_micros(self.latencies.value_at_quantile(0.5))
    }

    pub(crate) fn longest(&self) -> Duration {
        Duration::from_micros(self.latencies.max())
    }
}

/// What the thread of a canary knows.
struct Song<'a> {
    shared: &'a Shared,
    addr: &'a str,
    stream: Option<TcpStream>,
    /// What the key of SET holds, if that is known.
    value: Option<u64>,
    /// What INCR has replied last, if nothing was uncertain since.
    count: Option<i64>,
    round: u64,
}

impl<'a> Song<'a> {
    fn new(shared: &'a Shared, addr: &'a str) -> Self {
        Self {
            shared,
            addr,
            stream: None,
            value: None,
            count: None,
            round: 0,
        }
    }

    fn go_on(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.round += 1;
            let begun = SystemClock.monotonic();
            let since = self.shared.start.elapsed().as_millis().max(1);
            let since = u64::try_from(since).unwrap();
            self.shared.waits_since_ms.store(since, Ordering::Relaxed);
            let reply = self.ask();
            self.shared.waits_since_ms.store(0, Ordering::Relaxed);
            let took = u64::try_from(begun.elapsed().as_micros()).unwrap();
            {
                let mut seen = self.shared.seen.lock().unwrap();
                seen.latencies.record(took).unwrap();
            }
            match reply {
                Ok(reply) => self.judge(reply),
                Err(_hung_up) => {
                    self.stream = None;
                    self.value = None;
                    self.count = None;
                    self.shared.seen.lock().unwrap().hang_ups += 1;
                }
            }
            pause(PACE);
        }
    }

    fn ask(&mut self) -> io::Result<Reply> {
        let name = &self.shared.name;
        let (value_key, count_key) = (format!("canary:{name}:v"), format!("canary:{name}:n"));
        let value = self.round.to_string();
        let request = match self.round % 4 {
            0 => encode(&["PING"]),
            1 => encode(&["SET", &value_key, &value]),
            2 => encode(&["GET", &value_key]),
            _ => encode(&["INCR", &count_key]),
        };
        if self.stream.is_none() {
            let stream = TcpStream::connect(self.addr)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(LONGEST))?;
            self.stream = Some(stream);
        }
        let Some(stream) = &mut self.stream else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        stream.write_all(&request)?;
        let (mut input, mut chunk) = (Vec::new(), [0; 4_096]);
        loop {
            let bytes = stream.read(&mut chunk)?;
            if bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            input.extend_from_slice(&chunk[..bytes]);
            if let Some((reply, length)) = decode(&input).map_err(io::Error::other)? {
                if length < input.len() {
                    let more = input[length..].escape_ascii().to_string();
                    let mut seen = self.shared.seen.lock().unwrap();
                    seen.wrong.push(format!("more than a reply: {more}"));
                }
                return Ok(reply);
            }
        }
    }

    fn judge(&mut self, reply: Reply) {
        let mut seen = self.shared.seen.lock().unwrap();
        match (self.round % 4, reply) {
            (kind, Reply::Error(error)) => {
                // It may have been done, or not.
                match kind {
                    1 => self.value = None,
                    3 => self.count = None,
                    _ => {}
                }
                seen.errors.push(error);
            }
            (0, Reply::Simple(pong)) if pong == "PONG" => {}
            (1, Reply::Simple(ok)) if ok == "OK" => self.value = Some(self.round),
            (2, Reply::Null) => {
                seen.resets += u64::from(self.value.is_some());
                self.value = None;
            }
            (2, Reply::Bulk(got)) => {
                let wanted = self.value.map(|value| value.to_string().into_bytes());
                if wanted.is_some_and(|wanted| wanted != got) {
                    let got = got.escape_ascii();
                    seen.wrong.push(format!("GET {got}, not {:?}", self.value));
                }
            }
            (3, Reply::Integer(count)) => {
                match self.count {
                    Some(before) if count == before + 1 => {}
                    // Emptied since.
                    Some(_) if count == 1 => seen.resets += 1,
                    Some(before) => seen.wrong.push(format!("INCR {count} after {before}")),
                    None => {}
                }
                self.count = Some(count);
            }
            (kind, reply) => seen.wrong.push(format!("request {kind}: {reply:?}")),
        }
    }
}

const PACE: Duration = Duration::from_millis(5);
/// Far beyond a freeze: then the connection is given up.
const LONGEST: Duration = Duration::from_secs(10);
