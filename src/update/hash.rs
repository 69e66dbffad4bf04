//! The fields of a hash, as one value.
//!
//! Each field is its length in four bytes (little endian) and its bytes, then its value in the same
//! way; in the order in which they were written first.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The fields of a hash and their values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(Vec<(Bytes, Bytes)>);

impl Fields {
    /// Those of a value; `None`: it is no hash.
    #[must_use]
    pub fn decode(value: &Bytes) -> Option<Self> {
        let mut rest = value.clone();
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let field = take(&mut rest)?;
            fields.push((field, take(&mut rest)?));
        }
        Some(Self(fields))
    }

    /// The value that holds them.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let bytes = self.0.iter().map(|(f, v)| 8 + f.len() + v.len()).sum();
        let mut out = BytesMut::with_capacity(bytes);
        for part in self.0.iter().flat_map(|(field, value)| [field, value]) {
            // A value is far below 4 GiB.
            out.put_u32_le(u32::try_from(part.len()).unwrap_or(u32::MAX));
            out.put_slice(part);
        }
        out.freeze()
    }

    /// The value of a field.
    #[must_use]
    pub fn get(&self, field: &[u8]) -> Option<&Bytes> {
        let found = self.0.iter().find(|(name, _)| name == field);
        found.map(|(_, value)| value)
    }

    /// Sets a field; whether it is new.
    pub fn set(&mut self, field: &[u8], value: &[u8]) -> bool {
        let value = Bytes::copy_from_slice(value);
        match self.0.iter_mut().find(|(name, _)| name == field) {
            Some((_, held)) => {
                *held = value;
                false
            }
            None => {
                self.0.push((Bytes::copy_from_slice(field), value));
                true
            }
        }
    }

    /// Takes a field out; whether it was there.
    pub fn remove(&mut self, field: &[u8]) -> bool {
        let before = self.0.len();
        self.0.retain(|(name, _)| name != field);
        self.0.len() < before
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &(Bytes, Bytes)> {
        self.0.iter()
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn take(rest: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(rest.try_get_u32_le().ok()?).ok()?;
    (length <= rest.len()).then(|| rest.split_to(length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn fields_come_back(pairs in prop::collection::btree_map(any::<Vec<u8>>(), any::<Vec<u8>>(), 0..9)) {
            let mut fields = Fields::default();
            for (field, value) in &pairs {
                prop_assert!(fields.set(field, b"before"));
                prop_assert!(!fields.set(field, value));
            }
            let back = Fields::decode(&fields.encode()).unwrap();
            prop_assert_eq!(&back, &fields);
            prop_assert_eq!(back.len(), pairs.len());
            for (field, value) in &pairs {
                prop_assert_eq!(back.get(field).map(|v| &v[..]), Some(&value[..]));
                prop_assert!(fields.remove(field));
            }
            prop_assert!(fields.is_empty());
        }

        #[test]
        fn other_bytes_are_no_fields_and_no_panic(bytes in any::<Vec<u8>>()) {
            let value = Bytes::from(bytes);
            if let Some(fields) = Fields::decode(&value) {
                prop_assert_eq!(fields.encode(), value);
            }
        }
    }
}
