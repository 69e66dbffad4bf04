//! Whether a history of one key could have happened.
//!
//! Every write has a value of its own, so the zone test of Gibbons and Korach, *Testing Shared
//! Memories* (SIAM Journal on Computing, 1997), decides linearizability in O(n log n): the write of
//! a value and its reads form a cluster. If some operation of a cluster ends before another begins,
//! the cluster holds the register for all the time between, its forward zone; otherwise it needs
//! some moment within its backward zone. A history is linearizable if and only if no read ends
//! before its write begins, no two forward zones overlap, and no backward zone lies within a forward one.

use std::collections::BTreeMap;
use std::fmt;

/// One operation of one client. Times are in any unit; `end < call` never holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) client: u32,
    pub(crate) call: u64,
    /// [`NEVER`] for what had no answer.
    pub(crate) end: u64,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An acknowledged write of this value.
    Write(u64),
    /// A write that was not acknowledged: it took effect at some time after its call, or never.
    MaybeWrite(u64),
    /// A read of the value that this write wrote; [`ABSENT`]: there was none.
    Read(u64),
}

/// What every key holds at first.
pub(crate) const ABSENT: u64 = 0;
pub(crate) const NEVER: u64 = u64::MAX;

/// Why a history cannot have happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) why: &'static str,
    /// The values concerned.
    pub(crate) values: Vec<u64>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (values {:?})", self.why, self.values)
    }
}

/// The write of a value and its reads.
#[derive(Debug, Clone, Copy)]
struct Cluster {
    value: u64,
    write_call: u64,
    is_written: bool,
    is_read: bool,
    /// It may as well never have been written.
    is_optional: bool,
    first_end: u64,
    last_call: u64,
    first_read_end: u64,
}

impl Cluster {
    const fn new(value: u64) -> Self {
        Self {
            value,
            write_call: 0,
            is_written: value == ABSENT,
            is_read: false,
            is_optional: false,
            first_end: if value == ABSENT { 0 } else { NEVER },
            last_call: 0,
            first_read_end: NEVER,
        }
    }

    fn add(&mut self, operation: &Operation) {
        self.last_call = self.last_call.max(operation.call);
        match operation.kind {
            Kind::Write(_) => {
                (self.is_written, self.write_call) = (true, operation.call);
                self.first_end = self.first_end.min(operation.end);
            }
            Kind::MaybeWrite(_) => {
                (self.is_written, self.write_call) = (true, operation.call);
                self.is_optional = true;
            }
            Kind::Read(_) => {
                self.is_read = true;
                self.first_end = self.first_end.min(operation.end);
                self.first_read_end = self.first_read_end.min(operation.end);
            }
        }
    }

    const fn is_forward(&self) -> bool {
        self.first_end < self.last_call
    }
}

/// Whether each operation can have taken effect at one moment between its call and its end.
pub(crate) fn check_linearizable(operations: &[Operation]) -> Result<(), Violation> {
    let clusters = clusters(operations)?;
    let (mut forward, backward): (Vec<Cluster>, Vec<Cluster>) =
        clusters.into_iter().partition(Cluster::is_forward);
    forward.sort_unstable_by_key(|cluster| (cluster.first_end, cluster.last_call));
    for pair in forward.windows(2) {
        // Zones are sorted by their beginnings: if any two overlap, two neighbours do.
        if pair[1].first_end < pair[0].last_call {
            return Err(Violation {
                why: "both values must have been there at the same time",
                values: vec![pair[0].value, pair[1].value],
            });
        }
    }
    for cluster in backward {
        let (from, to) = (cluster.last_call, cluster.first_end);
        let before = forward.partition_point(|zone| zone.first_end < from);
        if let Some(zone) = before.checked_sub(1).map(|index| forward[index])
            && to < zone.last_call
        {
            return Err(Violation {
                why: "the first value must have been there all the time in which the second was \
                      written, and after it",
                values: vec![zone.value, cluster.value],
            });
        }
    }
    Ok(())
}

fn clusters(operations: &[Operation]) -> Result<Vec<Cluster>, Violation> {
    let mut clusters = BTreeMap::from([(ABSENT, Cluster::new(ABSENT))]);
    for operation in operations {
        let (Kind::Write(value) | Kind::MaybeWrite(value) | Kind::Read(value)) = operation.kind;
        let cluster = clusters.entry(value).or_insert_with(|| Cluster::new(value));
        cluster.add(operation);
    }
    let mut kept = Vec::new();
    for (value, cluster) in clusters {
        let values = vec![value];
        if !cluster.is_written {
            let why = "a value was read that nobody wrote";
            return Err(Violation { why, values });
        }
        if cluster.is_read && cluster.first_read_end < cluster.write_call {
            let why = "a value was read before it was written";
            return Err(Violation { why, values });
        }
        if cluster.is_read || !(cluster.is_optional || value == ABSENT) {
            kept.push(cluster);
        }
    }
    Ok(kept)
}

/// Whether reads at a level that is not linearizable still kept what `quorum` promises: each saw
/// the last acknowledged write before it or a later one, and no client's reads went back in time.
pub(crate) fn check_regular(operations: &[Operation]) -> Result<(), Violation> {
    let writes = writes(operations);
    // The latest call of an acknowledged write among those that had ended by some moment.
    let mut ended: Vec<(u64, u64, u64)> = Vec::new();
    for (value, (call, end)) in &writes {
        if *end != NEVER {
            ended.push((*end, *call, *value));
        }
    }
    ended.sort_unstable();
    let mut latest: Vec<(u64, u64, u64)> = Vec::new();
    for (end, call, value) in ended {
        let newest = latest
            .last()
            .map_or((0, ABSENT), |&(_, call, value)| (call, value));
        let (call, value) = newest.max((call, value));
        latest.push((end, call, value));
    }
    let mut seen: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    let mut in_order: Vec<&Operation> = operations.iter().collect();
    in_order.sort_by_key(|operation| operation.call);
    for operation in in_order {
        let Kind::Read(value) = operation.kind else {
            continue;
        };
        let Some(&(_, returned_end)) = writes.get(&value) else {
            let why = "a value was read that nobody wrote";
            return Err(Violation {
                why,
                values: vec![value],
            });
        };
        let before = latest.partition_point(|(end, ..)| *end < operation.call);
        if let Some(&(_, call, newer)) = before.checked_sub(1).map(|index| &latest[index])
            && returned_end < call
        {
            return Err(Violation {
                why: "a read did not see the second value, acknowledged before it began, but the \
                      first, older one",
                values: vec![value, newer],
            });
        }
        let (call, _) = writes[&value];
        let last = seen.entry(operation.client).or_insert((0, ABSENT));
        if returned_end < last.0 {
            return Err(Violation {
                why: "one client read the second value and then the first, older one",
                values: vec![value, last.1],
            });
        }
        *last = (*last).max((call, value));
    }
    Ok(())
}

/// How many reads there are, and how many of them returned what had provably been replaced before
/// they began: at level `one` that is no violation, but it is to be known.
pub(crate) fn stale_reads(operations: &[Operation]) -> (u64, u64) {
    let writes = writes(operations);
    let acknowledged = |(&value, &(call, end)): (&u64, &(u64, u64))| {
        (end != NEVER && value != ABSENT).then_some((end, call))
    };
    let mut ended: Vec<(u64, u64)> = writes.iter().filter_map(acknowledged).collect();
    ended.sort_unstable();
    // The latest call among the writes that had ended by then.
    let mut latest = 0;
    for (_, call) in &mut ended {
        latest = latest.max(*call);
        *call = latest;
    }
    let (mut reads, mut stale) = (0, 0);
    for operation in operations {
        let Kind::Read(value) = operation.kind else {
            continue;
        };
        reads += 1;
        let before = ended.partition_point(|(end, _)| *end < operation.call);
        let newest = before.checked_sub(1).map_or(0, |index| ended[index].1);
        stale += u64::from(writes.get(&value).is_some_and(|(_, end)| *end < newest));
    }
    (reads, stale)
}

/// Each value's write: its call and its end.
fn writes(operations: &[Operation]) -> BTreeMap<u64, (u64, u64)> {
    let mut writes = BTreeMap::from([(ABSENT, (0, 0))]);
    for operation in operations {
        match operation.kind {
            Kind::Write(value) => {
                writes.insert(value, (operation.call, operation.end));
            }
            Kind::MaybeWrite(value) => {
                writes.insert(value, (operation.call, NEVER));
            }
            Kind::Read(_) => {}
        }
    }
    writes
}

#[cfg(test)]
mod tests {
    use quorate::env::SeededRng;

    use super::*;

    fn op(client: u32, call: u64, end: u64, kind: Kind) -> Operation {
        Operation {
            client,
            call,
            end,
            kind,
        }
    }

    use Kind::{MaybeWrite, Read, Write};

    #[test]
    fn reads_beside_a_write_may_see_either_value() {
        let history = [
            op(1, 10, 20, Write(1)),
            op(2, 30, 60, Write(2)),
            op(3, 35, 40, Read(1)),
            op(3, 45, 50, Read(2)),
        ];
        assert_eq!(check_linearizable(&history), Ok(()));
    }

    #[test]
    fn a_new_value_does_not_give_way_to_the_old_one() {
        let history = [
            op(1, 10, 20, Write(1)),
            op(2, 30, 60, Write(2)),
            op(3, 35, 40, Read(2)),
            op(4, 45, 50, Read(1)),
        ];
        assert!(check_linearizable(&history).is_err());
        // Regular, though: the write had not ended, and each client saw one value only.
        assert_eq!(check_regular(&history), Ok(()));
    }

    #[test]
    fn stale_reads_and_lost_writes_are_seen() {
        let stale = [
            op(1, 10, 20, Write(1)),
            op(1, 30, 40, Write(2)),
            op(2, 50, 60, Read(1)),
        ];
        assert!(check_linearizable(&stale).is_err());
        assert!(check_regular(&stale).is_err());
        assert_eq!(stale_reads(&stale), (1, 1));
        let lost = [op(1, 10, 20, Write(1)), op(2, 30, 40, Read(ABSENT))];
        assert!(check_linearizable(&lost).is_err());
        assert!(check_regular(&lost).is_err());
    }

    #[test]
    fn an_unanswered_write_takes_effect_late_or_never() {
        let never = [op(1, 10, NEVER, MaybeWrite(1)), op(2, 20, 30, Read(ABSENT))];
        assert_eq!(check_linearizable(&never), Ok(()));
        let late = [
            op(1, 10, NEVER, MaybeWrite(1)),
            op(2, 20, 30, Read(ABSENT)),
            op(2, 40, 50, Read(1)),
        ];
        assert_eq!(check_linearizable(&late), Ok(()));
        let back = [
            op(1, 10, NEVER, MaybeWrite(1)),
            op(2, 20, 30, Read(1)),
            op(2, 40, 50, Read(ABSENT)),
        ];
        assert!(check_linearizable(&back).is_err());
        assert!(check_regular(&back).is_err() || check_linearizable(&back).is_err());
    }

    #[test]
    fn nothing_comes_from_nowhere() {
        assert!(check_linearizable(&[op(1, 10, 20, Read(7))]).is_err());
        let early = [op(1, 10, 20, Read(7)), op(2, 30, 40, Write(7))];
        assert!(check_linearizable(&early).is_err());
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
                Write(value) | MaybeWrite(value) => (true, *value),
                Read(value) => (value == state, *state),
            }
        }
    }

    /// A search over all orders (Wing and Gong, Lowe). What had no answer may come last.
    fn search_finds_an_order(history: &[Operation]) -> bool {
        let told = history.iter().map(|operation| porcupine_rs::Operation {
            client_id: Some(operation.client),
            call_time: i64::try_from(operation.call).unwrap(),
            return_time: i64::try_from(operation.end).unwrap_or(i64::MAX),
            op: operation.kind,
            metadata: None,
        });
        porcupine_rs::check_operations::<Register>(&told.collect::<Vec<_>>())
    }

    /// A history of an atomic register, in which some reads may have been falsified.
    fn random_history(rng: &SeededRng) -> Vec<Operation> {
        let below = |bound: u64| rng.next_u64() % bound;
        let count = 2 + below(10);
        let mut operations: Vec<(u64, Operation)> = (1..=count)
            .map(|number| {
                // Unlike each other in their last digits: which of two comes first is never open.
                let moment = |at: u64, digit: u64| at * 100 + 3 * number + digit;
                let at = 300 + below(count * 100);
                let call = moment(at - 1 - below(200), 0);
                let end = moment(at + 1 + below(200), 2);
                let kind = match below(8) {
                    0..3 => Write(number),
                    3 => MaybeWrite(number),
                    _ => Read(ABSENT),
                };
                let end = if matches!(kind, MaybeWrite(_)) {
                    NEVER
                } else {
                    end
                };
                (moment(at, 1), op(0, call, end, kind))
            })
            .collect();
        operations.sort_by_key(|(at, _)| *at);
        let (mut held, mut values) = (ABSENT, vec![ABSENT]);
        for (_, operation) in &mut operations {
            match &mut operation.kind {
                Write(value) => held = *value,
                // Half of them never take effect.
                MaybeWrite(value) if value.is_multiple_of(2) => held = *value,
                MaybeWrite(_) => {}
                Read(value) => *value = held,
            }
            values.push(held);
        }
        for (_, operation) in &mut operations {
            if let Read(value) = &mut operation.kind
                && below(3) == 0
            {
                *value = values[usize::try_from(below(values.len() as u64)).unwrap()];
            }
        }
        operations
            .into_iter()
            .map(|(_, operation)| operation)
            .collect()
    }

    #[test]
    fn the_zone_test_agrees_with_a_search_over_all_orders() {
        let histories = std::env::var("QUORATE_CHECKER_HISTORIES").ok();
        let histories: u64 = histories.map_or(200_000, |text| text.parse().unwrap());
        let rng = SeededRng::from_seed(7);
        let mut linearizable = 0;
        for _ in 0..histories {
            let history = random_history(&rng);
            let zones = check_linearizable(&history);
            assert_eq!(
                zones.is_ok(),
                search_finds_an_order(&history),
                "{history:#?}"
            );
            linearizable += u64::from(zones.is_ok());
        }
        println!("{histories} histories, {linearizable} of them linearizable");
        assert!((histories / 5..histories * 4 / 5).contains(&linearizable));
    }

    #[test]
    fn a_million_operations_are_no_trouble() {
        let operations: Vec<Operation> = (0..1_000_000u64)
            .map(|number| {
                let value = number / 2 + 1;
                let kind = if number.is_multiple_of(2) {
                    Write(value)
                } else {
                    Read(value)
                };
                op(0, 10 * number + 1, 10 * number + 9, kind)
            })
            .collect();
        assert_eq!(check_linearizable(&operations), Ok(()));
    }
}
