//! The clients of a node that do not read, and how much waits for them all together.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use tracing::warn;

use super::clients::Client;

/// What waits for clients that do not read.
#[derive(Debug)]
pub(super) struct Unread {
    waits: Mutex<Waits>,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct Waits {
    /// By since when, and the client's number: who has not read for longest comes first.
    clients: BTreeMap<(Instant, u64), (Arc<Client>, usize)>,
    bytes: usize,
}

/// One client that does not read, until this is dropped.
pub(super) struct Waiting {
    unread: Arc<Unread>,
    place: (Instant, u64),
}

impl Default for Unread {
    fn default() -> Self {
        Self::new(UNREAD_BYTES_MAX)
    }
}

impl Unread {
    const fn new(bytes_max: usize) -> Self {
        Self {
            waits: Mutex::new(Waits {
                clients: BTreeMap::new(),
                bytes: 0,
            }),
            bytes_max,
        }
    }

    /// So many bytes wait for a client that has not read since then.
    pub(super) fn wait(
        self: &Arc<Self>,
        client: &Arc<Client>,
        bytes: usize,
        since: Instant,
    ) -> Waiting {
        let place = (since, client.id);
        let mut waits = self.waits();
        waits.clients.insert(place, (Arc::clone(client), bytes));
        waits.bytes += bytes;
        waits.close_longest(self.bytes_max);
        Waiting {
            unread: Arc::clone(self),
            place,
        }
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        // std Mutex: never held across an await.
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waits {
    /// Closes those that have not read for longest until the rest is not too much.
    fn close_longest(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max
            && let Some((_, (client, bytes))) = self.clients.pop_first()
        {
            self.bytes -= bytes;
            warn!(
                client = client.address(),
                bytes, "closed the client that has not read for longest: too much waits for all"
            );
            client.kill();
        }
    }
}

impl Waiting {
    /// So much waits now, and since then.
    pub(super) fn update(&mut self, bytes: usize, since: Instant) {
        let mut waits = self.unread.waits();
        // None: it is being closed.
        let Some((client, before)) = waits.clients.remove(&self.place) else {
            return;
        };
        waits.bytes = waits.bytes - before + bytes;
        self.place.0 = since;
        waits.clients.insert(self.place, (client, bytes));
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waits = self.unread.waits();
        if let Some((_, bytes)) = waits.clients.remove(&self.place) {
            waits.bytes -= bytes;
        }
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").finish_non_exhaustive()
    }
}

/// All clients of a node together: 256 that each have a long reply waiting.
pub const UNREAD_BYTES_MAX: usize = 256 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{Clock, SystemClock};
    use crate::front::resp_server::clients::Clients;
    use crate::model::Millis;
    use std::time::Duration;

    #[test]
    fn who_has_not_read_for_longest_is_closed_when_too_much_waits() {
        let unread = Arc::new(Unread::new(100));
        let clients = Clients::default();
        let client = || clients.register("a".to_owned(), "b".to_owned(), Millis(0));
        let (first, second, third) = (client(), client(), client());
        let start = SystemClock.monotonic();
        let later = |seconds| start + Duration::from_secs(seconds);
        let mut of_first = unread.wait(&first, 50, start);
        let _of_second = unread.wait(&second, 40, later(1));
        // It has read meanwhile.
        of_first.update(50, later(2));
        let of_third = unread.wait(&third, 50, later(3));
        let is_killed = |client: &Client| *client.killed().borrow();
        assert_eq!(
            [&first, &second, &third].map(|client| is_killed(client)),
            [false, true, false]
        );
        drop(of_third);
        drop(of_first);
        assert_eq!(unread.waits().bytes, 0);
    }
}
