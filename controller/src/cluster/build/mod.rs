//! The objects of a cluster, as they should be. Pure: everything random (keys, passwords) was made before.

mod access;
mod config;
mod network;
mod secret;
mod stateful_set;
mod workload;

use std::{collections::BTreeMap, marker::PhantomData};

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        batch::v1::CronJob,
        core::v1::{ConfigMap, Secret, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
        rbac::v1::{Role, RoleBinding},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::Resource;
use pgwarden_api::{
    PostgreSQL,
    names::{self, Names},
};

pub use self::{
    config::Files,
    network::policy_name as network_policy_name,
    secret::{ANNOTATION_DERIVED, ANNOTATION_GENERATED, APP, AppSecret, app_secret_problem, derived},
};
use super::{decide::Plan, validate::ValidatedCluster};
use crate::{context::Settings, tls::Certificates};

/// Label: what a pod is for.
pub const LABEL_COMPONENT: &str = "app.kubernetes.io/component";
/// Component of the instances.
pub const COMPONENT_POSTGRES: &str = "postgres";
/// Component of the backup's pods.
pub const COMPONENT_BACKUP: &str = "backup";

/// Objects as built.
#[derive(Clone, Debug)]
pub struct Prepared;
/// Objects as the API server has them.
#[derive(Clone, Debug)]
pub struct Applied;

/// The objects of a cluster. `S` is [`Prepared`] or [`Applied`].
#[derive(Clone, Debug)]
pub struct Resources<S> {
    /// Of the pods.
    pub account: ServiceAccount,
    /// What the agents may do.
    pub role: Role,
    /// Binds it.
    pub role_binding: RoleBinding,
    /// Postgres settings.
    pub config_map: ConfigMap,
    /// Certificates, one Secret a role.
    pub certificates: Vec<Secret>,
    /// What is added to the application Secret; none while that can't be used.
    pub app_secret: Option<Secret>,
    /// NAME, NAME-ro, NAME-pods.
    pub services: Vec<Service>,
    /// The slices of NAME and NAME-ro, without the endpoints, which are the agents'.
    pub slices: Vec<EndpointSlice>,
    /// Who may connect.
    pub network_policy: Option<NetworkPolicy>,
    /// How many instances may be evicted.
    pub budget: Option<PodDisruptionBudget>,
    /// Backups.
    pub cron_job: Option<CronJob>,
    /// The instances.
    pub stateful_set: StatefulSet,
    /// See [`Prepared`].
    pub state: PhantomData<S>,
}

/// What `build` needs beyond the cluster and the plan.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Flags.
    pub settings: &'a Settings,
    /// Certificates to be in the Secrets.
    pub certificates: &'a Certificates,
    /// What is known of the application Secret.
    pub app_secret: &'a AppSecret,
    /// Files of the ConfigMap.
    pub files: &'a Files,
}

/// The files of the ConfigMap: also what is pushed to the agents.
#[must_use]
pub fn files(cluster: &ValidatedCluster, app_secret: &AppSecret) -> Files {
    config::files(cluster, app_secret)
}

/// Builds them all.
#[must_use]
pub fn build(cluster: &ValidatedCluster, plan: &Plan, inputs: Inputs<'_>) -> Resources<Prepared> {
    Resources {
        account: access::account(cluster),
        role: access::role(cluster),
        role_binding: access::role_binding(cluster),
        config_map: config::config_map(cluster, inputs.files),
        certificates: secret::certificates(cluster, inputs.certificates),
        app_secret: secret::app_secret(cluster, inputs.app_secret, inputs.certificates),
        services: network::services(cluster),
        slices: network::slices(cluster),
        network_policy: inputs.settings.network_policy.then(|| network::policy(cluster, inputs.settings)),
        budget: (cluster.replicas > 1).then(|| workload::budget(cluster)),
        cron_job: cluster.backup.as_ref().map(|backup| workload::cron_job(cluster, inputs.settings, backup)),
        stateful_set: stateful_set::stateful_set(cluster, plan, inputs.settings),
        state: PhantomData,
    }
}

/// Labels of everything of a cluster.
#[must_use]
pub fn labels(cluster: &str) -> BTreeMap<String, String> {
    let pairs = [
        ("app.kubernetes.io/name", names::APP_NAME),
        ("app.kubernetes.io/instance", cluster),
        ("app.kubernetes.io/managed-by", names::FIELD_MANAGER),
        (names::LABEL_CLUSTER, cluster),
    ];
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// Selects the instances of a cluster.
#[must_use]
pub fn instance_selector(names: &Names) -> BTreeMap<String, String> {
    [(names::LABEL_CLUSTER, names.cluster()), (LABEL_COMPONENT, COMPONENT_POSTGRES)]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

/// The `PostgreSQL` as the owner of what goes with it.
#[must_use]
pub fn owner(cluster: &ValidatedCluster) -> OwnerReference {
    OwnerReference {
        api_version: PostgreSQL::api_version(&()).into_owned(),
        kind: PostgreSQL::kind(&()).into_owned(),
        name: cluster.names.cluster().to_owned(),
        uid: cluster.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Metadata of an object that goes with the cluster.
fn meta(cluster: &ValidatedCluster, name: String) -> ObjectMeta {
    ObjectMeta { owner_references: Some(vec![owner(cluster)]), ..meta_kept(cluster, name) }
}

/// Metadata of an object that outlives the cluster.
fn meta_kept(cluster: &ValidatedCluster, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace.clone()),
        labels: Some(labels(cluster.names.cluster())),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests;
