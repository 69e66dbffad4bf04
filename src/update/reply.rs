//! What is told of an update.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::model::{Kind, Millis, Version};

/// What is told of an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Nothing, where a value could be.
    #[serde(rename = "n")]
    Nil,
    /// It is done.
    #[serde(rename = "o")]
    Ok,
    /// A number.
    #[serde(rename = "i")]
    Integer(i64),
    /// Any bytes.
    #[serde(rename = "b")]
    Bulk(Bytes),
    /// A short text.
    #[serde(rename = "s")]
    Status(String),
    /// An error: a word in capitals, then a sentence.
    #[serde(rename = "e")]
    Error(String),
    /// Several.
    #[serde(rename = "a")]
    Array(Vec<Self>),
    /// Several, each behind its name.
    #[serde(rename = "m")]
    Map(Vec<(Bytes, Bytes)>),
    /// To a look: the value, its kind and its end, if there is one; and the newest version of what is
    /// there, a value or none.
    #[serde(rename = "l")]
    Seen(Option<(Bytes, Kind, Option<Millis>)>, Option<Version>),
}

impl Reply {
    /// About how many bytes it has.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let varied = match self {
            Self::Nil | Self::Ok | Self::Integer(_) | Self::Seen(None, _) => 0,
            Self::Bulk(bytes) | Self::Seen(Some((bytes, ..)), _) => bytes.len(),
            Self::Status(text) | Self::Error(text) => text.len(),
            Self::Array(replies) => replies.iter().map(Self::bytes).sum(),
            Self::Map(pairs) => pairs.iter().map(|(f, v)| f.len() + v.len() + 8).sum(),
        };
        varied + OVERHEAD_BYTES
    }

    pub(super) fn bulk(bytes: &[u8]) -> Self {
        Self::Bulk(Bytes::copy_from_slice(bytes))
    }

    pub(super) fn integer(number: impl TryInto<i64>) -> Self {
        Self::Integer(number.try_into().unwrap_or(i64::MAX))
    }
}

const OVERHEAD_BYTES: usize = 8;
