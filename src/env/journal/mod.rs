//! Many small entries that survive a crash, each on its own.
//!
//! [`Disk`](super::Disk) replaces whole files; a journal changes entries. Its calls never block:
//! what they queue is done elsewhere, many changes in one sync.

mod frame;
mod lsm;
mod memory;

use std::fmt::Debug;

use thiserror::Error;

#[doc(hidden)]
pub use frame::count_entries;
pub(super) use lsm::LsmJournal;
pub use memory::MemoryJournal;

/// A map from keys to values on disk.
pub trait Journal: Debug + Send + Sync + 'static {
    /// Queues changes. They take effect in the order in which they were queued, all of one call or
    /// none of it, and `done` is told, maybe from within this call, maybe on another thread.
    ///
    /// # Errors
    /// When too much is queued already: nothing was queued, and `done` is not told.
    fn commit(
        &self,
        changes: Changes,
        durability: Durability,
        done: Committed,
    ) -> Result<(), JournalBusy>;

    /// How it fares.
    fn health(&self) -> JournalHealth;
}

/// What is to be told when changes are on disk, or cannot get there.
pub type Committed = Box<dyn FnOnce(Result<(), JournalFailed>) + Send>;

/// Changes of entries.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Keys and their new values.
    pub puts: Vec<(Vec<u8>, Vec<u8>)>,
    /// Keys to remove; those that are not there do no harm.
    pub removes: Vec<Vec<u8>>,
}

impl Changes {
    fn bytes(&self) -> usize {
        let puts = self.puts.iter().map(|(key, value)| key.len() + value.len());
        puts.chain(self.removes.iter().map(Vec::len)).sum::<usize>() + CHANGES_BYTES
    }
}

/// What "done" means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// On the disk itself: survives the loss of power.
    Synced,
    /// Handed to the operating system, and synced within a fifth of a second: survives the death of
    /// this process.
    Written,
}

/// Too much is queued for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("too much is queued for the disk")]
pub struct JournalBusy;

/// The changes are not on disk, or nobody knows; see [`JournalHealth::error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the disk failed")]
pub struct JournalFailed;

/// How a journal fares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournalHealth {
    /// Why it takes nothing at present.
    pub error: Option<String>,
    /// How often changes could not be written.
    pub failures: u64,
    /// Entries found damaged by their checksum, and left out.
    pub damaged: u64,
    /// Grows when the journal had to begin with nothing: whoever knows what belongs into it writes
    /// it again.
    pub generation: u64,
}

/// What was found in a journal when it was opened.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Found {
    /// All intact entries.
    pub entries: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Found {
    fn bytes(&self) -> usize {
        let entries = self.entries.iter();
        entries.map(|(key, value)| key.len() + value.len()).sum()
    }
}

const CHANGES_BYTES: usize = 64;
