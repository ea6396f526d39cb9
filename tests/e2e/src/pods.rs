//! Inside the pods: commands in containers, `psql` as the superuser, processes as the machine sees them.

use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio::process::Command;

use crate::{Ctx, Result, ctl::ctl, wait::until};

/// A process of a pod.
#[derive(Clone, Debug)]
pub struct Process {
    /// As this machine numbers it: it can be sent signals.
    pub pid: u32,
    /// Name of the container, `pause` for the sandbox.
    pub container: String,
    /// Command line.
    pub command: String,
}

impl Process {
    /// Sends a signal.
    pub async fn signal(&self, signal: &str) -> Result {
        let status = Command::new("kill").args(["-s", signal, &self.pid.to_string()]).status().await?;
        if !status.success() {
            bail!("kill -s {signal} {} ({}): {status}", self.pid, self.command);
        }
        Ok(())
    }

    /// Whether this very process still runs; one that waits to be reaped does not.
    #[must_use]
    pub fn runs(&self) -> bool {
        std::fs::read_to_string(format!("/proc/{}/cmdline", self.pid))
            .is_ok_and(|c| c.replace('\0', " ").trim() == self.command)
    }
}

impl Ctx {
    /// Runs a command in a container.
    pub async fn exec(&self, pod: &str, container: &str, command: &[&str]) -> Result<String> {
        let mut args = vec!["exec", pod, "-c", container, "--"];
        args.extend(command);
        self.kubectl(&args).await
    }

    /// Runs one statement as the superuser over the pod's own socket, as a person with `kubectl exec` would.
    pub async fn admin(&self, pod: &str, statement: &str) -> Result<String> {
        self.admin_in(pod, "postgres", statement).await
    }

    /// The same in another database.
    pub async fn admin_in(&self, pod: &str, database: &str, statement: &str) -> Result<String> {
        let psql = [
            "psql",
            "-X",
            "-q",
            "-At",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "postgres",
            "-d",
            database,
            "-c",
            statement,
        ];
        Ok(self.exec(pod, "postgres", &psql).await?.trim_end_matches('\n').to_owned())
    }

    /// One pod.
    pub async fn pod(&self, name: &str) -> Result<Pod> {
        Ok(self.api::<Pod>().get(name).await?)
    }

    /// Pod that the record names as holder.
    pub async fn primary(&self, cluster: &str) -> Result<String> {
        let record = self.record(cluster).await?;
        Ok(record.spec.holder.context("the record has no holder")?.pod)
    }

    /// Processes of a pod.
    pub async fn processes(&self, pod: &str) -> Result<Vec<Process>> {
        let node = node(&self.pod(pod).await?)?;
        let text = ctl(&["pids", &node, &format!(" {}/{pod} ", self.ns)]).await?;
        let parse = |line: &str| {
            let mut parts = line.splitn(4, ' ');
            let pid = parts.next()?.parse().ok()?;
            let _pod = parts.next()?;
            Some(Process {
                pid,
                container: parts.next()?.to_owned(),
                command: parts.next().unwrap_or_default().to_owned(),
            })
        };
        Ok(text.lines().filter_map(parse).collect())
    }

    /// The first process of a container whose command line contains a text; waits for it.
    pub async fn process(&self, pod: &str, container: &str, text: &str, limit: Duration) -> Result<Process> {
        until(&format!("process {text:?} in {pod}/{container}"), limit, || async {
            let all = self.processes(pod).await?;
            Ok(all.into_iter().find(|p| p.container == container && p.command.contains(text)))
        })
        .await
    }

    /// The postmaster: the process whose command line starts with the program and has the arguments of a start.
    pub async fn postmaster(&self, pod: &str, limit: Duration) -> Result<Process> {
        until(&format!("a postmaster in {pod}"), limit, || async {
            let all = self.processes(pod).await?;
            Ok(all.into_iter().find(|p| {
                let program = p.command.split(' ').next().unwrap_or_default();
                p.container == "postgres" && (program == "postgres" || program.ends_with("/postgres"))
            }))
        })
        .await
    }
}

/// Name of a pod's node.
pub fn node(pod: &Pod) -> Result<String> {
    let name = pod.spec.as_ref().and_then(|s| s.node_name.clone());
    name.with_context(|| format!("pod {} has no node yet", pod.name_any()))
}

/// IP address of a pod.
pub fn address(pod: &Pod) -> Result<String> {
    let ip = pod.status.as_ref().and_then(|s| s.pod_ip.clone());
    ip.with_context(|| format!("pod {} has no address yet", pod.name_any()))
}

/// Restarts of a container, init containers too.
#[must_use]
pub fn restarts(pod: &Pod, container: &str) -> i32 {
    let Some(status) = &pod.status else { return 0 };
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    all.filter(|c| c.name == container).map(|c| c.restart_count).sum()
}
