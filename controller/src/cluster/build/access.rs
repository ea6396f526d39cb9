//! What the agents may do at the API server (decision 14): one record, two slices, events. No Secrets, no lists.

use k8s_openapi::api::{
    core::v1::ServiceAccount,
    rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject},
};
use pgwarden_api::GROUP;

use super::meta;
use crate::cluster::validate::ValidatedCluster;

pub(super) fn account(cluster: &ValidatedCluster) -> ServiceAccount {
    let mut meta = meta(cluster, cluster.names.service_account());
    if !cluster.account_annotations.is_empty() {
        meta.annotations = Some(cluster.account_annotations.clone());
    }
    ServiceAccount {
        metadata: meta,
        // The token is projected into the agent's container alone.
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

pub(super) fn role(cluster: &ValidatedCluster) -> Role {
    let names = &cluster.names;
    let rule = |group: &str, resource: &str, names: &[String], verbs: &[&str]| PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(vec![resource.to_owned()]),
        resource_names: (!names.is_empty()).then(|| names.to_vec()),
        verbs: verbs.iter().map(|v| (*v).to_owned()).collect(),
        ..PolicyRule::default()
    };
    let own = ["get", "list", "watch", "update"];
    Role {
        metadata: meta(cluster, names.service_account()),
        rules: Some(vec![
            rule(GROUP, "postgresqlrecords", &[names.record()], &own),
            rule(
                "discovery.k8s.io",
                "endpointslices",
                &[names.primary_service(), names.replica_service()],
                &own,
            ),
            rule("events.k8s.io", "events", &[], &["create"]),
            rule("", "events", &[], &["create"]),
        ]),
    }
}

pub(super) fn role_binding(cluster: &ValidatedCluster) -> RoleBinding {
    let name = cluster.names.service_account();
    RoleBinding {
        metadata: meta(cluster, name.clone()),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "Role".to_owned(),
            name: name.clone(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name,
            namespace: Some(cluster.namespace.clone()),
            ..Subject::default()
        }]),
    }
}
