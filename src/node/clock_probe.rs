//! How far the peers' wall clocks are from this node's, asked of each now and then.
//!
//! An offset is the peer's reading, less the middle between the question and the answer (Cristian,
//! *Probabilistic clock synchronization*, 1989): wrong by half the round trip at most.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::agreed_clock::AgreedClock;
use super::clock_verdict::Verdict;
use super::replica::Replica;
use crate::env::{Clock, Env};
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
    replica: Arc<Replica>,
    agreed: Arc<AgreedClock>,
    offsets: Mutex<BTreeMap<NodeTag, ClockOffset>>,
    verdict: Mutex<Option<Verdict>>,
}

/// How far a peer's clock is ahead of this node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockOffset {
    /// Milliseconds; negative when it is behind.
    pub ahead_ms: i64,
    /// Milliseconds that it may be more or less.
    pub error_ms: i64,
}

/// What a probe works with.
#[derive(Debug)]
pub struct Parts {
    /// This node.
    pub self_tag: NodeTag,
    /// Time, by `agreed`.
    pub env: Env,
    /// The ring, as it changes.
    pub view: watch::Receiver<Arc<View>>,
    /// Calls to peers.
    pub transport: Arc<dyn Transport>,
    /// Whose clock is watched.
    pub replica: Arc<Replica>,
    /// What is corrected.
    pub agreed: Arc<AgreedClock>,
}

impl ClockProbe {
    /// A probe that has asked nobody yet.
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts {
            self_tag,
            env,
            view,
            transport,
            replica,
            agreed,
        } = parts;
        Arc::new(Self {
            self_tag,
            env,
            view,
            transport,
            replica,
            agreed,
            offsets: Mutex::default(),
            verdict: Mutex::default(),
        })
    }

    /// Asks all peers again and again, for as long as the environment's tasks run: at once when
    /// somebody becomes reachable or the machine's clock is stepped, otherwise now and then.
    pub async fn run(self: Arc<Self>) {
        let mut view = self.view.clone();
        let mut asked = self.env.clock.monotonic();
        self.ask_all().await;
        let mut difference = self.correction_ms();
        loop {
            let changed = timeout(LOOK_INTERVAL, view.changed()).await;
            if matches!(changed, Ok(Err(_))) {
                return;
            }
            let members = view.borrow_and_update().members().len();
            let interval = if members <= FEW {
                INTERVAL_OF_FEW
            } else {
                INTERVAL
            };
            let is_stepped = self.correction_ms().abs_diff(difference) > STEP_MS;
            if changed.is_ok() || is_stepped || asked.elapsed() >= interval {
                asked = self.env.clock.monotonic();
                self.ask_all().await;
                difference = self.correction_ms();
            }
        }
    }

    /// By how much the agreed clock is ahead of the machine's.
    fn correction_ms(&self) -> i64 {
        let (agreed, machine) = (self.env.clock.wall().0, self.env.clock.machine_wall().0);
        i64::try_from(i128::from(agreed) - i128::from(machine)).unwrap_or(i64::MAX)
    }

    /// Asks all peers that can be reached, forgets the others, and acts on what they say.
    pub async fn ask_all(&self) {
        let view = Arc::clone(&self.view.borrow());
        let members = view.members().iter();
        let peers = members.filter(|member| member.reachable && member.tag != self.self_tag);
        let peers: Vec<NodeTag> = peers.map(|member| member.tag).collect();
        self.offsets().retain(|peer, _| peers.contains(peer));
        let asked: Vec<_> = peers
            .into_iter()
            .filter_map(|peer| Some((peer, self.ask(peer)?)))
            .collect();
        for (peer, told) in asked {
            // At the call's deadline at the latest.
            if let Ok(Some(offset)) = told.await {
                self.offsets().insert(peer, offset);
            }
        }
        self.judge(view.members().len());
    }

    /// Corrects this node's clock, drops it, or has it coordinate no more, as the peers' clocks say.
    fn judge(&self, members: usize) {
        let drift_max = self.replica.clock_drift_max_ms();
        let verdict =
            |own_ahead| Verdict::of(self.known().into_values(), (own_ahead, drift_max), members);
        if let Some(correction_ms) = verdict(0).correction_ms {
            self.agreed.correct(correction_ms);
        }
        let is_refused = || {
            let wall = self.env.clock.wall();
            let ahead = self.replica.now(wall).millis().0;
            let ahead = i128::from(ahead) - i128::from(self.env.clock.machine_wall().0);
            let ahead = i64::try_from(ahead).unwrap_or(i64::MAX);
            (verdict(ahead), self.replica.clock_ahead(wall))
        };
        let (mut present, ahead) = is_refused();
        // What this node stamps is ahead of its own clock as well as of most others': they have taken
        // nothing of it.
        if let Some(drift) = ahead.filter(|_| present.is_refused()) {
            warn!(%drift, "dropped the hybrid clock to the wall clock: most nodes have refused it");
            self.replica.drop_clock(self.env.clock.wall());
            present = is_refused().0;
        }
        let ahead_ms = present.is_refused().then(|| {
            let behind = self.known().into_values().map(|offset| offset.ahead_ms);
            let behind = behind.min().unwrap_or(0).min(0).unsigned_abs();
            behind.max(1)
        });
        if self.replica.set_refused(ahead_ms) {
            match ahead_ms {
                Some(ahead_ms) => warn!(
                    ahead_ms,
                    "most nodes refuse this node's clock: it coordinates no requests until that is right"
                ),
                None => info!("the other nodes follow this node's clock again"),
            }
        }
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(present);
    }

    /// What followed from the clocks of peers, if they were asked.
    #[must_use]
    pub fn verdict(&self) -> Option<Verdict> {
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The offsets known, by peer.
    #[must_use]
    pub fn known(&self) -> BTreeMap<NodeTag, ClockOffset> {
        self.offsets().clone()
    }

    fn ask(&self, peer: NodeTag) -> Option<oneshot::Receiver<Option<ClockOffset>>> {
        let clock = &self.env.clock;
        let mut operations = Operations::new(self.replica.frame_context(clock.wall()));
        operations.push(&Operation::Clock);
        let asked = clock.monotonic();
        let (tell, told) = oneshot::channel();
        let sink = Box::new(ClockSink {
            clock: Arc::clone(clock),
            asked,
            tell,
        });
        let until = asked + ANSWER_MAX;
        self.transport
            .call(peer, Lane::Foreground, &operations, until, sink)
            .ok()?;
        Some(told)
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

struct ClockSink {
    clock: Arc<dyn Clock>,
    asked: Instant,
    tell: oneshot::Sender<Option<ClockOffset>>,
}

impl ClockSink {
    fn offset(&self, theirs: Millis) -> ClockOffset {
        let took = self.clock.monotonic().saturating_duration_since(self.asked);
        let half = i64::try_from(took.as_millis() / 2).unwrap_or(i64::MAX);
        let ours = self.clock.machine_wall();
        let difference = i128::from(theirs.0) + i128::from(half) - i128::from(ours.0);
        ClockOffset {
            ahead_ms: i64::try_from(difference).unwrap_or(i64::MAX),
            error_ms: half.saturating_add(1),
        }
    }
}

impl ReplySink for ClockSink {
    fn on_reply(self: Box<Self>, reply: Result<Response<'_>, CallError>) -> Result<(), FrameError> {
        let offset = match reply {
            Ok(mut response) => match response.answers.read()? {
                Answer::Clock(theirs) => Some(self.offset(theirs)),
                _ => None,
            },
            Err(_) => None,
        };
        // Whoever asked may be gone: then nobody needs the answer.
        let _unheard = self.tell.send(offset);
        Ok(())
    }
}

const INTERVAL: Duration = Duration::from_secs(10);
/// Where there are few nodes, asking all of them more often costs nothing.
const INTERVAL_OF_FEW: Duration = Duration::from_secs(2);
const FEW: usize = 32;
/// How often it is looked whether the machine's clock was stepped.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
const STEP_MS: u64 = 500;
const ANSWER_MAX: Duration = Duration::from_secs(1);
