//! Tables for people: aligned columns, colours on a terminal only.

use std::io::{self, IsTerminal, Write};

/// Rows of cells under a header. Numbers are aligned right.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    red_rows: Vec<usize>,
}

impl Table {
    pub(super) fn new(header: &[&str]) -> Self {
        let header = header.iter().map(|&cell| cell.to_owned()).collect();
        Self {
            rows: vec![header],
            red_rows: Vec::new(),
        }
    }

    /// Adds a row; `is_alert` makes it red on a terminal.
    pub(super) fn push(&mut self, cells: Vec<String>, is_alert: bool) {
        if is_alert {
            self.red_rows.push(self.rows.len());
        }
        self.rows.push(cells);
    }

    pub(super) fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell =
            |row: usize, column: usize| self.rows[row].get(column).map_or("", String::as_str);
        let all = 0..self.rows.len();
        let widths: Vec<usize> = (0..columns)
            .map(|c| {
                all.clone()
                    .map(|r| cell(r, c).chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let numeric: Vec<bool> = (0..columns)
            .map(|c| is_numeric(&all.clone().skip(1).map(|r| cell(r, c)).collect::<Vec<_>>()))
            .collect();
        let colour = io::stdout().is_terminal();
        for row in all {
            let cells = (0..columns).map(|c| {
                let (text, width) = (cell(row, c), widths[c]);
                if numeric[c] {
                    format!("{text:>width$}")
                } else {
                    format!("{text:<width$}")
                }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            let line = line.trim_end();
            match (colour, row) {
                (true, 0) => writeln!(out, "\x1b[1m{line}\x1b[0m")?,
                (true, row) if self.red_rows.contains(&row) => {
                    writeln!(out, "\x1b[31m{line}\x1b[0m")?;
                }
                _ => writeln!(out, "{line}")?,
            }
        }
        Ok(())
    }
}

/// Whether a column holds numbers, with `-` where there is none.
fn is_numeric(cells: &[&str]) -> bool {
    let is_number =
        |text: &str| text.starts_with(|c: char| c.is_ascii_digit()) && !text.contains(':');
    cells.iter().any(|text| is_number(text))
        && cells.iter().all(|text| is_number(text) || *text == "-")
}

/// Bytes for people.
#[expect(clippy::cast_precision_loss, reason = "for people to read, two digits")]
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1_024 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1_024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if size < 1_024.0 {
            break;
        }
        size /= 1_024.0;
        unit = larger;
    }
    format!("{size:.1} {unit}")
}

/// Seconds for people.
pub(super) fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h {}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_number_does_not_turn_a_column() {
        let mut table = Table::new(&["NODE", "ZONE", "ADDRESS", "KEYS"]);
        table.push(
            ["a", "-", "10.0.0.1:1", "100"].map(str::to_owned).into(),
            false,
        );
        table.push(
            ["bcdefg", "-", "10.0.0.2:1", "-"].map(str::to_owned).into(),
            false,
        );
        let mut out = Vec::new();
        table.print(&mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "NODE    ZONE  ADDRESS     KEYS\n\
             a       -     10.0.0.1:1   100\n\
             bcdefg  -     10.0.0.2:1     -\n"
        );
    }
}
