//! The agents' gRPC as a real client sees it: grpcurl on the `client` host, with the certificates of a cluster's Secrets.

use std::{os::unix::fs::PermissionsExt, path::PathBuf, process::Output};

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;
use tokio::{process::Command, sync::OnceCell};

use crate::{
    Ctx, Result,
    ctl::{ctl_output, repo},
    pods::address,
};

static PROGRAM: OnceCell<String> = OnceCell::const_new();

/// Path of grpcurl, built if it is not there yet.
async fn program() -> Result<&'static str> {
    let path = PROGRAM
        .get_or_try_init(|| async {
            let out = Command::new(repo().join("tests/tools/grpcurl")).output().await?;
            if !out.status.success() {
                bail!("tests/tools/grpcurl: {}", String::from_utf8_lossy(&out.stderr));
            }
            Ok(String::from_utf8(out.stdout)?.trim().to_owned())
        })
        .await?;
    Ok(path)
}

/// Who calls.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Directory with `ca.crt`, and `tls.crt` and `tls.key` unless the caller has no certificate.
    dir: PathBuf,
    certificate: bool,
}

impl Ctx {
    /// A caller with the certificate of `role` of `cluster`, which trusts that cluster's authority.
    pub async fn caller(&self, cluster: &str, role: &str) -> Result<Caller> {
        self.caller_trusting(cluster, role, cluster).await
    }

    /// A caller with a certificate of one cluster that trusts another's authority.
    pub async fn caller_trusting(&self, cluster: &str, role: &str, trusts: &str) -> Result<Caller> {
        let dir = self.dir.join(format!("caller-{cluster}-{role}-{trusts}"));
        self.write_keys(&dir, &format!("{cluster}-tls-{role}"), &["tls.crt", "tls.key"]).await?;
        self.write_keys(&dir, &format!("{trusts}-tls-server"), &["ca.crt"]).await?;
        Ok(Caller { dir, certificate: true })
    }

    /// A caller without a certificate.
    pub async fn stranger(&self, cluster: &str) -> Result<Caller> {
        let dir = self.dir.join(format!("caller-{cluster}-none"));
        self.write_keys(&dir, &format!("{cluster}-tls-server"), &["ca.crt"]).await?;
        Ok(Caller { dir, certificate: false })
    }

    async fn write_keys(&self, dir: &PathBuf, secret: &str, keys: &[&str]) -> Result {
        std::fs::create_dir_all(dir)?;
        let secret: Secret = self.api().get(secret).await?;
        for key in keys {
            let value =
                secret.data.as_ref().and_then(|d| d.get(*key)).with_context(|| format!("key {key}"))?;
            let path = dir.join(key);
            std::fs::write(&path, &value.0)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        }
        Ok(())
    }

    /// grpcurl against the agent of a pod: `args` before the address (options), `method` after it (a symbol or a command).
    pub async fn grpcurl(
        &self,
        cluster: &str,
        caller: &Caller,
        pod: &str,
        args: &[&str],
        method: &[&str],
    ) -> Result<Output> {
        let ip = address(&self.pod(pod).await?)?;
        let name = format!("{cluster}-pods.{}.svc", self.ns);
        let file = |f: &str| caller.dir.join(f).to_string_lossy().into_owned();
        let (ca, cert, key) = (file("ca.crt"), file("tls.crt"), file("tls.key"));
        let mut all = vec![
            "in",
            "client",
            program().await?,
            "-cacert",
            &ca,
            "-servername",
            &name,
            "-connect-timeout",
            "10",
        ];
        if caller.certificate {
            all.extend(["-cert", &cert, "-key", &key]);
        }
        all.extend(args);
        let target = format!("{ip}:{}", pgwarden_api::pod::PORT_AGENT);
        all.push(&target);
        all.extend(method);
        ctl_output(&all).await
    }

    /// The TLS alert with which an agent ends a caller's connection, as curl words it. grpcurl can't tell: in TLS 1.3 a refused client
    /// certificate comes after the client's side of the handshake, and it tries again until its time is up.
    pub async fn alert(&self, cluster: &str, caller: &Caller, pod: &str) -> Result<String> {
        let ip = address(&self.pod(pod).await?)?;
        let name = format!("{cluster}-pods.{}.svc", self.ns);
        let port = pgwarden_api::pod::PORT_AGENT;
        let file = |f: &str| caller.dir.join(f).to_string_lossy().into_owned();
        let (ca, cert, key) = (file("ca.crt"), file("tls.crt"), file("tls.key"));
        let (resolve, url) = (format!("{name}:{port}:{ip}"), format!("https://{name}:{port}/"));
        let mut all = vec!["in", "client", "curl", "-sS", "--http2", "--max-time", "10"];
        all.extend(["--cacert", &ca, "--resolve", &resolve]);
        if caller.certificate {
            all.extend(["--cert", &cert, "--key", &key]);
        }
        all.push(&url);
        let out = ctl_output(&all).await?;
        if out.status.success() {
            bail!("{url} was answered: {}", String::from_utf8_lossy(&out.stdout));
        }
        Ok(String::from_utf8_lossy(&out.stderr).into_owned())
    }

    /// Calls a method that must succeed; gives its answer as JSON.
    pub async fn call(&self, cluster: &str, role: &str, pod: &str, method: &str) -> Result<Value> {
        let caller = self.caller(cluster, role).await?;
        let out = self.grpcurl(cluster, &caller, pod, &["-emit-defaults"], &[method]).await?;
        if !out.status.success() {
            bail!("{method} as {role}: {}", String::from_utf8_lossy(&out.stderr));
        }
        Ok(serde_json::from_slice(&out.stdout)?)
    }
}
