//! The agent's gRPC server. Being written: the signatures stand.

use crate::{bus::Bus, config::Config, tls};

/// The server could not start.
#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    /// The port is taken or not ours.
    #[error("failed to listen on {address} for gRPC")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// Serves Agent, Peer, health and reflection on `config.agent_port`, for ever.
///
/// # Errors
/// When the port cannot be bound.
#[allow(clippy::unused_async, reason = "being written")]
pub async fn serve(_config: Config, _store: tls::Store, _bus: Bus) -> Result<(), GrpcError> {
    std::future::pending().await
}
