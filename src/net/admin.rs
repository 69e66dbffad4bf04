//! Requests of administrators from elsewhere: a stream a request, answered whole.

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use quinn::{RecvStream, SendStream};
use thiserror::Error;
use tokio::time::timeout;
use tracing::{debug, info};

use super::credentials::TlsError;
use super::endpoint::Inner;
use super::identity::Identity;
use super::peers::CloseCode;
use super::tls::{ADMIN_ALPN, SERVER_NAME, quic_client};
use super::{Credentials, peer_identity};
use crate::model::NodeId;

/// What a node answers its administrators.
pub trait AdminService: Debug + Send + Sync + 'static {
    /// The answer to one request, both encoded.
    fn answer(self: Arc<Self>, request: Vec<u8>) -> AdminAnswer;
}

/// See [`AdminService::answer`].
pub type AdminAnswer = Pin<Box<dyn Future<Output = Vec<u8>> + Send>>;

/// Why a node could not be asked from elsewhere.
#[derive(Debug, Error)]
pub enum AdminCallError {
    /// The credentials do not make a TLS configuration.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No socket.
    #[error("cannot open a socket: {0}")]
    Socket(io::Error),
    /// Nobody answered, or not as a node of the cluster.
    #[error("cannot connect to {addr}: {reason}")]
    Connect {
        /// Where.
        addr: SocketAddr,
        /// What happened.
        reason: String,
    },
    /// The node took the connection and gave no answer.
    #[error("{node} gave no answer: {reason}")]
    NoAnswer {
        /// The node.
        node: NodeId,
        /// What happened.
        reason: String,
    },
}

/// Answers one admin until it has enough.
pub(super) async fn serve_admin(
    inner: &Arc<Inner>,
    connection: &quinn::Connection,
    identity: &Identity,
) {
    let Some(service) = inner.admin() else {
        connection.close(CloseCode::NotAdmitted.into(), b"not open for admins yet");
        return;
    };
    info!(%identity, from = %connection.remote_address(), "an admin has connected");
    let tasks = inner.env.tasks.child();
    // The transport's limit of streams bounds how many are under way.
    while let Ok(Ok((send, recv))) = timeout(SESSION_MAX, connection.accept_bi()).await {
        // For as long as it is believed: a certificate can be taken back under an open connection.
        if !inner.is_believed(connection) {
            connection.close(CloseCode::NotAdmitted.into(), b"no longer believed");
            break;
        }
        let service = Arc::clone(service);
        tasks.spawn(async move {
            if let Err(error) = answer_one(service, send, recv).await {
                debug!(%error, "an admin has gone before its answer");
            }
        });
    }
    tasks.stop();
    connection.close(CloseCode::Shutdown.into(), b"silent for too long");
}

async fn answer_one(
    service: Arc<dyn AdminService>,
    mut send: SendStream,
    mut recv: RecvStream,
) -> io::Result<()> {
    let request = timeout(REQUEST_MAX, recv.read_to_end(REQUEST_BYTES_MAX)).await?;
    let request = request.map_err(io::Error::other)?;
    let answer = service.answer(request).await;
    timeout(REQUEST_MAX, send.write_all(&answer)).await??;
    send.finish()?;
    Ok(())
}

/// Asks a node from elsewhere, as an administrator: the encoded answer.
pub async fn ask_node(
    credentials: &Credentials,
    addr: SocketAddr,
    request: &[u8],
) -> Result<Vec<u8>, AdminCallError> {
    let connect = |reason: String| AdminCallError::Connect { addr, reason };
    let own: SocketAddr = match addr {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0; 16], 0).into(),
    };
    let endpoint = quinn::Endpoint::client(own).map_err(AdminCallError::Socket)?;
    let config = quinn::ClientConfig::new(quic_client(credentials, ADMIN_ALPN)?);
    let connecting = endpoint
        .connect_with(config, addr, SERVER_NAME)
        .map_err(|error| connect(error.to_string()))?;
    let connection = timeout(CONNECT_MAX, connecting)
        .await
        .map_err(|_elapsed| connect("nobody answers there".to_owned()))?
        .map_err(|error| connect(error.to_string()))?;
    let node = peer_identity(&connection).map_err(|error| connect(error.to_string()))?;
    let node = node.name().clone();
    let answered = timeout(ANSWER_MAX, exchange(&connection, request)).await;
    // In TLS 1.3 the one who dials learns only now that it was refused.
    let answer = match answered {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(connection
            .close_reason()
            .map_or_else(|| error.to_string(), |reason| reason.to_string())),
        Err(_elapsed) => Err("time is up".to_owned()),
    };
    connection.close(CloseCode::Shutdown.into(), b"done");
    // So that the node hears of it.
    drop(timeout(GOODBYE_MAX, endpoint.wait_idle()).await);
    answer.map_err(|reason| AdminCallError::NoAnswer { node, reason })
}

async fn exchange(connection: &quinn::Connection, request: &[u8]) -> io::Result<Vec<u8>> {
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(request).await?;
    send.finish()?;
    recv.read_to_end(ANSWER_BYTES_MAX)
        .await
        .map_err(io::Error::other)
}

/// A value of the largest limit and its key.
const REQUEST_BYTES_MAX: usize = 600 * 1024 * 1024;
const ANSWER_BYTES_MAX: usize = REQUEST_BYTES_MAX;
const REQUEST_MAX: Duration = Duration::from_secs(60);
/// Long enough for `--watch`.
const SESSION_MAX: Duration = Duration::from_secs(60);
const CONNECT_MAX: Duration = Duration::from_secs(5);
const ANSWER_MAX: Duration = Duration::from_secs(30);
const GOODBYE_MAX: Duration = Duration::from_millis(200);
