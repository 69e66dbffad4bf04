//! The doors: where requests come in and answers go out.

pub mod admin;
mod answers;
pub mod certificates;
pub mod channels;
pub mod doctor;
pub mod http;
pub mod metrics;
pub mod peer_server;
mod places;
pub mod resp_server;
mod unix;
