//! The digests of all partitions that a node is a home of, packed into a few short texts for gossip.
//!
//! A head says as of which cut they are; pages of 256 digests follow, each under a key of its own and
//! changed only when one of them does. A partition takes one byte for its number, as the distance
//! from the one before, and eight for its digest, in base64: 12 characters, 3,080 a page.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;

use crate::model::{Digest, Epoch, PartitionId};

/// What a node tells of its partitions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sheet {
    /// As of which cut.
    pub cut: Epoch,
    /// From which age on it leaves tombstones out, in milliseconds: digests that differ in this
    /// cannot be compared.
    pub tombstone_age_ms: u64,
    /// One for each partition that it is a home of.
    pub digests: BTreeMap<PartitionId, Digest>,
}

/// The same as texts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackedSheet {
    /// To be set after the pages: whoever reads it knows that it has them.
    pub head: String,
    /// Those that have changed, by number.
    pub pages: Vec<(usize, String)>,
}

impl Sheet {
    /// Packs it. What stands on pages that are as they were `before` is not said again.
    #[must_use]
    pub fn pack(&self, before: Option<&Self>) -> PackedSheet {
        let now = pages(self);
        let pages_before = before.map(pages).unwrap_or_default();
        let mut packed = PackedSheet {
            head: format!("{} {} {}", self.cut.0, self.tombstone_age_ms, now.len()),
            pages: Vec::new(),
        };
        for (number, page) in now.into_iter().enumerate() {
            if pages_before.get(number) != Some(&page) {
                let body = BASE64_STANDARD_NO_PAD.encode(&page);
                packed
                    .pages
                    .push((number, format!("{} {body}", self.cut.0)));
            }
        }
        packed
    }

    /// The cut that a head names.
    #[must_use]
    pub fn cut_of(head: &str) -> Option<Epoch> {
        head.split(' ').next()?.parse().ok().map(Epoch)
    }

    /// Reads what [`Self::pack`] wrote. `None`: it is malformed, or not all of it is there yet.
    #[must_use]
    pub fn unpack(head: &str, page: impl Fn(usize) -> Option<String>) -> Option<Self> {
        let mut numbers = head.split(' ').map(|word| word.parse::<u64>().ok());
        let (cut, tombstone_age_ms, pages) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let mut sheet = Self {
            cut: Epoch(cut),
            tombstone_age_ms,
            digests: BTreeMap::new(),
        };
        let pages = usize::try_from(pages)
            .ok()
            .filter(|pages| *pages <= PAGES_MAX)?;
        for number in 0..pages {
            let text = page(number)?;
            let (since, body) = text.split_once(' ')?;
            if since.parse::<u64>().ok()? > cut {
                // Its head is still under way.
                return None;
            }
            let bytes = BASE64_STANDARD_NO_PAD.decode(body).ok()?;
            read_page(&bytes, &mut sheet.digests)?;
        }
        Some(sheet)
    }
}

fn pages(sheet: &Sheet) -> Vec<Vec<u8>> {
    let entries: Vec<_> = sheet.digests.iter().collect();
    let page = |entries: &[(&PartitionId, &Digest)]| {
        let (mut bytes, mut before) = (Vec::new(), None);
        for (partition, digest) in entries {
            let distance = before.map_or(partition.0, |before| partition.0 - before);
            before = Some(partition.0);
            // One byte, as a rule; three where homes are rare.
            match u8::try_from(distance) {
                Ok(distance) if distance > 0 => bytes.push(distance),
                _ => {
                    bytes.push(0);
                    bytes.extend_from_slice(&distance.to_le_bytes());
                }
            }
            bytes.extend_from_slice(&digest.0.to_le_bytes());
        }
        bytes
    };
    entries.chunks(PAGE).map(page).collect()
}

fn read_page(mut bytes: &[u8], digests: &mut BTreeMap<PartitionId, Digest>) -> Option<()> {
    let mut before = 0_u16;
    while let Some((&short, rest)) = bytes.split_first() {
        bytes = rest;
        let mut distance = u16::from(short);
        if short == 0 {
            let (long, rest) = bytes.split_first_chunk()?;
            bytes = rest;
            distance = u16::from_le_bytes(*long);
        }
        let (digest, rest) = bytes.split_first_chunk()?;
        bytes = rest;
        before = before.checked_add(distance)?;
        digests.insert(PartitionId(before), Digest(u64::from_le_bytes(*digest)));
    }
    Some(())
}

/// A page is small enough for any gossip message, even beside the names of 1,000 nodes.
const PAGE: usize = 256;
/// Of the most partitions that there can be.
const PAGES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sheet(cut: u64, digests: &[(u16, u64)]) -> Sheet {
        let digests = digests.iter();
        Sheet {
            cut: Epoch(cut),
            tombstone_age_ms: 7,
            digests: digests.map(|&(p, d)| (PartitionId(p), Digest(d))).collect(),
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out(digests in prop::collection::vec((any::<u16>(), any::<u64>()), 0..900)) {
            let sheet = sheet(9, &digests);
            let packed = sheet.pack(None);
            let page = |number: usize| packed.pages.get(number).map(|(_, text)| text.clone());
            prop_assert_eq!(Sheet::cut_of(&packed.head), Some(Epoch(9)));
            prop_assert_eq!(Sheet::unpack(&packed.head, page), Some(sheet));
        }

        #[test]
        fn nonsense_is_no_sheet_and_no_panic(head in ".{0,20}", page in ".{0,40}", numbers in any::<[u16; 3]>()) {
            let _nonsense = Sheet::unpack(&head, |_| Some(page.clone()));
            let [cut, age, pages] = numbers;
            let _nonsense = Sheet::unpack(&format!("{cut} {age} {pages}"), |_| Some(page.clone()));
        }
    }

    #[test]
    fn only_pages_that_changed_are_said_again() {
        let all: Vec<_> = (0..1_000).map(|p| (p, u64::from(p))).collect();
        let before = sheet(1, &all);
        let mut after = sheet(2, &all);
        assert_eq!(after.pack(Some(&before)).pages, []);
        after.digests.insert(PartitionId(300), Digest(0));
        let packed = after.pack(Some(&before));
        assert_eq!(
            packed.pages.iter().map(|(n, _)| *n).collect::<Vec<_>>(),
            [1]
        );
        // A page of a later cut than the head: the head is under way.
        let old_head = before.pack(None).head;
        let pages = before.pack(None).pages;
        let page = |number: usize| match number {
            1 => Some(packed.pages[0].1.clone()),
            _ => pages.get(number).map(|(_, text)| text.clone()),
        };
        assert_eq!(Sheet::unpack(&old_head, page), None);
        assert_eq!(Sheet::unpack(&packed.head, page), Some(after));
    }
}
