//! Classes of attacks. Each can be run alone: `QUORATE_HOSTILE_ONLY=scripts`.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::sync::Mutex;
use std::time::Duration;

use super::attack::{Client, Episode};
use super::bombs;
use super::words::{Chance, NUMBERS, PATTERNS, encode, key, long, noise, word};

type Class = fn(&mut Episode<'_>, &Chance);

pub(crate) const CLASSES: &[(&str, Class)] = &[
    ("commands", commands),
    ("numbers", numbers),
    ("types", types),
    ("many", many),
    ("lengths", lengths),
    ("scripts", scripts),
    ("sources", sources),
    ("protocol", protocol),
    ("halfsent", half_sent),
    ("idle", idle),
    ("pipelines", pipelines),
    ("transactions", transactions),
    ("unread", unread),
    ("subscribers", subscribers),
    ("monitors", monitors),
    ("kills", kills),
    ("logins", logins),
    ("storms", storms),
    ("flushes", flushes),
    ("http", http),
    ("datagrams", datagrams),
];

/// Every command of the table with words at their extremes.
fn commands(episode: &mut Episode<'_>, chance: &Chance) {
    let mut deck: Vec<_> = episode.attack.table.iter().collect();
    deck.retain(|row| !row.is_meant_to_stall());
    chance.shuffle(&mut deck);
    let attack = episode.attack;
    for rows in deck.chunks(16) {
        let Some(mut client) = episode.connect() else {
            return;
        };
        for row in rows {
            let words = row.request(chance);
            attack.cover(&words);
            if !client.send(&encode(&words)) {
                break;
            }
        }
        client.finish();
        drop(client);
        // Once through the table, however long that takes: no command is left out.
        episode.goes_on();
    }
}

/// Updates by extreme numbers of values that are extreme numbers.
fn numbers(episode: &mut Episode<'_>, chance: &Chance) {
    while episode.goes_on() {
        let Some(mut client) = episode.connect() else {
            return;
        };
        for _ in 0..4 {
            let (held, by) = (chance.pick(NUMBERS), chance.pick(NUMBERS));
            let key = format!("h:n:{}", chance.below(6));
            let requests = [
                vec!["SET", &key, held],
                vec!["INCRBYFLOAT", &key, by],
                vec!["INCRBY", &key, by],
                vec!["DECRBY", &key, by],
                vec!["DEL", &key],
                vec!["HSET", &key, "f", held],
                vec!["HINCRBYFLOAT", &key, "f", by],
                vec!["HINCRBY", &key, "f", by],
                vec!["DEL", &key],
            ];
            for request in requests {
                send_words(&mut client, &request);
            }
        }
        client.finish();
    }
}

/// Each command on keys of each type.
fn types(episode: &mut Episode<'_>, chance: &Chance) {
    let attack = episode.attack;
    while episode.goes_on() {
        let Some(mut client) = episode.connect() else {
            return;
        };
        for (request, key) in [
            ("SET h:s:0 text", "h:s:0"),
            ("HSET h:h:0 f v", "h:h:0"),
            ("SET h:n:0 41", "h:n:0"),
        ] {
            client.text(&format!("DEL {key}"));
            client.text(request);
            for _ in 0..10 {
                let mut words = attack.table[chance.below(attack.table.len())].request(chance);
                if words[0].as_slice() == b"flushall" {
                    continue;
                }
                if let Some(first) = words.get_mut(1)
                    && first.starts_with(b"h:")
                {
                    *first = key.as_bytes().to_vec();
                }
                client.request(&words);
            }
        }
        client.finish();
    }
}

/// Commands of very many words.
fn many(episode: &mut Episode<'_>, chance: &Chance) {
    let attack = episode.attack;
    while episode.goes_on() {
        let Some(mut client) = episode.connect() else {
            return;
        };
        let row = &attack.table[chance.below(attack.table.len())];
        let count = chance.pick(&[1_000, 10_000, 10_001, 40_000]);
        let request = if chance.one_in(3) {
            // The one that a careless hash makes quadratic.
            let pairs = (0..count).flat_map(|at| [format!("f{at}"), "v".to_owned()]);
            let words = ["HSET".to_owned(), "h:many".to_owned()];
            Some(
                words
                    .into_iter()
                    .chain(pairs)
                    .map(String::into_bytes)
                    .collect(),
            )
        } else {
            row.long_request(count, chance)
        };
        let Some(request) = request else { continue };
        client.request(&request);
        client.finish();
        if chance.one_in(4) {
            client.text("DEL h:many");
            client.finish();
        }
    }
}

/// Words as long as they may be, and longer.
fn lengths(episode: &mut Episode<'_>, chance: &Chance) {
    const KEY: usize = quorate::model::KEY_BYTES_MAX;
    const VALUE: usize = 16 * 1024 * 1024;
    while episode.goes_on() {
        let Some(mut client) = episode.connect() else {
            return;
        };
        let name = long(
            chance.pick(&[0, 1, KEY - 1, KEY, KEY + 1, 10 * KEY]),
            chance,
        );
        let bytes = chance.pick(&[0, 1, 65_536, 1_048_576, VALUE - 1, VALUE, VALUE + 1]);
        match chance.below(6) {
            0 => _ = client.request(&[b"SET".to_vec(), name, b"v".to_vec()]),
            1 => _ = client.request(&[b"GET".to_vec(), name]),
            2 => _ = client.request(&[b"HSET".to_vec(), b"h:big".to_vec(), name, b"v".to_vec()]),
            3 => _ = client.request(&[b"APPEND".to_vec(), b"h:big".to_vec(), long(bytes, chance)]),
            4 => {
                let at = (bytes.saturating_sub(1)).to_string();
                send_words(&mut client, &["SETRANGE", "h:big", &at, "v"]);
                send_words(
                    &mut client,
                    &["SETBIT", "h:big", &(bytes * 8).to_string(), "1"],
                );
            }
            _ => _ = client.request(&[b"SET".to_vec(), b"h:big".to_vec(), long(bytes, chance)]),
        }
        client.finish();
        if chance.one_in(2) {
            client.text("GET h:big");
            client.finish();
            client.text("DEL h:big");
            client.finish();
        }
    }
}

/// Scripts that take all they get, alone and in pipelines.
fn scripts(episode: &mut Episode<'_>, chance: &Chance) {
    while episode.goes_on() {
        let Some(mut client) = episode.connect() else {
            return;
        };
        let count = chance.pick(&[1, 1, 1, 3, 30]);
        for _ in 0..count {
            let bomb = bombs::bomb(chance);
            eval(&mut client, bomb.source, bomb.args, chance);
        }
        if chance.one_in(3) {
            client.text("SCRIPT KILL");
        }
        client.finish();
    }
}

/// Source that no compiler likes, and bytecode.
fn sources(episode: &mut Episode<'_>, chance: &Chance) {
    while episode.goes_on() {
        let Some(mut client) = episode.connect() else {
            return;
        };
        if chance.one_in(3) {
            eval(&mut client, bombs::DUMP.to_vec(), Vec::new(), chance);
            let mut reply = Vec::new();
            client.read(Duration::from_millis(200), |bytes| {
                reply.extend_from_slice(bytes);
                reply.ends_with(b"\r\n") && reply.len() > 10
            });
            let start = reply.windows(4).position(|window| window == b"\x1bLua");
            if let Some(start) = start {
                let mut source = reply.split_off(start);
                source.truncate(source.len().saturating_sub(2));
                for _ in 0..chance.below(4) {
                    let at = chance.below(source.len());
                    source[at] = chance.byte();
                }
                eval(&mut client, source, Vec::new(), chance);
            }
        } else {
            let source = bombs::source(chance);
            if chance.one_in(3) {
                client.request(&[b"SCRIPT".to_vec(), b"LOAD".to_vec(), source]);
            } else {
                eval(&mut client, source, Vec::new(), chance);
            }
        }
        client.finish();
    }
}

fn eval(client: &mut Client<'_>, source: Vec<u8>, args: Vec<Vec<u8>>, chance: &Chance) {
    let mut words = vec![b"EVAL".to_vec(), source];
    if chance.one_in(2) {
        words.push(b"0".to_vec());
    } else {
        words.extend([b"1".to_vec(), key(chance)]);
    }
    words.extend(args);
    client.request(&words);
}

/// Bytes that are no request, or nearly one.
fn protocol(episode: &mut Episode<'_>, chance: &Chance) {
    let attack = episode.attack;
    while episode.goes_on() {
        let Some(mut client) = episode.connect() else {
            return;
        };
        let bytes = match chance.below(4) {
            0 => chance.pick(MALFORMED).to_vec(),
            1 => {
                let brackets: &[&[u8]] =
                    &[b"*1\r\n", b"%1\r\n+", b"~1\r\n", b">1\r\n", b"[", b"|1\r\n"];
                chance
                    .pick(brackets)
                    .repeat(chance.pick(&[100, 10_000, 100_000]))
            }
            2 => {
                let row = &attack.table[chance.below(attack.table.len())];
                let mut bytes = encode(&row.request(chance));
                // The name stays: a FLUSHALL by chance would be counted nowhere.
                let start = bytes.len().min(20);
                for _ in 0..=chance.below(4) {
                    let at = start + chance.below(bytes.len() - start);
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = chance.byte();
                    }
                }
                if bytes
                    .windows(5)
                    .any(|name| name.eq_ignore_ascii_case(b"flush"))
                {
                    continue;
                }
                bytes
            }
            _ => noise(chance.pick(&[1, 100, 10_000, 100_000]), chance),
        };
        client.send(&bytes);
        if chance.one_in(2) {
            client.read(Duration::from_millis(30), |_| false);
        }
    }
}

/// The connections that [`half_sent`] keeps; the two attackers share them.
static HELD: Mutex<Vec<TcpStream>> = Mutex::new(Vec::new());

/// Requests that stop somewhere, on connections that stay.
fn half_sent(episode: &mut Episode<'_>, chance: &Chance) {
    while episode.goes_on() {
        let mut held = HELD.lock().unwrap();
        if held.len() >= CONNECTIONS {
            let at = chance.below(held.len());
            held.swap_remove(at);
        }
        drop(held);
        let Some(mut client) = episode.connect() else {
            return;
        };
        let size = chance.pick(&[10, 100, 100, 1_000, 100_000]);
        let request = encode(&[b"SET".to_vec(), key(chance), long(size, chance)]);
        client.send(&request[..chance.below(request.len())]);
        HELD.lock().unwrap().push(client.into_stream());
    }
}

/// A thousand connections, most of which have sent the beginning of a request; some go on a byte
/// at a time.
fn idle(episode: &mut Episode<'_>, chance: &Chance) {
    const BEGINNINGS: &[&[u8]] = &[
        b"",
        b"*",
        b"*3\r\n$3\r\nSET\r\n$1\r\n",
        b"GE",
        b"*2\r\n$3\r\nGET\r\n$10\r\na",
    ];
    episode.note(b"a thousand connections");
    loop {
        let missing = CONNECTIONS.saturating_sub(HELD.lock().unwrap().len());
        if missing == 0 || !episode.goes_on() {
            break;
        }
        for _ in 0..missing.min(20) {
            let Some(client) = episode.connect() else {
                return;
            };
            let mut stream = client.into_stream();
            drop(stream.write_all(chance.pick(BEGINNINGS)));
            HELD.lock().unwrap().push(stream);
        }
    }
    while episode.goes_on() {
        let mut held = HELD.lock().unwrap();
        let at = chance.below(held.len());
        if let Some(stream) = held.get_mut(at) {
            drop(stream.write_all(b"a"));
        }
    }
}

/// Many requests before the first reply.
fn pipelines(episode: &mut Episode<'_>, chance: &Chance) {
    let attack = episode.attack;
    while episode.goes_on() {
        let Some(mut client) = episode.connect() else {
            return;
        };
        let mut bytes = Vec::new();
        let is_alike = chance.one_in(3);
        let first = chance.below(attack.table.len());
        for _ in 0..=chance.below(256) {
            let at = if is_alike {
                first
            } else {
                chance.below(attack.table.len())
            };
            let row = &attack.table[at];
            let words = row.request(chance);
            // One that leaves the mode of requests and replies would end the pipeline early.
            let is_left_out = ["quit", "monitor", "flushall", "flushdb", "client"];
            if row.is_meant_to_stall() || is_left_out.contains(&row.name.as_str()) {
                continue;
            }
            attack.cover(&words);
            bytes.extend(encode(&words));
        }
        client.send(&bytes);
        client.finish();
    }
}

/// Transactions that are long, that watch much, that never end.
fn transactions(episode: &mut Episode<'_>, chance: &Chance) {
    while episode.goes_on() {
        let Some(mut client) = episode.connect() else {
            return;
        };
        if chance.one_in(2) {
            let count = chance.pick(&[1, 100, 10_000]);
            let keys = (0..count).map(|at| format!("h:m:{at}").into_bytes());
            client.request(
                &[b"WATCH".to_vec()]
                    .into_iter()
                    .chain(keys)
                    .collect::<Vec<_>>(),
            );
        }
        client.text("MULTI");
        let count = chance.pick(&[0, 1, 100, 3_000]);
        let one = chance.pick(&[
            "INCR h:n:1",
            "APPEND h:s:1 0123456789",
            "GET h:s:1",
            "HGETALL h:h:1",
            "MULTI",
            "EVAL while\u{a0}true 0",
            "SET h:n:1 x",
        ]);
        let words: Vec<&str> = one.split(' ').collect();
        client.send(&encode(&words).repeat(count));
        match chance.below(4) {
            0 => _ = client.text("DISCARD"),
            1 => {}
            _ => _ = client.text("EXEC"),
        }
        client.finish();
    }
}

/// Clients that request much and read nothing.
fn unread(episode: &mut Episode<'_>, chance: &Chance) {
    let Some(mut client) = episode.connect() else {
        return;
    };
    client.request(&[
        b"SET".to_vec(),
        b"h:unread".to_vec(),
        long(1_048_576, chance),
    ]);
    client.finish();
    let requests = [
        encode(&["GET", "h:unread"]).repeat(100),
        encode(&[&["MGET"][..], &["h:unread"; 100]].concat()),
        encode(&["EVAL", "return redis.call('get', KEYS[1])", "1", "h:unread"]).repeat(100),
        encode(&["GETRANGE", "h:unread", "0", "-1"]).repeat(100),
        encode(&["COMMAND", "DOCS"]).repeat(256),
        encode(&["ECHO", &"x".repeat(65_536)]).repeat(30),
    ];
    let request = &requests[chance.below(requests.len())];
    let mut deaf = Vec::new();
    while episode.goes_on() {
        if deaf.len() < 40 {
            let Some(mut client) = episode.connect() else {
                break;
            };
            client.send(request);
            deaf.push(client.into_stream());
        }
    }
    // Some read on after all, in small bites.
    let mut bite = [0; 1_000];
    for stream in deaf.iter_mut().take(5) {
        drop(stream.set_read_timeout(Some(Duration::from_millis(5))));
        drop(stream.read(&mut bite));
    }
}

/// Subscribers of much that read nothing, and long messages for them.
fn subscribers(episode: &mut Episode<'_>, chance: &Chance) {
    let mut deaf = Vec::new();
    for _ in 0..10 {
        let Some(mut client) = episode.connect() else {
            return;
        };
        let count = chance.pick(&[1, 100, 10_000]);
        let channels = (1..count).map(|at| format!("h:c:{at}").into_bytes());
        let first = [b"SUBSCRIBE".to_vec(), b"h:c".to_vec()];
        client.request(&first.into_iter().chain(channels).collect::<Vec<_>>());
        let pattern = chance.pick(PATTERNS).as_bytes().to_vec();
        client.request(&[b"PSUBSCRIBE".to_vec(), pattern, b"h:*".to_vec()]);
        deaf.push(client);
        if !episode.goes_on() {
            break;
        }
    }
    let Some(mut client) = episode.connect() else {
        return;
    };
    while episode.goes_on() {
        let bytes = chance.pick(&[0, 100, 100, 100_000, 1_048_576]);
        let message = vec![b"PUBLISH".to_vec(), b"h:c".to_vec(), long(bytes, chance)];
        for _ in 0..chance.pick(&[1, 10]) {
            client.request(&message);
        }
        client.finish();
    }
    drop(deaf);
}

/// Monitors that read nothing, and requests that make long lines for them.
fn monitors(episode: &mut Episode<'_>, chance: &Chance) {
    let mut deaf = Vec::new();
    for _ in 0..10 {
        let Some(mut client) = episode.connect() else {
            return;
        };
        client.text("MONITOR");
        deaf.push(client);
    }
    let Some(mut client) = episode.connect() else {
        return;
    };
    while episode.goes_on() {
        let count = chance.pick(&[1, 100, 10_000]);
        let word = long(chance.pick(&[1, 10, 100]), chance);
        let words = [&[b"DEL".to_vec()][..], &vec![word; count]].concat();
        client.request(&words);
        client.finish();
    }
    drop(deaf);
}

/// Ends, pauses and silences connections, its own for the most part.
fn kills(episode: &mut Episode<'_>, chance: &Chance) {
    while episode.goes_on() {
        let Some(mut client) = episode.connect() else {
            return;
        };
        let request = chance.pick(&[
            "CLIENT PAUSE 3",
            "CLIENT PAUSE 3 WRITE",
            "CLIENT PAUSE 0 ALL",
            "CLIENT PAUSE -1",
            "CLIENT UNPAUSE",
            "CLIENT KILL 127.0.0.1:1",
            "CLIENT KILL ADDR 127.0.0.1:1",
            "CLIENT KILL TYPE pubsub",
            "CLIENT KILL TYPE replica SKIPME no",
            "CLIENT KILL ID 9223372036854775807",
            "CLIENT KILL ID 0",
            "CLIENT KILL USER nobody",
            "CLIENT REPLY OFF",
            "CLIENT REPLY SKIP",
            "CLIENT LIST",
            "CLIENT LIST ID 1 2 3",
            "CLIENT SETNAME a\u{a0}b",
            "CLIENT SETINFO LIB-NAME \u{7}",
            "CLIENT NO-EVICT on",
            "CLIENT TRACKING on BCAST",
            "CLIENT UNBLOCK 1 ERROR",
            "HELLO 3 SETNAME x",
            "HELLO 9",
            "RESET",
            "QUIT",
        ]);
        for _ in 0..chance.pick(&[1, 1, 20]) {
            client.text(request);
        }
        client.finish();
    }
}

/// Wrong passwords.
fn logins(episode: &mut Episode<'_>, chance: &Chance) {
    while episode.goes_on() {
        let Some(mut client) = episode.connect() else {
            return;
        };
        let name = word(chance);
        let password = long(chance.pick(&[0, 10, 500, 20_000]), chance);
        for _ in 0..chance.pick(&[1, 10, 100]) {
            match chance.below(3) {
                0 => client.request(&[b"AUTH".to_vec(), password.clone()]),
                1 => client.request(&[b"AUTH".to_vec(), name.clone(), password.clone()]),
                _ => {
                    let words = [&b"HELLO"[..], b"3", b"AUTH", &name, &password];
                    client.request(&words.map(<[u8]>::to_vec))
                }
            };
        }
        client.finish();
    }
}

/// Many connections at once, closed at once.
fn storms(episode: &mut Episode<'_>, chance: &Chance) {
    while episode.goes_on() {
        let request: &[u8] = if chance.one_in(2) { b"" } else { b"PING\r\n" };
        let clients = (0..chance.pick(&[10, 100, 300])).map_while(|_| episode.connect());
        let mut streams: Vec<_> = clients.map(Client::into_stream).collect();
        streams
            .iter_mut()
            .for_each(|stream| drop(stream.write_all(request)));
        episode.note(format!("{} connections are closed", streams.len()).as_bytes());
        drop(streams);
    }
}

/// Whole databases: emptied, counted, listed.
fn flushes(episode: &mut Episode<'_>, chance: &Chance) {
    let Some(mut client) = episode.connect() else {
        return;
    };
    let count = chance.pick(NUMBERS);
    let pattern = chance.pick(PATTERNS);
    let requests = [
        vec!["SCAN", "0", "COUNT", count, "MATCH", pattern],
        vec!["SCAN", count],
        vec!["KEYS", pattern],
        vec!["DBSIZE"],
        vec!["RANDOMKEY"],
        vec!["INFO", "everything"],
        vec!["SELECT", chance.pick(&["0", "15", "16"])],
        vec!["FLUSHDB", "ASYNC"],
    ];
    for request in requests {
        if episode.goes_on() {
            send_words(&mut client, &request);
            client.finish();
        }
    }
    // Once in a while: what the attackers store is bounded, and canaries see that it is so.
    if chance.one_in(3) {
        client.text("FLUSHALL");
        client.finish();
    }
}

/// The HTTP listener: junk, and sockets that say nothing.
fn http(episode: &mut Episode<'_>, chance: &Chance) {
    let mut silent = Vec::new();
    while episode.goes_on() {
        let Some(mut client) = episode.connect_to(episode.attack.orders.http) else {
            return;
        };
        let long = "x".repeat(chance.pick(&[100, 8_192, 100_000]));
        match chance.below(5) {
            0 => _ = client.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
            1 => _ = client.send(format!("GET /{long} HTTP/1.1\r\n\r\n").as_bytes()),
            2 => _ = client.send(format!("GET / HTTP/1.1\r\nX: {long}").as_bytes()),
            3 => {
                let body =
                    b"POST /healthz HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\nx";
                client.send(body);
            }
            _ => _ = client.send(&noise(300, chance)),
        }
        if silent.len() < 80 {
            silent.push(client.into_stream());
        } else {
            client.read(Duration::from_millis(20), |_| false);
        }
    }
}

/// The port of the peers: datagrams that are noise or look like the beginning of a connection.
fn datagrams(episode: &mut Episode<'_>, chance: &Chance) {
    let Ok(socket) = UdpSocket::bind("127.0.0.1:0") else {
        return;
    };
    while episode.goes_on() {
        for _ in 0..20 {
            let mut bytes = noise(chance.pick(&[0, 1, 20, 300, 1_200]), chance);
            if chance.one_in(2) && bytes.len() > 7 {
                // A long header of version 1, connection ids of eight bytes.
                bytes[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
            }
            episode.note(&bytes);
            drop(socket.send_to(&bytes, episode.attack.orders.quic));
        }
    }
}

fn send_words(client: &mut Client<'_>, words: &[&str]) -> bool {
    let words: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
    client.request(&words)
}

/// As many as [`idle`] and [`half_sent`] keep open.
const CONNECTIONS: usize = 1_000;

const MALFORMED: &[&[u8]] = &[
    b"\0\0\0\0",
    b"\r\n\r\n\r\n\r\n",
    b"*-1\r\n",
    b"*-2147483648\r\n",
    b"*0\r\n",
    b"*2147483647\r\n",
    b"*1048576\r\n$1\r\na\r\n",
    b"*9223372036854775807\r\n$1\r\n",
    b"*99999999999999999999\r\n",
    b"*1\r\n$-1\r\n",
    b"*1\r\n$-9223372036854775808\r\n",
    b"*1\r\n$2147483647\r\nPING",
    b"*1\r\n$536870912\r\nPING",
    b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$16777217\r\nxxxx",
    b"*1\r\n$9223372036854775807\r\n",
    b"*1\r\n$04\r\nPING\r\n",
    b"*1\r\n$4\r\nPINGxx",
    b"*1\r\n:4\r\n",
    b"*1\r\n*1\r\n$4\r\nPING\r\n",
    b"*1\n$4\nPING\n",
    b"$4\r\nPING\r\n",
    b"+PING\r\n",
    b"-ERR\r\n",
    b":9223372036854775808\r\n",
    b"SET \"a\\xff\\xgg",
    b"SET 'a",
    b"GET \"a\"b\r\n",
    b"PING\0\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"*3\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$4\r\nAUTH\r\n",
];
