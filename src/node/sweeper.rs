//! Frees what has expired, a few partitions at a time.

use std::sync::Arc;
use std::time::Duration;

use crate::env::Env;
use crate::ring::Partitions;
use crate::store::Store;

/// Looks at every partition once in ten seconds, for as long as the environment's tasks run.
pub async fn sweep(store: Arc<Store>, partitions: Partitions, env: Env) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let ticks_a_round = ROUND.as_millis() / TICK.as_millis();
    let batch = u128::from(partitions.count()).div_ceil(ticks_a_round);
    let batch = usize::try_from(batch).unwrap_or(usize::MAX);
    let mut order = partitions.all().cycle();
    loop {
        ticks.tick().await;
        let now = env.clock.wall();
        for partition in order.by_ref().take(batch) {
            store.sweep(partition, now);
        }
    }
}

/// Expired records take memory for this long at most. They are never shown.
const ROUND: Duration = Duration::from_secs(10);
/// Short enough that a tick's work is no pause for requests: 41 partitions of 4,096.
const TICK: Duration = Duration::from_millis(100);
