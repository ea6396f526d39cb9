//! Calls to another agent of the cluster: a replica's to the holder.

use std::{
    error::Error as _,
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use pgwarden_proto::{
    identity::CertRole,
    v1::{HeartbeatRequest, HeartbeatResponse, JoinRequest, JoinResponse, peer_client::PeerClient as Stub},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Code, Response, Status,
    codegen::Service,
    transport::{Channel, Endpoint},
};

use crate::{config::Config, tls};

/// Longest wait for an answer, the connection included. The lease is counted in seconds: a late answer is none.
const CALL: Duration = Duration::from_secs(1);
/// A silent connection is given up after these two: a later call then finds out at once.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(2);
/// Answers are short.
const MAX_ANSWER: usize = 64 * 1024;

/// A call to another agent failed.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// There is no usable peer certificate.
    #[error("failed to call {method} at {address}: no usable peer certificate")]
    NoCertificate {
        /// The method.
        method: &'static str,
        /// Whom.
        address: SocketAddr,
    },
    /// No answer in time.
    #[error("failed to call {method} at {address}: no answer within {seconds} s")]
    Timeout {
        /// The method.
        method: &'static str,
        /// Whom.
        address: SocketAddr,
        /// How long.
        seconds: f64,
    },
    /// No connection, or it broke: whether the call was worked on is not known.
    #[error("failed to call {method} at {address}: {reason}")]
    Connection {
        /// The method.
        method: &'static str,
        /// Whom.
        address: SocketAddr,
        /// What happened, down to its cause.
        reason: String,
    },
    /// The agent there answered with an error.
    #[error("{method} at {address} answered {:?}: {}", status.code(), status.message())]
    Refused {
        /// The method.
        method: &'static str,
        /// Whom.
        address: SocketAddr,
        /// What it said.
        status: Box<Status>,
    },
}

/// Keeps one connection, to the agent that was called last; cheap to clone.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: tls::Store,
    origin: Uri,
    kept: Mutex<Option<Kept>>,
}

#[derive(Clone, Debug)]
struct Kept {
    address: SocketAddr,
    /// Of the certificates that it was made with.
    generation: u64,
    stub: Stub<Channel>,
}

impl Client {
    /// A client with this pod's peer certificate; connects on the first call.
    #[must_use]
    pub fn new(config: &Config, store: tls::Store) -> Self {
        let origin = Uri::builder().scheme("https").authority(config.tls_server_name()).path_and_query("/");
        // A name that makes no URI makes no certificate either: calls then fail in the handshake.
        let origin = origin.build().unwrap_or_default();
        Self(Arc::new(Inner { store, origin, kept: Mutex::new(None) }))
    }

    /// Registers with the holder at `address` (pod IP and agent port).
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn join(&self, address: SocketAddr, request: JoinRequest) -> Result<JoinResponse, PeerError> {
        self.call("Join", address, async move |mut stub| stub.join(request).await).await
    }

    /// Tells the holder of this replica.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn heartbeat(
        &self,
        address: SocketAddr,
        request: HeartbeatRequest,
    ) -> Result<HeartbeatResponse, PeerError> {
        self.call("Heartbeat", address, async move |mut stub| stub.heartbeat(request).await).await
    }

    async fn call<A, F>(
        &self,
        method: &'static str,
        address: SocketAddr,
        call: impl FnOnce(Stub<Channel>) -> F,
    ) -> Result<A, PeerError>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let kept = self.connection(address).ok_or(PeerError::NoCertificate { method, address })?;
        let generation = kept.generation;
        let error = match timeout(CALL, call(kept.stub)).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            // An answer from there carries no source; a broken connection does.
            Ok(Err(status)) if status.source().is_none() && status.code() != Code::Unavailable => {
                return Err(PeerError::Refused { method, address, status: Box::new(status) });
            }
            Ok(Err(status)) => PeerError::Connection { method, address, reason: causes(&status) },
            Err(_) => PeerError::Timeout { method, address, seconds: CALL.as_secs_f64() },
        };
        self.forget(address, generation);
        Err(error)
    }

    /// The kept connection, or another one when the address or the certificates are not those of before.
    fn connection(&self, address: SocketAddr) -> Option<Kept> {
        let generation = self.0.store.generation();
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = &*kept
            && kept.address == address
            && kept.generation == generation
        {
            return Some(kept.clone());
        }
        let (generation, config) = self.0.store.client()?;
        let connector = Connector { address, config, store: self.0.store.clone() };
        // TLS is the connector's: for the endpoint itself this is a plain connection.
        let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
        let channel = endpoint
            .origin(self.0.origin.clone())
            .connect_timeout(CALL)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_ANSWER)
            .buffer_size(8)
            .connect_with_connector_lazy(connector);
        let stub = Stub::new(channel).max_decoding_message_size(MAX_ANSWER);
        Some(kept.insert(Kept { address, generation, stub }).clone())
    }

    /// The next call makes a new connection: one that hangs would hang again.
    fn forget(&self, address: SocketAddr, generation: u64) {
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_some_and(|kept| kept.address == address && kept.generation == generation) {
            *kept = None;
        }
    }
}

/// An error with what caused it: tonic's own message is only "transport error".
fn causes(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        let this = error.to_string();
        if !text.contains(&this) {
            text.push_str(": ");
            text.push_str(&this);
        }
        cause = error.source();
    }
    text
}

/// Connects to one address and proves that an agent of this cluster is there.
#[derive(Clone)]
struct Connector {
    address: SocketAddr,
    config: Arc<rustls::ClientConfig>,
    store: tls::Store,
}

impl Connector {
    async fn connect(self) -> std::io::Result<TokioIo<TlsStream<TcpStream>>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let name = self.store.server_name().clone();
        let stream = TlsConnector::from(self.config).connect(name, stream).await?;
        // The authority and the name have been checked; this keeps out what it issued for another purpose.
        let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let role = leaf.ok_or(tls::IdentityError::Missing).and_then(|leaf| self.store.owner().role_of(leaf));
        match role {
            Ok(CertRole::Server) => Ok(TokioIo::new(stream)),
            Ok(role) => {
                Err(std::io::Error::other(format!("the certificate there is of role {role}, not server")))
            }
            Err(error) => Err(std::io::Error::other(error)),
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}
