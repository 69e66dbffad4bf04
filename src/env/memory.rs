//! What the process holds of the machine's memory without using it.

/// Gives back to the system what was freed and lies between what is still used. The arenas of glibc
/// shrink only at their ends: after 600 MB were flushed a node kept all of it, and one near the limit
/// of its control group had no way back. With other C libraries nothing is done.
///
/// Takes about a millisecond for each few megabytes that go, and the allocations of other threads may
/// wait for it in one arena at a time: for after much was freed, on a thread that serves nobody.
#[cfg_attr(
    all(target_os = "linux", target_env = "gnu"),
    expect(unsafe_code, reason = "there is no safe door to malloc_trim(3)")
)]
pub fn trim_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim takes a number, may be called from any thread at any time (it is MT-Safe by
    // its manual), and touches no memory that is allocated.
    unsafe {
        libc::malloc_trim(0);
    }
}
