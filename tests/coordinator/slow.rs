//! What takes a processor for long is not in the way of anything else.

use std::sync::mpsc;

use quorate::update::{Change, Reply};

use super::*;

fn eval(source: &str, words: &str) -> Action {
    let request = format!("EVAL \"{source}\" 1 {words}\r\n");
    Action::Update(Change::Command(Bytes::from(request)))
}

fn request(key: &'static str, action: Action) -> Request {
    Request {
        key: Bytes::from_static(key.as_bytes()),
        action,
        level: Level::Quorum,
        is_sloppy: false,
    }
}

async fn run(coordinator: &Coordinator, request: Request) -> Outcome {
    coordinator.run(vec![request]).await.outcomes.pop().unwrap()
}

/// Keeps all threads for slow work busy, until the senders are dropped.
async fn occupy(tasks: &Tasks) -> Vec<mpsc::Sender<()>> {
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    let (begun, mut has_begun) = tokio::sync::mpsc::unbounded_channel();
    let mut gates = Vec::new();
    for _ in 0..threads.max(2) {
        let (gate, until_open) = mpsc::channel::<()>();
        gates.push(gate);
        let (pool, begun) = (tasks.clone(), begun.clone());
        tasks.spawn(async move {
            let work = move || {
                let _sent = begun.send(());
                let _opened = until_open.recv();
            };
            pool.compute(work).await.unwrap();
        });
        has_begun.recv().await.unwrap();
    }
    gates
}

/// One thread runs all nodes: were the script run on it, nothing else would be done meanwhile, and it
/// would be done before the update that came after it.
#[cfg(feature = "scripts")]
#[tokio::test]
async fn a_script_of_one_key_does_not_delay_an_update_of_another() {
    let ring = Ring::new(3, 2, 2);
    let coordinator = ring.nodes[0].coordinator.clone();
    let gates = occupy(&ring.tasks).await;
    let (tell, mut told) = tokio::sync::oneshot::channel();
    let script = coordinator.clone();
    ring.tasks.spawn(async move {
        let source = "redis.call('SET', KEYS[1], 'slow') return 7";
        let _sent = tell.send(run(&script, request("key", eval(source, "key"))).await);
    });
    for _ in 0..20 {
        let incr = Action::Update(Change::Command(Bytes::from_static(b"INCR other\r\n")));
        let outcome = run(&coordinator, request("other", incr)).await;
        assert!(
            matches!(outcome, Outcome::Updated(Reply::Integer(_))),
            "{outcome:?}"
        );
        assert!(told.try_recv().is_err(), "the script ran where others wait");
    }
    drop(gates);
    let outcome = told.await.unwrap();
    assert!(
        matches!(outcome, Outcome::Updated(Reply::Integer(7))),
        "{outcome:?}"
    );
}

#[cfg(feature = "scripts")]
#[tokio::test]
async fn a_script_that_is_killed_changes_nothing_and_says_so() {
    let ring = Ring::new(3, 2, 2);
    let watchdog = ring.tasks.watchdog().clone();
    watchdog.set_script_max(Duration::from_secs(60));
    let coordinator = ring.nodes[0].coordinator.clone();
    let killed = request(
        "key",
        eval("redis.call('SET', KEYS[1], 'x') while true do end", "key"),
    );
    let running = run(&coordinator, killed);
    let killing = async {
        while !watchdog.kill() {
            tokio::task::yield_now().await;
        }
    };
    let (outcome, ()) = tokio::join!(running, killing);
    let Outcome::Updated(Reply::Error(error)) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(error.contains("killed"), "{error}");
    assert_eq!(ring.get(0).await, None);
}

/// Refused, and not queued without bound; and nothing is changed.
#[cfg(feature = "scripts")]
#[tokio::test]
async fn scripts_beyond_what_may_wait_are_refused_and_change_nothing() {
    let ring = Ring::new(1, 1, 1);
    let coordinator = ring.nodes[0].coordinator.clone();
    let gates = occupy(&ring.tasks).await;
    let (done, mut is_done) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..quorate::env::WAITING_MAX {
        let (pool, done) = (ring.tasks.clone(), done.clone());
        ring.tasks.spawn(async move {
            let _sent = done.send(pool.compute(|| ()).await);
        });
    }
    tokio::task::yield_now().await;
    let outcome = run(
        &coordinator,
        request("key", eval("redis.call('SET', KEYS[1], 'x')", "key")),
    )
    .await;
    let refused = matches!(
        outcome,
        Outcome::Failed(RequestError::Update(UpdateError::NotMade(_)))
    );
    assert!(refused, "{outcome:?}");
    drop(gates);
    for _ in 0..quorate::env::WAITING_MAX {
        is_done.recv().await.unwrap().unwrap();
    }
    assert_eq!(ring.get(0).await, None);
}

/// Their replies together are far more than a frame between nodes holds.
#[tokio::test(start_paused = true)]
async fn pipelined_updates_with_long_replies_are_all_answered() {
    let ring = Ring::new(3, 2, 2);
    // Not through the node that makes them.
    let node = (ring.first_home() + 1) % 3;
    let coordinator = ring.nodes[node].coordinator.clone();
    let long = Bytes::from(vec![b'v'; 1_000_000]);
    let action = Action::Set {
        value: long.clone(),
        expires_at: None,
    };
    assert!(matches!(
        run(&coordinator, request("key", action)).await,
        Outcome::Written
    ));
    let getex = || Action::Update(Change::Command(Bytes::from_static(b"GETEX key EX 100\r\n")));
    let requests = (0..24).map(|_| request("key", getex())).collect();
    for outcome in coordinator.run(requests).await.outcomes {
        let Outcome::Updated(Reply::Bulk(value)) = outcome else {
            panic!("{outcome:?}")
        };
        assert!(value == long);
    }
}
