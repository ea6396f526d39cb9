//! What is wrong with a pod, in words that name the remedy.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;
use pgwarden_api::pod;

/// Trouble of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodProblem {
    /// Type of the condition.
    pub condition: &'static str,
    /// Reason, as Kubernetes says it.
    pub reason: String,
    /// For a person.
    pub message: String,
}

/// An image can't be pulled or started.
pub const IMAGE: &str = "ImagePullFailed";
/// A container ends again and again, or can't be made.
pub const CONTAINER: &str = "ContainerFailed";
/// No node takes the pod.
pub const UNSCHEDULABLE: &str = "Unschedulable";

/// Whether the pod is ready.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a k8s_openapi::api::core::v1::PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// What is wrong with a pod, if anything is.
#[must_use]
pub fn problem(pod: &Pod) -> Option<PodProblem> {
    if let Some(c) = condition(pod, "PodScheduled").filter(|c| c.status == "False") {
        let why = c.message.clone().unwrap_or_default();
        return Some(PodProblem {
            condition: UNSCHEDULABLE,
            reason: c.reason.clone().unwrap_or_else(|| UNSCHEDULABLE.to_owned()),
            message: format!(
                "no node takes pod {}: {why}; add nodes, or ask for less in spec.resources, spec.nodeSelector or spec.affinity",
                pod.name_any()
            ),
        });
    }
    let status = pod.status.as_ref()?;
    let all =
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    all.into_iter().find_map(|container| container_problem(&pod.name_any(), container))
}

fn container_problem(pod_name: &str, container: &ContainerStatus) -> Option<PodProblem> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.clone()?;
    let detail = waiting.message.clone().unwrap_or_default();
    let image = &container.image;
    let name = &container.name;
    let of_user = name == pod::CONTAINER_POSTGRES;
    let (condition, message) = match reason.as_str() {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable" => {
            let remedy = if of_user {
                "correct spec.image or spec.version, or add spec.imagePullSecrets"
            } else {
                "correct the operator's image flags, or load the image"
            };
            // The kubelet goes to and fro between two reasons for one trouble.
            let detail = detail.split_once("ErrImagePull: ").map_or(detail.as_str(), |(_, cause)| cause);
            let message = format!("pod {pod_name}: the image {image} can't be pulled: {detail}; {remedy}");
            return Some(PodProblem { condition: IMAGE, reason: IMAGE.to_owned(), message });
        }
        "CrashLoopBackOff" => {
            let last = container.last_state.as_ref().and_then(|s| s.terminated.as_ref());
            let code = last.map_or_else(|| "unknown".to_owned(), |t| t.exit_code.to_string());
            let said = last.and_then(|t| t.message.clone()).unwrap_or_default();
            let text = format!(
                "pod {pod_name}: container {name} ends again and again, last with code {code} {said}; see its log: \
                 kubectl logs {pod_name} -c {name} --previous"
            );
            (CONTAINER, text)
        }
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" | "StartError" => {
            (CONTAINER, format!("pod {pod_name}: container {name} can't be started: {detail}"))
        }
        _ => return None,
    };
    Some(PodProblem { condition, reason, message })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "orders-17-0"}, "status": status})).unwrap()
    }

    #[test]
    fn each_trouble_has_its_condition_and_remedy() {
        let waiting = |container: &str, reason: &str| {
            pod(json!({"containerStatuses": [{
                "name": container, "image": "x:y", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": reason, "message": "not found"}}
            }]}))
        };
        let p = problem(&waiting("postgres", "ImagePullBackOff")).unwrap();
        assert_eq!((p.condition, p.reason.as_str()), (IMAGE, IMAGE));
        assert!(p.message.contains("x:y") && p.message.contains("spec.image"), "{}", p.message);
        let p = problem(&waiting("agent", "ErrImagePull")).unwrap();
        assert!(p.message.contains("operator's image flags"), "{}", p.message);
        assert_eq!(problem(&waiting("postgres", "CrashLoopBackOff")).unwrap().condition, CONTAINER);
        assert_eq!(problem(&waiting("postgres", "ContainerCreating")), None);
        let p = problem(&pod(json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]})))
        .unwrap();
        assert_eq!(p.condition, UNSCHEDULABLE);
        assert!(p.message.contains("0/3 nodes"));
        assert_eq!(problem(&pod(json!({"phase": "Running"}))), None);
    }
}
