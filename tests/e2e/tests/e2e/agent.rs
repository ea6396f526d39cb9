//! The agents' gRPC as people and strangers see it, with grpcurl.

use anyhow::{Context, ensure};
use pgwarden_e2e::{Ctx, Manifest, Result, ctl, eventually, fixture, grpc::Caller, pods::address, shared};
use serde_json::Value;

use crate::{MOMENT, SOON};

const STATUS: &str = "pgwarden.v1.Agent/Status";

#[tokio::test]
async fn status_answers_a_viewer_with_role_positions_slots_disk_versions_and_uptime() -> Result {
    fixture::reading("agent_status", |ctx| async move {
        let primary = ctx.primary(fixture::NAME).await?;
        eventually("every agent's status is complete", MOMENT, || async {
            for pod in fixture::PODS {
                let s = ctx.call(fixture::NAME, "viewer", pod, STATUS).await?;
                let number =
                    |v: &Value| v.as_str().map_or_else(|| v.as_f64(), |t| t.parse().ok()).unwrap_or(-1.0);
                ensure!(s["pod"] == *pod && s["cluster"] == fixture::NAME && s["ready"] == true, "{s:#}");
                ensure!(number(&s["timeline"]) >= 1.0 && number(&s["epoch"]) >= 1.0, "{s:#}");
                ensure!(s["versions"]["postgres"].as_str().is_some_and(|v| v.starts_with("17")), "{s:#}");
                ensure!(s["versions"]["agent"] == env!("CARGO_PKG_VERSION"), "{s:#}");
                ensure!(
                    number(&s["disk"]["totalBytes"]) > 3e8 && number(&s["disk"]["availableBytes"]) > 1e6,
                    "{s:#}"
                );
                ensure!(
                    number(&s["postgresUptimeSeconds"]) > 0.0 && number(&s["agentUptimeSeconds"]) > 0.0,
                    "{s:#}"
                );
                ensure!(number(&s["connections"]["max"]) > 0.0, "{s:#}");
                if pod == primary {
                    ensure!(s["role"] == "ROLE_PRIMARY" && number(&s["lsn"]["flushed"]) > 0.0, "{s:#}");
                    let list = |field: &str| s[field].as_array().map_or(0, Vec::len);
                    ensure!(list("replication") == 2 && list("slots") == 2, "{s:#}");
                    ensure!(
                        s["replication"]
                            .as_array()
                            .is_some_and(|r| r.iter().all(|r| r["state"] == "streaming")),
                        "{s:#}"
                    );
                } else {
                    ensure!(s["role"] == "ROLE_REPLICA" && s["streaming"] == true, "{s:#}");
                    ensure!(number(&s["lsn"]["replayed"]) > 0.0, "{s:#}");
                    ensure!((0.0..1e6).contains(&number(&s["replayLagBytes"])), "{s:#}");
                    ensure!((0.0..60.0).contains(&number(&s["replayLagSeconds"])), "{s:#}");
                }
            }
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn watch_status_streams() -> Result {
    fixture::reading("agent_watch", |ctx| async move {
        let caller = ctx.caller(fixture::NAME, "viewer").await?;
        let options = ["-max-time", "8", "-d", r#"{"max_interval_ms": 1000}"#];
        let out = ctx
            .grpcurl(fixture::NAME, &caller, fixture::PODS[0], &options, &["pgwarden.v1.Agent/WatchStatus"])
            .await?;
        let text = String::from_utf8(out.stdout)?;
        let reports = serde_json::Deserializer::from_str(&text)
            .into_iter::<Value>()
            .filter_map(std::result::Result::ok);
        let n = reports.filter(|r| r["pod"] == fixture::PODS[0]).count();
        ensure!(n >= 3, "{n} reports in 8 s at an interval of 1 s; {}", String::from_utf8_lossy(&out.stderr));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn health_and_reflection_answer_a_viewer() -> Result {
    fixture::reading("agent_health", |ctx| async move {
        let health =
            ctx.call(fixture::NAME, "viewer", fixture::PODS[1], "grpc.health.v1.Health/Check").await?;
        ensure!(health["status"] == "SERVING", "{health}");
        let caller = ctx.caller(fixture::NAME, "viewer").await?;
        let out = ctx.grpcurl(fixture::NAME, &caller, fixture::PODS[1], &[], &["list"]).await?;
        let list = String::from_utf8(out.stdout)?;
        for service in ["grpc.health.v1.Health", "pgwarden.v1.Agent"] {
            ensure!(list.lines().any(|l| l == service), "{service} is not listed: {list}");
        }
        let out = ctx
            .grpcurl(fixture::NAME, &caller, fixture::PODS[1], &[], &["describe", "pgwarden.v1.Agent.Status"])
            .await?;
        ensure!(
            String::from_utf8_lossy(&out.stdout).contains("pgwarden.v1.InstanceStatus"),
            "reflection describes the method"
        );
        Ok(())
    })
    .await
}

/// The words with which a call is refused.
async fn refusal(ctx: &Ctx, caller: &Caller, method: &str) -> Result<String> {
    // The methods' shapes come from the files: reflection may be refused too, and that is not what is asked here.
    let protos = ctl::repo().join("proto/proto").to_string_lossy().into_owned();
    let options =
        ["-connect-timeout", "3", "-import-path", &protos, "-proto", "pgwarden/v1/agent.proto", "-d", "{}"];
    let out = ctx.grpcurl(fixture::NAME, caller, fixture::PODS[0], &options, &[method]).await?;
    ensure!(!out.status.success(), "{method} was answered: {}", String::from_utf8_lossy(&out.stdout));
    Ok(String::from_utf8_lossy(&out.stderr).into_owned())
}

#[tokio::test]
async fn a_role_that_may_not_call_a_method_gets_permission_denied() -> Result {
    fixture::reading("agent_roles", |ctx| async move {
        for (role, method) in [
            ("viewer", "pgwarden.v1.Agent/Configure"),
            ("peer", "pgwarden.v1.Agent/Configure"),
            ("backup", "pgwarden.v1.Agent/Configure"),
            ("viewer", "pgwarden.v1.Peer/Join"),
            ("viewer", "pgwarden.v1.Peer/Heartbeat"),
            ("controller", "pgwarden.v1.Peer/Join"),
            ("controller", "pgwarden.v1.Peer/Heartbeat"),
            ("replication", STATUS),
        ] {
            let caller = ctx.caller(fixture::NAME, role).await?;
            let words = refusal(&ctx, &caller, method).await?;
            ensure!(words.contains("PermissionDenied"), "{method} as {role}: {words}");
        }
        for role in ["controller", "peer", "backup"] {
            ctx.call(fixture::NAME, role, fixture::PODS[0], STATUS).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn without_a_certificate_the_handshake_is_refused() -> Result {
    fixture::reading("agent_handshake", |ctx| async move {
        let stranger = ctx.stranger(fixture::NAME).await?;
        refusal(&ctx, &stranger, STATUS).await?;
        let words = ctx.alert(fixture::NAME, &stranger, fixture::PODS[0]).await?;
        ensure!(words.contains("alert certificate required"), "{words}");
        // A server's certificate is none for clients.
        let server = ctx.caller(fixture::NAME, "server").await?;
        let words = ctx.alert(fixture::NAME, &server, fixture::PODS[0]).await?;
        ensure!(words.contains("alert unsupported certificate"), "{words}");
        // Not even the health service.
        let out = ctx
            .grpcurl(fixture::NAME, &stranger, fixture::PODS[0], &[], &["grpc.health.v1.Health/Check"])
            .await?;
        ensure!(!out.status.success(), "health was answered without a certificate");
        // TLS 1.2 is not spoken: another client, with a good certificate's worth of patience, gets an alert.
        let target = format!(
            "https://{}:{}",
            address(&ctx.pod(fixture::PODS[0]).await?)?,
            pgwarden_api::pod::PORT_AGENT
        );
        let out =
            ctl::ctl_output(&["in", "client", "curl", "-sSk", "--tlsv1.2", "--tls-max", "1.2", &target])
                .await?;
        let words = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(!out.status.success() && words.contains("protocol version"), "{words}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn another_clusters_certificate_is_refused_in_the_handshake() -> Result {
    shared("agent_other_cluster", |ctx| async move {
        for name in ["one", "two"] {
            ctx.apply(&Manifest::new(name).to_string()).await?;
        }
        for name in ["one", "two"] {
            ctx.ready(name, SOON).await?;
        }
        // Its own authority is trusted, so only the agent can be the one that refuses.
        for role in ["controller", "peer", "viewer"] {
            let caller = ctx.caller_trusting("two", role, "one").await?;
            let out = ctx.grpcurl("one", &caller, "one-17-0", &[], &[STATUS]).await?;
            ensure!(!out.status.success(), "{role} of another cluster was answered");
            let words = ctx.alert("one", &caller, "one-17-0").await?;
            ensure!(words.contains("alert unknown ca"), "{role} of another cluster: {words}");
        }
        let good = ctx.call("one", "viewer", "one-17-0", STATUS).await?;
        ensure!(good["cluster"] == "one", "{good}");
        // The other cluster's role on the database's side: replication with its certificate is refused too.
        let dir = ctx.dir.join("caller-two-replication-one");
        let _ = ctx.caller_trusting("two", "replication", "one").await?;
        let file = |f: &str| dir.join(f).to_string_lossy().into_owned();
        let conninfo = format!(
            "host=one.{}.svc user=pgwarden_replication dbname=postgres replication=true sslmode=require sslcert={} sslkey={} connect_timeout=5",
            ctx.ns,
            file("tls.crt"),
            file("tls.key")
        );
        let refused = pgwarden_e2e::sql::psql(&conninfo, "IDENTIFY_SYSTEM").await.err().context("replication was let in")?;
        ensure!(format!("{refused:#}").contains("unknown ca") || format!("{refused:#}").contains("certificate"), "{refused:#}");
        Ok(())
    })
    .await
}
