//! The patterns of Lua 5.1, matched in bounded time.
//!
//! Each step is counted: Lua's own matcher takes time that is a power of the length of the text, and
//! nothing can interrupt it. What matches, and what is captured, is the same.

use super::limit::{Ended, Meter};

/// What goes wrong with a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum PatternError {
    /// It is none.
    #[error("{0}")]
    Malformed(&'static str),
    /// It took too long.
    #[error(transparent)]
    Ended(#[from] Ended),
}

/// What a part of a pattern in parentheses has matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Capture {
    /// A part of the text.
    Part(usize, usize),
    /// A place, counted from one.
    Place(usize),
}

/// A pattern that is matched against a text.
pub(super) struct Matcher<'a> {
    text: &'a [u8],
    pattern: &'a [u8],
    meter: &'a Meter,
    is_anchored: bool,
    level: usize,
    captures: [(usize, Length); CAPTURES_MAX],
    depth: usize,
    /// Steps that the meter has not seen yet.
    steps: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Open,
    Place,
    Is(usize),
}

type Found = Result<Option<usize>, PatternError>;

impl<'a> Matcher<'a> {
    pub(super) fn new(text: &'a [u8], pattern: &'a [u8], meter: &'a Meter) -> Self {
        // To Lua 5.1 a pattern ends at a zero.
        let end = pattern.iter().position(|byte| *byte == 0);
        let pattern = &pattern[..end.unwrap_or(pattern.len())];
        Self {
            text,
            pattern,
            meter,
            is_anchored: false,
            level: 0,
            captures: [(0, Length::Open); CAPTURES_MAX],
            depth: 0,
            steps: 0,
        }
    }

    /// Takes a `^` at the beginning for an anchor.
    pub(super) fn anchored(mut self) -> Self {
        if let Some(rest) = self.pattern.strip_prefix(b"^") {
            (self.pattern, self.is_anchored) = (rest, true);
        }
        self
    }

    pub(super) const fn is_anchored(&self) -> bool {
        self.is_anchored
    }

    /// The first match that begins at `from` or later: its beginning and its end.
    pub(super) fn search(&mut self, from: usize) -> Result<Option<(usize, usize)>, PatternError> {
        for start in from..=self.text.len() {
            if let Some(end) = self.match_at(start)? {
                return Ok(Some((start, end)));
            }
            if self.is_anchored {
                break;
            }
        }
        Ok(None)
    }

    /// The end of a match that begins there.
    pub(super) fn match_at(&mut self, start: usize) -> Found {
        (self.level, self.depth) = (0, 0);
        let found = self.run(start, 0);
        let steps = std::mem::take(&mut self.steps);
        self.meter.spend(steps + 1)?;
        found
    }

    /// How many captures the last match has.
    pub(super) const fn level(&self) -> usize {
        self.level
    }

    /// A capture of the last match; the first one is all of it where there are none.
    pub(super) fn capture(
        &self,
        index: usize,
        (start, end): (usize, usize),
    ) -> Result<Capture, PatternError> {
        if index >= self.level {
            return match index {
                0 => Ok(Capture::Part(start, end)),
                _ => Err(PatternError::Malformed("invalid capture index")),
            };
        }
        match self.captures[index] {
            (_, Length::Open) => Err(PatternError::Malformed("unfinished capture")),
            (start, Length::Place) => Ok(Capture::Place(start + 1)),
            (start, Length::Is(length)) => Ok(Capture::Part(start, start + length)),
        }
    }

    /// Matches the rest of the pattern, from `p`, with the text from `s`.
    fn run(&mut self, s: usize, p: usize) -> Found {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(PatternError::Malformed("pattern too complex"));
        }
        let found = self.run_here(s, p);
        self.depth -= 1;
        found
    }

    fn run_here(&mut self, mut s: usize, mut p: usize) -> Found {
        loop {
            self.step(1)?;
            match (self.at(p), self.at(p + 1)) {
                (b'(', b')') => return self.start_capture(s, p + 2, Length::Place),
                (b'(', _) => return self.start_capture(s, p + 1, Length::Open),
                (b')', _) => return self.end_capture(s, p + 1),
                (b'%', b'b') => match self.balance(s, p + 2)? {
                    Some(end) => (s, p) = (end, p + 4),
                    None => return Ok(None),
                },
                (b'%', b'f') => match self.frontier(s, p + 2)? {
                    Some(end) => p = end,
                    None => return Ok(None),
                },
                (b'%', digit) if digit.is_ascii_digit() => match self.same(s, digit)? {
                    Some(end) => (s, p) = (end, p + 2),
                    None => return Ok(None),
                },
                (0, _) => return Ok(Some(s)),
                (b'$', 0) => return Ok((s == self.text.len()).then_some(s)),
                _ => {
                    let end = self.class_end(p)?;
                    let is_met = self.is_met(s, p, end)?;
                    match self.at(end) {
                        b'?' => {
                            if is_met && let Some(found) = self.run(s + 1, end + 1)? {
                                return Ok(Some(found));
                            }
                            p = end + 1;
                        }
                        b'*' => return self.longest(s, p, end),
                        b'+' if is_met => return self.longest(s + 1, p, end),
                        b'+' => return Ok(None),
                        b'-' => return self.shortest(s, p, end),
                        _ if !is_met => return Ok(None),
                        _ => (s, p) = (s + 1, end),
                    }
                }
            }
        }
    }

    fn longest(&mut self, s: usize, p: usize, end: usize) -> Found {
        let mut count = 0;
        while self.is_met(s + count, p, end)? {
            count += 1;
        }
        for count in (0..=count).rev() {
            let found = self.run(s + count, end + 1)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn shortest(&mut self, mut s: usize, p: usize, end: usize) -> Found {
        loop {
            let found = self.run(s, end + 1)?;
            if found.is_some() || !self.is_met(s, p, end)? {
                return Ok(found);
            }
            s += 1;
        }
    }

    fn start_capture(&mut self, s: usize, p: usize, length: Length) -> Found {
        let Some(capture) = self.captures.get_mut(self.level) else {
            return Err(PatternError::Malformed("too many captures"));
        };
        *capture = (s, length);
        self.level += 1;
        let found = self.run(s, p)?;
        if found.is_none() {
            self.level -= 1;
        }
        Ok(found)
    }

    fn end_capture(&mut self, s: usize, p: usize) -> Found {
        let mut open = (0..self.level).rev();
        let open = open.find(|level| self.captures[*level].1 == Length::Open);
        let open = open.ok_or(PatternError::Malformed("invalid pattern capture"))?;
        self.captures[open].1 = Length::Is(s - self.captures[open].0);
        let found = self.run(s, p)?;
        if found.is_none() {
            self.captures[open].1 = Length::Open;
        }
        Ok(found)
    }

    /// What a capture has matched, once more.
    fn same(&mut self, s: usize, digit: u8) -> Found {
        let index = usize::from(digit).checked_sub(usize::from(b'1'));
        let captured = index.filter(|index| *index < self.level);
        let (start, length) = match captured.map(|index| self.captures[index]) {
            None | Some((_, Length::Open)) => {
                return Err(PatternError::Malformed("invalid capture index"));
            }
            // A place has no length that any text could have.
            Some((_, Length::Place)) => return Ok(None),
            Some((start, Length::Is(length))) => (start, length),
        };
        self.step(length as u64 / 8)?;
        let part = &self.text[start..start + length];
        Ok(self.text[s..].starts_with(part).then_some(s + length))
    }

    fn balance(&mut self, s: usize, p: usize) -> Found {
        let (open, close) = (self.at(p), self.at(p + 1));
        if open == 0 || close == 0 {
            return Err(PatternError::Malformed("unbalanced pattern"));
        }
        if self.text.get(s) != Some(&open) {
            return Ok(None);
        }
        let mut depth = 1_usize;
        for at in s + 1..self.text.len() {
            self.step(1)?;
            let byte = self.text[at];
            if byte == close {
                depth -= 1;
                if depth == 0 {
                    return Ok(Some(at + 1));
                }
            } else if byte == open {
                depth += 1;
            }
        }
        Ok(None)
    }

    /// The end of the set if the text goes over into it there.
    fn frontier(&mut self, s: usize, p: usize) -> Found {
        if self.at(p) != b'[' {
            return Err(PatternError::Malformed("missing '[' after '%f' in pattern"));
        }
        let end = self.class_end(p)?;
        let before = s.checked_sub(1).map_or(0, |before| self.text[before]);
        let here = self.text.get(s).copied().unwrap_or(0);
        let is_in = |byte: u8| self.is_in_set(byte, p, end - 1);
        Ok((!is_in(before) && is_in(here)).then_some(end))
    }

    /// Where a single character's class ends.
    fn class_end(&mut self, p: usize) -> Result<usize, PatternError> {
        match self.at(p) {
            b'%' if self.at(p + 1) == 0 => {
                Err(PatternError::Malformed("malformed pattern (ends with '%')"))
            }
            b'%' => Ok(p + 2),
            b'[' => {
                let mut end = p + 1;
                if self.at(end) == b'^' {
                    end += 1;
                }
                loop {
                    if self.at(end) == 0 {
                        return Err(PatternError::Malformed("malformed pattern (missing ']')"));
                    }
                    let byte = self.at(end);
                    end += 1;
                    if byte == b'%' && self.at(end) != 0 {
                        end += 1;
                    }
                    if self.at(end) == b']' {
                        break;
                    }
                }
                self.step((end - p) as u64 / 4)?;
                Ok(end + 1)
            }
            _ => Ok(p + 1),
        }
    }

    /// Whether the text has a character of this class there.
    fn is_met(&mut self, s: usize, p: usize, end: usize) -> Result<bool, PatternError> {
        self.step(1 + (end - p) as u64 / 4)?;
        let Some(&byte) = self.text.get(s) else {
            return Ok(false);
        };
        Ok(match self.at(p) {
            b'.' => true,
            b'%' => is_of_class(byte, self.at(p + 1)),
            b'[' => self.is_in_set(byte, p, end - 1),
            other => other == byte,
        })
    }

    fn is_in_set(&self, byte: u8, mut p: usize, end: usize) -> bool {
        let is_listed = self.at(p + 1) != b'^';
        if !is_listed {
            p += 1;
        }
        p += 1;
        while p < end {
            if self.at(p) == b'%' {
                p += 1;
                if is_of_class(byte, self.at(p)) {
                    return is_listed;
                }
            } else if self.at(p + 1) == b'-' && p + 2 < end {
                p += 2;
                if self.at(p - 2) <= byte && byte <= self.at(p) {
                    return is_listed;
                }
            } else if self.at(p) == byte {
                return is_listed;
            }
            p += 1;
        }
        !is_listed
    }

    /// A byte of the pattern; zero behind its end.
    fn at(&self, p: usize) -> u8 {
        self.pattern.get(p).copied().unwrap_or(0)
    }

    fn step(&mut self, steps: u64) -> Result<(), PatternError> {
        self.steps += steps;
        if self.steps >= STEPS_AT_ONCE {
            let steps = std::mem::take(&mut self.steps);
            self.meter.spend(steps)?;
        }
        Ok(())
    }
}

fn is_of_class(byte: u8, class: u8) -> bool {
    let is_in = match class.to_ascii_lowercase() {
        b'a' => byte.is_ascii_alphabetic(),
        b'c' => byte.is_ascii_control(),
        b'd' => byte.is_ascii_digit(),
        b'l' => byte.is_ascii_lowercase(),
        b'p' => byte.is_ascii_punctuation(),
        b's' => byte.is_ascii_whitespace() || byte == 0x0b,
        b'u' => byte.is_ascii_uppercase(),
        b'w' => byte.is_ascii_alphanumeric(),
        b'x' => byte.is_ascii_hexdigit(),
        b'z' => byte == 0,
        _ => return class == byte,
    };
    is_in == class.is_ascii_lowercase()
}

/// Whether a pattern means itself.
pub(super) fn is_plain(pattern: &[u8]) -> bool {
    let end = pattern.iter().position(|byte| *byte == 0);
    let mut bytes = pattern[..end.unwrap_or(pattern.len())].iter();
    !bytes.any(|byte| b"^$*+?.([%-".contains(byte))
}

/// As in Lua.
const CAPTURES_MAX: usize = 32;
/// As in Lua 5.2 and later; Lua 5.1 goes on until its stack is used up.
const DEPTH_MAX: usize = 200;
const STEPS_AT_ONCE: u64 = 256;
