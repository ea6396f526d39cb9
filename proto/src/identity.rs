//! Who a certificate is for: a SAN URI `spiffe://pgwarden/ns/NAMESPACE/cluster/NAME/role/ROLE`.

use std::{fmt, str::FromStr};

/// One leaf certificate per role and cluster (decision 17).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CertRole {
    /// Postgres' and the agent's server certificate.
    Server,
    /// Replicas' client certificate towards the primary's Postgres (`CN=pgwarden_replication`).
    Replication,
    /// Agents among themselves.
    Peer,
    /// The controller.
    Controller,
    /// The backup CronJob.
    Backup,
    /// People: `kubectl pg`, grpcurl.
    Viewer,
}

impl CertRole {
    /// All roles, in the order in which they are documented.
    pub const ALL: [Self; 6] =
        [Self::Server, Self::Replication, Self::Peer, Self::Controller, Self::Backup, Self::Viewer];

    /// The role as it stands in the certificate and in the Secret's name `NAME-tls-ROLE`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Replication => "replication",
            Self::Peer => "peer",
            Self::Controller => "controller",
            Self::Backup => "backup",
            Self::Viewer => "viewer",
        }
    }
}

impl fmt::Display for CertRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CertRole {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|r| r.as_str() == s).ok_or(())
    }
}

/// The identity in a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Namespace of the cluster.
    pub namespace: String,
    /// Name of the cluster.
    pub cluster: String,
    /// What its bearer may do.
    pub role: CertRole,
}

impl Identity {
    /// The SAN URI.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("spiffe://pgwarden/ns/{}/cluster/{}/role/{}", self.namespace, self.cluster, self.role)
    }

    /// Reads a SAN URI; `None` when it is not one of ours.
    #[must_use]
    pub fn parse(uri: &str) -> Option<Self> {
        let rest = uri.strip_prefix("spiffe://pgwarden/ns/")?;
        let (namespace, rest) = rest.split_once("/cluster/")?;
        let (cluster, role) = rest.split_once("/role/")?;
        let name = |s: &str| !s.is_empty() && !s.contains('/');
        (name(namespace) && name(cluster)).then_some(())?;
        Some(Self { namespace: namespace.into(), cluster: cluster.into(), role: role.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uri_round_trip_and_strangers() {
        for role in CertRole::ALL {
            let id = Identity { namespace: "shop".into(), cluster: "orders".into(), role };
            assert_eq!(Identity::parse(&id.uri()), Some(id));
        }
        for bad in [
            "spiffe://other/ns/a/cluster/b/role/peer",
            "spiffe://pgwarden/ns/a/b/cluster/c/role/peer",
            "spiffe://pgwarden/ns//cluster/c/role/peer",
            "spiffe://pgwarden/ns/a/cluster/c/role/root",
        ] {
            assert_eq!(Identity::parse(bad), None, "{bad}");
        }
    }
}
