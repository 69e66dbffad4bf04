//! What a process proves itself with: its certificate, its key, and the authority it trusts.
//!
//! Checked whole when loaded, so that a mistake is told at the start and not by the first peer.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::NoInitialCipherSuite;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore};
use thiserror::Error;

use super::authority::IssuedCertificate;
use super::certificate::{CertificateFacts, Holder, utc_text};
use super::identity::{Identity, Role};
use super::pem_files::{self, PemFileError};
use super::revocation::Revocations;
use super::tls::CallerVerifier;
use crate::model::Millis;

/// Where the credentials of a process are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialFiles {
    /// The authority's certificate; several one after the other while authorities change.
    pub ca: PathBuf,
    /// Our certificate, followed by those between it and the authority, if any.
    pub cert: PathBuf,
    /// Our private key, mode 0600 or 0400.
    pub key: PathBuf,
    /// Certificates that were taken back, if there is a list.
    pub crl: Option<PathBuf>,
}

impl CredentialFiles {
    /// All files that there are.
    pub fn all(&self) -> impl Iterator<Item = &Path> {
        let crl = self.crl.as_deref();
        [&*self.ca, &*self.cert, &*self.key].into_iter().chain(crl)
    }
}

/// Who we are, with the proof of it, and whom we believe.
///
/// Cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    identity: Identity,
    not_after: Millis,
    authorities: Arc<Authorities>,
    certified: Arc<CertifiedKey>,
    callers: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
}

/// Whom we believe, and what they have taken back.
#[derive(Debug)]
pub(super) struct Authorities {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) revocations: Revocations,
    /// The moment at which the first of them ends.
    not_after: Millis,
}

#[cfg(test)]
impl Authorities {
    pub(super) fn of(roots: RootCertStore) -> Self {
        Self {
            roots: Arc::new(roots),
            revocations: Revocations::default(),
            not_after: Millis(u64::MAX),
        }
    }
}

/// Why credentials cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] PemFileError),
    /// A certificate that is for later.
    #[error(
        "certificate {} is valid only from {} on: is this machine's clock right?",
        path.display(), utc_text(*not_before)
    )]
    NotYetValid {
        /// Which file.
        path: PathBuf,
        /// Its first moment.
        not_before: Millis,
    },
    /// A certificate whose time is over.
    #[error(
        "certificate {} expired on {}: make a new one, see `quorate certs --help`",
        path.display(), utc_text(*not_after)
    )]
    Expired {
        /// Which file.
        path: PathBuf,
        /// Its last moment.
        not_after: Millis,
    },
    /// An authority's certificate where a member's should be.
    #[error(
        "{} is the certificate of an authority, not of a node, client or admin",
        path.display()
    )]
    NotAMember {
        /// Which file.
        path: PathBuf,
    },
    /// A member's certificate where an authority's should be: trusted as one, the member could
    /// issue certificates itself.
    #[error("{} is not the certificate of an authority", path.display())]
    NotAnAuthority {
        /// Which file.
        path: PathBuf,
    },
    /// A key of a kind that cannot be used, or broken.
    #[error("private key {} cannot be used: {reason}", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// What rustls said.
        reason: rustls::Error,
    },
    /// Certificate and key that do not belong together.
    #[error(
        "the key in {} is not that of the certificate {}: they are issued together",
        key.display(), cert.display()
    )]
    KeyMismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// A certificate that our own authority did not sign, or not for this use.
    #[error(
        "certificate {} does not stand up to the authority {}: {reason}",
        cert.display(), ca.display()
    )]
    NotFromAuthority {
        /// The certificate's file.
        cert: PathBuf,
        /// The authority's file.
        ca: PathBuf,
        /// What rustls said.
        reason: rustls::Error,
    },
    /// An authority that rustls cannot use.
    #[error("authority {} cannot be used: {reason}", path.display())]
    Authority {
        /// Which file.
        path: PathBuf,
        /// What rustls said.
        reason: rustls::Error,
    },
    /// Only nodes are dialled.
    #[error("{identity} cannot accept connections: that takes the certificate of a node")]
    NotANode {
        /// Who tried.
        identity: Identity,
    },
    /// No way to check certificates could be built.
    #[error(transparent)]
    Verifier(#[from] VerifierBuilderError),
    /// The cryptography at hand does not do TLS 1.3.
    #[error(transparent)]
    Protocol(#[from] rustls::Error),
    /// The cryptography at hand does not do QUIC.
    #[error(transparent)]
    Quic(#[from] NoInitialCipherSuite),
}

impl Credentials {
    /// Reads and checks the three files.
    pub fn load(files: &CredentialFiles, now: Millis) -> Result<Self, TlsError> {
        let material = Material {
            ca: pem_files::read(&files.ca)?,
            cert: pem_files::read(&files.cert)?,
            key: pem_files::read_key(&files.key)?,
        };
        Self::check(&material, files, now)
    }

    /// Whether the two are the same: nothing has to be done about a change from one to the other.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        self.has_certificate_of(other)
            && self.authorities.roots.roots == other.authorities.roots.roots
            && self.authorities.revocations == other.authorities.revocations
    }

    /// Whether both show the same certificate.
    #[must_use]
    pub fn has_certificate_of(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert
    }

    /// The same from memory, for a certificate fresh from its authority.
    pub fn from_issued(
        ca_pem: &str,
        issued: &IssuedCertificate,
        now: Millis,
    ) -> Result<Self, TlsError> {
        let material = Material {
            ca: ca_pem.into(),
            cert: issued.cert_pem.as_str().into(),
            key: issued.key_pem.as_str().into(),
        };
        let names = CredentialFiles {
            ca: "<authority>".into(),
            cert: "<certificate>".into(),
            key: "<key>".into(),
            crl: None,
        };
        Self::check(&material, &names, now)
    }

    /// Who we are.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The last moment at which others believe us.
    #[must_use]
    pub const fn not_after(&self) -> Millis {
        self.not_after
    }

    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }

    /// The moment at which the first of the authorities that we believe ends.
    #[must_use]
    pub fn authority_not_after(&self) -> Millis {
        self.authorities.not_after
    }

    /// What our authorities have taken back.
    #[must_use]
    pub fn revocations(&self) -> &Revocations {
        &self.authorities.revocations
    }

    pub(super) fn authorities(&self) -> Arc<Authorities> {
        Arc::clone(&self.authorities)
    }

    /// Whether one of these certificates was taken back by its authority.
    pub(super) fn has_taken_back(&self, chain: &[CertificateDer<'_>]) -> bool {
        let revocations = &self.authorities.revocations;
        chain.iter().any(|der| revocations.covers(der))
    }

    /// Whether a peer that was let in with this chain would be let in now. That its time is over
    /// meanwhile does not count: a connection outlives the certificate it was made with.
    pub(super) fn still_trusts(
        &self,
        chain: &[CertificateDer<'_>],
        now: Millis,
    ) -> Result<(), rustls::Error> {
        let Some((end_entity, intermediates)) = chain.split_first() else {
            return Err(rustls::Error::NoCertificatesPresented);
        };
        let ends = CertificateFacts::from_der(end_entity).map(|facts| facts.not_after);
        let then = now.min(ends.unwrap_or(now));
        let then = UnixTime::since_unix_epoch(Duration::from_millis(then.0));
        let verified = self
            .callers
            .verify_client_cert(end_entity, intermediates, then);
        verified.map(drop)
    }

    pub(super) fn provider(&self) -> Arc<CryptoProvider> {
        Arc::clone(&self.provider)
    }

    /// How the certificate of one who dials us is verified.
    pub(super) fn callers(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.callers)
    }

    /// Our key under the certificate of another, which is no secret.
    #[cfg(test)]
    pub(super) fn posing_as(&self, other: &Self) -> Self {
        let (chain, key) = (
            other.certified.cert.clone(),
            Arc::clone(&self.certified.key),
        );
        Self {
            certified: Arc::new(CertifiedKey::new(chain, key)),
            ..other.clone()
        }
    }

    fn check(material: &Material, files: &CredentialFiles, now: Millis) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let authorities = Arc::new(trusted(material, files, now)?);
        let callers = WebPkiClientVerifier::builder_with_provider(
            Arc::clone(&authorities.roots),
            Arc::clone(&provider),
        )
        .build()?;
        let callers = Arc::new(CallerVerifier::new(callers, Arc::clone(&authorities)));
        let chain = pem_files::certificates(&material.cert, &files.cert)?;
        // `certificates` returns at least one.
        let facts = current_facts(&chain[0], &files.cert, now)?;
        let Holder::Member(identity) = facts.holder else {
            return Err(TlsError::NotAMember {
                path: files.cert.clone(),
            });
        };
        let key = pem_files::private_key(&material.key, &files.key)?;
        let certified = CertifiedKey::from_der(chain, key, &provider)
            .map_err(|reason| unusable_key(reason, files))?;
        let credentials = Self {
            identity,
            not_after: facts.not_after,
            authorities,
            certified: Arc::new(certified),
            callers,
            provider,
        };
        credentials
            .verify_as_peers_do(now)
            .map_err(|reason| TlsError::NotFromAuthority {
                cert: files.cert.clone(),
                ca: files.ca.clone(),
                reason,
            })?;
        Ok(credentials)
    }

    fn verify_as_peers_do(&self, now: Millis) -> Result<(), rustls::Error> {
        let now = UnixTime::since_unix_epoch(Duration::from_millis(now.0));
        let end_entity = self.certified.end_entity_cert()?;
        let intermediates = self.certified.cert.get(1..).unwrap_or_default();
        self.callers
            .verify_client_cert(end_entity, intermediates, now)?;
        if self.identity.role() == Role::Node {
            verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(end_entity)?,
                &self.authorities.roots,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
        }
        Ok(())
    }
}

/// Without the key: it must not end up in a log.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.identity)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// The content of the three files.
struct Material {
    ca: Vec<u8>,
    cert: Vec<u8>,
    key: Vec<u8>,
}

fn trusted(
    material: &Material,
    files: &CredentialFiles,
    now: Millis,
) -> Result<Authorities, TlsError> {
    let mut roots = RootCertStore::empty();
    let mut not_after = Millis(u64::MAX);
    let ders = pem_files::certificates(&material.ca, &files.ca)?;
    for der in &ders {
        // TLS itself does not ask whether an authority's own time is over.
        let facts = current_facts(der, &files.ca, now)?;
        if matches!(facts.holder, Holder::Member(_)) {
            return Err(TlsError::NotAnAuthority {
                path: files.ca.clone(),
            });
        }
        not_after = not_after.min(facts.not_after);
        roots
            .add(der.clone())
            .map_err(|reason| TlsError::Authority {
                path: files.ca.clone(),
                reason,
            })?;
    }
    let revocations = match &files.crl {
        Some(path) => Revocations::read(path, &ders)?,
        None => Revocations::default(),
    };
    Ok(Authorities {
        roots: Arc::new(roots),
        revocations,
        not_after,
    })
}

fn current_facts(
    der: &CertificateDer<'_>,
    path: &Path,
    now: Millis,
) -> Result<CertificateFacts, TlsError> {
    let facts = CertificateFacts::from_der(der).map_err(PemFileError::certificate(path))?;
    if now < facts.not_before {
        return Err(TlsError::NotYetValid {
            path: path.to_owned(),
            not_before: facts.not_before,
        });
    }
    if now > facts.not_after {
        return Err(TlsError::Expired {
            path: path.to_owned(),
            not_after: facts.not_after,
        });
    }
    Ok(facts)
}

fn unusable_key(reason: rustls::Error, files: &CredentialFiles) -> TlsError {
    match reason {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::KeyMismatch {
            cert: files.cert.clone(),
            key: files.key.clone(),
        },
        reason => TlsError::Key {
            path: files.key.clone(),
            reason,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::net::{CertificateAuthority, Existing};

    const NOW: Millis = Millis(1_800_000_000_000);
    const DAY_MS: u64 = 24 * 60 * 60 * 1000;

    fn authority() -> CertificateAuthority {
        CertificateAuthority::create("blue", 3650, NOW).unwrap()
    }

    fn issue(ca: &CertificateAuthority, uri: &str) -> IssuedCertificate {
        ca.issue(&uri.parse().unwrap(), &[], 365, NOW).unwrap()
    }

    /// An authority and a node's certificate, written into a directory.
    fn written(dir: &Path) -> CredentialFiles {
        let ca = authority();
        let ca_files = ca.save(dir).unwrap();
        let node = issue(&ca, "quorate://blue/node/a");
        let files = node.save(dir, Existing::Keep).unwrap();
        CredentialFiles {
            ca: ca_files.cert,
            cert: files.cert,
            key: files.key,
            crl: None,
        }
    }

    fn refusal(files: &CredentialFiles, now: Millis) -> String {
        Credentials::load(files, now).unwrap_err().to_string()
    }

    #[test]
    fn what_the_authority_wrote_can_be_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = Credentials::load(&written(dir.path()), NOW).unwrap();
        assert_eq!(credentials.identity().to_string(), "quorate://blue/node/a");
        assert_eq!(credentials.not_after(), Millis(NOW.0 + 365 * DAY_MS));
        let ca = authority();
        for role in ["node", "client", "admin"] {
            let issued = issue(&ca, &format!("quorate://blue/{role}/a"));
            assert!(Credentials::from_issued(ca.cert_pem(), &issued, NOW).is_ok());
        }
    }

    #[test]
    fn a_missing_file_is_told_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let files = written(dir.path());
        for path in [&files.ca, &files.cert, &files.key] {
            let aside = path.with_extension("aside");
            fs::rename(path, &aside).unwrap();
            let text = refusal(&files, NOW);
            assert!(text.contains(path.to_str().unwrap()), "{text}");
            fs::rename(&aside, path).unwrap();
        }
    }

    #[test]
    fn a_key_open_to_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let files = written(dir.path());
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(refusal(&files, NOW).contains("chmod 600"));
    }

    #[test]
    fn a_certificate_out_of_its_time_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let files = written(dir.path());
        let early = refusal(&files, Millis(NOW.0 - DAY_MS));
        assert!(early.contains("valid only from"), "{early}");
        let late = refusal(&files, Millis(NOW.0 + 366 * DAY_MS));
        assert!(late.contains("a.pem expired on"), "{late}");
        let later = refusal(&files, Millis(NOW.0 + 3651 * DAY_MS));
        assert!(later.contains("ca.pem expired on"), "{later}");
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let ca = authority();
        let mut mixed = issue(&ca, "quorate://blue/node/a");
        mixed.key_pem = issue(&ca, "quorate://blue/node/a").key_pem;
        let refused = Credentials::from_issued(ca.cert_pem(), &mixed, NOW).unwrap_err();
        assert!(matches!(refused, TlsError::KeyMismatch { .. }), "{refused}");
    }

    #[test]
    fn a_certificate_of_another_authority_is_refused() {
        let node = issue(&authority(), "quorate://blue/node/a");
        // Same name, another key.
        let refused = Credentials::from_issued(authority().cert_pem(), &node, NOW).unwrap_err();
        assert!(
            matches!(refused, TlsError::NotFromAuthority { .. }),
            "{refused}"
        );
    }

    #[test]
    fn two_authorities_are_trusted_while_one_follows_the_other() {
        let (old, new) = (authority(), authority());
        let both = format!("{}{}", old.cert_pem(), new.cert_pem());
        for ca in [&old, &new] {
            let node = issue(ca, "quorate://blue/node/a");
            assert!(Credentials::from_issued(&both, &node, NOW).is_ok());
        }
    }

    #[test]
    fn members_and_authorities_do_not_change_places() {
        let ca = authority();
        let mut node = issue(&ca, "quorate://blue/node/a");
        let refused = Credentials::from_issued(&node.cert_pem, &node, NOW).unwrap_err();
        assert!(
            matches!(refused, TlsError::NotAnAuthority { .. }),
            "{refused}"
        );
        ca.cert_pem().clone_into(&mut node.cert_pem);
        let refused = Credentials::from_issued(ca.cert_pem(), &node, NOW).unwrap_err();
        assert!(matches!(refused, TlsError::NotAMember { .. }), "{refused}");
    }

    #[test]
    fn no_key_in_what_is_logged() {
        let ca = authority();
        let node = issue(&ca, "quorate://blue/node/a");
        let credentials = Credentials::from_issued(ca.cert_pem(), &node, NOW).unwrap();
        let text = format!("{credentials:?}");
        assert!(text.contains("node/a") || text.contains("blue"), "{text}");
        assert!(!text.to_lowercase().contains("key"), "{text}");
    }
}
