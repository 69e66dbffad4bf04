//! A node whose clock is wrong for a while.

use std::fs;
use std::time::Duration;

use redis::Commands;

use crate::common::{Cluster, PATIENCE, eventually, faketime_library, skipped};

/// Finding S6: such a node took live keys for expired ones, and its writes failed for as long as its
/// clock had been ahead after it was right again.
#[test]
fn a_clock_that_was_wrong_does_not_haunt_its_node() {
    let Some(library) = faketime_library() else {
        return skipped(
            "a_clock_that_was_wrong_does_not_haunt_its_node",
            "libfaketime is not installed",
        );
    };
    let mut cluster = Cluster::start(3, &[]);
    let dir = tempfile::tempdir().unwrap();
    let offset = dir.path().join("offset");
    fs::write(&offset, "+0s").unwrap();
    cluster.kill(2);
    cluster.restart_with(
        2,
        &[
            ("LD_PRELOAD", &library),
            ("FAKETIME_TIMESTAMP_FILE", offset.to_str().unwrap()),
            ("FAKETIME_CACHE_DURATION", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ],
    );
    eventually("it is back", PATIENCE, || cluster.settled());

    fs::write(&offset, "+60s").unwrap();
    let named = |text: &str| text.contains("the clock of node-") && text.contains("timedatectl");
    eventually("the wrong clock is named", PATIENCE, || {
        let (text, is_well) = cluster.ask(2, &["doctor"]);
        !is_well && named(&text)
    });
    let mut right = cluster.connect(0);
    let mut wrong = cluster.connect(2);
    for key in 0..100 {
        let () = right.set_ex(format!("short:{key}"), key, LEFT_S).unwrap();
    }
    let left: Vec<i64> = (0..100)
        .map(|key| wrong.ttl(format!("short:{key}")).unwrap())
        .collect();
    assert!(left.iter().all(|left| (1..=41).contains(left)), "{left:?}");

    fs::write(&offset, "+0s").unwrap();
    eventually("its writes are taken", SOON, || {
        let written: redis::RedisResult<()> = wrong.set("after", "right");
        written.is_ok()
    });
    let read: String = right.get("after").unwrap();
    assert_eq!(read, "right");
    eventually("nothing is wrong any more", PATIENCE, || {
        !named(&cluster.ask(2, &["doctor"]).0)
    });
}

/// Less than the clock is ahead.
const LEFT_S: u64 = 41;
/// Much less than the clock was ahead, on a busy machine too.
const SOON: Duration = Duration::from_secs(20);
