//! A connection to a server: opening it, its bytes, and why it ends.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::args::Target;
use super::plan::Password;
use super::scanner::Malformed;

/// Why there is no connection, or no longer.
#[derive(Debug, Error)]
pub(super) enum Loss {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the server closed the connection")]
    Closed,
    #[error("no answer for {} s", .0.as_secs())]
    Silent(Duration),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the server asks for a password; set {PASSWORD_VARIABLE}")]
    PasswordNeeded,
    #[error("the server refused the password of {PASSWORD_VARIABLE}: {0}")]
    PasswordRefused(String),
}

impl Loss {
    /// A short stable name to count it under.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Io(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => "refused",
                io::ErrorKind::ConnectionReset => "reset",
                io::ErrorKind::BrokenPipe => "closed",
                io::ErrorKind::NotFound => "not_found",
                _ => "io",
            },
            Self::Closed => "closed",
            Self::Silent(_) => "timeout",
            Self::Malformed(_) => "protocol",
            Self::PasswordNeeded | Self::PasswordRefused(_) => "password",
        }
    }
}

/// An open connection.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Connects and gives the password, if there is one.
    pub(super) async fn open(target: &Target, password: Option<&Password>) -> Result<Self, Loss> {
        let opened = async {
            let mut socket = Self::connect(target).await?;
            if let Some(Password(password)) = password {
                let reply = socket.ask(&[b"AUTH", password.as_bytes()]).await?;
                if let Some(problem) = reply.strip_prefix('-') {
                    return Err(Loss::PasswordRefused(problem.to_owned()));
                }
            }
            Ok(socket)
        };
        in_time(opened).await
    }

    /// Whether a server of ours or Redis's kind is there and lets us in.
    pub(super) async fn probe(target: &Target, password: Option<&Password>) -> Result<(), Loss> {
        let mut socket = Self::open(target, password).await?;
        let reply = in_time(socket.ask(&[b"PING"])).await?;
        if reply.starts_with("-NOAUTH") {
            return Err(Loss::PasswordNeeded);
        }
        // An error is an answer too: whether requests succeed is for the run to find out.
        if reply.starts_with(['+', '-']) {
            Ok(())
        } else {
            Err(Malformed.into())
        }
    }

    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }

    pub(super) fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    async fn connect(target: &Target) -> Result<Self, Loss> {
        match target {
            Target::Tcp(address) => {
                let stream = TcpStream::connect(address.as_str()).await?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            Target::Unix(path) => Ok(Self::Unix(UnixStream::connect(path).await?)),
        }
    }

    /// Sends one command and reads its reply, which has to be one line.
    async fn ask(&mut self, words: &[&[u8]]) -> Result<String, Loss> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        }
        match self {
            Self::Tcp(stream) => ask(stream, &request).await,
            Self::Unix(stream) => ask(stream, &request).await,
        }
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, Loss>>) -> Result<T, Loss> {
    let late = |_elapsed| Err(Loss::Silent(OPEN_MAX));
    timeout(OPEN_MAX, answer).await.unwrap_or_else(late)
}

async fn ask(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &[u8],
) -> Result<String, Loss> {
    stream.write_all(request).await?;
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        if line.len() > LINE_BYTES_MAX {
            return Err(Malformed.into());
        }
        match stream.read_u8().await {
            Ok(byte) => line.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Loss::Closed),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(String::from_utf8_lossy(line.trim_ascii_end()).into_owned())
}

/// Where the password comes from: arguments show in process lists.
pub(super) const PASSWORD_VARIABLE: &str = "QUORATE_BENCH_PASSWORD";

/// A server from which nothing comes for this long, while it owes a reply, counts as gone. Well
/// above the timeouts of servers, so that their own errors are seen.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(10);

/// A live server accepts in milliseconds; one lost SYN costs a second, two cost three.
const OPEN_MAX: Duration = Duration::from_secs(4);

const LINE_BYTES_MAX: usize = 4096;
