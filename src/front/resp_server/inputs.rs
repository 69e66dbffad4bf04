//! What clients have sent and not finished, of all clients together.
//!
//! Each may hold one request of the largest size, and many clients could hold many: beyond a bound those
//! that hold most are closed, so that the others go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::sleep;

use super::clients::{Client, Clients};

/// Counts what all clients hold.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    held: AtomicUsize,
}

/// What one client holds; nothing any more when this is dropped.
#[derive(Debug)]
pub(super) struct HeldInput<'a> {
    inputs: &'a Inputs,
    clients: &'a Clients,
    client: Arc<Client>,
    bytes: usize,
}

impl Inputs {
    /// Bytes that all clients hold.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl<'a> HeldInput<'a> {
    pub(super) const fn new(inputs: &'a Inputs, clients: &'a Clients, client: Arc<Client>) -> Self {
        Self {
            inputs,
            clients,
            client,
            bytes: 0,
        }
    }

    /// It holds so much now. Whether it may go on: if all together hold too much, and it most of it,
    /// it may not.
    pub(super) fn set(&mut self, bytes: usize, all_max: usize) -> bool {
        if bytes == self.bytes {
            return !self.client.is_over_input();
        }
        let before = std::mem::replace(&mut self.bytes, bytes);
        self.client.set_input_bytes(bytes);
        // Wrapping: taking away is adding the two's complement.
        let change = bytes.wrapping_sub(before);
        let all = self.inputs.held.fetch_add(change, Ordering::Relaxed);
        if bytes > before && all.wrapping_add(change) > all_max {
            self.clients.close_largest(all_max);
        }
        !self.client.is_over_input()
    }

    /// Waits until others have finished as much as this one needs, but not for ever: whoever has begun
    /// a large request may not go on with it.
    pub(super) async fn wait_for_room(&self, more: usize, all_max: usize) {
        for _ in 0..ROOM_WAITS_MAX {
            let all = self.inputs.held();
            let others = all.saturating_sub(self.bytes);
            // A quarter is for those who have small requests.
            if others <= all_max / 2 || all.saturating_add(more) <= all_max / 4 * 3 {
                return;
            }
            sleep(ROOM_WAIT).await;
        }
    }

    /// Whether memory is short, so that a buffer with nothing in it is better given back.
    pub(super) fn is_tight(&self, all_max: usize) -> bool {
        self.inputs.held() > all_max / 2
    }
}

impl Drop for HeldInput<'_> {
    fn drop(&mut self) {
        self.set(0, usize::MAX);
    }
}

/// As long as a large value takes on a fast link.
const ROOM_WAIT: Duration = Duration::from_millis(20);
/// Ten seconds: as long as many large requests take.
const ROOM_WAITS_MAX: usize = 500;
/// To write a line to who may not read.
pub(super) const EXPLAIN_MAX: Duration = Duration::from_millis(10);
/// What a client reads that was closed for this.
pub(super) const OVER_INPUT: &[u8] =
    b"-ERR the clients of this node have sent too much that is not finished (client_input_bytes_max)\r\n";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Millis;

    #[test]
    fn those_who_hold_most_are_closed_and_the_others_go_on() {
        let (inputs, clients) = (Inputs::default(), Clients::default());
        let hold = |name: &str| {
            let client = clients.register(name.to_owned(), String::new(), Millis(0));
            HeldInput::new(&inputs, &clients, client)
        };
        let (mut small, mut large, mut larger) = (hold("a"), hold("b"), hold("c"));
        assert!(small.set(10, 100) && large.set(40, 100) && larger.set(50, 100));
        // Now it is one too many, and the largest pays for it, whoever asked.
        assert!(small.set(11, 100));
        assert!(!larger.set(50, 100) && large.set(40, 100));
        assert!(*larger.client.killed().borrow() && !*large.client.killed().borrow());
        // It is closed once: what it still holds is as good as free.
        assert!(small.set(20, 100) && large.set(41, 100));
        drop(larger);
        assert_eq!(inputs.held(), 61);
        assert!(!large.set(90, 100) && small.set(20, 100));
        drop((small, large));
        assert_eq!(inputs.held(), 0);
    }

    /// Finding S4: twenty clients with values of 16 MiB each were closed for what they held together.
    #[tokio::test(start_paused = true)]
    async fn a_large_request_waits_for_those_before_it_but_not_for_ever() {
        let (inputs, clients) = (Inputs::default(), Clients::default());
        let hold = |name: &str| {
            let client = clients.register(name.to_owned(), String::new(), Millis(0));
            HeldInput::new(&inputs, &clients, client)
        };
        let (mut first, mut second, mut third) = (hold("a"), hold("b"), hold("c"));
        let now = || crate::env::Clock::monotonic(&crate::env::SystemClock);
        let start = now();
        assert!(first.set(60, 100));
        // However little there is, one alone may go on.
        first.wait_for_room(100, 100).await;
        assert!(second.set(5, 100) && third.set(5, 100));
        second.wait_for_room(5, 100).await;
        assert_eq!(now(), start);
        let finish = async {
            sleep(Duration::from_secs(1)).await;
            assert!(first.set(1, 100));
        };
        tokio::join!(second.wait_for_room(40, 100), finish);
        assert!((1_000..1_100).contains(&(now() - start).as_millis()));
        assert!(second.set(60, 100));
        // The second one never goes on.
        third.wait_for_room(60, 100).await;
        assert!((now() - start).as_secs() <= 11);
    }
}
