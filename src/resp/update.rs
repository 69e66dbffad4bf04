//! Commands whose effect depends on what the key holds.

use std::cmp::Ordering;

use super::command::{Pairs, arity, key, lossy};
use super::expiry::Unit;
use super::parser::integer;
use super::{Args, CommandError, CommandKind, DataCommand, ExpiryArg, Keys};

/// What is to become of a key, depending on what it holds.
#[derive(Debug, Clone, Copy)]
pub enum Update<'a> {
    /// `SET` with options, `SETNX`, `GETSET`
    Set(SetIf<'a>),
    /// `DELIFEQ`, `DELEX`
    Delete(Condition<'a>),
    /// `GETDEL`
    GetDelete,
    /// `GETEX` with an option
    GetExpire(NewEnd),
    /// `EXPIRE` and the like, with options
    Expire(ExpiryArg, ExpireCondition),
    /// `INCR`, `DECR`, `INCRBY`, `DECRBY`
    Add(i64),
    /// `INCRBYFLOAT`
    AddDecimal(&'a [u8]),
    /// `APPEND`
    Append(&'a [u8]),
    /// `SETRANGE`: from where on, and with what.
    SetRange(u64, &'a [u8]),
    /// `SETBIT`
    SetBit(u64, bool),
    /// `HSET`, `HMSET`: whether `OK` is told and not a number.
    HashSet(Pairs<'a>, bool),
    /// `HSETNX`
    HashSetAbsent(&'a [u8], &'a [u8]),
    /// `HDEL`
    HashDelete(Keys<'a>),
    /// `HINCRBY`
    HashAdd(&'a [u8], i64),
    /// `HINCRBYFLOAT`
    HashAddDecimal(&'a [u8], &'a [u8]),
}

/// A conditional write.
#[derive(Debug, Clone, Copy)]
pub struct SetIf<'a> {
    /// The value.
    pub value: &'a [u8],
    /// When it ends.
    pub end: NewEnd,
    /// Whether it is written at all.
    pub condition: Condition<'a>,
    /// What is told.
    pub tells: SetTells,
}

/// When a value is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewEnd {
    /// Never.
    Never,
    /// When it was to end before.
    Keep,
    /// Then.
    At(ExpiryArg),
}

/// Whether something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition<'a> {
    /// Yes.
    Always,
    /// If there is no value.
    Absent,
    /// If there is one.
    Present,
    /// If there is this value.
    Equal(&'a [u8]),
    /// If there is another value than this, or none.
    NotEqual(&'a [u8]),
}

/// Whether the end of a value is changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExpireCondition {
    /// `XX`: only if it was to end; `NX`: only if it was to stay.
    pub had_end: Option<bool>,
    /// `GT`: only to a later moment; `LT`: only to an earlier one. To stay is to end last.
    pub moves: Option<Ordering>,
}

/// What a conditional write tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTells {
    /// `OK`, or nothing.
    Done,
    /// 1 or 0.
    Number,
    /// The value before.
    Before,
}

/// What is asked of a hash.
#[derive(Debug, Clone, Copy)]
pub enum HashRead<'a> {
    /// `HGET`
    Get(&'a [u8]),
    /// `HMGET`
    GetSome(Keys<'a>),
    /// `HGETALL`
    All,
    /// `HKEYS`
    Fields,
    /// `HVALS`
    Values,
    /// `HEXISTS`
    Has(&'a [u8]),
    /// `HLEN`
    Length,
    /// `HSTRLEN`
    ValueLength(&'a [u8]),
}

type Parsed<'a> = Result<DataCommand<'a>, CommandError>;

fn update<'a>(args: Args<'a>, update: Update<'a>) -> Parsed<'a> {
    Ok(DataCommand::Update {
        key: key(args, 1)?,
        update,
    })
}

fn read<'a>(args: Args<'a>, read: HashRead<'a>) -> Parsed<'a> {
    Ok(DataCommand::Hash {
        key: key(args, 1)?,
        read,
    })
}

/// One of these commands. `None`: it is none.
pub(super) fn parse(args: Args<'_>, kind: CommandKind) -> Option<Parsed<'_>> {
    use CommandKind as K;
    let word = |place| args.get(place).unwrap_or_default();
    let parsed = match kind {
        K::Set => set(args),
        K::Incr => exactly(args, kind, 2).and_then(|()| update(args, Update::Add(1))),
        K::Decr => exactly(args, kind, 2).and_then(|()| update(args, Update::Add(-1))),
        K::IncrBy => number(args, kind, 3, 2).and_then(|by| update(args, Update::Add(by))),
        K::DecrBy => number(args, kind, 3, 2).and_then(|by| {
            let by = by.checked_neg().ok_or(CommandError::DecrementOverflow)?;
            update(args, Update::Add(by))
        }),
        K::IncrByFloat => {
            exactly(args, kind, 3).and_then(|()| update(args, Update::AddDecimal(word(2))))
        }
        K::SetNx => exactly(args, kind, 3).and_then(|()| set_absent(args)),
        K::MSetNx => set_all_absent(args),
        K::GetSet => exactly(args, kind, 3).and_then(|()| {
            let set = SetIf {
                value: word(2),
                end: NewEnd::Never,
                condition: Condition::Always,
                tells: SetTells::Before,
            };
            update(args, Update::Set(set))
        }),
        K::GetDel => exactly(args, kind, 2).and_then(|()| update(args, Update::GetDelete)),
        K::GetEx => get_expire(args),
        K::Append => exactly(args, kind, 3).and_then(|()| update(args, Update::Append(word(2)))),
        K::SetRange => set_range(args),
        K::SetBit => set_bit(args),
        K::DelIfEq => exactly(args, kind, 3)
            .and_then(|()| update(args, Update::Delete(Condition::Equal(word(2))))),
        K::DelEx => delete(args),
        _ => return hash(args, kind),
    };
    Some(parsed)
}

fn hash(args: Args<'_>, kind: CommandKind) -> Option<Parsed<'_>> {
    use CommandKind as K;
    let word = |place| args.get(place).unwrap_or_default();
    let parsed = match kind {
        K::HSet | K::HMSet => {
            if args.len() < 4 || !args.len().is_multiple_of(2) {
                return Some(Err(arity(kind)));
            }
            let pairs = Pairs::new(args.from(2));
            update(args, Update::HashSet(pairs, kind == K::HMSet))
        }
        K::HSetNx => exactly(args, kind, 4)
            .and_then(|()| update(args, Update::HashSetAbsent(word(2), word(3)))),
        K::HDel => at_least(args, kind, 3)
            .and_then(|()| update(args, Update::HashDelete(Keys::new(args.from(2))))),
        K::HIncrBy => {
            number(args, kind, 4, 3).and_then(|by| update(args, Update::HashAdd(word(2), by)))
        }
        K::HIncrByFloat => exactly(args, kind, 4)
            .and_then(|()| update(args, Update::HashAddDecimal(word(2), word(3)))),
        K::HGet => exactly(args, kind, 3).and_then(|()| read(args, HashRead::Get(word(2)))),
        K::HMGet => at_least(args, kind, 3)
            .and_then(|()| read(args, HashRead::GetSome(Keys::new(args.from(2))))),
        K::HGetAll => exactly(args, kind, 2).and_then(|()| read(args, HashRead::All)),
        K::HKeys => exactly(args, kind, 2).and_then(|()| read(args, HashRead::Fields)),
        K::HVals => exactly(args, kind, 2).and_then(|()| read(args, HashRead::Values)),
        K::HExists => exactly(args, kind, 3).and_then(|()| read(args, HashRead::Has(word(2)))),
        K::HLen => exactly(args, kind, 2).and_then(|()| read(args, HashRead::Length)),
        K::HStrLen => {
            exactly(args, kind, 3).and_then(|()| read(args, HashRead::ValueLength(word(2))))
        }
        _ => return None,
    };
    Some(parsed)
}

fn exactly(args: Args<'_>, kind: CommandKind, words: usize) -> Result<(), CommandError> {
    if args.len() == words {
        Ok(())
    } else {
        Err(arity(kind))
    }
}

fn at_least(args: Args<'_>, kind: CommandKind, words: usize) -> Result<(), CommandError> {
    if args.len() >= words {
        Ok(())
    } else {
        Err(arity(kind))
    }
}

fn number(
    args: Args<'_>,
    kind: CommandKind,
    words: usize,
    place: usize,
) -> Result<i64, CommandError> {
    exactly(args, kind, words)?;
    let number = args.get(place).and_then(integer);
    number.ok_or(CommandError::NotAnInteger)
}

/// `SET key value [NX | XX | IFEQ value | IFNE value] [GET] [EX s | PX ms | EXAT s | PXAT ms | KEEPTTL]`
fn set(args: Args<'_>) -> Parsed<'_> {
    if args.len() < 3 {
        return Err(arity(CommandKind::Set));
    }
    let mut expiry = None;
    let (mut keeps, mut tells, mut condition) = (false, SetTells::Done, Condition::Always);
    let mut number = 3;
    while let Some(option) = args.get(number) {
        let argument = args.get(number + 1);
        number += 1;
        let new = match option.to_ascii_uppercase().as_slice() {
            b"NX" => Condition::Absent,
            b"XX" => Condition::Present,
            b"IFEQ" => Condition::Equal(argument.ok_or(CommandError::Syntax)?),
            b"IFNE" => Condition::NotEqual(argument.ok_or(CommandError::Syntax)?),
            b"GET" => {
                tells = SetTells::Before;
                continue;
            }
            b"KEEPTTL" if expiry.is_none() => {
                keeps = true;
                continue;
            }
            other => {
                let unit = Unit::of_option(other).filter(|_| !keeps);
                expiry = Some(end(expiry, unit, argument)?);
                number += 1;
                continue;
            }
        };
        if matches!(new, Condition::Equal(_) | Condition::NotEqual(_)) {
            number += 1;
        }
        if condition != Condition::Always && condition != new {
            return Err(CommandError::Syntax);
        }
        condition = new;
    }
    let expiry = expiry
        .map(|(unit, argument)| unit.read(argument, "set", true))
        .transpose()?;
    let value = args.get(2).unwrap_or_default();
    let is_plain = condition == Condition::Always && tells == SetTells::Done && !keeps;
    if is_plain {
        let key = key(args, 1)?;
        return Ok(DataCommand::Set { key, value, expiry });
    }
    let end = match expiry {
        _ if keeps => NewEnd::Keep,
        Some(expiry) => NewEnd::At(expiry),
        None => NewEnd::Never,
    };
    let set = SetIf {
        value,
        end,
        condition,
        tells,
    };
    update(args, Update::Set(set))
}

/// The end that an option asks for: one only, but the same option may come again, as in Redis.
fn end<'a>(
    before: Option<(Unit, &'a [u8])>,
    unit: Option<Unit>,
    argument: Option<&'a [u8]>,
) -> Result<(Unit, &'a [u8]), CommandError> {
    let is_other = |unit: &Unit| before.is_some_and(|(before, _)| before != *unit);
    let unit = unit.filter(|unit| !is_other(unit));
    Ok((
        unit.ok_or(CommandError::Syntax)?,
        argument.ok_or(CommandError::Syntax)?,
    ))
}

/// `SETNX key value`
fn set_absent(args: Args<'_>) -> Parsed<'_> {
    let set = SetIf {
        value: args.get(2).unwrap_or_default(),
        end: NewEnd::Never,
        condition: Condition::Absent,
        tells: SetTells::Number,
    };
    update(args, Update::Set(set))
}

/// `MSETNX key value`: of one key.
fn set_all_absent(args: Args<'_>) -> Parsed<'_> {
    match args.len() {
        3 => set_absent(args),
        length if length < 3 || length.is_multiple_of(2) => Err(arity(CommandKind::MSetNx)),
        _ => Err(CommandError::Refused("MSETNX", OF_SEVERAL)),
    }
}

/// `GETEX key [EX s | PX ms | EXAT s | PXAT ms | PERSIST]`
fn get_expire(args: Args<'_>) -> Parsed<'_> {
    if args.len() < 2 {
        return Err(arity(CommandKind::GetEx));
    }
    let (mut expiry, mut persists, mut number) = (None, false, 2);
    while let Some(option) = args.get(number) {
        if option.eq_ignore_ascii_case(b"persist") && expiry.is_none() {
            persists = true;
            number += 1;
            continue;
        }
        let unit = Unit::of_option(&option.to_ascii_uppercase()).filter(|_| !persists);
        expiry = Some(end(expiry, unit, args.get(number + 1))?);
        number += 2;
    }
    let new_end = match expiry {
        Some((unit, argument)) => NewEnd::At(unit.read(argument, "getex", true)?),
        None if persists => NewEnd::Never,
        None => {
            let key = key(args, 1)?;
            return Ok(DataCommand::Get { key });
        }
    };
    update(args, Update::GetExpire(new_end))
}

/// `SETRANGE key offset value`
fn set_range(args: Args<'_>) -> Parsed<'_> {
    let offset = number(args, CommandKind::SetRange, 4, 2)?;
    let offset = u64::try_from(offset).map_err(|_negative| CommandError::Offset)?;
    let value = args.get(3).unwrap_or_default();
    update(args, Update::SetRange(offset, value))
}

/// `SETBIT key offset bit`
fn set_bit(args: Args<'_>) -> Parsed<'_> {
    exactly(args, CommandKind::SetBit, 4)?;
    let offset = super::parts::bit_offset(args)?;
    let bit = match args.get(3) {
        Some(b"0") => false,
        Some(b"1") => true,
        _ => return Err(CommandError::Bit),
    };
    update(args, Update::SetBit(offset, bit))
}

/// `DELEX key [IFEQ value | IFNE value]`
fn delete(args: Args<'_>) -> Parsed<'_> {
    let condition = match (args.len(), args.get(2)) {
        (0 | 1, _) => return Err(arity(CommandKind::DelEx)),
        (2, _) => Condition::Always,
        (4, Some(option)) => {
            let value = args.get(3).unwrap_or_default();
            match option.to_ascii_uppercase().as_slice() {
                b"IFEQ" => Condition::Equal(value),
                b"IFNE" => Condition::NotEqual(value),
                _ => return Err(CommandError::Syntax),
            }
        }
        _ => return Err(CommandError::Syntax),
    };
    update(args, Update::Delete(condition))
}

/// `EXPIRE key time [NX | XX | GT | LT]...` and the like.
pub(super) fn expire(args: Args<'_>, kind: CommandKind, unit: Unit) -> Parsed<'_> {
    let (3.., Some(argument)) = (args.len(), args.get(2)) else {
        return Err(arity(kind));
    };
    let (mut nx, mut xx, mut gt, mut lt) = (false, false, false, false);
    for option in args.from(3).iter() {
        match option.to_ascii_uppercase().as_slice() {
            b"NX" => nx = true,
            b"XX" => xx = true,
            b"GT" => gt = true,
            b"LT" => lt = true,
            _ => return Err(CommandError::Unsupported(lossy(option))),
        }
    }
    if nx && (xx || gt || lt) {
        return Err(CommandError::ExpireOptions("NX and XX, GT or LT"));
    }
    if gt && lt {
        return Err(CommandError::ExpireOptions("GT and LT"));
    }
    let condition = ExpireCondition {
        had_end: match (nx, xx) {
            (true, _) => Some(false),
            (_, true) => Some(true),
            _ => None,
        },
        moves: match (gt, lt) {
            (true, _) => Some(Ordering::Greater),
            (_, true) => Some(Ordering::Less),
            _ => None,
        },
    };
    let at = unit.read(argument, kind.name(), false)?;
    if condition == ExpireCondition::default() {
        let key = key(args, 1)?;
        return Ok(DataCommand::Expire { key, at });
    }
    update(args, Update::Expire(at, condition))
}

const OF_SEVERAL: &str =
    "several keys cannot be written at once, all or none: use one key, or SETNX for each";
