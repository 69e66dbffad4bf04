//! How far the peers' wall clocks are from this node's, asked of each now and then.
//!
//! An offset is the peer's reading, less the middle between the question and the answer (Cristian,
//! *Probabilistic clock synchronization*, 1989): wrong by half the round trip at most.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::env::Env;
use crate::model::{Millis, NodeTag};
use crate::net::{CallError, Lane, Operations, ReplySink, Response, Transport};
use crate::ring::View;
use crate::wire::{Answer, FrameError, Operation};

/// Asks the peers for their clocks.
pub struct ClockProbe {
    self_tag: NodeTag,
    env: Env,
    view: watch::Receiver<Arc<View>>,
    transport: Arc<dyn Transport>,
    offsets: Mutex<BTreeMap<NodeTag, ClockOffset>>,
}

/// How far a peer's clock is ahead of this node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockOffset {
    /// Milliseconds; negative when it is behind.
    pub ahead_ms: i64,
    /// Milliseconds that it may be more or less.
    pub error_ms: i64,
}

impl ClockProbe {
    /// A probe that has asked nobody yet.
    #[must_use]
    pub fn new(
        self_tag: NodeTag,
        env: Env,
        view: watch::Receiver<Arc<View>>,
        transport: Arc<dyn Transport>,
    ) -> Arc<Self> {
        Arc::new(Self {
            self_tag,
            env,
            view,
            transport,
            offsets: Mutex::default(),
        })
    }

    /// Asks all peers again and again, for as long as the environment's tasks run.
    pub async fn run(self: Arc<Self>) {
        loop {
            self.ask_all().await;
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Asks all peers that can be reached, and forgets the others.
    pub async fn ask_all(&self) {
        let view = Arc::clone(&self.view.borrow());
        let members = view.members().iter();
        let peers = members.filter(|member| member.reachable && member.tag != self.self_tag);
        let peers: Vec<NodeTag> = peers.map(|member| member.tag).collect();
        self.offsets().retain(|peer, _| peers.contains(peer));
        for peer in peers {
            if let Some(offset) = self.ask(peer).await {
                self.offsets().insert(peer, offset);
            }
        }
    }

    /// The offsets known, by peer.
    #[must_use]
    pub fn known(&self) -> BTreeMap<NodeTag, ClockOffset> {
        self.offsets().clone()
    }

    async fn ask(&self, peer: NodeTag) -> Option<ClockOffset> {
        let clock = &self.env.clock;
        let mut operations = Operations::default();
        operations.push(&Operation::Clock);
        let asked = clock.monotonic();
        let (tell, told) = oneshot::channel();
        let sink = Box::new(ClockSink(tell));
        self.transport
            .call(
                peer,
                Lane::Foreground,
                &operations,
                asked + ANSWER_MAX,
                sink,
            )
            .ok()?;
        let theirs = told.await.ok()??;
        let took = asked.elapsed().as_millis();
        let ours = clock.wall();
        let half = i64::try_from(took / 2).unwrap_or(i64::MAX);
        let difference = i128::from(theirs.0) + i128::from(half) - i128::from(ours.0);
        Some(ClockOffset {
            ahead_ms: i64::try_from(difference).unwrap_or(i64::MAX),
            error_ms: half + 1,
        })
    }

    fn offsets(&self) -> MutexGuard<'_, BTreeMap<NodeTag, ClockOffset>> {
        // std Mutex: never held across an await.
        self.offsets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ClockProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClockProbe")
            .field("offsets", &self.offsets)
            .finish_non_exhaustive()
    }
}

struct ClockSink(oneshot::Sender<Option<Millis>>);

impl ReplySink for ClockSink {
    fn on_reply(self: Box<Self>, reply: Result<Response<'_>, CallError>) -> Result<(), FrameError> {
        let clock = match reply {
            Ok(mut response) => match response.answers.read()? {
                Answer::Clock(clock) => Some(clock),
                _ => None,
            },
            Err(_) => None,
        };
        // Whoever asked may be gone: then nobody needs the answer.
        let _unheard = self.0.send(clock);
        Ok(())
    }
}

const INTERVAL: Duration = Duration::from_secs(10);
const ANSWER_MAX: Duration = Duration::from_secs(1);
