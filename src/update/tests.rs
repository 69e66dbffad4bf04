//! Hostile scripts, and the patterns of Lua compared with Lua's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use mlua::{Lua, MultiValue, Value};
use proptest::prelude::*;

use super::{Change, Context, Limit, Reply, State, Watch};
use crate::model::Millis;

fn request(words: &[&[u8]]) -> Bytes {
    let mut request = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        request.extend(format!("${}\r\n", word.len()).into_bytes());
        request.extend_from_slice(word);
        request.extend(b"\r\n");
    }
    Bytes::from(request)
}

fn eval_with(state: &mut State, limit: &Limit, words: &[&[u8]]) -> Reply {
    let context = Context {
        now: Millis(1_000),
        value_bytes_max: 16 << 20,
        limit,
    };
    Change::Command(request(words)).make(state, context)
}

fn eval(source: &str) -> Reply {
    let words: [&[u8]; 4] = [b"EVAL", source.as_bytes(), b"1", b"k"];
    eval_with(&mut State::default(), &Limit::of_steps(), &words)
}

fn fails(source: &str, part: &str) {
    match eval(source) {
        Reply::Error(text) => assert!(text.contains(part), "{source}: {text}"),
        told => panic!("{source}: {:.200}", format!("{told:?}")),
    }
}

/// A clock that goes on by a millisecond each time it is looked at.
#[derive(Debug, Default)]
struct Looks(AtomicU64, bool);

impl Watch for Looks {
    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.0.fetch_add(1, Ordering::Relaxed))
    }

    fn is_killed(&self) -> bool {
        self.1 && self.0.load(Ordering::Relaxed) > 5
    }
}

#[test]
fn precompiled_code_is_no_script() {
    // As Lua would dump it: only the beginning counts.
    let lua = Lua::new();
    let dumped: mlua::LuaString = lua
        .load("return string.dump(function() return 1 end)")
        .eval()
        .unwrap();
    let bytes = dumped.as_bytes();
    assert!(bytes.starts_with(b"\x1bLua"));
    let words: [&[u8]; 4] = [b"EVAL", &bytes, b"1", b"k"];
    let told = eval_with(&mut State::default(), &Limit::of_steps(), &words);
    assert!(
        matches!(&told, Reply::Error(text) if text.contains("Error compiling script")),
        "{told:?}"
    );
    fails("return string.dump(function() end)", "nil value");
    fails("return ('').dump(function() end)", "nil value");
    for name in [
        "load",
        "loadstring",
        "loadfile",
        "dofile",
        "require",
        "getfenv",
        "newproxy",
    ] {
        fails(&format!("return {name}"), "nonexistent global variable");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of scripts")]
fn what_a_script_takes_is_bounded() {
    for (source, part) in [
        // 100 GB.
        (
            "local s=string.rep('x',1000000) local t={} for i=1,200 do t[i]=s end \
             local u={} for i=1,500 do u[i]=t end return u",
            "the reply of the script",
        ),
        (
            "local t={} for i=1,2000 do t[i]={} end local u={} for i=1,2000 do u[i]=t end return u",
            "the reply",
        ),
        ("return string.find(string.rep('a',600),'a*a*a*b')", "steps"),
        (
            "return string.match(string.rep('a',600),'a*a*a*b')",
            "steps",
        ),
        (
            "return string.gsub(string.rep('a',600),'a*a*a*b','')",
            "steps",
        ),
        (
            "for w in string.gmatch(string.rep('a',600),'a*a*a*b') do end",
            "steps",
        ),
        (
            "return string.find(string.rep('(',30000), '%b()', 1)",
            "steps",
        ),
        (
            "return string.find(string.rep('a',5000), string.rep('a?', 5000))",
            "too complex",
        ),
        ("return string.rep('', 1e15)", ""),
        ("return string.rep('x', 1e15)", "memory"),
        (
            "local s = string.rep('x', 1000) return s:gsub('x', s):gsub('x', s)",
            "memory",
        ),
        (
            "local t={} for i=1,2e5 do t[i]=1 end while true do table.remove(t, 1) end",
            "steps",
        ),
        ("table.insert({}, -1e15, 1)", "steps"),
        (
            "local t={} for i=1,1e5 do t[i]=i end table.sort(t, function() return true end)",
            "steps",
        ),
        (
            "xpcall(function() while true do end end, function() while true do end end)",
            "steps",
        ),
        ("xpcall(error, function() while true do end end)", "steps"),
        (
            "while true do pcall(string.find, string.rep('a',600), 'a*a*a*b') end",
            "steps",
        ),
        (
            "local s=string.rep('x',5e6) while true do s:upper() end",
            "steps",
        ),
        (
            "local s=string.rep('x',5e6) while true do string.format('%s', s) end",
            "steps",
        ),
        (
            "local s=string.rep('x',1e6) local t={} for i=1,99 do t[i]=s end redis.call('mget',unpack(t))",
            "memory",
        ),
        (
            "local s=string.rep('x',1e6) local t={} for i=1,99 do t[i]=s end return cjson.encode(t)",
            "memory",
        ),
        ("return cjson.decode(string.rep('[', 100000))", "recursion"),
        ("local t={} t[1]=t return cjson.encode(t)", "depth"),
        (
            "return cjson.decode('['..string.rep('{},', 2e6)..'{}]')",
            "memory",
        ),
    ] {
        if part.is_empty() {
            assert_eq!(eval(source), Reply::Bulk(Bytes::new()), "{source}");
        } else {
            fails(source, part);
        }
    }
}

#[test]
fn a_script_that_takes_too_long_changes_nothing() {
    for (is_killed, part) in [(false, "script_timeout"), (true, "SCRIPT KILL")] {
        let looks = Arc::new(Looks(AtomicU64::new(0), is_killed));
        let limit = Limit::watched(looks, Duration::from_millis(20));
        let mut state = State::default();
        let source = b"redis.call('set', KEYS[1], 'v') while true do pcall(function() while true do end end) end";
        let words: [&[u8]; 4] = [b"EVAL", source, b"1", b"k"];
        let told = eval_with(&mut state, &limit, &words);
        assert!(
            matches!(&told, Reply::Error(text) if text.contains(part)),
            "{told:?}"
        );
        assert!(state.held().is_none() && !state.is_changed());
    }
}

#[test]
fn the_scripts_of_a_batch_are_bounded_together() {
    let limit = Limit::of_steps();
    let endless: [&[u8]; 4] = [b"EVAL", b"while true do end", b"1", b"k"];
    let told: Vec<Reply> = (0..64)
        .map(|_| eval_with(&mut State::default(), &limit, &endless))
        .collect();
    let refused =
        |reply: &&Reply| matches!(reply, Reply::Error(text) if text.contains("did not run"));
    assert_eq!(told.iter().filter(refused).count(), 60);
    // What is no script goes on.
    let told = eval_with(&mut State::default(), &limit, &[b"INCR", b"k"]);
    assert_eq!(told, Reply::Integer(1));
}

#[test]
fn nothing_is_left_for_the_next_script() {
    for source in [
        "table.insert(string, 'x') return #string",
        "table.insert(math, 'x') return #math",
    ] {
        assert_eq!(eval(source), Reply::Integer(1));
        assert_eq!(eval(source), Reply::Integer(1));
    }
    assert_eq!(
        eval("math.randomseed(7) return tostring(math.random())"),
        eval("math.randomseed(7) return tostring(math.random())")
    );
    assert_eq!(
        eval("return math.random(1e9)"),
        eval("return math.random(1e9)")
    );
    fails("redis.call = nil", "readonly table");
    fails("redis.x = 1", "readonly table");
}

#[test]
fn many_arguments_and_elements_fit() {
    let args: Vec<String> = (0..20_000).map(|arg| arg.to_string()).collect();
    let mut words: Vec<&[u8]> = vec![b"EVAL", b"return {#ARGV, ARGV[20000]}", b"1", b"k"];
    words.extend(args.iter().map(String::as_bytes));
    let told = eval_with(&mut State::default(), &Limit::of_steps(), &words);
    let last = Reply::Bulk(Bytes::from_static(b"19999"));
    assert_eq!(told, Reply::Array(vec![Reply::Integer(20_000), last]));
    let fill = "for i=1,10000 do t[#t+1]=i t[#t+1]='v' end";
    let source = format!(
        "local t={{}} {fill} for i=1,#t,4000 do redis.call('hset', KEYS[1], unpack(t, i, i+3999)) end \
         return #redis.call('hgetall', KEYS[1])"
    );
    assert_eq!(eval(&source), Reply::Integer(20_000));
    assert_eq!(
        eval("return #cjson.decode('['..string.rep('{\"a\":1},', 20000)..'1]')"),
        Reply::Integer(20_001)
    );
}

#[test]
fn tables_are_worked_on_as_in_lua() {
    for (source, told) in [
        (
            "local t={3,1,2} table.sort(t) return table.concat(t, ',')",
            "1,2,3",
        ),
        (
            "local t={'b','a'} table.sort(t, function(a,b) return a>b end) return table.concat(t)",
            "ba",
        ),
        (
            "local t={1,2} table.insert(t,1,0) table.insert(t,9) return table.concat(t,',')",
            "0,1,2,9",
        ),
        (
            "local t={1,2,3} return table.remove(t,1)..table.remove(t)..#t",
            "131",
        ),
        (
            "local s='' for k,v in string.gmatch('a=1,b=2','(%w+)=(%w+)') do s=s..k..v end return s",
            "a1b2",
        ),
        (
            "local s='' for w in ('a,b'):gmatch('%a*') do s=s..w..';' end return s",
            "a;;b;;",
        ),
        (
            "return (string.gsub('hello world','o','0',1))",
            "hell0 world",
        ),
        ("return (string.gsub('abc','%w','%0%0'))", "aabbcc"),
        ("return (string.gsub('abc','(b)',{b='X'}))", "aXc"),
        (
            "return (string.gsub('abc','b',function(c) return c:upper() end))",
            "aBc",
        ),
        (
            "return (string.gsub('abc','x*',function() return '-' end))",
            "-a-b-c-",
        ),
        (
            "return (string.gsub('abab','^(a)b',function(a) return a..1 end))",
            "a1ab",
        ),
        (
            "local s, n = string.gsub('a b c','%a',{a=1,b=false},2) return s..n",
            "1 b c2",
        ),
        (
            "return cjson.encode({1,2.5,'a/b',{}})",
            "[1,2.5,\"a\\/b\",{}]",
        ),
        (
            "return cjson.encode({0.1,1e20,-3,1e-7})",
            "[0.1,1e+20,-3,1e-07]",
        ),
        (
            "return cjson.encode(cjson.decode('{\"x\":[true,null]}'))",
            "{\"x\":[true,null]}",
        ),
    ] {
        assert_eq!(
            eval(source),
            Reply::Bulk(Bytes::copy_from_slice(told.as_bytes())),
            "{source}"
        );
    }
}

/// What a function of the real library, and what ours, makes of it.
fn both(code: &str, args: &[&[u8]]) -> (Result<String, String>, Result<String, String>) {
    let real = Lua::new();
    let ours = Lua::new();
    let meter = std::rc::Rc::new(Limit::of_steps().begin().unwrap());
    super::library::install(&ours, &meter).unwrap();
    let run = |lua: &Lua| {
        let function: mlua::Function = lua.load(code).into_function().unwrap();
        let words = args
            .iter()
            .map(|arg| lua.create_string(arg).map(Value::String));
        let words: MultiValue = words.collect::<mlua::Result<_>>().unwrap();
        let told = function.call::<MultiValue>(words);
        told.map(|values| format!("{:?}", values.iter().map(text).collect::<Vec<_>>()))
            .map_err(|error| {
                error
                    .to_string()
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            })
    };
    (run(&real), run(&ours))
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{:?}", &text.as_bytes()[..]),
        Value::Integer(number) => number.to_string(),
        Value::Number(number) => number.to_string(),
        other => format!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn patterns_match_as_in_lua(
        pattern in prop::collection::vec(prop::sample::select(vec![
            "a", "b", "%a", "%d", "%s", "%W", "%f[a]", "%f[%w]", "%bab", "[ab]", "[^a]", "[%d-]", "[a-c]", "[]", "[",
            "]", "(", ")", "()", "%1", "%2", "*", "+", "-", "?", "^", "$", ".", "%", "%%", "\0", "1",
        ]), 0..7),
        text in "[ab1 \\x00]{0,9}",
        by in prop::sample::select(vec!["x", "%0", "%1", "<%1>", "%%", "%", ""]),
        from in -3_i8..5,
    ) {
        let pattern = pattern.concat();
        let args: [&[u8]; 3] = [text.as_bytes(), pattern.as_bytes(), by.as_bytes()];
        for code in [
            format!("local s, p = ... return string.find(s, p, {from})"),
            format!("local s, p = ... return string.match(s, p, {from})"),
            "local s, p = ... return string.find(s, p, 1, true)".to_owned(),
            "local s, p, r = ... return string.gsub(s, p, r)".to_owned(),
            "local s, p, r = ... return string.gsub(s, p, r, 1)".to_owned(),
        ] {
            let (real, ours) = both(&code, &args);
            prop_assert_eq!(real.is_ok(), ours.is_ok(), "{} {:?} {:?}", code, text, pattern);
            if real.is_ok() {
                prop_assert_eq!(real, ours, "{} {:?} {:?}", code, text, pattern);
            }
        }
    }
}
