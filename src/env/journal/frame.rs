//! An entry that can be told from noise, wherever it lies.
//!
//! ```text
//! magic 8 | key length 4 | value length 4 | checksum 8 | key | value
//! ```
//!
//! The checksum is XXH3 over lengths, key and value. A database is of no use any more once the
//! pages or the log that hold it together are damaged; entries that describe themselves are found
//! again by reading its files from end to end.

use memchr::memmem::Finder;
use xxhash_rust::xxh3::Xxh3Default;

/// Frames an entry.
pub(super) fn frame(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(HEAD + key.len() + value.len());
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    framed.extend_from_slice(&MAGIC);
    framed.extend_from_slice(&length(key));
    framed.extend_from_slice(&length(value));
    framed.extend_from_slice(&checksum(key, value).to_le_bytes());
    framed.extend_from_slice(key);
    framed.extend_from_slice(value);
    framed
}

/// The entry that begins here, if it is whole and intact.
pub(super) fn unframe(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = bytes.strip_prefix(&MAGIC)?;
    let (key_len, rest) = rest.split_first_chunk()?;
    let (value_len, rest) = rest.split_first_chunk()?;
    let (sum, rest) = rest.split_first_chunk()?;
    let length = |bytes: &[u8; 4]| usize::try_from(u32::from_le_bytes(*bytes)).ok();
    let (key, rest) = rest.split_at_checked(length(key_len)?)?;
    let (value, _) = rest.split_at_checked(length(value_len)?)?;
    (checksum(key, value).to_le_bytes() == *sum).then_some((key, value))
}

/// Looks through bytes for entries: shows the intact ones, returns how many are not.
pub(super) fn search(bytes: &[u8], mut show: impl FnMut(&[u8], &[u8])) -> u64 {
    let (mut at, mut damaged) = (0, 0);
    let magic = Finder::new(&MAGIC);
    while let Some(found) = magic.find(&bytes[at..]) {
        at += found;
        if let Some((key, value)) = unframe(&bytes[at..]) {
            show(key, value);
            at += HEAD + key.len() + value.len();
        } else {
            damaged += 1;
            at += MAGIC.len();
        }
    }
    damaged
}

/// For fuzz targets: how many intact and damaged entries bytes hold.
#[doc(hidden)]
#[must_use]
pub fn count_entries(bytes: &[u8]) -> (u64, u64) {
    let mut intact = 0;
    let damaged = search(bytes, |_, _| intact += 1);
    (intact, damaged)
}

fn checksum(key: &[u8], value: &[u8]) -> u64 {
    let mut hasher = Xxh3Default::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.digest()
}

/// Eight bytes that values rarely hold; one that does costs a checksum that does not fit.
const MAGIC: [u8; 8] = *b"\xf1qHint\x01\xe5";
const HEAD: usize = 8 + 4 + 4 + 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Entry = (Vec<u8>, Vec<u8>);

    fn found(bytes: &[u8]) -> (Vec<Entry>, u64) {
        let mut entries = Vec::new();
        let damaged = search(bytes, |key, value| {
            entries.push((key.to_vec(), value.to_vec()));
        });
        (entries, damaged)
    }

    proptest! {
        #[test]
        fn entries_are_found_between_noise_and_each_flip_costs_one(
            parts in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 0..40), prop::collection::vec(any::<u8>(), 0..40), prop::collection::vec(any::<u8>(), 0..20)),
                1..20,
            ),
            flip in any::<(prop::sample::Index, u8)>(),
        ) {
            let mut bytes = Vec::new();
            let mut entries = Vec::new();
            for (key, value, noise) in &parts {
                bytes.extend_from_slice(noise);
                bytes.extend(frame(key, value));
                entries.push((key.clone(), value.clone()));
            }
            prop_assert_eq!(found(&bytes), (entries.clone(), 0));
            let at = flip.0.index(bytes.len());
            bytes[at] ^= 1 << (flip.1 % 8);
            let (left, damaged) = found(&bytes);
            prop_assert!(left.len() + 1 >= entries.len());
            prop_assert!(damaged <= 1);
            prop_assert!(left.iter().all(|entry| entries.contains(entry)));
            bytes.truncate(at);
            let (left, _) = found(&bytes);
            prop_assert!(left.iter().all(|entry| entries.contains(entry)));
        }
    }
}
