//! One replica's answer to one operation.

use crate::model::{RecordRef, Summary};
use crate::net::Response;
use crate::node::replica::Written;
use crate::protocol::Told;
use crate::store::ExpiryChange;
use crate::wire::{Answer, FrameError, Refusal, from_wire};

/// An answer, freed from the frame it came in.
pub(super) enum Reply {
    Told(Told),
    Written(Written),
    Expiry { change: ExpiryChange, is_sure: bool },
    Failed(Option<Refusal>),
}

impl Reply {
    /// Reads the next answer of a response.
    pub(super) fn read(response: &mut Response<'_>) -> Result<Self, FrameError> {
        let is_sure = response.is_sure;
        Ok(match response.answers.read()? {
            Answer::Record(record) => {
                let record = record.map(RecordRef::from);
                let whole = record.map(|record| response.keep(record));
                Self::Told(Told {
                    held: record.map(Summary::of),
                    record: whole,
                    is_sure,
                })
            }
            Answer::Summary(held) => Self::Told(Told {
                held,
                record: None,
                is_sure,
            }),
            Answer::Applied(prior) => Self::Written(Written::Applied(prior)),
            Answer::Superseded(by) => Self::Written(Written::Superseded(by)),
            Answer::Promised(ballot) => Self::Written(Written::Promised(from_wire(ballot))),
            Answer::Expiry(now_held, expired_at_before) => Self::Expiry {
                change: ExpiryChange::Done {
                    now_held,
                    expired_at_before,
                },
                is_sure,
            },
            Answer::ExpirySuperseded(by) => Self::Expiry {
                change: ExpiryChange::Superseded { by },
                is_sure,
            },
            Answer::Refused(refusal) => Self::Failed(Some(refusal)),
            Answer::Members(_)
            | Answer::Promise(..)
            | Answer::Accepted(_)
            | Answer::Outbid(_)
            | Answer::Updated(_)
            | Answer::Held(_)
            | Answer::Flushed
            | Answer::Released
            | Answer::Counts(_)
            | Answer::Heard(_)
            | Answer::Clock(_)
            | Answer::Keys(..)
            | Answer::Page(..)
            | Answer::Symbols(..)
            | Answer::States(..) => Self::Failed(None),
        })
    }
}
