//! The attackers: a process of its own at a lower priority, so that what they compute is taken
//! from no node. It is driven by lines on its standard input, see [`run`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::io::{self, BufRead, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::Duration;

use quorate::env::{Clock, SystemClock};
use serde::{Deserialize, Serialize};

use super::classes::CLASSES;
use super::words::{self, Chance, Row};

/// What the attackers are started with, in this environment variable as JSON.
pub(crate) const VARIABLE: &str = "QUORATE_HOSTILE_ATTACK";

/// Whom to attack, and how.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) resp: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) quic: SocketAddr,
    pub(crate) seed: u64,
    /// Only these classes; empty: all.
    pub(crate) only: Vec<String>,
}

/// What was sent so far.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sent {
    /// Requests and fragments of requests.
    pub(crate) requests: u64,
    /// FLUSHALLs and FLUSHDBs among them: they may empty a canary's keys.
    pub(crate) flushes: u64,
    /// Episodes by class.
    pub(crate) classes: BTreeMap<String, u64>,
    /// Commands that have not been sent yet.
    pub(crate) missing: BTreeSet<String>,
}

/// The attack as its threads share it.
pub(crate) struct Attack {
    pub(crate) orders: Orders,
    pub(crate) table: Vec<Row>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sent: Sent,
    recent: VecDeque<Recent>,
}

/// One thing that was sent lately.
struct Recent {
    at_ms: u64,
    class: &'static str,
    port: u16,
    length: usize,
    start: Vec<u8>,
}

/// Attacks until standard input ends. A line `count` is replied to with [`Sent`] as a line of JSON,
/// a line `recent` with what was sent lately, up to a line `.`.
pub(crate) fn run(orders: &str) {
    let orders: Orders = serde_json::from_str(orders).unwrap();
    let table = words::command_table(&orders.resp.to_string());
    let mut state = State::default();
    let attacked = table.iter().filter(|row| !row.is_meant_to_stall());
    state.sent.missing = attacked.map(|row| row.name.clone()).collect();
    let attack: &'static Attack = Box::leak(Box::new(Attack {
        orders,
        table,
        state: Mutex::new(state),
    }));
    for number in 0..THREADS {
        std::thread::spawn(move || attack.go_on(number));
    }
    for line in io::stdin().lock().lines() {
        let reply = match line.unwrap().as_str() {
            "count" => {
                let state = attack.state.lock().unwrap();
                serde_json::to_string(&state.sent).unwrap()
            }
            _ => attack.recent(),
        };
        println!("{PREFIX}{}", reply.replace('\n', &format!("\n{PREFIX}")));
        println!("{PREFIX}.");
    }
    // The threads end with the process.
}

impl Attack {
    /// Class after class, each time in another order.
    fn go_on(&self, thread: u64) {
        let chance = Chance::new(
            self.orders
                .seed
                .wrapping_add(thread.wrapping_mul(0x9e37_79b9)),
        );
        let is_chosen =
            |name: &str| self.orders.only.is_empty() || self.orders.only.iter().any(|o| o == name);
        let mut deck: Vec<_> = CLASSES.iter().filter(|(name, _)| is_chosen(name)).collect();
        loop {
            chance.shuffle(&mut deck);
            for (name, class) in &deck {
                let mut episode = Episode {
                    attack: self,
                    class: name,
                    until: SystemClock.monotonic() + EPISODE,
                    work: SystemClock.monotonic(),
                };
                class(&mut episode, &chance);
                let mut state = self.state.lock().unwrap();
                *state.sent.classes.entry((*name).to_owned()).or_default() += 1;
            }
        }
    }

    fn note(&self, class: &'static str, port: u16, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap();
        state.sent.requests += 1;
        state.recent.push_back(Recent {
            at_ms: SystemClock.wall().0,
            class,
            port,
            length: bytes.len(),
            start: bytes[..bytes.len().min(SHOWN_BYTES)].to_vec(),
        });
        if state.recent.len() > RECENT_MAX {
            state.recent.pop_front();
        }
    }

    /// Counts a request for this command.
    pub(crate) fn cover(&self, words: &[Vec<u8>]) {
        let name = String::from_utf8_lossy(&words[0]).to_lowercase();
        let mut state = self.state.lock().unwrap();
        state.sent.flushes += u64::from(name.starts_with("flush"));
        state.sent.missing.remove(&name);
    }

    fn recent(&self) -> String {
        let state = self.state.lock().unwrap();
        let now = SystemClock.wall().0;
        let mut text = String::new();
        for recent in &state.recent {
            let ago = now.saturating_sub(recent.at_ms);
            if ago <= RECENT_MS {
                let shown = recent.start.escape_ascii();
                let (class, port, length) = (recent.class, recent.port, recent.length);
                _ = writeln!(text, "-{ago} ms {class} :{port} {length} B {shown}");
            }
        }
        text.trim_end().to_owned()
    }
}

/// A class at work for a moment.
pub(crate) struct Episode<'a> {
    pub(crate) attack: &'a Attack,
    class: &'static str,
    until: tokio::time::Instant,
    work: tokio::time::Instant,
}

impl<'a> Episode<'a> {
    /// Whether there is time for more. Waits as long as the last step took: an attacker is at work
    /// for half of the time at most.
    pub(crate) fn goes_on(&mut self) -> bool {
        let worked = self.work.elapsed();
        pause(worked.clamp(Duration::from_millis(1), Duration::from_millis(50)));
        self.work = SystemClock.monotonic();
        self.work < self.until
    }

    /// A connection, if the node takes one.
    pub(crate) fn connect(&self) -> Option<Client<'a>> {
        self.connect_to(self.attack.orders.resp)
    }

    pub(crate) fn connect_to(&self, addr: SocketAddr) -> Option<Client<'a>> {
        let stream = TcpStream::connect_timeout(&addr, PATIENCE).ok()?;
        stream.set_write_timeout(Some(PATIENCE)).ok()?;
        let port = stream.local_addr().ok()?.port();
        Some(Client {
            attack: self.attack,
            class: self.class,
            stream,
            port,
        })
    }

    pub(crate) fn note(&self, bytes: &[u8]) {
        self.attack.note(self.class, 0, bytes);
    }
}

/// A connection of an attacker. Its errors are of no interest: the node may hang up.
pub(crate) struct Client<'a> {
    attack: &'a Attack,
    class: &'static str,
    stream: TcpStream,
    port: u16,
}

impl Client<'_> {
    /// Sends bytes; whether they went.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> bool {
        self.attack.note(self.class, self.port, bytes);
        self.stream.write_all(bytes).is_ok()
    }

    /// Sends a request; whether it went.
    pub(crate) fn request(&mut self, words: &[Vec<u8>]) -> bool {
        self.attack.cover(words);
        self.send(&words::encode(words))
    }

    /// The same of a request in words.
    pub(crate) fn text(&mut self, request: &str) -> bool {
        let words: Vec<Vec<u8>> = request
            .split(' ')
            .map(|word| word.as_bytes().to_vec())
            .collect();
        self.request(&words)
    }

    /// The connection alone: it stays open as long as this is kept.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Reads until all that was sent is replied to: an ECHO comes back behind it. False: it does
    /// not within a while, or the node has hung up.
    pub(crate) fn finish(&mut self) -> bool {
        const NONCE: &[u8] = b"hostile-nonce-7c1f";
        let echo = words::encode(&[b"ECHO".as_slice(), NONCE]);
        if self.stream.write_all(&echo).is_err() {
            return false;
        }
        let mut tail = Vec::new();
        self.read(PATIENCE, |bytes| {
            tail.extend_from_slice(bytes);
            let is_there = tail.windows(NONCE.len()).any(|window| window == NONCE);
            tail.drain(..tail.len().saturating_sub(NONCE.len()));
            is_there
        })
    }

    /// Reads until what has come is enough; false: it was not within this time.
    pub(crate) fn read(
        &mut self,
        limit: Duration,
        mut is_enough: impl FnMut(&[u8]) -> bool,
    ) -> bool {
        let end = SystemClock.monotonic() + limit;
        let mut chunk = vec![0; 65_536];
        loop {
            let left = end.saturating_duration_since(SystemClock.monotonic());
            if left.is_zero() || self.stream.set_read_timeout(Some(left)).is_err() {
                return false;
            }
            match self.stream.read(&mut chunk) {
                Ok(0) | Err(_) => return false,
                Ok(bytes) if is_enough(&chunk[..bytes]) => return true,
                Ok(_) => {}
            }
        }
    }
}

/// Waits a moment: the pace of the attackers, on which nothing depends.
pub(crate) fn pause(time: Duration) {
    let end = SystemClock.monotonic() + time;
    while let Some(left) = end.checked_duration_since(SystemClock.monotonic())
        && !left.is_zero()
    {
        std::thread::park_timeout(left);
    }
}

/// What the lines of the attackers begin with: the test harness prints to the same output.
pub(crate) const PREFIX: &str = "hostile| ";
/// A freeze of a second and what led to it.
const RECENT_MS: u64 = 8_000;
const RECENT_MAX: usize = 2_000;
const SHOWN_BYTES: usize = 160;
/// Two attackers on half of a core each, on a machine of two cores with three nodes.
const THREADS: u64 = 2;
/// Short enough that all classes have had their turn within the shortest run.
const EPISODE: Duration = Duration::from_millis(400);
/// What an attacker waits for a node before it goes on elsewhere.
const PATIENCE: Duration = Duration::from_millis(1_000);
