//! A partition's records, one after another.
//!
//! Short records lie in segments, in the order in which they came: no allocation and no pointer
//! each, and what a look-up touches lies close together. A record that changes its length goes to
//! the end and leaves a hole; a segment with too many holes is packed anew, in place, which moves
//! its records and is told to whoever points to them. (The log-structured memory of Rumble,
//! Kejriwal, Ousterhout, FAST 2014, in the small.) Long records have an allocation each.

use hashbrown::HashTable;
use smallvec::SmallVec;

use super::packed::{Layout, Packed, kill};
use crate::model::RecordRef;

/// Where a record lies in its slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(u32);

/// The same, taken apart.
enum Kind {
    Short { segment: usize, offset: usize },
    Long(usize),
}

impl Place {
    /// `None` when there can be no such segment.
    fn in_segment(segment: usize, offset: usize) -> Option<Self> {
        let segment = u32::try_from(segment).ok().filter(|s| *s < SEGMENTS_MAX)?;
        let offset = u32::try_from(offset).ok()?;
        Some(Self((segment << OFFSET_BITS) | offset))
    }

    fn of_long(index: usize) -> Self {
        // Two billion of them would take terabytes.
        Self(LONG | u32::try_from(index).unwrap_or(u32::MAX))
    }

    #[inline]
    const fn kind(self) -> Kind {
        if self.0 & LONG == 0 {
            Kind::Short {
                segment: (self.0 >> OFFSET_BITS) as usize,
                offset: (self.0 & OFFSET_MASK) as usize,
            }
        } else {
            Kind::Long((self.0 & !LONG) as usize)
        }
    }
}

/// The records of one partition.
#[derive(Debug, Default)]
pub(super) struct Slab {
    segments: SmallVec<[Segment; 1]>,
    /// The segment that new records go to.
    open: usize,
    /// What most look-ups have no use for.
    rest: Option<Box<Rest>>,
}

#[derive(Debug, Default)]
struct Rest {
    long: Vec<Option<Box<[u8]>>>,
    free_long: Vec<u32>,
    /// Segments with too many holes.
    sparse: Vec<usize>,
    /// Segments that were packed anew and have room.
    roomy: Vec<usize>,
}

#[derive(Debug, Default)]
struct Segment {
    bytes: Vec<u8>,
    /// Bytes of records that nothing points to any more.
    dead: usize,
}

impl Slab {
    /// The record at `place`.
    #[inline]
    pub(super) fn get(&self, place: Place) -> Packed<'_> {
        let run = match place.kind() {
            Kind::Short { segment, offset } => self.segments[segment].from(offset),
            Kind::Long(index) => self.long(index),
        };
        Packed::at(run)
    }

    /// All records, in the order in which they lie in memory: many times faster to go through than
    /// by their places. What lies behind a record whose lengths are damaged is left out: see
    /// [`Slab::rescue`].
    pub(super) fn iter(&self) -> impl Iterator<Item = Packed<'_>> {
        let short = self.segments.iter().flat_map(Segment::iter);
        let long = self.rest.iter().flat_map(|rest| rest.long.iter().flatten());
        short.chain(long.map(|bytes| Packed::at(bytes)))
    }

    /// Adds a record.
    pub(super) fn insert(&mut self, key: &[u8], record: RecordRef<'_>) -> Place {
        let layout = Layout::of(key, record);
        let is_short = layout.tells_its_length() && layout.total() <= SHORT_RECORD_BYTES_MAX;
        if is_short && let Some((place, segment)) = self.place_for(layout.total()) {
            layout.write(key, record, &mut segment.bytes);
            return place;
        }
        let mut bytes = Vec::with_capacity(layout.total());
        layout.write(key, record, &mut bytes);
        self.insert_long(bytes.into_boxed_slice())
    }

    /// Adds a record that is packed already, in an allocation of its own.
    pub(super) fn insert_long(&mut self, run: Box<[u8]>) -> Place {
        let rest = self.rest.get_or_insert_default();
        let index = rest.free_long.pop().map_or(rest.long.len(), |i| i as usize);
        if index == rest.long.len() {
            rest.long.push(None);
        }
        rest.long[index] = Some(run);
        Place::of_long(index)
    }

    /// Replaces the record at `place` by one of the same key that is packed already. Where that one is.
    pub(super) fn replace_by_long(&mut self, place: Place, run: Box<[u8]>) -> Place {
        self.remove(place);
        self.insert_long(run)
    }

    /// Replaces the record at `place` by another of the same key. Where that one is.
    pub(super) fn replace(&mut self, place: Place, record: RecordRef<'_>) -> Place {
        let before = self.get(place);
        let layout = Layout::of(before.key(), record);
        let run = match place.kind() {
            Kind::Short { segment, offset } => &mut self.segments[segment].bytes[offset..],
            Kind::Long(index) => self.long_mut(index),
        };
        if layout.write_over(record, run) {
            return place;
        }
        let key: SmallVec<[u8; 64]> = self.get(place).key().into();
        self.remove(place);
        self.insert(&key, record)
    }

    /// The bytes of the record at `place`.
    pub(super) fn bytes_mut(&mut self, place: Place) -> &mut [u8] {
        let length = self.get(place).len();
        match place.kind() {
            Kind::Short { segment, offset } => {
                &mut self.segments[segment].bytes[offset..][..length]
            }
            Kind::Long(index) => self.long_mut(index),
        }
    }

    /// Whether all records can be reached one from the other, those that nothing points to included.
    pub(super) fn is_whole(&self) -> bool {
        self.segments.iter().all(Segment::is_whole)
    }

    /// Puts the short records at these places, and nothing else, into new segments, and changes the
    /// places to where they are then. For when the way from one to the next is damaged.
    pub(super) fn rescue(&mut self, places: &mut HashTable<Place>) {
        let segments = std::mem::take(&mut self.segments);
        self.open = 0;
        if let Some(rest) = &mut self.rest {
            rest.sparse.clear();
            rest.roomy.clear();
        }
        for place in places.iter_mut() {
            let Kind::Short { segment, offset } = place.kind() else {
                continue;
            };
            let record = Packed::at(segments[segment].from(offset)).as_bytes();
            // Always there: these records had room before.
            if let Some((new, segment)) = self.place_for(record.len()) {
                segment.bytes.extend_from_slice(record);
                *place = new;
            }
        }
    }

    /// Removes the record at `place`.
    pub(super) fn remove(&mut self, place: Place) {
        match place.kind() {
            Kind::Short { segment, offset } => {
                let index = segment;
                let segment = &mut self.segments[index];
                let was_sparse = segment.is_sparse();
                let run = &mut segment.bytes[offset..];
                segment.dead += Packed::at(run).len();
                kill(run);
                if !was_sparse && segment.is_sparse() {
                    self.rest.get_or_insert_default().sparse.push(index);
                }
            }
            Kind::Long(index) => {
                let rest = self.rest.get_or_insert_default();
                rest.long[index] = None;
                rest.free_long.extend(u32::try_from(index));
                if rest.free_long.len() == rest.long.len() {
                    (rest.long, rest.free_long) = (Vec::new(), Vec::new());
                }
            }
        }
    }

    /// Packs the segments anew that have too many holes. `moved` hears of each record's key, old
    /// and new place. Call it after removals and replacements, with the old places still in use.
    pub(super) fn compact(&mut self, mut moved: impl FnMut(&[u8], Place, Place)) {
        let Some(rest) = &mut self.rest else { return };
        for index in rest.sparse.drain(..) {
            let segment = &mut self.segments[index];
            segment.compact(|key, from, to| {
                let place = |offset| Place::in_segment(index, offset);
                // Always there: the segment has had these places before.
                if let (Some(from), Some(to)) = (place(from), place(to)) {
                    moved(key, from, to);
                }
            });
            if index != self.open && !rest.roomy.contains(&index) {
                rest.roomy.push(index);
            }
        }
    }

    /// A segment with room for so many more bytes, and the place they will have. `None`: this
    /// slab can have no more segments.
    fn place_for(&mut self, bytes: usize) -> Option<(Place, &mut Segment)> {
        let fits = |segment: &Segment| segment.bytes.len() + bytes <= SEGMENT_BYTES;
        while !self.segments.get(self.open).is_some_and(fits) {
            match self.rest.as_mut().and_then(|rest| rest.roomy.pop()) {
                Some(index) => self.open = index,
                None => {
                    Place::in_segment(self.segments.len(), 0)?;
                    self.open = self.segments.len();
                    self.segments.push(Segment::default());
                }
            }
        }
        let segment = &mut self.segments[self.open];
        let place = Place::in_segment(self.open, segment.bytes.len())?;
        segment.reserve(bytes);
        Some((place, segment))
    }

    fn long(&self, index: usize) -> &[u8] {
        let rest = self.rest.as_ref();
        rest.and_then(|rest| rest.long[index].as_deref())
            .unwrap_or_default()
    }

    fn long_mut(&mut self, index: usize) -> &mut [u8] {
        let rest = self.rest.as_mut();
        rest.and_then(|rest| rest.long[index].as_deref_mut())
            .unwrap_or_default()
    }
}

impl Segment {
    /// A quarter of holes, and enough of them to be worth the work.
    const fn is_sparse(&self) -> bool {
        self.dead > SPARSE_BYTES_MIN && self.dead * 4 > self.bytes.len()
    }

    /// Grows by an eighth: of the memory that many partitions hold, little is spare.
    fn reserve(&mut self, bytes: usize) {
        let (len, capacity) = (self.bytes.len(), self.bytes.capacity());
        if len + bytes > capacity {
            let wanted = (capacity + capacity / 8)
                .max(len + bytes)
                .next_multiple_of(64);
            self.bytes.reserve_exact(wanted.min(SEGMENT_BYTES) - len);
        }
    }

    fn iter(&self) -> impl Iterator<Item = Packed<'_>> {
        let mut at = 0;
        let all = std::iter::from_fn(move || {
            let record = Packed::read(self.from(at))?;
            at += record.len();
            Some(record)
        });
        all.filter(|record| !record.is_dead())
    }

    /// What begins at `offset`; nothing beyond the end.
    #[inline]
    fn from(&self, offset: usize) -> &[u8] {
        self.bytes.get(offset..).unwrap_or_default()
    }

    /// Whether all records are intact, so that each leads to the next and the last to the end.
    fn is_whole(&self) -> bool {
        let mut at = 0;
        while let Some(record) = Packed::read(self.from(at)) {
            if !record.is_intact() {
                return false;
            }
            at += record.len();
        }
        at == self.bytes.len()
    }

    fn compact(&mut self, mut moved: impl FnMut(&[u8], usize, usize)) {
        // With damage, whoever points to a record might not be found, or the rest be lost. The search
        // for damage puts it right; the holes stay until then.
        if !self.is_whole() {
            return;
        }
        let live = self.bytes.len().saturating_sub(self.dead);
        let mut packed = Vec::with_capacity((live + live / 8).next_multiple_of(64));
        let mut at = 0;
        while let Some(record) = Packed::read(self.from(at)) {
            if !record.is_dead() {
                // Records move towards the beginning only: no new place is one still in use.
                moved(record.key(), at, packed.len());
                packed.extend_from_slice(record.as_bytes());
            }
            at += record.len();
        }
        *self = Self {
            bytes: packed,
            dead: 0,
        };
    }
}

const OFFSET_BITS: u32 = 15;
/// Packing one anew takes some ten microseconds.
const SEGMENT_BYTES: usize = 1 << OFFSET_BITS;
const OFFSET_MASK: u32 = (1 << OFFSET_BITS) - 1;
const LONG: u32 = 1 << 31;
/// 2 GiB of short records in one partition; what comes beyond gets allocations of its own.
const SEGMENTS_MAX: u32 = LONG >> OFFSET_BITS;
/// The end of a segment that the next record does not fit into stays empty: 3 % of it.
const SHORT_RECORD_BYTES_MAX: usize = 1_536;
const SPARSE_BYTES_MIN: usize = 1_024;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::model::{HlcTime, NodeTag, Record, Version};

    fn record(hlc: u64, length: usize) -> Record {
        let version = Version {
            hlc: HlcTime(hlc),
            node: NodeTag(1),
        };
        Record::value(version, None, Bytes::from(vec![7; length]))
    }

    proptest! {
        #[test]
        fn a_slab_holds_what_a_map_does(
            steps in prop::collection::vec((0u16..400, prop_oneof![Just(None), (0usize..1_200).prop_map(Some)]), 1..1_500)
        ) {
            let mut slab = Slab::default();
            let mut held: BTreeMap<Vec<u8>, (Place, Record)> = BTreeMap::new();
            for (step, (key, length)) in steps.into_iter().enumerate() {
                let key = key.to_string().into_bytes();
                let before = held.remove(&key);
                if let Some(length) = length {
                    let record = record(step as u64, length);
                    let place = match before {
                        Some((place, _)) => slab.replace(place, (&record).into()),
                        None => slab.insert(&key, (&record).into()),
                    };
                    held.insert(key, (place, record));
                } else if let Some((place, _)) = before {
                    slab.remove(place);
                }
                slab.compact(|key, from, to| {
                    let (place, _) = held.get_mut(key).unwrap();
                    assert_eq!(*place, from);
                    *place = to;
                });
                prop_assert!(!slab.segments.iter().any(Segment::is_sparse));
            }
            prop_assert_eq!(slab.iter().count(), held.len());
            for packed in slab.iter() {
                prop_assert_eq!(&packed.record().to_record(), &held[packed.key()].1);
            }
            for (key, (place, record)) in &held {
                let packed = slab.get(*place);
                prop_assert_eq!(packed.key(), &key[..]);
                prop_assert_eq!(&packed.record().to_record(), record);
            }
            let live: usize = held.values().map(|(place, _)| slab.get(*place).len()).sum();
            let taken: usize = slab.segments.iter().map(|segment| segment.bytes.capacity()).sum();
            prop_assert!(taken <= live * 2 + SEGMENT_BYTES, "{taken} bytes for {live}");
        }
    }

    #[test]
    fn what_is_written_over_in_place_stays_there() {
        let mut slab = Slab::default();
        for length in [0, 100, 5_000] {
            let place = slab.insert(b"k", (&record(1, length)).into());
            assert_eq!(slab.replace(place, (&record(2, length)).into()), place);
            assert_eq!(slab.get(place).stamp(), record(2, length).stamp());
        }
    }
}
