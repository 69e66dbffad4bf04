//! Commands, carried out on the state of their key.

use std::cmp::Ordering;

use bytes::{Bytes, BytesMut};

use super::number::{Sum, add, is_finite};
use super::{Context, Fields, Held, Reply, State};
use crate::model::{Kind, Millis};
use crate::resp::{
    Condition, DataCommand, ExpireCondition, ExpiryArg, HashRead, NewEnd, Part, Script, SetIf,
    SetTells, TtlForm, Update, integer,
};

/// Carries out a command of one key. What is told.
pub fn apply(command: DataCommand<'_>, state: &mut State, context: Context<'_>) -> Reply {
    let Context { now, .. } = context;
    let is_one = |keys: usize| keys == 1;
    match command {
        DataCommand::Get { .. } => text(state, |value| Reply::Bulk(value.clone())),
        DataCommand::Set { value, expiry, .. } => {
            let expires_at = expiry.map(|expiry| moment(expiry, now));
            write(state, value, Kind::String, expires_at, context).unwrap_or(Reply::Ok)
        }
        DataCommand::MGet { keys } if is_one(keys.len()) => {
            let value = state.held.as_ref().filter(|held| held.kind == Kind::String);
            let value = value.map_or(Reply::Nil, |held| Reply::Bulk(held.value.clone()));
            Reply::Array(vec![value])
        }
        DataCommand::MSet { pairs } if is_one(pairs.iter().count()) => {
            let value = pairs.iter().next().map_or(&b""[..], |(_, value)| value);
            write(state, value, Kind::String, None, context).unwrap_or(Reply::Ok)
        }
        DataCommand::Del { keys } if is_one(keys.len()) => delete(state, Condition::Always),
        DataCommand::Exists { keys } if is_one(keys.len()) => {
            Reply::integer(u8::from(state.held.is_some()))
        }
        DataCommand::MGet { .. }
        | DataCommand::MSet { .. }
        | DataCommand::Del { .. }
        | DataCommand::Exists { .. } => Reply::Error(SEVERAL_KEYS.to_owned()),
        DataCommand::Expire { at, .. } => expire(state, at, ExpireCondition::default(), now),
        DataCommand::Persist { .. } => match &state.held {
            Some(held) if held.expires_at.is_some() => {
                let held = held.clone();
                state.set(Some(Held {
                    expires_at: None,
                    ..held
                }));
                Reply::Integer(1)
            }
            _ => Reply::Integer(0),
        },
        DataCommand::Ttl { form, .. } => Reply::Integer(match &state.held {
            None => -2,
            Some(held) => ttl(held.expires_at, form, now),
        }),
        DataCommand::Type { .. } => {
            let name = state.held.as_ref().map_or("none", |held| held.kind.name());
            Reply::Status(name.to_owned())
        }
        DataCommand::StrLen { .. } => match &state.held {
            None => Reply::Integer(0),
            Some(_) => text(state, |value| Reply::integer(value.len())),
        },
        DataCommand::Part { part, .. } => self::part(state, part),
        DataCommand::Usage { key } => match &state.held {
            None => Reply::Nil,
            Some(held) => Reply::integer(usage(key.len(), held.value.len())),
        },
        DataCommand::Update { update, .. } => self::update(update, state, context),
        DataCommand::Script(script) => run_script(script, state, context),
        // Whoever is asked puts the program in its place.
        DataCommand::NamedScript(_) => Reply::Error(NO_SCRIPT.to_owned()),
        DataCommand::Hash { read, .. } => match fields(state) {
            Ok(fields) => read_fields(&mut fields.unwrap_or_default(), read),
            Err(error) => error,
        },
    }
}

#[cfg(feature = "scripts")]
fn run_script(script: Script<'_>, state: &mut State, context: Context<'_>) -> Reply {
    super::script::run(script, state, context)
}

#[cfg(not(feature = "scripts"))]
fn run_script(_: Script<'_>, _: &mut State, _: Context<'_>) -> Reply {
    Reply::Error("ERR this node was built without scripts".to_owned())
}

/// What a key and its value of so many bytes take, about.
#[must_use]
pub const fn usage(key_bytes: usize, value_bytes: usize) -> usize {
    key_bytes + value_bytes + RECORD_BYTES
}

/// Says when a value ends.
#[must_use]
pub fn ttl(expires_at: Option<Millis>, form: TtlForm, now: Millis) -> i64 {
    let Some(at) = expires_at else {
        return -1;
    };
    let left = i64::try_from(at.0.saturating_sub(now.0)).unwrap_or(i64::MAX);
    let at = i64::try_from(at.0).unwrap_or(i64::MAX);
    match form {
        // To the nearest second, as Redis does.
        TtlForm::Seconds => left.saturating_add(500) / 1_000,
        TtlForm::Millis => left,
        TtlForm::AtSeconds => at.saturating_add(500) / 1_000,
        TtlForm::AtMillis => at,
    }
}

/// The moment that an argument means.
#[must_use]
pub fn moment(expiry: ExpiryArg, now: Millis) -> Millis {
    let ms = match expiry {
        ExpiryArg::At(ms) => ms,
        ExpiryArg::After(ms) => i64::try_from(now.0).unwrap_or(i64::MAX).saturating_add(ms),
    };
    // Before 1970 is as past as the first moment of it.
    Millis(u64::try_from(ms).unwrap_or(0))
}

fn update(update: Update<'_>, state: &mut State, context: Context<'_>) -> Reply {
    let now = context.now;
    match update {
        Update::Set(set) => set_if(set, state, context),
        Update::Delete(condition) => delete(state, condition),
        Update::GetDelete => {
            let told = text(state, |value| Reply::Bulk(value.clone()));
            if matches!(told, Reply::Bulk(_)) {
                state.set(None);
            }
            told
        }
        Update::GetExpire(end) => {
            let told = text(state, |value| Reply::Bulk(value.clone()));
            if let (Reply::Bulk(value), Some(held)) = (&told, &state.held) {
                let (value, expires_at) = (value.clone(), new_end(end, Some(held), now));
                if held.expires_at != expires_at {
                    keep(state, value, expires_at, now);
                }
            }
            told
        }
        Update::Expire(at, condition) => expire(state, at, condition, now),
        Update::Add(by) => add_to(state, by, context),
        Update::AddDecimal(by) => add_decimal(state, by, context),
        Update::Append(more) => {
            let mut value = match string(state) {
                Ok(value) => BytesMut::from(&value.unwrap_or_default()[..]),
                Err(error) => return error,
            };
            value.extend_from_slice(more);
            let length = Reply::integer(value.len());
            rewrite(state, &value, context).unwrap_or(length)
        }
        Update::SetRange(offset, part) => set_range(state, offset, part, context),
        Update::SetBit(offset, bit) => set_bit(state, offset, bit, context),
        Update::HashSet(..)
        | Update::HashSetAbsent(..)
        | Update::HashDelete(_)
        | Update::HashAdd(..)
        | Update::HashAddDecimal(..) => hash_update(update, state, context),
    }
}

fn set_if(set: SetIf<'_>, state: &mut State, context: Context<'_>) -> Reply {
    let SetIf {
        value,
        end,
        condition,
        tells,
    } = set;
    let needs_text = tells == SetTells::Before
        || matches!(condition, Condition::Equal(_) | Condition::NotEqual(_));
    let before = match string(state) {
        Ok(before) => before,
        Err(error) if needs_text => return error,
        Err(_) => None,
    };
    let is_met = is_met(state, condition);
    if is_met {
        let expires_at = new_end(end, state.held.as_ref(), context.now);
        if let Some(error) = write(state, value, Kind::String, expires_at, context) {
            return error;
        }
    }
    match tells {
        SetTells::Before => before.map_or(Reply::Nil, Reply::Bulk),
        SetTells::Number => Reply::integer(u8::from(is_met)),
        SetTells::Done if is_met => Reply::Ok,
        SetTells::Done => Reply::Nil,
    }
}

fn delete(state: &mut State, condition: Condition<'_>) -> Reply {
    if matches!(condition, Condition::Equal(_) | Condition::NotEqual(_))
        && let Err(error) = string(state)
    {
        return error;
    }
    let is_deleted = state.held.is_some() && is_met(state, condition);
    if is_deleted {
        state.set(None);
    }
    Reply::integer(u8::from(is_deleted))
}

fn is_met(state: &State, condition: Condition<'_>) -> bool {
    let is = |value: &[u8]| state.held.as_ref().map(|held| held.value == value);
    match condition {
        Condition::Always => true,
        Condition::Absent => state.held.is_none(),
        Condition::Present => state.held.is_some(),
        Condition::Equal(value) => is(value) == Some(true),
        Condition::NotEqual(value) => is(value) != Some(true),
    }
}

fn expire(state: &mut State, at: ExpiryArg, condition: ExpireCondition, now: Millis) -> Reply {
    let Some(held) = &state.held else {
        return Reply::Integer(0);
    };
    let at = moment(at, now);
    let before = held.expires_at;
    let ExpireCondition { had_end, moves } = condition;
    // What was to stay ends last.
    let moved = before.map_or(Ordering::Less, |before| at.cmp(&before));
    let is_met = had_end.is_none_or(|had_end| had_end == before.is_some())
        && moves.is_none_or(|moves| moves == moved);
    if is_met && before != Some(at) {
        let (value, kind) = (held.value.clone(), held.kind);
        let held = (at > now).then_some(Held {
            value,
            kind,
            expires_at: Some(at),
        });
        state.set(held);
    }
    Reply::integer(u8::from(is_met))
}

fn add_to(state: &mut State, by: i64, context: Context<'_>) -> Reply {
    let held = match string(state) {
        Ok(held) => held,
        Err(error) => return error,
    };
    let Some(number) = held.map_or(Some(0), |held| integer(&held)) else {
        return Reply::Error(NO_INTEGER.to_owned());
    };
    let Some(sum) = number.checked_add(by) else {
        return Reply::Error(OVERFLOW.to_owned());
    };
    rewrite(state, sum.to_string().as_bytes(), context).unwrap_or(Reply::Integer(sum))
}

fn add_decimal(state: &mut State, by: &[u8], context: Context<'_>) -> Reply {
    let held = match string(state) {
        Ok(held) => held,
        Err(error) => return error,
    };
    let held = held.unwrap_or_else(|| Bytes::from_static(b"0"));
    match add(&held, by) {
        Sum::Is(sum) => {
            rewrite(state, sum.as_bytes(), context).unwrap_or_else(|| Reply::bulk(sum.as_bytes()))
        }
        Sum::NoNumber => Reply::Error(NO_FLOAT.to_owned()),
        Sum::Infinite => Reply::Error(INFINITE.to_owned()),
    }
}

fn set_range(state: &mut State, offset: u64, part: &[u8], context: Context<'_>) -> Reply {
    let held = match string(state) {
        Ok(held) => held.unwrap_or_default(),
        Err(error) => return error,
    };
    if part.is_empty() {
        return Reply::integer(held.len());
    }
    let end = usize::try_from(offset)
        .ok()
        .and_then(|offset| Some((offset, offset.checked_add(part.len())?)));
    let Some((start, end)) = end.filter(|(_, end)| *end <= context.value_bytes_max) else {
        return too_long(context);
    };
    let mut value = BytesMut::from(&held[..]);
    value.resize(held.len().max(end), 0);
    value[start..end].copy_from_slice(part);
    let length = Reply::integer(value.len());
    rewrite(state, &value, context).unwrap_or(length)
}

fn set_bit(state: &mut State, offset: u64, bit: bool, context: Context<'_>) -> Reply {
    let held = match string(state) {
        Ok(held) => held.unwrap_or_default(),
        Err(error) => return error,
    };
    let at = usize::try_from(offset / 8).ok();
    let Some(at) = at.filter(|at| *at < context.value_bytes_max) else {
        return too_long(context);
    };
    let before = Part::bit(&held, offset);
    let mut value = BytesMut::from(&held[..]);
    value.resize(held.len().max(at + 1), 0);
    let mask = 1 << (7 - offset % 8);
    if bit {
        value[at] |= mask;
    } else {
        value[at] &= !mask;
    }
    let told = Reply::integer(u8::from(before));
    rewrite(state, &value, context).unwrap_or(told)
}

fn hash_update(update: Update<'_>, state: &mut State, context: Context<'_>) -> Reply {
    if let Update::HashAddDecimal(_, by) = update {
        match is_finite(by) {
            None => return Reply::Error(NO_FLOAT.to_owned()),
            Some(false) => return Reply::Error(NOT_FINITE.to_owned()),
            Some(true) => {}
        }
    }
    let mut fields = match fields(state) {
        Ok(fields) => fields.unwrap_or_default(),
        Err(error) => return error,
    };
    let told = match update {
        Update::HashSet(pairs, tells_ok) => {
            let new = pairs
                .iter()
                .filter(|(field, value)| fields.set(field, value));
            let new = Reply::integer(new.count());
            if tells_ok { Reply::Ok } else { new }
        }
        Update::HashSetAbsent(field, value) => {
            if fields.get(field).is_some() {
                return Reply::Integer(0);
            }
            fields.set(field, value);
            Reply::Integer(1)
        }
        Update::HashDelete(names) => {
            let gone = names.iter().filter(|name| fields.remove(name)).count();
            if gone == 0 {
                return Reply::Integer(0);
            }
            Reply::integer(gone)
        }
        Update::HashAdd(field, by) => {
            let held = fields.get(field).map_or(Some(0), |held| integer(held));
            let Some(held) = held else {
                return Reply::Error(NO_HASH_INTEGER.to_owned());
            };
            let Some(sum) = held.checked_add(by) else {
                return Reply::Error(OVERFLOW.to_owned());
            };
            fields.set(field, sum.to_string().as_bytes());
            Reply::Integer(sum)
        }
        Update::HashAddDecimal(field, by) => {
            match add(fields.get(field).map_or(b"0", |held| &held[..]), by) {
                Sum::Is(sum) => {
                    fields.set(field, sum.as_bytes());
                    Reply::bulk(sum.as_bytes())
                }
                Sum::NoNumber => return Reply::Error(NO_HASH_FLOAT.to_owned()),
                Sum::Infinite => return Reply::Error(INFINITE.to_owned()),
            }
        }
        // It is asked for hashes only.
        _ => return Reply::Error(WRONG_TYPE.to_owned()),
    };
    if fields.is_empty() {
        state.set(None);
        return told;
    }
    let expires_at = state.held.as_ref().and_then(|held| held.expires_at);
    write(state, &fields.encode(), Kind::Hash, expires_at, context).unwrap_or(told)
}

fn read_fields(fields: &mut Fields, read: HashRead<'_>) -> Reply {
    let value = |fields: &mut Fields, field: &[u8]| {
        let value = fields.get(field).cloned();
        value.map_or(Reply::Nil, Reply::Bulk)
    };
    let all = |fields: &Fields, of: fn(&(Bytes, Bytes)) -> &Bytes| {
        let all = fields.iter().map(|pair| Reply::Bulk(of(pair).clone()));
        Reply::Array(all.collect())
    };
    match read {
        HashRead::Get(field) => value(fields, field),
        HashRead::GetSome(names) => {
            Reply::Array(names.iter().map(|name| value(fields, name)).collect())
        }
        HashRead::All => Reply::Map(fields.iter().cloned().collect()),
        HashRead::Fields => all(fields, |(field, _)| field),
        HashRead::Values => all(fields, |(_, value)| value),
        HashRead::Has(field) => Reply::integer(u8::from(fields.get(field).is_some())),
        HashRead::Length => Reply::integer(fields.len()),
        HashRead::ValueLength(field) => Reply::integer(fields.get(field).map_or(0, Bytes::len)),
    }
}

fn part(state: &State, part: Part) -> Reply {
    let held = match part {
        Part::Encoding | Part::IdleTime | Part::References => match &state.held {
            None => return Reply::Nil,
            Some(held) if held.kind == Kind::Hash && part == Part::Encoding => {
                return Reply::bulk(hash_encoding(&held.value).as_bytes());
            }
            Some(held) => held.value.clone(),
        },
        Part::Range(..) | Part::Bit(_) | Part::Count(_) => match string(state) {
            Ok(held) => held.unwrap_or_default(),
            Err(error) => return error,
        },
    };
    match part {
        Part::Range(start, end) => Reply::bulk(Part::range(&held, start, end)),
        Part::Bit(offset) => Reply::integer(u8::from(Part::bit(&held, offset))),
        Part::Count(range) => Reply::integer(Part::count(&held, range)),
        Part::Encoding => Reply::bulk(Part::encoding(&held).as_bytes()),
        Part::IdleTime => Reply::Integer(0),
        Part::References => Reply::Integer(1),
    }
}

/// How Redis would keep a hash.
fn hash_encoding(value: &Bytes) -> &'static str {
    let fields = Fields::decode(value).unwrap_or_default();
    let is_long = |(field, value): &(Bytes, Bytes)| {
        field.len() > PACKED_BYTES_MAX || value.len() > PACKED_BYTES_MAX
    };
    if fields.len() > PACKED_FIELDS_MAX || fields.iter().any(is_long) {
        "hashtable"
    } else {
        "listpack"
    }
}

/// What a string holds, if there is one.
fn string(state: &State) -> Result<Option<Bytes>, Reply> {
    match &state.held {
        None => Ok(None),
        Some(held) if held.kind == Kind::String => Ok(Some(held.value.clone())),
        Some(_) => Err(Reply::Error(WRONG_TYPE.to_owned())),
    }
}

fn text(state: &State, tell: impl FnOnce(&Bytes) -> Reply) -> Reply {
    match string(state) {
        Ok(Some(value)) => tell(&value),
        Ok(None) => Reply::Nil,
        Err(error) => error,
    }
}

fn fields(state: &State) -> Result<Option<Fields>, Reply> {
    match &state.held {
        None => Ok(None),
        Some(held) if held.kind == Kind::Hash => match Fields::decode(&held.value) {
            Some(fields) => Ok(Some(fields)),
            None => Err(Reply::Error(DAMAGED.to_owned())),
        },
        Some(_) => Err(Reply::Error(WRONG_TYPE.to_owned())),
    }
}

fn new_end(end: NewEnd, held: Option<&Held>, now: Millis) -> Option<Millis> {
    match end {
        NewEnd::Never => None,
        NewEnd::Keep => held.and_then(|held| held.expires_at),
        NewEnd::At(expiry) => Some(moment(expiry, now)),
    }
}

/// The same string with another end.
fn keep(state: &mut State, value: Bytes, expires_at: Option<Millis>, now: Millis) {
    let is_over = expires_at.is_some_and(|at| at <= now);
    state.set((!is_over).then_some(Held {
        value,
        kind: Kind::String,
        expires_at,
    }));
}

/// Writes a string that ends when the one before did.
fn rewrite(state: &mut State, value: &[u8], context: Context<'_>) -> Option<Reply> {
    let expires_at = state.held.as_ref().and_then(|held| held.expires_at);
    write(state, value, Kind::String, expires_at, context)
}

/// Writes a value; an error if it is too long.
fn write(
    state: &mut State,
    value: &[u8],
    kind: Kind,
    expires_at: Option<Millis>,
    context: Context<'_>,
) -> Option<Reply> {
    if value.len() > context.value_bytes_max {
        return Some(too_long(context));
    }
    let is_over = expires_at.is_some_and(|at| at <= context.now);
    state.set((!is_over).then(|| Held {
        value: Bytes::copy_from_slice(value),
        kind,
        expires_at,
    }));
    None
}

fn too_long(context: Context<'_>) -> Reply {
    let limit = context.value_bytes_max;
    Reply::Error(format!(
        "TOOBIG the value would have more than {limit} bytes (max_value_bytes); nothing was written"
    ))
}

/// An operation for another kind of value than the one that is held.
pub const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
const NO_INTEGER: &str = "ERR value is not an integer or out of range";
const NO_HASH_INTEGER: &str = "ERR hash value is not an integer";
const NO_FLOAT: &str = "ERR value is not a valid float";
const NO_HASH_FLOAT: &str = "ERR hash value is not a float";
const NOT_FINITE: &str = "ERR value is NaN or Infinity";
const INFINITE: &str = "ERR increment would produce NaN or Infinity";
const OVERFLOW: &str = "ERR increment or decrement would overflow";
const SEVERAL_KEYS: &str = "ERR an atomic update has one key";
const NO_SCRIPT: &str = "NOSCRIPT No matching script. Please use EVAL.";
const DAMAGED: &str = "ERR the hash is damaged";
/// What a record takes beyond key and value, measured with a million of them.
const RECORD_BYTES: usize = 80;
/// As Redis has them by default.
const PACKED_FIELDS_MAX: usize = 512;
const PACKED_BYTES_MAX: usize = 64;
