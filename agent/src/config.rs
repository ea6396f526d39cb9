//! What this agent is told at its start: who it is, where its files and sockets are, on which ports it answers.
//!
//! Every path and port has the pod's default ([`pgwarden_api::pod`]) and can be given, so that several agents run on one machine.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use pgwarden_api::{names::Names, pod};

/// See the module.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Name of the cluster.
    #[arg(long, env = pod::ENV_CLUSTER)]
    pub cluster: String,
    /// Namespace of the cluster.
    #[arg(long, env = pod::ENV_NAMESPACE)]
    pub namespace: String,
    /// Name of this pod.
    #[arg(long, env = pod::ENV_POD)]
    pub pod: String,
    /// UID of this pod.
    #[arg(long, env = pod::ENV_POD_UID)]
    pub pod_uid: String,
    /// Name of this pod's node.
    #[arg(long, env = pod::ENV_NODE)]
    pub node: String,
    /// Ordinal of this pod in its StatefulSet; taken from the pod's name if not given.
    #[arg(long, env = "PGWARDEN_ORDINAL", default_value_t = u32::MAX, hide_default_value = true)]
    pub ordinal: u32,
    /// IP address of this pod: Postgres and the agent's ports are reached there.
    #[arg(long, env = pod::ENV_POD_IP)]
    pub address: IpAddr,
    /// Major version of PostgreSQL.
    #[arg(long, env = pod::ENV_VERSION)]
    pub version: u32,

    /// Mount of the data volume.
    #[arg(long, env = "PGWARDEN_DATA_MOUNT", default_value = pod::DATA_MOUNT)]
    pub data_mount: PathBuf,
    /// The supervisor's control socket.
    #[arg(long, env = "PGWARDEN_CONTROL_SOCKET", default_value = pod::CONTROL_SOCKET)]
    pub control_socket: PathBuf,
    /// Directory of Postgres' Unix socket.
    #[arg(long, env = "PGWARDEN_SOCKET_DIR", default_value = pod::SOCKET_DIR)]
    pub socket_dir: PathBuf,
    /// Directory of the keys that Postgres reads.
    #[arg(long, env = "PGWARDEN_TLS_DIR", default_value = pod::TLS_DIR)]
    pub tls_dir: PathBuf,
    /// The mounted ConfigMap.
    #[arg(long, env = "PGWARDEN_CONFIG_DIR", default_value = pod::CONFIG_DIR)]
    pub config_dir: PathBuf,
    /// The mounted certificates, one directory a role.
    #[arg(long, env = "PGWARDEN_CERT_DIR", default_value = pod::CERT_DIR)]
    pub cert_dir: PathBuf,
    /// The mounted application Secret.
    #[arg(long, env = "PGWARDEN_APP_SECRET_DIR", default_value = pod::APP_SECRET_DIR)]
    pub app_secret_dir: PathBuf,
    /// Address on which the agent's own ports and Postgres listen: all of the pod's by default, one loopback address in tests.
    #[arg(long, env = "PGWARDEN_LISTEN")]
    pub listen: Option<IpAddr>,

    /// Port of Postgres.
    #[arg(long, env = "PGWARDEN_POSTGRES_PORT", default_value_t = pod::PORT_POSTGRES)]
    pub postgres_port: u16,
    /// Port of the agent's gRPC.
    #[arg(long, env = "PGWARDEN_AGENT_PORT", default_value_t = pod::PORT_AGENT)]
    pub agent_port: u16,
    /// Port of the agent's readiness and liveness.
    #[arg(long, env = "PGWARDEN_PROBE_PORT", default_value_t = pod::PORT_AGENT_PROBE)]
    pub probe_port: u16,
    /// Port of the metrics.
    #[arg(long, env = "PGWARDEN_METRICS_PORT", default_value_t = pod::PORT_METRICS)]
    pub metrics_port: u16,

    /// Directory of the record as a file, in place of Kubernetes: agents on one machine share it in tests.
    #[cfg(feature = "testing")]
    #[arg(long, env = "PGWARDEN_RECORD_DIR")]
    pub record_dir: Option<PathBuf>,
}

/// The pod's name carries no ordinal.
#[derive(Debug, thiserror::Error)]
#[error("the pod's name {0:?} does not end in an ordinal, and none was given")]
pub struct NoOrdinal(String);

impl Config {
    /// Fills in what follows from the rest.
    ///
    /// # Errors
    /// When no ordinal is given and the pod's name has none.
    pub fn complete(mut self) -> Result<Self, NoOrdinal> {
        if self.ordinal == u32::MAX {
            self.ordinal =
                pgwarden_api::names::ordinal(&self.pod).ok_or_else(|| NoOrdinal(self.pod.clone()))?;
        }
        Ok(self)
    }

    /// The data directory: a subdirectory of the volume, so that `lost+found` and our own files stay outside.
    #[must_use]
    pub fn pgdata(&self) -> PathBuf {
        self.data_mount.join("pgdata")
    }

    /// Names of the cluster's objects.
    #[must_use]
    pub fn names(&self) -> Names {
        Names::new(self.cluster.clone())
    }

    /// The address to listen on for `port`.
    #[must_use]
    pub fn listen(&self, port: u16) -> SocketAddr {
        let any: IpAddr = match self.address {
            IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        SocketAddr::new(self.listen.unwrap_or(any), port)
    }

    /// `listen_addresses` of Postgres.
    #[must_use]
    pub fn listen_addresses(&self) -> String {
        self.listen.map_or_else(|| "*".to_owned(), |address| address.to_string())
    }

    /// The name that every server certificate of the cluster carries, whichever pod answers.
    #[must_use]
    pub fn tls_server_name(&self) -> String {
        format!("{}.{}.svc", self.names().pods_service(), self.namespace)
    }

    /// DNS name of a pod of this cluster.
    #[must_use]
    pub fn pod_dns(&self, pod: &str) -> String {
        format!("{pod}.{}", self.tls_server_name())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    fn parse(extra: &[&str]) -> Config {
        let base = [
            "agent",
            "--cluster",
            "c",
            "--namespace",
            "n",
            "--pod",
            "c-17-2",
            "--pod-uid",
            "u",
            "--node",
            "x",
        ];
        let rest = ["--address", "10.0.0.1", "--version", "17"];
        Cli::parse_from(base.iter().chain(&rest).chain(extra)).config.complete().unwrap()
    }

    #[test]
    fn defaults_are_the_pods() {
        let c = parse(&[]);
        assert_eq!(c.ordinal, 2);
        assert_eq!(c.pgdata(), PathBuf::from(pod::PGDATA));
        assert_eq!(c.listen(c.agent_port).to_string(), "0.0.0.0:8443");
        assert_eq!(c.listen_addresses(), "*");
        assert_eq!(c.pod_dns("c-17-0"), "c-17-0.c-pods.n.svc");
    }

    #[test]
    fn several_agents_fit_on_one_machine() {
        let c = parse(&["--listen", "127.0.0.3", "--postgres-port", "6000", "--ordinal", "7"]);
        assert_eq!(c.ordinal, 7);
        assert_eq!(c.listen(c.postgres_port).to_string(), "127.0.0.3:6000");
        assert_eq!(c.listen_addresses(), "127.0.0.3");
    }
}
