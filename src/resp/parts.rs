//! Commands that ask for something of a value: a part, a bit, how it is kept.

use super::command::{arity, key, lossy};
use super::parser::integer;
use super::{Args, CommandError, CommandKind, DataCommand, Part};

/// `GETRANGE key start end`
pub(super) fn range(args: Args<'_>, kind: CommandKind) -> Result<DataCommand<'_>, CommandError> {
    if args.len() != 4 {
        return Err(arity(kind));
    }
    let part = Part::Range(number(args, 2)?, number(args, 3)?);
    let key = key(args, 1)?;
    Ok(DataCommand::Part { key, part })
}

/// `GETBIT key offset`
pub(super) fn bit(args: Args<'_>, kind: CommandKind) -> Result<DataCommand<'_>, CommandError> {
    if args.len() != 3 {
        return Err(arity(kind));
    }
    let part = Part::Bit(bit_offset(args)?);
    let key = key(args, 1)?;
    Ok(DataCommand::Part { key, part })
}

/// The number of a bit, behind the key.
pub(super) fn bit_offset(args: Args<'_>) -> Result<u64, CommandError> {
    let offset = args.get(2).and_then(integer);
    let offset = offset.and_then(|offset| u64::try_from(offset).ok());
    let offset = offset.filter(|offset| *offset < BITS_MAX);
    offset.ok_or(CommandError::BitOffset)
}

/// `BITCOUNT key [start end [BYTE | BIT]]`
pub(super) fn count(args: Args<'_>, kind: CommandKind) -> Result<DataCommand<'_>, CommandError> {
    let range = match args.len() {
        0 | 1 => return Err(arity(kind)),
        2 => None,
        4 | 5 => {
            let (start, end) = (number(args, 2)?, number(args, 3)?);
            let is_bits = match args.get(4) {
                None => false,
                Some(unit) if unit.eq_ignore_ascii_case(b"byte") => false,
                Some(unit) if unit.eq_ignore_ascii_case(b"bit") => true,
                Some(_) => return Err(CommandError::Syntax),
            };
            Some((start, end, is_bits))
        }
        _ => return Err(CommandError::Syntax),
    };
    let (key, part) = (key(args, 1)?, Part::Count(range));
    Ok(DataCommand::Part { key, part })
}

/// `OBJECT ENCODING | FREQ | IDLETIME | REFCOUNT key`
pub(super) fn object(args: Args<'_>) -> Result<DataCommand<'_>, CommandError> {
    let name = args.get(1).unwrap_or_default();
    let part = match name.to_ascii_uppercase().as_slice() {
        b"ENCODING" => Some(Part::Encoding),
        b"IDLETIME" => Some(Part::IdleTime),
        b"REFCOUNT" => Some(Part::References),
        b"FREQ" | b"HELP" => None,
        _ => {
            return Err(CommandError::UnknownSubcommand {
                command: "OBJECT",
                name: lossy(name),
            });
        }
    };
    if args.len() != 3 || name.eq_ignore_ascii_case(b"help") {
        let name = lossy(name).to_ascii_lowercase();
        return Err(CommandError::Arity(format!("object|{name}")));
    }
    let part = part.ok_or(CommandError::NoFrequency)?;
    let key = key(args, 2)?;
    Ok(DataCommand::Part { key, part })
}

/// `MEMORY USAGE key [SAMPLES count]`
pub(super) fn usage(args: Args<'_>) -> Result<DataCommand<'_>, CommandError> {
    let name = args.get(1).unwrap_or_default();
    if !name.eq_ignore_ascii_case(b"usage") {
        return Err(CommandError::UnknownSubcommand {
            command: "MEMORY",
            name: lossy(name),
        });
    }
    match (args.len(), args.get(3)) {
        (3, _) => {}
        (5, Some(option)) if option.eq_ignore_ascii_case(b"samples") => {
            if number(args, 4)? < 0 {
                return Err(CommandError::Syntax);
            }
        }
        _ => return Err(CommandError::Syntax),
    }
    Ok(DataCommand::Usage { key: key(args, 2)? })
}

fn number(args: Args<'_>, place: usize) -> Result<i64, CommandError> {
    let number = args.get(place).and_then(integer);
    number.ok_or(CommandError::NotAnInteger)
}

impl Part {
    /// The bytes from `start` to `end`, both of which belong to it, as Redis counts them.
    #[must_use]
    pub fn range(value: &[u8], start: i64, end: i64) -> &[u8] {
        match bounds(value.len(), start, end) {
            Some((first, last)) => &value[first..=last],
            None => &[],
        }
    }

    /// The bit of a number, from the highest of the first byte on; 0 beyond the end.
    #[must_use]
    pub fn bit(value: &[u8], offset: u64) -> bool {
        let byte = usize::try_from(offset / 8)
            .ok()
            .and_then(|at| value.get(at));
        byte.is_some_and(|byte| byte >> (7 - offset % 8) & 1 == 1)
    }

    /// How many bits are set.
    #[must_use]
    pub fn count(value: &[u8], range: Option<(i64, i64, bool)>) -> u64 {
        let ones = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(byte.count_ones())).sum();
        match range {
            None => ones(value),
            Some((start, end, false)) => ones(Self::range(value, start, end)),
            Some((start, end, true)) => {
                let Some((first, last)) = bounds(value.len() * 8, start, end) else {
                    return 0;
                };
                let (first_byte, last_byte) = (first / 8, last / 8);
                // Whole bytes, less the bits before the first one and after the last one.
                let before = u32::from(value[first_byte]) >> (8 - first % 8);
                let after = u32::from(value[last_byte]) & ((1 << (7 - last % 8)) - 1);
                let outside = before.count_ones() + after.count_ones();
                let inside: u64 = ones(&value[first_byte..=last_byte]);
                inside - u64::from(outside)
            }
        }
    }

    /// How Redis would keep a value: it tells clients apart what can be added to.
    #[must_use]
    pub fn encoding(value: &[u8]) -> &'static str {
        let is_integer =
            integer(value).is_some_and(|number| number.to_string().as_bytes() == value);
        if is_integer {
            "int"
        } else if value.len() <= EMBEDDED_BYTES_MAX {
            "embstr"
        } else {
            "raw"
        }
    }
}

/// The first and the last of `length` that are meant; `None`: none is.
fn bounds(length: usize, start: i64, end: i64) -> Option<(usize, usize)> {
    if start < 0 && end < 0 && start > end {
        return None;
    }
    let length = i64::try_from(length).ok()?;
    let place = |at: i64| {
        let at = if at < 0 {
            length.saturating_add(at)
        } else {
            at
        };
        at.max(0)
    };
    let (first, last) = (place(start), place(end).min(length - 1));
    if first > last {
        return None;
    }
    Some((usize::try_from(first).ok()?, usize::try_from(last).ok()?))
}

/// Of the longest value that Redis takes, 512 MiB.
const BITS_MAX: u64 = 512 * 1024 * 1024 * 8;
/// Longer ones Redis keeps apart from their header.
const EMBEDDED_BYTES_MAX: usize = 44;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_redis() {
        for (start, end, expected) in [
            (0, -1, "hello"),
            (0, 0, "h"),
            (1, 3, "ell"),
            (-3, -1, "llo"),
            (-1, -3, ""),
            (3, 1, ""),
            (0, 100, "hello"),
            (-100, 1, "he"),
            (-100, -90, "h"),
            (5, 9, ""),
            (i64::MIN, i64::MAX, "hello"),
        ] {
            let range = Part::range(b"hello", start, end);
            assert_eq!(range, expected.as_bytes(), "{start} {end}");
        }
        assert_eq!(Part::range(b"", 0, -1), b"");
    }

    #[test]
    fn bits_are_those_of_redis() {
        // 0110 0001
        assert!(Part::bit(b"a", 1) && Part::bit(b"a", 2) && Part::bit(b"a", 7));
        assert!(!Part::bit(b"a", 0) && !Part::bit(b"a", 8) && !Part::bit(b"a", u64::MAX));
        assert_eq!(Part::count(b"foobar", None), 26);
        assert_eq!(Part::count(b"foobar", Some((0, 0, false))), 4);
        assert_eq!(Part::count(b"foobar", Some((1, 1, false))), 6);
        assert_eq!(Part::count(b"foobar", Some((5, 30, true))), 17);
        assert_eq!(Part::count(b"foobar", Some((-8, -1, true))), 4);
    }

    #[test]
    fn encodings_are_those_of_redis() {
        assert_eq!(Part::encoding(b"123"), "int");
        assert_eq!(Part::encoding(b"-9223372036854775808"), "int");
        assert_eq!(Part::encoding(b"9223372036854775808"), "embstr");
        assert_eq!(Part::encoding(b"+1"), "embstr");
        assert_eq!(Part::encoding(b"01"), "embstr");
        assert_eq!(Part::encoding(&[b'x'; 44]), "embstr");
        assert_eq!(Part::encoding(&[b'x'; 45]), "raw");
    }
}
