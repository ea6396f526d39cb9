//! What `status` answers, as data: the shape of `-o json`, which is stable. Fields may be added; none is renamed or removed.
//! A field that is not known is `null`, a list that has nothing is empty.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::core::DynamicObject;
use pgwarden_api::{
    PostgreSQLStatus,
    cluster::condition,
    names::{ANNOTATION_PAUSED, Names},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;

/// Events shown.
const EVENTS: usize = 10;

/// The clusters of a namespace, or of all: `kubectl pg status -o json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct List {
    /// By namespace and name.
    pub clusters: Vec<Summary>,
}

/// One line about a cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Summary {
    pub name: String,
    pub namespace: String,
    /// Major version in use, or wanted as long as none is.
    pub version: String,
    /// As in `status.phase`; empty before the operator has seen the cluster.
    pub phase: String,
    /// Ready of wanted instances, such as "3/3".
    pub ready: String,
    pub replicas: i64,
    pub ready_replicas: i64,
    /// Pod.
    pub primary: Option<String>,
    pub last_backup: Option<String>,
    pub created: Option<Timestamp>,
    /// The annotation that stops the operator is set.
    pub paused: bool,
    /// The status is about this spec, not an older one.
    pub current: bool,
}

/// Everything about a cluster: `kubectl pg status NAME -o json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    #[serde(flatten)]
    pub summary: Summary,
    pub system_identifier: Option<String>,
    pub cluster_id: Option<String>,
    pub record: Option<Record>,
    pub members: Vec<Member>,
    pub conditions: Vec<Condition>,
    /// The last ones about the cluster and what belongs to it, newest last.
    pub events: Vec<EventLine>,
    /// What could not be read, and what does not fit together.
    pub notes: Vec<String>,
}

/// The record of who holds the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub epoch: u64,
    pub state: String,
    pub timeline: u64,
    /// Pod that holds the cluster.
    pub holder: Option<String>,
    pub renewed: Option<String>,
    /// Instances that may be promoted.
    pub voters: usize,
    pub reason: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Member {
    pub pod: String,
    pub role: String,
    pub state: String,
    pub ready: bool,
    pub timeline: Option<u32>,
    pub lag_bytes: Option<i64>,
    pub lag_seconds: Option<f64>,
    pub node: Option<String>,
    pub address: Option<String>,
    pub pending_restart: Vec<String>,
    pub message: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub reason: String,
    pub message: String,
    pub since: Option<Timestamp>,
    /// Whether this status is the one to wish for; `null` when it is unknown.
    pub good: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventLine {
    pub time: Option<Timestamp>,
    #[serde(rename = "type")]
    pub kind: String,
    pub reason: String,
    /// Kind/name.
    pub object: String,
    pub message: String,
    /// How often it happened.
    pub count: i64,
}

/// The part of the spec that is shown. Read leniently: a plugin may be older than the operator.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    version: String,
    replicas: i64,
}

/// The part of the record that is shown.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RecordSpec {
    epoch: u64,
    state: String,
    timeline: u64,
    holder: Option<Holder>,
    renew_time: Option<String>,
    voters: Vec<String>,
    reason: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Holder {
    pod: String,
}

fn field<T: serde::de::DeserializeOwned + Default>(object: &DynamicObject, name: &str) -> Result<T, Error> {
    match object.data.get(name) {
        None | Some(Value::Null) => Ok(T::default()),
        Some(value) => serde_json::from_value(value.clone()).map_err(|source| Error::Status {
            name: object.metadata.name.clone().unwrap_or_default(),
            source,
        }),
    }
}

impl Summary {
    /// Reads a `PostgreSQL`.
    pub(crate) fn of(object: &DynamicObject) -> Result<Self, Error> {
        let (spec, status): (Spec, PostgreSQLStatus) = (field(object, "spec")?, field(object, "status")?);
        let meta = &object.metadata;
        let annotation = meta.annotations.as_ref().and_then(|a| a.get(ANNOTATION_PAUSED));
        Ok(Self {
            name: meta.name.clone().unwrap_or_default(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            version: status.version.unwrap_or(spec.version),
            phase: status.phase,
            ready: if status.ready.is_empty() { format!("0/{}", spec.replicas) } else { status.ready },
            replicas: spec.replicas,
            ready_replicas: status.ready_replicas.into(),
            primary: status.primary,
            last_backup: status.last_backup_time,
            created: meta.creation_timestamp.as_ref().map(|t| t.0),
            paused: annotation.is_some_and(|v| v == "true"),
            current: status.observed_generation.is_some() && status.observed_generation == meta.generation,
        })
    }
}

impl Report {
    /// Puts together what was read. `record` and `events`: the reason when they could not be.
    pub(crate) fn assemble(
        cluster: &DynamicObject,
        record: Result<Option<DynamicObject>, String>,
        events: Result<Vec<Event>, String>,
    ) -> Result<Self, Error> {
        let status: PostgreSQLStatus = field(cluster, "status")?;
        let summary = Summary::of(cluster)?;
        let mut notes = Vec::new();
        let record = match record {
            Ok(Some(object)) => Some(Record::of(field(&object, "spec")?)),
            Ok(None) => {
                notes.push("there is no record of who holds the cluster yet".to_owned());
                None
            }
            Err(reason) => {
                notes.push(format!("the record could not be read: {reason}"));
                None
            }
        };
        let events = events.unwrap_or_else(|reason| {
            notes.push(format!("events could not be read: {reason}"));
            Vec::new()
        });
        if summary.paused {
            notes.push(format!(
                "the operator leaves this cluster alone: annotation {ANNOTATION_PAUSED} is set"
            ));
        } else if !summary.current {
            notes.push(
                "the operator has not yet reported on this spec: if this stays, look whether its pod runs"
                    .to_owned(),
            );
        }
        let holder = record.as_ref().and_then(|r| r.holder.as_ref());
        if let (Some(holder), Some(primary)) = (holder, &summary.primary)
            && holder != primary
        {
            notes.push(format!("{holder} holds the record, the status still names {primary} as primary"));
        }
        Ok(Self {
            system_identifier: status.system_identifier,
            cluster_id: status.cluster_id,
            record,
            members: status.members.into_iter().map(Member::of).collect(),
            conditions: status.conditions.into_iter().map(Condition::of).collect(),
            events: last_events(events),
            notes,
            summary,
        })
    }

    /// Timeline of the cluster: the record's, or its primary's.
    pub(crate) fn timeline(&self) -> Option<u64> {
        let recorded = self.record.as_ref().map(|r| r.timeline).filter(|t| *t > 0);
        let primary =
            || self.members.iter().find(|m| m.role == "primary").and_then(|m| m.timeline).map(u64::from);
        recorded.or_else(primary)
    }
}

impl Record {
    fn of(spec: RecordSpec) -> Self {
        Self {
            epoch: spec.epoch,
            state: spec.state,
            timeline: spec.timeline,
            holder: spec.holder.map(|h| h.pod).filter(|p| !p.is_empty()),
            renewed: spec.renew_time,
            voters: spec.voters.len(),
            reason: Some(spec.reason).filter(|r| !r.is_empty()),
        }
    }
}

impl Member {
    fn of(member: pgwarden_api::cluster::Member) -> Self {
        Self {
            pod: member.name,
            role: member.role,
            state: member.state,
            ready: member.ready,
            timeline: member.timeline,
            lag_bytes: member.lag_bytes,
            lag_seconds: member.lag_seconds,
            node: member.node,
            address: member.address,
            pending_restart: member.pending_restart,
            message: member.message,
        }
    }
}

impl Condition {
    fn of(c: k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition) -> Self {
        let truth = match c.status.as_str() {
            "True" => Some(true),
            "False" => Some(false),
            _ => None,
        };
        Self {
            good: truth.map(|t| t == condition::is_good_when_true(&c.type_)),
            kind: c.type_,
            status: c.status,
            reason: c.reason,
            message: c.message,
            since: Some(c.last_transition_time.0),
        }
    }
}

impl EventLine {
    fn of(event: Event) -> Self {
        let object = event.involved_object;
        let series = event.series;
        let count = series.as_ref().and_then(|s| s.count).or(event.count).unwrap_or(1);
        Self {
            time: series
                .and_then(|s| s.last_observed_time)
                .or(event.event_time)
                .map(|t| t.0)
                .into_iter()
                .chain(event.last_timestamp.map(|t| t.0))
                .max()
                .or_else(|| event.first_timestamp.or(event.metadata.creation_timestamp).map(|t| t.0)),
            kind: event.type_.unwrap_or_default(),
            reason: event.reason.unwrap_or_default(),
            object: format!("{}/{}", object.kind.unwrap_or_default(), object.name.unwrap_or_default()),
            message: event.message.unwrap_or_default(),
            count: count.into(),
        }
    }
}

fn last_events(events: Vec<Event>) -> Vec<EventLine> {
    let mut lines: Vec<_> = events.into_iter().map(EventLine::of).collect();
    lines.sort_by(|a, b| (a.time, &a.object, &a.reason).cmp(&(b.time, &b.object, &b.reason)));
    let older = lines.len().saturating_sub(EVENTS);
    lines.split_off(older)
}

/// Whether an event about this object is about the cluster: the object itself, its record, and what has its name with a known
/// ending, such as a pod `NAME-17-0`. A pod `NAME-ro-17-0` belongs to the cluster `NAME-ro`.
pub(crate) fn belongs(cluster: &str, kind: &str, name: &str) -> bool {
    let names = Names::new(cluster);
    let rest = |prefix: &str| name.strip_prefix(prefix).and_then(|r| r.strip_prefix('-'));
    let number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let version = |s: Option<&str>| s.is_some_and(number);
    let instance = |s: Option<&str>| {
        s.and_then(|r| r.split_once('-')).is_some_and(|(version, ordinal)| number(version) && number(ordinal))
    };
    match kind {
        "Pod" => instance(rest(cluster)) || rest(&names.backup_cron_job()).is_some(),
        "PersistentVolumeClaim" => instance(rest(&format!("data-{cluster}"))),
        "StatefulSet" => version(rest(cluster)),
        "Job" => rest(&names.backup_cron_job()).is_some(),
        "CronJob" => name == names.backup_cron_job(),
        "Service" => [names.primary_service(), names.replica_service(), names.pods_service()]
            .contains(&name.to_owned()),
        _ => name == cluster,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    pub(crate) fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    pub(crate) fn at(second: u32) -> String {
        format!("2026-11-22T10:00:{second:02}Z")
    }

    /// A cluster with all that can be shown.
    pub(crate) fn cluster() -> Value {
        json!({
            "apiVersion": "database.example.com/v1",
            "kind": "PostgreSQL",
            "metadata": {"name": "shop", "namespace": "prod", "generation": 4, "creationTimestamp": at(0)},
            "spec": {"version": "17", "replicas": 3, "storage": "1Gi", "fieldOfTheFuture": {"a": 1}},
            "status": {
                "observedGeneration": 4, "phase": "Degraded", "ready": "2/3", "readyReplicas": 2, "replicas": 3,
                "version": "17", "primary": "shop-17-1", "systemIdentifier": "7431", "clusterId": "c1",
                "members": [
                    {"name": "shop-17-0", "node": "node1", "role": "replica", "state": "Standby", "ready": true,
                     "timeline": 2, "lagBytes": 2048, "lagSeconds": 0.4, "pendingRestart": ["max_connections"]},
                    {"name": "shop-17-1", "node": "node2", "role": "primary", "state": "Primary", "ready": true, "timeline": 2},
                    {"name": "shop-17-2", "node": "node3", "role": "none", "state": "Clone", "ready": false,
                     "message": "base backup: 41 %"}
                ],
                "conditions": [
                    {"type": "Ready", "status": "True", "reason": "Serving", "message": "clients can write",
                     "lastTransitionTime": at(10)},
                    {"type": "Degraded", "status": "True", "reason": "InstanceNotReady", "message": "shop-17-2 is not ready",
                     "lastTransitionTime": at(20)},
                    {"type": "Progressing", "status": "Unknown", "reason": "NoAnswer", "message": "",
                     "lastTransitionTime": at(20)}
                ]
            }
        })
    }

    pub(crate) fn record() -> Value {
        json!({
            "metadata": {"name": "shop", "namespace": "prod"},
            "spec": {"epoch": 5, "state": "Held", "timeline": 2, "holder": {"pod": "shop-17-1", "new": true},
                     "voters": ["a", "b"], "renewTime": at(59), "reason": "promoted"}
        })
    }

    pub(crate) fn event(name: &str, reason: &str, second: u32) -> Event {
        serde_json::from_value(json!({
            "metadata": {"name": format!("{name}.{second}")},
            "involvedObject": {"kind": "Pod", "name": name},
            "type": "Normal", "reason": reason, "message": format!("it {reason}"), "lastTimestamp": at(second), "count": 1
        }))
        .unwrap()
    }

    #[test]
    fn json_keeps_its_shape() {
        let report = Report::assemble(
            &object(cluster()),
            Ok(Some(object(record()))),
            Ok(vec![event("shop-17-0", "Started", 30)]),
        )
        .unwrap();
        assert_eq!(
            serde_json::to_value(&report).unwrap(),
            json!({
                "name": "shop", "namespace": "prod", "version": "17", "phase": "Degraded", "ready": "2/3",
                "replicas": 3, "readyReplicas": 2, "primary": "shop-17-1", "lastBackup": null, "created": at(0),
                "paused": false, "current": true, "systemIdentifier": "7431", "clusterId": "c1",
                "record": {"epoch": 5, "state": "Held", "timeline": 2, "holder": "shop-17-1", "renewed": at(59),
                           "voters": 2, "reason": "promoted"},
                "members": [
                    {"pod": "shop-17-0", "role": "replica", "state": "Standby", "ready": true, "timeline": 2,
                     "lagBytes": 2048, "lagSeconds": 0.4, "node": "node1", "address": null,
                     "pendingRestart": ["max_connections"], "message": null},
                    {"pod": "shop-17-1", "role": "primary", "state": "Primary", "ready": true, "timeline": 2,
                     "lagBytes": null, "lagSeconds": null, "node": "node2", "address": null, "pendingRestart": [],
                     "message": null},
                    {"pod": "shop-17-2", "role": "none", "state": "Clone", "ready": false, "timeline": null,
                     "lagBytes": null, "lagSeconds": null, "node": "node3", "address": null, "pendingRestart": [],
                     "message": "base backup: 41 %"}
                ],
                "conditions": [
                    {"type": "Ready", "status": "True", "reason": "Serving", "message": "clients can write",
                     "since": at(10), "good": true},
                    {"type": "Degraded", "status": "True", "reason": "InstanceNotReady",
                     "message": "shop-17-2 is not ready", "since": at(20), "good": false},
                    {"type": "Progressing", "status": "Unknown", "reason": "NoAnswer", "message": "", "since": at(20),
                     "good": null}
                ],
                "events": [{"time": at(30), "type": "Normal", "reason": "Started", "object": "Pod/shop-17-0",
                            "message": "it Started", "count": 1}],
                "notes": []
            })
        );
    }

    #[test]
    fn a_cluster_that_nobody_has_seen_yet_is_shown_too() {
        let mut bare = cluster();
        bare["status"].take();
        let report = Report::assemble(&object(bare), Ok(None), Err("forbidden".into())).unwrap();
        assert_eq!((report.summary.ready.as_str(), report.summary.version.as_str()), ("0/3", "17"));
        assert_eq!(report.timeline(), None);
        let notes = report.notes.join("\n");
        for note in ["no record", "events could not be read: forbidden", "not yet reported"] {
            assert!(notes.contains(note), "{notes}");
        }
    }

    #[test]
    fn what_does_not_fit_together_is_noted() {
        let mut moved = record();
        moved["spec"]["holder"]["pod"] = json!("shop-17-0");
        let mut paused = cluster();
        paused["metadata"]["annotations"] = json!({"database.example.com/paused": "true"});
        let report = Report::assemble(&object(paused), Ok(Some(object(moved))), Ok(Vec::new())).unwrap();
        assert_eq!(report.notes.len(), 2, "{:?}", report.notes);
        assert!(report.notes[0].contains("leaves this cluster alone"));
        assert!(report.notes[1].contains("shop-17-0 holds the record"));
    }

    #[test]
    fn the_last_ten_events_are_kept_newest_last_by_their_last_sight() {
        let mut events: Vec<_> = (0..12).rev().map(|s| event("shop-17-0", "Pulled", s)).collect();
        // Kubernetes counts repetitions in a series, or in an old event's lastTimestamp.
        events[11].series =
            serde_json::from_value(json!({"count": 7, "lastObservedTime": "2026-11-22T10:00:55.000000Z"}))
                .unwrap();
        let lines = last_events(events);
        assert_eq!(lines.len(), 10);
        assert_eq!((lines[9].count, lines[9].time.unwrap().to_string()), (7, at(55)));
        assert_eq!(lines[0].time.unwrap().to_string(), at(3));
    }

    #[test]
    fn events_of_other_clusters_are_left_out() {
        for (kind, name) in [
            ("PostgreSQL", "shop"),
            ("PostgreSQLRecord", "shop"),
            ("Pod", "shop-17-0"),
            ("Pod", "shop-backup-29381234-x2x4z"),
            ("PersistentVolumeClaim", "data-shop-17-0"),
            ("StatefulSet", "shop-17"),
            ("CronJob", "shop-backup"),
            ("Service", "shop-ro"),
        ] {
            assert!(belongs("shop", kind, name), "{kind} {name}");
        }
        for (kind, name) in [
            ("PostgreSQL", "shop-ro"),
            ("Pod", "shop-ro-17-0"),
            ("Pod", "shop-7d9f-abc"),
            ("Pod", "shop"),
            ("StatefulSet", "shop-ro-17"),
            ("PersistentVolumeClaim", "data-shop-ro-17-0"),
            ("Job", "shop-import"),
        ] {
            assert!(!belongs("shop", kind, name), "{kind} {name}");
        }
    }
}
