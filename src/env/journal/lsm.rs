//! A journal in a directory: fjall, a log-structured merge tree, on a thread of its own.
//!
//! Why fjall and not redb, measured on hints of 174 bytes, each batch synced: in batches of 16 it
//! takes 73,000 a second (redb 25,500), in batches of 128 185,000 (46,000), for a third of the
//! processor time (7.8 against 24.6 microseconds a hint), because it appends to a log where redb
//! copies the pages of a tree. Neither opens again after a flipped bit in 284 and 203 of 300 trials:
//! so every entry describes itself (see [`super::frame`]), and a database that does not open is
//! searched for them and written anew.

use std::fs::{self, File};
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use tracing::{error, info, warn};

use super::frame::{frame, search, unframe};
use super::{
    Changes, Committed, Durability, Found, Journal, JournalBusy, JournalFailed, JournalHealth,
};
use crate::env::{Clock, DiskError, SystemClock};

/// See the module.
#[derive(Debug)]
pub(in crate::env) struct LsmJournal {
    queue: Sender<Job>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    health: Mutex<JournalHealth>,
    queued_bytes: AtomicUsize,
}

struct Job {
    changes: Changes,
    durability: Durability,
    done: Committed,
    bytes: usize,
}

/// The thread's side.
struct Worker {
    dir: PathBuf,
    tree: Option<Tree>,
    shared: Arc<Shared>,
    /// Something was written and not synced.
    is_dirty: bool,
    /// When to open it again after a failure, and how long to wait the time after that.
    retry_at: Instant,
    retry_after: Duration,
}

struct Tree {
    database: Database,
    entries: Keyspace,
}

/// Why a database does not open.
enum OpenError {
    /// Another process has it.
    Locked,
    /// The disk does not do what it is told; what is on it may well be whole.
    Disk(String),
    /// What is on the disk is damaged.
    Damaged(String),
}

impl LsmJournal {
    /// Opens the journal in this directory, which it has for itself; makes it when it is missing.
    /// A journal that cannot be written to opens too, and says so in its health: it tries again.
    ///
    /// # Errors
    /// When another process has it open.
    pub(in crate::env) fn open(dir: PathBuf) -> Result<(Self, Found), DiskError> {
        let shared = Arc::<Shared>::default();
        let mut worker = Worker {
            dir,
            tree: None,
            shared: Arc::clone(&shared),
            is_dirty: false,
            retry_at: SystemClock.monotonic(),
            retry_after: RETRY_MIN,
        };
        let found = worker.start()?;
        let (queue, jobs) = channel();
        let name = "journal".to_owned();
        let dir = worker.dir.clone();
        thread::Builder::new()
            .name(name)
            .spawn(move || worker.run(&jobs))
            .map_err(|cause| DiskError {
                action: "start a thread for",
                path: dir,
                cause,
            })?;
        Ok((Self { queue, shared }, found))
    }
}

impl Journal for LsmJournal {
    fn commit(
        &self,
        changes: Changes,
        durability: Durability,
        done: Committed,
    ) -> Result<(), JournalBusy> {
        let bytes = changes.bytes();
        if self.shared.queued_bytes.load(Ordering::Relaxed) + bytes > QUEUED_BYTES_MAX {
            return Err(JournalBusy);
        }
        self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let job = Job {
            changes,
            durability,
            done,
            bytes,
        };
        // The thread ends when this end of its queue does, not before.
        self.queue.send(job).map_err(|_ended| JournalBusy)
    }

    fn health(&self) -> JournalHealth {
        self.shared.health().clone()
    }
}

impl Shared {
    fn health(&self) -> MutexGuard<'_, JournalHealth> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// Opens what is there, whatever state it is in.
    fn start(&mut self) -> Result<Found, DiskError> {
        let mut found = Found::default();
        let before = Files::search(&self.dir);
        let mut damaged = before.damaged;
        let mut rescued = Found::default();
        match open(&self.dir) {
            Ok(tree) => match tree.entries(&mut found) {
                Ok(unreadable) => {
                    damaged = damaged.max(unreadable);
                    rescued = before.cut_off();
                    if found.bytes() + KEPT_BYTES < before.bytes / 4 {
                        // Nearly all of it is done with: what is left fits a new one.
                        drop(tree);
                        found.entries.append(&mut rescued.entries);
                        info!(dir = %self.dir.display(), bytes = before.bytes, left = found.bytes(), "writes the journal anew");
                        self.begin_anew(&found);
                    } else {
                        self.tree = Some(tree);
                    }
                }
                Err(why) => {
                    drop(tree);
                    found = before.found;
                    self.log_damage(&why, &found);
                    self.begin_anew(&found);
                }
            },
            Err(OpenError::Locked) => {
                let cause = "another process has it open: two nodes cannot share a data directory";
                return Err(DiskError {
                    action: "use",
                    path: self.dir.clone(),
                    cause: io::Error::other(cause),
                });
            }
            Err(OpenError::Disk(why)) => {
                // What can be read is not lost for this run either.
                found = before.found;
                self.fail(&why);
            }
            Err(OpenError::Damaged(why)) => {
                found = before.found;
                damaged = damaged.max(1);
                self.log_damage(&why, &found);
                self.begin_anew(&found);
            }
        }
        let aside = self.aside();
        if aside.exists() && damaged == 0 {
            // An earlier start ended while it was rescuing.
            rescued.entries.extend(Files::search(&aside).found.entries);
        }
        let is_rescued = rescued.entries.is_empty() || self.write_all(&rescued);
        if is_rescued && self.tree.is_some() && aside.exists() {
            remove(&aside);
        }
        found.entries.extend(rescued.entries);
        if damaged > 0 {
            warn!(dir = %self.dir.display(), damaged, "left out damaged entries of the journal");
        }
        self.shared.health().damaged = damaged;
        Ok(found)
    }

    fn log_damage(&self, why: &str, found: &Found) {
        error!(dir = %self.dir.display(), why, intact = found.entries.len(), "the journal is damaged: begins a new one with its intact entries");
    }

    /// Puts the database aside, and begins a new one with these entries.
    fn begin_anew(&mut self, found: &Found) {
        let aside = self.aside();
        if aside.exists() {
            remove(&aside);
        }
        if let Err(cause) = fs::rename(&self.dir, &aside) {
            return self.fail(&cause.to_string());
        }
        match open(&self.dir) {
            Ok(tree) => self.tree = Some(tree),
            Err(error) => return self.fail(&error.to_string()),
        }
        if self.write_all(found) {
            remove(&aside);
        }
    }

    /// Writes entries, synced; whether they are on disk.
    fn write_all(&mut self, found: &Found) -> bool {
        let Some(tree) = &self.tree else { return false };
        let changes = Changes {
            puts: found.entries.clone(),
            removes: Vec::new(),
        };
        match tree.write(&[&changes], true) {
            Ok(()) => true,
            Err(why) => {
                self.fail(&why);
                false
            }
        }
    }

    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let next = if self.is_dirty {
                jobs.recv_timeout(SYNC_INTERVAL)
            } else {
                jobs.recv().map_err(|_ended| RecvTimeoutError::Disconnected)
            };
            match next {
                Ok(job) => self.commit(job, jobs),
                Err(RecvTimeoutError::Timeout) => self.sync(),
                Err(RecvTimeoutError::Disconnected) => {
                    self.sync();
                    return;
                }
            }
        }
    }

    /// Commits a job and all that have gathered behind it, with one sync.
    fn commit(&mut self, first: Job, jobs: &Receiver<Job>) {
        let mut bytes = first.bytes;
        let mut group = vec![first];
        while bytes < GROUP_BYTES_MAX
            && let Ok(job) = jobs.try_recv()
        {
            bytes += job.bytes;
            group.push(job);
        }
        let is_synced = group.iter().any(|job| job.durability == Durability::Synced);
        if self.tree.is_none() {
            self.open_again();
        }
        let changes: Vec<&Changes> = group.iter().map(|job| &job.changes).collect();
        let result = match &self.tree {
            Some(tree) => tree.write(&changes, is_synced),
            None => Err(String::new()),
        };
        let told = match result {
            Ok(()) => {
                (self.is_dirty, self.retry_after) = (!is_synced, RETRY_MIN);
                Ok(())
            }
            Err(why) => {
                if !why.is_empty() {
                    self.fail(&why);
                }
                self.shared.health().failures += group.len() as u64;
                Err(JournalFailed)
            }
        };
        self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        for job in group {
            (job.done)(told);
        }
    }

    fn sync(&mut self) {
        self.is_dirty = false;
        if let Some(tree) = &self.tree
            && let Err(why) = tree.sync()
        {
            self.fail(&why);
        }
    }

    /// After a failed write nobody knows what is on disk (Rebello et al., *Can Applications Recover
    /// from fsync Failures?*, 2020): the database is opened again, not written to again.
    fn fail(&mut self, why: &str) {
        error!(dir = %self.dir.display(), why, "the journal cannot be written");
        self.shared.health().error = Some(why.to_owned());
        let tree = self.tree.take();
        drop(catch_unwind(AssertUnwindSafe(|| drop(tree))));
    }

    /// Opens the database again after a failure, now and then.
    fn open_again(&mut self) {
        let now = SystemClock.monotonic();
        if now < self.retry_at {
            return;
        }
        self.retry_at = now + self.retry_after;
        self.retry_after = (self.retry_after * 2).min(RETRY_MAX);
        let opened = match open(&self.dir) {
            Err(OpenError::Damaged(why)) => {
                // Who writes into it knows all that belongs into it, and writes it again.
                warn!(dir = %self.dir.display(), why, "begins a new journal");
                remove(&self.dir);
                open(&self.dir)
            }
            opened => opened,
        };
        match opened {
            Ok(tree) => {
                info!(dir = %self.dir.display(), "the journal can be written again");
                self.tree = Some(tree);
                let mut health = self.shared.health();
                health.error = None;
                health.generation += 1;
            }
            Err(error) => self.shared.health().error = Some(error.to_string()),
        }
    }

    fn aside(&self) -> PathBuf {
        self.dir.with_extension("damaged")
    }
}

impl Tree {
    /// Takes all intact entries; how many were not intact. An error: it cannot be read to its end.
    fn entries(&self, found: &mut Found) -> Result<u64, String> {
        let read = || {
            let mut damaged = 0;
            for entry in self.entries.iter() {
                let value = entry.value()?;
                match unframe(&value) {
                    Some((key, value)) => found.entries.push((key.to_vec(), value.to_vec())),
                    None => damaged += 1,
                }
            }
            Ok(damaged)
        };
        unwinding(read)
    }

    /// Writes changes, all of them or none.
    fn write(&self, changes: &[&Changes], is_synced: bool) -> Result<(), String> {
        let write = || {
            let mut batch = self.database.batch();
            for Changes { puts, removes } in changes {
                for (key, value) in puts {
                    batch.insert(&self.entries, &key[..], frame(key, value));
                }
                for key in removes {
                    batch.remove(&self.entries, &key[..]);
                }
            }
            if batch.is_empty() {
                // Only a promise that what was queued before is on disk.
                return match is_synced {
                    true => self.database.persist(PersistMode::SyncData),
                    false => Ok(()),
                };
            }
            let mode = if is_synced {
                PersistMode::SyncData
            } else {
                PersistMode::Buffer
            };
            batch.durability(Some(mode)).commit()
        };
        unwinding(write)
    }

    fn sync(&self) -> Result<(), String> {
        unwinding(|| self.database.persist(PersistMode::SyncData))
    }
}

fn open(dir: &Path) -> Result<Tree, OpenError> {
    let open = || {
        fs::create_dir_all(dir)?;
        let database = Database::builder(dir)
            .worker_threads(1)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(LOG_BYTES_MAX)
            .open()?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let entries = database.keyspace(KEYSPACE, options)?;
        Ok(Tree { database, entries })
    };
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(Ok(tree)) => Ok(tree),
        Ok(Err(fjall::Error::Locked)) => Err(OpenError::Locked),
        Ok(Err(error)) => {
            let text = error.to_string();
            Err(match io_error(&error) {
                Some(io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
                | Some(io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput)
                | None => OpenError::Damaged(text),
                Some(_) => OpenError::Disk(text),
            })
        }
        Err(_panic) => Err(OpenError::Damaged("the database panicked".to_owned())),
    }
}

/// Damaged files can make the database panic: to this node that is an error like others.
fn unwinding<T>(work: impl FnOnce() -> fjall::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_panic) => Err("the database panicked".to_owned()),
    }
}

fn io_error(error: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        next = error.source();
    }
    None
}

/// What lies in the files of a database, whether it opens or not.
#[derive(Default)]
struct Files {
    /// Tables before logs and old before new: of several states of an entry the newest comes last.
    found: Found,
    damaged: u64,
    bytes: usize,
    /// The logs, of [`LOG_BYTES_MAX`] together.
    logs: Vec<(PathBuf, Vec<u8>)>,
}

impl Files {
    fn search(dir: &Path) -> Self {
        let mut paths = Vec::new();
        list(dir, &mut paths);
        paths.sort_by_key(|path| {
            let number = path.file_stem().and_then(|stem| stem.to_str());
            let number = number.and_then(|stem| stem.parse::<u64>().ok());
            (is_log(path), number, path.clone())
        });
        let mut files = Self::default();
        for path in paths {
            match read_used(&path) {
                Ok(bytes) => {
                    files.bytes += bytes.len();
                    files.damaged += search_bytes(&bytes, &mut files.found);
                    if is_log(&path) {
                        files.logs.push((path, bytes));
                    }
                }
                Err(error) => warn!(file = %path.display(), %error, "cannot read"),
            }
        }
        files
    }

    /// What the database has cut off its logs since, because it took a damaged part for a torn end:
    /// intact entries can lie behind it.
    fn cut_off(&self) -> Found {
        let mut cut = Found::default();
        for (path, before) in &self.logs {
            let Ok(now) = fs::metadata(path) else {
                continue;
            };
            let kept = usize::try_from(now.len()).unwrap_or(usize::MAX);
            if let Some(tail) = before.get(kept..) {
                search_bytes(tail, &mut cut);
            }
        }
        cut
    }
}

/// A file without the zeros at its end: logs are made longer than they are used.
fn read_used(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let (mut used, mut zeros) = (Vec::new(), 0);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = file.read(&mut chunk)?;
        let bytes = &chunk[..read];
        if read == 0 {
            return Ok(used);
        }
        match bytes.iter().rposition(|&byte| byte != 0) {
            Some(last) => {
                used.resize(used.len() + zeros, 0);
                used.extend_from_slice(&bytes[..=last]);
                zeros = read - last - 1;
            }
            None => zeros += read,
        }
    }
}

fn search_bytes(bytes: &[u8], found: &mut Found) -> u64 {
    search(bytes, |key, value| {
        found.entries.push((key.to_vec(), value.to_vec()));
    })
}

fn is_log(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "jnl")
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => list(&entry.path(), files),
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
}

fn remove(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir) {
        warn!(dir = %dir.display(), %error, "cannot remove");
    }
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Locked => f.write_str("another process has it open"),
            Self::Disk(why) | Self::Damaged(why) => f.write_str(why),
        }
    }
}

const KEYSPACE: &str = "entries";
/// Entries are read once, at the start.
const CACHE_BYTES: u64 = 1 << 20;
const MEMTABLE_BYTES: u64 = 8 << 20;
/// The least that the database allows.
const LOG_BYTES_MAX: u64 = 64 << 20;
const CHUNK_BYTES: usize = 256 * 1024;
/// Below so many bytes it is not worth while to write a journal anew.
const KEPT_BYTES: usize = 1 << 20;
/// What may wait for the disk.
const QUEUED_BYTES_MAX: usize = 64 << 20;
const GROUP_BYTES_MAX: usize = 4 << 20;
const SYNC_INTERVAL: Duration = Duration::from_millis(200);
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;
    use crate::env::SeededRng;

    fn commit(journal: &LsmJournal, changes: Changes) -> Result<(), JournalFailed> {
        let (tell, told) = sync_channel(1);
        let done = Box::new(move |result| tell.send(result).unwrap());
        journal.commit(changes, Durability::Synced, done).unwrap();
        told.recv_timeout(Duration::from_secs(30)).unwrap()
    }

    fn entry(number: u32) -> (Vec<u8>, Vec<u8>) {
        let key = format!("key-{number:05}").into_bytes();
        (key, format!("value of {number} ").repeat(9).into_bytes())
    }

    fn puts(numbers: std::ops::Range<u32>) -> Changes {
        Changes {
            puts: numbers.map(entry).collect(),
            removes: Vec::new(),
        }
    }

    /// The thread lets go of the directory a moment after its journal is gone.
    fn reopen(dir: &Path) -> (LsmJournal, Found) {
        let deadline = SystemClock.monotonic() + Duration::from_secs(20);
        loop {
            match LsmJournal::open(dir.to_owned()) {
                Ok(opened) => return opened,
                Err(error) => assert!(SystemClock.monotonic() < deadline, "{error}"),
            }
            thread::yield_now();
        }
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }

    #[test]
    fn what_was_committed_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("hints");
        let (journal, found) = reopen(&dir);
        assert_eq!(found, Found::default());
        commit(&journal, puts(0..100)).unwrap();
        let removes = (0..90).map(|number| entry(number).0).collect();
        let changes = Changes {
            removes,
            puts: vec![(entry(95).0, b"newer".to_vec())],
        };
        commit(&journal, changes).unwrap();
        assert!(LsmJournal::open(dir.clone()).is_err(), "in use");
        drop(journal);
        let (journal, found) = reopen(&dir);
        let mut wanted: Vec<_> = (90..100).map(entry).collect();
        wanted[5].1 = b"newer".to_vec();
        assert_eq!(found.entries, wanted);
        assert_eq!(journal.health(), JournalHealth::default());
    }

    /// Flipped bits and torn ends, anywhere in any file.
    #[test]
    fn a_damaged_journal_opens_with_all_that_is_intact() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, damaged) = (dir.path().join("whole"), dir.path().join("damaged"));
        let (journal, _) = reopen(&whole);
        for batch in 0..40 {
            commit(&journal, puts(batch * 5..batch * 5 + 5)).unwrap();
        }
        let rng = SeededRng::from_seed(7);
        let below = |bound: usize| usize::try_from(rng.next_u64() % bound as u64).unwrap();
        let mut reported = 0;
        for round in 0..24 {
            drop(fs::remove_dir_all(&damaged));
            copy(&whole, &damaged);
            let mut files = Vec::new();
            list(&damaged, &mut files);
            // Most of what is written is in the log.
            let file = match round % 3 {
                0 => &files[below(files.len())],
                _ => files.iter().find(|file| is_log(file)).unwrap(),
            };
            let mut bytes = fs::read(file).unwrap();
            let used = bytes
                .iter()
                .rposition(|&byte| byte != 0)
                .map_or(0, |at| at + 1);
            if used == 0 {
                continue;
            }
            let at = below(used);
            let is_torn = round % 5 == 4;
            if is_torn {
                bytes.truncate(at);
            } else {
                bytes[at] ^= 1 << below(8);
            }
            fs::write(file, bytes).unwrap();

            let (journal, found) = reopen(&damaged);
            let mut keys: Vec<_> = found.entries.iter().map(|(key, _)| key.clone()).collect();
            keys.sort();
            keys.dedup();
            assert!(
                found
                    .entries
                    .iter()
                    .all(|found| (0..200).any(|n| entry(n) == *found))
            );
            if !is_torn || !is_log(file) {
                assert!(keys.len() >= 199, "{} left, {}", keys.len(), file.display());
            }
            let health = journal.health();
            assert!(
                keys.len() == 200 || is_torn || health.damaged > 0,
                "lost without a word"
            );
            assert_eq!(health.error, None);
            reported += u32::from(health.damaged > 0);
            // It is of use again.
            commit(&journal, puts(500..501)).unwrap();
            drop(journal);
            let (_, found) = reopen(&damaged);
            assert!(found.entries.contains(&entry(500)));
            assert!(found.entries.len() > keys.len());
        }
        assert!(reported > 5, "{reported}");
    }

    #[test]
    fn entries_are_found_in_tables_too() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("hints");
        let (journal, _) = reopen(&dir);
        for batch in 0..100 {
            commit(&journal, puts(batch * 1_000..batch * 1_000 + 1_000)).unwrap();
        }
        drop(journal);
        drop(reopen(&dir));
        let mut files = Vec::new();
        list(&dir, &mut files);
        files.retain(|file| is_log(file));
        for file in files {
            fs::remove_file(file).unwrap();
        }
        let files = Files::search(&dir);
        assert_eq!(files.damaged, 0);
        assert!(files.found.entries.len() > 30_000);
    }
}
