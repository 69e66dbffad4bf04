//! The door for administrators: a Unix socket that takes requests one after the other.
//!
//! Each message is a length (4 bytes, little endian) and `MessagePack` with field names.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::doctor::{Doctor, DoctorReport};
use super::resp_server::{RespServer, SlowEntry};
use super::unix::bind_unix;
use crate::env::Env;
use crate::model::{NodeId, NodeTag, PartitionId, check_key};
use crate::net::{AdminAnswer, AdminService};
use crate::node::anti_entropy::RepairReport;
use crate::node::coordinator::{Action, Outcome, Request};
use crate::node::handoff::HintsReport;
use crate::node::staleness::StalenessReport;
use crate::node::status::{KeyOwners, NodeStatus, RingStatus};

/// What administrators are answered from.
#[derive(Debug, Clone)]
pub struct AdminDesk {
    /// The node.
    pub status: NodeStatus,
    /// Its Redis clients.
    pub resp: RespServer,
    /// Who looks for what is wrong.
    pub doctor: Doctor,
}

/// What an administrator can ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminRequest {
    /// The ring as the node sees it.
    RingStatus,
    /// How fresh reads are.
    RingStaleness,
    /// What is wrong.
    Doctor,
    /// Whether requests can be served now.
    Ready,
    /// Tell the other nodes that this one is about to stop, or that it is not.
    Drain {
        /// Whether it is.
        is_stopping: bool,
    },
    /// The newest requests that were slow or failed.
    Slow {
        /// How many.
        count: usize,
    },
    /// Forget those.
    SlowClear,
    /// The hints that the node holds.
    Hints,
    /// Give the hints for a node back now.
    HintsReplay {
        /// Its name, or its number if it is no longer in the ring.
        node: String,
    },
    /// Drop the hints for a node.
    HintsDrop {
        /// Its name, or its number if it is no longer in the ring.
        node: String,
    },
    /// How far the node's replicas agree with others.
    Repairs,
    /// Compare partitions with other homes now.
    RepairRun {
        /// This partition; `None`: all.
        partition: Option<u16>,
        /// With this node; `None`: with all.
        peer: Option<String>,
    },
    /// Who is home of a key.
    RingOwners {
        /// The key.
        key: String,
    },
    /// The value of a key.
    Get {
        /// The key.
        #[serde(with = "serde_bytes")]
        key: Vec<u8>,
    },
    /// Set a key.
    Set {
        /// The key.
        #[serde(with = "serde_bytes")]
        key: Vec<u8>,
        /// The value.
        #[serde(with = "serde_bytes")]
        value: Vec<u8>,
        /// When it ends, in milliseconds from now.
        ttl_ms: Option<u64>,
    },
    /// Delete a key.
    Delete {
        /// The key.
        #[serde(with = "serde_bytes")]
        key: Vec<u8>,
    },
}

/// The answer to an [`AdminRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AdminReply {
    /// To `RingStatus`.
    RingStatus(RingStatus),
    /// To `RingStaleness`.
    RingStaleness(StalenessReport),
    /// To `Doctor`.
    Doctor(DoctorReport),
    /// To `Ready`: why not, if not.
    Ready(Option<String>),
    /// To `Drain`.
    Drained,
    /// To `Slow`: the newest first.
    Slow(Vec<SlowEntry>),
    /// To `SlowClear`: how many there were.
    SlowCleared(usize),
    /// To `Hints`.
    Hints(HintsReport),
    /// To `HintsReplay` and `HintsDrop`: how many hints there were.
    HintsCount(u64),
    /// To `Repairs`.
    Repairs(RepairReport),
    /// To `RepairRun`: how many sessions there will be.
    RepairCount(usize),
    /// To `RingOwners`.
    RingOwners(KeyOwners),
    /// To `Get`.
    Value(Option<serde_bytes::ByteBuf>),
    /// To `Set`.
    Written,
    /// To `Delete`: whether there was a value.
    Deleted(bool),
    /// To what failed or cannot be understood.
    Error(String),
}

/// Opens the socket; it serves until the tasks of the environment end.
pub fn serve(path: &Path, desk: AdminDesk, env: &Env) -> io::Result<()> {
    let listener = bind_unix(path, SOCKET_MODE)?;
    let tasks = env.tasks.clone();
    env.tasks.spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let desk = desk.clone();
                    tasks.spawn(async move {
                        match timeout(SESSION_MAX, talk(stream, &desk)).await {
                            Ok(Ok(())) => {}
                            Ok(Err(error)) => debug!(%error, "admin connection lost"),
                            Err(_) => debug!("an admin connection stayed open for too long"),
                        }
                    });
                }
                Err(error) => {
                    warn!(%error, "cannot accept an admin connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    Ok(())
}

/// Asks a node, as a client does: blocking.
pub fn ask(mut stream: impl Read + Write, request: &AdminRequest) -> io::Result<AdminReply> {
    stream.write_all(&framed(encode_body(request)?)?)?;
    let mut length = [0; LENGTH_BYTES];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; checked_length(length)?];
    stream.read_exact(&mut body)?;
    decode(&body)
}

/// Asks a node through its socket, within a runtime.
pub async fn ask_async(stream: &mut UnixStream, request: &AdminRequest) -> io::Result<AdminReply> {
    stream.write_all(&framed(encode_body(request)?)?).await?;
    let mut length = [0; LENGTH_BYTES];
    stream.read_exact(&mut length).await?;
    let mut body = vec![0; checked_length(length)?];
    stream.read_exact(&mut body).await?;
    decode(&body)
}

impl AdminService for AdminDesk {
    fn answer(self: Arc<Self>, request: Vec<u8>) -> AdminAnswer {
        Box::pin(async move { answer_encoded(&request, &self).await })
    }
}

async fn answer_encoded(request: &[u8], desk: &AdminDesk) -> Vec<u8> {
    let reply = match decode(request) {
        Ok(request) => answer(request, desk).await,
        Err(error) => AdminReply::Error(format!("not an admin request: {error}")),
    };
    encode_body(&reply).unwrap_or_default()
}

/// The request as bytes, for [`crate::net::ask_node`].
pub fn encode_request(request: &AdminRequest) -> io::Result<Vec<u8>> {
    encode_body(request)
}

/// The reply that [`crate::net::ask_node`] has brought.
pub fn decode_reply(body: &[u8]) -> io::Result<AdminReply> {
    decode(body)
}

async fn talk(mut stream: UnixStream, desk: &AdminDesk) -> io::Result<()> {
    loop {
        let mut length = [0; LENGTH_BYTES];
        if stream.read_exact(&mut length).await.is_err() {
            // Its end: the client has what it wanted.
            return Ok(());
        }
        let length = u64::try_from(checked_length(length)?).unwrap_or(u64::MAX);
        let mut body = Vec::new();
        // Grows with what comes, not with what was announced.
        (&mut stream).take(length).read_to_end(&mut body).await?;
        stream
            .write_all(&framed(answer_encoded(&body, desk).await)?)
            .await?;
    }
}

async fn answer(request: AdminRequest, desk: &AdminDesk) -> AdminReply {
    let AdminDesk {
        status,
        resp,
        doctor,
    } = desk;
    let (key, action) = match request {
        AdminRequest::Doctor => return AdminReply::Doctor(doctor.examine().await),
        AdminRequest::Ready => return AdminReply::Ready(status.readiness().err()),
        AdminRequest::Drain { is_stopping } => {
            status.drain(is_stopping).await;
            return AdminReply::Drained;
        }
        AdminRequest::Slow { count } => return AdminReply::Slow(resp.slow_entries(count)),
        AdminRequest::SlowClear => return AdminReply::SlowCleared(resp.clear_slow_entries()),
        AdminRequest::RingStatus => return AdminReply::RingStatus(status.ring()),
        AdminRequest::RingStaleness => {
            let coordinator = &status.coordinator;
            let report = coordinator.staleness().report(coordinator.config().quorum);
            return AdminReply::RingStaleness(report);
        }
        AdminRequest::Hints => return AdminReply::Hints(status.hints()),
        AdminRequest::HintsReplay { node } => return on_hints(&node, status, true),
        AdminRequest::HintsDrop { node } => return on_hints(&node, status, false),
        AdminRequest::Repairs => return AdminReply::Repairs(status.repairs()),
        AdminRequest::RepairRun { partition, peer } => {
            return on_repair(partition, peer.as_deref(), status);
        }
        AdminRequest::RingOwners { key } => return AdminReply::RingOwners(status.owners(&key)),
        AdminRequest::Get { key } => (key, Action::Get),
        AdminRequest::Delete { key } => (key, Action::Delete),
        AdminRequest::Set { key, value, ttl_ms } => {
            let now = status.env.clock.wall();
            let expires_at = ttl_ms.map(|ms| now.saturating_add(Duration::from_millis(ms)));
            (
                key,
                Action::Set {
                    value: Bytes::from(value),
                    expires_at,
                },
            )
        }
    };
    if let Err(error) = check_key(&key) {
        return AdminReply::Error(error.to_string());
    }
    let request = Request {
        key: Bytes::from(key),
        action,
        level: crate::model::Level::Quorum,
        is_sloppy: true,
    };
    match status.coordinator.run(vec![request]).await.outcomes.pop() {
        Some(Outcome::Value(value)) => {
            AdminReply::Value(value.map(|value| serde_bytes::ByteBuf::from(value.to_vec())))
        }
        Some(Outcome::Deleted(existed)) => AdminReply::Deleted(existed),
        Some(Outcome::Failed(error)) => AdminReply::Error(error.to_string()),
        Some(_) | None => AdminReply::Written,
    }
}

fn on_repair(partition: Option<u16>, peer: Option<&str>, status: &NodeStatus) -> AdminReply {
    let view = status.coordinator.view();
    let partition = partition.map(PartitionId);
    let own = status.self_id.tag();
    if let Some(partition) = partition {
        let count = view.params().partitions.count();
        if u32::from(partition.0) >= count {
            let last = count - 1;
            return AdminReply::Error(format!(
                "there is no partition {partition}, the last one is {last}"
            ));
        }
        if !view.homes(partition).contains(&own) {
            return AdminReply::Error(format!(
                "{} is no home of partition {partition}: ask one of its homes",
                status.self_id
            ));
        }
    }
    let members = view.members().iter();
    let mut others = members.filter(|member| member.tag != own);
    let tag = match peer {
        None => None,
        Some(name) => match others.find(|member| *member.id.as_str() == *name) {
            Some(member) if member.reachable => Some(member.tag),
            Some(_) => return AdminReply::Error(format!("node `{name}` cannot be reached now")),
            None => {
                return AdminReply::Error(format!("there is no other node `{name}` in the ring"));
            }
        },
    };
    AdminReply::RepairCount(status.anti_entropy.want(partition, tag))
}

fn on_hints(node: &str, status: &NodeStatus, is_replay: bool) -> AdminReply {
    let hints = status.hints().homes.into_iter();
    let Some(hints) = hints.into_iter().find(|home| home.node == node) else {
        return AdminReply::Error(format!("there are no hints for `{node}` here"));
    };
    let home = node
        .parse::<NodeId>()
        .ok()
        .filter(|id| status.coordinator.view().member(id.tag()).is_some())
        .map(|id| id.tag())
        .or_else(|| u64::from_str_radix(node, 16).ok().map(NodeTag));
    match home {
        Some(home) if is_replay => {
            status.handoff.replay_now(home);
            AdminReply::HintsCount(hints.count)
        }
        Some(home) => AdminReply::HintsCount(status.handoff.drop_all(home)),
        None => AdminReply::Error(format!("there is no node `{node}`")),
    }
}

fn encode_body(message: &impl Serialize) -> io::Result<Vec<u8>> {
    rmp_serde::to_vec_named(message).map_err(io::Error::other)
}

fn framed(body: Vec<u8>) -> io::Result<Vec<u8>> {
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    Ok([&length.to_le_bytes(), &body[..]].concat())
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    rmp_serde::from_slice(body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn checked_length(length: [u8; LENGTH_BYTES]) -> io::Result<usize> {
    let bytes = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if bytes > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "an admin message is too long",
        ));
    }
    Ok(bytes)
}

const LENGTH_BYTES: usize = 4;
/// A value of the largest limit and its key.
const MESSAGE_BYTES_MAX: usize = 600 * 1024 * 1024;
/// Its user and group administer the node.
const SOCKET_MODE: u32 = 0o660;
/// Long enough for `--watch`.
const SESSION_MAX: Duration = Duration::from_secs(3_600);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
