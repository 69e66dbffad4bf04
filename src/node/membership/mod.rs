//! Who is in the ring and who can be reached, as a `watch` of an immutable [`View`].
//!
//! chitchat spreads a handful of keys of each node (Scuttlebutt) and suspects the silent (phi
//! accrual); the member table, a CRDT kept on disk, remembers who belongs. A silent node stays in
//! the ring until someone takes it out.
//!
//! # Size
//!
//! Each chitchat message begins with a digest of all nodes: 24 bytes of versions, 15 of address
//! and generation, 2 + the name. With names of 13 characters 1,000 nodes are 54 kB, below the
//! 64 KiB that a message may have. Of the keys, the entry is about 200 bytes, the parameters 30,
//! the table's digest 16 and the load 290, 20 more for each home that the node holds hints for, 48 of
//! them at most: 540 kB for 1,000 nodes, sent once; after that only what changed. The member table itself travels over the bulk lane: 150 kB for 1,000 nodes, to those
//! whose digest differs.
//!
//! # Suspicion
//!
//! phi = silence / mean interval, over the samples and a prior that counts as five of them. A
//! node's heartbeat grows at each of its rounds and with each message it takes, so between three
//! nodes that gossip every 300 ms the mean is about 150 ms, in a large cluster up to 300 ms. At a
//! threshold of 12 the silent are suspected after 1.8 s, at the latest 3.6 s; a connection lost
//! for good, after the 2 s of its idle time and half a second to make it again, tells in 2.5 s.

mod belief;
mod published;
mod roster;
mod seeds;
mod socket;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, spawn_chitchat,
};
use thiserror::Error;
use tokio::sync::watch;
use tracing::{error, info, warn};

use self::belief::KnownIds;
#[doc(hidden)]
pub use self::belief::is_believed;
use self::published::{
    LOAD_KEY, PARAMS_KEY, Params, RING_KEY, SHEET_KEY, TABLE_KEY, entry_text, load_text, page_key,
};
pub use self::published::{Load, Shared};
pub use self::roster::Stranger;
use self::roster::{Gossiped, Roster, Todo, digest_text};
use self::socket::{GossipTransport, Inbox};
use super::anti_entropy::DigestGossip;
use crate::digest::Sheet;
use crate::env::{DiskError, Env};
use crate::model::{NodeId, NodeTag};
use crate::net::GossipNet;
use crate::ring::{MemberEntry, MemberState, MemberTable, RingParams, Role, TableError, View};

/// Settings of membership: what this node is, and whom it asks first.
#[derive(Debug, Clone)]
pub struct Config {
    /// What all members agree on.
    pub params: RingParams,
    /// This node.
    pub id: NodeId,
    /// What it does.
    pub role: Role,
    /// Members of one zone fail together.
    pub zone: String,
    /// Its share of the data, relative to the others.
    pub weight: u32,
    /// Where peers reach it.
    pub quic: SocketAddr,
    /// Where its clients reach it.
    pub resp: String,
    /// Where its metrics are.
    pub http: String,
    /// Whom to ask for the ring at first: `host:port`, names are resolved.
    pub seeds: Vec<String>,
    /// The time between two gossip rounds.
    pub gossip_interval: Duration,
}

/// Why a node cannot take part.
#[derive(Debug, Error)]
pub enum MembershipError {
    /// The member table cannot be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The member table on disk is not one of this cluster.
    #[error("file `members` in the data directory: {0}")]
    Table(#[from] TableError),
    /// chitchat did not start.
    #[error("cannot start gossip: {0}")]
    Gossip(String),
}

/// A node's membership, running until its environment's tasks end.
#[derive(Debug, Clone)]
pub struct Membership(Arc<Inner>);

struct Inner {
    config: Config,
    env: Env,
    net: Arc<dyn GossipNet>,
    inbox: Inbox,
    gossip: Mutex<Arc<Gossip>>,
    roster: Mutex<Roster>,
    view: watch::Sender<Arc<View>>,
    load: Mutex<Load>,
    /// The digests to tell, and those that were told last, by which life of chitchat.
    sheet: Mutex<Option<Arc<Sheet>>>,
    told: Mutex<Option<(u64, Arc<Sheet>)>>,
    refused_messages: Arc<AtomicU64>,
}

/// One life of chitchat: it speaks for one incarnation of this node.
struct Gossip {
    chitchat: ChitchatHandle,
    incarnation: u64,
    known_ids: Arc<KnownIds>,
}

impl Membership {
    /// Reads the member table, enters this node and starts to gossip.
    pub async fn start(
        config: Config,
        env: &Env,
        net: Arc<dyn GossipNet>,
    ) -> Result<Self, MembershipError> {
        let params = &config.params;
        let mut table = match env.disk.read(TABLE_FILE)? {
            Some(bytes) => {
                MemberTable::from_bytes(&bytes, &params.cluster, params.partitions.count())?
            }
            None => MemberTable::default(),
        };
        let own = own_entry(&config, next_incarnation(env, &config.id, &table));
        table.merge_entry(own.clone());
        let roster = Roster::new(config.id.clone(), params, table);
        let view = View::new(params.clone(), roster.members());
        save(env, params, roster.table())?;

        let inbox = Inbox::of(net.as_ref())
            .ok_or_else(|| MembershipError::Gossip("the network is in use already".to_owned()))?;
        let refused_messages = Arc::new(AtomicU64::new(0));
        let gossip = Gossip::start(
            &config,
            &own,
            roster.table(),
            (&net, &inbox, &refused_messages),
        )
        .await?;
        let inner = Arc::new(Inner {
            config,
            env: env.clone(),
            net,
            inbox,
            gossip: Mutex::new(Arc::new(gossip)),
            roster: Mutex::new(roster),
            view: watch::Sender::new(Arc::new(view)),
            load: Mutex::default(),
            sheet: Mutex::default(),
            told: Mutex::default(),
            refused_messages,
        });
        env.tasks.spawn(Arc::clone(&inner).run());
        env.tasks.spawn(Arc::clone(&inner).supervise());
        env.tasks.spawn(Arc::clone(&inner).follow_seeds());
        Ok(Self(inner))
    }

    /// The ring, as it changes.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.0.view.subscribe()
    }

    /// Which start of this node this is: greater than every one before it.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.0.gossip().incarnation
    }

    /// Tells the others, with the next round, what this node holds.
    pub fn publish_load(&self, load: Load) {
        let mut present = self.0.load.lock().unwrap_or_else(PoisonError::into_inner);
        let is_stopping = present.is_stopping;
        *present = Load {
            is_stopping,
            ..load
        };
    }

    /// What each other node last told that it holds.
    #[must_use]
    pub fn loads(&self) -> BTreeMap<NodeId, Load> {
        self.0.roster().loads()
    }

    /// Nodes that are kept out of the ring, because what all must agree on is different there.
    #[must_use]
    pub fn strangers(&self) -> Vec<Stranger> {
        self.0.roster().strangers()
    }

    /// Tells the others whether this node is about to stop, and gives the news the time to arrive.
    pub async fn tell_stopping(&self, is_stopping: bool) {
        let inner = &self.0;
        let load = {
            let mut load = inner.load.lock().unwrap_or_else(PoisonError::into_inner);
            load.is_stopping = is_stopping;
            load_text(&load)
        };
        let gossip = inner.gossip();
        let tell = |chitchat: &mut Chitchat| chitchat.self_node_state().set(LOAD_KEY, &load);
        gossip.chitchat.with_chitchat(tell).await;
        let rounds = inner.config.gossip_interval * GOODBYE_ROUNDS;
        tokio::time::sleep(rounds.min(GOODBYE_MAX)).await;
    }

    /// The member table as bytes, for a peer that asks.
    #[must_use]
    pub fn table_bytes(&self) -> Bytes {
        let params = &self.0.config.params;
        self.0
            .roster()
            .table()
            .to_bytes(&params.cluster, params.partitions.count())
            .into()
    }

    /// Gossip messages that were not believed.
    #[must_use]
    pub fn refused_messages(&self) -> u64 {
        self.0.refused_messages.load(Ordering::Relaxed)
    }

    /// Stops gossiping. The node stays in the ring.
    pub fn stop(&self) {
        // It fails only if it has stopped already.
        drop(self.0.gossip().chitchat.initiate_shutdown());
    }
}

impl DigestGossip for Membership {
    fn publish(&self, sheet: Arc<Sheet>) {
        *self.0.sheet.lock().unwrap_or_else(PoisonError::into_inner) = Some(sheet);
    }

    fn heard(&self) -> BTreeMap<NodeTag, Arc<Sheet>> {
        self.0.roster().sheets()
    }
}

impl Gossip {
    async fn start(
        config: &Config,
        own: &MemberEntry,
        table: &MemberTable,
        (net, inbox, refused): (&Arc<dyn GossipNet>, &Inbox, &Arc<AtomicU64>),
    ) -> Result<Self, MembershipError> {
        let chitchat_config = chitchat_config(config, own.incarnation, table);
        let known_ids = Arc::new(KnownIds::new(chitchat_config.chitchat_id.clone()));
        let transport = GossipTransport {
            own: config.quic,
            net: Arc::clone(net),
            inbox: inbox.clone(),
            known: Arc::clone(&known_ids),
            refused: Arc::clone(refused),
        };
        let keys = [
            (RING_KEY, entry_text(own)),
            (PARAMS_KEY, Params::of(&config.params).to_string()),
            (TABLE_KEY, digest_text(table)),
        ];
        let keys = keys.map(|(key, text)| (key.to_owned(), text)).to_vec();
        let chitchat = spawn_chitchat(chitchat_config, keys, &transport)
            .await
            .map_err(|error| MembershipError::Gossip(error.to_string()))?;
        Ok(Self {
            chitchat,
            incarnation: own.incarnation,
            known_ids,
        })
    }

    /// Resolves when this life is over: chitchat has ended by itself, or another node has spoken
    /// in this one's name.
    async fn ended(self: Arc<Self>, mut ticks: tokio::time::Interval) -> Ended {
        let mut terminated = pin!(self.chitchat.termination_watcher());
        loop {
            tokio::select! {
                result = &mut terminated => return match result {
                    Ok(()) => Ended::Stopped,
                    Err(error) => Ended::Failed(error.to_string()),
                },
                _ = ticks.tick() => if self.known_ids.is_impersonated() {
                    return Ended::Impersonated;
                },
            }
        }
    }
}

/// Why a life of chitchat is over.
enum Ended {
    /// The node is stopping.
    Stopped,
    Failed(String),
    Impersonated,
}

impl Inner {
    /// Keeps gossip alive: a life that has ended is followed by another under a new incarnation,
    /// which is also what refutes whatever was said in the name of the one before.
    async fn supervise(self: Arc<Self>) {
        loop {
            let gossip = self.gossip();
            let ended = Arc::clone(&gossip).ended(tokio::time::interval(TICK)).await;
            match ended {
                Ended::Stopped => return,
                Ended::Failed(error) => error!(error, "gossip has failed and is started again"),
                Ended::Impersonated => warn!(
                    incarnation = gossip.incarnation,
                    "another node has spoken in this node's name: gossip is started again"
                ),
            }
            gossip.chitchat.abort();
            drop(gossip);
            // At first for the ended life to give back the inbox; and a liar, or a fault that
            // stays, must not keep all nodes busy with new incarnations.
            tokio::time::sleep(RESTART_PAUSE).await;
            if let Err(error) = self.start_again().await {
                error!(%error, "gossip cannot be started again");
            }
        }
    }

    async fn start_again(&self) -> Result<(), MembershipError> {
        let (own, table) = {
            let mut roster = self.roster();
            let incarnation = next_incarnation(&self.env, &self.config.id, roster.table());
            let own = own_entry(&self.config, incarnation);
            roster.on_restart(own.clone());
            (own, roster.table().clone())
        };
        let shared = (&self.net, &self.inbox, &self.refused_messages);
        let gossip = Gossip::start(&self.config, &own, &table, shared).await?;
        *self.gossip.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(gossip);
        Ok(())
    }

    fn gossip(&self) -> Arc<Gossip> {
        // std Mutex: never held across an await.
        Arc::clone(&self.gossip.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn run(self: Arc<Self>) {
        let mut connected = self.net.peers();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut table_saved = String::new();
        loop {
            tokio::select! {
                biased;
                changed = connected.changed() => if changed.is_err() { return },
                _ = ticks.tick() => {}
            }
            let gossip = self.gossip();
            let listen = |chitchat: &mut Chitchat| self.listen(chitchat, &gossip.known_ids);
            gossip.chitchat.with_chitchat(listen).await;
            let peers = Arc::clone(&connected.borrow_and_update());
            let todo = {
                let mut roster = self.roster();
                let now = self.env.clock.monotonic();
                roster.on_connected(now, &peers);
                roster.conclude(now)
            };
            self.perform(todo);
            self.publish_view(&mut table_saved);
            let tell = |chitchat: &mut Chitchat| {
                self.tell(chitchat, &table_saved);
                self.tell_digests(chitchat, gossip.incarnation);
            };
            gossip.chitchat.with_chitchat(tell).await;
        }
    }

    /// Takes what gossip has brought.
    fn listen(&self, chitchat: &Chitchat, known_ids: &KnownIds) {
        known_ids.refresh(chitchat.node_states());
        let live: Vec<ChitchatId> = chitchat.live_nodes().cloned().collect();
        let mut roster = self.roster();
        for (id, state) in chitchat.node_states() {
            let Ok(name) = id.node_id.parse::<NodeId>() else {
                continue;
            };
            roster.on_gossip(&Gossiped {
                id: name,
                incarnation: id.generation_id,
                version: state.max_version(),
                live: live.contains(id),
                value: &|key| state.get(key).map(str::to_owned),
            });
        }
        roster.retain(|id| {
            chitchat
                .node_states()
                .keys()
                .any(|c| *c.node_id == *id.as_str())
        });
    }

    fn perform(self: &Arc<Self>, todo: Todo) {
        let Todo {
            meet,
            fetch,
            refused,
        } = todo;
        for refused in refused {
            warn!(
                node = %refused.id, theirs = refused.theirs, ours = refused.ours,
                "a node has other parameters and is kept out of the ring: give it the same"
            );
        }
        meet.iter().for_each(|(id, addr)| self.net.meet(id, *addr));
        if let Some(peer) = fetch {
            let inner = Arc::clone(self);
            self.env
                .tasks
                .spawn(async move { inner.fetch_table(&peer).await });
        }
    }

    async fn fetch_table(&self, peer: &NodeId) {
        let params = &self.config.params;
        match self.net.fetch_table(peer).await {
            Ok(bytes) => {
                match MemberTable::from_bytes(&bytes, &params.cluster, params.partitions.count()) {
                    Ok(table) => self.roster().on_table(&table),
                    Err(error) => warn!(%peer, %error, "a peer's member table is of no use"),
                }
            }
            Err(error) => info!(%peer, %error, "cannot fetch a member table"),
        }
    }

    /// Makes a new view if anything in it has changed, and keeps the table if it has.
    fn publish_view(&self, table_saved: &mut String) {
        let (members, table) = {
            let roster = self.roster();
            (roster.members(), roster.table().clone())
        };
        let before = Arc::clone(&self.view.borrow());
        if before.members() != members {
            let view = Arc::new(before.update(members));
            log_changes(&before, &view);
            self.view.send_replace(view);
        }
        let digest = digest_text(&table);
        if *table_saved != digest {
            match save(&self.env, &self.config.params, &table) {
                Ok(()) => *table_saved = digest,
                Err(error) => warn!(%error, "cannot keep the member table"),
            }
        }
    }

    /// Tells what has changed since it was last told: chitchat takes a value that it has for none.
    fn tell(&self, chitchat: &mut Chitchat, table_saved: &str) {
        let load = self.load.lock().unwrap_or_else(PoisonError::into_inner);
        let load = load_text(&load);
        let state = chitchat.self_node_state();
        state.set(TABLE_KEY, table_saved);
        state.set(LOAD_KEY, load);
    }

    /// Tells the digests, if there are new ones; the head last.
    fn tell_digests(&self, chitchat: &mut Chitchat, incarnation: u64) {
        let sheet = self.sheet.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sheet) = sheet.clone() else { return };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let before = told.as_ref().filter(|(life, _)| *life == incarnation);
        if before.is_some_and(|(_, before)| before.cut == sheet.cut) {
            return;
        }
        let packed = sheet.pack(before.map(|(_, sheet)| &**sheet));
        let state = chitchat.self_node_state();
        for (number, page) in packed.pages {
            state.set(page_key(number), page);
        }
        state.set(SHEET_KEY, packed.head);
        *told = Some((incarnation, sheet));
    }

    fn roster(&self) -> std::sync::MutexGuard<'_, Roster> {
        // std Mutex: never held across an await.
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Beyond the last one even if the wall clock went back.
fn next_incarnation(env: &Env, id: &NodeId, table: &MemberTable) -> u64 {
    let before = table.get(id).map_or(0, |entry| entry.incarnation);
    env.clock.wall().0.max(before + 1)
}

fn own_entry(config: &Config, incarnation: u64) -> MemberEntry {
    MemberEntry {
        id: config.id.clone(),
        incarnation,
        revision: 0,
        state: MemberState::Up,
        role: config.role,
        zone: config.zone.clone(),
        weight: config.weight,
        quic: config.quic,
        resp: config.resp.clone(),
        http: config.http.clone(),
    }
}

fn save(env: &Env, params: &RingParams, table: &MemberTable) -> Result<(), DiskError> {
    env.disk.write(
        TABLE_FILE,
        &table.to_bytes(&params.cluster, params.partitions.count()),
    )
}

fn chitchat_config(config: &Config, incarnation: u64, table: &MemberTable) -> ChitchatConfig {
    // Those who were in the ring are asked as well: a node finds back even when its seeds are gone.
    let members = table.entries().filter(|entry| entry.id != config.id);
    let members = members.map(|entry| entry.quic.to_string());
    ChitchatConfig {
        chitchat_id: ChitchatId::new(config.id.as_str(), incarnation, config.quic),
        cluster_id: config.params.cluster.clone(),
        gossip_interval: config.gossip_interval,
        listen_addr: config.quic,
        seed_nodes: config.seeds.iter().cloned().chain(members).collect(),
        failure_detector_config: FailureDetectorConfig {
            phi_threshold: PHI_THRESHOLD,
            sampling_window_size: SAMPLES,
            max_interval: SAMPLE_MAX,
            initial_interval: config.gossip_interval,
            dead_node_grace_period: FORGET_AFTER,
        },
        marked_for_deletion_grace_period: FORGET_AFTER,
        catchup_callback: None,
        extra_liveness_predicate: None,
    }
}

fn log_changes(before: &View, after: &View) {
    for member in after.members() {
        match before.member(member.tag) {
            None => info!(node = %member.id, zone = member.zone, "in the ring"),
            Some(old) if old.reachable != member.reachable => {
                info!(node = %member.id, reachable = member.reachable, "reachability changed");
            }
            Some(_) => {}
        }
    }
    for member in before.members() {
        if after.member(member.tag).is_none() {
            info!(node = %member.id, "no longer in the ring");
        }
    }
}

/// One to tell, one for whom the first did not reach.
const GOODBYE_ROUNDS: u32 = 2;
/// With long rounds the others learn it from the end of the connections.
const GOODBYE_MAX: Duration = Duration::from_secs(3);
/// The member table's file in the data directory.
const TABLE_FILE: &str = "members";
/// A third of a gossip round: what gossip knows is acted on before the next one.
const TICK: Duration = Duration::from_millis(100);
/// Between the end of one life of chitchat and the next.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// See the module's documentation.
const PHI_THRESHOLD: f64 = 12.0;
/// Fifteen seconds of samples: the mean follows when the load of the machine changes.
const SAMPLES: usize = 100;
/// A longer silence was an outage and says nothing of the usual interval.
const SAMPLE_MAX: Duration = Duration::from_secs(2);
/// chitchat forgets the dead after this; the member table remembers them.
const FORGET_AFTER: Duration = Duration::from_secs(600);
