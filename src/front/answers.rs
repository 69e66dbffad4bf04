//! What a replica has done, in the words of the wire.

use crate::node::handoff::HintReply;
use crate::node::replica::{Replica, Written};
use crate::store::ExpiryChange;
use crate::wire::{Answer, Refusal, ResponseFrame, to_wire};

pub(super) const fn to_answer(written: Written) -> Answer<'static> {
    match written {
        Written::Applied(prior) => Answer::Applied(prior),
        Written::Superseded(by) => Answer::Superseded(by),
        Written::Promised(ballot) => Answer::Promised(to_wire(ballot)),
    }
}

pub(super) fn answer_of(reply: HintReply) -> Answer<'static> {
    match reply {
        HintReply::Written(written) => to_answer(written),
        HintReply::Expiry(ExpiryChange::Done {
            now_held,
            expired_at_before,
        }) => Answer::Expiry(now_held, expired_at_before),
        HintReply::Expiry(ExpiryChange::Superseded { by }) => Answer::ExpirySuperseded(by),
        HintReply::Refused(refusal) => Answer::Refused(refusal),
    }
}

/// Ends a response, with the flushes that its answers were judged by, all of them: one that comes
/// while they are written is told as well.
pub(super) fn finish(frame: ResponseFrame, replica: &Replica, is_sure: bool, out: &mut Vec<u8>) {
    let flushes = replica.encoded_flushes();
    frame.finish(is_sure, flushes.as_deref(), out);
}

pub(super) const TOO_BIG: Answer<'static> = Answer::Refused(Refusal::TooBig);
