//! Sums of decimal numbers, as `INCRBYFLOAT` makes them.

/// The sum of two numbers as clients write them.
pub(super) enum Sum {
    /// It, as Redis would write it.
    Is(String),
    /// The first is no number.
    NoNumber,
    /// It is no number that could be kept.
    Infinite,
}

/// Adds what a client sent to what is held.
///
/// Redis adds in 80 bits and shows up to 17 digits behind the point. Decimals of that size are added
/// here as they are, without an error; what is larger, in 64 bits.
pub(super) fn add(held: &[u8], by: &[u8]) -> Sum {
    let (Some(held), Some(by)) = (Decimal::read(held), Decimal::read(by)) else {
        return Sum::NoNumber;
    };
    if let (Some(held), Some(by)) = (held.exact, by.exact)
        && let Some(sum) = held.checked_add(by)
    {
        return Sum::Is(write(sum));
    }
    let sum = held.near + by.near;
    if sum.is_finite() {
        Sum::Is(format!("{sum}"))
    } else {
        Sum::Infinite
    }
}

/// Whether a number is a finite one; `None`: it is no number.
pub(super) fn is_finite(text: &[u8]) -> Option<bool> {
    Decimal::read(text).map(|decimal| decimal.near.is_finite())
}

struct Decimal {
    near: f64,
    /// In units of the last digit shown, if that is exact.
    exact: Option<i128>,
}

impl Decimal {
    fn read(text: &[u8]) -> Option<Self> {
        if text.len() >= BYTES_MAX {
            return None;
        }
        let text = std::str::from_utf8(text).ok()?;
        let is_plain = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
        // Redis takes infinities, and refuses their sums.
        let is_infinite = matches!(
            text.trim_start_matches(['+', '-'])
                .to_ascii_lowercase()
                .as_str(),
            "inf" | "infinity"
        );
        if text.is_empty() || !(is_infinite || text.chars().all(is_plain)) {
            return None;
        }
        let near: f64 = text.parse().ok()?;
        Some(Self {
            near,
            exact: exact(text),
        })
    }
}

fn exact(text: &str) -> Option<i128> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (is_negative, digits) = match mantissa.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, mantissa.strip_prefix('+').unwrap_or(mantissa)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all = whole.bytes().chain(fraction.bytes());
    let mut number = all.into_iter().try_fold(0_i128, |sum, digit| {
        let digit = digit.is_ascii_digit().then(|| i128::from(digit - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })?;
    if number == 0 {
        return Some(0);
    }
    let shown = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    // A number has 39 digits at most: beyond that none is left of it, or there is no room.
    let moved = shown.checked_add(DIGITS)?;
    if moved.unsigned_abs() > 39 {
        return None;
    }
    let scale = 10_i128.checked_pow(moved.unsigned_abs());
    if moved < 0 {
        let scale = scale?;
        if number % scale != 0 {
            return None;
        }
        number /= scale;
    } else {
        number = number.checked_mul(scale?)?;
    }
    Some(if is_negative { -number } else { number })
}

fn write(number: i128) -> String {
    let digits = format!("{:018}", number.unsigned_abs());
    let (whole, fraction) = digits.split_at(digits.len() - usize::try_from(DIGITS).unwrap_or(17));
    let fraction = fraction.trim_end_matches('0');
    let sign = if number < 0 { "-" } else { "" };
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{whole}{point}{fraction}")
}

/// Redis takes no longer ones.
const BYTES_MAX: usize = 5 * 1024;
/// Behind the point.
const DIGITS: i32 = 17;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_redis() {
        for (held, by, sum) in [
            ("10.50", "0.1", "10.6"),
            ("5.0e3", "2.0e2", "5200"),
            ("0.1", "0.2", "0.3"),
            ("10.6", "-5", "5.6"),
            ("0", "-1.5", "-1.5"),
            ("1.23", "-1.23", "0"),
            ("-0.5", "0.25", "-0.25"),
            ("3", "4", "7"),
            ("+1", "1.", "2"),
        ] {
            match add(held.as_bytes(), by.as_bytes()) {
                Sum::Is(is) => assert_eq!(is, sum, "{held} + {by}"),
                _ => panic!("{held} + {by} is no sum"),
            }
        }
    }

    #[test]
    fn an_exponent_costs_no_time() {
        let sum = |held: &str, by: &str| match add(held.as_bytes(), by.as_bytes()) {
            Sum::Is(is) => is,
            Sum::NoNumber => "no number".to_owned(),
            Sum::Infinite => "infinite".to_owned(),
        };
        for zero in [
            "0e-2147483647",
            "0e2147483647",
            "0e-2147483648",
            "0.0e2147483647",
            "0e-99999999999",
        ] {
            assert_eq!(sum(zero, "1"), "1");
            assert_eq!(sum("1", zero), "1");
        }
        assert_eq!(sum("1e-2147483647", "1"), "1");
        assert_eq!(sum("1e2147483647", "1"), "infinite");
        assert_eq!(sum("1e39", "1"), format!("1{}", "0".repeat(39)));
        assert_eq!(sum("100e-2", "1"), "2");
        assert_eq!(sum(&"1".repeat(5 * 1024), "1"), "no number");
    }

    #[test]
    fn what_is_no_number_is_not_added() {
        for text in ["", "a", "1a", " 1", "1 ", "nan", "0x10", "1e", "--1", "."] {
            assert!(
                matches!(add(text.as_bytes(), b"1"), Sum::NoNumber),
                "{text:?}"
            );
        }
        assert!(matches!(add(b"inf", b"1"), Sum::Infinite));
        assert!(matches!(add(b"1e308", b"1e308"), Sum::Infinite));
    }
}
