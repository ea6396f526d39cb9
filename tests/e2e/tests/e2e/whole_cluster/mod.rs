//! Tests that disturb everybody: the API server away, the operator replaced. They run one at a time, beside no other.

mod api_server;
mod certificates;
mod controller;
mod namespaced;

use anyhow::{Context, ensure};
use pgwarden_e2e::{Result, ctl, eventually, pods::Process, until};
use serde_json::Value;

use crate::SOON;

const SYSTEM: &str = "pgwarden-system";
const DEPLOYMENT: &str = "deployment/pgwarden-controller";

async fn system(args: &[&str]) -> Result<String> {
    let mut all = vec!["-n", SYSTEM];
    all.extend(args);
    ctl::kubectl(&all).await
}

async fn system_json(args: &[&str]) -> Result<Value> {
    let mut all = args.to_vec();
    all.extend(["-o", "json"]);
    Ok(serde_json::from_str(&system(&all).await?)?)
}

/// The operator's pods: name and node.
async fn operators() -> Result<Vec<(String, String)>> {
    let pods = system_json(&["get", "pods", "-l", "app.kubernetes.io/name=pgwarden-controller"]).await?;
    let word = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let all = pods["items"].as_array().into_iter().flatten();
    Ok(all.map(|p| (word(&p["metadata"]["name"]), word(&p["spec"]["nodeName"]))).collect())
}

/// Sets the number of the operator's replicas and waits until it is so.
async fn scale_operator(n: usize) -> Result {
    system(&["scale", DEPLOYMENT, &format!("--replicas={n}")]).await?;
    until(&format!("{n} operators run"), SOON, || async {
        Ok((operators().await?.len() == n).then_some(()))
    })
    .await?;
    system(&["rollout", "status", DEPLOYMENT, "--timeout=120s"]).await?;
    Ok(())
}

/// The number of replicas that the operator is installed with.
async fn operator_replicas() -> Result<usize> {
    let n = system_json(&["get", DEPLOYMENT]).await?["spec"]["replicas"].as_u64().context("replicas")?;
    Ok(usize::try_from(n)?)
}

/// Who holds the operator's Lease.
async fn leader() -> Result<String> {
    let lease = system_json(&["get", "lease", "pgwarden-controller"]).await?;
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    ensure!(!holder.is_empty(), "nobody holds the Lease");
    Ok(holder.to_owned())
}

/// The controller's process in one of the operator's pods.
async fn controller_process(pod: &str, node: &str) -> Result<Process> {
    eventually(&format!("the controller runs in {pod}"), SOON, || async {
        let text = ctl::ctl(&["pids", node, &format!(" {SYSTEM}/{pod} .*pgwarden-controller")]).await?;
        let line = text.lines().next().context("no process")?;
        let mut parts = line.splitn(4, ' ');
        let pid = parts.next().unwrap_or_default().parse()?;
        let (_, container) = (parts.next(), parts.next().unwrap_or_default().to_owned());
        Ok(Process { pid, container, command: parts.next().unwrap_or_default().to_owned() })
    })
    .await
}
