//! The door for Redis clients: RESP over TCP, TLS and a Unix socket.
//!
//! A task a connection. What a client sends in one go is carried out in one go: a plan of requests
//! for the coordinator, or at once where this node is alone in its ring.
//!
//! # What a request may cost
//!
//! Time and memory grow with the bytes that a client has sent or has read, never with a number in them.
//!
//! - **A command** is held until it is complete: at most `request_bytes_max`, four values of the longest
//!   kind (see `Config::limits`), 1,048,576 words.
//! - **A plan** is carried out when it has 256 steps or replies, or 1 MiB of keys and values (`plan`). One
//!   command of many keys goes through the coordinator 1,024 keys at a time, about a kilobyte of state each.
//! - **Values read**: 1 MiB at a time, or one value; the next ones are read when the client has taken
//!   those. Nobody has to know how long they are: what does not fit is read again in its turn. Of updates
//!   whose replies may hold a value 16 are carried out together, fewer after long replies.
//! - **Replies**: 64 KiB are gathered, then sent. While a client does not read, nothing more is read from
//!   it or carried out for it; after `unread_timeout` without 64 KiB of progress it is closed. A reply of
//!   several keys that has begun and cannot be finished ends with the connection, so that no value is
//!   ever made up.
//! - **All clients that do not read**: 256 MiB; beyond that the one that has not read for longest is closed
//!   (`unread`).
//! - **A transaction** is queued as bytes: `request_bytes_max` in all. A script by its name is queued as its
//!   source and counts as that.
//! - **A turn** of one connection ends after 256 KiB sent: others come in between. A command on one node
//!   that has more than 256 keys is carried out in parts as well.
//! - **Connections that end** are closed one at a time, with the commands of others in between.
//! - **A line of `MONITOR`** has 4 KiB and one more word of at most 4 KiB.

mod clients;
mod command_info;
mod connection;
mod executor;
mod info;
mod inputs;
mod keys;
mod levels;
mod listening;
mod login;
mod output;
mod pause;
mod plan;
mod reading;
mod replies;
mod ring_wide;
mod scripts;
mod server;
mod session;
mod shapes;
mod slowlog;
mod span;
mod stats;
mod transaction;
mod unread;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustls::ServerConfig;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use self::clients::Clients;
use self::connection::Connection;
use self::inputs::Inputs;
use self::levels::Door;
pub use self::levels::LevelRules;
pub use self::login::HASHES_BYTES_MAX;
use self::login::Logins;
pub use self::login::{Password, PasswordError};
use self::output::Socket;
use self::pause::Pause;
use self::scripts::Scripts;
use self::slowlog::SlowLog;
pub use self::slowlog::{SlowEntry, SlowRules};
pub use self::stats::{BOUNDS_US, Latencies, RespStats};
pub use self::unread::UNREAD_BYTES_MAX;
use self::unread::Unread;
use super::channels::Channels;
use super::places::{Places, Source};
use super::unix::bind_unix;
use crate::env::Env;
use crate::node::coordinator::Coordinator;
use crate::resp::Limits;

/// Settings of the RESP door.
#[derive(Clone)]
pub struct Config {
    /// The TCP address to listen on; `None`: no TCP.
    pub listen: Option<SocketAddr>,
    /// The path of the Unix socket; `None`: none.
    pub socket: Option<PathBuf>,
    /// TLS for the TCP address.
    pub tls: Option<Arc<ServerConfig>>,
    /// The password that `AUTH` and `HELLO` must give; `None`: none is asked for.
    pub password: Option<Password>,
    /// Connections open at once; one more is told so and closed.
    pub connections_max: u64,
    /// How long a connection may be silent; zero: for ever.
    pub idle_max: Duration,
    /// How long a command may be unfinished.
    pub unfinished_max: Duration,
    /// How long a client may leave what waits for it unread.
    pub write_max: Duration,
    /// The longest value, in bytes.
    pub value_bytes_max: usize,
    /// What all clients together may have sent and not finished, in bytes.
    pub input_bytes_max: usize,
    /// How consistent requests are.
    pub levels: LevelRules,
    /// Which requests are noted as slow.
    pub slow: SlowRules,
}

/// Why the door cannot be opened.
#[derive(Debug, Error)]
pub enum RespServerError {
    /// The TCP address is taken or is not one of this machine.
    #[error(
        "cannot listen on TCP {addr} (resp_listen): {cause}; stop what uses it or choose another port"
    )]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The socket's path cannot be used.
    #[error("cannot listen on {} (resp_socket): {cause}", path.display())]
    Socket {
        /// The path.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// No randomness for what logins are compared with.
    #[error("no randomness from the operating system")]
    NoRandomness,
    /// An open door on the network.
    #[error(
        "resp_listen = {addr} can be reached from other machines: set resp_tls_cert and \
         resp_tls_key and a resp_password_file, or listen on 127.0.0.1"
    )]
    Unprotected {
        /// The address.
        addr: SocketAddr,
    },
}

/// What `INFO` and `DBSIZE` tell of the node as a whole; the door itself does not know.
pub trait NodeFacts: fmt::Debug + Send + Sync + 'static {
    /// Keys in the whole ring, as far as gossip knows.
    fn ring_keys(&self) -> u64;
    /// Keys, bytes of records and uptime of this node.
    fn local(&self) -> LocalFacts;
}

/// See [`NodeFacts::local`].
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalFacts {
    /// Values held.
    pub keys: u64,
    /// Values held that end some time; not counted apart yet.
    pub tombstones: u64,
    /// Bytes of records.
    pub bytes: u64,
    /// Seconds since the node started.
    pub uptime_s: u64,
}

/// The door, open until the tasks of its environment end.
#[derive(Debug, Clone)]
pub struct RespServer(Arc<Shared>);

struct Shared {
    /// Listening addresses stay as they were at the start.
    config: watch::Sender<Arc<Config>>,
    /// Whether the door is being closed.
    draining: watch::Sender<bool>,
    logins: Logins,
    slow: SlowLog,
    env: Env,
    coordinator: Coordinator,
    facts: Arc<dyn NodeFacts>,
    stats: RespStats,
    clients: Clients,
    inputs: Inputs,
    /// Of those who have not logged in.
    unauthenticated: Arc<Places>,
    /// Of those whose TLS handshake is not finished.
    handshakes: Arc<Places>,
    scripts: Scripts,
    channels: Arc<Channels>,
    unread: Arc<Unread>,
    pause: Pause,
    /// Whose turn it is to close a connection that has ended.
    closing: Semaphore,
}

impl RespServer {
    /// Opens the door.
    pub async fn start(
        config: Config,
        env: &Env,
        coordinator: Coordinator,
        (facts, channels): (Arc<dyn NodeFacts>, Arc<Channels>),
    ) -> Result<Self, RespServerError> {
        let tcp = match config.listen {
            Some(addr) if !addr.ip().is_loopback() && !config.is_protected() => {
                return Err(RespServerError::Unprotected { addr });
            }
            Some(addr) => {
                let bound = TcpListener::bind(addr).await;
                Some(bound.map_err(|cause| RespServerError::Bind { addr, cause })?)
            }
            None => None,
        };
        let unix = match &config.socket {
            Some(path) => {
                Some(
                    bind_unix(path, SOCKET_MODE).map_err(|cause| RespServerError::Socket {
                        path: path.clone(),
                        cause,
                    })?,
                )
            }
            None => None,
        };
        let shared = Arc::new(Shared {
            config: watch::Sender::new(Arc::new(config)),
            draining: watch::Sender::new(false),
            logins: Logins::new().ok_or(RespServerError::NoRandomness)?,
            slow: SlowLog::default(),
            env: env.clone(),
            coordinator,
            facts,
            stats: RespStats::default(),
            clients: Clients::default(),
            inputs: Inputs::default(),
            unauthenticated: Places::new(UNAUTHENTICATED_MAX, UNAUTHENTICATED_OF_SOURCE_MAX),
            handshakes: Places::new(UNAUTHENTICATED_MAX, UNAUTHENTICATED_OF_SOURCE_MAX),
            scripts: Scripts::default(),
            channels,
            unread: Arc::default(),
            pause: Pause::default(),
            closing: Semaphore::new(1),
        });
        if let Some(listener) = tcp {
            env.tasks.spawn(Arc::clone(&shared).accept_tcp(listener));
        }
        if let Some(listener) = unix {
            env.tasks.spawn(Arc::clone(&shared).accept_unix(listener));
        }
        Ok(Self(shared))
    }

    /// Goes on with other settings: connections that are open follow with what they ask next. The
    /// addresses stay.
    pub fn reload(&self, config: Config) -> Result<(), RespServerError> {
        if let Some(addr) = config.listen
            && !addr.ip().is_loopback()
            && !config.is_protected()
        {
            return Err(RespServerError::Unprotected { addr });
        }
        self.0.config.send_replace(Arc::new(config));
        Ok(())
    }

    /// Takes no more connections, lets those that are open finish what they have begun, and
    /// closes them; waits at most so long. Whether all were done by then.
    pub async fn drain(&self, wait_max: Duration) -> bool {
        self.0.draining.send_replace(true);
        let all_closed = async {
            while self.0.stats.connections_open.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(DRAIN_POLL).await;
            }
        };
        timeout(wait_max, all_closed).await.is_ok()
    }

    /// The newest of what was slow or failed, the newest first.
    #[must_use]
    pub fn slow_entries(&self, count: usize) -> Vec<SlowEntry> {
        self.0.slow.newest(count)
    }

    /// Forgets what was slow; how many entries there were.
    #[must_use]
    pub fn clear_slow_entries(&self) -> usize {
        self.0.slow.clear()
    }

    /// How many clients may be connected at once.
    #[must_use]
    pub fn connections_max(&self) -> u64 {
        self.0.config.borrow().connections_max
    }

    /// Whether the password is kept as it is and not as a hash.
    #[must_use]
    pub fn has_plain_password(&self) -> bool {
        let config = self.0.config.borrow();
        config.password.as_ref().is_some_and(Password::is_plain)
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> &RespStats {
        &self.0.stats
    }
}

impl Config {
    const fn is_protected(&self) -> bool {
        self.tls.is_some() && self.password.is_some()
    }

    const fn limits(&self) -> Limits {
        Limits {
            value_bytes_max: self.value_bytes_max,
            // A command with several values, MSET say, is held whole until it is complete.
            request_bytes_max: self.value_bytes_max.saturating_mul(4),
            args_max: ARGS_MAX,
        }
    }
}

impl Shared {
    fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.borrow())
    }

    /// Resolves when the door is being closed.
    async fn drained(&self) {
        let mut draining = self.draining.subscribe();
        // The sender lives as long as this.
        drop(draining.wait_for(|is_draining| *is_draining).await);
    }

    async fn accept_tcp(self: Arc<Self>, listener: TcpListener) {
        let local = listener
            .local_addr()
            .map_or_else(|_| String::new(), |a| a.to_string());
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.drained() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    on_accept_error(&error).await;
                    continue;
                }
            };
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "cannot set TCP_NODELAY");
            }
            let ends = Ends {
                peer: peer.to_string(),
                peer_ip: Some(peer.ip()),
                local: local.clone(),
                door: Door::Tcp,
            };
            match self.config().tls.clone() {
                None => self.serve(stream, ends).await,
                Some(tls) => {
                    let shared = Arc::clone(&self);
                    let tls = TlsAcceptor::from(tls);
                    self.env.tasks.spawn(async move {
                        Box::pin(shared.serve_tls(&tls, stream, ends)).await;
                    });
                }
            }
        }
    }

    async fn serve_tls(self: Arc<Self>, tls: &TlsAcceptor, stream: TcpStream, ends: Ends) {
        let lost = watch::Sender::new(false);
        let mut is_lost = lost.subscribe();
        let place = self.handshakes.take(Source::of(ends.peer_ip), lost);
        let handshake = async {
            tokio::select! {
                biased;
                _ = is_lost.wait_for(|is_lost| *is_lost) => Err(io::Error::other("too many at once")),
                accepted = tls.accept(stream) => accepted,
            }
        };
        let accepted = timeout(TLS_HANDSHAKE_MAX, handshake).await;
        drop(place);
        match accepted {
            Ok(Ok(stream)) => self.serve(stream, ends).await,
            Ok(Err(error)) => debug!(peer = ends.peer, %error, "TLS handshake failed"),
            Err(_) => debug!(peer = ends.peer, "TLS handshake took too long"),
        }
    }

    async fn accept_unix(self: Arc<Self>, listener: UnixListener) {
        let path = self
            .config()
            .socket
            .as_ref()
            .map(|path| path.display().to_string());
        let path = path.unwrap_or_default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.drained() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let stream: UnixStream = stream;
                    let ends = Ends {
                        peer: format!("{path}:0"),
                        peer_ip: None,
                        local: format!("{path}:0"),
                        door: Door::Socket,
                    };
                    self.serve(stream, ends).await;
                }
                Err(error) => on_accept_error(&error).await,
            }
        }
    }

    /// Starts a connection's task, or tells it that there are too many.
    async fn serve<S>(self: &Arc<Self>, mut stream: S, ends: Ends)
    where
        S: Socket + 'static,
    {
        let stats = &self.stats;
        stats.connections_accepted.fetch_add(1, Ordering::Relaxed);
        let connections_max = self.config.borrow().connections_max;
        if stats.connections_open.fetch_add(1, Ordering::Relaxed) >= connections_max {
            stats.connections_open.fetch_sub(1, Ordering::Relaxed);
            stats.connections_refused.fetch_add(1, Ordering::Relaxed);
            // It fits the fresh socket's buffer: this does not wait for the client.
            let told = timeout(TELL_MAX, stream.write_all(TOO_MANY)).await;
            debug!(
                peer = ends.peer,
                ?told,
                "too many connections (connections_max)"
            );
            return;
        }
        let shared = Arc::clone(self);
        self.env.tasks.spawn(async move {
            let now = shared.env.clock.wall();
            let client = shared.clients.register(ends.peer, ends.local, now);
            let open = OpenConnection {
                shared: &shared,
                client: Arc::clone(&client),
            };
            let door = (ends.door, ends.peer_ip);
            let mut connection = Connection::new(&shared, client, door, Box::new(stream));
            Box::pin(connection.run()).await;
            // Closing a socket takes longer than most commands: when thousands end at once, they are
            // closed one after the other, and the commands of others come in between. The semaphore
            // is never closed.
            let turn = shared.closing.acquire().await;
            drop(connection);
            drop(open);
            drop(turn);
        });
    }
}

/// Both ends of a connection.
struct Ends {
    peer: String,
    peer_ip: Option<IpAddr>,
    local: String,
    door: Door,
}

/// Counts a connection out again, even when its task is stopped in mid-air.
struct OpenConnection<'a> {
    shared: &'a Shared,
    client: Arc<clients::Client>,
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.shared.clients.forget(&self.client);
        self.shared.channels.forget(self.client.id);
        self.shared
            .stats
            .connections_open
            .fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RespServer")
            .field("config", &self.config())
            .finish_non_exhaustive()
    }
}

/// Shows no secret.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("listen", &self.listen)
            .field("socket", &self.socket)
            .field("tls", &self.tls.is_some())
            .field("password", &self.password.is_some())
            .finish_non_exhaustive()
    }
}

/// Out of file descriptors, most likely: they come back when connections close.
async fn on_accept_error(error: &io::Error) {
    warn!(%error, "cannot accept a connection");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

const TOO_MANY: &[u8] = b"-ERR max number of clients reached\r\n";
const TELL_MAX: Duration = Duration::from_millis(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const DRAIN_POLL: Duration = Duration::from_millis(10);
const TLS_HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Connections that have not logged in; each may hold some 32 KiB.
const UNAUTHENTICATED_MAX: usize = 2_048;
/// A large program may open all its connections at once, and all before its first login is answered.
const UNAUTHENTICATED_OF_SOURCE_MAX: usize = 1_024;
/// Whoever may write to the socket may use the cache: its user and its group.
const SOCKET_MODE: u32 = 0o660;
/// As in Redis.
const ARGS_MAX: usize = 1024 * 1024;
