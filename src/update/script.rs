//! Scripts: Lua 5.1, run on the state of their key.
//!
//! A script sees what Redis shows one: `KEYS`, `ARGV`, `redis.call`, tables, strings, numbers, JSON; no
//! files, no clock but `TIME`, no other key. It is bounded in steps and in memory. A virtual machine is
//! made once for each thread and cannot be changed by what runs in it.

use std::cell::{Cell, RefCell};

use bytes::Bytes;
use mlua::{Error, Function, HookTriggers, Lua, LuaOptions, MultiValue, StdLib, Value, VmState};

use super::{Context, Reply, State, apply, json, script_name};
use crate::resp::{Command, CommandKind, Script, parse_words};

/// Runs a script. What is told.
pub(super) fn run(script: Script<'_>, state: &mut State, context: Context<'_>) -> Reply {
    MACHINE.with(|machine| {
        // Scripts do not run scripts.
        let Ok(mut machine) = machine.try_borrow_mut() else {
            return Reply::Error("ERR a script cannot run another one".to_owned());
        };
        let lua = match machine.take() {
            Some(lua) => Ok(lua),
            None => new_machine(),
        };
        let lua = match lua {
            Ok(lua) => lua,
            Err(error) => return Reply::Error(format!("ERR no script can run: {}", line(&error))),
        };
        let (reply, is_sound) = run_in(&lua, script, state, context);
        if is_sound {
            *machine = Some(lua);
        }
        reply
    })
}

thread_local! {
    static MACHINE: RefCell<Option<Lua>> = const { RefCell::new(None) };
}

/// A machine in which scripts can do no harm.
fn new_machine() -> mlua::Result<Lua> {
    let libraries = StdLib::TABLE | StdLib::STRING | StdLib::MATH;
    let lua = Lua::new_with(libraries, LuaOptions::default())?;
    lua.set_memory_limit(MEMORY_MAX)?;
    let globals = lua.globals();
    for unsafe_name in [
        "dofile",
        "loadfile",
        "print",
        "collectgarbage",
        "newproxy",
        "module",
        "require",
    ] {
        globals.raw_remove(unsafe_name)?;
    }
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
    redis.raw_set("log", lua.create_function(|_, _: MultiValue| Ok(()))?)?;
    redis.raw_set("setresp", lua.create_function(|_, _: MultiValue| Ok(()))?)?;
    redis.raw_set("set_repl", lua.create_function(|_, _: MultiValue| Ok(()))?)?;
    redis.raw_set("replicate_commands", lua.create_function(|_, ()| Ok(true))?)?;
    redis.raw_set(
        "sha1hex",
        lua.create_function(|_, text: mlua::LuaString| Ok(script_name(&text.as_bytes())))?,
    )?;
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
    globals.raw_set("redis", &redis)?;
    globals.raw_set("cjson", json::library(&lua)?)?;
    // What a script changes here the next one would see.
    globals.raw_set(
        "__is_spent",
        lua.create_function(|lua, ()| Ok(lua.app_data_ref::<Spent>().is_some()))?,
    )?;
    lua.load(SEAL).set_name("=seal").exec()?;
    Ok(lua)
}

/// A script has used up its steps.
struct Spent;

/// Runs a script in a machine; whether the machine is as good as before.
fn run_in(lua: &Lua, script: Script<'_>, state: &mut State, context: Context<'_>) -> (Reply, bool) {
    let name = script_name(script.source);
    let chunk = lua.load(script.source).set_name("=user_script");
    let function = match chunk.into_function() {
        Ok(function) => function,
        Err(error) => {
            let text = format!(
                "ERR Error compiling script (new function): {}",
                line(&error)
            );
            return (Reply::Error(text), true);
        }
    };
    let steps = Cell::new(0_u64);
    lua.remove_app_data::<Spent>();
    let hook = lua.set_hook(
        HookTriggers::new().every_nth_instruction(STEPS_A_LOOK),
        move |lua, _| {
            steps.set(steps.get() + u64::from(STEPS_A_LOOK));
            if steps.get() > STEPS_MAX {
                lua.set_app_data(Spent);
                return Err(Error::runtime(format!(
                    "the script took more than {STEPS_MAX} steps"
                )));
            }
            Ok(VmState::Continue)
        },
    );
    let told = hook.and_then(|()| call(lua, &function, script, state, context));
    lua.remove_hook();
    match told {
        Ok(reply) => (reply, true),
        Err(error) => {
            let is_sound = !matches!(root(&error), Error::MemoryError(_));
            (Reply::Error(error_text(&error, &name)), is_sound)
        }
    }
}

fn call(
    lua: &Lua,
    function: &Function,
    script: Script<'_>,
    state: &mut State,
    context: Context<'_>,
) -> mlua::Result<Reply> {
    let state = RefCell::new(state);
    lua.scope(|scope| {
        let call = scope.create_function(|lua, words: MultiValue| {
            let reply = command(words, script, &mut state.borrow_mut(), context);
            match reply {
                Reply::Error(text) => Err(Error::external(Raised(text, lua_line(lua)))),
                reply => from_reply(lua, &reply),
            }
        })?;
        let pcall = scope.create_function(|lua, words: MultiValue| {
            let reply = command(words, script, &mut state.borrow_mut(), context);
            from_reply(lua, &reply)
        })?;
        let environment = lua.create_table()?;
        let keys = script.keys().map(|key| lua.create_string(key));
        let args = script.args().map(|arg| lua.create_string(arg));
        environment.raw_set(
            "KEYS",
            lua.create_sequence_from(keys.collect::<Result<Vec<_>, _>>()?)?,
        )?;
        environment.raw_set(
            "ARGV",
            lua.create_sequence_from(args.collect::<Result<Vec<_>, _>>()?)?,
        )?;
        let calls = lua.create_table()?;
        calls.raw_set("call", call)?;
        calls.raw_set("pcall", pcall)?;
        let seal: Function = lua.globals().raw_get("__seal")?;
        seal.call::<()>((&environment, calls))?;
        function.set_environment(environment)?;
        let value: Value = function.call(())?;
        to_reply(&value, DEPTH_MAX)
    })
}

/// A command of a script.
fn command(
    words: MultiValue,
    script: Script<'_>,
    state: &mut State,
    context: Context<'_>,
) -> Reply {
    let error = |text: &str| Reply::Error(text.to_owned());
    if words.is_empty() {
        return error("ERR Please specify at least one argument for this redis.call() call");
    }
    let mut args: Vec<Bytes> = Vec::with_capacity(words.len());
    for word in words {
        args.push(match word {
            Value::String(text) => Bytes::copy_from_slice(&text.as_bytes()),
            Value::Integer(number) => Bytes::from(number.to_string()),
            Value::Number(number) => Bytes::from(number_text(number)),
            _ => return error("ERR Lua redis lib command arguments must be strings or integers"),
        });
    }
    parse_words(&args, |parsed| match parsed {
        Ok(Command::Data(kind, command)) => {
            if script.is_read_only && kind.is_write() {
                return error("ERR Write commands are not allowed from read-only scripts.");
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
        Err(why) => Reply::Error(why.to_string()),
    })
}

/// As `%.17g` would write it.
fn number_text(number: f64) -> String {
    if number.fract() == 0.0 && number.abs() < 1e17 {
        format!("{number:.0}")
    } else {
        format!("{number}")
    }
}

fn from_reply(lua: &Lua, reply: &Reply) -> mlua::Result<Value> {
    let named = |field: &str, text: &str| {
        let table = lua.create_table()?;
        table.raw_set(field, text)?;
        Ok(Value::Table(table))
    };
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
            let all = replies.iter().map(|reply| from_reply(lua, reply));
            let all = all.collect::<mlua::Result<Vec<_>>>()?;
            Value::Table(lua.create_sequence_from(all)?)
        }
        Reply::Map(pairs) => {
            let all = pairs.iter().flat_map(|(field, value)| [field, value]);
            let all = all.map(|bytes| lua.create_string(bytes));
            let all = all.collect::<mlua::Result<Vec<_>>>()?;
            Value::Table(lua.create_sequence_from(all)?)
        }
    })
}

fn to_reply(value: &Value, depth: usize) -> mlua::Result<Reply> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Error::runtime("the reply is nested too deeply"));
    };
    let lossy = |text: &mlua::LuaString| String::from_utf8_lossy(&text.as_bytes()).into_owned();
    Ok(match value {
        Value::String(text) => Reply::Bulk(Bytes::copy_from_slice(&text.as_bytes())),
        Value::Integer(number) => Reply::Integer(*number),
        #[expect(clippy::cast_possible_truncation, reason = "as in Redis")]
        Value::Number(number) => Reply::Integer(*number as i64),
        Value::Boolean(true) => Reply::Integer(1),
        Value::Table(table) => {
            if let Ok(text) = table.raw_get::<mlua::LuaString>("err") {
                return Ok(Reply::Error(lossy(&text)));
            }
            if let Ok(text) = table.raw_get::<mlua::LuaString>("ok") {
                return Ok(Reply::Status(lossy(&text)));
            }
            let mut replies = Vec::new();
            // Up to the first hole, as in Redis.
            for place in 1.. {
                match table.raw_get(place)? {
                    Value::Nil => break,
                    value => replies.push(to_reply(&value, depth)?),
                }
            }
            Reply::Array(replies)
        }
        _ => Reply::Nil,
    })
}

/// An error that a command of the script told, and in which line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String, usize);

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
    if let Some(Raised(text, at)) = root.downcast_ref::<Raised>() {
        return format!("{text} script: {name}, on @user_script:{at}.");
    }
    format!("ERR {} script: {name}, on @user_script.", line(root))
}

/// The first line of an error.
fn line(error: &Error) -> String {
    let text = error.to_string();
    let text = text.lines().next().unwrap_or_default();
    let text = text.strip_prefix("runtime error: ").unwrap_or(text);
    text.strip_prefix("syntax error: ")
        .unwrap_or(text)
        .to_owned()
}

/// What no script may change is shown through an empty table.
const SEAL: &str = r#"
local rawset, setmetatable, error, tostring = rawset, setmetatable, error, tostring
local function closed(library)
  return setmetatable({}, {__index = library, __metatable = false, __newindex = function()
    error("Attempt to modify a readonly table", 2)
  end})
end
local shown = {}
for name, value in pairs(_G) do shown[name] = value end
for _, name in ipairs({"string", "table", "math", "cjson"}) do shown[name] = closed(_G[name]) end
-- The steps of a coroutine are not counted.
for _, name in ipairs({"coroutine", "rawset", "setfenv", "getfenv", "load", "loadstring", "_G", "redis"}) do
  shown[name] = nil
end
getmetatable("").__metatable = false
-- Who has used up its steps has: no script catches that.
local function unless_spent(...)
  if __is_spent() then error("the script took too many steps", 0) end
  return ...
end
for _, name in ipairs({"pcall", "xpcall"}) do
  local protected = _G[name]
  shown[name] = function(...) return unless_spent(protected(...)) end
end
rawset(_G, "__seal", function(environment, calls)
  setmetatable(calls, {__index = redis, __metatable = false})
  rawset(environment, "redis", calls)
  rawset(environment, "_G", environment)
  setmetatable(environment, {__metatable = false,
    __index = function(_, name)
      local value = shown[name]
      if value == nil then
        error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2)
      end
      return value
    end,
    __newindex = function(_, name)
      error("Script attempted to create global variable '" .. tostring(name) .. "'", 2)
    end})
end)
"#;
/// Some hundredths of a second.
const STEPS_MAX: u64 = 5_000_000;
const STEPS_A_LOOK: u32 = 10_000;
const MEMORY_MAX: usize = 32 * 1024 * 1024;
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
            ("x = 1", "attempted to create global variable 'x'"),
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
    fn what_a_script_has_done_before_its_error_stays_as_in_redis() {
        let mut state = State::default();
        let source = "redis.call('set', KEYS[1], 'v') error('later')";
        let told = eval_on(&mut state, &["EVAL", source, "1", "k"]);
        assert!(matches!(told, Reply::Error(_)));
        assert_eq!(state.held().map(|held| &held.value[..]), Some(&b"v"[..]));
        let source = "return redis.call('set', KEYS[1], 'w')";
        let told = eval_on(&mut state, &["EVAL_RO", source, "1", "k"]);
        assert!(matches!(told, Reply::Error(text) if text.contains("read-only")));
    }
}
