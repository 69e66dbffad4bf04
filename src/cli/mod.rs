//! The subcommands of the `quorate` program.

pub mod bench;
