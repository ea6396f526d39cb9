//! What the operator answers: written by the controller alone, from what the agents report.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// Types of conditions.
pub mod condition {
    /// Clients can write. False says why not.
    pub const READY: &str = "Ready";
    /// The operator is changing the cluster towards its spec.
    pub const PROGRESSING: &str = "Progressing";
    /// The cluster serves, but with less than the spec asks for: an instance is missing, or lags.
    pub const DEGRADED: &str = "Degraded";
    /// An object that the cluster needs exists and belongs to something else. It is never adopted.
    pub const NAME_CONFLICT: &str = "NameConflict";
    /// Volumes of this cluster exist but its record does not: nothing is initialised.
    pub const DATA_WITHOUT_RECORD: &str = "DataWithoutRecord";
    /// The wanted major version is accepted but can't be run yet.
    pub const VERSION_NOT_YET_SUPPORTED: &str = "VersionNotYetSupported";
    /// The wanted major version is not the one in use.
    pub const UPGRADE_PENDING: &str = "UpgradePending";
    /// Reconciling is stopped by the annotation `database.example.com/paused`.
    pub const PAUSED: &str = "Paused";

    /// The instances share no node that they need not share.
    pub const SPREAD: &str = "Spread";
    /// Backups are made.
    pub const BACKUP_READY: &str = "BackupReady";
    /// Commits are as durable as the manifest asks.
    pub const DURABILITY: &str = "Durability";

    /// Whether `True` is the good value of a condition of this type. All others report trouble, or work under way, with `True`.
    #[must_use]
    pub fn is_good_when_true(kind: &str) -> bool {
        [READY, SPREAD, BACKUP_READY, DURABILITY].contains(&kind)
    }
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
    #[schemars(length(max = 8))]
    pub version: Option<String>,
    /// Major version that `spec.version` may go back to after an upgrade.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    pub rollback_version: Option<String>,
    /// PostgreSQL's system identifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_identifier: Option<String>,
    /// Identity of the cluster's data: names its backups' prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// The instances, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub members: Vec<Member>,
    /// When the last backup ended well.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub last_backup_time: Option<String>,
    /// Conditions, by type: Ready, Progressing, Degraded and more, each with its reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// An instance, as its agent last reported it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Pod name.
    pub name: String,
    /// Node name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// IP address of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// `primary`, `replica` or `none`.
    #[serde(default)]
    pub role: String,
    /// State of the instance: Init, Initdb, Clone, Standby, Barrier, Primary, Affirmed, Draining, Fenced or Blocked; Unknown
    /// when its agent does not answer.
    #[serde(default)]
    pub state: String,
    /// Serves what its role promises.
    #[serde(default)]
    pub ready: bool,
    /// Timeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
    /// Bytes of WAL that this replica has still to replay; missing when not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_bytes: Option<i64>,
    /// Seconds since the commit of the last replayed transaction, 0 when caught up; missing when not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_seconds: Option<f64>,
    /// Settings that wait for a restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending_restart: Vec<String>,
    /// Why it is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}
