//! How a state came to be: which updates are in it, so that none is made twice.

use serde::{Deserialize, Serialize};

use crate::model::{HlcTime, NodeTag};
use crate::update::Reply;
use crate::wire::{FrameReader, encode};

/// Which updates one coordinator sent together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpdateId {
    /// The coordinator, unlike in two starts of it.
    pub coordinator: NodeTag,
    /// Its number for them. It sends the next ones of a key when it is done with these.
    pub sequence: u64,
}

/// The last updates of each coordinator that a state holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lineage {
    /// The newest last.
    made: Vec<Made>,
    /// Of updates from before this moment that are not in it, nothing is known.
    known_from: HlcTime,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    coordinator: NodeTag,
    sequence: u64,
    /// When they were made.
    at: HlcTime,
    /// How many of them were made: the others did not fit in with what was told.
    count: u32,
    /// What was told, if it is short.
    replies: Option<Vec<Reply>>,
}

/// What a lineage says of updates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// They are not in the state, and were not in one before it.
    NotMade,
    /// They are, as many as there are replies.
    Made(Vec<Reply>),
    /// So many of them are; what was told is no longer known.
    Lost(u32),
    /// They may have been in a state before it.
    Unknown,
}

impl Lineage {
    /// One of which nothing is known up to this moment.
    #[must_use]
    pub const fn unknown_until(moment: HlcTime) -> Self {
        Self {
            made: Vec::new(),
            known_from: moment,
        }
    }

    /// That of these bytes. What cannot be read is not known.
    #[must_use]
    pub fn decode(bytes: &[u8], version: HlcTime) -> Self {
        let mut reader = FrameReader::new(bytes);
        let read = reader.read::<(HlcTime, Vec<Made>)>();
        read.map_or_else(
            |_malformed| Self::unknown_until(version),
            |(known_from, made)| Self { made, known_from },
        )
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&(self.known_from, &self.made), &mut bytes);
        bytes
    }

    /// Of updates from before this moment that are not in it, nothing is known.
    #[must_use]
    pub const fn known_from(&self) -> HlcTime {
        self.known_from
    }

    /// Whether it tells more than another one of the same state.
    pub(super) fn knows_more_than(&self, other: &Self) -> bool {
        (other.known_from, self.made.len()) > (self.known_from, other.made.len())
    }

    pub(super) fn verdict(&self, id: UpdateId, begun: HlcTime) -> Verdict {
        let of_coordinator = |made: &&Made| made.coordinator == id.coordinator;
        match self.made.iter().find(of_coordinator) {
            Some(made) if made.sequence == id.sequence => match &made.replies {
                Some(replies) => Verdict::Made(replies.clone()),
                None => Verdict::Lost(made.count),
            },
            Some(made) if made.sequence < id.sequence => Verdict::NotMade,
            // The coordinator has gone on: nobody waits for these.
            Some(_) => Verdict::Unknown,
            None if begun > self.known_from => Verdict::NotMade,
            None => Verdict::Unknown,
        }
    }

    /// Adds updates that were made now.
    pub(super) fn add(&mut self, id: UpdateId, at: HlcTime, replies: &[Reply]) {
        self.made.retain(|made| made.coordinator != id.coordinator);
        if self.made.len() >= COORDINATORS_MAX {
            let forgotten = self.made.remove(0);
            self.known_from = self.known_from.max(forgotten.at);
        }
        self.made.push(Made {
            coordinator: id.coordinator,
            sequence: id.sequence,
            at,
            count: u32::try_from(replies.len()).unwrap_or(u32::MAX),
            replies: (bytes(replies) <= REPLIES_BYTES_MAX).then(|| replies.to_vec()),
        });
        // That they are made stays known; what was told of the oldest goes first.
        let mut left = REPLIES_BYTES_MAX;
        for made in self.made.iter_mut().rev() {
            match left.checked_sub(made.replies.as_deref().map_or(0, bytes)) {
                Some(rest) => left = rest,
                None => (made.replies, left) = (None, 0),
            }
        }
    }
}

fn bytes(replies: &[Reply]) -> usize {
    replies.iter().map(Reply::bytes).sum()
}

/// How many coordinators' last updates are kept of a key.
const COORDINATORS_MAX: usize = 16;
/// Of all replies that are kept of a key: enough for some dozens of numbers. A lineage travels with
/// each promise and each result.
const REPLIES_BYTES_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    fn id(coordinator: u64, sequence: u64) -> UpdateId {
        UpdateId {
            coordinator: NodeTag(coordinator),
            sequence,
        }
    }

    #[test]
    fn a_lineage_knows_what_is_in_it() {
        let mut lineage = Lineage::unknown_until(HlcTime(5));
        assert_eq!(lineage.verdict(id(1, 1), HlcTime(6)), Verdict::NotMade);
        assert_eq!(lineage.verdict(id(1, 1), HlcTime(5)), Verdict::Unknown);
        lineage.add(id(1, 7), HlcTime(8), &[Reply::Integer(3)]);
        let lineage = Lineage::decode(&lineage.encode(), HlcTime(99));
        let made = Verdict::Made(vec![Reply::Integer(3)]);
        assert_eq!(lineage.verdict(id(1, 7), HlcTime(1)), made);
        assert_eq!(lineage.verdict(id(1, 8), HlcTime(1)), Verdict::NotMade);
        assert_eq!(lineage.verdict(id(1, 6), HlcTime(9)), Verdict::Unknown);
        assert_eq!(lineage.verdict(id(2, 6), HlcTime(6)), Verdict::NotMade);
    }

    #[test]
    fn of_many_coordinators_the_first_are_forgotten() {
        let mut lineage = Lineage::default();
        for coordinator in 0..20 {
            lineage.add(id(coordinator, 1), HlcTime(10 + coordinator), &[Reply::Ok]);
        }
        assert_eq!(lineage.verdict(id(0, 1), HlcTime(9)), Verdict::Unknown);
        assert_eq!(lineage.verdict(id(0, 2), HlcTime(14)), Verdict::NotMade);
        let made = Verdict::Made(vec![Reply::Ok]);
        assert_eq!(lineage.verdict(id(19, 1), HlcTime(0)), made);
    }

    #[test]
    fn the_replies_of_all_coordinators_together_are_bounded() {
        let mut lineage = Lineage::default();
        let reply = Reply::Bulk(vec![b'x'; REPLIES_BYTES_MAX / 2 - 8].into());
        for coordinator in 0..16 {
            lineage.add(
                id(coordinator, 1),
                HlcTime(10),
                std::slice::from_ref(&reply),
            );
        }
        assert!(lineage.encode().len() < 2 * REPLIES_BYTES_MAX);
        // What was told of the first is lost; that they are made is not.
        assert_eq!(lineage.verdict(id(0, 1), HlcTime(5)), Verdict::Lost(1));
        let made = Verdict::Made(vec![reply]);
        assert_eq!(lineage.verdict(id(14, 1), HlcTime(5)), made);
        assert_eq!(lineage.verdict(id(15, 1), HlcTime(5)), made);
    }

    #[test]
    fn long_replies_are_not_kept_and_other_bytes_are_not_believed() {
        let mut lineage = Lineage::default();
        let long = Reply::Bulk(vec![b'x'; REPLIES_BYTES_MAX].into());
        lineage.add(id(1, 1), HlcTime(1), &[long]);
        assert_eq!(lineage.verdict(id(1, 1), HlcTime(0)), Verdict::Lost(1));
        let unread = Lineage::decode(b"\xc1 other", HlcTime(4));
        assert_eq!(unread, Lineage::unknown_until(HlcTime(4)));
    }
}
