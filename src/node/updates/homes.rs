//! Questions of a proposer to the homes of a key, and their answers.

use serde_bytes::Bytes as ByteSlice;
use tokio::time::Instant;

use super::inbox::Inbox;
use super::post::Post;
use super::proposer::Parts;
use crate::model::{HashedKey, HlcTime, NodeTag, Record, RecordRef, Stamp, Version};
use crate::net::Response;
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
    post: &'a Post,
    key: HashedKey<'a>,
    homes: Vec<NodeTag>,
    /// The ring in which these are the homes.
    ring: u64,
}

impl<'a> Homes<'a> {
    pub(super) fn new(
        (parts, post): (&'a Parts, &'a Post),
        view: &View,
        key: HashedKey<'a>,
    ) -> Self {
        Self {
            parts,
            post,
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
        tell: &Inbox,
    ) -> Option<Told> {
        let key = ByteSlice::new(self.key.bytes);
        let ask = Operation::Promise(key, to_wire(ballot), self.ring);
        self.send(&ask, ballot, deadline, tell);
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
        tell: &Inbox,
    ) -> Option<Told> {
        let ballot = proposed.record.version;
        let lineage = proposed.lineage.encode();
        let record = RecordRef::from(&proposed.record);
        let give = Operation::Accept(
            ByteSlice::new(self.key.bytes),
            WireProposal::new(record, &lineage, proposed.next).on(proposed.base),
            self.ring,
        );
        self.send(&give, ballot, deadline, tell);
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
            base: proposed.base,
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

    /// Tells all homes that a ballot they may have promised is used for nothing.
    pub(super) fn release(&self, ballot: Version) {
        let key = ByteSlice::new(self.key.bytes);
        let release = Operation::Release(key, to_wire(ballot));
        for &tag in self.homes.iter().filter(|&&tag| tag != self.parts.self_tag) {
            self.post.send_along(tag, &release, self.parts);
        }
        self.parts.replica.release(self.key, ballot);
    }

    pub(super) const fn ring(&self) -> u64 {
        self.ring
    }

    /// This node's own number among them, if it is one of them in the ring of now as well.
    /// Whether a majority may hold this state: unless this node, as a home, knows of another one.
    pub(super) fn may_be_held(&self, stamp: Option<Stamp>) -> bool {
        let held = || {
            let replica = &self.parts.replica;
            replica.read(self.key, |record| record.map(|record| record.stamp()))
        };
        self.own().is_none() || held() == stamp
    }

    fn own(&self) -> Option<usize> {
        let own = self.parts.self_tag;
        let home = self.homes.iter().position(|&home| home == own)?;
        (self.parts.view.borrow().version() == self.ring).then_some(home)
    }

    fn send(&self, operation: &Operation<'_>, ballot: Version, deadline: Instant, tell: &Inbox) {
        for (home, &tag) in self.homes.iter().enumerate() {
            if tag != self.parts.self_tag {
                let waiting = Waiting {
                    home,
                    ballot,
                    tell: tell.clone(),
                };
                self.post.send(tag, operation, deadline, waiting);
            }
        }
    }
}

pub(super) fn promise(record: Option<Record>, lineage: Option<&[u8]>, floor: HlcTime) -> Promise {
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

/// Who waits for the answer of a home to one question.
#[derive(Debug, Clone, Default)]
pub(super) struct Waiting {
    home: usize,
    ballot: Version,
    tell: Inbox,
}

impl Waiting {
    /// There is no answer.
    pub(super) fn fail(self) {
        let told = failed(self.home, self.ballot, None);
        self.tell.push(told);
    }

    /// Reads the next answer of a response.
    pub(super) fn read(self, response: &mut Response<'_>) -> Result<(), FrameError> {
        match self.answer(response) {
            Ok(told) => {
                self.tell.push(told);
                Ok(())
            }
            Err(error) => {
                self.fail();
                Err(error)
            }
        }
    }

    fn answer(&self, response: &mut Response<'_>) -> Result<Told, FrameError> {
        let Self { home, ballot, .. } = *self;
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
