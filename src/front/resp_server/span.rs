//! Parts of requests: copied together where they are small, shared where they are large.

use std::ops::Range;

use bytes::Bytes;

/// Where bytes of a request are.
#[derive(Debug)]
pub(super) enum Span {
    /// Here in the plan's buffer.
    Copied(Range<usize>),
    /// The one of this number among those that are shared.
    Shared(usize),
}

impl Span {
    pub(super) fn bytes(&self, buffer: &Bytes, shared: &[Bytes]) -> Bytes {
        match self {
            Self::Copied(range) => buffer.slice(range.clone()),
            Self::Shared(number) => shared[*number].clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_is_not_copied() {
        let (buffer, shared) = (Bytes::from("a value"), [Bytes::from("a large value")]);
        assert_eq!(Span::Copied(2..7).bytes(&buffer, &shared), "value");
        let large = Span::Shared(0).bytes(&buffer, &shared);
        assert_eq!(large.as_ptr(), shared[0].as_ptr());
    }
}
