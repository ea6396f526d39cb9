//! The agent's gRPC server: Agent, Peer, the standard health service and reflection, over mutual TLS.
//!
//! A connection without a certificate of the cluster's authority ends in the handshake. The role in the certificate then decides,
//! before a request's body is read, which methods it may call ([`methods`]).

mod accept;
mod agent;
mod dispatch;
mod health;
pub(crate) mod limits;
pub mod methods;
#[cfg(test)]
mod tests;
mod watch;

use std::net::SocketAddr;

use tokio::net::TcpListener;

use self::dispatch::Dispatch;
use crate::{bus::Bus, config::Config, tls};

/// Largest message of the Agent service, in either direction: `Configure` carries a ConfigMap's files.
const MAX_MESSAGE: usize = 256 * 1024;
/// Largest message of the Peer service.
const MAX_PEER_MESSAGE: usize = 16 * 1024;

/// The server could not start.
#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    /// The port is taken or not ours.
    #[error("failed to listen on {address} for gRPC")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The interface's own description cannot be read.
    #[error("failed to set up gRPC reflection: {0}")]
    Reflection(String),
}

/// Serves Agent, Peer, health and reflection on `config.agent_port`, for ever.
///
/// # Errors
/// When the port cannot be bound.
pub async fn serve(config: Config, store: tls::Store, bus: Bus) -> Result<(), GrpcError> {
    let address = config.listen(config.agent_port);
    let listener =
        TcpListener::bind(address).await.map_err(|source| GrpcError::Listen { address, source })?;
    serve_on(listener, store, bus).await
}

/// As [`serve`], on a socket that listens already.
///
/// # Errors
/// When reflection cannot be set up.
pub async fn serve_on(listener: TcpListener, store: tls::Store, bus: Bus) -> Result<(), GrpcError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let dispatch = Dispatch::new(&store, &bus, health)?;
    tokio::join!(health::follow(bus, reporter), accept::run(listener, store, dispatch));
    Ok(())
}
