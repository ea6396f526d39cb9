//! The command line.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Operator for PostgreSQL clusters.
#[derive(Debug, Parser)]
#[command(name = "pgwarden-controller", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// See [`Cli::command`].
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Reconcile PostgreSQL clusters until told to stop.
    Run(Box<RunArgs>),
    /// Write the operator's own manifests.
    Manifests(ManifestArgs),
}

/// Arguments of `manifests`.
#[derive(Debug, Args)]
pub struct ManifestArgs {
    /// Directory to write to.
    #[arg(long)]
    pub out: PathBuf,
}

/// Arguments of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Watch this namespace only, with a Role instead of a ClusterRole; all namespaces if empty.
    #[arg(long, env = "PGWARDEN_WATCH_NAMESPACE")]
    pub namespace: Option<String>,
    /// The operator's own namespace: its Lease is there, and the agents' port is open to it.
    #[arg(long, env = "POD_NAMESPACE", default_value = crate::manifests::NAMESPACE)]
    pub operator_namespace: String,
    /// Identity in the leader's Lease, and of the events' reporter; random if empty.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: Option<String>,
    /// UID of this pod: with it, a restarted container goes on with its own Lease at once.
    #[arg(long, env = "POD_UID")]
    pub pod_uid: Option<String>,
    /// Elect a leader between the replicas of the controller.
    #[arg(long, env = "PGWARDEN_LEADER_ELECTION", default_value_t = true, action = clap::ArgAction::Set)]
    pub leader_election: bool,
    /// Address of `/metrics`, `/livez` and `/readyz`, plain HTTP.
    #[arg(long, env = "PGWARDEN_HTTP_ADDRESS", default_value = "0.0.0.0:8080")]
    pub http_address: SocketAddr,

    /// Image of PostgreSQL where the manifest names none; `{version}` stands for the major version.
    #[arg(long, env = "PGWARDEN_POSTGRES_IMAGE", default_value = "postgres:{version}")]
    pub postgres_image: String,
    /// Image of the agent.
    #[arg(long, env = "PGWARDEN_AGENT_IMAGE", default_value = concat!("pgwarden/agent:", env!("CARGO_PKG_VERSION")))]
    pub agent_image: String,
    /// Pull policy of all the images of a pod; Kubernetes' default if empty.
    #[arg(long, env = "PGWARDEN_IMAGE_PULL_POLICY")]
    pub image_pull_policy: Option<PullPolicy>,

    /// How long a cluster's own certificate authority is valid.
    #[arg(long, env = "PGWARDEN_CA_VALIDITY", default_value = "3650d")]
    pub ca_validity: Span,
    /// How long the certificates of servers and clients are valid.
    #[arg(long, env = "PGWARDEN_CERTIFICATE_VALIDITY", default_value = "90d")]
    pub certificate_validity: Span,
    /// Percentage of a certificate's life after which it is renewed.
    #[arg(long, env = "PGWARDEN_RENEW_PERCENT", default_value_t = 66, value_parser = clap::value_parser!(u8).range(10..=95))]
    pub renew_percent: u8,
    /// Longest wait, in each step of a change of the authority, for agents that have not taken over the new certificates.
    #[arg(long, env = "PGWARDEN_CA_OVERLAP", default_value = "1h")]
    pub ca_overlap: Span,

    /// Make a NetworkPolicy for each cluster.
    #[arg(long, env = "PGWARDEN_NETWORK_POLICY", default_value_t = true, action = clap::ArgAction::Set)]
    pub network_policy: bool,
    /// Clusters that are reconciled at the same time.
    #[arg(long, env = "PGWARDEN_CONCURRENCY", default_value_t = 8)]
    pub concurrency: u16,
    /// Format of the log.
    #[arg(long, env = "PGWARDEN_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
}

/// See [`RunArgs::log_format`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Kubernetes' `imagePullPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PullPolicy {
    /// Ask the registry each time.
    #[value(name = "Always")]
    Always,
    /// Pull what is missing.
    #[value(name = "IfNotPresent")]
    IfNotPresent,
    /// Only use what is there.
    #[value(name = "Never")]
    Never,
}

impl PullPolicy {
    /// As in a container.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// A length of time with a unit: `90s`, `15m`, `1h`, `3650d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("{s:?} is not a length of time such as 90s, 15m, 1h or 3650d");
        let unit = s.chars().last().ok_or_else(bad)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(bad()),
        };
        let number: u64 = s.strip_suffix(unit).unwrap_or_default().parse().map_err(|_| bad())?;
        match number.checked_mul(seconds) {
            Some(total) if total > 0 && total <= 100 * 366 * 86_400 => Ok(Self(Duration::from_secs(total))),
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        assert_eq!("90s".parse(), Ok(Span(Duration::from_secs(90))));
        assert_eq!("2d".parse(), Ok(Span(Duration::from_secs(172_800))));
        for bad in ["", "s", "0s", "-1s", "1y", "99999999999999999999d", "40000d", "1ss"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn defaults_parse() {
        let cli = Cli::try_parse_from(["pgwarden-controller", "run"]).unwrap();
        let Command::Run(args) = cli.command else { panic!("run expected") };
        assert_eq!(args.postgres_image, "postgres:{version}");
        assert!(args.leader_election && args.network_policy);
    }
}
