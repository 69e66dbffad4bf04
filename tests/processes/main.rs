//! Real processes, started as a user starts them and used through real clients.

#[cfg(test)]
mod bad_input;
#[cfg(test)]
#[path = "../sim/checker.rs"]
mod checker;
#[cfg(test)]
mod clients;
#[cfg(test)]
mod clocks;
#[cfg(test)]
mod cluster;
#[cfg(test)]
mod common;
#[cfg(test)]
mod history;
#[cfg(test)]
mod join;
#[cfg(test)]
mod keyspace;
#[cfg(test)]
mod large;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod operate;
#[cfg(test)]
mod repair;
#[cfg(test)]
mod replies;
#[cfg(test)]
mod sequences;
#[cfg(test)]
mod sloppy;
#[cfg(test)]
mod transactions;
#[cfg(test)]
mod trust;
#[cfg(test)]
mod unread;
#[cfg(test)]
mod updates;
