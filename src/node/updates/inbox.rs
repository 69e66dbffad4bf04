//! Where the answers of homes to one proposer come in.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::homes::Told;

/// Answers that have come. Clones share it. As many as there were questions: each is answered once.
#[derive(Debug, Clone, Default)]
pub(super) struct Inbox(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    told: Mutex<VecDeque<Told>>,
    wake: Notify,
}

impl Inbox {
    pub(super) fn push(&self, told: Told) {
        self.told().push_back(told);
        self.0.wake.notify_one();
    }

    /// The next answer; `None`: there was none until this moment.
    pub(super) async fn next(&self, until: Instant) -> Option<Told> {
        loop {
            let told = self.told().pop_front();
            if told.is_some() {
                return told;
            }
            timeout_at(until, self.0.wake.notified()).await.ok()?;
        }
    }

    fn told(&self) -> MutexGuard<'_, VecDeque<Told>> {
        // std Mutex: never held across an await.
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
