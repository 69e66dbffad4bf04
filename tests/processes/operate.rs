//! Running nodes as a service: stop, reload, watch, find out what is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use redis::Commands;

use crate::common::{
    Clients, Cluster, Mounted, PATIENCE, QUORATE, connect, eventually, faketime_library, http_get,
    quorate, signal, skipped,
};

fn root(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn nodes_are_restarted_in_turn_without_a_failed_request() {
    let mut cluster = Cluster::start(3, &[]);
    eventually("all is settled", PATIENCE, || cluster.settled());
    for node in 0..3 {
        let others = (0..3).filter(|other| *other != node);
        let others: Vec<_> = others.map(|n| cluster.nodes[n].resp.clone()).collect();
        let clients = Clients::start(&others, 50);
        // One of its own has a request under way all the time, and loses none that was answered.
        let own = Clients::start(&[cluster.nodes[node].resp.clone()], 1);
        own.go_on(100);
        clients.go_on(1_000);
        let pid = cluster.nodes[node].pid;
        signal(pid, "-TERM");
        eventually("it has ended", PATIENCE, || {
            // A zombie until its parent looks: its command line is empty then.
            fs::read_to_string(format!("/proc/{pid}/cmdline")).map_or(true, |line| line.is_empty())
        });
        if node == 0 {
            assert!(cluster.log(0).contains("stopped"), "{}", cluster.log(0));
        }
        clients.go_on(1_000);
        drop(own.finish());
        cluster.restart(node);
        eventually("it is back and has caught up", PATIENCE, || {
            cluster.settled()
        });
        clients.go_on(1_000);
        let (done, failed) = clients.finish();
        assert!(
            failed.is_empty(),
            "{} of {done} failed: {failed:#?}",
            failed.len()
        );
    }
}

/// The next message; `None`: none came in the socket's time.
fn receive(socket: &UnixDatagram) -> Option<String> {
    let mut message = [0; 4_096];
    loop {
        match socket.recv(&mut message) {
            Ok(length) => return Some(String::from_utf8_lossy(&message[..length]).into_owned()),
            // A child of another test has ended, say.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// A node alone, with a service manager that listens.
#[test]
fn a_service_manager_hears_what_the_node_does() {
    let cluster = Cluster::start(1, &[]);
    cluster.kill(0);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut node = Command::new(QUORATE)
        .args(["run", "--config"])
        .arg(&cluster.nodes[0].config)
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "2000000")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let hear = |wanted: &str| {
        let mut heard = Vec::new();
        loop {
            let message = receive(&socket);
            let message = message.unwrap_or_else(|| panic!("no {wanted} among {heard:#?}"));
            if message.lines().any(|line| line.starts_with(wanted)) {
                return message;
            }
            heard.push(message);
        }
    };
    let ready = hear("READY=1");
    assert!(ready.contains("STATUS="), "{ready}");
    // It serves by then.
    assert_eq!(connect(&cluster.nodes[0].resp).set("a", "b"), Ok(()));
    hear("WATCHDOG=1");
    hear("STATUS=ready; 1 of 1 nodes reachable, 1 keys, 0 hints");
    signal(node.id(), "-HUP");
    let reloading = hear("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    hear("READY=1");
    // A process that hangs is noticed: nothing comes any more.
    signal(node.id(), "-STOP");
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    while receive(&socket).is_some() {}
    socket
        .set_read_timeout(Some(Duration::from_millis(2_500)))
        .unwrap();
    assert!(
        receive(&socket).is_none(),
        "a stopped process feeds no watchdog"
    );
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    signal(node.id(), "-CONT");
    hear("WATCHDOG=1");
    signal(node.id(), "-TERM");
    hear("STOPPING=1");
    assert_eq!(node.wait().unwrap().code(), Some(0));
}

#[test]
fn the_doctor_names_what_is_wrong() {
    let mut cluster = Cluster::start(3, &[]);
    eventually("all is settled", PATIENCE, || cluster.settled());
    let doctor = |cluster: &Cluster, node: usize| cluster.ask(node, &["doctor"]);
    let (text, is_well) = doctor(&cluster, 0);
    assert!(is_well, "{text}");

    signal(cluster.nodes[2].pid, "-STOP");
    eventually("a stopped process is named", PATIENCE, || {
        let (text, is_well) = doctor(&cluster, 0);
        !is_well && text.contains("node-2 at") && text.contains("SIGSTOP")
    });
    signal(cluster.nodes[2].pid, "-CONT");
    eventually("it is back", PATIENCE, || doctor(&cluster, 0).1);

    // Another n: kept out of the ring, and named on both sides.
    cluster.kill(2);
    let config = cluster.nodes[2].config.clone();
    let as_it_was = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{as_it_was}n = 2\n")).unwrap();
    cluster.restart(2);
    for node in [0, 2] {
        eventually("another n is named", PATIENCE, || {
            let (text, is_well) = doctor(&cluster, node);
            !is_well
                && text.contains("kept out of the ring")
                && text.contains("n=2")
                && text.contains("give it the same n")
        });
    }
    let (status, _) = cluster.ask(0, &["ring", "status"]);
    assert!(
        status.contains("node-2 is kept out of the ring"),
        "{status}"
    );
    cluster.kill(2);
    fs::write(&config, &as_it_was).unwrap();

    // A clock a minute ahead.
    let library = faketime_library();
    if let Some(library) = &library {
        cluster.restart_with(
            2,
            &[
                ("LD_PRELOAD", library),
                ("FAKETIME", "+60s"),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ],
        );
        for node in [0, 2] {
            eventually("a wrong clock is named", PATIENCE, || {
                let (text, is_well) = doctor(&cluster, node);
                !is_well && text.contains("the clock of node-") && text.contains("timedatectl")
            });
        }
        cluster.kill(2);
    } else {
        eprintln!("left out: libfaketime is not installed");
    }
    cluster.restart(2);
    eventually("all is well again", PATIENCE, || doctor(&cluster, 0).1);

    // Nobody there at all.
    let output = quorate(&[
        "doctor",
        "--socket",
        "/nonexistent/admin.sock",
        "--config",
        config.to_str().unwrap(),
    ]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("PROBLEM node: cannot reach a node"), "{text}");
    assert_eq!(output.status.code(), Some(1));
}

/// Whether a command of the machine succeeds.
fn succeeds(command: &str, args: &[&str]) -> bool {
    let run = Command::new(command)
        .args(args)
        .stderr(Stdio::null())
        .status();
    run.is_ok_and(|status| status.success())
}

#[test]
fn a_full_disk_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().to_str().unwrap().to_owned();
    if !succeeds("mount", &["-t", "tmpfs", "-o", "size=1m", "none", &small]) {
        return skipped("a_full_disk_is_named", "no file system can be mounted here");
    }
    // Dropped after the cluster, which uses it.
    let _mounted = Mounted(dir.path().to_owned());
    let mut cluster = Cluster::start(3, &[]);
    cluster.kill(0);
    let config = cluster.nodes[0].config.clone();
    let text = fs::read_to_string(&config).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("data_dir"));
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    fs::write(&config, format!("{text}data_dir = \"{small}/data\"\n")).unwrap();
    cluster.restart(0);
    eventually("a full disk is named", 3 * PATIENCE, || {
        let (text, is_well) = cluster.ask(0, &["doctor"]);
        !is_well && text.contains("disk: only") && text.contains("make room")
    });
    cluster.kill(0);
}

#[test]
fn settings_change_under_open_connections() {
    let cluster = Cluster::start(1, &[]);
    let node = &cluster.nodes[0];
    let mut open = cluster.connect(0);
    let () = open.set("a", "b").unwrap();
    let text = fs::read_to_string(&node.config).unwrap();
    let password = node.config.with_file_name("password");
    let hash = Command::new("sh")
        .args(["-c", &format!("printf 'swordfish\\n' | {QUORATE} passwd")])
        .output()
        .unwrap();
    fs::write(&password, &hash.stdout).unwrap();
    fs::write(
        &node.config,
        format!(
            "{text}resp_password_file = \"{}\"\nlog = \"debug\"\nn = 2\nresp_level = \"one\"\n",
            password.display()
        )
        .replacen("n = 1\n", "", 1),
    )
    .unwrap();
    signal(node.pid, "-HUP");
    eventually("the password is asked for", PATIENCE, || {
        let asked: redis::RedisResult<()> = connect(&node.resp).set("probe", "c");
        asked.is_err_and(|error| {
            error.to_string().contains("NOAUTH") || error.to_string().contains("Authentication")
        })
    });
    // Whoever was in stays in, at the new level.
    let read: String = open.get("a").unwrap();
    assert_eq!(read, "b");
    let level: BTreeMap<String, String> =
        redis::cmd("QUORATE").arg("LEVEL").query(&mut open).unwrap();
    assert_eq!(level["read"], "one");
    let log_in = |password: &str| -> redis::RedisResult<()> {
        redis::cmd("AUTH")
            .arg(password)
            .query(&mut connect(&node.resp))
    };
    assert!(log_in("sailfish").is_err());
    assert_eq!(log_in("swordfish"), Ok(()));
    assert!(
        cluster
            .log(0)
            .contains("needs a restart to take effect key=\"n\""),
        "{}",
        cluster.log(0)
    );
    // A file that is wrong changes nothing.
    fs::write(&node.config, "n = \"many\"\n").unwrap();
    signal(node.pid, "-HUP");
    eventually("it is told", PATIENCE, || {
        cluster.log(0).contains("nothing was changed")
    });
    assert_eq!(log_in("swordfish"), Ok(()));
    assert_eq!(cluster.metric(0, "quorate_failed_logins_total"), Some(1));
}

#[test]
fn passwords_and_files_are_watched_and_named() {
    let cluster = Cluster::start(1, &[]);
    let node = &cluster.nodes[0];
    let password = node.config.with_file_name("password");
    let hash = Command::new("sh")
        .args(["-c", &format!("printf 'swordfish\\n' | {QUORATE} passwd")])
        .output()
        .unwrap();
    fs::write(&password, &hash.stdout).unwrap();
    let text = fs::read_to_string(&node.config).unwrap();
    let password_file = format!("resp_password_file = \"{}\"\n", password.display());
    fs::write(&node.config, text + &password_file).unwrap();
    signal(node.pid, "-HUP");
    let log_in = |password: &str| -> redis::RedisResult<()> {
        redis::cmd("AUTH")
            .arg(password)
            .query(&mut connect(&node.resp))
    };
    eventually("the password is taken", PATIENCE, || {
        log_in("swordfish").is_ok()
    });
    let mut open = connect(&node.resp);
    let () = redis::cmd("AUTH")
        .arg("swordfish")
        .query(&mut open)
        .unwrap();
    // A password as it is works, and the doctor says what is better until it is a hash.
    fs::write(&password, "swordfish\n").unwrap();
    eventually("a plain password is named", PATIENCE, || {
        cluster
            .ask(0, &["doctor"])
            .0
            .contains("holds the password itself")
    });
    assert_eq!(log_in("swordfish"), Ok(()));
    fs::write(&password, &hash.stdout).unwrap();
    eventually("it is good again", PATIENCE, || {
        !cluster
            .ask(0, &["doctor"])
            .0
            .contains("holds the password itself")
    });
    // Files that cannot be used keep SIGHUP from changing anything, and are named.
    let good = fs::read_to_string(&node.config).unwrap();
    fs::write(
        &node.config,
        format!("{good}connections_max = 7\nca_file = \"/dev/null\"\n").replacen(
            "ca_file = \"",
            "# \"",
            1,
        ),
    )
    .unwrap();
    signal(node.pid, "-HUP");
    eventually("bad files are named", PATIENCE, || {
        cluster.ask(0, &["doctor"]).0.contains("/dev/null")
    });
    let limit: Vec<String> = redis::cmd("CONFIG")
        .arg(&["GET", "maxclients"])
        .query(&mut open)
        .unwrap();
    assert_eq!(limit, ["maxclients", "10000"]);
}

#[test]
fn why_a_request_failed_can_be_found_out() {
    let cluster = Cluster::start(3, &["w=3", "request_timeout=300ms"]);
    eventually("all is settled", PATIENCE, || cluster.settled());
    cluster.kill(2);
    let mut connection = cluster.connect(0);
    let refused: redis::RedisResult<()> = connection.set("secret-key", "value");
    assert!(refused.is_err());
    let (text, _) = cluster.ask(0, &["slowlog", "--failed"]);
    assert!(
        text.contains("NOQUORUM 2 of 3") && text.contains("set"),
        "{text}"
    );
    assert!(
        !text.contains("secret-key"),
        "keys are shown on request only: {text}"
    );
    eventually("the node that is away is named", PATIENCE, || {
        let refused: redis::RedisResult<()> = connection.set("secret-key", "value");
        assert!(refused.is_err());
        cluster
            .ask(0, &["slowlog"])
            .0
            .contains("node-2 (unreachable)")
    });
    let (text, is_well) = cluster.ask(0, &["doctor"]);
    assert!(!is_well && text.contains("quorate slowlog"), "{text}");
    assert!(
        cluster
            .ask(0, &["slowlog", "--clear"])
            .0
            .contains("entries forgotten")
    );
    assert_eq!(
        cluster.ask(0, &["slowlog"]).0,
        "nothing was slow or failed\n"
    );
}

/// What `quorate_...` names a text has, without the suffixes of histograms and counters.
fn names(text: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = BTreeSet::new();
    for (start, _) in text.match_indices("quorate_") {
        let rest = text.get(start..).unwrap_or_default();
        found.insert(rest.chars().take_while(|c| is_word(*c)).collect());
    }
    found
}

/// Every series of an `OpenMetrics` text: its type and how often it is there.
fn parse_metrics(text: &str) -> BTreeMap<String, String> {
    let (mut types, mut seen, mut helped) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(
                types.insert(name.to_owned(), kind.to_owned()).is_none(),
                "twice: {line}"
            );
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.is_empty() && helped.insert(name.to_owned()), "{line}");
        } else if line == "# EOF" {
            assert!(lines.peek().is_none(), "there is something after the end");
            return types;
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(seen.insert(series.to_owned()), "twice: {line}");
            let name = series.split('{').next().unwrap();
            let base = ["_total", "_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| {
                    name.strip_suffix(suffix)
                        .filter(|base| types.contains_key(*base))
                })
                .unwrap_or(name);
            let kind = types.get(base).unwrap_or_else(|| panic!("untyped: {line}"));
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
        }
    }
    panic!("there is no end");
}

#[test]
fn metrics_are_well_formed_and_all_that_is_watched_is_there() {
    let cluster = Cluster::start(3, &[]);
    eventually("all is settled", PATIENCE, || cluster.settled());
    let mut connection = cluster.connect(0);
    let () = connection.set("a", "b").unwrap();
    let _read: String = connection.get("a").unwrap();
    let failed: redis::RedisResult<()> = redis::cmd("GET").query(&mut connection);
    assert!(failed.is_err());
    eventually("clocks are compared", PATIENCE, || {
        let page = http_get(&cluster.nodes[0].http, "/metrics").unwrap();
        page.contains("quorate_peer_clock_offset_seconds{")
    });
    let page = http_get(&cluster.nodes[0].http, "/metrics").unwrap();
    let (head, body) = page.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("application/openmetrics-text"), "{head}");
    let types = parse_metrics(body);
    let mut there: BTreeSet<String> = BTreeSet::new();
    for (name, kind) in &types {
        match kind.as_str() {
            "counter" => _ = there.insert(format!("{name}_total")),
            "histogram" => ["_bucket", "_sum", "_count"]
                .iter()
                .for_each(|suffix| _ = there.insert(format!("{name}{suffix}"))),
            _ => _ = there.insert(name.clone()),
        }
    }
    // Where a control group sets no limit there is no such metric.
    there.insert("quorate_process_memory_limit_bytes".to_owned());
    for file in ["deploy/grafana-dashboard.json", "deploy/alerts.yaml"] {
        let watched = names(&root(file));
        assert!(watched.len() > 10, "{file}");
        for name in watched {
            assert!(
                there.contains(&name),
                "{file} has {name}, which no node tells"
            );
        }
    }
    // What the README lists is there, and what is there is in the README.
    let readme = root("README.md");
    let told: BTreeSet<_> = types.keys().cloned().collect();
    for name in &told {
        assert!(
            readme.contains(name.as_str()),
            "{name} is not in the README"
        );
    }
}

#[test]
fn the_packaged_configuration_is_the_default_one() {
    let default = quorate(&["config", "default"]);
    let packaged = root("deploy/quorate.toml");
    assert_eq!(
        String::from_utf8_lossy(&default.stdout),
        packaged,
        "write it anew: quorate config default > deploy/quorate.toml"
    );
}

#[test]
fn the_log_is_an_object_a_line_if_asked_for() {
    let cluster = Cluster::start(1, &["log_format=json"]);
    let log = cluster.log(0);
    assert!(log.lines().count() > 0);
    for line in log.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(
            event["level"].is_string() && event["message"].is_string(),
            "{line}"
        );
    }
}

/// The subcommands of `quorate WORDS`, as its help lists them.
fn subcommands(words: &[&str]) -> Vec<String> {
    let help = quorate(&[words, &["--help"]].concat());
    let text = String::from_utf8(help.stdout).unwrap();
    let listed = text.split("Commands:\n").nth(1).unwrap_or_default();
    let lines = listed.lines().take_while(|line| !line.is_empty());
    // Continued descriptions are indented further.
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_subcommand_has_examples_and_corrects_slips() {
    let mut open: Vec<Vec<String>> = vec![Vec::new()];
    let mut seen = 0;
    while let Some(words) = open.pop() {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let children = subcommands(&words);
        let help = quorate(&[&words[..], &["--help"]].concat());
        let text = String::from_utf8(help.stdout).unwrap();
        if !words.is_empty() && children.is_empty() {
            assert!(
                text.contains("Example"),
                "quorate {} --help has no example",
                words.join(" ")
            );
            seen += 1;
        }
        for child in &children {
            // Two letters changed places.
            let mut slip: Vec<char> = child.chars().collect();
            let last = slip.len() - 1;
            slip.swap(last, last - 1);
            let slip: String = slip.into_iter().collect();
            if slip != *child {
                let output = quorate(&[&words[..], &[&slip]].concat());
                let error = String::from_utf8(output.stderr).unwrap();
                assert_eq!(output.status.code(), Some(2), "{slip}");
                assert!(error.contains(&format!("'{child}'")), "{slip}: {error}");
            }
            let mut deeper: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            deeper.push(child.clone());
            open.push(deeper);
        }
    }
    assert!(seen >= 20, "{seen}");
    let output = quorate(&["ring", "status", "--jsn"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(error.contains("--json"), "{error}");
}

#[test]
fn completions_and_manual_pages_are_made() {
    for shell in ["bash", "zsh", "fish"] {
        let output = quorate(&["completions", shell]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && text.contains("doctor"),
            "{shell}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let man = dir.path().join("man");
    assert!(
        quorate(&["man", "--dir", man.to_str().unwrap()])
            .status
            .success()
    );
    let page = fs::read_to_string(man.join("quorate-ring-status.1")).unwrap();
    assert!(page.contains("quorate ring status"), "{page}");
}
