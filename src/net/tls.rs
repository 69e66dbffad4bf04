//! TLS 1.3 between the members of a cluster, both sides with a certificate.
//!
//! The chain is verified by rustls against the cluster's own authorities. There are no DNS names:
//! whoever dials requires the identity of a node of its own cluster in the handshake, and whoever
//! accepts asks [`admit`] before it reads the first byte. rustls reads the wall clock itself when
//! it verifies a certificate.

use std::sync::Arc;

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible,
    ServerConfig, SignatureScheme,
};
use thiserror::Error;

use super::credentials::{Authorities, Credentials, TlsError};
use super::identity::{Identity, IdentityError, Role};

/// The protocol between nodes: requests, gossip and transfers.
pub const PEER_ALPN: &[u8] = b"quorate-peer/1";

/// The protocol of those who look after the cluster.
pub const ADMIN_ALPN: &[u8] = b"quorate-admin/1";

/// What to hand to `quinn` as the server's name, which it wants: neither sent nor checked.
pub const SERVER_NAME: &str = "quorate";

/// The accepting side: requires a certificate of our authority, speaks both protocols.
pub fn quic_server(credentials: &Credentials) -> Result<Arc<QuicServerConfig>, TlsError> {
    let identity = credentials.identity();
    if identity.role() != Role::Node {
        return Err(TlsError::NotANode {
            identity: identity.clone(),
        });
    }
    let mut config = ServerConfig::builder_with_provider(credentials.provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(credentials.callers())
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.certified())));
    config.alpn_protocols = vec![PEER_ALPN.to_vec(), ADMIN_ALPN.to_vec()];
    // Resuming would skip the check of certificates, and early data can be replayed. Connections
    // live long, so handshakes are rare.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config.try_into()?))
}

/// The dialling side: requires a node of our cluster at the other end, speaks one protocol.
pub fn quic_client(
    credentials: &Credentials,
    alpn: &[u8],
) -> Result<Arc<QuicClientConfig>, TlsError> {
    dial_with(NodeVerifier::new(credentials), credentials, alpn)
}

fn dial_with(
    verifier: NodeVerifier,
    credentials: &Credentials,
    alpn: &[u8],
) -> Result<Arc<QuicClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(credentials.provider())
        .with_protocol_versions(&[&TLS13])?
        // rustls calls any verifier "dangerous" that is not its own: see `NodeVerifier`.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.certified())));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.enable_sni = false;
    // As in `quic_server`.
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(Arc::new(config.try_into()?))
}

/// Whom the certificate at the other end of a connection names. TLS has verified it.
pub fn peer_identity(connection: &quinn::Connection) -> Result<Identity, IdentityError> {
    let chain = peer_chain(connection);
    Identity::from_certificate(chain.first().ok_or(IdentityError::NoCertificate)?)
}

/// The certificates that the other end of a connection showed; its own is the first.
pub(super) fn peer_chain(connection: &quinn::Connection) -> Vec<CertificateDer<'static>> {
    let shown = connection.peer_identity();
    let chain = shown.and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    chain.map_or_else(Vec::new, |chain| *chain)
}

/// The protocol that both ends of a connection chose.
#[must_use]
pub fn negotiated_alpn(connection: &quinn::Connection) -> Option<Vec<u8>> {
    let data = connection.handshake_data()?;
    data.downcast::<HandshakeData>().ok()?.protocol
}

/// Why somebody with a good certificate is not let in.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AdmitError {
    /// A protocol that we do not speak.
    #[error("`{alpn}` is not a protocol of this node")]
    Protocol {
        /// The protocol's name.
        alpn: String,
    },
    /// A member of another cluster.
    #[error("{identity} is of cluster `{}`, this is cluster `{cluster}`", identity.cluster())]
    Cluster {
        /// Who came.
        identity: Identity,
        /// Our cluster.
        cluster: String,
    },
    /// Not a node, on the protocol between nodes.
    #[error("{identity} is not a node: the peer protocol is for nodes only")]
    NotANode {
        /// Who came.
        identity: Identity,
    },
    /// Not an admin, on the protocol of admins.
    #[error("{identity} is not an admin: `quorate certs issue --admin NAME` makes one")]
    NotAnAdmin {
        /// Who came.
        identity: Identity,
    },
}

/// The rule of the door: nodes of the cluster on [`PEER_ALPN`], its admins on [`ADMIN_ALPN`].
/// Gives back whom it let in.
pub fn admit(identity: Identity, alpn: &[u8], cluster: &str) -> Result<Identity, AdmitError> {
    if alpn != PEER_ALPN && alpn != ADMIN_ALPN {
        return Err(AdmitError::Protocol {
            alpn: String::from_utf8_lossy(alpn).into_owned(),
        });
    }
    if identity.cluster() != cluster {
        return Err(AdmitError::Cluster {
            identity,
            cluster: cluster.to_owned(),
        });
    }
    if alpn == PEER_ALPN && identity.role() != Role::Node {
        return Err(AdmitError::NotANode { identity });
    }
    if alpn == ADMIN_ALPN && identity.role() != Role::Admin {
        return Err(AdmitError::NotAnAdmin { identity });
    }
    Ok(identity)
}

/// Whose certificate was refused, and why: for logs, in which "expired" alone helps nobody.
#[derive(Debug, Error)]
#[error("the certificate of {who} is refused: {reason}")]
struct Refused {
    who: String,
    reason: String,
}

impl Refused {
    fn error(end_entity: &CertificateDer<'_>, reason: impl ToString) -> rustls::Error {
        let who = Identity::from_certificate(end_entity).map_or_else(
            |_unnamed| "a stranger".to_owned(),
            |identity| identity.to_string(),
        );
        let reason = reason.to_string();
        refused(Self { who, reason })
    }
}

fn check_revocation(
    authorities: &Authorities,
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<(), rustls::Error> {
    let mut chain = std::iter::once(end_entity).chain(intermediates);
    if chain.any(|der| authorities.revocations.covers(der)) {
        return Err(Refused::error(
            end_entity,
            "its authority has taken it back (crl_file)",
        ));
    }
    Ok(())
}

/// Verifies the one who dials us: as rustls does, and against the revocation lists.
#[derive(Debug)]
pub(super) struct CallerVerifier {
    chains: Arc<dyn ClientCertVerifier>,
    authorities: Arc<Authorities>,
}

impl CallerVerifier {
    pub(super) fn new(chains: Arc<dyn ClientCertVerifier>, authorities: Arc<Authorities>) -> Self {
        Self {
            chains,
            authorities,
        }
    }
}

impl ClientCertVerifier for CallerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .chains
            .verify_client_cert(end_entity, intermediates, now)
            .map_err(|reason| Refused::error(end_entity, reason))?;
        check_revocation(&self.authorities, end_entity, intermediates)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// Verifies the one we dialled: chain, purpose, time and signatures as rustls does for any
/// server, the revocation lists, and in place of a DNS name the identity of a node of our cluster.
#[derive(Debug)]
struct NodeVerifier {
    cluster: String,
    authorities: Arc<Authorities>,
    provider: Arc<CryptoProvider>,
}

impl NodeVerifier {
    fn new(credentials: &Credentials) -> Self {
        Self {
            cluster: credentials.identity().cluster().to_owned(),
            authorities: credentials.authorities(),
            provider: credentials.provider(),
        }
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.authorities.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )
        .map_err(|reason| Refused::error(end_entity, reason))?;
        check_revocation(&self.authorities, end_entity, intermediates)?;
        let identity = Identity::from_certificate(end_entity).map_err(refused)?;
        // Only nodes are dialled, on either protocol.
        admit(identity, PEER_ALPN, &self.cluster).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // Never asked: TLS 1.3 is the only version on offer.
        Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// As "other" and not as an invalid certificate: rustls prints the text of the former.
fn refused(error: impl std::error::Error + Send + Sync + 'static) -> rustls::Error {
    OtherError(Arc::new(error)).into()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use quinn::{Connection, Endpoint};
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        SanType,
    };
    use rustls::RootCertStore;
    use tokio::time::timeout;

    use super::*;
    use crate::model::Millis;
    use crate::net::{CertificateAuthority, pem_files};

    const DAY_MS: u64 = 24 * 60 * 60 * 1000;

    /// Far more than a handshake on one machine takes: only a hang reaches it.
    const DEADLINE: Duration = Duration::from_secs(20);

    /// rustls verifies by the real time, so certificates are issued around it.
    fn now() -> Millis {
        Millis(UnixTime::now().as_secs() * 1000)
    }

    fn days_ago(days: u64) -> Millis {
        Millis(now().0 - days * DAY_MS)
    }

    fn authority(cluster: &str) -> CertificateAuthority {
        CertificateAuthority::create(cluster, 3650, days_ago(1000)).unwrap()
    }

    fn credentials(ca: &CertificateAuthority, uri: &str) -> Credentials {
        let issued = ca.issue(&uri.parse().unwrap(), &[], 365, now()).unwrap();
        Credentials::from_issued(ca.cert_pem(), &issued, now()).unwrap()
    }

    /// What a process holds that was not restarted since: its certificate is 35 days over.
    fn expired_credentials(ca: &CertificateAuthority, uri: &str) -> Credentials {
        let then = days_ago(400);
        let issued = ca.issue(&uri.parse().unwrap(), &[], 365, then).unwrap();
        Credentials::from_issued(ca.cert_pem(), &issued, then).unwrap()
    }

    /// Whom each side found at the other end, or why it did not.
    #[derive(Debug)]
    struct Meeting {
        accepted: Result<Identity, String>,
        dialled: Result<Identity, String>,
    }

    /// One handshake over real sockets, and the rule of the door after it.
    async fn meet(server: &Credentials, client: &Credentials, alpn: &[u8]) -> Meeting {
        meet_with(server, quic_client(client, alpn).unwrap()).await
    }

    async fn meet_with(server: &Credentials, client: Arc<QuicClientConfig>) -> Meeting {
        let config = quinn::ServerConfig::with_crypto(quic_server(server).unwrap());
        let server_end = Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let client_end = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = server_end.local_addr().unwrap();
        let dialling = client_end
            .connect_with(quinn::ClientConfig::new(client), address, SERVER_NAME)
            .unwrap();
        let cluster = server.identity().cluster();
        let both = async { tokio::join!(accept(&server_end, cluster), dial(dialling)) };
        let (accepted, dialled) = timeout(DEADLINE, both).await.expect("a handshake hangs");
        Meeting { accepted, dialled }
    }

    async fn accept(endpoint: &Endpoint, cluster: &str) -> Result<Identity, String> {
        let incoming = endpoint.accept().await.unwrap();
        let connection = incoming.await.map_err(|error| error.to_string())?;
        let alpn = negotiated_alpn(&connection).unwrap();
        let identity = peer_identity(&connection).unwrap();
        match admit(identity, &alpn, cluster) {
            Ok(identity) => {
                connection.open_uni().await.unwrap().finish().unwrap();
                connection.closed().await;
                Ok(identity)
            }
            Err(error) => {
                connection.close(1u8.into(), error.to_string().as_bytes());
                Err(error.to_string())
            }
        }
    }

    /// In TLS 1.3 the dialling side is done before its own certificate was looked at, so it is
    /// let in only when it hears so: the other side opens a stream.
    async fn dial(connecting: quinn::Connecting) -> Result<Identity, String> {
        let connection = connecting.await.map_err(|error| error.to_string())?;
        welcome(&connection).await?;
        let identity = peer_identity(&connection).map_err(|error| error.to_string());
        connection.close(0u8.into(), b"done");
        identity
    }

    async fn welcome(connection: &Connection) -> Result<(), String> {
        let mut stream = connection
            .accept_uni()
            .await
            .map_err(|error| error.to_string())?;
        stream
            .read_to_end(0)
            .await
            .map_err(|error| error.to_string())?;
        Ok(())
    }

    #[tokio::test]
    async fn nodes_of_one_cluster_meet() {
        let ca = authority("blue");
        let (a, b) = (
            credentials(&ca, "quorate://blue/node/a"),
            credentials(&ca, "quorate://blue/node/b"),
        );
        let meeting = meet(&a, &b, PEER_ALPN).await;
        assert_eq!(meeting.accepted.as_ref(), Ok(b.identity()));
        assert_eq!(meeting.dialled.as_ref(), Ok(a.identity()));
    }

    #[tokio::test]
    async fn only_admins_are_let_in_as_admins() {
        let ca = authority("blue");
        let server = credentials(&ca, "quorate://blue/node/a");
        let admin = credentials(&ca, "quorate://blue/admin/b");
        let meeting = meet(&server, &admin, ADMIN_ALPN).await;
        assert_eq!(meeting.accepted.as_ref(), Ok(admin.identity()));
        assert_eq!(meeting.dialled.as_ref(), Ok(server.identity()));
        for role in ["node", "client"] {
            let other = credentials(&ca, &format!("quorate://blue/{role}/b"));
            let meeting = meet(&server, &other, ADMIN_ALPN).await;
            let text = meeting.accepted.unwrap_err();
            assert!(text.contains("is not an admin"), "{text}");
        }
    }

    #[tokio::test]
    async fn what_was_taken_back_is_refused_by_either_side() {
        let dir = tempfile::tempdir().unwrap();
        let ca = authority("blue");
        let files = |name: &str| {
            let identity = format!("quorate://blue/node/{name}").parse().unwrap();
            let issued = ca.issue(&identity, &[], 365, now()).unwrap();
            issued.save(dir.path(), crate::net::Existing::Keep).unwrap()
        };
        let (a, b) = (files("a"), files("b"));
        let ca_path = ca.save(dir.path()).unwrap().cert;
        let certificate = std::fs::read(&b.cert).unwrap();
        let certificate = pem_files::certificates(&certificate, &b.cert).unwrap();
        let crl = ca
            .revoke(&[&certificate[0]], dir.path(), 30, now())
            .unwrap();
        let load = |files: crate::net::IssuedFiles, crl| {
            let files = crate::net::CredentialFiles {
                ca: ca_path.clone(),
                cert: files.cert,
                key: files.key,
                crl,
            };
            Credentials::load(&files, now())
        };
        // The one it is about does not know of the list.
        let (a, b) = (load(a, Some(crl)).unwrap(), load(b, None).unwrap());
        let we_dial = meet(&b, &a, PEER_ALPN).await.dialled;
        let we_accept = meet(&a, &b, PEER_ALPN).await.accepted;
        for refused in [we_dial, we_accept] {
            let text = refused.unwrap_err();
            assert!(text.contains("quorate://blue/node/b is refused"), "{text}");
            assert!(text.contains("taken it back"), "{text}");
        }
        assert!(a.still_trusts(&certificate, now()).is_err());
        assert!(b.still_trusts(&certificate, now()).is_ok());
    }

    #[tokio::test]
    async fn a_client_is_refused_on_the_peer_protocol() {
        let ca = authority("blue");
        let server = credentials(&ca, "quorate://blue/node/a");
        let client = credentials(&ca, "quorate://blue/client/app");
        let meeting = meet(&server, &client, PEER_ALPN).await;
        let text = meeting.accepted.unwrap_err();
        assert!(text.contains("client/app is not a node"), "{text}");
        // The one who dialled learns why.
        let text = meeting.dialled.unwrap_err();
        assert!(text.contains("client/app is not a node"), "{text}");
    }

    #[tokio::test]
    async fn another_authority_is_refused_by_either_side() {
        let (ours, theirs) = (authority("blue"), authority("blue"));
        let node = credentials(&ours, "quorate://blue/node/a");
        // The stranger believes us, so that only our side can refuse.
        let both = format!("{}{}", ours.cert_pem(), theirs.cert_pem());
        let stranger = "quorate://blue/node/b".parse().unwrap();
        let stranger = theirs.issue(&stranger, &[], 365, now()).unwrap();
        let stranger = Credentials::from_issued(&both, &stranger, now()).unwrap();
        let we_dial = meet(&stranger, &node, PEER_ALPN).await.dialled;
        let we_accept = meet(&node, &stranger, PEER_ALPN).await.accepted;
        for refused in [we_dial, we_accept] {
            let text = refused.unwrap_err();
            assert!(text.contains("invalid peer certificate"), "{text}");
            assert!(!text.contains("by peer"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_node_of_another_cluster_is_refused_when_dialled() {
        let ca = authority("blue");
        let other = credentials(&ca, "quorate://green/node/a");
        let ours = credentials(&ca, "quorate://blue/node/b");
        let meeting = meet(&other, &ours, PEER_ALPN).await;
        let text = meeting.dialled.unwrap_err();
        assert!(
            text.contains("is of cluster `green`, this is cluster `blue`"),
            "{text}"
        );
        assert!(meeting.accepted.is_err());
    }

    #[tokio::test]
    async fn a_node_of_another_cluster_is_refused_when_it_dials() {
        let ca = authority("blue");
        let server = credentials(&ca, "quorate://blue/node/a");
        let stranger = credentials(&ca, "quorate://green/node/b");
        for alpn in [PEER_ALPN, ADMIN_ALPN] {
            // A stranger that takes our cluster for its own, so that only our side can refuse.
            let careless = NodeVerifier::new(&server);
            let config = dial_with(careless, &stranger, alpn).unwrap();
            let meeting = meet_with(&server, config).await;
            for text in [meeting.accepted.unwrap_err(), meeting.dialled.unwrap_err()] {
                assert!(
                    text.contains("is of cluster `green`, this is cluster `blue`"),
                    "{text}"
                );
            }
        }
    }

    #[tokio::test]
    async fn nobody_is_let_in_without_a_certificate() {
        let ca = authority("blue");
        let server = credentials(&ca, "quorate://blue/node/a");
        let mut config = ClientConfig::builder_with_provider(server.provider())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(NodeVerifier::new(&server)))
            .with_no_client_auth();
        config.alpn_protocols = vec![ADMIN_ALPN.to_vec()];
        let config = Arc::new(config.try_into().unwrap());
        let meeting = meet_with(&server, config).await;
        let text = meeting.accepted.unwrap_err();
        assert!(text.contains("no certificates"), "{text}");
        assert!(meeting.dialled.is_err());
    }

    #[tokio::test]
    async fn a_certificate_past_its_end_is_refused_by_either_side() {
        let ca = authority("blue");
        let good = credentials(&ca, "quorate://blue/node/a");
        let over = expired_credentials(&ca, "quorate://blue/node/b");
        let we_dial = meet(&over, &good, PEER_ALPN).await.dialled;
        let we_accept = meet(&good, &over, PEER_ALPN).await.accepted;
        for refused in [we_dial, we_accept] {
            let text = refused.unwrap_err();
            assert!(text.contains("expired"), "{text}");
            assert!(!text.contains("by peer"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_certificate_without_its_key_is_refused_by_either_side() {
        let ca = authority("blue");
        let node = credentials(&ca, "quorate://blue/node/a");
        let thief = credentials(&ca, "quorate://blue/client/app").posing_as(&node);
        let we_dial = meet(&thief, &node, PEER_ALPN).await.dialled;
        let we_accept = meet(&node, &thief, PEER_ALPN).await.accepted;
        for refused in [we_dial, we_accept] {
            let text = refused.unwrap_err();
            assert!(text.contains("BadSignature"), "{text}");
            assert!(!text.contains("by peer"), "{text}");
        }
    }

    #[tokio::test]
    async fn an_unknown_protocol_ends_the_handshake() {
        let ca = authority("blue");
        let node = credentials(&ca, "quorate://blue/node/a");
        let meeting = meet(&node, &node, b"quorate-peer/2").await;
        assert!(meeting.accepted.is_err(), "{meeting:?}");
        assert!(meeting.dialled.is_err(), "{meeting:?}");
    }

    #[test]
    fn only_nodes_accept() {
        let ca = authority("blue");
        for role in ["client", "admin"] {
            let member = credentials(&ca, &format!("quorate://blue/{role}/a"));
            let refused = quic_server(&member);
            assert!(matches!(refused, Err(TlsError::NotANode { .. })));
        }
    }

    #[test]
    fn only_nodes_are_believed_when_dialled() {
        // An authority that lets anyone be a server, as ours does not.
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(params, ca_key);
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let authorities = Authorities::of(roots);
        let verifier = NodeVerifier {
            cluster: "blue".to_owned(),
            authorities: Arc::new(authorities),
            provider: Arc::new(rustls::crypto::ring::default_provider()),
        };
        let verify = |uri: &str| {
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            let key = KeyPair::generate().unwrap();
            let server = params.signed_by(&key, &issuer).unwrap();
            let name = ServerName::try_from(SERVER_NAME).unwrap();
            let verified =
                verifier.verify_server_cert(server.der(), &[], &name, &[], UnixTime::now());
            verified.map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(verify("quorate://blue/node/a"), Ok(()));
        for (uri, reason) in [
            ("quorate://blue/client/a", "is not a node"),
            ("quorate://blue/admin/a", "is not a node"),
            ("quorate://green/node/a", "is of cluster `green`"),
            ("https://blue.example/", "carries no quorate://"),
        ] {
            let text = verify(uri).unwrap_err();
            assert!(text.contains(reason), "{text}");
        }
    }

    #[test]
    fn the_rule_of_the_door() {
        let who = |uri: &str| uri.parse::<Identity>().unwrap();
        let table = [
            ("quorate://blue/node/a", PEER_ALPN, true),
            ("quorate://blue/client/a", PEER_ALPN, false),
            ("quorate://blue/admin/a", PEER_ALPN, false),
            ("quorate://green/node/a", PEER_ALPN, false),
            ("quorate://blue/node/a", ADMIN_ALPN, false),
            ("quorate://blue/client/a", ADMIN_ALPN, false),
            ("quorate://blue/admin/a", ADMIN_ALPN, true),
            ("quorate://green/client/a", ADMIN_ALPN, false),
            ("quorate://Blue/node/a", PEER_ALPN, false),
            ("quorate://blue/node/a", b"", false),
            ("quorate://blue/node/a", b"quorate-peer/1 ", false),
        ];
        for (uri, alpn, welcome) in table {
            let answer = admit(who(uri), alpn, "blue");
            assert_eq!(answer.is_ok(), welcome, "{uri} {alpn:?} {answer:?}");
        }
        let refused = admit(who("quorate://green/node/a"), PEER_ALPN, "blue").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "quorate://green/node/a is of cluster `green`, this is cluster `blue`"
        );
    }
}
