//! The `PostgreSQL` kind.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Affinity, LocalObjectReference, ResourceRequirements, Toleration},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A replicated PostgreSQL cluster.
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
    derive = "Default",
    derive = "PartialEq",
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
#[serde(rename_all = "camelCase")]
pub struct PostgreSQLSpec {
    /// Major version of PostgreSQL, "11" to "18".
    pub version: String,
    /// Number of instances, 1 to 9: one primary, the others are replicas.
    #[serde(default = "default_replicas")]
    pub replicas: i32,
    /// Size of each instance's volume, a Kubernetes quantity such as 100Gi. Can grow, not shrink.
    pub storage: String,
    /// StorageClass of the volumes; the cluster's default class if empty. Can't change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<String>,
    /// CPU and memory of the Postgres container. PostgreSQL's memory settings follow the memory limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Image with the PostgreSQL binaries; `postgres:VERSION` if empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Settings of postgresql.conf, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
    /// Libraries for shared_preload_libraries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_preload_libraries: Vec<String>,
    /// Extra lines for pg_hba.conf, after the operator's own and before its last one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hba: Vec<String>,
    /// What a commit waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
    /// Timing of failure detection.
    #[serde(default)]
    pub failover: FailoverProfile,
    /// Scheduled backups with pg_dump to S3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<Backup>,
    /// What happens to the volumes when this object is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// How the data directory is made, once. Can't change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initdb: Option<Initdb>,
    /// Nodes that the pods may run on, by label.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Replaces the operator's own spread over nodes and zones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// PriorityClass of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// Secrets for pulling the images.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// The Services that applications connect to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceTemplate>,
    /// The ServiceAccount of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ServiceAccountTemplate>,
    /// The agent sidecar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentTemplate>,
}

const fn default_replicas() -> i32 {
    3
}

/// What a commit waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Durability {
    /// `preferred`: a replica, while one is healthy. `strict`: always. `async`: none.
    #[serde(default)]
    pub mode: DurabilityMode,
    /// Replicas that must have flushed a commit, at most replicas − 1.
    #[serde(default = "one")]
    pub synchronous_replicas: i32,
    /// Bytes of WAL: a replica further behind is never promoted in `async`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maximum_lag: Option<i64>,
}

const fn one() -> i32 {
    1
}

/// See [`Durability::mode`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DurabilityMode {
    /// One acknowledgement while a replica is healthy; none when there is none.
    #[default]
    Preferred,
    /// Writes wait until enough replicas have acknowledged.
    Strict,
    /// Commits do not wait for replicas.
    Async,
}

/// Timing profile of the failover protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FailoverProfile {
    /// For most clusters.
    #[default]
    Balanced,
    /// Shorter, for a quiet network and control plane.
    Fast,
    /// Longer, for slow networks.
    Tolerant,
}

/// See [`PostgreSQLSpec::deletion_policy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// The volumes stay, with the record, the certificate authority and the application Secret: the same manifest finds its data.
    #[default]
    Retain,
    /// The volumes go too.
    Delete,
}

/// Scheduled backups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backup {
    /// When, in cron's five fields.
    pub schedule: String,
    /// Days that a backup is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<i32>,
    /// Bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3_bucket: Option<String>,
}

/// How the data directory is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Initdb {
    /// Locale; C.UTF-8 if empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locale: Option<String>,
    /// Locale provider: `libc`, `icu` or `builtin`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Encoding; UTF8 if empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
}

/// The Services that applications connect to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceTemplate {
    /// `ClusterIP`, `LoadBalancer` or `NodePort`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<String>,
    /// Annotations, for example of a load balancer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The ServiceAccount of the pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountTemplate {
    /// Annotations, for example of a cloud's workload identity.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The agent sidecar.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentTemplate {
    /// CPU and memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

/// What was observed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PostgreSQLStatus {
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word: Creating, Running, Degraded, Blocked, Deleting, Paused.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// Pod that is primary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
    /// Ready of wanted instances, such as "3/3".
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ready: String,
    /// Ready instances.
    pub ready_replicas: i32,
    /// Instances that exist.
    pub replicas: i32,
    /// Label selector of the pods, for the scale subresource.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// Major version in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Major version that `version` may go back to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback_version: Option<String>,
    /// PostgreSQL's system identifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_identifier: Option<String>,
    /// Identity of the cluster's data: names its backups' prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// The instances.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Member>,
    /// When the last backup ended well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_backup_time: Option<String>,
    /// Conditions: Ready, Progressing, Degraded and more, with reasons.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// An instance, as its agent last reported it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Member {
    /// Pod name.
    pub name: String,
    /// Node name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// `primary`, `replica` or `none`.
    pub role: String,
    /// State of the instance, see the agent's Status.
    pub state: String,
    /// Serves what its role promises.
    pub ready: bool,
    /// Timeline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
    /// Bytes of WAL behind the primary; missing when not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_bytes: Option<i64>,
    /// Settings that wait for a restart.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pending_restart: Vec<String>,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}
