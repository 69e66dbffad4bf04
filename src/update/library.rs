//! What scripts have of Lua's libraries where Lua's own could run for long: bounded by the meter.

use std::cell::Cell;
use std::rc::Rc;

use mlua::{Error, Lua, LuaString, MultiValue, Result, Value};

use super::limit::{Ended, MEMORY_MAX, Meter};
use super::pattern::{Capture, Matcher, PatternError, is_plain};

/// Puts the functions in their places.
pub(super) fn install(lua: &Lua, meter: &Rc<Meter>) -> Result<()> {
    let string: mlua::Table = lua.globals().raw_get("string")?;
    string.raw_remove("dump")?;
    string.raw_remove("gfind")?;
    for (name, is_find) in [("find", true), ("match", false)] {
        let meter = Rc::clone(meter);
        let find = move |lua: &Lua, args: (LuaString, LuaString, Option<f64>, Option<bool>)| {
            find(lua, args, is_find, &meter)
        };
        string.raw_set(name, lua.create_function(find)?)?;
    }
    let own = Rc::clone(meter);
    let gsub = move |lua: &Lua, args: (LuaString, LuaString, LuaString, Option<f64>)| {
        gsub(lua, args, &own)
    };
    string.raw_set("gsub", lua.create_function(gsub)?)?;
    let own = Rc::clone(meter);
    let step = lua.create_function(
        move |lua, (text, pattern, from): (LuaString, LuaString, usize)| {
            gsub_step(lua, &text, &pattern, from, &own)
        },
    )?;
    lua.globals().raw_set("__gsub_step", step)?;
    let own = Rc::clone(meter);
    let step = lua.create_function(
        move |lua, (text, pattern, from): (LuaString, LuaString, usize)| {
            gmatch_step(lua, &text, &pattern, from, &own)
        },
    )?;
    lua.globals().raw_set("__gmatch_step", step)?;
    let own = Rc::clone(meter);
    let rep = lua.create_function(move |lua, (text, times): (LuaString, f64)| {
        rep(lua, &text, times, &own)
    })?;
    string.raw_set("rep", rep)?;
    for (name, make) in BYTEWISE {
        let own = Rc::clone(meter);
        let function = lua.create_function(move |lua, text: LuaString| {
            let text = text.as_bytes();
            own.spend_bytes(text.len() * 8).map_err(Error::external)?;
            lua.create_string(make(&text))
        })?;
        string.raw_set(name, function)?;
    }
    let own = Rc::clone(meter);
    let spend = lua.create_function(move |_, bytes: f64| {
        own.spend_bytes(index(bytes)).map_err(Error::external)?;
        own.check().map_err(Error::external)
    })?;
    lua.globals().raw_set("__spend", spend)?;
    random(lua)
}

type Bytewise = (&'static str, fn(&[u8]) -> Vec<u8>);

const BYTEWISE: [Bytewise; 3] = [
    ("lower", |text| text.to_ascii_lowercase()),
    ("upper", |text| text.to_ascii_uppercase()),
    ("reverse", |text| text.iter().rev().copied().collect()),
];

/// Numbers by chance, as in Redis: the same ones in each run.
fn random(lua: &Lua) -> Result<()> {
    let math: mlua::Table = lua.globals().raw_get("math")?;
    let seed = Rc::new(Cell::new(seeded(0)));
    let own = Rc::clone(&seed);
    let random = lua.create_function(move |_, (low, high): (Option<f64>, Option<f64>)| {
        let next = own.get().wrapping_mul(0x5_DEEC_E66D).wrapping_add(0xB) & ((1 << 48) - 1);
        own.set(next);
        #[expect(clippy::cast_precision_loss, reason = "of 31 bits")]
        let part = ((next >> 17) % RANDOM_MAX) as f64 / RANDOM_MAX as f64;
        let (low, high) = match (low.map(f64::trunc), high.map(f64::trunc)) {
            (None, _) => return Ok(part),
            (Some(high), None) => (1.0, high),
            (Some(low), Some(high)) => (low, high),
        };
        if low > high {
            return Err(Error::runtime(
                "bad argument to 'random' (interval is empty)",
            ));
        }
        Ok((part * (high - low + 1.0)).floor() + low)
    })?;
    math.raw_set("random", random)?;
    let randomseed = lua.create_function(move |_, with: f64| {
        #[expect(clippy::cast_possible_truncation, reason = "as in Redis")]
        seed.set(seeded(with as i64));
        Ok(())
    })?;
    math.raw_set("randomseed", randomseed)
}

const fn seeded(with: i64) -> u64 {
    (with.cast_unsigned() & 0xFFFF_FFFF) << 16 | 0x330E
}

const RANDOM_MAX: u64 = 0x7FFF_FFFF;

/// A number as a length or an index: what is below is zero.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "casts of floats stop at the limits"
)]
const fn index(number: f64) -> usize {
    number as usize
}

/// Where to begin, from zero, in a text of so many bytes.
fn start(at: Option<f64>, length: usize) -> usize {
    match at.map_or(1.0, f64::trunc) {
        at if at > 0.0 => index(at - 1.0).min(length),
        at if at < 0.0 => length.saturating_sub(index(-at)),
        _ => 0,
    }
}

fn broken(error: PatternError) -> Error {
    match error {
        PatternError::Malformed(text) => Error::runtime(text),
        PatternError::Ended(ended) => Error::external(ended),
    }
}

fn find(
    lua: &Lua,
    (text, pattern, at, plain): (LuaString, LuaString, Option<f64>, Option<bool>),
    is_find: bool,
    meter: &Meter,
) -> Result<MultiValue> {
    let (text, pattern) = (text.as_bytes(), pattern.as_bytes());
    meter.spend_bytes(pattern.len()).map_err(Error::external)?;
    let from = start(at, text.len());
    let mut found = MultiValue::new();
    if is_find && (plain == Some(true) || is_plain(&pattern)) {
        meter.spend_bytes(text.len()).map_err(Error::external)?;
        match memchr::memmem::find(&text[from..], &pattern) {
            Some(at) => {
                found.push_back(number(from + at + 1));
                found.push_back(number(from + at + pattern.len()));
            }
            None => found.push_back(Value::Nil),
        }
        return Ok(found);
    }
    let mut matcher = Matcher::new(&text, &pattern, meter).anchored();
    let Some(all) = matcher.search(from).map_err(broken)? else {
        found.push_back(Value::Nil);
        return Ok(found);
    };
    let captures = if is_find {
        found.push_back(number(all.0 + 1));
        found.push_back(number(all.1));
        matcher.level()
    } else {
        matcher.level().max(1)
    };
    for index in 0..captures {
        found.push_back(captured(lua, &text, &matcher, index, all)?);
    }
    Ok(found)
}

#[expect(clippy::cast_precision_loss, reason = "far below 53 bits")]
const fn number(number: usize) -> Value {
    Value::Number(number as f64)
}

fn captured(
    lua: &Lua,
    text: &[u8],
    matcher: &Matcher<'_>,
    index: usize,
    all: (usize, usize),
) -> Result<Value> {
    Ok(match matcher.capture(index, all).map_err(broken)? {
        Capture::Place(place) => number(place),
        Capture::Part(start, end) => Value::String(lua.create_string(&text[start..end])?),
    })
}

/// The next match: where to look on, then what it has captured.
fn gmatch_step(
    lua: &Lua,
    text: &LuaString,
    pattern: &LuaString,
    from: usize,
    meter: &Meter,
) -> Result<MultiValue> {
    let (text, pattern) = (text.as_bytes(), pattern.as_bytes());
    meter.spend_bytes(pattern.len()).map_err(Error::external)?;
    let mut matcher = Matcher::new(&text, &pattern, meter);
    let mut found = MultiValue::new();
    let Some(all) = matcher.search(from).map_err(broken)? else {
        return Ok(found);
    };
    found.push_back(number(if all.1 == all.0 { all.1 + 1 } else { all.1 }));
    for index in 0..matcher.level().max(1) {
        found.push_back(captured(lua, &text, &matcher, index, all)?);
    }
    Ok(found)
}

/// The next match: where it begins and ends, then what it has captured.
///
/// What replaces it is called by the prelude: calls out of here within calls out of here would use up
/// the stack of the thread.
fn gsub_step(
    lua: &Lua,
    text: &LuaString,
    pattern: &LuaString,
    from: usize,
    meter: &Meter,
) -> Result<MultiValue> {
    let (text, pattern) = (text.as_bytes(), pattern.as_bytes());
    meter.spend_bytes(pattern.len()).map_err(Error::external)?;
    let mut matcher = Matcher::new(&text, &pattern, meter).anchored();
    let mut found = MultiValue::new();
    let Some(all) = matcher.search(from).map_err(broken)? else {
        return Ok(found);
    };
    found.push_back(number(all.0));
    found.push_back(number(all.1));
    for index in 0..matcher.level().max(1) {
        found.push_back(captured(lua, &text, &matcher, index, all)?);
    }
    Ok(found)
}

/// Replaces by a text.
fn gsub(
    lua: &Lua,
    (text, pattern, by, times): (LuaString, LuaString, LuaString, Option<f64>),
    meter: &Meter,
) -> Result<(LuaString, f64)> {
    let by = by.as_bytes();
    let (text, pattern) = (text.as_bytes(), pattern.as_bytes());
    meter.spend_bytes(pattern.len()).map_err(Error::external)?;
    let mut matcher = Matcher::new(&text, &pattern, meter).anchored();
    let (mut out, mut count, mut at) = (Vec::new(), 0.0, 0);
    let times = times.map_or(f64::INFINITY, f64::trunc);
    while count < times {
        let end = matcher.match_at(at).map_err(broken)?;
        let before = out.len();
        if let Some(end) = end {
            count += 1.0;
            replace_by(&mut out, (&text, &matcher, (at, end)), &by)?;
        }
        match end {
            Some(end) if end > at => at = end,
            _ if at < text.len() => {
                out.push(text[at]);
                at += 1;
            }
            _ => break,
        }
        meter
            .spend_bytes(out.len() - before)
            .map_err(Error::external)?;
        fits(&out, meter)?;
        if matcher.is_anchored() {
            break;
        }
    }
    out.extend_from_slice(&text[at.min(text.len())..]);
    fits(&out, meter)?;
    Ok((lua.create_string(&out)?, count))
}

/// What is made outside of Lua's memory has its bound too.
fn fits(out: &[u8], meter: &Meter) -> Result<()> {
    if out.len() > MEMORY_MAX {
        return Err(Error::external(meter.end(Ended::Memory)));
    }
    Ok(())
}

fn replace_by(
    out: &mut Vec<u8>,
    (text, matcher, all): (&[u8], &Matcher<'_>, (usize, usize)),
    by: &[u8],
) -> Result<()> {
    let mut bytes = by.iter();
    while let Some(&byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        match bytes.next().copied().unwrap_or(0) {
            b'0' => out.extend_from_slice(&text[all.0..all.1]),
            digit if digit.is_ascii_digit() => {
                match matcher
                    .capture(usize::from(digit - b'1'), all)
                    .map_err(broken)?
                {
                    Capture::Place(place) => out.extend_from_slice(place.to_string().as_bytes()),
                    Capture::Part(start, end) => out.extend_from_slice(&text[start..end]),
                }
            }
            other => out.push(other),
        }
        if out.len() > MEMORY_MAX {
            return Err(Error::runtime("not enough memory"));
        }
    }
    Ok(())
}

fn rep(lua: &Lua, text: &LuaString, times: f64, meter: &Meter) -> Result<LuaString> {
    let text = text.as_bytes();
    let times = if text.is_empty() { 0 } else { index(times) };
    let bytes = text.len().saturating_mul(times);
    if bytes > MEMORY_MAX {
        return Err(Error::external(meter.end(Ended::Memory)));
    }
    meter.spend_bytes(bytes).map_err(Error::external)?;
    lua.create_string(text.repeat(times))
}
