//! How a command reaches a node: its admin socket on this machine, mutual TLS from elsewhere.

use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use crate::env::{Clock, SystemClock};
use crate::front::admin::{self, AdminReply, AdminRequest};
use crate::net::{CredentialFiles, Credentials, ask_node};

/// How to reach the node and how to print.
#[derive(Debug, Clone, Args)]
pub struct AdminArgs {
    /// The node's admin socket [default: /run/quorate/admin.sock, or else
    /// /var/lib/quorate/admin.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// A node elsewhere, by its QUIC address; takes an admin's certificate
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "socket")]
    connect: Option<String>,
    /// With --connect: the directory of ca.pem and of the admin's certificate and key
    #[arg(
        long,
        value_name = "DIR",
        default_value = "certs",
        requires = "connect"
    )]
    certs: PathBuf,
    /// With --connect: the admin's name, as in NAME.pem and NAME.key
    #[arg(
        long = "as",
        value_name = "NAME",
        default_value = "admin",
        requires = "connect"
    )]
    name: String,
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

impl AdminArgs {
    /// Asks the node. What it refuses is an error.
    pub(super) fn ask(&self, request: &AdminRequest) -> anyhow::Result<AdminReply> {
        match &self.connect {
            None => ask_socket(&self.socket(), request),
            Some(address) => checked(self.ask_elsewhere(address, request)?),
        }
    }

    /// Whether the node is on another machine.
    pub(super) const fn is_elsewhere(&self) -> bool {
        self.connect.is_some()
    }

    fn socket(&self) -> PathBuf {
        if let Some(given) = &self.socket {
            return given.clone();
        }
        let usual = SOCKETS.map(PathBuf::from);
        let there = usual.iter().find(|path| path.exists());
        there.unwrap_or(&usual[0]).clone()
    }

    fn ask_elsewhere(&self, address: &str, request: &AdminRequest) -> anyhow::Result<AdminReply> {
        let files = CredentialFiles {
            ca: self.certs.join("ca.pem"),
            cert: self.certs.join(format!("{}.pem", self.name)),
            key: self.certs.join(format!("{}.key", self.name)),
            crl: Some(self.certs.join("ca.crl")).filter(|path| path.exists()),
        };
        let credentials = Credentials::load(&files, SystemClock.wall()).context(
            "--connect takes an admin's certificate (`quorate certs issue --admin NAME`), named \
             with --certs DIR --as NAME",
        )?;
        let addr = resolve(address)?;
        let request = admin::encode_request(request)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let answer = runtime.block_on(ask_node(&credentials, addr, &request))?;
        admin::decode_reply(&answer)
            .context("the node gave an answer of another kind: it is of another version")
    }
}

/// Asks a node through its admin socket.
pub(super) fn ask_socket(socket: &Path, request: &AdminRequest) -> anyhow::Result<AdminReply> {
    let path = socket.display();
    let stream = UnixStream::connect(socket).with_context(|| {
        format!("cannot reach a node at {path}: is it running? name its socket with --socket")
    })?;
    // The doctor waits for answers of other nodes.
    let wait_max = match request {
        AdminRequest::Doctor => EXAMINATION_MAX,
        _ => ANSWER_MAX,
    };
    stream.set_read_timeout(Some(wait_max))?;
    let answer = admin::ask(&stream, request);
    let answer = answer.with_context(|| {
        format!(
            "the node at {path} does not answer: is its process stopped (SIGSTOP) or starved? \
             `systemctl status quorate`, and its log, tell"
        )
    })?;
    checked(answer)
}

fn checked(reply: AdminReply) -> anyhow::Result<AdminReply> {
    match reply {
        AdminReply::Error(message) => bail!("{message}"),
        reply => Ok(reply),
    }
}

fn resolve(address: &str) -> anyhow::Result<SocketAddr> {
    let found = address.to_socket_addrs().with_context(|| {
        format!("cannot find `{address}`: write HOST:PORT, the port of quic_listen (7479)")
    })?;
    let mut found = found.collect::<Vec<_>>();
    // Nodes listen on IPv4 more often than not.
    found.sort_by_key(SocketAddr::is_ipv6);
    let first = found.into_iter().next();
    first.with_context(|| format!("`{address}` has no address"))
}

/// Where a node that was installed as a service has it, and where one that was started by hand.
const SOCKETS: [&str; 2] = ["/run/quorate/admin.sock", "/var/lib/quorate/admin.sock"];
const ANSWER_MAX: Duration = Duration::from_secs(5);
const EXAMINATION_MAX: Duration = Duration::from_secs(30);
