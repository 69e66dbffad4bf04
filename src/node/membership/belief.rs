//! Which gossip messages are believed: the checks that a message passes before chitchat sees it.
//!
//! A message does not name its sender; the connection's certificate does. chitchat trusts what it
//! decodes, up to ending its loop for good when a message contradicts itself, so all that it takes
//! for granted is checked here, on the bytes. Layout of chitchat 0.11, little-endian:
//!
//! ```text
//! message  = magic 2, protocol version 1, kind 1, body
//! body     = syn: digest, cluster name | syn-ack: digest, delta | ack: delta | bad cluster: -
//! digest   = nodes 2, (id, heartbeat 8, last_gc_version 8, max_version 8) x nodes
//! id       = name, generation 8, address
//! delta    = blocks; block = kind 1 (end, zstd, plain), length 2, bytes
//! in blocks: tag 1, then node: id, last_gc_version 8, from_version 8 | key value: key, value,
//!            version 8, status 1 | max version: version 8
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use chitchat::{ChitchatId, ChitchatMessage, Deserializable, NodeState, Serializable};

use crate::model::NodeId;

/// The nodes that chitchat knows of, and those that it is about to be told of: what a message may
/// still add to them is bounded.
#[derive(Debug)]
pub(super) struct KnownIds {
    own: ChitchatId,
    ids: Mutex<BTreeSet<ChitchatId>>,
    is_impersonated: AtomicBool,
}

impl KnownIds {
    pub(super) fn new(own: ChitchatId) -> Self {
        let ids = Mutex::new(BTreeSet::from([own.clone()]));
        Self {
            own,
            ids,
            is_impersonated: AtomicBool::new(false),
        }
    }

    /// Whether anyone brought news of this very start of this node, which only it can have. Those
    /// who passed them on may believe them: nothing that it says under this id will be believed.
    pub(super) fn is_impersonated(&self) -> bool {
        self.is_impersonated.load(Ordering::Relaxed)
    }

    /// Takes over what chitchat knows now.
    pub(super) fn refresh(&self, nodes: &BTreeMap<ChitchatId, NodeState>) {
        let mut known = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() != nodes.len() {
            *known = nodes.keys().cloned().collect();
        }
    }

    /// Whether there is room for these; if so they are known from now on.
    fn admit(&self, ids: BTreeSet<ChitchatId>) -> bool {
        let mut known = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if ids.is_subset(&known) {
            return true;
        }
        let bytes: usize = known.union(&ids).map(digest_entry_bytes).sum();
        let has_room = bytes <= DIGEST_BYTES_MAX;
        if has_room {
            known.extend(ids);
        }
        has_room
    }
}

/// For fuzz targets: whether a node that knows only itself believes a message from `from`.
#[doc(hidden)]
#[must_use]
pub fn is_believed(from: &str, body: &[u8]) -> bool {
    let own = ChitchatId::new("own".to_owned(), 1, ([127, 0, 0, 1], 1).into());
    believe(from, body, &KnownIds::new(own)).is_ok()
}

/// Decodes a message if its sender may say it.
///
/// Whoever begins a round or answers one sends a digest of all it knows, itself included: one
/// without the sender is not its own. A digest also names third nodes, which is what Scuttlebutt
/// is for; it cannot name more than a cluster has, and none of them enters the ring by being named.
pub(super) fn believe(
    from: &str,
    body: &[u8],
    known: &KnownIds,
) -> Result<ChitchatMessage, &'static str> {
    const HEADER_BYTES: usize = 4;
    let kind = *body.get(HEADER_BYTES - 1).ok_or("shorter than a header")?;
    let mut rest = &body[HEADER_BYTES..];
    let mut named = BTreeSet::new();
    if kind == SYN || kind == SYN_ACK {
        named = digest_ids(&mut rest).ok_or("malformed digest")?;
        if !named.iter().any(|id| *id.node_id == *from) {
            return Err("a digest that does not name its sender");
        }
    }
    if kind == SYN_ACK || kind == ACK {
        check_delta(rest, known)?;
    }
    let mut rest = body;
    let message = ChitchatMessage::deserialize(&mut rest).map_err(|_error| "malformed message")?;
    if !rest.is_empty() {
        return Err("bytes after the message");
    }
    if !known.admit(named) {
        return Err("more nodes than a cluster can have");
    }
    Ok(message)
}

fn digest_ids(digest: &mut &[u8]) -> Option<BTreeSet<ChitchatId>> {
    let nodes = u16::deserialize(digest).ok()?;
    let mut ids = BTreeSet::new();
    for _ in 0..nodes {
        let id = sane_id(digest)?;
        let _heartbeat = u64::deserialize(digest).ok()?;
        let (_last_gc, _max) = (sane_version(digest)?, sane_version(digest)?);
        ids.insert(id);
    }
    Some(ids)
}

/// Checks what chitchat asserts when it applies a delta, and that nobody tells this node anything
/// about itself.
fn check_delta(blocks: &[u8], known: &KnownIds) -> Result<(), &'static str> {
    let ops = unpack(blocks).ok_or("malformed delta")?;
    let mut rest = ops.as_slice();
    let mut max_version = None;
    while !rest.is_empty() {
        let tag = u8::deserialize(&mut rest).map_err(|_error| "malformed delta")?;
        match tag {
            NODE => {
                let id = sane_id(&mut rest).ok_or("malformed node in a delta")?;
                if id == known.own {
                    known.is_impersonated.store(true, Ordering::Relaxed);
                    return Err("news of this node from another");
                }
                for _ in 0..2 {
                    sane_version(&mut rest).ok_or("a version out of range")?;
                }
                max_version = Some(0);
            }
            KEY_VALUE => {
                for bytes_max in [KEY_BYTES_MAX, VALUE_BYTES_MAX] {
                    String::deserialize(&mut rest)
                        .ok()
                        .filter(|text| text.len() <= bytes_max)
                        .ok_or("a key or value out of range")?;
                }
                let version = sane_version(&mut rest).ok_or("a version out of range")?;
                u8::deserialize(&mut rest).map_err(|_error| "malformed delta")?;
                let before = max_version.replace(version);
                if before.is_none_or(|before| version <= before) {
                    return Err("versions that do not increase");
                }
            }
            MAX_VERSION => {
                let version = sane_version(&mut rest).ok_or("a version out of range")?;
                let before = max_version.replace(version);
                if before.is_none_or(|before| version < before) {
                    return Err("a highest version that is not");
                }
            }
            _ => return Err("malformed delta"),
        }
    }
    Ok(())
}

/// The operations in a delta's blocks.
fn unpack(mut blocks: &[u8]) -> Option<Vec<u8>> {
    const END: u8 = 0;
    const COMPRESSED: u8 = 1;
    const PLAIN: u8 = 2;
    let mut ops = Vec::new();
    for _ in 0..BLOCKS_MAX {
        let kind = u8::deserialize(&mut blocks).ok()?;
        if kind == END {
            return Some(ops);
        }
        let length = usize::from(u16::deserialize(&mut blocks).ok()?);
        let (block, rest) = blocks.split_at_checked(length)?;
        blocks = rest;
        match kind {
            COMPRESSED => ops.extend(zstd::bulk::decompress(block, BLOCK_BYTES_MAX).ok()?),
            PLAIN => ops.extend_from_slice(block),
            _ => return None,
        }
    }
    None
}

fn sane_id(bytes: &mut &[u8]) -> Option<ChitchatId> {
    let id = ChitchatId::deserialize(bytes).ok()?;
    id.node_id.parse::<NodeId>().is_ok().then_some(id)
}

/// chitchat counts versions up by one: this leaves it room for ever.
fn sane_version(bytes: &mut &[u8]) -> Option<u64> {
    let version = u64::deserialize(bytes).ok()?;
    (version < u64::MAX / 2).then_some(version)
}

/// A node's share of a digest: its id, a heartbeat and two versions.
fn digest_entry_bytes(id: &ChitchatId) -> usize {
    const NUMBERS_BYTES: usize = 24;
    id.serialized_len() + NUMBERS_BYTES
}

const SYN: u8 = 0;
const SYN_ACK: u8 = 1;
const ACK: u8 = 2;

const NODE: u8 = 0;
const KEY_VALUE: u8 = 1;
const MAX_VERSION: u8 = 2;

/// chitchat writes a digest of everyone into each message of at most 65,507 bytes and panics when
/// it does not fit. This leaves room for a delta beside it. A node with a name of 13 characters
/// takes 54 bytes: 1,100 nodes do; restarted ones count twice until they are forgotten.
const DIGEST_BYTES_MAX: usize = 60_000;
/// A delta has blocks of 16 KiB before compression and 64 KiB in all after it. More than this is
/// not compressed state but a bomb.
const BLOCKS_MAX: usize = 64;
/// chitchat's own bound of a block.
const BLOCK_BYTES_MAX: usize = u16::MAX as usize;
/// Keys are short names.
const KEY_BYTES_MAX: usize = 256;
/// chitchat passes on what fits into a message beside a full digest.
const VALUE_BYTES_MAX: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ChitchatId {
        ChitchatId::new(name, 1, ([127, 0, 0, 1], 1).into())
    }

    fn known() -> KnownIds {
        KnownIds::new(id("self"))
    }

    fn header(kind: u8) -> Vec<u8> {
        let mut bytes = 45_139u16.to_le_bytes().to_vec();
        bytes.extend([0, kind]);
        bytes
    }

    fn syn(names: &[&str]) -> Vec<u8> {
        let mut bytes = header(SYN);
        u16::try_from(names.len()).unwrap().serialize(&mut bytes);
        for name in names {
            id(name).serialize(&mut bytes);
            (0..3).for_each(|number: u64| number.serialize(&mut bytes));
        }
        "blue".serialize(&mut bytes);
        bytes
    }

    /// An acknowledgement whose delta is `ops` about the node `name`.
    fn ack(name: &str, ops: &[(u8, u64)]) -> Vec<u8> {
        let mut plain = vec![NODE];
        id(name).serialize(&mut plain);
        (0..2).for_each(|_| 0u64.serialize(&mut plain));
        for (tag, version) in ops {
            plain.push(*tag);
            if *tag == KEY_VALUE {
                "key".serialize(&mut plain);
                "value".serialize(&mut plain);
            }
            version.serialize(&mut plain);
            if *tag == KEY_VALUE {
                plain.push(0);
            }
        }
        let mut bytes = header(ACK);
        bytes.push(2);
        u16::try_from(plain.len()).unwrap().serialize(&mut bytes);
        bytes.extend(plain);
        bytes.push(0);
        bytes
    }

    #[test]
    fn a_node_speaks_for_itself_and_of_others() {
        assert!(matches!(
            believe("a", &syn(&["a", "b"]), &known()),
            Ok(ChitchatMessage::Syn { .. })
        ));
        assert!(believe("c", &syn(&["a", "b"]), &known()).is_err());
        assert!(believe("a", &syn(&[]), &known()).is_err());
    }

    #[test]
    fn invented_crowds_and_broken_messages_are_refused() {
        let crowd: Vec<String> = (0..1_500).map(|n| format!("n{n}")).collect();
        let crowd: Vec<&str> = crowd.iter().map(String::as_str).collect();
        assert!(believe("n0", &syn(&crowd), &known()).is_err());
        let long = "x".repeat(60_000);
        assert!(believe("a", &syn(&["a", &long]), &known()).is_err());
        let whole = syn(&["a"]);
        for end in 0..whole.len() {
            assert!(
                believe("a", &whole[..end], &known()).is_err(),
                "cut at {end}"
            );
        }
        assert!(believe("a", &[whole, vec![0]].concat(), &known()).is_err());
    }

    #[test]
    fn many_messages_cannot_name_more_than_one_may() {
        let known = known();
        let crowd =
            |from: u16| -> Vec<String> { (from..from + 700).map(|n| format!("n{n}")).collect() };
        let message = |crowd: &[String]| syn(&crowd.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(believe("n0", &message(&crowd(0)), &known).is_ok());
        assert!(believe("n700", &message(&crowd(700)), &known).is_err());
        assert!(
            believe("n0", &message(&crowd(0)), &known).is_ok(),
            "the known go on"
        );
    }

    #[test]
    fn a_delta_that_contradicts_itself_is_refused() {
        let is_believed = |ops: &[(u8, u64)]| believe("a", &ack("b", ops), &known()).is_ok();
        assert!(is_believed(&[]));
        assert!(is_believed(&[(KEY_VALUE, 1), (KEY_VALUE, 7)]));
        assert!(is_believed(&[(MAX_VERSION, 7)]));
        assert!(!is_believed(&[(KEY_VALUE, 0)]));
        assert!(!is_believed(&[(KEY_VALUE, 2), (KEY_VALUE, 2)]));
        assert!(!is_believed(&[(KEY_VALUE, 100), (MAX_VERSION, 50)]));
        assert!(!is_believed(&[(KEY_VALUE, u64::MAX)]));
        assert!(!is_believed(&[(MAX_VERSION, u64::MAX)]));
        assert!(!is_believed(&[(3, 1)]));
    }

    #[test]
    fn nobody_tells_a_node_of_itself() {
        let known = known();
        assert!(believe("a", &ack("b", &[(KEY_VALUE, 1)]), &known).is_ok());
        assert!(!known.is_impersonated());
        assert!(believe("a", &ack("self", &[(KEY_VALUE, 1)]), &known).is_err());
        assert!(known.is_impersonated());
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let zeros = zstd::bulk::compress(&[0; BLOCK_BYTES_MAX], 0).unwrap();
        let mut bytes = header(ACK);
        for _ in 0..1_000 {
            bytes.push(1);
            u16::try_from(zeros.len()).unwrap().serialize(&mut bytes);
            bytes.extend(&zeros);
        }
        bytes.push(0);
        assert!(believe("a", &bytes, &known()).is_err());
    }
}
