//! The `PostgreSQL` kind: what a user writes. Rules that a schema can't say are in [`rules`], the operator's answer in
//! [`PostgreSQLStatus`].
//!
//! The documentation comments of the fields become the descriptions in the CRD (`kubectl explain pg.spec`).

#![expect(
    unreachable_pub,
    reason = "the derived schema repeats its struct, as public as it is, inside a function"
)]

mod parts;
mod rules;
mod schema;
mod status;
mod version;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, LocalObjectReference, ResourceRequirements, Toleration};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

pub use self::{
    parts::{
        AgentTemplate, Backup, DeletionPolicy, Durability, DurabilityMode, FailoverProfile, Initdb,
        LocaleProvider, ServiceAccountTemplate, ServiceTemplate, ServiceType,
    },
    rules::{MINIMUM_AGENT_MEMORY, MINIMUM_MEMORY, MINIMUM_STORAGE},
    status::{Member, PostgreSQLStatus, condition},
    version::{UnknownVersion, Version},
};

/// What the user wants.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "database.example.com",
    version = "v1",
    kind = "PostgreSQL",
    plural = "postgresqls",
    singular = "postgresql",
    shortname = "pg",
    namespaced,
    status = "PostgreSQLStatus",
    doc = "A replicated PostgreSQL cluster: a primary, its replicas, and the Services that lead to them.",
    derive = "Default",
    derive = "PartialEq",
    validation = rules::name_length(),
    validation = rules::name_syntax(),
    validation = rules::version_downgrade(),
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn = r#"{"name":"Version","type":"string","jsonPath":".spec.version"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.ready"}"#,
    printcolumn = r#"{"name":"Primary","type":"string","jsonPath":".status.primary"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Last backup","type":"date","jsonPath":".status.lastBackupTime"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[x_kube(
    validation = rules::storage_class_immutable(),
    validation = rules::initdb_immutable(),
    validation = rules::locale_provider_version(),
    validation = rules::strict_needs_a_replica(),
    validation = rules::synchronous_replicas_exist(),
    validation = rules::synchronous_commit()
)]
#[serde(rename_all = "camelCase")]
pub struct PostgreSQLSpec {
    /// Major version of PostgreSQL, "11" to "18", as a string. A higher one is an upgrade; a lower one is refused, unless it is
    /// `status.rollbackVersion`. Versions below 13 are accepted but not run yet: condition `VersionNotYetSupported`.
    pub version: Version,
    /// Number of instances, 1 to 9: one primary, the others are replicas. 3 by default. With 1 there is no failover.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 1, max = 9))]
    pub replicas: i32,
    /// Size of each instance's volume, a Kubernetes quantity such as 100Gi. It can grow, if the StorageClass allows it; it can't
    /// shrink.
    #[schemars(length(max = 32))]
    #[x_kube(
        validation = rules::storage_quantity(),
        validation = rules::storage_minimum(),
        validation = rules::storage_shrink()
    )]
    pub storage: String,
    /// StorageClass of the volumes. Left out, the Kubernetes cluster's default class. Can't change.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::object_name("storageClassName"))]
    pub storage_class_name: Option<String>,
    /// CPU and memory of the Postgres container. PostgreSQL's memory settings are derived from the memory limit; without one,
    /// from the memory request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::resources")]
    #[x_kube(
        validation = rules::requests_within_limits("cpu"),
        validation = rules::requests_within_limits("memory"),
        validation = rules::memory_minimum(MINIMUM_MEMORY)
    )]
    pub resources: Option<ResourceRequirements>,
    /// Image with the PostgreSQL binaries of this major version on its PATH. Left out, `postgres:VERSION`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = rules::image())]
    pub image: Option<String>,
    /// Settings of postgresql.conf, by name, values as strings: `work_mem: 64MB`. They replace the operator's defaults. Names
    /// are written in lower case. What the operator sets itself is refused with the reason. A setting that needs a restart waits
    /// for one: see `status.members[].pendingRestart`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::parameters")]
    #[x_kube(
        validation = rules::parameter_syntax(),
        validation = rules::parameter_owned(),
        validation = rules::parameter_preload(),
        validation = rules::parameter_value(),
        validation = rules::parameter_tls(),
        validation = rules::parameter_senders()
    )]
    pub parameters: BTreeMap<String, String>,
    /// Libraries for shared_preload_libraries, in this order; they must be in the image. A change needs a restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::libraries")]
    pub shared_preload_libraries: Vec<String>,
    /// Extra lines for pg_hba.conf, after the operator's own and before its last one, which admits every role over TLS with
    /// SCRAM. Each is one line: TYPE DATABASE USER ADDRESS METHOD. The methods `trust`, `md5` and `password`, the replication
    /// database and the operator's roles are refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::hba")]
    pub hba: Vec<String>,
    /// What a commit waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
    /// Timing of failure detection: `balanced` for most clusters, `fast` for a quiet network and control plane, `tolerant` for
    /// slow ones.
    #[serde(default)]
    pub failover: FailoverProfile,
    /// Scheduled backups with pg_dump to S3. Left out, there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<Backup>,
    /// What happens to the data when this object is deleted. `Retain`: the volumes stay, with the record, the certificate
    /// authority and the application Secret; the same manifest finds its data again. `Delete`: they go too.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// How the data directory is made, once. Can't change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initdb: Option<Initdb>,
    /// Labels of the nodes that the pods may run on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::labels")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate, as in a Pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::tolerations")]
    pub tolerations: Vec<Toleration>,
    /// Replaces the operator's own spread over nodes and zones; as in a Pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::affinity")]
    pub affinity: Option<Affinity>,
    /// PriorityClass of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::object_name("priorityClassName"))]
    pub priority_class_name: Option<String>,
    /// Secrets of this namespace for pulling the images, as in a Pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::pull_secrets")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// The Services that applications connect to: NAME (the primary) and NAME-ro (the replicas).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceTemplate>,
    /// The ServiceAccount of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ServiceAccountTemplate>,
    /// The agent sidecar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentTemplate>,
}

impl PostgreSQLSpec {
    /// The durability in force: the user's, or the default (`preferred`, one acknowledgement).
    #[must_use]
    pub fn durability(&self) -> Durability {
        self.durability.clone().unwrap_or_default()
    }
}

const fn default_replicas() -> i32 {
    3
}
