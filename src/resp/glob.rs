//! The patterns of `KEYS`, `SCAN ... MATCH` and `CONFIG GET`, as Redis has them.

/// Whether a text matches: `*` is any text, `?` any byte, `[a-c]` and `[^a-c]` one of or none of
/// these, `\` takes the next byte as it is.
///
/// Takes at most the product of the lengths: only the last `*` is ever tried again.
#[must_use]
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut rest, mut left) = (pattern, text);
    // Behind the last star, and the text that it may swallow one more byte of.
    let mut again: Option<(&[u8], &[u8])> = None;
    loop {
        if let Some((b'*', behind)) = rest.split_first() {
            again = Some((behind, left));
            rest = behind;
            continue;
        }
        let step = match (left.split_first(), rest.is_empty()) {
            (None, true) => return true,
            (Some((&byte, after)), false) => {
                let (is_match, behind) = one(rest, byte);
                is_match.then_some((behind, after))
            }
            _ => None,
        };
        if let Some(next) = step {
            (rest, left) = next;
            continue;
        }
        // The star takes one byte more.
        let Some((behind, swallowed)) = again else {
            return false;
        };
        let Some((_, fewer)) = swallowed.split_first() else {
            return false;
        };
        again = Some((behind, fewer));
        (rest, left) = (behind, fewer);
    }
}

/// Whether the first element of a pattern, which is no star, matches a byte; what is behind it.
fn one(pattern: &[u8], byte: u8) -> (bool, &[u8]) {
    match pattern {
        [b'?', behind @ ..] => (true, behind),
        [b'[', class @ ..] => one_of(class, byte),
        [b'\\', literal, behind @ ..] => (*literal == byte, behind),
        [literal, behind @ ..] => (*literal == byte, behind),
        [] => (false, pattern),
    }
}

/// The same of a class, from behind its bracket on. One that is not closed ends with the pattern.
fn one_of(class: &[u8], byte: u8) -> (bool, &[u8]) {
    let (is_negated, mut rest) = match class {
        [b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut is_in = false;
    loop {
        rest = match rest {
            [] => break,
            [b']', behind @ ..] => {
                rest = behind;
                break;
            }
            [b'\\', literal, behind @ ..] => {
                is_in |= *literal == byte;
                behind
            }
            [first, b'-', last, behind @ ..] => {
                let (low, high) = (first.min(last), first.max(last));
                is_in |= (*low..=*high).contains(&byte);
                behind
            }
            [literal, behind @ ..] => {
                is_in |= *literal == byte;
                behind
            }
        };
    }
    (is_in != is_negated, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_redis() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("**", "anything", true),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h*llo", "heeeello", true),
            ("h*llo", "hell", false),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[a-c]llo", "hdllo", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("[\\]]", "]", true),
            ("[abc", "b", true),
            ("[", "[", false),
            ("a\\", "a\\", true),
            ("user:*:name", "user:42:name", true),
            ("*a*b*c*", "xxaxxbxxcxx", true),
            ("*a*b*c*", "xxaxxcxxbxx", false),
        ] {
            let found = matches(pattern.as_bytes(), text.as_bytes());
            assert_eq!(found, expected, "{pattern} {text}");
        }
    }

    #[test]
    fn stars_do_not_multiply() {
        let pattern = "*a".repeat(200);
        assert!(!matches(pattern.as_bytes(), &[b'a'; 199]));
        assert!(matches(pattern.as_bytes(), &[b'a'; 5_000]));
        assert!(!matches(format!("{pattern}b").as_bytes(), &[b'a'; 5_000]));
    }
}
