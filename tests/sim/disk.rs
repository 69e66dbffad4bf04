//! A disk that fails.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use quorate::env::{Disk, DiskError, MemoryDisk};

/// Files in memory; writes can fail, and a crash can take the last one back, as a disk does that
/// says it has synced when it has not.
#[derive(Debug, Default)]
pub(crate) struct SimDisk {
    files: MemoryDisk,
    fails: AtomicBool,
    /// The last file written, and what it held before.
    before: Mutex<Option<(String, Option<Vec<u8>>)>>,
}

impl SimDisk {
    pub(crate) fn set_failing(&self, fails: bool) {
        self.fails.store(fails, Ordering::Relaxed);
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

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(String, Option<Vec<u8>>)>> {
        self.before.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for SimDisk {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
        self.files.read(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), DiskError> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(DiskError {
                action: "write",
                path: PathBuf::from(name),
                cause: io::Error::other("the simulated disk is full"),
            });
        }
        *self.lock() = Some((name.to_owned(), self.files.read(name)?));
        self.files.write(name, content)
    }
}
