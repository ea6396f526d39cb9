//! The test cluster's entry point, `tests/cluster/ctl`, and where things are.

use std::{path::PathBuf, process::Output};

use anyhow::{Context, bail};
use tokio::process::Command;

/// Root of the checkout.
pub fn repo() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The kubeconfig of the cluster under test: PGWARDEN_KUBECONFIG, or that of the test cluster PGWARDEN_CLUSTER.
pub fn kubeconfig() -> PathBuf {
    if let Some(path) = std::env::var_os("PGWARDEN_KUBECONFIG") {
        return path.into();
    }
    let directory = match std::env::var("PGWARDEN_CLUSTER") {
        Ok(name) if name != "main" => format!("target/cluster-{name}"),
        _ => "target/cluster".to_owned(),
    };
    repo().join(directory).join("kubeconfig")
}

/// Where the built programs are: PGWARDEN_BIN, or what `images/build` has made.
pub fn binaries() -> PathBuf {
    std::env::var_os("PGWARDEN_BIN").map_or_else(|| repo().join("target/images/bin"), PathBuf::from)
}

/// Runs `tests/cluster/ctl ARGS…` and gives its output; an exit status other than 0 is an error with what it said.
pub async fn ctl(args: &[&str]) -> crate::Result<String> {
    let out = ctl_output(args).await?;
    checked("ctl", args, &out)
}

/// Runs `tests/cluster/ctl ARGS…`, whatever its exit status.
pub async fn ctl_output(args: &[&str]) -> crate::Result<Output> {
    Command::new(repo().join("tests/cluster/ctl"))
        .args(args)
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("ctl {args:?}"))
}

/// Runs kubectl against the cluster under test.
pub async fn kubectl(args: &[&str]) -> crate::Result<String> {
    let out = kubectl_output(args).await?;
    checked("kubectl", args, &out)
}

/// Runs kubectl, whatever its exit status.
pub async fn kubectl_output(args: &[&str]) -> crate::Result<Output> {
    Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(kubeconfig())
        .args(args)
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("kubectl {args:?}"))
}

fn checked(program: &str, args: &[&str], out: &Output) -> crate::Result<String> {
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        bail!("{program} {args:?}: {}\n{text}{}", out.status, String::from_utf8_lossy(&out.stderr));
    }
    Ok(text)
}
