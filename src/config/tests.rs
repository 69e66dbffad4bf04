//! Loading as a whole: what is accepted, what is refused, and in which words.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;

use super::problem::variable;
use super::settings::SECTIONS;
use super::source::keys;
use super::value::Raw;
use super::{ByteSize, Checked, ConfigErrors, Role, Settings, Sources};
use crate::model::Quorum;

/// What every configuration must say, in one line, so that `text` starts on line 2.
fn file(text: &str) -> Sources {
    Sources {
        file: Some((
            PathBuf::from("quorate.toml"),
            format!("node = \"a\"\n{text}"),
        )),
        set: ["ca_file=ca", "cert_file=cert", "key_file=key"]
            .map(str::to_owned)
            .into(),
        ..Sources::default()
    }
}

fn load(text: &str) -> Result<Checked, ConfigErrors> {
    Settings::load(&file(text))
}

fn settings(text: &str) -> Settings {
    load(text).unwrap().settings
}

/// The lines of the message, which must be one a problem.
fn problems(sources: &Sources) -> Vec<String> {
    let errors = Settings::load(sources).unwrap_err();
    let lines: Vec<_> = errors.to_string().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), errors.0.len(), "{lines:#?}");
    lines
}

fn problem(text: &str) -> String {
    let mut found = problems(&file(text));
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

fn warnings(text: &str) -> Vec<String> {
    let warnings = load(text).unwrap().warnings;
    warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn the_default_text_is_the_defaults() {
    let mut sources = file("");
    let defaults = Settings::load(&sources).unwrap();
    sources.file = Some((PathBuf::from("default.toml"), Settings::render_default()));
    sources.set.push("node=a".to_owned());
    assert_eq!(Settings::load(&sources).unwrap(), defaults);
    assert_eq!(defaults.warnings, []);

    let settings = defaults.settings;
    assert_eq!(settings.cluster, "quorate");
    assert_eq!(settings.quorum(), Quorum::new(3, 2, 2).unwrap());
    assert_eq!(settings.max_value_bytes, ByteSize(16 << 20));
    assert_eq!(settings.gossip_interval, Duration::from_millis(300));
    assert_eq!(settings.client_timeout(), None);
    assert_eq!(settings.quic_advertise(), settings.quic_listen);
    assert_eq!(
        settings.admin_socket(None),
        PathBuf::from("/var/lib/quorate/admin.sock")
    );
    assert_eq!(settings.resp_tls(), None);
}

#[test]
fn every_key_is_in_the_default_text_and_explained() {
    let text = Settings::render_default();
    for key in keys() {
        let line = format!("\n{} = {}\n", key.name, key.default);
        assert_eq!(text.matches(&line).count(), 1, "{line}");
        assert!(text.contains(&variable(key.name)), "{}", key.name);
        assert!(key.doc.iter().all(|line| line.len() <= 98), "{}", key.name);
    }
    assert!(SECTIONS.iter().all(|section| text.contains(section.title)));
    assert!(text.lines().all(|line| !line.ends_with(' ')));
}

#[test]
fn every_example_is_good_wherever_it_is_written() {
    for key in keys() {
        // Keys that are good only together with others.
        let partner = match key.name {
            "resp_tls_cert" => "resp_tls_key = \"key\"\n",
            "resp_tls_key" => "resp_tls_cert = \"cert\"\n",
            _ => "",
        };
        let mut from_file = file(partner);
        from_file.set.retain(|set| !set.starts_with(key.name));
        let mut from_environment = from_file.clone();
        let mut from_command_line = from_file.clone();
        let (_, text) = from_file.file.as_mut().unwrap();
        *text = text.replace(
            "node = \"a\"\n",
            if key.name == "node" {
                ""
            } else {
                "node = \"a\"\n"
            },
        );
        text.push_str(&format!("{} = {}\n", key.name, key.example));
        let bare = match Raw::from_toml(key.example) {
            Raw::Text(text) => text,
            _ => key.example.to_owned(),
        };
        from_environment
            .env
            .push((variable(key.name), bare.clone()));
        from_command_line.set.push(format!("{} = {bare}", key.name));
        let expected = Settings::load(&from_file);
        assert!(expected.is_ok(), "{expected:?}");
        let settings = |sources| Settings::load(&sources).map(|checked| checked.settings);
        let expected = expected.map(|checked| checked.settings);
        assert_eq!(settings(from_environment), expected);
        assert_eq!(settings(from_command_line), expected);
    }
}

#[test]
fn the_command_line_beats_the_environment_and_that_beats_the_file() {
    let mut sources = file("weight = 2\nzone = \"file\"\ncluster = \"file\"");
    sources.env = [
        ("QUORATE_WEIGHT", "3"),
        ("QUORATE_ZONE", "env"),
        ("HOME", "/"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    sources
        .set
        .extend(["weight=4".to_owned(), "weight=5".to_owned()]);
    let settings = Settings::load(&sources).unwrap().settings;
    assert_eq!(settings.weight, 5);
    assert_eq!(settings.zone, "env");
    assert_eq!(settings.cluster, "file");
}

#[test]
fn values_are_written_naturally() {
    let settings = settings(
        "n = 5\nr = 1\nw = 5\nrole = \"proxy\"\nmax_value_bytes = 1048576\nhttp_listen = \"\"\n\
         client_timeout = \"1h30m\"\nadmin_socket = \"a.sock\"\nquic_advertise = \"[::1]:7\"\n\
         seeds = [\n  \"b:7479\", # a comment\n  \"[::1]:7479\",\n]",
    );
    assert_eq!(settings.quorum(), Quorum::new(5, 1, 5).unwrap());
    assert_eq!(settings.role, Role::Proxy);
    assert_eq!(settings.max_value_bytes, ByteSize(1 << 20));
    assert_eq!(settings.http_listen, None);
    assert_eq!(settings.client_timeout(), Some(Duration::from_secs(5_400)));
    assert_eq!(settings.admin_socket(None), PathBuf::from("a.sock"));
    assert_eq!(settings.quic_advertise(), "[::1]:7".parse().unwrap());
    assert_eq!(settings.seeds.len(), 2);
}

#[test]
fn what_is_missing_is_told_with_an_example() {
    let found = problems(&Sources::default());
    assert_eq!(
        found,
        [
            "configuration: node is not set; write 1 to 63 of a-z A-Z 0-9 . _ -, for example \
             node = \"cache-1\"",
            "configuration: ca_file is not set; write a path, for example \
             ca_file = \"/etc/quorate/ca.pem\"",
            "configuration: cert_file is not set; write a path, for example \
             cert_file = \"/etc/quorate/node-0.pem\"",
            "configuration: key_file is not set; write a path, for example \
             key_file = \"/etc/quorate/node-0.key\"",
        ]
    );
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_the_file() {
    let mut sources = file(
        "request_timout = \"1s\"\nn = \"three\"\nweight = 0\nlog = \"loud\"\n\n\
         gossip_interval = 5\n[net]\nport = 1",
    );
    sources
        .env
        .push(("QUORATE_PARTITIONS".to_owned(), "1000".to_owned()));
    sources.set.push("role=master".to_owned());
    assert_eq!(
        problems(&sources),
        [
            "quorate.toml:2: there is no key `request_timout`; did you mean \
             request_timeout = \"500ms\"?",
            "quorate.toml:3: n = \"three\": expected a whole number; write for example n = 5",
            "quorate.toml:4: weight = 0: out of range, it must be 1 to 1000; write for example \
             weight = 2",
            "quorate.toml:5: log = \"loud\": `loud` must be a level (off, error, warn, info, \
             debug, trace) or TARGET=LEVEL; write for example log = \"warn,quorate::node=debug\"",
            "quorate.toml:7: gossip_interval = 5: a unit is missing: units are ms, s, m, h, d; \
             write for example gossip_interval = \"1s\"",
            "quorate.toml:8: `net` is a section; write every key on a line of its own, outside \
             any section",
            "environment: QUORATE_PARTITIONS=1000: it must be a power of two; write for example \
             QUORATE_PARTITIONS=1024",
            "command line: --set role=master: it must be \"member\" or \"proxy\"; write for \
             example --set role=proxy",
        ]
    );
}

#[test]
fn values_out_of_range_are_told_with_the_range() {
    for text in ["n = 0", "n = 17", "n = 256", "n = -1"] {
        assert_eq!(
            problem(text),
            format!(
                "quorate.toml:2: {text}: out of range, it must be 1 to 16; write for example n = 5"
            )
        );
    }
    assert!(problem("gossip_interval = \"1ms\"").contains("must be 10ms to 1m;"));
    assert!(problem("max_value_bytes = \"1GiB\"").contains("must be 1B to 512MiB;"));
    assert!(problem("partitions = 65536").contains("must be 1 to 32768;"));
}

#[test]
fn broken_toml_is_told_with_line_and_column() {
    let found = problem("n = 3\nr = \n");
    assert!(found.starts_with("quorate.toml:3:"), "{found}");
    let found = problem("n = 3\nn = 5\n");
    assert_eq!(found, "quorate.toml:3:1: duplicate key, in `n = 5`");
    let found = problem("zone = \"ä\" x\n");
    assert!(found.starts_with("quorate.toml:2:12: "), "{found}");
}

#[test]
fn a_missing_file_is_told_with_its_path() {
    let path = PathBuf::from("/nonexistent/quorate.toml");
    let error = Sources::read(Some(&path), Vec::new())
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("/nonexistent/quorate.toml: cannot read"),
        "{error}"
    );
    assert!(error.contains("config default"), "{error}");
}

#[test]
fn a_file_is_read_whole_unless_it_is_huge_or_binary() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("quorate.toml");
    let read = |content: &[u8]| {
        std::fs::write(&path, content).unwrap();
        Sources::read(Some(&path), Vec::new()).map(|sources| sources.file)
    };
    assert_eq!(read(b"n = 3"), Ok(Some((path.clone(), "n = 3".to_owned()))));
    assert!(read(&[b'#'; (1 << 20) + 1]).is_err());
    assert!(read(b"n = \xff").is_err());
}

#[test]
fn unknown_variables_are_refused_and_their_values_kept_out_of_sight() {
    let mut sources = file("");
    let mut add = |name: &str| sources.env.push((name.to_owned(), "hunter2".to_owned()));
    add("QUORATE_BENCH_PASSWORD");
    add("QUORATE_SIM_SEED");
    add("OTHER_N");
    add("QUORATE_RESP_PASWORD_FILE");
    add("QUORATE_x");
    let found = problems(&sources);
    assert_eq!(
        found,
        [
            "environment: there is no key `QUORATE_RESP_PASWORD_FILE`; did you mean \
             QUORATE_RESP_PASSWORD_FILE=/etc/quorate/resp.password?",
            "environment: there is no key `QUORATE_x`; `quorate config default` lists all keys",
        ]
    );
    sources.env.clear();
    sources.set.extend(["n".to_owned(), "wieght=2".to_owned()]);
    let found = problems(&sources);
    assert!(found[0].contains("`--set n` has no value"), "{found:?}");
    assert!(
        found[1].ends_with("did you mean --set weight=2?"),
        "{found:?}"
    );
}

#[test]
fn impossible_quorums_are_refused_where_they_are_written() {
    assert_eq!(
        problem("n = 3\nr = 4"),
        "quorate.toml:3: r = 4: a read can wait for 1 to n = 3 replies; write r = 2, a majority"
    );
    assert_eq!(
        problem("n = 5\n\nw = 6"),
        "quorate.toml:4: w = 6: a write can wait for 1 to n = 5 acknowledgements; write w = 3, \
         a majority"
    );
    assert!(problem("r = 0").contains("r = 0"));
    // Only the cause is told, not what follows from it.
    assert!(problem("n = 99\nr = 40").contains("n = 99"));
}

#[test]
fn doubtful_quorums_are_warned_about() {
    let found = warnings("n = 3\nr = 1\nw = 2");
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("quorate.toml:3: r + w = 3 is not more than n = 3: a read may"));
    let found = warnings("n = 4");
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("as does n = 3"), "{found:?}");
    assert_eq!(warnings("n = 4\nr = 1\nw = 4"), Vec::<String>::new());
    assert_eq!(warnings("n = 1"), Vec::<String>::new());
    assert_eq!(warnings("n = 5"), Vec::<String>::new());
}

#[test]
fn a_memory_bound_is_accepted_and_said_to_do_nothing() {
    let found = warnings("max_memory = \"64MiB\"");
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("not yet enforced"), "{found:?}");
}

#[test]
fn protected_mode_wants_a_password_and_tls() {
    let open = "resp_listen = \"0.0.0.0:7379\"\n";
    let found = problem(open);
    assert!(
        found.starts_with("quorate.toml:2: resp_listen = \"0.0.0.0:7379\": "),
        "{found}"
    );
    assert!(
        found.contains("write resp_listen = \"127.0.0.1:7379\", or set"),
        "{found}"
    );
    let password = "resp_password_file = \"p\"\n";
    let tls = "resp_tls_cert = \"c\"\nresp_tls_key = \"k\"\n";
    assert!(problem(&format!("{open}{password}")).contains("protected mode"));
    assert!(problem(&format!("{open}{tls}")).contains("protected mode"));
    let guarded = settings(&format!("{open}{password}{tls}"));
    assert!(guarded.resp_tls().is_some());
    assert!(load("resp_listen = \"[::1]:1\"").is_ok());
    assert!(load("resp_listen = \"\"").is_ok());
}

#[test]
fn half_of_tls_is_refused() {
    let found = problem("resp_tls_cert = \"c\"");
    assert!(
        found.contains("write resp_tls_key too, or neither"),
        "{found}"
    );
    let found = problem("resp_tls_key = \"k\"");
    assert!(
        found.contains("write resp_tls_cert too, or neither"),
        "{found}"
    );
}

#[test]
fn addresses_that_cannot_work_are_refused() {
    let found = problem("quic_listen = \"0.0.0.0:7479\"");
    assert!(
        found.contains("quic_advertise = \"10.0.0.5:7479\""),
        "{found}"
    );
    assert!(load("quic_listen = \"0.0.0.0:7479\"\nquic_advertise = \"10.0.0.5:7479\"").is_ok());
    assert!(problem("quic_advertise = \"[::]:7479\"").contains("cannot connect"));
    assert!(problem("quic_advertise = \"10.0.0.5:0\"").contains("cannot connect"));
    assert!(problem("quic_listen = \"localhost:7479\"").contains("not an IP address"));
    assert!(problem("http_listen = \"127.0.0.1:7379\"").contains("another port"));
}

#[test]
fn messages_stay_on_one_line_and_short() {
    let long = "x".repeat(10_000);
    let found = problem(&format!("role = \"\"\"\n{long}\n\"\"\""));
    assert!(found.len() < 300, "{found}");
    let found = problem(&format!("{long} = 1"));
    assert!(found.len() < 300, "{found}");
}

#[test]
fn to_toml_holds_what_was_chosen_and_no_more() {
    let text = settings("n = 3\nr = 2\nzone = \"b\"").to_toml();
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(
        lines,
        [
            "",
            "node = \"a\"",
            "zone = \"b\"",
            "ca_file = \"ca\"",
            "cert_file = \"cert\"",
            "key_file = \"key\"",
            "r = 2",
        ]
    );
}

fn assignment() -> impl Strategy<Value = (&'static str, String)> {
    let durations =
        || select(vec!["100ms", "1s", "59s", "1m"]).prop_map(|text| format!("{text:?}"));
    let texts = || "[ -~äß\u{1}\u{7f}]{1,12}".prop_map(|text| toml_text(&text));
    let addresses =
        || (1u8.., 1u16..).prop_map(|(host, port)| format!("\"127.0.0.{host}:{port}\""));
    let named =
        |name: &'static str, value: BoxedStrategy<String>| value.prop_map(move |v| (name, v));
    prop_oneof![
        named("cluster", "\"[a-z0-9._-]{1,63}\"".boxed()),
        named("zone", "\"[a-z]{0,9}\"".boxed()),
        named("weight", (1u32..=1000).prop_map(|w| w.to_string()).boxed()),
        named(
            "role",
            select(vec!["\"proxy\"".to_owned(), "\"member\"".to_owned()]).boxed()
        ),
        named("data_dir", texts().boxed()),
        named("resp_socket", texts().boxed()),
        named("admin_socket", texts().boxed()),
        named("n", (4u8..=16).prop_map(|n| n.to_string()).boxed()),
        named("r", (1u8..=3).prop_map(|r| r.to_string()).boxed()),
        named("w", (1u8..=3).prop_map(|w| w.to_string()).boxed()),
        named(
            "partitions",
            (0u32..=15).prop_map(|p| (1 << p).to_string()).boxed()
        ),
        named("quic_listen", addresses().boxed()),
        named("quic_advertise", addresses().boxed()),
        named(
            "seeds",
            prop::collection::vec(addresses(), 0..4)
                .prop_map(|s| format!("[{}]", s.join(",")))
                .boxed()
        ),
        named("client_timeout", durations().boxed()),
        named("gossip_interval", durations().boxed()),
        named(
            "max_value_bytes",
            (1u64..=1 << 29).prop_map(|b| b.to_string()).boxed()
        ),
        named(
            "max_memory",
            (0u64..1 << 50).prop_map(|b| format!("\"{b}\"")).boxed()
        ),
    ]
}

/// A literal string where TOML allows one, so that quoting is not tested with itself.
fn toml_text(text: &str) -> String {
    let literal = text.chars().all(|c| c != '\'' && !c.is_control());
    if literal {
        format!("'{text}'")
    } else {
        "\"\\u0001\\\"\\\\\"".to_owned()
    }
}

proptest! {
    #[test]
    fn to_toml_is_read_back_as_the_same_settings(
        assignments in prop::collection::vec(assignment(), 0..12),
    ) {
        // Of two values for a key one is left, since a file has each key once.
        let unique: BTreeMap<_, _> = assignments.into_iter().collect();
        let lines = unique.iter().map(|(name, value)| format!("{name} = {value}\n"));
        let text: String = lines.collect();
        let first = settings(&text);
        let again = Settings::load(&Sources {
            file: Some((PathBuf::from("again.toml"), first.to_toml())),
            ..Sources::default()
        });
        prop_assert_eq!(again.map(|checked| checked.settings), Ok(first));
    }

    #[test]
    fn any_text_is_loaded_or_refused(text: String, name: String, value: String) {
        let mut sources = file(&text);
        sources.env.push((format!("QUORATE_{name}"), value.clone()));
        sources.set.push(format!("{name}={value}"));
        drop(Settings::load(&sources));
    }
}

#[test]
fn what_can_change_while_a_node_runs_is_told_apart() {
    for name in super::settings::RELOADABLE {
        assert!(keys().any(|key| key.name == name), "{name}");
    }
    let before = settings("");
    let mut after = settings("n = 5\nlog = \"debug\"\nconnections_max = 7\n");
    assert_eq!(
        before.changes(&after),
        [("n", false), ("connections_max", true), ("log", true)]
    );
    let mut reloaded = before.clone();
    reloaded.reload(&after);
    assert_eq!(reloaded.changes(&after), [("n", false)]);
    after.reload(&before);
    assert_eq!(before.changes(&after), [("n", false)]);
}
