//! Calls between nodes of one process, for tests and simulations.
//!
//! Frames are the ones QUIC would carry. Links can be cut; a cut link loses what is on its way.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, sleep, sleep_until};

use super::transport::{CallError, Lane, Operations, PeerService, ReplySink, Response, Transport};
use crate::env::Tasks;
use crate::model::NodeTag;
use crate::wire::{FrameReader, ResponseHeader, finish_frame, split_frame, start_frame};

/// A network in memory. Clones share it.
#[derive(Debug, Clone)]
pub struct MemoryNetwork {
    state: Arc<Mutex<State>>,
    tasks: Tasks,
    delay: Duration,
}

#[derive(Debug, Default)]
struct State {
    services: BTreeMap<NodeTag, Arc<dyn PeerService>>,
    /// From, to.
    cut: BTreeSet<(NodeTag, NodeTag)>,
    unconnected: BTreeSet<NodeTag>,
}

/// One node's end of a [`MemoryNetwork`].
#[derive(Clone)]
pub struct MemoryTransport {
    network: MemoryNetwork,
    from: NodeTag,
}

impl MemoryNetwork {
    /// A network that delivers each message after `delay`.
    #[must_use]
    pub fn new(tasks: Tasks, delay: Duration) -> Self {
        Self {
            state: Arc::default(),
            tasks,
            delay,
        }
    }

    /// Connects a node, or replaces what a restarted one serves.
    pub fn connect(&self, node: NodeTag, service: Arc<dyn PeerService>) {
        self.lock().services.insert(node, service);
    }

    /// The transport of a node.
    #[must_use]
    pub fn transport(&self, from: NodeTag) -> MemoryTransport {
        MemoryTransport {
            network: self.clone(),
            from,
        }
    }

    /// Loses everything from one node to another, from now on.
    pub fn cut(&self, from: NodeTag, to: NodeTag) {
        self.lock().cut.insert((from, to));
    }

    /// Undoes [`MemoryNetwork::cut`].
    pub fn heal(&self, from: NodeTag, to: NodeTag) {
        self.lock().cut.remove(&(from, to));
    }

    /// This node has no connections, so that its calls are refused at once; or has them again.
    pub fn set_connected(&self, node: NodeTag, is_connected: bool) {
        let unconnected = &mut self.lock().unconnected;
        match is_connected {
            true => unconnected.remove(&node),
            false => unconnected.insert(node),
        };
    }

    fn service(&self, from: NodeTag, to: NodeTag) -> Option<Arc<dyn PeerService>> {
        let state = self.lock();
        let is_cut = state.cut.contains(&(from, to));
        state.services.get(&to).filter(|_| !is_cut).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The response frame, without its length; `None`: it was lost.
    async fn carry(&self, from: NodeTag, to: NodeTag, request: Bytes) -> Option<Bytes> {
        sleep(self.delay).await;
        let service = self.service(from, to)?;
        let mut out = Vec::new();
        if let Some(late) = service.serve(&request, &mut out).ok()? {
            out = late.await;
        }
        sleep(self.delay).await;
        self.service(to, from)?;
        split_frame(&mut BytesMut::from(&out[..]), usize::MAX)
            .ok()
            .flatten()
    }
}

impl Transport for MemoryTransport {
    fn call(
        &self,
        to: NodeTag,
        _lane: Lane,
        operations: &Operations,
        deadline: Instant,
        sink: Box<dyn ReplySink>,
    ) -> Result<(), CallError> {
        if self.network.lock().unconnected.contains(&self.from) {
            return Err(CallError::Unreachable);
        }
        let mut frame = Vec::new();
        let start = start_frame(&operations.header(0, 0), &mut frame);
        frame.extend_from_slice(&operations.encoded());
        finish_frame(start, &mut frame);
        let request = Bytes::from(frame).slice(crate::wire::LENGTH_BYTES..);
        let Self { network, from } = self.clone();
        self.network.tasks.spawn(async move {
            let reply = tokio::select! {
                biased;
                reply = network.carry(from, to, request) => reply,
                () = sleep_until(deadline) => None,
            };
            let Some(frame) = reply else {
                sleep_until(deadline).await;
                drop(sink.on_reply(Err(CallError::TimedOut)));
                return;
            };
            let mut answers = FrameReader::new(&frame);
            if let Ok(ResponseHeader {
                count,
                clock,
                flushes,
                is_sure,
                ..
            }) = answers.read()
            {
                drop(sink.on_reply(Ok(Response {
                    frame: &frame,
                    answers,
                    count,
                    clock,
                    flushes: flushes.map(|flushes| &flushes[..]),
                    is_sure,
                })));
            }
        });
        Ok(())
    }
}

impl fmt::Debug for MemoryTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryTransport({:x})", self.from.0)
    }
}
