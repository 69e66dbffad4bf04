//! What the fuzz targets do with an input: one function each, run by libFuzzer
//! (`fuzz/fuzz_targets`) and, on the stable toolchain, by `tests/fuzz_smoke.rs`.
//!
//! A body panics when a law is broken. That it is done soon and allocates little is for its caller
//! to watch.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use quorate::model::{HlcTime, Kind, Millis, NodeTag, Record, Version};
use quorate::node::{handoff, membership};
use quorate::protocol::Lineage;
use quorate::resp::{Args, Command, CommandKind, Limits, Parsed, Parser, decode, matches};
use quorate::ring::MemberTable;
use quorate::update::{Change, Context, Limit, State};
use quorate::wire::{
    Answer, FrameReader, Operation, RequestHeader, ResponseHeader, encode, split_frame,
};

/// The name of a target and its body.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("resp_parser", resp_parser),
    ("command", command),
    ("wire_frame", wire_frame),
    ("gossip_message", gossip_message),
    ("journal_entry", journal_entry),
    ("member_table", member_table),
    ("cert_name", cert_name),
    ("script", script),
    ("glob", glob),
];

/// The parser of requests. The first byte says in which pieces the rest arrives: the requests are
/// the same in whatever pieces. What is left is read as replies too.
pub fn resp_parser(input: &[u8]) {
    let Some((&piece, stream)) = input.split_first() else {
        return;
    };
    let whole = requests(stream, stream.len().max(1));
    let pieces = requests(stream, usize::from(piece).max(1));
    assert_eq!(whole, pieces, "other requests in pieces of {piece}");
    let mut rest = stream;
    while let Ok(Some((_, length))) = decode(rest) {
        assert!(length > 0, "a reply of no bytes");
        rest = &rest[length..];
    }
}

/// Requests, and how they end, of a stream that arrives in pieces.
fn requests(stream: &[u8], piece: usize) -> Vec<String> {
    let mut parser = Parser::new(LIMITS);
    let mut found = Vec::new();
    let mut input = Vec::new();
    for arrived in stream.chunks(piece) {
        input.extend_from_slice(arrived);
        loop {
            let used = match parser.parse(&input) {
                Ok(Parsed::Incomplete { discard }) => {
                    input.drain(..discard);
                    break;
                }
                Ok(Parsed::Request { consumed }) => {
                    let words = parser.args(&input);
                    let bytes: usize = words.iter().map(<[u8]>::len).sum();
                    assert!(bytes <= LIMITS.request_bytes_max.max(INLINE_BYTES_MAX));
                    let words: Vec<_> = words.iter().map(<[u8]>::escape_ascii).collect();
                    found.push(format!("{words:?}"));
                    consumed
                }
                Ok(Parsed::TooBig { consumed, bytes }) => {
                    found.push(format!("too big: {bytes}"));
                    consumed
                }
                Err(error) => {
                    found.push(error.to_string());
                    return found;
                }
            };
            input.drain(..used);
        }
    }
    found
}

/// Requests of one key, carried out one after the other on what it holds. The first byte says what
/// that is at first. Scripts have a target of their own.
pub fn command(input: &[u8]) {
    let Some((&first, mut rest)) = input.split_first() else {
        return;
    };
    let mut state = State::of(record(first).as_ref(), NOW);
    let mut parser = Parser::new(LIMITS);
    for _ in 0..COMMANDS_MAX {
        let Ok(Parsed::Request { consumed }) = parser.parse(rest) else {
            return;
        };
        let words = parser.args(rest);
        if !words.is_empty() && !is_script(words) {
            let limit = Limit::of_steps();
            let request = request(words.iter());
            let reply = Change::Command(request.into()).make(&mut state, context(&limit));
            // A value, or an error that quotes the request. Each field of a hash costs a little more.
            assert!(reply.bytes() <= 64 * (VALUE_BYTES_MAX + rest.len()));
            let held = state.held().map_or(0, |held| held.value.len());
            assert!(held <= VALUE_BYTES_MAX, "a value of {held} bytes");
        }
        rest = &rest[consumed..];
    }
}

fn is_script(words: Args<'_>) -> bool {
    let Ok(command) = Command::parse(words) else {
        return false;
    };
    matches!(
        command.kind(),
        CommandKind::Eval | CommandKind::EvalRo | CommandKind::EvalSha | CommandKind::EvalShaRo
    )
}

fn request<'a, W: ExactSizeIterator<Item = &'a [u8]>>(words: W) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// What a key holds: nothing, a text, a number, a hash, a value of a kind that it is not.
fn record(choice: u8) -> Option<Record> {
    let (kind, value): (Kind, &[u8]) = match choice % 6 {
        0 => return None,
        1 => (Kind::String, b"some text"),
        2 => (Kind::String, b"41"),
        3 => (Kind::String, b"0e-2147483647"),
        4 => (Kind::Hash, b"\x01\0\0\0f\x02\0\0\x0041"),
        _ => (Kind::Hash, b"no hash"),
    };
    let version = Version {
        hlc: HlcTime(1),
        node: NodeTag(1),
    };
    let expires_at = (choice > 127).then_some(Millis(NOW.0 + 1_000));
    let value = Bytes::from_static(value);
    Some(Record {
        kind,
        ..Record::value(version, expires_at, value)
    })
}

/// Request and response frames: what is read is the same when it is written and read again.
pub fn wire_frame(input: &[u8]) {
    let mut stream = BytesMut::from(input);
    while let Ok(Some(frame)) = split_frame(&mut stream, 1 << 20) {
        read_frame(&frame);
    }
    read_frame(input);
    let lineage = Lineage::decode(input, HlcTime(1));
    let again = Lineage::decode(&lineage.encode(), HlcTime(1));
    assert_eq!(lineage, again);
    let mut changes = FrameReader::new(input);
    while let Ok(change) = changes.read::<Change>() {
        let mut written = Vec::new();
        encode(&change, &mut written);
        assert_eq!(
            FrameReader::new(&written).read::<Change>().ok(),
            Some(change)
        );
    }
}

fn read_frame(frame: &[u8]) {
    let mut reader = FrameReader::new(frame);
    drop(reader.read::<RequestHeader<'_>>());
    while let Ok(operation) = reader.read::<Operation<'_>>() {
        let mut written = Vec::new();
        encode(&operation, &mut written);
        let again = FrameReader::new(&written).read::<Operation<'_>>().ok();
        assert_eq!(again, Some(operation));
    }
    let mut reader = FrameReader::new(frame);
    drop(reader.read::<ResponseHeader<'_>>());
    while let Ok(answer) = reader.read::<Answer<'_>>() {
        let mut written = Vec::new();
        encode(&answer, &mut written);
        let again = FrameReader::new(&written).read::<Answer<'_>>().ok();
        assert_eq!(again, Some(answer));
    }
    for from in 0..frame.len().min(4) {
        drop(FrameReader::new(&frame[from..]).read::<Operation<'_>>());
        drop(FrameReader::new(&frame[from..]).read::<Answer<'_>>());
    }
}

/// A gossip message of a peer, as it arrives.
pub fn gossip_message(input: &[u8]) {
    let _is_believed = membership::is_believed("peer", input);
}

/// What the journal of hints holds on disk: entries between noise, and the hint in one.
pub fn journal_entry(input: &[u8]) {
    let (intact, damaged) = quorate::env::count_entries(input);
    assert!(intact + damaged <= input.len() as u64);
    let (key, value) = input.split_at(input.len().min(12));
    let _is_one = handoff::is_hint_entry(key, value);
}

/// A member table, from disk or from a peer; with the right checksum in front too.
pub fn member_table(input: &[u8]) {
    let sum = siphasher::sip::SipHasher13::new().hash(input);
    let summed = [&sum.to_le_bytes(), input].concat();
    for bytes in [Cow::Borrowed(input), Cow::Owned(summed)] {
        if let Ok(table) = MemberTable::from_bytes(&bytes, CLUSTER, PARTITIONS) {
            let written = table.to_bytes(CLUSTER, PARTITIONS);
            let again = MemberTable::from_bytes(&written, CLUSTER, PARTITIONS);
            assert!(again.is_ok_and(|again| again == table));
            drop(table.conflicts());
        }
    }
}

/// The name in a certificate, as DER and as text.
pub fn cert_name(input: &[u8]) {
    use quorate::net::Identity;
    let known = Identity::from_certificate(input).ok();
    let named = str::from_utf8(input).ok().and_then(|text| {
        let identity: Identity = text.parse().ok()?;
        assert_eq!(identity.to_string(), text);
        Some(identity)
    });
    for identity in known.into_iter().chain(named) {
        assert_eq!(identity.to_string().parse(), Ok(identity));
    }
}

/// A script, what its key holds and its arguments: `choice source \0 argument \0 argument ...`.
pub fn script(input: &[u8]) {
    let Some((&choice, rest)) = input.split_first() else {
        return;
    };
    let mut parts = rest.split(|&byte| byte == 0);
    let source = parts.next().unwrap_or_default();
    let mut words = vec![&b"EVAL"[..], source, b"1", b"key"];
    words.extend(parts.take(100));
    let mut state = State::of(record(choice).as_ref(), NOW);
    let limit = Limit::of_steps();
    let reply =
        Change::Command(request(words.into_iter()).into()).make(&mut state, context(&limit));
    assert!(
        reply.bytes() <= SCRIPT_REPLY_BYTES_MAX,
        "a reply of {} bytes",
        reply.bytes()
    );
    let held = state.held().map_or(0, |held| held.value.len());
    assert!(held <= VALUE_BYTES_MAX, "a value of {held} bytes");
}

/// A pattern and a text; the first byte says where the one ends.
pub fn glob(input: &[u8]) {
    let Some((&length, rest)) = input.split_first() else {
        return;
    };
    let (pattern, text) = rest.split_at(rest.len().min(length.into()));
    let _is_match = matches(pattern, text);
    assert!(matches(b"*", text));
    let escaped: Vec<u8> = text.iter().flat_map(|&byte| [b'\\', byte]).collect();
    assert!(matches(&escaped, text), "a text does not match itself");
    let within = [b"*", &escaped[..], b"*"].concat();
    assert!(matches(&within, &[pattern, text].concat()));
}

const fn context(limit: &Limit) -> Context<'_> {
    Context {
        now: NOW,
        value_bytes_max: VALUE_BYTES_MAX,
        limit,
    }
}

/// Small, so that inputs reach them.
const LIMITS: Limits = Limits {
    value_bytes_max: 1_000,
    request_bytes_max: 4_000,
    args_max: 64,
};
/// Redis's limit of a command in words.
const INLINE_BYTES_MAX: usize = 64 * 1024;
const VALUE_BYTES_MAX: usize = 64 * 1024;
const NOW: Millis = Millis(1_700_000_000_000);
const COMMANDS_MAX: usize = 64;
const CLUSTER: &str = "blue";
const PARTITIONS: u32 = 64;
/// What a script may have at all.
const SCRIPT_REPLY_BYTES_MAX: usize = 64 << 20;
