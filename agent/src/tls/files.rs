//! One role's certificate: read from a mounted Secret and checked as its peers will check it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use pgwarden_api::config::certificate_hash;
use pgwarden_proto::identity::CertRole;
use rustls::{
    CertificateError, Error as RustlsError, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::identity::{IdentityError, Owner};

/// File of a Secret of type `kubernetes.io/tls`.
pub(super) const CERTIFICATE: &str = "tls.crt";
/// File of a Secret of type `kubernetes.io/tls`.
pub(super) const KEY: &str = "tls.key";
/// Whom the bearer trusts: one certificate, or several while the authority changes.
pub(super) const AUTHORITY: &str = "ca.crt";

/// The common name by which Postgres knows the replication role (`cert` in `pg_hba.conf`).
const REPLICATION_NAME: &str = "pgwarden_replication";

/// Why a Secret's content is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum RoleError {
    #[error("{file} cannot be read: {source}")]
    Read { file: PathBuf, source: std::io::Error },
    #[error("{file} is not PEM of the expected kind: {reason}")]
    Pem { file: PathBuf, reason: String },
    #[error("tls.crt and tls.key do not belong together, or the key is of an unknown kind: {0}")]
    Key(RustlsError),
    #[error("ca.crt holds no usable certificate authority: {0}")]
    Authority(String),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the certificate is for role {found}, not {wanted}")]
    Role { found: CertRole, wanted: CertRole },
    #[error("the certificate's common name is {found:?}, but Postgres expects {REPLICATION_NAME:?}")]
    CommonName { found: String },
    #[error("the certificate does not stand up to its own ca.crt: {0}")]
    Untrusted(RustlsError),
}

/// Where a role's three files are.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    pub(super) authority: PathBuf,
}

impl Place {
    /// In a mounted Secret. Kubelet swaps `..data` at once: all three files are read from the directory it pointed to.
    pub(super) fn mounted(dir: &Path) -> Self {
        let dir = fs::canonicalize(dir.join("..data")).unwrap_or_else(|_| dir.to_path_buf());
        Self { certificate: dir.join(CERTIFICATE), key: dir.join(KEY), authority: dir.join(AUTHORITY) }
    }

    /// What tells that the files were replaced; `None` for a file that is missing.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        use std::os::unix::fs::MetadataExt;
        [&self.certificate, &self.key, &self.authority].map(|file| {
            let meta = fs::metadata(file).ok()?;
            Some((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
        })
    }
}

/// See [`Place::fingerprint`].
pub(super) type Fingerprint = [Option<(u64, u64, u64, i64, i64)>; 3];

/// A certificate that may be used, with its key and whom it trusts.
pub(super) struct Loaded {
    pub(super) role: CertRole,
    pub(super) key: Arc<CertifiedKey>,
    pub(super) roots: Arc<RootCertStore>,
    /// For the role `server`: whom this server lets in.
    pub(super) clients: Arc<dyn ClientCertVerifier>,
    pub(super) certificate_pem: Vec<u8>,
    pub(super) key_pem: Vec<u8>,
    pub(super) authority_pem: Vec<u8>,
    pub(super) hash: String,
    /// Seconds since 1970.
    pub(super) not_before: i64,
    /// Seconds since 1970.
    pub(super) not_after: i64,
    server_name: ServerName<'static>,
}

impl Loaded {
    /// Reads and checks everything but the time.
    pub(super) fn read(
        place: &Place,
        role: CertRole,
        owner: &Owner,
        server_name: &ServerName<'static>,
    ) -> Result<Self, RoleError> {
        let read =
            |file: &Path| fs::read(file).map_err(|source| RoleError::Read { file: file.into(), source });
        let certificate_pem = read(&place.certificate)?;
        let key_pem = read(&place.key)?;
        let authority_pem = read(&place.authority)?;
        let pem = |file: &Path, reason: String| RoleError::Pem { file: file.into(), reason };

        let chain = certificates(&certificate_pem).map_err(|e| pem(&place.certificate, e))?;
        let private = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|e| pem(&place.key, e.to_string()))?;
        let mut roots = RootCertStore::empty();
        for authority in certificates(&authority_pem).map_err(|e| pem(&place.authority, e))? {
            roots.add(authority).map_err(|e| RoleError::Authority(e.to_string()))?;
        }
        let roots = Arc::new(roots);

        let provider = super::provider();
        let leaf = chain.first().ok_or_else(|| pem(&place.certificate, "it is empty".into()))?.clone();
        let key = CertifiedKey::from_der(chain, private, &provider).map_err(RoleError::Key)?;
        let found = owner.role_of(&leaf)?;
        if found != role {
            return Err(RoleError::Role { found, wanted: role });
        }
        let (_, parsed) = X509Certificate::from_der(&leaf)
            .map_err(|e| IdentityError::Unreadable(e.to_string()))
            .map_err(RoleError::Identity)?;
        let validity = parsed.validity();
        let (not_before, not_after) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        if role == CertRole::Replication {
            let found = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
            if found != Some(REPLICATION_NAME) {
                return Err(RoleError::CommonName { found: found.unwrap_or_default().into() });
            }
        }
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider)
            .build()
            .map_err(|e| RoleError::Authority(e.to_string()))?;

        let loaded = Self {
            role,
            key: Arc::new(key),
            roots,
            clients,
            hash: certificate_hash(
                &String::from_utf8_lossy(&certificate_pem),
                &String::from_utf8_lossy(&authority_pem),
            ),
            certificate_pem,
            key_pem,
            authority_pem,
            not_before,
            not_after,
            server_name: server_name.clone(),
        };
        match loaded.verify(UnixTime::now()) {
            Err(error) if !is_time(&error) => Err(RoleError::Untrusted(error)),
            _ => Ok(loaded),
        }
    }

    /// Whether those that trust our authority accept this certificate at that time: as a server or as a client, by its role.
    pub(super) fn verify(&self, at: UnixTime) -> Result<(), RustlsError> {
        let no_certificate = || RustlsError::NoCertificatesPresented;
        let (leaf, rest) = self.key.cert.split_first().ok_or_else(no_certificate)?;
        if self.role == CertRole::Server {
            let roots = Arc::clone(&self.roots);
            WebPkiServerVerifier::builder_with_provider(roots, super::provider())
                .build()
                .map_err(|e| RustlsError::General(e.to_string()))?
                .verify_server_cert(leaf, rest, &self.server_name, &[], at)
                .map(drop)
        } else {
            self.clients.verify_client_cert(leaf, rest, at).map(drop)
        }
    }

    /// When to warn: a sixth of its life before the end. The authority renews well before that.
    pub(super) fn margin(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.not_after - self.not_before).unwrap_or(0) / 6)
    }
}

/// Refused because of the clock alone.
pub(super) fn is_time(error: &RustlsError) -> bool {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    matches!(
        error,
        RustlsError::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }
        )
    )
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    if all.is_empty() {
        return Err("it holds no certificate".into());
    }
    Ok(all)
}
