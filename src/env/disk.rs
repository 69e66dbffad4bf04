//! Small files that survive a crash whole.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

use super::journal::{Found, Journal, LsmJournal, MemoryJournal};

/// A file operation that failed, with the file it was for.
#[derive(Debug, Error)]
#[error("cannot {action} {}: {cause}", path.display())]
pub struct DiskError {
    /// What was tried: `read`, `write`, ...
    pub action: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// What the operating system said.
    pub cause: io::Error,
}

/// Files of one node, by name, below one directory. A name has no `/`.
///
/// Calls block: they are for small files at rare moments, not for the path of a request.
pub trait Disk: Debug + Send + Sync + 'static {
    /// The whole file; `None` when there is none.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError>;

    /// Replaces the whole file: after a crash it holds the old content or the new, never a mix.
    /// Synced before it returns.
    fn write(&self, name: &str, content: &[u8]) -> Result<(), DiskError>;

    /// Opens a journal and tells what it holds. One at a time for a name.
    fn journal(&self, name: &str) -> Result<(Arc<dyn Journal>, Found), DiskError>;
}

/// A directory of the real file system.
#[derive(Debug)]
pub struct RealDisk {
    dir: PathBuf,
}

impl RealDisk {
    /// Opens a directory, makes it when it is missing, and proves that it can be written.
    pub fn open(dir: &Path) -> Result<Self, DiskError> {
        fs::create_dir_all(dir).map_err(failed("create the directory", dir))?;
        let disk = Self {
            dir: dir.to_owned(),
        };
        // Found out at the start, not at the first membership change at night.
        disk.write(PROBE, b"")?;
        let probe = disk.dir.join(PROBE);
        fs::remove_file(&probe).map_err(failed("remove", &probe))?;
        Ok(disk)
    }
}

impl Disk for RealDisk {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
        let path = self.dir.join(name);
        match fs::read(&path) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(failed("read", &path)(cause)),
        }
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), DiskError> {
        let path = self.dir.join(name);
        let fresh = self.dir.join(format!("{name}.new"));
        let mut file = File::create(&fresh).map_err(failed("create", &fresh))?;
        file.write_all(content).map_err(failed("write", &fresh))?;
        file.sync_all().map_err(failed("sync", &fresh))?;
        fs::rename(&fresh, &path).map_err(failed("replace", &path))?;
        // The rename itself must survive a power cut, so the directory is synced as well.
        let dir = File::open(&self.dir).map_err(failed("open", &self.dir))?;
        dir.sync_all().map_err(failed("sync", &self.dir))
    }

    fn journal(&self, name: &str) -> Result<(Arc<dyn Journal>, Found), DiskError> {
        let (journal, found) = LsmJournal::open(self.dir.join(name))?;
        Ok((Arc::new(journal), found))
    }
}

/// Files in memory, for tests and the simulator.
#[derive(Debug, Default)]
pub struct MemoryDisk {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    journals: Mutex<BTreeMap<String, MemoryJournal>>,
}

impl Disk for MemoryDisk {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
        Ok(self
            .files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned())
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), DiskError> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.insert(name.to_owned(), content.to_owned());
        Ok(())
    }

    fn journal(&self, name: &str) -> Result<(Arc<dyn Journal>, Found), DiskError> {
        let mut journals = self.journals.lock().unwrap_or_else(PoisonError::into_inner);
        let journal = journals.entry(name.to_owned()).or_default().clone();
        let found = journal.found();
        Ok((Arc::new(journal), found))
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    move |cause| DiskError {
        action,
        path,
        cause,
    }
}

const PROBE: &str = "write-probe";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_keep_what_was_written_last() {
        let dir = tempfile::tempdir().unwrap();
        let real = RealDisk::open(&dir.path().join("new/data")).unwrap();
        let memory = MemoryDisk::default();
        for disk in [&real as &dyn Disk, &memory] {
            assert_eq!(disk.read("members").unwrap(), None);
            disk.write("members", b"one").unwrap();
            disk.write("members", b"two").unwrap();
            assert_eq!(disk.read("members").unwrap().as_deref(), Some(&b"two"[..]));
        }
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_told_with_its_path() {
        let error = RealDisk::open(Path::new("/proc/quorate/data")).unwrap_err();
        assert!(error.to_string().contains("/proc/quorate/data"), "{error}");
    }
}
