//! One record as bytes.
//!
//! A map of keys to records would spend two allocations and about 80 bytes on each. Here a record
//! is a run of bytes, a header, the key, the value, and the header leaves out what is not there:
//!
//! ```text
//! flags 1 | key length - 1: 1, or 2 if long | value length 2, if short | checksum 4
//!         | value version 16 | expires at 8, if any | expiry version 16, if it differs | key | value
//! ```
//!
//! The checksum is how a record that a fault of the memory has altered is found (Bairavasundaram et
//! al., *An Analysis of Data Corruption in the Storage Stack*, FAST 2008, for why one looks). Its first
//! byte is over what stands before it, the flags and the lengths: cheap enough to be looked at each
//! time, because a wrong length leads into the neighbours. The other three are over what stands behind.
//!
//! The length of a value that is not short is that of the run: such a record lies alone.

use xxhash_rust::xxh3::xxh3_64;

use crate::model::{
    Expiry, HlcTime, KEY_BYTES_MAX, Kind, Millis, NodeTag, RecordRef, Stamp, Version,
};

/// A record in place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packed<'a> {
    bytes: &'a [u8],
    head: Head,
}

impl<'a> Packed<'a> {
    /// The record at the beginning of `bytes`, which [`Layout::write`] wrote. One whose flags or
    /// lengths are damaged is a record of no key that is not intact.
    #[inline(always)]
    pub(super) fn at(bytes: &'a [u8]) -> Self {
        Self::read(bytes).unwrap_or(DAMAGED)
    }

    /// The same; `None`: its flags or lengths are damaged, so that nobody knows where it ends.
    #[inline(always)]
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let head = Head::of(bytes)?;
        Some(Self {
            bytes: bytes.get(..head.end)?,
            head,
        })
    }

    /// The key.
    #[inline]
    pub(super) fn key(self) -> &'a [u8] {
        &self.bytes[self.head.key_at..self.head.value_at]
    }

    /// The record, borrowed.
    #[inline]
    pub(super) fn record(self) -> RecordRef<'a> {
        let Stamp { value, expiry } = self.stamp();
        RecordRef {
            version: value,
            expiry: Expiry {
                version: expiry,
                at: self.expires_at(),
            },
            value: self.is_value().then(|| &self.bytes[self.head.value_at..]),
            kind: if self.has(IS_HASH) {
                Kind::Hash
            } else {
                Kind::String
            },
            covers: self.has(COVERS),
        }
    }

    /// What orders this record.
    #[inline]
    pub(super) fn stamp(self) -> Stamp {
        let at = self.head.version_at;
        let value = self.version_at(at);
        let expiry = if self.has(HAS_EXPIRY_VERSION) {
            let expires_at = if self.has(HAS_EXPIRY) { 8 } else { 0 };
            self.version_at(at + VERSION_BYTES + expires_at)
        } else {
            value
        };
        Stamp { value, expiry }
    }

    /// When it ends.
    pub(super) fn expires_at(self) -> Option<Millis> {
        self.has(HAS_EXPIRY)
            .then(|| Millis(self.u64_at(self.head.version_at + VERSION_BYTES)))
    }

    /// Whether its time is over at `now`.
    pub(super) fn is_expired(self, now: Millis) -> bool {
        self.expires_at().is_some_and(|at| at <= now)
    }

    /// Whether it holds a value, as opposed to a tombstone.
    pub(super) fn is_value(self) -> bool {
        !self.has(IS_TOMBSTONE)
    }

    /// Bytes of memory it takes, without what the table adds.
    pub(super) const fn bytes(self) -> u64 {
        self.bytes.len() as u64
    }

    /// The same in bytes to skip.
    pub(super) const fn len(self) -> usize {
        self.bytes.len()
    }

    /// Whether [`kill`] was called on it.
    pub(super) fn is_dead(self) -> bool {
        self.has(IS_DEAD)
    }

    /// Whether it is a value without an end, with no other version than its own.
    #[inline]
    pub(super) fn is_plain(self) -> bool {
        !self.has(IS_TOMBSTONE | HAS_EXPIRY | HAS_EXPIRY_VERSION)
    }

    /// Whether its flags or lengths are damaged: nothing that it says is to be believed.
    pub(super) const fn is_unreadable(self) -> bool {
        self.head.key_at == self.head.value_at
    }

    /// All of it.
    pub(super) const fn as_bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// Whether it is what was written. The check of its head was looked at when it was read.
    pub(super) fn is_intact(self) -> bool {
        let (checks, body) = self.bytes[self.head.check_at()..].split_at(CHECKSUM_BYTES);
        checks[1..] == body_check(body)
    }

    fn has(self, flag: u8) -> bool {
        self.bytes[0] & flag != 0
    }

    fn version_at(self, at: usize) -> Version {
        Version {
            hlc: HlcTime(self.u64_at(at)),
            node: NodeTag(self.u64_at(at + 8)),
        }
    }

    #[inline]
    fn u64_at(self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.bytes[at..at + 8]);
        u64::from_le_bytes(bytes)
    }
}

/// A record packed before it is taken: then taking it copies nothing, and the lock of its partition is
/// held no longer than for a small one.
#[derive(Debug)]
pub struct ReadyRecord(Vec<u8>);

impl ReadyRecord {
    /// Packs a record: copies it and computes its checksum.
    #[must_use]
    pub fn new(key: &[u8], record: RecordRef<'_>) -> Self {
        let layout = Layout::of(key, record);
        let mut bytes = Vec::with_capacity(layout.total());
        layout.write(key, record, &mut bytes);
        Self(bytes)
    }

    /// The run of bytes; what it covers is known only when it is taken.
    pub(super) fn into_run(self, covers: bool) -> Box<[u8]> {
        let mut bytes = self.0;
        if covers {
            set_flag(&mut bytes, COVERS);
        }
        bytes.into_boxed_slice()
    }
}

/// Marks the record at the beginning of `bytes` as one that nothing points to any more.
pub(super) fn kill(bytes: &mut [u8]) {
    set_flag(bytes, IS_DEAD);
}

/// Sets a flag of a record, and its check anew.
fn set_flag(bytes: &mut [u8], flag: u8) {
    let head = Head::of(bytes);
    if let Some(flags) = bytes.first_mut() {
        *flags |= flag;
    }
    if let Some(head) = head {
        let (checked, check) = bytes.split_at_mut(head.check_at());
        check[0] = head_check(checked);
    }
}

/// Where the parts of a record are.
#[derive(Debug, Clone, Copy)]
struct Head {
    version_at: usize,
    key_at: usize,
    value_at: usize,
    end: usize,
}

impl Head {
    /// `None`: no record begins like this.
    #[inline(always)]
    fn of(bytes: &[u8]) -> Option<Self> {
        // What is looked at below is within this.
        if bytes.len() < RECORD_BYTES_MIN {
            return None;
        }
        let flags = bytes[0];
        let u16_at = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let (key_len, mut at) = if flags & HAS_LONG_KEY == 0 {
            (usize::from(bytes[1]) + 1, 2)
        } else {
            (u16_at(1) + 1, 3)
        };
        let mut value_len = None;
        if flags & HAS_SHORT_VALUE != 0 {
            value_len = Some(u16_at(at));
            at += VALUE_LENGTH_BYTES;
        } else if flags & IS_TOMBSTONE != 0 {
            value_len = Some(0);
        }
        let check_at = at;
        let version_at = check_at + CHECKSUM_BYTES;
        let key_at = version_at + stamp_bytes(flags);
        let value_at = key_at + key_len;
        // A value that is not short ends where the run does.
        let end = value_len.map_or(bytes.len(), |len| value_at + len);
        let is_whole = value_at <= end
            && end <= bytes.len()
            && head_check(&bytes[..check_at]) == bytes[check_at];
        is_whole.then_some(Self {
            version_at,
            key_at,
            value_at,
            end,
        })
    }

    const fn check_at(self) -> usize {
        self.version_at - CHECKSUM_BYTES
    }
}

/// How a record is laid out, before it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    flags: u8,
    total: usize,
}

impl Layout {
    /// The key was checked at the door: 1 to 64 KiB.
    pub(super) fn of(key: &[u8], record: RecordRef<'_>) -> Self {
        debug_assert!(
            !key.is_empty() && key.len() <= KEY_BYTES_MAX,
            "checked at the door"
        );
        let mut flags = 0;
        match record.value {
            None => flags |= IS_TOMBSTONE,
            Some(value) if value.len() <= SHORT_VALUE_BYTES_MAX => flags |= HAS_SHORT_VALUE,
            Some(_) => {}
        }
        if record.expiry.at.is_some() {
            flags |= HAS_EXPIRY;
        }
        if record.expiry.version != record.version {
            flags |= HAS_EXPIRY_VERSION;
        }
        if record.covers {
            flags |= COVERS;
        }
        if record.kind == Kind::Hash {
            flags |= IS_HASH;
        }
        let mut lengths = 1;
        if key.len() > SHORT_KEY_BYTES_MAX {
            flags |= HAS_LONG_KEY;
            lengths += 1;
        }
        if flags & HAS_SHORT_VALUE != 0 {
            lengths += VALUE_LENGTH_BYTES;
        }
        let value_len = record.value.map_or(0, <[u8]>::len);
        Self {
            flags,
            total: 1 + lengths + CHECKSUM_BYTES + stamp_bytes(flags) + key.len() + value_len,
        }
    }

    /// Bytes it takes.
    pub(super) const fn total(self) -> usize {
        self.total
    }

    /// Whether its length is in it, so that others can follow it in one run of bytes.
    pub(super) const fn tells_its_length(self) -> bool {
        self.flags & (HAS_SHORT_VALUE | IS_TOMBSTONE) != 0
    }

    /// Appends the record.
    pub(super) fn write(self, key: &[u8], record: RecordRef<'_>, out: &mut Vec<u8>) {
        let before = out.len();
        out.push(self.flags);
        let length_less_one = u16::try_from(key.len().saturating_sub(1)).unwrap_or(u16::MAX);
        let [low, high] = length_less_one.to_le_bytes();
        out.push(low);
        if self.flags & HAS_LONG_KEY != 0 {
            out.push(high);
        }
        let value = record.value.unwrap_or_default();
        if self.flags & HAS_SHORT_VALUE != 0 {
            let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
            out.extend_from_slice(&length.to_le_bytes());
        }
        let checksum_at = out.len();
        out.extend_from_slice(&[0; CHECKSUM_BYTES]);
        self.for_each_number(record, |number| {
            out.extend_from_slice(&number.to_le_bytes());
        });
        out.extend_from_slice(key);
        out.extend_from_slice(value);
        set_checks(&mut out[before..], checksum_at - before);
        debug_assert_eq!(out.len() - before, self.total);
    }

    /// Writes over a record of the same key if the layouts are the same; whether they were.
    pub(super) fn write_over(self, record: RecordRef<'_>, bytes: &mut [u8]) -> bool {
        let Some(before) = Packed::read(bytes) else {
            return false;
        };
        if before.bytes[0] != self.flags || before.len() != self.total {
            return false;
        }
        let head = before.head;
        let (version_at, value_at) = (head.version_at, head.value_at);
        let mut at = version_at;
        self.for_each_number(record, |number| {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
            at += 8;
        });
        bytes[value_at..self.total].copy_from_slice(record.value.unwrap_or_default());
        set_checks(&mut bytes[..self.total], head.check_at());
        true
    }

    fn for_each_number(self, record: RecordRef<'_>, mut put: impl FnMut(u64)) {
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

/// Writes the checksum of a record.
fn set_checks(record: &mut [u8], check_at: usize) {
    let (head, rest) = record.split_at_mut(check_at);
    let (checks, body) = rest.split_at_mut(CHECKSUM_BYTES);
    checks[0] = head_check(head);
    checks[1..].copy_from_slice(&body_check(body));
}

/// Each byte takes part in it by a bijection: no change of a single byte goes unseen.
#[inline(always)]
fn head_check(head: &[u8]) -> u8 {
    head.iter()
        .fold(HEAD_CHECK_START, |check, byte| check.rotate_left(3) ^ byte)
}

fn body_check(body: &[u8]) -> [u8; CHECKSUM_BYTES - 1] {
    let [a, b, c, ..] = xxh3_64(body).to_le_bytes();
    [a, b, c]
}

const fn stamp_bytes(flags: u8) -> usize {
    let expiry = if flags & HAS_EXPIRY != 0 { 8 } else { 0 };
    let expiry_version = if flags & HAS_EXPIRY_VERSION != 0 {
        VERSION_BYTES
    } else {
        0
    };
    VERSION_BYTES + expiry + expiry_version
}

const IS_TOMBSTONE: u8 = 1;
const HAS_EXPIRY: u8 = 2;
const HAS_EXPIRY_VERSION: u8 = 4;
const HAS_LONG_KEY: u8 = 8;
const HAS_SHORT_VALUE: u8 = 16;
const IS_DEAD: u8 = 32;
const COVERS: u8 = 64;
const IS_HASH: u8 = 128;

const VERSION_BYTES: usize = 16;
const VALUE_LENGTH_BYTES: usize = 2;
const CHECKSUM_BYTES: usize = 4;
/// Flags, the length of the key, the checksum, a version, a key of one byte.
const RECORD_BYTES_MIN: usize = 1 + 1 + CHECKSUM_BYTES + VERSION_BYTES + 1;
/// Memory that was overwritten with zeros is no record.
const HEAD_CHECK_START: u8 = 0x5a;
/// Stands for a record that cannot be read: a tombstone of version 0 without a key, whose checksum is
/// not its own.
const DAMAGED: Packed<'static> = Packed {
    bytes: &[
        IS_TOMBSTONE,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ],
    head: Head {
        version_at: 2 + CHECKSUM_BYTES,
        key_at: 2 + CHECKSUM_BYTES + VERSION_BYTES,
        value_at: 2 + CHECKSUM_BYTES + VERSION_BYTES,
        end: 2 + CHECKSUM_BYTES + VERSION_BYTES,
    },
};
const SHORT_KEY_BYTES_MAX: usize = 256;
/// Longer ones are worth an allocation each: the share of what it adds is small, and moving them
/// together would cost more.
const SHORT_VALUE_BYTES_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Body, Record};

    fn record() -> impl Strategy<Value = Record> {
        let version = || (any::<u64>(), any::<u64>());
        let body = prop::option::of(prop_oneof![
            4 => prop::collection::vec(any::<u8>(), 0..4),
            1 => prop::collection::vec(any::<u8>(), 0..2_000),
        ]);
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
                    kind: if hlc % 2 == 0 {
                        Kind::String
                    } else {
                        Kind::Hash
                    },
                    covers: at.is_some(),
                }
            })
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out(key in prop::collection::vec(any::<u8>(), 1..300), a in record(), b in record()) {
            let layout = Layout::of(&key, (&a).into());
            let mut bytes = Vec::new();
            layout.write(&key, (&a).into(), &mut bytes);
            prop_assert_eq!(bytes.len(), layout.total());
            if layout.tells_its_length() {
                bytes.extend([7; 9]);
            }
            let packed = Packed::at(&bytes);
            prop_assert_eq!(packed.len(), layout.total());
            prop_assert_eq!(packed.key(), &key[..]);
            prop_assert_eq!(packed.stamp(), a.stamp());
            prop_assert_eq!(packed.record().to_record(), a.clone());
            let is_over = Layout::of(&key, (&b).into()).write_over((&b).into(), &mut bytes);
            let packed = Packed::at(&bytes);
            prop_assert_eq!(packed.key(), &key[..]);
            prop_assert_eq!(packed.record().to_record(), if is_over { b } else { a });
        }
    }

    #[test]
    fn a_record_that_cannot_be_read_is_not_intact() {
        for bytes in [&[][..], &[0; 9], &[0; 64], &[0xff; 64]] {
            let packed = Packed::at(bytes);
            assert!(Packed::read(bytes).is_none() && !packed.is_intact());
            assert_eq!((packed.key(), packed.record().value), (&b""[..], None));
            assert_eq!(packed.stamp(), Stamp::fresh(Version::default()));
        }
    }

    proptest! {
        #[test]
        fn a_byte_that_was_altered_is_seen_wherever_it_is(
            key in prop::collection::vec(any::<u8>(), 1..300), a in record(), at in any::<prop::sample::Index>(), flip in 1u8..,
        ) {
            let mut bytes = Vec::new();
            Layout::of(&key, (&a).into()).write(&key, (&a).into(), &mut bytes);
            prop_assert!(Packed::at(&bytes).is_intact());
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            // A neighbour that a wrong length would lead into.
            bytes.extend([7; 2_000]);
            prop_assert!(!Packed::at(&bytes).is_intact());
            kill(&mut bytes);
        }
    }

    #[test]
    fn the_longest_key_fits() {
        let key = vec![b'k'; KEY_BYTES_MAX];
        let tombstone = Record::tombstone(Version::default());
        let mut bytes = Vec::new();
        Layout::of(&key, (&tombstone).into()).write(&key, (&tombstone).into(), &mut bytes);
        let packed = Packed::at(&bytes);
        assert_eq!(packed.key(), key);
        assert_eq!(packed.record().value, None);
    }
}
