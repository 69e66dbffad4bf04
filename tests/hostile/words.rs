//! Words of requests at their extremes, and the commands that they are put into.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use quorate::env::SeededRng;
use quorate::resp::{Reply, decode};

/// One row of the command table, as the node itself replies to `COMMAND`.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) name: String,
    arity: i64,
    first_key: i64,
    last_key: i64,
    key_step: i64,
}

/// The node's commands: one that is added to its table is attacked without a change here.
pub(crate) fn command_table(addr: &str) -> Vec<Row> {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream.write_all(b"*1\r\n$7\r\nCOMMAND\r\n").unwrap();
    let (mut input, mut chunk) = (Vec::new(), [0; 65_536]);
    let reply = loop {
        let bytes = stream.read(&mut chunk).unwrap();
        assert!(bytes > 0, "no reply to COMMAND");
        input.extend_from_slice(&chunk[..bytes]);
        if let Some((reply, _)) = decode(&input).unwrap() {
            break reply;
        }
    };
    let Reply::Array(rows) = reply else {
        panic!("COMMAND replied {reply:?}")
    };
    let row = |row: Reply| match row {
        Reply::Array(facts) => {
            let number = |at: usize| match facts[at] {
                Reply::Integer(number) => number,
                ref other => panic!("no number in COMMAND: {other:?}"),
            };
            let name = match &facts[0] {
                Reply::Bulk(name) => String::from_utf8(name.clone()).unwrap(),
                other => panic!("no name in COMMAND: {other:?}"),
            };
            Row {
                name,
                arity: number(1),
                first_key: number(3),
                last_key: number(4),
                key_step: number(5),
            }
        }
        other => panic!("no row in COMMAND: {other:?}"),
    };
    rows.into_iter().map(row).collect()
}

impl Row {
    /// The words of a request for this command, mostly as many as it takes.
    pub(crate) fn request(&self, chance: &Chance) -> Vec<Vec<u8>> {
        let least = usize::try_from(self.arity.unsigned_abs()).unwrap().max(1);
        let mut count = least;
        if self.arity < 0 {
            count += chance.below(7);
        }
        if chance.one_in(12) {
            count = 1 + chance.below(count + 2);
        }
        let mut words = vec![self.name.clone().into_bytes()];
        words.extend((1..count).map(|at| {
            if self.is_key(at, count) {
                key(chance)
            } else {
                word(chance)
            }
        }));
        harmless(&mut words);
        words
    }

    /// A request of so many words more than it needs, if it takes any number.
    pub(crate) fn long_request(&self, count: usize, chance: &Chance) -> Option<Vec<Vec<u8>>> {
        if self.arity >= 0 {
            return None;
        }
        let mut words = vec![self.name.clone().into_bytes()];
        let has_option = self.first_key == 0 && chance.one_in(2);
        if has_option {
            words.push(chance.pick(OPTIONS).as_bytes().to_vec());
        }
        let first = words.len();
        words.extend((first..=count).map(|at| {
            if at == 1 && self.first_key == 1 && self.last_key == 1 {
                b"h:many".to_vec()
            } else {
                format!("h:m:{at}").into_bytes()
            }
        }));
        harmless(&mut words);
        Some(words)
    }

    fn is_key(&self, at: usize, count: usize) -> bool {
        let count = i64::try_from(count).unwrap();
        let at = i64::try_from(at).unwrap();
        let last = if self.last_key < 0 {
            count + self.last_key
        } else {
            self.last_key
        };
        let is_between = (self.first_key..=last).contains(&at);
        self.first_key > 0 && is_between && (at - self.first_key) % self.key_step.max(1) == 0
    }

    /// Whether it does what it is for, however long that takes: stopping the node is no freeze.
    pub(crate) fn is_meant_to_stall(&self) -> bool {
        ["shutdown", "debug", "failover"].contains(&self.name.as_str())
    }
}

/// What is meant to hold all clients up does so for a few milliseconds only, and nothing sets what
/// clients' replies are like (a canary's would be late by request).
fn harmless(words: &mut [Vec<u8>]) {
    let is = |at: usize, text: &str| {
        let word: Option<&Vec<u8>> = words.get(at);
        word.is_some_and(|word| word.eq_ignore_ascii_case(text.as_bytes()))
    };
    if is(0, "client") && is(1, "pause") && words.len() > 2 {
        words[2] = b"3".to_vec();
    }
}

/// A request as clients send it.
pub(crate) fn encode(words: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        let word = word.as_ref();
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// A key; a few keys of each type, so that what they hold is bounded.
pub(crate) fn key(chance: &Chance) -> Vec<u8> {
    let kind = chance.pick(&["s", "h", "n", "x"]);
    format!("h:{kind}:{}", chance.below(6)).into_bytes()
}

/// Any word that a request may have in any place.
pub(crate) fn word(chance: &Chance) -> Vec<u8> {
    match chance.below(20) {
        0..8 => chance.pick(NUMBERS).as_bytes().to_vec(),
        8..13 => chance.pick(OPTIONS).as_bytes().to_vec(),
        13..15 => key(chance),
        15..17 => chance.pick(PATTERNS).as_bytes().to_vec(),
        17..19 => noise(chance.below(40), chance),
        _ => long(
            chance.pick(&[0, 1, 255, 4_096, 65_535, 65_536, 65_537]),
            chance,
        ),
    }
}

/// A word of this length.
pub(crate) fn long(bytes: usize, chance: &Chance) -> Vec<u8> {
    vec![chance.pick(b"a*%0\r\0\xff"); bytes]
}

/// Any bytes.
pub(crate) fn noise(bytes: usize, chance: &Chance) -> Vec<u8> {
    (0..bytes).map(|_| chance.byte()).collect()
}

/// Chance from one seed.
pub(crate) struct Chance(SeededRng);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SeededRng::from_seed(seed))
    }

    pub(crate) fn below(&self, limit: usize) -> usize {
        let limit = u64::try_from(limit.max(1)).unwrap();
        usize::try_from(self.0.next_u64() % limit).unwrap()
    }

    pub(crate) fn one_in(&self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn pick<T: Copy>(&self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub(crate) fn byte(&self) -> u8 {
        self.0.next_u64().to_le_bytes()[0]
    }

    pub(crate) fn shuffle<T>(&self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }
}

/// Limits and one beyond, of 64, 32 and 8 bits, exponents, and what only looks like a number.
pub(crate) const NUMBERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "2",
    "10",
    "15",
    "16",
    "100",
    "127",
    "128",
    "255",
    "256",
    "-128",
    "1000",
    "65535",
    "65536",
    "65537",
    "1000000",
    "16777215",
    "16777216",
    "16777217",
    "134217727",
    "134217728",
    "536870911",
    "536870912",
    "2147483647",
    "2147483648",
    "-2147483648",
    "-2147483649",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775806",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775807",
    "-9223372036854775808",
    "-9223372036854775809",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999999999999999999999999999999999",
    "0e-2147483647",
    "0e-50000000",
    "0e2147483647",
    "1e-2147483648",
    "1e2147483647",
    "1e-4000",
    "1e4932",
    "1e308",
    "-1e308",
    "1.7976931348623157e309",
    "5e-324",
    "0.1",
    "-0",
    "-0.0",
    "1e18",
    "1e19",
    "nan",
    "-nan",
    "inf",
    "-inf",
    "infinity",
    "+1",
    " 1",
    "1 ",
    "01",
    "0x10",
    "1_000",
    "",
    "-",
    "e",
    "1e",
    ".",
];

/// Options and sub-commands of all commands: each is tried with each of them in time.
pub(crate) const OPTIONS: &[&str] = &[
    "EX",
    "PX",
    "EXAT",
    "PXAT",
    "NX",
    "XX",
    "GT",
    "LT",
    "GET",
    "KEEPTTL",
    "IFEQ",
    "IFNE",
    "PERSIST",
    "REPLACE",
    "DB",
    "COUNT",
    "MATCH",
    "TYPE",
    "NOVALUES",
    "BIT",
    "BYTE",
    "ASYNC",
    "SYNC",
    "WRITE",
    "ALL",
    "HELP",
    "LIST",
    "INFO",
    "DOCS",
    "GETKEYS",
    "GETKEYSANDFLAGS",
    "FILTERBY",
    "ID",
    "ADDR",
    "LADDR",
    "USER",
    "SKIPME",
    "MAXAGE",
    "PAUSE",
    "UNPAUSE",
    "UNBLOCK",
    "REPLY",
    "ON",
    "OFF",
    "SKIP",
    "SETNAME",
    "GETNAME",
    "SETINFO",
    "LIB-NAME",
    "LIB-VER",
    "NO-EVICT",
    "NO-TOUCH",
    "TRACKING",
    "CACHING",
    "TRACKINGINFO",
    "GETREDIR",
    "AUTH",
    "SET",
    "RESETSTAT",
    "REWRITE",
    "ENCODING",
    "FREQ",
    "IDLETIME",
    "REFCOUNT",
    "USAGE",
    "SAMPLES",
    "DOCTOR",
    "STATS",
    "MALLOC-STATS",
    "PURGE",
    "LATEST",
    "HISTORY",
    "GRAPH",
    "HISTOGRAM",
    "RESET",
    "LEN",
    "CHANNELS",
    "NUMSUB",
    "NUMPAT",
    "SHARDCHANNELS",
    "LOAD",
    "EXISTS",
    "FLUSH",
    "KILL",
    "DEBUG",
    "STATUS",
    "LEVEL",
    "maxmemory",
    "timeout",
    "string",
    "hash",
];

/// Patterns that make a careless matcher go through all combinations.
pub(crate) const PATTERNS: &[&str] = &[
    "*",
    "?",
    "[",
    "[^",
    "[a-",
    "\\",
    "h:*",
    "*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b",
    "**************************************************************b",
    "[a-z][a-z][a-z]*[^a]*[b-\u{10ffff}]",
    "%s%n%x%p",
    "../../etc/passwd",
    "{\"a\":[[[[[[[[[[]]]]]]]]]]}",
    "\r\n+OK\r\n",
];
