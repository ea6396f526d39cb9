//! The StatefulSet of one major version, and its pods.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{
            StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
            StatefulSetUpdateStrategy,
        },
        core::v1::{
            Affinity, ConfigMapProjection, ConfigMapVolumeSource, Container, ContainerPort,
            DownwardAPIProjection, DownwardAPIVolumeFile, EmptyDirVolumeSource, EnvVar, EnvVarSource,
            HTTPGetAction, KeyToPath, ObjectFieldSelector, PersistentVolumeClaim, PersistentVolumeClaimSpec,
            PodAffinityTerm, PodAntiAffinity, PodSpec, PodTemplateSpec, Probe, ProjectedVolumeSource,
            SecretProjection, SecretVolumeSource, ServiceAccountTokenProjection, TopologySpreadConstraint,
            Volume, VolumeMount, VolumeProjection, VolumeResourceRequirements, WeightedPodAffinityTerm,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use pgwarden_api::{config, names, pod};
use pgwarden_proto::identity::CertRole;

use super::{
    COMPONENT_POSTGRES, LABEL_COMPONENT, instance_selector, labels, meta,
    workload::{container_security, pod_security, resources},
};
use crate::{
    cluster::{decide::Plan, validate::ValidatedCluster},
    context::Settings,
    quantity,
};

const VOLUME_DATA: &str = "data";
const VOLUME_BIN: &str = "bin";
const VOLUME_CONTROL: &str = "control";
const VOLUME_SOCKET: &str = "socket";
const VOLUME_TLS: &str = "tls";
const VOLUME_SHM: &str = "shm";
const VOLUME_TMP: &str = "tmp";
const VOLUME_CONFIG: &str = "config";
const VOLUME_CERTIFICATES: &str = "certificates";
const VOLUME_APP: &str = "app";
const VOLUME_BACKUP: &str = "backup-credentials";
const VOLUME_TOKEN: &str = "token";

const TOKEN_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Readable by the owner and the group: mounted files belong to root and the fsGroup.
const MODE: i32 = 0o440;

pub(super) fn stateful_set(cluster: &ValidatedCluster, plan: &Plan, settings: &Settings) -> StatefulSet {
    let version = cluster.version.as_str();
    let mut selector = instance_selector(&cluster.names);
    selector.insert(names::LABEL_VERSION.to_owned(), version.to_owned());
    let mut metadata = meta(cluster, cluster.names.stateful_set(version));
    metadata.labels.get_or_insert_default().insert(names::LABEL_VERSION.to_owned(), version.to_owned());
    let template = pod_template(cluster, plan, settings);
    metadata.annotations =
        Some(BTreeMap::from([(names::ANNOTATION_POD_HASH.to_owned(), restart_hash(&template))]));
    StatefulSet {
        metadata,
        spec: Some(StatefulSetSpec {
            replicas: i32::try_from(plan.replicas).ok(),
            service_name: Some(cluster.names.pods_service()),
            pod_management_policy: Some("Parallel".to_owned()),
            // The operator decides which pod goes when.
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                ..StatefulSetUpdateStrategy::default()
            }),
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some("Retain".to_owned()),
                when_scaled: Some("Retain".to_owned()),
            }),
            revision_history_limit: Some(2),
            selector: LabelSelector { match_labels: Some(selector), ..LabelSelector::default() },
            template,
            volume_claim_templates: Some(vec![claim_template(cluster)]),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

fn claim_template(cluster: &ValidatedCluster) -> PersistentVolumeClaim {
    let mut labels = labels(cluster.names.cluster());
    labels.insert(names::LABEL_VERSION.to_owned(), cluster.version.as_str().to_owned());
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(VOLUME_DATA.to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: cluster.storage_class.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), Quantity(cluster.storage.clone()))])),
                ..VolumeResourceRequirements::default()
            }),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

/// Hash of what takes effect only when Postgres' container is made anew. The sidecar's image is not part of it: it can be changed
/// in a running pod.
fn restart_hash(template: &PodTemplateSpec) -> String {
    let mut template = template.clone();
    for container in template.spec.iter_mut().flat_map(|s| s.init_containers.iter_mut().flatten()) {
        container.image = None;
    }
    config::hash([("template", serde_json::to_string(&template).unwrap_or_default().as_str())])
}

fn pod_template(cluster: &ValidatedCluster, plan: &Plan, settings: &Settings) -> PodTemplateSpec {
    let mut labels = labels(cluster.names.cluster());
    labels.insert(LABEL_COMPONENT.to_owned(), COMPONENT_POSTGRES.to_owned());
    labels.insert(names::LABEL_VERSION.to_owned(), cluster.version.as_str().to_owned());
    let own_spread = cluster.affinity.is_none();
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: Some(BTreeMap::from([(
                "kubectl.kubernetes.io/default-container".to_owned(),
                pod::CONTAINER_POSTGRES.to_owned(),
            )])),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            init_containers: Some(vec![install(settings), agent(cluster, settings)]),
            containers: vec![postgres(cluster, plan, settings)],
            volumes: Some(volumes(cluster)),
            service_account_name: Some(cluster.names.service_account()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            security_context: Some(pod_security()),
            termination_grace_period_seconds: Some(pod::TERMINATION_GRACE_SECONDS),
            node_selector: (!cluster.node_selector.is_empty()).then(|| cluster.node_selector.clone()),
            tolerations: (!cluster.tolerations.is_empty()).then(|| cluster.tolerations.clone()),
            affinity: Some(cluster.affinity.clone().unwrap_or_else(|| spread_affinity(cluster))),
            topology_spread_constraints: own_spread.then(|| spread_constraints(cluster)),
            priority_class_name: cluster.priority_class.clone(),
            image_pull_secrets: (!cluster.pull_secrets.is_empty()).then(|| cluster.pull_secrets.clone()),
            ..PodSpec::default()
        }),
    }
}

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// One instance a node and a zone, if there are enough: a cluster on too few nodes must still run.
fn spread_affinity(cluster: &ValidatedCluster) -> Affinity {
    let term = |key: &str, weight| WeightedPodAffinityTerm {
        weight,
        pod_affinity_term: PodAffinityTerm {
            topology_key: key.to_owned(),
            label_selector: Some(instances(cluster)),
            ..PodAffinityTerm::default()
        },
    };
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![
                term(HOSTNAME, 100),
                term(ZONE, 50),
            ]),
            ..PodAntiAffinity::default()
        }),
        ..Affinity::default()
    }
}

fn spread_constraints(cluster: &ValidatedCluster) -> Vec<TopologySpreadConstraint> {
    let constraint = |key: &str| TopologySpreadConstraint {
        max_skew: 1,
        topology_key: key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(instances(cluster)),
        ..TopologySpreadConstraint::default()
    };
    vec![constraint(HOSTNAME), constraint(ZONE)]
}

fn instances(cluster: &ValidatedCluster) -> LabelSelector {
    LabelSelector { match_labels: Some(instance_selector(&cluster.names)), ..LabelSelector::default() }
}

fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount { name: volume.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

fn read_only(volume: &str, path: &str) -> VolumeMount {
    VolumeMount { read_only: Some(true), ..mount(volume, path) }
}

fn http_probe(path: &str, port: u16) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(port.into()),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        ..Probe::default()
    }
}

/// Puts the supervisor, `passwd` and `group` where Postgres' container finds them.
fn install(settings: &Settings) -> Container {
    Container {
        name: pod::CONTAINER_INSTALL.to_owned(),
        image: Some(settings.agent_image.clone()),
        image_pull_policy: settings.pull_policy.map(|p| p.as_str().to_owned()),
        command: Some(vec!["/pgwarden-agent".to_owned()]),
        args: Some(vec!["install".to_owned(), "--to".to_owned(), pod::BIN_DIR.to_owned()]),
        volume_mounts: Some(vec![mount(VOLUME_BIN, pod::BIN_DIR)]),
        resources: Some(resources(&[("cpu", "10m"), ("memory", "16Mi")], &[("memory", "64Mi")])),
        security_context: Some(container_security()),
        ..Container::default()
    }
}

fn agent(cluster: &ValidatedCluster, settings: &Settings) -> Container {
    let text = |name: &str, value: &str| EnvVar {
        name: name.to_owned(),
        value: Some(value.to_owned()),
        ..EnvVar::default()
    };
    let field = |name: &str, path: &str| EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".to_owned()),
                field_path: path.to_owned(),
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    let port = |name: &str, number: u16| ContainerPort {
        name: Some(name.to_owned()),
        container_port: number.into(),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    // No CPU limit: being throttled could cost the lease.
    let default_resources = || resources(&[("cpu", "10m"), ("memory", "32Mi")], &[("memory", "128Mi")]);
    Container {
        name: pod::CONTAINER_AGENT.to_owned(),
        image: Some(settings.agent_image.clone()),
        image_pull_policy: settings.pull_policy.map(|p| p.as_str().to_owned()),
        command: Some(vec!["/pgwarden-agent".to_owned()]),
        args: Some(vec!["run".to_owned()]),
        // A native sidecar: starts before Postgres, ends after it.
        restart_policy: Some("Always".to_owned()),
        env: Some(vec![
            text(pod::ENV_CLUSTER, cluster.names.cluster()),
            text(pod::ENV_VERSION, cluster.version.as_str()),
            field(pod::ENV_NAMESPACE, "metadata.namespace"),
            field(pod::ENV_POD, "metadata.name"),
            field(pod::ENV_POD_UID, "metadata.uid"),
            field(pod::ENV_POD_IP, "status.podIP"),
            field(pod::ENV_NODE, "spec.nodeName"),
        ]),
        ports: Some(vec![
            port(pod::PORT_NAME_AGENT, pod::PORT_AGENT),
            port(pod::PORT_NAME_METRICS, pod::PORT_METRICS),
            port("probe", pod::PORT_AGENT_PROBE),
        ]),
        volume_mounts: Some(vec![
            mount(VOLUME_DATA, pod::DATA_MOUNT),
            mount(VOLUME_CONTROL, pod::CONTROL_DIR),
            mount(VOLUME_SOCKET, pod::SOCKET_DIR),
            mount(VOLUME_TLS, pod::TLS_DIR),
            read_only(VOLUME_CONFIG, pod::CONFIG_DIR),
            read_only(VOLUME_CERTIFICATES, pod::CERT_DIR),
            read_only(VOLUME_APP, pod::APP_SECRET_DIR),
            read_only(VOLUME_BACKUP, pod::BACKUP_CREDENTIALS_DIR),
            read_only(VOLUME_TOKEN, TOKEN_DIR),
        ]),
        resources: Some(cluster.agent_resources.clone().unwrap_or_else(default_resources)),
        security_context: Some(container_security()),
        // Sidecars count for the pod's readiness: the pod is ready when its instance is.
        readiness_probe: Some(Probe {
            period_seconds: Some(1),
            timeout_seconds: Some(2),
            failure_threshold: Some(3),
            success_threshold: Some(1),
            ..http_probe("/readyz", pod::PORT_AGENT_PROBE)
        }),
        liveness_probe: Some(Probe {
            initial_delay_seconds: Some(10),
            period_seconds: Some(5),
            timeout_seconds: Some(3),
            failure_threshold: Some(6),
            success_threshold: Some(1),
            ..http_probe("/livez", pod::PORT_AGENT_PROBE)
        }),
        ..Container::default()
    }
}

fn postgres(cluster: &ValidatedCluster, plan: &Plan, settings: &Settings) -> Container {
    let file = |name: &str, path: &str| VolumeMount {
        sub_path: Some(name.to_owned()),
        ..read_only(VOLUME_BIN, path)
    };
    Container {
        name: pod::CONTAINER_POSTGRES.to_owned(),
        image: Some(plan.image.clone()),
        image_pull_policy: settings.pull_policy.map(|p| p.as_str().to_owned()),
        command: Some(vec![
            pod::SUPERVISOR.to_owned(),
            "--socket".to_owned(),
            pod::CONTROL_SOCKET.to_owned(),
            "--probe-port".to_owned(),
            pod::PORT_SUPERVISOR_PROBE.to_string(),
            "--grace".to_owned(),
            pod::TERMINATION_GRACE_SECONDS.to_string(),
        ]),
        // For a person in a shell; the operator's programs are told by argument.
        env: Some(vec![EnvVar {
            name: "PGDATA".to_owned(),
            value: Some(pod::PGDATA.to_owned()),
            ..EnvVar::default()
        }]),
        ports: Some(vec![ContainerPort {
            name: Some(pod::PORT_NAME_POSTGRES.to_owned()),
            container_port: pod::PORT_POSTGRES.into(),
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        volume_mounts: Some(vec![
            mount(VOLUME_DATA, pod::DATA_MOUNT),
            mount(VOLUME_CONTROL, pod::CONTROL_DIR),
            mount(VOLUME_SOCKET, pod::SOCKET_DIR),
            mount(VOLUME_TLS, pod::TLS_DIR),
            mount(VOLUME_SHM, "/dev/shm"),
            mount(VOLUME_TMP, "/tmp"),
            read_only(VOLUME_BIN, pod::BIN_DIR),
            file("passwd", "/etc/passwd"),
            file("group", "/etc/group"),
        ]),
        resources: Some(cluster.resources.clone()),
        security_context: Some(container_security()),
        // Answered by the supervisor: when even that is stopped, the kubelet is the last that can end a primary. No grace then.
        liveness_probe: Some(Probe {
            period_seconds: Some(2),
            timeout_seconds: Some(2),
            failure_threshold: Some(3),
            success_threshold: Some(1),
            termination_grace_period_seconds: Some(1),
            ..http_probe("/", pod::PORT_SUPERVISOR_PROBE)
        }),
        ..Container::default()
    }
}

fn volumes(cluster: &ValidatedCluster) -> Vec<Volume> {
    let names = &cluster.names;
    let empty = |name: &str, medium: Option<&str>, size: Option<String>| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: medium.map(str::to_owned),
            size_limit: size.map(Quantity),
        }),
        ..Volume::default()
    };
    let memory = Some("Memory");
    let secret = |name: &str, secret: String| Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret),
            optional: Some(true),
            default_mode: Some(MODE),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    };
    vec![
        empty(VOLUME_BIN, None, Some("64Mi".to_owned())),
        empty(VOLUME_CONTROL, memory, Some("1Mi".to_owned())),
        empty(VOLUME_SOCKET, memory, Some("1Mi".to_owned())),
        empty(VOLUME_TLS, memory, Some("1Mi".to_owned())),
        empty(VOLUME_SHM, memory, Some(shared_memory(cluster))),
        empty(VOLUME_TMP, None, None),
        Volume {
            name: VOLUME_CONFIG.to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: names.config_map(),
                default_mode: Some(MODE),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        certificates(cluster),
        secret(VOLUME_APP, names.app_secret()),
        secret(VOLUME_BACKUP, names.backup_credentials()),
        token(),
    ]
}

/// Parallel queries exchange rows through `/dev/shm`; it counts as the container's memory.
fn shared_memory(cluster: &ValidatedCluster) -> String {
    let limit = cluster.resources.limits.as_ref().and_then(|l| l.get("memory"));
    let half = limit.and_then(|q| quantity::bytes(&q.0)).map_or(256 << 20, |bytes| bytes / 2);
    format!("{}Mi", (half >> 20).max(64))
}

/// `ROLE/tls.crt`, `ROLE/tls.key`, `ROLE/ca.crt` of the roles that an agent bears.
fn certificates(cluster: &ValidatedCluster) -> Volume {
    let source = |role: CertRole| VolumeProjection {
        secret: Some(SecretProjection {
            name: cluster.names.tls_secret(role.as_str()),
            items: Some(
                ["tls.crt", "tls.key", "ca.crt"]
                    .into_iter()
                    .map(|key| KeyToPath { key: key.to_owned(), path: format!("{role}/{key}"), mode: None })
                    .collect(),
            ),
            ..SecretProjection::default()
        }),
        ..VolumeProjection::default()
    };
    Volume {
        name: VOLUME_CERTIFICATES.to_owned(),
        projected: Some(ProjectedVolumeSource {
            default_mode: Some(MODE),
            sources: Some([CertRole::Server, CertRole::Replication, CertRole::Peer].map(source).into()),
        }),
        ..Volume::default()
    }
}

/// What client libraries expect of a ServiceAccount, in the agent's container alone.
fn token() -> Volume {
    Volume {
        name: VOLUME_TOKEN.to_owned(),
        projected: Some(ProjectedVolumeSource {
            default_mode: Some(MODE),
            sources: Some(vec![
                VolumeProjection {
                    service_account_token: Some(ServiceAccountTokenProjection {
                        path: "token".to_owned(),
                        expiration_seconds: Some(3607),
                        ..ServiceAccountTokenProjection::default()
                    }),
                    ..VolumeProjection::default()
                },
                VolumeProjection {
                    config_map: Some(ConfigMapProjection {
                        name: "kube-root-ca.crt".to_owned(),
                        items: Some(vec![KeyToPath {
                            key: "ca.crt".to_owned(),
                            path: "ca.crt".to_owned(),
                            mode: None,
                        }]),
                        ..ConfigMapProjection::default()
                    }),
                    ..VolumeProjection::default()
                },
                VolumeProjection {
                    downward_api: Some(DownwardAPIProjection {
                        items: Some(vec![DownwardAPIVolumeFile {
                            path: "namespace".to_owned(),
                            field_ref: Some(ObjectFieldSelector {
                                api_version: Some("v1".to_owned()),
                                field_path: "metadata.namespace".to_owned(),
                            }),
                            ..DownwardAPIVolumeFile::default()
                        }]),
                    }),
                    ..VolumeProjection::default()
                },
            ]),
        }),
        ..Volume::default()
    }
}
