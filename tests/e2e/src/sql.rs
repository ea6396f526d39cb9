//! SQL as an application sends it: psql on the `client` host, outside the nodes, through the Services, over TLS.

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Secret;

use crate::{Result, ctl::ctl_output};

/// What an application needs to connect.
#[derive(Clone, Debug)]
pub struct Login {
    /// Role.
    pub username: String,
    /// Password.
    pub password: String,
    /// Host name of the primary's Service.
    pub host: String,
    /// Database.
    pub dbname: String,
    /// Connection URI.
    pub uri: String,
    /// Certificate authority, PEM.
    pub ca: String,
}

impl Login {
    /// Reads the Secret `NAME-app`.
    pub fn from_secret(secret: &Secret) -> Result<Self> {
        let key = |k: &str| -> Result<String> {
            let value = secret.data.as_ref().and_then(|d| d.get(k)).with_context(|| format!("key {k}"))?;
            Ok(String::from_utf8(value.0.clone())?)
        };
        Ok(Self {
            username: key("username")?,
            password: key("password")?,
            host: key("host")?,
            dbname: key("dbname")?,
            uri: key("uri")?,
            ca: key("ca.crt")?,
        })
    }

    /// Runs one statement on `host` (the Secret's host if `None`); gives psql's unaligned output without its last newline.
    pub async fn sql(&self, host: Option<&str>, statement: &str) -> Result<String> {
        let host = host.unwrap_or(&self.host);
        let conninfo = format!(
            "host={host} port=5432 user={} dbname={} password={} sslmode=require connect_timeout=3",
            self.username, self.dbname, self.password
        );
        psql(&conninfo, statement).await
    }
}

/// Runs one statement with psql on the `client` host.
pub async fn psql(conninfo: &str, statement: &str) -> Result<String> {
    let args =
        ["in", "client", "psql", "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", conninfo, "-c", statement];
    let out = ctl_output(&args).await?;
    if !out.status.success() {
        bail!("psql: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim_end_matches('\n').to_owned())
}
