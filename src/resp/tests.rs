//! Commands and their errors, as Redis 7.0 answers them.

use super::*;

const LIMITS: Limits = Limits {
    value_bytes_max: 1 << 20,
    request_bytes_max: 1 << 20,
    args_max: 1_000,
};

/// What a line of words is: the command, printed, or the error's text.
fn parse(line: &[u8]) -> Result<String, String> {
    let mut input = line.to_vec();
    input.extend(b"\r\n");
    let mut parser = Parser::new(LIMITS);
    assert!(matches!(parser.parse(&input), Ok(Parsed::Request { .. })));
    match Command::parse(parser.args(&input)) {
        Ok(Command::Data(kind, command)) => Ok(format!("{} {}", kind.name(), show(command))),
        Ok(Command::Connection(kind, command)) => Ok(format!("{} {command:?}", kind.name())),
        Err(error) => Err(error.to_string()),
    }
}

fn show(command: DataCommand<'_>) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match command {
        DataCommand::Get { key } | DataCommand::Type { key } | DataCommand::StrLen { key } => {
            text(key)
        }
        DataCommand::Set { key, value, expiry } => {
            format!("{}={} {expiry:?}", text(key), text(value))
        }
        DataCommand::MGet { keys } | DataCommand::Del { keys } | DataCommand::Exists { keys } => {
            keys.iter().map(text).collect::<Vec<_>>().join(",")
        }
        DataCommand::MSet { pairs } => {
            let pairs = pairs
                .iter()
                .map(|(key, value)| format!("{}={}", text(key), text(value)));
            pairs.collect::<Vec<_>>().join(",")
        }
        DataCommand::Expire { key, at } => format!("{} {at:?}", text(key)),
        DataCommand::Persist { key } => text(key),
        DataCommand::Ttl { key, form } => format!("{} {form:?}", text(key)),
        DataCommand::Part { key, part } => format!("{} {part:?}", text(key)),
        DataCommand::Usage { key } => text(key),
        DataCommand::Script(script) | DataCommand::NamedScript(script) => format!("{script:?}"),
        DataCommand::Update { key, update } => format!("{} {update:?}", text(key)),
        DataCommand::Hash { key, read } => format!("{} {read:?}", text(key)),
    }
}

#[test]
fn commands_are_understood() {
    for (line, expected) in [
        ("get k", "get k"),
        ("SeT k v", "set k=v None"),
        ("set k v EX 5", "set k=v Some(After(5000))"),
        ("set k v px 5", "set k=v Some(After(5))"),
        ("set k v EXAT 5", "set k=v Some(At(5000))"),
        ("set k v PXAT 5", "set k=v Some(At(5))"),
        ("setex k 7 v", "setex k=v Some(After(7000))"),
        ("psetex k 7 v", "psetex k=v Some(After(7))"),
        ("mget a b c", "mget a,b,c"),
        ("mset a 1 b 2", "mset a=1,b=2"),
        ("del a b", "del a,b"),
        ("unlink a", "unlink a"),
        ("exists a a", "exists a,a"),
        ("touch a", "touch a"),
        ("expire k -1", "expire k After(-1000)"),
        ("pexpire k 9", "pexpire k After(9)"),
        ("expireat k 9", "expireat k At(9000)"),
        ("pexpireat k 9", "pexpireat k At(9)"),
        ("ttl k", "ttl k Seconds"),
        ("pttl k", "pttl k Millis"),
        ("expiretime k", "expiretime k AtSeconds"),
        ("pexpiretime k", "pexpiretime k AtMillis"),
        ("persist k", "persist k"),
        ("type k", "type k"),
        ("strlen k", "strlen k"),
        ("getrange k 0 -1", "getrange k Range(0, -1)"),
        ("substr k 1 2", "substr k Range(1, 2)"),
        ("getbit k 7", "getbit k Bit(7)"),
        ("bitcount k", "bitcount k Count(None)"),
        ("bitcount k 0 8 bit", "bitcount k Count(Some((0, 8, true)))"),
        ("object encoding k", "object k Encoding"),
        ("memory usage k samples 5", "memory k"),
        ("slowlog get", "slowlog SlowLog(Get(Some(10)))"),
        ("ping", "ping Ping(None)"),
        ("select 0", "select Select(0)"),
        (
            "hello",
            "hello Hello { version: None, auth: None, setname: None }",
        ),
        ("client no-evict on", "client Client(NoEvict(true))"),
        ("command count", "command Command(Count)"),
        ("wait 1 100", "wait Wait { replicas: 1, timeout_ms: 100 }"),
        ("quit now", "quit Quit"),
        ("quorate level", "quorate Level { read: None, write: None }"),
        (
            "QUORATE LEVEL WRITE All READ one",
            "quorate Level { read: Some(One), write: Some(All) }",
        ),
    ] {
        assert_eq!(parse(line.as_bytes()).as_deref(), Ok(expected), "{line}");
    }
}

#[test]
fn errors_are_those_of_redis() {
    for (line, expected) in ERRORS {
        assert_eq!(
            parse(line.as_bytes()),
            Err((*expected).to_owned()),
            "{line}"
        );
    }
}

#[test]
fn updates_are_understood() {
    for (line, expected) in [
        ("incr k", "incr k Add(1)"),
        ("decrby k 5", "decrby k Add(-5)"),
        ("getdel k", "getdel k GetDelete"),
        ("getex k", "getex k"),
        ("getex k PERSIST", "getex k GetExpire(Never)"),
        ("getex k ex 5", "getex k GetExpire(At(After(5000)))"),
        (
            "expire k 1 gt xx",
            "expire k Expire(After(1000), ExpireCondition { had_end: Some(true), moves: Some(Greater) })",
        ),
        ("setbit k 7 1", "setbit k SetBit(7, true)"),
        ("delex k", "delex k Delete(Always)"),
        (
            "set k v get get",
            "set k Set(SetIf { value: [118], end: Never, condition: Always, tells: Before })",
        ),
        (
            "set k v keepttl",
            "set k Set(SetIf { value: [118], end: Keep, condition: Always, tells: Done })",
        ),
        (
            "set k v ifeq w px 9",
            "set k Set(SetIf { value: [118], end: At(After(9)), condition: Equal([119]), tells: Done })",
        ),
        ("hgetall k", "hgetall k All"),
        ("hincrby k f -2", "hincrby k HashAdd([102], -2)"),
    ] {
        assert_eq!(parse(line.as_bytes()).as_deref(), Ok(expected), "{line}");
    }
    for (line, expected) in [
        ("set k v nx xx", "ERR syntax error"),
        ("set k v nx ifeq w", "ERR syntax error"),
        ("set k v ifeq", "ERR syntax error"),
        ("set k v keepttl ex 5", "ERR syntax error"),
        (
            "expire k 1 nx gt",
            "ERR NX and XX, GT or LT options at the same time are not compatible",
        ),
        (
            "expire k 1 gt lt",
            "ERR GT and LT options at the same time are not compatible",
        ),
        (
            "decrby k -9223372036854775808",
            "ERR decrement would overflow",
        ),
        ("setrange k -1 v", "ERR offset is out of range"),
        (
            "hset k f",
            "ERR wrong number of arguments for 'hset' command",
        ),
        (
            "hset k f v g",
            "ERR wrong number of arguments for 'hset' command",
        ),
    ] {
        assert_eq!(parse(line.as_bytes()), Err(expected.to_owned()), "{line}");
    }
    assert!(
        parse(b"msetnx a 1 b 2")
            .unwrap_err()
            .contains("is not for Quorate")
    );
}

#[test]
fn keys_may_be_any_bytes_up_to_their_limit() {
    assert!(parse(b"get \"\\x00\\xff\"").is_ok());
    let long = format!("get {}", "k".repeat(65_000));
    assert!(parse(long.as_bytes()).is_ok());
    let request = [
        b"*2\r\n$3\r\nGET\r\n$65537\r\n".to_vec(),
        vec![b'k'; 65_537],
        b"\r\n".to_vec(),
    ];
    let input = request.concat();
    let mut parser = Parser::new(LIMITS);
    assert!(matches!(parser.parse(&input), Ok(Parsed::Request { .. })));
    let error = Command::parse(parser.args(&input)).unwrap_err().to_string();
    assert_eq!(error, "ERR key has 65537 bytes, the limit is 65536");
}

const ERRORS: &[(&str, &str)] = &[
    (
        "foo",
        "ERR unknown command 'foo', with args beginning with: ",
    ),
    (
        "foo a bc",
        "ERR unknown command 'foo', with args beginning with: 'a' 'bc' ",
    ),
    ("get", "ERR wrong number of arguments for 'get' command"),
    ("GET a b", "ERR wrong number of arguments for 'get' command"),
    ("set k", "ERR wrong number of arguments for 'set' command"),
    ("set k v EX", "ERR syntax error"),
    ("set k v what", "ERR syntax error"),
    ("set k v EX 1 PX 1", "ERR syntax error"),
    ("set k v NX XX", "ERR syntax error"),
    ("set k v KEEPTTL EX 1", "ERR syntax error"),
    ("set k v EX 1 KEEPTTL", "ERR syntax error"),
    ("set k v EX 0", "ERR invalid expire time in 'set' command"),
    ("set k v EX -1", "ERR invalid expire time in 'set' command"),
    (
        "set k v EX 9223372036854775807",
        "ERR invalid expire time in 'set' command",
    ),
    (
        "set k v EX x",
        "ERR value is not an integer or out of range",
    ),
    ("setex k 0 v", "ERR invalid expire time in 'setex' command"),
    (
        "psetex k 0 v",
        "ERR invalid expire time in 'psetex' command",
    ),
    ("expire k x", "ERR value is not an integer or out of range"),
    (
        "expire k 9223372036854775807",
        "ERR invalid expire time in 'expire' command",
    ),
    ("expire k 1 what", "ERR Unsupported option what"),
    (
        "mset a 1 b",
        "ERR wrong number of arguments for 'mset' command",
    ),
    ("select x", "ERR value is not an integer or out of range"),
    ("hello 4", "NOPROTO unsupported protocol version"),
    (
        "hello x",
        "ERR Protocol version is not an integer or out of range",
    ),
    ("hello 3 what", "ERR Syntax error in HELLO option 'what'"),
    (
        "client",
        "ERR wrong number of arguments for 'client' command",
    ),
    (
        "client what",
        "ERR unknown subcommand 'what'. Try CLIENT HELP.",
    ),
    (
        "client setname",
        "ERR wrong number of arguments for 'client|setname' command",
    ),
    (
        "config get",
        "ERR wrong number of arguments for 'config|get' command",
    ),
    (
        "config what",
        "ERR unknown subcommand 'what'. Try CONFIG HELP.",
    ),
    (
        "command what",
        "ERR unknown subcommand 'what'. Try COMMAND HELP.",
    ),
    ("wait 1 -1", "ERR timeout is negative"),
    ("get \"\"", "ERR key is empty, a key has 1 to 65536 bytes"),
    ("incr", "ERR wrong number of arguments for 'incr' command"),
];
