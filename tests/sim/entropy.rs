//! Entropy for libraries that ask the operating system for it: chitchat picks its peers by it, and
//! the standard library seeds its hash maps. On a thread that runs a seed it comes from that seed.

#![expect(
    unsafe_code,
    reason = "the one way to answer those who ask the operating system; in this test binary only"
)]

use std::cell::Cell;
use std::ffi::{c_uint, c_void};

thread_local! {
    static STREAM: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on this thread's entropy is a stream that the seed decides.
pub(crate) fn seed_this_thread(seed: u64) {
    STREAM.set(Some(seed));
}

/// Stands before the C library's function of this name.
///
/// # Safety
/// As the C library has it: `buffer` is writable for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    let Some(mut state) = STREAM.get() else {
        // SAFETY: the arguments are the caller's own, passed on to the system call they are for.
        let got = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
        return isize::try_from(got).unwrap_or(-1);
    };
    // SAFETY: the caller promises `length` writable bytes at `buffer`.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    for chunk in bytes.chunks_mut(8) {
        // SplitMix64 (Steele, Lea, Flood, 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        chunk.copy_from_slice(&mixed.to_le_bytes()[..chunk.len()]);
    }
    STREAM.set(Some(state));
    isize::try_from(length).unwrap_or(isize::MAX)
}
