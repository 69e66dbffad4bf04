//! Whether a history of one key with compare-and-set could have happened.
//!
//! Every value is written once, so an update that told the value before it binds two values: nothing
//! was there between them. Values bound to each other are a chain, and a chain is to a history with
//! updates what the write of a value and its reads are to one without: its first end and its last call
//! bound the time in which it must, or may, have been there. So the zone test of Gibbons and Korach
//! (see `checker`) decides here as well, once each chain can be put in order by itself: of two values of a
//! chain, nothing of the later one may end before something of the earlier one begins. (If it can, take
//! for each value the last call up to it in the chain, moved into the zone of the chain where it is not:
//! those are moments for all.)

use std::collections::BTreeMap;

use crate::checker::{ABSENT, NEVER, Violation};

/// One operation. Times are in any unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) call: u64,
    /// [`NEVER`] for what had no answer.
    pub(crate) end: u64,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Writes whatever is there, if it takes effect at all.
    Write(u64),
    Read(u64),
    /// Replaces the first value by the second.
    Swap(u64, u64),
}

/// All of one value.
#[derive(Debug, Clone, Copy)]
struct Value {
    is_written: bool,
    /// It may as well never have been written.
    is_optional: bool,
    is_seen: bool,
    write_call: u64,
    first_end: u64,
    last_call: u64,
    first_read_end: u64,
    before: Option<u64>,
    after: Option<u64>,
}

impl Value {
    const fn new(value: u64) -> Self {
        Self {
            is_written: value == ABSENT,
            is_optional: false,
            is_seen: false,
            write_call: 0,
            first_end: if value == ABSENT { 0 } else { NEVER },
            last_call: 0,
            first_read_end: NEVER,
            before: None,
            after: None,
        }
    }
}

/// The time in which a chain must have been there, or some moment of which it was.
#[derive(Debug, Clone, Copy)]
struct Zone {
    value: u64,
    first_end: u64,
    last_call: u64,
}

/// Whether each operation can have taken effect at one moment between its call and its end.
pub(crate) fn check(operations: &[Operation]) -> Result<(), Violation> {
    let values = values(operations)?;
    let (forward, backward): (Vec<Zone>, Vec<Zone>) = chains(&values)?
        .into_iter()
        .partition(|zone| zone.first_end < zone.last_call);
    let mut forward = forward;
    forward.sort_unstable_by_key(|zone| (zone.first_end, zone.last_call));
    for pair in forward.windows(2) {
        if pair[1].first_end < pair[0].last_call {
            let why = "both values must have been there at the same time";
            return violation(why, &[pair[0].value, pair[1].value]);
        }
    }
    for zone in backward {
        let before = forward.partition_point(|other| other.first_end < zone.last_call);
        let around = before.checked_sub(1).map(|index| forward[index]);
        if let Some(around) = around.filter(|around| zone.first_end < around.last_call) {
            let why = "the first value must have been there all the time of the second";
            return violation(why, &[around.value, zone.value]);
        }
    }
    Ok(())
}

fn values(operations: &[Operation]) -> Result<BTreeMap<u64, Value>, Violation> {
    let mut values = BTreeMap::from([(ABSENT, Value::new(ABSENT))]);
    let mut of = |value: u64, change: &mut dyn FnMut(&mut Value)| {
        change(values.entry(value).or_insert_with(|| Value::new(value)));
    };
    for &Operation { call, end, kind } in operations {
        if let Kind::Write(value) | Kind::Swap(_, value) = kind {
            of(value, &mut |of| {
                (of.is_written, of.write_call) = (true, call);
                of.is_optional = end == NEVER;
                of.first_end = of.first_end.min(end);
                of.last_call = of.last_call.max(call);
            });
        }
        if let Kind::Read(value) = kind {
            of(value, &mut |of| {
                of.is_seen = true;
                of.first_end = of.first_end.min(end);
                of.first_read_end = of.first_read_end.min(end);
                of.last_call = of.last_call.max(call);
            });
        }
        if let Kind::Swap(before, _) = kind
            && end != NEVER
        {
            of(before, &mut |of| of.is_seen = true);
        }
    }
    bind(operations, &mut values)?;
    for (&value, of) in &values {
        if of.is_seen && !of.is_written {
            return violation("a value was seen that nobody wrote", &[value]);
        }
        if of.first_read_end < of.write_call {
            return violation("a value was read before it was written", &[value]);
        }
    }
    Ok(values)
}

/// Binds the values of updates that took effect: those with an answer, and those whose value was seen.
fn bind(operations: &[Operation], values: &mut BTreeMap<u64, Value>) -> Result<(), Violation> {
    let mut left: Vec<(u64, u64, bool)> = operations
        .iter()
        .filter_map(|operation| match operation.kind {
            Kind::Swap(before, after) => Some((before, after, operation.end == NEVER)),
            _ => None,
        })
        .collect();
    loop {
        let happened = |(_, after, is_open): &(u64, u64, bool)| {
            !is_open || values.get(after).is_some_and(|of| of.is_seen)
        };
        let (now, later): (Vec<_>, Vec<_>) = left.into_iter().partition(happened);
        if now.is_empty() {
            return Ok(());
        }
        left = later;
        for (before, after, _) in now {
            let of = values.entry(before).or_insert_with(|| Value::new(before));
            of.is_seen = true;
            if of.after.replace(after).is_some() {
                return violation("a value was replaced by two updates", &[before, after]);
            }
            let of = values.entry(after).or_insert_with(|| Value::new(after));
            of.before = Some(before);
            if after == ABSENT {
                return violation("an update cannot write what was there at first", &[after]);
            }
        }
    }
}

fn chains(values: &BTreeMap<u64, Value>) -> Result<Vec<Zone>, Violation> {
    let is_kept = |value: u64, of: &Value| {
        of.is_seen || of.before.is_some() || !(of.is_optional || value == ABSENT)
    };
    let mut zones = Vec::new();
    let mut visited = 0;
    let kept = values.iter().filter(|(value, of)| is_kept(**value, of));
    for (&first, of) in kept.clone() {
        if of.before.is_some() {
            continue;
        }
        let mut zone = Zone {
            value: first,
            first_end: NEVER,
            last_call: 0,
        };
        let mut next = Some(first);
        while let Some(value) = next {
            visited += 1;
            let of = &values[&value];
            if of.first_end < zone.last_call {
                let why =
                    "the second value, of which the first is a part, was over before that began";
                return violation(why, &[zone.value, value]);
            }
            zone.first_end = zone.first_end.min(of.first_end);
            zone.last_call = zone.last_call.max(of.last_call);
            next = of.after;
        }
        zones.push(zone);
    }
    if visited < kept.count() {
        return violation("updates follow each other in a circle", &[]);
    }
    Ok(zones)
}

fn violation<T>(why: &'static str, values: &[u64]) -> Result<T, Violation> {
    let values = values.to_vec();
    Err(Violation { why, values })
}

#[cfg(test)]
mod tests {
    use quorate::env::SeededRng;

    use super::*;
    use Kind::{Read, Swap, Write};

    fn op(call: u64, end: u64, kind: Kind) -> Operation {
        Operation { call, end, kind }
    }

    #[test]
    fn updates_follow_what_they_saw() {
        let history = [
            op(10, 20, Write(1)),
            op(30, 40, Swap(1, 2)),
            op(35, 50, Swap(2, 3)),
            op(60, 70, Read(3)),
        ];
        assert_eq!(check(&history), Ok(()));
        let twice = [op(10, 20, Swap(0, 1)), op(30, 40, Swap(0, 2))];
        assert!(check(&twice).is_err());
        let lost = [
            op(10, 20, Write(1)),
            op(30, 40, Swap(1, 2)),
            op(50, 60, Read(1)),
        ];
        assert!(check(&lost).is_err());
        // The write is over before the update begins, and the update does not see it.
        let unseen = [op(10, 20, Write(1)), op(30, 40, Swap(0, 2))];
        assert!(check(&unseen).is_err());
    }

    #[test]
    fn what_had_no_answer_counts_when_it_was_seen() {
        let open = [op(10, 20, Write(1)), op(30, NEVER, Swap(1, 2))];
        assert_eq!(check(&open), Ok(()));
        let seen = [
            op(10, 20, Write(1)),
            op(30, NEVER, Swap(1, 2)),
            op(30, 40, Swap(1, 3)),
            op(50, 60, Read(2)),
        ];
        assert!(check(&seen).is_err());
        assert_eq!(check(&seen[..3]), Ok(()));
    }

    /// The register as porcupine wants it told: a sequential specification.
    #[derive(Debug, Clone)]
    struct Register;

    impl porcupine_rs::Model for Register {
        type State = u64;
        type Op = Kind;
        type Metadata = ();

        fn init() -> u64 {
            ABSENT
        }

        fn step(state: &u64, kind: &Kind) -> (bool, u64) {
            match kind {
                Write(value) => (true, *value),
                Read(value) => (value == state, *state),
                Swap(before, after) => (before == state, *after),
            }
        }
    }

    /// A search over all orders (Wing and Gong, Lowe). What had no answer may come last, or never: an
    /// update without an answer is left out where that helps.
    fn search_finds_an_order(history: &[Operation]) -> bool {
        let is_open =
            |operation: &Operation| operation.end == NEVER && matches!(operation.kind, Swap(..));
        let open: Vec<usize> = (0..history.len())
            .filter(|&i| is_open(&history[i]))
            .collect();
        (0..1_u32 << open.len()).any(|left_out| {
            let is_left_out = |index: usize| {
                let place = open.iter().position(|&i| i == index);
                place.is_some_and(|place| left_out >> place & 1 == 1)
            };
            let told = history.iter().enumerate().filter(|(i, _)| !is_left_out(*i));
            let told = told.map(|(_, operation)| porcupine_rs::Operation {
                client_id: None,
                call_time: i64::try_from(operation.call).unwrap(),
                return_time: i64::try_from(operation.end).unwrap_or(i64::MAX),
                op: operation.kind,
                metadata: None,
            });
            porcupine_rs::check_operations::<Register>(&told.collect::<Vec<_>>())
        })
    }

    /// A history of an atomic register, in which some of what was seen may have been falsified.
    fn random_history(rng: &SeededRng) -> Vec<Operation> {
        let below = |bound: u64| rng.next_u64() % bound;
        let count = 2 + below(8);
        let mut operations: Vec<(u64, Operation)> = (1..=count)
            .map(|number| {
                // Unlike each other in their last digits: which of two comes first is never open.
                let moment = |at: u64, digit: u64| at * 100 + 3 * number + digit;
                let at = 300 + below(count * 100);
                let call = moment(at - 1 - below(200), 0);
                let end = moment(at + 1 + below(200), 2);
                let (kind, is_answered) = match below(10) {
                    0..2 => (Write(number), true),
                    2 => (Write(number), false),
                    3..6 => (Swap(ABSENT, number), true),
                    6 => (Swap(ABSENT, number), false),
                    _ => (Read(ABSENT), true),
                };
                let end = if is_answered { end } else { NEVER };
                (moment(at, 1), op(call, end, kind))
            })
            .collect();
        operations.sort_by_key(|(at, _)| *at);
        let (mut held, mut values) = (ABSENT, vec![ABSENT]);
        for (_, operation) in &mut operations {
            // Half of what had no answer never takes effect.
            let happens = operation.end != NEVER || below(2) == 0;
            match &mut operation.kind {
                Write(value) if happens => held = *value,
                Swap(before, after) => {
                    *before = held;
                    held = if happens { *after } else { held };
                }
                Read(value) => *value = held,
                Write(_) => {}
            }
            values.push(held);
        }
        for (_, operation) in &mut operations {
            if let Read(seen) | Swap(seen, _) = &mut operation.kind
                && below(6) == 0
            {
                *seen = values[usize::try_from(below(values.len() as u64)).unwrap()];
            }
        }
        let operations = operations.into_iter().map(|(_, operation)| operation);
        // Nothing replaces itself.
        operations
            .filter(|o| !matches!(o.kind, Swap(a, b) if a == b))
            .collect()
    }

    #[test]
    fn the_zones_of_chains_agree_with_a_search_over_all_orders() {
        let histories = std::env::var("QUORATE_CHECKER_HISTORIES").ok();
        let histories: u64 = histories.map_or(50_000, |text| text.parse().unwrap());
        let rng = SeededRng::from_seed(8);
        let mut linearizable = 0;
        for _ in 0..histories {
            let history = random_history(&rng);
            let zones = check(&history);
            let found = search_finds_an_order(&history);
            assert_eq!(zones.is_ok(), found, "{zones:?} {history:#?}");
            linearizable += u64::from(found);
        }
        println!("{histories} histories, {linearizable} of them linearizable");
        assert!((histories / 5..histories * 4 / 5).contains(&linearizable));
    }
}
