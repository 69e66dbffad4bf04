//! The door for monitoring: health, metrics and the ring, over HTTP. Read-only.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
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
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::metrics::Metrics;
use super::places::{Place, Places, Source};
use crate::env::{Env, Tasks};
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
    let shown = Arc::new(shown);
    let answer: Answer = Arc::new(move |request| answer(request, &shown));
    let tasks = env.tasks.clone();
    env.tasks.spawn(accept(listener, answer, tasks));
    Ok(())
}

/// Who knows what to answer.
type Answer = Arc<dyn Fn(&Request<Incoming>) -> Response<Full<Bytes>> + Send + Sync>;

async fn accept(listener: TcpListener, answer: Answer, tasks: Tasks) {
    let places = Places::new(CONNECTIONS_MAX, CONNECTIONS_OF_SOURCE_MAX);
    loop {
        let (stream, from) = match listener.accept().await {
            Ok((stream, from)) => (stream, from.ip()),
            Err(error) => {
                warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (places, answer) = (Arc::clone(&places), Arc::clone(&answer));
        tasks.spawn(async move { serve_one(stream, from, &places, &answer).await });
    }
}

/// Until it is done, or silent while others need its place: probes must get in, whoever else has
/// connected.
async fn serve_one(stream: TcpStream, from: IpAddr, places: &Arc<Places>, answer: &Answer) {
    let lost = watch::Sender::new(false);
    let mut is_lost = lost.subscribe();
    let place = Mutex::new(places.take(Source::of(Some(from)), lost));
    let service = service_fn(|request| {
        touch(&place);
        let response = answer(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let served = async {
        tokio::select! {
            // Whoever sends a request while its place is lost is answered if both come together.
            biased;
            served = connection => served,
            _ = is_lost.wait_for(|is_lost| *is_lost) => Ok(()),
        }
    };
    match timeout(CONNECTION_MAX, served).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => debug!(%error, "HTTP connection ended"),
    }
}

fn touch(place: &Mutex<Place>) {
    // std Mutex: never held across an await.
    place.lock().unwrap_or_else(PoisonError::into_inner).touch();
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
const CONNECTIONS_MAX: usize = 128;
/// Probes, a scraper and a page or two.
const CONNECTIONS_OF_SOURCE_MAX: usize = 64;
/// Whoever connects to ask asks at once.
const HEADERS_MAX: Duration = Duration::from_secs(2);
const CONNECTION_MAX: Duration = Duration::from_secs(60);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Silent connections, however many, keep no probe out (finding 29).
    #[tokio::test]
    async fn a_probe_is_answered_under_a_flood_of_silent_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let answer: Answer = Arc::new(|_| respond(StatusCode::OK, TEXT, "ok\n".to_owned()));
        let tasks = Tasks::new();
        tasks.spawn(accept(listener, answer, tasks.clone()));
        let mut silent = Vec::new();
        for _ in 0..3 * CONNECTIONS_MAX {
            silent.push(TcpStream::connect(addr).await.unwrap());
        }
        for _ in 0..5 {
            let mut probe = TcpStream::connect(addr).await.unwrap();
            let request = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
            probe.write_all(request).await.unwrap();
            let mut response = String::new();
            probe.read_to_string(&mut response).await.unwrap();
            assert!(response.starts_with("HTTP/1.1 200 OK"), "{response}");
            silent.push(TcpStream::connect(addr).await.unwrap());
        }
        // Those that were silent for longest have lost their places.
        let mut first = silent.swap_remove(0);
        let closed = timeout(Duration::from_secs(1), first.read(&mut [0])).await;
        assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
        assert!(tasks.shutdown(Duration::from_secs(5)).await);
    }
}
