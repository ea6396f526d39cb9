//! From a manifest to a running, replicated cluster.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use pgwarden_e2e::{Ctx, Manifest, Result, eventually, fixture, repo, shared};

use crate::{MOMENT, SOON};

/// The user's own words: not a character of these two may need to change.
const MY_DATABASE: &str = r#"
apiVersion: database.example.com/v1
kind: PostgreSQL
metadata:
  name: my-database
spec:
  version: "11"
  replicas: 3
  storage: 100Gi
  backup:
    schedule: "0 2 * * *"
"#;
const APP_DATABASE: &str = r#"
apiVersion: database.example.com/v1
kind: PostgreSQL
metadata:
  name: app-database
spec:
  version: "11"
  replicas: 3
  storage: 100Gi
  resources:
    requests: {memory: "1Gi", cpu: "500m"}
    limits: {memory: "2Gi", cpu: "1000m"}
  backup:
    schedule: "0 2 * * *"   # daily at 2
    retention: 7            # keep 7 days
    s3Bucket: "my-backups"
"#;

/// Writes a row through the primary's Service and reads it through the replicas'.
pub(crate) async fn row_reaches_a_replica(ctx: &Ctx, cluster: &str, table: &str) -> Result {
    let login = ctx.login(cluster).await?;
    let replicas = format!("{cluster}-ro.{}.svc", ctx.ns);
    let write =
        format!("CREATE TABLE IF NOT EXISTS {table} (said text); INSERT INTO {table} VALUES ('hello')");
    eventually("a row is written through the primary's Service", MOMENT, || login.sql(None, &write)).await?;
    eventually("the row is read from a replica", MOMENT, || async {
        let row = login
            .sql(Some(&replicas), &format!("SELECT said, pg_is_in_recovery() FROM {table} LIMIT 1"))
            .await?;
        ensure!(row == "hello|t", "read {row:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn sample_becomes_a_replicated_cluster_that_applications_use() -> Result {
    shared("create_sample", |ctx| async move {
        let sample = std::fs::read_to_string(repo().join("deploy/samples/my-postgres.yaml"))?;
        ctx.apply(&sample).await?;
        let cluster = ctx.ready("my-postgres", SOON).await?;
        let status = cluster.status.context("status")?;
        ensure!(status.ready == "3/3", "ready {:?}", status.ready);
        for claim in ctx.list("pvc", "my-postgres").await? {
            ensure!(claim["spec"]["resources"]["requests"]["storage"] == "100Gi", "{claim}");
        }
        row_reaches_a_replica(&ctx, "my-postgres", "hello").await
    })
    .await
}

#[tokio::test]
async fn users_manifests_of_version_11_make_every_object_and_say_what_is_missing() -> Result {
    shared("create_users_manifests", |ctx| async move {
        for (name, manifest) in [("my-database", MY_DATABASE), ("app-database", APP_DATABASE)] {
            ctx.apply(manifest).await?;
            let message = ctx.reported(name, "VersionNotYetSupported", MOMENT).await?;
            ensure!(message.contains("11"), "the message names the version: {message}");
            let set = ctx.get("statefulset", &format!("{name}-11")).await?;
            ensure!(set["spec"]["replicas"] == 3, "replicas {}", set["spec"]["replicas"]);
            let claim = &set["spec"]["volumeClaimTemplates"][0]["spec"];
            ensure!(claim["resources"]["requests"]["storage"] == "100Gi", "claim template {claim}");
            for service in [name.to_owned(), format!("{name}-ro"), format!("{name}-pods")] {
                ctx.get("service", &service).await?;
            }
            let config = ctx.get("configmap", &format!("{name}-config")).await?;
            ensure!(config["data"]["postgresql.conf"].is_string(), "keys of {config}");
            let job = ctx.get("cronjob", &format!("{name}-backup")).await?;
            ensure!(job["spec"]["schedule"] == "0 2 * * *", "schedule {}", job["spec"]["schedule"]);
        }
        let set = ctx.get("statefulset", "app-database-11").await?;
        let containers = set["spec"]["template"]["spec"]["containers"].as_array().context("containers")?;
        let postgres = containers.iter().find(|c| c["name"] == "postgres").context("container postgres")?;
        ensure!(postgres["resources"]["limits"]["memory"] == "2Gi", "resources {}", postgres["resources"]);
        ensure!(postgres["resources"]["requests"]["cpu"] == "500m", "resources {}", postgres["resources"]);
        // A second apply of the same words changes nothing.
        let again = ctx.apply(APP_DATABASE).await?;
        ensure!(again.contains("unchanged"), "{again}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn versions_15_and_18_run_with_one_and_two_instances() -> Result {
    shared("create_versions", |ctx| async move {
        for (version, replicas) in [("15", 2), ("18", 2), ("18", 1)] {
            let name = format!("v{version}-{replicas}");
            ctx.apply(&Manifest::new(&name).replicas(replicas).spec("version", version).to_string()).await?;
        }
        for (version, replicas) in [("15", 2), ("18", 2), ("18", 1)] {
            let name = format!("v{version}-{replicas}");
            ctx.ready(&name, SOON).await?;
            let login = ctx.login(&name).await?;
            let number = login.sql(None, "SHOW server_version_num").await?;
            ensure!(number.starts_with(version), "version {number}");
            if replicas > 1 {
                row_reaches_a_replica(&ctx, &name, "hello").await?;
            }
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn rows_written_through_the_primary_are_read_from_replicas_and_those_never_from_the_primary() -> Result
{
    fixture::reading("create_services", |ctx| async move {
        let login = ctx.login(fixture::NAME).await?;
        ensure!(
            login.sql(None, "SELECT pg_is_in_recovery()").await? == "f",
            "the primary's Service answers from a replica"
        );
        let replicas = format!("{}-ro.{}.svc", fixture::NAME, ctx.ns);
        let mut answered = BTreeSet::new();
        for _ in 0..20 {
            let query =
                "SELECT pg_is_in_recovery() || ' ' || (SELECT said FROM canary) || ' ' || inet_server_addr()";
            let row = login.sql(Some(&replicas), query).await?;
            let server = row
                .strip_prefix(&format!("true {} ", fixture::CANARY))
                .with_context(|| format!("read {row:?}"))?;
            answered.insert(server.to_owned());
        }
        ensure!(answered.len() == 2, "both replicas answer: {answered:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn replicas_stream_through_physical_slots_with_client_certificates_over_tls() -> Result {
    fixture::reading("create_streaming", |ctx| async move {
        let primary = ctx.primary(fixture::NAME).await?;
        let query = "SELECT count(*) FROM pg_stat_replication r JOIN pg_stat_ssl s USING (pid) \
                     JOIN pg_replication_slots l ON l.active_pid = r.pid AND l.slot_name = r.application_name \
                     WHERE r.state = 'streaming' AND r.usename = 'pgwarden_replication' AND l.slot_type = 'physical' \
                     AND NOT l.temporary AND s.ssl AND s.version IN ('TLSv1.2', 'TLSv1.3') AND s.client_dn = '/CN=pgwarden_replication'";
        eventually("two replicas stream so", MOMENT, || async {
            let n = ctx.admin(&primary, query).await?;
            if n != "2" {
                let all = "SELECT r.*, s.*, l.slot_name FROM pg_stat_replication r JOIN pg_stat_ssl s USING (pid) \
                           LEFT JOIN pg_replication_slots l ON l.active_pid = r.pid";
                anyhow::bail!("{n} do:\n{}", ctx.admin(&primary, all).await?);
            }
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn one_initdb_with_checksums_logical_wal_utf8_and_scram() -> Result {
    fixture::reading("create_initdb", |ctx| async move {
        let record = ctx.record(fixture::NAME).await?.spec;
        let cluster = ctx.cluster(fixture::NAME).await?;
        ensure!(!record.system_identifier.is_empty(), "the record has no system identifier");
        ensure!(cluster.status.and_then(|s| s.system_identifier) == Some(record.system_identifier.clone()), "status");
        for pod in fixture::PODS {
            let control = ctx.exec(pod, "postgres", &["pg_controldata", "-D", pgwarden_api::pod::PGDATA]).await?;
            let line = control.lines().find(|l| l.starts_with("Database system identifier")).context("pg_controldata")?;
            ensure!(line.ends_with(&format!(" {}", record.system_identifier)), "{pod}: {line}");
        }
        let primary = ctx.primary(fixture::NAME).await?;
        for (setting, wanted) in [
            ("data_checksums", "on"),
            ("wal_level", "logical"),
            ("server_encoding", "UTF8"),
            ("password_encryption", "scram-sha-256"),
            ("fsync", "on"),
            ("full_page_writes", "on"),
        ] {
            let have = ctx.admin(&primary, &format!("SHOW {setting}")).await?;
            ensure!(have == wanted, "{setting} is {have}");
        }
        let query = "SELECT datcollate || ' ' || pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'app'";
        let app = ctx.admin(&primary, query).await?;
        ensure!(app == "C.UTF-8 UTF8", "database app has {app}");
        let verifier = ctx.admin(&primary, "SELECT left(rolpassword, 14) FROM pg_authid WHERE rolname = 'app'").await?;
        ensure!(verifier == "SCRAM-SHA-256$", "the application's password is stored as {verifier}");
        Ok(())
    })
    .await
}
