//! Prometheus metrics of every pod.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use pgwarden_e2e::{Ctx, Result, ctl, eventually, fixture, pods::address};
use tokio::io::AsyncWriteExt;

use crate::MOMENT;

/// What a pod's `/metrics` says.
async fn scrape(ctx: &Ctx, pod: &str) -> Result<String> {
    let url =
        format!("http://{}:{}/metrics", address(&ctx.pod(pod).await?)?, pgwarden_api::pod::PORT_METRICS);
    ctl::ctl(&["in", "client", "curl", "-sS", "--fail", "--max-time", "10", &url]).await
}

/// Samples by name and labels as written.
fn samples(text: &str) -> BTreeMap<&str, f64> {
    let sample = |line: &'_ str| -> Option<(usize, f64)> {
        let at = line.rfind(' ')?;
        Some((at, line.get(at + 1..)?.parse().ok()?))
    };
    text.lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(|l| sample(l).map(|(at, v)| (&l[..at], v)))
        .collect()
}

/// The one sample of a family whose labels contain all of these.
fn value(samples: &BTreeMap<&str, f64>, family: &str, labels: &[&str]) -> Result<f64> {
    let mut found = samples.iter().filter(|(name, _)| {
        let (head, rest) = name.split_once('{').unwrap_or((name, ""));
        head == family && labels.iter().all(|l| rest.contains(l))
    });
    let Some((_, v)) = found.next() else { bail!("no sample {family} {labels:?}") };
    ensure!(found.next().is_none(), "several samples {family} {labels:?}");
    Ok(*v)
}

#[tokio::test]
async fn every_pod_tells_role_up_sizes_connections_and_lag_in_prometheus_conventions() -> Result {
    fixture::reading("metrics", |ctx| async move {
        let primary = ctx.primary(fixture::NAME).await?;
        eventually("the metrics are right", MOMENT, || async {
            for pod in fixture::PODS {
                let text = scrape(&ctx, pod).await?;
                let all = samples(&text);
                let is = |b: bool| f64::from(u8::from(b));
                let v = |family: &str, labels: &[&str]| {
                    value(&all, family, labels).with_context(|| format!("{pod}:\n{text}"))
                };
                ensure!(v("pgwarden_up", &[])? == 1.0, "{pod} is not up");
                ensure!(v("pgwarden_role", &["role=\"primary\""])? == is(pod == primary), "role of {pod}");
                ensure!(v("pgwarden_role", &["role=\"replica\""])? == is(pod != primary), "role of {pod}");
                ensure!(v("pgwarden_database_size_bytes", &["database=\"app\""])? > 1e6, "size of app");
                ensure!(
                    v("pgwarden_connections", &["database=\"app\"", "state=\"active\""])? >= 0.0,
                    "active connections"
                );
                if pod == primary {
                    let lags =
                        all.keys().filter(|k| k.starts_with("pgwarden_replication_lag_bytes{")).count();
                    ensure!(lags == 2, "{lags} lags on the primary:\n{text}");
                } else {
                    ensure!((0.0..1e6).contains(&v("pgwarden_replay_lag_bytes", &[])?), "lag of {pod}");
                    ensure!((0.0..60.0).contains(&v("pgwarden_replay_lag_seconds", &[])?), "lag of {pod}");
                }
            }
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_client_is_counted_among_the_connections() -> Result {
    fixture::reading("metrics_connections", |ctx| async move {
        let primary = ctx.primary(fixture::NAME).await?;
        // A session that sleeps in the server, for as long as the test looks.
        let session = ctx.admin_in(&primary, "app", "SELECT pg_sleep(600)");
        let look = eventually("the session is counted", MOMENT, || async {
            let text = scrape(&ctx, &primary).await?;
            let active =
                value(&samples(&text), "pgwarden_connections", &["state=\"active\"", "database=\"app\""])?;
            ensure!(active >= 1.0, "{active} active connections to app:\n{text}");
            Ok(())
        });
        let seen = tokio::select! {
            ended = session => Err(anyhow::anyhow!("the session ended: {ended:?}")),
            seen = look => seen,
        };
        ctx.admin(
            &primary,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'",
        )
        .await?;
        seen
    })
    .await
}

#[tokio::test]
async fn promtool_finds_nothing_wrong() -> Result {
    fixture::reading("metrics_promtool", |ctx| async move {
        let primary = ctx.primary(fixture::NAME).await?;
        let replica = fixture::PODS.into_iter().find(|p| *p != primary).context("a replica")?;
        for pod in [primary.as_str(), replica] {
            let text = scrape(&ctx, pod).await?;
            let mut promtool = tokio::process::Command::new("promtool")
                .args(["check", "metrics"])
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .context("promtool")?;
            promtool.stdin.take().context("stdin")?.write_all(text.as_bytes()).await?;
            let out = promtool.wait_with_output().await?;
            let words = String::from_utf8([out.stdout, out.stderr].concat())?;
            ensure!(out.status.success() && words.trim().is_empty(), "{pod}: {words}");
        }
        Ok(())
    })
    .await
}
