//! What is there: objects, claims, the record, what the agents say. Everything later in a reconcile works on this alone.

use std::{collections::BTreeMap, sync::Arc};

use futures::future::try_join_all;
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        batch::v1::CronJob,
        core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
        rbac::v1::{Role, RoleBinding},
        storage::v1::StorageClass,
    },
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt,
    api::ListParams,
    core::{ObjectMeta, PartialObjectMeta},
    runtime::reflector::ObjectRef,
};
use pgwarden_api::{PostgreSQL, PostgreSQLRecord, cluster::Version, names::Names};
use pgwarden_proto::{identity::CertRole, v1::InstanceStatus};

use super::build;
use crate::{
    answer::Answer,
    cache::{self, Cached},
    context::Context,
};

/// Why the picture is not complete.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// One object could not be read.
    #[error("failed to read {kind} {name}: {source}")]
    Read {
        /// Kind.
        kind: String,
        /// Name.
        name: String,
        /// Cause.
        source: Answer,
    },
    /// The claims of the namespace could not be listed.
    #[error("failed to list the volume claims of the namespace: {0}")]
    ListClaims(Answer),
}

/// The objects whose names a cluster uses, as they are: ours or not.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// By name.
    pub stateful_sets: BTreeMap<String, Arc<StatefulSet>>,
    /// By name.
    pub services: BTreeMap<String, Arc<Service>>,
    /// By name.
    pub slices: BTreeMap<String, Arc<EndpointSlice>>,
    /// By name.
    pub config_maps: BTreeMap<String, Arc<ConfigMap>>,
    /// By name.
    pub secrets: BTreeMap<String, Arc<Secret>>,
    /// By name.
    pub accounts: BTreeMap<String, Arc<ServiceAccount>>,
    /// By name.
    pub roles: BTreeMap<String, Arc<Role>>,
    /// By name.
    pub role_bindings: BTreeMap<String, Arc<RoleBinding>>,
    /// By name.
    pub budgets: BTreeMap<String, Arc<PodDisruptionBudget>>,
    /// By name.
    pub cron_jobs: BTreeMap<String, Arc<CronJob>>,
    /// By name.
    pub policies: BTreeMap<String, Arc<NetworkPolicy>>,
}

/// What is known of the StorageClass of claims that stay without a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StorageClassFact {
    /// No claim waits.
    #[default]
    NotAsked,
    /// It exists.
    Found,
    /// There is none of this name.
    Missing(String),
    /// No class was named and none is the default.
    NoDefault,
    /// The operator may not ask, with a Role alone.
    Unknown,
}

/// The picture.
#[derive(Clone, Debug)]
pub struct Observed {
    /// When it was taken.
    pub now: Timestamp,
    /// Objects by kind and name.
    pub live: Live,
    /// The pods of the instances.
    pub pods: Vec<Arc<Pod>>,
    /// The volume claims with the cluster's label.
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
    /// The record.
    pub record: Option<Arc<PostgreSQLRecord>>,
    /// Claims that hold, by label or by name, this cluster's data. Looked for only while there is no record.
    pub claims_without_record: Vec<String>,
    /// The last report of each pod's agent, by pod name; none when its agent does not answer.
    pub reports: BTreeMap<String, Arc<InstanceStatus>>,
    /// Major version in use: that of the data, if there is any.
    pub version: Version,
    /// See [`StorageClassFact`].
    pub storage_class: StorageClassFact,
}

/// A claim that has had no volume for so long is looked into.
const CLAIM_WAITS: i64 = 4;

/// Takes the picture. Costs no request while every object is in its store.
///
/// # Errors
/// When something that is not in a store can't be asked for.
pub async fn observe(ctx: &Context, cluster: &PostgreSQL) -> Result<Observed, ObserveError> {
    let namespace = cluster.namespace().unwrap_or_default();
    let name = cluster.name_any();
    let names = Names::new(&name);
    let look = Look { ctx, namespace: &namespace, cluster: &name };

    let claims: Vec<_> = cache::of_cluster::<PersistentVolumeClaim>(&ctx.caches, &namespace, &name);
    let record = look.one::<PostgreSQLRecord>(names.record()).await?;
    let mut stateful_sets = look.known::<StatefulSet>();
    let initialised = record.as_ref().is_some_and(|r| !r.spec.system_identifier.is_empty());
    let version = version_in_use(cluster, &stateful_sets, &claims, record.is_none() || initialised);
    if let Some(set) = look.one::<StatefulSet>(names.stateful_set(version.as_str())).await? {
        stateful_sets.insert(set.name_any(), set);
    }

    let tls = CertRole::ALL.iter().map(|role| names.tls_secret(role.as_str()));
    let secrets = tls.chain([names.ca_secret(), names.app_secret()]);
    let services = [names.primary_service(), names.replica_service(), names.pods_service()];
    let slices = [names.primary_service(), names.replica_service()];
    let (services, slices, config_maps, secrets) = futures::try_join!(
        look.all::<Service>(services, true),
        look.all::<EndpointSlice>(slices, true),
        look.all::<ConfigMap>([names.config_map()], true),
        look.all::<Secret>(secrets, true),
    )?;
    // The server is asked for what is wanted; of what is not wanted, only what is ours matters, and that is in the stores.
    let (budget, backup, policy) =
        (cluster.spec.replicas > 1, cluster.spec.backup.is_some(), ctx.settings.network_policy);
    let (accounts, roles, role_bindings, budgets, cron_jobs, policies) = futures::try_join!(
        look.all::<ServiceAccount>([names.service_account()], true),
        look.all::<Role>([names.service_account()], true),
        look.all::<RoleBinding>([names.service_account()], true),
        look.all::<PodDisruptionBudget>([names.disruption_budget()], budget),
        look.all::<CronJob>([names.backup_cron_job()], backup),
        look.all::<NetworkPolicy>([build::network_policy_name(&names)], policy),
    )?;
    let claims_without_record = match record {
        Some(_) => Vec::new(),
        None => look.claims_of_data().await?,
    };
    let pods: Vec<_> = cache::of_cluster::<Pod>(&ctx.caches, &namespace, &name)
        .into_iter()
        .filter(|pod| {
            pod.labels().get(build::LABEL_COMPONENT).is_some_and(|c| c == build::COMPONENT_POSTGRES)
        })
        .collect();
    Ok(Observed {
        now: Timestamp::now(),
        live: Live {
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
        },
        storage_class: storage_class(ctx, cluster, &claims).await?,
        reports: ctx.agents.reports(&namespace, &name),
        pods,
        claims,
        record,
        claims_without_record,
        version,
    })
}

/// Asks for the StorageClass while a claim waits for its volume longer than provisioning takes.
async fn storage_class(
    ctx: &Context,
    cluster: &PostgreSQL,
    claims: &[Arc<PersistentVolumeClaim>],
) -> Result<StorageClassFact, ObserveError> {
    let now = Timestamp::now().as_second();
    let waits = |claim: &&Arc<PersistentVolumeClaim>| {
        let pending = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Pending");
        let age = claim.metadata.creation_timestamp.as_ref().map_or(0, |t| now - t.0.as_second());
        pending && age >= CLAIM_WAITS
    };
    let Some(claim) = claims.iter().find(waits) else { return Ok(StorageClassFact::NotAsked) };
    let api: Api<StorageClass> = Api::all(ctx.client.clone());
    let named = claim.spec.as_ref().and_then(|s| s.storage_class_name.clone());
    let name = named.or_else(|| cluster.spec.storage_class_name.clone()).unwrap_or_default();
    let failed = |e: kube::Error| ObserveError::Read {
        kind: "StorageClass".to_owned(),
        name: name.clone(),
        source: e.into(),
    };
    let forbidden = |e: &kube::Error| matches!(e, kube::Error::Api(s) if s.is_forbidden());
    if name.is_empty() {
        return match api.list(&ListParams::default()).await {
            Ok(list) if list.items.iter().any(is_default_class) => Ok(StorageClassFact::Found),
            Ok(_) => Ok(StorageClassFact::NoDefault),
            Err(error) if forbidden(&error) => Ok(StorageClassFact::Unknown),
            Err(error) => Err(failed(error)),
        };
    }
    match api.get_opt(&name).await {
        Ok(Some(_)) => Ok(StorageClassFact::Found),
        Ok(None) => Ok(StorageClassFact::Missing(name)),
        Err(error) if forbidden(&error) => Ok(StorageClassFact::Unknown),
        Err(error) => Err(failed(error)),
    }
}

fn is_default_class(class: &StorageClass) -> bool {
    class.annotations().get("storageclass.kubernetes.io/is-default-class").is_some_and(|v| v == "true")
}

/// The version of the StatefulSet that is there, else that of the volumes (unless they were never initialised), else the wanted one.
fn version_in_use(
    cluster: &PostgreSQL,
    sets: &BTreeMap<String, Arc<StatefulSet>>,
    claims: &[Arc<PersistentVolumeClaim>],
    claims_count: bool,
) -> Version {
    let of = |meta: &ObjectMeta| -> Option<Version> {
        meta.labels.as_ref()?.get(pgwarden_api::names::LABEL_VERSION)?.parse().ok()
    };
    let from_sets: Vec<Version> = sets.values().filter_map(|s| of(&s.metadata)).collect();
    let from_claims: Vec<Version> =
        if claims_count { claims.iter().filter_map(|c| of(&c.metadata)).collect() } else { Vec::new() };
    let told = cluster.status.as_ref().and_then(|s| s.version.as_deref()).and_then(|v| v.parse().ok());
    for found in [from_sets, from_claims] {
        if let Some(version) = told.filter(|v| found.contains(v)).or_else(|| found.into_iter().max()) {
            return version;
        }
    }
    cluster.spec.version
}

struct Look<'a> {
    ctx: &'a Context,
    namespace: &'a str,
    cluster: &'a str,
}

impl Look<'_> {
    /// By name, from the store or the server.
    async fn one<K: Cached>(&self, name: String) -> Result<Option<Arc<K>>, ObserveError> {
        cache::find::<K>(&self.ctx.caches, &self.ctx.client, self.namespace, &name)
            .await
            .map_err(|e| ObserveError::Read { kind: K::kind(&()).into_owned(), name, source: e.into() })
    }

    /// What the store has with our label.
    fn known<K: Cached>(&self) -> BTreeMap<String, Arc<K>> {
        let found = cache::of_cluster::<K>(&self.ctx.caches, self.namespace, self.cluster);
        found.into_iter().map(|object| (object.name_any(), object)).collect()
    }

    /// By their names, from the store or, if `ask`, from the server.
    async fn all<K: Cached>(
        &self,
        names: impl IntoIterator<Item = String>,
        ask: bool,
    ) -> Result<BTreeMap<String, Arc<K>>, ObserveError> {
        let one = |name: String| async move {
            if ask { self.one::<K>(name).await } else { Ok(self.stored::<K>(&name)) }
        };
        let found = try_join_all(names.into_iter().map(one)).await?;
        Ok(found.into_iter().flatten().map(|object| (object.name_any(), object)).collect())
    }

    fn stored<K: Cached>(&self, name: &str) -> Option<Arc<K>> {
        K::store(&self.ctx.caches).get(&ObjectRef::new(name).within(self.namespace))
    }

    /// Claims with the cluster's label or the names of its volumes, asked of the server itself: whether data exists must not depend
    /// on a store that may lag, nor on a label that a restore may have lost.
    async fn claims_of_data(&self) -> Result<Vec<String>, ObserveError> {
        let api: Api<PartialObjectMeta<PersistentVolumeClaim>> =
            Api::namespaced(self.ctx.client.clone(), self.namespace);
        let list = api
            .list_metadata(&ListParams::default())
            .await
            .map_err(|e| ObserveError::ListClaims(e.into()))?;
        let mut found: Vec<String> = list
            .items
            .into_iter()
            .filter(|claim| {
                claim.labels().get(pgwarden_api::names::LABEL_CLUSTER).is_some_and(|c| c == self.cluster)
                    || is_data_claim(self.cluster, &claim.name_any())
            })
            .map(|claim| claim.name_any())
            .collect();
        found.sort();
        Ok(found)
    }
}

/// Whether a claim's name is `data-CLUSTER-VERSION-ORDINAL`.
fn is_data_claim(cluster: &str, claim: &str) -> bool {
    let rest =
        claim.strip_prefix("data-").and_then(|c| c.strip_prefix(cluster)).and_then(|c| c.strip_prefix('-'));
    rest.and_then(|r| r.split_once('-')).is_some_and(|(version, ordinal)| {
        version.parse::<Version>().is_ok() && ordinal.parse::<u32>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_recognised_by_name() {
        assert!(is_data_claim("orders", "data-orders-17-0"));
        for other in
            ["data-orders-17-x", "data-orders-0", "data-orders-9-0", "data-orders-eu-17-0", "orders-17-0"]
        {
            assert!(!is_data_claim("orders", other), "{other}");
        }
    }
}
