//! What a certificate says of itself. Checks no signature and reads no clock.

use std::fmt::Write as _;
use std::path::Path;

use ring::digest::{SHA256, digest};
use x509_parser::certificate::X509Certificate;
use x509_parser::time::ASN1Time;

use super::identity::{
    Identity, IdentityError, SCHEME, check_cluster, parse_certificate, quorate_uris,
};
use super::pem_files::{self, PemFileError};
use crate::model::Millis;

/// The holder of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// An authority, and the cluster it was made for; `None` for one that was made elsewhere.
    Authority {
        /// The cluster's name.
        cluster: Option<String>,
    },
    /// A member of a cluster.
    Member(Identity),
}

/// The readable part of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Whom it speaks for.
    pub holder: Holder,
    /// The distinguished name of who signed it.
    pub issuer: String,
    /// The first moment it is valid at.
    pub not_before: Millis,
    /// The last moment it is valid at.
    pub not_after: Millis,
    /// SHA-256 of the DER in the form of `openssl x509 -fingerprint -sha256`: `AB:CD:...`.
    pub fingerprint: String,
}

impl CertificateFacts {
    /// Reads one certificate in DER.
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        let certificate = parse_certificate(der)?;
        let validity = certificate.validity();
        Ok(Self {
            holder: holder(&certificate)?,
            issuer: certificate.issuer().to_string(),
            not_before: millis(validity.not_before),
            not_after: millis(validity.not_after),
            fingerprint: fingerprint(der),
        })
    }

    /// Reads all certificates of a PEM file, in their order: at least one.
    pub fn read_file(path: &Path) -> Result<Vec<Self>, PemFileError> {
        let pem = pem_files::read(path)?;
        let certificates = pem_files::certificates(&pem, path)?;
        certificates
            .iter()
            .map(|der| Self::from_der(der).map_err(PemFileError::certificate(path)))
            .collect()
    }

    /// Whole days from `now` to the end, rounded down: negative once it is over.
    #[must_use]
    pub fn days_left(&self, now: Millis) -> i64 {
        days_left(self.not_after, now)
    }
}

/// Whole days from `now` to an end, rounded down: negative once it is over.
#[must_use]
pub fn days_left(not_after: Millis, now: Millis) -> i64 {
    // Both fit: a certificate ends in the year 9999 at the latest.
    let end = i64::try_from(not_after.0).unwrap_or(i64::MAX);
    let now = i64::try_from(now.0).unwrap_or(i64::MAX);
    end.saturating_sub(now).div_euclid(DAY_MS)
}

/// When any certificate ends, ours or not; `None` for what is none.
#[must_use]
pub fn certificate_end(der: &[u8]) -> Option<Millis> {
    let certificate = parse_certificate(der).ok()?;
    Some(millis(certificate.validity().not_after))
}

/// A moment as `2026-11-20T22:26:00Z`.
#[must_use]
pub fn utc_text(moment: Millis) -> String {
    let seconds = i64::try_from(moment.0 / 1000).unwrap_or(i64::MAX);
    let Ok(time) = ASN1Time::from_timestamp(seconds) else {
        return "after the year 9999".to_owned();
    };
    let time = time.to_datetime();
    let (hour, minute, second) = time.to_hms();
    format!("{}T{hour:02}:{minute:02}:{second:02}Z", time.date())
}

fn holder(certificate: &X509Certificate<'_>) -> Result<Holder, IdentityError> {
    if !certificate.is_ca() {
        return Identity::from_x509(certificate).map(Holder::Member);
    }
    let uris = quorate_uris(certificate)?;
    let subject = certificate.subject();
    let cluster = uris
        .iter()
        .find_map(|uri| uri.strip_prefix(SCHEME))
        .or_else(|| subject.iter_common_name().find_map(|cn| cn.as_str().ok()))
        .filter(|name| check_cluster(name).is_ok());
    Ok(Holder::Authority {
        cluster: cluster.map(str::to_owned),
    })
}

pub(super) fn millis(time: ASN1Time) -> Millis {
    // Before 1970 reads as 1970: over long ago either way.
    Millis(
        u64::try_from(time.timestamp())
            .unwrap_or(0)
            .saturating_mul(1000),
    )
}

fn fingerprint(der: &[u8]) -> String {
    let mut text = String::new();
    for (i, byte) in digest(&SHA256, der).as_ref().iter().enumerate() {
        let colon = if i == 0 { "" } else { ":" };
        // Writing to a String cannot fail.
        write!(text, "{colon}{byte:02X}").unwrap_or_default();
    }
    text
}

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_in_utc() {
        assert_eq!(utc_text(Millis(0)), "1970-01-01T00:00:00Z");
        assert_eq!(utc_text(Millis(1_795_213_565_999)), "2026-11-20T22:26:05Z");
        assert_eq!(utc_text(Millis(u64::MAX)), "after the year 9999");
    }

    #[test]
    fn days_left_round_down_and_go_below_zero() {
        let facts = CertificateFacts {
            holder: Holder::Authority { cluster: None },
            issuer: String::new(),
            not_before: Millis(0),
            not_after: Millis(172_800_000),
            fingerprint: String::new(),
        };
        assert_eq!(facts.days_left(Millis(0)), 2);
        assert_eq!(facts.days_left(Millis(1)), 1);
        assert_eq!(facts.days_left(Millis(172_800_000)), 0);
        assert_eq!(facts.days_left(Millis(172_800_001)), -1);
    }
}
