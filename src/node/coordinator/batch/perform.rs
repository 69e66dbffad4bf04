//! What the state machines ask for, carried out.

use super::{Batch, Deferred, Expected, Op, State, count};
use crate::model::{Stamp, Version};
use crate::net::LARGE_BYTES;
use crate::protocol::{ReadAction, ReadOp, WriteAction};
use crate::wire::Refusal;

impl State {
    /// Gives a read up for now: its value does not fit, or is large and has to have its turn.
    fn defer(&mut self, number: usize, deferred: Deferred) {
        let item = &mut self.items[number];
        if let Op::Read(op) = &mut item.operation {
            op.refuse(Refusal::Busy);
            item.deferred = Some(deferred);
            self.unanswered -= 1;
        }
    }
}

impl Batch {
    /// Why a value is not to be fetched now, if so.
    fn defers(&self, state: &State, item: usize) -> Option<Deferred> {
        let item = &state.items[item];
        if !item.may_be_deferred() {
            return None;
        }
        let bytes = item.newest_bytes();
        match state.room.is_full {
            _ if !self.takes_large && bytes >= LARGE_BYTES => Some(Deferred::Large { bytes }),
            true => Some(Deferred::NoRoom),
            false => None,
        }
    }

    pub(super) fn perform_read(&self, state: &mut State, item: usize, actions: Vec<ReadAction>) {
        for action in actions {
            match action {
                ReadAction::Ask { replica } => {
                    self.ask_first(state, item, replica);
                }
                ReadAction::Fetch { replica } => match self.defers(state, item) {
                    Some(deferred) => return state.defer(item, deferred),
                    None => self.ask_held(state, item, replica, true),
                },
                ReadAction::StandIns { home } => self.replace_reader(state, item, home),
                ReadAction::Repair { replica } => self.repair(state, item, replica),
                ReadAction::Finished => self.on_finished(state, item),
            }
        }
    }

    pub(super) fn perform_write(&self, state: &mut State, item: usize, actions: Vec<WriteAction>) {
        for action in actions {
            match action {
                WriteAction::Restamp { past, .. } if self.may_be_later(state, item, past) => {}
                WriteAction::Restamp { replica, past } => self.restamp(state, item, replica, past),
                WriteAction::StandIn { home } => self.replace_writer(state, item, home),
                WriteAction::Finished => self.on_finished(state, item),
            }
        }
    }

    /// Whether what supersedes a write may have been written after that one was answered: then it
    /// is to stay. What a fast clock has stamped before is ahead of this node's wall clock. A write that
    /// was flushed after it was answered is over: a newer version would bring it back.
    fn may_be_later(&self, state: &State, item: usize, past: Version) -> bool {
        let item = &state.items[item];
        let Op::Write { op, .. } = &item.operation else {
            return false;
        };
        let is_flushed = || {
            let flushed = self.shared.replica.flush_of(&item.key);
            flushed.is_some_and(|up_to| op.version() <= up_to)
        };
        op.outcome().is_some() && (past.hlc.millis() <= self.now() || is_flushed())
    }

    /// Stamps a superseded write anew and sends it to all homes.
    pub(super) fn restamp(&self, state: &mut State, item: usize, replica: usize, past: Version) {
        let stamped = self.stamp_past(past);
        let Op::Write { op, .. } = &mut state.items[item].operation else {
            return;
        };
        match stamped {
            Ok(version) => {
                count(&self.shared.stats.superseded_writes, 1);
                op.on_restamped(version);
                self.start(state, item);
            }
            Err(refusal) => {
                let version = op.version();
                let mut actions = Vec::new();
                op.on_failed(replica, version, Some(refusal), &mut actions);
                self.perform_write(state, item, actions);
            }
        }
    }

    /// Stamps a superseded change of expiry anew and begins it again.
    pub(super) fn restamp_expiry(&self, state: &mut State, expected: Expected, by: Stamp) {
        let Expected { item, replica, .. } = expected;
        let homes = self.homes(state.items[item].partition).len();
        let stamped = self.stamp_past(by.newest());
        let Op::Expire(op) = &mut state.items[item].operation else {
            return;
        };
        if op.read.outcome().is_some() {
            return;
        }
        match stamped {
            Ok(version) if op.restamps_left > 0 => {
                count(&self.shared.stats.superseded_writes, 1);
                op.restamps_left -= 1;
                op.expiry.version = version;
                op.before = None;
                op.read = ReadOp::new(homes, op.plan);
                self.start(state, item);
            }
            stamped => {
                let mut actions = Vec::new();
                op.read.on_failed(replica, stamped.err(), &mut actions);
                self.perform_read(state, item, actions);
            }
        }
    }

    pub(super) fn stamp_past(&self, past: Version) -> Result<Version, Refusal> {
        let now = self.now();
        let clock = &self.shared.clock;
        clock
            .observe(past.hlc, now)
            .map_err(|_drift| Refusal::ClockDrift)?;
        Ok(Version {
            hlc: clock.tick(now),
            node: self.shared.replica.writer(self.shared.writer),
        })
    }
}
