//! The status: a pure function of what was observed and applied, and the writing of it when it has changed.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::Pod,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use pgwarden_api::{
    PostgreSQL, PostgreSQLRecord, PostgreSQLStatus,
    cluster::Member,
    names::{self, ordinal},
};
use pgwarden_proto::v1::{InstanceStatus, Role};
use serde_json::json;

use super::{
    build,
    conditions::{self, Fact},
    pods,
};
use crate::{agents, answer::Answer, context::Context};

/// Phases, as `status.phase` says them.
pub mod phase {
    /// It has never served yet.
    pub const CREATING: &str = "Creating";
    /// All instances serve.
    pub const RUNNING: &str = "Running";
    /// It serves with less than asked for, or has stopped serving.
    pub const DEGRADED: &str = "Degraded";
    /// Nothing is done until a person has done something.
    pub const BLOCKED: &str = "Blocked";
    /// It is being deleted.
    pub const DELETING: &str = "Deleting";
    /// The annotation says so.
    pub const PAUSED: &str = "Paused";
}

/// The status could not be written.
#[derive(Debug, thiserror::Error)]
#[error("failed to write the status: {0}")]
pub struct StatusError(Answer);

/// What a status says beyond the members.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Phase.
    pub phase: &'static str,
    /// Conditions.
    pub facts: Vec<Fact>,
}

/// The members: one a pod.
#[must_use]
pub fn members(
    pods: &[Arc<Pod>],
    reports: &BTreeMap<String, Arc<InstanceStatus>>,
    record: Option<&PostgreSQLRecord>,
) -> Vec<Member> {
    let mut sorted: Vec<&Arc<Pod>> = pods.iter().collect();
    sorted.sort_by_key(|p| (ordinal(&p.name_any()), p.name_any()));
    sorted
        .into_iter()
        .map(|pod| member(pod, reports.get(&pod.name_any()).map(AsRef::as_ref), record))
        .collect()
}

fn member(pod: &Pod, report: Option<&InstanceStatus>, record: Option<&PostgreSQLRecord>) -> Member {
    let name = pod.name_any();
    let problem = pods::problem(pod).map(|p| conditions::bounded(p.message));
    let status = pod.status.as_ref();
    let node = pod.spec.as_ref().and_then(|s| s.node_name.clone());
    let address = status.and_then(|s| s.pod_ip.clone());
    let Some(report) = report else {
        let message = if pod.metadata.deletion_timestamp.is_some() {
            Some("the pod is being deleted".to_owned())
        } else if status.and_then(|s| s.phase.as_deref()) == Some("Running") {
            problem.or_else(|| Some("its agent does not answer".to_owned()))
        } else {
            problem.or_else(|| Some("the pod is starting".to_owned()))
        };
        return Member {
            name,
            node,
            address,
            role: "none".to_owned(),
            state: "Unknown".to_owned(),
            message,
            ..Member::default()
        };
    };
    let holder = record.and_then(|r| r.spec.holder.as_ref());
    let role = match report.role() {
        // Two instances may call themselves primary for a moment; the record knows one.
        Role::Primary if holder.is_some_and(|h| h.pod == name) => "primary",
        Role::Replica => "replica",
        _ => "none",
    };
    let replica = report.role() == Role::Replica;
    let known = report.replay_lag_bytes >= 0;
    Member {
        name,
        node,
        address,
        role: role.to_owned(),
        state: report.state.clone(),
        ready: report.ready && pods::is_ready(pod),
        timeline: (report.timeline > 0).then_some(report.timeline),
        lag_bytes: (replica && known).then_some(report.replay_lag_bytes),
        lag_seconds: (replica && report.replay_lag_seconds >= 0.0)
            .then_some((report.replay_lag_seconds * 10.0).round() / 10.0),
        pending_restart: report.pending_restart.iter().map(|p| p.name.clone()).collect(),
        message: if report.ready {
            None
        } else {
            Some(report.reason.clone()).filter(|r| !r.is_empty()).or(problem)
        },
    }
}

/// What the whole status is made of.
pub struct Parts<'a> {
    /// Members.
    pub members: Vec<Member>,
    /// Instances wanted.
    pub replicas: i32,
    /// Version in use.
    pub version: Option<&'a str>,
    /// The record.
    pub record: Option<&'a PostgreSQLRecord>,
    /// Phase and conditions.
    pub summary: Summary,
    /// Now.
    pub now: Timestamp,
}

/// The status.
#[must_use]
pub fn compute(cluster: &PostgreSQL, parts: Parts<'_>) -> PostgreSQLStatus {
    let old = cluster.status.clone().unwrap_or_default();
    let Parts { members, replicas, version, record, summary, now } = parts;
    let ready = i32::try_from(members.iter().filter(|m| m.ready).count()).unwrap_or(0);
    let selector = build::instance_selector(&names::Names::new(cluster.name_any()));
    let selector: Vec<String> = selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let record = record.map(|r| &r.spec);
    let initialised = record.filter(|r| !r.system_identifier.is_empty());
    PostgreSQLStatus {
        observed_generation: cluster.metadata.generation,
        phase: summary.phase.to_owned(),
        primary: initialised.and_then(|r| r.holder.as_ref()).map(|h| h.pod.clone()),
        ready: format!("{ready}/{replicas}"),
        ready_replicas: ready,
        replicas: i32::try_from(members.len()).unwrap_or(0),
        selector: selector.join(","),
        version: version.map(str::to_owned).or(old.version),
        system_identifier: initialised.map(|r| r.system_identifier.clone()),
        cluster_id: record.map(|r| r.cluster_id.clone()).filter(|id| !id.is_empty()),
        members,
        conditions: merge(&old.conditions, summary.facts, cluster.metadata.generation, now),
        rollback_version: old.rollback_version,
        last_backup_time: old.last_backup_time,
    }
}

/// The conditions, each with the time since when it has its status.
fn merge(old: &[Condition], facts: Vec<Fact>, generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
    facts
        .into_iter()
        .map(|fact| {
            let status = if fact.status { "True" } else { "False" };
            let before = old.iter().find(|c| c.type_ == fact.kind && c.status == status);
            Condition {
                type_: fact.kind,
                status: status.to_owned(),
                reason: fact.reason,
                message: conditions::bounded(fact.message),
                last_transition_time: before.map_or(Time(now), |c| c.last_transition_time.clone()),
                observed_generation: generation,
            }
        })
        .collect()
}

/// Whether the difference is worth a write: positions move all the time, and times follow them.
#[must_use]
pub fn changed(old: Option<&PostgreSQLStatus>, new: &PostgreSQLStatus) -> bool {
    let essence = |status: &PostgreSQLStatus| {
        let mut s = status.clone();
        for member in &mut s.members {
            member.lag_seconds = None;
            member.lag_bytes = member.lag_bytes.map(|lag| i64::from(agents::lag_step(lag)));
        }
        s
    };
    old.is_none_or(|old| essence(old) != essence(new))
}

/// Writes it if it has changed. Returns whether it did.
///
/// # Errors
/// When the write fails.
pub async fn write(
    ctx: &Context,
    cluster: &PostgreSQL,
    status: &PostgreSQLStatus,
) -> Result<bool, StatusError> {
    if !changed(cluster.status.as_ref(), status) || !ctx.tenure.lasts() {
        return Ok(false);
    }
    let api: Api<PostgreSQL> = Api::namespaced(ctx.client.clone(), &cluster.namespace().unwrap_or_default());
    let patch = json!({
        "apiVersion": <PostgreSQL as kube::Resource>::api_version(&()),
        "kind": <PostgreSQL as kube::Resource>::kind(&()),
        "metadata": {"name": cluster.name_any()},
        "status": status,
    });
    let params = PatchParams::apply(names::FIELD_MANAGER).force();
    match api.patch_status(&cluster.name_any(), &params, &Patch::Apply(&patch)).await {
        Ok(_) => {
            ctx.metrics.writes.with_label_values(&["PostgreSQL"]).inc();
            Ok(true)
        }
        // Deleted meanwhile.
        Err(kube::Error::Api(s)) if s.is_not_found() => Ok(false),
        Err(error) => Err(StatusError(error.into())),
    }
}

#[cfg(test)]
mod tests;
