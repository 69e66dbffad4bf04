//! What a node takes besides its data, at most: the bounds of all that others can make it hold.

use std::fmt;

use crate::config::{ByteSize, Settings};
use crate::env::pool_threads;
use crate::front::channels::{SUBSCRIPTION_BYTES_MAX, WAITING_BYTES_MAX};
use crate::front::peer_server::TAKING_BYTES_MAX;
use crate::front::resp_server::{HASHES_BYTES_MAX, UNREAD_BYTES_MAX};
use crate::net::QUEUE_BYTES_MAX;
use crate::node::{LARGE_UNDER_WAY_BYTES_MAX, LARGE_WAITING_BYTES_MAX};
use crate::update::{SCRIPT_MEMORY_MAX, SCRIPT_REPLY_BYTES_MAX};

/// One bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// What is bounded, and the key that sets it, if one does.
    pub what: &'static str,
    /// The bound.
    pub bytes: u64,
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds(Vec<Bound>);

impl Bounds {
    /// Those of a node with these settings.
    #[must_use]
    pub fn of(settings: &Settings) -> Self {
        let bytes = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
        let connections = u64::from(settings.connections_max);
        let bound = |what, bytes| Bound { what, bytes };
        Self(vec![
            bound(
                "unfinished commands of clients (client_input_bytes_max)",
                settings.client_input_bytes_max(),
            ),
            bound(
                "buffers for replies (connections_max)",
                connections.saturating_mul(CONNECTION_BYTES),
            ),
            bound("replies that clients do not read", bytes(UNREAD_BYTES_MAX)),
            bound("messages for subscribers", bytes(WAITING_BYTES_MAX)),
            bound("subscriptions", bytes(SUBSCRIPTION_BYTES_MAX)),
            // They are copies: a client that is closed for what it has sent leaves its own behind.
            bound(
                "large requests of clients that wait for their turn",
                bytes(LARGE_WAITING_BYTES_MAX),
            ),
            bound(
                "large requests of clients under way",
                bytes(LARGE_UNDER_WAY_BYTES_MAX),
            ),
            bound("large records being taken from peers", TAKING_BYTES_MAX),
            bound(
                "scripts and their replies (one for each processor, two at least)",
                bytes(pool_threads()).saturating_mul(SCRIPT_BYTES_MAX),
            ),
            bound(
                "passwords being checked, with hashes of `quorate passwd`",
                HASHES_BYTES_MAX,
            ),
            bound("hints (hint_max_bytes)", settings.hint_max_bytes.0),
            bound(
                "frames for a peer that does not read, for each peer",
                bytes(QUEUE_BYTES_MAX),
            ),
        ])
    }

    /// Together.
    #[must_use]
    pub fn sum(&self) -> u64 {
        let bytes = self.0.iter().map(|bound| bound.bytes);
        bytes.fold(0, u64::saturating_add)
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "at most {} besides the data:", ByteSize(self.sum()))?;
        for Bound { what, bytes } in &self.0 {
            writeln!(f, "  {:>8}  {what}", ByteSize(*bytes).to_string())?;
        }
        Ok(())
    }
}

/// What a connection keeps of its replies for the next time; its input is in the first of the bounds.
const CONNECTION_BYTES: u64 = 128 * 1024;
/// What one script may have, and what it may reply.
const SCRIPT_BYTES_MAX: u64 = SCRIPT_MEMORY_MAX as u64 + SCRIPT_REPLY_BYTES_MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    #[test]
    fn the_sum_is_that_of_all_bounds_and_follows_the_settings() {
        let of = |more: &str| {
            let text = format!(
                "node = \"a\"\nca_file = \"a\"\ncert_file = \"a\"\nkey_file = \"a\"\n{more}"
            );
            let sources = Sources {
                file: Some(("q.toml".into(), text)),
                ..Sources::default()
            };
            Bounds::of(&Settings::load(&sources).unwrap().settings)
        };
        let bounds = of("");
        assert_eq!(
            bounds.sum(),
            bounds.0.iter().map(|bound| bound.bytes).sum::<u64>()
        );
        let more = of("client_input_bytes_max = \"1GiB\"\nhint_max_bytes = \"1GiB\"\n");
        assert_eq!(more.sum() - bounds.sum(), 2 * (768 << 20));
        // One command of the largest size is allowed in any case.
        let large = of("max_value_bytes = \"512MiB\"\n");
        assert_eq!(large.sum() - bounds.sum(), (2 << 30) - (256 << 20));
        let text = bounds.to_string();
        assert!(
            text.starts_with("at most ") && text.contains("256MiB  hints"),
            "{text}"
        );
        for line in [
            "256MiB  replies that clients do not read",
            "1GiB  large requests of clients that wait",
            "32MiB  large requests of clients under way",
            "256MiB  large records being taken from peers",
            "64MiB  frames for a peer",
            "38MiB  passwords being checked",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.contains("scripts and their replies"), "{text}");
    }
}
