//! Real processes, started as a user starts them and used through real clients.

#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod cluster;
#[cfg(test)]
mod common;
