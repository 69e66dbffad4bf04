//! What `COMMAND` and its sub-commands answer.

use crate::resp::{CommandFacts, CommandQuery, Encoder, command_facts, commands};

pub(super) fn answer(query: CommandQuery<'_>, reply: &mut Encoder<'_>) {
    match query {
        CommandQuery::All => {
            reply.array(commands().count());
            commands().for_each(|facts| encode(facts, reply));
        }
        CommandQuery::Count => reply.integer(i64::try_from(commands().count()).unwrap_or(i64::MAX)),
        CommandQuery::List => {
            reply.array(commands().count());
            commands().for_each(|facts| reply.bulk(facts.name.as_bytes()));
        }
        CommandQuery::Info(names) if names.is_empty() => answer(CommandQuery::All, reply),
        CommandQuery::Info(names) => {
            reply.array(names.len());
            for name in names.iter() {
                match command_facts(name) {
                    Some(facts) => encode(facts, reply),
                    None => reply.null(),
                }
            }
        }
        CommandQuery::Docs(names) => {
            let asked: Vec<&CommandFacts> = if names.is_empty() {
                commands().collect()
            } else {
                names.iter().filter_map(command_facts).collect()
            };
            reply.map(asked.len());
            for facts in asked {
                reply.bulk(facts.name.as_bytes());
                encode_docs(facts, reply);
            }
        }
        CommandQuery::Help => {
            reply.array(HELP.len());
            HELP.iter().for_each(|line| reply.simple(line));
        }
    }
}

/// Name, arity, flags, first key, last key, step, categories, tips, key specifications,
/// sub-commands: as Redis 7 has them.
fn encode(facts: &CommandFacts, reply: &mut Encoder<'_>) {
    reply.array(10);
    reply.bulk(facts.name.as_bytes());
    reply.integer(i64::from(facts.arity));
    reply.set(facts.flags.len());
    facts.flags.iter().for_each(|flag| reply.simple(flag));
    reply.integer(i64::from(facts.first_key));
    reply.integer(i64::from(facts.last_key));
    reply.integer(i64::from(facts.key_step));
    reply.set(facts.categories.len());
    facts
        .categories
        .iter()
        .for_each(|category| reply.simple(category));
    (0..3).for_each(|_| reply.array(0));
}

fn encode_docs(facts: &CommandFacts, reply: &mut Encoder<'_>) {
    let fields = [
        ("summary", facts.summary),
        ("since", facts.since),
        ("group", facts.group),
        ("complexity", facts.complexity),
    ];
    reply.map(fields.len());
    for (name, text) in fields {
        reply.bulk(name.as_bytes());
        reply.bulk(text.as_bytes());
    }
}

const HELP: &[&str] = &[
    "COMMAND <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "(no subcommand)",
    "    Return details about all commands.",
    "COUNT",
    "    Return the total number of commands.",
    "DOCS [<command-name> ...]",
    "    Return documentation details about multiple commands.",
    "INFO [<command-name> ...]",
    "    Return details about multiple commands.",
    "LIST",
    "    Return a list of all commands.",
    "HELP",
    "    Print this help.",
];
