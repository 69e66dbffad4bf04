//! What `COMMAND` tells of each command: the facts that client libraries ask for.

mod first;
mod rest;

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
pub fn commands() -> impl Iterator<Item = &'static CommandFacts> + Clone {
    first::FACTS.iter().chain(rest::FACTS)
}

/// The facts of a command, its name in any case.
#[must_use]
pub fn command_facts(name: &[u8]) -> Option<&'static CommandFacts> {
    let number = CommandKind::of(name)? as usize;
    let rest = number.checked_sub(first::FACTS.len());
    rest.map_or_else(|| first::FACTS.get(number), |rest| rest::FACTS.get(rest))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_stand_in_the_order_of_the_kinds() {
        assert_eq!(commands().count(), CommandKind::COUNT);
        for (kind, facts) in CommandKind::ALL.into_iter().zip(commands()) {
            assert_eq!(facts.name, kind.name());
            assert_eq!(
                command_facts(kind.name().as_bytes()).map(|f| f.name),
                Some(kind.name())
            );
        }
        assert_eq!(command_facts(b"gEt").map(|facts| facts.arity), Some(2));
        assert!(command_facts(b"nosuchcommand-that-is-long").is_none());
    }
}
