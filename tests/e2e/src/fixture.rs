//! One cluster of three instances that many tests look at, none changes: made once a run, by the first test that asks.
//!
//! Its namespace outlives the tests (none knows that it is the last); `tests/e2e/run` takes it away.

use std::{future::Future, time::Duration};

use anyhow::{Context, anyhow};
use serde_json::json;
use tokio::sync::OnceCell;

use crate::{Ctx, Manifest, Result, evidence, namespace};

/// Name of the cluster.
pub const NAME: &str = "fixture";
/// Its three pods.
pub const PODS: [&str; 3] = ["fixture-17-0", "fixture-17-1", "fixture-17-2"];
/// A row that was written through the primary before any test looks.
pub const CANARY: &str = "written through the primary";

static READY: OnceCell<std::result::Result<(), String>> = OnceCell::const_new();

/// The manifest.
#[must_use]
pub fn manifest() -> Manifest {
    Manifest::new(NAME)
        .replicas(3)
        .spec("parameters", json!({"work_mem": "5MB"}))
        .spec("backup", json!({"schedule": "0 2 * * *", "retention": 7, "s3Bucket": "my-backups"}))
}

/// Runs a test that only looks at the fixture.
pub async fn reading<F, Fut>(name: &str, body: F) -> Result
where
    F: FnOnce(Ctx) -> Fut,
    Fut: Future<Output = Result>,
{
    let _guard = namespace::beside_others().await;
    let ctx = Ctx::open(NAME, name).await?;
    let made = READY.get_or_init(|| async { make(&ctx).await.map_err(|e| format!("{e:#}")) }).await;
    let started = std::time::Instant::now();
    let outcome = match made {
        Ok(()) => body(ctx.clone()).await,
        Err(e) => Err(anyhow!("the fixture: {e}")),
    };
    evidence::note(name, outcome.is_ok(), started.elapsed());
    if outcome.is_err() {
        evidence::dump(&ctx).await;
    }
    outcome.with_context(|| format!("{name}; evidence: {}", ctx.dir.display()))
}

async fn make(ctx: &Ctx) -> Result {
    ctx.create_namespace(&ctx.ns).await?;
    ctx.apply(&manifest().to_string()).await?;
    ctx.ready(NAME, Duration::from_secs(180)).await?;
    let login = ctx.login(NAME).await?;
    login
        .sql(None, &format!("CREATE TABLE canary (said text); INSERT INTO canary VALUES ('{CANARY}')"))
        .await?;
    Ok(())
}
