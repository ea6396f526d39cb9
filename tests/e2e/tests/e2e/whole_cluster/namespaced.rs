//! The operator with rights in its own namespace only.

use anyhow::{Context, ensure};
use pgwarden_e2e::{Ctx, Manifest, Result, alone, ctl, repo};

use super::{operator_replicas, scale_operator};
use crate::{SOON, create::row_reaches_a_replica};

async fn namespaced(ctx: &Ctx) -> Result {
    let manifest =
        std::fs::read_to_string(repo().join("deploy/operator-namespaced.yaml")).context("manifest")?;
    for kind in ["ClusterRole", "ClusterRoleBinding"] {
        ensure!(!manifest.contains(&format!("kind: {kind}\n")), "{kind} in the manifest");
    }
    ctx.apply(&manifest).await?;
    ctx.kubectl(&["rollout", "status", "deployment/pgwarden-controller", "--timeout=120s"]).await?;
    let other = ctx.sibling("b").await?;
    other.apply(&Manifest::new("n").to_string()).await?;
    ctx.apply(&Manifest::new("n").replicas(2).to_string()).await?;
    ctx.ready("n", SOON).await?;
    row_reaches_a_replica(ctx, "n", "hello").await?;
    ensure!(other.cluster("n").await?.status.is_none(), "a cluster of another namespace was touched");
    let account =
        ctx.get("deployment", "pgwarden-controller").await?["spec"]["template"]["spec"]["serviceAccountName"]
            .clone();
    let user =
        format!("--as=system:serviceaccount:{}:{}", ctx.ns, account.as_str().context("serviceAccountName")?);
    for (verb, what) in [("list", "secrets"), ("create", "pods"), ("list", "postgresqls")] {
        let out = ctl::kubectl_output(&["auth", "can-i", verb, what, "-n", &other.ns, &user]).await?;
        ensure!(!out.status.success(), "it may {verb} {what} in another namespace");
    }
    // Its own clusters go before it does.
    other.kubectl(&["delete", "pg", "n", "--wait=false"]).await?;
    ctx.kubectl(&["delete", "pg", "n", "--timeout=120s"]).await?;
    Ok(())
}

#[tokio::test]
async fn the_namespaced_operator_needs_no_cluster_role() -> Result {
    alone("whole_namespaced", |ctx| async move {
        let replicas = operator_replicas().await?;
        scale_operator(0).await?;
        let outcome = namespaced(&ctx).await;
        scale_operator(replicas).await?;
        outcome
    })
    .await
}
