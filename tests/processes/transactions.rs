//! Transactions: what `WATCH` protects, in which database, and in which order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use redis::{Commands, ConnectionLike, RedisResult};

use crate::common::{Cluster, PATIENCE, connect, eventually};

fn settled(nodes: u16) -> Cluster {
    let cluster = Cluster::start(nodes, &[]);
    eventually("the nodes are ready", PATIENCE, || cluster.settled());
    cluster
}

/// Finding 9: the command ran in the update of database 0 and by itself in database 1.
#[test]
fn a_transaction_that_selects_another_database_writes_there_alone_and_once() {
    let cluster = settled(1);
    let mut client = cluster.connect(0);
    let run = |client: &mut redis::Connection, words: &[&str]| -> RedisResult<redis::Value> {
        redis::cmd(words[0]).arg(&words[1..]).query(client)
    };
    for words in [
        &["SELECT", "1"][..],
        &["SET", "n", "100"],
        &["SELECT", "0"],
        &["SET", "n", "10"],
        &["WATCH", "n"],
        &["MULTI"],
        &["INCR", "n"],
        &["SELECT", "1"],
        &["INCR", "n"],
        &["SELECT", "0"],
        &["INCR", "n"],
    ] {
        run(&mut client, words).unwrap();
    }
    let replies: Vec<redis::Value> = match run(&mut client, &["EXEC"]).unwrap() {
        redis::Value::Array(replies) => replies,
        other => panic!("{other:?}"),
    };
    let numbers: Vec<i64> = replies
        .iter()
        .filter_map(|reply| match reply {
            redis::Value::Int(number) => Some(*number),
            _ => None,
        })
        .collect();
    assert_eq!((replies.len(), numbers), (5, vec![11, 101, 12]));
    assert_eq!(client.get::<_, i64>("n").unwrap(), 12);
    run(&mut client, &["SELECT", "1"]).unwrap();
    assert_eq!(client.get::<_, i64>("n").unwrap(), 101);
}

/// As in Redis: what is wrong with the arguments of a command is said in its place, and the rest is done.
#[test]
fn a_command_with_bad_arguments_is_queued_and_its_error_is_in_its_place() {
    let cluster = settled(1);
    let mut client = cluster.connect(0);
    let run = |client: &mut redis::Connection, line: &str| -> RedisResult<redis::Value> {
        let words: Vec<&str> = line.split(' ').collect();
        redis::cmd(words[0]).arg(&words[1..]).query(client)
    };
    let queued = |client: &mut redis::Connection, line: &str| {
        let reply = run(client, line).unwrap();
        assert_eq!(
            reply,
            redis::Value::SimpleString("QUEUED".to_owned()),
            "{line}"
        );
    };
    for watched in [None, Some("WATCH a"), Some("WATCH other")] {
        run(&mut client, "DEL a").unwrap();
        if let Some(watched) = watched {
            run(&mut client, watched).unwrap();
        }
        run(&mut client, "MULTI").unwrap();
        let bad = [
            "SET a v NX XX",
            "SETEX a 0 v",
            "EXPIRE a 1 NX XX",
            "SELECT x",
            "SELECT -1",
            "HINCRBY a f x",
            "MSET a b c",
            "HSET a f v g",
        ];
        queued(&mut client, "SET a 1");
        bad.iter().for_each(|line| queued(&mut client, line));
        queued(&mut client, "INCR a");
        assert!(run(&mut client, "WATCH a b").is_err());
        // As it came: `query` would fail with the first error in it.
        let replies = match client.req_command(&redis::cmd("EXEC")).unwrap() {
            redis::Value::Array(replies) => replies,
            other => panic!("{other:?}"),
        };
        let are_errors = replies
            .iter()
            .map(|reply| matches!(reply, redis::Value::ServerError(_)));
        let expected = [false].into_iter().chain([true; 8]).chain([false]);
        assert!(are_errors.eq(expected), "{replies:?}");
        assert_eq!(client.get::<_, i64>("a").unwrap(), 2);
    }
    // What is no command at all, or never has so many words, discards it.
    for bad in ["NOSUCH a", "GET", "HSET a f", "CLIENT NOSUCH", "DUMP a"] {
        run(&mut client, "MULTI").unwrap();
        queued(&mut client, "INCR a");
        assert!(run(&mut client, bad).is_err(), "{bad}");
        let error = run(&mut client, "EXEC").unwrap_err();
        assert_eq!(error.code(), Some("EXECABORT"), "{bad}");
        assert_eq!(client.get::<_, i64>("a").unwrap(), 2);
    }
}

/// Finding 10: a script that is called by its name ran after the check, unprotected.
#[test]
fn what_is_watched_protects_scripts_by_name() {
    let cluster = settled(3);
    let mut client = cluster.connect(0);
    let source = "return redis.call('incr', KEYS[1])";
    let name: String = redis::cmd("SCRIPT")
        .arg(&["LOAD", source])
        .query(&mut client)
        .unwrap();
    // One that is changed in between is not run.
    let mut other = cluster.connect(0);
    redis::cmd("WATCH").arg("w").exec(&mut client).unwrap();
    other.set::<_, _, ()>("w", 5).unwrap();
    redis::cmd("MULTI").exec(&mut client).unwrap();
    redis::cmd("EVALSHA")
        .arg(&[&name, "1", "w"])
        .exec(&mut client)
        .unwrap();
    let nothing: Option<Vec<i64>> = redis::cmd("EXEC").query(&mut client).unwrap();
    assert_eq!((nothing, client.get("w")), (None, Ok(5)));
    // Forgotten between queueing and carrying out.
    redis::cmd("WATCH").arg("w").exec(&mut client).unwrap();
    redis::cmd("MULTI").exec(&mut client).unwrap();
    redis::cmd("EVALSHA")
        .arg(&[&name, "1", "w"])
        .exec(&mut client)
        .unwrap();
    redis::cmd("SCRIPT").arg("FLUSH").exec(&mut other).unwrap();
    let told: Option<Vec<i64>> = redis::cmd("EXEC").query(&mut client).unwrap();
    assert_eq!(told, Some(vec![6]));
    // Never known.
    redis::cmd("WATCH").arg("w").exec(&mut client).unwrap();
    redis::cmd("MULTI").exec(&mut client).unwrap();
    redis::cmd("EVALSHA")
        .arg(&[&name, "1", "w"])
        .exec(&mut client)
        .unwrap();
    redis::cmd("SCRIPT")
        .arg(&["LOAD", source])
        .exec(&mut other)
        .unwrap();
    let told: RedisResult<Vec<i64>> = redis::cmd("EXEC").query(&mut client);
    let error = format!("{:?}", told.unwrap_err());
    assert!(error.to_ascii_lowercase().contains("noscript"), "{error}");
    assert_eq!(client.get::<_, i64>("w").unwrap(), 6);
}

/// Finding 15: the second write could be seen before the first.
#[test]
fn the_commands_of_a_transaction_take_effect_one_after_the_other() {
    let cluster = settled(3);
    let stop = AtomicBool::new(false);
    let address = |node: usize| cluster.nodes[node].resp.clone();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut client = connect(&address(0));
            for number in 1..=ROUNDS {
                redis::pipe()
                    .atomic()
                    .set("first", number)
                    .cmd("INCRBY")
                    .arg("second")
                    .arg(1)
                    .set("third", number)
                    .exec(&mut client)
                    .unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        let readers = (0..3).map(|node| {
            let (stop, mut client) = (&stop, connect(&address(node)));
            scope.spawn(move || {
                let mut read = |key: &str| client.get::<_, Option<u64>>(key).unwrap().unwrap_or(0);
                while !stop.load(Ordering::Relaxed) {
                    let (third, second, first) = (read("third"), read("second"), read("first"));
                    assert!(
                        third <= second && second <= first,
                        "{first} {second} {third}"
                    );
                }
            })
        });
        let readers: Vec<_> = readers.collect();
        writer.join().unwrap();
        readers
            .into_iter()
            .for_each(|reader| reader.join().unwrap());
    });
}

/// Finding 29: reads waited as well, and so did what was to end the pause.
#[test]
fn a_pause_of_writes_lets_reads_pass_and_ends_at_once() {
    let cluster = settled(1);
    let (mut admin, mut client) = (cluster.connect(0), cluster.connect(0));
    client.set::<_, _, ()>("k", "before").unwrap();
    redis::cmd("CLIENT")
        .arg(&["PAUSE", "60000", "WRITE"])
        .exec(&mut admin)
        .unwrap();
    assert_eq!(client.get::<_, String>("k").unwrap(), "before");
    let writer = thread::spawn(move || client.set::<_, _, ()>("k", "after"));
    thread::park_timeout(std::time::Duration::from_millis(300));
    assert_eq!(admin.get::<_, String>("k").unwrap(), "before");
    eventually("the pause is over", PATIENCE / 2, || {
        redis::cmd("CLIENT")
            .arg("UNPAUSE")
            .exec(&mut admin)
            .unwrap();
        writer.is_finished()
    });
    writer.join().unwrap().unwrap();
    assert_eq!(admin.get::<_, String>("k").unwrap(), "after");
    redis::cmd("CLIENT")
        .arg(&["PAUSE", "60000"])
        .exec(&mut admin)
        .unwrap();
    redis::cmd("CLIENT")
        .arg("UNPAUSE")
        .exec(&mut admin)
        .unwrap();
    assert_eq!(admin.get::<_, String>("k").unwrap(), "after");
}

const ROUNDS: u64 = 300;
