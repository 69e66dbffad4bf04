//! Requests at bad moments: no connections yet, a clock that is refused, more deleted keys than keys.

#![expect(
    clippy::disallowed_methods,
    reason = "clients of the test: the runtime of the test ends them"
)]

use std::time::Duration;

use bytes::Bytes;
use quorate::model::{Body, HlcTime, Millis, NodeTag, Version};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_request_without_connections_waits_for_them_until_its_deadline() {
    for is_update in [false, true] {
        let ring = Ring::new(3, 2, 2);
        ring.network.set_connected(ring.nodes[0].tag, false);
        let (network, tag) = (ring.network.clone(), ring.nodes[0].tag);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            network.set_connected(tag, true);
        });
        let level = if is_update {
            Level::Linearizable
        } else {
            Level::Quorum
        };
        let action = Action::Set {
            value: Bytes::from_static(b"v"),
            expires_at: None,
        };
        assert_eq!(ring.run_at(level, 0, action).await, Outcome::Written);
        // A read, and the reply of a delete, which do the same.
        ring.network.set_connected(tag_of(&ring), false);
        let (network, tag) = (ring.network.clone(), ring.nodes[0].tag);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            network.set_connected(tag, true);
        });
        assert_eq!(ring.get(0).await, value("v"));
        assert_eq!(ring.run(0, Action::Delete).await, Outcome::Deleted(true));
    }
}

fn tag_of(ring: &Ring) -> NodeTag {
    ring.nodes[0].tag
}

#[tokio::test(start_paused = true)]
async fn what_is_unreachable_for_seconds_fails_a_request_at_once() {
    let ring = Ring::new(3, 2, 2);
    ring.network.set_connected(ring.nodes[0].tag, false);
    for _ in 0..8 {
        assert!(matches!(ring.set(0, "v").await, Outcome::Failed(_)));
    }
    let begun = SystemClock.monotonic();
    assert!(matches!(ring.set(0, "v").await, Outcome::Failed(_)));
    assert!(begun.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn a_page_of_keys_ends_after_what_it_has_looked_at_whatever_it_found() {
    let ring = Ring::new(3, 2, 2);
    let key = |i: usize| Bytes::from(format!("{i}:{}", "k".repeat(30_000)));
    for i in 0..400 {
        let request = |action| Request {
            key: key(i),
            action,
            level: Level::Quorum,
            is_sloppy: false,
        };
        let set = request(Action::Set {
            value: Bytes::from_static(b"v"),
            expires_at: None,
        });
        let mut requests = vec![set];
        if i != 234 {
            requests.push(request(Action::Delete));
        }
        for request in requests {
            ring.nodes[0].coordinator.run(vec![request]).await;
        }
    }
    let (mut cursor, mut pages, mut found) = (0, 0, Vec::new());
    loop {
        let page = ring.nodes[1].coordinator.keys(cursor, 1_000).await.unwrap();
        pages += 1;
        found.extend(page.keys.into_iter().map(|(key, _)| key));
        cursor = page.next;
        if cursor == 0 {
            break;
        }
    }
    assert_eq!(found, [key(234)]);
    // 12 MB of keys, told by two homes at least; four megabytes and a bit a page at most.
    assert!(pages >= 4, "{pages} pages");
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_clock_is_refused_does_not_coordinate_and_says_so() {
    let ring = Ring::new(3, 2, 2);
    let replica = &ring.nodes[0].replica;
    assert!(replica.set_refused(Some(60_000)));
    let Outcome::Failed(error) = ring.set(0, "v").await else {
        panic!("it must not be written");
    };
    assert!(
        error.to_string().contains("clock is 60000 ms ahead"),
        "{error}"
    );
    assert!(replica.set_refused(None));
    assert_eq!(ring.set(0, "v").await, Outcome::Written);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_clock_frees_the_node_of_what_it_stamped_wrongly() {
    let ring = Ring::new(3, 2, 2);
    assert_eq!(ring.set(1, "right").await, Outcome::Written);
    settle().await;
    let node = &ring.nodes[0];
    let hour = 3_600_000_u64;
    let future = Version {
        hlc: HlcTime::from_millis(Millis(node.clock.wall().0 + hour)),
        node: NodeTag(1),
    };
    let record = Record::value(future, None, Bytes::from_static(b"wrong"));
    node.store.apply(ring.key(), (&record).into(), Millis(0));
    // Its clock was an hour ahead for a moment, and is right again.
    let ahead = i64::try_from(hour).unwrap();
    node.clock.offset_ms.store(ahead, Ordering::Relaxed);
    let before = node.replica.writer(NodeTag(7));
    assert!(matches!(ring.set(0, "wrong").await, Outcome::Failed(_)));
    node.clock.offset_ms.store(0, Ordering::Relaxed);
    assert!(node.replica.clock_ahead(node.clock.wall()).is_some());
    assert!(matches!(ring.set(0, "refused").await, Outcome::Failed(_)));
    node.replica.drop_clock(node.clock.wall());
    assert!(node.replica.clock_ahead(node.clock.wall()).is_none());
    assert_ne!(node.replica.writer(NodeTag(7)), before, "no version twice");
    assert_eq!(ring.held(0), None);
    assert_eq!(ring.get(0).await, value("right"));
    assert_eq!(ring.set(0, "again").await, Outcome::Written);
    assert_eq!(ring.get(2).await, value("again"));
}

/// Finding 29: the new home had copied from another one by then, and missed what was written to the
/// homes of before.
#[tokio::test(start_paused = true)]
async fn a_write_to_the_homes_before_a_join_is_made_again_at_those_after_it() {
    let quorum = Quorum::new(3, 2, 2).unwrap();
    let ring = Ring::in_zones(&[""; 4], quorum, Duration::from_millis(1));
    let homes = ring.view.homes(ring.key().partition);
    let number = |tag| ring.nodes.iter().position(|node| node.tag == tag).unwrap();
    let joining = number(homes[0]);
    let former = (0..4)
        .find(|&node| !homes.contains(&ring.nodes[node].tag))
        .unwrap();
    let mut members = ring.view.members().to_vec();
    members.retain(|member| member.tag != homes[0]);
    let before = Arc::new(View::new(ring.view.params().clone(), members));
    let after = Arc::new(before.update(ring.view.members().to_vec()));
    for node in &ring.nodes {
        node.view.send_replace(Arc::clone(&after));
    }
    // The one that is no home any more does not know it yet.
    ring.nodes[former].view.send_replace(Arc::clone(&before));
    let Outcome::Failed(error) = ring.set(former, "v").await else {
        panic!("it must not be acknowledged by the homes of before");
    };
    assert!(error.to_string().contains("another ring"), "{error}");
    let (view, news) = (ring.nodes[former].view.clone(), Arc::clone(&after));
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        view.send_replace(news);
    });
    assert_eq!(ring.set(former, "w").await, Outcome::Written);
    settle().await;
    let held = ring.held(joining).expect("the new home has it");
    assert_eq!(held.body, Body::Value(Bytes::from_static(b"w")));
    // A node that does not know of the join yet takes what those who do write.
    ring.nodes[joining].view.send_replace(before);
    assert_eq!(ring.set(former, "x").await, Outcome::Written);
}
