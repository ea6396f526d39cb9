//! Calls to the holder's agent. Being written: the signatures stand.

use std::net::SocketAddr;

use pgwarden_proto::v1;

use crate::{config::Config, tls};

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
    /// The answer was an error, or there was no connection (code `Unavailable`).
    #[error("failed to call {method} at {address}: {status}")]
    Call {
        /// The method.
        method: &'static str,
        /// Whom.
        address: SocketAddr,
        /// What it said.
        status: Box<tonic::Status>,
    },
}

/// Keeps one connection to the agent that was called last; cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {}

#[allow(clippy::unused_async, reason = "being written")]
impl Client {
    /// A client with this pod's peer certificate; connects on the first call.
    #[must_use]
    pub fn new(_config: &Config, _store: tls::Store) -> Self {
        Self {}
    }

    /// Registers with the holder at `address` (pod IP and agent port).
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn join(&self, _address: SocketAddr, _request: v1::JoinRequest) -> Result<v1::JoinResponse, PeerError> {
        std::future::pending().await
    }

    /// Tells the holder of this replica.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn heartbeat(
        &self,
        _address: SocketAddr,
        _request: v1::HeartbeatRequest,
    ) -> Result<v1::HeartbeatResponse, PeerError> {
        std::future::pending().await
    }
}
