//! A disk that fails.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate::env::{
    Changes, Committed, Disk, DiskError, Durability, Found, Journal, JournalBusy, JournalFailed,
    JournalHealth, MemoryDisk,
};
use tokio::time::sleep;

use crate::network::spawn;

/// Files in memory; writes can fail, and a crash can take the last one back, as a disk does that
/// says it has synced when it has not.
#[derive(Debug, Default)]
pub(crate) struct SimDisk {
    files: MemoryDisk,
    journal: SimJournal,
    /// The last file written, and what it held before.
    before: Mutex<Option<(String, Option<Vec<u8>>)>>,
}

impl SimDisk {
    pub(crate) fn set_failing(&self, fails: bool) {
        self.journal.0.fails.store(fails, Ordering::Relaxed);
    }

    /// It says that it has synced before it has.
    pub(crate) fn set_lying(&self, lies: bool) {
        self.journal.0.lies.store(lies, Ordering::Relaxed);
    }

    /// What a crash does to a write that was not really on the disk yet.
    pub(crate) fn lose_last_write(&self) {
        let before = self.lock().take();
        if let Some((name, Some(content))) = before {
            self.files
                .write(&name, &content)
                .expect("memory takes everything");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(String, Option<Vec<u8>>)>> {
        self.before.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for SimDisk {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
        self.files.read(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), DiskError> {
        if self.journal.0.fails.load(Ordering::Relaxed) {
            return Err(DiskError {
                action: "write",
                path: PathBuf::from(name),
                cause: io::Error::other("the simulated disk is full"),
            });
        }
        *self.lock() = Some((name.to_owned(), self.files.read(name)?));
        self.files.write(name, content)
    }

    fn journal(&self, _name: &str) -> Result<(Arc<dyn Journal>, Found), DiskError> {
        let mut entries = self.journal.entries();
        // What was not synced when the last user died is gone.
        entries.written.clear();
        entries.epoch += 1;
        let found = Found {
            entries: entries.synced.clone().into_iter().collect(),
        };
        drop(entries);
        Ok((Arc::new(self.journal.clone()), found))
    }
}

/// A journal whose syncs take some milliseconds of virtual time. Clones share it.
#[derive(Debug, Clone, Default)]
struct SimJournal(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    entries: Mutex<Entries>,
    fails: AtomicBool,
    lies: AtomicBool,
}

#[derive(Debug, Default)]
struct Entries {
    synced: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What a loss of power takes away.
    written: Vec<Changes>,
    epoch: u64,
    commits: u64,
}

impl Entries {
    fn sync(&mut self) {
        for changes in std::mem::take(&mut self.written) {
            self.synced.extend(changes.puts);
            for key in &changes.removes {
                self.synced.remove(key);
            }
        }
    }
}

impl SimJournal {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0
            .entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal for SimJournal {
    fn commit(
        &self,
        changes: Changes,
        durability: Durability,
        done: Committed,
    ) -> Result<(), JournalBusy> {
        let this = self.clone();
        let mut entries = self.entries();
        entries.commits += 1;
        let takes = 1 + entries.commits * 7 % 5;
        let epoch = entries.epoch;
        let fails = self.0.fails.load(Ordering::Relaxed);
        if !fails {
            entries.written.push(changes);
        }
        drop(entries);
        let is_told_now = durability == Durability::Written || self.0.lies.load(Ordering::Relaxed);
        spawn(async move {
            let sync = || {
                let mut entries = this.entries();
                let is_alive = entries.epoch == epoch;
                if is_alive {
                    entries.sync();
                }
                is_alive
            };
            if is_told_now && !fails {
                done(Ok(()));
                sleep(Duration::from_secs(5)).await;
                sync();
                return;
            }
            sleep(Duration::from_millis(takes)).await;
            if fails {
                done(Err(JournalFailed));
            } else if sync() {
                done(Ok(()));
            }
        });
        Ok(())
    }

    fn health(&self) -> JournalHealth {
        JournalHealth::default()
    }
}
