//! Commands about the server, whoever asks.

use std::sync::Arc;
use std::time::Duration;

use super::{Config, Shared, info};
use crate::model::Millis;
use crate::resp::{
    Args, ChannelQuery, ConnectionCommand, Encoder, LatencyQuery, ScriptQuery, SlowLogQuery,
    integer,
};
use crate::update::script_name;

/// Answers a command about the server.
pub(super) fn answer(
    command: ConnectionCommand<'_>,
    shared: &Shared,
    now: Millis,
    reply: &mut Encoder<'_>,
) {
    match command {
        ConnectionCommand::Info { sections } => {
            let wanted: Vec<&[u8]> = sections.iter().collect();
            reply.verbatim(&info::text(shared, &wanted));
        }
        ConnectionCommand::ConfigGet { patterns } => {
            let found = info::config(shared, patterns);
            reply.map(found.len());
            for (name, value) in found {
                reply.bulk(name.as_bytes());
                reply.bulk(value.as_bytes());
            }
        }
        // Every write was acknowledged by w replicas before its reply was sent.
        ConnectionCommand::Wait { .. } => {
            let w = shared.coordinator.config().quorum.w();
            reply.integer(i64::from(w) - 1);
        }
        ConnectionCommand::QuorateHelp => lines(QUORATE_HELP, reply),
        ConnectionCommand::Time => time(now, reply),
        ConnectionCommand::SlowLog(query) => slow_log(query, shared, reply),
        ConnectionCommand::Script(query) => script(query, shared, reply),
        ConnectionCommand::Channels(query) => channels(query, shared, reply),
        ConnectionCommand::Latency(query) => latency(query, reply),
        ConnectionCommand::ConfigSet { pairs } => config_set(pairs, shared, reply),
        ConnectionCommand::ConfigResetStat => {
            shared.stats.reset();
            reply.simple("OK");
        }
        ConnectionCommand::ConfigHelp => lines(CONFIG_HELP, reply),
        ConnectionCommand::FunctionFlush => reply.simple("OK"),
        ConnectionCommand::ObjectHelp => lines(OBJECT_HELP, reply),
        ConnectionCommand::MemoryHelp => lines(MEMORY_HELP, reply),
        // The others are about the connection: none of them comes here.
        _ => reply.error("ERR this command is about a connection"),
    }
}

fn channels(query: ChannelQuery<'_>, shared: &Shared, reply: &mut Encoder<'_>) {
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    match query {
        ChannelQuery::Channels(pattern) => {
            let names = shared.channels.names(pattern);
            reply.array(names.len());
            names.iter().for_each(|name| reply.bulk(name));
        }
        ChannelQuery::Subscribers(names) => {
            reply.array(2 * names.len());
            for name in names.iter() {
                reply.bulk(name);
                reply.integer(count(shared.channels.count(name)));
            }
        }
        ChannelQuery::Patterns => reply.integer(count(shared.channels.patterns())),
        ChannelQuery::Help => lines(PUBSUB_HELP, reply),
    }
}

fn latency(query: LatencyQuery, reply: &mut Encoder<'_>) {
    match query {
        LatencyQuery::Nothing => reply.array(0),
        LatencyQuery::Reset => reply.integer(0),
        LatencyQuery::Doctor => reply.verbatim(LATENCY_DOCTOR),
        LatencyQuery::Help => lines(LATENCY_HELP, reply),
    }
}

/// Takes what is so already, and what can be changed while a node runs; all or nothing.
fn config_set(pairs: Args<'_>, shared: &Shared, reply: &mut Encoder<'_>) {
    let mut threshold = None;
    for place in (0..pairs.len()).step_by(2) {
        let name = pairs.get(place).unwrap_or_default().to_ascii_lowercase();
        let value = pairs.get(place + 1).unwrap_or_default();
        let shown = String::from_utf8_lossy(&name);
        let Some(is) = info::setting(shared, &name) else {
            return reply.error(&format!(
                "ERR Unknown option or number of arguments for CONFIG SET - '{shown}'"
            ));
        };
        if name == b"slowlog-log-slower-than" {
            let micros = integer(value).and_then(|micros| u64::try_from(micros).ok());
            let Some(micros) = micros else {
                return reply.error(&format!(
                    "ERR CONFIG SET failed (possibly related to argument '{shown}') - argument \
                     couldn't be parsed into an integer"
                ));
            };
            threshold = Some(Duration::from_micros(micros));
        } else if is.as_bytes() != value && name == b"client-output-buffer-limit" {
            return reply.error(&format!(
                "ERR CONFIG SET failed (possibly related to argument '{shown}') - the limits are \
                 '{is}': the seconds of normal clients are unread_timeout in quorate.toml, the rest is \
                 fixed"
            ));
        } else if is.as_bytes() != value {
            return reply.error(&format!(
                "ERR CONFIG SET failed (possibly related to argument '{shown}') - can't set \
                 immutable config: see quorate.toml"
            ));
        }
    }
    if let Some(threshold) = threshold {
        shared.config.send_modify(|config| {
            let mut changed = Config::clone(config);
            changed.slow.threshold = threshold;
            *config = Arc::new(changed);
        });
    }
    reply.simple("OK");
}

/// Lines of text for people.
pub(super) fn lines(lines: &[&str], reply: &mut Encoder<'_>) {
    reply.array(lines.len());
    lines.iter().for_each(|line| reply.simple(line));
}

/// As Redis has it: id, time, microseconds, the words of the command, the client and its name.
fn slow_log(query: SlowLogQuery, shared: &Shared, reply: &mut Encoder<'_>) {
    match query {
        SlowLogQuery::Get(count) => {
            let entries = shared.slow.newest(count.unwrap_or(usize::MAX));
            reply.array(entries.len());
            for entry in entries {
                let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
                reply.array(6);
                reply.integer(number(entry.id));
                reply.integer(number(entry.at_ms / 1_000));
                reply.integer(number(entry.took_us));
                let words = [Some(entry.commands), entry.key, entry.error];
                let words: Vec<String> = words.into_iter().flatten().collect();
                reply.array(words.len());
                words.iter().for_each(|word| reply.bulk(word.as_bytes()));
                reply.bulk(entry.client.as_bytes());
                reply.bulk(b"");
            }
        }
        SlowLogQuery::Len => {
            let count = shared.slow.newest(usize::MAX).len();
            reply.integer(i64::try_from(count).unwrap_or(i64::MAX));
        }
        SlowLogQuery::Reset => {
            shared.slow.clear();
            reply.simple("OK");
        }
        SlowLogQuery::Help => lines(SLOWLOG_HELP, reply),
    }
}

/// What this node knows of scripts.
fn script(query: ScriptQuery<'_>, shared: &Shared, reply: &mut Encoder<'_>) {
    match query {
        ScriptQuery::Load(source) => {
            let name = script_name(source);
            shared.scripts.keep(&name, source);
            reply.bulk(name.as_bytes());
        }
        ScriptQuery::Exists(names) => {
            reply.array(names.len());
            for name in names.iter() {
                reply.integer(i64::from(shared.scripts.get(name).is_some()));
            }
        }
        ScriptQuery::Flush => {
            shared.scripts.clear();
            reply.simple("OK");
        }
        // What a script did is applied when it has ended: to end it before is always safe.
        ScriptQuery::Kill if shared.env.tasks.watchdog().kill() => reply.simple("OK"),
        ScriptQuery::Kill => reply.error("NOTBUSY No scripts in execution right now."),
        ScriptQuery::Help => lines(SCRIPT_HELP, reply),
    }
}

fn time(now: Millis, reply: &mut Encoder<'_>) {
    let micros = now.0 % 1_000 * 1_000;
    reply.array(2);
    reply.bulk((now.0 / 1_000).to_string().as_bytes());
    reply.bulk(micros.to_string().as_bytes());
}

const QUORATE_HELP: &[&str] = &[
    "QUORATE <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "LEVEL [READ level] [WRITE level]",
    "    Show or set how consistent this connection's requests are. A level is one of",
    "    one, quorum, all, local_quorum, linearizable. RESET goes back to the default.",
    "LAST",
    "    Tell how many writes of this connection's last requests (those sent in one go) were",
    "    acknowledged with the help of stand-ins, because home nodes were away.",
    "HELP",
    "    Print this help.",
];
const SLOWLOG_HELP: &[&str] = &[
    "SLOWLOG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "GET [<count>]",
    "    Return top <count> entries from the slowlog (default: 10, -1 mean all).",
    "    Entries are made of:",
    "    id, timestamp, time in microseconds, arguments array, client IP and port,",
    "    client name",
    "LEN",
    "    Return the length of the slowlog.",
    "RESET",
    "    Reset the slowlog.",
    "HELP",
    "    Prints this help.",
];
const SCRIPT_HELP: &[&str] = &[
    "SCRIPT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "EXISTS <sha1> [<sha1> ...]",
    "    Return information about the existence of the scripts in the script cache.",
    "FLUSH [ASYNC|SYNC]",
    "    Flush the scripts that this node knows.",
    "KILL",
    "    Scripts are bounded: none runs for long.",
    "LOAD <script>",
    "    Load a script into the scripts cache without executing it.",
    "HELP",
    "    Prints this help.",
];
const CONFIG_HELP: &[&str] = &[
    "CONFIG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "GET <pattern>",
    "    Return settings matching the glob-like <pattern> and their values.",
    "SET <directive> <value>",
    "    Set slowlog-log-slower-than until the node restarts. Others are set in quorate.toml.",
    "RESETSTAT",
    "    Reset statistics reported by the INFO command.",
    "HELP",
    "    Prints this help.",
];
const PUBSUB_HELP: &[&str] = &[
    "PUBSUB <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "CHANNELS [<pattern>]",
    "    Return the channels that clients of this node listen to.",
    "NUMPAT",
    "    Return the number of patterns that clients of this node listen to.",
    "NUMSUB [<channel> ...]",
    "    Return how many clients of this node listen to each channel.",
    "HELP",
    "    Prints this help.",
];
const LATENCY_DOCTOR: &str = "Latencies of commands are metrics: quorate_request_seconds, by command \
    and level. `quorate slowlog` shows the slowest requests, `quorate doctor` what is wrong.\n";
const LATENCY_HELP: &[&str] = &[
    "LATENCY <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "DOCTOR",
    "    Tell where latencies are to be found.",
    "HISTORY <event>",
    "    Nothing is kept in this form.",
    "LATEST",
    "    Nothing is kept in this form.",
    "RESET [<event> ...]",
    "    Nothing is kept in this form.",
    "HELP",
    "    Prints this help.",
];
const OBJECT_HELP: &[&str] = &[
    "OBJECT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "ENCODING <key>",
    "    Return the kind of internal representation used in order to store the value",
    "    associated with a <key>.",
    "FREQ <key>",
    "    Return the access frequency index of the <key>. The returned integer is",
    "    proportional to the logarithm of the recent access frequency of the key.",
    "IDLETIME <key>",
    "    Return the idle time of the <key>, that is the approximated number of",
    "    seconds elapsed since the last access to the key.",
    "REFCOUNT <key>",
    "    Return the number of references of the value associated with the specified",
    "    <key>.",
    "HELP",
    "    Prints this help.",
];
const MEMORY_HELP: &[&str] = &[
    "MEMORY <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "USAGE <key> [SAMPLES <count>]",
    "    Return memory in bytes used by <key> and its value.",
    "HELP",
    "    Prints this help.",
];
