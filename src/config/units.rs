//! Durations and sizes as people write them: `1h30m`, `64MiB`.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

/// A number of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Why text is not a duration or a size.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UnitError {
    /// A place where a number must stand holds something else.
    #[error("a number is missing")]
    NumberMissing,
    /// A number without a unit where one is needed.
    #[error("a unit is missing: {units}")]
    UnitMissing {
        /// The units there are.
        units: &'static str,
    },
    /// A unit that does not exist.
    #[error("`{unit}` is not a unit: {units}")]
    UnitUnknown {
        /// The unit as written.
        unit: String,
        /// The units there are.
        units: &'static str,
    },
    /// More than can be counted.
    #[error("the number is too large")]
    TooLarge,
}

/// Reads a duration: one or more of a whole number and a unit, such as `250ms` or `1h30m`. A lone
/// `0` needs no unit.
pub(super) fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total_ms: u64 = 0;
    loop {
        let (number, after) = split_number(rest)?;
        let unit_end = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let unit_ms = unit_size(unit, &DURATION_UNITS, DURATION_UNIT_NAMES)?;
        total_ms = number
            .checked_mul(unit_ms)
            .and_then(|ms| ms.checked_add(total_ms))
            .ok_or(UnitError::TooLarge)?;
        if next.is_empty() {
            return Ok(Duration::from_millis(total_ms));
        }
        rest = next;
    }
}

/// Writes a duration so that [`parse_duration`] reads the same one, to the millisecond.
pub(super) fn format_duration(duration: Duration) -> String {
    let mut rest_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, unit_ms) in DURATION_UNITS {
        if rest_ms >= unit_ms {
            text.push_str(&format!("{}{unit}", rest_ms / unit_ms));
            rest_ms %= unit_ms;
        }
    }
    if text.is_empty() {
        text.push_str("0s");
    }
    text
}

/// Reads a size: a whole number of bytes, or a whole number and a unit, such as `64MiB`.
pub(super) fn parse_size(text: &str) -> Result<ByteSize, UnitError> {
    let (number, unit) = split_number(text.trim())?;
    let unit_bytes = match unit.trim_start() {
        "" => 1,
        unit => unit_size(unit, &SIZE_UNITS, SIZE_UNIT_NAMES)?,
    };
    number
        .checked_mul(unit_bytes)
        .map(ByteSize)
        .ok_or(UnitError::TooLarge)
}

impl fmt::Display for ByteSize {
    /// In the largest binary unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, bytes): &&(&str, u64)| self.0 != 0 && self.0.is_multiple_of(*bytes);
        match BINARY_UNITS.iter().find(fits) {
            Some((unit, bytes)) => write!(f, "{}{unit}", self.0 / bytes),
            None => write!(f, "{}", self.0),
        }
    }
}

fn split_number(text: &str) -> Result<(u64, &str), UnitError> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if digits.is_empty() {
        return Err(UnitError::NumberMissing);
    }
    // Only digits are left, so the one thing that can fail is the range.
    digits
        .parse()
        .map(|number| (number, rest))
        .or(Err(UnitError::TooLarge))
}

fn unit_size(unit: &str, known: &[(&str, u64)], units: &'static str) -> Result<u64, UnitError> {
    if unit.is_empty() {
        return Err(UnitError::UnitMissing { units });
    }
    match known.iter().find(|(name, _)| *name == unit) {
        Some((_, size)) => Ok(*size),
        None => Err(UnitError::UnitUnknown {
            unit: unit.to_owned(),
            units,
        }),
    }
}

/// In milliseconds, the largest first.
const DURATION_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];
const DURATION_UNIT_NAMES: &str = "units are ms, s, m, h, d";

/// In bytes, the largest first.
const BINARY_UNITS: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];
const SIZE_UNITS: [(&str, u64); 9] = [
    BINARY_UNITS[0],
    BINARY_UNITS[1],
    BINARY_UNITS[2],
    BINARY_UNITS[3],
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];
const SIZE_UNIT_NAMES: &str = "units are B, KB, MB, GB, TB (1000) and KiB, MiB, GiB, TiB (1024)";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        let read = |text| parse_duration(text).map(|duration| duration.as_millis());
        assert_eq!(read("250ms"), Ok(250));
        assert_eq!(read("1s"), Ok(1_000));
        assert_eq!(read("3h"), Ok(3 * 3_600_000));
        assert_eq!(read("1h30m"), Ok(90 * 60_000));
        assert_eq!(read(" 2d "), Ok(2 * 86_400_000));
        assert_eq!(read("0"), Ok(0));
        assert_eq!(read("0s"), Ok(0));
    }

    #[test]
    fn what_is_no_duration_is_told() {
        assert_eq!(parse_duration(""), Err(UnitError::NumberMissing));
        assert_eq!(parse_duration("-1s"), Err(UnitError::NumberMissing));
        assert_eq!(
            parse_duration("5"),
            Err(UnitError::UnitMissing {
                units: DURATION_UNIT_NAMES
            })
        );
        for text in ["1.5s", "1s 2m", "5 s", "3parsecs", "1H"] {
            assert!(
                matches!(parse_duration(text), Err(UnitError::UnitUnknown { .. })),
                "{text}"
            );
        }
        for text in ["99999999999999999999s", "18446744073709551615s"] {
            assert_eq!(parse_duration(text), Err(UnitError::TooLarge), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_with_and_without_units() {
        assert_eq!(parse_size("1048576"), Ok(ByteSize(1 << 20)));
        assert_eq!(parse_size("64MiB"), Ok(ByteSize(64 << 20)));
        assert_eq!(parse_size("64 MiB"), Ok(ByteSize(64 << 20)));
        assert_eq!(parse_size("16KB"), Ok(ByteSize(16_000)));
        assert_eq!(parse_size("7B"), Ok(ByteSize(7)));
        assert_eq!(parse_size("MiB"), Err(UnitError::NumberMissing));
        assert_eq!(parse_size("99999999TiB"), Err(UnitError::TooLarge));
        assert!(matches!(
            parse_size("1mb"),
            Err(UnitError::UnitUnknown { .. })
        ));
    }

    #[test]
    fn units_read_well_in_output() {
        assert_eq!(format_duration(Duration::from_secs(5_400)), "1h30m");
        assert_eq!(format_duration(Duration::from_millis(1_500)), "1s500ms");
        assert_eq!(format_duration(Duration::ZERO), "0s");
        assert_eq!(ByteSize(16 << 20).to_string(), "16MiB");
        assert_eq!(ByteSize(1_000_001).to_string(), "1000001");
        assert_eq!(ByteSize(0).to_string(), "0");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(ms: u64, bytes: u64) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
            prop_assert_eq!(parse_size(&ByteSize(bytes).to_string()), Ok(ByteSize(bytes)));
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _duration = parse_duration(&text);
            let _size = parse_size(&text);
        }
    }
}
