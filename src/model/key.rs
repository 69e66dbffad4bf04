//! What may be a key.

use thiserror::Error;

/// The longest key, in bytes: 64 KiB, so that a length fits 16 bits and a frame holds many keys.
pub const KEY_BYTES_MAX: usize = 64 * 1024;

/// Why bytes are not a key. Any bytes are legal inside one, NUL and broken UTF-8 included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeyError {
    /// A key has at least one byte.
    #[error("key is empty, a key has 1 to {KEY_BYTES_MAX} bytes")]
    Empty,
    /// A key has at most [`KEY_BYTES_MAX`] bytes.
    #[error("key has {bytes} bytes, the limit is {KEY_BYTES_MAX}")]
    TooLong {
        /// How many bytes were given.
        bytes: usize,
    },
}

/// Checks bytes that come from outside before they are used as a key.
pub fn check_key(key: &[u8]) -> Result<(), KeyError> {
    match key.len() {
        0 => Err(KeyError::Empty),
        1..=KEY_BYTES_MAX => Ok(()),
        bytes => Err(KeyError::TooLong { bytes }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_inclusive() {
        assert_eq!(check_key(b""), Err(KeyError::Empty));
        assert_eq!(check_key(b"\0"), Ok(()));
        assert_eq!(check_key(&[0xff; KEY_BYTES_MAX]), Ok(()));
        assert_eq!(
            check_key(&[0; KEY_BYTES_MAX + 1]),
            Err(KeyError::TooLong {
                bytes: KEY_BYTES_MAX + 1
            })
        );
    }
}
