//! The moments and durations that commands carry, with the range checks of Redis.

use super::CommandError;
use super::parser::integer;

/// When a value is to end, as the client put it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpiryArg {
    /// So many milliseconds from now.
    After(i64),
    /// At this moment, in milliseconds since 1970.
    At(i64),
}

/// What a number in a command counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) is_seconds: bool,
    pub(super) is_moment: bool,
}

impl Unit {
    /// Seconds or milliseconds (`P...`), from now or since 1970 (`...AT`).
    pub(super) const fn new(is_seconds: bool, is_moment: bool) -> Self {
        Self {
            is_seconds,
            is_moment,
        }
    }

    /// What the argument of an option counts.
    pub(super) fn of_option(upper: &[u8]) -> Option<Self> {
        Some(match upper {
            b"EX" => Self::new(true, false),
            b"PX" => Self::new(false, false),
            b"EXAT" => Self::new(true, true),
            b"PXAT" => Self::new(false, true),
            _ => return None,
        })
    }

    /// Reads an argument of this unit. `must_be_positive` as for `SET`; `EXPIRE` deletes instead.
    pub(super) fn read(
        self,
        argument: &[u8],
        command: &'static str,
        must_be_positive: bool,
    ) -> Result<ExpiryArg, CommandError> {
        let number = integer(argument).ok_or(CommandError::NotAnInteger)?;
        let out_of_range = CommandError::InvalidExpire(command);
        if must_be_positive && number <= 0 {
            return Err(out_of_range);
        }
        let ms = if self.is_seconds {
            number.checked_mul(1_000)
        } else {
            Some(number)
        };
        // Beyond this, adding it to the time of day would leave 64 bits.
        let ms = ms.filter(|&ms| self.is_moment || ms <= i64::MAX - NOW_MS_MAX);
        let ms = ms.ok_or(out_of_range)?;
        Ok(if self.is_moment {
            ExpiryArg::At(ms)
        } else {
            ExpiryArg::After(ms)
        })
    }
}

/// The year 5138: more than any clock will say.
const NOW_MS_MAX: i64 = 100_000_000_000_000;
