//! A certificate authority and mounted Secrets for tests, of this crate and of the processes that run it.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "test support")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use pgwarden_proto::identity::{CertRole, Identity};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

/// A directory that goes with the value.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// A fresh one.
    #[must_use]
    pub fn new(what: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pgwarden-{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// `tls.crt`.
    pub certificate: String,
    /// `tls.key`.
    pub key: String,
}

/// The authority of one cluster.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    namespace: String,
    cluster: String,
}

impl Authority {
    /// A fresh authority; two of one cluster have the same name and different keys.
    #[must_use]
    pub fn new(namespace: &str, cluster: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("{namespace}/{cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer, namespace: namespace.into(), cluster: cluster.into() }
    }

    /// `ca.crt`.
    #[must_use]
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A leaf as the controller issues it.
    #[must_use]
    pub fn issue(&self, role: CertRole) -> Leaf {
        self.issue_with(role, |_| {})
    }

    /// A leaf that is valid from `from` to `to`, in seconds from now.
    #[must_use]
    pub fn issue_for(&self, role: CertRole, from: i64, to: i64) -> Leaf {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let at = |offset: i64| {
            let seconds = now.as_secs().checked_add_signed(offset).unwrap();
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
        };
        self.issue_with(role, |params| {
            params.not_before = at(from);
            params.not_after = at(to);
        })
    }

    /// A leaf with changes.
    #[must_use]
    pub fn issue_with(&self, role: CertRole, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let (namespace, cluster) = (&self.namespace, &self.cluster);
        let names = match role {
            CertRole::Server => vec![
                cluster.clone(),
                format!("{cluster}-pods.{namespace}.svc"),
                format!("*.{cluster}-pods.{namespace}.svc"),
                "localhost".into(),
            ],
            _ => Vec::new(),
        };
        let mut params = CertificateParams::new(names).unwrap();
        let identity = Identity { namespace: namespace.clone(), cluster: cluster.clone(), role };
        params.subject_alt_names.push(SanType::URI(identity.uri().try_into().unwrap()));
        let name = match role {
            CertRole::Replication => "pgwarden_replication".into(),
            _ => format!("{cluster} {role}"),
        };
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match role {
            CertRole::Server => ExtendedKeyUsagePurpose::ServerAuth,
            _ => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Leaf { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// Mounts fresh leaves of the roles that an agent has, trusting this authority.
    pub fn mount(&self, cert_dir: &Path) {
        for role in [CertRole::Server, CertRole::Replication, CertRole::Peer] {
            mount(cert_dir, role, &self.issue(role), &self.pem());
        }
    }
}

/// Mounts a Secret the way kubelet does: a new directory, then one swap of `..data`.
pub fn mount(cert_dir: &Path, role: CertRole, leaf: &Leaf, authority: &str) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let dir = cert_dir.join(role.as_str());
    let fresh = format!("..{}", NEXT.fetch_add(1, Relaxed));
    fs::create_dir_all(dir.join(&fresh)).unwrap();
    for (name, text) in
        [("tls.crt", leaf.certificate.as_str()), ("tls.key", &leaf.key), ("ca.crt", authority)]
    {
        fs::write(dir.join(&fresh).join(name), text).unwrap();
        let _ = symlink(format!("..data/{name}"), dir.join(name));
    }
    let old = fs::read_link(dir.join("..data")).ok();
    symlink(&fresh, dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    if let Some(old) = old {
        fs::remove_dir_all(dir.join(old)).unwrap();
    }
}
