//! What a person sees while a run goes on.

use std::io::Write;

/// Shows how a round is going, on one line that is written again and again.
pub(super) struct Progress<'a> {
    out: Option<&'a mut dyn Write>,
}

impl<'a> Progress<'a> {
    /// `None` shows nothing.
    pub(super) fn new(out: Option<&'a mut dyn Write>) -> Self {
        Self { out }
    }

    pub(super) fn show(&mut self, line: &str) {
        let Some(out) = &mut self.out else {
            return;
        };
        // Back to the start of the line, and clear what the last one has left over.
        let written = write!(out, "\r{line}\x1b[K").and_then(|()| out.flush());
        if written.is_err() {
            self.out = None;
        }
    }
}

/// Digits in groups of three.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_three_digits() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
