//! Which keys a ring holds: what its home nodes tell of their partitions, counted and merged.
//!
//! Of each partition r homes have to tell; of a key the newest that any of them holds counts.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::QuorumNotMet;
use crate::model::{Kind, Millis, PartitionId, Summary};

/// What one home holds of a partition, from some key hash on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeysPage {
    /// Keys, tombstones too, in the order of their hashes.
    pub entries: Vec<(Bytes, Summary)>,
    /// After which hash it goes on; `None`: these were the last.
    pub next: Option<u64>,
}

/// What one home has told of some partitions, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HomeTold {
    /// Whether it holds all that it ever acknowledged in them.
    pub is_sure: bool,
    /// A page of each; fewer, where it has told of fewer.
    pub pages: Vec<KeysPage>,
}

/// What has been told so far.
#[derive(Debug)]
pub struct KeysTold {
    need: u8,
    /// How many homes have told, of those that are sure and of all.
    counts: BTreeMap<PartitionId, (u8, u8)>,
    pages: BTreeMap<PartitionId, Vec<KeysPage>>,
    bytes: usize,
}

/// The live keys of a partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MergedKeys {
    /// In the order of their hashes, each with the kind of its value.
    pub keys: Vec<(Bytes, Kind)>,
    /// Up to which hash they are known; `None`: to the end.
    pub until: Option<u64>,
}

impl KeysTold {
    /// Nothing yet of these partitions, of each of which so many homes have to tell.
    #[must_use]
    pub fn new(partitions: &[PartitionId], need: u8) -> Self {
        Self {
            need,
            counts: partitions.iter().map(|&p| (p, (0, 0))).collect(),
            pages: BTreeMap::new(),
            bytes: 0,
        }
    }

    /// How much was told: keys and tombstones, in bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// A home has told of these partitions.
    pub fn on_told(&mut self, partitions: &[PartitionId], told: HomeTold) {
        for (partition, page) in partitions.iter().zip(told.pages) {
            let Some((sure, all)) = self.counts.get_mut(partition) else {
                continue;
            };
            *all += 1;
            *sure += u8::from(told.is_sure);
            let bytes = |(key, _): &(Bytes, Summary)| key.len() + SUMMARY_BYTES;
            self.bytes += page.entries.iter().map(bytes).sum::<usize>();
            self.pages.entry(*partition).or_default().push(page);
        }
    }

    /// Whether nobody has to be waited for any more: enough of those that are sure have told.
    #[must_use]
    pub fn is_enough(&self) -> bool {
        self.counts.values().all(|(sure, _)| *sure >= self.need)
    }

    /// When nobody else will tell: whether enough have told of a partition, those that are not sure
    /// counted for want of better.
    pub fn check(&self, partition: PartitionId) -> Result<(), QuorumNotMet> {
        let got = self.counts.get(&partition).map_or(0, |(_, all)| *all);
        if got >= self.need {
            return Ok(());
        }
        Err(QuorumNotMet {
            need: self.need,
            got,
            refusal: None,
        })
    }

    /// The live keys of a partition, as far as all who have told of it have come.
    #[must_use]
    pub fn merge(
        &self,
        partition: PartitionId,
        now: Millis,
        hash: impl Fn(&[u8]) -> u64,
    ) -> MergedKeys {
        let pages = self.pages.get(&partition).map_or(&[][..], Vec::as_slice);
        let until = pages.iter().filter_map(|page| page.next).min();
        let mut newest: BTreeMap<(u64, &Bytes), Summary> = BTreeMap::new();
        for (key, held) in pages.iter().flat_map(|page| &page.entries) {
            let hash = hash(key);
            // Beyond it not all have told: the next page brings it.
            if until.is_some_and(|until| hash > until) {
                continue;
            }
            let known = newest.entry((hash, key)).or_insert(*held);
            if known.stamp < held.stamp {
                *known = *held;
            }
        }
        let live = newest.into_iter().filter(|(_, held)| held.is_live(now));
        MergedKeys {
            keys: live
                .map(|((_, key), held)| (key.clone(), held.kind))
                .collect(),
            until,
        }
    }
}

/// What is told of a key beside it, about.
const SUMMARY_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{HlcTime, Kind, NodeTag, Stamp, Version};

    const P: PartitionId = PartitionId(0);

    fn held(ms: u64, value_bytes: Option<u64>, ends: Option<u64>) -> Summary {
        let version = Version {
            hlc: HlcTime::from_millis(Millis(ms)),
            node: NodeTag(1),
        };
        Summary {
            stamp: Stamp::fresh(version),
            expires_at: ends.map(Millis),
            value_bytes,
            kind: Kind::String,
        }
    }

    /// Keys are their own hashes.
    fn hash(key: &[u8]) -> u64 {
        u64::from(key[0])
    }

    fn told(entries: &[(u8, Summary)], next: Option<u64>, is_sure: bool) -> HomeTold {
        let entries = entries.iter().map(|(key, held)| (vec![*key].into(), *held));
        let page = KeysPage {
            entries: entries.collect(),
            next,
        };
        HomeTold {
            is_sure,
            pages: vec![page],
        }
    }

    fn keys(told: &KeysTold) -> (Vec<u8>, Option<u64>) {
        let MergedKeys { keys, until } = told.merge(P, Millis(100), hash);
        (keys.iter().map(|(key, _)| key[0]).collect(), until)
    }

    #[test]
    fn the_newest_counts_and_what_has_ended_or_was_deleted_is_no_key() {
        let (old, gone) = (held(1, Some(1), None), held(2, None, None));
        let (ended, lives) = (held(1, Some(1), Some(100)), held(1, Some(1), Some(101)));
        let mut all = KeysTold::new(&[P], 2);
        all.on_told(&[P], told(&[(1, old), (2, old), (4, ended)], None, true));
        assert!(!all.is_enough());
        all.on_told(&[P], told(&[(1, gone), (3, old), (5, lives)], None, true));
        assert!(all.is_enough() && all.check(P).is_ok());
        // Deleted for one is deleted, held by one is held.
        assert_eq!(keys(&all), (vec![2, 3, 5], None));
    }

    #[test]
    fn nothing_is_shown_beyond_what_all_have_told() {
        let live = held(1, Some(1), None);
        let mut all = KeysTold::new(&[P], 2);
        all.on_told(&[P], told(&[(1, live), (2, live)], Some(2), true));
        all.on_told(&[P], told(&[(1, live), (3, live)], None, true));
        assert_eq!(keys(&all), (vec![1, 2], Some(2)));
    }

    #[test]
    fn those_that_are_not_sure_count_for_want_of_better() {
        let mut all = KeysTold::new(&[P], 2);
        all.on_told(&[P], told(&[], None, true));
        let missing = all.check(P).unwrap_err();
        assert_eq!((missing.got, missing.need), (1, 2));
        all.on_told(&[P], told(&[], None, false));
        assert!(!all.is_enough() && all.check(P).is_ok());
        // One that has told of fewer has not told of the rest.
        let both = [P, PartitionId(1)];
        let mut all = KeysTold::new(&both, 1);
        all.on_told(&both, told(&[], None, true));
        assert!(all.check(P).is_ok() && all.check(both[1]).is_err());
    }
}
