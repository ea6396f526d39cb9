//! Resident memory of agent and supervisor, idle and under pgbench.

use std::time::Duration;

use anyhow::Context;
use kube::ResourceExt;
use pgwarden_api::pod::CONTAINER_POSTGRES;
use pgwarden_e2e::{Result, namespace::Ctx};

use crate::{create::manifest, figure::Report, process::resident_mb};

pub(crate) async fn measure(report: &mut Report) -> Result {
    let ctx = Ctx::create("bench-memory").await?;
    ctx.apply(&manifest("bench", 3, "")).await?;
    ctx.ready("bench", Duration::from_secs(180)).await?;
    tokio::time::sleep(Duration::from_secs(30)).await;
    sample(&ctx, report, "idle").await?;

    let primary = ctx.cluster("bench").await?.status.and_then(|s| s.primary).context("no primary")?;
    let exec = ["exec", primary.as_str(), "-c", CONTAINER_POSTGRES, "--"];
    ctx.kubectl(&[&exec[..], &["pgbench", "-i", "-q", "-s", "10", "postgres"]].concat()).await?;
    let load = [&exec[..], &["pgbench", "-n", "-c", "8", "-j", "2", "-T", "30", "postgres"]].concat();
    let running = ctx.kubectl(&load);
    let sampling = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        sample(&ctx, report, "under pgbench").await
    };
    let (bench, sampled) = tokio::join!(running, sampling);
    bench?;
    sampled?;
    ctx.remove().await
}

async fn sample(ctx: &Ctx, report: &mut Report, when: &str) -> Result {
    let pods = ctx.pods("bench").await?;
    let of = |program: &str| -> Result<Vec<f64>> {
        pods.iter()
            .map(|p| resident_mb(p, program).with_context(|| format!("pod {}", p.name_any())))
            .collect()
    };
    report.add(format!("agent resident, {when}"), "MB", "< 15", of("pgwarden-agent")?);
    report.add(format!("supervisor resident, {when}"), "MB", "< 2", of("supervisor")?);
    Ok(())
}
