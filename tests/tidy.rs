//! What compilers do not check: rooms import from lower floors only, pure floors stay pure, files
//! stay readable.

#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Room to floor, as the map at the top of `src/lib.rs` has it.
fn floors(lib: &str) -> BTreeMap<String, usize> {
    let mut floors = BTreeMap::new();
    let mut floor = None;
    for line in lib.lines().filter_map(|line| line.strip_prefix("//! ")) {
        if let Some(number) = line.strip_prefix('F').and_then(|rest| rest.get(..1)) {
            floor = number.parse().ok();
        } else if !line.starts_with("    ") {
            floor = None;
        }
        let Some(floor) = floor else { continue };
        if let Some(room) = line
            .get(4..)
            .and_then(|rest| rest.split_whitespace().next())
        {
            floors.insert(room.to_owned(), floor);
        }
    }
    floors
}

/// Source without comments, strings and the unit tests at its end.
fn code(source: &str) -> String {
    let mut code = String::new();
    for line in source.lines() {
        if line.starts_with("#[cfg(test)]") {
            break;
        }
        let line = line.split("//").next().unwrap_or_default();
        // The quoted parts of a line are the odd ones.
        code.extend(line.split('"').step_by(2));
        code.push('\n');
    }
    code
}

/// Everything in one file that breaks a rule.
fn problems(room: &str, source: &str, floors: &BTreeMap<String, usize>) -> Vec<String> {
    let mut problems = Vec::new();
    let code = code(source);
    let Some(&floor) = floors.get(room) else {
        return vec![format!("room `{room}` is not on the map in src/lib.rs")];
    };
    for part in code.split("crate::").skip(1) {
        let imported: String = part
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect();
        if let Some(&below) = floors.get(&imported)
            && imported != room
            && below >= floor
        {
            problems.push(format!(
                "imports `{imported}` of floor {below} from floor {floor}"
            ));
        }
    }
    if code.contains("dashmap") && room != "store" {
        problems.push("uses dashmap, which only `store` may".to_owned());
    }
    if floor <= LAST_PURE_FLOOR {
        for banned in IMPURE {
            if code.contains(banned) {
                problems.push(format!("contains `{banned}` on a pure floor"));
            }
        }
    }
    let lines = source.lines().count();
    if lines > LINES_MAX {
        problems.push(format!("has {lines} lines, {LINES_MAX} are enough"));
    }
    problems
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn the_house_is_tidy() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let floors = floors(&fs::read_to_string(src.join("lib.rs")).unwrap());
    assert!(
        floors.len() >= 10,
        "the map in src/lib.rs is not understood: {floors:?}"
    );
    let mut all = Vec::new();
    for path in sources(&src) {
        let inside = path.strip_prefix(&src).unwrap();
        let room = inside
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap();
        let is_test = inside.file_name().is_some_and(|name| name == "tests.rs");
        if matches!(room, "lib.rs" | "main.rs") || is_test {
            continue;
        }
        let source = fs::read_to_string(&path).unwrap();
        let found = problems(room, &source, &floors);
        all.extend(
            found
                .into_iter()
                .map(|problem| format!("{}: {problem}", inside.display())),
        );
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn the_check_finds_what_it_looks_for() {
    let floors =
        floors("//! F0  model  x\n//!     more\n//! F1  store  y\n//!     ring  z\n//! F4  net  q");
    assert_eq!(floors.get("ring"), Some(&1));
    assert_eq!(floors.get("net"), Some(&4));
    let found = |room: &str, source: &str| problems(room, source, &floors).len();
    assert_eq!(found("store", "use crate::model::Key;"), 0);
    assert_eq!(found("store", "use crate::ring::View;"), 1);
    assert_eq!(
        found(
            "store",
            "// use crate::ring::View;\nlet x = \"crate::net\";"
        ),
        0
    );
    assert_eq!(found("model", "pub async fn f() {}"), 1);
    assert_eq!(found("net", "pub async fn f() { tokio::join!() }"), 0);
    assert_eq!(found("ring", "use dashmap::DashMap;"), 1);
    assert_eq!(found("ring", &"\n".repeat(LINES_MAX + 1)), 1);
    assert_eq!(found("cellar", ""), 1);
}

const LINES_MAX: usize = 800;
const LAST_PURE_FLOOR: usize = 3;
const IMPURE: [&str; 12] = [
    "async ",
    ".await",
    "tokio::",
    "Instant",
    "SystemTime",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "rand::",
    "tracing::",
    "std::fs",
    "std::env",
];
