//! One record in one allocation.
//!
//! A map of keys to records would spend two allocations and about 80 bytes on each. Here a record
//! is one boxed slice: a header, the key, the value. The header leaves out what is not there:
//!
//! ```text
//! flags 1 | value version 16 | expires at 8, if any | expiry version 16, if it differs
//!         | key length - 1: 2 | key | value
//! ```

use crate::model::{Expiry, HlcTime, KEY_BYTES_MAX, Millis, NodeTag, RecordRef, Stamp, Version};

/// A record as it lies in memory.
#[derive(Debug)]
pub(super) struct Packed(Box<[u8]>);

impl Packed {
    /// Packs a record. The key was checked at the door: 1 to 64 KiB.
    pub(super) fn new(key: &[u8], record: RecordRef<'_>) -> Self {
        let layout = Layout::of(key, record);
        let mut bytes = Vec::with_capacity(layout.total);
        layout.write(key, record, &mut bytes);
        debug_assert_eq!(bytes.len(), layout.total);
        Self(bytes.into_boxed_slice())
    }

    /// Replaces the record, in place when the new one is as long as the old.
    pub(super) fn replace(&mut self, record: RecordRef<'_>) {
        let key_at = self.key_at();
        let key_end = key_at + self.key_len();
        let layout = Layout::of(&self.0[key_at..key_end], record);
        if layout.total == self.0.len() && layout.key_at == key_at {
            layout.write_header(record, &mut self.0[..key_at - KEY_LENGTH_BYTES]);
            self.0[key_end..].copy_from_slice(record.value.unwrap_or_default());
            return;
        }
        *self = Self::new(&self.0[key_at..key_end], record);
    }

    /// Replaces when the record ends, and nothing else.
    pub(super) fn replace_expiry(&mut self, expiry: Expiry) {
        let record = self.record();
        *self = Self::new(self.key(), RecordRef { expiry, ..record });
    }

    /// The key.
    #[inline]
    pub(super) fn key(&self) -> &[u8] {
        let at = self.key_at();
        &self.0[at..at + self.key_len()]
    }

    /// The record, borrowed.
    #[inline]
    pub(super) fn record(&self) -> RecordRef<'_> {
        let version = self.version();
        RecordRef {
            version,
            expiry: Expiry {
                version: self.expiry_version(version),
                at: self.expires_at(),
            },
            value: self
                .is_value()
                .then(|| &self.0[self.key_at() + self.key_len()..]),
        }
    }

    /// What orders this record.
    #[inline]
    pub(super) fn stamp(&self) -> Stamp {
        let value = self.version();
        Stamp {
            value,
            expiry: self.expiry_version(value),
        }
    }

    /// When it ends.
    pub(super) fn expires_at(&self) -> Option<Millis> {
        self.has(HAS_EXPIRY)
            .then(|| Millis(self.u64_at(VERSION_END)))
    }

    /// Whether its time is over at `now`.
    pub(super) fn is_expired(&self, now: Millis) -> bool {
        self.expires_at().is_some_and(|at| at <= now)
    }

    /// Whether it holds a value, as opposed to a tombstone.
    pub(super) fn is_value(&self) -> bool {
        !self.has(IS_TOMBSTONE)
    }

    /// What [`Packed::bytes`] of this record is.
    pub(super) fn bytes_of(key: &[u8], record: RecordRef<'_>) -> u64 {
        Layout::of(key, record).total as u64
    }

    /// Bytes of memory it takes, without what the allocator and the table add.
    pub(super) fn bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn has(&self, flag: u8) -> bool {
        self.0[0] & flag != 0
    }

    fn version(&self) -> Version {
        self.version_at(1)
    }

    fn expiry_version(&self, of_value: Version) -> Version {
        let at = VERSION_END + if self.has(HAS_EXPIRY) { 8 } else { 0 };
        if self.has(HAS_EXPIRY_VERSION) {
            self.version_at(at)
        } else {
            of_value
        }
    }

    #[inline]
    fn key_at(&self) -> usize {
        header_bytes(self.0[0]) + KEY_LENGTH_BYTES
    }

    #[inline]
    fn key_len(&self) -> usize {
        let at = header_bytes(self.0[0]);
        usize::from(u16::from_le_bytes([self.0[at], self.0[at + 1]])) + 1
    }

    fn version_at(&self, at: usize) -> Version {
        Version {
            hlc: HlcTime(self.u64_at(at)),
            node: NodeTag(self.u64_at(at + 8)),
        }
    }

    #[inline]
    fn u64_at(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[at..at + 8]);
        u64::from_le_bytes(bytes)
    }
}

struct Layout {
    flags: u8,
    key_at: usize,
    total: usize,
}

impl Layout {
    fn of(key: &[u8], record: RecordRef<'_>) -> Self {
        let mut flags = 0;
        if record.value.is_none() {
            flags |= IS_TOMBSTONE;
        }
        if record.expiry.at.is_some() {
            flags |= HAS_EXPIRY;
        }
        if record.expiry.version != record.version {
            flags |= HAS_EXPIRY_VERSION;
        }
        let key_at = header_bytes(flags) + KEY_LENGTH_BYTES;
        Self {
            flags,
            key_at,
            total: key_at + key.len() + record.value.map_or(0, <[u8]>::len),
        }
    }

    fn write(&self, key: &[u8], record: RecordRef<'_>, bytes: &mut Vec<u8>) {
        let mut header = [0; HEADER_BYTES_MAX];
        let header = &mut header[..header_bytes(self.flags)];
        self.write_header(record, header);
        bytes.extend_from_slice(header);
        debug_assert!(
            !key.is_empty() && key.len() <= KEY_BYTES_MAX,
            "checked at the door"
        );
        let length_less_one = u16::try_from(key.len().saturating_sub(1)).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&length_less_one.to_le_bytes());
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(record.value.unwrap_or_default());
    }

    fn write_header(&self, record: RecordRef<'_>, header: &mut [u8]) {
        header[0] = self.flags;
        let mut at = 1;
        let mut put = |number: u64| {
            header[at..at + 8].copy_from_slice(&number.to_le_bytes());
            at += 8;
        };
        put(record.version.hlc.0);
        put(record.version.node.0);
        if let Some(expires_at) = record.expiry.at {
            put(expires_at.0);
        }
        if self.flags & HAS_EXPIRY_VERSION != 0 {
            put(record.expiry.version.hlc.0);
            put(record.expiry.version.node.0);
        }
    }
}

const fn header_bytes(flags: u8) -> usize {
    let expiry = if flags & HAS_EXPIRY != 0 { 8 } else { 0 };
    let expiry_version = if flags & HAS_EXPIRY_VERSION != 0 {
        VERSION_BYTES
    } else {
        0
    };
    VERSION_END + expiry + expiry_version
}

const IS_TOMBSTONE: u8 = 1;
const HAS_EXPIRY: u8 = 2;
const HAS_EXPIRY_VERSION: u8 = 4;
const VERSION_BYTES: usize = 16;
const VERSION_END: usize = 1 + VERSION_BYTES;
const HEADER_BYTES_MAX: usize = VERSION_END + 8 + VERSION_BYTES;
const KEY_LENGTH_BYTES: usize = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Body, Record};

    fn record() -> impl Strategy<Value = Record> {
        let version = || (any::<u64>(), any::<u64>());
        let body = prop::option::of(prop::collection::vec(any::<u8>(), 0..40));
        (
            version(),
            prop::option::of(version()),
            prop::option::of(any::<u64>()),
            body,
        )
            .prop_map(|((hlc, node), expiry, at, body)| {
                let version = Version {
                    hlc: HlcTime(hlc),
                    node: NodeTag(node),
                };
                let expiry_version = expiry.map_or(version, |(hlc, node)| Version {
                    hlc: HlcTime(hlc),
                    node: NodeTag(node),
                });
                let body = body.map_or(Body::Tombstone, |value| Body::Value(value.into()));
                let expiry = Expiry {
                    version: expiry_version,
                    at: at.map(Millis),
                };
                Record {
                    version,
                    expiry,
                    body,
                }
            })
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out(key in prop::collection::vec(any::<u8>(), 1..300), a in record(), b in record()) {
            let mut packed = Packed::new(&key, (&a).into());
            prop_assert_eq!(packed.key(), &key[..]);
            prop_assert_eq!(packed.stamp(), a.stamp());
            prop_assert_eq!(packed.record().to_record(), a);
            packed.replace((&b).into());
            prop_assert_eq!(packed.key(), &key[..]);
            prop_assert_eq!(packed.record().to_record(), b);
        }
    }

    #[test]
    fn the_longest_key_fits() {
        let key = vec![b'k'; KEY_BYTES_MAX];
        let packed = Packed::new(&key, (&Record::tombstone(Version::default())).into());
        assert_eq!(packed.key(), key);
        assert_eq!(packed.record().value, None);
    }
}
