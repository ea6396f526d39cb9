//! `kubectl pg`, as kubectl itself finds and runs it.

use std::process::Output;

use anyhow::{Context, ensure};
use pgwarden_e2e::{Ctx, Result, ctl, eventually, fixture};
use serde_json::Value;
use tokio::process::Command;

use crate::MOMENT;

/// `kubectl pg ARGS…` with the plugin on the PATH.
async fn plugin(ctx: &Ctx, args: &[&str]) -> Result<Output> {
    let bin = ctl::binaries();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("kubectl");
    // kubectl gives a plugin its environment, not its own flags.
    command.arg("pg").args(args).args(["-n", &ctx.ns]).env("PATH", path).env("KUBECONFIG", ctl::kubeconfig());
    command.output().await.context("kubectl pg")
}

#[tokio::test]
async fn status_shows_members_conditions_and_events_without_colour_in_a_pipe() -> Result {
    fixture::reading("plugin_table", |ctx| async move {
        let primary = ctx.primary(fixture::NAME).await?;
        eventually("the table is complete", MOMENT, || async {
            let out = plugin(&ctx, &["status", fixture::NAME]).await?;
            let text = String::from_utf8(out.stdout)?;
            ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            ensure!(!text.contains('\u{1b}'), "escape sequences in a pipe:\n{text}");
            for pod in fixture::PODS {
                let row = text
                    .lines()
                    .find(|l| l.trim_start().starts_with(pod))
                    .with_context(|| format!("no row of {pod}:\n{text}"))?;
                let role = if pod == primary { "primary" } else { "replica" };
                ensure!(row.contains(role), "{row}");
            }
            let heads: Vec<_> = text.lines().filter(|l| l.to_lowercase().contains("role")).collect();
            ensure!(
                heads
                    .iter()
                    .any(|h| h.to_lowercase().contains("lag") && h.to_lowercase().contains("timeline")),
                "{text}"
            );
            for word in ["Ready", "Running", "3/3"] {
                ensure!(text.contains(word), "{word} is missing:\n{text}");
            }
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn status_as_json_is_for_programs() -> Result {
    fixture::reading("plugin_json", |ctx| async move {
        let primary = ctx.primary(fixture::NAME).await?;
        let out = plugin(&ctx, &["status", fixture::NAME, "-o", "json"]).await?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let json: Value = serde_json::from_slice(&out.stdout)?;
        ensure!(json["primary"] == *primary || json["status"]["primary"] == *primary, "{json:#}");
        let members =
            json["members"].as_array().or_else(|| json["status"]["members"].as_array()).context("members")?;
        ensure!(members.len() == 3, "{json:#}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_unknown_cluster_is_an_error_that_names_it() -> Result {
    fixture::reading("plugin_unknown", |ctx| async move {
        let out = plugin(&ctx, &["status", "nobody"]).await?;
        let words = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(!out.status.success(), "status of a cluster that is not there succeeds");
        ensure!(words.contains("\"nobody\"") && words.contains("no PostgreSQL cluster"), "{words}");
        ensure!(out.stdout.is_empty(), "{}", String::from_utf8_lossy(&out.stdout));
        Ok(())
    })
    .await
}
