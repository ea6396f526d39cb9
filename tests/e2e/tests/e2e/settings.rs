//! Settings: sane defaults, the user's on top, reloaded when that can be, reported when a restart or a mistake is in the way.

use anyhow::{Context, ensure};
use pgwarden_e2e::{Ctx, Manifest, Result, eventually, shared};
use serde_json::json;

use crate::{MOMENT, SOON};

const STARTED: &str = "SELECT pg_postmaster_start_time()";

async fn show(ctx: &Ctx, pod: &str, setting: &str, wanted: &str) -> Result {
    eventually(&format!("{setting} is {wanted} in {pod}"), MOMENT, || async {
        let have = ctx.admin(pod, &format!("SHOW {setting}")).await?;
        ensure!(have == wanted, "it is {have}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn parameters_are_reloaded_and_those_that_need_a_restart_or_are_wrong_are_reported() -> Result {
    shared("settings", |ctx| async move {
        let m = || Manifest::new("p").replicas(2);
        ctx.apply(&m().spec("parameters", json!({"work_mem": "5MB"})).to_string()).await?;
        ctx.ready("p", SOON).await?;
        let pods = ["p-17-0", "p-17-1"];
        let mut started = Vec::new();
        for pod in pods {
            show(&ctx, pod, "work_mem", "5MB").await?;
            started.push(ctx.admin(pod, STARTED).await?);
            // A quarter of the memory limit, as documented.
            let buffers: i64 =
                ctx.admin(pod, "SELECT pg_size_bytes(current_setting('shared_buffers'))").await?.parse()?;
            ensure!(
                (16 << 20..=128 << 20).contains(&buffers),
                "shared_buffers {buffers} for a limit of 256Mi"
            );
        }
        let max_connections = ctx.admin(pods[0], "SHOW max_connections").await?;

        // Reloaded, in all instances, and one that is gone from the manifest falls back.
        ctx.apply(
            &m().spec("parameters", json!({"work_mem": "6MB", "log_min_duration_statement": "7s"}))
                .to_string(),
        )
        .await?;
        for pod in pods {
            show(&ctx, pod, "work_mem", "6MB").await?;
            show(&ctx, pod, "log_min_duration_statement", "7s").await?;
        }
        ctx.apply(&m().spec("parameters", json!({"work_mem": "6MB"})).to_string()).await?;
        for pod in pods {
            show(&ctx, pod, "log_min_duration_statement", "-1").await?;
        }

        // Needs a restart: said so, by name, and not done behind the user's back. A larger value: a smaller one waits on replicas for the
        // primary.
        ctx.apply(&m().spec("parameters", json!({"work_mem": "6MB", "max_connections": "157"})).to_string())
            .await?;
        eventually("max_connections is reported as pending", MOMENT, || async {
            let status = ctx.cluster("p").await?.status.context("status")?;
            for m in &status.members {
                ensure!(m.pending_restart.iter().any(|s| s.contains("max_connections")), "{m:?}");
            }
            Ok(())
        })
        .await?;
        ensure!(
            ctx.admin(pods[0], "SHOW max_connections").await? == max_connections,
            "Postgres was restarted"
        );

        // Wrong values: reported by name, Postgres serves on, and the right ones beside them are in force.
        let wrong = json!({"work_mem": "much", "shared_buffers": "lots", "statement_timeout": "11s"});
        ctx.apply(&m().spec("parameters", wrong).to_string()).await?;
        eventually("the wrong parameters are reported by name", MOMENT, || async {
            let cluster = ctx.cluster("p").await?;
            let all = pgwarden_e2e::namespace::conditions(&cluster);
            ensure!(all.contains("work_mem") && all.contains("shared_buffers"), "{all}");
            Ok(())
        })
        .await?;
        let login = ctx.login("p").await?;
        ensure!(login.sql(None, "SELECT 1").await? == "1", "Postgres serves on");
        show(&ctx, pods[0], "work_mem", "6MB").await?;

        // Mended.
        ctx.apply(
            &m().spec("parameters", json!({"work_mem": "8MB", "statement_timeout": "12s"})).to_string(),
        )
        .await?;
        for pod in pods {
            show(&ctx, pod, "work_mem", "8MB").await?;
            show(&ctx, pod, "statement_timeout", "12s").await?;
        }
        eventually("nothing is reported any more", MOMENT, || async {
            let cluster = ctx.cluster("p").await?;
            let all = pgwarden_e2e::namespace::conditions(&cluster);
            ensure!(!all.contains("work_mem") && !all.contains("shared_buffers"), "{all}");
            Ok(())
        })
        .await?;
        ctx.ready("p", MOMENT).await?;
        for (pod, before) in pods.iter().zip(&started) {
            ensure!(ctx.admin(pod, STARTED).await? == *before, "Postgres of {pod} was restarted");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn wrong_parameters_at_birth_do_not_keep_the_cluster_from_being_mended() -> Result {
    shared("settings_birth", |ctx| async move {
        let m = || Manifest::new("b");
        ctx.apply(&m().spec("parameters", json!({"shared_buffers": "lots"})).to_string()).await?;
        eventually("the wrong parameter is reported by name", SOON, || async {
            let cluster = ctx.cluster("b").await?;
            let all = pgwarden_e2e::namespace::conditions(&cluster);
            ensure!(all.contains("shared_buffers"), "{all}");
            Ok(())
        })
        .await?;
        ctx.apply(&m().spec("parameters", json!({"shared_buffers": "40MB"})).to_string()).await?;
        ctx.ready("b", SOON).await?;
        let login = ctx.login("b").await?;
        ensure!(login.sql(None, "SELECT 1").await? == "1", "Postgres serves");
        Ok(())
    })
    .await
}
