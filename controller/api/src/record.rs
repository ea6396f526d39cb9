//! The record: one small object a cluster, changed only by compare-and-swap on its `resourceVersion` (`ha.md` §2.3).

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who holds a cluster, since which epoch, and who may vote. Written by the agents; created by the controller. Under 4 kB.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "database.example.com",
    version = "v1",
    kind = "PostgreSQLRecord",
    plural = "postgresqlrecords",
    singular = "postgresqlrecord",
    shortname = "pgrecord",
    namespaced,
    doc = "Who holds a PostgreSQL cluster. Written by its agents: never edit it by hand.",
    derive = "Default",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Epoch","type":"integer","jsonPath":".spec.epoch"}"#,
    printcolumn = r#"{"name":"State","type":"string","jsonPath":".spec.state"}"#,
    printcolumn = r#"{"name":"Holder","type":"string","jsonPath":".spec.holder.pod"}"#,
    printcolumn = r#"{"name":"Timeline","type":"integer","jsonPath":".spec.timeline"}"#,
    printcolumn = r#"{"name":"Renewed","type":"date","jsonPath":".spec.renewTime"}"#
)]
#[serde(rename_all = "camelCase", default)]
pub struct PostgreSQLRecordSpec {
    /// Random identity of this cluster's data, made with the record. Names its backups' prefix.
    pub cluster_id: String,
    /// Fencing number: grows by one with every change of holder.
    pub epoch: u64,
    /// The holder's state.
    pub state: RecordState,
    /// The instance that may be out of recovery. None before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// PostgreSQL's system identifier; empty until the first initdb has ended.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub system_identifier: String,
    /// Milliseconds that a candidate waits since it last saw the record change.
    pub lease_millis: u64,
    /// When the holder last renewed, by its own clock. For people: no decision reads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renew_time: Option<String>,
    /// Instance UUIDs that may vote; empty: nobody may be promoted.
    pub voters: Vec<String>,
    /// Synchronous acknowledgements that a commit needs.
    pub sync_acks: u32,
    /// Timeline of the holder.
    pub timeline: u32,
    /// Highest timeline ever used; a promotion uses the next.
    pub max_timeline: u32,
    /// Where `timeline` left its parent.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fork_lsn: String,
    /// Earlier timelines, newest last, at most 16.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<TimelineFork>,
    /// Why the last change of holder or state happened.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// State of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RecordState {
    /// Nobody has held it yet.
    #[default]
    Empty,
    /// The holder lives, or is not known to be dead.
    Held,
    /// The holder has stopped and said so: final for this epoch.
    Released,
    /// The holder has stopped and handed over to `handoverTo`: final for this epoch.
    Handover,
    /// A person has stopped elections.
    Frozen,
}

/// The holder of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Holder {
    /// Identity of the data directory.
    pub instance: String,
    /// Random identity of the supervisor's process: of this life of the container.
    pub incarnation: String,
    /// Pod name.
    pub pod: String,
    /// Pod UID.
    pub pod_uid: String,
    /// Node name.
    pub node: String,
    /// Pod IP.
    pub address: String,
}

/// A timeline, and where it left its parent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TimelineFork {
    /// The timeline.
    pub timeline: u32,
    /// The one it left.
    pub parent: u32,
    /// Where, as a pg_lsn.
    pub fork_lsn: String,
}
