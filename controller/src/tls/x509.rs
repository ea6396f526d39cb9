//! Reading of certificates.

use k8s_openapi::jiff::Timestamp;
use x509_parser::{extensions::ParsedExtension, pem::Pem, prelude::GeneralName};

/// What is read of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Valid from.
    pub not_before: Timestamp,
    /// Valid to.
    pub not_after: Timestamp,
    /// Identifier of its own key.
    pub subject_key: Vec<u8>,
    /// Identifier of its issuer's key.
    pub authority_key: Vec<u8>,
    /// DNS names and URIs, sorted.
    pub names: Vec<String>,
    /// Whether it is an authority's.
    pub is_ca: bool,
}

/// Reads the first certificate of a PEM text.
#[must_use]
pub fn facts(pem: &str) -> Option<CertificateFacts> {
    let pem = Pem::iter_from_buffer(pem.as_bytes()).next()?.ok()?;
    let certificate = pem.parse_x509().ok()?;
    let validity = certificate.validity();
    let mut found = CertificateFacts {
        not_before: Timestamp::from_second(validity.not_before.timestamp()).ok()?,
        not_after: Timestamp::from_second(validity.not_after.timestamp()).ok()?,
        subject_key: Vec::new(),
        authority_key: Vec::new(),
        names: Vec::new(),
        is_ca: certificate.is_ca(),
    };
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => found.subject_key = id.0.to_vec(),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                found.authority_key = id.key_identifier.as_ref().map(|k| k.0.to_vec()).unwrap_or_default();
            }
            ParsedExtension::SubjectAlternativeName(names) => {
                found.names = names
                    .general_names
                    .iter()
                    .filter_map(|name| match name {
                        GeneralName::DNSName(text) | GeneralName::URI(text) => Some((*text).to_owned()),
                        _ => None,
                    })
                    .collect();
                found.names.sort();
            }
            _ => {}
        }
    }
    Some(found)
}

/// The certificates of a bundle, one PEM text each; what is none is left out.
#[must_use]
pub fn split(bundle: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let mut found = Vec::new();
    let mut rest = bundle;
    while let Some(start) = rest.find("-----BEGIN CERTIFICATE-----") {
        let Some(end) = rest[start..].find(END).map(|at| start + at + END.len()) else { break };
        let one = format!("{}\n", &rest[start..end]);
        if facts(&one).is_some() && !found.contains(&one) {
            found.push(one);
        }
        rest = &rest[end..];
    }
    found
}
