//! Certificates: one authority a cluster, one leaf a role, renewed while everything runs.

pub mod authority;
pub mod client;
pub mod issue;
mod x509;

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::jiff::Timestamp;
use pgwarden_api::config::certificate_hash;
use pgwarden_proto::identity::CertRole;

pub use self::x509::{CertificateFacts, facts, split};

/// What is wrong with a certificate, a key, or the making of one.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Making a key or a certificate failed.
    #[error("failed to make {what}: {source}")]
    Make {
        /// What.
        what: String,
        /// Cause.
        source: rcgen::Error,
    },
    /// A certificate can't be read.
    #[error("failed to read the certificate of {0}")]
    Read(String),
    /// The client configuration is refused.
    #[error("failed to use the controller's certificate: {0}")]
    Client(#[from] rustls::Error),
}

/// A certificate and its key, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// Certificate.
    pub certificate: String,
    /// Private key.
    pub key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// What a cluster's Secrets hold.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// Certificates of the authorities that are trusted.
    pub bundle: String,
    /// By role.
    pub leafs: BTreeMap<CertRole, Pair>,
    /// When the next of them must be renewed.
    pub next_change: Timestamp,
}

impl Certificates {
    /// The hash by which an agent says that it uses them (`InstanceStatus.certificates`).
    #[must_use]
    pub fn hash(&self, role: CertRole) -> Option<String> {
        let leaf = self.leafs.get(&role)?;
        Some(certificate_hash(&leaf.certificate, &self.bundle))
    }
}

/// When a certificate is renewed: after a part of its life.
#[must_use]
pub fn renewal(facts: &CertificateFacts, percent: u8) -> Timestamp {
    let life = facts.not_after.as_second().saturating_sub(facts.not_before.as_second());
    let at = facts.not_before.as_second().saturating_add(life.saturating_mul(i64::from(percent)) / 100);
    Timestamp::from_second(at).unwrap_or(facts.not_after)
}

/// `time` later, or the end of time.
#[must_use]
pub fn later(now: Timestamp, time: Duration) -> Timestamp {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|s| Timestamp::from_second(now.as_second().saturating_add(s)).ok())
        .unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
