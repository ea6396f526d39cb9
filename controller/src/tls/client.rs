//! The controller's side of a connection to an agent.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::{Pair, TlsError};

/// TLS 1.3, only the cluster's own authority, the controller's certificate.
///
/// # Errors
/// When a text is not what it should be.
pub fn config(bundle: &str, leaf: &Pair) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(certificate.map_err(|_| TlsError::Read("the cluster's authority".to_owned()))?)?;
    }
    let read = |what: &str| TlsError::Read(what.to_owned());
    let chain: Vec<_> = CertificateDer::pem_slice_iter(leaf.certificate.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| read("the controller"))?;
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).map_err(|_| read("the controller's key"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Connections live for weeks: a cache of sessions would only cost memory.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
