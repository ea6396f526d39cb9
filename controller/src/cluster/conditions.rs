//! Conditions: what a person or a program should know of a cluster. Pure functions of what was observed.

use std::collections::BTreeMap;

use kube::ResourceExt;
use pgwarden_api::{
    cluster::{
        DurabilityMode, Member,
        condition::{self, BACKUP_READY, DURABILITY, SPREAD},
    },
    names,
};

use super::{
    decide::{Conflict, Plan, Stop},
    observe::{Observed, StorageClassFact},
    pods,
    status::{Summary, phase},
    validate::ValidatedCluster,
};

/// The application Secret can't be used.
pub const APP_SECRET_INVALID: &str = "AppSecretInvalid";
/// Settings wait for a restart.
pub const RESTART_PENDING: &str = "RestartPending";
/// The StorageClass does not exist.
pub const STORAGE_CLASS_NOT_FOUND: &str = "StorageClassNotFound";
/// Volumes are smaller than asked for.
pub const STORAGE_RESIZE_PENDING: &str = "StorageResizePending";
/// The scale-down would remove the primary.
pub const SCALE_DOWN_PENDING: &str = "ScaleDownPending";
/// The manifest can't be carried out.
pub const INVALID: &str = "Invalid";
/// Writing objects fails.
pub const RECONCILE_FAILED: &str = "ReconcileFailed";

/// Longest message: the API allows 32 kB, a person reads less.
const LONGEST: usize = 1024;

/// One condition, without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Type.
    pub kind: String,
    /// True or False.
    pub status: bool,
    /// Reason, CamelCase.
    pub reason: String,
    /// For a person.
    pub message: String,
}

/// A condition.
pub fn fact(kind: &str, status: bool, reason: &str, message: impl Into<String>) -> Fact {
    Fact { kind: kind.to_owned(), status, reason: reason.to_owned(), message: message.into() }
}

/// Cuts a message to what the API allows.
#[must_use]
pub fn bounded(mut message: String) -> String {
    if message.len() > LONGEST {
        let end = (0..=LONGEST - 3).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    message
}

/// The manifest can't be carried out: nothing is done until it changes.
#[must_use]
pub fn invalid(message: String) -> Summary {
    Summary {
        phase: phase::BLOCKED,
        facts: vec![
            fact(condition::READY, false, "InvalidSpec", "the manifest can't be carried out"),
            fact(condition::PROGRESSING, false, "InvalidSpec", "waiting for the manifest to be corrected"),
            fact(INVALID, true, "InvalidSpec", message),
        ],
    }
}

/// A step that failed.
#[derive(Clone, Copy, Debug)]
pub struct Failed<'a> {
    /// Step.
    pub step: &'static str,
    /// Why.
    pub message: &'a str,
    /// Kubernetes does not take what the manifest says: trying again does not help.
    pub refused: bool,
}

/// What a person is told of the whole.
#[derive(Clone, Copy)]
pub struct Picture<'a> {
    /// The cluster.
    pub cluster: &'a ValidatedCluster,
    /// What was there.
    pub observed: &'a Observed,
    /// What was decided.
    pub plan: &'a Plan,
    /// Members, as they will stand in the status.
    pub members: &'a [Member],
    /// Why the application Secret can't be used.
    pub app_secret_problem: Option<&'a str>,
    /// Why volumes could not grow.
    pub resize_problem: Option<&'a str>,
    /// What has failed.
    pub failure: Option<Failed<'a>>,
    /// The phase before.
    pub before: &'a str,
}

/// The conditions and the phase.
#[must_use]
pub fn summarise(p: Picture<'_>) -> Summary {
    let mut facts = vec![ready(p)];
    let is_ready = facts.first().is_some_and(|f| f.status);
    let ready_members = p.members.iter().filter(|m| m.ready).count();
    let wanted = usize::try_from(p.plan.replicas).unwrap_or(0);
    let complete = is_ready && ready_members >= wanted && p.members.len() == wanted;
    facts.push(progressing(p, ready_members, wanted, complete));
    let stopped = p.plan.stop.as_ref();
    let has_run = p.observed.record.as_ref().is_some_and(|r| !r.spec.system_identifier.is_empty());
    let created = has_run && [phase::RUNNING, phase::DEGRADED].contains(&p.before);
    // Replicas that are still being copied for the first time are progress, not loss.
    let degraded = !complete && (created || is_ready && p.before != phase::CREATING);
    facts.push(if degraded {
        let reason = if is_ready { "InstancesNotReady" } else { "NotServing" };
        fact(condition::DEGRADED, true, reason, not_ready(p.members, ready_members, wanted))
    } else {
        fact(condition::DEGRADED, false, "AsAsked", "nothing that served is missing")
    });
    facts.extend(stop_facts(stopped));
    facts.extend(version_facts(p));
    facts.extend(storage_facts(p));
    facts.extend(pod_facts(p));
    facts.extend(agent_facts(p));
    facts.extend(other_facts(p));
    // One condition a type: the first says it.
    let mut seen: BTreeMap<String, ()> = BTreeMap::new();
    facts.retain(|f| seen.insert(f.kind.clone(), ()).is_none());
    let phase = match stopped {
        Some(Stop::Paused) => phase::PAUSED,
        Some(Stop::NameConflict(_) | Stop::DataWithoutRecord(_)) => phase::BLOCKED,
        _ if complete => phase::RUNNING,
        _ if degraded => phase::DEGRADED,
        _ if p.failure.is_some_and(|f| f.refused) => phase::BLOCKED,
        _ => phase::CREATING,
    };
    Summary { phase, facts }
}

fn ready(p: Picture<'_>) -> Fact {
    let primary = p.members.iter().find(|m| m.role == "primary");
    match primary {
        Some(m) if m.ready => {
            fact(condition::READY, true, "PrimaryServes", format!("{} accepts writes", m.name))
        }
        Some(m) => fact(
            condition::READY,
            false,
            "PrimaryNotReady",
            format!("{} is not ready: {}", m.name, m.message.as_deref().unwrap_or(&m.state)),
        ),
        None => {
            let holder = p.observed.record.as_ref().and_then(|r| r.spec.holder.as_ref());
            match holder {
                Some(h) => fact(
                    condition::READY,
                    false,
                    "NoPrimary",
                    format!("{} holds the record and does not serve", h.pod),
                ),
                None => fact(condition::READY, false, "NoPrimary", "no instance has been initialised yet"),
            }
        }
    }
}

fn not_ready(members: &[Member], ready: usize, wanted: usize) -> String {
    let details: Vec<String> = members
        .iter()
        .filter(|m| !m.ready)
        .map(|m| format!("{}: {}", m.name, m.message.as_deref().unwrap_or(&m.state)))
        .collect();
    format!(
        "{ready} of {wanted} instances are ready{}{}",
        if details.is_empty() { "" } else { "; " },
        details.join("; ")
    )
}

fn progressing(p: Picture<'_>, ready: usize, wanted: usize, complete: bool) -> Fact {
    let kind = condition::PROGRESSING;
    match &p.plan.stop {
        Some(Stop::Paused) => fact(kind, false, "Paused", "the annotation stops the operator"),
        Some(Stop::NameConflict(_)) => fact(kind, false, "NameConflict", "waiting for names to be free"),
        Some(Stop::DataWithoutRecord(_)) => {
            fact(kind, false, "DataWithoutRecord", "waiting for the record of the data")
        }
        Some(Stop::Terminating(what)) => fact(
            kind,
            true,
            "WaitingForDeletion",
            format!("waiting until these are gone: {}", what.join(", ")),
        ),
        None => match p.failure {
            Some(failed) if failed.refused => {
                fact(kind, false, "InvalidSpec", "waiting for the manifest to be corrected")
            }
            Some(failed) => fact(kind, true, "Retrying", format!("{}: {}", failed.step, failed.message)),
            None if complete => fact(kind, false, "Stable", "as the manifest says"),
            None => fact(kind, true, "InstancesNotReady", not_ready(p.members, ready, wanted)),
        },
    }
}

fn stop_facts(stop: Option<&Stop>) -> Vec<Fact> {
    match stop {
        Some(Stop::Paused) => vec![fact(
            condition::PAUSED,
            true,
            "Annotation",
            format!("remove the annotation {} to go on", names::ANNOTATION_PAUSED),
        )],
        Some(Stop::NameConflict(conflicts)) => {
            let text: Vec<String> = conflicts.iter().map(conflict).collect();
            vec![fact(
                condition::NAME_CONFLICT,
                true,
                "ForeignObject",
                format!(
                    "{}; nothing is made until they are gone: delete or rename them, or make this cluster with another name",
                    text.join("; ")
                ),
            )]
        }
        Some(Stop::DataWithoutRecord(claims)) => vec![fact(
            condition::DATA_WITHOUT_RECORD,
            true,
            "RecordMissing",
            format!(
                "the volume claims {} hold this cluster's data, but the PostgreSQLRecord that says which of them is newest is gone; \
                 nothing is initialised or started. Restore the record from a backup of the Kubernetes objects (kubectl apply), or \
                 give the data up by deleting these claims",
                claims.join(", ")
            ),
        )],
        Some(Stop::Terminating(_)) | None => Vec::new(),
    }
}

fn conflict(c: &Conflict) -> String {
    format!("{} {} belongs to {}", c.kind, c.name, c.owner)
}

fn version_facts(p: Picture<'_>) -> Vec<Fact> {
    let mut facts = Vec::new();
    if !p.cluster.version.is_run() {
        facts.push(fact(
            condition::VERSION_NOT_YET_SUPPORTED,
            true,
            "VersionTooOld",
            format!(
                "PostgreSQL {} is accepted but not run yet; all objects are made. Use version 13 or newer",
                p.cluster.version
            ),
        ));
    }
    if let Some(to) = p.plan.upgrade_to {
        facts.push(fact(
            condition::UPGRADE_PENDING,
            true,
            "UpgradesNotYetSupported",
            format!(
                "spec.version is {to}, version {} is in use and stays: upgrades between major versions are not supported yet. \
                 Write version {} again to clear this",
                p.cluster.version, p.cluster.version
            ),
        ));
    }
    facts
}

fn storage_facts(p: Picture<'_>) -> Vec<Fact> {
    let mut facts = Vec::new();
    match &p.observed.storage_class {
        StorageClassFact::Missing(name) => facts.push(fact(
            STORAGE_CLASS_NOT_FOUND,
            true,
            "StorageClassNotFound",
            format!(
                "there is no StorageClass {name:?}, so the volumes can't be made; make the class, or delete this cluster and its claims \
                 and apply it with another spec.storageClassName"
            ),
        )),
        StorageClassFact::NoDefault => facts.push(fact(
            STORAGE_CLASS_NOT_FOUND,
            true,
            "NoDefaultStorageClass",
            "the manifest names no spec.storageClassName and no StorageClass is the default; mark one with the annotation \
             storageclass.kubernetes.io/is-default-class",
        )),
        StorageClassFact::NotAsked | StorageClassFact::Found | StorageClassFact::Unknown => {}
    }
    if !p.plan.grow.is_empty() {
        let message = match p.resize_problem {
            Some(problem) => format!(
                "volumes can't grow to {}: {problem}. Use a StorageClass with allowVolumeExpansion",
                p.cluster.storage
            ),
            None => format!("growing to {}: {}", p.cluster.storage, p.plan.grow.join(", ")),
        };
        let reason = if p.resize_problem.is_some() { "NotExpandable" } else { "Growing" };
        facts.push(fact(STORAGE_RESIZE_PENDING, true, reason, message));
    }
    facts
}

fn pod_facts(p: Picture<'_>) -> Vec<Fact> {
    let no_class =
        matches!(p.observed.storage_class, StorageClassFact::Missing(_) | StorageClassFact::NoDefault);
    let mut facts: Vec<Fact> = p
        .observed
        .pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .filter_map(|pod| pods::problem(pod))
        // A pod without a volume can't be scheduled: that is said once, with its cause.
        .filter(|problem| problem.condition != pods::UNSCHEDULABLE || !no_class)
        .map(|problem| fact(problem.condition, true, &problem.reason, problem.message))
        .collect();
    let mut nodes: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for pod in &p.observed.pods {
        if let Some(node) = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) {
            nodes.entry(node).or_default().push(pod.name_any());
        }
    }
    if p.cluster.affinity.is_none()
        && let Some((node, pods)) = nodes.iter().find(|(_, pods)| pods.len() > 1)
    {
        facts.push(fact(
            SPREAD,
            false,
            "NodesTooFew",
            format!(
                "{} run on node {node}: its loss takes them all. Add nodes, then delete one of these pods so that it is placed anew",
                pods.join(" and ")
            ),
        ));
    }
    facts
}

fn agent_facts(p: Picture<'_>) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut waiting: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (pod, report) in &p.observed.reports {
        for problem in &report.problems {
            let reason: String =
                problem.reason.chars().filter(char::is_ascii_alphanumeric).take(64).collect();
            if reason.starts_with(|c: char| c.is_ascii_alphabetic()) {
                facts.push(fact(&reason, true, &reason, format!("{pod}: {}", problem.message)));
            }
        }
        for setting in &report.pending_restart {
            waiting.entry(format!("{} = {}", setting.name, setting.wanted)).or_default().push(pod);
        }
    }
    if !waiting.is_empty() {
        let text: Vec<String> =
            waiting.iter().map(|(setting, pods)| format!("{setting} ({})", pods.join(", "))).collect();
        facts.push(fact(
            RESTART_PENDING,
            true,
            "SettingsNeedRestart",
            format!(
                "these settings take effect when Postgres is restarted: {}. Delete the pods one after another, replicas first",
                text.join("; ")
            ),
        ));
    }
    facts
}

fn other_facts(p: Picture<'_>) -> Vec<Fact> {
    let mut facts = Vec::new();
    if let Some(problem) = p.app_secret_problem {
        facts.push(fact(APP_SECRET_INVALID, true, "SecretNotUsable", problem));
    }
    if let Some(pod) = &p.plan.scale_down_waits_for {
        facts.push(fact(
            SCALE_DOWN_PENDING,
            true,
            "PrimaryWouldGo",
            format!(
                "{} instances are wanted, but {pod} is the primary and would be removed; all stay until another instance is primary",
                p.cluster.replicas
            ),
        ));
    }
    if p.cluster.backup.is_some() {
        facts.push(fact(
            BACKUP_READY,
            false,
            "BackupsNotYetSupported",
            "the schedule is kept in a suspended CronJob; no backup is made yet",
        ));
    }
    if p.cluster.replicas > 1 && p.cluster.durability != DurabilityMode::Async {
        facts.push(fact(
            DURABILITY,
            false,
            "SynchronousReplicationNotYetSupported",
            format!(
                "spec.durability.mode is {}, but replication is asynchronous until failover is supported: the loss of the primary's \
                 volume loses its last commits",
                p.cluster.durability
            ),
        ));
    }
    match p.failure {
        Some(failed) if failed.refused => {
            facts.push(fact(INVALID, true, "RefusedByKubernetes", failed.message));
        }
        Some(failed) => facts.push(fact(RECONCILE_FAILED, true, &reason_of(failed.step), failed.message)),
        None => {}
    }
    facts
}

/// `apply` → `ApplyFailed`.
fn reason_of(step: &str) -> String {
    let mut chars = step.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(chars).chain("Failed".chars()).collect()
}

#[cfg(test)]
mod tests;
