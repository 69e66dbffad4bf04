//! Rateless set reconciliation: Yang, Gilad, Alizadeh, *Practical Rateless Set Reconciliation*
//! (SIGCOMM 2024).
//!
//! Each side could send an endless row of coded symbols. Symbol `i` is the sum (exclusive or) of all
//! items of the set that are mapped to it, which each is with probability 1 / (1 + i / 2): the
//! first symbol holds all items, later ones ever fewer. One side sends, the other takes its own
//! symbol away from each that comes; what the sets have in common cancels out. A symbol with one
//! item left reveals that item, which is then taken out of the others, and so on (peeling). When
//! the first symbol is empty, all differences are known. No estimate of their number is needed:
//! the sender goes on until it is told to stop. About 1.35 symbols a difference are enough for
//! many differences, up to 1.72 on average for few.
//!
//! Items are hashed with a key that the two sides agree on for each session: whoever chooses keys
//! cannot choose which items meet in which symbols.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::Hasher;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;
use thiserror::Error;

/// One record's state, as far as replicas compare it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Item {
    /// The hash of its key.
    pub key: u64,
    /// A hash of its stamp.
    pub state: u64,
}

/// What items are hashed with in one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionKey(pub u64, pub u64);

/// A sum of items.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodedSymbol {
    /// Of the items' two halves.
    pub sum: Item,
    /// Of the items' hashes: tells one item from a sum of several.
    pub check: u64,
    /// How many items the one side added less those that the other took away.
    pub count: i64,
}

/// What a coded symbol takes on the wire, about: two halves, a check, a small count.
pub const SYMBOL_BYTES: usize = 26;

/// The peer's symbols fit no set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the coded symbols of the peer contradict each other")]
pub struct Inconsistent;

impl SessionKey {
    fn hash(self, item: Item) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.0, self.1);
        hasher.write_u64(item.key);
        hasher.write_u64(item.state);
        hasher.finish()
    }
}

impl CodedSymbol {
    fn add(&mut self, item: Item, hash: u64, count: i64) {
        self.sum.key ^= item.key;
        self.sum.state ^= item.state;
        self.check ^= hash;
        self.count = self.count.wrapping_add(count);
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Appends it as bytes: three numbers of 8 bytes, little endian, and the count, its sign in the
    /// lowest bit, 7 bits a byte.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.sum.key, self.sum.state, self.check] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let mut count = ((self.count << 1) ^ (self.count >> 63)).cast_unsigned();
        while count >= 0x80 {
            out.push(count.to_le_bytes()[0] | 0x80);
            count >>= 7;
        }
        out.push(count.to_le_bytes()[0]);
    }

    /// Takes one off `bytes`; `None`: there is no whole one.
    pub fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let mut number = || -> Option<u64> {
            let (number, rest) = bytes.split_first_chunk()?;
            *bytes = rest;
            Some(u64::from_le_bytes(*number))
        };
        let sum = Item {
            key: number()?,
            state: number()?,
        };
        let check = number()?;
        let (mut count, mut shift) = (0_u64, 0);
        loop {
            let (byte, rest) = bytes.split_first()?;
            *bytes = rest;
            count |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                break;
            }
            shift += 7;
        }
        let count = (count >> 1).cast_signed() ^ -(count & 1).cast_signed();
        Some(Self { sum, check, count })
    }
}

/// To which symbols an item is mapped, in order, the first one always.
#[derive(Debug, Clone, Copy)]
struct Mapping {
    random: u64,
    index: u64,
}

impl Mapping {
    const fn new(hash: u64) -> Self {
        Self {
            // A multiplicative generator stays at zero for ever.
            random: hash | 1,
            index: 0,
        }
    }

    /// Moves on to the next symbol. From `i` on, the next one is beyond `j` with probability
    /// ((i + s) / (j + s))^2, drawn by the inverse of that; for large `i` symbol `i` then holds an item
    /// with probability 1 / (1 + i / 2).
    ///
    /// The paper has s = 1.5. Measured over 40,000 sessions of five differences, that takes 1.76
    /// symbols each, its worst; 2.25 makes the first symbols hold less, and takes 1.72. For 1,000 and
    /// more it makes no difference.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, and rounded the same on every machine: IEEE 754 sums, products, roots"
    )]
    fn advance(&mut self) {
        self.random = self.random.wrapping_mul(MULTIPLIER);
        let chance = (self.random as f64 + 1.0) / TWO_TO_64;
        let next = (self.index as f64 + SHIFT) / chance.sqrt() - SHIFT;
        // Saturating: further than any symbol that will ever be made.
        self.index = (next.ceil() as u64).max(self.index.saturating_add(1));
    }
}

/// Items and the next symbol that each is mapped to.
#[derive(Debug, Default)]
struct Window {
    items: Vec<(Item, u64, Mapping)>,
    next: BinaryHeap<Reverse<(u64, usize)>>,
}

impl Window {
    /// Adds an item that is to be in all symbols from `from` on.
    fn push(&mut self, item: Item, hash: u64, mut mapping: Mapping, from: u64) {
        while mapping.index < from {
            mapping.advance();
        }
        self.next.push(Reverse((mapping.index, self.items.len())));
        self.items.push((item, hash, mapping));
    }

    /// Adds this window's items to symbol `index`, which is the next one.
    fn apply(&mut self, index: u64, count: i64, symbol: &mut CodedSymbol) {
        while let Some(&Reverse((at, number))) = self.next.peek()
            && at == index
        {
            self.next.pop();
            let (item, hash, mapping) = &mut self.items[number];
            symbol.add(*item, *hash, count);
            mapping.advance();
            self.next.push(Reverse((mapping.index, number)));
        }
    }
}

/// Makes the coded symbols of a set.
#[derive(Debug)]
pub struct Encoder {
    window: Window,
    made: u64,
}

impl Encoder {
    /// Of these items, each given once.
    #[must_use]
    pub fn new(key: SessionKey, items: impl IntoIterator<Item = Item>) -> Self {
        let mut window = Window::default();
        for item in items {
            let hash = key.hash(item);
            window.push(item, hash, Mapping::new(hash), 0);
        }
        Self { window, made: 0 }
    }
}

impl Iterator for Encoder {
    type Item = CodedSymbol;

    /// The next symbol; there is always one more.
    fn next(&mut self) -> Option<CodedSymbol> {
        let mut symbol = CodedSymbol::default();
        self.window.apply(self.made, 1, &mut symbol);
        self.made += 1;
        Some(symbol)
    }
}

/// Finds the differences between its own set and the one that coded symbols come from.
#[derive(Debug)]
pub struct Decoder {
    key: SessionKey,
    own: Window,
    /// Found so far: the other side's, and its own.
    theirs: Window,
    ours: Window,
    symbols: Vec<CodedSymbol>,
}

impl Decoder {
    /// A decoder whose own items are these, each given once.
    #[must_use]
    pub fn new(key: SessionKey, items: impl IntoIterator<Item = Item>) -> Self {
        let mut own = Window::default();
        for item in items {
            let hash = key.hash(item);
            own.push(item, hash, Mapping::new(hash), 0);
        }
        Self {
            key,
            own,
            theirs: Window::default(),
            ours: Window::default(),
            symbols: Vec::new(),
        }
    }

    /// Takes the other side's next symbol.
    ///
    /// # Errors
    /// When the symbols so far can come from no set. Nothing of what was found is to be believed.
    pub fn push(&mut self, mut symbol: CodedSymbol) -> Result<(), Inconsistent> {
        let index = self.symbols.len() as u64;
        self.own.apply(index, -1, &mut symbol);
        self.theirs.apply(index, -1, &mut symbol);
        self.ours.apply(index, 1, &mut symbol);
        self.symbols.push(symbol);
        self.peel(self.symbols.len() - 1)
    }

    /// Whether all differences are known.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.symbols.first().is_some_and(CodedSymbol::is_empty)
    }

    /// How many symbols were taken.
    #[must_use]
    pub const fn taken(&self) -> usize {
        self.symbols.len()
    }

    /// What only the other side has, of what is known.
    pub fn theirs(&self) -> impl Iterator<Item = Item> {
        self.theirs.items.iter().map(|(item, ..)| *item)
    }

    /// What only this side has, of what is known.
    pub fn ours(&self) -> impl Iterator<Item = Item> {
        self.ours.items.iter().map(|(item, ..)| *item)
    }

    /// Takes the item out that this symbol reveals, if it does, and then those that this reveals.
    fn peel(&mut self, first: usize) -> Result<(), Inconsistent> {
        let mut pure = vec![first];
        while let Some(index) = pure.pop() {
            let CodedSymbol { sum, check, count } = self.symbols[index];
            if !matches!(count, 1 | -1) || self.key.hash(sum) != check {
                continue;
            }
            let mut mapping = Mapping::new(check);
            let end = self.symbols.len() as u64;
            while mapping.index < end {
                let at = usize::try_from(mapping.index).unwrap_or(usize::MAX);
                self.symbols[at].add(sum, check, -count);
                pure.push(at);
                mapping.advance();
            }
            let side = if count == 1 {
                &mut self.theirs
            } else {
                &mut self.ours
            };
            side.push(sum, check, mapping, end);
            // A set takes more symbols than there are differences to be known. Who sends others
            // could keep this going for ever.
            if self.theirs.items.len() + self.ours.items.len() > self.symbols.len() {
                return Err(Inconsistent);
            }
        }
        Ok(())
    }
}

/// Steele and Vigna, *Computationally easy, spectrally good multipliers* (2021).
const MULTIPLIER: u64 = 0xda94_2042_e4dd_58b5;
const SHIFT: f64 = 2.25;
const TWO_TO_64: f64 = 18_446_744_073_709_551_616.0;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn item(number: u64) -> Item {
        Item {
            key: number,
            state: number.wrapping_mul(7),
        }
    }

    /// Runs a session; what each side alone has, and how many symbols it took.
    fn reconcile(
        key: SessionKey,
        theirs: &BTreeSet<Item>,
        ours: &BTreeSet<Item>,
    ) -> (BTreeSet<Item>, BTreeSet<Item>, usize) {
        let mut decoder = Decoder::new(key, ours.iter().copied());
        for symbol in Encoder::new(key, theirs.iter().copied()) {
            decoder.push(symbol).unwrap();
            if decoder.is_done() {
                break;
            }
        }
        let taken = decoder.taken();
        (decoder.theirs().collect(), decoder.ours().collect(), taken)
    }

    /// Symbols a difference, on average over so many sessions.
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    fn overhead(differences: u64, common: u64, sessions: u64) -> f64 {
        let mut taken = 0;
        for session in 0..sessions {
            let both = (0..common).map(|i| item(i | 1 << 40));
            let both: BTreeSet<Item> = both.collect();
            // On one side, on the other, or on both.
            let split = differences * (session % 3) / 2;
            let mut theirs: BTreeSet<Item> = (0..split).map(item).collect();
            let mut ours: BTreeSet<Item> = (split..differences).map(item).collect();
            let wanted = (theirs.clone(), ours.clone());
            theirs.extend(&both);
            ours.extend(&both);
            let key = SessionKey(session, 9);
            let (only_theirs, only_ours, symbols) = reconcile(key, &theirs, &ours);
            assert_eq!((only_theirs, only_ours), wanted);
            taken += symbols;
        }
        taken as f64 / (differences * sessions) as f64
    }

    #[test]
    fn equal_sets_take_one_symbol() {
        for size in [0, 1, 1_000] {
            let set: BTreeSet<Item> = (0..size).map(item).collect();
            let (theirs, ours, taken) = reconcile(SessionKey(1, 2), &set, &set);
            assert_eq!((theirs.len(), ours.len(), taken), (0, 0, 1));
        }
    }

    #[test]
    fn few_differences_cost_about_1_72_symbols_each_at_most() {
        for differences in [1, 2, 4, 5, 6, 10, 30] {
            let symbols = overhead(differences, 5, 12_000 / differences);
            // 1.72 and three times its standard error.
            assert!(symbols <= 1.76, "{differences}: {symbols}");
        }
    }

    #[test]
    fn many_differences_cost_about_1_35_symbols_each() {
        for (differences, sessions, most) in
            [(1_000, 6, 1.48), (10_000, 3, 1.40), (100_000, 1, 1.37)]
        {
            let symbols = overhead(differences, 1_000, sessions);
            assert!((1.3..most).contains(&symbols), "{differences}: {symbols}");
        }
    }

    #[test]
    fn keys_that_are_alike_cost_no_more() {
        // An attacker's choice: one bit apart, equal states, states that cancel out.
        type Make = fn(u64) -> Item;
        let makes: [Make; 3] = [
            |i| Item { key: i, state: 0 },
            |i| Item {
                key: 1 << (i % 64),
                state: i / 64,
            },
            |i| Item { key: i, state: !i },
        ];
        for make in makes {
            let theirs: BTreeSet<Item> = (0..500).map(make).collect();
            let mut taken = 0;
            for session in 0..10 {
                let (found, _, symbols) =
                    reconcile(SessionKey(session, 1), &theirs, &BTreeSet::new());
                assert_eq!(found, theirs);
                taken += symbols;
            }
            assert!(taken <= 500 * 10 * 172 / 100, "{taken}");
        }
    }

    proptest! {
        #[test]
        fn symbols_survive_the_wire(numbers in any::<[u64; 3]>(), count in any::<i64>(), small in -300_i64..300) {
            for count in [count, small] {
                let sum = Item { key: numbers[0], state: numbers[1] };
                let symbol = CodedSymbol { sum, check: numbers[2], count };
                let mut bytes = Vec::new();
                symbol.encode(&mut bytes);
                prop_assert_eq!(CodedSymbol::decode(&mut &bytes[..]), Some(symbol));
                for end in 0..bytes.len() {
                    prop_assert_eq!(CodedSymbol::decode(&mut &bytes[..end]), None);
                }
            }
        }

        #[test]
        fn any_two_sets_are_reconciled(
            theirs in prop::collection::btree_set(0u64..300, 0..200),
            ours in prop::collection::btree_set(0u64..300, 0..200),
            key in any::<(u64, u64)>(),
        ) {
            let [theirs, ours] = [theirs, ours].map(|set| set.into_iter().map(item).collect::<BTreeSet<_>>());
            let differences = (&theirs ^ &ours).len();
            let mut taken = [0; 5];
            for (session, taken) in (0..).zip(&mut taken) {
                let key = SessionKey(key.0 ^ session, key.1);
                let (only_theirs, only_ours, symbols) = reconcile(key, &theirs, &ours);
                prop_assert_eq!(&only_theirs, &(&theirs - &ours));
                prop_assert_eq!(&only_ours, &(&ours - &theirs));
                *taken = symbols;
            }
            // A single key may be unlucky: symbol i holds exactly one of two differences with a
            // chance of about 4 / i, so 7 keys in 10,000 need more than 18 symbols. Three of five
            // such keys are 3 in 10^9.
            taken.sort_unstable();
            prop_assert!(taken[2] <= 10 + 4 * differences, "{taken:?}");
        }

        #[test]
        fn any_symbols_end_in_bounded_work(
            symbols in prop::collection::vec(any::<(u64, u64, u64, i8)>(), 1..100),
            valid in prop::collection::vec(any::<(u64, i8)>(), 0..100),
        ) {
            let key = SessionKey(1, 2);
            let mut decoder = Decoder::new(key, (0..20).map(item));
            let garbage = symbols.into_iter().map(|(a, b, check, count)| CodedSymbol {
                sum: Item { key: a, state: b },
                check,
                count: i64::from(count),
            });
            // Pure symbols that contradict each other are the worst there is.
            let pure = valid.into_iter().map(|(number, count)| CodedSymbol {
                sum: item(number),
                check: key.hash(item(number)),
                count: i64::from(count % 2),
            });
            for symbol in garbage.chain(pure) {
                if decoder.push(symbol).is_err() {
                    break;
                }
            }
            prop_assert!(decoder.theirs().count() + decoder.ours().count() <= decoder.taken() + 1);
        }
    }
}
