//! The keys that a home holds, a page of each of some partitions: the home's part of `SCAN`.
//!
//! What one answer costs is bounded by what is looked at, whatever is found: tombstones and the keys
//! of other partitions cost as much as live keys do.

use bytes::Bytes;

use super::replica::Replica;
use crate::model::{PartitionId, Summary};
use crate::protocol::KeysPage;
use crate::store::{ScanSlice, Store};
use crate::wire::PAGE_BYTES_MAX;

/// The page of a partition that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeysWanted {
    /// The partition.
    pub partition: PartitionId,
    /// From after this hash on.
    pub after: Option<u64>,
    /// So many keys at most, but those of one hash together.
    pub limit: usize,
}

/// A page of each of these partitions, in their order; fewer pages where that would be too much at
/// once, but one at least. Other tasks get their turn between two groups of partitions.
///
/// Looks once at each record of the groups that it reads, and stops after [`LOOKED_AT_BYTES_MAX`].
pub async fn key_pages(replica: &Replica, wanted: &[KeysWanted]) -> Vec<KeysPage> {
    let (mut pages, mut spent) = (Vec::new(), 0);
    let is_same_group =
        |a: &KeysWanted, b: &KeysWanted| Store::group(a.partition) == Store::group(b.partition);
    for of_group in wanted.chunk_by(is_same_group) {
        for some in of_group.chunks(SLICES_MAX) {
            if spent >= LOOKED_AT_BYTES_MAX {
                return pages;
            }
            if !pages.is_empty() {
                tokio::task::yield_now().await;
            }
            spent += pages_of_group(replica, some, &mut pages);
        }
    }
    pages
}

/// Adds the pages of partitions of one group; how many bytes that were to be looked at or copied.
fn pages_of_group(replica: &Replica, some: &[KeysWanted], pages: &mut Vec<KeysPage>) -> usize {
    let slices: Vec<ScanSlice> = some
        .iter()
        .map(|wanted| ScanSlice {
            partition: wanted.partition,
            after: wanted.after,
        })
        .collect();
    let first = pages.len();
    pages.resize(first + some.len(), KeysPage::default());
    let mut next = vec![None; some.len()];
    let (mut copied, mut page_bytes) = (0, vec![0; some.len()]);
    let looked_at = replica.scan_group(
        &slices,
        |number, key, record| {
            let entries = &mut pages[first + number].entries;
            entries.push((Bytes::copy_from_slice(key), Summary::of(record)));
            copied += key.len();
            page_bytes[number] += key.len();
            entries.len() < some[number].limit && page_bytes[number] < PAGE_BYTES_MAX
        },
        |number, after| next[number] = after,
    );
    for (page, next) in pages[first..].iter_mut().zip(next) {
        page.next = next;
    }
    looked_at + copied
}

/// Bytes of keys, and of what is read beside them, in one answer: a millisecond or two.
pub const LOOKED_AT_BYTES_MAX: usize = 1024 * 1024;
/// As many as a group has partitions: each record is compared with each.
const SLICES_MAX: usize = 16;
