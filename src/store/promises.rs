//! What this replica has promised to those who update a key by consensus, and how its value came to be.
//!
//! `CASPaxos` (Rystsov, 2018): whoever updates a key first has a majority promise to take nothing older
//! than a ballot, then has a majority take the new state under it. A promise stands beside the
//! record and ends with the first record that is newer: that one's own version keeps out what is older.
//!
//! The table is bounded, in entries and in bytes. What is dropped from it, and records that are freed,
//! leave a *floor*: the newest ballot of which nothing is known any more. No ballot up to the floor is
//! promised or taken. A promise is dropped only when its ballot is so old that none like it is taken
//! any more: a floor that followed the clock would keep out rounds that are under way.
//!
//! An update that changes nothing leaves a promise and no record that ends it. Whoever had it says so,
//! and it is released: many of them must not fill the table. Under a promise there may be an older one
//! of another proposer, which stands again then.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::update::oldest;
use crate::model::{Millis, RecordRef, Stamp, Version};

/// The promises of a group of partitions.
#[derive(Debug, Default)]
pub(super) struct Promises {
    of_keys: BTreeMap<u64, Kept>,
    floor: Version,
    /// Of all lineages.
    lineage_bytes: usize,
}

/// What is kept beside a key's record, by the hash of the key.
#[derive(Debug, Default)]
struct Kept {
    /// Nothing older is taken.
    promise: Option<Version>,
    under: Under,
    /// The version of the record that `lineage` is of.
    version: Version,
    lineage: Option<Box<[u8]>>,
    /// When it was changed last, by the clock of versions.
    changed: Millis,
}

/// What was promised before the present promise, and may still be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Under {
    #[default]
    Nothing,
    One(Version),
    Several,
}

impl Promises {
    /// What a record of this key must exceed. Most groups have no promises: one look tells.
    #[inline]
    pub(super) fn of(&self, key_hash: u64) -> Option<Version> {
        if self.of_keys.is_empty() {
            return None;
        }
        self.of_keys.get(&key_hash).and_then(|kept| kept.promise)
    }

    /// The promise that keeps a record out, where this version is held. A newer end of the very value
    /// that is held is no older value.
    #[inline]
    pub(super) fn keeps_out(
        &self,
        key_hash: u64,
        record: RecordRef<'_>,
        held: Option<Version>,
    ) -> Option<Version> {
        let ballot = self.of(key_hash)?;
        let is_end = held == Some(record.version) && record.expiry.version >= ballot;
        (record.version < ballot && !is_end).then_some(ballot)
    }

    /// No ballot up to this one is promised or taken.
    pub(super) const fn floor(&self) -> Version {
        self.floor
    }

    /// Something of this version is no longer known.
    pub(super) fn forget(&mut self, version: Version) {
        self.floor = self.floor.max(version);
    }

    /// Promises to take nothing older than `ballot`; `false` if there is no room for it.
    pub(super) fn promise(&mut self, key_hash: u64, ballot: Version, now: Millis) -> bool {
        if self.of_keys.len() >= KEPT_MAX && !self.of_keys.contains_key(&key_hash) {
            self.make_room(now);
            if self.of_keys.len() >= KEPT_MAX {
                return false;
            }
        }
        let kept = self.of_keys.entry(key_hash).or_default();
        kept.under = match (kept.promise, kept.under) {
            (None, _) => Under::Nothing,
            (Some(promise), under) if promise == ballot => under,
            (Some(promise), Under::Nothing) => Under::One(promise),
            (Some(_), Under::One(_) | Under::Several) => Under::Several,
        };
        (kept.promise, kept.changed) = (Some(ballot), now);
        true
    }

    /// A promise is used for nothing, and never will be. What it was made on top of stands again: to
    /// whom that was promised, it still is. Where that is not known any more, this one stays.
    pub(super) fn release(&mut self, key_hash: u64, ballot: Version) {
        let Entry::Occupied(mut occupied) = self.of_keys.entry(key_hash) else {
            return;
        };
        let kept = occupied.get_mut();
        match (kept.promise, kept.under) {
            (Some(promise), Under::Nothing) if promise == ballot => kept.promise = None,
            (Some(promise), Under::One(under)) if promise == ballot => {
                (kept.promise, kept.under) = (Some(under), Under::Nothing);
            }
            (Some(_), Under::One(under)) if under == ballot => kept.under = Under::Nothing,
            _ => {}
        }
        if kept.promise.is_none() && kept.lineage.is_none() {
            occupied.remove();
        }
    }

    /// A record with this stamp was taken: its versions keep out what a promise did, and what was noted
    /// of an older one is of no use any more.
    #[inline]
    pub(super) fn on_taken(&mut self, key_hash: u64, stamp: Stamp) {
        if self.of_keys.is_empty() {
            return;
        }
        if let Entry::Occupied(mut occupied) = self.of_keys.entry(key_hash) {
            let kept = occupied.get_mut();
            kept.promise = kept.promise.filter(|promise| *promise > stamp.newest());
            if kept.version < stamp.value
                && let Some(lineage) = kept.lineage.take()
            {
                self.lineage_bytes -= lineage.len();
            }
            if kept.promise.is_none() && kept.lineage.is_none() {
                occupied.remove();
            }
        }
    }

    /// Notes how the record of this version came to be.
    pub(super) fn note(&mut self, key_hash: u64, version: Version, lineage: &[u8], now: Millis) {
        if lineage.len() > LINEAGE_BYTES_MAX {
            // Whoever asks for it learns that it is not known.
            return;
        }
        if self.lineage_bytes + lineage.len() > LINEAGES_BYTES_MAX {
            self.drop_lineages();
        }
        if self.of_keys.len() >= KEPT_MAX && !self.of_keys.contains_key(&key_hash) {
            self.make_room(now);
            if self.of_keys.len() >= KEPT_MAX {
                // Whoever asks for it learns that it is not known.
                return;
            }
        }
        let kept = self.of_keys.entry(key_hash).or_default();
        (kept.version, kept.changed) = (version, now);
        let before = kept.lineage.replace(lineage.into());
        self.lineage_bytes += lineage.len();
        self.lineage_bytes -= before.map_or(0, |before| before.len());
    }

    /// How the record of this version came to be, if that is known.
    pub(super) fn lineage(&self, key_hash: u64, version: Version) -> Option<&[u8]> {
        let kept = self.of_keys.get(&key_hash)?;
        kept.lineage.as_deref().filter(|_| kept.version == version)
    }

    /// Drops what is of a later version than this, which nobody else has promised or taken.
    pub(super) fn forget_after(&mut self, last: Version) {
        self.floor = self.floor.min(last);
        self.of_keys.retain(|_, kept| {
            kept.promise = kept.promise.filter(|promise| *promise <= last);
            let has_lineage = kept.lineage.is_some() && kept.version <= last;
            kept.promise.is_some() || has_lineage
        });
    }

    /// Drops what nobody needs any more: a lineage answers whoever tries an update again, a promise
    /// keeps the way free for one that is under way.
    pub(super) fn expire(&mut self, now: Millis) {
        if !self.of_keys.is_empty() {
            self.drop_old(now, KEPT_MAX);
        }
    }

    fn make_room(&mut self, now: Millis) {
        self.drop_old(now, KEPT_MAX / 2);
    }

    fn drop_old(&mut self, now: Millis, mut lineages_left: usize) {
        let (floor, bytes, oldest) = (&mut self.floor, &mut self.lineage_bytes, oldest(now));
        self.of_keys.retain(|_, kept| {
            if let Some(promise) = kept.promise.filter(|promise| *promise <= oldest) {
                // No ballot as old as that is taken anyway: the floor keeps nobody else out.
                *floor = (*floor).max(promise);
                (kept.promise, kept.under) = (None, Under::Nothing);
            }
            let age_ms = now.0.saturating_sub(kept.changed.0);
            if let Some(lineage) = &kept.lineage
                && (age_ms > LINEAGE_MS || lineages_left == 0)
            {
                *bytes -= lineage.len();
                kept.lineage = None;
            }
            lineages_left -= usize::from(kept.lineage.is_some());
            kept.promise.is_some() || kept.lineage.is_some()
        });
    }

    /// Drops the older half of the lineages. Whoever asks for one learns that it is not known.
    fn drop_lineages(&mut self) {
        let noted = self.of_keys.values().filter(|kept| kept.lineage.is_some());
        let mut changed: Vec<Millis> = noted.map(|kept| kept.changed).collect();
        let half = changed.len() / 2;
        if half >= changed.len() {
            return;
        }
        let (_, &mut median, _) = changed.select_nth_unstable(half);
        let mut left = half + 1;
        let bytes = &mut self.lineage_bytes;
        self.of_keys.retain(|_, kept| {
            if left > 0
                && kept.changed <= median
                && let Some(lineage) = kept.lineage.take()
            {
                left -= 1;
                *bytes -= lineage.len();
            }
            kept.promise.is_some() || kept.lineage.is_some()
        });
    }
}

/// Two hundred thousand in all groups together.
const KEPT_MAX: usize = 1_024;
/// Of one key: a lineage is bounded below that where it is made.
const LINEAGE_BYTES_MAX: usize = 4 * 1_024;
/// Of all keys of a group: 32 MiB in all groups together.
const LINEAGES_BYTES_MAX: usize = 128 * 1_024;
/// Longer than anybody tries an update again.
const LINEAGE_MS: u64 = 10_000;
