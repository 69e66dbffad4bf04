//! One number for a value's content.

use serde::Serialize;
use siphasher::sip::SipHasher13;

/// A hash of a value's `MessagePack` form: equal values have equal ones on every machine. (What
/// `derive(Hash)` feeds a hasher depends on the width of `usize` and may change with the compiler.)
pub(super) fn content_hash(value: &impl Serialize) -> u64 {
    bytes_hash(&packed(value))
}

/// A hash of bytes.
pub(super) fn bytes_hash(bytes: &[u8]) -> u64 {
    SipHasher13::new().hash(bytes)
}

/// The `MessagePack` form of a value made of text, numbers, lists and addresses, which always has
/// one: only maps of unknown length and a writer that fails have none.
pub(super) fn packed(value: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec(value).unwrap_or_default()
}
