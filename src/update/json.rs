//! JSON for scripts.

use mlua::{Error, Lua, Result, Table, Value};
use serde_json::{Map, Number, Value as Json};

/// What scripts know as `cjson`.
pub(super) fn library(lua: &Lua) -> Result<Table> {
    let library = lua.create_table()?;
    let encode = lua.create_function(|_, value: Value| {
        let json = to_json(&value, DEPTH_MAX)?;
        Ok(json.to_string())
    })?;
    let decode = lua.create_function(|lua, text: mlua::LuaString| {
        let json = serde_json::from_slice(&text.as_bytes());
        let json: Json =
            json.map_err(|error| Error::runtime(format!("Expected value: {error}")))?;
        from_json(lua, &json)
    })?;
    library.raw_set("encode", encode)?;
    library.raw_set("decode", decode)?;
    library.raw_set("null", Value::NULL)?;
    Ok(library)
}

fn from_json(lua: &Lua, json: &Json) -> Result<Value> {
    Ok(match json {
        Json::Null => Value::NULL,
        Json::Bool(is) => Value::Boolean(*is),
        Json::Number(number) => Value::Number(number.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Value::String(lua.create_string(text)?),
        Json::Array(items) => {
            let items = items.iter().map(|item| from_json(lua, item));
            Value::Table(lua.create_sequence_from(items.collect::<Result<Vec<_>>>()?)?)
        }
        Json::Object(fields) => {
            let table = lua.create_table()?;
            for (name, field) in fields {
                table.raw_set(name.as_str(), from_json(lua, field)?)?;
            }
            Value::Table(table)
        }
    })
}

fn to_json(value: &Value, depth: usize) -> Result<Json> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Error::runtime("Cannot serialise, excessive depth"));
    };
    let lossy = |text: &mlua::LuaString| String::from_utf8_lossy(&text.as_bytes()).into_owned();
    Ok(match value {
        Value::Nil | Value::LightUserData(_) => Json::Null,
        Value::Boolean(is) => Json::Bool(*is),
        Value::Integer(number) => Json::from(*number),
        Value::Number(number) => to_number(*number)?,
        Value::String(text) => Json::String(lossy(text)),
        Value::Table(table) if table.raw_len() > 0 => {
            let items = table.sequence_values::<Value>();
            let items = items.map(|item| to_json(&item?, depth));
            Json::Array(items.collect::<Result<Vec<_>>>()?)
        }
        Value::Table(table) => {
            let mut fields = Map::new();
            for pair in table.pairs::<mlua::LuaString, Value>() {
                let (name, field) = pair?;
                fields.insert(lossy(&name), to_json(&field, depth)?);
            }
            Json::Object(fields)
        }
        _ => return Err(Error::runtime("Cannot serialise: type not supported")),
    })
}

/// Whole numbers are written as such.
fn to_number(number: f64) -> Result<Json> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "whole, and of less than 54 bits"
    )]
    let whole = (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64);
    let number = whole.map_or_else(|| Number::from_f64(number), |whole| Some(whole.into()));
    let number =
        number.ok_or_else(|| Error::runtime("Cannot serialise number: must not be NaN or Inf"));
    number.map(Json::Number)
}

const DEPTH_MAX: usize = 100;
