//! Between nodes: one QUIC endpoint, who a peer is, lanes of batched frames, gossip messages.
//!
//! Knows nothing of what the frames mean to a node: it hands them to a [`PeerService`].

mod admin;
mod authority;
mod certificate;
mod credentials;
mod dial;
mod endpoint;
mod gossip;
mod identity;
mod lane;
mod link;
mod memory;
mod memory_gossip;
mod peers;
mod pem_files;
mod refusals;
mod revocation;
#[cfg(test)]
mod tests;
mod tls;
mod transport;

pub use admin::{AdminAnswer, AdminCallError, AdminService, ask_node};
pub use authority::{
    AuthorityError, CertificateAuthority, DAYS_MAX, IssuedCertificate, IssuedFiles,
};
pub use certificate::{CertificateFacts, Holder, certificate_end, days_left, utc_text};
pub use credentials::{CredentialFiles, Credentials, TlsError};
pub use endpoint::{Config, Endpoint, NetError, NetStats, PeerFacts};
pub use gossip::{GossipMessage, GossipNet};
pub use identity::{Identity, IdentityError, Role};
pub use lane::QUEUE_BYTES_MAX;
pub use memory::{MemoryNetwork, MemoryTransport};
pub use memory_gossip::{MemoryGossip, MemoryGossipEnd};
pub use pem_files::{Existing, PemFileError, load_chain, load_key};
pub use refusals::RefusedConnection;
pub use revocation::Revocations;
pub use tls::{
    ADMIN_ALPN, AdmitError, PEER_ALPN, SERVER_NAME, admit, negotiated_alpn, peer_identity,
    quic_client, quic_server,
};
pub use transport::{
    CallError, FrameContext, LARGE_BYTES, Lane, LateResponse, Operations, PeerService, ReplySink,
    Response, Transport, time_budget,
};
