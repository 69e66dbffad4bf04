//! Clients and frameworks as applications use them: see `tests/clients`. Where their libraries are not
//! installed, by `tests/clients/install`, this says so.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::{Cluster, skipped};

/// The Python that has the libraries; `None`: it is not installed.
pub(crate) fn python() -> Option<PathBuf> {
    let python = root().join("target/clients/venv/bin/python");
    let mut import = Command::new(&python);
    import.args([
        "-c",
        "import redis, django_redis, flask_caching, limits, celery",
    ]);
    let has_all = import.stderr(Stdio::null()).status();
    has_all
        .is_ok_and(|status| status.success())
        .then_some(python)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Starts a program of `tests/clients`.
pub(crate) fn start(python: &Path, program: &str, args: &[String]) -> Child {
    let program = root().join("tests/clients").join(program);
    let mut command = Command::new(python);
    command.arg(program).args(args);
    command.stdout(Stdio::piped()).spawn().unwrap()
}

fn host_and_port(cluster: &Cluster) -> Vec<String> {
    let (host, port) = cluster.nodes[1].resp.split_once(':').unwrap();
    vec![host.to_owned(), port.to_owned()]
}

#[test]
fn python_frameworks_run_unchanged() {
    let Some(python) = python() else {
        return skipped(
            "python_frameworks_run_unchanged",
            "no Python libraries: run tests/clients/install",
        );
    };
    let cluster = Cluster::start(3, &[]);
    let running = start(&python, "frameworks.py", &host_and_port(&cluster));
    let output = running.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success() && text.contains("11 of Python"));
}

#[test]
fn node_frameworks_run_unchanged() {
    let modules = root().join("target/clients/node_modules/rate-limit-redis");
    if !modules.exists() {
        return skipped(
            "node_frameworks_run_unchanged",
            "no Node libraries: run tests/clients/install",
        );
    }
    let cluster = Cluster::start(3, &[]);
    // Modules are looked for beside the program.
    let program = root().join("target/clients/frameworks.mjs");
    std::fs::copy(root().join("tests/clients/frameworks.mjs"), &program).unwrap();
    let mut command = Command::new("node");
    command.arg(&program).args(host_and_port(&cluster));
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("8 of Node"));
}
