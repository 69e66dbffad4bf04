//! One node, put together from its rooms.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::parts;
use super::trust::TrustFiles;
use crate::config::Settings;
use crate::env::{Clock, Env, SchedulerWatch};
use crate::front::admin::{self, AdminDesk};
use crate::front::certificates::CertificateWatch;
use crate::front::channels::Channels;
use crate::front::doctor::{Doctor, memory_limit, resident_bytes};
use crate::front::http;
use crate::front::metrics::Metrics;
use crate::front::peer_server::{PeerServer, Served};
use crate::front::resp_server::{self, LocalFacts, NodeFacts, RespServer};
use crate::model::{Epoch, Hlc, KeyHasher};
use crate::net::{self, Credentials, Endpoint, utc_text};
use crate::node::agreed_clock::AgreedClock;
use crate::node::anti_entropy::{self, AntiEntropy, Responder};
use crate::node::catch_up::CatchUp;
use crate::node::clock_probe::{self, ClockProbe};
use crate::node::coordinator::{self, Coordinator, Parts};
use crate::node::handoff::replay::Replay;
use crate::node::handoff::{Handoff, Owed};
use crate::node::membership::Membership;
use crate::node::replica::{Replica, Standing, abstention};
use crate::node::status::NodeStatus;
use crate::node::sweeper::sweep;
use crate::ring::{Partitions, RingParams};
use crate::store::{self, Store};

/// A running node.
#[derive(Debug)]
pub struct Node {
    settings: Settings,
    env: Env,
    status: NodeStatus,
    resp: RespServer,
    certificates: Arc<CertificateWatch>,
    trust: TrustFiles,
}

impl Node {
    /// Starts a node in this environment.
    pub async fn start(settings: &Settings, env: &Env) -> anyhow::Result<Self> {
        let agreed = AgreedClock::new(Arc::clone(&env.clock));
        let machine = env;
        let env = &Env {
            clock: Arc::clone(&agreed) as Arc<dyn Clock>,
            ..env.clone()
        };
        Self::assemble(settings, machine, env, agreed).await
    }

    /// `machine` has the clock of the machine, `env` the one that is agreed on.
    async fn assemble(
        settings: &Settings,
        machine: &Env,
        env: &Env,
        agreed: Arc<AgreedClock>,
    ) -> anyhow::Result<Self> {
        let started_at = env.clock.wall();
        let trust = TrustFiles::new(settings)?;
        let credentials = parts::credentials(settings, started_at)?;
        let value_bytes_max = usize::try_from(settings.max_value_bytes.0)?;
        let net_config = net::Config {
            listen: settings.quic_listen,
            value_bytes_max,
        };
        // Certificates go by the machine's clock.
        let endpoint = Endpoint::bind(&net_config, &credentials, machine)?;

        let params = RingParams {
            cluster: settings.cluster.clone(),
            partitions: Partitions::new(settings.partitions)?,
            n: settings.quorum().n(),
        };
        let hasher = KeyHasher::new(&params.cluster);
        let own = Own::open(settings, env, params.partitions)?;
        let owed = watch::Sender::new(Arc::<Owed>::default());
        let config = parts::membership_config(settings, params);
        let membership = Membership::start(config, env, Arc::new(endpoint.clone())).await?;
        let coordinator = Coordinator::new(Parts {
            config: coordinator::Config {
                quorum: settings.quorum(),
                timeout: settings.request_timeout,
            },
            self_tag: settings.node.tag(),
            writer: settings.node.writer_tag(membership.incarnation()),
            env: env.clone(),
            view: membership.view(),
            replica: Arc::clone(&own.replica),
            clock: Arc::clone(&own.clock),
            hasher,
            transport: Arc::new(endpoint.clone()),
            handoff: Arc::clone(&own.handoff),
            owed: owed.subscribe(),
        });
        let peers = (&membership, &endpoint);
        let anti_entropy = anti_entropy(settings, env, peers, &own, owed.subscribe());
        serve_peers(settings, env, peers, (&own, &coordinator));
        anti_entropy.start();

        let clocks = clock_probe(settings, env, peers, (&own.replica, agreed));
        let status = NodeStatus {
            self_id: settings.node.clone(),
            started_at,
            env: env.clone(),
            membership,
            coordinator,
            store: own.store,
            handoff: own.handoff,
            anti_entropy,
            hasher,
            endpoint,
            replica: own.replica,
            clocks,
            settings: parts::shared_settings(settings),
            is_stopping: Arc::default(),
        };
        tell_load(env, status.clone(), owed);
        let certificates = Arc::new(CertificateWatch::default());
        let resp = open_doors(settings, env, &status, (&certificates, own.channels)).await?;
        info!(node = %settings.node, cluster = settings.cluster, "started");
        Ok(Self {
            trust,
            settings: settings.clone(),
            env: env.clone(),
            status,
            resp,
            certificates,
        })
    }

    /// What the node is doing, in a line.
    #[must_use]
    pub fn summary(&self) -> String {
        let view = self.status.coordinator.view();
        let members = view.members();
        let reachable = members.iter().filter(|member| member.reachable).count();
        let ready = match self.status.readiness() {
            Ok(()) => "ready".to_owned(),
            Err(why) => format!("not ready: {why}"),
        };
        format!(
            "{ready}; {reachable} of {} nodes reachable, {} keys, {} hints",
            members.len(),
            self.status.store.keys(),
            self.status.handoff.count()
        )
    }

    /// Where the node's administrators find it.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        parts::admin_socket(&self.settings)
    }

    /// Takes over what has changed in the settings and can change while the node runs, and reads
    /// certificates and passwords again. What is wrong is told, and changes nothing.
    pub fn reload(&mut self, fresh: &Settings) -> anyhow::Result<()> {
        let changes = self.settings.changes(fresh);
        let mut next = self.settings.clone();
        next.reload(fresh);
        // As they are before they are read: what changes from now on is noticed.
        let trust = TrustFiles::new(&next)?;
        let read = parts::credentials(&next, self.env.clock.wall())
            .and_then(|credentials| Ok((credentials, parts::resp_config(&next)?)));
        // Whatever can fail comes before the first change.
        let (credentials, resp) = read.inspect_err(|error| self.on_bad_files(error))?;
        self.renew_resp(resp, &next)?;
        self.renew(&credentials)?;
        self.status
            .handoff
            .set_replay_pace(next.hint_replay_bytes_per_s.0);
        self.status.anti_entropy.set_pace(next.repair_bytes_per_s.0);
        let watchdog = self.env.tasks.watchdog();
        watchdog.set_script_max(next.script_timeout);
        self.settings = next;
        self.trust.follow(trust);
        for (key, is_reloadable) in changes {
            match is_reloadable {
                true => info!(key, "changed"),
                false => warn!(key, "changed, and needs a restart to take effect"),
            }
        }
        Ok(())
    }

    /// Looks whether the files of certificates have changed, takes them over if they have, and
    /// warns of what ends soon. Made to be called every few seconds.
    pub fn look_after_certificates(&mut self) {
        if self.trust.have_changed() {
            info!("certificate files have changed");
            // Each by itself: a wrong password file must not keep a revocation from taking effect.
            let now = self.env.clock.wall();
            let peers = parts::credentials(&self.settings, now)
                .and_then(|credentials| self.renew(&credentials));
            let clients = parts::resp_config(&self.settings)
                .and_then(|config| self.renew_resp(config, &self.settings));
            match (peers, clients) {
                (Ok(()), Ok(())) => {}
                (Err(error), Ok(())) | (Ok(()), Err(error)) => self.on_bad_files(&error),
                (Err(peers), Err(clients)) => {
                    self.on_bad_files(&anyhow::anyhow!("{peers:#}; {clients:#}"));
                }
            }
        }
        self.trust.warn_of_ends(&self.status, &self.certificates);
    }

    fn on_bad_files(&self, error: &anyhow::Error) {
        let error = format!("{error:#}");
        error!(error, "cannot take the new files: the old ones stay");
        self.certificates.on_failure(error);
    }

    fn renew_resp(&self, config: resp_server::Config, settings: &Settings) -> anyhow::Result<()> {
        self.resp.reload(config)?;
        let end = parts::resp_certificate_end(settings);
        self.certificates.set_resp_until(end);
        Ok(())
    }

    fn renew(&self, fresh: &Credentials) -> anyhow::Result<()> {
        let present = self.status.endpoint.credentials();
        if fresh.same_as(&present) {
            self.certificates.on_unchanged();
            return Ok(());
        }
        self.status.endpoint.renew(fresh)?;
        self.certificates.on_reload();
        let (until, revoked) = (utc_text(fresh.not_after()), fresh.revocations().len());
        info!(until, revoked, "took over new certificates");
        if fresh.revocations().foreign() > 0 {
            warn!("crl_file holds a list that no authority in ca_file has signed: no effect");
        }
        Ok(())
    }

    /// Stops the node: tells the others, takes no more clients, finishes what is under way, keeps
    /// its hints. Waits at most so long for each of them.
    pub async fn stop(self, wait_max: Duration) {
        let NodeStatus {
            membership,
            handoff,
            endpoint,
            is_stopping,
            ..
        } = self.status;
        is_stopping.store(true, Ordering::Relaxed);
        // First the others stop asking this node: its own clients are served meanwhile.
        drop(timeout(wait_max, membership.tell_stopping(true)).await);
        if !self.resp.drain(wait_max).await {
            warn!("stopped with requests still under way (shutdown_timeout)");
        }
        drop(timeout(wait_max, handoff.flush()).await);
        membership.stop();
        if !self.env.tasks.shutdown(wait_max).await {
            warn!("stopped with tasks still under way (shutdown_timeout)");
        }
        // Last, so that nothing dials anew what was closed.
        endpoint.close().await;
    }
}

/// What finds out how far other clocks are off.
fn clock_probe(
    settings: &Settings,
    env: &Env,
    (membership, endpoint): (&Membership, &Endpoint),
    (replica, agreed): (&Arc<Replica>, Arc<AgreedClock>),
) -> Arc<ClockProbe> {
    let clocks = ClockProbe::new(clock_probe::Parts {
        self_tag: settings.node.tag(),
        env: env.clone(),
        view: membership.view(),
        transport: Arc::new(endpoint.clone()),
        replica: Arc::clone(replica),
        agreed,
    });
    env.tasks.spawn(Arc::clone(&clocks).run());
    clocks
}

/// What a node holds.
struct Own {
    clock: Arc<Hlc>,
    store: Arc<Store>,
    replica: Arc<Replica>,
    handoff: Arc<Handoff>,
    /// Who listens to what.
    channels: Arc<Channels>,
    /// The last cut that the store was brought to.
    cut: watch::Sender<Epoch>,
}

impl Own {
    /// Nothing yet, but for the hints of before.
    fn open(settings: &Settings, env: &Env, partitions: Partitions) -> anyhow::Result<Self> {
        let hasher = KeyHasher::new(&settings.cluster);
        let limits = store::Limits {
            partitions: partitions.count(),
            tombstone_age: parts::tombstone_age(settings),
        };
        let store = Arc::new(Store::new(hasher, limits));
        let clock = Arc::new(Hlc::new(settings.max_clock_drift));
        let votes_from = env.clock.monotonic() + abstention(settings.request_timeout);
        let replica = Arc::new(Replica::new(
            Arc::clone(&store),
            Arc::clone(&clock),
            usize::try_from(settings.max_value_bytes.0)?,
            Standing::unsure(partitions).voting_from(votes_from),
        ));
        let handoff = Handoff::open(
            parts::handoff_config(settings),
            &*env.disk,
            Arc::clone(&env.clock),
            Arc::clone(&replica),
        )?;
        Ok(Self {
            clock,
            store,
            replica,
            handoff,
            channels: Arc::default(),
            cut: watch::Sender::new(Epoch::default()),
        })
    }
}

/// Tells the others what this node holds, and takes note of who they hold hints for.
fn tell_load(env: &Env, status: NodeStatus, owed: watch::Sender<Arc<Owed>>) {
    env.tasks.spawn(async move {
        let own = status.self_id.tag();
        loop {
            status.membership.publish_load(status.load());
            let mut held: Vec<_> = status
                .handoff
                .summaries()
                .into_keys()
                .map(|home| (own, home))
                .collect();
            for (id, load) in status.membership.loads() {
                held.extend(load.hints_for.iter().map(|&home| (id.tag(), home)));
                status.follow_flushes(&load.flushes);
            }
            let now = Owed::new(held);
            owed.send_if_modified(|before| {
                let has_changed = **before != now;
                if has_changed {
                    *before = Arc::new(now);
                }
                has_changed
            });
            // Those who read from homes must hear soon that some are owed hints.
            drop(timeout(LOAD_INTERVAL, status.handoff.changed()).await);
        }
    });
}

/// What a node does for others and by itself: answers peers, catches up, gives hints back, frees
/// what has expired.
fn serve_peers(
    settings: &Settings,
    env: &Env,
    (membership, endpoint): (&Membership, &Endpoint),
    (own, coordinator): (&Own, &Coordinator),
) {
    let Own {
        store,
        replica,
        handoff,
        cut,
        ..
    } = own;
    let hasher = KeyHasher::new(&settings.cluster);
    let table = membership.clone();
    let peer_server = PeerServer::new(
        Served {
            replica: Arc::clone(replica),
            handoff: Arc::clone(handoff),
            responder: Responder::new(Arc::clone(store)),
        },
        Arc::clone(&env.clock),
        hasher,
        membership.view(),
        Box::new(move || table.table_bytes()),
    );
    peer_server.set_channels(Arc::clone(&own.channels));
    peer_server.set_proposer(coordinator.updater().proposer().clone());
    endpoint.serve(Arc::new(peer_server));
    let catch_up = CatchUp {
        self_tag: settings.node.tag(),
        n: settings.quorum().n(),
        env: env.clone(),
        view: membership.view(),
        replica: Arc::clone(replica),
        hasher,
        transport: Arc::new(endpoint.clone()),
        begins_at: env.clock.monotonic() + settings.request_timeout,
        has_room: Box::new(has_room_for_records),
    };
    let replay = Replay {
        self_tag: settings.node.tag(),
        env: env.clone(),
        view: membership.view(),
        handoff: Arc::clone(handoff),
        hasher,
        transport: Arc::new(endpoint.clone()),
    };
    env.tasks.spawn(Arc::clone(replica).free_flushed());
    env.tasks.spawn(replay.run());
    env.tasks.spawn(catch_up.run());
    env.tasks
        .spawn(sweep(Arc::clone(store), cut.clone(), env.clone()));
}

/// What keeps the node's replicas like those of others.
fn anti_entropy(
    settings: &Settings,
    env: &Env,
    (membership, endpoint): (&Membership, &Endpoint),
    own: &Own,
    owed: watch::Receiver<Arc<Owed>>,
) -> Arc<AntiEntropy> {
    AntiEntropy::new(anti_entropy::Parts {
        config: parts::anti_entropy_config(settings),
        self_tag: settings.node.tag(),
        env: env.clone(),
        view: membership.view(),
        replica: Arc::clone(&own.replica),
        store: Arc::clone(&own.store),
        hasher: KeyHasher::new(&settings.cluster),
        transport: Arc::new(endpoint.clone()),
        gossip: Arc::new(membership.clone()),
        owed,
        cut: own.cut.subscribe(),
    })
}

async fn open_doors(
    settings: &Settings,
    env: &Env,
    status: &NodeStatus,
    (certificates, channels): (&Arc<CertificateWatch>, Arc<Channels>),
) -> anyhow::Result<RespServer> {
    let scheduler = SchedulerWatch::start(Arc::clone(&env.clock))
        .context("cannot start the thread that watches the others")?;
    let resp_config = parts::resp_config(settings)?;
    certificates.set_resp_until(parts::resp_certificate_end(settings));
    let facts = Arc::new(Facts(status.clone()));
    let resp = RespServer::start(
        resp_config,
        env,
        status.coordinator.clone(),
        (facts, channels),
    )
    .await?;
    if resp.has_plain_password() {
        warn!("resp_password_file holds the password itself: `quorate passwd` makes a hash of it");
    }
    let doctor = Doctor {
        status: status.clone(),
        certificates: Arc::clone(certificates),
        resp: resp.clone(),
        config: Arc::new(parts::doctor_config(settings)),
        scheduler: Arc::clone(&scheduler),
    };
    let desk = AdminDesk {
        status: status.clone(),
        resp: resp.clone(),
        doctor,
    };
    let admin_socket = parts::admin_socket(settings);
    admin::serve(&admin_socket, desk.clone(), env)
        .with_context(|| format!("cannot listen on {} (admin_socket)", admin_socket.display()))?;
    status.endpoint.serve_admins(Arc::new(desk));
    if let Some(listen) = settings.http_listen {
        let metrics = Metrics {
            resp: resp.clone(),
            certificates: Arc::clone(certificates),
            scheduler,
        };
        let status = status.clone();
        http::serve(listen, http::Shown { status, metrics }, env).await?;
    }
    Ok(resp)
}

/// What the RESP door asks of the node.
#[derive(Debug)]
struct Facts(NodeStatus);

impl NodeFacts for Facts {
    fn ring_keys(&self) -> u64 {
        self.0.ring_keys()
    }

    fn local(&self) -> LocalFacts {
        let store = &self.0.store;
        LocalFacts {
            keys: store.keys(),
            tombstones: store.tombstones(),
            bytes: store.bytes(),
            uptime_s: self.0.uptime_s(),
        }
    }
}

/// Whether there is memory to copy records into: near its limit the process would be killed, start
/// again, copy again, and be killed again.
fn has_room_for_records() -> bool {
    let (Some(limit), Some(own)) = (memory_limit(), resident_bytes()) else {
        return true;
    };
    own < limit / 10 * 9
}

/// Two gossip rounds or so: what others see of this node is about as old as that.
const LOAD_INTERVAL: Duration = Duration::from_millis(500);
