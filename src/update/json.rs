//! JSON for scripts: read straight into Lua's memory, and written within the same bound.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use mlua::{Error, Lua, LuaString, Result, Table, Value};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::limit::{Ended, MEMORY_MAX, Meter};

/// What scripts know as `cjson`.
pub(super) fn library(lua: &Lua, meter: &Rc<Meter>) -> Result<Table> {
    let library = lua.create_table()?;
    let own = Rc::clone(meter);
    let encode = lua.create_function(move |lua, value: Value| {
        let mut out = Vec::new();
        write(&value, DEPTH_MAX, &mut out, &own)?;
        lua.create_string(&out)
    })?;
    let own = Rc::clone(meter);
    let decode = lua.create_function(move |lua, text: LuaString| {
        let text = text.as_bytes();
        own.spend_bytes(text.len()).map_err(Error::external)?;
        let failed = RefCell::new(None);
        let decode = Decode {
            lua,
            meter: &own,
            failed: &failed,
        };
        let mut json = serde_json::Deserializer::from_slice(&text);
        let value = decode.deserialize(&mut json);
        let value = value.and_then(|value| json.end().map(|()| value));
        value.map_err(|error| {
            let own = failed.take();
            own.unwrap_or_else(|| Error::runtime(format!("Expected value: {error}")))
        })
    })?;
    library.raw_set("encode", encode)?;
    library.raw_set("decode", decode)?;
    library.raw_set("null", Value::NULL)?;
    Ok(library)
}

/// Makes a value of Lua of what is read.
#[derive(Clone, Copy)]
struct Decode<'a> {
    lua: &'a Lua,
    meter: &'a Meter,
    /// What went wrong in Lua, which the reader of JSON does not know.
    failed: &'a RefCell<Option<Error>>,
}

impl Decode<'_> {
    fn note<T, E: serde::de::Error>(self, made: Result<T>) -> std::result::Result<T, E> {
        made.map_err(|error| {
            let told = E::custom("not kept");
            *self.failed.borrow_mut() = Some(error);
            told
        })
    }

    fn step<E: serde::de::Error>(self) -> std::result::Result<(), E> {
        self.note(self.meter.spend(STEPS_AN_ITEM).map_err(Error::external))
    }
}

impl<'de> DeserializeSeed<'de> for Decode<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> std::result::Result<Value, D::Error> {
        self.step()?;
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Decode<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::NULL)
    }

    fn visit_bool<E>(self, is: bool) -> std::result::Result<Value, E> {
        Ok(Value::Boolean(is))
    }

    #[expect(clippy::cast_precision_loss, reason = "the numbers of Lua 5.1")]
    fn visit_i64<E>(self, number: i64) -> std::result::Result<Value, E> {
        Ok(Value::Number(number as f64))
    }

    #[expect(clippy::cast_precision_loss, reason = "the numbers of Lua 5.1")]
    fn visit_u64<E>(self, number: u64) -> std::result::Result<Value, E> {
        Ok(Value::Number(number as f64))
    }

    fn visit_f64<E>(self, number: f64) -> std::result::Result<Value, E> {
        Ok(Value::Number(number))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<Value, E> {
        self.note(self.lua.create_string(text).map(Value::String))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Value, A::Error> {
        let table = self.note(self.lua.create_table())?;
        let mut place = 1;
        while let Some(item) = items.next_element_seed(self)? {
            self.note(table.raw_set(place, item))?;
            place += 1;
        }
        Ok(Value::Table(table))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> std::result::Result<Value, A::Error> {
        let table = self.note(self.lua.create_table())?;
        while let Some(name) = fields.next_key_seed(self)? {
            let field = fields.next_value_seed(self)?;
            self.note(table.raw_set(name, field))?;
        }
        Ok(Value::Table(table))
    }
}

fn write(value: &Value, depth: usize, out: &mut Vec<u8>, meter: &Meter) -> Result<()> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Error::runtime("Cannot serialise, excessive depth"));
    };
    meter.spend(STEPS_AN_ITEM).map_err(Error::external)?;
    match value {
        Value::Nil | Value::LightUserData(_) => out.extend_from_slice(b"null"),
        Value::Boolean(is) => out.extend_from_slice(if *is { b"true" } else { b"false" }),
        Value::Integer(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::Number(number) => write_number(*number, out)?,
        Value::String(text) => write_text(&text.as_bytes(), out, meter)?,
        Value::Table(table) => match array_length(table, meter)? {
            Some(length) => {
                out.push(b'[');
                for place in 1..=length {
                    if place > 1 {
                        out.push(b',');
                    }
                    write(&table.raw_get(place)?, depth, out, meter)?;
                }
                out.push(b']');
            }
            None => write_fields(table, depth, out, meter)?,
        },
        _ => return Err(Error::runtime("Cannot serialise: type not supported")),
    }
    if out.len() > MEMORY_MAX / 2 {
        return Err(Error::external(meter.end(Ended::Memory)));
    }
    Ok(())
}

fn write_fields(table: &Table, depth: usize, out: &mut Vec<u8>, meter: &Meter) -> Result<()> {
    out.push(b'{');
    let mut is_first = true;
    for pair in table.pairs::<Value, Value>() {
        let (name, field) = pair?;
        if !is_first {
            out.push(b',');
        }
        is_first = false;
        match name {
            Value::String(text) => write_text(&text.as_bytes(), out, meter)?,
            Value::Integer(_) | Value::Number(_) => {
                out.push(b'"');
                write(&name, 1, out, meter)?;
                out.push(b'"');
            }
            _ => {
                return Err(Error::runtime(
                    "Cannot serialise table: table key must be a number or string",
                ));
            }
        }
        out.push(b':');
        write(&field, depth, out, meter)?;
    }
    out.push(b'}');
    Ok(())
}

/// How many items a table has as an array, as cjson decides; `None`: it is an object.
fn array_length(table: &Table, meter: &Meter) -> Result<Option<i64>> {
    let (mut length, mut items) = (0_i64, 0_i64);
    for pair in table.pairs::<Value, Value>() {
        meter.spend(1).map_err(Error::external)?;
        #[expect(clippy::cast_possible_truncation, reason = "whole")]
        let place = match pair?.0 {
            Value::Integer(place) => place,
            Value::Number(place) if place.fract() == 0.0 => place as i64,
            _ => return Ok(None),
        };
        if place < 1 {
            return Ok(None);
        }
        (length, items) = (length.max(place), items + 1);
    }
    if length > SPARSE_SAFE && length > items.saturating_mul(SPARSE_RATIO) {
        return Err(Error::runtime(
            "Cannot serialise table: excessively sparse array",
        ));
    }
    Ok((items > 0).then_some(length))
}

fn write_text(text: &[u8], out: &mut Vec<u8>, meter: &Meter) -> Result<()> {
    meter.spend_bytes(text.len()).map_err(Error::external)?;
    if text.len() > MEMORY_MAX / 2 {
        return Err(Error::external(meter.end(Ended::Memory)));
    }
    out.push(b'"');
    for &byte in text {
        match byte {
            b'"' | b'\\' | b'/' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            byte if byte.is_ascii_control() => {
                out.extend_from_slice(format!("\\u{byte:04x}").as_bytes());
            }
            byte => out.push(byte),
        }
    }
    out.push(b'"');
    Ok(())
}

/// As `%.14g` would write it.
fn write_number(number: f64, out: &mut Vec<u8>) -> Result<()> {
    if !number.is_finite() {
        return Err(Error::runtime(
            "Cannot serialise number: must not be NaN or Inf",
        ));
    }
    let rounded = format!("{number:.13e}");
    let (digits, exponent) = rounded.split_once('e').unwrap_or((&rounded, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let text = if (-4..14).contains(&exponent) {
        let places = usize::try_from(13 - exponent).unwrap_or(0);
        trim(&format!("{number:.places$}")).to_owned()
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", trim(digits), exponent.unsigned_abs())
    };
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

fn trim(digits: &str) -> &str {
    if digits.contains('.') {
        digits.trim_end_matches('0').trim_end_matches('.')
    } else {
        digits
    }
}

const DEPTH_MAX: usize = 100;
/// To make an item costs more than a step of a script.
const STEPS_AN_ITEM: u64 = 4;
/// As cjson has them by default.
const SPARSE_SAFE: i64 = 10;
const SPARSE_RATIO: i64 = 2;
