//! Finding out in what two replicas differ, at a cost that grows with the differences and not with
//! what they have in common.
//!
//! Knows nothing of records: it compares sets of [`Item`]s.

mod rateless;

pub use rateless::{CodedSymbol, Decoder, Encoder, Inconsistent, Item, SYMBOL_BYTES, SessionKey};
