//! What the operator may do: one table. It holds every right that it grants to the agents (decision 14), and no `*`.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::Value;

use super::{ManifestError, NAMESPACE, OPERATOR, value};

/// What an installation watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All namespaces.
    Cluster,
    /// Its own.
    Namespace,
}

impl Reach {
    /// Namespace of the operator's own objects; none when `kubectl apply -n` says it.
    pub(super) fn namespace(self) -> Option<String> {
        (self == Self::Cluster).then(|| NAMESPACE.to_owned())
    }
}

/// Group, resources, verbs, and why.
type Row = (&'static str, &'static [&'static str], &'static [&'static str]);

const WATCH: &[&str] = &["get", "list", "watch"];
const OWN: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];

/// Rights in the namespaces that are watched.
const RULES: &[Row] = &[
    ("database.example.com", &["postgresqls"], &["get", "list", "watch", "patch"]),
    ("database.example.com", &["postgresqls/status"], &["patch"]),
    ("database.example.com", &["postgresqls/finalizers"], &["update"]),
    // `update` is granted to the agents; the operator itself creates records and, with deletionPolicy Delete, deletes them.
    (
        "database.example.com",
        &["postgresqlrecords"],
        &["get", "list", "watch", "create", "update", "patch", "delete"],
    ),
    ("apps", &["statefulsets"], OWN),
    ("", &["services", "configmaps", "serviceaccounts"], OWN),
    // A Service that owns a slice and blocks its own deletion.
    ("", &["services/finalizers"], &["update"]),
    // The authority is replaced by compare-and-swap.
    ("", &["secrets"], &["get", "list", "watch", "create", "update", "patch", "delete"]),
    // Deleted only when they can't start: the StatefulSet does not replace them itself.
    ("", &["pods"], &["get", "list", "watch", "patch", "delete"]),
    ("", &["persistentvolumeclaims"], &["get", "list", "watch", "patch", "delete"]),
    ("", &["events"], &["create"]),
    ("events.k8s.io", &["events"], &["create", "patch"]),
    // `update` is granted to the agents.
    (
        "discovery.k8s.io",
        &["endpointslices"],
        &["get", "list", "watch", "create", "update", "patch", "delete"],
    ),
    ("policy", &["poddisruptionbudgets"], OWN),
    ("networking.k8s.io", &["networkpolicies"], OWN),
    ("batch", &["cronjobs"], OWN),
    ("rbac.authorization.k8s.io", &["roles", "rolebindings"], OWN),
];

/// Rights that no namespace has.
const CLUSTER_RULES: &[Row] = &[("storage.k8s.io", &["storageclasses"], WATCH)];

/// Rights in the operator's own namespace.
const LEASE_RULES: &[Row] = &[("coordination.k8s.io", &["leases"], &["get", "create", "update"])];

fn policy(rows: &[Row]) -> Vec<PolicyRule> {
    let texts = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    rows.iter()
        .map(|(group, resources, verbs)| PolicyRule {
            api_groups: Some(vec![(*group).to_owned()]),
            resources: Some(texts(resources)),
            verbs: texts(verbs),
            ..PolicyRule::default()
        })
        .collect()
}

/// The rules of an installation, in the namespaces that it watches.
#[must_use]
pub fn rules(reach: Reach) -> Vec<PolicyRule> {
    let mut rules = policy(RULES);
    if reach == Reach::Cluster {
        rules.extend(policy(CLUSTER_RULES));
    }
    rules
}

fn meta(reach: Option<Reach>, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: reach.and_then(Reach::namespace),
        labels: Some(labels()),
        ..ObjectMeta::default()
    }
}

/// Labels of the operator's objects.
pub(super) fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("app.kubernetes.io/name".to_owned(), OPERATOR.to_owned())])
}

/// Roles and their bindings.
pub(super) fn objects(reach: Reach) -> Result<Vec<Value>, ManifestError> {
    let subject = Subject {
        kind: "ServiceAccount".to_owned(),
        name: OPERATOR.to_owned(),
        // Left out, it is the namespace of the binding.
        namespace: reach.namespace(),
        ..Subject::default()
    };
    let role_ref = |kind: &str, name: &str| RoleRef {
        api_group: "rbac.authorization.k8s.io".to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
    };
    let mut objects = Vec::new();
    match reach {
        Reach::Cluster => {
            objects.push(value(&ClusterRole {
                metadata: meta(None, OPERATOR),
                rules: Some(rules(reach)),
                ..ClusterRole::default()
            })?);
            objects.push(value(&ClusterRoleBinding {
                metadata: meta(None, OPERATOR),
                role_ref: role_ref("ClusterRole", OPERATOR),
                subjects: Some(vec![subject.clone()]),
            })?);
        }
        Reach::Namespace => {
            objects.push(value(&Role { metadata: meta(Some(reach), OPERATOR), rules: Some(rules(reach)) })?);
            objects.push(value(&RoleBinding {
                metadata: meta(Some(reach), OPERATOR),
                role_ref: role_ref("Role", OPERATOR),
                subjects: Some(vec![subject.clone()]),
            })?);
        }
    }
    let lease = format!("{OPERATOR}-leader");
    objects.push(value(&Role { metadata: meta(Some(reach), &lease), rules: Some(policy(LEASE_RULES)) })?);
    objects.push(value(&RoleBinding {
        metadata: meta(Some(reach), &lease),
        role_ref: role_ref("Role", &lease),
        subjects: Some(vec![subject]),
    })?);
    Ok(objects)
}
