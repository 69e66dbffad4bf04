//! Questions of a proposer to the homes of a key, and their answers.

use serde_bytes::Bytes as ByteSlice;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::proposer::Parts;
use crate::model::{HashedKey, HlcTime, NodeTag, Record, RecordRef, Version};
use crate::net::{CallError, LARGE_BYTES, Lane, Operations, ReplySink, Response};
use crate::protocol::{Lineage, Promise, Proposed};
use crate::ring::View;
use crate::store::{Accepted, Promised, Proposal};
use crate::wire::{Answer, FrameError, Operation, Refusal, WireProposal, from_wire, to_wire};

/// What a home has answered.
#[derive(Debug)]
pub(super) enum Told {
    Promised {
        home: usize,
        ballot: Version,
        promise: Promise,
    },
    Accepted {
        home: usize,
        ballot: Version,
        is_next_promised: bool,
    },
    Outbid {
        home: usize,
        ballot: Version,
        by: Version,
    },
    Failed {
        home: usize,
        ballot: Version,
        refusal: Option<Refusal>,
    },
}

/// The homes of a key.
pub(super) struct Homes<'a> {
    parts: &'a Parts,
    key: HashedKey<'a>,
    homes: Vec<NodeTag>,
    /// The ring in which these are the homes.
    ring: u64,
}

impl<'a> Homes<'a> {
    pub(super) fn new(parts: &'a Parts, view: &View, key: HashedKey<'a>) -> Self {
        Self {
            parts,
            homes: view.homes(key.partition).to_vec(),
            key,
            ring: view.version(),
        }
    }

    pub(super) fn count(&self) -> usize {
        self.homes.len()
    }

    /// Asks all homes to promise a ballot; what this node's own copy answers.
    pub(super) fn ask_promise(
        &self,
        ballot: Version,
        deadline: Instant,
        tell: &mpsc::Sender<Told>,
    ) -> Option<Told> {
        let mut operations = self.operations();
        let key = ByteSlice::new(self.key.bytes);
        operations.push(&Operation::Promise(key, to_wire(ballot), self.ring));
        self.send(&operations, ballot, deadline, tell);
        let home = self.own()?;
        let floor = self.parts.replica.floor(self.key).hlc;
        let wall = self.parts.env.clock.wall();
        let now = self.parts.env.clock.monotonic();
        let promised =
            self.parts
                .replica
                .promise(self.key, ballot, (wall, now), |record, lineage| {
                    promise(record.map(|record| record.to_record()), lineage, floor)
                });
        Some(match promised {
            Ok(Promised::Promised(promise)) => Told::Promised {
                home,
                ballot,
                promise,
            },
            Ok(Promised::Refused { by }) => Told::Outbid { home, ballot, by },
            Ok(Promised::Full) => failed(home, ballot, Some(Refusal::Busy)),
            Err(refusal) => failed(home, ballot, Some(refusal)),
        })
    }

    /// Gives all homes a result to take; what this node's own copy answers.
    pub(super) fn give(
        &self,
        proposed: &Proposed,
        deadline: Instant,
        tell: &mpsc::Sender<Told>,
    ) -> Option<Told> {
        let ballot = proposed.record.version;
        let lineage = proposed.lineage.encode();
        let record = RecordRef::from(&proposed.record);
        let mut operations = self.operations();
        operations.push(&Operation::Accept(
            ByteSlice::new(self.key.bytes),
            WireProposal::new(record, &lineage, proposed.next),
            self.ring,
        ));
        self.send(&operations, ballot, deadline, tell);
        let home = self.own()?;
        let replica = &self.parts.replica;
        let (wall, now) = (
            self.parts.env.clock.wall(),
            self.parts.env.clock.monotonic(),
        );
        // What nobody else would take must not replace what was decided.
        if !replica.may_keep(ballot, now) {
            return Some(failed(home, ballot, Some(Refusal::ClockDrift)));
        }
        let proposal = Proposal {
            record,
            lineage: &lineage,
            next: proposed.next,
        };
        Some(match replica.accept(self.key, proposal, (wall, now)) {
            Ok(Accepted::Accepted { is_next_promised }) => Told::Accepted {
                home,
                ballot,
                is_next_promised,
            },
            Ok(Accepted::Refused { by }) => Told::Outbid { home, ballot, by },
            Err(refusal) => failed(home, ballot, Some(refusal)),
        })
    }

    fn operations(&self) -> Operations {
        let clock = &self.parts.clock;
        Operations::new(clock.read(self.parts.env.clock.wall()))
    }

    fn own(&self) -> Option<usize> {
        let own = self.parts.self_tag;
        self.homes.iter().position(|&home| home == own)
    }

    fn send(
        &self,
        operations: &Operations,
        ballot: Version,
        deadline: Instant,
        tell: &mpsc::Sender<Told>,
    ) {
        let lane = match operations.encoded().len() {
            LARGE_BYTES.. => Lane::Large,
            _ => Lane::Foreground,
        };
        let Parts {
            self_tag,
            transport,
            hedging,
            env,
            ..
        } = self.parts;
        for (number, &home) in self.homes.iter().enumerate() {
            if home == *self_tag {
                continue;
            }
            let sent = env.clock.monotonic();
            let sink = AnswerSink {
                number,
                home,
                ballot,
                sent,
                parts: SinkParts::of(self.parts),
                tell: tell.clone(),
            };
            hedging.on_sent(home, sent);
            if transport
                .call(home, lane, operations, deadline, Box::new(sink))
                .is_err()
            {
                // There is room: this is the first answer to this question.
                let _full = tell.try_send(failed(number, ballot, None));
            }
        }
    }
}

fn promise(record: Option<Record>, lineage: Option<&[u8]>, floor: HlcTime) -> Promise {
    let lineage = match (&record, lineage) {
        (Some(record), Some(lineage)) => Lineage::decode(lineage, record.version.hlc),
        (Some(record), None) => Lineage::unknown_until(record.version.hlc),
        (None, _) => Lineage::unknown_until(floor),
    };
    Promise { record, lineage }
}

const fn failed(home: usize, ballot: Version, refusal: Option<Refusal>) -> Told {
    Told::Failed {
        home,
        ballot,
        refusal,
    }
}

/// What is noted of a peer that answers.
struct SinkParts {
    hedging: std::sync::Arc<crate::node::hedging::Hedging>,
    replica: std::sync::Arc<crate::node::replica::Replica>,
    clock: std::sync::Arc<dyn crate::env::Clock>,
}

impl SinkParts {
    fn of(parts: &Parts) -> Self {
        Self {
            hedging: parts.hedging.clone(),
            replica: parts.replica.clone(),
            clock: parts.env.clock.clone(),
        }
    }
}

struct AnswerSink {
    number: usize,
    home: NodeTag,
    ballot: Version,
    sent: Instant,
    parts: SinkParts,
    tell: mpsc::Sender<Told>,
}

impl ReplySink for AnswerSink {
    fn on_reply(self: Box<Self>, reply: Result<Response<'_>, CallError>) -> Result<(), FrameError> {
        let told = match reply {
            Ok(response) => self.read(response)?,
            Err(_) => failed(self.number, self.ballot, None),
        };
        // Nobody waits any more: a majority has answered.
        let _gone = self.tell.try_send(told);
        Ok(())
    }
}

impl AnswerSink {
    fn read(&self, mut response: Response<'_>) -> Result<Told, FrameError> {
        let (home, ballot) = (self.number, self.ballot);
        let now = self.parts.clock.monotonic();
        let took = now.saturating_duration_since(self.sent);
        self.parts.hedging.on_answer(self.home, took);
        let replica = &self.parts.replica;
        replica.note_peer_clock(self.home, response.clock, now);
        replica.note_clock(response.clock, self.parts.clock.wall());
        Ok(match response.answers.read()? {
            Answer::Promise(record, lineage, floor) => {
                let record = record.map(|record| response.keep(record.into()));
                let lineage = lineage.map(|lineage| &lineage[..]);
                let promise = promise(record, lineage, from_wire(floor).hlc);
                Told::Promised {
                    home,
                    ballot,
                    promise,
                }
            }
            Answer::Accepted(is_next_promised) => Told::Accepted {
                home,
                ballot,
                is_next_promised,
            },
            Answer::Outbid(by) => Told::Outbid {
                home,
                ballot,
                by: from_wire(by),
            },
            Answer::Refused(refusal) => failed(home, ballot, Some(refusal)),
            // An answer to another question than the one asked: as good as none.
            _ => failed(home, ballot, None),
        })
    }
}
