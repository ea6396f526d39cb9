//! Services, slices, and who may connect.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort, ServiceSpec},
        discovery::v1::{EndpointPort, EndpointSlice},
        networking::v1::{
            NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
        },
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use pgwarden_api::{
    cluster::ServiceType,
    names::{self, Names},
    pod,
};

use super::{instance_selector, meta};
use crate::{cluster::validate::ValidatedCluster, context::Settings, manifests};

fn port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: number.into(),
        protocol: Some("TCP".to_owned()),
        target_port: Some(IntOrString::Int(number.into())),
        ..ServicePort::default()
    }
}

pub(super) fn services(cluster: &ValidatedCluster) -> Vec<Service> {
    let client = |name: String| {
        let mut metadata = meta(cluster, name);
        if !cluster.service.annotations.is_empty() {
            metadata.annotations = Some(cluster.service.annotations.clone());
        }
        Service {
            metadata,
            spec: Some(ServiceSpec {
                type_: Some(cluster.service.type_.unwrap_or(ServiceType::ClusterIP).as_str().to_owned()),
                // No selector: the holder of the record writes the endpoints.
                ports: Some(vec![port(pod::PORT_NAME_POSTGRES, pod::PORT_POSTGRES)]),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        }
    };
    let pods = Service {
        metadata: meta(cluster, cluster.names.pods_service()),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            cluster_ip: Some("None".to_owned()),
            // Instances must find each other before any of them is ready.
            publish_not_ready_addresses: Some(true),
            selector: Some(instance_selector(&cluster.names)),
            ports: Some(vec![
                port(pod::PORT_NAME_POSTGRES, pod::PORT_POSTGRES),
                port(pod::PORT_NAME_AGENT, pod::PORT_AGENT),
                port(pod::PORT_NAME_METRICS, pod::PORT_METRICS),
            ]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    };
    vec![client(cluster.names.primary_service()), client(cluster.names.replica_service()), pods]
}

/// The slices, with no endpoints and no owner: that is the Service, whose UID is known when it has been applied.
pub(super) fn slices(cluster: &ValidatedCluster) -> Vec<EndpointSlice> {
    let slice = |name: String| {
        let mut metadata = meta(cluster, name.clone());
        metadata.owner_references = None;
        let labels = metadata.labels.get_or_insert_default();
        labels.insert("kubernetes.io/service-name".to_owned(), name);
        labels
            .insert("endpointslice.kubernetes.io/managed-by".to_owned(), names::SLICE_MANAGED_BY.to_owned());
        EndpointSlice {
            metadata,
            address_type: cluster.address_type.to_owned(),
            endpoints: Vec::new(),
            ports: Some(vec![EndpointPort {
                name: Some(pod::PORT_NAME_POSTGRES.to_owned()),
                port: Some(pod::PORT_POSTGRES.into()),
                protocol: Some("TCP".to_owned()),
                ..EndpointPort::default()
            }]),
        }
    };
    vec![slice(cluster.names.primary_service()), slice(cluster.names.replica_service())]
}

/// Name of the NetworkPolicy.
#[must_use]
pub fn policy_name(names: &Names) -> String {
    names.cluster().to_owned()
}

/// Postgres for everybody (it asks for passwords or certificates), metrics for everybody, the agent's port for the cluster's own
/// pods and the operator alone. Probes come from the node, which a policy never stops.
pub(super) fn policy(cluster: &ValidatedCluster, settings: &Settings) -> NetworkPolicy {
    let open = |number: u16| NetworkPolicyPort {
        port: Some(IntOrString::Int(number.into())),
        protocol: Some("TCP".to_owned()),
        ..NetworkPolicyPort::default()
    };
    let select = |labels: BTreeMap<String, String>| LabelSelector {
        match_labels: Some(labels),
        ..LabelSelector::default()
    };
    let label = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let own_pods = NetworkPolicyPeer {
        pod_selector: Some(select(label(names::LABEL_CLUSTER, cluster.names.cluster()))),
        ..NetworkPolicyPeer::default()
    };
    let operator = NetworkPolicyPeer {
        namespace_selector: Some(select(label("kubernetes.io/metadata.name", &settings.operator_namespace))),
        pod_selector: Some(select(label("app.kubernetes.io/name", manifests::OPERATOR))),
        ..NetworkPolicyPeer::default()
    };
    NetworkPolicy {
        metadata: meta(cluster, policy_name(&cluster.names)),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(select(instance_selector(&cluster.names))),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![
                NetworkPolicyIngressRule {
                    ports: Some(vec![open(pod::PORT_POSTGRES), open(pod::PORT_METRICS)]),
                    ..NetworkPolicyIngressRule::default()
                },
                NetworkPolicyIngressRule {
                    ports: Some(vec![open(pod::PORT_AGENT)]),
                    from: Some(vec![own_pods, operator]),
                },
            ]),
            ..NetworkPolicySpec::default()
        }),
    }
}
