//! Scripts that take all that they are given: time in Lua and in C functions, memory, replies.

use super::words::Chance;

/// A script and the words that it is sent with.
pub(crate) struct Bomb {
    pub(crate) source: Vec<u8>,
    pub(crate) args: Vec<Vec<u8>>,
}

/// Any of them, its sizes by chance.
pub(crate) fn bomb(chance: &Chance) -> Bomb {
    let (source, sizes) = chance.pick(BOMBS);
    let size = chance.pick(sizes);
    let args = if chance.one_in(20) {
        // Many words.
        (0..chance.pick(&[1_000, 10_000, 40_000]))
            .map(|_| size.to_string().into_bytes())
            .collect()
    } else {
        vec![size.to_string().into_bytes(), b"a".to_vec()]
    };
    Bomb {
        source: source.as_bytes().to_vec(),
        args,
    }
}

/// Source that is long, deep or no text.
pub(crate) fn source(chance: &Chance) -> Vec<u8> {
    let deep = chance.pick(&[100, 250, 10_000, 100_000]);
    match chance.below(9) {
        0 => ["return ", &"(".repeat(deep), "1", &")".repeat(deep)].concat(),
        1 => ["return ", &"{".repeat(deep), &"}".repeat(deep)].concat(),
        2 => ["return ", &"-".repeat(deep), "1"].concat(),
        3 => ["return ", &"not ".repeat(deep), "1"].concat(),
        4 => "do ".repeat(deep),
        5 => ["return ", &"'a'..".repeat(deep), "'a'"].concat(),
        6 => "local a = 1 ".repeat(deep),
        7 => ["return [", &"=".repeat(deep), "[x]", &"=".repeat(deep), "]"].concat(),
        _ => return BYTECODE[chance.below(BYTECODE.len())].to_vec(),
    }
    .into_bytes()
}

/// Makes the node hand out bytecode to be sent back to it with a few bytes changed.
pub(crate) const DUMP: &[u8] =
    b"return string.dump(function(x) for i = x, x, 0 do return i end return {x, KEYS} end)";

const SMALL: &[u64] = &[1, 10, 300];
const SQUARE: &[u64] = &[1_000, 30_000, 1_000_000];
const LARGE: &[u64] = &[
    1,
    100_000,
    1_000_000,
    20_000_000,
    2_147_483_647,
    9_007_199_254_740_992,
];

const BOMBS: &[(&str, &[u64])] = &[
    ("while true do end", SMALL),
    (
        "while true do pcall(function() while true do end end) end",
        SMALL,
    ),
    ("local function f() return pcall(f) end return f()", SMALL),
    (
        "local function f() return xpcall(f, f) end return f()",
        SMALL,
    ),
    (
        "local function f(n) return f(n + 1) + 1 end return f(1)",
        SMALL,
    ),
    ("repeat local x = pcall(error, {}) until false", SMALL),
    (
        "return coroutine.wrap(function() while true do end end)()",
        SMALL,
    ),
    (
        "local c = coroutine.create(function() while true do coroutine.yield() end end) \
         while true do coroutine.resume(c) end",
        SMALL,
    ),
    ("return #string.rep('x', ARGV[1])", LARGE),
    (
        "local t = {} for i = 1, ARGV[1] do t[i] = string.rep('x', 1000) .. i end return #t",
        LARGE,
    ),
    (
        "local s = 'x' for i = 1, ARGV[1] do s = s .. s end return #s",
        LARGE,
    ),
    (
        "return tostring(string.find(string.rep('a', ARGV[1]), 'a*a*a*b'))",
        &[10, 300, 600, 2_000],
    ),
    (
        "return tostring(string.match(string.rep('a', ARGV[1]), '.-.-.-.-b'))",
        &[10, 100, 300, 600],
    ),
    (
        "return (string.gsub(string.rep('a', ARGV[1]), '.-b', ''))",
        SQUARE,
    ),
    (
        "return (string.gsub(string.rep('a', ARGV[1]), '', string.rep('b', ARGV[1])))",
        SQUARE,
    ),
    (
        "return (string.gsub(string.rep('a', ARGV[1]), 'a', '%0%0%0%0%0%0%0%0%0%0'))",
        LARGE,
    ),
    (
        "for w in string.gmatch(string.rep('a', ARGV[1]), 'a*a*b') do end",
        SQUARE,
    ),
    (
        "return tostring(string.find(string.rep('(', ARGV[1]), '%b()'))",
        SQUARE,
    ),
    (
        "return tostring(string.find('a', string.rep('a?', ARGV[1]) .. string.rep('a', ARGV[1])))",
        SQUARE,
    ),
    ("return string.find('a', string.rep('(', ARGV[1]))", SQUARE),
    ("return string.format('%' .. ARGV[1] .. 'd', 1)", LARGE),
    ("return string.format('%.' .. ARGV[1] .. 'f', 1e308)", LARGE),
    (
        "return string.format(string.rep('%s', 1000), unpack({}, 1, 1000))",
        SMALL,
    ),
    ("return #{unpack({}, 1, ARGV[1])}", LARGE),
    ("return #{unpack({}, -ARGV[1], ARGV[1])}", LARGE),
    (
        "return #{string.byte(string.rep('a', ARGV[1]), 1, -1)}",
        LARGE,
    ),
    ("return string.char(unpack(ARGV))", SMALL),
    (
        "local t = {} for i = 1, 1000 do t[i] = ARGV[2] end return #table.concat(t, string.rep('x', ARGV[1]))",
        LARGE,
    ),
    (
        "return table.concat(setmetatable({}, {__index = function() return 'x' end}), '', 1, ARGV[1])",
        LARGE,
    ),
    ("return table.concat({}, 'x', 1, ARGV[1])", LARGE),
    (
        "local t = {} for i = 1, ARGV[1] do t[i] = i end table.sort(t, function() return true end)",
        SQUARE,
    ),
    (
        "local t = {} for i = 1, ARGV[1] do t[i] = i end \
         table.sort(t, function(a, b) while true do end end)",
        SMALL,
    ),
    (
        "local t = {} for i = 1, ARGV[1] do table.insert(t, 1, i) end return #t",
        SQUARE,
    ),
    (
        "local t = {} t[tonumber(ARGV[1])] = 1 return #t + (table.maxn and table.maxn(t) or 0)",
        LARGE,
    ),
    (
        "local s = string.rep('x', ARGV[1]) local t = {} for i = 1, 200 do t[i] = s end return t",
        SQUARE,
    ),
    (
        "local s = string.rep('x', ARGV[1]) local t = {} for i = 1, 200 do t[i] = s end \
         local u = {} for i = 1, 500 do u[i] = t end return u",
        SQUARE,
    ),
    (
        "local t = {1} for i = 1, ARGV[1] do t = {t, t} end return t",
        &[5, 20, 60, 1_000],
    ),
    (
        "local t = {} for i = 1, ARGV[1] do t = {t} end return t",
        LARGE,
    ),
    ("local t = {} t[1] = t return t", SMALL),
    ("return cjson.decode(string.rep('[', ARGV[1]))", LARGE),
    (
        "return cjson.decode(string.rep('[', ARGV[1]) .. string.rep(']', ARGV[1]))",
        SQUARE,
    ),
    (
        "return #cjson.decode('[' .. string.rep('{},', ARGV[1]) .. '1]')",
        LARGE,
    ),
    ("return cjson.decode('[1e' .. ARGV[1] .. ']')", LARGE),
    (
        "local t = {} for i = 1, ARGV[1] do t = {t} end return cjson.encode(t)",
        SQUARE,
    ),
    ("local t = {} t[1] = t return cjson.encode(t)", SMALL),
    (
        "local t = {1} for i = 1, ARGV[1] do t = {t, t} end return #cjson.encode(t)",
        &[5, 20, 60],
    ),
    ("return cjson.encode({[tonumber(ARGV[1])] = 1})", LARGE),
    (
        "if #KEYS == 0 then return 0 end while true do redis.pcall('set', KEYS[1], string.rep('x', ARGV[1])) end",
        SQUARE,
    ),
    (
        "if #KEYS == 0 then return 0 end while true do redis.pcall('get', KEYS[1]) end",
        SMALL,
    ),
    ("while true do redis.pcall('nosuch') end", SMALL),
    (
        "while true do redis.sha1hex(string.rep('x', ARGV[1])) end",
        SQUARE,
    ),
    ("return redis.error_reply(string.rep('x', ARGV[1]))", LARGE),
    ("return {err = string.rep('\\r\\n+OK', ARGV[1])}", SQUARE),
    ("error(string.rep('x', ARGV[1]))", LARGE),
    (
        "error(setmetatable({}, {__tostring = function() while true do end end}))",
        SMALL,
    ),
    (
        "return setmetatable({}, {__index = function(t, k) while true do end end})",
        SMALL,
    ),
    (
        "setmetatable(_G, {__index = function() while true do end end}) return nosuch",
        SMALL,
    ),
    (
        "string.rep = nil redis.call = nil rawset(string, 'len', nil) KEYS = nil return 1",
        SMALL,
    ),
    ("getmetatable('').__index = nil return ('x'):len()", SMALL),
    ("getfenv(0).redis = nil setfenv(0, {}) return 1", SMALL),
    (
        "return load and load(string.rep('(', ARGV[1])) or loadstring('return 1')",
        SQUARE,
    ),
    ("return tostring(string.dump(function() end))", SMALL),
    ("return redis.call('eval', ARGV[1], 0)", SMALL),
    ("return tonumber(string.rep('9', ARGV[1]))", LARGE),
    ("return 0/0", SMALL),
    ("return 2^1023 * 10", SMALL),
    ("return math.random(ARGV[1])", LARGE),
    (
        "local a = {} for i = 1, ARGV[1] do a[i] = function() return a end end return #a",
        LARGE,
    ),
    (
        "return string.reverse(string.upper(string.rep('x', ARGV[1])))",
        LARGE,
    ),
];

/// Precompiled chunks, whole and broken.
const BYTECODE: &[&[u8]] = &[
    b"\x1bLua",
    b"\x1bLuaQ\x00\x01\x04\x08\x04\x08\x00",
    b"\x1bLuaQ\x00\x01\x04\x08\x04\x08\x00\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x1bLuaQ\x00\x01\x04\x08\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\
      \x00\x00\x00\x00\x00\x00\x00\x02\xff\xff\xff\x7f",
    b"\x1bLJ\x02\x0a",
    b"\x05\x01\x02",
];
