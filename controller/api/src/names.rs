//! Names of the objects of a cluster, and its labels. Every name is derived from the cluster's; nothing else invents one.

/// `app.kubernetes.io/name` of everything we make.
pub const APP_NAME: &str = "pgwarden";
/// Field manager of the controller's server-side apply.
pub const FIELD_MANAGER: &str = "pgwarden-controller";
/// Value of `endpointslice.kubernetes.io/managed-by` on our slices: keeps kube-controller-manager's hands off.
pub const SLICE_MANAGED_BY: &str = "agent.database.example.com";

/// Label: name of the cluster.
pub const LABEL_CLUSTER: &str = "database.example.com/cluster";
/// Label, for people: `primary` or `replica`.
pub const LABEL_ROLE: &str = "database.example.com/role";
/// Label: major version.
pub const LABEL_VERSION: &str = "database.example.com/version";
/// Annotation on a slice: epoch of the record under which its endpoints were written.
pub const ANNOTATION_EPOCH: &str = "database.example.com/epoch";
/// Annotation: `"true"` stops reconciling.
pub const ANNOTATION_PAUSED: &str = "database.example.com/paused";
/// Annotation on the StatefulSet: the controller's own hash of what needs a restart (without the agent's image).
pub const ANNOTATION_POD_HASH: &str = "database.example.com/pod-hash";
/// Finalizer of a `PostgreSQL`.
pub const FINALIZER: &str = "database.example.com/cleanup";

/// Longest name of a cluster: StatefulSet and CronJob names allow 52, and suffixes need room.
pub const MAX_NAME: usize = 40;

/// The names that follow from a cluster's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    cluster: String,
}

impl Names {
    /// Names of the cluster `cluster`.
    #[must_use]
    pub fn new(cluster: impl Into<String>) -> Self {
        Self { cluster: cluster.into() }
    }
    /// The cluster, the Service of the primary, and the record.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }
    /// Service of the primary, and the one EndpointSlice that the holder writes for it.
    #[must_use]
    pub fn primary_service(&self) -> String {
        self.cluster.clone()
    }
    /// Service of the healthy replicas, and its slice.
    #[must_use]
    pub fn replica_service(&self) -> String {
        format!("{}-ro", self.cluster)
    }
    /// Headless Service of all pods.
    #[must_use]
    pub fn pods_service(&self) -> String {
        format!("{}-pods", self.cluster)
    }
    /// The record of who holds the cluster.
    #[must_use]
    pub fn record(&self) -> String {
        self.cluster.clone()
    }
    /// StatefulSet of one major version.
    #[must_use]
    pub fn stateful_set(&self, version: &str) -> String {
        format!("{}-{version}", self.cluster)
    }
    /// Pod of one major version.
    #[must_use]
    pub fn pod(&self, version: &str, ordinal: u32) -> String {
        format!("{}-{version}-{ordinal}", self.cluster)
    }
    /// Volume claim of a pod.
    #[must_use]
    pub fn volume_claim(&self, version: &str, ordinal: u32) -> String {
        format!("data-{}-{version}-{ordinal}", self.cluster)
    }
    /// ConfigMap of Postgres settings.
    #[must_use]
    pub fn config_map(&self) -> String {
        format!("{}-config", self.cluster)
    }
    /// CronJob of the backups.
    #[must_use]
    pub fn backup_cron_job(&self) -> String {
        format!("{}-backup", self.cluster)
    }
    /// Secret that the agents mount for S3, filled by the controller (decision 31).
    #[must_use]
    pub fn backup_credentials(&self) -> String {
        format!("{}-backup-credentials", self.cluster)
    }
    /// Secret that an application mounts.
    #[must_use]
    pub fn app_secret(&self) -> String {
        format!("{}-app", self.cluster)
    }
    /// Secret with the certificate authority's key; only the controller reads it.
    #[must_use]
    pub fn ca_secret(&self) -> String {
        format!("{}-ca", self.cluster)
    }
    /// Secret with the leaf certificate of a role (`server`, `peer`, …): `tls.crt`, `tls.key`, `ca.crt`.
    #[must_use]
    pub fn tls_secret(&self, role: &str) -> String {
        format!("{}-tls-{role}", self.cluster)
    }
    /// ServiceAccount, Role and RoleBinding of the agents.
    #[must_use]
    pub fn service_account(&self) -> String {
        format!("{}-agent", self.cluster)
    }
    /// PodDisruptionBudget.
    #[must_use]
    pub fn disruption_budget(&self) -> String {
        self.cluster.clone()
    }
}

/// Ordinal of a StatefulSet's pod, from its name.
#[must_use]
pub fn ordinal(pod: &str) -> Option<u32> {
    pod.rsplit_once('-')?.1.parse().ok()
}

/// Name of the physical slot, of the application_name and in synchronous_standby_names (decision 22).
#[must_use]
pub fn member_name(ordinal: u32, instance_uuid: &str) -> String {
    let hex: String = instance_uuid.chars().filter(char::is_ascii_hexdigit).collect();
    format!("m{ordinal}_{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_cluster() {
        let n = Names::new("my-postgres");
        assert_eq!(n.stateful_set("17"), "my-postgres-17");
        assert_eq!(n.volume_claim("17", 2), "data-my-postgres-17-2");
        assert_eq!(ordinal("my-postgres-17-2"), Some(2));
        assert_eq!(ordinal("x-y"), None);
    }

    #[test]
    fn member_name_fits_a_postgres_name() {
        let m = member_name(2, "550e8400-e29b-41d4-a716-446655440000");
        assert_eq!(m, "m2_550e8400e29b41d4a716446655440000");
        assert!(m.len() < 64);
    }
}
