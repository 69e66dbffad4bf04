//! Brings the store to each cut: digests move on, what has expired is freed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::env::{Env, trim_memory};
use crate::model::{Epoch, Millis};
use crate::store::Store;

/// Brings all groups to each cut some seconds after it, a few groups at a time, for as long as the
/// environment's tasks run. `done` tells the last cut that all of them were brought to.
pub async fn sweep(store: Arc<Store>, done: watch::Sender<Epoch>, env: Env) {
    let ticks = u16::try_from(ROUND.as_millis() / TICK.as_millis()).unwrap_or(u16::MAX);
    let batch = usize::from(store.groups().div_ceil(ticks));
    let mut most = 0;
    loop {
        // After a flush, after much has expired: what was freed is of no use to anybody here.
        most = most.max(store.bytes());
        if most - store.bytes() >= TRIM_BYTES_MIN {
            most = store.bytes();
            // A thread that cannot be had: it is tried again when as much is free once more.
            let _ended = env.tasks.offload(trim_memory).await;
        }
        let cut = last_cut(env.clock.wall());
        if cut == *done.borrow() {
            sleep(LOOK_INTERVAL).await;
            continue;
        }
        for (number, group) in (0..store.groups()).enumerate() {
            if number > 0 && number % batch == 0 {
                sleep(TICK).await;
            }
            store.roll(group, cut, env.clock.wall());
        }
        done.send_replace(cut);
    }
}

/// The last cut that writes have had the time to come after.
fn last_cut(now: Millis) -> Epoch {
    Epoch::of(Millis(now.0.saturating_sub(SETTLE_MS))).before()
}

/// A write that is acknowledged has reached all homes that can be reached within this time, nearly
/// always.
const SETTLE_MS: u64 = 1_500;
/// Well within an epoch.
const ROUND: Duration = Duration::from_millis(1_000);
/// A tick's work is no pause for requests: three groups of 256.
const TICK: Duration = Duration::from_millis(10);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Less is soon in use again.
const TRIM_BYTES_MIN: u64 = 32 * 1024 * 1024;
