//! Questions to peers, gathered: what proposers of many keys ask a peer at about the same time travels in
//! one frame.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::homes::Waiting;
use super::proposer::Parts;
use crate::model::{NodeTag, RecordRef};
use crate::net::{CallError, LARGE_BYTES, Lane, Operations, ReplySink, Response};
use crate::wire::{FrameError, Operation};

/// What is to be sent.
#[derive(Debug, Default)]
pub(super) struct Post {
    parcels: Mutex<BTreeMap<NodeTag, Vec<Parcel>>>,
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
        self.add(to, operation, deadline, waiting);
        self.wake.notify_one();
    }

    /// Sends what nobody waits for, with what is sent next. Alone it goes when much has gathered.
    pub(super) fn send_along(&self, to: NodeTag, operation: &Operation<'_>, parts: &Parts) {
        let deadline = parts.env.clock.monotonic() + parts.timeout;
        if self.add(to, operation, deadline, Waiting::default()) >= ALONG_MAX {
            self.wake.notify_one();
        }
    }

    /// How many are in the last parcel then.
    fn add(
        &self,
        to: NodeTag,
        operation: &Operation<'_>,
        deadline: Instant,
        waiting: Waiting,
    ) -> usize {
        let mut parcels = self.parcels();
        let parcels = parcels.entry(to).or_default();
        let bytes = bytes(operation);
        // What is large travels alone: what is small beside it must neither wait for it nor fail with
        // it, and all of it together may be more than a frame holds.
        let fits = |parcel: &Parcel| parcel.operations.encoded().len() + bytes <= PARCEL_BYTES_MAX;
        if !parcels.last().is_some_and(fits) {
            parcels.push(Parcel {
                operations: Operations::default(),
                deadline,
                waiting: Vec::new(),
            });
        }
        let Some(parcel) = parcels.last_mut() else {
            return 0;
        };
        parcel.operations.push(operation);
        parcel.deadline = parcel.deadline.max(deadline);
        parcel.waiting.push(waiting);
        parcel.waiting.len()
    }

    /// Sends what has been gathered, for as long as the environment's tasks run.
    pub(super) async fn run(self: Arc<Self>, parts: Arc<Parts>) {
        loop {
            self.wake.notified().await;
            // Those who are about to ask come first: their questions go with it.
            tokio::task::yield_now().await;
            let parcels = std::mem::take(&mut *self.parcels());
            for (to, parcels) in parcels {
                for parcel in parcels {
                    send(&parts, to, parcel);
                }
            }
        }
    }

    fn parcels(&self) -> MutexGuard<'_, BTreeMap<NodeTag, Vec<Parcel>>> {
        // std Mutex: never held across an await. Each proposer has one question under way.
        self.parcels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// About how many bytes a question of a proposer has.
fn bytes(operation: &Operation<'_>) -> usize {
    match operation {
        Operation::Accept(key, proposal, _) => {
            let value = RecordRef::from(proposal.record)
                .value
                .map_or(0, <[u8]>::len);
            key.len() + value + proposal.lineage.len() + OVERHEAD_BYTES
        }
        Operation::Promise(key, ..) | Operation::Release(key, ..) => key.len() + OVERHEAD_BYTES,
        // Proposers ask nothing else.
        _ => OVERHEAD_BYTES,
    }
}

/// Of the questions in one frame, if there is more than one.
const PARCEL_BYTES_MAX: usize = LARGE_BYTES / 2;
const OVERHEAD_BYTES: usize = 128;
/// So many of those that nobody waits for are sent by themselves.
const ALONG_MAX: usize = 32;

fn send(parts: &Arc<Parts>, to: NodeTag, parcel: Parcel) {
    let Parcel {
        mut operations,
        deadline,
        waiting,
    } = parcel;
    let env = &parts.env;
    operations.set_context(parts.replica.frame_context(env.clock.wall()));
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
