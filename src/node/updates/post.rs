//! Questions to peers, gathered: what proposers of many keys ask a peer at about the same time travels in
//! one frame.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::homes::Waiting;
use super::proposer::Parts;
use crate::model::NodeTag;
use crate::net::{CallError, LARGE_BYTES, Lane, Operations, ReplySink, Response};
use crate::wire::{FrameError, Operation};

/// What is to be sent.
#[derive(Debug, Default)]
pub(super) struct Post {
    parcels: Mutex<BTreeMap<NodeTag, Parcel>>,
    wake: Notify,
}

/// Questions to one peer.
#[derive(Debug)]
struct Parcel {
    operations: Operations,
    /// The last of those who wait has given up by then.
    deadline: Instant,
    waiting: Vec<Waiting>,
}

impl Post {
    /// Sends a question with the next frame. Who waits is told once.
    pub(super) fn send(
        &self,
        to: NodeTag,
        operation: &Operation<'_>,
        deadline: Instant,
        waiting: Waiting,
    ) {
        let mut parcels = self.parcels();
        let parcel = parcels.entry(to).or_insert_with(|| Parcel {
            operations: Operations::default(),
            deadline,
            waiting: Vec::new(),
        });
        parcel.operations.push(operation);
        parcel.deadline = parcel.deadline.max(deadline);
        parcel.waiting.push(waiting);
        drop(parcels);
        self.wake.notify_one();
    }

    /// Sends what has been gathered, for as long as the environment's tasks run.
    pub(super) async fn run(self: Arc<Self>, parts: Arc<Parts>) {
        loop {
            self.wake.notified().await;
            // Those who are about to ask come first: their questions go with it.
            tokio::task::yield_now().await;
            let parcels = std::mem::take(&mut *self.parcels());
            for (to, parcel) in parcels {
                send(&parts, to, parcel);
            }
        }
    }

    fn parcels(&self) -> MutexGuard<'_, BTreeMap<NodeTag, Parcel>> {
        // std Mutex: never held across an await. Each proposer has one question under way.
        self.parcels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send(parts: &Arc<Parts>, to: NodeTag, parcel: Parcel) {
    let Parcel {
        mut operations,
        deadline,
        waiting,
    } = parcel;
    let env = &parts.env;
    operations.set_clock(parts.clock.read(env.clock.wall()));
    let lane = match operations.bytes() {
        LARGE_BYTES.. => Lane::Large,
        _ => Lane::Foreground,
    };
    let sent = env.clock.monotonic();
    parts.hedging.on_sent(to, sent);
    // The sink is given away with the call: keep what is needed if the call is refused.
    let refused = waiting.clone();
    let sink = Box::new(ParcelSink {
        parts: Arc::clone(parts),
        to,
        sent,
        waiting,
    });
    if parts
        .transport
        .call(to, lane, &operations, deadline, sink)
        .is_err()
    {
        refused.into_iter().for_each(Waiting::fail);
    }
}

struct ParcelSink {
    parts: Arc<Parts>,
    to: NodeTag,
    sent: Instant,
    waiting: Vec<Waiting>,
}

impl ReplySink for ParcelSink {
    fn on_reply(self: Box<Self>, reply: Result<Response<'_>, CallError>) -> Result<(), FrameError> {
        let Self {
            parts,
            to,
            sent,
            waiting,
        } = *self;
        let Ok(mut response) = reply else {
            waiting.into_iter().for_each(Waiting::fail);
            return Ok(());
        };
        let clock = &parts.env.clock;
        let now = clock.monotonic();
        parts
            .hedging
            .on_answer(to, now.saturating_duration_since(sent));
        parts.replica.note_peer_clock(to, response.clock, now);
        parts.replica.note_clock(response.clock, clock.wall());
        let mut malformed = Ok(());
        for waiting in waiting {
            // After one malformed answer there is no telling where the next begins.
            match malformed {
                Ok(()) => malformed = waiting.read(&mut response),
                Err(_) => waiting.fail(),
            }
        }
        malformed
    }
}
