//! What is known of each node, and what follows from it: who is in the ring, who is reachable,
//! whom to meet, whose table to fetch. Pure: gossip, connections and time come in as events.
//!
//! A node enters the ring in one of three ways only: this node has a connection to it (its
//! certificate names it) and it says so itself; a ring member vouches for it in its own member
//! table; or it was in the table that this node kept on disk. Being named in gossip is not enough.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::published::{
    LOAD_KEY, Load, PARAMS_KEY, Params, RING_KEY, SHEET_KEY, TABLE_KEY, page_key, parse_entry,
    parse_load,
};
use crate::digest::Sheet;
use crate::model::{NodeId, NodeTag};
use crate::ring::{Member, MemberEntry, MemberState, MemberTable, RingParams};

/// Everything that membership knows.
#[derive(Debug)]
pub(super) struct Roster {
    self_id: NodeId,
    params: Params,
    table: MemberTable,
    peers: BTreeMap<NodeId, Peer>,
    /// Nodes whose parameters differ: said once each.
    refused: Vec<Refused>,
}

/// A node that is kept out of the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// Its name.
    pub id: NodeId,
    /// What it has, as text.
    pub theirs: String,
    /// What this node has.
    pub ours: String,
}

/// A node that cannot be in this ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) id: NodeId,
    pub(super) theirs: String,
    pub(super) ours: String,
}

#[derive(Debug, Default)]
struct Peer {
    /// Which start of the node, and which state of its keys, was read last.
    seen: (u64, u64),
    entry: Option<MemberEntry>,
    load: Option<Load>,
    sheet: Option<Arc<Sheet>>,
    table_digest: Option<String>,
    /// Its parameters, if they are not ours.
    differs: Option<String>,
    live: bool,
    connection: Connection,
    reachable: bool,
    fetch_after: Option<Instant>,
}

/// Whether there is a connection to a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Connection {
    #[default]
    Never,
    Open,
    LostAt(Instant),
}

/// What gossip holds of one node.
pub(super) struct Gossiped<'a> {
    pub(super) id: NodeId,
    pub(super) incarnation: u64,
    pub(super) version: u64,
    pub(super) live: bool,
    pub(super) value: &'a dyn Fn(&str) -> Option<String>,
}

/// What the driver has to do after an event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Todo {
    /// Nodes to connect to.
    pub(super) meet: Vec<(NodeId, SocketAddr)>,
    /// A member whose table to fetch.
    pub(super) fetch: Option<NodeId>,
    /// Nodes that were refused since last time.
    pub(super) refused: Vec<Refused>,
}

impl Roster {
    pub(super) fn new(self_id: NodeId, params: &RingParams, table: MemberTable) -> Self {
        let params = Params::of(params);
        Self {
            self_id,
            params,
            table,
            peers: BTreeMap::new(),
            refused: Vec::new(),
        }
    }

    pub(super) const fn table(&self) -> &MemberTable {
        &self.table
    }

    pub(super) fn loads(&self) -> BTreeMap<NodeId, Load> {
        let load = |(id, peer): (&NodeId, &Peer)| Some((id.clone(), peer.load.clone()?));
        self.peers.iter().filter_map(load).collect()
    }

    pub(super) fn strangers(&self) -> Vec<Stranger> {
        let stranger = |(id, peer): (&NodeId, &Peer)| {
            let theirs = peer.differs.clone()?;
            Some(Stranger {
                id: id.clone(),
                theirs,
                ours: self.params.to_string(),
            })
        };
        let alive = self.peers.iter().filter(|(_, peer)| peer.live);
        alive.filter_map(stranger).collect()
    }

    pub(super) fn sheets(&self) -> BTreeMap<NodeTag, Arc<Sheet>> {
        let sheet = |(id, peer): (&NodeId, &Peer)| Some((id.tag(), peer.sheet.clone()?));
        self.peers.iter().filter_map(sheet).collect()
    }

    /// What gossip holds of a node now. Of several starts of one node, the latest counts.
    pub(super) fn on_gossip(&mut self, gossiped: &Gossiped<'_>) {
        let Gossiped {
            id,
            incarnation,
            version,
            live,
            value,
        } = gossiped;
        if *id == self.self_id || (self.peers.len() >= PEERS_MAX && !self.peers.contains_key(id)) {
            return;
        }
        let peer = self.peers.entry(id.clone()).or_default();
        if *incarnation < peer.seen.0 {
            return;
        }
        peer.live = *live;
        if peer.seen == (*incarnation, *version) {
            return;
        }
        peer.seen = (*incarnation, *version);
        let entry = value(RING_KEY).and_then(|text| parse_entry(&text));
        peer.entry = entry.filter(|entry| entry.id == *id && entry.incarnation == *incarnation);
        peer.hear_digests(*value);
        peer.load = value(LOAD_KEY).and_then(|text| parse_load(&text));
        peer.table_digest = value(TABLE_KEY);
        if let Some(theirs) = value(PARAMS_KEY) {
            let differs = theirs.parse::<Params>().as_ref() != Ok(&self.params);
            if differs && peer.differs.is_none() {
                let ours = self.params.to_string();
                self.refused.push(Refused {
                    id: id.clone(),
                    theirs: theirs.clone(),
                    ours,
                });
            }
            peer.differs = differs.then_some(theirs);
        }
    }

    /// Nodes that gossip has forgotten and that nobody is connected to need no place here.
    pub(super) fn retain(&mut self, is_gossiped: impl Fn(&NodeId) -> bool) {
        self.peers
            .retain(|id, peer| peer.is_connected() || is_gossiped(id));
    }

    /// Who is connected now.
    pub(super) fn on_connected(&mut self, now: Instant, connected: &BTreeMap<NodeId, SocketAddr>) {
        for (id, peer) in &mut self.peers {
            if peer.is_connected() && !connected.contains_key(id) {
                peer.connection = Connection::LostAt(now);
            }
        }
        for id in connected.keys().filter(|id| **id != self.self_id) {
            self.peers.entry(id.clone()).or_default().connection = Connection::Open;
        }
    }

    /// This node speaks under a new incarnation.
    pub(super) fn on_restart(&mut self, own: MemberEntry) {
        self.table.merge_entry(own);
    }

    /// A ring member's table.
    pub(super) fn on_table(&mut self, table: &MemberTable) {
        self.table.merge(table);
    }

    /// Draws the conclusions. Call after each round of events.
    pub(super) fn conclude(&mut self, now: Instant) -> Todo {
        let mut todo = Todo {
            refused: std::mem::take(&mut self.refused),
            ..Todo::default()
        };
        let own_digest = digest_text(&self.table);
        for (id, peer) in &mut self.peers {
            if peer.is_connected()
                && peer.differs.is_none()
                && let Some(entry) = &peer.entry
            {
                self.table.merge_entry(entry.clone());
            }
            peer.reachable = peer.live
                && !peer.is_stopping()
                && (peer.is_connected() || peer.was_lost_lately(now));
            let is_member = self.table.get(id).is_some();
            if !peer.is_connected()
                && !is_member
                && peer.live
                && todo.meet.len() < MEET_STRANGERS_MAX
                && let Some(entry) = &peer.entry
            {
                todo.meet.push((id.clone(), entry.quic));
            }
            let has_news = is_member
                && peer.is_connected()
                && peer
                    .table_digest
                    .as_ref()
                    .is_some_and(|digest| *digest != own_digest)
                && peer.fetch_after.is_none_or(|after| after <= now);
            if has_news && todo.fetch.is_none() {
                peer.fetch_after = Some(now + FETCH_INTERVAL);
                todo.fetch = Some(id.clone());
            }
        }
        for entry in self.table.entries() {
            let is_gone = entry.state == MemberState::Left || entry.id == self.self_id;
            if !is_gone && !self.peers.get(&entry.id).is_some_and(Peer::is_connected) {
                todo.meet.push((entry.id.clone(), entry.quic));
            }
        }
        todo
    }

    /// The members of the ring, as this node sees them.
    pub(super) fn members(&self) -> Vec<Member> {
        let losers = self.table.conflicts();
        let is_in = |entry: &&MemberEntry| {
            entry.state != MemberState::Left && !losers.iter().any(|(loser, _)| *loser == entry.id)
        };
        let member = |entry: &MemberEntry| {
            let is_self = entry.id == self.self_id;
            let is_reachable = self.peers.get(&entry.id).is_some_and(|peer| peer.reachable);
            entry.to_member(is_self || is_reachable)
        };
        self.table.entries().filter(is_in).map(member).collect()
    }
}

impl Peer {
    /// Reads the digests that a node tells, if there are new ones and all of them are there.
    fn hear_digests(&mut self, value: &dyn Fn(&str) -> Option<String>) {
        let Some(head) = value(SHEET_KEY) else {
            return;
        };
        let is_known = |sheet: &Arc<Sheet>| Sheet::cut_of(&head) == Some(sheet.cut);
        if self.sheet.as_ref().is_some_and(is_known) {
            return;
        }
        if let Some(sheet) = Sheet::unpack(&head, |number| value(&page_key(number))) {
            self.sheet = Some(Arc::new(sheet));
        }
    }

    /// It has said that it is about to stop. Its next start says otherwise.
    fn is_stopping(&self) -> bool {
        self.load.as_ref().is_some_and(|load| load.is_stopping)
    }

    fn is_connected(&self) -> bool {
        self.connection == Connection::Open
    }

    /// A peer that was reachable keeps being so while its connection is made again.
    fn was_lost_lately(&self, now: Instant) -> bool {
        let Connection::LostAt(lost) = self.connection else {
            return false;
        };
        self.reachable && now.duration_since(lost) < LOST_GRACE
    }
}

pub(super) fn digest_text(table: &MemberTable) -> String {
    format!("{:016x}", table.digest())
}

/// Names that are kept: twice the largest cluster. More are invented.
const PEERS_MAX: usize = 2_048;
/// Strangers to dial in one round.
const MEET_STRANGERS_MAX: usize = 16;
/// A lost connection is made again within a round trip or two if the peer lives.
const LOST_GRACE: Duration = Duration::from_millis(500);
/// Two gossip rounds: long enough for a digest to have followed its table.
const FETCH_INTERVAL: Duration = Duration::from_millis(600);

#[cfg(test)]
mod tests {
    use super::super::published::entry_text;
    use super::*;
    use crate::env::{Clock, SystemClock};
    use crate::ring::{Partitions, Role};

    fn params() -> RingParams {
        let partitions = Partitions::new(64).unwrap();
        RingParams {
            cluster: "blue".to_owned(),
            partitions,
            n: 3,
        }
    }

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn entry(name: &str, port: u16) -> MemberEntry {
        MemberEntry {
            id: id(name),
            incarnation: 1,
            revision: 0,
            state: MemberState::Up,
            role: Role::Member,
            zone: String::new(),
            weight: 1,
            quic: ([127, 0, 0, 1], port).into(),
            resp: String::new(),
            http: String::new(),
        }
    }

    fn roster() -> Roster {
        let mut table = MemberTable::default();
        table.merge_entry(entry("self", 1));
        Roster::new(id("self"), &params(), table)
    }

    /// What gossip says of a node whose entry is `entry`, under the name `name`.
    fn gossip(roster: &mut Roster, name: &str, entry: &MemberEntry, params: &str, live: bool) {
        let value = |key: &str| match key {
            RING_KEY => Some(entry_text(entry)),
            PARAMS_KEY => Some(params.to_owned()),
            TABLE_KEY => Some("other".to_owned()),
            _ => None,
        };
        let version = u64::from(live) + 1;
        roster.on_gossip(&Gossiped {
            id: id(name),
            incarnation: 1,
            version,
            live,
            value: &value,
        });
    }

    fn names(roster: &Roster) -> Vec<String> {
        roster
            .members()
            .iter()
            .map(|member| member.id.to_string())
            .collect()
    }

    const OURS: &str = "wire=4 partitions=64 n=3";

    #[test]
    fn being_named_in_gossip_is_not_enough() {
        let mut roster = roster();
        let now = SystemClock.monotonic();
        gossip(&mut roster, "stranger", &entry("stranger", 2), OURS, true);
        let todo = roster.conclude(now);
        assert_eq!(todo.meet, [(id("stranger"), ([127, 0, 0, 1], 2).into())]);
        assert_eq!(names(&roster), ["self"]);
        // A certificate that names it makes it a member, and its table worth fetching.
        roster.on_connected(now, &[(id("stranger"), ([127, 0, 0, 1], 2).into())].into());
        let todo = roster.conclude(now);
        assert_eq!(todo.fetch, Some(id("stranger")));
        assert_eq!(names(&roster), ["self", "stranger"]);
    }

    #[test]
    fn nobody_speaks_for_another() {
        let mut roster = roster();
        let now = SystemClock.monotonic();
        gossip(&mut roster, "liar", &entry("victim", 2), OURS, true);
        roster.on_connected(now, &[(id("liar"), ([127, 0, 0, 1], 3).into())].into());
        roster.conclude(now);
        assert_eq!(names(&roster), ["self"]);
    }

    #[test]
    fn other_parameters_are_refused_and_told_once() {
        let mut roster = roster();
        let now = SystemClock.monotonic();
        roster.on_connected(now, &[(id("odd"), ([127, 0, 0, 1], 2).into())].into());
        gossip(
            &mut roster,
            "odd",
            &entry("odd", 2),
            "wire=1 partitions=128 n=3",
            false,
        );
        assert_eq!(roster.conclude(now).refused.len(), 1);
        gossip(
            &mut roster,
            "odd",
            &entry("odd", 2),
            "wire=1 partitions=128 n=3",
            true,
        );
        assert_eq!(roster.conclude(now).refused.len(), 0);
        assert_eq!(names(&roster), ["self"]);
    }

    #[test]
    fn a_lost_connection_is_forgiven_for_a_moment_only() {
        let mut roster = roster();
        let now = SystemClock.monotonic();
        let at: SocketAddr = ([127, 0, 0, 1], 2).into();
        gossip(&mut roster, "peer", &entry("peer", 2), OURS, true);
        let is_reachable = |roster: &mut Roster, after: Duration| {
            roster.conclude(now + after);
            roster.members()[0].reachable
        };
        roster.on_connected(now, &[(id("peer"), at)].into());
        assert!(is_reachable(&mut roster, Duration::ZERO));
        roster.on_connected(now, &BTreeMap::new());
        assert!(is_reachable(&mut roster, LOST_GRACE / 2));
        assert!(!is_reachable(&mut roster, LOST_GRACE));
        // Not by time alone: only a connection brings it back.
        assert!(!is_reachable(&mut roster, LOST_GRACE / 2));
        roster.on_connected(now, &[(id("peer"), at)].into());
        assert!(is_reachable(&mut roster, LOST_GRACE));
        gossip(&mut roster, "peer", &entry("peer", 2), OURS, false);
        assert!(
            !is_reachable(&mut roster, LOST_GRACE),
            "silent, says gossip"
        );
    }

    #[test]
    fn invented_names_are_bounded() {
        let mut roster = roster();
        for number in 0..2 * PEERS_MAX {
            let name = format!("n{number}");
            gossip(&mut roster, &name, &entry(&name, 2), OURS, true);
        }
        assert_eq!(roster.peers.len(), PEERS_MAX);
        assert!(roster.conclude(SystemClock.monotonic()).meet.len() <= MEET_STRANGERS_MAX);
        roster.retain(|_| false);
        assert!(roster.peers.is_empty());
    }
}
