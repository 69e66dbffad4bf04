//! Answers of replicas, handed to the state machines they are for.

use super::{Batch, Expected, Op, Reply, State, What, has_later_write};
use crate::model::{Prior, RecordRef, Stamp, Summary, Version};
use crate::node::replica::Written;
use crate::protocol::Told;
use crate::store::ExpiryChange;
use crate::wire::Refusal;

impl Batch {
    /// One answer of one replica to one operation.
    pub(super) fn on_reply(&self, state: &mut State, expected: Expected, reply: Reply) {
        // This node will know of the other homes in a moment.
        let is_other_ring = matches!(reply, Reply::Failed(Some(Refusal::OtherRing)));
        state.items[expected.item].is_to_retry |= is_other_ring;
        match &state.items[expected.item].operation {
            Op::Read(_) => self.on_read_reply(state, expected, reply),
            Op::Write { .. } => self.on_write_reply(state, expected, reply),
            Op::Expire(_) => self.on_expire_reply(state, expected, reply),
        }
    }

    pub(super) fn on_read_reply(&self, state: &mut State, expected: Expected, reply: Reply) {
        let Expected {
            item,
            replica,
            what,
        } = expected;
        let is_read = matches!(state.items[item].operation, Op::Read(_));
        if let Reply::Told(Told {
            record: Some(record),
            ..
        }) = &reply
        {
            state.room.keep(RecordRef::from(record).value_bytes());
        }
        let flushed = self.shared.replica.flush_of(&state.items[item].key);
        let Some(op) = state.items[item].read_mut() else {
            return;
        };
        if let Some(up_to) = flushed {
            op.on_flush(up_to);
        }
        let mut is_in_the_way = false;
        let mut actions = Vec::new();
        match (what, without_flushed(reply, flushed)) {
            (What::Held, Reply::Told(told)) => match self.observe(told.held) {
                Ok(()) => op.on_told(replica, told, &mut actions),
                // What no other replica would take is no answer either.
                Err(refusal) => op.on_failed(replica, Some(refusal), &mut actions),
            },
            // It holds something newer. That may have been made without what was read, of which nobody is to
            // know then; a strict read has to find out.
            (What::Repaired, Reply::Written(Written::Superseded(_))) if op.is_strict() => {
                op.on_failed(replica, None, &mut actions);
                is_in_the_way = true;
            }
            // An update is being made there, perhaps of an older state than what was read: unless a quorum
            // takes that, it may be gone in a moment, and must not be seen. It is read again as an update.
            // The same where something newer is held already: an update may have made it of an older state.
            (What::Repaired, Reply::Written(Written::Promised(_) | Written::Superseded(_)))
                if is_read =>
            {
                op.on_promised(replica, &mut actions);
                is_in_the_way = true;
            }
            (What::Repaired, Reply::Written(_)) => op.on_repaired(replica, &mut actions),
            (_, Reply::Failed(refusal)) => op.on_failed(replica, refusal, &mut actions),
            // An answer to another question than the one asked: as good as none.
            _ => op.on_failed(replica, None, &mut actions),
        }
        state.items[item].is_in_the_way |= is_in_the_way;
        self.perform_read(state, item, actions);
    }

    pub(super) fn on_expire_reply(&self, state: &mut State, expected: Expected, reply: Reply) {
        let Expected {
            item,
            replica,
            what,
        } = expected;
        let flushed = self.shared.replica.flush_of(&state.items[item].key);
        let Op::Expire(op) = &mut state.items[item].operation else {
            return;
        };
        if let Some(up_to) = flushed {
            op.on_flush(up_to);
        }
        let reply = without_flushed(reply, flushed);
        let What::Expiry(version) = what else {
            return self.on_read_reply(state, expected, reply);
        };
        if op.expiry.version != version {
            // To a question that has been asked anew since.
            return;
        }
        match reply {
            Reply::Expiry {
                change:
                    ExpiryChange::Done {
                        now_held,
                        expired_at_before,
                    },
                is_sure,
            } => {
                op.note_before(now_held, expired_at_before);
                let mut actions = Vec::new();
                let told = Told {
                    held: now_held,
                    record: None,
                    is_sure,
                };
                op.read.on_told(replica, told, &mut actions);
                self.perform_read(state, item, actions);
            }
            Reply::Expiry {
                change: ExpiryChange::Superseded { by },
                ..
            } => self.restamp_expiry(state, expected, by),
            other => self.on_read_reply(state, expected, other),
        }
    }

    pub(super) fn on_write_reply(&self, state: &mut State, expected: Expected, reply: Reply) {
        let Expected {
            item,
            replica,
            what,
        } = expected;
        let is_superseded = matches!(&reply, Reply::Written(Written::Superseded(_)));
        let is_overtaken = is_superseded && has_later_write(&state.items, item);
        let flushed = self.shared.replica.flush_of(&state.items[item].key);
        let Op::Write { op, .. } = &mut state.items[item].operation else {
            return;
        };
        let What::Written(version) = what else { return };
        if let Some(up_to) = flushed {
            op.on_flush(up_to);
        }
        if let Some(sample) = &mut state.sample
            && sample.item == item
            && matches!(reply, Reply::Written(_))
        {
            sample.on_arrival(replica, self.shared.env.clock.monotonic());
        }
        let mut actions = Vec::new();
        match without_flushed(reply, flushed) {
            Reply::Written(Written::Applied(prior)) => {
                op.on_applied(replica, version, prior, &mut actions);
            }
            // What nobody else would take does not stand in for this write either.
            Reply::Written(Written::Superseded(by)) if !self.is_sane(by) => {
                op.on_failed(replica, version, Some(Refusal::ClockDrift), &mut actions);
            }
            Reply::Written(Written::Superseded(by)) if is_overtaken => {
                op.on_overtaken(replica, version, by, &mut actions);
            }
            Reply::Written(Written::Superseded(by)) => {
                op.on_superseded(replica, version, by, &mut actions);
            }
            Reply::Written(Written::Promised(ballot)) if self.is_sane(Prior::of(ballot)) => {
                op.on_promised(replica, version, ballot, &mut actions);
            }
            Reply::Failed(refusal) => op.on_failed(replica, version, refusal, &mut actions),
            // An answer to another question than the one asked: as good as none.
            _ => op.on_failed(replica, version, None, &mut actions),
        }
        self.perform_write(state, item, actions);
    }
}

/// What a replica answered, without what was flushed: one that missed the flush still shows that.
fn without_flushed(reply: Reply, flushed: Option<Version>) -> Reply {
    let Some(up_to) = flushed else { return reply };
    let is_flushed = |stamp: Stamp| stamp.value <= up_to;
    let held = |held: Option<Summary>| held.filter(|summary| !is_flushed(summary.stamp));
    match reply {
        Reply::Told(told) => Reply::Told(Told {
            held: held(told.held),
            record: told.record.filter(|record| !is_flushed(record.stamp())),
            is_sure: told.is_sure,
        }),
        Reply::Written(Written::Applied(prior)) if prior.stamp.is_some_and(is_flushed) => {
            Reply::Written(Written::Applied(Prior::default()))
        }
        Reply::Expiry {
            change:
                ExpiryChange::Done {
                    now_held,
                    expired_at_before,
                },
            is_sure,
        } => Reply::Expiry {
            change: ExpiryChange::Done {
                now_held: held(now_held),
                expired_at_before: expired_at_before.filter(|_| held(now_held).is_some()),
            },
            is_sure,
        },
        Reply::Written(_) | Reply::Expiry { .. } | Reply::Failed(_) => reply,
    }
}
