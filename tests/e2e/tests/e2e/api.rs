//! The `PostgreSQL` object as people and tools see it: status, columns, scale, events; and what the controller keeps in order.

use anyhow::{Context, ensure};
use pgwarden_e2e::{Ctx, Manifest, Result, eventually, fixture, namespace::condition, shared, until};
use serde_json::{Value, json};

use crate::{MOMENT, SOON};

#[tokio::test]
async fn status_tells_members_roles_timelines_lag_and_conditions() -> Result {
    fixture::reading("api_status", |ctx| async move {
        let record = ctx.record(fixture::NAME).await?.spec;
        let primary = record.holder.context("holder")?.pod;
        eventually("the status is complete", MOMENT, || async {
            let cluster = ctx.cluster(fixture::NAME).await?;
            let status = cluster.status.clone().context("status")?;
            ensure!(status.observed_generation == cluster.metadata.generation, "observedGeneration");
            ensure!(status.phase == "Running", "phase {}", status.phase);
            ensure!(
                status.primary.as_deref() == Some(primary.as_str()),
                "primary {:?}, record {primary}",
                status.primary
            );
            ensure!(
                status.ready == "3/3" && status.ready_replicas == 3 && status.replicas == 3,
                "{}",
                status.ready
            );
            ensure!(status.version.as_deref() == Some("17"), "version {:?}", status.version);
            ensure!(
                status.cluster_id.as_deref() == Some(record.cluster_id.as_str()),
                "clusterId {:?}",
                status.cluster_id
            );
            let names: Vec<_> = status.members.iter().map(|m| m.name.as_str()).collect();
            ensure!(names == fixture::PODS, "members {names:?}");
            for m in &status.members {
                let role = if m.name == primary { "primary" } else { "replica" };
                ensure!(m.role == role && m.ready, "{m:?}");
                ensure!(m.timeline == Some(record.timeline) && m.timeline > Some(0), "timeline of {m:?}");
                ensure!(m.node.is_some() && !m.state.is_empty(), "{m:?}");
                ensure!(m.role == "primary" || m.lag_bytes.is_some_and(|l| l < 1 << 20), "lag of {m:?}");
            }
            for (kind, wanted) in [("Ready", "True"), ("Progressing", "False"), ("Degraded", "False")] {
                let c = condition(&cluster, kind).with_context(|| format!("no condition {kind}"))?;
                ensure!(
                    c.status == wanted && !c.reason.is_empty(),
                    "{kind}={} {} {}",
                    c.status,
                    c.reason,
                    c.message
                );
                ensure!(
                    c.observed_generation == cluster.metadata.generation,
                    "{kind} is of an older generation"
                );
            }
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn kubectl_get_pg_prints_the_columns() -> Result {
    fixture::reading("api_columns", |ctx| async move {
        let primary = ctx.primary(fixture::NAME).await?;
        let table = ctx.kubectl(&["get", "pg", fixture::NAME]).await?;
        let mut lines = table.lines();
        let heads: Vec<_> =
            lines.next().context("a header")?.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect();
        ensure!(heads == ["NAME", "VERSION", "READY", "PRIMARY", "PHASE", "LAST BACKUP", "AGE"], "{heads:?}");
        let row: Vec<_> = lines.next().context("a row")?.split_whitespace().collect();
        ensure!(row.get(..5) == Some(&[fixture::NAME, "17", "3/3", &primary, "Running"]), "{row:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn every_field_is_documented() -> Result {
    fixture::reading("api_explain", |ctx| async move {
        for field in [
            "",
            ".spec",
            ".spec.durability",
            ".spec.backup",
            ".spec.initdb",
            ".spec.service",
            ".status",
            ".status.members",
        ] {
            let text = ctx.kubectl(&["explain", &format!("pg{field}")]).await?;
            ensure!(!text.contains("<no description>"), "pg{field}:\n{text}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn events_tell_who_serves() -> Result {
    fixture::reading("api_events", |ctx| async move {
        let primary = ctx.primary(fixture::NAME).await?;
        until("an event that names the primary", MOMENT, || async {
            let all = ctx.list("events", "").await?;
            let about = |e: &Value| {
                e["involvedObject"]["kind"] == "PostgreSQL" && e["involvedObject"]["name"] == fixture::NAME
            };
            let names = |e: &Value| {
                e["message"].as_str().is_some_and(|m| m.contains(&primary) && m.contains("primary"))
            };
            Ok(all.iter().find(|e| about(e) && names(e)).map(drop))
        })
        .await
    })
    .await
}

#[tokio::test]
async fn scale_subresource_adds_and_removes_replicas() -> Result {
    shared("api_scale", |ctx| async move {
        ctx.apply(&Manifest::new("s").to_string()).await?;
        ctx.ready("s", SOON).await?;
        ctx.kubectl(&["scale", "pg", "s", "--replicas=3"]).await?;
        ctx.ready("s", SOON).await?;
        super::create::row_reaches_a_replica(&ctx, "s", "hello").await?;
        let primary = ctx.primary("s").await?;
        let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'physical'";
        ensure!(ctx.admin(&primary, slots).await? == "2", "a slot for each replica");

        ctx.kubectl(&["scale", "pg", "s", "--replicas=1"]).await?;
        ctx.ready("s", SOON).await?;
        until("the pods of the removed replicas are gone", SOON, || async {
            Ok((ctx.pods("s").await?.len() == 1).then_some(()))
        })
        .await?;
        ensure!(ctx.primary("s").await? == primary, "the primary moved");
        eventually(
            "the slots of the removed replicas are gone: WAL is not kept for them",
            MOMENT,
            || async {
                let n = ctx.admin(&primary, slots).await?;
                ensure!(n == "0", "{n} slots");
                Ok(())
            },
        )
        .await?;
        let login = ctx.login("s").await?;
        ensure!(login.sql(None, "SELECT said FROM hello").await? == "hello", "the row");

        // Their volumes are still there, but the WAL that they would need is not.
        for i in 0..8 {
            ctx.admin(
                &primary,
                &format!("CREATE TABLE filler{i} AS SELECT repeat('x', 1000) FROM generate_series(1, 20000)"),
            )
            .await?;
            ctx.admin(&primary, &format!("DROP TABLE filler{i}")).await?;
            ctx.admin(&primary, "SELECT pg_switch_wal()").await?;
            ctx.admin(&primary, "CHECKPOINT").await?;
        }
        ctx.kubectl(&["scale", "pg", "s", "--replicas=2"]).await?;
        // Told with the remedy, which is then followed. The pod that comes back may be any of the removed ones.
        let message = ctx.reported("s", "CannotFollow", SOON).await?;
        ensure!(message.contains("delete the volume claim data-s-17-"), "{message}");
        let replica = ctx.pods("s").await?.into_iter().map(|p| p.metadata.name.unwrap_or_default());
        let replica = replica.into_iter().find(|p| *p != primary).context("a replica")?;
        ctx.kubectl(&["delete", "pvc", &format!("data-{replica}"), "--wait=false"]).await?;
        ctx.kubectl(&["delete", "pod", &replica, "--wait=false"]).await?;
        ctx.ready("s", SOON).await?;
        ctx.mended("s", "CannotFollow", MOMENT).await?;
        super::create::row_reaches_a_replica(&ctx, "s", "again").await
    })
    .await
}

#[tokio::test]
async fn drift_made_by_hand_is_put_back() -> Result {
    shared("api_drift", |ctx| async move {
        ctx.apply(&Manifest::new("d").replicas(2).to_string()).await?;
        ctx.ready("d", SOON).await?;
        let pods = uids(&ctx).await?;

        for service in ["d", "d-ro", "d-pods"] {
            ctx.kubectl(&["delete", "service", service]).await?;
        }
        ctx.kubectl(&["delete", "role", "d-agent"]).await?;
        ctx.kubectl(&["delete", "rolebinding", "d-agent"]).await?;
        ctx.kubectl(&["delete", "pdb", "d"]).await?;
        put_back(&ctx, "service/d", "the primary's Service", |_| true).await?;
        put_back(&ctx, "service/d-ro", "the replicas' Service", |_| true).await?;
        put_back(&ctx, "service/d-pods", "the headless Service", |_| true).await?;
        put_back(&ctx, "role/d-agent", "the agents' Role", |o| {
            !o["rules"].as_array().is_none_or(Vec::is_empty)
        })
        .await?;
        put_back(&ctx, "rolebinding/d-agent", "the agents' RoleBinding", |_| true).await?;
        put_back(&ctx, "pdb/d", "the PodDisruptionBudget", |_| true).await?;

        let ports = json!({"spec": {"ports": [{"name": "postgres", "port": 5433, "protocol": "TCP"}]}});
        ctx.patch("service/d", &ports).await?;
        put_back(&ctx, "service/d", "the port", |o| {
            o["spec"]["ports"].as_array().is_some_and(|p| p.len() == 1)
                && o["spec"]["ports"][0]["port"] == 5432
        })
        .await?;

        ctx.patch("configmap/d-config", &json!({"data": {"postgresql.conf": null}})).await?;
        put_back(&ctx, "configmap/d-config", "the settings", |o| o["data"]["postgresql.conf"].is_string())
            .await?;
        ctx.patch("configmap/d-config", &json!({"data": {"postgresql.conf": "fsync = off\n"}})).await?;
        put_back(&ctx, "configmap/d-config", "the settings", |o| {
            o["data"]["postgresql.conf"] != "fsync = off\n"
        })
        .await?;

        let label = json!({"metadata": {"labels": {"database.example.com/cluster": "other"}}});
        ctx.patch("statefulset/d-17", &label).await?;
        put_back(&ctx, "statefulset/d-17", "the label", |o| {
            o["metadata"]["labels"]["database.example.com/cluster"] == "d"
        })
        .await?;
        ctx.patch("statefulset/d-17", &json!({"spec": {"replicas": 1}})).await?;
        put_back(&ctx, "statefulset/d-17", "the number of pods", |o| o["spec"]["replicas"] == 2).await?;

        ctx.ready("d", SOON).await?;
        super::create::row_reaches_a_replica(&ctx, "d", "hello").await?;
        let primary = ctx.primary("d").await?;
        ensure!(ctx.admin(&primary, "SHOW fsync").await? == "on", "a tampered setting came into force");
        // Only the replica, which the patched StatefulSet may have taken away, is another pod than before.
        let now = uids(&ctx).await?;
        ensure!(now.iter().any(|p| pods.contains(p)), "pods {pods:?}, then {now:?}");
        Ok(())
    })
    .await
}

async fn put_back(ctx: &Ctx, object: &str, what: &str, good: impl Fn(&Value) -> bool) -> Result {
    let (kind, name) = object.split_once('/').context("kind/name")?;
    eventually(&format!("{what} of {object} is put back"), MOMENT, || async {
        let now = ctx.get(kind, name).await?;
        ensure!(good(&now), "{now:#}");
        Ok(())
    })
    .await
}

async fn uids(ctx: &Ctx) -> Result<Vec<Option<String>>> {
    Ok(ctx.pods("d").await?.into_iter().map(|p| p.metadata.uid).collect())
}
