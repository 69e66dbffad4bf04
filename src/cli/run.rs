//! `quorate run`: one node, put together from its rooms.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::config::{self, Checked, Settings, Sources};
use crate::env::{Durability, Env, RealDisk, SeededRng, SystemClock, Tasks};
use crate::front::metrics::Metrics;
use crate::front::peer_server::{PeerServer, Served};
use crate::front::resp_server::{self, LevelRules, LocalFacts, NodeFacts, RespServer};
use crate::front::{admin, http};
use crate::model::{Epoch, Hlc, KeyHasher};
use crate::net::{self, CredentialFiles, Credentials, Endpoint};
use crate::node::anti_entropy::{self, AntiEntropy, Responder};
use crate::node::catch_up::CatchUp;
use crate::node::coordinator::{self, Coordinator, Parts};
use crate::node::handoff::replay::Replay;
use crate::node::handoff::{self, Handoff, Owed};
use crate::node::membership::{self, Membership};
use crate::node::replica::{Replica, Standing};
use crate::node::status::NodeStatus;
use crate::node::sweeper::sweep;
use crate::protocol::HintLimits;
use crate::ring::{Partitions, RingParams, Role};
use crate::store::{self, Store};

/// Arguments of `run`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quorate run --config /etc/quorate/quorate.toml\n  \
    quorate run --config quorate.toml --set log=debug\n  \
    QUORATE_NODE=node-3 quorate run --config quorate.toml"
)]
pub struct RunArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// A key to set on top of the file and the environment.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Runs a node until it is told to stop.
pub fn run(args: &RunArgs) -> anyhow::Result<()> {
    let sources = Sources::read(Some(&args.config), args.set.clone())?;
    let Checked { settings, warnings } = Settings::load(&sources)?;
    start_log(&settings.log)?;
    for warning in &warnings {
        warn!("{warning}");
    }
    runtime(settings.threads)?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let node = Node::start(&settings, &system_env(&settings)?).await?;
        tokio::select! {
            _ = terminate.recv() => info!("told to stop (SIGTERM)"),
            _ = interrupt.recv() => info!("told to stop (SIGINT)"),
        }
        node.stop(settings.shutdown_timeout).await;
        Ok(())
    })
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    env: Env,
    endpoint: Endpoint,
    membership: Membership,
    handoff: Arc<Handoff>,
}

impl Node {
    /// Starts a node in this environment.
    pub async fn start(settings: &Settings, env: &Env) -> anyhow::Result<Self> {
        let started_at = env.clock.wall();
        let credentials = credentials(settings, env)?;
        let value_bytes_max = usize::try_from(settings.max_value_bytes.0)?;
        let net_config = net::Config {
            listen: settings.quic_listen,
            value_bytes_max,
        };
        let endpoint = Endpoint::bind(&net_config, &credentials, env)?;

        let params = RingParams {
            cluster: settings.cluster.clone(),
            partitions: Partitions::new(settings.partitions)?,
            n: settings.quorum().n(),
        };
        let hasher = KeyHasher::new(&params.cluster);
        let own = Own::open(settings, env, params.partitions)?;
        let owed = watch::Sender::new(Arc::<Owed>::default());
        let membership_config = membership_config(settings, params);
        let membership =
            Membership::start(membership_config, env, Arc::new(endpoint.clone())).await?;
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
        serve_peers(settings, env, peers, &own);
        anti_entropy.start();

        let status = NodeStatus {
            self_id: settings.node.clone(),
            started_at,
            env: env.clone(),
            membership: membership.clone(),
            coordinator: coordinator.clone(),
            store: own.store,
            handoff: Arc::clone(&own.handoff),
            anti_entropy,
            hasher,
        };
        tell_load(env, status.clone(), owed);
        open_doors(settings, env, coordinator, status, (&endpoint, own.replica)).await?;
        info!(node = %settings.node, cluster = settings.cluster, "started");
        Ok(Self {
            env: env.clone(),
            endpoint,
            membership,
            handoff: own.handoff,
        })
    }

    /// Stops the node; waits at most so long for what is under way.
    pub async fn stop(self, wait_max: Duration) {
        self.membership.stop();
        if !self.env.tasks.shutdown(wait_max).await {
            warn!("stopped with tasks still under way (shutdown_timeout)");
        }
        drop(timeout(wait_max, self.handoff.flush()).await);
        // Last, so that nothing dials anew what was closed.
        self.endpoint.close().await;
    }
}

/// What a node holds.
struct Own {
    clock: Arc<Hlc>,
    store: Arc<Store>,
    replica: Arc<Replica>,
    handoff: Arc<Handoff>,
    /// The last cut that the store was brought to.
    cut: watch::Sender<Epoch>,
}

impl Own {
    /// Nothing yet, but for the hints of before.
    fn open(settings: &Settings, env: &Env, partitions: Partitions) -> anyhow::Result<Self> {
        let hasher = KeyHasher::new(&settings.cluster);
        let limits = store::Limits {
            partitions: partitions.count(),
            tombstone_age: tombstone_age(settings),
        };
        let store = Arc::new(Store::new(hasher, limits));
        let clock = Arc::new(Hlc::new(settings.max_clock_drift));
        let replica = Arc::new(Replica::new(
            Arc::clone(&store),
            Arc::clone(&clock),
            usize::try_from(settings.max_value_bytes.0)?,
            Standing::unsure(partitions),
        ));
        let handoff = Handoff::open(
            handoff_config(settings),
            &*env.disk,
            Arc::clone(&env.clock),
            Arc::clone(&replica),
        )?;
        Ok(Self {
            clock,
            store,
            replica,
            handoff,
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
    own: &Own,
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
    endpoint.serve(Arc::new(peer_server));
    let catch_up = CatchUp {
        self_tag: settings.node.tag(),
        n: settings.quorum().n(),
        env: env.clone(),
        view: membership.view(),
        replica: Arc::clone(replica),
        hasher,
        transport: Arc::new(endpoint.clone()),
    };
    let replay = Replay {
        self_tag: settings.node.tag(),
        env: env.clone(),
        view: membership.view(),
        handoff: Arc::clone(handoff),
        hasher,
        transport: Arc::new(endpoint.clone()),
    };
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
        config: anti_entropy_config(settings),
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
    coordinator: Coordinator,
    status: NodeStatus,
    (endpoint, replica): (&Endpoint, Arc<Replica>),
) -> anyhow::Result<()> {
    let resp_config = resp_config(settings)?;
    let facts = Arc::new(Facts(status.clone()));
    let resp = RespServer::start(resp_config, env, coordinator, facts).await?;
    let admin_socket = settings.admin_socket();
    admin::serve(&admin_socket, status.clone(), env)
        .with_context(|| format!("cannot listen on {} (admin_socket)", admin_socket.display()))?;
    if let Some(listen) = settings.http_listen {
        let metrics = Metrics {
            resp,
            endpoint: endpoint.clone(),
            replica,
        };
        http::serve(listen, http::Shown { status, metrics }, env).await?;
    }
    Ok(())
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

fn system_env(settings: &Settings) -> anyhow::Result<Env> {
    Ok(Env {
        clock: Arc::new(SystemClock),
        rng: SeededRng::from_system().context("no randomness from the operating system")?,
        tasks: Tasks::new(),
        disk: Arc::new(RealDisk::open(&settings.data_dir).context("data_dir")?),
    })
}

/// One thread where there is one core: a scheduler of several costs more than it gives there.
fn runtime(threads: u32) -> anyhow::Result<Runtime> {
    let threads = match usize::try_from(threads)? {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

fn start_log(filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).context("log")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init()
        .map_err(|error| anyhow::anyhow!("cannot start the log: {error}"))
}

fn credentials(settings: &Settings, env: &Env) -> anyhow::Result<Credentials> {
    for (key, path) in [
        ("ca_file", &settings.ca_file),
        ("cert_file", &settings.cert_file),
        ("key_file", &settings.key_file),
    ] {
        ensure!(
            !path.as_os_str().is_empty(),
            "{key} is not set: make certificates with `quorate certs init` and `quorate certs \
             issue --node {}`, then name the files",
            settings.node
        );
    }
    let files = CredentialFiles {
        ca: settings.ca_file.clone(),
        cert: settings.cert_file.clone(),
        key: settings.key_file.clone(),
    };
    let credentials = Credentials::load(&files, env.clock.wall())?;
    let identity = credentials.identity();
    let (cluster, name) = (identity.cluster(), identity.name());
    ensure!(
        identity.role() == net::Role::Node,
        "{} is a certificate for a {}, a node needs one from `quorate certs issue --node {}`",
        settings.cert_file.display(),
        identity.role(),
        settings.node
    );
    ensure!(
        cluster == settings.cluster && *name == settings.node,
        "{} is for node `{name}` of cluster `{cluster}`, the configuration is of node `{}` of \
         cluster `{}`: use the certificate of this node",
        settings.cert_file.display(),
        settings.node,
        settings.cluster
    );
    Ok(credentials)
}

fn membership_config(settings: &Settings, params: RingParams) -> membership::Config {
    let shown =
        |addr: Option<std::net::SocketAddr>| addr.map_or_else(String::new, |a| a.to_string());
    membership::Config {
        params,
        id: settings.node.clone(),
        role: match settings.role {
            config::Role::Member => Role::Member,
            config::Role::Proxy => Role::Proxy,
        },
        zone: settings.zone.clone(),
        weight: settings.weight,
        quic: settings.quic_advertise(),
        resp: shown(settings.resp_listen),
        http: shown(settings.http_listen),
        seeds: settings.seeds.iter().map(ToString::to_string).collect(),
        gossip_interval: settings.gossip_interval,
    }
}

fn handoff_config(settings: &Settings) -> handoff::Config {
    handoff::Config {
        limits: HintLimits {
            bytes_max: settings.hint_max_bytes.0,
            window: settings.hint_window,
        },
        durability: match settings.hint_sync {
            config::HintSync::Always => Durability::Synced,
            config::HintSync::Interval => Durability::Written,
        },
        replay_bytes_per_s: settings.hint_replay_bytes_per_s.0,
    }
}

fn anti_entropy_config(settings: &Settings) -> anti_entropy::Config {
    anti_entropy::Config {
        digest_interval: settings.digest_interval,
        bytes_per_s: settings.repair_bytes_per_s.0,
        tombstone_age: tombstone_age(settings),
    }
}

/// Longer than any hint is kept, whatever the clock of who keeps it.
fn tombstone_age(settings: &Settings) -> Duration {
    settings.hint_window + 2 * settings.max_clock_drift + HINT_LATE_MAX
}

fn resp_config(settings: &Settings) -> anyhow::Result<resp_server::Config> {
    let password = settings
        .resp_password_file
        .as_deref()
        .map(read_password)
        .transpose()?;
    Ok(resp_server::Config {
        listen: settings.resp_listen,
        socket: settings.resp_socket.clone(),
        tls: settings
            .resp_tls()
            .map(|files| resp_tls(files.cert, files.key))
            .transpose()?,
        password,
        connections_max: u64::from(settings.connections_max),
        idle_max: settings.client_timeout().unwrap_or_default(),
        unfinished_max: settings.unfinished_timeout,
        value_bytes_max: usize::try_from(settings.max_value_bytes.0)?,
        levels: LevelRules {
            tcp: settings.resp_level,
            socket: settings.resp_socket_level,
            keyspaces: settings
                .keyspace_levels
                .iter()
                .map(|keyspace| (keyspace.prefix.clone().into_bytes(), keyspace.levels))
                .collect(),
            sloppy: settings.sloppy,
            sloppy_keyspaces: settings
                .keyspace_sloppy
                .iter()
                .map(|keyspace| (keyspace.prefix.clone().into_bytes(), keyspace.is_sloppy))
                .collect(),
        },
    })
}

fn read_password(path: &Path) -> anyhow::Result<String> {
    let place = || format!("cannot read {} (resp_password_file)", path.display());
    let text = std::fs::read_to_string(path).with_context(place)?;
    let password = text.trim_end_matches(['\r', '\n']);
    ensure!(
        !password.is_empty(),
        "{} (resp_password_file) holds no password",
        path.display()
    );
    Ok(password.to_owned())
}

fn resp_tls(cert: &Path, key: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .with_context(|| format!("cannot read {} (resp_tls_cert)", cert.display()))?;
    let key = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("cannot read {} (resp_tls_key)", key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("resp_tls_cert and resp_tls_key do not go together")?;
    Ok(Arc::new(config))
}

/// Between a look at the age of a hint and the end of what it does.
const HINT_LATE_MAX: Duration = Duration::from_secs(60);
/// Two gossip rounds or so: what others see of this node is about as old as that.
const LOAD_INTERVAL: Duration = Duration::from_millis(500);
