//! What was slow and what failed, so that somebody can find out why.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::Millis;

/// One entry. The JSON of `quorate slowlog`: names are a contract.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowEntry {
    /// Grows by one with each entry.
    pub id: u64,
    /// When it was answered, in milliseconds since 1970.
    pub at_ms: u64,
    /// How long it took, with all that was sent in one go with it.
    pub took_us: u64,
    /// The commands, as `get x 3, set`.
    pub commands: String,
    /// The level of the first of them that has one.
    pub level: Option<String>,
    /// The client's name or address.
    pub client: String,
    /// The partition of the key, of a single command or of the one that failed.
    pub partition: Option<u16>,
    /// The key, if `slowlog_keys` allows it.
    pub key: Option<String>,
    /// The home nodes of the partition, with what was wrong with them at the time.
    pub homes: Vec<String>,
    /// What the client was told, of one that failed.
    pub error: Option<String>,
}

/// The last entries.
#[derive(Debug, Default)]
pub(super) struct SlowLog(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    entries: VecDeque<SlowEntry>,
    next_id: u64,
    /// Failures noted in the second that began then.
    second: (u64, u32),
}

impl SlowLog {
    /// Whether a failure is to be noted now: when all fail, a few a second tell as much.
    pub(super) fn wants_failure(&self, now: Millis) -> bool {
        let mut kept = self.lock();
        let second = now.0 / 1_000;
        if kept.second.0 != second {
            kept.second = (second, 0);
        }
        kept.second.1 += 1;
        kept.second.1 <= FAILURES_A_SECOND_MAX
    }

    pub(super) fn push(&self, mut entry: SlowEntry) {
        let mut kept = self.lock();
        entry.id = kept.next_id;
        kept.next_id += 1;
        if kept.entries.len() == ENTRIES_MAX {
            kept.entries.pop_front();
        }
        kept.entries.push_back(entry);
    }

    /// The newest entries, the newest first.
    pub(super) fn newest(&self, count: usize) -> Vec<SlowEntry> {
        self.lock()
            .entries
            .iter()
            .rev()
            .take(count)
            .cloned()
            .collect()
    }

    pub(super) fn clear(&self) -> usize {
        let mut kept = self.lock();
        let count = kept.entries.len();
        kept.entries.clear();
        count
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // std Mutex: never held across an await.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When slow requests are noted, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowRules {
    /// Those that took longer.
    pub threshold: Duration,
    /// Whether with their keys.
    pub with_keys: bool,
}

impl Default for SlowRules {
    fn default() -> Self {
        Self {
            threshold: Duration::from_millis(100),
            with_keys: false,
        }
    }
}

/// Some hundred KiB.
const ENTRIES_MAX: usize = 1_000;
const FAILURES_A_SECOND_MAX: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_thousand_are_kept_and_failures_are_few_a_second() {
        let log = SlowLog::default();
        (0..1_500).for_each(|_| log.push(SlowEntry::default()));
        let newest = log.newest(usize::MAX);
        assert_eq!((newest.len(), newest[0].id), (ENTRIES_MAX, 1_499));
        assert_eq!(log.newest(2)[1].id, 1_498);
        assert_eq!(log.clear(), ENTRIES_MAX);
        log.push(SlowEntry::default());
        assert_eq!(log.newest(5)[0].id, 1_500);
        let wanted = |second: u64| {
            let all = (0..100).filter(|_| log.wants_failure(Millis(second * 1_000)));
            all.count()
        };
        assert_eq!((wanted(1), wanted(2)), (20, 20));
    }
}
