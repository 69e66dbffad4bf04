//! One replica's answer to one operation.

use crate::model::{Body, Record, RecordRef, Summary};
use crate::net::Response;
use crate::node::replica::Written;
use crate::protocol::Told;
use crate::store::ExpiryChange;
use crate::wire::{Answer, FrameError, Refusal};

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
                let whole = record.map(|record| Record {
                    version: record.version,
                    expiry: record.expiry,
                    covers: record.covers,
                    // Kept by a slice of the frame, not by a copy.
                    body: record.value.map_or(Body::Tombstone, |value| {
                        Body::Value(response.frame.slice_ref(value))
                    }),
                });
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
            | Answer::Clock(_)
            | Answer::Keys(..)
            | Answer::Page(..)
            | Answer::Symbols(..)
            | Answer::States(..) => Self::Failed(None),
        })
    }
}
