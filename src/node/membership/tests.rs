//! Whole memberships over a network in memory, on virtual time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chitchat::{ChitchatId, Serializable};
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::env::{Clock, Disk, MemoryDisk, SeededRng, SystemClock, Tasks};
use crate::model::Epoch;
use crate::model::{Digest, Millis, PartitionId};
use crate::net::{MemoryGossip, MemoryGossipEnd};
use crate::ring::Partitions;

struct Node {
    id: NodeId,
    addr: SocketAddr,
    env: Env,
    membership: Membership,
}

impl Node {
    async fn start(network: &MemoryGossip, number: u16, disk: Arc<dyn Disk>) -> Self {
        let (id, addr) = (name(number), addr(number));
        let env = Env {
            clock: Arc::new(VirtualClock(SystemClock.monotonic())),
            rng: SeededRng::from_seed(u64::from(number)),
            tasks: Tasks::new(),
            disk,
        };
        let net = Arc::new(network.join(&id, addr));
        let membership = Membership::start(config(number), &env, net).await.unwrap();
        let served = membership.clone();
        network.serve_table(&id, move || served.table_bytes());
        Self {
            id,
            addr,
            env,
            membership,
        }
    }

    /// The members as this node sees them; a `-` follows those it cannot reach.
    fn sees(&self) -> String {
        let view = Arc::clone(&self.membership.view().borrow());
        let text = |member: &crate::ring::Member| {
            let mark = if member.reachable { "" } else { "-" };
            format!("{}{mark}", member.id)
        };
        let members: Vec<String> = view.members().iter().map(text).collect();
        members.join(" ")
    }

    /// Waits until [`Node::sees`] is this, for `wait_max` of virtual time at most.
    async fn until_sees(&self, expected: &str, wait_max: Duration) {
        let reached = timeout(wait_max, async {
            let mut view = self.membership.view();
            while self.sees() != expected {
                view.changed().await.unwrap();
            }
        });
        let is_reached = reached.await.is_ok();
        assert!(
            is_reached,
            "{} sees {:?}, not {expected:?}",
            self.id,
            self.sees()
        );
    }

    /// What is left is its disk.
    async fn kill(self, network: &MemoryGossip) -> Arc<dyn Disk> {
        network.silence(&self.id);
        self.membership.stop();
        self.env.tasks.shutdown(Duration::from_secs(1)).await;
        self.env.disk
    }
}

fn new_disk() -> Arc<dyn Disk> {
    Arc::new(MemoryDisk::default())
}

/// Both clocks on virtual time.
#[derive(Debug)]
struct VirtualClock(Instant);

impl Clock for VirtualClock {
    fn wall(&self) -> Millis {
        Millis(1_000_000).saturating_add(self.0.elapsed())
    }

    fn monotonic(&self) -> Instant {
        SystemClock.monotonic()
    }
}

fn name(number: u16) -> NodeId {
    format!("n{number}").parse().unwrap()
}

fn addr(number: u16) -> SocketAddr {
    ([127, 0, 0, 1], 7_000 + number).into()
}

fn config(number: u16) -> Config {
    Config {
        params: RingParams {
            cluster: "blue".to_owned(),
            partitions: Partitions::new(64).unwrap(),
            n: 3,
        },
        id: name(number),
        role: Role::Member,
        zone: String::new(),
        weight: 1,
        quic: addr(number),
        resp: String::new(),
        http: String::new(),
        seeds: vec![addr(0).to_string()],
        gossip_interval: Duration::from_millis(300),
    }
}

async fn three(network: &MemoryGossip) -> [Node; 3] {
    let mut nodes = Vec::new();
    for number in 0..3 {
        nodes.push(Node::start(network, number, new_disk()).await);
    }
    for node in &nodes {
        node.until_sees("n0 n1 n2", Duration::from_secs(10)).await;
    }
    nodes.try_into().ok().unwrap()
}

#[tokio::test(start_paused = true)]
async fn three_nodes_that_know_one_of_them_see_each_other() {
    let nodes = three(&MemoryGossip::default()).await;
    let version = |node: &Node| node.membership.view().borrow().version();
    assert_eq!(version(&nodes[0]), version(&nodes[1]));
    assert_eq!(version(&nodes[0]), version(&nodes[2]));
}

#[tokio::test(start_paused = true)]
async fn a_killed_node_is_unreachable_within_3_s_and_back_after_a_restart() {
    let network = MemoryGossip::default();
    let [first, second, third] = three(&network).await;
    sleep(Duration::from_secs(60)).await;
    let disk = third.kill(&network).await;
    for node in [&first, &second] {
        node.until_sees("n0 n1 n2-", Duration::from_secs(3)).await;
    }
    network.hang_up(&name(2));
    let third = Node::start(&network, 2, disk).await;
    for node in [&first, &second, &third] {
        node.until_sees("n0 n1 n2", Duration::from_secs(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_tells_sooner_than_silence() {
    let network = MemoryGossip::default();
    let [first, second, third] = three(&network).await;
    network.cut(&first.id, &third.id);
    first.until_sees("n0 n1 n2-", Duration::from_secs(1)).await;
    // Gossip of it still comes through the second node: that alone does not bring it back.
    sleep(Duration::from_secs(30)).await;
    assert_eq!(first.sees(), "n0 n1 n2-");
    assert_eq!(second.sees(), "n0 n1 n2");
    network.heal(&first.id, &third.id);
    first.until_sees("n0 n1 n2", Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn thirty_idle_minutes_bring_no_false_alarm() {
    let nodes = three(&MemoryGossip::default()).await;
    let mut views: Vec<_> = nodes.iter().map(|node| node.membership.view()).collect();
    views.iter_mut().for_each(|view| view.mark_unchanged());
    sleep(Duration::from_secs(30 * 60)).await;
    for view in views {
        assert!(!view.has_changed().unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_restarts_alone_is_back_in_its_ring() {
    let network = MemoryGossip::default();
    let (before, disk) = {
        let first = Node::start(&network, 0, new_disk()).await;
        let second = Node::start(&network, 1, new_disk()).await;
        let third = Node::start(&network, 2, new_disk()).await;
        third.until_sees("n0 n1 n2", Duration::from_secs(10)).await;
        let version = third.membership.view().borrow().version();
        first.kill(&network).await;
        second.kill(&network).await;
        (version, third.kill(&network).await)
    };
    let alone = Node::start(&MemoryGossip::default(), 2, disk).await;
    assert_eq!(alone.sees(), "n0- n1- n2");
    assert_eq!(alone.membership.view().borrow().version(), before);
}

/// A message of a node with a certificate, in chitchat's layout: header, kind, digest, cluster.
fn syn(ids: &[ChitchatId]) -> Bytes {
    let mut bytes = HEADER.to_vec();
    bytes.push(0);
    push_digest(&mut bytes, ids);
    "blue".serialize(&mut bytes);
    bytes.into()
}

/// A round's answer that also sets a key of the last node named.
fn syn_ack(ids: &[ChitchatId], key: &str, value: &str) -> Bytes {
    let mut delta = vec![0];
    ids[ids.len() - 1].serialize(&mut delta);
    [0u64, 0]
        .iter()
        .for_each(|number| number.serialize(&mut delta));
    delta.push(1);
    key.serialize(&mut delta);
    value.serialize(&mut delta);
    1_000u64.serialize(&mut delta);
    delta.push(0);

    let mut bytes = HEADER.to_vec();
    bytes.push(1);
    push_digest(&mut bytes, ids);
    // One block as it is, then no more.
    bytes.push(2);
    u16::try_from(delta.len()).unwrap().serialize(&mut bytes);
    bytes.extend(delta);
    bytes.push(0);
    bytes.into()
}

fn push_digest(bytes: &mut Vec<u8>, ids: &[ChitchatId]) {
    u16::try_from(ids.len()).unwrap().serialize(bytes);
    for id in ids {
        id.serialize(bytes);
        [7u64, 0, 0]
            .iter()
            .for_each(|number| number.serialize(bytes));
    }
}

/// Magic number and protocol version.
const HEADER: [u8; 3] = [83, 176, 0];

fn invented(name: &str, port: u16) -> ChitchatId {
    ChitchatId::new(name, 1, ([127, 0, 0, 1], port).into())
}

/// A node with a certificate of the cluster that says whatever it likes.
fn liar(network: &MemoryGossip) -> (MemoryGossipEnd, ChitchatId) {
    let end = network.join(&name(9), addr(9));
    (end, ChitchatId::new("n9", 1, addr(9)))
}

async fn known_to_chitchat(node: &Node) -> usize {
    let gossip = node.membership.0.gossip();
    gossip
        .chitchat
        .with_chitchat(|chitchat| chitchat.node_states().len())
        .await
}

#[tokio::test(start_paused = true)]
async fn invented_nodes_stay_out_and_are_bounded() {
    let network = MemoryGossip::default();
    let [first, second, third] = three(&network).await;
    let (end, own) = liar(&network);
    for crowd in 0..40u16 {
        let mut ids = vec![own.clone()];
        ids.extend((0..1_000u16).map(|n| invented(&format!("x{crowd}-{n}"), 10_000 + n)));
        end.send_gossip(first.addr, syn(&ids));
        sleep(Duration::from_millis(500)).await;
    }
    // One message's worth at most, and never so many that chitchat's own digest overflows.
    assert!(known_to_chitchat(&first).await <= 1_100);
    sleep(Duration::from_secs(10)).await;
    for node in [&first, &second, &third] {
        assert_eq!(node.sees(), "n0 n1 n2");
    }
}

/// The member's own entry, as the ring has it.
fn incarnation_of(node: &Node, seen_by: &Node) -> u64 {
    let roster = seen_by.membership.0.roster();
    roster.table().get(&node.id).unwrap().incarnation
}

#[tokio::test(start_paused = true)]
async fn what_others_say_in_a_nodes_name_is_refuted() {
    let network = MemoryGossip::default();
    let [first, second, third] = three(&network).await;
    let before = incarnation_of(&first, &second);
    let (end, own) = liar(&network);
    let victim = first.membership.0.gossip();
    let victim = victim.chitchat.chitchat_id().clone();
    // To one that believes it and passes it on to the victim.
    end.send_gossip(second.addr, syn_ack(&[own, victim], RING_KEY, "nothing"));
    sleep(Duration::from_secs(10)).await;
    for node in [&first, &second, &third] {
        assert!(incarnation_of(&first, node) > before);
        assert_eq!(node.sees(), "n0 n1 n2");
    }
}

#[tokio::test(start_paused = true)]
async fn gossip_that_has_failed_is_started_again() {
    let network = MemoryGossip::default();
    let [first, second, third] = three(&network).await;
    let before = incarnation_of(&first, &second);
    first.membership.0.gossip().chitchat.abort();
    sleep(Duration::from_secs(10)).await;
    for node in [&first, &second, &third] {
        assert!(incarnation_of(&first, node) > before);
        assert_eq!(node.sees(), "n0 n1 n2");
    }
}

/// What one node sends in a second, on average over nodes and time: with digests that change at
/// every cut, that never change, or without any.
async fn bytes_a_second(nodes: u16, partitions: u16, is_told: bool, changes: bool) -> f64 {
    // Fifty nodes are much to simulate.
    let (settled, cuts) = if nodes < 50 { (4, 8) } else { (2, 3) };
    let network = MemoryGossip::default();
    let mut all = Vec::new();
    for number in 0..nodes {
        all.push(Node::start(&network, number, new_disk()).await);
    }
    let everyone = usize::from(nodes);
    timeout(Duration::from_secs(60), async {
        for node in &all {
            let mut view = node.membership.view();
            while view.borrow().members().len() < everyone {
                view.changed().await.unwrap();
            }
        }
    })
    .await
    .unwrap();
    let random = SeededRng::from_seed(1);
    let mut sheets: Vec<Sheet> = (0..nodes).map(|_| sheet(partitions, &random)).collect();
    let sent = || -> u64 { all.iter().map(|node| network.sent_bytes(&node.id)).sum() };
    let mut before = 0;
    for cut in 0..settled + cuts {
        if cut == settled {
            before = sent();
        }
        for (node, sheet) in all.iter().zip(&mut sheets) {
            if changes {
                *sheet = self::sheet(partitions, &random);
            }
            sheet.cut = Epoch(cut);
            if is_told {
                node.membership.publish(Arc::new(sheet.clone()));
            }
        }
        sleep(Epoch::DURATION).await;
    }
    let sent = sent() - before;
    if is_told {
        let heard = all[0].membership.heard();
        assert_eq!(heard.len(), everyone - 1);
        let newest = heard
            .values()
            .filter(|sheet| sheet.cut == Epoch(settled + cuts - 1));
        assert!(newest.count() > everyone / 2, "most have come within a cut");
        let others = heard[&all[1].id.tag()].digests.len();
        assert_eq!(others, usize::from(partitions));
    }
    for node in all {
        node.kill(&network).await;
    }
    #[expect(clippy::cast_precision_loss, reason = "some megabytes")]
    let (sent, cuts) = (sent as f64, cuts as f64);
    sent / f64::from(nodes) / (Epoch::DURATION.as_secs_f64() * cuts)
}

fn sheet(partitions: u16, random: &SeededRng) -> Sheet {
    let digests = (0..partitions).map(|number| (PartitionId(number), Digest(random.next_u64())));
    Sheet {
        cut: Epoch(0),
        tombstone_age_ms: 10_800_000,
        digests: digests.collect(),
    }
}

/// The arithmetic in the documentation of `anti_entropy`.
#[tokio::test(start_paused = true)]
async fn digests_cost_gossip_what_was_computed() {
    for (nodes, partitions) in [(3_u16, 4_096_u16), (10, 1_229), (50, 246)] {
        let without = bytes_a_second(nodes, partitions, false, false).await;
        let steady = bytes_a_second(nodes, partitions, true, false).await;
        let changing = bytes_a_second(nodes, partitions, true, true).await;
        let others = f64::from(nodes - 1);
        // Nine bytes of twelve characters: chitchat's compression takes base64 back.
        let computed = others * f64::from(partitions) * 9.0 / Epoch::DURATION.as_secs_f64();
        let heads = others * HEAD_BYTES / Epoch::DURATION.as_secs_f64();
        println!(
            "{nodes} nodes: {without:.0} B/s without digests, {steady:.0} with steady ones \
             (+{:.0}, heads {heads:.0}), {changing:.0} with changing ones (+{:.0}, computed \
             {computed:.0})",
            steady - without,
            changing - without
        );
        // Whoever has heard nothing yet is told by several in one round.
        let told = (changing - without) / computed;
        assert!((0.9..4.0).contains(&told), "{nodes} nodes: {told}");
        assert!(
            steady - without < 4.0 * heads + 0.03 * without,
            "{nodes} nodes"
        );
    }
}

/// A node's name, key, head and versions in a delta.
const HEAD_BYTES: f64 = 80.0;
