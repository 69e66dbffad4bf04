//! In what two replicas differ: what each tells of its partitions, and how the differences are found.
//!
//! Knows nothing of stores, peers or time: sets of items in, differences out.

mod rateless;
mod sheet;

pub use rateless::{CodedSymbol, Decoder, Encoder, Inconsistent, Item, SYMBOL_BYTES, SessionKey};
pub use sheet::{PackedSheet, Sheet};
