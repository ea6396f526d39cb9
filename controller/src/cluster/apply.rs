//! Writing what differs: server-side apply, one field manager, in an order in which each object finds what it needs.

use std::{collections::BTreeMap, marker::PhantomData, sync::Arc};

use futures::future::join_all;
use k8s_openapi::{
    api::{
        core::v1::{PersistentVolumeClaim, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy},
};
use pgwarden_api::{config, names};
use serde::Serialize;
use serde_json::{Value, json};
use tracing::{info, warn};

use super::{
    build::{Applied, Prepared, Resources},
    compare,
    decide::{Plan, Unwanted},
    observe::{Live, Observed},
    prepare::Ground,
    replace::Replace,
    validate::ValidatedCluster,
};
use crate::{answer::Answer, cache::Cached, context::Context};

/// Annotation: hash of what we have said of an object. What we no longer say can't be seen by comparing.
const ANNOTATION_APPLIED: &str = "database.example.com/applied";

/// Why an object could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The API server refuses it: the manifest holds something that Kubernetes does not take.
    #[error("the API server refuses {kind} {name}: {message}")]
    Refused {
        /// Kind.
        kind: String,
        /// Name.
        name: String,
        /// What it says.
        message: String,
    },
    /// The request failed.
    #[error("failed to {action} {kind} {name}: {source}")]
    Request {
        /// Action.
        action: &'static str,
        /// Kind.
        kind: String,
        /// Name.
        name: String,
        /// Cause.
        source: Answer,
    },
    /// No JSON form, which is a bug.
    #[error("failed to serialise {kind} {name}: {source}")]
    Serialise {
        /// Kind.
        kind: String,
        /// Name.
        name: String,
        /// Cause.
        source: serde_json::Error,
    },
}

impl ApplyError {
    fn request<K: Resource<DynamicType = ()>>(action: &'static str, name: &str, source: kube::Error) -> Self {
        let (kind, name) = (K::kind(&()).into_owned(), name.to_owned());
        match source {
            kube::Error::Api(status) if status.code == 422 || status.code == 400 => {
                Self::Refused { kind, name, message: status.message.clone() }
            }
            source => Self::Request { action, kind, name, source: source.into() },
        }
    }
}

/// What has been applied.
#[derive(Debug)]
pub struct Outcome {
    /// The objects as the server has them.
    pub resources: Resources<Applied>,
    /// Why volumes could not grow.
    pub resize_problem: Option<String>,
}

/// Applies what differs.
///
/// # Errors
/// The first write that failed; what was written before it stays, and the next reconcile goes on from there.
pub async fn apply(
    ctx: &Context,
    cluster: &ValidatedCluster,
    plan: &Plan,
    observed: &Observed,
    ground: &Ground,
    resources: Resources<Prepared>,
) -> Result<Outcome, ApplyError> {
    let Live {
        stateful_sets,
        services: live_services,
        slices: live_slices,
        config_maps,
        secrets,
        accounts,
        roles,
        role_bindings,
        budgets,
        cron_jobs,
        policies,
    } = &observed.live;
    // Without `..`: a kind that is built and not applied does not compile.
    let Resources {
        account,
        role,
        role_binding,
        config_map,
        certificates,
        app_secret,
        services,
        slices,
        network_policy,
        budget,
        cron_job,
        stateful_set,
        state: PhantomData,
    } = resources;
    let writer = Writer { ctx, namespace: &cluster.namespace };
    let app_secrets = BTreeMap::from([(cluster.names.app_secret(), ground.app_secret.live.clone())]);

    // All of a group are tried: one that fails must not keep the others from being mended.
    let (account, role, config_map, certificates, app_secret, services) = futures::join!(
        writer.ensure(account, accounts),
        writer.ensure(role, roles),
        writer.ensure(config_map, config_maps),
        writer.ensure_all(certificates, secrets),
        writer.ensure_some(app_secret, &app_secrets),
        writer.ensure_all(services, live_services),
    );
    let (account, role, config_map, certificates, app_secret, services) =
        (account?, role?, config_map?, certificates?, app_secret?, services?);
    let (role_binding, slices, network_policy, budget, cron_job) = futures::join!(
        writer.ensure(role_binding, role_bindings),
        writer.slices(slices, live_slices, &services),
        writer.ensure_some(network_policy, policies),
        writer.ensure_some(budget, budgets),
        writer.ensure_some(cron_job, cron_jobs),
    );
    let (role_binding, slices, network_policy, budget, cron_job) =
        (role_binding?, slices?, network_policy?, budget?, cron_job?);
    let stateful_set = if plan.recreate_stateful_set {
        // Its template can't be changed. The pods stay, and are found again by the new one: the reconcile after the deletion makes it.
        let live = stateful_sets.get(&stateful_set.name_any());
        if let Some(live) = live.filter(|l| l.metadata.deletion_timestamp.is_none()) {
            info!(stateful_set = %live.name_any(), "making the StatefulSet anew around its pods, for another volume size");
            writer.delete(live.as_ref(), PropagationPolicy::Orphan).await?;
        }
        stateful_set
    } else {
        writer.ensure(stateful_set, stateful_sets).await?
    };
    let resize_problem = writer.grow(&plan.grow, &cluster.storage).await;
    writer.relabel(&plan.relabel).await?;
    writer.replace(&plan.replace).await?;
    writer.remove(&plan.remove, observed).await?;
    Ok(Outcome {
        resources: Resources {
            account,
            role,
            role_binding,
            config_map,
            certificates,
            app_secret,
            services,
            slices,
            network_policy,
            budget,
            cron_job,
            stateful_set,
            state: PhantomData,
        },
        resize_problem,
    })
}

struct Writer<'a> {
    ctx: &'a Context,
    namespace: &'a str,
}

impl Writer<'_> {
    fn api<K: Cached>(&self) -> Api<K> {
        Api::namespaced(self.ctx.client.clone(), self.namespace)
    }

    async fn ensure<K: Cached + Serialize>(
        &self,
        desired: K,
        live: &BTreeMap<String, Arc<K>>,
    ) -> Result<K, ApplyError> {
        let value = serialise(&desired)?;
        let live = live.get(&desired.name_any());
        self.ensure_value(&desired.name_any(), value, live).await
    }

    async fn ensure_all<K: Cached + Serialize>(
        &self,
        desired: Vec<K>,
        live: &BTreeMap<String, Arc<K>>,
    ) -> Result<Vec<K>, ApplyError> {
        join_all(desired.into_iter().map(|object| self.ensure(object, live))).await.into_iter().collect()
    }

    async fn ensure_some<K: Cached + Serialize>(
        &self,
        desired: Option<K>,
        live: &BTreeMap<String, Arc<K>>,
    ) -> Result<Option<K>, ApplyError> {
        match desired {
            Some(object) => Ok(Some(self.ensure(object, live).await?)),
            None => Ok(None),
        }
    }

    /// The slices: owned by their Services, and applied without their endpoints.
    async fn slices(
        &self,
        desired: Vec<EndpointSlice>,
        live: &BTreeMap<String, Arc<EndpointSlice>>,
        services: &[Service],
    ) -> Result<Vec<EndpointSlice>, ApplyError> {
        let one = |mut slice: EndpointSlice| async move {
            let name = slice.name_any();
            let service = services.iter().find(|s| s.name_any() == name);
            slice.metadata.owner_references = service.and_then(ResourceExt::uid).map(|uid| {
                vec![OwnerReference {
                    api_version: Service::api_version(&()).into_owned(),
                    kind: Service::kind(&()).into_owned(),
                    name: name.clone(),
                    uid,
                    controller: Some(true),
                    block_owner_deletion: None,
                }]
            });
            let mut live = live.get(&name);
            if let Some(other) = live.filter(|l| l.address_type != slice.address_type) {
                // It can't be changed; the holder writes the endpoints again.
                self.delete(other.as_ref(), PropagationPolicy::Background).await?;
                live = None;
            }
            let mut value = serialise(&slice)?;
            if let Some(map) = value.as_object_mut() {
                map.remove("endpoints");
            }
            self.ensure_value(&name, value, live).await
        };
        join_all(desired.into_iter().map(one)).await.into_iter().collect()
    }

    /// Applies an object unless it is as it should be.
    async fn ensure_value<K: Cached + Serialize>(
        &self,
        name: &str,
        mut value: Value,
        live: Option<&Arc<K>>,
    ) -> Result<K, ApplyError> {
        let kind = K::kind(&()).into_owned();
        let stamp = stamp(&kind, &value);
        if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            let annotations = meta.entry("annotations").or_insert_with(|| json!({}));
            if let Some(annotations) = annotations.as_object_mut() {
                annotations.insert(ANNOTATION_APPLIED.to_owned(), Value::String(stamp));
            }
        }
        let path = match live {
            Some(live) => match compare::difference(&value, &serialise(live.as_ref())?) {
                None => return Ok(live.as_ref().clone()),
                Some(path) => path,
            },
            None => "missing".to_owned(),
        };
        let params = PatchParams::apply(names::FIELD_MANAGER).force();
        let api = self.api::<K>();
        let failed = |e| ApplyError::request::<K>("apply", name, e);
        let applied = match api.patch(name, &params, &Patch::Apply(&value)).await {
            Ok(applied) => applied,
            Err(kube::Error::Api(status)) if status.code == 422 && live.is_some() => {
                // Somebody changed the key of a list's element, say a port's number: apply would add ours beside it. A merge patch
                // replaces the list; apply then finds what it says.
                let params = PatchParams {
                    field_manager: Some(names::FIELD_MANAGER.to_owned()),
                    ..Default::default()
                };
                api.patch(name, &params, &Patch::Merge(&value)).await.map_err(failed)?
            }
            Err(error) => return Err(failed(error)),
        };
        self.ctx.metrics.writes.with_label_values(&[kind.as_str()]).inc();
        info!(%kind, name, difference = %path, "applied an object");
        Ok(applied)
    }

    async fn delete<K: Cached>(&self, object: &K, how: PropagationPolicy) -> Result<(), ApplyError> {
        let name = object.name_any();
        let params = DeleteParams {
            propagation_policy: Some(how),
            preconditions: Some(Preconditions { uid: object.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        match self.api::<K>().delete(&name, &params).await {
            Ok(_) => {
                info!(kind = %K::kind(&()), name, "deleted an object");
                Ok(())
            }
            // Gone, or made anew by somebody: the next picture shows it.
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
            Err(source) => Err(ApplyError::request::<K>("delete", &name, source)),
        }
    }

    /// Grows volumes. A class that can't is no failure of the reconcile.
    async fn grow(&self, claims: &[String], storage: &str) -> Option<String> {
        let mut problem = None;
        let patch = json!({"spec": {"resources": {"requests": {"storage": storage}}}});
        for name in claims {
            let params =
                PatchParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..Default::default() };
            match self.api::<PersistentVolumeClaim>().patch(name, &params, &Patch::Merge(&patch)).await {
                Ok(_) => info!(claim = %name, storage, "asked for a larger volume"),
                Err(error) => {
                    let reason = match &error {
                        kube::Error::Api(status) => status.message.clone(),
                        other => other.to_string(),
                    };
                    warn!(claim = %name, storage, error = %reason, "the volume can't grow");
                    problem.get_or_insert_with(|| format!("{name}: {reason}"));
                }
            }
        }
        problem
    }

    async fn relabel(&self, changes: &BTreeMap<String, Option<&'static str>>) -> Result<(), ApplyError> {
        for (pod, role) in changes {
            let patch = json!({"metadata": {"labels": {names::LABEL_ROLE: role}}});
            let params =
                PatchParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..Default::default() };
            match self.api::<Pod>().patch_metadata(pod, &params, &Patch::Merge(&patch)).await {
                Ok(_) => info!(%pod, role = role.unwrap_or("none"), "labelled the pod's role"),
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(source) => return Err(ApplyError::request::<Pod>("label", pod, source)),
            }
        }
        Ok(())
    }

    /// Deletes pods; the StatefulSet makes them anew from its newest template.
    async fn replace(&self, pods: &[Replace]) -> Result<(), ApplyError> {
        for Replace { pod, uid, why } in pods {
            info!(%pod, %why, "replacing a pod that never served: its template has changed since");
            let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: None };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            match self.api::<Pod>().delete(pod, &params).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
                Err(source) => return Err(ApplyError::request::<Pod>("delete", pod, source)),
            }
        }
        Ok(())
    }

    async fn remove(&self, unwanted: &[Unwanted], observed: &Observed) -> Result<(), ApplyError> {
        let how = PropagationPolicy::Background;
        for object in unwanted {
            match object {
                Unwanted::Budget(name) => {
                    if let Some(live) = observed.live.budgets.get(name) {
                        self.delete(live.as_ref(), how.clone()).await?;
                    }
                }
                Unwanted::CronJob(name) => {
                    if let Some(live) = observed.live.cron_jobs.get(name) {
                        self.delete(live.as_ref(), how.clone()).await?;
                    }
                }
                Unwanted::Policy(name) => {
                    if let Some(live) = observed.live.policies.get(name) {
                        self.delete(live.as_ref(), how.clone()).await?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn serialise<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Result<Value, ApplyError> {
    serde_json::to_value(object).map_err(|source| ApplyError::Serialise {
        kind: K::kind(&()).into_owned(),
        name: object.name_any(),
        source,
    })
}

/// Hash of what is said of an object. Of a Secret only the keys count: no hash of a password stands in an annotation.
fn stamp(kind: &str, value: &Value) -> String {
    let mut value = value.clone();
    if kind == "Secret"
        && let Some(data) = value.get_mut("data").and_then(Value::as_object_mut)
    {
        data.values_mut().for_each(|v| *v = Value::Null);
    }
    config::hash([("object", value.to_string().as_str())])
}
