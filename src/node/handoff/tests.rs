use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::env::{Committed, Found, JournalBusy, MemoryDisk, SystemClock};
use crate::model::{Hlc, HlcTime, KeyHasher, Version};
use crate::node::replica::Standing;
use crate::ring::Partitions;
use crate::store::{Limits, Store};

const HOME: NodeTag = NodeTag(5);

/// A disk whose journal fails or is busy when told to.
#[derive(Debug, Default, Clone)]
struct BadDisk {
    files: Arc<MemoryDisk>,
    fails: Arc<AtomicBool>,
    is_busy: Arc<AtomicBool>,
}

#[derive(Debug)]
struct BadJournal(BadDisk, Arc<dyn Journal>);

impl Disk for BadDisk {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
        self.files.read(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), DiskError> {
        self.files.write(name, content)
    }

    fn journal(&self, name: &str) -> Result<(Arc<dyn Journal>, Found), DiskError> {
        let (journal, found) = self.files.journal(name)?;
        Ok((Arc::new(BadJournal(self.clone(), journal)), found))
    }
}

impl Journal for BadJournal {
    fn commit(
        &self,
        changes: Changes,
        durability: Durability,
        done: Committed,
    ) -> Result<(), JournalBusy> {
        if self.0.is_busy.load(Ordering::Relaxed) {
            return Err(JournalBusy);
        }
        if self.0.fails.load(Ordering::Relaxed) {
            done(Err(JournalFailed));
            return Ok(());
        }
        self.1.commit(changes, durability, done)
    }

    fn health(&self) -> JournalHealth {
        JournalHealth::default()
    }
}

fn open(disk: &dyn Disk) -> Arc<Handoff> {
    let config = Config {
        limits: HintLimits {
            bytes_max: 10_000,
            window: Duration::from_secs(60),
        },
        durability: Durability::Synced,
        replay_bytes_per_s: 1_000,
    };
    let replica = Replica::new(
        Arc::new(Store::new(
            KeyHasher::new("test"),
            Limits {
                partitions: 1,
                tombstone_age: Duration::from_secs(3_600),
            },
        )),
        Arc::new(Hlc::new(Duration::from_secs(10))),
        1_000,
        Standing::sure(Partitions::new(1).unwrap()),
    );
    Handoff::open(config, disk, Arc::new(SystemClock), Arc::new(replica)).unwrap()
}

fn record(hlc: u64, length: usize) -> Record {
    let version = Version {
        hlc: HlcTime(hlc),
        node: NodeTag(1),
    };
    Record::value(version, None, Bytes::from(vec![7; length]))
}

async fn keep(handoff: &Arc<Handoff>, key: &[u8], record: &Record) -> HintReply {
    let hint = NewHint {
        home: HOME,
        key,
        missed: MissedRef::Write(record.into()),
    };
    handoff.keep(&[hint]).await.pop().unwrap()
}

#[tokio::test]
async fn what_the_disk_does_not_take_is_refused_and_not_kept() {
    let disk = BadDisk::default();
    let handoff = open(&disk);
    let refused = HintReply::Refused(Refusal::HintsFailed);
    for switch in [&disk.fails, &disk.is_busy] {
        switch.store(true, Ordering::Relaxed);
        assert_eq!(keep(&handoff, b"a", &record(1, 9)).await, refused);
        assert_eq!(handoff.count(), 0);
        switch.store(false, Ordering::Relaxed);
    }
    assert_eq!(handoff.stats().refused_failed.load(Ordering::Relaxed), 2);
    let kept = keep(&handoff, b"a", &record(1, 9)).await;
    assert_eq!(kept, HintReply::Written(Written::Applied(Prior::default())));
    // What was acknowledged before is not given up because something newer could not be written.
    disk.fails.store(true, Ordering::Relaxed);
    assert_eq!(keep(&handoff, b"a", &record(2, 9)).await, refused);
    assert_eq!(handoff.count(), 1);
    drop(handoff);
    assert_eq!(
        open(&disk).summary(b"a"),
        Some(Summary::of((&record(1, 9)).into()))
    );
}

#[tokio::test]
async fn values_that_break_a_limit_are_refused_in_its_name() {
    let handoff = open(&MemoryDisk::default());
    let too_big = HintReply::Refused(Refusal::TooBig);
    assert_eq!(keep(&handoff, b"a", &record(1, 1_001)).await, too_big);
    let far_ahead = record(u64::MAX, 1);
    let drift = HintReply::Refused(Refusal::ClockDrift);
    assert_eq!(keep(&handoff, b"a", &far_ahead).await, drift);
    for number in 0..100 {
        keep(&handoff, &[number], &record(1, 100)).await;
    }
    let full = HintReply::Refused(Refusal::HintsFull);
    assert_eq!(keep(&handoff, b"one more", &record(1, 100)).await, full);
    assert!(handoff.bytes() <= 10_000);
}

#[tokio::test]
async fn hints_that_were_dropped_stay_dropped_after_a_restart() {
    let disk = MemoryDisk::default();
    let handoff = open(&disk);
    for number in 0..10 {
        keep(&handoff, &[number], &record(1, 10)).await;
    }
    handoff.flush().await;
    assert_eq!(open(&disk).count(), 10);
    assert_eq!(handoff.drop_all(HOME), 10);
    assert_eq!(open(&disk).count(), 0);
    assert_eq!(handoff.drop_all(HOME), 0);
}
