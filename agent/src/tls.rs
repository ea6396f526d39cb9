//! Certificates of this agent: read from the mounted Secrets, followed when they are renewed, copied to where Postgres reads them.
//!
//! One Secret a role (`server`, `replication`, `peer`), each replaced whole by kubelet. What is found is checked as its peers will check
//! it; a broken Secret changes nothing but the status: the certificate loaded before stays in use. Connections pick the certificate up
//! when they are made, so a renewal breaks none that stands.

mod files;
mod identity;
mod publish;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, atomic::AtomicU64},
    time::Duration,
};

use pgwarden_api::names::Names;
use pgwarden_proto::{identity::CertRole, v1::Problem};
use rustls::{
    ClientConfig, Error as RustlsError, ServerConfig,
    client::Resumption,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{NoServerSessionStorage, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
    version::TLS13,
};
use tokio::sync::watch;

use self::files::{Fingerprint, Loaded, Place};
pub(crate) use self::identity::not_after;
pub use self::identity::{IdentityError, Owner};
use crate::{
    bus::{Bus, Request},
    config::Config,
};

/// How often the mounted Secrets are looked at: nine stat calls.
const POLL: Duration = Duration::from_secs(10);
/// The roles of which an agent has a certificate.
const ROLES: [CertRole; 3] = [CertRole::Server, CertRole::Replication, CertRole::Peer];

/// The certificates in use; cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    owner: Owner,
    names: Names,
    server_name: ServerName<'static>,
    cert_dir: PathBuf,
    tls_dir: PathBuf,
    /// What has been read so far; held by one [`Store::refresh`] at a time.
    slots: Mutex<Slots>,
    current: watch::Sender<Arc<Current>>,
    counters: Counters,
}

/// What TLS and authorisation saw since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Handshakes that failed: no certificate, a stranger's, an old protocol, or a connection that said nothing.
    pub handshakes_failed: AtomicU64,
    /// Calls that were denied: another cluster's certificate, or a role that may not call the method.
    pub calls_denied: AtomicU64,
    /// Open connections.
    pub connections: AtomicU64,
}

#[derive(Default)]
struct Slots {
    roles: BTreeMap<CertRole, Slot>,
    /// Why Postgres' files could not be written.
    unpublished: Option<String>,
    /// Postgres' files changed and the driver has not been told.
    unsignalled: bool,
}

#[derive(Default)]
struct Slot {
    seen: Option<Fingerprint>,
    loaded: Option<Arc<Loaded>>,
    /// Why what is mounted now is not in use.
    failure: Option<String>,
}

/// What is in force; replaced whole.
#[derive(Default)]
struct Current {
    /// Grows when a certificate or an authority changes.
    generation: u64,
    server: Option<Arc<ServerConfig>>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    peer: Option<Arc<ClientConfig>>,
    hashes: HashMap<String, String>,
    expiry: Vec<(CertRole, i64)>,
    problems: Vec<Problem>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("owner", &self.0.owner).finish_non_exhaustive()
    }
}

impl Store {
    /// Reads the mounted Secrets and copies Postgres' files into `tls_dir`. What is missing or broken is told by [`Self::problems`].
    pub async fn load(config: &Config) -> Self {
        let name = config.tls_server_name();
        // Kubernetes' own rules for names make this a DNS name; a stand-in that no certificate has keeps the rest simple.
        let server_name = ServerName::try_from(name)
            .unwrap_or_else(|_| ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()));
        let store = Self(Arc::new(Inner {
            owner: Owner { namespace: config.namespace.clone(), cluster: config.cluster.clone() },
            names: config.names(),
            server_name,
            cert_dir: config.cert_dir.clone(),
            tls_dir: config.tls_dir.clone(),
            slots: Mutex::default(),
            current: watch::Sender::new(Arc::default()),
            counters: Counters::default(),
        }));
        store.look().await;
        store
    }

    /// Looks for renewed Secrets every 10 s, for ever; tells the driver when Postgres must reload.
    pub async fn run(self, bus: Bus) {
        self.run_every(POLL, bus).await;
    }

    async fn run_every(self, period: Duration, bus: Bus) {
        let mut tick = tokio::time::interval(period);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if self.refresh().await && bus.requests.send(Request::CertificatesChanged).await.is_err() {
                // The driver has gone, and the process goes with it.
                return;
            }
        }
    }

    /// Looks once; true when Postgres' files have changed since this was last asked: it must reload. The first time counts, as the
    /// agent may have restarted beside a running Postgres.
    pub async fn refresh(&self) -> bool {
        self.look().await;
        self.0.slots.lock().is_ok_and(|mut slots| std::mem::take(&mut slots.unsignalled))
    }

    /// File I/O, off the runtime: a Secret's tmpfs may be swapped out.
    async fn look(&self) {
        let inner = Arc::clone(&self.0);
        if let Err(error) = tokio::task::spawn_blocking(move || inner.refresh()).await {
            tracing::error!(%error, "failed to look at the certificates");
        }
    }

    /// Hash of the certificate in use, one a role: `InstanceStatus.certificates`.
    #[must_use]
    pub fn hashes(&self) -> HashMap<String, String> {
        self.0.current.borrow().hashes.clone()
    }

    /// What a person should know: `InstanceStatus.problems`.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        self.0.current.borrow().problems.clone()
    }

    /// Seconds since 1970 at which each certificate in use ends.
    #[must_use]
    pub fn expiry(&self) -> Vec<(CertRole, i64)> {
        self.0.current.borrow().expiry.clone()
    }

    /// The cluster of this agent.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.0.owner
    }

    /// What TLS and authorisation saw since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// For the next connection to this agent, with the generation that it belongs to; `None` as long as there is no usable server
    /// certificate.
    pub(crate) fn server(&self) -> Option<(u64, Arc<ServerConfig>)> {
        let current = self.0.current.borrow();
        Some((current.generation, Arc::clone(current.server.as_ref()?)))
    }

    /// For the next connection to another agent, with the generation that it belongs to.
    pub(crate) fn client(&self) -> Option<(u64, Arc<ClientConfig>)> {
        let current = self.0.current.borrow();
        Some((current.generation, Arc::clone(current.peer.as_ref()?)))
    }

    /// Grows when a certificate or an authority changes.
    pub(crate) fn generation(&self) -> u64 {
        self.0.current.borrow().generation
    }

    /// The name that every server of the cluster has in its certificate.
    pub(crate) fn server_name(&self) -> &ServerName<'static> {
        &self.0.server_name
    }

    /// Whether a client with this chain would be let in now.
    pub(crate) fn accepts(&self, chain: &[CertificateDer<'_>]) -> Result<(), RustlsError> {
        let clients = self.0.current.borrow().clients.clone();
        let (leaf, rest) = chain.split_first().ok_or(RustlsError::NoCertificatesPresented)?;
        let clients = clients.ok_or_else(|| RustlsError::General("no authority is loaded".into()))?;
        clients.verify_client_cert(leaf, rest, UnixTime::now()).map(drop)
    }

    /// Waits until a certificate or an authority is no longer of the given generation.
    pub(crate) async fn changed_from(&self, generation: u64) {
        let mut current = self.0.current.subscribe();
        // The sender lives in `self`: this ends by the change alone.
        let _ = current.wait_for(|current| current.generation != generation).await;
    }
}

impl Inner {
    fn refresh(&self) {
        let Ok(mut slots) = self.slots.lock() else { return };
        let slots = &mut *slots;
        let mut replaced = false;
        for role in ROLES {
            let slot = slots.roles.entry(role).or_default();
            replaced |= self.refresh_role(role, slot);
        }
        if replaced || slots.unpublished.is_some() {
            self.publish(slots);
        }
        self.announce(slots, replaced);
    }

    /// True when another certificate or authority is in use now.
    fn refresh_role(&self, role: CertRole, slot: &mut Slot) -> bool {
        let place = Place::mounted(&self.cert_dir.join(role.as_str()));
        let seen = place.fingerprint();
        if slot.failure.is_none() && slot.seen == Some(seen) {
            return false;
        }
        let found = Loaded::read(&place, role, &self.owner, &self.server_name);
        let failure = match found {
            Ok(found) => match self.choose(slot, found) {
                Ok(replaced) => {
                    slot.failure = None;
                    slot.seen = Some(seen);
                    return replaced;
                }
                Err(failure) => failure,
            },
            Err(error) => error.to_string(),
        };
        if slot.failure.as_ref() != Some(&failure) {
            tracing::warn!(%role, secret = self.names.tls_secret(role.as_str()), reason = failure, "certificate refused");
        }
        slot.failure = Some(failure);
        slot.seen = Some(seen);
        self.fall_back(role, slot)
    }

    /// Takes a good certificate into use, unless only the one before is valid by the clock.
    fn choose(&self, slot: &mut Slot, found: Loaded) -> Result<bool, String> {
        let now = UnixTime::now();
        if let (Err(error), Some(old)) = (found.verify(now), &slot.loaded)
            && old.hash != found.hash
            && old.verify(now).is_ok()
        {
            return Err(format!("it is not valid by this node's clock: {error}"));
        }
        if slot.loaded.as_ref().is_some_and(|old| old.hash == found.hash) {
            return Ok(false);
        }
        tracing::info!(role = %found.role, hash = found.hash, not_after = found.not_after, "certificate in use");
        slot.loaded = Some(Arc::new(found));
        Ok(true)
    }

    /// An agent that restarts beside a broken Secret still has Postgres' copies of the one before.
    fn fall_back(&self, role: CertRole, slot: &mut Slot) -> bool {
        if slot.loaded.is_some() || role == CertRole::Peer {
            return false;
        }
        let [certificate, key] = copies(role).map(|name| self.tls_dir.join(name));
        let place = Place { certificate, key, authority: self.tls_dir.join(AUTHORITY_COPY) };
        match Loaded::read(&place, role, &self.owner, &self.server_name) {
            Ok(found) => {
                tracing::info!(%role, hash = found.hash, "certificate taken from Postgres' copy");
                slot.loaded = Some(Arc::new(found));
                true
            }
            Err(_) => false,
        }
    }

    fn publish(&self, slots: &mut Slots) {
        let loaded = |role| slots.roles.get(&role).and_then(|slot| slot.loaded.clone());
        let (Some(server), Some(replication)) = (loaded(CertRole::Server), loaded(CertRole::Replication))
        else {
            // Never a part of them: Postgres would start without the other half.
            slots.unpublished = Some("a certificate for Postgres is missing".into());
            return;
        };
        let [server_crt, server_key] = copies(CertRole::Server);
        let [replication_crt, replication_key] = copies(CertRole::Replication);
        let files: [(&str, &[u8]); 5] = [
            (server_crt, &server.certificate_pem),
            (server_key, &server.key_pem),
            (replication_crt, &replication.certificate_pem),
            (replication_key, &replication.key_pem),
            (AUTHORITY_COPY, &server.authority_pem),
        ];
        match publish::publish(&self.tls_dir, &files) {
            Ok(changed) => {
                slots.unpublished = None;
                slots.unsignalled |= changed;
                if changed {
                    tracing::info!(dir = %self.tls_dir.display(), "certificates written for Postgres");
                }
            }
            Err(error) => {
                let failure = format!("{}: {error}", self.tls_dir.display());
                if slots.unpublished.as_ref() != Some(&failure) {
                    tracing::error!(%error, dir = %self.tls_dir.display(), "failed to write certificates for Postgres");
                }
                slots.unpublished = Some(failure);
            }
        }
    }

    /// Puts what is loaded in force.
    fn announce(&self, slots: &Slots, replaced: bool) {
        let problems = self.problems_of(slots);
        let before = Arc::clone(&self.current.borrow());
        if !replaced && before.problems == problems {
            return;
        }
        let loaded: Vec<_> = slots.roles.values().filter_map(|slot| slot.loaded.as_ref()).collect();
        let of = |role| loaded.iter().copied().find(|l| l.role == role);
        let (server, peer) = match replaced {
            // A kept configuration keeps its identity: nothing is rebuilt for a changed problem.
            false => (before.server.clone(), before.peer.clone()),
            true => {
                (of(CertRole::Server).and_then(server_config), of(CertRole::Peer).and_then(client_config))
            }
        };
        self.current.send_replace(Arc::new(Current {
            generation: before.generation + u64::from(replaced),
            server,
            clients: of(CertRole::Server).map(|server| Arc::clone(&server.clients)),
            peer,
            hashes: loaded.iter().map(|l| (l.role.to_string(), l.hash.clone())).collect(),
            expiry: loaded.iter().map(|l| (l.role, l.not_after)).collect(),
            problems,
        }));
    }

    fn problems_of(&self, slots: &Slots) -> Vec<Problem> {
        let now = UnixTime::now();
        let mut problems = Vec::new();
        let mut add = |reason: &str, message| problems.push(Problem { reason: reason.into(), message });
        for (role, slot) in &slots.roles {
            let secret = self.names.tls_secret(role.as_str());
            match (&slot.failure, &slot.loaded) {
                (Some(failure), Some(_)) => add(
                    "CertificateInvalid",
                    format!("Secret {secret} is not used, the certificate before it stays in use: {failure}"),
                ),
                (Some(failure), None) => add(
                    "CertificateInvalid",
                    format!(
                        "Secret {secret} cannot be used, and there is no certificate before it: {failure}"
                    ),
                ),
                (None, _) => {}
            }
            let Some(loaded) = &slot.loaded else { continue };
            let later = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + loaded.margin());
            match (loaded.verify(now), loaded.verify(later)) {
                (Err(error), _) => add(
                    "CertificateExpired",
                    format!("the certificate of Secret {secret} is not valid now, others refuse it: {error}"),
                ),
                (Ok(()), Err(_)) => add(
                    "CertificateExpiring",
                    format!(
                        "the certificate of Secret {secret}, or its authority, ends soon ({}) and has not been renewed",
                        jiff::Timestamp::from_second(loaded.not_after).unwrap_or_default()
                    ),
                ),
                (Ok(()), Ok(())) => {}
            }
        }
        if let Some(failure) = &slots.unpublished {
            add(
                "CertificateNotWritten",
                format!("certificates could not be put where Postgres reads them: {failure}"),
            );
        }
        problems
    }
}

/// Names of certificate and key in `tls_dir`.
fn copies(role: CertRole) -> [&'static str; 2] {
    if role == CertRole::Server {
        ["server.crt", "server.key"]
    } else {
        ["replication.crt", "replication.key"]
    }
}

/// Name of the authority in `tls_dir`: whom Postgres and its replicas trust.
const AUTHORITY_COPY: &str = "ca.crt";

/// The one source of cryptography.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())))
}

fn server_config(loaded: &Arc<Loaded>) -> Option<Arc<ServerConfig>> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .inspect_err(|error| tracing::error!(%error, "failed to set up TLS for the server"))
        .ok()?
        .with_client_cert_verifier(Arc::clone(&loaded.clients))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&loaded.key))));
    config.alpn_protocols = vec![b"h2".to_vec()];
    // No resumption: every connection shows its certificate to the authority in force.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Some(Arc::new(config))
}

fn client_config(loaded: &Arc<Loaded>) -> Option<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .inspect_err(|error| tracing::error!(%error, "failed to set up TLS for calls to peers"))
        .ok()?
        .with_root_certificates(Arc::clone(&loaded.roots))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&loaded.key))));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Some(Arc::new(config))
}
