//! A cluster's private certificate authority. `now` is an argument; keys come from the operating
//! system's randomness, through ring.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::ServerName;
use thiserror::Error;

use super::certificate::{CertificateFacts, Holder, utc_text};
use super::identity::{Identity, IdentityError, Role, SCHEME, check_cluster, parse_certificate};
use super::pem_files::{self, Existing, PemFileError, Readers};
use crate::model::Millis;

/// The longest life of a certificate: about 100 years.
pub const DAYS_MAX: u32 = 36_500;

/// Why an authority could not be made, loaded or used.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] PemFileError),
    /// A bad cluster name.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A life of no days, or of too many.
    #[error("a certificate can be valid for 1 to {DAYS_MAX} days, not {days}")]
    Days {
        /// The days given.
        days: u32,
    },
    /// A host for which a certificate cannot stand.
    #[error("`{host}` is neither a host name nor an IP address")]
    Host {
        /// The host as given.
        host: String,
    },
    /// A name whose files would take the place of the authority's own.
    #[error("the name `{name}` is taken: its files would be the authority's own")]
    NameTaken {
        /// The name as given.
        name: String,
    },
    /// A certificate that is no authority of a cluster.
    #[error("{} is not the certificate of a cluster's authority", path.display())]
    NotAnAuthority {
        /// Which file.
        path: PathBuf,
    },
    /// Certificate and key that do not belong together.
    #[error("the key in {} is not that of the certificate {}", key.display(), cert.display())]
    KeyMismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// An authority whose time is over.
    #[error("the authority expired on {}: make a new one", utc_text(*not_after))]
    Expired {
        /// Its last moment.
        not_after: Millis,
    },
    /// A certificate of another authority, to be taken back.
    #[error("the certificate was not issued by this authority: only its own can take it back")]
    NotIssuedHere,
    /// A revocation list of another authority, to be added to.
    #[error("{} is the list of another authority: move it away", path.display())]
    OtherList {
        /// Which file.
        path: PathBuf,
    },
    /// A key of a kind that cannot be used, or broken.
    #[error("private key {} cannot be used: {reason}", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// What rcgen said.
        reason: rcgen::Error,
    },
    /// A certificate that could not be made.
    #[error(transparent)]
    Crypto(#[from] rcgen::Error),
}

/// A private certificate authority: who holds it decides who is in its cluster.
pub struct CertificateAuthority {
    cluster: String,
    not_after: Millis,
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its private key, fresh from an authority.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuedCertificate {
    /// Whom it speaks for.
    pub identity: Identity,
    /// Its last moment.
    pub not_after: Millis,
    /// The certificate as PEM.
    pub cert_pem: String,
    /// The private key as PEM (PKCS #8). A secret.
    pub key_pem: String,
}

/// Where an issued certificate was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedFiles {
    /// The certificate.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

impl CertificateAuthority {
    /// A new authority for a cluster, with a key of its own (ECDSA P-256).
    pub fn create(cluster: &str, days: u32, now: Millis) -> Result<Self, AuthorityError> {
        check_cluster(cluster)?;
        let not_after = last_moment(days, now)?;
        let mut params = CertificateParams::default();
        set_validity(&mut params, now, not_after);
        params.distinguished_name = subject("Quorate CA", cluster);
        params.subject_alt_names = vec![uri(&format!("{SCHEME}{cluster}"))?];
        // It signs holders' certificates only, no further authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let cert_pem = params.self_signed(&key)?.pem();
        Ok(Self {
            cluster: cluster.to_owned(),
            not_after,
            cert_pem,
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads the authority that [`Self::save`] wrote.
    pub fn load(dir: &Path) -> Result<Self, AuthorityError> {
        let (cert, key) = (dir.join(CERT_FILE), dir.join(KEY_FILE));
        let pem = pem_files::read(&cert)?;
        let der = match pem_files::certificates(&pem, &cert)?.as_slice() {
            [one] => one.clone(),
            _ => return Err(AuthorityError::NotAnAuthority { path: cert }),
        };
        let facts = CertificateFacts::from_der(&der).map_err(PemFileError::certificate(&cert))?;
        let Holder::Authority {
            cluster: Some(cluster),
        } = facts.holder
        else {
            return Err(AuthorityError::NotAnAuthority { path: cert });
        };
        let secret = pem_files::private_key(&pem_files::read_key(&key)?, &key)?;
        let pair = KeyPair::try_from(&secret).map_err(|reason| AuthorityError::Key {
            path: key.clone(),
            reason,
        })?;
        if parse_certificate(&der)?.public_key().raw != pair.subject_public_key_info() {
            return Err(AuthorityError::KeyMismatch { cert, key });
        }
        Ok(Self {
            cluster,
            not_after: facts.not_after,
            cert_pem: String::from_utf8_lossy(&pem).into_owned(),
            issuer: Issuer::from_ca_cert_der(&der, pair)?,
        })
    }

    /// Writes `ca.pem` and `ca.key` into a directory, which is made when it is missing. Never
    /// overwrites: with its key, an authority loses every certificate it has issued.
    pub fn save(&self, dir: &Path) -> Result<IssuedFiles, AuthorityError> {
        let files = IssuedFiles {
            cert: dir.join(CERT_FILE),
            key: dir.join(KEY_FILE),
        };
        let key_pem = self.issuer.key().serialize_pem();
        files.write(&self.cert_pem, &key_pem, Existing::Keep)?;
        Ok(files)
    }

    /// A certificate with a fresh key, valid from `now` for `days`, at most as long as the
    /// authority itself. `hosts` are names and addresses for tools that check those; nodes check
    /// the identity.
    ///
    /// The identity may name another cluster: one authority can serve several, and what keeps
    /// them apart is the cluster in each certificate.
    pub fn issue(
        &self,
        identity: &Identity,
        hosts: &[String],
        days: u32,
        now: Millis,
    ) -> Result<IssuedCertificate, AuthorityError> {
        if now > self.not_after {
            return Err(AuthorityError::Expired {
                not_after: self.not_after,
            });
        }
        let not_after = last_moment(days, now)?.min(self.not_after);
        let mut params = CertificateParams::default();
        set_validity(&mut params, now, not_after);
        params.distinguished_name = subject(identity.cluster(), identity.name().as_str());
        params.subject_alt_names = vec![uri(&identity.to_string())?];
        for host in hosts {
            params.subject_alt_names.push(host_name(host)?);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match identity.role() {
            // A node is dialled and dials.
            Role::Node => vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            Role::Client | Role::Admin => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        let key = KeyPair::generate()?;
        Ok(IssuedCertificate {
            identity: identity.clone(),
            not_after,
            cert_pem: params.signed_by(&key, &self.issuer)?.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// The cluster it was made for.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Its last moment.
    #[must_use]
    pub const fn not_after(&self) -> Millis {
        self.not_after
    }

    pub(super) const fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// Its certificate as PEM: what nodes and clients check each other against.
    #[must_use]
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }
}

impl IssuedCertificate {
    /// Writes `NAME.pem` and `NAME.key` into a directory, which is made when it is missing.
    pub fn save(&self, dir: &Path, existing: Existing) -> Result<IssuedFiles, AuthorityError> {
        let name = self.identity.name();
        // Some file systems do not tell upper case from lower case.
        if name.as_str().eq_ignore_ascii_case(CA_NAME) {
            return Err(AuthorityError::NameTaken {
                name: name.to_string(),
            });
        }
        let files = IssuedFiles {
            cert: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        };
        files.write(&self.cert_pem, &self.key_pem, existing)?;
        Ok(files)
    }
}

impl IssuedFiles {
    fn write(&self, cert_pem: &str, key_pem: &str, existing: Existing) -> Result<(), PemFileError> {
        for file in [&self.cert, &self.key] {
            if existing == Existing::Keep {
                pem_files::check_free(file)?;
            }
            if let Some(dir) = file.parent() {
                pem_files::make_dir(dir)?;
            }
        }
        // The key first: a certificate that is there has its key.
        pem_files::write(&self.key, key_pem, Readers::Owner, existing)?;
        pem_files::write(&self.cert, cert_pem, Readers::Anyone, existing)
    }
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("cluster", &self.cluster)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Without the key: it must not end up in a log.
impl fmt::Debug for IssuedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedCertificate")
            .field("identity", &self.identity)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// When a certificate made `now` for so many days ends.
pub(super) fn last_moment(days: u32, now: Millis) -> Result<Millis, AuthorityError> {
    if !(1..=DAYS_MAX).contains(&days) {
        return Err(AuthorityError::Days { days });
    }
    let life = Duration::from_secs(u64::from(days) * 24 * 60 * 60);
    Ok(now.saturating_add(life).min(MOMENT_MAX))
}

/// Valid from a little before `now` to `not_after`, in whole seconds as X.509 has it.
fn set_validity(params: &mut CertificateParams, now: Millis, not_after: Millis) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    // Neither sum leaves the calendar: both moments are at most `MOMENT_MAX`.
    let not_before = now.0.saturating_sub(BACKDATED_MS).min(MOMENT_MAX.0);
    params.not_before = epoch + Duration::from_secs(not_before / 1000);
    params.not_after = epoch + Duration::from_secs(not_after.0 / 1000);
}

/// The distinguished name; each part fits the 64 characters that X.520 allows.
fn subject(organization: &str, name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, organization);
    subject.push(DnType::CommonName, name);
    subject
}

fn uri(text: &str) -> Result<SanType, AuthorityError> {
    Ok(SanType::URI(text.try_into()?))
}

fn host_name(host: &str) -> Result<SanType, AuthorityError> {
    match ServerName::try_from(host) {
        Ok(ServerName::DnsName(name)) => Ok(SanType::DnsName(name.as_ref().try_into()?)),
        Ok(ServerName::IpAddress(address)) => Ok(SanType::IpAddress(address.into())),
        _ => Err(AuthorityError::Host {
            host: host.to_owned(),
        }),
    }
}

const CA_NAME: &str = "ca";
const CERT_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca.key";

/// The clocks of two machines differ: a new certificate must not be refused as not yet valid.
const BACKDATED_MS: u64 = 5 * 60 * 1000;

/// 9999-12-31T23:59:59Z, the last moment that X.509 can write (RFC 5280, 4.1.2.5).
const MOMENT_MAX: Millis = Millis(253_402_300_799_000);

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOW: Millis = Millis(1_800_000_000_000);
    const DAY_MS: u64 = 24 * 60 * 60 * 1000;

    fn node(cluster: &str, name: &str) -> Identity {
        Identity::new(cluster, Role::Node, name.parse().unwrap()).unwrap()
    }

    fn facts(pem: &str) -> CertificateFacts {
        let der = pem_files::certificates(pem.as_bytes(), Path::new("x.pem")).unwrap();
        CertificateFacts::from_der(&der[0]).unwrap()
    }

    #[test]
    fn a_saved_authority_issues_after_it_was_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("certs");
        let made = CertificateAuthority::create("blue", 3650, NOW).unwrap();
        let files = made.save(&dir).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&files.key), 0o600);

        let loaded = CertificateAuthority::load(&dir).unwrap();
        assert_eq!(loaded.cluster(), "blue");
        assert_eq!(loaded.cert_pem(), made.cert_pem());
        assert_eq!(
            loaded.not_after(),
            Millis(NOW.0 + 3650 * 24 * 60 * 60 * 1000)
        );
        let first = loaded.issue(&node("blue", "a"), &[], 365, NOW).unwrap();
        let files = first.save(&dir, Existing::Keep).unwrap();
        assert_eq!(files.cert, dir.join("a.pem"));
        assert_eq!(mode(&files.key), 0o600);
        assert_eq!(
            facts(&first.cert_pem).holder,
            Holder::Member(node("blue", "a"))
        );
    }

    #[test]
    fn what_is_there_is_kept_unless_it_shall_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::create("blue", 1, NOW).unwrap();
        ca.save(dir.path()).unwrap();
        let again = CertificateAuthority::create("blue", 1, NOW).unwrap();
        assert!(matches!(
            again.save(dir.path()),
            Err(AuthorityError::File(PemFileError::Exists { .. }))
        ));
        assert_eq!(
            CertificateAuthority::load(dir.path()).unwrap().cert_pem(),
            ca.cert_pem()
        );

        let issue = || ca.issue(&node("blue", "a"), &[], 1, NOW).unwrap();
        let files = issue().save(dir.path(), Existing::Keep).unwrap();
        let before = fs::read(&files.cert).unwrap();
        // Also when only one of the two is there.
        fs::remove_file(&files.key).unwrap();
        let refused = issue().save(dir.path(), Existing::Keep).unwrap_err();
        assert!(refused.to_string().contains("a.pem"), "{refused}");
        assert!(!files.key.exists());
        assert_eq!(fs::read(&files.cert).unwrap(), before);
        issue().save(dir.path(), Existing::Replace).unwrap();
        assert_ne!(fs::read(&files.cert).unwrap(), before);
    }

    #[test]
    fn nobody_takes_the_place_of_the_authority() {
        let dir = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::create("blue", 1, NOW).unwrap();
        for name in ["ca", "CA"] {
            let issued = ca.issue(&node("blue", name), &[], 1, NOW).unwrap();
            assert!(matches!(
                issued.save(dir.path(), Existing::Replace),
                Err(AuthorityError::NameTaken { .. })
            ));
        }
    }

    #[test]
    fn a_certificate_never_outlives_its_authority() {
        let ca = CertificateAuthority::create("blue", 10, NOW).unwrap();
        let late = Millis(NOW.0 + 5 * DAY_MS);
        let issued = ca.issue(&node("blue", "a"), &[], 365, late).unwrap();
        assert_eq!(issued.not_after, ca.not_after());
        assert_eq!(facts(&issued.cert_pem).not_after, ca.not_after());
        let over = ca.issue(&node("blue", "a"), &[], 1, Millis(NOW.0 + 11 * DAY_MS));
        assert!(matches!(over, Err(AuthorityError::Expired { .. })));
    }

    #[test]
    fn days_have_bounds_and_so_has_time() {
        for days in [0, DAYS_MAX + 1] {
            assert!(matches!(
                CertificateAuthority::create("blue", days, NOW),
                Err(AuthorityError::Days { .. })
            ));
        }
        for now in [Millis(0), Millis(u64::MAX)] {
            let ca = CertificateAuthority::create("blue", DAYS_MAX, now).unwrap();
            assert_eq!(facts(ca.cert_pem()).not_after, ca.not_after());
        }
    }

    #[test]
    fn hosts_are_checked() {
        let ca = CertificateAuthority::create("blue", 1, NOW).unwrap();
        let issue = |host: &str| ca.issue(&node("blue", "a"), &[host.to_owned()], 1, NOW);
        for host in ["cache-1.example", "127.0.0.1", "::1"] {
            assert!(issue(host).is_ok(), "{host}");
        }
        for host in ["", "a b", "https://x", "x:1"] {
            assert!(matches!(issue(host), Err(AuthorityError::Host { .. })));
        }
    }

    #[test]
    fn an_authority_is_loaded_only_with_its_own_key() {
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        for dir in [&dir, &other] {
            let ca = CertificateAuthority::create("blue", 1, NOW).unwrap();
            ca.save(dir.path()).unwrap();
        }
        fs::copy(other.path().join(KEY_FILE), dir.path().join(KEY_FILE)).unwrap();
        assert!(matches!(
            CertificateAuthority::load(dir.path()),
            Err(AuthorityError::KeyMismatch { .. })
        ));
        let broken = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        fs::write(dir.path().join(KEY_FILE), broken).unwrap();
        let error = CertificateAuthority::load(dir.path()).unwrap_err();
        assert!(error.to_string().contains("ca.key"), "{error}");
    }

    #[test]
    fn a_member_is_no_authority() {
        let dir = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::create("blue", 1, NOW).unwrap();
        let member = ca.issue(&node("blue", "a"), &[], 1, NOW).unwrap();
        let files = member.save(dir.path(), Existing::Keep).unwrap();
        fs::rename(files.cert, dir.path().join(CERT_FILE)).unwrap();
        fs::rename(files.key, dir.path().join(KEY_FILE)).unwrap();
        assert!(matches!(
            CertificateAuthority::load(dir.path()),
            Err(AuthorityError::NotAnAuthority { .. })
        ));
    }

    #[test]
    fn no_key_in_what_is_logged() {
        let ca = CertificateAuthority::create("blue", 1, NOW).unwrap();
        let issued = ca.issue(&node("blue", "a"), &[], 1, NOW).unwrap();
        let text = format!("{ca:?} {issued:?}");
        assert!(!text.contains("PRIVATE"), "{text}");
        assert!(text.contains("blue"), "{text}");
    }
}
