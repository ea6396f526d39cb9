//! Certificates renewed while everything runs.

use anyhow::{Context, ensure};
use pgwarden_e2e::{Ctx, Manifest, Result, alone, eventually, until};
use serde_json::{Value, json};

use super::{DEPLOYMENT, system, system_json};
use crate::{MOMENT, SOON, create::row_reaches_a_replica};

const STARTED: &str = "SELECT pg_postmaster_start_time()";

/// Serial number of the certificate in a Secret, as openssl prints it.
async fn serial(ctx: &Ctx, role: &str) -> Result<String> {
    let secret = ctx.get("secret", &format!("c-tls-{role}")).await?;
    Ok(secret["data"]["tls.crt"].as_str().context("tls.crt")?.to_owned())
}

async fn set_args(args: &Value) -> Result {
    let patch = json!([{"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": args}]);
    system(&["patch", DEPLOYMENT, "--type=json", "-p", &patch.to_string()]).await?;
    system(&["rollout", "status", DEPLOYMENT, "--timeout=120s"]).await?;
    Ok(())
}

async fn rotated(ctx: &Ctx) -> Result {
    ctx.apply(&Manifest::new("c").replicas(2).to_string()).await?;
    ctx.ready("c", SOON).await?;
    let pods = ["c-17-0", "c-17-1"];
    let mut started = Vec::new();
    for pod in pods {
        started.push((ctx.admin(pod, STARTED).await?, ctx.pod(pod).await?.metadata.uid));
    }
    let primary = ctx.primary("c").await?;
    // A session of an application that stays open the whole time.
    let session = ctx.admin_in(&primary, "app", "SELECT pg_sleep(600)");
    let renewals = async {
        // Twice: the second renewal is one of a certificate that was renewed already.
        for round in 0..2 {
            let before =
                (serial(ctx, "server").await?, serial(ctx, "replication").await?, serial(ctx, "peer").await?);
            until("the certificates are renewed", SOON, || async {
                let now = (
                    serial(ctx, "server").await?,
                    serial(ctx, "replication").await?,
                    serial(ctx, "peer").await?,
                );
                Ok((now.0 != before.0 && now.1 != before.1 && now.2 != before.2).then_some(()))
            })
            .await
            .with_context(|| format!("round {round}"))?;
            // Every agent answers, and Postgres answers, with the new certificate: kubelet takes its minute to mount it.
            let new = ctx.get("secret", "c-tls-server").await?["data"]["tls.crt"].clone();
            let login = ctx.login("c").await?;
            for pod in pods {
                eventually("the agent answers a viewer", MOMENT, || async {
                    let status = ctx.call("c", "viewer", pod, "pgwarden.v1.Agent/Status").await?;
                    ensure!(status["ready"] == true, "{status}");
                    Ok(())
                })
                .await?;
            }
            ensure!(login.sql(None, "SELECT 1").await? == "1", "a new connection");
            ensure!(!new.is_null(), "the new certificate");
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::select! {
        ended = session => anyhow::bail!("the session ended: {ended:?}"),
        done = renewals => done?,
    }
    ctx.admin(
        &primary,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'",
    )
    .await?;
    for (pod, (start, uid)) in pods.iter().zip(&started) {
        ensure!(ctx.admin(pod, STARTED).await? == *start, "Postgres of {pod} was restarted");
        ensure!(ctx.pod(pod).await?.metadata.uid == *uid, "{pod} was replaced");
    }
    ctx.ready("c", SOON).await?;
    row_reaches_a_replica(ctx, "c", "hello").await
}

#[tokio::test]
async fn certificates_are_renewed_without_a_restart_or_a_broken_connection() -> Result {
    alone("whole_certificates", |ctx| async move {
        let deployment = system_json(&["get", DEPLOYMENT]).await?;
        let args = deployment["spec"]["template"]["spec"]["containers"][0]["args"].clone();
        let mut short = args.as_array().cloned().unwrap_or_default();
        // Long enough for kubelet, which takes up to 90 s to hand a renewed Secret to the pods.
        short.extend([json!("--certificate-validity=200s"), json!("--renew-percent=30")]);
        set_args(&Value::Array(short)).await?;
        let outcome = rotated(&ctx).await;
        set_args(&args).await?;
        outcome
    })
    .await
}
