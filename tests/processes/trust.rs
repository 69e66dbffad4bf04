//! Certificates that change, end and are taken back while nodes serve.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::{Clients, Cluster, PATIENCE, QUORATE, eventually, quorate, signal};

fn issue(cluster: &Cluster, authority: &Path, node: usize) {
    let (authority, certs) = (authority.to_str().unwrap(), cluster.certs());
    let name = format!("node-{node}");
    let issued = quorate(&[
        "certs",
        "issue",
        "--force",
        "--node",
        &name,
        "--dir",
        authority,
        "--out",
        certs.to_str().unwrap(),
    ]);
    assert!(issued.status.success(), "{issued:?}");
}

fn reload(cluster: &Cluster) {
    cluster
        .nodes
        .iter()
        .for_each(|node| signal(node.pid, "-HUP"));
}

/// How often each node has taken new certificates.
fn reloads(cluster: &Cluster) -> Vec<u64> {
    let name = "quorate_certificate_reloads_total";
    (0..3)
        .map(|node| cluster.metric(node, name).unwrap_or(0))
        .collect()
}

fn addresses(cluster: &Cluster, nodes: &[usize]) -> Vec<String> {
    nodes
        .iter()
        .map(|&n| cluster.nodes[n].resp.clone())
        .collect()
}

#[test]
fn certificates_and_authorities_change_without_a_failed_request() {
    let cluster = Cluster::start(3, &[]);
    eventually("all is settled", PATIENCE, || cluster.settled());
    let clients = Clients::start(&addresses(&cluster, &[0, 1, 2]), 50);
    clients.go_on(2_000);
    let certs = cluster.certs();

    // New certificates, taken because the files have changed.
    (0..3).for_each(|node| issue(&cluster, &certs, node));
    eventually("the files are taken", PATIENCE, || {
        reloads(&cluster) == [1; 3]
    });
    clients.go_on(2_000);

    // Another authority, in three steps, by SIGHUP.
    let other = tempfile::tempdir().unwrap();
    let dir = other.path().to_str().unwrap();
    assert!(
        quorate(&["certs", "init", "--cluster", "dev", "--dir", dir])
            .status
            .success()
    );
    let (old, new) = (
        fs::read_to_string(certs.join("ca.pem")).unwrap(),
        fs::read_to_string(other.path().join("ca.pem")).unwrap(),
    );
    fs::write(certs.join("ca.pem"), format!("{old}{new}")).unwrap();
    reload(&cluster);
    eventually("both are trusted", PATIENCE, || reloads(&cluster) == [2; 3]);
    clients.go_on(2_000);
    (0..3).for_each(|node| issue(&cluster, other.path(), node));
    reload(&cluster);
    eventually("all show new ones", PATIENCE, || {
        reloads(&cluster).iter().all(|count| *count >= 3)
    });
    // Connections that were made with the old ones are made anew, and the old ones closed later.
    let outdated = |node| cluster.metric(node, "quorate_peer_connections_outdated");
    eventually("no connection is left over", PATIENCE, || {
        (0..3).all(|node| outdated(node) == Some(0))
    });
    clients.go_on(2_000);
    fs::write(certs.join("ca.pem"), new).unwrap();
    reload(&cluster);
    let before = reloads(&cluster);
    eventually("the old one is not trusted", PATIENCE, || {
        reloads(&cluster)
            .iter()
            .zip(&before)
            .all(|(now, before)| now > before || *now >= 4)
    });
    clients.go_on(2_000);
    let (done, failed) = clients.finish();
    assert!(
        failed.is_empty(),
        "{} of {done} failed: {failed:#?}",
        failed.len()
    );
    assert!(!cluster.log(0).contains("no longer believed"));
    for node in 0..3 {
        assert_eq!(cluster.reachable(node), [true; 3], "node {node}");
    }
}

#[test]
fn who_was_taken_back_is_cut_off_and_who_is_broken_keeps_the_old() {
    let cluster = Cluster::start(3, &[]);
    eventually("all is settled", PATIENCE, || cluster.settled());
    let certs = cluster.certs();
    // Files that cannot be used change nothing, and are told.
    let key = fs::read(certs.join("node-1.key")).unwrap();
    fs::write(certs.join("node-1.key"), "no key").unwrap();
    eventually("it is told", PATIENCE, || {
        cluster.ask(1, &["doctor"]).0.contains("cannot be used")
    });
    assert_eq!(cluster.reachable(1), [true; 3]);
    fs::write(certs.join("node-1.key"), key).unwrap();
    eventually("all is well again", PATIENCE, || {
        cluster.ask(1, &["doctor"]).1
    });

    // What is wrong elsewhere keeps no revocation from taking effect: node 0 has a broken password
    // file from here on.
    let list = certs.join("ca.crl");
    let dir = certs.to_str().unwrap();
    assert!(quorate(&["certs", "revoke", "--dir", dir]).status.success());
    let password = certs.join("password");
    let hash = Command::new("sh")
        .args(["-c", &format!("echo x | {QUORATE} passwd")])
        .output()
        .unwrap();
    fs::write(&password, hash.stdout).unwrap();
    for node in [0, 1] {
        let config = &cluster.nodes[node].config;
        let mut text = fs::read_to_string(config).unwrap();
        text.push_str(&format!("crl_file = \"{}\"\n", list.display()));
        if node == 0 {
            text.push_str(&format!(
                "resp_password_file = \"{}\"\n",
                password.display()
            ));
        }
        fs::write(config, text).unwrap();
    }
    let clients = Clients::start(&addresses(&cluster, &[0, 1]), 50);
    for node in [0, 1] {
        signal(cluster.nodes[node].pid, "-HUP");
        eventually("the list is read", PATIENCE, || {
            cluster.log(node).contains("key=\"crl_file\"")
        });
    }
    fs::write(&password, "").unwrap();
    clients.go_on(1_000);
    let node_2 = certs.join("node-2.pem");
    let revoked = quorate(&["certs", "revoke", node_2.to_str().unwrap(), "--dir", dir]);
    assert!(revoked.status.success(), "{revoked:?}");
    eventually("it is cut off", PATIENCE, || {
        cluster.reachable(0) == [true, true, false] && cluster.reachable(1) == [true, true, false]
    });
    assert!(
        cluster.log(0).contains("cut off: it is no longer believed"),
        "{}",
        cluster.log(0)
    );
    assert_eq!(cluster.metric(0, "quorate_certificates_revoked"), Some(1));
    clients.go_on(1_000);
    // It tries again and again, and is refused each time by name.
    eventually("it is refused", PATIENCE, || {
        cluster
            .log(0)
            .contains("quorate://dev/node/node-2 is refused: its authority has taken it back")
    });
    assert_eq!(cluster.reachable(0), [true, true, false]);
    let (done, failed) = clients.finish();
    assert!(
        failed.is_empty(),
        "{} of {done} failed: {failed:#?}",
        failed.len()
    );
    // A new certificate of the same name lets it in again.
    issue(&cluster, &certs, 2);
    eventually("it is back", PATIENCE, || cluster.reachable(0) == [true; 3]);
}

/// Runs the program a while ago, as far as it knows; `None`: libfaketime is not installed.
fn at(offset: &str, args: &[&str]) -> Option<bool> {
    let mut faketime = Command::new("faketime");
    let done = faketime
        .args(["-f", offset, QUORATE])
        .args(args)
        .output()
        .ok()?;
    Some(done.status.success())
}

#[test]
fn what_ends_and_what_has_ended_is_named_everywhere() {
    let cluster = Cluster::start(3, &[]);
    eventually("all is settled", PATIENCE, || cluster.settled());
    let certs = cluster.certs();
    let dir = certs.to_str().unwrap();
    let soon = [
        "certs", "issue", "--force", "--node", "node-1", "--dir", dir, "--days", "10",
    ];
    assert!(quorate(&soon).status.success());
    // On the node itself and on the others.
    for node in 0..3 {
        eventually("ten days are told", PATIENCE, || {
            let (text, is_well) = cluster.ask(node, &["doctor"]);
            !is_well
                && text.contains("9 days are left")
                && text.contains("certs issue --node node-1")
        });
    }
    eventually("it is in the log", PATIENCE, || {
        cluster
            .log(0)
            .contains("the certificate of node-1 expires on")
    });
    assert!(cluster.ask(2, &["ring", "status"]).0.contains(" 9d "));

    let ended = [
        "certs", "issue", "--force", "--node", "node-2", "--dir", dir, "--days", "1",
    ];
    let Some(is_issued) = at("-86390s", &ended) else {
        eprintln!("left out: libfaketime is not installed");
        return;
    };
    assert!(is_issued);
    for node in 0..3 {
        eventually("the end is told", PATIENCE, || {
            cluster.ask(node, &["ring", "status"]).0.contains("EXPIRED")
                && cluster.ask(node, &["doctor"]).0.contains("node-2")
                && cluster.ask(node, &["doctor"]).0.contains("expired on")
        });
        eventually("it is in the log", PATIENCE, || {
            cluster.log(node).contains("expired on")
        });
    }
    // Connections outlive their certificates: nothing has failed yet. A restart says why it cannot.
    assert_eq!(cluster.reachable(0), [true; 3]);
    let config = cluster.nodes[2].config.to_str().unwrap();
    cluster.kill(2);
    let refused = quorate(&["run", "--config", config]);
    assert_eq!(refused.status.code(), Some(1));
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("node-2.pem expired on"), "{text}");
    std::thread::park_timeout(Duration::from_millis(1));
}

/// The authority's certificate, and certificates with their keys.
fn copy_all(from: &Path, to: &Path, names: &[&str]) {
    let of_name = |name: &&str| [format!("{name}.pem"), format!("{name}.key")];
    let files = names.iter().flat_map(of_name);
    for file in files.chain(["ca.pem".to_owned()]) {
        fs::copy(from.join(&file), to.join(&file)).unwrap();
    }
}

#[test]
fn admins_ask_from_elsewhere_and_nobody_else_does() {
    let cluster = Cluster::start(3, &[]);
    let certs = cluster.certs();
    let dir = certs.to_str().unwrap();
    let admin = quorate(&["certs", "issue", "--admin", "ops", "--dir", dir]);
    assert!(admin.status.success());
    let client = quorate(&["certs", "issue", "--client", "shop", "--dir", dir]);
    assert!(client.status.success());
    let address = cluster.ring_status(0)["nodes"][1]["quic"]
        .as_str()
        .unwrap()
        .to_owned();
    // Elsewhere there is no revocation list: it is the node that refuses.
    let elsewhere = tempfile::tempdir().unwrap();
    copy_all(&certs, elsewhere.path(), &["ops", "shop", "node-0"]);
    let kept = elsewhere.path().to_str().unwrap();
    let ask = |name: &str| {
        let args = [
            "ring",
            "status",
            "--json",
            "--connect",
            &address,
            "--certs",
            kept,
            "--as",
            name,
        ];
        let output = quorate(&args);
        let text = [output.stdout, output.stderr].concat();
        (
            String::from_utf8_lossy(&text).into_owned(),
            output.status.code(),
        )
    };
    let (text, code) = ask("ops");
    assert!(
        text.contains("\"self\":\"node-1\"") && code == Some(0),
        "{text}"
    );
    for name in ["shop", "node-0"] {
        let (text, code) = ask(name);
        assert!(
            text.contains("is not an admin") && code == Some(1),
            "{name}: {text}"
        );
    }
    // Until its certificate is taken back.
    let ops = certs.join("ops.pem");
    let revoked = quorate(&["certs", "revoke", ops.to_str().unwrap(), "--dir", dir]);
    assert!(revoked.status.success());
    let config = &cluster.nodes[1].config;
    let text = fs::read_to_string(config).unwrap();
    let list = certs.join("ca.crl");
    fs::write(config, format!("{text}crl_file = \"{}\"\n", list.display())).unwrap();
    signal(cluster.nodes[1].pid, "-HUP");
    eventually("it is refused", PATIENCE, || {
        let (text, code) = ask("ops");
        code == Some(1) && text.contains("taken it back")
    });
    let (text, code) = ask("nobody");
    assert!(
        text.contains("certs issue --admin") && code == Some(1),
        "{text}"
    );
}
