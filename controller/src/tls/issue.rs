//! Making of keys and certificates.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::jiff::Timestamp;
use pgwarden_api::names::Names;
use pgwarden_proto::identity::{CertRole, Identity};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

use super::{Certificates, Pair, TlsError, authority::Authority, facts, later, renewal};
use crate::context::Lifetimes;

/// Common name of the replication certificate: the role that replicas log in as.
pub const REPLICATION_ROLE: &str = "pgwarden_replication";

/// A new authority.
///
/// # Errors
/// When the key or the certificate can't be made.
pub fn authority(
    namespace: &str,
    cluster: &str,
    now: Timestamp,
    validity: Duration,
) -> Result<Pair, TlsError> {
    let failed = |source| TlsError::Make { what: format!("the authority of {namespace}/{cluster}"), source };
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = params(now, validity, Timestamp::MAX);
    params.distinguished_name = name(&format!("pgwarden {namespace}/{cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// Whose certificates are made.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Names of the cluster.
    pub names: &'a Names,
}

/// The certificates of a cluster: those that are there and good stay, the others are made.
///
/// # Errors
/// When a key or a certificate can't be made.
pub fn certificates(
    subject: Subject<'_>,
    authority: &Authority,
    live: &BTreeMap<CertRole, Pair>,
    now: Timestamp,
    lifetimes: &Lifetimes,
) -> Result<Certificates, TlsError> {
    let mut leafs = BTreeMap::new();
    let mut next_change = authority.next_change(lifetimes);
    let signing = facts(&authority.signing.certificate)
        .ok_or_else(|| TlsError::Read(format!("the authority of {}", subject.names.cluster())))?;
    for role in CertRole::ALL {
        let good = live.get(&role).filter(|leaf| {
            facts(&leaf.certificate).is_some_and(|f| {
                f.authority_key == signing.subject_key
                    && now < renewal(&f, lifetimes.renew_percent)
                    // A shorter life holds for what was issued before it was asked for.
                    && f.not_after <= later(f.not_before, lifetimes.leaf + back(lifetimes.leaf))
                    && f.names == names(subject, role)
                    && KeyPair::from_pem(&leaf.key).is_ok()
            })
        });
        let leaf = match good {
            Some(leaf) => leaf.clone(),
            None => leaf(subject, role, authority, now, lifetimes.leaf, signing.not_after)?,
        };
        let made = facts(&leaf.certificate).ok_or_else(|| TlsError::Read(format!("role {role}")))?;
        next_change = next_change.min(renewal(&made, lifetimes.renew_percent));
        leafs.insert(role, leaf);
    }
    Ok(Certificates { bundle: authority.bundle(), leafs, next_change })
}

fn leaf(
    subject: Subject<'_>,
    role: CertRole,
    authority: &Authority,
    now: Timestamp,
    validity: Duration,
    end: Timestamp,
) -> Result<Pair, TlsError> {
    let cluster = subject.names.cluster();
    let failed = |source| TlsError::Make {
        what: format!("the {role} certificate of {}/{cluster}", subject.namespace),
        source,
    };
    let signing_key = KeyPair::from_pem(&authority.signing.key).map_err(failed)?;
    let issuer = Issuer::from_ca_cert_pem(&authority.signing.certificate, signing_key).map_err(failed)?;
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = params(now, validity, end);
    params.distinguished_name = name(&match role {
        CertRole::Replication => REPLICATION_ROLE.to_owned(),
        CertRole::Server => cluster.to_owned(),
        _ => format!("pgwarden {role} {cluster}"),
    });
    for text in names(subject, role) {
        let text_of = |t: String| t.try_into().map_err(failed);
        params.subject_alt_names.push(if text.starts_with("spiffe:") {
            SanType::URI(text_of(text)?)
        } else {
            SanType::DnsName(text_of(text)?)
        });
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match role {
        CertRole::Server => ExtendedKeyUsagePurpose::ServerAuth,
        _ => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// The names in a role's certificate, sorted: its identity and, for the server's, every name by which it is reached.
#[must_use]
pub fn names(subject: Subject<'_>, role: CertRole) -> Vec<String> {
    let Subject { namespace, names } = subject;
    let identity =
        Identity { namespace: namespace.to_owned(), cluster: names.cluster().to_owned(), role }.uri();
    let mut all = vec![identity];
    if role == CertRole::Server {
        for service in [names.primary_service(), names.replica_service(), names.pods_service()] {
            all.push(format!("{service}.{namespace}"));
            all.push(format!("{service}.{namespace}.svc"));
            all.push(format!("{service}.{namespace}.svc.cluster.local"));
            all.push(service);
        }
        let pods = names.pods_service();
        all.push(format!("*.{pods}.{namespace}.svc"));
        all.push(format!("*.{pods}.{namespace}.svc.cluster.local"));
        all.push("localhost".to_owned());
    }
    all.sort();
    all
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    // X.520 allows 64 characters.
    name.push(DnType::CommonName, common.chars().take(64).collect::<String>());
    name
}

/// How long before it is made a certificate is valid from: clocks of nodes differ a little.
fn back(validity: Duration) -> Duration {
    Duration::from_secs(300).min(validity / 10)
}

fn params(now: Timestamp, validity: Duration, end: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    let from = now.as_second().saturating_sub(i64::try_from(back(validity).as_secs()).unwrap_or(0));
    let to = later(now, validity).min(end).as_second();
    let date = |second: i64| {
        let base = date_time_ymd(1970, 1, 1);
        base + Duration::from_secs(u64::try_from(second.clamp(0, 253_402_300_799)).unwrap_or(0))
    };
    params.not_before = date(from);
    params.not_after = date(to);
    params
}
