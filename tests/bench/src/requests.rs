//! API requests a second that one idle cluster adds, all parts together: the API server's own count, with and without it.

use std::time::{Duration, Instant};

use anyhow::Context;
use pgwarden_e2e::{Result, ctl, namespace};

use crate::{create::manifest, figure::Report};

const WINDOW: Duration = Duration::from_secs(60);

pub(crate) async fn measure(report: &mut Report) -> Result {
    let ctx = namespace::Ctx::create("bench-requests").await?;
    let mut without = Vec::new();
    let mut with = Vec::new();
    for _ in 0..3 {
        without.push(rate().await?);
    }
    ctx.apply(&manifest("bench", 3, "")).await?;
    ctx.ready("bench", Duration::from_secs(180)).await?;
    // The burst of the creation is not idleness.
    tokio::time::sleep(Duration::from_secs(20)).await;
    for _ in 0..3 {
        with.push(rate().await?);
    }
    let baseline = crate::figure::median(&sorted(&without));
    report.add("API requests of the test cluster with the operator idle", "1/s", "", without);
    report.add(
        "API requests added by one idle cluster",
        "1/s",
        "< 3",
        with.iter().map(|w| w - baseline).collect(),
    );
    ctx.remove().await
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut v = values.to_vec();
    v.sort_by(f64::total_cmp);
    v
}

async fn rate() -> Result<f64> {
    let start = Instant::now();
    let before = total().await?;
    // A rate needs a span of time.
    tokio::time::sleep(WINDOW).await;
    Ok((total().await? - before) / start.elapsed().as_secs_f64())
}

async fn total() -> Result<f64> {
    let text = ctl::kubectl(&["get", "--raw", "/metrics"]).await?;
    let lines = text.lines().filter(|l| l.starts_with("apiserver_request_total{"));
    let sum = lines.filter_map(|l| l.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>();
    (sum > 0.0).then_some(sum).context("apiserver_request_total not found")
}
