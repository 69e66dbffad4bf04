//! Certificates that their authority has taken back: revocation lists (RFC 5280, section 5).
//!
//! A list is believed when one of the authorities that we trust has signed it. It counts on after
//! the moment at which its successor was due: what was taken back stays so.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::authority::{AuthorityError, CertificateAuthority, last_moment};
use super::certificate::millis;
use super::identity::parse_certificate;
use super::pem_files::{self, Existing, PemFileError, Readers};
use crate::model::Millis;

/// All revocations of the lists in one file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    /// Issuer's distinguished name in DER, and serial number.
    revoked: BTreeSet<(Vec<u8>, Vec<u8>)>,
    /// Lists that none of our authorities has signed: they have no effect.
    foreign: usize,
    /// When the first of the lists should have been followed by another.
    next_update: Option<Millis>,
}

impl Revocations {
    /// Reads a file of one or more lists, PEM. `authorities` are those that may have signed them.
    pub(super) fn read(
        path: &Path,
        authorities: &[CertificateDer<'static>],
    ) -> Result<Self, PemFileError> {
        Self::parse(&pem_files::read(path)?, path, authorities)
    }

    fn parse(
        pem: &[u8],
        path: &Path,
        authorities: &[CertificateDer<'static>],
    ) -> Result<Self, PemFileError> {
        let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
        let lists = lists.map_err(|reason| PemFileError::NotPem {
            path: path.to_owned(),
            reason,
        })?;
        if lists.is_empty() {
            return Err(PemFileError::NoRevocationList {
                path: path.to_owned(),
            });
        }
        let mut all = Self::default();
        for der in &lists {
            let Ok((_, list)) = CertificateRevocationList::from_der(der) else {
                return Err(PemFileError::BrokenRevocationList {
                    path: path.to_owned(),
                });
            };
            all.add(&list, authorities);
        }
        Ok(all)
    }

    fn add(&mut self, list: &CertificateRevocationList<'_>, authorities: &[CertificateDer<'_>]) {
        let has_signed = |der: &CertificateDer<'_>| {
            parse_certificate(der).is_ok_and(|authority| {
                authority.subject() == list.issuer()
                    && list.verify_signature(authority.public_key()).is_ok()
            })
        };
        if !authorities.iter().any(has_signed) {
            self.foreign += 1;
            return;
        }
        let issuer = list.issuer().as_raw();
        for revoked in list.iter_revoked_certificates() {
            let serial = revoked.serial().to_bytes_be();
            self.revoked.insert((issuer.to_vec(), serial));
        }
        if let Some(next) = list.next_update() {
            let next = millis(next);
            self.next_update = Some(self.next_update.map_or(next, |known| known.min(next)));
        }
    }

    /// Whether a certificate was taken back. One that cannot be read was not given out either.
    pub(super) fn covers(&self, der: &[u8]) -> bool {
        if self.revoked.is_empty() {
            return false;
        }
        parse_certificate(der).map_or(true, |certificate| {
            let issuer = certificate.issuer().as_raw().to_vec();
            let serial = certificate.serial.to_bytes_be();
            self.revoked.contains(&(issuer, serial))
        })
    }

    /// How many certificates were taken back.
    #[must_use]
    pub fn len(&self) -> usize {
        self.revoked.len()
    }

    /// Whether none was taken back.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.revoked.is_empty()
    }

    /// How many of the lists none of our authorities has signed.
    #[must_use]
    pub const fn foreign(&self) -> usize {
        self.foreign
    }

    /// When the first of the lists should be followed by another.
    #[must_use]
    pub const fn next_update(&self) -> Option<Millis> {
        self.next_update
    }
}

impl CertificateAuthority {
    /// Takes certificates back: adds them to the revocation list in `dir`, which is made when it
    /// is missing, and says where that is. The next list is due after `days`.
    pub fn revoke(
        &self,
        certificates: &[&[u8]],
        dir: &Path,
        days: u32,
        now: Millis,
    ) -> Result<PathBuf, AuthorityError> {
        let path = dir.join(LIST_FILE);
        let own = pem_files::certificates(self.cert_pem().as_bytes(), &path)?;
        let authority = parse_certificate(&own[0])?;
        let mut list = Listed::read(&path, &own[0])?;
        for certificate in certificates {
            let certificate = parse_certificate(certificate)?;
            let signed = certificate.verify_signature(Some(authority.public_key()));
            if signed.is_err() {
                return Err(AuthorityError::NotIssuedHere);
            }
            let serial = certificate.serial.to_bytes_be();
            if !list.revoked.iter().any(|(listed, _)| *listed == serial) {
                list.revoked.push((serial, now.0 / 1000));
            }
        }
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let at = |seconds: u64| epoch + Duration::from_secs(seconds);
        let params = CertificateRevocationListParams {
            this_update: at(now.0 / 1000),
            next_update: at(last_moment(days, now)?.0 / 1000),
            crl_number: SerialNumber::from(list.number + 1),
            issuing_distribution_point: None,
            revoked_certs: list
                .revoked
                .into_iter()
                .map(|(serial, since)| RevokedCertParams {
                    serial_number: SerialNumber::from(serial),
                    revocation_time: at(since),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let pem = params.signed_by(self.issuer())?.pem()?;
        pem_files::write(&path, &pem, Readers::Anyone, Existing::Replace)?;
        Ok(path)
    }
}

/// What an authority's own list holds.
#[derive(Default)]
struct Listed {
    number: u64,
    /// Serial number, and since when, in seconds.
    revoked: Vec<(Vec<u8>, u64)>,
}

impl Listed {
    /// Reads a list of this authority; an empty one when there is none yet.
    fn read(path: &Path, authority: &[u8]) -> Result<Self, AuthorityError> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let broken = || PemFileError::BrokenRevocationList {
            path: path.to_owned(),
        };
        let pem = pem_files::read(path)?;
        let der = CertificateRevocationListDer::from_pem_slice(&pem).map_err(|_parser| broken())?;
        let (_, list) = CertificateRevocationList::from_der(&der).map_err(|_parser| broken())?;
        let authority = parse_certificate(authority)?;
        if list.verify_signature(authority.public_key()).is_err() {
            return Err(AuthorityError::OtherList {
                path: path.to_owned(),
            });
        }
        let number = list.crl_number().map(|number| number.to_u64_digits());
        let revoked = list.iter_revoked_certificates().map(|revoked| {
            let since = u64::try_from(revoked.revocation_date.timestamp()).unwrap_or(0);
            (revoked.serial().to_bytes_be(), since)
        });
        Ok(Self {
            number: number.map_or(0, |digits| digits.first().copied().unwrap_or(0)),
            revoked: revoked.collect(),
        })
    }
}

/// The file of an authority's list, beside its certificate.
const LIST_FILE: &str = "ca.crl";

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_800_000_000_000);

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    #[test]
    fn what_was_taken_back_is_known_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::create("blue", 3650, NOW).unwrap();
        let other = CertificateAuthority::create("blue", 3650, NOW).unwrap();
        let issue = |name: &str| {
            let identity = format!("quorate://blue/node/{name}").parse().unwrap();
            der(&ca.issue(&identity, &[], 365, NOW).unwrap().cert_pem)
        };
        let (a, b, c) = (issue("a"), issue("b"), issue("c"));
        let path = ca.revoke(&[&a], dir.path(), 30, NOW).unwrap();
        ca.revoke(&[&b], dir.path(), 30, NOW).unwrap();
        // Twice is once.
        ca.revoke(&[&b], dir.path(), 30, NOW).unwrap();
        let list = Revocations::read(&path, &[der(ca.cert_pem())]).unwrap();
        assert_eq!((list.len(), list.foreign()), (2, 0));
        assert_eq!(
            [&a, &b, &c].map(|der| list.covers(der)),
            [true, true, false]
        );
        let due = NOW.0 + 30 * 24 * 60 * 60 * 1000;
        assert_eq!(list.next_update(), Some(Millis(due)));
        // An authority of the same name has not signed it.
        let list = Revocations::read(&path, &[der(other.cert_pem())]).unwrap();
        assert_eq!((list.len(), list.foreign()), (0, 1));
        assert!(!list.covers(&a));
        let refused = other.revoke(&[], dir.path(), 30, NOW).unwrap_err();
        assert!(
            matches!(refused, AuthorityError::OtherList { .. }),
            "{refused}"
        );
        let elsewhere = tempfile::tempdir().unwrap();
        let refused = other.revoke(&[&a], elsewhere.path(), 30, NOW).unwrap_err();
        assert!(
            matches!(refused, AuthorityError::NotIssuedHere),
            "{refused}"
        );
    }

    #[test]
    fn a_file_without_a_list_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::create("blue", 3650, NOW).unwrap();
        let path = dir.path().join("ca.crl");
        std::fs::write(&path, ca.cert_pem()).unwrap();
        let refused = Revocations::read(&path, &[der(ca.cert_pem())]).unwrap_err();
        assert!(refused.to_string().contains("X509 CRL"), "{refused}");
    }
}
