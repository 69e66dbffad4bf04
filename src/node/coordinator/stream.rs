//! Outcomes in the order of their requests, and values not faster than they are taken.
//!
//! Whoever takes the outcomes decides how much is held: no more than a window of requests is under
//! way, and of the values that a window reads no more is kept than fits the room. A read whose value
//! does not fit is made again when its turn has come. Requests on one key keep their order: none
//! is begun before those that it depends on have their outcomes, values included.

use std::collections::VecDeque;

use super::item::Deferred;
use super::{Coordinator, Outcome, Ran, Request};

/// Requests being carried out.
#[derive(Debug)]
pub struct Stream<'a, I> {
    coordinator: &'a Coordinator,
    requests: I,
    /// Taken from `requests`, not begun.
    next: Vec<Request>,
    /// Begun together, in their order.
    begun: VecDeque<Begun>,
    /// Bytes of values to be kept at once; one value is, however long.
    room: usize,
    /// How many requests may be begun together.
    window: usize,
    sloppy_writes: u64,
}

#[derive(Debug)]
enum Begun {
    Done(Outcome),
    /// Its value did not fit, or is large.
    Deferred(Request, Deferred),
}

impl<'a, I: Iterator<Item = Request>> Stream<'a, I> {
    pub(super) const fn new(coordinator: &'a Coordinator, requests: I, room: usize) -> Self {
        Self {
            coordinator,
            requests,
            next: Vec::new(),
            begun: VecDeque::new(),
            room,
            window: WINDOW_MAX,
            sloppy_writes: 0,
        }
    }

    /// The outcome of the next request; `None`: there are no more.
    pub async fn next(&mut self) -> Option<Outcome> {
        loop {
            match self.begun.pop_front() {
                Some(Begun::Done(outcome)) => return Some(outcome),
                Some(deferred @ Begun::Deferred(..)) => {
                    self.begun.push_front(deferred);
                    self.read_again().await;
                }
                None => {
                    if !self.begin().await {
                        return None;
                    }
                }
            }
        }
    }

    /// Leaves out the next requests: those of them that have not been begun are not carried out.
    pub fn skip(&mut self, count: usize) {
        for _ in 0..count {
            let skipped = self.begun.pop_front().is_some()
                || (!self.next.is_empty() && {
                    self.next.remove(0);
                    true
                });
            if !skipped {
                // Nothing is left to be left out at the end.
                drop(self.requests.next());
            }
        }
    }

    /// How many of the writes so far counted stand-ins.
    #[must_use]
    pub const fn sloppy_writes(&self) -> u64 {
        self.sloppy_writes
    }

    /// Begins as many as may travel together; whether there were any.
    async fn begin(&mut self) -> bool {
        let wanted = self.window.saturating_sub(self.next.len());
        self.next.extend(self.requests.by_ref().take(wanted));
        let first = &self.next[..self.next.len().min(self.window)];
        let together = self.coordinator.independent(first);
        if together == 0 {
            return false;
        }
        let later = self.next.split_off(together);
        let requests = std::mem::replace(&mut self.next, later);
        self.begun = self.run(requests).await.into();
        true
    }

    /// Makes reads again whose values did not fit, as many as may fit now. A large one has its turn
    /// alone: whoever has a turn must not wait for another.
    async fn read_again(&mut self) {
        let mut again = Vec::new();
        let mut places = Vec::new();
        for (place, begun) in self.begun.iter().enumerate() {
            if let Begun::Deferred(request, deferred) = begun {
                let is_large = matches!(deferred, Deferred::Large { .. });
                if again.len() >= self.window || (is_large && !again.is_empty()) {
                    break;
                }
                again.push(request.clone());
                places.push(place);
                if is_large {
                    break;
                }
            }
        }
        let done = self.run(again).await;
        for (place, done) in places.into_iter().zip(done) {
            self.begun[place] = done;
        }
    }

    async fn run(&mut self, requests: Vec<Request>) -> Vec<Begun> {
        let count = requests.len();
        let mut ran = Ran::new(count);
        self.coordinator
            .run_together(requests, self.room, &mut ran)
            .await;
        let Ran {
            outcomes,
            deferred,
            sloppy_writes,
        } = ran;
        self.sloppy_writes += sloppy_writes;
        // What is asked for in vain costs a summary each: next time about as many as did fit.
        let is_full = |(.., deferred): &(_, _, Deferred)| *deferred == Deferred::NoRoom;
        let unfit = deferred.iter().filter(|deferred| is_full(deferred)).count();
        self.window = match count - unfit {
            _ if unfit == 0 => (2 * self.window).min(WINDOW_MAX),
            fit => (2 * fit).clamp(1, WINDOW_MAX),
        };
        let mut done: Vec<Begun> = outcomes.into_iter().map(Begun::Done).collect();
        for (place, request, deferred) in deferred {
            done[place] = Begun::Deferred(request, deferred);
        }
        done
    }
}

/// A request under way takes about a kilobyte of state: a mebibyte together.
pub(super) const WINDOW_MAX: usize = 1_024;
