//! Connections that were refused of late, for who asks why.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use crate::model::Millis;

/// A connection that was not made, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedConnection {
    /// The other end.
    pub with: SocketAddr,
    /// Why, in words.
    pub reason: String,
    /// The last time that it happened so.
    pub at: Millis,
}

/// The last refusals, each once.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<VecDeque<RefusedConnection>>);

impl Refusals {
    /// A connection was refused, for a reason that is in part what a stranger has sent.
    pub(super) fn note(&self, with: SocketAddr, reason: &str, at: Millis) {
        // Fit for a terminal, and not too long.
        let visible = |c: char| if c.is_control() { ' ' } else { c };
        let reason = reason.chars().take(REASON_CHARS_MAX).map(visible);
        let reason: String = reason.collect();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Ports of those who dial change from one try to the next.
        all.retain(|known| known.with.ip() != with.ip() || known.reason != reason);
        if all.len() == REFUSALS_MAX {
            all.pop_front();
        }
        all.push_back(RefusedConnection { with, reason, at });
    }

    pub(super) fn all(&self) -> Vec<RefusedConnection> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().cloned().collect()
    }
}

/// Different ones: a few are enough to see what is wrong.
const REFUSALS_MAX: usize = 16;
const REASON_CHARS_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_kept_once_and_fit_for_a_terminal() {
        let refusals = Refusals::default();
        let from = |port: u16| SocketAddr::from(([10, 0, 0, 1], port));
        refusals.note(from(1), "\x1b[2Jgone", Millis(1));
        refusals.note(from(2), "\x1b[2Jgone", Millis(2));
        let all = refusals.all();
        assert_eq!((all.len(), all[0].reason.as_str()), (1, " [2Jgone"));
        assert_eq!((all[0].with, all[0].at), (from(2), Millis(2)));
        (0..100)
            .for_each(|n| refusals.note(from(3), &format!("{n}{}", "x".repeat(1_000)), Millis(n)));
        let all = refusals.all();
        assert_eq!(all.len(), REFUSALS_MAX);
        assert_eq!(all[0].reason.len(), REASON_CHARS_MAX);
    }
}
