//! The fields of a hash, as one value.
//!
//! Each field is its length in four bytes (little endian) and its bytes, then its value in the same
//! way; in the order in which they were written first.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The fields of a hash and their values.
///
/// A command on m of n fields costs in the order of (n + m) log n: places are looked up, not searched.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    /// In order; `None` where one was taken out.
    pairs: Vec<Option<(Bytes, Bytes)>>,
    /// Where each field is, once that is worth it. A tree: no choice of names makes it slow.
    places: Option<BTreeMap<Bytes, usize>>,
    len: usize,
    /// How many were looked for so far.
    looks: usize,
}

impl Fields {
    /// Those of a value; `None`: it is no hash.
    #[must_use]
    pub fn decode(value: &Bytes) -> Option<Self> {
        let mut rest = value.clone();
        let mut pairs = Vec::new();
        while !rest.is_empty() {
            let field = take(&mut rest)?;
            pairs.push(Some((field, take(&mut rest)?)));
        }
        Some(Self {
            len: pairs.len(),
            pairs,
            ..Self::default()
        })
    }

    /// The value that holds them.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let bytes = self.iter().map(|(f, v)| 8 + f.len() + v.len()).sum();
        let mut out = BytesMut::with_capacity(bytes);
        for part in self.iter().flat_map(|(field, value)| [field, value]) {
            // A value is far below 4 GiB.
            out.put_u32_le(u32::try_from(part.len()).unwrap_or(u32::MAX));
            out.put_slice(part);
        }
        out.freeze()
    }

    /// The value of a field.
    #[must_use]
    pub fn get(&mut self, field: &[u8]) -> Option<&Bytes> {
        let place = self.place(field)?;
        self.pairs[place].as_ref().map(|(_, value)| value)
    }

    /// Sets a field; whether it is new.
    pub fn set(&mut self, field: &[u8], value: &[u8]) -> bool {
        let value = Bytes::copy_from_slice(value);
        if let Some(place) = self.place(field)
            && let Some((_, held)) = &mut self.pairs[place]
        {
            *held = value;
            return false;
        }
        let field = Bytes::copy_from_slice(field);
        if let Some(places) = &mut self.places {
            places.insert(field.clone(), self.pairs.len());
        }
        self.pairs.push(Some((field, value)));
        self.len += 1;
        true
    }

    /// Takes a field out; whether it was there.
    pub fn remove(&mut self, field: &[u8]) -> bool {
        let Some(place) = self.place(field) else {
            return false;
        };
        if let Some(places) = &mut self.places {
            places.remove(field);
        }
        self.pairs[place] = None;
        self.len -= 1;
        true
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &(Bytes, Bytes)> {
        self.pairs.iter().flatten()
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn place(&mut self, field: &[u8]) -> Option<usize> {
        self.looks += 1;
        if self.places.is_none() && self.looks > SEARCHES_MAX {
            let mut places = BTreeMap::new();
            for (place, pair) in self.pairs.iter().enumerate() {
                if let Some((field, _)) = pair {
                    places.entry(field.clone()).or_insert(place);
                }
            }
            self.places = Some(places);
        }
        if let Some(places) = &self.places {
            return places.get(field).copied();
        }
        let is_it =
            |pair: &Option<(Bytes, Bytes)>| pair.as_ref().is_some_and(|(own, _)| own == field);
        self.pairs.iter().position(is_it)
    }
}

impl PartialEq for Fields {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Fields {}

/// Most commands name few fields: to search those is cheaper than to note where all are.
const SEARCHES_MAX: usize = 4;

fn take(rest: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(rest.try_get_u32_le().ok()?).ok()?;
    (length <= rest.len()).then(|| rest.split_to(length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn many_fields_are_looked_up_and_not_searched() {
        let mut fields = Fields::default();
        for field in 0..40_000_u32 {
            assert!(fields.set(&field.to_le_bytes(), b"v"));
        }
        // Quadratic, were each searched for: the places are known after a few.
        assert_eq!(fields.places.as_ref().map(BTreeMap::len), Some(40_000));
        let mut fields = Fields::decode(&fields.encode()).unwrap();
        for field in 0..40_000_u32 {
            assert!(fields.get(&field.to_le_bytes()).is_some());
            assert!(fields.remove(&field.to_le_bytes()));
            assert!(!fields.remove(&field.to_le_bytes()));
        }
        assert_eq!(fields.places.as_ref().map(BTreeMap::len), Some(0));
        assert!(fields.is_empty() && fields.encode().is_empty());
    }

    proptest! {
        #[test]
        fn fields_come_back(pairs in prop::collection::btree_map(any::<Vec<u8>>(), any::<Vec<u8>>(), 0..9)) {
            let mut fields = Fields::default();
            for (field, value) in &pairs {
                prop_assert!(fields.set(field, b"before"));
                prop_assert!(!fields.set(field, value));
            }
            let mut back = Fields::decode(&fields.encode()).unwrap();
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
