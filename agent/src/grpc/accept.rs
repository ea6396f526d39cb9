//! Connections: accepted, known by their certificate, served, and let go when that certificate is no longer good.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pgwarden_proto::identity::CertRole;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    dispatch::{Caller, Dispatch},
    limits::{Keep, Oldest, Quiet},
    methods,
};
use crate::tls::{self, IdentityError, Store};

/// A handshake takes one round trip; kubelet and people are given five seconds.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// For the other side to read an alert.
const LINGER: Duration = Duration::from_secs(1);
/// Connections that have not shown a certificate yet.
const HANDSHAKES_AT_ONCE: usize = 32;
/// For calls under way when a connection is let go.
const GRACE: Duration = Duration::from_secs(10);
/// A certificate's end is looked at again at least this often: the node's clock may be set.
const CLOCK: Duration = Duration::from_secs(3600);
/// Calls at once on one connection.
const STREAMS: u32 = 32;
/// A client that has vanished is noticed after this time, and a little.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);
const MAX_HEADERS: u32 = 16 * 1024;
const WINDOW: u32 = 64 * 1024;

/// Serves for ever.
pub(super) async fn run(listener: TcpListener, store: Store, dispatch: Dispatch) {
    let shared = Arc::new(Shared::new(store, dispatch));
    let mut handshakes = Oldest::new(HANDSHAKES_AT_ONCE);
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(held) = shared.quiet.pass() {
                    tracing::warn!(%error, held, "failed to accept a connection");
                }
                // Out of file descriptors: nothing tells when there is one again.
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let keep = Keep::default();
        let task = tokio::spawn(Arc::clone(&shared).connection(stream, address, keep.clone()));
        if handshakes.push(task.abort_handle(), keep) {
            shared.store.counters().handshakes_failed.fetch_add(1, Relaxed);
        }
    }
}

struct Shared {
    store: Store,
    dispatch: Dispatch,
    places: Vec<(Option<CertRole>, Arc<Semaphore>)>,
    quiet: Quiet,
}

impl Shared {
    fn new(store: Store, dispatch: Dispatch) -> Self {
        let roles = CertRole::ALL.into_iter().map(Some).chain([None]);
        let places = roles.map(|role| (role, Arc::new(Semaphore::new(methods::connections(role))))).collect();
        Self { store, dispatch, places, quiet: Quiet::new() }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, address: SocketAddr, keep: Keep) {
        let (generation, stream) = match timeout(HANDSHAKE, self.handshake(stream)).await {
            Ok(Ok(done)) => done,
            Ok(Err((error, stream))) => {
                self.refused(address, &error);
                // It is to read the alert that tells it why.
                return linger(stream).await;
            }
            Err(_) => return self.refused(address, &"no handshake in time"),
        };
        keep.keep();
        let chain: Vec<CertificateDer<'static>> =
            stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        let role = match chain.first() {
            Some(leaf) => self.store.owner().role_of(leaf),
            // Cannot be: the handshake requires one.
            None => Err(IdentityError::Missing),
        };
        let known = role.as_ref().ok().copied();
        let places = self.places.iter().find(|(role, _)| *role == known);
        let Some(_place) = places.and_then(|(_, places)| places.try_acquire().ok()) else {
            let role = known.map_or("unknown", CertRole::as_str);
            return self.refused(address, &format!("too many connections of role {role}"));
        };
        self.store.counters().connections.fetch_add(1, Relaxed);
        self.serve(stream, address, role, generation, &chain).await;
        self.store.counters().connections.fetch_sub(1, Relaxed);
    }

    async fn handshake(
        &self,
        stream: TcpStream,
    ) -> Result<(u64, TlsStream<TcpStream>), (std::io::Error, TcpStream)> {
        let Some((generation, config)) = self.store.server() else {
            return Err((std::io::Error::other("no server certificate is loaded"), stream));
        };
        if let Err(error) = stream.set_nodelay(true) {
            return Err((error, stream));
        }
        let stream = TlsAcceptor::from(config).accept(stream).into_fallible().await?;
        Ok((generation, stream))
    }

    fn refused(&self, address: SocketAddr, reason: &dyn std::fmt::Display) {
        self.store.counters().handshakes_failed.fetch_add(1, Relaxed);
        if let Some(held) = self.quiet.pass() {
            tracing::info!(%address, %reason, held, "connection refused");
        }
    }

    async fn serve(
        &self,
        stream: TlsStream<TcpStream>,
        address: SocketAddr,
        role: Result<CertRole, IdentityError>,
        generation: u64,
        chain: &[CertificateDer<'static>],
    ) {
        let (closing, closed) = watch::channel(false);
        let caller = Caller { role, address, closing: closed };
        let service = service_fn(|request| self.dispatch.clone().call(caller.clone(), request));
        let mut connection = pin!(builder().serve_connection(TokioIo::new(stream), service));
        let reason = tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%address, %error, "connection ended");
                }
                return;
            }
            reason = no_longer_accepted(&self.store, generation, chain) => reason,
        };
        // No call fails by this: those under way end, the next ones go over a connection with a certificate of today.
        tracing::info!(%address, %reason, "connection let go, its certificate is no longer accepted");
        closing.send_replace(true);
        connection.as_mut().graceful_shutdown();
        let _ = timeout(GRACE, connection).await;
    }
}

/// Closes so that the other side reads what was written last: with its bytes unread, the kernel would send a reset, which discards it.
async fn linger(mut stream: TcpStream) {
    let mut rest = [0; 1024];
    let drain = async {
        stream.shutdown().await?;
        while stream.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    let _ = timeout(LINGER, drain).await;
}

fn builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_ANSWER)
        .max_header_list_size(MAX_HEADERS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .max_send_buf_size(WINDOW as usize);
    builder
}

/// Waits until the chain has run out, or its authority is trusted no more.
async fn no_longer_accepted(
    store: &Store,
    mut generation: u64,
    chain: &[CertificateDer<'_>],
) -> rustls::Error {
    loop {
        let end = chain.first().and_then(tls::not_after).unwrap_or(0);
        let left = Duration::from_secs(end.saturating_sub(UnixTime::now().as_secs()));
        // One second more: at its very end a certificate is still good.
        let _ = timeout((left + Duration::from_secs(1)).min(CLOCK), store.changed_from(generation)).await;
        generation = store.generation();
        if let Err(error) = store.accepts(chain) {
            return error;
        }
    }
}
