//! Certificates renewed while everything runs.

use std::time::Instant;

use anyhow::{Context, ensure};
use pgwarden_api::pod::{PORT_AGENT, PORT_POSTGRES};
use pgwarden_e2e::{Ctx, Manifest, Result, alone, ctl, pods::address, until};
use serde_json::{Value, json};
use tokio::process::Command;

use super::{DEPLOYMENT, leader, operator_replicas, operators, system, system_json};
use crate::{SOON, create::row_reaches_a_replica};

const STARTED: &str = "SELECT pg_postmaster_start_time()";

/// The certificate that answers at a port of a pod, as PEM.
async fn served(ctx: &Ctx, pod: &str, port: u16) -> Result<String> {
    let target = format!("{}:{port}", address(&ctx.pod(pod).await?)?);
    let mut command = vec!["in", "client", "timeout", "10", "openssl", "s_client", "-connect", &target];
    if port == PORT_POSTGRES {
        command.extend(["-starttls", "postgres"]);
    }
    // The agent's end of it fails without a client certificate, but the server's has been shown by then.
    let out = ctl::ctl_output(&command).await?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let begin =
        text.find("-----BEGIN CERTIFICATE-----").with_context(|| format!("no certificate: {text}"))?;
    let end = text.find("-----END CERTIFICATE-----").context("the certificate's end")?;
    Ok(text[begin..end].to_owned() + "-----END CERTIFICATE-----\n")
}

/// Whether a certificate has run out.
async fn expired(ctx: &Ctx, pem: &str) -> Result<bool> {
    std::fs::create_dir_all(&ctx.dir)?;
    let file = ctx.dir.join("first.crt");
    std::fs::write(&file, pem)?;
    let check =
        Command::new("openssl").args(["x509", "-noout", "-checkend", "0", "-in"]).arg(&file).output().await?;
    Ok(!check.status.success())
}

/// From when until when the certificate of [`expired`] is valid.
async fn dates(ctx: &Ctx) -> Result<String> {
    let file = ctx.dir.join("first.crt");
    let out =
        Command::new("openssl").args(["x509", "-noout", "-startdate", "-enddate", "-in"]).arg(&file).output();
    Ok(String::from_utf8_lossy(&out.await?.stdout).trim().replace('\n', ", "))
}

async fn set_args(args: &Value) -> Result {
    let patch = json!([{"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": args}]);
    system(&["patch", DEPLOYMENT, "--type=json", "-p", &patch.to_string()]).await?;
    system(&["rollout", "status", DEPLOYMENT, "--timeout=120s"]).await?;
    // A leader that is being ended still works, with the arguments that it was started with.
    let replicas = operator_replicas().await?;
    until("only operators with the new arguments are there, and one of them leads", SOON, || async {
        let (pods, leader) = (operators().await?, leader().await.unwrap_or_default());
        let led = pods.iter().any(|(pod, _)| leader.starts_with(&format!("{pod}_")));
        Ok((pods.len() == replicas && led).then_some(()))
    })
    .await
}

async fn rotated(ctx: &Ctx) -> Result {
    ctx.apply(&Manifest::new("c").replicas(2).to_string()).await?;
    ctx.ready("c", SOON).await?;
    let pods = ["c-17-0", "c-17-1"];
    let mut first = Vec::new();
    for pod in pods {
        let certificates = (served(ctx, pod, PORT_POSTGRES).await?, served(ctx, pod, PORT_AGENT).await?);
        first.push((ctx.admin(pod, STARTED).await?, ctx.pod(pod).await?.metadata.uid, certificates));
    }
    let (primary, login) = (ctx.primary("c").await?, ctx.login("c").await?);
    // A session of an application that stays open the whole time, and new ones all the time.
    let session = ctx.admin_in(&primary, "app", "SELECT pg_sleep(900)");
    let renewed = async {
        let end = Instant::now() + SOON * 2;
        while !expired(ctx, &first[0].2.0).await? {
            ensure!(Instant::now() < end, "the first certificates do not run out: {}", dates(ctx).await?);
            login.sql(None, "SELECT 1").await.context("a new connection failed")?;
            for pod in pods {
                ctx.call("c", "viewer", pod, "pgwarden.v1.Agent/Status")
                    .await
                    .context("an agent did not answer")?;
            }
        }
        for (pod, (.., (postgres, agent))) in pods.iter().zip(&first) {
            ensure!(
                served(ctx, pod, PORT_POSTGRES).await? != *postgres,
                "Postgres of {pod} shows what has run out"
            );
            ensure!(
                served(ctx, pod, PORT_AGENT).await? != *agent,
                "the agent of {pod} shows what has run out"
            );
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::select! {
        ended = session => anyhow::bail!("the session ended: {ended:?}"),
        done = renewed => done?,
    }
    // Replication has lasted through it; a new connection is let in with a new certificate.
    ctx.admin(&primary, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender' OR query LIKE '%pg_sleep(900)'")
        .await?;
    ctx.ready("c", SOON).await?;
    row_reaches_a_replica(ctx, "c", "hello").await?;
    for (pod, (start, uid, _)) in pods.iter().zip(&first) {
        ensure!(ctx.admin(pod, STARTED).await? == *start, "Postgres of {pod} was restarted");
        ensure!(ctx.pod(pod).await?.metadata.uid == *uid, "{pod} was replaced");
    }
    Ok(())
}

#[tokio::test]
async fn certificates_are_renewed_without_a_restart_or_a_broken_connection() -> Result {
    alone("whole_certificates", |ctx| async move {
        let deployment = system_json(&["get", DEPLOYMENT]).await?;
        let args = deployment["spec"]["template"]["spec"]["containers"][0]["args"].clone();
        let mut short = args.as_array().cloned().unwrap_or_default();
        // Long enough for kubelet, which takes up to 90 s to hand a renewed Secret to the pods.
        short.extend([json!("--certificate-validity=180s"), json!("--renew-percent=30")]);
        set_args(&Value::Array(short)).await?;
        let outcome = rotated(&ctx).await;
        set_args(&args).await?;
        outcome
    })
    .await
}
