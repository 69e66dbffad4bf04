//! The scripts that this node knows by name.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hashlink::LruCache;

/// Scripts by their names, the least used forgotten first.
#[derive(Debug)]
pub(super) struct Scripts(Mutex<Known>);

#[derive(Debug)]
struct Known {
    scripts: LruCache<String, Bytes>,
    bytes: usize,
}

impl Default for Scripts {
    fn default() -> Self {
        Self(Mutex::new(Known {
            scripts: LruCache::new(SCRIPTS_MAX),
            bytes: 0,
        }))
    }
}

impl Scripts {
    /// Keeps a script under its name.
    pub(super) fn keep(&self, name: &str, source: &[u8]) {
        let mut known = self.known();
        if known.scripts.get(name).is_some() {
            return;
        }
        known.bytes += source.len();
        if known.scripts.len() >= SCRIPTS_MAX {
            known.forget_one();
        }
        let source = Bytes::copy_from_slice(source);
        known.scripts.insert(name.to_owned(), source);
        while known.bytes > BYTES_MAX && known.scripts.len() > 1 {
            known.forget_one();
        }
    }

    /// The script of a name, in any case.
    pub(super) fn get(&self, name: &[u8]) -> Option<Bytes> {
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        self.known().scripts.get(&name).cloned()
    }

    /// Forgets all.
    pub(super) fn clear(&self) {
        let mut known = self.known();
        known.scripts.clear();
        known.bytes = 0;
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // std Mutex: never held across an await.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn forget_one(&mut self) {
        if let Some((_, source)) = self.scripts.remove_lru() {
            self.bytes = self.bytes.saturating_sub(source.len());
        }
    }
}

const SCRIPTS_MAX: usize = 4_096;
const BYTES_MAX: usize = 16 * 1024 * 1024;
