//! Up to which version each database was flushed: a bound below which nothing counts.

use bytes::Bytes;
use thiserror::Error;

use super::{Database, HlcTime, NodeTag, Version};

/// The newest flush of each database.
///
/// `a.merge(b) == b.merge(a)`; merging twice changes nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flushes([Version; Database::COUNT]);

/// Not what [`Flushes::encode`] makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a list of flushed databases")]
pub struct NotFlushes;

impl Flushes {
    /// The encoding of the longest one, in bytes.
    pub const BYTES_MAX: usize = Database::COUNT * ENTRY_BYTES;

    /// The newest flush of a database; the zero version if it never was flushed.
    #[must_use]
    pub const fn of(&self, database: Database) -> Version {
        self.0[database.number()]
    }

    /// Forgets those of a later version than this, which a clock that was wrong has stamped and nobody
    /// else has taken; whether there were any. The one way in which they do not only grow.
    pub fn forget_after(&mut self, last: Version) -> bool {
        let mut later = self
            .0
            .iter_mut()
            .filter(|version| **version > last)
            .peekable();
        let is_any = later.peek().is_some();
        later.for_each(|version| *version = Version::default());
        is_any
    }

    /// Notes a flush. Whether it is newer than what was known.
    pub fn raise(&mut self, database: Database, up_to: Version) -> bool {
        let held = &mut self.0[database.number()];
        let is_news = *held < up_to;
        *held = (*held).max(up_to);
        is_news
    }

    /// Notes all that another one holds.
    pub fn merge(&mut self, other: &Self) {
        for (database, up_to) in other.iter() {
            self.raise(database, up_to);
        }
    }

    /// The databases that were flushed, and up to which version.
    pub fn iter(&self) -> impl Iterator<Item = (Database, Version)> {
        let all = Database::all().zip(self.0);
        all.filter(|(_, up_to)| *up_to > Version::default())
    }

    /// Seventeen bytes for each database that was flushed; `None` if none was. Equal ones have
    /// equal encodings.
    #[must_use]
    pub fn encode(&self) -> Option<Bytes> {
        let mut out = Vec::new();
        for (database, up_to) in self.iter() {
            out.push(u8::try_from(database.number()).unwrap_or(u8::MAX));
            out.extend(up_to.hlc.0.to_be_bytes());
            out.extend(up_to.node.0.to_be_bytes());
        }
        (!out.is_empty()).then(|| out.into())
    }

    /// Reads what [`Flushes::encode`] made.
    ///
    /// # Errors
    /// When it is none, or longer than one can be.
    pub fn decode(encoded: &[u8]) -> Result<Self, NotFlushes> {
        if encoded.len() > Self::BYTES_MAX {
            return Err(NotFlushes);
        }
        let (entries, []) = encoded.as_chunks::<ENTRY_BYTES>() else {
            return Err(NotFlushes);
        };
        let mut flushes = Self::default();
        for entry in entries {
            let (number, version) = entry.split_first().ok_or(NotFlushes)?;
            let (hlc, node) = version.split_first_chunk().ok_or(NotFlushes)?;
            let node = node.first_chunk().ok_or(NotFlushes)?;
            let up_to = Version {
                hlc: HlcTime(u64::from_be_bytes(*hlc)),
                node: NodeTag(u64::from_be_bytes(*node)),
            };
            let database = Database::try_from(i64::from(*number)).map_err(|_none| NotFlushes)?;
            flushes.raise(database, up_to);
        }
        Ok(flushes)
    }
}

/// Databases as one bit each, as they travel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DatabaseSet(u16);

impl DatabaseSet {
    /// Those of these bits.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// One bit for each database.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Whether it is one of them.
    #[must_use]
    pub const fn contains(self, database: Database) -> bool {
        self.0 >> database.number() & 1 == 1
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Database> {
        Database::all().filter(move |database| self.contains(*database))
    }
}

impl FromIterator<Database> for DatabaseSet {
    fn from_iter<T: IntoIterator<Item = Database>>(databases: T) -> Self {
        let bits = databases.into_iter();
        Self(bits.fold(0, |bits, database| bits | 1 << database.number()))
    }
}

/// The database's number, then its version.
const ENTRY_BYTES: usize = 1 + 8 + 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flushes() -> impl Strategy<Value = Flushes> {
        let entry = (0_i64..16, 1_u64..20, 0_u64..3);
        prop::collection::vec(entry, 0..20).prop_map(|entries| {
            let mut flushes = Flushes::default();
            for (number, hlc, node) in entries {
                let up_to = Version {
                    hlc: HlcTime(hlc),
                    node: NodeTag(node),
                };
                flushes.raise(Database::try_from(number).unwrap(), up_to);
            }
            flushes
        })
    }

    fn merged(mut a: Flushes, b: &Flushes) -> Flushes {
        a.merge(b);
        a
    }

    proptest! {
        #[test]
        fn merging_is_a_join(a in flushes(), b in flushes(), c in flushes()) {
            prop_assert_eq!(merged(a, &b), merged(b, &a));
            prop_assert_eq!(merged(a, &a), a);
            prop_assert_eq!(merged(merged(a, &b), &c), merged(a, &merged(b, &c)));
        }

        #[test]
        fn what_is_encoded_is_read_again(a in flushes()) {
            let encoded = a.encode().unwrap_or_default();
            prop_assert!(encoded.len() <= Flushes::BYTES_MAX);
            prop_assert_eq!(Flushes::decode(&encoded), Ok(a));
        }

        #[test]
        fn any_bytes_are_an_error_or_flushes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(flushes) = Flushes::decode(&bytes) {
                prop_assert_eq!(Flushes::decode(&flushes.encode().unwrap_or_default()), Ok(flushes));
            }
        }
    }
}
