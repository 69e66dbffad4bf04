//! `CLIENT PAUSE`: commands that wait until an administrator is done.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::env::Clock;
use crate::model::Millis;

/// Which commands of a node wait, and until when.
#[derive(Debug)]
pub(super) struct Pause {
    /// Whether any do: one load for each command.
    is_set: AtomicBool,
    paused: watch::Sender<Paused>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Paused {
    until: Millis,
    /// Reads as well.
    is_of_all: bool,
}

impl Default for Pause {
    fn default() -> Self {
        Self {
            is_set: AtomicBool::new(false),
            paused: watch::Sender::new(Paused::default()),
        }
    }
}

impl Pause {
    /// Lets commands wait until then: those that write, or all. As in Redis the longer and the
    /// stricter of two counts.
    pub(super) fn set(&self, until: Millis, is_of_all: bool, now: Millis) {
        self.paused.send_modify(|paused| {
            if paused.until <= now {
                *paused = Paused::default();
            }
            paused.until = paused.until.max(until);
            paused.is_of_all |= is_of_all;
        });
        self.is_set.store(true, Ordering::Relaxed);
    }

    /// Nothing waits any longer.
    pub(super) fn end(&self) {
        self.paused.send_replace(Paused::default());
        self.is_set.store(false, Ordering::Relaxed);
    }

    /// Whether some commands may have to wait.
    pub(super) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Relaxed)
    }

    /// Whether a command has to wait, one that writes or not.
    pub(super) fn holds(&self, is_write: bool, now: Millis) -> bool {
        let paused = *self.paused.borrow();
        if paused.until <= now {
            self.paused.send_if_modified(|paused| {
                if paused.until <= now {
                    self.is_set.store(false, Ordering::Relaxed);
                }
                false
            });
            return false;
        }
        is_write || paused.is_of_all
    }

    /// Waits until the pause is over or another one.
    pub(super) async fn changed(&self, clock: &dyn Clock) {
        let mut paused = self.paused.subscribe();
        let until = paused.borrow_and_update().until;
        let left = until.0.saturating_sub(clock.wall().0);
        // Either way it is looked at again.
        drop(tokio::time::timeout(Duration::from_millis(left), paused.changed()).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_and_the_stricter_pause_counts() {
        let pause = Pause::default();
        pause.set(Millis(100), false, Millis(0));
        assert!(pause.holds(true, Millis(99)) && !pause.holds(false, Millis(99)));
        pause.set(Millis(50), true, Millis(10));
        assert!(pause.holds(false, Millis(99)) && pause.is_set());
        assert!(!pause.holds(true, Millis(100)) && !pause.is_set());
        pause.set(Millis(300), false, Millis(200));
        assert!(!pause.holds(false, Millis(250)) && pause.holds(true, Millis(250)));
        pause.end();
        assert!(!pause.holds(true, Millis(250)) && !pause.is_set());
    }
}
