//! Bad input that only shows when it is tried, and trouble at the wrong moment. Each: a clear message, nothing lost, and the
//! cluster converges when it is mended.

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use pgwarden_e2e::{Ctx, Manifest, Result, ctl, eventually, namespace::condition, shared, until};
use serde_json::json;

use super::create::row_reaches_a_replica;
use crate::{MOMENT, SOON};

/// Waits until the conditions' messages contain all these words.
async fn told(ctx: &Ctx, cluster: &str, words: &[&str]) -> Result<String> {
    eventually(&format!("{cluster} tells {words:?}"), SOON, || async {
        let c = ctx.cluster(cluster).await?;
        let all = pgwarden_e2e::namespace::conditions(&c);
        ensure!(words.iter().all(|w| all.contains(w)), "{all}");
        ensure!(condition(&c, "Ready").is_some_and(|r| r.status == "False"), "Ready, although: {all}");
        Ok(all)
    })
    .await
}

/// The cluster serves its application.
async fn serves(ctx: &Ctx, cluster: &str) -> Result {
    ctx.ready(cluster, SOON).await?;
    let login = ctx.login(cluster).await?;
    eventually(&format!("{cluster} serves"), MOMENT, || async {
        let one = login.sql(None, "SELECT 1").await?;
        ensure!(one == "1", "{one}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_image_that_does_not_exist_is_named_and_a_good_one_mends_it() -> Result {
    shared("trouble_image", |ctx| async move {
        let m = || Manifest::new("i").replicas(2);
        ctx.apply(&m().spec("image", "docker.io/pgwarden/missing:1").to_string()).await?;
        told(&ctx, "i", &["docker.io/pgwarden/missing:1"]).await?;
        ctx.apply(&m().spec("image", "postgres:17").to_string()).await?;
        serves(&ctx, "i").await?;
        row_reaches_a_replica(&ctx, "i", "hello").await
    })
    .await
}

#[tokio::test]
async fn an_image_without_postgres_is_named_and_a_good_one_mends_it() -> Result {
    shared("trouble_no_postgres", |ctx| async move {
        let m = || Manifest::new("i");
        ctx.apply(&m().spec("image", "docker.io/pgwarden/no-postgres:1").to_string()).await?;
        told(&ctx, "i", &["no PostgreSQL", "spec.image"]).await?;
        ctx.apply(&m().to_string()).await?;
        serves(&ctx, "i").await
    })
    .await
}

#[tokio::test]
async fn an_image_of_another_major_version_is_refused_and_a_good_one_mends_it() -> Result {
    shared("trouble_other_major", |ctx| async move {
        ctx.apply(&Manifest::new("i").spec("image", "postgres:15").to_string()).await?;
        told(&ctx, "i", &["15", "17", "spec.image"]).await?;
        ctx.apply(&Manifest::new("i").to_string()).await?;
        serves(&ctx, "i").await
    })
    .await
}

#[tokio::test]
async fn a_volume_that_is_full_at_initdb_is_told_and_a_larger_one_mends_it() -> Result {
    shared("trouble_volume_full", |ctx| async move {
        let m = || Manifest::new("f").spec("deletionPolicy", "Delete");
        ctx.apply(&m().spec("storage", "24Mi").to_string()).await?;
        told(&ctx, "f", &["the volume is full", "spec.storage"]).await?;
        // The test cluster's StorageClass does not let volumes grow: said, with the remedy. The cluster, which has no data, is then
        // deleted and applied again.
        ctx.apply(&m().to_string()).await?;
        let message = ctx.reported("f", "StorageResizePending", MOMENT).await?;
        ensure!(message.contains("data-f-17-0"), "{message}");
        ctx.kubectl(&["delete", "pg", "f", "--timeout=120s"]).await?;
        until("its volume is gone", MOMENT, || async {
            Ok(ctx.list("pvc", "f").await?.is_empty().then_some(()))
        })
        .await?;
        ctx.apply(&m().to_string()).await?;
        serves(&ctx, "f").await
    })
    .await
}

#[tokio::test]
async fn a_storage_class_that_is_missing_is_named_and_making_it_mends_it() -> Result {
    shared("trouble_storage_class", |ctx| async move {
        let class = format!("later-{}", ctx.ns);
        ctx.apply(&Manifest::new("s").spec("storageClassName", class.as_str()).to_string()).await?;
        let message = ctx.reported("s", "StorageClassNotFound", MOMENT).await?;
        ensure!(message.contains(&class), "{message}");
        let object = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": class},
            "provisioner": "pgwarden.test/loop", "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete",
        });
        ctx.apply(&object.to_string()).await?;
        let outcome = serves(&ctx, "s").await;
        let gone = ctx.mended("s", "StorageClassNotFound", MOMENT).await;
        ctl::kubectl(&["delete", "storageclass", &class]).await?;
        outcome.and(gone)
    })
    .await
}

/// `foo-ro` would be the primary's Service of one cluster and the replicas' of the other: who came first keeps its objects.
async fn name_conflict(ctx: &Ctx, first: &str, second: &str) -> Result {
    ctx.apply(&Manifest::new(first).spec("deletionPolicy", "Delete").to_string()).await?;
    serves(ctx, first).await?;
    let uid = |kind: &'static str, name: String| async move {
        let o = ctx.get(kind, &name).await?;
        Ok::<_, anyhow::Error>((
            o["metadata"]["uid"].clone(),
            o["metadata"]["ownerReferences"].clone(),
            o["spec"].clone(),
        ))
    };
    let before = uid("service", "foo-ro".into()).await?;
    ctx.apply(&Manifest::new(second).to_string()).await?;
    let message = ctx.reported(second, "NameConflict", MOMENT).await?;
    ensure!(message.contains("foo-ro"), "the message names the object: {message}");
    ensure!(uid("service", "foo-ro".into()).await? == before, "the Service of {first} was adopted");
    serves(ctx, first).await?;
    ctx.kubectl(&["delete", "pg", first, "--timeout=120s"]).await?;
    serves(ctx, second).await?;
    ctx.mended(second, "NameConflict", MOMENT).await
}

#[tokio::test]
async fn a_cluster_foo_ro_beside_foo_adopts_nothing_in_either_order() -> Result {
    shared("trouble_name_conflict", |ctx| async move {
        let other = ctx.sibling("b").await?;
        let (one, two) =
            tokio::join!(name_conflict(&ctx, "foo", "foo-ro"), name_conflict(&other, "foo-ro", "foo"));
        one.context("foo first")?;
        two.context("foo-ro first")
    })
    .await
}

#[tokio::test]
async fn objects_of_others_are_never_adopted() -> Result {
    shared("trouble_foreign", |ctx| async move {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x-config"}, "data": {"mine": "yes"}});
        ctx.apply(&map.to_string()).await?;
        ctx.apply(&Manifest::new("x").to_string()).await?;
        let message = ctx.reported("x", "NameConflict", MOMENT).await?;
        ensure!(message.contains("x-config"), "{message}");
        let now = ctx.get("configmap", "x-config").await?;
        ensure!(now["data"] == json!({"mine": "yes"}) && now["metadata"]["ownerReferences"].is_null(), "{now:#}");
        ctx.kubectl(&["delete", "configmap", "x-config"]).await?;
        serves(&ctx, "x").await
    })
    .await
}

#[tokio::test]
async fn clusters_of_one_name_in_two_namespaces_have_nothing_in_common() -> Result {
    shared("trouble_two_namespaces", |ctx| async move {
        let other = ctx.sibling("b").await?;
        for c in [&ctx, &other] {
            c.apply(&Manifest::new("same").to_string()).await?;
        }
        for c in [&ctx, &other] {
            serves(c, "same").await?;
        }
        let (one, two) = (ctx.login("same").await?, other.login("same").await?);
        one.sql(None, "CREATE TABLE mine (i int)").await?;
        two.sql(None, "CREATE TABLE mine (i int, j int)").await?;
        ensure!(one.password != two.password && one.ca != two.ca, "a secret is shared");
        let id = |c: Ctx| async move { Ok::<_, anyhow::Error>(c.record("same").await?.spec) };
        let (a, b) = (id(ctx.clone()).await?, id(other.clone()).await?);
        ensure!(
            a.system_identifier != b.system_identifier && a.cluster_id != b.cluster_id,
            "an identity is shared"
        );
        // The one's password does not open the other.
        let wrong = one.sql(Some(&two.host), "SELECT 1").await;
        ensure!(wrong.is_err_and(|e| format!("{e:#}").contains("password authentication failed")), "let in");
        // Deleting one leaves the other alone.
        other.patch("pg/same", &json!({"spec": {"deletionPolicy": "Delete"}})).await?;
        other.kubectl(&["delete", "pg", "same", "--timeout=120s"]).await?;
        ensure!(one.sql(None, "SELECT count(*) FROM mine").await? == "0", "the remaining cluster");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_secret_made_beforehand_is_used_and_one_that_lacks_a_key_is_told() -> Result {
    shared("trouble_secret", |ctx| async move {
        let secret = |name: &str, data: serde_json::Value| {
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})
                .to_string()
        };
        ctx.apply(&secret(
            "good-app",
            json!({"username": "shop", "password": "Geheim,1", "dbname": "orders"}),
        ))
        .await?;
        ctx.apply(&secret("bad-app", json!({"username": "app"}))).await?;
        for name in ["good", "bad"] {
            ctx.apply(&Manifest::new(name).to_string()).await?;
        }
        let message = ctx.reported("bad", "AppSecretInvalid", MOMENT).await?;
        ensure!(message.contains("bad-app") && message.contains("password"), "{message}");
        until("an event tells it too", MOMENT, || async {
            let all = ctx.list("events", "").await?;
            let tells = |e: &serde_json::Value| {
                e["involvedObject"]["name"] == "bad"
                    && e["message"].as_str().is_some_and(|m| m.contains("password"))
            };
            Ok(all.iter().any(tells).then_some(()))
        })
        .await?;

        ctx.ready("good", SOON).await?;
        let conninfo =
            format!("host=good.{}.svc user=shop dbname=orders password=Geheim,1 sslmode=require", ctx.ns);
        let who =
            pgwarden_e2e::sql::psql(&conninfo, "SELECT current_user || ' ' || current_database()").await?;
        ensure!(who == "shop orders", "{who}");
        let kept = ctx.get("secret", "good-app").await?;
        ensure!(kept["data"]["password"] == "R2VoZWltLDE=", "the user's password was replaced");

        ctx.apply(&secret("bad-app", json!({"username": "app", "password": "now there"}))).await?;
        ctx.ready("bad", SOON).await?;
        let conninfo =
            format!("host=bad.{}.svc user=app dbname=app password='now there' sslmode=require", ctx.ns);
        eventually("its password works", SOON, || pgwarden_e2e::sql::psql(&conninfo, "SELECT 1")).await?;
        // A user's Secret is not ours to delete.
        ctx.patch("pg/good", &json!({"spec": {"deletionPolicy": "Delete"}})).await?;
        ctx.kubectl(&["delete", "pg", "good", "--timeout=120s"]).await?;
        ctx.get("secret", "good-app").await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_copy_stopped_half_way_is_never_started_but_made_anew() -> Result {
    shared("trouble_half_copy", |ctx| async move {
        let m = || Manifest::new("h").spec("storage", "1Gi");
        ctx.apply(&m().to_string()).await?;
        serves(&ctx, "h").await?;
        let login = ctx.login("h").await?;
        login.sql(None, "CREATE TABLE big AS SELECT i, repeat(md5(i::text), 30) AS t FROM generate_series(1, 200000) i").await?;
        ctx.apply(&m().replicas(2).to_string()).await?;

        // Hold the copy when it has begun, so that it is half-way for sure when its pod goes.
        let copy = ctx.process("h-17-1", "postgres", "pg_basebackup", SOON).await?;
        let progress = "SELECT backup_streamed FROM pg_stat_progress_basebackup WHERE phase = 'streaming database files'";
        until("files are being copied", SOON, || async {
            let n: u64 = ctx.admin("h-17-0", progress).await?.parse().unwrap_or(0);
            ensure!(copy.runs(), "the copy ended before it could be held");
            Ok((n > 0).then_some(()))
        })
        .await?;
        copy.signal("STOP").await?;
        let doomed = ctx.pod("h-17-1").await?;
        ctx.kubectl(&["delete", "pod", "h-17-1"]).await?;

        ctx.ready("h", SOON).await?;
        let pod = ctx.pod("h-17-1").await?;
        ensure!(pod.uid() != doomed.uid(), "the pod was not replaced");
        let log = ctx.kubectl(&["logs", "h-17-1", "-c", "postgres"]).await?;
        ensure!(!log.contains("PANIC") && !log.contains("invalid primary checkpoint"), "a half copy was started:\n{log}");
        eventually("the new replica has every row", MOMENT, || async {
            let rows = ctx.admin_in("h-17-1", "app", "SELECT count(*), pg_is_in_recovery() FROM big").await?;
            ensure!(rows == "200000|t", "{rows}");
            Ok(())
        })
        .await?;
        // Nothing of the first attempt is left to fill the disk.
        let size: u64 = ctx.exec("h-17-1", "postgres", &["sh", "-c", "du -sk /pgdata | cut -f1"]).await?.trim().parse()?;
        let source: u64 = ctx.exec("h-17-0", "postgres", &["sh", "-c", "du -sk /pgdata | cut -f1"]).await?.trim().parse()?;
        ensure!(size < source + 150_000, "{size} kB on the replica, {source} kB on the primary");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn more_instances_than_nodes_run_and_say_that_they_are_not_spread() -> Result {
    shared("trouble_spread", |ctx| async move {
        let nodes: serde_json::Value =
            serde_json::from_str(&ctl::kubectl(&["get", "nodes", "-o", "json"]).await?)?;
        let nodes = nodes["items"].as_array().context("nodes")?.len();
        let replicas = i32::try_from(nodes)? + 1;
        // Born alone, so that the first instance is the primary and the others can go again.
        ctx.apply(&Manifest::new("n").replicas(1).to_string()).await?;
        ctx.ready("n", SOON).await?;
        ctx.kubectl(&["scale", "pg", "n", &format!("--replicas={replicas}")]).await?;
        let message = ctx.reported("n", "NodesTooFew", SOON).await?;
        ensure!(message.contains("node"), "{message}");
        ctx.ready("n", SOON).await?;
        let used: std::collections::BTreeSet<_> =
            ctx.pods("n").await?.iter().filter_map(|p: &Pod| p.spec.as_ref()?.node_name.clone()).collect();
        ensure!(used.len() == nodes, "every node is used: {used:?}");
        // One instance shares its node with no other: nothing is said any more.
        ctx.kubectl(&["scale", "pg", "n", "--replicas=1"]).await?;
        ctx.mended("n", "NodesTooFew", SOON).await
    })
    .await
}

#[tokio::test]
async fn a_replica_whose_volume_is_lost_is_cloned_under_a_new_identity() -> Result {
    shared("trouble_lost_volume", |ctx| async move {
        ctx.apply(&Manifest::new("l").replicas(2).to_string()).await?;
        ctx.ready("l", SOON).await?;
        row_reaches_a_replica(&ctx, "l", "hello").await?;
        let slots = "SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'physical'";
        let primary = ctx.primary("l").await?;
        let replica = if primary == "l-17-0" { "l-17-1" } else { "l-17-0" };
        let old = ctx.admin(&primary, slots).await?;
        let volume = ctx.api::<PersistentVolumeClaim>().get(&format!("data-{replica}")).await?.uid();

        ctx.kubectl(&["delete", "pvc", &format!("data-{replica}"), "--wait=false"]).await?;
        ctx.kubectl(&["delete", "pod", replica]).await?;
        until("another volume is there", SOON, || async {
            let now = ctx.api::<PersistentVolumeClaim>().get(&format!("data-{replica}")).await?;
            Ok((now.uid() != volume).then_some(()))
        })
        .await?;
        ctx.ready("l", SOON).await?;
        eventually("a new slot takes the old one's place", MOMENT, || async {
            let now = ctx.admin(&primary, slots).await?;
            ensure!(now != old && now.lines().count() == 1, "slots {now:?}, before {old:?}");
            Ok(())
        })
        .await?;
        row_reaches_a_replica(&ctx, "l", "again").await
    })
    .await
}

#[tokio::test]
async fn a_primary_whose_volume_is_lost_is_not_initialised_again() -> Result {
    shared("trouble_lost_primary", |ctx| async move {
        ctx.apply(&Manifest::new("l").to_string()).await?;
        serves(&ctx, "l").await?;
        let before = ctx.record("l").await?.spec.system_identifier;
        ctx.kubectl(&["delete", "pvc", "data-l-17-0", "--wait=false"]).await?;
        ctx.kubectl(&["delete", "pod", "l-17-0"]).await?;
        // The record knows a system identifier: an empty directory is no reason for another initdb, and nobody has the data.
        eventually("it is told that the data is gone", SOON, || async {
            let c = ctx.cluster("l").await?;
            ensure!(condition(&c, "Ready").is_some_and(|r| r.status == "False"), "Ready");
            let member = c.status.context("status")?.members.into_iter().next().context("member")?;
            ensure!(
                !member.ready && member.message.as_ref().is_some_and(|m| m.contains("volume is empty")),
                "{member:?}"
            );
            Ok(())
        })
        .await?;
        ensure!(ctx.record("l").await?.spec.system_identifier == before, "another initdb was recorded");
        let files = ctx
            .exec("l-17-0", "postgres", &["sh", "-c", "ls /pgdata/pgdata/PG_VERSION 2>/dev/null || true"])
            .await?;
        ensure!(files.trim().is_empty(), "another initdb was run: {files}");
        Ok(())
    })
    .await
}
