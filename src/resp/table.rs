//! What `COMMAND` tells of each command: the facts that client libraries ask for.

use super::CommandKind;

/// The facts of one command.
#[derive(Debug, Clone, Copy)]
pub struct CommandFacts {
    /// Its name, in lower case.
    pub name: &'static str,
    /// How many words it has, itself included; below zero: at least so many.
    pub arity: i8,
    /// What it does, in the words of Redis.
    pub flags: &'static [&'static str],
    /// The first word that is a key; 0: none is.
    pub first_key: i8,
    /// The last one; below zero: counted from the end.
    pub last_key: i8,
    /// How many words on the next key is.
    pub key_step: i8,
    /// Groups of commands, in the words of Redis.
    pub categories: &'static [&'static str],
    /// What it does, for people.
    pub summary: &'static str,
    /// The version of Redis that had it first.
    pub since: &'static str,
    /// The chapter of the manual.
    pub group: &'static str,
    /// What it costs.
    pub complexity: &'static str,
}

/// The facts of all commands, by name.
#[must_use]
pub const fn commands() -> &'static [CommandFacts] {
    COMMANDS
}

/// The facts of a command, its name in any case.
#[must_use]
pub fn command_facts(name: &[u8]) -> Option<&'static CommandFacts> {
    CommandKind::of(name).map(|kind| &COMMANDS[kind as usize])
}

const fn facts(
    name: &'static str,
    arity: i8,
    flags: &'static [&'static str],
    keys: (i8, i8, i8),
    categories: &'static [&'static str],
    docs: [&'static str; 4],
) -> CommandFacts {
    let (first_key, last_key, key_step) = keys;
    let [summary, since, group, complexity] = docs;
    CommandFacts {
        name,
        arity,
        flags,
        first_key,
        last_key,
        key_step,
        categories,
        summary,
        since,
        group,
        complexity,
    }
}

/// In the order of [`CommandKind`].
const COMMANDS: &[CommandFacts] = &[
    facts(
        "auth",
        -2,
        &[
            "noscript",
            "loading",
            "stale",
            "fast",
            "no_auth",
            "allow_busy",
        ],
        (0, 0, 0),
        &["@fast", "@connection"],
        [
            "Authenticates the connection.",
            "1.0.0",
            "connection",
            "O(1)",
        ],
    ),
    facts(
        "bitcount",
        -2,
        &["readonly"],
        (1, 1, 1),
        &["@read", "@bitmap", "@slow"],
        [
            "Counts the bits that are set in a value.",
            "2.6.0",
            "bitmap",
            "O(N)",
        ],
    ),
    facts(
        "client",
        -2,
        &[],
        (0, 0, 0),
        &["@slow", "@connection"],
        [
            "Tells of and names client connections.",
            "2.4.0",
            "connection",
            "Depends on subcommand.",
        ],
    ),
    facts(
        "command",
        -1,
        &["loading", "stale"],
        (0, 0, 0),
        &["@slow", "@connection"],
        [
            "Tells of the commands.",
            "2.8.13",
            "server",
            "O(N) where N is the number of commands",
        ],
    ),
    facts(
        "config",
        -2,
        &[],
        (0, 0, 0),
        &["@admin", "@slow", "@dangerous"],
        [
            "Tells of settings.",
            "2.0.0",
            "server",
            "Depends on subcommand.",
        ],
    ),
    facts(
        "dbsize",
        1,
        &["readonly", "fast"],
        (0, 0, 0),
        &["@keyspace", "@read", "@fast"],
        [
            "Returns the number of keys in the ring.",
            "1.0.0",
            "server",
            "O(1)",
        ],
    ),
    facts(
        "del",
        -2,
        &["write"],
        (1, -1, 1),
        &["@keyspace", "@write", "@slow"],
        [
            "Deletes one or more keys.",
            "1.0.0",
            "generic",
            "O(N) where N is the number of keys",
        ],
    ),
    facts(
        "discard",
        1,
        &["noscript", "loading", "stale", "fast", "allow_busy"],
        (0, 0, 0),
        &["@fast", "@transaction"],
        [
            "Discards a transaction.",
            "2.0.0",
            "transactions",
            "O(N) where N is the number of queued commands",
        ],
    ),
    facts(
        "echo",
        2,
        &["loading", "stale", "fast"],
        (0, 0, 0),
        &["@fast", "@connection"],
        ["Returns the given string.", "1.0.0", "connection", "O(1)"],
    ),
    facts(
        "exec",
        1,
        &["noscript", "loading", "stale", "skip_slowlog"],
        (0, 0, 0),
        &["@slow", "@transaction"],
        [
            "Carries out all commands in a transaction.",
            "1.2.0",
            "transactions",
            "Depends on commands in the transaction",
        ],
    ),
    facts(
        "exists",
        -2,
        &["readonly", "fast"],
        (1, -1, 1),
        &["@keyspace", "@read", "@fast"],
        [
            "Counts the keys that exist.",
            "1.0.0",
            "generic",
            "O(N) where N is the number of keys",
        ],
    ),
    facts(
        "expire",
        -3,
        &["write", "fast"],
        (1, 1, 1),
        &["@keyspace", "@write", "@fast"],
        [
            "Sets when a key ends, in seconds from now.",
            "1.0.0",
            "generic",
            "O(1)",
        ],
    ),
    facts(
        "expireat",
        -3,
        &["write", "fast"],
        (1, 1, 1),
        &["@keyspace", "@write", "@fast"],
        [
            "Sets when a key ends, in seconds since 1970.",
            "1.2.0",
            "generic",
            "O(1)",
        ],
    ),
    facts(
        "expiretime",
        2,
        &["readonly", "fast"],
        (1, 1, 1),
        &["@keyspace", "@read", "@fast"],
        [
            "Returns when a key ends, in seconds since 1970.",
            "7.0.0",
            "generic",
            "O(1)",
        ],
    ),
    facts(
        "get",
        2,
        &["readonly", "fast"],
        (1, 1, 1),
        &["@read", "@string", "@fast"],
        ["Returns the value of a key.", "1.0.0", "string", "O(1)"],
    ),
    facts(
        "getbit",
        3,
        &["readonly", "fast"],
        (1, 1, 1),
        &["@read", "@bitmap", "@fast"],
        ["Returns a bit of a value.", "2.2.0", "bitmap", "O(1)"],
    ),
    facts(
        "getrange",
        4,
        &["readonly"],
        (1, 1, 1),
        &["@read", "@string", "@slow"],
        [
            "Returns a part of a value.",
            "2.4.0",
            "string",
            "O(N) where N is the length of the part",
        ],
    ),
    facts(
        "hello",
        -1,
        &[
            "noscript",
            "loading",
            "stale",
            "fast",
            "no_auth",
            "allow_busy",
        ],
        (0, 0, 0),
        &["@fast", "@connection"],
        [
            "Agrees on a version of the protocol.",
            "6.0.0",
            "connection",
            "O(1)",
        ],
    ),
    facts(
        "info",
        -1,
        &["loading", "stale"],
        (0, 0, 0),
        &["@slow", "@dangerous"],
        [
            "Returns what the server tells of itself.",
            "1.0.0",
            "server",
            "O(1)",
        ],
    ),
    facts(
        "keys",
        2,
        &["readonly"],
        (0, 0, 0),
        &["@keyspace", "@read", "@slow", "@dangerous"],
        [
            "Returns all keys that match a pattern, of the whole ring.",
            "1.0.0",
            "generic",
            "O(N) where N is the number of keys",
        ],
    ),
    facts(
        "memory",
        -2,
        &[],
        (0, 0, 0),
        &["@slow"],
        [
            "Tells how much memory a key takes.",
            "4.0.0",
            "server",
            "O(1)",
        ],
    ),
    facts(
        "mget",
        -2,
        &["readonly", "fast"],
        (1, -1, 1),
        &["@read", "@string", "@fast"],
        [
            "Returns the values of one or more keys.",
            "1.0.0",
            "string",
            "O(N) where N is the number of keys",
        ],
    ),
    facts(
        "mset",
        -3,
        &["write", "denyoom"],
        (1, -1, 2),
        &["@write", "@string", "@slow"],
        [
            "Sets the values of one or more keys, each by itself.",
            "1.0.1",
            "string",
            "O(N) where N is the number of keys",
        ],
    ),
    facts(
        "multi",
        1,
        &["noscript", "loading", "stale", "fast", "allow_busy"],
        (0, 0, 0),
        &["@fast", "@transaction"],
        ["Starts a transaction.", "1.2.0", "transactions", "O(1)"],
    ),
    facts(
        "object",
        -2,
        &[],
        (0, 0, 0),
        &["@slow"],
        [
            "Tells of the inside of a value.",
            "2.2.3",
            "generic",
            "O(1)",
        ],
    ),
    facts(
        "persist",
        2,
        &["write", "fast"],
        (1, 1, 1),
        &["@keyspace", "@write", "@fast"],
        [
            "Lets a key stay that was to end.",
            "2.2.0",
            "generic",
            "O(1)",
        ],
    ),
    facts(
        "pexpire",
        -3,
        &["write", "fast"],
        (1, 1, 1),
        &["@keyspace", "@write", "@fast"],
        [
            "Sets when a key ends, in milliseconds from now.",
            "2.6.0",
            "generic",
            "O(1)",
        ],
    ),
    facts(
        "pexpireat",
        -3,
        &["write", "fast"],
        (1, 1, 1),
        &["@keyspace", "@write", "@fast"],
        [
            "Sets when a key ends, in milliseconds since 1970.",
            "2.6.0",
            "generic",
            "O(1)",
        ],
    ),
    facts(
        "pexpiretime",
        2,
        &["readonly", "fast"],
        (1, 1, 1),
        &["@keyspace", "@read", "@fast"],
        [
            "Returns when a key ends, in milliseconds since 1970.",
            "7.0.0",
            "generic",
            "O(1)",
        ],
    ),
    facts(
        "ping",
        -1,
        &["fast"],
        (0, 0, 0),
        &["@fast", "@connection"],
        ["Returns a sign of life.", "1.0.0", "connection", "O(1)"],
    ),
    facts(
        "psetex",
        4,
        &["write", "denyoom"],
        (1, 1, 1),
        &["@write", "@string", "@slow"],
        [
            "Sets a value and when it ends, in milliseconds from now.",
            "2.6.0",
            "string",
            "O(1)",
        ],
    ),
    facts(
        "pttl",
        2,
        &["readonly", "fast"],
        (1, 1, 1),
        &["@keyspace", "@read", "@fast"],
        [
            "Returns the milliseconds a key has left.",
            "2.6.0",
            "generic",
            "O(1)",
        ],
    ),
    facts(
        "quit",
        -1,
        &[
            "noscript",
            "loading",
            "stale",
            "fast",
            "no_auth",
            "allow_busy",
        ],
        (0, 0, 0),
        &["@fast", "@connection"],
        ["Closes the connection.", "1.0.0", "connection", "O(1)"],
    ),
    facts(
        "quorate",
        -2,
        &["noscript", "loading", "stale", "fast"],
        (0, 0, 0),
        &["@fast", "@connection"],
        [
            "Shows or sets how consistent the connection's requests are.",
            "1.0.0",
            "connection",
            "O(1)",
        ],
    ),
    facts(
        "randomkey",
        1,
        &["readonly"],
        (0, 0, 0),
        &["@keyspace", "@read", "@slow"],
        ["Returns a key by chance.", "1.0.0", "generic", "O(1)"],
    ),
    facts(
        "reset",
        1,
        &[
            "noscript",
            "loading",
            "stale",
            "fast",
            "no_auth",
            "allow_busy",
        ],
        (0, 0, 0),
        &["@fast", "@connection"],
        ["Resets the connection.", "6.2.0", "connection", "O(1)"],
    ),
    facts(
        "scan",
        -2,
        &["readonly"],
        (0, 0, 0),
        &["@keyspace", "@read", "@slow"],
        [
            "Returns the keys of the whole ring, a page at a time.",
            "2.8.0",
            "generic",
            "O(1) for a page",
        ],
    ),
    facts(
        "select",
        2,
        &["loading", "stale", "fast"],
        (0, 0, 0),
        &["@fast", "@connection"],
        [
            "Changes the database; there is one, 0.",
            "1.0.0",
            "connection",
            "O(1)",
        ],
    ),
    facts(
        "set",
        -3,
        &["write", "denyoom"],
        (1, 1, 1),
        &["@write", "@string", "@slow"],
        ["Sets the value of a key.", "1.0.0", "string", "O(1)"],
    ),
    facts(
        "setex",
        4,
        &["write", "denyoom"],
        (1, 1, 1),
        &["@write", "@string", "@slow"],
        [
            "Sets a value and when it ends, in seconds from now.",
            "2.0.0",
            "string",
            "O(1)",
        ],
    ),
    facts(
        "slowlog",
        -2,
        &[],
        (0, 0, 0),
        &["@admin", "@slow", "@dangerous"],
        [
            "Shows the requests that were slow or failed.",
            "2.2.12",
            "server",
            "Depends on subcommand.",
        ],
    ),
    facts(
        "strlen",
        2,
        &["readonly", "fast"],
        (1, 1, 1),
        &["@read", "@string", "@fast"],
        ["Returns the length of a value.", "2.2.0", "string", "O(1)"],
    ),
    facts(
        "substr",
        4,
        &["readonly"],
        (1, 1, 1),
        &["@read", "@string", "@slow"],
        [
            "Returns a part of a value.",
            "1.0.0",
            "string",
            "O(N) where N is the length of the part",
        ],
    ),
    facts(
        "time",
        1,
        &["loading", "stale", "fast"],
        (0, 0, 0),
        &["@fast"],
        ["Returns the time of the server.", "2.6.0", "server", "O(1)"],
    ),
    facts(
        "touch",
        -2,
        &["readonly", "fast"],
        (1, -1, 1),
        &["@keyspace", "@read", "@fast"],
        [
            "Counts the keys that exist.",
            "3.2.1",
            "generic",
            "O(N) where N is the number of keys",
        ],
    ),
    facts(
        "ttl",
        2,
        &["readonly", "fast"],
        (1, 1, 1),
        &["@keyspace", "@read", "@fast"],
        [
            "Returns the seconds a key has left.",
            "1.0.0",
            "generic",
            "O(1)",
        ],
    ),
    facts(
        "type",
        2,
        &["readonly", "fast"],
        (1, 1, 1),
        &["@keyspace", "@read", "@fast"],
        ["Returns the type of a value.", "1.0.0", "generic", "O(1)"],
    ),
    facts(
        "unlink",
        -2,
        &["write", "fast"],
        (1, -1, 1),
        &["@keyspace", "@write", "@fast"],
        [
            "Deletes one or more keys.",
            "4.0.0",
            "generic",
            "O(N) where N is the number of keys",
        ],
    ),
    facts(
        "wait",
        3,
        &[],
        (0, 0, 0),
        &["@slow", "@connection"],
        [
            "Returns how many other nodes acknowledged the writes before.",
            "3.0.0",
            "generic",
            "O(1)",
        ],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_stand_in_the_order_of_the_kinds() {
        assert_eq!(COMMANDS.len(), CommandKind::COUNT);
        for kind in CommandKind::ALL {
            assert_eq!(COMMANDS[kind as usize].name, kind.name());
        }
        assert_eq!(command_facts(b"gEt").map(|facts| facts.arity), Some(2));
        assert!(command_facts(b"nosuchcommand-that-is-long").is_none());
    }
}
