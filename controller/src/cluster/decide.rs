//! What to do about what was observed. Pure.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::{Resource, ResourceExt};
use pgwarden_api::{
    cluster::Version,
    names::{self, ordinal},
    pod,
};

use super::{
    observe::{Live, Observed},
    replace::{Replace, replace},
    validate::ValidatedCluster,
};
use crate::quantity;

/// Why nothing is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The annotation says so.
    Paused,
    /// Objects with our names belong to something else.
    NameConflict(Vec<Conflict>),
    /// These claims hold data, and the record that says who may serve it is gone.
    DataWithoutRecord(Vec<String>),
    /// Objects of an earlier cluster of this name are still being deleted.
    Terminating(Vec<String>),
}

/// An object that is in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Whom it belongs to, as far as it says.
    pub owner: String,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Nothing is applied, and why.
    pub stop: Option<Stop>,
    /// The record must be made: there is none, and no data either.
    pub create_record: bool,
    /// Replicas of the StatefulSet.
    pub replicas: u32,
    /// The scale-down would remove this pod, which is the primary: it waits.
    pub scale_down_waits_for: Option<String>,
    /// The wanted version differs from the one in use.
    pub upgrade_to: Option<Version>,
    /// Image of the Postgres container.
    pub image: String,
    /// Volume size in the StatefulSet's template, if it differs from the live one: the StatefulSet is made anew around its pods.
    pub recreate_stateful_set: bool,
    /// Claims that are smaller than wanted.
    pub grow: Vec<String>,
    /// Pods whose role label is not what it should be.
    pub relabel: BTreeMap<String, Option<&'static str>>,
    /// Pods that can't start, and whose template has been mended since.
    pub replace: Vec<Replace>,
    /// Objects of ours that are not wanted any more.
    pub remove: Vec<Unwanted>,
}

/// An object of ours that is not wanted any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unwanted {
    /// PodDisruptionBudget.
    Budget(String),
    /// CronJob.
    CronJob(String),
    /// NetworkPolicy.
    Policy(String),
}

/// Decides.
#[must_use]
pub fn decide(cluster: &ValidatedCluster, observed: &Observed, network_policy: bool) -> Plan {
    let upgrade_to = (cluster.wanted_version != cluster.version).then_some(cluster.wanted_version);
    let set_name = cluster.names.stateful_set(cluster.version.as_str());
    let live_set = observed.live.stateful_sets.get(&set_name);
    let (replicas, scale_down_waits_for) = replicas(cluster, observed, live_set.map(AsRef::as_ref));
    let claims_small = |claim: &&Arc<k8s_openapi::api::core::v1::PersistentVolumeClaim>| {
        let spec = claim.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
        let asked = spec.and_then(|r| r.get("storage")).and_then(|q| quantity::bytes(&q.0));
        asked.is_some_and(|bytes| bytes < cluster.storage_bytes)
    };
    Plan {
        stop: stop(cluster, observed),
        create_record: observed.record.is_none() && observed.claims_without_record.is_empty(),
        replicas,
        scale_down_waits_for,
        upgrade_to,
        image: image(cluster, upgrade_to, live_set.map(AsRef::as_ref)),
        recreate_stateful_set: live_set
            .is_some_and(|set| template_storage(set).is_some_and(|s| !quantity::same(&s, &cluster.storage))),
        grow: observed.claims.iter().filter(claims_small).map(|c| c.name_any()).collect(),
        relabel: relabel(observed),
        replace: replace(live_set.map(AsRef::as_ref), &observed.pods, &observed.reports),
        remove: unwanted(cluster, observed, network_policy),
    }
}

fn stop(cluster: &ValidatedCluster, observed: &Observed) -> Option<Stop> {
    if cluster.paused {
        return Some(Stop::Paused);
    }
    let found = foreign(&observed.live, cluster.names.cluster(), &cluster.uid, &cluster.names.app_secret());
    if !found.conflicts.is_empty() {
        return Some(Stop::NameConflict(found.conflicts));
    }
    if observed.record.is_none() && !observed.claims_without_record.is_empty() {
        return Some(Stop::DataWithoutRecord(observed.claims_without_record.clone()));
    }
    (!found.terminating.is_empty()).then_some(Stop::Terminating(found.terminating))
}

/// Objects with our names that are not ours, and those of ours that are going.
struct Foreign {
    conflicts: Vec<Conflict>,
    terminating: Vec<String>,
}

fn foreign(live: &Live, cluster: &str, uid: &str, app_secret: &str) -> Foreign {
    let mut found = Foreign { conflicts: Vec::new(), terminating: Vec::new() };
    let Live {
        stateful_sets,
        services,
        slices,
        config_maps,
        secrets,
        accounts,
        roles,
        role_bindings,
        budgets,
        cron_jobs,
        policies,
    } = live;
    sort(&mut found, stateful_sets, cluster, uid, None);
    sort(&mut found, services, cluster, uid, None);
    sort(&mut found, slices, cluster, uid, None);
    sort(&mut found, config_maps, cluster, uid, None);
    // The application Secret may be the user's own (decision 24).
    sort(&mut found, secrets, cluster, uid, Some(app_secret));
    sort(&mut found, accounts, cluster, uid, None);
    sort(&mut found, roles, cluster, uid, None);
    sort(&mut found, role_bindings, cluster, uid, None);
    sort(&mut found, budgets, cluster, uid, None);
    sort(&mut found, cron_jobs, cluster, uid, None);
    sort(&mut found, policies, cluster, uid, None);
    found
}

fn sort<K: Resource<DynamicType = ()>>(
    found: &mut Foreign,
    objects: &BTreeMap<String, Arc<K>>,
    cluster: &str,
    uid: &str,
    shared: Option<&str>,
) {
    for (name, object) in objects {
        if shared == Some(name.as_str()) {
            continue;
        }
        let kind = K::kind(&()).into_owned();
        match whose(object.as_ref(), cluster, uid) {
            Whose::Ours if object.meta().deletion_timestamp.is_some() => {
                found.terminating.push(format!("{kind} {name}"));
            }
            Whose::Ours => {}
            Whose::Foreign(owner) => found.conflicts.push(Conflict { kind, name: name.clone(), owner }),
        }
    }
}

/// Whose an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// This cluster's, also when an earlier cluster of this name has made it.
    Ours,
    /// Somebody else's: what is said of the owner.
    Foreign(String),
}

/// Whose an object is: an owner reference decides, else the label.
pub fn whose<K: Resource>(object: &K, cluster: &str, uid: &str) -> Whose {
    let label = object.meta().labels.as_ref().and_then(|l| l.get(names::LABEL_CLUSTER));
    let labelled = label.is_some_and(|l| l == cluster);
    let owner = object.meta().owner_references.iter().flatten().find(|o| o.controller == Some(true));
    match owner {
        Some(o) if o.uid == uid => Whose::Ours,
        // Left by an earlier cluster of this name: the garbage collector spares what has a living owner. A slice is its Service's.
        Some(o) if labelled && ((o.kind == "PostgreSQL" && o.name == cluster) || o.kind == "Service") => {
            Whose::Ours
        }
        Some(o) => Whose::Foreign(format!("{} {}", o.kind, o.name)),
        None if labelled => Whose::Ours,
        None => Whose::Foreign(label.map_or_else(
            || "nobody that its metadata names".to_owned(),
            |other| format!("the cluster {other}"),
        )),
    }
}

/// The StatefulSet's replicas: as wanted, unless that would remove the primary.
fn replicas(
    cluster: &ValidatedCluster,
    observed: &Observed,
    live: Option<&StatefulSet>,
) -> (u32, Option<String>) {
    let holder = observed.record.as_ref().and_then(|r| r.spec.holder.as_ref());
    let primary = holder.and_then(|h| ordinal(&h.pod).map(|n| (n, h.pod.clone())));
    let now = live.and_then(|s| s.spec.as_ref()).and_then(|s| s.replicas).and_then(|n| u32::try_from(n).ok());
    match (primary, now) {
        (Some((ordinal, pod)), Some(now)) if ordinal >= cluster.replicas && now > ordinal => (now, Some(pod)),
        _ => (cluster.replicas, None),
    }
}

/// While an upgrade is pending the image of the running version stays: a pod that restarts must find its own binaries.
fn image(cluster: &ValidatedCluster, upgrade: Option<Version>, live: Option<&StatefulSet>) -> String {
    if upgrade.is_none() {
        return cluster.image.clone();
    }
    let template = live.and_then(|s| s.spec.as_ref()).and_then(|s| s.template.spec.as_ref());
    let running = template
        .and_then(|t| t.containers.iter().find(|c| c.name == pod::CONTAINER_POSTGRES))
        .and_then(|c| c.image.clone());
    running.unwrap_or_else(|| cluster.default_image.clone())
}

/// Size of the volumes in a StatefulSet's template.
#[must_use]
pub fn template_storage(set: &StatefulSet) -> Option<String> {
    let templates = set.spec.as_ref()?.volume_claim_templates.as_ref()?;
    let requests = templates.first()?.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
    Some(requests.get("storage")?.0.clone())
}

/// The role labels, for people: the record's holder is the primary, an instance that says so is a replica.
fn relabel(observed: &Observed) -> BTreeMap<String, Option<&'static str>> {
    let holder = observed.record.as_ref().and_then(|r| r.spec.holder.as_ref());
    let mut changes = BTreeMap::new();
    for pod in &observed.pods {
        let name = pod.name_any();
        let report = observed.reports.get(&name);
        let role = match report.map(|r| r.role()) {
            Some(pgwarden_proto::v1::Role::Primary)
                if holder.is_some_and(|h| h.pod == name && Some(&h.pod_uid) == pod.metadata.uid.as_ref()) =>
            {
                Some("primary")
            }
            Some(pgwarden_proto::v1::Role::Replica) => Some("replica"),
            Some(_) => None,
            // Its agent does not answer: what it was last known to be stands, unless another has become the primary.
            None => match pod.labels().get(names::LABEL_ROLE).map(String::as_str) {
                Some("primary") if holder.is_some_and(|h| h.pod == name) => Some("primary"),
                Some("replica") => Some("replica"),
                _ => None,
            },
        };
        if pod.labels().get(names::LABEL_ROLE).map(String::as_str) != role {
            changes.insert(name, role);
        }
    }
    changes
}

fn unwanted(cluster: &ValidatedCluster, observed: &Observed, network_policy: bool) -> Vec<Unwanted> {
    let live = &observed.live;
    let mut remove = Vec::new();
    if cluster.replicas < 2 {
        remove.extend(live.budgets.keys().cloned().map(Unwanted::Budget));
    }
    if cluster.backup.is_none() {
        remove.extend(live.cron_jobs.keys().cloned().map(Unwanted::CronJob));
    }
    if !network_policy {
        remove.extend(live.policies.keys().cloned().map(Unwanted::Policy));
    }
    remove
}

#[cfg(test)]
mod tests;
