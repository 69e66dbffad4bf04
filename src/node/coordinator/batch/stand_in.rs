//! Who stands in for a home that cannot be counted on.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Batch, ExpireOp, Op, Parcel, Reply, State};
use crate::model::{NodeTag, PartitionId};
use crate::node::handoff::{HintReply, MissedRef, NewHint};
use crate::protocol::{MissedExpiry, ReadAction, StandIn, WriteAction};
use crate::wire::{FrameReader, Operation, from_wire};

impl Batch {
    /// Finds the next stand-in for a home that did not take a write, and sends it the write.
    pub(super) fn replace_writer(&self, state: &mut State, item: usize, home: usize) {
        let partition = state.items[item].partition;
        let is_local_only = state.items[item].is_local_only;
        let Op::Write { op, .. } = &mut state.items[item].operation else {
            return;
        };
        let used: Vec<StandIn> = op.stand_ins().map(|(_, stand_in)| stand_in).collect();
        let found = self.next_stand_in(partition, home, &used);
        let stand_in = found.map(|(place, tag)| StandIn {
            home,
            place,
            counts: !is_local_only || self.is_near(tag),
        });
        let mut actions = Vec::new();
        let number = op.on_stand_in(home, stand_in, &mut actions);
        if let Some(number) = number {
            self.ask_first(state, item, number);
        }
        self.perform_write(state, item, actions);
    }

    /// Finds those who may hold hints for a home that cannot be counted on, and asks them; where the
    /// operation leaves hints itself, the one who is to keep it.
    pub(super) fn replace_reader(&self, state: &mut State, item: usize, home: usize) {
        let partition = state.items[item].partition;
        let is_local_only = state.items[item].is_local_only;
        let is_expiry = matches!(state.items[item].operation, Op::Expire(_));
        let Some(op) = state.items[item].read_mut() else {
            return;
        };
        let before = op.replicas();
        let used: Vec<StandIn> = (0..before).filter_map(|i| op.stand_in(i)).collect();
        let mut found: Vec<(usize, NodeTag)> = Vec::new();
        found.extend(self.next_stand_in(partition, home, &used));
        if !is_expiry {
            let holders = self.owed.holders(self.homes(partition)[home]);
            let stand_ins = self.view.stand_ins(partition).into_iter().enumerate();
            found.extend(stand_ins.filter(|(place, tag)| {
                holders.contains(tag)
                    && self.is_reachable(*tag)
                    && !used.iter().any(|used| used.place == *place)
            }));
            found.sort_unstable();
            found.dedup();
            found.truncate(STAND_INS_ASKED_MAX);
        }
        let stand_ins = found.into_iter().map(|(place, tag)| StandIn {
            home,
            place,
            counts: !is_local_only || self.is_near(tag),
        });
        let mut actions = Vec::new();
        op.on_stand_ins(stand_ins, &mut actions);
        for number in before..op.replicas() {
            self.ask_first(state, item, number);
        }
        self.perform_read(state, item, actions);
    }

    /// Looks after homes that are known to be away: their stand-ins need not wait for that to show.
    pub(super) fn replace_absent(&self, state: &mut State, item: usize) {
        if self.away.is_empty() {
            return;
        }
        let partition = state.items[item].partition;
        for home in 0..self.homes(partition).len() {
            let tag = self.homes(partition)[home];
            if !self.is_reachable(tag) {
                let is_known = self.view.member(tag).is_none_or(|member| !member.reachable);
                self.on_late_home(state, item, home, is_known);
            }
        }
    }

    pub(super) fn on_late(&self, state: &mut State, item: usize) {
        for home in 0..self.homes(state.items[item].partition).len() {
            self.on_late_home(state, item, home, false);
        }
    }

    fn on_late_home(&self, state: &mut State, item: usize, home: usize, is_away: bool) {
        let (mut reads, mut writes): (Vec<ReadAction>, Vec<WriteAction>) = Default::default();
        match &mut state.items[item].operation {
            Op::Write { op, .. } => {
                if op.outcome().is_none() {
                    op.on_late(home, &mut writes);
                }
            }
            Op::Read(op) | Op::Expire(ExpireOp { read: op, .. }) => {
                if is_away {
                    op.on_away(home, &mut reads);
                } else {
                    op.on_late(home, &mut reads);
                }
            }
        }
        self.perform_read(state, item, reads);
        self.perform_write(state, item, writes);
    }

    /// The next one of the preference list that can be reached and is not in use. One in a zone
    /// that holds no other copy of the key comes before one in a zone that does.
    fn next_stand_in(
        &self,
        partition: PartitionId,
        home: usize,
        used: &[StandIn],
    ) -> Option<(usize, NodeTag)> {
        let stand_ins = self.view.stand_ins(partition);
        let zone = |tag: NodeTag| self.view.member(tag).map(|member| member.zone.as_str());
        let homes = self.homes(partition).iter().enumerate();
        let others = homes
            .filter(|(number, _)| *number != home)
            .map(|(_, tag)| *tag);
        let in_use = used
            .iter()
            .filter_map(|used| stand_ins.get(used.place).copied());
        let zones: Vec<_> = others.chain(in_use).map(zone).collect();
        let is_free = |(place, tag): &(usize, NodeTag)| {
            self.is_reachable(*tag) && !used.iter().any(|used| used.place == *place)
        };
        let mut free = stand_ins.iter().copied().enumerate().filter(is_free);
        let first = free.clone().next();
        free.find(|(_, tag)| !zones.contains(&zone(*tag))).or(first)
    }

    /// Keeps hints here: this node is the stand-in itself.
    pub(super) fn keep_here(self: &Arc<Self>, parcel: Parcel, deadline: Instant) {
        let Parcel {
            operations,
            expected,
            ..
        } = parcel;
        let encoded = operations.encoded();
        let mut reader = FrameReader::new(&encoded);
        let hints: Vec<NewHint<'_>> = expected
            .iter()
            .filter_map(|_| match reader.read().ok()? {
                Operation::Hint(home, key, record) => Some(NewHint {
                    home,
                    key,
                    missed: MissedRef::Write(record.into()),
                }),
                Operation::HintExpiry(home, key, expiry, of) => Some(NewHint {
                    home,
                    key,
                    missed: MissedRef::Expiry(MissedExpiry {
                        expiry: expiry.into(),
                        of: of.map(from_wire),
                    }),
                }),
                // It was packed here, of these two kinds only.
                _ => None,
            })
            .collect();
        let kept = self.shared.handoff.keep(&hints);
        let batch = Arc::clone(self);
        self.shared.env.tasks.spawn(async move {
            let replies = kept.await;
            batch.with_state(deadline, |batch, state| {
                for (expected, reply) in expected.into_iter().zip(replies) {
                    batch.on_reply(state, expected, reply_of(reply));
                }
            });
        });
    }

    /// Who answers as this replica of an item.
    pub(super) fn replica(&self, state: &State, item: usize, number: usize) -> NodeTag {
        let item = &state.items[item];
        let homes = self.homes(item.partition);
        match homes.get(number) {
            Some(&home) => home,
            None => {
                let place = item.stand_in(number).map_or(0, |stand_in| stand_in.place);
                let stand_ins = self.view.stand_ins(item.partition);
                // The ring of a batch never changes: the place was taken from the same list.
                stand_ins.get(place).copied().unwrap_or_default()
            }
        }
    }

    /// Whom an item's stand-in stands in for.
    pub(super) fn stood_in_for(
        &self,
        state: &State,
        item: usize,
        number: usize,
    ) -> Option<NodeTag> {
        let item = &state.items[item];
        let home = item.stand_in(number)?.home;
        self.homes(item.partition).get(home).copied()
    }

    fn is_reachable(&self, tag: NodeTag) -> bool {
        self.is_self(tag) || !self.away.contains(&tag)
    }

    fn is_near(&self, tag: NodeTag) -> bool {
        let zone = |tag| self.view.member(tag).map(|member| &member.zone);
        zone(tag) == zone(self.shared.self_tag)
    }
}

fn reply_of(reply: HintReply) -> Reply {
    match reply {
        HintReply::Written(written) => Reply::Written(written),
        HintReply::Expiry(change) => Reply::Expiry {
            change,
            is_sure: false,
        },
        HintReply::Refused(refusal) => Reply::Failed(Some(refusal)),
    }
}

/// Those that gossip names are few; a home's hints are with one or two.
const STAND_INS_ASKED_MAX: usize = 4;
