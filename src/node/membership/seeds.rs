//! Seeds that are names: asked again and again, because what they mean changes.
//!
//! In Kubernetes the name of a headless service has an address for each pod, and the first pods
//! start before it has any. chitchat asks once a minute; a node that is still alone asks more often.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;
use tracing::{debug, info};

use super::Inner;

impl Inner {
    /// Gossips with what the names of the seeds mean now, for as long as the environment's tasks
    /// run. Does nothing where all seeds are addresses: those chitchat knows.
    pub(super) async fn follow_seeds(self: Arc<Self>) {
        let seeds = self.config.seeds.iter();
        let names: Vec<String> = seeds
            .filter(|seed| seed.parse::<SocketAddr>().is_err())
            .cloned()
            .collect();
        if names.is_empty() {
            return;
        }
        let mut known = BTreeSet::new();
        loop {
            let found = resolve(&names).await;
            for addr in found.difference(&known) {
                info!(%addr, "a seed's name has a new address");
            }
            let connected = Arc::clone(&self.net.peers().borrow());
            let is_alone = connected.is_empty();
            let strangers = found
                .iter()
                .filter(|addr| **addr != self.config.quic)
                .filter(|addr| !connected.values().any(|peer| peer == *addr));
            for &addr in strangers.take(ADDRESSES_MAX) {
                if let Err(error) = self.gossip().chitchat.gossip(addr) {
                    debug!(%addr, %error, "cannot gossip with a seed");
                }
            }
            known = found;
            let pause = if is_alone { ALONE_PAUSE } else { PAUSE };
            tokio::time::sleep(pause).await;
        }
    }
}

async fn resolve(names: &[String]) -> BTreeSet<SocketAddr> {
    let mut found = BTreeSet::new();
    for name in names {
        match timeout(LOOKUP_MAX, lookup_host(name)).await {
            Ok(Ok(addresses)) => found.extend(addresses),
            // Said by chitchat as well, as a warning.
            Ok(Err(error)) => debug!(name, %error, "cannot look a seed up"),
            Err(_) => debug!(name, "looking a seed up takes too long"),
        }
    }
    found
}

const ALONE_PAUSE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_secs(30);
const LOOKUP_MAX: Duration = Duration::from_secs(5);
/// Some of a large cluster are enough: they know the others.
const ADDRESSES_MAX: usize = 16;
