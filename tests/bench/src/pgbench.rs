//! pgbench in our pod against the same Postgres with the same settings in a plain pod on the same node: interleaved pairs.

use std::time::Duration;

use anyhow::{Context, bail};
use pgwarden_e2e::{Result, namespace::Ctx, until};

use crate::{create::manifest, figure::Report};

pub(crate) async fn measure(report: &mut Report, pairs: usize, seconds: u32) -> Result {
    let ctx = Ctx::create("bench-pgbench").await?;
    ctx.apply(&manifest("ours", 1, ", nodeSelector: {kubernetes.io/hostname: node1}")).await?;
    ctx.ready("ours", Duration::from_secs(180)).await?;
    let ours = ctx.cluster("ours").await?.status.and_then(|s| s.primary).context("no primary")?;

    // The plain server gets what ours really runs with, but for the paths.
    let query = "SELECT format('%s = %L', name, current_setting(name)) FROM pg_settings WHERE source = 'configuration file' \
                 AND name !~ '(file|directories|directory|^ssl|cluster_name|^log_|^lc_|primary_|listen_addresses|allow_alter)'";
    let settings = psql(&ctx, &ours, query).await?;
    ctx.apply(&plain_pod(&settings)).await?;
    until("the plain server answers", Duration::from_secs(120), || async {
        psql(&ctx, "plain", "SELECT 1").await.map(Some)
    })
    .await?;
    for pod in [ours.as_str(), "plain"] {
        pgbench(&ctx, pod, &["-i", "-q", "-s", "20"]).await?;
    }

    let duration = seconds.to_string();
    let run = ["-n", "-c", "4", "-j", "2", "-T", &duration];
    let (mut tps_ours, mut tps_plain, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..pairs {
        for pod in [ours.as_str(), "plain"] {
            psql(&ctx, pod, "CHECKPOINT").await?;
        }
        // Which goes first alternates, so that a drift of the machine favours neither.
        let (a, b) = if pair % 2 == 0 {
            let a = tps(&pgbench(&ctx, &ours, &run).await?)?;
            (a, tps(&pgbench(&ctx, "plain", &run).await?)?)
        } else {
            let b = tps(&pgbench(&ctx, "plain", &run).await?)?;
            (tps(&pgbench(&ctx, &ours, &run).await?)?, b)
        };
        tps_ours.push(a);
        tps_plain.push(b);
        ratios.push(100.0 * a / b);
    }
    report.add("pgbench in our pod", "tps", "", tps_ours);
    report.add("pgbench in a plain pod", "tps", "", tps_plain);
    report.add("ours / plain, by pair", "%", "median ≥ 98", ratios);
    ctx.remove().await
}

async fn psql(ctx: &Ctx, pod: &str, statement: &str) -> Result<String> {
    ctx.kubectl(&[
        "exec", pod, "-c", "postgres", "--", "psql", "-X", "-qAt", "-d", "postgres", "-c", statement,
    ])
    .await
}

async fn pgbench(ctx: &Ctx, pod: &str, args: &[&str]) -> Result<String> {
    let mut all = vec!["exec", pod, "-c", "postgres", "--", "pgbench"];
    all.extend(args);
    all.push("postgres");
    ctx.kubectl(&all).await
}

fn tps(output: &str) -> Result<f64> {
    let Some(line) = output.lines().find_map(|l| l.strip_prefix("tps = ")) else {
        bail!("no tps in:\n{output}")
    };
    Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
}

fn plain_pod(settings: &str) -> String {
    let conf = settings.lines().map(|l| format!("    {l}\n")).collect::<String>();
    format!(
        r#"apiVersion: v1
kind: ConfigMap
metadata: {{name: plain}}
data:
  postgresql.conf: |
{conf}---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: plain}}
spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 2Gi}}}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: plain}}
spec:
  nodeSelector: {{kubernetes.io/hostname: node1}}
  securityContext: {{runAsUser: 999, runAsGroup: 999, fsGroup: 999, runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
    - name: postgres
      image: postgres:17
      securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
      resources: {{limits: {{memory: 1Gi}}}}
      command: [sh, -ec]
      args:
        - |
          initdb --no-sync --data-checksums --username postgres --auth trust -E UTF8 --locale C.UTF-8 -D /pgdata/pgdata
          cat /config/postgresql.conf >> /pgdata/pgdata/postgresql.conf
          exec postgres -D /pgdata/pgdata -c unix_socket_directories=/var/run/postgresql
      volumeMounts:
        - {{name: data, mountPath: /pgdata}}
        - {{name: config, mountPath: /config}}
        - {{name: socket, mountPath: /var/run/postgresql}}
        - {{name: shm, mountPath: /dev/shm}}
  volumes:
    - {{name: data, persistentVolumeClaim: {{claimName: plain}}}}
    - {{name: config, configMap: {{name: plain}}}}
    - {{name: socket, emptyDir: {{}}}}
    - {{name: shm, emptyDir: {{medium: Memory}}}}
"#
    )
}
