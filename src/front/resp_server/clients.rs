//! The connections of the RESP door, as `CLIENT LIST` shows them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::model::{Database, Millis};
use crate::resp::{KillFilter, Protocol};
use tokio::sync::watch;

/// All connections that are open.
#[derive(Debug, Default)]
pub(super) struct Clients {
    next_id: AtomicU64,
    open: Mutex<BTreeMap<u64, Arc<Client>>>,
}

/// What is known of one connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: u64,
    peer: String,
    local: String,
    since: Millis,
    /// It is to be closed.
    killed: watch::Sender<bool>,
    /// What it has sent that is not finished.
    input_bytes: AtomicUsize,
    /// It is closed because that was too much.
    is_over_input: AtomicBool,
    details: Mutex<Details>,
}

#[derive(Debug, Clone)]
struct Details {
    name: String,
    library: String,
    library_version: String,
    last_command: &'static str,
    last_at: Millis,
    protocol: Protocol,
    in_transaction: Option<usize>,
    database: Database,
}

impl Clients {
    pub(super) fn register(&self, peer: String, local: String, now: Millis) -> Arc<Client> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed) + 1;
        let details = Details {
            name: String::new(),
            library: String::new(),
            library_version: String::new(),
            last_command: "NULL",
            last_at: now,
            protocol: Protocol::Resp2,
            in_transaction: None,
            database: Database::default(),
        };
        let client = Arc::new(Client {
            id,
            peer,
            local,
            since: now,
            killed: watch::Sender::new(false),
            input_bytes: AtomicUsize::new(0),
            is_over_input: AtomicBool::new(false),
            details: Mutex::new(details),
        });
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(id, Arc::clone(&client));
        client
    }

    pub(super) fn forget(&self, client: &Client) {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&client.id);
    }

    /// Closes those that match. How many there are.
    pub(super) fn kill(&self, filter: &KillFilter<'_>, own: u64) -> usize {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let is_meant = |client: &&Arc<Client>| {
            filter.id.is_none_or(|id| id == client.id)
                && filter
                    .address
                    .is_none_or(|address| address == client.peer.as_bytes())
                && filter
                    .local_address
                    .is_none_or(|address| address == client.local.as_bytes())
                && !(filter.skips_own && client.id == own)
        };
        let meant = open.values().filter(is_meant);
        meant.map(|client| client.kill()).count()
    }

    /// Closes those that hold most of what was sent and is not finished, until all others together hold
    /// no more than this.
    pub(super) fn close_largest(&self, all_max: usize) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that are closed already give theirs back by themselves.
        let held = open.values().filter(|client| !*client.killed.borrow());
        let mut held: Vec<_> = held
            .map(|client| (client.input_bytes.load(Ordering::Relaxed), client))
            .collect();
        held.sort_unstable_by_key(|(bytes, client)| (*bytes, client.id));
        let mut all: usize = held.iter().map(|(bytes, _)| bytes).sum();
        while all > all_max
            && let Some((bytes, client)) = held.pop()
        {
            client.is_over_input.store(true, Ordering::Relaxed);
            client.kill();
            all -= bytes;
        }
    }

    pub(super) fn list(&self, now: Millis) -> String {
        let open: Vec<_> = {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.values().cloned().collect()
        };
        open.iter().fold(String::new(), |mut text, client| {
            text.push_str(&client.line(now));
            text
        })
    }
}

impl Client {
    /// Lets it be closed.
    pub(super) fn kill(&self) {
        self.killed.send_replace(true);
    }

    /// Closes it when it is set.
    pub(super) fn close_switch(&self) -> watch::Sender<bool> {
        self.killed.clone()
    }

    pub(super) fn set_input_bytes(&self, bytes: usize) {
        self.input_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Whether it is closed for what it has sent and not finished.
    pub(super) fn is_over_input(&self) -> bool {
        self.is_over_input.load(Ordering::Relaxed)
    }

    /// Tells when it is to be closed.
    pub(super) fn killed(&self) -> watch::Receiver<bool> {
        self.killed.subscribe()
    }

    /// Where it comes from.
    pub(super) fn address(&self) -> &str {
        &self.peer
    }

    pub(super) fn name(&self) -> String {
        self.details().name.clone()
    }

    pub(super) fn set_name(&self, name: &[u8]) {
        self.details().name = String::from_utf8_lossy(name).into_owned();
    }

    pub(super) fn set_library(&self, name: &[u8]) {
        self.details().library = String::from_utf8_lossy(name).into_owned();
    }

    pub(super) fn set_library_version(&self, version: &[u8]) {
        self.details().library_version = String::from_utf8_lossy(version).into_owned();
    }

    pub(super) fn set_protocol(&self, protocol: Protocol) {
        self.details().protocol = protocol;
    }

    pub(super) fn set_database(&self, database: Database) {
        self.details().database = database;
    }

    /// Notes the last thing the client did; once a batch, not once a command.
    pub(super) fn note(&self, command: &'static str, in_transaction: Option<usize>, now: Millis) {
        let mut details = self.details();
        (details.last_command, details.last_at) = (command, now);
        details.in_transaction = in_transaction;
    }

    /// The line of `CLIENT INFO`, in the order of Redis 7.
    pub(super) fn line(&self, now: Millis) -> String {
        let details = self.details().clone();
        let mut line = String::new();
        let seconds = |since: Millis| now.0.saturating_sub(since.0) / 1_000;
        let multi = details
            .in_transaction
            .map_or(-1, |n| i64::try_from(n).unwrap_or(i64::MAX));
        let protocol = match details.protocol {
            Protocol::Resp2 => 2,
            Protocol::Resp3 => 3,
        };
        // Writing to a String cannot fail.
        let _written = writeln!(
            line,
            "id={} addr={} laddr={} fd=-1 name={} age={} idle={} flags={} db={} sub=0 psub=0 ssub=0 \
             multi={multi} qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=0 \
             tot-mem=0 events=r cmd={} user=default redir=-1 resp={protocol} lib-name={} lib-ver={}",
            self.id,
            self.peer,
            self.local,
            details.name,
            seconds(self.since),
            seconds(details.last_at),
            if details.in_transaction.is_some() {
                "x"
            } else {
                "N"
            },
            details.database.number(),
            details.last_command,
            details.library,
            details.library_version,
        );
        line
    }

    fn details(&self) -> std::sync::MutexGuard<'_, Details> {
        // std Mutex: held for a field or two, never across an await.
        self.details.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
