//! Whole runs against a small server in this process.

use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use clap::Parser;
use serde_json::{Value, json};

use super::BenchArgs;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    bench: BenchArgs,
}

/// What a [`Server`] does wrong.
#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    /// Answers every such request with an error.
    error_each: Option<u64>,
    /// Closes the connection instead of answering every such request.
    close_each: Option<u64>,
    /// Replicas that `WAIT` reaches.
    replicas: i64,
}

/// GET, SET, DEL, WAIT and PING on a map, a thread a connection.
#[derive(Debug)]
struct Server {
    address: String,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    faults: Faults,
    map: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
    /// GET, SET and DEL requests, in order.
    log: Mutex<Vec<String>>,
    requests: AtomicU64,
}

impl Server {
    fn start(faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State {
            faults,
            ..State::default()
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, state) = (stream.unwrap(), Arc::clone(&shared));
                thread::spawn(move || state.serve(stream));
            }
        });
        Self { address, state }
    }

    fn log(&self) -> Vec<String> {
        self.state.log.lock().unwrap().clone()
    }
}

impl State {
    /// Until the client is gone; what it breaks off does not matter.
    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        stream.set_nodelay(true).ok()?;
        let mut input = BufReader::new(stream.try_clone().ok()?);
        loop {
            let words = read_request(&mut input)?;
            stream.write_all(&self.answer(&words)?).ok()?;
        }
    }

    fn answer(&self, words: &[Vec<u8>]) -> Option<Vec<u8>> {
        let name = String::from_utf8_lossy(&words[0]).into_owned();
        match name.as_str() {
            "PING" => return Some(b"+PONG\r\n".to_vec()),
            "WAIT" => return Some(format!(":{}\r\n", self.faults.replicas).into_bytes()),
            _ => {}
        }
        let nth = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        let is_due = |each: Option<u64>| each.is_some_and(|each| nth.is_multiple_of(each));
        if is_due(self.faults.close_each) {
            return None;
        }
        let entry = format!("{name} {}", words[1].escape_ascii());
        self.log.lock().unwrap().push(entry);
        if is_due(self.faults.error_each) {
            return Some(b"-NOQUORUM got 1 of 2\r\n".to_vec());
        }
        let mut map = self.map.lock().unwrap();
        Some(match name.as_str() {
            "GET" => match map.get(&words[1]) {
                Some(value) => {
                    let head = format!("${}\r\n", value.len());
                    [head.as_bytes(), value, b"\r\n"].concat()
                }
                None => b"$-1\r\n".to_vec(),
            },
            "SET" => {
                map.insert(words[1].clone(), words[2].clone());
                b"+OK\r\n".to_vec()
            }
            "DEL" => format!(":{}\r\n", u8::from(map.remove(&words[1]).is_some())).into_bytes(),
            _ => b"-ERR unknown command\r\n".to_vec(),
        })
    }
}

fn read_request(input: &mut impl BufRead) -> Option<Vec<Vec<u8>>> {
    let count = read_number(input, '*')?;
    let words = (0..count).map(|_| {
        let mut word = vec![0; read_number(input, '$')? + 2];
        input.read_exact(&mut word).ok()?;
        word.truncate(word.len() - 2);
        Some(word)
    });
    words.collect()
}

fn read_number(input: &mut impl BufRead, sign: char) -> Option<usize> {
    let mut line = String::new();
    input.read_line(&mut line).ok()?;
    line.strip_prefix(sign)?.trim_end().parse().ok()
}

fn run(arguments: &str) -> Result<Value, String> {
    let words = arguments.split_whitespace();
    let cli = Cli::try_parse_from(["bench", "--json"].into_iter().chain(words)).unwrap();
    let mut out = Vec::new();
    super::run(&cli.bench, &mut out, None).map_err(|error| format!("{error:#}"))?;
    Ok(serde_json::from_slice(&out).unwrap())
}

/// The figures of a run against one server.
fn figures(server: &Server, arguments: &str) -> Value {
    let mut report = run(&format!("--target {} {arguments}", server.address)).unwrap();
    report["targets"][0].take()
}

fn trace_file(dir: &Path, content: &str) -> String {
    let path = dir.join("trace");
    std::fs::write(&path, content).unwrap();
    path.display().to_string()
}

#[test]
fn a_mixed_load_is_counted_to_the_request() {
    let server = Server::start(Faults::default());
    for shape in [
        "",
        "--pipeline 16",
        "--threads 2 --pipeline 3 --distribution zipf",
    ] {
        let arguments = format!("--requests 2000 --keys 100 --connections 5 {shape}");
        let target = figures(&server, &arguments);
        let gets = target["get"]["count"].as_u64().unwrap();
        assert_eq!(gets + target["set"]["count"].as_u64().unwrap(), 2000);
        assert_eq!(target["hits"], gets, "all keys were written first");
        assert_eq!(target["failed"], 0);
        assert_eq!(target["unsent"], 0);
        assert!(target["throughput"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(server.state.map.lock().unwrap().len(), 100);
}

#[test]
fn reads_of_keys_never_written_miss() {
    let server = Server::start(Faults::default());
    let arguments = "--requests 100 --ratio 1:0 --no-populate --connections 2";
    let target = figures(&server, arguments);
    assert_eq!(target["misses"], 100);
    assert_eq!(target["hit_ratio"], 0.0);
}

#[test]
fn the_same_seed_asks_for_the_same() {
    let logs = [1, 1, 2].map(|seed| {
        let server = Server::start(Faults::default());
        let arguments = "--requests 200 --connections 1 --no-populate";
        figures(&server, &format!("{arguments} --seed {seed}"));
        server.log()
    });
    assert_eq!(logs[0], logs[1]);
    assert_ne!(logs[0], logs[2]);
}

#[test]
fn one_connection_replays_a_trace_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Faults::default());
    let trace = trace_file(dir.path(), "a\nb\na\n");
    let target = figures(&server, &format!("--trace {trace} --connections 1"));
    assert_eq!(server.log(), ["GET a", "SET a", "GET b", "SET b", "GET a"]);
    assert_eq!(target["hits"], 1);
    assert_eq!(target["misses"], 2);
}

#[test]
fn the_hit_ratio_of_a_trace_is_exact_at_any_concurrency() {
    let dir = tempfile::tempdir().unwrap();
    let keys: String = (0..5000_u64)
        .map(|i| format!("k{}\n", i * i % 977))
        .collect();
    let distinct = keys.lines().collect::<BTreeSet<_>>().len();
    let trace = trace_file(dir.path(), &keys);
    for shape in [
        "--connections 1 --pipeline 64",
        "--connections 7 --pipeline 5 --threads 3",
    ] {
        let server = Server::start(Faults::default());
        let target = figures(&server, &format!("--trace {trace} {shape}"));
        assert_eq!(target["misses"], distinct, "{shape}");
        assert_eq!(target["hits"], 5000 - distinct, "{shape}");
        assert_eq!(target["set"]["count"], distinct, "{shape}");
        assert_eq!(target["unsent"], 0, "{shape}");
    }
}

#[test]
fn a_csv_trace_brings_its_own_writes_deletes_and_sizes() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Faults::default());
    let rows = "0,a,1,7,1,set,0\n0,a,1,7,1,get,0\n1,a,1,0,1,delete,0\n2,a,1,9,1,get,60\n";
    let trace = trace_file(dir.path(), rows);
    let target = figures(&server, &format!("--trace {trace} --connections 1"));
    assert_eq!(server.log(), ["SET a", "GET a", "DEL a", "GET a", "SET a"]);
    assert_eq!(server.state.map.lock().unwrap()[&b"a"[..]].len(), 9);
    assert_eq!(target["del"]["count"], 1);
    assert_eq!(target["hit_ratio"], 0.5);
}

#[test]
fn a_bad_line_of_a_trace_ends_the_run_with_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Faults::default());
    let trace = trace_file(dir.path(), "a\n\n");
    let error = run(&format!("--target {} --trace {trace}", server.address)).unwrap_err();
    assert!(error.contains("line 2: key is empty"), "{error}");
}

#[test]
fn error_replies_are_counted_by_their_first_word() {
    let server = Server::start(Faults {
        error_each: Some(10),
        ..Faults::default()
    });
    let target = figures(
        &server,
        "--requests 1000 --ratio 0:1 --connections 4 --pipeline 8",
    );
    assert_eq!(target["errors"], json!({"NOQUORUM": 100}));
    assert_eq!(target["failed"], 100);
    assert_eq!(target["set"]["count"], 900);
}

#[test]
fn a_lost_connection_is_counted_and_made_again() {
    let server = Server::start(Faults {
        close_each: Some(100),
        ..Faults::default()
    });
    let target = figures(&server, "--requests 450 --ratio 0:1 --connections 1");
    assert_eq!(target["connection_errors"], json!({"closed": 4}));
    assert_eq!(target["errors"], json!({}));
    assert_eq!(target["failed"], 4);
    assert_eq!(target["set"]["count"], 446);
}

#[test]
fn writes_wait_for_replicas() {
    let server = Server::start(Faults {
        replicas: 2,
        ..Faults::default()
    });
    let arguments = "--requests 100 --ratio 1:1 --keys 10 --connections 2 --pipeline 4";
    let target = figures(&server, &format!("{arguments} --wait 2"));
    assert_eq!(target["failed"], 0);
    let target = figures(&server, &format!("{arguments} --wait 3"));
    assert_eq!(target["set"]["count"], 0);
    assert_eq!(target["errors"]["WAIT"], target["failed"]);
}

#[test]
fn a_fixed_rate_is_never_exceeded() {
    let server = Server::start(Faults::default());
    let arguments = "--rate 1000 --requests 100 --connections 4 --ratio 0:1";
    let target = figures(&server, arguments);
    assert_eq!(target["set"]["count"], 100);
    // The last one is due after 99 ms, however quick the server.
    assert!(target["elapsed_s"].as_f64().unwrap() >= 0.099);
}

#[test]
fn compared_targets_take_turns() {
    let servers = [(); 2].map(|()| Server::start(Faults::default()));
    let [a, b] = [0, 1].map(|index| servers[index].address.as_str());
    let arguments = "--requests 50 --rounds 2 --ratio 0:1 --connections 2";
    let report = run(&format!("--compare {a} {b} {arguments}")).unwrap();
    let rounds = report["rounds"].as_array().unwrap();
    let order = rounds.iter().map(|round| round["target"].as_str().unwrap());
    assert!(order.eq([a, b, a, b]));
    assert_eq!(report["targets"][1]["set"]["count"], 100);
    assert_eq!(report["ratios"][0]["ratio"], 1.0);
    assert_eq!(servers[0].log().len(), 100);
}

#[test]
fn nothing_measured_is_an_error_that_says_why() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let free = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = run(&format!("--target {free} --requests 1")).unwrap_err();
    assert!(
        error.contains(&free) && error.contains("refused"),
        "{error}"
    );

    let error = run("--target /nonexistent/socket --requests 1").unwrap_err();
    assert!(error.contains("/nonexistent/socket"), "{error}");

    let failing = Server::start(Faults {
        error_each: Some(1),
        ..Faults::default()
    });
    let error = run(&format!(
        "--target {} --keys 9 --requests 9",
        failing.address
    ))
    .unwrap_err();
    assert!(error.contains("NOQUORUM got 1 of 2"), "{error}");

    let closing = Server::start(Faults {
        close_each: Some(1),
        ..Faults::default()
    });
    let arguments = "--requests 3 --ratio 0:1 --connections 1";
    let error = run(&format!("--target {} {arguments}", closing.address)).unwrap_err();
    assert!(error.contains("closed the connection"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let empty = trace_file(dir.path(), "");
    let error = run(&format!("--target {} --trace {empty}", failing.address)).unwrap_err();
    assert!(error.contains("is the trace empty"), "{error}");
}

#[test]
fn progress_is_one_line_and_cleared_at_the_end() {
    let server = Server::start(Faults::default());
    let arguments = [
        "bench",
        "--requests=10",
        "--keys=10",
        "--target",
        &server.address,
    ];
    let cli = Cli::parse_from(arguments);
    let (mut out, mut progress) = (Vec::new(), Vec::new());
    super::run(&cli.bench, &mut out, Some(&mut progress)).unwrap();
    assert!(progress.ends_with(b"\r\x1b[K"));
    assert!(!progress.contains(&b'\n'));
    assert!(String::from_utf8(out).unwrap().contains("throughput"));
}
