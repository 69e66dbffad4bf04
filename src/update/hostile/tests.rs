//! Scripts that are made to end the process: each must come back, with whatever reply.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::{Change, Context, Limit, Reply, State, Watch};
use crate::model::Millis;

/// A clock that goes on by 100 us each time it is looked at: what is endless ends soon.
#[derive(Debug, Default)]
struct Looks(AtomicU64);

impl Watch for Looks {
    fn elapsed(&self) -> Duration {
        Duration::from_micros(100 * self.0.fetch_add(1, Ordering::Relaxed))
    }

    fn is_killed(&self) -> bool {
        false
    }
}

fn eval(source: &str, max_ms: u64) -> Reply {
    let limit = Limit::watched(Arc::new(Looks::default()), Duration::from_millis(max_ms));
    let context = Context {
        now: Millis(1_000),
        value_bytes_max: 1 << 20,
        limit: &limit,
    };
    let mut request = String::from("*4\r\n$4\r\nEVAL\r\n");
    for word in [source, "1", "k"] {
        let _infallible = write!(request, "${}\r\n{word}\r\n", word.len());
    }
    Change::Command(Bytes::from(request)).make(&mut State::default(), context)
}

/// On a thread with the stack of those that compute.
fn on_thread(work: impl FnOnce() + Send + 'static) {
    let thread = thread::Builder::new().stack_size(STACK_BYTES);
    thread.spawn(work).unwrap().join().unwrap();
}

#[test]
fn no_recursion_and_no_number_of_results_ends_the_process() {
    on_thread(|| {
        for source in RECURSIONS {
            let _reply = eval(source, 1_000);
        }
    });
}

#[test]
fn protected_calls_return_what_lua_returns() {
    on_thread(|| {
        for (source, value) in [
            ("return select('#', pcall(unpack, {}, 1, 5000))", 5_001),
            (
                "return select('#', pcall(function() return nil, nil end))",
                3,
            ),
            (
                "return select('#', xpcall(function() return unpack({}, 1, 300) end, error))",
                301,
            ),
            (
                "return (select(2, pcall(function(a, b) return a + b end, 3, 4)))",
                7,
            ),
            ("local ok, e = pcall(error, {7}) return e[1]", 7),
            (
                "local ok, e = pcall(nil) return e == 'attempt to call a nil value' and 1",
                1,
            ),
            (
                "local ok, e = pcall(function() error('x', 2) end) return e == 'x' and 1",
                1,
            ),
            (
                "local ok, e = pcall(function() error('x') end) return e == 'user_script:1: x' and 1",
                1,
            ),
            (
                "local ok, e = xpcall(function() error('x', 0) end, function(e) return e .. 'y' end) return e == 'xy' and 1",
                1,
            ),
            (
                "local ok, e = xpcall(error, error) return e == 'error in error handling' and 1",
                1,
            ),
            (
                "local function f(n) if n == 0 then return 0 end return 1 + select(2, pcall(f, n - 1)) end return f(149)",
                149,
            ),
            (
                "local t = setmetatable({}, {__call = function(_, a) return a end}) return select(2, pcall(t, 9))",
                9,
            ),
        ] {
            assert_eq!(eval(source, 5_000), Reply::Integer(value), "{source}");
        }
    });
}

#[test]
fn scripts_by_chance_never_end_the_process() {
    on_thread(|| {
        let variable = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
        let seed = variable("QUORATE_SCRIPTS_SEED").unwrap_or_else(std::process::id);
        let count = variable("QUORATE_SCRIPTS").unwrap_or(400);
        println!("QUORATE_SCRIPTS_SEED={seed}");
        let mut rng = StdRng::seed_from_u64(u64::from(seed));
        for _ in 0..count {
            let source = script(&mut rng);
            let _reply = eval(&source, 60);
        }
    });
}

fn one<'a>(rng: &mut StdRng, of: &[&'a str]) -> &'a str {
    of[rng.random_range(0..of.len())]
}

/// A template whose `E` are expressions, `F` functions, `N` numbers and `M` tables with metamethods.
fn filled(rng: &mut StdRng, template: &str, depth: u32) -> String {
    let mut out = String::new();
    let mut before = ' ';
    for letter in template.chars() {
        let part = match letter {
            _ if before.is_alphanumeric() || before == '_' => letter.to_string(),
            'E' => expression(rng, depth),
            'F' => function(rng, depth),
            'N' => one(rng, NUMBERS).to_owned(),
            'M' => one(rng, &["m", "n", "t"]).to_owned(),
            other => other.to_string(),
        };
        out += &part;
        before = letter;
    }
    out
}

fn expression(rng: &mut StdRng, depth: u32) -> String {
    let Some(depth) = depth.checked_sub(1) else {
        return one(rng, LEAVES).to_owned();
    };
    let template = one(rng, EXPRESSIONS);
    filled(rng, template, depth)
}

fn function(rng: &mut StdRng, depth: u32) -> String {
    match rng.random_range(0..4) {
        0 | 1 => one(rng, FUNCTIONS).to_owned(),
        _ => format!("function(...) return {} end", expression(rng, depth)),
    }
}

fn script(rng: &mut StdRng) -> String {
    let mut out = String::from("local f, g, t, m, n = nil, nil, {1, 2, 3}, {}, {}\n");
    for name in ["f", "g"] {
        let (first, then) = (expression(rng, 3), expression(rng, 3));
        let _infallible = writeln!(
            out,
            "{name} = function(...) local x = {first} return {then} end"
        );
    }
    for name in ["m", "n"] {
        let mut events = String::new();
        for _ in 0..rng.random_range(0..6) {
            let (event, function) = (one(rng, EVENTS), function(rng, 2));
            let _infallible = write!(events, "{event} = {function}, ");
        }
        let _infallible = writeln!(out, "setmetatable({name}, {{{events}}})");
    }
    let (first, then) = (expression(rng, 4), expression(rng, 4));
    let _infallible = write!(out, "local x = {first}\nreturn {then}");
    out
}

/// Of a thread that blocks, as tokio makes them.
const STACK_BYTES: usize = 2 * 1024 * 1024;
const NUMBERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "2",
    "19",
    "20",
    "21",
    "33",
    "200",
    "250",
    "7990",
    "8000",
    "1e5",
    "1e15",
    "0/0",
    "2^1023*10",
];
const LEAVES: &[&str] = &[
    "1", "'x'", "nil", "t", "m", "n", "...", "f", "''", "'%b()'", "KEYS[1]",
];
const EVENTS: &[&str] = &[
    "__index",
    "__newindex",
    "__tostring",
    "__call",
    "__concat",
    "__lt",
    "__le",
    "__eq",
    "__unm",
    "__add",
    "__len",
    "__gc",
    "__mode",
    "__metatable",
];
const FUNCTIONS: &[&str] = &[
    "f",
    "g",
    "pcall",
    "xpcall",
    "error",
    "tostring",
    "unpack",
    "select",
    "next",
    "setmetatable",
    "string.gsub",
    "string.format",
    "table.sort",
    "redis.call",
    "redis.pcall",
    "cjson.encode",
    "assert",
    "m",
];
const EXPRESSIONS: &[&str] = &[
    "pcall(F, E)",
    "pcall(F, E)",
    "xpcall(F, F)",
    "pcall(pcall, pcall, F)",
    "{pcall(F, E), E}",
    "f(E)",
    "g(E)",
    "f(E)",
    "error(E)",
    "tostring(M)",
    "M.x",
    "M .. E",
    "M < M",
    "M == M",
    "M(E)",
    "-M",
    "M + E",
    "string.gsub('abc', '.', F)",
    "string.gsub(E, E, M)",
    "table.sort({3, 1, 2}, F)",
    "table.foreach({1, 2}, F)",
    "setmetatable({}, M)",
    "setmetatable(M, M)",
    "getmetatable('').__index",
    "unpack(t, 1, N)",
    "pcall(unpack, t, 1, N)",
    "select(N, E, E)",
    "string.rep('x', N)",
    "string.format('%s%d%q', E, N, E)",
    "string.format('%99.99f', N)",
    "string.byte(string.rep('x', 8000), 1, N)",
    "string.char(string.byte(string.rep('x', 300), 1, N))",
    "cjson.encode(M)",
    "cjson.decode('[[1],{}]')",
    "redis.pcall('set', KEYS[1], E)",
    "redis.call(unpack(t, 1, N))",
    "redis.pcall('get', KEYS[1])",
    "table.concat(t, E)",
    "table.concat({'a', 'b'}, 'x', N, 3)",
    "next(M)",
    "rawset(M, E, F)",
    "rawequal(M, E)",
    "string.find(string.rep('a', 40), string.rep('(a)', 32))",
    "string.match('aaaa', string.rep('()', N))",
    "string.gmatch('abc', '()(.)')()",
    "M[E]",
    "assert(E, E)",
    "tonumber(E, N)",
    "math.max(N, N)",
    "math.random(N)",
    "{E, E, x = E}",
    "(E) and (E) or (E)",
    "function(...) return E end",
    "table.insert(t, N, E)",
    "table.remove(t, N)",
    "type(E)",
    "#M",
];
const RECURSIONS: &[&str] = &[
    "local function f() return pcall(f) end return f()",
    "local function f() return xpcall(f, f) end return f()",
    "local function f() return xpcall(f, error) end return f()",
    "local function f() return pcall(pcall, f) end return f()",
    "return pcall(unpack, {}, 1, 20)",
    "return pcall(unpack, {}, 1, 21)",
    "return pcall(unpack, {}, 1, 7990)",
    "return pcall(unpack, {}, 1, 8000)",
    "return unpack({}, 1, 7990)",
    "return {unpack({}, 1, 1e9)}",
    "return (pcall(function() return unpack({}, 1, 7990) end))",
    "local function f() return pcall(unpack, {f()}, 1, 100) end return f()",
    "return string.find(string.rep('a',40), string.rep('(a)',32))",
    "return string.match(string.rep('a',40), string.rep('(a)',32))",
    "return string.gsub(string.rep('a',40), string.rep('(a)',32), function(...) return select('#', ...) end)",
    "return string.gmatch(string.rep('a',40), string.rep('(a)',32))()",
    "local function f() return string.gsub('a', 'a', f) end return f()",
    "local function f() return pcall(string.gsub, 'a', 'a', f) end return f()",
    "local function f() return string.gsub('a', '(a)', function() return pcall(f) end) end return f()",
    "local m = setmetatable({}, {__index = function(t, k) return t[k] end}) return m.x",
    "local m = setmetatable({}, {__index = function(t, k) return pcall(function() return t[k] end) end}) return m.x",
    "local m = setmetatable({}, {}) getmetatable(m).__index = m return m.x",
    "local m = setmetatable({}, {}) getmetatable(m).__index = m return string.gsub('x', 'x', m)",
    "local m = {} for i = 1, 1000 do m = setmetatable({}, {__index = m}) end return m.x",
    "local m m = setmetatable({}, {__tostring = function() return tostring(m) end}) return tostring(m)",
    "local m m = setmetatable({}, {__concat = function(a, b) return a .. b end}) return m .. m",
    "local m m = setmetatable({}, {__eq = function(a, b) return a == b end}) local n = setmetatable({}, getmetatable(m)) return m == n",
    "local m m = setmetatable({}, {__lt = function(a, b) return a < b end}) return m < m",
    "local m m = setmetatable({}, {__call = function(...) return m(...) end}) return m()",
    "local m = setmetatable({}, {}) getmetatable(m).__call = m return m()",
    "local m m = setmetatable({}, {__newindex = function(t, k, v) t[k] = v end}) m.x = 1",
    "local m = setmetatable({}, {__newindex = function(t, k, v) t[k] = v end}) return string.gsub('x', 'x', function() m.x = 1 end)",
    "local function f(a, b) table.sort({1, 2, 3}, f) return true end return f()",
    "local function f() table.foreach({1}, f) end f()",
    "local function f(...) return f(1, ...) end return f()",
    "local function f() return f() + 1 end return f()",
    "local function f() return f() end return f()",
    "local function f(...) return select('#', f(..., ...)) end return f(1)",
    "return string.find(string.rep('(',1000000),'%b()')",
    "return 2^1023*10",
    "return -(2^1023*10)",
    "return 0/0",
    "return cjson.encode(2^1023*10)",
    "return redis.call('set', KEYS[1], 2^1023*10)",
    "return redis.call(unpack({}, 1, 7000))",
    "local t = {} for i = 1, 7000 do t[i] = 'x' end return redis.call('mget', unpack(t))",
    "local t = {} for i = 1, 7000 do t[i] = 'x' end return #string.format(string.rep('%s', 7000), unpack(t))",
    "return string.char(string.byte(string.rep('x', 7000), 1, 7000))",
    "return #string.format('%99.99f', -1e308)",
    "return string.format('%1000d', 1)",
    "return string.format('%', 1)",
    "return string.format(string.rep('%d', 1e5), 1)",
    "return tostring(setmetatable({}, {__tostring = function() return {} end}))",
    "error(setmetatable({}, {__tostring = function() error('x') end}))",
    "error(nil)",
    "error()",
    "error({})",
    "error(error)",
    "error(string.rep('x', 1e6))",
    "error({err = string.rep('x', 1e6)})",
    "return pcall(error)",
    "xpcall(error, function(e) error(e) end)",
    "xpcall()",
    "pcall()",
    "local function h(e) return xpcall(error, h) end return xpcall(error, h)",
    "local t = {} t[1] = t return t",
    "return setmetatable({}, {__index = function() error('x') end})",
    "local t = {} local s = t for i = 1, 1e5 do s[1] = {} s = s[1] end return t",
    "local t = {} local s = t for i = 1, 1e5 do s[1] = {} s = s[1] end return cjson.encode(t)",
    "return cjson.decode(string.rep('[', 127) .. string.rep(']', 127))",
    "return cjson.decode(string.rep('{\"a\":', 1e5))",
    "local s = string.rep('x', 1e7) local t = {} while true do t[#t + 1] = pcall(string.rep, s, 2) end",
    "local t = {} while true do t[#t + 1] = {} pcall(string.rep, 'x', 1e6) end",
    "local t = {} while true do pcall(function() while true do t[#t + 1] = #t .. 'x' end end) end",
    "local function f(n) local a,b,c,d = n,n,n,n return f(n + 1) + a end return pcall(f, 1)",
    "local function f(n) redis.call('set', KEYS[1], n) return f(n + 1) + 1 end return f(1)",
    "local function f(n) string.find('x', 'x') return f(n + 1) + 1 end return f(1)",
    "setmetatable(_G, {}) return 1",
    "getmetatable('').__index = 1",
    "return setmetatable(KEYS, {__index = KEYS})[5]",
    "next({}, 'x')",
    "for k in pairs(setmetatable({}, {__mode = 'kv'})) do end",
    "local t = setmetatable({}, {__mode = 'k'}) for i = 1, 1e5 do t[{}] = i end return 1",
    "table.concat({{}})",
    "table.concat({}, 'x', 1, 1e9)",
    "select(-1)",
    "select(-2147483649, 1)",
    "return select(2147483648, 1)",
    "unpack({}, -2147483648, 2147483647)",
    "unpack({}, 1, 2147483647)",
    "unpack({}, 0/0, 0/0)",
    "unpack({}, '-2147483648', '2147483647')",
    "unpack({}, -4294967296, 4294967295)",
    "return {unpack({}, 2147483647, 2147483647)}",
    "string.byte('x', -2147483648, 2147483647)",
    "return string.sub('x', -2147483648, 2147483647)",
    "return tonumber('1', 37)",
    "return tonumber(string.rep('f', 1e6), 16)",
    "return math.random(0, 2^53)",
    "return math.ldexp(1, 1e9)",
    "return math.fmod(1, 0)",
    "return table.getn({})",
    "table.setn({}, 1)",
];

#[test]
fn no_nesting_of_source_ends_the_process() {
    on_thread(|| {
        for (open, middle, close) in [
            ("(", "1", ")"),
            ("{", "1", "}"),
            ("-", "1", ""),
            ("not ", "1", ""),
            ("function() return ", "1", " end"),
            ("1 .. ", "1", ""),
            ("2 ^ ", "1", ""),
            ("f(", "1", ")"),
            ("t[", "1", "]"),
            ("{[1]=", "1", "}"),
        ] {
            for times in [10, 150, 190, 199, 250, 5_000] {
                let nested = format!("{}{middle}{}", open.repeat(times), close.repeat(times));
                let _reply = eval(&format!("return {nested}"), 60);
            }
        }
        for statement in [
            "do ",
            "while true do ",
            "if x then ",
            "for i = 1, 2 do ",
            "local function f() ",
        ] {
            for times in [190, 250, 4_000] {
                let nested = format!("{}{}", statement.repeat(times), "end ".repeat(times));
                let _reply = eval(&nested, 60);
            }
        }
        for part in [".b", "[1]", "()", "'x'", ":b()"] {
            let calls = part.repeat(9_000);
            let _reply = eval(&format!("local a = {{}} return a{calls}"), 60);
        }
        let _reply = eval(&"local a ".repeat(250), 60);
        let _reply = eval(&format!("return {{{}}}", "1,".repeat(30_000)), 60);
        let _reply = eval(&format!("return f({})", "1,".repeat(300)), 60);
        let _reply = eval(&format!("return function({}a) end", "a,".repeat(300)), 60);
    });
}
