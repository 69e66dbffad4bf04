//! Replies, byte for byte, beside those of a real Redis 7.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use quorate::resp::decode;

use crate::common::{Cluster, PATIENCE, eventually};

/// A Redis of this machine, killed when dropped.
pub(crate) struct Redis {
    process: Child,
    pub(crate) address: String,
}

impl Redis {
    /// `None`: it is not installed.
    pub(crate) fn start() -> Option<Self> {
        let port = 26_000 + u16::try_from(std::process::id() % 4_000).unwrap();
        let port = (port..port + 100)
            .find(|&port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok())
            .expect("a free port");
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .args(["--dir", std::env::temp_dir().to_str()?])
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        let redis = Self {
            process,
            address: format!("127.0.0.1:{port}"),
        };
        eventually("redis-server answers", PATIENCE, || {
            TcpStream::connect(&redis.address).is_ok()
        });
        Some(redis)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

struct Client {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Client {
    fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            input: Vec::new(),
        }
    }

    /// The reply as it came.
    fn call(&mut self, words: &[Vec<u8>]) -> Vec<u8> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend(format!("${}\r\n", word.len()).into_bytes());
            request.extend(word);
            request.extend(b"\r\n");
        }
        self.stream.write_all(&request).unwrap();
        loop {
            if let Some((_, length)) = decode(&self.input).unwrap() {
                return self.input.drain(..length).collect();
            }
            let mut bytes = [0; 65_536];
            let count = self.stream.read(&mut bytes).unwrap();
            assert!(count > 0, "closed after {:?}", shown(&request));
            self.input.extend(&bytes[..count]);
        }
    }
}

fn shown(bytes: &[u8]) -> String {
    let text: String = bytes.escape_ascii().to_string();
    text.chars().take(300).collect()
}

/// The words of a command: separated by blanks, `''` is empty, `\xHH` a byte, `%` the case's own
/// prefix of keys, and `word*n` the word n times.
fn words(command: &str, case: usize) -> Vec<Vec<u8>> {
    let word = |text: &str| {
        if text == "''" {
            return Vec::new();
        }
        let (text, times) = match text.rsplit_once('*') {
            Some((word, times)) if !word.is_empty() && times.parse::<usize>().is_ok() => {
                (word, times.parse().unwrap())
            }
            _ => (text, 1),
        };
        let text = text.replace('%', &format!("c{case}:")).replace("''", "");
        let mut bytes = Vec::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once("\\x") {
            bytes.extend(before.as_bytes());
            let (hex, after) = after.split_at(2);
            bytes.push(u8::from_str_radix(hex, 16).unwrap());
            rest = after;
        }
        bytes.extend(rest.as_bytes());
        bytes.repeat(times)
    };
    command.split_whitespace().map(word).collect()
}

/// Cases, each of commands that build upon each other.
fn cases() -> Vec<Vec<String>> {
    let mut cases: Vec<Vec<String>> = SCRIPTS
        .iter()
        .map(|script| {
            script
                .split(';')
                .map(|line| line.trim().to_owned())
                .collect()
        })
        .collect();
    // Every command with too few, enough and too many words, of every kind.
    for command in COMMANDS {
        for value in ["", "v", "12", "a hash"] {
            for count in 0..=5 {
                for word in WORDS {
                    let mut line = (*command).to_owned();
                    (0..count).for_each(|place| {
                        line.push_str(if place == 0 { " %k" } else { word });
                    });
                    let set = match value {
                        "" => "SET %k ''".to_owned(),
                        "a hash" => "HSET %k f 12 v v".to_owned(),
                        value => format!("SET %k {value}"),
                    };
                    let is_last_alike = count < 2 && *word != WORDS[0];
                    // Redis has 64 bits of a decimal number: here sums are exact.
                    let is_beyond = command.ends_with("FLOAT") && word.len() > 20;
                    if !is_last_alike && !is_beyond {
                        let mut case = vec![set, line];
                        // A millisecond is over sooner here, later there.
                        if *word != " 1" {
                            let what_is_there = ["GET %k", "HGETALL %k", "TYPE %k"];
                            case.extend(what_is_there.map(str::to_owned));
                        }
                        cases.push(case);
                    }
                }
            }
        }
    }
    cases
}

#[test]
fn replies_are_those_of_redis() {
    let Some(redis) = Redis::start() else {
        eprintln!("left out: redis-server is not installed");
        return;
    };
    // Alone a node takes a short cut; of three, each update is decided by a majority.
    let alone = Cluster::start(1, &[]);
    let three = Cluster::start(3, &[]);
    let (all, by_hand) = (cases(), SCRIPTS.len());
    let runs = [
        ("2", &alone, all.len()),
        ("3", &alone, all.len()),
        ("3", &three, by_hand),
    ];
    let (mut compared, mut wrong) = (0, Vec::new());
    for (run, (protocol, cluster, cases)) in runs.into_iter().enumerate() {
        let mut theirs = Client::connect(&redis.address);
        let mut ours = Client::connect(&cluster.nodes[0].resp);
        let hello = [b"HELLO".to_vec(), protocol.as_bytes().to_vec()];
        let _greetings = (theirs.call(&hello), ours.call(&hello));
        for (number, case) in all[..cases].iter().enumerate() {
            let number = number * runs.len() + run;
            for command in case {
                let command = words(command, number);
                let (expected, got) = (theirs.call(&command), ours.call(&command));
                // Keys have a byte at least: documented.
                if got.starts_with(b"-ERR key is empty") {
                    break;
                }
                compared += 1;
                // Arguments are looked at before the key is: of two mistakes the other one is told.
                let is_other_mistake =
                    expected.starts_with(b"-WRONGTYPE") && got.starts_with(b"-ERR");
                if expected != got && !is_other_mistake {
                    wrong.push(format!(
                        "RESP{protocol} {}\n   redis   {}\n   quorate {}",
                        command
                            .iter()
                            .map(|word| shown(word))
                            .collect::<Vec<_>>()
                            .join(" "),
                        shown(&expected),
                        shown(&got)
                    ));
                }
            }
        }
    }
    println!("{compared} replies compared");
    assert!(compared > 2_000, "{compared}");
    wrong.truncate(40);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Commands that take a key first.
const COMMANDS: &[&str] = &[
    "GET",
    "SET",
    "STRLEN",
    "GETRANGE",
    "SUBSTR",
    "GETBIT",
    "BITCOUNT",
    "TTL",
    "PTTL",
    "EXPIRE",
    "PEXPIRE",
    "EXPIREAT",
    "PEXPIREAT",
    "PERSIST",
    "TYPE",
    "DEL",
    "UNLINK",
    "EXISTS",
    "TOUCH",
    "MGET",
    "MSET",
    "SETEX",
    "PSETEX",
    "EXPIRETIME",
    "PEXPIRETIME",
    "INCR",
    "DECR",
    "INCRBY",
    "DECRBY",
    "INCRBYFLOAT",
    "APPEND",
    "SETRANGE",
    "SETBIT",
    "SETNX",
    "GETSET",
    "GETDEL",
    "GETEX",
    "HSET",
    "HMSET",
    "HSETNX",
    "HGET",
    "HMGET",
    "HGETALL",
    "HDEL",
    "HEXISTS",
    "HLEN",
    "HKEYS",
    "HVALS",
    "HSTRLEN",
    "HINCRBY",
    "HINCRBYFLOAT",
];

/// Words of every kind.
const WORDS: &[&str] = &[
    " v",
    " 0",
    " 1",
    " -1",
    " 100000",
    " 99999999999999999999",
    " ''",
    " abc",
    " 1.5",
    " ex",
    " BIT",
];

/// Scripts by hand.
const SCRIPTS: &[&str] = &[
    "SET %a 1; WATCH %a; MULTI; INCR %a; EXEC; WATCH %a; SET %a 5; MULTI; INCR %a; EXEC; GET %a; WATCH; WATCH %a; UNWATCH; SET %a 6; MULTI; GET %a; EXEC; UNWATCH x; MULTI; WATCH %a; EXEC; WATCH %a; MULTI; DISCARD; MULTI; EXEC",
    "WATCH %none; MULTI; SET %none 1; SET %other 2; GET %none; EXEC; WATCH %none; DEL %none; MULTI; SET %none 3; EXEC; EXISTS %none; WATCH %none; SET %none v PX 100000; MULTI; EXEC; DEL %none; WATCH %none; SET %none v; DEL %none; MULTI; EXEC",
    "SET %a v EX 100; RENAME %a %b; GET %b; EXISTS %a; TTL %b; RENAME %none %c; RENAME %b %b; RENAMENX %b %c; GET %c; SET %d w; RENAMENX %c %d; GET %d; RENAME; RENAME a; HSET %h f v; RENAME %h %i; HGETALL %i; RENAMENX %none %x",
    "SET %a v; COPY %a %b; GET %b; COPY %a %b; SET %a w; COPY %a %b REPLACE; GET %b; COPY %none %c; COPY %a %a; COPY %a %c DB 1; EXISTS %c; COPY %a %c DB 99; COPY %a %c FOO; COPY %a; COPY %a %c DB x; COPY %a %c DB",
    "SET %a v; SELECT 1; GET %a; SET %a w; SELECT 0; GET %a; SELECT 1; GET %a; DEL %a; SELECT 15; EXISTS %a; SELECT 16; SELECT 0; GET %a",
    "SELECT 9; FLUSHDB; SET %a 1; SET %b 2; HSET %h f v; DBSIZE; FLUSHDB; DBSIZE; GET %a; KEYS *; RANDOMKEY; SET %a 3; GET %a; DBSIZE; FLUSHDB ASYNC; FLUSHDB SYNC; FLUSHDB x; FLUSHDB ASYNC x; EXISTS %a; SELECT 0",
    "PUBLISH %c hello; PUBLISH; PUBLISH a; PUBSUB CHANNELS %*; PUBSUB NUMSUB %a %b; PUBSUB NUMSUB; PUBSUB NUMPAT; PUBSUB NUMPAT x; PUBSUB NOSUCH; PUBSUB; UNSUBSCRIBE; PUNSUBSCRIBE",
    "CONFIG SET; CONFIG SET a; CONFIG SET nosuch 1; CONFIG SET maxmemory; CONFIG RESETSTAT; CONFIG RESETSTAT x; CONFIG SET slowlog-log-slower-than 20000; CONFIG GET slowlog-log-slower-than; CONFIG SET notify-keyspace-events ''; CONFIG GET databases",
    "LATENCY; LATENCY LATEST; LATENCY LATEST x; LATENCY RESET; LATENCY RESET x; LATENCY HISTORY; LATENCY NOSUCH",
    "CLIENT KILL; CLIENT KILL 1.2.3.4:5; CLIENT KILL ADDR 1.2.3.4:5; CLIENT KILL ID 0; CLIENT KILL ID x; CLIENT KILL ID 99999999; CLIENT KILL FOO bar; CLIENT UNBLOCK x; CLIENT UNBLOCK 99999999; CLIENT UNPAUSE; CLIENT PAUSE x; CLIENT PAUSE -1; CLIENT PAUSE 1 FOO; CLIENT REPLY FOO; CLIENT REPLY; CLIENT REPLY ON; CLIENT PAUSE",
    "EVAL return\\x201 0; EVAL; EVAL a; EVAL a x; EVAL a 1; EVAL a -1; EVAL return\\x20{1,2,{3,'x'},false} 0; EVAL return\\x20ARGV[1] 0 hello; EVAL return\\x20redis.call('set',KEYS[1],ARGV[1]) 1 %a v; GET %a; EVAL return\\x20redis.call('get',KEYS[1]) 1 %a; EVAL return\\x20redis.call('incr',KEYS[1]) 1 %n",
    "EVAL return\\x20redis.error_reply('MY\\x20error') 0; EVAL return\\x20{err='X\\x20y'} 0; EVAL return\\x20redis.status_reply('FINE') 0; EVAL return\\x20redis.pcall('incr',KEYS[1],1) 1 %a; EVAL return\\x203.99 0; EVAL return\\x20true 0; EVAL return\\x20nil 0; EVAL return\\x20cjson.encode({1,2,'x'}) 0; EVAL return\\x20tostring(1.5) 0",
    "SCRIPT LOAD return\\x201; SCRIPT EXISTS e0e1f9fabfc9d4800c877a703b823ac0578ff8db nosuch; EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 0; EVALSHA E0E1F9FABFC9D4800C877A703B823AC0578FF8DB 0; EVALSHA ffffffffffffffffffffffffffffffffffffffff 0; SCRIPT; SCRIPT NOSUCH; SCRIPT LOAD; SCRIPT EXISTS; SCRIPT FLUSH x; SCRIPT FLUSH ASYNC; SCRIPT KILL; EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 0; EVALSHA; FUNCTION FLUSH",
    "EVAL_RO return\\x20redis.call('get',KEYS[1]) 1 %a; MULTI; EVAL return\\x20redis.call('incr',KEYS[1]) 1 %a; GET %a; EXEC; SET %a x; EVAL if\\x20redis.call('get',KEYS[1])==ARGV[1]\\x20then\\x20return\\x20redis.call('del',KEYS[1])\\x20else\\x20return\\x200\\x20end 1 %a x; EXISTS %a",
    "INCR %a; INCR %a; DECR %a; INCRBY %a 40; DECRBY %a 2; GET %a; TTL %a; INCRBY %a 9223372036854775807; DECRBY %a -9223372036854775808; INCRBY %a x; INCRBY %a 1.5; INCRBY %a 9223372036854775808; OBJECT ENCODING %a",
    "SET %a 9223372036854775807; INCR %a; SET %a -9223372036854775808; DECR %a; SET %a 007; INCR %a; SET %a ''; INCR %a; SET %a x; DECR %a; SET %a 5 EX 100; INCR %a; TTL %a; SET %a -0; INCR %a; SET %a +1; INCR %a",
    "INCRBYFLOAT %a 0.1; INCRBYFLOAT %a 0.2; INCRBYFLOAT %a -1; GET %a; SET %a 10.50; INCRBYFLOAT %a 0.1; INCRBYFLOAT %a -5; SET %a 5.0e3; INCRBYFLOAT %a 2.0e2; INCRBYFLOAT %a x; INCRBYFLOAT %a inf; SET %a x; INCRBYFLOAT %a 1; SET %a 3; INCRBYFLOAT %a 1.0; INCRBYFLOAT %a 1000000000000; TTL %a",
    "SET %a 5 EX 100; INCRBYFLOAT %a 1.5; TTL %a; APPEND %a x; TTL %a; SETRANGE %a 0 y; TTL %a; GETSET %a z; TTL %a",
    "APPEND %a hello; APPEND %a \\x20world; GET %a; APPEND %a ''; STRLEN %a; APPEND %none ''; EXISTS %none; APPEND; APPEND %a",
    "SETRANGE %a 3 abc; GET %a; SETRANGE %a 0 x; GET %a; SETRANGE %a -1 x; SETRANGE %a x y; SETRANGE %none 5 ''; EXISTS %none; SETRANGE %a 1 ''; SETRANGE %a 3 abcdef; GET %a; SETRANGE %a 99999999999999999999 x",
    "SETBIT %a 7 1; GET %a; SETBIT %a 7 0; SETBIT %a 7 1; SETBIT %a 20 1; STRLEN %a; GETBIT %a 20; BITCOUNT %a; SETBIT %a -1 1; SETBIT %a 0 2; SETBIT %a x 1; SETBIT %a 4294967296 1; SETBIT %a 0 x; SETBIT %a 0",
    "SET %a v NX; SET %a w NX; GET %a; SET %a w XX; GET %a; SET %none w XX; EXISTS %none; SET %a x NX GET; GET %a; SET %b y NX GET; GET %b; SET %a z XX GET; SET %none z XX GET; SET %a q GET; SET %a r GET GET",
    "SET %a v EX 100; SET %a w KEEPTTL; TTL %a; GET %a; SET %a x; TTL %a; SET %a v KEEPTTL; TTL %a; SET %none v KEEPTTL; TTL %none; SET %a v NX XX; SET %a v KEEPTTL EX 5; SET %a v EX 5 KEEPTTL; SET %a v KEEPTTL KEEPTTL; SET %a v NX NX; SET %a v EX 100 NX",
    "SET %a v EX 100 NX; TTL %a; SET %a v XX PX 100000; TTL %a; SET %a v XX EXAT 99999999999; EXPIRETIME %a; SET %a v EX 0 NX; SET %a v EX x NX; SET %a v XX EX 10 PX 10; SET %b v EX -5 NX",
    "SETNX %a 1; SETNX %a 2; GET %a; SETNX; SETNX %a; SETNX %a 1 2; MSETNX; MSETNX %a; MSETNX %a 1 %b; MSETNX %c 1; MSETNX %c 2; GET %c",
    "GETSET %a 1; GETSET %a 2; GET %a; GETSET; GETSET %a; GETDEL %a; GETDEL %a; EXISTS %a; GETDEL; GETDEL a b",
    "SET %a v; GETEX %a; GETEX %a EX 100; TTL %a; GETEX %a PERSIST; TTL %a; GETEX %a PX 100000; TTL %a; GETEX %a EX 5 EX 200; TTL %a; GETEX %a EXAT 99999999999; EXPIRETIME %a; GETEX %a; EXPIRETIME %a; GETEX %none; GETEX %none EX 5; GETEX %a EX 0; GETEX %a EX x; GETEX %a EX; GETEX %a FOO; GETEX %a EX 5 PX 5; GETEX %a PERSIST EX 5; GETEX %a PXAT 1; EXISTS %a",
    "SET %a v; EXPIRE %a 100 XX; TTL %a; EXPIRE %a 100 NX; EXPIRE %a 200 NX; TTL %a; EXPIRE %a 200 XX; TTL %a; EXPIRE %a 50 GT; TTL %a; EXPIRE %a 300 GT; TTL %a; EXPIRE %a 400 LT; TTL %a; EXPIRE %a 60 LT; TTL %a",
    "SET %a v; EXPIRE %a 100 GT; TTL %a; EXPIRE %a 100 LT; TTL %a; EXPIRE %a 200 XX GT; TTL %a; EXPIRE %a 5 NX XX; EXPIRE %a 5 NX GT; EXPIRE %a 5 NX LT; EXPIRE %a 5 GT LT; EXPIRE %a 5 FOO; EXPIRE %a 5 NX FOO; EXPIRE %none 5 NX; EXPIRE %a -1 GT; TTL %a; EXPIRE %a -1 LT; EXISTS %a",
    "PEXPIRE %a 100000 NX; SET %a v; PEXPIRE %a 100000 NX; PEXPIREAT %a 99999999999999 GT; PEXPIRETIME %a; EXPIREAT %a 1 NX; EXISTS %a; EXPIREAT %a 1 XX; EXISTS %a",
    "HSET %h a 1; HSET %h a 2 b 3; HGET %h a; HGET %h none; HGET %none a; HMGET %h a b c; HMGET %none a; HGETALL %h; HGETALL %none; HLEN %h; HLEN %none; HEXISTS %h a; HEXISTS %h c; HEXISTS %none c; HKEYS %h; HVALS %h; HKEYS %none; HVALS %none; HSTRLEN %h b; HSTRLEN %h c; TYPE %h; OBJECT ENCODING %h",
    "HSETNX %h a 1; HSETNX %h a 2; HGET %h a; HDEL %h a; EXISTS %h; HDEL %h a; HSET %h a 1 b 2 c 3; HDEL %h a b x; HGETALL %h; HMSET %h a 1 b 2; HGETALL %h; HMSET %h a; HSET %h a; HSET %h a 1 b; HDEL %h; HGET %h; HGETALL; HGETALL a b",
    "HINCRBY %h a 5; HINCRBY %h a -7; HINCRBY %h a x; HSET %h s v; HINCRBY %h s 1; HINCRBY %h a 9223372036854775807; HINCRBY %h a 9223372036854775807; HINCRBYFLOAT %h f 10.5; HINCRBYFLOAT %h f 0.1; HINCRBYFLOAT %h s 1; HINCRBYFLOAT %h f x; HINCRBYFLOAT %h f inf; HGETALL %h",
    "HSET %h a 1; GET %h; SET %s v; HGET %s a; HSET %s a 1; HGETALL %s; HLEN %s; HDEL %s a; HINCRBY %s a 1; INCR %h; APPEND %h x; STRLEN %h; GETRANGE %h 0 1; SETRANGE %h 0 x; GETDEL %h; GETEX %h; GETSET %h x; SET %h v GET; SET %h v NX; SETNX %h v; MGET %h %s; SETBIT %h 0 1; GETBIT %h 0; BITCOUNT %h; INCRBYFLOAT %h 1; SET %h v; GET %h",
    "HSET %h a 1; EXPIRE %h 100; TTL %h; HSET %h b 2; TTL %h; PERSIST %h; TTL %h; EXPIRE %h 100 NX; HDEL %h a b; TTL %h; HSET %h a x*65; OBJECT ENCODING %h; DEL %h; EXISTS %h",
    "MULTI; INCR %a; INCR %a; HSET %h f v; GET %a; SET %a x NX; EXEC; GET %a; MULTI; INCR %h; GET %a; EXEC",
    "GET %none; STRLEN %none; TYPE %none; TTL %none; PTTL %none; EXPIRETIME %none; PERSIST %none",
    "SET %a hello; GETRANGE %a 0 -1; GETRANGE %a 1 3; GETRANGE %a -3 -1; GETRANGE %a -1 -3; GETRANGE %a 5 9; GETRANGE %a -100 1; SUBSTR %a 0 2",
    "SET %a ''; GETRANGE %a 0 -1; STRLEN %a; BITCOUNT %a; GETBIT %a 0; OBJECT ENCODING %a",
    "SET %a foobar; BITCOUNT %a; BITCOUNT %a 0 0; BITCOUNT %a 1 1; BITCOUNT %a 1 1 BYTE; BITCOUNT %a 5 30 BIT; BITCOUNT %a -8 -1 BIT; BITCOUNT %a 3 3 bit; BITCOUNT %a 0 0 WORD; BITCOUNT %a 1; BITCOUNT %a x y",
    "SET %a \\x00\\xff\\x80\\x01; BITCOUNT %a; GETBIT %a 0; GETBIT %a 8; GETBIT %a 16; GETBIT %a 17; GETBIT %a 31; GETBIT %a 32; GETBIT %a 4294967295; GETBIT %a 4294967296; GETBIT %a -1; GETBIT %a x; GET %a",
    "SET %a 123; OBJECT ENCODING %a; OBJECT ENCODING %none; OBJECT IDLETIME %none; OBJECT FREQ %a; OBJECT REFCOUNT %none",
    "SET %a -9223372036854775808; OBJECT ENCODING %a; SET %a 9223372036854775808; OBJECT ENCODING %a; SET %a 007; OBJECT ENCODING %a; SET %a x*44; OBJECT ENCODING %a; SET %a x*45; OBJECT ENCODING %a; OBJECT REFCOUNT %a",
    "OBJECT; OBJECT NOSUCH %a; OBJECT ENCODING; OBJECT ENCODING a b; OBJECT HELP x; OBJECT NOSUCH",
    "OBJECT HELP",
    "SLOWLOG; SLOWLOG NOSUCH; SLOWLOG LEN x; SLOWLOG GET x; SLOWLOG GET -2; SLOWLOG GET 1 2; SLOWLOG HELP; SLOWLOG RESET; SLOWLOG GET 0",
    "MEMORY USAGE %none; MEMORY USAGE; MEMORY NOSUCH %a; MEMORY USAGE %a SAMPLES; MEMORY USAGE %a SAMPLES x; MEMORY USAGE %a X 1; MEMORY NOSUCH",
    "SET %a v EX 100; TTL %a; PERSIST %a; TTL %a; PERSIST %a; EXPIRE %a 100; TTL %a; EXPIRE %none 100; EXPIRE %a -1; GET %a; EXISTS %a",
    "SET %a v PX 100000; TTL %a; SET %a v; TTL %a; SET %a v EXAT 99999999999; EXPIRETIME %a; PEXPIRETIME %a; SET %a v PXAT 99999999999999; EXPIRETIME %a; PEXPIRETIME %a",
    "SET %a v EX 5 EX 100; TTL %a; SET %a v EX 0; SET %a v EX -1; SET %a v PX 0; SET %a v EX x; SET %a v EX; SET %a v EX 1 PX 1; SET %a v FOO; SET %a v EX 9223372036854775807; SET %a v KEEPTTL EX 1; SET %a v NX XX",
    "SETEX %a 0 v; SETEX %a -1 v; SETEX %a x v; SETEX %a 100 v; TTL %a; PSETEX %a 0 v; PSETEX %a 100000 v; TTL %a; SETEX %a 9223372036854775807 v",
    "EXPIRE %a 1 NO; EXPIRE %a x; EXPIREAT %a x; PEXPIRE %a 9223372036854775807; EXPIRE %a 9223372036854775807; SET %a v; EXPIRE %a 9223372036854775807; PEXPIREAT %a -1; EXISTS %a",
    "MSET %a 1 %b 2; MGET %a %b %c; MSET %a; MSET %a 1 %b; MSET; MGET; DEL %a %b %c; DEL; EXISTS %a %a; SET %a v; EXISTS %a %a %b; TOUCH %a %b; UNLINK %a %a",
    "MULTI; SET %a 1; GET %a; EXEC; MULTI; DISCARD; EXEC; DISCARD; MULTI; MULTI; EXEC",
    "MULTI; SET %a; EXEC; MULTI; NOSUCH x; EXEC; MULTI; EXEC; MULTI; SET %a 1; SET %a 2; GET %a; DISCARD; GET %a",
    "PING; PING hello; PING a b; ECHO hello; ECHO; ECHO a b; ping; Ping x",
    "NOSUCH; NOSUCH a b c; nosuch x*200 y; ''; GE; G''ET",
    "SELECT 0; SELECT x; SELECT; SELECT -1; SELECT 99999; SELECT 0 1",
    "CLIENT NOSUCH; CLIENT; CLIENT ID x; CLIENT SETNAME; CLIENT SETNAME a\\x20b; CLIENT SETNAME ok; CLIENT GETNAME; CLIENT NO-EVICT on; CLIENT NO-EVICT maybe; CLIENT SETNAME ''; CLIENT GETNAME",
    "COMMAND COUNT x; COMMAND NOSUCH; COMMAND INFO nosuch; CONFIG; CONFIG GET; CONFIG NOSUCH; CONFIG GET nosuch*1",
    "WAIT; WAIT 0; WAIT x 0; WAIT 0 x; WAIT 0 -1; TIME x; DBSIZE x",
    "SET %\\x00\\x0d\\x0a v\\x00\\x0d\\x0a; GET %\\x00\\x0d\\x0a; STRLEN %\\x00\\x0d\\x0a; GETRANGE %\\x00\\x0d\\x0a 1 -1; TYPE %\\x00\\x0d\\x0a; DEL %\\x00\\x0d\\x0a",
    "SET %a x*100000; STRLEN %a; GETRANGE %a 99990 -1; GETRANGE %a 0 9; BITCOUNT %a; BITCOUNT %a 1 -2 BIT; GETBIT %a 799999; GETBIT %a 800000; DEL %a",
    "HELLO x; HELLO 4; HELLO 2 NOSUCH; HELLO 3 SETNAME; HELLO 3 AUTH a",
    "SCAN; SCAN x; SCAN 1.5; SCAN 0 COUNT; SCAN 0 COUNT 0; SCAN 0 COUNT x; SCAN 0 COUNT -1; SCAN 0 FOO 1; SCAN 0 MATCH; SCAN 0 MATCH a COUNT; KEYS; KEYS a b; RANDOMKEY x",
    "SET %key1 v; SET %kex2 v; KEYS %key?; KEYS %k*2; KEYS %ke[^y]*; KEYS %ke[a-x]2; KEYS %key\\1; KEYS %none*; KEYS %; DEL %key1; KEYS %key*; SET %kex2 v PX 1; KEYS nothing-like-it",
    "EXPIRE; EXPIRE %a; TTL; TTL a b; TYPE; TYPE a b; PERSIST; STRLEN; GET; GET a b; SET; SET a",
];
