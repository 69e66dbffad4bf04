//! The commands this node answers, as a dense index for counters and tables.

/// Declares the kinds once: variant, name as clients write it in lower and in upper case.
macro_rules! kinds {
    ($($kind:ident $lower:literal $upper:literal,)*) => {
        /// Which command it is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        #[expect(missing_docs, reason = "each is the command of its name")]
        pub enum CommandKind { $($kind,)* }

        impl CommandKind {
            /// All of them, in the order of their numbers.
            pub const ALL: [Self; Self::COUNT] = [$(Self::$kind,)*];
            /// How many there are.
            pub const COUNT: usize = [$($lower,)*].len();

            /// Its name, in lower case.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $lower,)* }
            }

            const fn of_upper(name: &[u8]) -> Option<Self> {
                match name { $($upper => Some(Self::$kind),)* _ => None }
            }
        }
    };
}

kinds! {
    Append "append" b"APPEND",
    Auth "auth" b"AUTH",
    BitCount "bitcount" b"BITCOUNT",
    Client "client" b"CLIENT",
    Command "command" b"COMMAND",
    Config "config" b"CONFIG",
    Copy "copy" b"COPY",
    DbSize "dbsize" b"DBSIZE",
    Decr "decr" b"DECR",
    DecrBy "decrby" b"DECRBY",
    Del "del" b"DEL",
    DelEx "delex" b"DELEX",
    DelIfEq "delifeq" b"DELIFEQ",
    Discard "discard" b"DISCARD",
    Echo "echo" b"ECHO",
    Eval "eval" b"EVAL",
    EvalRo "eval_ro" b"EVAL_RO",
    EvalSha "evalsha" b"EVALSHA",
    EvalShaRo "evalsha_ro" b"EVALSHA_RO",
    Exec "exec" b"EXEC",
    Exists "exists" b"EXISTS",
    Expire "expire" b"EXPIRE",
    ExpireAt "expireat" b"EXPIREAT",
    ExpireTime "expiretime" b"EXPIRETIME",
    FlushAll "flushall" b"FLUSHALL",
    FlushDb "flushdb" b"FLUSHDB",
    Function "function" b"FUNCTION",
    Get "get" b"GET",
    GetBit "getbit" b"GETBIT",
    GetDel "getdel" b"GETDEL",
    GetEx "getex" b"GETEX",
    GetRange "getrange" b"GETRANGE",
    GetSet "getset" b"GETSET",
    HDel "hdel" b"HDEL",
    Hello "hello" b"HELLO",
    HExists "hexists" b"HEXISTS",
    HGet "hget" b"HGET",
    HGetAll "hgetall" b"HGETALL",
    HIncrBy "hincrby" b"HINCRBY",
    HIncrByFloat "hincrbyfloat" b"HINCRBYFLOAT",
    HKeys "hkeys" b"HKEYS",
    HLen "hlen" b"HLEN",
    HMGet "hmget" b"HMGET",
    HMSet "hmset" b"HMSET",
    HSet "hset" b"HSET",
    HSetNx "hsetnx" b"HSETNX",
    HStrLen "hstrlen" b"HSTRLEN",
    HVals "hvals" b"HVALS",
    Incr "incr" b"INCR",
    IncrBy "incrby" b"INCRBY",
    IncrByFloat "incrbyfloat" b"INCRBYFLOAT",
    Info "info" b"INFO",
    Keys "keys" b"KEYS",
    Latency "latency" b"LATENCY",
    Memory "memory" b"MEMORY",
    MGet "mget" b"MGET",
    Monitor "monitor" b"MONITOR",
    MSet "mset" b"MSET",
    MSetNx "msetnx" b"MSETNX",
    Multi "multi" b"MULTI",
    Object "object" b"OBJECT",
    Persist "persist" b"PERSIST",
    PExpire "pexpire" b"PEXPIRE",
    PExpireAt "pexpireat" b"PEXPIREAT",
    PExpireTime "pexpiretime" b"PEXPIRETIME",
    Ping "ping" b"PING",
    PSetEx "psetex" b"PSETEX",
    PSubscribe "psubscribe" b"PSUBSCRIBE",
    PTtl "pttl" b"PTTL",
    Publish "publish" b"PUBLISH",
    PubSub "pubsub" b"PUBSUB",
    PUnsubscribe "punsubscribe" b"PUNSUBSCRIBE",
    Quit "quit" b"QUIT",
    Quorate "quorate" b"QUORATE",
    RandomKey "randomkey" b"RANDOMKEY",
    Rename "rename" b"RENAME",
    RenameNx "renamenx" b"RENAMENX",
    Reset "reset" b"RESET",
    Scan "scan" b"SCAN",
    Script "script" b"SCRIPT",
    Select "select" b"SELECT",
    Set "set" b"SET",
    SetBit "setbit" b"SETBIT",
    SetEx "setex" b"SETEX",
    SetNx "setnx" b"SETNX",
    SetRange "setrange" b"SETRANGE",
    SlowLog "slowlog" b"SLOWLOG",
    StrLen "strlen" b"STRLEN",
    Subscribe "subscribe" b"SUBSCRIBE",
    SubStr "substr" b"SUBSTR",
    Time "time" b"TIME",
    Touch "touch" b"TOUCH",
    Ttl "ttl" b"TTL",
    Type "type" b"TYPE",
    Unlink "unlink" b"UNLINK",
    Unsubscribe "unsubscribe" b"UNSUBSCRIBE",
    Unwatch "unwatch" b"UNWATCH",
    Wait "wait" b"WAIT",
    Watch "watch" b"WATCH",
}

impl CommandKind {
    /// Whether it may change what a key holds.
    #[must_use]
    pub fn is_write(self) -> bool {
        let facts = super::command_facts(self.name().as_bytes());
        facts.is_some_and(|facts| facts.flags.contains(&"write"))
    }

    /// Whether it can have so many words, its name included.
    pub(super) fn takes(self, words: usize) -> bool {
        let facts = super::command_facts(self.name().as_bytes());
        facts.is_some_and(|facts| {
            let count = usize::from(facts.arity.unsigned_abs());
            words == count || (facts.arity < 0 && words > count)
        })
    }

    /// The command of a name in any case.
    #[must_use]
    pub fn of(name: &[u8]) -> Option<Self> {
        let mut upper = [0; NAME_BYTES_MAX];
        let upper = upper.get_mut(..name.len())?;
        upper.copy_from_slice(name);
        upper.make_ascii_uppercase();
        Self::of_upper(upper)
    }
}

const NAME_BYTES_MAX: usize = 16;
