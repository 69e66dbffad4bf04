//! Which level a request gets.

use crate::model::{Level, Levels};
use crate::resp::CommandKind;

/// What was configured.
#[derive(Debug, Clone, Default)]
pub struct LevelRules {
    /// Of clients over TCP.
    pub tcp: Levels,
    /// Of clients over the Unix socket.
    pub socket: Levels,
    /// Of keys that begin with a prefix.
    pub keyspaces: Vec<(Vec<u8>, Levels)>,
    /// Whether others may stand in for home nodes.
    pub sloppy: bool,
    /// The same for keys that begin with a prefix.
    pub sloppy_keyspaces: Vec<(Vec<u8>, bool)>,
}

/// Where a client came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    Tcp,
    Socket,
}

impl LevelRules {
    /// The levels of a door.
    pub(super) const fn of_door(&self, door: Door) -> Levels {
        match door {
            Door::Tcp => self.tcp,
            Door::Socket => self.socket,
        }
    }

    /// The levels of a key's own keyspace: of the longest prefix that it begins with.
    pub(super) fn of_keyspace(&self, key: &[u8]) -> Option<Levels> {
        longest_prefix(&self.keyspaces, key)
    }

    /// Whether others may stand in for the home nodes of a key.
    pub(super) fn is_sloppy(&self, key: &[u8]) -> bool {
        longest_prefix(&self.sloppy_keyspaces, key).unwrap_or(self.sloppy)
    }
}

fn longest_prefix<T: Copy>(keyspaces: &[(Vec<u8>, T)], key: &[u8]) -> Option<T> {
    let fitting = keyspaces
        .iter()
        .filter(|(prefix, _)| key.starts_with(prefix));
    let (_, found) = fitting.max_by_key(|(prefix, _)| prefix.len())?;
    Some(*found)
}

/// The levels of one connection: what it asked for, or else what the key's keyspace has, or else
/// what its door has.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionLevels {
    door: Levels,
    read: Option<Level>,
    write: Option<Level>,
}

impl ConnectionLevels {
    pub(super) const fn of_door(door: Levels) -> Self {
        Self {
            door,
            read: None,
            write: None,
        }
    }

    /// The door has other levels from now on.
    pub(super) const fn set_door(&mut self, door: Levels) {
        self.door = door;
    }

    /// Asks for other levels; `None`: as before.
    pub(super) fn ask(&mut self, read: Option<Level>, write: Option<Level>) {
        self.read = read.or(self.read);
        self.write = write.or(self.write);
    }

    /// Back to what the door has.
    pub(super) const fn reset(&mut self) {
        (self.read, self.write) = (None, None);
    }

    /// Those of keys in no keyspace.
    pub(super) fn shown(&self) -> Levels {
        Levels {
            read: self.read.unwrap_or(self.door.read),
            write: self.write.unwrap_or(self.door.write),
        }
    }

    /// Those of requests on `key`.
    pub(super) fn of(&self, key: &[u8], rules: &LevelRules) -> Levels {
        let levels = rules.of_keyspace(key).unwrap_or(self.door);
        Levels {
            read: self.read.unwrap_or(levels.read),
            write: self.write.unwrap_or(levels.write),
        }
    }
}

/// The level of a command that is carried out here alone.
pub(super) const fn level_of(kind: CommandKind, levels: Levels) -> Level {
    use CommandKind as K;
    match kind {
        K::Set | K::SetEx | K::PSetEx | K::MSet | K::Del | K::Unlink => levels.write,
        K::Expire | K::PExpire | K::ExpireAt | K::PExpireAt | K::Persist => levels.write,
        _ => levels.read,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_goes_before_the_keyspace_and_that_before_the_door() {
        let levels = |text: &str| text.parse::<Levels>().unwrap();
        let rules = LevelRules {
            keyspaces: vec![
                (b"a".to_vec(), levels("one")),
                (b"a:b".to_vec(), levels("linearizable")),
            ],
            ..LevelRules::default()
        };
        let mut connection = ConnectionLevels::of_door(levels("all"));
        assert_eq!(connection.of(b"x", &rules), levels("all"));
        assert_eq!(connection.of(b"a:c", &rules), levels("one"));
        assert_eq!(connection.of(b"a:b:c", &rules), levels("linearizable"));
        connection.ask(Some(Level::Quorum), None);
        assert_eq!(connection.of(b"a:c", &rules), levels("quorum/one"));
        assert_eq!(connection.shown(), levels("quorum/all"));
        connection.reset();
        assert_eq!(connection.shown(), levels("all"));
    }

    #[test]
    fn the_longest_prefix_says_whether_others_may_stand_in() {
        let rules = LevelRules {
            sloppy: true,
            sloppy_keyspaces: vec![(b"lock:".to_vec(), false), (b"lock:soft:".to_vec(), true)],
            ..LevelRules::default()
        };
        let keys: [&[u8]; 3] = [b"a", b"lock:a", b"lock:soft:a"];
        assert_eq!(keys.map(|key| rules.is_sloppy(key)), [true, false, true]);
    }
}
