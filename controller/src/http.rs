//! `/metrics`, `/livez` and `/readyz` over plain HTTP.

use std::net::SocketAddr;

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use tokio::net::TcpListener;

use crate::metrics::Metrics;

/// Why the server did not start or has ended.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address is taken or not ours.
    #[error("failed to listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    /// The server ended.
    #[error("failed to serve: {0}")]
    Serve(std::io::Error),
}

/// Serves until the process ends. A candidate that does not lead is ready too: it can take over at any time.
///
/// # Errors
/// When the address can't be bound.
pub async fn serve(address: SocketAddr, metrics: Metrics) -> Result<(), HttpError> {
    let listener = TcpListener::bind(address).await.map_err(|e| HttpError::Listen(address, e))?;
    let app = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async { "ok\n" }))
        .route("/metrics", get(render))
        .with_state(metrics);
    axum::serve(listener, app).await.map_err(HttpError::Serve)
}

async fn render(State(metrics): State<Metrics>) -> impl IntoResponse {
    match metrics.render() {
        Ok(text) => (StatusCode::OK, [("content-type", "text/plain; version=0.0.4")], text),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [("content-type", "text/plain")],
            format!("failed to encode metrics: {error}\n").into_bytes(),
        ),
    }
}
