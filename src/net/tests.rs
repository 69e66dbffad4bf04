//! Endpoints on loopback, with real certificates and real QUIC.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use serde_bytes::Bytes as ByteSlice;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::*;
use crate::env::{Clock, Env, MemoryDisk, SeededRng, SystemClock, Tasks};
use crate::model::{HlcTime, NodeId};
use crate::wire::{
    Answer, FrameError, FrameReader, Operation, RequestHeader, ResponseHeader, encode,
    finish_frame, start_frame,
};

/// Answers `Members` with its own name, and everything else with garbage.
#[derive(Debug)]
struct Echo(&'static str);

impl PeerService for Echo {
    fn serve(&self, frame: &Bytes, out: &mut Vec<u8>) -> Result<Option<LateResponse>, FrameError> {
        let mut operations = FrameReader::new(frame);
        let RequestHeader { id, count, .. } = operations.read()?;
        let start = start_frame(
            &ResponseHeader {
                id,
                count,
                clock: HlcTime(0),
                flushes: None,
                is_sure: true,
            },
            out,
        );
        for _ in 0..count {
            match operations.read()? {
                Operation::Members => {
                    encode(&Answer::Members(ByteSlice::new(self.0.as_bytes())), out);
                }
                _ => encode(&"garbage", out),
            }
        }
        finish_frame(start, out);
        Ok(None)
    }
}

struct Sink(oneshot::Sender<Result<Bytes, CallError>>);

impl ReplySink for Sink {
    fn on_reply(self: Box<Self>, reply: Result<Response<'_>, CallError>) -> Result<(), FrameError> {
        let reply = match reply {
            Ok(mut response) => match response.answers.read()? {
                Answer::Members(bytes) => Ok(response.frame.slice_ref(bytes)),
                other => panic!("{other:?}"),
            },
            Err(error) => Err(error),
        };
        self.0.send(reply).unwrap();
        Ok(())
    }
}

fn endpoint(authority: &CertificateAuthority, name: &'static str) -> (Endpoint, Tasks) {
    let env = Env {
        clock: Arc::new(SystemClock),
        rng: SeededRng::from_seed(7),
        tasks: Tasks::new(),
        disk: Arc::new(MemoryDisk::default()),
    };
    let id: NodeId = name.parse().unwrap();
    let identity = Identity::new(authority.cluster(), Role::Node, id).unwrap();
    let now = env.clock.wall();
    let issued = authority.issue(&identity, &[], 1, now).unwrap();
    let credentials = Credentials::from_issued(authority.cert_pem(), &issued, now).unwrap();
    let config = Config {
        listen: ([127, 0, 0, 1], 0).into(),
        value_bytes_max: 1 << 20,
    };
    let endpoint = Endpoint::bind(&config, &credentials, &env).unwrap();
    endpoint.serve(Arc::new(Echo(name)));
    (endpoint, env.tasks)
}

fn authority() -> CertificateAuthority {
    CertificateAuthority::create("blue", 10, SystemClock.wall()).unwrap()
}

fn id(name: &str) -> NodeId {
    name.parse().unwrap()
}

/// Waits until a condition holds; each look costs a turn of the runtime.
async fn eventually(what: &str, is_true: impl Fn() -> bool) {
    let wait = async {
        while !is_true() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"));
}

async fn call(from: &Endpoint, to: &str, operation: Operation<'_>) -> Result<Bytes, CallError> {
    let mut operations = Operations::default();
    operations.push(&operation);
    let (tell, told) = oneshot::channel();
    let deadline = SystemClock.monotonic() + PATIENCE;
    from.call(
        id(to).tag(),
        Lane::Foreground,
        &operations,
        deadline,
        Box::new(Sink(tell)),
    )?;
    told.await.unwrap_or(Err(CallError::ConnectionLost))
}

async fn meet(a: &Endpoint, b: &Endpoint) {
    // Both at once: one of the two connections has to go.
    a.meet(&id("b"), b.local_addr().unwrap());
    b.meet(&id("a"), a.local_addr().unwrap());
    eventually("they are connected", || {
        a.peers().borrow().contains_key(&id("b")) && b.peers().borrow().contains_key(&id("a"))
    })
    .await;
}

#[tokio::test]
async fn peers_that_dial_each_other_share_one_connection() {
    let authority = authority();
    let ((a, _a_tasks), (b, _b_tasks)) = (endpoint(&authority, "a"), endpoint(&authority, "b"));
    meet(&a, &b).await;
    for _ in 0..100 {
        let (there, back) = tokio::join!(
            call(&a, "b", Operation::Members),
            call(&b, "a", Operation::Members)
        );
        // A call may meet the moment at which one of two connections is closed.
        for (answer, name) in [(there, "b"), (back, "a")] {
            assert!(answer == Ok(Bytes::from(name)) || answer == Err(CallError::ConnectionLost));
        }
    }
    eventually("one connection is left", || {
        a.0.quic.open_connections() == 1 && b.0.quic.open_connections() == 1
    })
    .await;
    assert_eq!(
        call(&a, "b", Operation::Members).await,
        Ok(Bytes::from("b"))
    );
    assert_eq!(a.fetch_table(&id("b")).await, Ok(Bytes::from("b")));
}

#[tokio::test]
async fn a_malformed_frame_closes_the_connection_and_is_counted() {
    let authority = authority();
    let ((a, _a_tasks), (b, _b_tasks)) = (endpoint(&authority, "a"), endpoint(&authority, "b"));
    meet(&a, &b).await;
    let key = ByteSlice::new(b"key");
    // `b` answers with what is no answer: the caller learns that there is none, and says why.
    let answer = call(&a, "b", Operation::Read(key)).await;
    assert_eq!(answer, Err(CallError::ConnectionLost));
    eventually("it is counted", || {
        a.stats().malformed_frames.load(Ordering::Relaxed) > 0
    })
    .await;
    // Nobody is the worse for it: they meet again.
    meet(&a, &b).await;
    eventually("calls go on", || a.peers().borrow().contains_key(&id("b"))).await;
}

#[tokio::test]
async fn a_peer_that_ends_fails_the_calls_that_wait() {
    let authority = authority();
    let ((a, _a_tasks), (b, b_tasks)) = (endpoint(&authority, "a"), endpoint(&authority, "b"));
    meet(&a, &b).await;
    b.close().await;
    b_tasks.shutdown(PATIENCE).await;
    eventually("it is seen as gone", || {
        !a.peers().borrow().contains_key(&id("b"))
    })
    .await;
    assert_eq!(
        call(&a, "b", Operation::Members).await,
        Err(CallError::Unreachable)
    );
}

#[tokio::test]
async fn whoever_answers_under_another_name_is_not_taken() {
    let authority = authority();
    let ((a, _a_tasks), (b, _b_tasks)) = (endpoint(&authority, "a"), endpoint(&authority, "b"));
    a.meet(&id("c"), b.local_addr().unwrap());
    eventually("it is refused", || {
        a.stats().refused_connections.load(Ordering::Relaxed) > 0
    })
    .await;
    assert!(a.peers().borrow().is_empty());
}

const PATIENCE: Duration = Duration::from_secs(20);
