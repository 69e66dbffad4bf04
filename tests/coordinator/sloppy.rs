//! Homes that are away: who stands in for them, what readers see, and what they are given back.

use std::time::Duration;

use quorate::model::{Body, HlcTime, Version};
use quorate::protocol::QuorumNotMet;

use super::*;

/// Five nodes, three copies. The homes of the key and the two that stand in for them, by number.
struct Away {
    ring: Ring,
    homes: Vec<usize>,
    stand_ins: Vec<usize>,
}

impl Away {
    fn new(r: u8, w: u8) -> Self {
        Self::in_zones(&[""; 5], r, w)
    }

    fn in_zones(zones: &[&str], r: u8, w: u8) -> Self {
        let quorum = Quorum::new(3, r, w).unwrap();
        let ring = Ring::in_zones(zones, quorum, Duration::from_millis(1));
        let partition = ring.key().partition;
        let number = |tag: &NodeTag| ring.nodes.iter().position(|node| node.tag == *tag).unwrap();
        let homes = ring.view.homes(partition).iter().map(number).collect();
        let stand_ins = ring.view.stand_ins(partition).iter().map(number).collect();
        Self {
            ring,
            homes,
            stand_ins,
        }
    }

    /// Nobody reaches this node, nor does it reach anybody; the others know or do not.
    fn cut_off(&self, node: usize, is_known: bool) {
        self.ring.isolate(node);
        if is_known {
            self.tell_reachable(|id| *id != self.ring.nodes[node].id);
        }
    }

    fn reconnect(&self, node: usize) {
        self.ring.heal(node);
        self.tell_reachable(|_| true);
    }

    fn tell_reachable(&self, is_reachable: impl Fn(&NodeId) -> bool) {
        let view = Arc::new(self.ring.view.with_reachability(is_reachable));
        for node in &self.ring.nodes {
            node.view.send_replace(Arc::clone(&view));
        }
    }

    /// What gossip would tell of who holds hints for whom.
    fn gossip(&self) {
        let held = self.ring.nodes.iter().flat_map(|node| {
            let homes = node.handoff.summaries().into_keys();
            homes.map(|home| (node.tag, home)).collect::<Vec<_>>()
        });
        let owed = Arc::new(Owed::new(held));
        for node in &self.ring.nodes {
            node.owed.send_replace(Arc::clone(&owed));
        }
    }

    /// What a node holds by itself.
    fn value_at(&self, node: usize) -> Option<Bytes> {
        match self.ring.held(node)?.body {
            Body::Value(value) => Some(value),
            Body::Tombstone => None,
        }
    }

    fn hints(&self) -> u64 {
        self.ring
            .nodes
            .iter()
            .map(|node| node.handoff.count())
            .sum()
    }

    async fn wait_until_given_back(&self) {
        for _ in 0..1_000 {
            if self.hints() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{} hints are left", self.hints());
    }
}

#[tokio::test(start_paused = true)]
async fn a_home_that_is_away_costs_no_write_whether_or_not_that_is_known() {
    for is_known in [true, false] {
        let away = Away::new(2, 3);
        let gone = away.homes[1];
        away.cut_off(gone, is_known);
        // A home, and the stand-in itself, coordinate.
        for node in [away.homes[0], away.stand_ins[0], away.stand_ins[1]] {
            assert_eq!(away.ring.set(node, "v").await, Outcome::Written);
        }
        assert_eq!(away.ring.nodes[away.stand_ins[0]].handoff.count(), 1);
        assert_eq!(away.ring.get(away.stand_ins[1]).await.unwrap(), "v");
        away.reconnect(gone);
        away.wait_until_given_back().await;
        assert_eq!(away.value_at(gone), value("v"), "without a read");
    }
}

#[tokio::test(start_paused = true)]
async fn without_sloppiness_and_for_linearizable_writes_nobody_stands_in() {
    let mut away = Away::new(2, 3);
    away.cut_off(away.homes[1], true);
    away.ring.is_sloppy = false;
    let refused = away.ring.set(away.homes[0], "v").await;
    assert!(matches!(
        refused,
        Outcome::Failed(RequestError::Write(QuorumNotMet {
            need: 3,
            got: 2,
            ..
        }))
    ));
    away.ring.is_sloppy = true;
    away.cut_off(away.homes[2], true);
    let value = Bytes::from_static(b"v");
    let set = Action::Set {
        value,
        expires_at: None,
    };
    let refused = away.ring.run_at(Level::Linearizable, away.homes[0], set);
    assert!(matches!(
        refused.await,
        Outcome::Failed(RequestError::Update(UpdateError::NotMade(_)))
    ));
    assert_eq!(away.hints(), 0);
}

#[tokio::test(start_paused = true)]
async fn two_homes_away_have_two_stand_ins_and_readers_find_what_they_hold() {
    let away = Away::new(2, 2);
    let (left, gone) = (away.homes[0], &away.homes[1..]);
    gone.iter().for_each(|&home| away.cut_off(home, false));
    away.tell_reachable(|id| !gone.iter().any(|&home| away.ring.nodes[home].id == *id));
    assert_eq!(away.ring.set(left, "v").await, Outcome::Written);
    assert_eq!(away.hints(), 2);
    // The last home is gone as well: stand-ins alone have the value.
    away.cut_off(left, false);
    away.tell_reachable(|id| away.stand_ins.iter().any(|&n| away.ring.nodes[n].id == *id));
    for &node in &away.stand_ins {
        assert_eq!(away.ring.get(node).await.unwrap(), "v");
        let reads = &away.ring.nodes[node].coordinator.stats().sloppy_reads;
        assert_eq!(reads.load(Ordering::Relaxed), 1, "counted");
    }
    away.homes.iter().for_each(|&home| away.reconnect(home));
    away.wait_until_given_back().await;
    for &home in &away.homes {
        assert_eq!(away.value_at(home), value("v"));
    }
}

#[tokio::test(start_paused = true)]
async fn homes_that_are_owed_hints_are_not_believed_alone() {
    let away = Away::new(2, 2);
    let [_, b, c] = away.homes[..] else {
        unreachable!()
    };
    assert_eq!(away.ring.set(away.homes[0], "old").await, Outcome::Written);
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Two homes miss a write; then the one that took it goes, and they are back before they were
    // given what they missed.
    [b, c].iter().for_each(|&home| away.cut_off(home, false));
    let both = |id: &NodeId| [b, c].iter().any(|&n| away.ring.nodes[n].id == *id);
    away.tell_reachable(|id| !both(id));
    assert_eq!(away.ring.set(away.homes[0], "new").await, Outcome::Written);
    away.gossip();
    away.cut_off(away.homes[0], false);
    for home in [b, c] {
        away.ring.heal(home);
    }
    // Replays wait for gossip, which still says that the two are away; readers do not ask it.
    assert_eq!(away.ring.get(b).await.unwrap(), "new");
    assert_eq!(away.ring.get(c).await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn a_full_stand_in_is_passed_over() {
    let away = Away::new(2, 3);
    away.cut_off(away.homes[1], true);
    let first = &away.ring.nodes[away.stand_ins[0]];
    let big = vec![7; 99_000];
    let version = Version {
        hlc: HlcTime(1),
        node: NodeTag(9),
    };
    let record = Record::value(version, None, Bytes::from(big));
    let filler = handoff::NewHint {
        home: NodeTag(77),
        key: b"filler",
        missed: handoff::MissedRef::Write((&record).into()),
    };
    first.handoff.keep(&[filler]).await;
    let value = Bytes::from(vec![1; 2_000]);
    let set = Action::Set {
        value,
        expires_at: None,
    };
    assert_eq!(away.ring.run(away.homes[0], set).await, Outcome::Written);
    assert_eq!(away.ring.nodes[away.stand_ins[1]].handoff.count(), 1);
    let refused = &first.handoff.stats().refused_full;
    assert_eq!(refused.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn deletes_and_expiries_are_given_back_as_well() {
    let away = Away::new(2, 3);
    let gone = away.homes[2];
    let node = away.homes[0];
    away.ring.set(node, "v").await;
    away.cut_off(gone, true);
    let at = away.ring.nodes[node]
        .clock
        .wall()
        .saturating_add(Duration::from_secs(600));
    let expired = away.ring.run(node, Action::Expire { at: Some(at) }).await;
    assert!(
        matches!(expired, Outcome::Expiry { existed: true, .. }),
        "{expired:?}"
    );
    away.reconnect(gone);
    away.wait_until_given_back().await;
    let held = away.ring.nodes[gone]
        .store
        .summary(away.ring.key(), Millis(0));
    assert_eq!(held.unwrap().expires_at, Some(at));

    away.cut_off(gone, true);
    assert_eq!(
        away.ring.run(node, Action::Delete).await,
        Outcome::Deleted(true)
    );
    away.reconnect(gone);
    away.wait_until_given_back().await;
    assert_eq!(away.value_at(gone), None);
}

#[tokio::test(start_paused = true)]
async fn what_ends_while_its_home_is_away_is_dropped_unsent() {
    let away = Away::new(2, 3);
    let (gone, node) = (away.homes[2], away.homes[0]);
    away.cut_off(gone, true);
    let now = away.ring.nodes[node].clock.wall();
    let set = Action::Set {
        value: Bytes::from_static(b"v"),
        expires_at: Some(now.saturating_add(Duration::from_secs(5))),
    };
    assert_eq!(away.ring.run(node, set).await, Outcome::Written);
    assert_eq!(away.hints(), 1);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(away.hints(), 0);
    let stats = away.ring.nodes[away.stand_ins[0]].handoff.stats();
    assert_eq!(stats.expired.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hint_never_moves_its_home_backwards() {
    let away = Away::new(2, 3);
    let (gone, node) = (away.homes[2], away.homes[0]);
    away.cut_off(gone, true);
    away.ring.set(node, "old").await;
    // The home is back for a write, and the hint has not been given back yet.
    away.ring.heal(gone);
    away.ring.set(node, "new").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(away.value_at(gone), value("new"));
    away.reconnect(gone);
    away.wait_until_given_back().await;
    assert_eq!(away.value_at(gone), value("new"));
}

#[tokio::test(start_paused = true)]
async fn a_stand_in_that_restarts_still_has_its_hints() {
    let mut away = Away::new(2, 3);
    let (gone, node) = (away.homes[2], away.homes[0]);
    away.cut_off(gone, true);
    away.ring.set(node, "v").await;
    let stand_in = away.stand_ins[0];
    away.ring.restart(stand_in, None);
    assert_eq!(away.ring.nodes[stand_in].handoff.count(), 1);
    away.reconnect(gone);
    away.wait_until_given_back().await;
    assert_eq!(away.value_at(gone), value("v"));
    // And after another restart it does not give them back again.
    away.ring.restart(stand_in, None);
    assert_eq!(away.hints(), 0);
}

#[tokio::test(start_paused = true)]
async fn hints_of_a_removed_node_go_to_the_homes_of_now() {
    let away = Away::new(2, 3);
    let (gone, node) = (away.homes[2], away.homes[0]);
    away.cut_off(gone, true);
    away.ring.set(node, "v").await;
    let members = away.ring.view.members().iter();
    let left = members.filter(|member| member.tag != away.ring.nodes[gone].tag);
    let view = Arc::new(away.ring.view.update(left.cloned().collect()));
    for node in &away.ring.nodes {
        node.view.send_replace(Arc::clone(&view));
    }
    away.wait_until_given_back().await;
    for home in view.homes(away.ring.key().partition) {
        let home = away.ring.nodes.iter().position(|node| node.tag == *home);
        assert_eq!(away.value_at(home.unwrap()), value("v"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stand_in_in_a_zone_without_a_copy_comes_first() {
    // Three copies in three zones; of the two nodes left one shares a zone with the home that goes.
    for home in 0..3 {
        let away = Away::in_zones(&["a", "a", "b", "b", "c"], 2, 3);
        let gone = away.homes[home];
        let zone = |node: usize| {
            let tag = away.ring.nodes[node].tag;
            away.ring.view.member(tag).unwrap().zone.clone()
        };
        away.cut_off(gone, true);
        let node = (0..5).find(|&node| node != gone).unwrap();
        assert_eq!(away.ring.set(node, "v").await, Outcome::Written);
        let holder = (0..5)
            .find(|&node| away.ring.nodes[node].handoff.count() > 0)
            .unwrap();
        let has_peer = away.stand_ins.iter().any(|&node| zone(node) == zone(gone));
        if has_peer {
            assert_eq!(zone(holder), zone(gone));
        }
    }
}
