//! Reading recorded requests: plain keys or the twitter cache-trace CSV, zstd or not, as a stream.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::args::{TTL_SECONDS_MAX, VALUE_BYTES_MAX};
use crate::model::{KEY_BYTES_MAX, KeyError, check_key};

/// A trace that cannot be read, and where.
#[derive(Debug, Error)]
pub(super) enum TraceError {
    #[error("cannot open the trace {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot read the trace {} after line {line}: {source}", path.display())]
    Read {
        path: PathBuf,
        line: u64,
        source: io::Error,
    },
    #[error("trace {} line {line}: {problem}", path.display())]
    Line {
        path: PathBuf,
        line: u64,
        problem: LineError,
    },
}

/// What is wrong with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum LineError {
    #[error("{0}")]
    Key(#[from] KeyError),
    #[error("longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    #[error("not the 7 fields timestamp,key,key_size,value_size,client_id,op,ttl")]
    Fields,
    #[error("{field} is not a number in its range")]
    Number { field: &'static str },
    #[error(
        "unknown operation (known are get, gets, set, add, replace, cas, append, prepend, incr, decr, delete)"
    )]
    Operation,
}

/// One recorded request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) key: &'a [u8],
    pub(super) op: Op,
    /// Bytes of its value, where recorded.
    pub(super) value_size: Option<u32>,
    /// Seconds its value lives, where recorded.
    pub(super) ttl: Option<u32>,
}

/// What a recorded request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// Read; written after a miss.
    Read,
    /// Written in any case. All kinds of writes count as plain ones: only a cache's load matters.
    Write,
    /// Deleted.
    Delete,
}

/// A trace, read line by line.
pub(super) struct Trace {
    path: PathBuf,
    input: Box<dyn BufRead + Send>,
    format: Option<Format>,
    line: Vec<u8>,
    line_number: u64,
}

impl Trace {
    pub(super) fn open(path: &Path) -> Result<Self, TraceError> {
        let opened = File::open(path).and_then(|file| {
            let mut file = BufReader::with_capacity(READ_BYTES, file);
            let is_zstd = file.fill_buf()?.starts_with(&ZSTD_MAGIC);
            let input: Box<dyn BufRead + Send> = if is_zstd {
                let frames = zstd::stream::read::Decoder::with_buffer(file)?;
                Box::new(BufReader::with_capacity(READ_BYTES, frames))
            } else {
                Box::new(file)
            };
            Ok(input)
        });
        match opened {
            Ok(input) => Ok(Self {
                path: path.to_owned(),
                input,
                format: None,
                line: Vec::new(),
                line_number: 0,
            }),
            Err(source) => Err(TraceError::Open {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// The next request; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Entry<'_>>, TraceError> {
        if !self.read_line()? {
            return Ok(None);
        }
        let line = trimmed(&self.line);
        // The first line decides, so that one broken row is told and not taken for a key.
        let format = *self.format.get_or_insert_with(|| Format::of(line));
        let parsed = if self.line.len() > LINE_BYTES_MAX {
            Err(LineError::TooLong)
        } else {
            match format {
                Format::Keys => plain(line),
                Format::Csv => row(line),
            }
        };
        match parsed {
            Ok(entry) => Ok(Some(entry)),
            Err(problem) => Err(TraceError::Line {
                path: self.path.clone(),
                line: self.line_number,
                problem,
            }),
        }
    }

    fn read_line(&mut self) -> Result<bool, TraceError> {
        self.line.clear();
        // One byte more than the limit shows that it was passed, whatever the line's real length.
        let limit = u64::try_from(LINE_BYTES_MAX + 1).unwrap_or(u64::MAX);
        match (&mut self.input)
            .take(limit)
            .read_until(b'\n', &mut self.line)
        {
            Ok(0) => Ok(false),
            Ok(_) => {
                self.line_number += 1;
                Ok(true)
            }
            Err(source) => Err(TraceError::Read {
                path: self.path.clone(),
                line: self.line_number,
                source,
            }),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Format {
    Keys,
    Csv,
}

impl Format {
    fn of(first_line: &[u8]) -> Self {
        let commas = first_line.iter().filter(|byte| **byte == b',').count();
        if commas >= CSV_FIELDS - 1 {
            Self::Csv
        } else {
            Self::Keys
        }
    }
}

fn plain(line: &[u8]) -> Result<Entry<'_>, LineError> {
    check_key(line)?;
    Ok(Entry {
        key: line,
        op: Op::Read,
        value_size: None,
        ttl: None,
    })
}

/// `timestamp,key,key_size,value_size,client_id,op,ttl`; commas inside the key are part of it.
fn row(line: &[u8]) -> Result<Entry<'_>, LineError> {
    let mut from_end = line.rsplitn(CSV_FIELDS - 1, |byte| *byte == b',');
    let mut field = || from_end.next().ok_or(LineError::Fields);
    let (ttl, op, _client) = (field()?, field()?, field()?);
    let (value_size, _key_size, front) = (field()?, field()?, field()?);
    let comma = front
        .iter()
        .position(|byte| *byte == b',')
        .ok_or(LineError::Fields)?;
    let (timestamp, key) = (&front[..comma], &front[comma + 1..]);
    check_key(key)?;
    number(timestamp, "timestamp", u64::from(u32::MAX))?;
    let ttl = number(ttl, "ttl", TTL_SECONDS_MAX)?;
    Ok(Entry {
        key,
        op: operation(op)?,
        value_size: Some(number(value_size, "value_size", VALUE_BYTES_MAX)?),
        ttl: (ttl > 0).then_some(ttl),
    })
}

fn operation(text: &[u8]) -> Result<Op, LineError> {
    match text {
        b"get" | b"gets" => Ok(Op::Read),
        b"set" | b"add" | b"replace" | b"cas" | b"append" | b"prepend" | b"incr" | b"decr" => {
            Ok(Op::Write)
        }
        b"delete" => Ok(Op::Delete),
        _ => Err(LineError::Operation),
    }
}

fn number(text: &[u8], field: &'static str, max: u64) -> Result<u32, LineError> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse::<u32>().ok())
        .filter(|number| u64::from(*number) <= max)
        .ok_or(LineError::Number { field })
}

fn trimmed(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

const READ_BYTES: usize = 64 * 1024;

const CSV_FIELDS: usize = 7;

/// The longest key and, in a CSV, room for the other fields.
const LINE_BYTES_MAX: usize = KEY_BYTES_MAX + 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &[u8]) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        std::fs::write(&path, content).unwrap();
        let mut trace = Trace::open(&path).map_err(|error| error.to_string())?;
        let mut entries = Vec::new();
        loop {
            match trace.next() {
                Ok(Some(entry)) => {
                    let key = entry.key.escape_ascii();
                    let (op, size, ttl) = (entry.op, entry.value_size, entry.ttl);
                    entries.push(format!("{key} {op:?} {size:?} {ttl:?}"));
                }
                Ok(None) => return Ok(entries),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// A zstd frame of one uncompressed block: magic, a header with the size in one byte, the
    /// block header (last block, raw, length), the content.
    fn raw_frame(content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).unwrap();
        let mut frame = ZSTD_MAGIC.to_vec();
        frame.extend([0x20, length]);
        frame.extend(&((u32::from(length) << 3) | 1).to_le_bytes()[..3]);
        frame.extend(content);
        frame
    }

    #[test]
    fn plain_keys_are_read_in_order() {
        let expected = [
            "a Read None None",
            "b,\\xff Read None None",
            "a Read None None",
        ];
        assert_eq!(read(b"a\nb,\xff\r\na").unwrap(), expected);
        assert_eq!(read(b"a\nb,\xff\na\n").unwrap(), expected);
        assert!(read(b"").unwrap().is_empty());
    }

    #[test]
    fn zstd_is_told_by_its_magic_and_may_have_several_frames() {
        let mut file = raw_frame(b"a\nb");
        // A skippable frame of 3 bytes, as pzstd writes them.
        file.extend([0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
        file.extend(raw_frame(b""));
        file.extend(raw_frame(b"b\nc\n"));
        let expected = ["a Read None None", "bb Read None None", "c Read None None"];
        assert_eq!(read(&file).unwrap(), expected);
        let error = read(&file[..file.len() - 2]).unwrap_err();
        assert!(error.contains("incomplete frame"), "{error}");
    }

    #[test]
    fn csv_rows_carry_operation_size_and_ttl() {
        let rows = b"0,k,1,100,7,get,0\n0,a,b,3,0,7,set,60\n1,k,1,0,8,delete,0\n";
        let expected = [
            "k Read Some(100) None",
            "a,b Write Some(0) Some(60)",
            "k Delete Some(0) None",
        ];
        assert_eq!(read(rows).unwrap(), expected);
    }

    #[test]
    fn bad_lines_are_told_with_their_number() {
        let long = vec![b'k'; KEY_BYTES_MAX + 1];
        let endless = vec![b'k'; LINE_BYTES_MAX * 2];
        for (content, told) in [
            (&b"a\n\nb\n"[..], "line 2: key is empty"),
            (&long, "line 1: key has 65537 bytes"),
            (&endless, "line 1: longer than"),
            (
                b"timestamp,key,key_size,value_size,client_id,op,ttl\n",
                "line 1: timestamp",
            ),
            (b"0,k,1,1,1,get,0\nk\n", "line 2: not the 7 fields"),
            (b"0,k,1,1,1,get,0\n0,k,1,-1,1,get,0\n", "line 2: value_size"),
            (b"0,k,1,600000000,1,get,0\n", "line 1: value_size"),
            (b"0,k,1,1,1,GET,0\n", "line 1: unknown operation"),
            (b"0,,1,1,1,get,0\n", "line 1: key is empty"),
        ] {
            let error = read(content).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn a_missing_file_is_told_with_its_path() {
        let error = Trace::open(Path::new("/nonexistent/trace")).err().unwrap();
        assert!(error.to_string().contains("/nonexistent/trace"), "{error}");
    }
}
