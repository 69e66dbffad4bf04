//! Subcommands.

pub mod certs;
