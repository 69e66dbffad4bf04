//! Flushes travel with every response: a caller knows of each that the replica knew of before any
//! answer counts.
//!
//! A flush is acknowledged when a majority of each key's homes knows of it, so every quorum of answers
//! holds one from a home that does. What a home that missed it shows is then held against it.

use std::sync::Arc;

use tokio::time::Instant;

use super::replica::Replica;
use crate::env::Clock;
use crate::model::NodeTag;
use crate::net::{CallError, Lane, Operations, ReplySink, Response, Transport};
use crate::wire::FrameError;

/// Calls whose responses teach this node what was flushed.
#[derive(Debug)]
pub(super) struct FlushExchange {
    transport: Arc<dyn Transport>,
    known: Known,
}

/// Where flushes are merged.
#[derive(Debug, Clone)]
struct Known {
    replica: Arc<Replica>,
    clock: Arc<dyn Clock>,
}

impl FlushExchange {
    /// Calls over this transport.
    pub(super) fn over(
        transport: Arc<dyn Transport>,
        replica: &Arc<Replica>,
        clock: &Arc<dyn Clock>,
    ) -> Arc<dyn Transport> {
        let known = Known {
            replica: Arc::clone(replica),
            clock: Arc::clone(clock),
        };
        Arc::new(Self { transport, known })
    }
}

impl Transport for FlushExchange {
    fn call(
        &self,
        to: NodeTag,
        lane: Lane,
        operations: &Operations,
        deadline: Instant,
        sink: Box<dyn ReplySink>,
    ) -> Result<(), CallError> {
        let known = self.known.clone();
        let sink = Box::new(MergeSink { known, sink });
        self.transport.call(to, lane, operations, deadline, sink)
    }
}

struct MergeSink {
    known: Known,
    sink: Box<dyn ReplySink>,
}

impl ReplySink for MergeSink {
    fn on_reply(self: Box<Self>, reply: Result<Response<'_>, CallError>) -> Result<(), FrameError> {
        let Self {
            known: Known { replica, clock },
            sink,
        } = *self;
        if let Ok(response) = &reply
            && let Err(malformed) = replica.merge_flushes(response.flushes, clock.wall())
        {
            // The caller learns that its request is lost, the peer that it is broken.
            sink.on_reply(Err(CallError::ConnectionLost))?;
            return Err(malformed.into());
        }
        sink.on_reply(reply)
    }
}
