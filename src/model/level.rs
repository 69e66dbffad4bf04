//! How consistent a request is to be.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::Quorum;

/// A named choice between what an answer promises and what it costs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// One replica.
    One,
    /// The r and w of the configuration.
    #[default]
    Quorum,
    /// Every replica.
    All,
    /// A majority of the replicas in the coordinator's own zone.
    LocalQuorum,
    /// A majority, and each request takes effect at one moment between its start and its answer.
    Linearizable,
}

/// Whose answers a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// How many answers.
    pub count: u8,
    /// Only those of replicas in the coordinator's own zone.
    pub local_only: bool,
    /// A replica that has lost its memory does not count, whatever that costs.
    pub strict: bool,
}

impl Level {
    /// All levels.
    pub const EVERY: [Self; 5] = [
        Self::One,
        Self::Quorum,
        Self::All,
        Self::LocalQuorum,
        Self::Linearizable,
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Quorum => "quorum",
            Self::All => "all",
            Self::LocalQuorum => "local_quorum",
            Self::Linearizable => "linearizable",
        }
    }

    /// What a read at this level waits for. `in_zone`: how many of the key's homes are in the
    /// coordinator's own zone; with none of them there, `LocalQuorum` is as `Quorum`.
    #[must_use]
    pub const fn read(self, quorum: Quorum, in_zone: u8) -> Need {
        self.need(quorum, quorum.r(), in_zone)
    }

    /// What a write at this level waits for.
    #[must_use]
    pub const fn write(self, quorum: Quorum, in_zone: u8) -> Need {
        self.need(quorum, quorum.w(), in_zone)
    }

    const fn need(self, quorum: Quorum, configured: u8, in_zone: u8) -> Need {
        let count = match self {
            Self::One => 1,
            Self::LocalQuorum if in_zone > 0 => in_zone / 2 + 1,
            Self::Quorum | Self::LocalQuorum => configured,
            Self::All => quorum.n(),
            Self::Linearizable => quorum.majority_of_n(),
        };
        Need {
            count,
            local_only: matches!(self, Self::LocalQuorum) && in_zone > 0,
            strict: matches!(self, Self::Linearizable),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Not the name of a level.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is no level: one, quorum, all, local_quorum or linearizable")]
pub struct LevelError(String);

impl FromStr for Level {
    type Err = LevelError;

    fn from_str(name: &str) -> Result<Self, LevelError> {
        Self::EVERY
            .into_iter()
            .find(|level| level.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| LevelError(name.to_owned()))
    }
}

/// The levels of reads and of writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Levels {
    /// Of reads.
    pub read: Level,
    /// Of writes, deletes and changes of expiry.
    pub write: Level,
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.read == self.write {
            write!(f, "{}", self.read)
        } else {
            write!(f, "{}/{}", self.read, self.write)
        }
    }
}

/// One level for both, or `READ/WRITE`.
impl FromStr for Levels {
    type Err = LevelError;

    fn from_str(text: &str) -> Result<Self, LevelError> {
        let (read, write) = text.split_once('/').unwrap_or((text, text));
        Ok(Self {
            read: read.trim().parse()?,
            write: write.trim().parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for level in Level::EVERY {
            assert_eq!(level.name().to_uppercase().parse(), Ok(level));
        }
        for text in ["one", "one/linearizable"] {
            assert_eq!(text.parse::<Levels>().unwrap().to_string(), text);
        }
        assert!("two".parse::<Level>().is_err());
        assert!("one/".parse::<Levels>().is_err());
    }

    #[test]
    fn needs_are_what_the_names_say() {
        let quorum = Quorum::new(5, 2, 4).unwrap();
        let need = |level: Level, in_zone| {
            let (read, write) = (level.read(quorum, in_zone), level.write(quorum, in_zone));
            assert_eq!(
                (read.local_only, read.strict),
                (write.local_only, write.strict)
            );
            (read.count, write.count, read.local_only, read.strict)
        };
        assert_eq!(need(Level::One, 0), (1, 1, false, false));
        assert_eq!(need(Level::Quorum, 3), (2, 4, false, false));
        assert_eq!(need(Level::All, 0), (5, 5, false, false));
        assert_eq!(need(Level::LocalQuorum, 3), (2, 2, true, false));
        assert_eq!(need(Level::LocalQuorum, 0), (2, 4, false, false));
        assert_eq!(need(Level::Linearizable, 1), (3, 3, false, true));
    }
}
