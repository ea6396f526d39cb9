//! The parts of a [`PostgreSQLSpec`](super::PostgreSQLSpec).

use std::{collections::BTreeMap, fmt};

use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{rules, schema};

/// Writes an enum of fixed words: `as_str` and `Display`.
macro_rules! words {
    ($type:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        impl $type {
            /// The word, as the user writes it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

/// What a commit waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Durability {
    /// `preferred`: acknowledgement by a replica while one is healthy; when none is, the primary goes on alone and nobody can be
    /// promoted meanwhile. `strict`: writes wait until enough replicas have acknowledged; needs 2 replicas or more. `async`:
    /// commits don't wait; a failover can lose the last ones.
    #[serde(default)]
    pub mode: DurabilityMode,
    /// Replicas that must have flushed a commit before it is acknowledged, at most `replicas` − 1. 1 by default.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 8))]
    pub synchronous_replicas: i32,
    /// Bytes of WAL. In `async`, a replica further behind the primary is not promoted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub maximum_lag: Option<i64>,
}

impl Default for Durability {
    fn default() -> Self {
        Self { mode: DurabilityMode::default(), synchronous_replicas: one(), maximum_lag: None }
    }
}

const fn one() -> i32 {
    1
}

/// See [`mode`](Durability::mode).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DurabilityMode {
    /// An acknowledgement while a replica is healthy; none when there is none.
    #[default]
    Preferred,
    /// Writes wait until enough replicas have acknowledged.
    Strict,
    /// Commits do not wait for replicas.
    Async,
}

words!(DurabilityMode { Preferred = "preferred", Strict = "strict", Async = "async" });

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

words!(FailoverProfile { Balanced = "balanced", Fast = "fast", Tolerant = "tolerant" });

/// See [`deletion_policy`](super::PostgreSQLSpec::deletion_policy).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// The volumes stay, with the record, the certificate authority and the application Secret: the same manifest finds its data.
    #[default]
    Retain,
    /// The volumes go too.
    Delete,
}

words!(DeletionPolicy { Retain = "Retain", Delete = "Delete" });

/// Scheduled backups with pg_dump to S3.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backup {
    /// When, as a Kubernetes CronJob says it: five fields (minute, hour, day of month, month, day of week), or @hourly, @daily,
    /// @weekly, @monthly, @yearly, or @every DURATION.
    #[schemars(length(max = 128))]
    #[x_kube(validation = rules::schedule())]
    pub schedule: String,
    /// Time zone of the schedule, by its name, such as Europe/Berlin. Left out, that of the Kubernetes controller manager, most
    /// often UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = rules::time_zone())]
    pub time_zone: Option<String>,
    /// Days that a backup is kept, 1 to 3650. The newest good one always stays. Left out, backups are kept for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3650))]
    pub retention: Option<i32>,
    /// Bucket that backups are written to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = rules::bucket())]
    pub s3_bucket: Option<String>,
}

/// How the data directory is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Initdb {
    /// Locale of the databases, such as en_US.UTF-8; the image must have it. Left out, C.UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = rules::locale())]
    pub locale: Option<String>,
    /// Locale provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<LocaleProvider>,
    /// Encoding of the databases, such as UTF8 or LATIN1. Left out, UTF8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = rules::encoding())]
    pub encoding: Option<String>,
}

// The description of an optional field's type is the one that users see.
/// Locale provider. `icu` needs version 15, `builtin` version 17. Left out, the version's default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum LocaleProvider {
    /// The C library's.
    Libc,
    /// ICU's.
    Icu,
    /// PostgreSQL's own.
    Builtin,
}

words!(LocaleProvider { Libc = "libc", Icu = "icu", Builtin = "builtin" });

/// The Services that applications connect to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceTemplate {
    /// Type of the Services.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<ServiceType>,
    /// Annotations of the Services, for example for a load balancer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::annotations")]
    pub annotations: BTreeMap<String, String>,
}

/// Type of the Services. Left out, `ClusterIP`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    /// Inside the Kubernetes cluster.
    #[default]
    ClusterIP,
    /// From outside, through a load balancer.
    LoadBalancer,
    /// From outside, through a port of every node.
    NodePort,
}

words!(ServiceType { ClusterIP = "ClusterIP", LoadBalancer = "LoadBalancer", NodePort = "NodePort" });

/// The ServiceAccount of the pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountTemplate {
    /// Annotations of the ServiceAccount, for example for a cloud's workload identity.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::annotations")]
    pub annotations: BTreeMap<String, String>,
}

/// The agent sidecar.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentTemplate {
    /// CPU and memory of the agent's container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::resources")]
    #[x_kube(
        validation = rules::requests_within_limits("cpu"),
        validation = rules::requests_within_limits("memory"),
        validation = rules::memory_minimum(rules::MINIMUM_AGENT_MEMORY)
    )]
    pub resources: Option<ResourceRequirements>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `as_str` must be what serde writes, or the operator would name a value that the API refuses.
    #[test]
    fn words_are_the_serialised_form() {
        fn check<T: Serialize + fmt::Display>(values: impl IntoIterator<Item = T>) {
            for value in values {
                assert_eq!(serde_json::to_value(&value).unwrap(), serde_json::json!(value.to_string()));
            }
        }
        check([DurabilityMode::Preferred, DurabilityMode::Strict, DurabilityMode::Async]);
        check([FailoverProfile::Balanced, FailoverProfile::Fast, FailoverProfile::Tolerant]);
        check([DeletionPolicy::Retain, DeletionPolicy::Delete]);
        check([LocaleProvider::Libc, LocaleProvider::Icu, LocaleProvider::Builtin]);
        check([ServiceType::ClusterIP, ServiceType::LoadBalancer, ServiceType::NodePort]);
    }

    #[test]
    fn durability_defaults_are_the_same_in_rust_and_in_the_api() {
        assert_eq!(serde_json::from_str::<Durability>("{}").unwrap(), Durability::default());
    }
}
