//! What each room of a node is told, from the settings.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustls::ServerConfig;

use crate::config::{self, Settings};
use crate::env::Durability;
use crate::front::doctor;
use crate::front::resp_server::{self, LevelRules, Password, SlowRules};
use crate::model::Millis;
use crate::net::{self, CredentialFiles, Credentials, certificate_end, load_chain, load_key};
use crate::node::anti_entropy;
use crate::node::handoff;
use crate::node::membership::{self, Shared};
use crate::protocol::HintLimits;
use crate::ring::{RingParams, Role};

/// The files with which a node proves itself. Those that are not set are looked for where systemd
/// puts credentials (`LoadCredential=`).
pub(super) fn credential_files(settings: &Settings) -> anyhow::Result<CredentialFiles> {
    let given = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let file = |key: &str, set: &Path, name: &str| -> anyhow::Result<PathBuf> {
        if !set.as_os_str().is_empty() {
            return Ok(set.to_owned());
        }
        let given = given.as_ref().map(|dir| dir.join(name));
        let given = given.filter(|path| path.exists());
        given.with_context(|| {
            format!(
                "{key} is not set: make certificates with `quorate certs init` and `quorate certs \
                 issue --node {}`, then name the files",
                settings.node
            )
        })
    };
    let listed = given.as_ref().map(|dir| dir.join("ca.crl"));
    let listed = listed.filter(|path| path.exists());
    Ok(CredentialFiles {
        ca: file("ca_file", &settings.ca_file, "ca.pem")?,
        cert: file("cert_file", &settings.cert_file, "node.pem")?,
        key: file("key_file", &settings.key_file, "node.key")?,
        crl: settings.crl_file.clone().or(listed),
    })
}

/// Reads the files and makes sure that they are those of this node.
pub(super) fn credentials(settings: &Settings, now: Millis) -> anyhow::Result<Credentials> {
    let files = credential_files(settings)?;
    let credentials = Credentials::load(&files, now)?;
    let identity = credentials.identity();
    let (cluster, name) = (identity.cluster(), identity.name());
    ensure!(
        identity.role() == net::Role::Node,
        "{} is a certificate for a {}, a node needs one from `quorate certs issue --node {}`",
        files.cert.display(),
        identity.role(),
        settings.node
    );
    ensure!(
        cluster == settings.cluster && *name == settings.node,
        "{} is for node `{name}` of cluster `{cluster}`, the configuration is of node `{}` of \
         cluster `{}`: use the certificate of this node",
        files.cert.display(),
        settings.node,
        settings.cluster
    );
    Ok(credentials)
}

pub(super) fn membership_config(settings: &Settings, params: RingParams) -> membership::Config {
    let shown = |addr: Option<SocketAddr>| addr.map_or_else(String::new, |a| a.to_string());
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

pub(super) fn handoff_config(settings: &Settings) -> handoff::Config {
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

pub(super) fn anti_entropy_config(settings: &Settings) -> anti_entropy::Config {
    anti_entropy::Config {
        digest_interval: settings.digest_interval,
        bytes_per_s: settings.repair_bytes_per_s.0,
        tombstone_age: tombstone_age(settings),
    }
}

/// Longer than any hint is kept, whatever the clock of who keeps it.
pub(super) fn tombstone_age(settings: &Settings) -> Duration {
    settings.hint_window + 2 * settings.max_clock_drift + HINT_LATE_MAX
}

pub(super) fn resp_config(settings: &Settings) -> anyhow::Result<resp_server::Config> {
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
        write_max: settings.unread_timeout,
        value_bytes_max: usize::try_from(settings.max_value_bytes.0)?,
        input_bytes_max: usize::try_from(settings.client_input_bytes_max())?,
        slow: SlowRules {
            threshold: settings.slowlog_threshold,
            with_keys: settings.slowlog_keys,
        },
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

fn read_password(path: &Path) -> anyhow::Result<Password> {
    let place = || format!("cannot read {} (resp_password_file)", path.display());
    let text = std::fs::read_to_string(path).with_context(place)?;
    Password::parse(&text).with_context(|| format!("{} (resp_password_file)", path.display()))
}

fn resp_tls(cert: &Path, key: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let chain = load_chain(cert).context("resp_tls_cert")?;
    let key = load_key(key).context("resp_tls_key")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("resp_tls_cert and resp_tls_key do not go together")?;
    Ok(Arc::new(config))
}

/// When the certificate for Redis clients ends, where there is one.
pub(super) fn resp_certificate_end(settings: &Settings) -> Option<Millis> {
    let chain = load_chain(settings.resp_tls()?.cert).ok()?;
    certificate_end(chain.first()?)
}

pub(super) fn doctor_config(settings: &Settings) -> doctor::Config {
    let listens = [
        ("resp_listen", settings.resp_listen),
        ("http_listen", settings.http_listen),
    ];
    let listens = listens
        .into_iter()
        .filter_map(|(key, addr)| Some((key, addr.filter(|addr| addr.port() != 0)?)));
    doctor::Config {
        data_dir: settings.data_dir.clone(),
        hint_bytes_max: settings.hint_max_bytes.0,
        listens: listens.collect::<Vec<(&str, SocketAddr)>>(),
    }
}

/// What should be the same on all nodes, and is not checked when they meet.
pub(super) fn shared_settings(settings: &Settings) -> Shared {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Shared {
        r: settings.quorum().r(),
        w: settings.quorum().w(),
        hint_window_ms: ms(settings.hint_window),
        clock_drift_ms: ms(settings.max_clock_drift),
    }
}

/// The socket for the commands of an administrator.
pub(super) fn admin_socket(settings: &Settings) -> PathBuf {
    // systemd names several with colons; the first is ours.
    let given = std::env::var_os("RUNTIME_DIRECTORY");
    let given = given.and_then(|dirs| dirs.to_str()?.split(':').next().map(PathBuf::from));
    settings.admin_socket(given.as_deref())
}

/// Between a look at the age of a hint and the end of what it does.
const HINT_LATE_MAX: Duration = Duration::from_secs(60);
