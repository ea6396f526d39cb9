//! What outlives a deletion, a pod, a process.

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use pgwarden_api::PostgreSQLRecord;
use pgwarden_e2e::{Ctx, Manifest, Result, eventually, pods::restarts, shared, sql::Login, until};
use serde_json::json;

use super::create::row_reaches_a_replica;
use crate::{MOMENT, SOON};

const STARTED: &str = "SELECT pg_postmaster_start_time()";

async fn fill(login: &Login) -> Result {
    login.sql(None, "CREATE TABLE kept AS SELECT i FROM generate_series(1, 1000) i").await?;
    Ok(())
}

async fn filled(login: &Login) -> Result {
    eventually("every row is there", MOMENT, || async {
        let n = login.sql(None, "SELECT count(*) FROM kept").await?;
        ensure!(n == "1000", "{n} rows");
        Ok(())
    })
    .await
}

/// Deletes a cluster and waits until its pods are gone.
async fn delete(ctx: &Ctx, name: &str) -> Result {
    ctx.kubectl(&["delete", "pg", name, "--timeout=120s"]).await?;
    until("its pods are gone", SOON, || async { Ok(ctx.pods(name).await?.is_empty().then_some(())) }).await
}

#[tokio::test]
async fn deletion_keeps_the_data_and_the_same_manifest_finds_it() -> Result {
    shared("lifecycle_retain", |ctx| async move {
        let manifest = Manifest::new("r").replicas(2).to_string();
        ctx.apply(&manifest).await?;
        ctx.ready("r", SOON).await?;
        let login = ctx.login("r").await?;
        fill(&login).await?;
        let record = ctx.record("r").await?.spec;

        delete(&ctx, "r").await?;
        for kind in
            ["statefulset", "service", "configmap", "serviceaccount", "role", "rolebinding", "pdb", "cronjob"]
        {
            until(&format!("{kind} objects are gone"), MOMENT, || async {
                Ok(ctx.list(kind, "r").await?.is_empty().then_some(()))
            })
            .await?;
        }
        ensure!(ctx.list("pvc", "r").await?.len() == 2, "the volumes");
        let secrets: Vec<_> =
            ctx.list("secret", "r").await?.iter().map(|s| s["metadata"]["name"].to_string()).collect();
        for kept in ["r-app", "r-ca"] {
            ensure!(secrets.iter().any(|s| s.contains(kept)), "{kept} is gone: {secrets:?}");
        }
        ensure!(ctx.record("r").await?.spec.system_identifier == record.system_identifier, "the record");

        ctx.apply(&manifest).await?;
        ctx.ready("r", SOON).await?;
        let again = ctx.login("r").await?;
        ensure!(again.password == login.password && again.ca == login.ca, "password or authority changed");
        filled(&login).await?;
        let now = ctx.record("r").await?.spec;
        ensure!(
            now.system_identifier == record.system_identifier && now.cluster_id == record.cluster_id,
            "{now:?}"
        );
        row_reaches_a_replica(&ctx, "r", "hello").await
    })
    .await
}

#[tokio::test]
async fn data_without_a_record_is_never_initialised_over() -> Result {
    shared("lifecycle_no_record", |ctx| async move {
        let manifest = Manifest::new("w").to_string();
        ctx.apply(&manifest).await?;
        ctx.ready("w", SOON).await?;
        fill(&ctx.login("w").await?).await?;
        let record = ctx.record("w").await?;
        let node = pgwarden_e2e::pods::node(&ctx.pod("w-17-0").await?)?;
        let identity = || async {
            let read = format!(
                "od -An -tu8 -N8 /run/node/volumes/{}.data-w-17-0.*/pgdata/global/pg_control",
                ctx.ns
            );
            Ok::<_, anyhow::Error>(
                pgwarden_e2e::ctl(&["on", &node, "sh", "-c", &read]).await?.trim().to_owned(),
            )
        };
        ensure!(identity().await? == record.spec.system_identifier, "pg_control read from the node's side");

        delete(&ctx, "w").await?;
        ctx.kubectl(&["delete", "pgrecord", "w"]).await?;
        ctx.apply(&manifest).await?;
        let message = ctx.reported("w", "DataWithoutRecord", MOMENT).await?;
        ensure!(
            message.contains("data-w-17-0") && message.len() > 40,
            "the message names the volume and the remedy: {message}"
        );
        ensure!(identity().await? == record.spec.system_identifier, "another initdb was run");
        let made = ctx.api::<PostgreSQLRecord>().get_opt("w").await?;
        ensure!(
            made.is_none_or(|r| r.spec.system_identifier.is_empty() && r.spec.holder.is_none()),
            "a record was made up"
        );

        // Mended as the message says: the record is put back.
        let mut back = PostgreSQLRecord::new("w", record.spec.clone());
        back.metadata.labels = record.metadata.labels.clone();
        ctx.apply(&serde_json::to_string(&back)?).await?;
        ctx.ready("w", SOON).await?;
        filled(&ctx.login("w").await?).await?;
        ensure!(ctx.record("w").await?.spec.system_identifier == record.spec.system_identifier, "identity");
        ctx.mended("w", "DataWithoutRecord", MOMENT).await
    })
    .await
}

#[tokio::test]
async fn deletion_policy_delete_leaves_nothing() -> Result {
    shared("lifecycle_delete", |ctx| async move {
        let kinds = "pg,pgrecord,statefulset,service,configmap,secret,serviceaccount,role,rolebinding,pdb,cronjob,pvc,pod,endpointslice";
        let names = || async {
            let text = ctx.kubectl(&["get", kinds, "-o", "name"]).await?;
            Ok::<Vec<String>, anyhow::Error>(text.lines().map(Into::into).collect())
        };
        until("the namespace's own objects are there", MOMENT, || async {
            Ok(names().await?.contains(&"configmap/kube-root-ca.crt".to_owned()).then_some(()))
        })
        .await?;
        let before = names().await?;
        let backup = json!({"schedule": "0 2 * * *"});
        ctx.apply(&Manifest::new("d").replicas(2).spec("backup", backup).spec("deletionPolicy", "Delete").to_string()).await?;
        ctx.ready("d", SOON).await?;
        ctx.kubectl(&["delete", "pg", "d", "--timeout=120s"]).await?;
        eventually("nothing is left", SOON, || async {
            let left: Vec<_> = names().await?.into_iter().filter(|n| !before.contains(n)).collect();
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_paused_cluster_is_left_alone_until_it_is_not() -> Result {
    shared("lifecycle_paused", |ctx| async move {
        ctx.apply(&Manifest::new("p").to_string()).await?;
        ctx.ready("p", SOON).await?;
        ctx.kubectl(&["annotate", "pg", "p", "database.example.com/paused=true"]).await?;
        until("the pause is seen", MOMENT, || async {
            Ok((ctx.cluster("p").await?.status.is_some_and(|s| s.phase == "Paused")).then_some(()))
        })
        .await?;
        ctx.kubectl(&["delete", "service", "p-ro"]).await?;
        ctx.patch("pg/p", &json!({"spec": {"replicas": 2}})).await?;
        // Another cluster's creation is proof that the controller had time to do what it must not.
        ctx.apply(&Manifest::new("q").to_string()).await?;
        ctx.ready("q", SOON).await?;
        ensure!(
            ctx.kubectl(&["get", "service", "p-ro", "--ignore-not-found", "-o", "name"]).await?.is_empty(),
            "a paused cluster's Service was made"
        );
        ensure!(
            ctx.get("statefulset", "p-17").await?["spec"]["replicas"] == 1,
            "a paused cluster was scaled"
        );
        ctx.kubectl(&["annotate", "pg", "p", "database.example.com/paused-"]).await?;
        ctx.ready("p", SOON).await?;
        ctx.get("service", "p-ro").await?;
        ensure!(ctx.pods("p").await?.len() == 2, "pods");
        Ok(())
    })
    .await
}

/// What must be so after every fault of a primary: the same one serves, the rows are there, the replica streams, and at no
/// time were two out of recovery.
async fn same_primary_comes_back(ctx: &Ctx, primary: &str, login: &Login) -> Result {
    ctx.ready("k", SOON).await?;
    ensure!(ctx.primary("k").await? == primary, "another primary");
    filled(login).await?;
    row_reaches_a_replica(ctx, "k", "hello").await?;
    eventually("one primary, one replica that streams", MOMENT, || async {
        let (mut primaries, mut streaming) = (0, String::new());
        for pod in ["k-17-0", "k-17-1"] {
            if ctx.admin(pod, "SELECT pg_is_in_recovery()").await? == "f" {
                primaries += 1;
                streaming = ctx
                    .admin(pod, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")
                    .await?;
            }
        }
        ensure!(primaries == 1 && streaming == "1", "{primaries} primaries, {streaming} streaming");
        Ok(())
    })
    .await
}

/// Deletes a pod and waits until another has its name.
async fn delete_pod(ctx: &Ctx, pod: &str, force: bool) -> Result {
    let uid = ctx.pod(pod).await?.metadata.uid;
    let by_force: &[&str] = if force { &["--grace-period=0", "--force"] } else { &[] };
    ctx.kubectl(&[&["delete", "pod", pod], by_force].concat()).await?;
    until(&format!("another pod is called {pod}"), SOON, || async {
        let now = ctx.api::<Pod>().get_opt(pod).await?;
        Ok(now.filter(|p| p.metadata.uid != uid).map(drop))
    })
    .await
}

#[tokio::test]
async fn the_same_primary_comes_back_after_every_kind_of_death() -> Result {
    shared("lifecycle_deaths", |ctx| async move {
        ctx.apply(&Manifest::new("k").replicas(2).to_string()).await?;
        ctx.ready("k", SOON).await?;
        let login = ctx.login("k").await?;
        fill(&login).await?;
        let primary = ctx.primary("k").await?;
        let system = ctx.record("k").await?.spec.system_identifier;

        // The postmaster: restarted in place, without a new container.
        let before = ctx.admin(&primary, STARTED).await?;
        ctx.postmaster(&primary, MOMENT).await?.signal("KILL").await?;
        eventually("Postgres runs again", MOMENT, || async {
            let now = ctx.admin(&primary, STARTED).await?;
            ensure!(now != before, "still the old one");
            Ok(())
        })
        .await?;
        same_primary_comes_back(&ctx, &primary, &login).await.context("postmaster killed")?;
        let pod: Pod = ctx.pod(&primary).await?;
        ensure!(restarts(&pod, "postgres") == 0, "the container was restarted, not Postgres in it");

        // The agent: Postgres goes on under the new one.
        let before = ctx.admin(&primary, STARTED).await?;
        let agent = ctx.process(&primary, "agent", "pgwarden-agent", MOMENT).await?;
        let dead: Vec<u32> = ctx
            .processes(&primary)
            .await?
            .into_iter()
            .filter(|p| p.container == "agent")
            .map(|p| p.pid)
            .collect();
        agent.signal("KILL").await?;
        until("another agent runs", MOMENT, || async {
            let all = ctx.processes(&primary).await?;
            Ok(all.iter().any(|p| p.container == "agent" && !dead.contains(&p.pid)).then_some(()))
        })
        .await?;
        same_primary_comes_back(&ctx, &primary, &login).await.context("agent killed")?;
        ensure!(ctx.admin(&primary, STARTED).await? == before, "an agent's restart restarted Postgres");

        // The supervisor: PID 1, so all of the container dies with it.
        ctx.process(&primary, "postgres", "/pgwarden/supervisor", MOMENT).await?.signal("KILL").await?;
        until("the container was restarted", SOON, || async {
            Ok((restarts(&ctx.pod(&primary).await?, "postgres") >= 1).then_some(()))
        })
        .await?;
        same_primary_comes_back(&ctx, &primary, &login).await.context("supervisor killed")?;

        for force in [false, true] {
            delete_pod(&ctx, &primary, force).await?;
            same_primary_comes_back(&ctx, &primary, &login)
                .await
                .with_context(|| format!("pod deleted, force {force}"))?;
        }

        let replica = if primary == "k-17-0" { "k-17-1" } else { "k-17-0" };
        ctx.postmaster(replica, MOMENT).await?.signal("KILL").await?;
        same_primary_comes_back(&ctx, &primary, &login).await.context("replica's postmaster killed")?;
        delete_pod(&ctx, replica, false).await?;
        same_primary_comes_back(&ctx, &primary, &login).await.context("replica's pod deleted")?;

        ensure!(ctx.record("k").await?.spec.system_identifier == system, "identity");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_frozen_agent_means_a_dead_primary_and_a_thawed_one_brings_it_back() -> Result {
    shared("lifecycle_frozen_agent", |ctx| async move {
        ctx.apply(&Manifest::new("z").to_string()).await?;
        ctx.ready("z", SOON).await?;
        let login = ctx.login("z").await?;
        fill(&login).await?;
        let postmaster = ctx.postmaster("z-17-0", MOMENT).await?;
        let agents: Vec<_> =
            ctx.processes("z-17-0").await?.into_iter().filter(|p| p.container == "agent").collect();
        ensure!(!agents.is_empty(), "no agent");
        for a in &agents {
            a.signal("STOP").await?;
        }
        let dead = until("the supervisor kills Postgres at its deadline", MOMENT, || async {
            Ok((!postmaster.runs()).then_some(()))
        })
        .await;
        for a in &agents {
            a.signal("CONT").await?;
        }
        dead?;
        ctx.ready("z", SOON).await?;
        filled(&login).await
    })
    .await
}
