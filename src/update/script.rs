//! Scripts: Lua 5.1, run on the state of their key.
//!
//! A script sees what Redis shows one: `KEYS`, `ARGV`, `redis.call`, tables, strings, numbers, JSON; no
//! files, no clock but `TIME`, no other key. It is bounded in steps, in time, in memory and in its reply,
//! and has a virtual machine of its own.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use mlua::chunk::ChunkMode;
use mlua::{Error, Function, HookTriggers, Lua, LuaOptions, MultiValue, StdLib, Value, VmState};

use super::limit::{Ended, MEMORY_MAX, Meter};
use super::{Context, Reply, State, apply, json, library, script_name};
use crate::resp::{Command, CommandKind, Script, parse_words};

/// Runs a script. What is told.
///
/// What it did before an error stays done, as in Redis; if it took more than it may, nothing does.
pub(super) fn run(script: Script<'_>, state: &mut State, context: Context<'_>) -> Reply {
    if script.source.len() > SOURCE_BYTES_MAX {
        return Reply::Error(format!(
            "ERR Error compiling script: it has more than {SOURCE_BYTES_MAX} bytes"
        ));
    }
    let meter = match context.limit.begin() {
        Ok(meter) => Rc::new(meter),
        Err(ended) => return Reply::Error(format!("ERR {ended}")),
    };
    let before = state.clone();
    let told = new_machine(&meter).and_then(|lua| run_in(&lua, script, state, (context, &meter)));
    context.limit.end(&meter);
    let told = match told {
        Err(error) if matches!(root(&error), Error::MemoryError(_)) => {
            Err(meter.end(Ended::Memory))
        }
        told => meter.ended().map_or(Ok(told), Err),
    };
    match told {
        Ok(Ok(reply)) => reply,
        Ok(Err(error)) => Reply::Error(error_text(&error, &script_name(script.source))),
        Err(ended) => {
            *state = before;
            Reply::Error(format!("ERR {ended}; nothing that it did is applied"))
        }
    }
}

/// A machine in which a script can do no harm. Each run has its own: nothing is left for the next one.
fn new_machine(meter: &Rc<Meter>) -> mlua::Result<Lua> {
    let libraries = StdLib::TABLE | StdLib::STRING | StdLib::MATH;
    let lua = Lua::new_with(libraries, LuaOptions::default())?;
    lua.set_memory_limit(MEMORY_MAX)?;
    let redis = lua.create_table()?;
    for (name, level) in [
        ("LOG_DEBUG", 0),
        ("LOG_VERBOSE", 1),
        ("LOG_NOTICE", 2),
        ("LOG_WARNING", 3),
    ] {
        redis.raw_set(name, level)?;
    }
    redis.raw_set("REDIS_VERSION", crate::resp::REDIS_VERSION)?;
    for name in ["log", "setresp", "set_repl"] {
        redis.raw_set(name, lua.create_function(|_, _: MultiValue| Ok(()))?)?;
    }
    redis.raw_set("replicate_commands", lua.create_function(|_, ()| Ok(true))?)?;
    let own = Rc::clone(meter);
    let sha1hex = lua.create_function(move |_, text: mlua::LuaString| {
        let text = text.as_bytes();
        own.spend_bytes(text.len() * 16).map_err(Error::external)?;
        Ok(script_name(&text))
    })?;
    redis.raw_set("sha1hex", sha1hex)?;
    for (name, field) in [("error_reply", "err"), ("status_reply", "ok")] {
        redis.raw_set(
            name,
            lua.create_function(move |lua, text: mlua::LuaString| {
                let reply = lua.create_table()?;
                reply.raw_set(field, text)?;
                Ok(reply)
            })?,
        )?;
    }
    let globals = lua.globals();
    globals.raw_set("redis", &redis)?;
    globals.raw_set("cjson", json::library(&lua, meter)?)?;
    library::install(&lua, meter)?;
    let own = Rc::clone(meter);
    let caught = lua.create_function(move |lua, why: Value| caught(lua, why, &own))?;
    globals.raw_set("__caught", caught)?;
    let raise = lua.create_function(|_, text: mlua::LuaString| {
        let text = text.to_string_lossy();
        Err::<(), _>(Error::external(Raised(text, None)))
    })?;
    globals.raw_set("__raise", raise)?;
    Ok(lua)
}

/// What a script sees of an error that it catches.
fn caught(lua: &Lua, why: Value, meter: &Meter) -> mlua::Result<Value> {
    if let Some(ended) = meter.ended() {
        return Err(Error::external(ended));
    }
    match why {
        Value::Error(error) => match root(&error).downcast_ref::<Raised>() {
            // As in Redis 7.
            Some(Raised(text, _)) => {
                let table = lua.create_table()?;
                table.raw_set("err", text.as_str())?;
                Ok(Value::Table(table))
            }
            None => Ok(Value::String(lua.create_string(line(root(&error)))?)),
        },
        Value::String(text) => {
            let bytes = text.as_bytes();
            let rest = without_prelude(&bytes);
            Ok(Value::String(lua.create_string(rest)?))
        }
        other => Ok(other),
    }
}

/// A message without the place in the prelude that raised it, which says nothing to a script.
fn without_prelude(text: &[u8]) -> &[u8] {
    let rest = text.strip_prefix(b"prelude:").and_then(|rest| {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit());
        rest[digits.count()..].strip_prefix(b": ")
    });
    rest.unwrap_or(text)
}

/// Has the steps of a script counted, `every` so many of them.
///
/// What takes long in few steps (a long text is compared, a long chain of a table is searched) is looked
/// at more often, and so is what has much memory.
fn count_steps(lua: &Lua, meter: &Rc<Meter>, every: u32) -> mlua::Result<()> {
    let own = Rc::clone(meter);
    lua.set_global_hook(
        HookTriggers::new().every_nth_instruction(every),
        move |lua, _| {
            let spent = own.spend(u64::from(every)).and_then(|()| own.check());
            spent.map_err(Error::external)?;
            let slowly = own.lap();
            let large = u32::try_from(lua.used_memory() / MEMORY_SMALL).unwrap_or(u32::MAX);
            let most = (STEPS_A_LOOK / large.max(1)).max(1);
            let next = if slowly > LAP_MAX {
                every / 8
            } else {
                every.saturating_mul(2)
            };
            let next = next.clamp(1, most);
            if next != every {
                count_steps(lua, &own, next)?;
            }
            Ok(VmState::Continue)
        },
    )
}

/// The prelude as Lua has compiled it, once for all machines.
fn prelude(lua: &Lua) -> mlua::Result<Function> {
    static COMPILED: OnceLock<Vec<u8>> = OnceLock::new();
    let load = |code: &[u8], mode| {
        let chunk = lua.load(code).set_name("=prelude");
        chunk.set_mode(mode).into_function()
    };
    if let Some(code) = COMPILED.get() {
        return load(code, ChunkMode::Binary);
    }
    let prelude = load(PRELUDE.as_bytes(), ChunkMode::Text)?;
    let code = prelude.dump(false);
    if !code.is_empty() {
        let _another_was_first = COMPILED.set(code);
    }
    Ok(prelude)
}

/// Runs a script in a machine.
fn run_in(
    lua: &Lua,
    script: Script<'_>,
    state: &mut State,
    (context, meter): (Context<'_>, &Rc<Meter>),
) -> mlua::Result<Reply> {
    let (seal, main): (Function, Function) = prelude(lua)?.call(())?;
    // Never precompiled code: it could do anything to this process.
    let chunk = lua.load(script.source).set_name("=user_script");
    let function = match chunk.set_mode(ChunkMode::Text).into_function() {
        Ok(function) => function,
        Err(error) if matches!(root(&error), Error::MemoryError(_)) => return Err(error),
        Err(error) => {
            let text = format!(
                "ERR Error compiling script (new function): {}",
                line(&error)
            );
            return Ok(Reply::Error(text));
        }
    };
    count_steps(lua, meter, STEPS_A_LOOK)?;
    meter.lap();
    call(
        lua,
        (&function, &seal, &main),
        script,
        state,
        (context, meter),
    )
}

fn call(
    lua: &Lua,
    (function, seal, main): (&Function, &Function, &Function),
    script: Script<'_>,
    state: &mut State,
    (context, meter): (Context<'_>, &Rc<Meter>),
) -> mlua::Result<Reply> {
    let state = RefCell::new(state);
    let carry_out = |words: MultiValue| {
        let state = &mut state.borrow_mut();
        let held = |state: &State| state.held().map_or(0, |held| held.value.len());
        let bytes = held(state);
        let reply = command(words, script, state, (context, meter))?;
        // A hash is taken apart.
        meter
            .spend_bytes(bytes.max(held(state)))
            .map_err(Error::external)?;
        meter.check().map_err(Error::external)?;
        Ok::<_, Error>(reply)
    };
    lua.scope(|scope| {
        let call = scope.create_function(|lua, words: MultiValue| match carry_out(words)? {
            Reply::Error(text) => Err(Error::external(Raised(text, Some(lua_line(lua))))),
            reply => from_reply(lua, &reply, meter),
        })?;
        let pcall = scope
            .create_function(|lua, words: MultiValue| from_reply(lua, &carry_out(words)?, meter))?;
        let environment = lua.create_table()?;
        environment.raw_set("KEYS", sequence(lua, script.keys(), meter)?)?;
        environment.raw_set("ARGV", sequence(lua, script.args(), meter)?)?;
        let calls = lua.create_table()?;
        calls.raw_set("call", call)?;
        calls.raw_set("pcall", pcall)?;
        seal.call::<()>((&environment, calls))?;
        function.set_environment(environment)?;
        let value: Value = main.call(function)?;
        to_reply(&value, DEPTH_MAX, (context, meter))
    })
}

/// A table of texts. One after the other: Lua's stack takes 8,000 values.
fn sequence(
    lua: &Lua,
    texts: impl Iterator<Item: AsRef<[u8]>>,
    meter: &Meter,
) -> mlua::Result<mlua::Table> {
    let table = lua.create_table()?;
    for (place, text) in (1..).zip(texts) {
        let text = text.as_ref();
        meter.spend_bytes(text.len()).map_err(Error::external)?;
        table.raw_set(place, lua.create_string(text)?)?;
    }
    Ok(table)
}

/// A command of a script.
fn command(
    words: MultiValue,
    script: Script<'_>,
    state: &mut State,
    (context, meter): (Context<'_>, &Meter),
) -> mlua::Result<Reply> {
    let error = |text: &str| Reply::Error(text.to_owned());
    if words.is_empty() {
        return Ok(error(
            "ERR Please specify at least one argument for this redis.call() call",
        ));
    }
    let mut bytes = 0;
    let mut args: Vec<Bytes> = Vec::with_capacity(words.len());
    for word in words {
        args.push(match word {
            Value::String(text) => {
                let text = text.as_bytes();
                // A text that is named often is copied often, out of Lua's memory.
                bytes += text.len();
                if bytes > MEMORY_MAX {
                    return Err(Error::external(meter.end(Ended::Memory)));
                }
                meter.spend_bytes(text.len()).map_err(Error::external)?;
                Bytes::copy_from_slice(&text)
            }
            Value::Integer(number) => Bytes::from(number.to_string()),
            Value::Number(number) => Bytes::from(number_text(number)),
            _ => {
                return Ok(error(
                    "ERR Lua redis lib command arguments must be strings or integers",
                ));
            }
        });
    }
    Ok(parse_words(&args, |parsed| match parsed {
        Ok(Command::Data(kind, command)) => {
            if script.is_read_only && kind.is_write() {
                return error(READ_ONLY);
            }
            if matches!(kind, CommandKind::Eval | CommandKind::EvalRo) {
                return error("ERR This Redis command is not allowed from script");
            }
            match script.keys().next() {
                Some(key) if command.keys().all(|own| own == key) => apply(command, state, context),
                _ => error("ERR a script here has one key, and this command has another one"),
            }
        }
        Ok(Command::Connection(CommandKind::Time, _)) => {
            let ms = context.now.0;
            let part = |number: u64| Reply::Bulk(Bytes::from(number.to_string()));
            Reply::Array(vec![part(ms / 1_000), part(ms % 1_000 * 1_000)])
        }
        Ok(Command::Connection(CommandKind::Ping, _)) => Reply::Status("PONG".to_owned()),
        Ok(Command::Connection(..)) => error("ERR This Redis command is not allowed from script"),
        Err(why) if why.is_unknown() => error("ERR Unknown Redis command called from script"),
        Err(why) if why.is_arity() => {
            error("ERR Wrong number of args calling Redis command from script")
        }
        Err(_) if script.is_read_only && is_write(args.first()) => error(READ_ONLY),
        Err(why) => Reply::Error(why.to_string()),
    }))
}

/// Whether the command of a name may change what a key holds.
fn is_write(name: Option<&Bytes>) -> bool {
    let kind = name.and_then(|name| CommandKind::of(name));
    kind.is_some_and(CommandKind::is_write)
}

/// As `%.17g` would write it.
fn number_text(number: f64) -> String {
    if number.fract() == 0.0 && number.abs() < 1e17 {
        format!("{number:.0}")
    } else {
        format!("{number}")
    }
}

fn from_reply(lua: &Lua, reply: &Reply, meter: &Meter) -> mlua::Result<Value> {
    let named = |field: &str, text: &str| {
        let table = lua.create_table()?;
        table.raw_set(field, text)?;
        Ok(Value::Table(table))
    };
    meter.spend(1).map_err(Error::external)?;
    Ok(match reply {
        Reply::Nil | Reply::Seen(..) => Value::Boolean(false),
        Reply::Ok => return named("ok", "OK"),
        Reply::Status(text) => return named("ok", text),
        Reply::Error(text) => return named("err", text),
        // The numbers of Lua 5.1 are floating.
        #[expect(clippy::cast_precision_loss, reason = "as in Redis")]
        Reply::Integer(number) => Value::Number(*number as f64),
        Reply::Bulk(bytes) => Value::String(lua.create_string(bytes)?),
        Reply::Array(replies) => {
            let table = lua.create_table()?;
            for (place, reply) in (1..).zip(replies) {
                table.raw_set(place, from_reply(lua, reply, meter)?)?;
            }
            Value::Table(table)
        }
        Reply::Map(pairs) => {
            let all = pairs.iter().flat_map(|(field, value)| [field, value]);
            Value::Table(sequence(lua, all, meter)?)
        }
    })
}

fn to_reply(
    value: &Value,
    depth: usize,
    (context, meter): (Context<'_>, &Meter),
) -> mlua::Result<Reply> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Error::runtime("the reply is nested too deeply"));
    };
    // A text that is named often is copied often, out of Lua's memory.
    let spend = |bytes: usize| {
        let spent = context.limit.spend_reply(bytes + size_of::<Reply>());
        spent.map_err(|ended| Error::external(meter.end(ended)))?;
        meter.spend_bytes(bytes).map_err(Error::external)
    };
    let lossy = |text: &mlua::LuaString| {
        let text = text.as_bytes();
        // What is no UTF-8 is replaced by something longer.
        spend(text.len() * 3)?;
        Ok::<_, Error>(String::from_utf8_lossy(&text).into_owned())
    };
    spend(0)?;
    Ok(match value {
        Value::String(text) => {
            let text = text.as_bytes();
            spend(text.len())?;
            Reply::Bulk(Bytes::copy_from_slice(&text))
        }
        Value::Integer(number) => Reply::Integer(*number),
        #[expect(clippy::cast_possible_truncation, reason = "as in Redis")]
        Value::Number(number) => Reply::Integer(*number as i64),
        Value::Boolean(true) => Reply::Integer(1),
        Value::Table(table) => {
            if let Value::String(text) = table.raw_get("err")? {
                return Ok(Reply::Error(lossy(&text)?));
            }
            if let Value::String(text) = table.raw_get("ok")? {
                return Ok(Reply::Status(lossy(&text)?));
            }
            let mut replies = Vec::new();
            // Up to the first hole, as in Redis.
            for place in 1.. {
                match table.raw_get(place)? {
                    Value::Nil => break,
                    value => replies.push(to_reply(&value, depth, (context, meter))?),
                }
            }
            Reply::Array(replies)
        }
        _ => Reply::Nil,
    })
}

/// An error that a command of the script replied, and in which line if that is known.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String, Option<usize>);

fn lua_line(lua: &Lua) -> usize {
    let line = lua.inspect_stack(1, |debug| debug.current_line());
    line.flatten().unwrap_or(0)
}

/// What went wrong at first.
fn root(error: &Error) -> &Error {
    match error {
        Error::CallbackError { cause, .. } => root(cause),
        error => error,
    }
}

fn error_text(error: &Error, name: &str) -> String {
    let root = root(error);
    let at = |line: Option<usize>| line.map_or(String::new(), |line| format!(":{line}"));
    if let Some(Raised(text, line)) = root.downcast_ref::<Raised>() {
        return format!("{text} script: {name}, on @user_script{}.", at(*line));
    }
    let text = line(root);
    // The first line of a script that the message, or the trace behind it, names.
    let whole = error.to_string();
    let line = whole.split("user_script:").skip(1).find_map(|rest| {
        let end = rest.find(|letter: char| !letter.is_ascii_digit())?;
        rest.get(..end)?.parse().ok()
    });
    let place = match line {
        Some(line) if !text.starts_with("user_script:") => format!("user_script:{line}: "),
        _ => String::new(),
    };
    let at = at(line);
    format!("ERR {place}{text} script: {name}, on @user_script{at}.")
}

/// The first line of an error.
fn line(error: &Error) -> String {
    let text = error.to_string();
    let text = text.lines().next().unwrap_or_default();
    let text = text
        .get(..text.floor_char_boundary(ERROR_BYTES_MAX))
        .unwrap_or_default();
    let text = text.strip_prefix("runtime error: ").unwrap_or(text);
    let text = text.strip_prefix("syntax error: ").unwrap_or(text);
    String::from_utf8_lossy(without_prelude(text.as_bytes())).into_owned()
}

const READ_ONLY: &str = "ERR Write commands are not allowed from read-only scripts.";
const PRELUDE: &str = include_str!("prelude.lua");
/// So few that a script which only does what is slow (to join long texts) is ended in time.
const STEPS_A_LOOK: u32 = 32;
/// What takes longer between two looks is looked at more often.
const LAP_MAX: Duration = Duration::from_micros(500);
/// With so much memory no step takes long.
const MEMORY_SMALL: usize = 1024 * 1024;
/// Lua compiles without being interrupted; scripts of frameworks have some ten thousand.
const SOURCE_BYTES_MAX: usize = 64 * 1024;
/// Of what a script says of its error.
const ERROR_BYTES_MAX: usize = 4 * 1024;
/// What replies of replies travel between nodes.
const DEPTH_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::super::{Change, Held, Limit};
    use super::*;
    use crate::model::{Kind, Millis};

    const NOW: Millis = Millis(1_234_567);

    fn request(words: &[&str]) -> Bytes {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        Bytes::from(request)
    }

    fn eval_on(state: &mut State, words: &[&str]) -> Reply {
        let context = Context {
            now: NOW,
            value_bytes_max: 1_000_000,
            limit: &Limit::of_steps(),
        };
        Change::Command(request(words)).make(state, context)
    }

    fn eval(source: &str) -> Reply {
        eval_on(&mut State::default(), &["EVAL", source, "1", "k", "a", "b"])
    }

    fn bulk(text: &str) -> Reply {
        Reply::Bulk(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn values_go_in_and_out_as_in_redis() {
        for (source, told) in [
            ("return 1", Reply::Integer(1)),
            ("return 3.99", Reply::Integer(3)),
            ("return -1.5", Reply::Integer(-1)),
            ("return 'x'", bulk("x")),
            ("return true", Reply::Integer(1)),
            ("return false", Reply::Nil),
            ("return nil", Reply::Nil),
            ("", Reply::Nil),
            (
                "return {1, 'a', nil, 3}",
                Reply::Array(vec![Reply::Integer(1), bulk("a")]),
            ),
            ("return {ok='FINE'}", Reply::Status("FINE".to_owned())),
            ("return {err='BAD x'}", Reply::Error("BAD x".to_owned())),
            (
                "return redis.status_reply('FINE')",
                Reply::Status("FINE".to_owned()),
            ),
            (
                "return {KEYS[1], ARGV[1], ARGV[2], #ARGV}",
                Reply::Array(vec![bulk("k"), bulk("a"), bulk("b"), Reply::Integer(2)]),
            ),
            ("return redis.call('get', KEYS[1])", Reply::Nil),
            (
                "return redis.call('set', KEYS[1], 5)",
                Reply::Status("OK".to_owned()),
            ),
            (
                "redis.call('set', KEYS[1], 5) return redis.call('incrby', KEYS[1], 2)",
                Reply::Integer(7),
            ),
            (
                "redis.call('set', KEYS[1], 10/4) return redis.call('get', KEYS[1])",
                bulk("2.5"),
            ),
            ("return redis.call('time')[1]", bulk("1234")),
            (
                "return redis.sha1hex('')",
                bulk("da39a3ee5e6b4b0d3255bfef95601890afd80709"),
            ),
            ("return tostring(tonumber(ARGV[3]))", bulk("nil")),
            (
                "return cjson.encode({a={1,2},b='x'})",
                bulk("{\"a\":[1,2],\"b\":\"x\"}"),
            ),
            ("return cjson.decode('{\"a\":[7]}').a[1]", Reply::Integer(7)),
            (
                "return string.format('%d', 7) .. ('x'):rep(2) .. math.max(1, 2)",
                bulk("7xx2"),
            ),
            (
                "return redis.pcall('incr', KEYS[1], 1)['err']",
                bulk("ERR Wrong number of args calling Redis command from script"),
            ),
            (
                "redis.call('hset', KEYS[1], 'f', 'v') return redis.call('hgetall', KEYS[1])",
                Reply::Array(vec![bulk("f"), bulk("v")]),
            ),
            ("return redis.replicate_commands()", Reply::Integer(1)),
            (
                "local ok, why = pcall(error, 'x') return {tostring(ok), why}",
                Reply::Array(vec![bulk("false"), bulk("x")]),
            ),
        ] {
            assert_eq!(eval(source), told, "{source}");
        }
    }

    #[test]
    fn locks_are_given_back_by_their_holders_only() {
        let release = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) \
                       else return 0 end";
        let held = Held {
            value: Bytes::from_static(b"token"),
            kind: Kind::String,
            expires_at: None,
        };
        let mut state = State {
            held: Some(held),
            ..State::default()
        };
        for (token, told) in [("other", 0), ("token", 1), ("token", 0)] {
            let reply = eval_on(&mut state, &["EVAL", release, "1", "k", token]);
            assert_eq!(reply, Reply::Integer(told));
        }
        assert!(state.held().is_none() && state.is_changed());
    }

    #[test]
    fn scripts_cannot_harm_others() {
        for (source, part) in [
            (
                "x = 1",
                "ERR user_script:1: Attempt to modify a readonly table script: ",
            ),
            ("return os.time()", "nonexistent global variable 'os'"),
            ("return io", "nonexistent global variable 'io'"),
            (
                "return loadstring('return 1')",
                "nonexistent global variable 'loadstring'",
            ),
            (
                "rawset(string, 'format', 1)",
                "nonexistent global variable 'rawset'",
            ),
            ("string.format = nil", "readonly table"),
            ("setmetatable(string, {})", "protected metatable"),
            ("getmetatable('').__index = nil", "attempt to index"),
            ("getmetatable(redis).__index = nil", "attempt to index"),
            ("while true do end", "steps"),
            (
                "while true do pcall(function() while true do end end) end",
                "steps",
            ),
            (
                "while true do xpcall(function() while true do end end, function() end) end",
                "steps",
            ),
            (
                "coroutine.wrap(function() while true do end end)()",
                "nonexistent global variable 'coroutine'",
            ),
            (
                "local t = {} while true do t[#t + 1] = ('x'):rep(100000) .. #t end",
                "memory",
            ),
            (
                "local function f() return f() + 1 end return f()",
                "stack overflow",
            ),
            ("return redis.call('get', 'other')", "one key"),
            (
                "return redis.call('eval', 'return 1', 0)",
                "not allowed from script",
            ),
            ("return redis.call('subscribe', 'x')", "script"),
            ("return redis.call()", "at least one argument"),
            (
                "return redis.call('get', {})",
                "must be strings or integers",
            ),
            ("return nosuch", "nonexistent global variable 'nosuch'"),
            ("error('mine')", "mine"),
            ("local t = {} t[1] = t return t", "nested too deeply"),
            (
                "return redis.call('incr', KEYS[1], 1)",
                "Wrong number of args",
            ),
            ("syntax error", "Error compiling script"),
        ] {
            let Reply::Error(text) = eval(source) else {
                panic!("{source} is no error: {:?}", eval(source))
            };
            assert!(text.contains(part), "{source}: {text}");
            // The next one finds everything as it was.
            assert_eq!(eval("return string.format('%d', 7)"), bulk("7"), "{source}");
        }
    }

    #[test]
    fn errors_name_their_line_as_in_redis() {
        for (source, part) in [
            ("\n_G.x = 1", ", on @user_script:2."),
            ("error({err='MY own'})", "MY own script: "),
            (
                "local ok, e = pcall(redis.call, 'nosuch') error(e)",
                "ERR Unknown Redis command",
            ),
            (
                "return select(2, pcall(redis.call, 'nosuch'))",
                "ERR Unknown Redis command",
            ),
            ("string.rep()", "ERR user_script:1: bad argument"),
        ] {
            let reply = eval(source);
            assert!(
                matches!(&reply, Reply::Error(text) if text.contains(part)),
                "{source}: {reply:?}"
            );
        }
    }

    #[test]
    fn what_a_script_has_done_before_its_error_stays_as_in_redis() {
        let mut state = State::default();
        let source = "redis.call('set', KEYS[1], 'v') error('later')";
        let told = eval_on(&mut state, &["EVAL", source, "1", "k"]);
        assert!(matches!(told, Reply::Error(_)));
        assert_eq!(state.held().map(|held| &held.value[..]), Some(&b"v"[..]));
        let source = "return redis.call('set', KEYS[1], 'w')";
        let told = eval_on(&mut state, &["EVAL_RO", source, "1", "k"]);
        assert!(matches!(told, Reply::Error(text) if text.contains("read-only")));
        // Before the mistake in its arguments.
        let source = "return redis.call('set', KEYS[1], 'w', 'NX', 'XX')";
        let told = eval_on(&mut state, &["EVAL_RO", source, "1", "k"]);
        assert!(matches!(told, Reply::Error(text) if text.contains("read-only")));
    }
}
