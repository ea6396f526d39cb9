//! The controller killed, replaced, doubled.

use std::{
    process::Stdio,
    time::{Duration, SystemTime},
};

use anyhow::{Context, ensure};
use pgwarden_e2e::{Ctx, Manifest, Result, alone, ctl, until};
use serde_json::Value;
use tokio::process::{Child, Command};

use super::{controller_process, leader, operator_replicas, operators, scale_operator, system};
use crate::{SOON, create::row_reaches_a_replica};

const CREATIONS: u32 = 10;
const KILLS: u32 = 10;
/// Where the controller answers with its metrics.
const HTTP: &str = "127.0.0.1:18080";
/// Longest life of a controller that is killed: it gets somewhere, but not to the end of a creation.
const LIFE: Duration = Duration::from_millis(1200);

/// A generator whose seed is in the log, so that a failed run can be repeated: xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }
}

/// The controller outside the cluster, on the host from which Services and pods are reached, for this namespace alone.
fn controller(ctx: &Ctx, kubeconfig: &std::path::Path) -> Result<Child> {
    let log =
        std::fs::OpenOptions::new().create(true).append(true).open(ctx.dir.join("controller-outside.log"))?;
    let binary = ctl::binaries().join("pgwarden-controller");
    let child = Command::new(ctl::repo().join("tests/cluster/ctl"))
        .args(["in", "client"])
        .arg(binary)
        .args(["run", "--leader-election", "false", "--http-address", HTTP, "--namespace", &ctx.ns])
        .env("KUBECONFIG", kubeconfig)
        .env("RUST_LOG", "info,pgwarden_controller=debug,kube_runtime=debug")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()?;
    Ok(child)
}

/// The kubeconfig with the address that reaches the API server from inside.
fn inside_kubeconfig(ctx: &Ctx) -> Result<std::path::PathBuf> {
    let text = std::fs::read_to_string(ctl::kubeconfig())?;
    let at = text.find("https://127.0.0.1:").context("the kubeconfig's server")?;
    let end = at + text[at..].find(['"', '\n', ',', '}']).context("the end of the server's address")?;
    let inside = format!("{}https://kubernetes.default.svc:443{}", &text[..at], &text[end..]);
    std::fs::create_dir_all(&ctx.dir)?;
    let path = ctx.dir.join("kubeconfig-inside");
    std::fs::write(&path, inside)?;
    Ok(path)
}

async fn killed(ctx: &Ctx, kubeconfig: &std::path::Path) -> Result {
    let seed = std::env::var("PGWARDEN_SEED").ok().and_then(|s| s.parse().ok()).map_or_else(
        || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|d| d.as_nanos() as u64),
        Ok,
    )?;
    eprintln!("PGWARDEN_SEED={seed}");
    let mut random = Random(seed | 1);
    for creation in 0..CREATIONS {
        let name = format!("k{creation}");
        ctx.apply(&Manifest::new(&name).spec("deletionPolicy", "Delete").to_string()).await?;
        for _ in 0..KILLS {
            let mut child = controller(ctx, kubeconfig)?;
            let life = Duration::from_millis(random.below(LIFE.as_millis() as u64));
            // The kill's moment is the point of the test; a controller that ends by itself is a fault.
            if let Ok(ended) = tokio::time::timeout(life, child.wait()).await {
                anyhow::bail!("the controller ended by itself: {:?}, seed {seed}", ended?);
            }
            child.kill().await?;
        }
        let mut child = controller(ctx, kubeconfig)?;
        if let Err(e) = ctx.ready(&name, SOON).await {
            let url = format!("http://{HTTP}/metrics");
            let said = ctl::ctl_output(&["in", "client", "curl", "-sS", "--max-time", "10", &url]).await?;
            std::fs::write(
                ctx.dir.join("controller-outside-metrics.txt"),
                [said.stdout, said.stderr].concat(),
            )?;
            return Err(e.context(format!("{name} after {KILLS} kills, seed {seed}")));
        }
        let login = ctx.login(&name).await?;
        ensure!(login.sql(None, "SELECT 1").await? == "1", "{name} serves");
        child.kill().await?;
    }
    // Deletions are interrupted too.
    ctx.kubectl(&["delete", "pg", "--all", "--wait=false"]).await?;
    for _ in 0..KILLS {
        let mut child = controller(ctx, kubeconfig)?;
        let life = Duration::from_millis(random.below(LIFE.as_millis() as u64));
        let _ = tokio::time::timeout(life, child.wait()).await;
        child.kill().await?;
    }
    let mut child = controller(ctx, kubeconfig)?;
    let gone = until("everything is gone", SOON, || async {
        let kinds = "pg,pgrecord,statefulset,service,pvc,pod,pdb,cronjob";
        let left = ctx.kubectl(&["get", kinds, "-o", "name"]).await?;
        ensure!(left.is_empty(), "{left}");
        Ok(Some(()))
    })
    .await;
    child.kill().await?;
    gone
}

#[tokio::test]
async fn a_controller_killed_a_hundred_times_over_ten_creations_always_converges() -> Result {
    alone("whole_controller_killed", |ctx| async move {
        let replicas = operator_replicas().await?;
        let kubeconfig = inside_kubeconfig(&ctx)?;
        scale_operator(0).await?;
        let outcome = killed(&ctx, &kubeconfig).await;
        scale_operator(replicas).await?;
        outcome
    })
    .await
}

async fn two_operators(ctx: &Ctx) -> Result {
    scale_operator(2).await?;
    ctx.apply(&Manifest::new("one").to_string()).await?;
    ctx.ready("one", SOON).await?;
    let first = leader().await?;
    let all = operators().await?;
    let (pod, node) = all
        .iter()
        .find(|(pod, _)| first.contains(pod.as_str()))
        .with_context(|| format!("{first} in {all:?}"))?;
    let process = controller_process(pod, node).await?;

    // A leader that stands still loses its place, and does not act when it goes on.
    process.signal("STOP").await?;
    let second =
        until("another leads", SOON, || async { Ok(Some(leader().await?).filter(|l| *l != first)) }).await;
    let made: Result = async {
        ctx.apply(&Manifest::new("two").to_string()).await?;
        ctx.ready("two", SOON).await?;
        Ok(())
    }
    .await;
    process.signal("CONT").await.or_else(|e| if process.runs() { Err(e) } else { Ok(()) })?;
    let second = second?;
    made?;
    until("the old leader's process ends", SOON, || async { Ok((!process.runs()).then_some(())) }).await?;
    ensure!(leader().await? == second, "the old leader took its place back");
    let told = |e: &Value| e["involvedObject"]["kind"] == "PostgreSQL" && e["reason"] == "Degraded";
    let events = ctx.list("events", "").await?;
    ensure!(!events.iter().any(told), "a controller has seen a loss where there was none: {events:#?}");

    // A leader that is deleted gives its place away.
    let (pod, _) =
        all.iter().find(|(pod, _)| second.contains(pod.as_str())).context("the second leader's pod")?;
    system(&["delete", "pod", pod]).await?;
    until("another leads", SOON, || async { Ok(Some(leader().await?).filter(|l| *l != second)) }).await?;
    ctx.apply(&Manifest::new("two").replicas(2).to_string()).await?;
    ctx.ready("two", SOON).await?;
    row_reaches_a_replica(ctx, "two", "hello").await
}

#[tokio::test]
async fn of_two_controllers_one_leads_and_the_other_takes_over() -> Result {
    alone("whole_leader", |ctx| async move {
        let replicas = operator_replicas().await?;
        let outcome = two_operators(&ctx).await;
        scale_operator(replicas).await?;
        outcome
    })
    .await
}
