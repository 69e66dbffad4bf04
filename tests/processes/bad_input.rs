//! What comes from outside and is wrong: each gets a clear answer, and nobody else notices.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::common::{Cluster, PATIENCE, QUORATE, certificates, eventually, quorate};
use redis::Commands;

/// What a node answers to these bytes, until it closes or says nothing more.
fn talk(addr: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).unwrap();
    // A node that closes early may refuse the rest: what it said before counts.
    drop(stream.write_all(bytes));
    drop(stream.write_all(b"\r\n*1\r\n$4\r\nQUIT\r\n"));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    answer
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn broken_resp_is_told_and_closed_and_nobody_else_notices() {
    let cluster = Cluster::start(1, &["max_value_bytes=1MiB"]);
    let addr = &cluster.nodes[0].resp;
    let mut other = cluster.connect(0);
    for (bytes, expected) in [
        (
            &b"*2147483647\r\n"[..],
            "-ERR Protocol error: invalid multibulk length\r\n",
        ),
        (
            b"*1\r\n$629145600\r\n",
            "-ERR Protocol error: invalid bulk length\r\n",
        ),
        (
            b"*1\r\n$-5\r\n",
            "-ERR Protocol error: invalid bulk length\r\n",
        ),
        (
            b"*1\r\nPING\r\n",
            "-ERR Protocol error: expected '$', got 'P'\r\n",
        ),
        (
            b"SET \"a\r\n",
            "-ERR Protocol error: unbalanced quotes in request\r\n",
        ),
    ] {
        assert_eq!(
            text(&talk(addr, bytes)),
            expected,
            "{}",
            bytes.escape_ascii()
        );
        let () = other.set("k", "v").unwrap();
    }
    for (bytes, expected) in [
        (
            &b"PING\r\nNOSUCH a\r\nPING\r\n"[..],
            "+PONG\r\n-ERR unknown command 'NOSUCH', with args \
            beginning with: 'a' \r\n+PONG\r\n",
        ),
        (
            b"GET\r\n",
            "-ERR wrong number of arguments for 'get' command\r\n",
        ),
        (
            b"CLIENT NOSUCH\r\n",
            "-ERR unknown subcommand 'NOSUCH'. Try CLIENT HELP.\r\n",
        ),
        (
            b"GET \"\"\r\n",
            "-ERR key is empty, a key has 1 to 65536 bytes\r\n",
        ),
        (
            b"MSETNX a 1 b 2\r\n",
            "-ERR MSETNX is not for Quorate: several keys cannot be written at once, all or none: \
            use one key, or SETNX for each\r\n",
        ),
        (b"*-1\r\nPING\r\n", "+PONG\r\n"),
    ] {
        let answer = text(&talk(addr, bytes));
        assert_eq!(
            answer,
            format!("{expected}+OK\r\n"),
            "{}",
            bytes.escape_ascii()
        );
    }
}

#[test]
fn limits_are_told_and_the_connection_lives_on() {
    let cluster = Cluster::start(3, &["max_value_bytes=1MiB"]);
    let mut connection = cluster.connect(1);
    let () = connection.set("large", vec![7u8; 1 << 20]).unwrap();
    let back: Vec<u8> = cluster.connect(2).get("large").unwrap();
    assert_eq!(back.len(), 1 << 20);
    let error = connection
        .set::<_, _, ()>("large", vec![7u8; (1 << 20) + 1])
        .unwrap_err();
    assert!(error.to_string().contains("1048577 bytes"), "{error}");
    assert!(error.to_string().contains("max_value_bytes"), "{error}");
    let error = connection
        .set::<_, _, ()>(vec![b'k'; 65_537], "v")
        .unwrap_err();
    assert!(error.to_string().contains("65537"), "{error}");
    let () = connection.set(vec![b'k'; 65_536], "v").unwrap();
    // NUL and bytes that are no UTF-8 are legal in keys.
    let odd = [0u8, 0xff, b'\r', b'\n', 0xc3];
    let () = connection.set(&odd, &odd).unwrap();
    let back: Vec<u8> = cluster.connect(0).get(&odd).unwrap();
    assert_eq!(back, odd);
}

#[test]
fn an_unfinished_command_is_not_waited_for_without_end() {
    let cluster = Cluster::start(1, &["unfinished_timeout=200ms"]);
    let mut stream = TcpStream::connect(&cluster.nodes[0].resp).unwrap();
    stream.write_all(b"*2\r\n$3\r\nGET\r\n$5\r\nab").unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0, "closed by the node");
}

/// Clients that do not know the password (findings 14 and 25), and what names may hold (finding 29).
#[test]
fn who_has_not_logged_in_holds_little_and_keeps_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    let hash = Command::new("sh")
        .args(["-c", &format!("printf 'swordfish\\n' | {QUORATE} passwd")])
        .output()
        .unwrap();
    std::fs::write(&password, &hash.stdout).unwrap();
    let file = format!("resp_password_file={}", password.display());
    let cluster = Cluster::start(1, &["unfinished_timeout=500ms", &file]);
    let addr = &cluster.nodes[0].resp;
    for (bytes, expected) in [
        (
            &b"*11\r\n"[..],
            "-ERR Protocol error: unauthenticated multibulk length\r\n",
        ),
        (
            b"*2\r\n$3\r\nSET\r\n$16385\r\n",
            "-ERR Protocol error: unauthenticated bulk length\r\n",
        ),
        (
            b"AUTH swordfish\r\nRESET\r\n*11\r\n",
            "+OK\r\n+RESET\r\n-ERR Protocol error: unauthenticated multibulk length\r\n",
        ),
        (
            b"HELLO 3 SETNAME \"a\\nid=1\" AUTH default swordfish\r\n",
            "-ERR Client names cannot contain spaces, newlines or special characters.\r\n+OK\r\n",
        ),
        (
            b"AUTH swordfish\r\nCLIENT SETINFO lib-name \"a b\"\r\nCLIENT SETINFO LIB-VER 1.0\r\n",
            "+OK\r\n-ERR lib-name cannot contain spaces, newlines or special characters.\r\n+OK\r\n+OK\r\n",
        ),
    ] {
        assert_eq!(
            text(&talk(addr, bytes)),
            expected,
            "{}",
            bytes.escape_ascii()
        );
    }
    // With the password, all limits are those of the settings, in the same stretch of input.
    let many = [
        b"AUTH swordfish\r\n*41\r\n$4\r\nMSET\r\n".to_vec(),
        [&b"$20000\r\n"[..], &[b'k'; 20_000], b"\r\n"]
            .concat()
            .repeat(40),
    ];
    assert_eq!(text(&talk(addr, &many.concat())), "+OK\r\n+OK\r\n+OK\r\n");
    // A byte now and then does not keep an unfinished request.
    let mut slow = TcpStream::connect(addr).unwrap();
    slow.write_all(b"*2\r\n$4\r\nAUTH\r\n$9\r\n").unwrap();
    slow.set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let mut bytes = 0;
    let is_open = |slow: &mut TcpStream| match slow.read(&mut [0; 16]) {
        Ok(read) => read > 0,
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    };
    while is_open(&mut slow) && bytes < 100 {
        bytes += 1;
        drop(slow.write_all(b"x"));
    }
    assert!(bytes < 100, "it is open after {bytes} bytes");
}

#[test]
fn one_connection_too_many_is_told_so() {
    let cluster = Cluster::start(1, &["connections_max=50"]);
    let addr = &cluster.nodes[0].resp;
    let mut first = cluster.connect(0);
    let crowd: Vec<_> = (0..49).map(|_| TcpStream::connect(addr).unwrap()).collect();
    eventually("the crowd is in", PATIENCE, || {
        let info: String = redis::cmd("INFO").arg("clients").query(&mut first).unwrap();
        info.contains("connected_clients:50")
    });
    assert_eq!(
        text(&talk(addr, b"")),
        "-ERR max number of clients reached\r\n"
    );
    let () = first.set("k", "v").unwrap();
    drop(crowd);
    eventually("there is room again", PATIENCE, || {
        text(&talk(addr, b"PING\r\n")).starts_with("+PONG")
    });
}

/// A node by hand: `run` with certificates from `certs` and these settings.
fn run_node(certs: &std::path::Path, name: &str, settings: &[String]) -> Command {
    let mut command = Command::new(QUORATE);
    let config = certs.join(format!("{name}.toml"));
    std::fs::write(&config, "").unwrap();
    command.args(["run", "--config"]).arg(config);
    let file = |name: String| certs.join(name).display().to_string();
    let mut all = vec![
        format!("ca_file={}", file("ca.pem".to_owned())),
        format!("cert_file={}", file(format!("{name}.pem"))),
        format!("key_file={}", file(format!("{name}.key"))),
        format!("data_dir={}", file(format!("{name}-data"))),
        "resp_listen=".to_owned(),
        "http_listen=".to_owned(),
    ];
    all.extend_from_slice(settings);
    all.iter()
        .for_each(|setting| _ = command.args(["--set", setting]));
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn fails(command: &mut Command, says: &[&str]) {
    let Output { status, stderr, .. } = command.output().unwrap();
    let stderr = text(&stderr);
    assert_eq!(status.code(), Some(1), "{stderr}");
    says.iter()
        .for_each(|says| assert!(stderr.contains(says), "`{says}` in: {stderr}"));
}

fn set(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect()
}

#[test]
fn a_node_that_cannot_start_says_why() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path(), "blue", &["a"]);
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken_at = taken.local_addr().unwrap().to_string();
    let common = [
        ("cluster", "blue"),
        ("node", "a"),
        ("quic_listen", "127.0.0.1:0"),
    ];
    let with = |more: (&'static str, String)| {
        let mut all = set(&common);
        all.push(format!("{}={}", more.0, more.1));
        run_node(dir.path(), "a", &all)
    };
    fails(
        &mut with(("quic_listen", taken_at.clone())),
        &[&taken_at, "quic_listen"],
    );
    fails(
        &mut with(("data_dir", "/proc/nowhere".to_owned())),
        &["/proc/nowhere"],
    );
    fails(
        &mut with(("resp_listen", "0.0.0.0:7379".to_owned())),
        &["resp_listen", "password"],
    );
    fails(
        &mut with(("cluster", "green".to_owned())),
        &["blue", "green"],
    );
    fails(&mut with(("node", "b".to_owned())), &["`a`", "`b`"]);
    fails(&mut with(("n", "0".to_owned())), &["n"]);
    fails(&mut with(("r", "4".to_owned())), &["r", "n"]);
    let issued = quorate(&[
        "certs",
        "issue",
        "--dir",
        dir.path().to_str().unwrap(),
        "--client",
        "c",
    ]);
    assert!(issued.status.success());
    let mut as_client = set(&common);
    as_client[1] = "node=c".to_owned();
    fails(&mut run_node(dir.path(), "c", &as_client), &["client"]);
}

#[test]
fn a_data_directory_of_another_cluster_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (blue, green) = (dir.path().join("blue"), dir.path().join("green"));
    certificates(&blue, "blue", &["a"]);
    certificates(&green, "green", &["a"]);
    let data = dir.path().join("data").display().to_string();
    let settings = |cluster| {
        let pairs = [
            ("cluster", cluster),
            ("node", "a"),
            ("quic_listen", "127.0.0.1:0"),
            ("data_dir", &data),
        ];
        set(&pairs)
    };
    let mut child = run_node(&blue, "a", &settings("blue")).spawn().unwrap();
    eventually("it is in its ring", PATIENCE, || {
        dir.path().join("data/members").exists()
    });
    crate::common::signal(child.id(), "-TERM");
    assert!(child.wait().unwrap().success());
    fails(
        &mut run_node(&green, "a", &settings("green")),
        &["blue", "green", "data_dir"],
    );
}

#[test]
fn strangers_do_not_enter_the_ring() {
    let cluster = Cluster::start(1, &[]);
    let quic = cluster.ring_status(0)["nodes"][0]["quic"]
        .as_str()
        .unwrap()
        .to_owned();
    let dir = tempfile::tempdir().unwrap();
    // Another authority, even for a cluster of the same name.
    certificates(dir.path(), "dev", &["stranger"]);
    let settings = set(&[
        ("cluster", "dev"),
        ("node", "stranger"),
        ("n", "1"),
        ("quic_listen", "127.0.0.1:0"),
        ("quic_advertise", "127.0.0.1:9"),
        ("seeds", &format!("[\"{quic}\"]")),
    ]);
    let mut stranger = run_node(dir.path(), "stranger", &settings).spawn().unwrap();
    let refused = || {
        let metrics = http_get(&cluster.nodes[0].http, "/metrics");
        let line = metrics
            .lines()
            .find(|line| line.starts_with("quorate_peer_connections_refused_total"));
        line.and_then(|line| line.split(' ').next_back()?.parse::<u64>().ok())
            .unwrap_or(0)
    };
    eventually("it was refused a few times", PATIENCE, || refused() >= 3);
    let nodes = cluster.ring_status(0)["nodes"].as_array().unwrap().len();
    assert_eq!(nodes, 1);
    crate::common::signal(stranger.id(), "-KILL");
    stranger.wait().unwrap();
}

fn http_get(addr: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn monitoring_sees_health_readiness_and_metrics() {
    let cluster = Cluster::start(1, &[]);
    let () = cluster.connect(0).set("k", "v").unwrap();
    let http = &cluster.nodes[0].http;
    assert!(http_get(http, "/healthz").starts_with("HTTP/1.1 200"));
    assert!(http_get(http, "/readyz").starts_with("HTTP/1.1 200"));
    assert!(http_get(http, "/nowhere").starts_with("HTTP/1.1 404"));
    assert!(http_get(http, "/").contains("node-0"));
    let metrics = http_get(http, "/metrics");
    for line in [
        "quorate_requests_total{command=\"set\",outcome=\"ok\"} 1",
        "quorate_store_keys 1",
        "# TYPE quorate_request_seconds histogram",
    ] {
        assert!(metrics.contains(line), "`{line}` in:\n{metrics}");
    }
}
