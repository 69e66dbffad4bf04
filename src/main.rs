//! The `quorate` program.

use std::process::ExitCode;

/// Gives back to the system what was freed, within about ten seconds: the records of a flushed
/// database, or of expired keys. The allocator of glibc kept nearly all of it, for its arenas shrink
/// only at their ends, and a node near the limit of its control group had no way back.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    quorate::cli::main()
}
