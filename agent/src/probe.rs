//! Plain HTTP for kubelet: `/readyz`, `/livez`. Being written: the signatures stand.

use crate::{bus::Bus, config::Config};

/// Serves on `config.probe_port`, for ever.
///
/// # Errors
/// When the port cannot be bound.
#[allow(clippy::unused_async, reason = "being written")]
pub async fn serve(_config: Config, _bus: Bus) -> Result<(), std::io::Error> {
    std::future::pending().await
}
