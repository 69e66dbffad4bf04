//! The door for monitoring: health, metrics and the ring, over HTTP. Read-only.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::metrics::Metrics;
use crate::env::Env;
use crate::node::status::{NodeStatus, RingStatus};

/// The address cannot be used.
#[derive(Debug, Error)]
#[error(
    "cannot listen on TCP {addr} (http_listen): {cause}; stop what uses it or choose another port"
)]
pub struct HttpError {
    addr: SocketAddr,
    cause: std::io::Error,
}

/// What the door shows.
#[derive(Debug)]
pub struct Shown {
    /// The ring and the node.
    pub status: NodeStatus,
    /// The counters.
    pub metrics: Metrics,
}

/// Opens the door; it serves until the tasks of the environment end.
pub async fn serve(listen: SocketAddr, shown: Shown, env: &Env) -> Result<(), HttpError> {
    let bound = TcpListener::bind(listen).await;
    let listener = bound.map_err(|cause| HttpError {
        addr: listen,
        cause,
    })?;
    let (tasks, shown) = (env.tasks.clone(), Arc::new(shown));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    env.tasks.spawn(async move {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "cannot accept an HTTP connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // One more than there are places is closed at once: monitoring comes again.
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                continue;
            };
            let shown = Arc::clone(&shown);
            tasks.spawn(async move {
                serve_one(stream, &shown).await;
                drop(place);
            });
        }
    });
    Ok(())
}

async fn serve_one(stream: TcpStream, shown: &Shown) {
    let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(&request, shown)) });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_MAX, connection).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => debug!(%error, "HTTP connection ended"),
    }
}

fn answer(request: &Request<Incoming>, shown: &Shown) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return respond(
            StatusCode::METHOD_NOT_ALLOWED,
            TEXT,
            "this door is read-only\n".to_owned(),
        );
    }
    match request.uri().path() {
        "/healthz" => respond(StatusCode::OK, TEXT, "ok\n".to_owned()),
        "/readyz" => ready(&shown.status),
        "/metrics" => match shown.metrics.render(&shown.status) {
            Ok(text) => respond(StatusCode::OK, Metrics::CONTENT_TYPE, text),
            Err(error) => respond(
                StatusCode::INTERNAL_SERVER_ERROR,
                TEXT,
                format!("{error}\n"),
            ),
        },
        "/" => respond(StatusCode::OK, HTML, page(&shown.status.ring())),
        _ => respond(
            StatusCode::NOT_FOUND,
            TEXT,
            "there are /, /healthz, /readyz and /metrics\n".to_owned(),
        ),
    }
}

/// Ready when requests for every key can be served.
fn ready(status: &NodeStatus) -> Response<Full<Bytes>> {
    match status.readiness() {
        Ok(()) => respond(StatusCode::OK, TEXT, "ready\n".to_owned()),
        Err(why) => respond(
            StatusCode::SERVICE_UNAVAILABLE,
            TEXT,
            format!("not ready: {why}\n"),
        ),
    }
}

fn respond(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

fn page(ring: &RingStatus) -> String {
    let mut rows = String::new();
    for node in &ring.nodes {
        let class = if node.reachable { "up" } else { "down" };
        let uptime = node
            .uptime_s
            .map_or_else(|| "-".to_owned(), |s| format!("{s} s"));
        // Writing to a String cannot fail.
        let _written = write!(
            rows,
            "<tr class={class}><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{uptime}",
            escape(&node.id),
            escape(&node.zone),
            node.role,
            node.state,
            if node.reachable { "yes" } else { "no" },
            node.partitions,
            node.keys,
            node.bytes,
        );
    }
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=2>\
         <title>Quorate: {cluster}</title><style>{STYLE}</style><h1>{cluster}</h1>\
         <p>seen by {seen_by} &middot; {partitions} partitions &middot; n={n} r={r} w={w} &middot; \
         balance {balance:.2} &middot; ring {version}</p><table><tr><th>node<th>zone<th>role\
         <th>state<th>reachable<th>partitions<th>keys<th>bytes<th>uptime{rows}</table></html>\n",
        cluster = escape(&ring.cluster),
        seen_by = escape(&ring.self_id),
        partitions = ring.partitions,
        n = ring.n,
        r = ring.r,
        w = ring.w,
        balance = ring.balance,
        version = ring.ring_version,
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "body{font:15px system-ui;margin:2em}td,th{padding:.3em .8em;text-align:left;\
    border-bottom:1px solid #ddd}.down{color:#b00}";
const CONNECTIONS_MAX: usize = 64;
const HEADERS_MAX: Duration = Duration::from_secs(5);
const CONNECTION_MAX: Duration = Duration::from_secs(60);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
