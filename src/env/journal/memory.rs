//! A journal without a disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Changes, Committed, Durability, Found, Journal, JournalBusy, JournalHealth};

/// Entries in memory; all that is committed is done at once. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct MemoryJournal(Arc<Mutex<BTreeMap<Vec<u8>, Vec<u8>>>>);

impl MemoryJournal {
    /// What it holds.
    #[must_use]
    pub fn found(&self) -> Found {
        let entries = self.lock().clone().into_iter().collect();
        Found { entries }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal for MemoryJournal {
    fn commit(
        &self,
        changes: Changes,
        _durability: Durability,
        done: Committed,
    ) -> Result<(), JournalBusy> {
        let mut entries = self.lock();
        entries.extend(changes.puts);
        for key in &changes.removes {
            entries.remove(key);
        }
        drop(entries);
        done(Ok(()));
        Ok(())
    }

    fn health(&self) -> JournalHealth {
        JournalHealth::default()
    }
}
