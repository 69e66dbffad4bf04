//! The comparison of one partition with another replica, from the side that asks.
//!
//! It asks for coded symbols of the other's set until it knows the differences. Where those are so
//! many that the symbols would cost more than the whole set, it asks for that instead, in order.

use std::collections::{BTreeMap, BTreeSet};

use crate::digest::{CodedSymbol, Decoder, Item, SYMBOL_BYTES, SessionKey};

/// One comparison.
#[derive(Debug)]
pub struct Exchange {
    own: BTreeSet<Item>,
    decoder: Decoder,
    /// What was told of the other's set so far, since the symbols were given up.
    listed: Option<BTreeSet<Item>>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Ask for so many symbols, from this one on.
    Symbols {
        /// How many there are already.
        from: u64,
        /// How many more.
        count: u32,
    },
    /// Ask for the other's states, in order, from after this one on.
    States {
        /// The last one that is known.
        after: Option<Item>,
    },
    /// It has ended.
    Done(Differences),
}

/// In what two replicas differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differences {
    /// What only the other holds: of keys, by their hash, that this side holds nothing of.
    pub missing: Vec<u64>,
    /// Keys that both hold, in different states.
    pub differing: Vec<u64>,
    /// What only this side holds.
    pub extra: Vec<u64>,
}

impl Differences {
    /// How many keys they concern.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.missing.len() + self.differing.len() + self.extra.len()
    }

    fn new(theirs: impl IntoIterator<Item = Item>, ours: impl IntoIterator<Item = Item>) -> Self {
        // Keys with the same hash and several states are one here: all of them are looked at.
        let mut sides: BTreeMap<u64, (bool, bool)> = BTreeMap::new();
        for item in theirs {
            sides.entry(item.key).or_default().0 = true;
        }
        for item in ours {
            sides.entry(item.key).or_default().1 = true;
        }
        let mut differences = Self::default();
        for (key, sides) in sides {
            match sides {
                (true, true) => differences.differing.push(key),
                (true, false) => differences.missing.push(key),
                (false, _) => differences.extra.push(key),
            }
        }
        differences
    }
}

impl Exchange {
    /// A comparison with this set, under a key that both sides use.
    #[must_use]
    pub fn new(key: SessionKey, own: impl IntoIterator<Item = Item>) -> Self {
        let own: BTreeSet<Item> = own.into_iter().collect();
        Self {
            decoder: Decoder::new(key, own.iter().copied()),
            own,
            listed: None,
        }
    }

    /// The first thing to do, where comparisons with the other have taken so many symbols of late.
    #[must_use]
    pub fn first(taken_of_late: u32) -> Step {
        Step::Symbols {
            from: 0,
            count: taken_of_late.clamp(FIRST_SYMBOLS, SYMBOLS_MAX),
        }
    }

    /// How many symbols it has taken, up to the last one that was needed.
    #[must_use]
    pub fn taken(&self) -> u32 {
        u32::try_from(self.decoder.taken()).unwrap_or(u32::MAX)
    }

    /// Whether the symbols were given up.
    #[must_use]
    pub const fn has_fallen_back(&self) -> bool {
        self.listed.is_some()
    }

    /// More symbols of the other's set, which has so many states.
    pub fn on_symbols(&mut self, states: u64, symbols: &[CodedSymbol]) -> Step {
        for symbol in symbols {
            if self.decoder.push(*symbol).is_err() {
                return self.fall_back();
            }
            if self.decoder.is_done() {
                let differences = Differences::new(self.decoder.theirs(), self.decoder.ours());
                return Step::Done(differences);
            }
        }
        let taken = self.decoder.taken() as u64;
        // So many symbols it takes at least: one for each difference.
        let needed = taken.max(states.abs_diff(self.own.len() as u64));
        let budget = SYMBOLS_FREE_BYTES + states * STATE_BYTES as u64;
        if symbols.is_empty() || needed * SYMBOL_BYTES as u64 > budget {
            return self.fall_back();
        }
        // A quarter as many again: what comes too much is a fifth of all at most.
        let more = u32::try_from(taken / 4).unwrap_or(SYMBOLS_MAX);
        Step::Symbols {
            from: taken,
            count: more.clamp(FIRST_SYMBOLS, SYMBOLS_MAX),
        }
    }

    /// A page of the other's states, in order, and whether there are more.
    pub fn on_states(&mut self, states: &[Item], has_more: bool) -> Step {
        let listed = self.listed.get_or_insert_default();
        listed.extend(states);
        if has_more && !states.is_empty() {
            return Step::States {
                after: states.last().copied(),
            };
        }
        let theirs = listed.difference(&self.own).copied();
        Step::Done(Differences::new(
            theirs,
            self.own.difference(listed).copied(),
        ))
    }

    fn fall_back(&mut self) -> Step {
        self.listed = Some(BTreeSet::new());
        Step::States { after: None }
    }
}

/// Bytes of one state in a list.
pub const STATE_BYTES: usize = 16;
/// One difference of a key that both hold is two items: enough for those, more often than not.
const FIRST_SYMBOLS: u32 = 5;
/// A frame of 100 kB.
const SYMBOLS_MAX: u32 = 4_096;
/// Small sets are never listed for the sake of a few symbols.
const SYMBOLS_FREE_BYTES: u64 = 512;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::digest::Encoder;

    fn items(states: &[(u64, u64)]) -> BTreeSet<Item> {
        let items = states.iter().map(|&(key, state)| Item { key, state });
        items.collect()
    }

    /// Runs a comparison; what it found, how many bytes it took, and whether it fell back.
    fn compare(theirs: &BTreeSet<Item>, ours: &BTreeSet<Item>) -> (Differences, u64, bool) {
        let key = SessionKey(3, 4);
        let mut exchange = Exchange::new(key, ours.iter().copied());
        let mut encoder = Encoder::new(key, theirs.iter().copied());
        let (mut bytes, mut step) = (0, Exchange::first(0));
        loop {
            step = match step {
                Step::Symbols { count, .. } => {
                    bytes += u64::from(count) * SYMBOL_BYTES as u64;
                    let symbols: Vec<_> = encoder.by_ref().take(count as usize).collect();
                    exchange.on_symbols(theirs.len() as u64, &symbols)
                }
                Step::States { after } => {
                    let rest = theirs
                        .iter()
                        .filter(|item| after.is_none_or(|a| **item > a));
                    let page: Vec<Item> = rest.copied().take(100).collect();
                    bytes += (page.len() * STATE_BYTES) as u64;
                    let has_more = page.last() != theirs.last();
                    exchange.on_states(&page, has_more)
                }
                Step::Done(differences) => {
                    return (differences, bytes, exchange.has_fallen_back());
                }
            }
        }
    }

    #[test]
    fn differences_are_told_apart() {
        let theirs = items(&[(1, 1), (2, 2), (3, 3)]);
        let ours = items(&[(2, 2), (3, 4), (5, 5)]);
        let (found, ..) = compare(&theirs, &ours);
        let wanted = Differences {
            missing: vec![1],
            differing: vec![3],
            extra: vec![5],
        };
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_comparison_never_costs_much_more_than_a_list() {
        let all: Vec<_> = (0..5_000).map(|key| (key, 1)).collect();
        for (ours, falls_back) in [(0, true), (1_000, true), (4_900, false), (5_000, false)] {
            let (found, bytes, fell_back) = compare(&items(&all), &items(&all[..ours]));
            assert_eq!(found.missing.len(), 5_000 - ours);
            assert_eq!(fell_back, falls_back, "{ours}");
            assert!(
                bytes <= 5_000 * STATE_BYTES as u64 * 5 / 2 + 4_096,
                "{ours}: {bytes}"
            );
        }
    }

    #[test]
    fn symbols_that_contradict_each_other_lead_to_a_list() {
        let mut exchange = Exchange::new(SessionKey(1, 1), items(&[(1, 1)]));
        let lie = CodedSymbol {
            count: 5,
            ..CodedSymbol::default()
        };
        let mut step = Step::Symbols { from: 0, count: 1 };
        for _ in 0..100 {
            if let Step::Symbols { .. } = step {
                step = exchange.on_symbols(2, &[lie]);
            }
        }
        assert_eq!(step, Step::States { after: None });
        let done = exchange.on_states(
            &[Item { key: 1, state: 1 }, Item { key: 2, state: 1 }],
            false,
        );
        assert!(matches!(done, Step::Done(found) if found.missing == [2] && found.count() == 1));
    }

    proptest! {
        #[test]
        fn any_two_sets_are_compared(
            theirs in prop::collection::btree_map(0u64..200, 0u64..3, 0..150),
            ours in prop::collection::btree_map(0u64..200, 0u64..3, 0..150),
        ) {
            let sets = [&theirs, &ours].map(|map| map.iter().map(|(k, s)| Item { key: *k, state: *s }).collect());
            let (found, ..) = compare(&sets[0], &sets[1]);
            let keys = |of: &dyn Fn(&u64) -> bool| (0..200).filter(|key| of(key)).collect::<Vec<u64>>();
            prop_assert_eq!(found.missing, keys(&|k| theirs.contains_key(k) && !ours.contains_key(k)));
            prop_assert_eq!(found.extra, keys(&|k| ours.contains_key(k) && !theirs.contains_key(k)));
            let differs = |k: &u64| matches!((theirs.get(k), ours.get(k)), (Some(a), Some(b)) if a != b);
            prop_assert_eq!(found.differing, keys(&differs));
        }
    }
}
