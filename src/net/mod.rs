//! Between nodes: who a peer is and how the connection to it is kept safe.

mod authority;
mod certificate;
mod credentials;
mod identity;
mod pem_files;
mod tls;

pub use authority::{
    AuthorityError, CertificateAuthority, DAYS_MAX, IssuedCertificate, IssuedFiles,
};
pub use certificate::{CertificateFacts, Holder, utc_text};
pub use credentials::{CredentialFiles, Credentials, TlsError};
pub use identity::{Identity, IdentityError, Role};
pub use pem_files::{Existing, PemFileError};
pub use tls::{
    AdmitError, CLIENT_ALPN, PEER_ALPN, SERVER_NAME, admit, negotiated_alpn, peer_identity,
    quic_client, quic_server,
};
