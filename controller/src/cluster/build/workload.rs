//! PodDisruptionBudget and CronJob.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        batch::v1::{CronJob, CronJobSpec, JobSpec, JobTemplateSpec},
        core::v1::{
            Capabilities, Container, PodSecurityContext, PodSpec, PodTemplateSpec, ResourceRequirements,
            SeccompProfile, SecurityContext,
        },
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use pgwarden_api::{cluster::Backup, pod};

use super::{COMPONENT_BACKUP, LABEL_COMPONENT, instance_selector, labels, meta};
use crate::{cluster::validate::ValidatedCluster, context::Settings};

/// One instance at a time may be evicted; one that is not ready may always be, or a broken instance would hold up a drain for ever.
pub(super) fn budget(cluster: &ValidatedCluster) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: meta(cluster, cluster.names.disruption_budget()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector {
                match_labels: Some(instance_selector(&cluster.names)),
                ..LabelSelector::default()
            }),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

/// The schedule of the backups: suspended, until backups are there. A job that ran now would claim what it does not do.
pub(super) fn cron_job(cluster: &ValidatedCluster, settings: &Settings, backup: &Backup) -> CronJob {
    let mut pod_labels = labels(cluster.names.cluster());
    pod_labels.insert(LABEL_COMPONENT.to_owned(), COMPONENT_BACKUP.to_owned());
    let container = Container {
        name: "backup".to_owned(),
        image: Some(settings.agent_image.clone()),
        image_pull_policy: settings.pull_policy.map(|p| p.as_str().to_owned()),
        command: Some(vec!["/pgwarden-agent".to_owned()]),
        args: Some(vec!["backup".to_owned()]),
        resources: Some(resources(&[("cpu", "10m"), ("memory", "32Mi")], &[("memory", "64Mi")])),
        security_context: Some(container_security()),
        ..Container::default()
    };
    CronJob {
        metadata: meta(cluster, cluster.names.backup_cron_job()),
        spec: Some(CronJobSpec {
            schedule: backup.schedule.clone(),
            time_zone: backup.time_zone.clone(),
            suspend: Some(true),
            concurrency_policy: Some("Forbid".to_owned()),
            starting_deadline_seconds: Some(3600),
            successful_jobs_history_limit: Some(3),
            failed_jobs_history_limit: Some(3),
            job_template: JobTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels(cluster.names.cluster())),
                    ..ObjectMeta::default()
                }),
                spec: Some(JobSpec {
                    backoff_limit: Some(3),
                    template: PodTemplateSpec {
                        metadata: Some(ObjectMeta { labels: Some(pod_labels), ..ObjectMeta::default() }),
                        spec: Some(PodSpec {
                            containers: vec![container],
                            restart_policy: Some("Never".to_owned()),
                            automount_service_account_token: Some(false),
                            enable_service_links: Some(false),
                            security_context: Some(pod_security()),
                            image_pull_secrets: (!cluster.pull_secrets.is_empty())
                                .then(|| cluster.pull_secrets.clone()),
                            ..PodSpec::default()
                        }),
                    },
                    ..JobSpec::default()
                }),
            },
        }),
        ..CronJob::default()
    }
}

/// The `restricted` profile, for a container.
pub(super) fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Capabilities::default() }),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        ..SecurityContext::default()
    }
}

/// The `restricted` profile, for a pod.
pub(super) fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(pod::UID),
        run_as_group: Some(pod::UID),
        fs_group: Some(pod::UID),
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            ..SeccompProfile::default()
        }),
        ..PodSecurityContext::default()
    }
}

pub(super) fn resources(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> ResourceRequirements {
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, Quantity> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned()))).collect()
    };
    ResourceRequirements {
        requests: Some(map(requests)),
        limits: Some(map(limits)),
        ..ResourceRequirements::default()
    }
}
