//! A hint as a journal keeps it.

use serde::{Deserialize, Serialize};

use crate::model::{Millis, NodeTag, RecordRef};
use crate::protocol::{Hint, Missed, MissedExpiry};
use crate::wire::{FrameReader, WireExpiry, WireRecord, WireVersion, encode, from_wire, to_wire};

/// Under which key: the home first, so that hints of one home lie together.
pub(super) fn journal_key(home: NodeTag, key: &[u8]) -> Vec<u8> {
    [&home.0.to_be_bytes(), key].concat()
}

/// As which value.
pub(super) fn journal_value(hint: &Hint) -> Vec<u8> {
    let mut value = Vec::new();
    let kept = match &hint.missed {
        Missed::Write(record) => KeptHint::Write(WireRecord::from(RecordRef::from(record))),
        Missed::Expiry(MissedExpiry { expiry, of: None }) => {
            KeptHint::Expiry(WireExpiry::from(*expiry))
        }
        Missed::Expiry(missed) => KeptHint::ExpiryOf(missed.expiry.into(), missed.of.map(to_wire)),
        Missed::ExpiryThenWrite(missed, record) => KeptHint::ExpiryThenWrite(
            missed.expiry.into(),
            missed.of.map(to_wire),
            WireRecord::from(RecordRef::from(record)),
        ),
    };
    encode(&(FORMAT, hint.since, kept), &mut value);
    value
}

/// Reads an entry; `None`: it is none of this format.
pub(super) fn read<'a>(key: &'a [u8], value: &[u8]) -> Option<(NodeTag, &'a [u8], Hint)> {
    let (home, key) = key.split_first_chunk()?;
    let home = NodeTag(u64::from_be_bytes(*home));
    let (format, since, kept): (u8, Millis, KeptHint<'_>) = FrameReader::new(value).read().ok()?;
    if format != FORMAT || key.is_empty() {
        return None;
    }
    let missed = match kept {
        KeptHint::Write(record) => Missed::Write(RecordRef::from(record).to_record()),
        KeptHint::Expiry(expiry) => Missed::Expiry(missed_expiry(expiry, None)),
        KeptHint::ExpiryOf(expiry, of) => Missed::Expiry(missed_expiry(expiry, of)),
        KeptHint::ExpiryThenWrite(expiry, of, record) => Missed::ExpiryThenWrite(
            Box::new(missed_expiry(expiry, of)),
            RecordRef::from(record).to_record(),
        ),
    };
    Some((home, key, Hint { missed, since }))
}

/// For fuzz targets: whether bytes are an entry. One that is comes back from what is written of it.
#[doc(hidden)]
#[must_use]
pub fn is_hint_entry(key: &[u8], value: &[u8]) -> bool {
    let Some((home, of, hint)) = read(key, value) else {
        return false;
    };
    let written = journal_value(&hint);
    assert_eq!(
        read(&journal_key(home, of), &written),
        Some((home, of, hint))
    );
    true
}

#[derive(Debug, Serialize, Deserialize)]
enum KeptHint<'a> {
    #[serde(rename = "w", borrow)]
    Write(WireRecord<'a>),
    /// As earlier versions wrote it too: of an unknown value.
    #[serde(rename = "e")]
    Expiry(WireExpiry),
    #[serde(rename = "o")]
    ExpiryOf(WireExpiry, Option<WireVersion>),
    #[serde(rename = "b")]
    ExpiryThenWrite(WireExpiry, Option<WireVersion>, WireRecord<'a>),
}

fn missed_expiry(expiry: WireExpiry, of: Option<WireVersion>) -> MissedExpiry {
    MissedExpiry {
        expiry: expiry.into(),
        of: of.map(from_wire),
    }
}

const FORMAT: u8 = 1;

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::{Expiry, HlcTime, Record, Version};

    #[test]
    fn what_is_kept_comes_back() {
        let version = |hlc| Version {
            hlc: HlcTime(hlc),
            node: NodeTag(3),
        };
        let write = Record {
            expiry: Expiry {
                version: version(8),
                at: Some(Millis(99)),
            },
            ..Record::value(version(7), None, Bytes::from_static(b"v"))
        };
        let expiry = write.expiry;
        let of = Some(version(7));
        let of_value = MissedExpiry { expiry, of };
        for missed in [
            Missed::Write(write),
            Missed::Write(Record::tombstone(version(9))),
            Missed::Expiry(MissedExpiry { expiry, of: None }),
            Missed::Expiry(of_value),
            Missed::ExpiryThenWrite(Box::new(of_value), Record::tombstone(version(6))),
        ] {
            let hint = Hint {
                missed,
                since: Millis(5),
            };
            let key = journal_key(NodeTag(4), b"k");
            let value = journal_value(&hint);
            assert_eq!(read(&key, &value), Some((NodeTag(4), &b"k"[..], hint)));
            assert_eq!(read(&key, &value[..value.len() - 1]), None);
            assert_eq!(read(&key[..8], &value), None);
        }
    }

    #[test]
    fn what_earlier_versions_kept_is_read() {
        #[derive(Serialize)]
        enum Earlier {
            #[serde(rename = "e")]
            Expiry(WireExpiry),
        }
        let expiry = Expiry {
            version: Version {
                hlc: HlcTime(8),
                node: NodeTag(3),
            },
            at: Some(Millis(99)),
        };
        let mut value = Vec::new();
        let earlier = Earlier::Expiry(expiry.into());
        encode(&(FORMAT, Millis(5), earlier), &mut value);
        let missed = Missed::Expiry(MissedExpiry { expiry, of: None });
        let since = Millis(5);
        let key = journal_key(NodeTag(4), b"k");
        let hint = Hint { missed, since };
        assert_eq!(read(&key, &value), Some((NodeTag(4), &b"k"[..], hint)));
    }
}
