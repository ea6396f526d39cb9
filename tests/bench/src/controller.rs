//! Resident memory of the controller's leader with one cluster, and with the objects of a hundred.

use std::time::Duration;

use anyhow::bail;
use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};
use kube::{Api, api::ListParams};
use pgwarden_e2e::{Result, namespace::Ctx, until};

use crate::{create::manifest, figure::Report, process::resident_mb};

pub(crate) async fn measure(report: &mut Report, clusters: usize) -> Result {
    let ctx = Ctx::create("bench-controller").await?;
    ctx.kubectl(&["-n", "pgwarden-system", "rollout", "restart", "deployment/pgwarden-controller"]).await?;
    ctx.kubectl(&[
        "-n",
        "pgwarden-system",
        "rollout",
        "status",
        "deployment/pgwarden-controller",
        "--timeout=120s",
    ])
    .await?;
    ctx.apply(&manifest("bench", 1, "")).await?;
    ctx.ready("bench", Duration::from_secs(180)).await?;
    tokio::time::sleep(Duration::from_secs(20)).await;
    report.add("controller resident, 1 cluster (each of 2 replicas)", "MB", "< 25", sample(&ctx).await?);

    // Pods that no node takes: their objects count, their processes would not fit this machine.
    let unscheduled = ", nodeSelector: {bench.example.com/none: \"true\"}";
    for i in 0..clusters {
        ctx.apply(&manifest(&format!("many-{i}"), 3, unscheduled)).await?;
    }
    until("all StatefulSets exist", Duration::from_secs(600), || async {
        let sets = ctx.api::<StatefulSet>().list(&ListParams::default()).await?.items.len();
        if sets < clusters {
            bail!("{sets} of {clusters}");
        }
        Ok(Some(()))
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(30)).await;
    report.add(
        format!("controller resident, {clusters} clusters' objects"),
        "MB",
        "< 60",
        sample(&ctx).await?,
    );
    ctx.remove().await
}

async fn sample(ctx: &Ctx) -> Result<Vec<f64>> {
    let api: Api<Pod> = Api::namespaced(ctx.client.clone(), "pgwarden-system");
    let pods =
        api.list(&ListParams::default().labels("app.kubernetes.io/name=pgwarden-controller")).await?.items;
    let running = pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none());
    running.map(|p| resident_mb(p, "pgwarden-controller")).collect()
}
