//! Whom a certificate is for.

use pgwarden_proto::identity::{CertRole, Identity};
use rustls::pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{FromDer, X509Error},
};

/// A certificate, valid as such, that is not one of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not X.509.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// Issued for something else.
    #[error("the certificate names no cluster and role (a SAN URI spiffe://pgwarden/…)")]
    Missing,
    /// Could be read in two ways.
    #[error("the certificate names several clusters or roles: {0} and {1}")]
    Ambiguous(String, String),
    /// Another cluster's.
    #[error("the certificate is for cluster {found}, this is {wanted}")]
    Foreign {
        /// NAMESPACE/NAME in the certificate.
        found: String,
        /// NAMESPACE/NAME of ours.
        wanted: String,
    },
}

/// The one identity in a certificate.
pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<Identity, IdentityError> {
    let unreadable = |e: &dyn std::fmt::Display| IdentityError::Unreadable(e.to_string());
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|e| unreadable(&e))?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|e: X509Error| unreadable(&e))?
        .ok_or(IdentityError::Missing)?;
    let mut ours = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Identity::parse(uri),
        _ => None,
    });
    let first = ours.next().ok_or(IdentityError::Missing)?;
    match ours.next() {
        Some(second) => Err(IdentityError::Ambiguous(first.uri(), second.uri())),
        None => Ok(first),
    }
}

/// The end of a certificate, in seconds since 1970.
pub(crate) fn not_after(certificate: &CertificateDer<'_>) -> Option<u64> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    u64::try_from(certificate.validity().not_after.timestamp()).ok()
}

/// The cluster that this agent belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub cluster: String,
}

impl Owner {
    /// The role of a certificate of this cluster.
    pub(crate) fn role_of(&self, certificate: &CertificateDer<'_>) -> Result<CertRole, IdentityError> {
        let identity = of(certificate)?;
        if identity.namespace == self.namespace && identity.cluster == self.cluster {
            return Ok(identity.role);
        }
        Err(IdentityError::Foreign {
            found: format!("{}/{}", identity.namespace, identity.cluster),
            wanted: format!("{}/{}", self.namespace, self.cluster),
        })
    }
}
