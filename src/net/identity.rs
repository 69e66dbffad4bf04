//! Who a certificate speaks for. Knows nothing of keys, chains, files or sockets.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::model::{NODE_NAME_BYTES_MAX, NodeId};

/// What the holder of a certificate may do in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// A member: speaks the peer protocol.
    Node,
    /// Reads and writes keys.
    Client,
    /// Looks after a cluster.
    Admin,
}

impl Role {
    /// The word for it in a certificate.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Client => "client",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    fn from_str(word: &str) -> Result<Self, IdentityError> {
        match word {
            "node" => Ok(Self::Node),
            "client" => Ok(Self::Client),
            "admin" => Ok(Self::Admin),
            _ => Err(IdentityError::Role {
                word: word.to_owned(),
            }),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The holder of a certificate: written `quorate://CLUSTER/node/NAME` (or `client`, `admin`) as a
/// URI among the certificate's subject alternative names.
///
/// Cluster and name follow the rules of [`NodeId`], so neither can hold a `/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    cluster: String,
    role: Role,
    name: NodeId,
}

/// Why a certificate or a text names nobody.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// The peer showed no certificate.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// Not an X.509 certificate.
    #[error("the certificate cannot be read: {reason}")]
    Malformed {
        /// What the parser said.
        reason: String,
    },
    /// None of the alternative names is ours.
    #[error("the certificate carries no {SCHEME} URI, so it names no member of a cluster")]
    NoUri,
    /// More than one: whom it speaks for would depend on who reads it.
    #[error("the certificate carries {count} {SCHEME} URIs, it must carry exactly one")]
    ManyUris {
        /// How many.
        count: usize,
    },
    /// Not of the form CLUSTER/ROLE/NAME.
    #[error("`{uri}` is not of the form {SCHEME}CLUSTER/node|client|admin/NAME")]
    Form {
        /// The text as given.
        uri: String,
    },
    /// A cluster name that breaks the rules.
    #[error("cluster name `{name}` must have 1 to {NODE_NAME_BYTES_MAX} of a-z A-Z 0-9 . _ -")]
    Cluster {
        /// The name as given.
        name: String,
    },
    /// A role that does not exist.
    #[error("role `{word}` is none of node, client, admin")]
    Role {
        /// The word as given.
        word: String,
    },
    /// A holder's name that breaks the rules.
    #[error("name `{name}` must have 1 to {NODE_NAME_BYTES_MAX} of a-z A-Z 0-9 . _ -")]
    Name {
        /// The name as given.
        name: String,
    },
}

impl Identity {
    /// Checks the cluster's name and makes an identity in it.
    pub fn new(cluster: &str, role: Role, name: NodeId) -> Result<Self, IdentityError> {
        check_cluster(cluster)?;
        Ok(Self {
            cluster: cluster.to_owned(),
            role,
            name,
        })
    }

    /// Reads it from an end-entity certificate in DER.
    ///
    /// Checks no signature: only for certificates that TLS has verified, or to show them.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        Self::from_x509(&parse_certificate(der)?)
    }

    pub(super) fn from_x509(certificate: &X509Certificate<'_>) -> Result<Self, IdentityError> {
        let uris = quorate_uris(certificate)?;
        match uris.as_slice() {
            [] => Err(IdentityError::NoUri),
            [uri] => uri.parse(),
            many => Err(IdentityError::ManyUris { count: many.len() }),
        }
    }

    /// The cluster it belongs to.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// What it may do there.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// Its name, unique among the holders of its role in its cluster.
    #[must_use]
    pub const fn name(&self) -> &NodeId {
        &self.name
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}/{}", self.cluster, self.role, self.name)
    }
}

/// Law: `identity.to_string().parse() == Ok(identity)`.
impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let form = || IdentityError::Form {
            uri: uri.to_owned(),
        };
        let rest = uri.strip_prefix(SCHEME).ok_or_else(form)?;
        let (cluster, rest) = rest.split_once('/').ok_or_else(form)?;
        let (role, name) = rest.split_once('/').ok_or_else(form)?;
        let named: Result<NodeId, _> = name.parse();
        let name = named.map_err(|_rule| IdentityError::Name {
            name: name.to_owned(),
        })?;
        Self::new(cluster, role.parse()?, name)
    }
}

/// The rules for the name of a cluster: those of a node's.
pub(super) fn check_cluster(name: &str) -> Result<(), IdentityError> {
    match name.parse::<NodeId>() {
        Ok(_) => Ok(()),
        Err(_rule) => Err(IdentityError::Cluster {
            name: name.to_owned(),
        }),
    }
}

pub(super) fn parse_certificate(der: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|error| malformed(&error.into()))?;
    if rest.is_empty() {
        Ok(certificate)
    } else {
        Err(malformed(&X509Error::InvalidCertificate))
    }
}

/// The alternative names that begin as ours do, well formed or not.
pub(super) fn quorate_uris<'a>(
    certificate: &'a X509Certificate<'_>,
) -> Result<Vec<&'a str>, IdentityError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| malformed(&error))?;
    let uris = names.iter().flat_map(|names| &names.value.general_names);
    Ok(uris
        .filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
            _ => None,
        })
        .collect())
}

fn malformed(error: &X509Error) -> IdentityError {
    IdentityError::Malformed {
        reason: error.to_string(),
    }
}

pub(super) const SCHEME: &str = "quorate://";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn certificate(uris: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let uris = uris.iter().map(|&uri| uri.try_into().map(SanType::URI));
        params
            .subject_alt_names
            .extend(uris.collect::<Result<Vec<_>, _>>().unwrap());
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    proptest! {
        #[test]
        fn text_and_back_is_the_same_identity(
            cluster in "[a-zA-Z0-9._-]{1,63}",
            role in prop::sample::select(vec![Role::Node, Role::Client, Role::Admin]),
            name in "[a-zA-Z0-9._-]{1,63}",
        ) {
            let identity = Identity::new(&cluster, role, name.parse().unwrap()).unwrap();
            prop_assert_eq!(identity.to_string().parse(), Ok(identity));
        }

        #[test]
        fn any_text_gives_an_answer(text in "(quorate://)?.{0,80}") {
            if let Ok(identity) = text.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), text);
            }
        }

        #[test]
        fn any_bytes_give_an_answer(der in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Identity::from_certificate(&der).is_err());
        }
    }

    #[test]
    fn the_text_is_a_contract() {
        let identity: Identity = "quorate://blue/node/node-0".parse().unwrap();
        assert_eq!(identity.cluster(), "blue");
        assert_eq!(identity.role(), Role::Node);
        assert_eq!(identity.name().as_str(), "node-0");
    }

    #[test]
    fn what_is_wrong_with_a_text_is_told() {
        let wrong = |uri: &str| uri.parse::<Identity>().unwrap_err();
        for uri in [
            "",
            "quorate://",
            "quorate://blue",
            "quorate://blue/node",
            "https://blue/node/x",
        ] {
            assert!(matches!(wrong(uri), IdentityError::Form { .. }), "{uri}");
        }
        assert!(matches!(
            wrong("quorate:///node/x"),
            IdentityError::Cluster { .. }
        ));
        assert!(matches!(
            wrong("quorate://blue/king/x"),
            IdentityError::Role { .. }
        ));
        assert!(matches!(
            wrong("quorate://blue/Node/x"),
            IdentityError::Role { .. }
        ));
        for uri in ["quorate://blue/node/", "quorate://blue/node/x/y"] {
            assert!(matches!(wrong(uri), IdentityError::Name { .. }), "{uri}");
        }
    }

    #[test]
    fn a_certificate_names_exactly_one_holder() {
        let ours = "quorate://blue/client/app";
        let found = Identity::from_certificate(&certificate(&["https://other.example/", ours]));
        assert_eq!(found, ours.parse());
        assert_eq!(
            Identity::from_certificate(&certificate(&["https://other.example/"])),
            Err(IdentityError::NoUri)
        );
        assert_eq!(
            Identity::from_certificate(&certificate(&[ours, "quorate://blue/node/x"])),
            Err(IdentityError::ManyUris { count: 2 })
        );
        assert!(matches!(
            Identity::from_certificate(&certificate(&["quorate://blue/king/x"])),
            Err(IdentityError::Role { .. })
        ));
    }

    #[test]
    fn bytes_after_a_certificate_are_refused() {
        let mut der = certificate(&["quorate://blue/client/app"]);
        der.push(0);
        assert!(matches!(
            Identity::from_certificate(&der),
            Err(IdentityError::Malformed { .. })
        ));
    }
}
