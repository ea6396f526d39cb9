//! Who may do what, and what must not be found anywhere.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use pgwarden_e2e::{Ctx, Manifest, Result, ctl, eventually, fixture, shared, sql::psql};
use serde_json::{Value, json};

use crate::{MOMENT, SOON};

#[tokio::test]
async fn pods_have_a_read_only_root_no_privileges_and_no_way_out() -> Result {
    fixture::reading("security_pods", |ctx| async move {
        let pods = ctx.pods(fixture::NAME).await?;
        ensure!(pods.len() == 3, "{} pods", pods.len());
        for pod in &pods {
            let spec = pod.spec.as_ref().context("spec")?;
            let context = spec.security_context.as_ref().context("securityContext")?;
            ensure!(context.run_as_non_root == Some(true) && context.run_as_user == Some(999), "{context:?}");
            ensure!(
                context.seccomp_profile.as_ref().is_some_and(|p| p.type_ == "RuntimeDefault"),
                "{context:?}"
            );
            ensure!(
                spec.share_process_namespace != Some(true) && spec.host_network != Some(true),
                "namespaces"
            );
            ensure!(spec.automount_service_account_token == Some(false), "the token is mounted everywhere");
            ensure!(spec.volumes.iter().flatten().all(|v| v.host_path.is_none()), "a hostPath volume");
            for c in spec.init_containers.iter().flatten().chain(&spec.containers) {
                let s =
                    c.security_context.as_ref().with_context(|| format!("securityContext of {}", c.name))?;
                ensure!(s.read_only_root_filesystem == Some(true), "root file system of {}", c.name);
                ensure!(
                    s.allow_privilege_escalation == Some(false) && s.privileged != Some(true),
                    "{}: {s:?}",
                    c.name
                );
                let dropped = s.capabilities.as_ref().and_then(|c| c.drop.clone()).unwrap_or_default();
                ensure!(dropped == ["ALL"], "capabilities of {}", c.name);
            }
            let name = pod.name_any();
            let touch = ctx.exec(&name, "postgres", &["touch", "/tampered"]).await;
            let words = format!("{:#}", touch.err().context("the root file system is writable")?);
            ensure!(words.contains("Read-only file system"), "{words}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_api_token_is_in_the_agents_container_only() -> Result {
    fixture::reading("security_token", |ctx| async move {
        let pod: Pod = ctx.pod(fixture::PODS[0]).await?;
        let spec = pod.spec.context("spec")?;
        let is_token = |v: &&k8s_openapi::api::core::v1::Volume| {
            v.projected
                .iter()
                .flat_map(|p| p.sources.iter().flatten())
                .any(|s| s.service_account_token.is_some())
        };
        let tokens: BTreeSet<_> =
            spec.volumes.iter().flatten().filter(is_token).map(|v| v.name.clone()).collect();
        ensure!(tokens.len() == 1, "volumes with a token: {tokens:?}");
        for c in spec.init_containers.iter().flatten().chain(&spec.containers) {
            let has = c.volume_mounts.iter().flatten().any(|m| tokens.contains(&m.name));
            ensure!(has == (c.name == pgwarden_api::pod::CONTAINER_AGENT), "token in {}: {has}", c.name);
        }
        let look = ctx.exec(fixture::PODS[0], "postgres", &["ls", "/var/run/secrets"]).await;
        ensure!(look.is_err(), "/var/run/secrets in the postgres container: {look:?}");
        // Neither do private keys of other roles lie there: only what Postgres itself reads.
        let keys = ctx
            .exec(
                fixture::PODS[0],
                "postgres",
                &["sh", "-c", "find / -xdev -name '*.key' 2>/dev/null; ls /run/pgwarden-tls"],
            )
            .await?;
        let found: BTreeSet<_> = keys.lines().filter(|l| l.ends_with(".key")).collect();
        ensure!(found == BTreeSet::from(["replication.key", "server.key"]), "{found:?}");
        Ok(())
    })
    .await
}

/// The rows of `kubectl auth can-i --list` that say something about resources, without what everyone may do.
async fn rights(account: &str, namespace: &str) -> Result<String> {
    let user = format!("system:serviceaccount:{account}");
    let text =
        ctl::kubectl(&["-n", namespace, "auth", "can-i", "--list", "--no-headers", &format!("--as={user}")])
            .await?;
    let words = |l: &str| l.split_whitespace().collect::<Vec<_>>().join(" ");
    let ours: BTreeSet<_> =
        text.lines().map(words).filter(|l| !l.starts_with('[') && !l.starts_with("selfsubject")).collect();
    Ok(ours.into_iter().map(|l| l + "\n").collect())
}

#[tokio::test]
async fn an_agents_rights_are_these_and_no_others() -> Result {
    fixture::reading("security_agent_rights", |ctx| async move {
        let have = rights(&format!("{}:{}-agent", ctx.ns, fixture::NAME), &ctx.ns).await?;
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/golden/agent-rights.txt");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, &have)?;
        }
        let want = std::fs::read_to_string(path)?;
        ensure!(have == want, "UPDATE=1 rewrites {path}\n--- wanted\n{want}--- found\n{have}");
        let elsewhere = rights(&format!("{}:{}-agent", ctx.ns, fixture::NAME), "default").await?;
        ensure!(elsewhere.is_empty(), "rights in another namespace: {elsewhere}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_controllers_role_has_no_wildcard_and_no_way_to_more() -> Result {
    shared("security_controller_rights", |_| async move {
        let all = |kind: &'static str| async move {
            let text = ctl::kubectl(&["get", kind, "-A", "-o", "json"]).await?;
            Ok::<Value, anyhow::Error>(serde_json::from_str(&text)?)
        };
        let mut names = BTreeSet::new();
        for kind in ["clusterrolebindings", "rolebindings"] {
            for b in all(kind).await?["items"].as_array().into_iter().flatten() {
                let ours = |s: &Value| s["namespace"] == "pgwarden-system" && s["kind"] == "ServiceAccount";
                if b["subjects"].as_array().into_iter().flatten().any(ours) {
                    names.insert((b["roleRef"]["kind"].to_string(), b["roleRef"]["name"].to_string()));
                }
            }
        }
        ensure!(!names.is_empty(), "no binding of the operator's ServiceAccount");
        let mut rules = 0;
        for kind in ["clusterroles", "roles"] {
            for role in all(kind).await?["items"].as_array().into_iter().flatten() {
                if !names.contains(&(role["kind"].to_string(), role["metadata"]["name"].to_string())) {
                    continue;
                }
                for rule in role["rules"].as_array().into_iter().flatten() {
                    rules += 1;
                    let words = |field: &str| -> Vec<String> {
                        rule[field]
                            .as_array()
                            .into_iter()
                            .flatten()
                            .filter_map(|v| v.as_str().map(Into::into))
                            .collect()
                    };
                    for field in ["apiGroups", "resources", "verbs", "nonResourceURLs"] {
                        ensure!(!words(field).iter().any(|w| w.contains('*')), "a wildcard: {rule}");
                    }
                    for verb in ["escalate", "bind", "impersonate"] {
                        ensure!(!words("verbs").contains(&verb.to_owned()), "{verb}: {rule}");
                    }
                    for resource in [
                        "pods/exec",
                        "pods/attach",
                        "pods/portforward",
                        "serviceaccounts/token",
                        "nodes/proxy",
                    ] {
                        ensure!(!words("resources").contains(&resource.to_owned()), "{resource}: {rule}");
                    }
                }
            }
        }
        ensure!(rules > 5, "only {rules} rules were found: is this the operator's role?");
        Ok(())
    })
    .await
}

/// psql must fail, with one of these words.
async fn refused(conninfo: &str, words: &[&str]) -> Result {
    let e = psql(conninfo, "SELECT 1").await.err().with_context(|| format!("let in: {conninfo}"))?;
    let said = format!("{e:#}");
    ensure!(words.iter().any(|w| said.contains(w)), "refused, but so: {said}");
    Ok(())
}

#[tokio::test]
async fn postgres_refuses_the_superuser_plain_text_and_replication_over_the_network() -> Result {
    fixture::reading("security_hba", |ctx| async move {
        let login = ctx.login(fixture::NAME).await?;
        let to = |host: &str, rest: &str| format!("host={host} port=5432 connect_timeout=5 {rest}");
        let replicas = format!("{}-ro.{}.svc", fixture::NAME, ctx.ns);
        for host in [login.host.as_str(), &replicas] {
            let hba = ["pg_hba.conf"];
            refused(&to(host, "user=postgres dbname=postgres password=postgres sslmode=require"), &hba).await?;
            refused(&to(host, "user=pgwarden_monitor dbname=postgres password=x sslmode=require"), &hba).await?;
            let app = format!("user={} dbname={} password={}", login.username, login.dbname, login.password);
            refused(&to(host, &format!("{app} sslmode=disable")), &["no encryption"]).await?;
            refused(&to(host, &format!("{app} replication=true sslmode=require")), &hba).await?;
            let replication = "user=pgwarden_replication dbname=postgres password=x sslmode=require";
            refused(&to(host, replication), &["certificate", "pg_hba.conf"]).await?;
            refused(&to(host, &format!("{replication} replication=true")), &["certificate"]).await?;
            refused(&to(host, "user=app dbname=app password=wrong sslmode=require"), &["password authentication failed"]).await?;
            // The least version of TLS is 1.2.
            refused(&to(host, &format!("{app} sslmode=require ssl_min_protocol_version=TLSv1 ssl_max_protocol_version=TLSv1.1")), &[
                "protocol version",
                "no protocols available",
            ])
            .await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn servers_prove_who_they_are_and_the_secrets_uri_works_as_it_is() -> Result {
    fixture::reading("security_verify_full", |ctx| async move {
        let login = ctx.login(fixture::NAME).await?;
        std::fs::create_dir_all(&ctx.dir)?;
        let ca = ctx.dir.join("app-ca.crt");
        std::fs::write(&ca, &login.ca)?;
        let name = fixture::NAME;
        let ns = &ctx.ns;
        for host in [format!("{name}.{ns}"), format!("{name}.{ns}.svc"), format!("{name}-ro.{ns}.svc.cluster.local")] {
            let conninfo = format!(
                "host={host} user={} dbname={} password={} sslmode=verify-full sslrootcert={} connect_timeout=5",
                login.username,
                login.dbname,
                login.password,
                ca.display()
            );
            ensure!(psql(&conninfo, "SELECT 'proved'").await? == "proved", "{host}");
        }
        let by_uri = psql(&login.uri, "SELECT current_user || ' ' || current_database()").await?;
        ensure!(by_uri == format!("{} {}", login.username, login.dbname), "{by_uri}");
        Ok(())
    })
    .await
}

/// Everything about the namespace that a person without access to Secrets could read, and more: logs, events, objects, and
/// arguments and environment of every process.
async fn everything_said(ctx: &Ctx, cluster: &str) -> Result<Vec<(String, String)>> {
    let mut said = Vec::new();
    let kinds = "postgresqls,postgresqlrecords,statefulsets,pods,pvc,services,endpointslices,configmaps,cronjobs,poddisruptionbudgets,events,roles";
    said.push(("objects".to_owned(), ctx.kubectl(&["get", kinds, "-o", "yaml"]).await?));
    let controller = [
        "-n",
        "pgwarden-system",
        "logs",
        "-l",
        "app.kubernetes.io/name=pgwarden-controller",
        "--tail=-1",
        "--prefix",
    ];
    said.push(("the controller's log".to_owned(), ctl::kubectl(&controller).await?));
    for pod in ctx.pods(cluster).await? {
        let name = pod.name_any();
        said.push((format!("logs of {name}"), ctx.kubectl(&["logs", &name, "--all-containers"]).await?));
        for p in ctx.processes(&name).await? {
            let environment = std::fs::read(format!("/proc/{}/environ", p.pid)).unwrap_or_default();
            said.push((format!("arguments of {} {}", p.pid, p.command), p.command.clone()));
            said.push((
                format!("environment of {}", p.command),
                String::from_utf8_lossy(&environment).into_owned(),
            ));
        }
        let query = "SELECT string_agg(query, E'\\n') FROM pg_stat_activity";
        said.push((format!("pg_stat_activity of {name}"), ctx.admin(&name, query).await?));
        let data =
            ["sh", "-c", "cat /pgdata/pgdata/*.conf /pgdata/*.json 2>/dev/null; ls -laR /pgdata | head -200"];
        said.push((format!("settings of {name}"), ctx.exec(&name, "postgres", &data).await?));
    }
    Ok(said)
}

#[tokio::test]
async fn a_password_is_said_nowhere_and_is_changed_without_a_restart() -> Result {
    shared("security_password", |ctx| async move {
        let first = "canary-first-eiPh4ohn";
        let second = "canary-second-ua0Xu9ie";
        let secret = |password: &str| {
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "c-app"},
                   "stringData": {"username": "app", "password": password}})
            .to_string()
        };
        ctx.apply(&secret(first)).await?;
        // The server itself would log what it is told.
        let loud =
            json!({"log_statement": "all", "log_min_duration_statement": "0", "log_connections": "on"});
        ctx.apply(&Manifest::new("c").replicas(2).spec("parameters", loud).to_string()).await?;
        ctx.ready("c", SOON).await?;
        let conninfo = |password: &str| {
            format!(
                "host=c.{}.svc user=app dbname=app password={password} sslmode=require connect_timeout=5",
                ctx.ns
            )
        };
        ensure!(psql(&conninfo(first), "SELECT 1").await? == "1", "the Secret's password");
        let primary = ctx.primary("c").await?;
        let started = ctx.admin(&primary, "SELECT pg_postmaster_start_time()").await?;

        ctx.apply(&secret(second)).await?;
        // Kubelet takes a minute and more to refresh a mounted Secret.
        eventually("the new password is in force", SOON, || async {
            psql(&conninfo(second), "SELECT 1").await.map(drop)
        })
        .await?;
        refused(&conninfo(first), &["password authentication failed"]).await?;
        ensure!(
            ctx.admin(&primary, "SELECT pg_postmaster_start_time()").await? == started,
            "Postgres was restarted"
        );

        for (place, text) in everything_said(&ctx, "c").await? {
            for canary in [first, second] {
                ensure!(!text.contains(canary), "the password stands in {place}");
            }
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_owner_of_a_database_cannot_trap_the_operators_sessions() -> Result {
    shared("security_search_path", |ctx| async move {
        ctx.apply(&Manifest::new("t").to_string()).await?;
        ctx.ready("t", SOON).await?;
        let login = ctx.login("t").await?;
        // Whoever calls one of these by its bare name leaves a trace with the caller's rights.
        let mut trap = String::from(
            "CREATE SCHEMA evil; CREATE TABLE evil.caught (who text, what text); GRANT ALL ON SCHEMA evil TO PUBLIC; \
             GRANT ALL ON ALL TABLES IN SCHEMA evil TO PUBLIC; ",
        );
        for (name, arguments, result) in [
            ("now", "", "timestamptz"),
            ("pg_is_in_recovery", "", "boolean"),
            ("pg_database_size", "oid", "bigint"),
            ("pg_database_size", "name", "bigint"),
            ("current_setting", "text", "text"),
            ("pg_current_wal_lsn", "", "pg_lsn"),
            ("pg_current_wal_flush_lsn", "", "pg_lsn"),
            ("count", "anyelement", "bigint"),
        ] {
            trap += &format!(
                "CREATE FUNCTION evil.{name}({arguments}) RETURNS {result} LANGUAGE plpgsql AS \
                 $$ BEGIN INSERT INTO evil.caught VALUES (session_user, '{name}'); RETURN NULL; END $$; "
            );
        }
        trap += "CREATE FUNCTION evil.eq(text, text) RETURNS boolean LANGUAGE plpgsql AS \
                 $$ BEGIN INSERT INTO evil.caught VALUES (session_user, '='); RETURN $1 OPERATOR(pg_catalog.=) $2; END $$; \
                 CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.eq); \
                 ALTER DATABASE app SET search_path = evil, pg_catalog; ALTER ROLE app SET search_path = evil, pg_catalog";
        login.sql(None, &trap).await?;
        // The trap works: its owner falls into it.
        login.sql(None, "SELECT now()").await?;
        ensure!(login.sql(None, "SELECT who FROM evil.caught").await? == "app", "the trap does not catch");

        // Make the operator look: metrics, status, a setting, a password, and a new agent that looks at everything again.
        let mounted = ctx.patch("pg/t", &json!({"spec": {"parameters": {"work_mem": "7MB"}}})).await;
        mounted?;
        eventually("the setting is in force", MOMENT, || async {
            ensure!(ctx.admin("t-17-0", "SHOW work_mem").await? == "7MB", "not yet");
            Ok(())
        })
        .await?;
        let agent = ctx.process("t-17-0", "agent", "pgwarden-agent run", MOMENT).await?;
        agent.signal("KILL").await?;
        let other = || async { ctx.processes("t-17-0").await };
        eventually("another agent runs", MOMENT, || async {
            let all = other().await?;
            ensure!(all.iter().any(|p| p.container == "agent" && p.pid != agent.pid), "{all:?}");
            Ok(())
        })
        .await?;
        eventually("metrics and status of the new agent answer", MOMENT, || async {
            let status = ctx.call("t", "viewer", "t-17-0", "pgwarden.v1.Agent/Status").await?;
            ensure!(status["ready"] == true, "{status}");
            let ip = pgwarden_e2e::pods::address(&ctx.pod("t-17-0").await?)?;
            let url = format!("http://{ip}:{}/metrics", pgwarden_api::pod::PORT_METRICS);
            let text = ctl::ctl(&["in", "client", "curl", "-sS", "--fail", "--max-time", "10", &url]).await?;
            ensure!(text.contains("database=\"app\""), "no size of app");
            Ok(())
        })
        .await?;
        let caught = login.sql(None, "SELECT DISTINCT who || ' ' || what FROM evil.caught WHERE NOT who LIKE 'app'").await?;
        ensure!(caught.is_empty(), "caught: {caught}");
        Ok(())
    })
    .await
}
