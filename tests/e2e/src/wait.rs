//! Waiting for conditions: polled, bounded, and telling what was seen last when the time is up.

use std::{future::Future, time::Duration};

use anyhow::anyhow;
use tokio::time::{Instant, sleep};

const POLL: Duration = Duration::from_millis(100);

/// Waits until `probe` gives `Ok(Some(value))`. `Ok(None)` and errors mean "not yet"; the last error is told at the end.
pub async fn until<T, F, Fut>(what: &str, limit: Duration, mut probe: F) -> crate::Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = crate::Result<Option<T>>>,
{
    let end = Instant::now() + limit;
    loop {
        let seen = match probe().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => anyhow!("not yet"),
            Err(e) => e,
        };
        if Instant::now() >= end {
            return Err(seen.context(format!("waited {limit:?} for: {what}")));
        }
        sleep(POLL).await;
    }
}

/// Waits until `probe` ends without an error.
pub async fn eventually<T, F, Fut>(what: &str, limit: Duration, mut probe: F) -> crate::Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = crate::Result<T>>,
{
    until(what, limit, || {
        let attempt = probe();
        async { attempt.await.map(Some) }
    })
    .await
}
