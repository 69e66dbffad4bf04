//! Databases: sixteen spaces of keys in one ring.

use std::borrow::Cow;

use thiserror::Error;

/// One of sixteen spaces of keys.
///
/// To the ring, a key of another database than 0 is a longer key: a mark, the database, the key. A key
/// of database 0 is as it is, unless it begins with the mark.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Database(u8);

/// Not the number of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("there are {} databases, from 0 on", Database::COUNT)]
pub struct NoDatabase;

impl Database {
    /// How many there are.
    pub const COUNT: usize = 16;

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..COUNT).map(Self)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> usize {
        self.0 as usize
    }

    /// A key of it, as the ring knows that.
    #[must_use]
    pub fn key(self, key: &[u8]) -> Cow<'_, [u8]> {
        if self.0 == 0 && key.first() != Some(&MARK) {
            return Cow::Borrowed(key);
        }
        let mut longer = Vec::with_capacity(PREFIX_BYTES + key.len());
        longer.extend([MARK, self.0]);
        longer.extend_from_slice(key);
        Cow::Owned(longer)
    }

    /// The database of a key that the ring knows, and the key in it.
    #[must_use]
    pub fn split(key: &[u8]) -> (Self, &[u8]) {
        match key {
            [MARK, number, rest @ ..] if *number < COUNT => (Self(*number), rest),
            key => (Self(0), key),
        }
    }
}

impl TryFrom<i64> for Database {
    type Error = NoDatabase;

    fn try_from(number: i64) -> Result<Self, NoDatabase> {
        let number = u8::try_from(number).map_err(|_negative| NoDatabase)?;
        if number < COUNT {
            Ok(Self(number))
        } else {
            Err(NoDatabase)
        }
    }
}

const COUNT: u8 = 16;
/// No text in UTF-8 has this byte.
const MARK: u8 = 0xfe;
const PREFIX_BYTES: usize = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_two_databases_share_a_key(one in any::<Vec<u8>>(), other in any::<Vec<u8>>(), a in 0_i64..16, b in 0_i64..16) {
            let (a, b) = (Database::try_from(a).unwrap(), Database::try_from(b).unwrap());
            let key = a.key(&one);
            prop_assert_eq!(Database::split(&key), (a, &one[..]));
            let is_same = key == b.key(&other);
            prop_assert_eq!(is_same, (a, &one) == (b, &other));
        }
    }

    #[test]
    fn keys_that_begin_with_the_mark_are_keys_like_others() {
        let zero = Database::default();
        for key in [&b"\xfe"[..], b"\xfe\x01k", b"\xfe\xffk", b"k", b""] {
            assert_eq!(Database::split(&zero.key(key)), (zero, key));
        }
        assert!(Database::try_from(16).is_err() && Database::try_from(-1).is_err());
    }
}
