//! Pods that can't start, and whose template has been mended since: nobody but the controller replaces them, for the StatefulSet's
//! strategy is `OnDelete`. Pure.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};
use kube::ResourceExt;
use pgwarden_api::pod;
use pgwarden_proto::v1::{InstanceStatus, Role};

use super::pods;

/// Label of a StatefulSet's pod: the revision of its template.
const LABEL_REVISION: &str = "controller-revision-hash";

/// A pod to delete, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replace {
    /// Pod.
    pub pod: String,
    /// Its UID: the pod after it is not meant.
    pub uid: String,
    /// Why it does not serve.
    pub why: String,
}

/// Pods of an older template that have never come to serve. One whose Postgres runs, or may run, is never among them.
#[must_use]
pub fn replace(
    set: Option<&StatefulSet>,
    pods: &[Arc<Pod>],
    reports: &BTreeMap<String, Arc<InstanceStatus>>,
) -> Vec<Replace> {
    let Some(revision) = set.and_then(revision) else { return Vec::new() };
    let stale = |pod: &&Arc<Pod>| {
        pod.metadata.deletion_timestamp.is_none()
            && pod.labels().get(LABEL_REVISION).is_some_and(|r| *r != revision)
    };
    let stuck = |pod: &Arc<Pod>| {
        let why = stuck(pod, reports.get(&pod.name_any()).map(AsRef::as_ref))?;
        Some(Replace { pod: pod.name_any(), uid: pod.uid()?, why })
    };
    pods.iter().filter(stale).filter_map(stuck).collect()
}

/// The revision that new pods get; none while the StatefulSet's controller has not seen the newest template.
fn revision(set: &StatefulSet) -> Option<String> {
    let status = set.status.as_ref()?;
    (status.observed_generation >= set.metadata.generation).then(|| status.update_revision.clone())?
}

/// Why the pod has not come to serve, if that is certain.
fn stuck(pod: &Pod, report: Option<&InstanceStatus>) -> Option<String> {
    if pods::is_ready(pod) {
        return None;
    }
    // The agent sees more than kubelet: an image without PostgreSQL runs the supervisor well.
    if let Some(report) = report {
        let before = ["Init", "Initdb", "Clone", "Blocked"].contains(&report.state.as_str());
        let idle = report.role() == Role::None && report.postgres_uptime_seconds == 0.0;
        let why = report
            .problems
            .first()
            .map(|p| p.message.clone())
            .or_else(|| pods::problem(pod).map(|p| p.message));
        return why.filter(|_| before && idle);
    }
    let runs = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref()).is_some_and(|all| {
        all.iter().any(|c| {
            c.name == pod::CONTAINER_POSTGRES && c.state.as_ref().is_some_and(|s| s.running.is_some())
        })
    });
    if runs { None } else { pods::problem(pod).map(|p| p.message) }
}

#[cfg(test)]
mod tests {
    use pgwarden_proto::v1::Problem;
    use serde_json::{Value, json};

    use super::*;

    fn set(observed: i64) -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {"name": "o-17", "generation": 2},
            "status": {"replicas": 1, "observedGeneration": observed, "updateRevision": "new"},
        }))
        .unwrap()
    }

    fn pod(revision: &str, ready: bool, state: Value) -> Vec<Arc<Pod>> {
        let pod = json!({
            "metadata": {"name": "o-17-0", "uid": "u", "labels": {LABEL_REVISION: revision}},
            "status": {
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
                "containerStatuses": [{
                    "name": "postgres", "image": "x", "imageID": "", "ready": ready, "restartCount": 0, "state": state,
                }],
            },
        });
        vec![Arc::new(serde_json::from_value(pod).unwrap())]
    }

    fn report(state: &str, role: Role, uptime: f64) -> BTreeMap<String, Arc<InstanceStatus>> {
        let status = InstanceStatus {
            state: state.into(),
            role: role.into(),
            postgres_uptime_seconds: uptime,
            problems: vec![Problem { reason: "Retrying".into(), message: "no initdb in the image".into() }],
            ..InstanceStatus::default()
        };
        BTreeMap::from([("o-17-0".to_owned(), Arc::new(status))])
    }

    #[test]
    fn only_pods_of_an_older_template_that_never_served_go() {
        let waiting = || json!({"waiting": {"reason": "ImagePullBackOff", "message": "not found"}});
        let running = || json!({"running": {}});
        let none = BTreeMap::new();
        let n = |observed, pods: Vec<Arc<Pod>>, reports: &BTreeMap<_, _>| {
            replace(Some(&set(observed)), &pods, reports).len()
        };

        assert_eq!(n(2, pod("old", false, waiting()), &none), 1, "image can't be pulled");
        assert_eq!(
            n(2, pod("new", false, waiting()), &none),
            0,
            "its template is the newest: another would fare no better"
        );
        assert_eq!(n(1, pod("old", false, waiting()), &none), 0, "the newest template is not known yet");
        assert_eq!(n(2, pod("old", true, running()), &none), 0, "it serves");
        assert_eq!(
            n(2, pod("old", false, running()), &none),
            0,
            "it may be starting, and its agent does not answer"
        );
        assert_eq!(
            n(2, pod("old", false, running()), &report("Initdb", Role::None, 0.0)),
            1,
            "an image without Postgres"
        );
        assert_eq!(
            n(2, pod("old", false, running()), &report("Standby", Role::Replica, 9.0)),
            0,
            "it has data and runs"
        );
        assert_eq!(
            n(2, pod("old", false, running()), &report("Primary", Role::None, 0.0)),
            0,
            "it recovers from a crash"
        );
        assert_eq!(replace(None, &pod("old", false, waiting()), &none), []);
    }
}
