//! The doors: where requests come in and answers go out.

pub mod peer_server;
pub mod resp_server;
