//! The end of a cluster. With `Retain` the garbage collector removes what the cluster owns and the rest stays; with `Delete` a
//! finalizer holds the object until the rest is gone too.

use std::time::Duration;

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{PersistentVolumeClaim, Pod, Secret},
    },
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
    runtime::controller::Action,
};
use pgwarden_api::{
    PostgreSQL, PostgreSQLRecord,
    cluster::DeletionPolicy,
    names::{self, FINALIZER, Names},
};
use serde_json::json;
use tracing::info;

use super::{build, validate::ValidatedCluster};
use crate::{
    answer::Answer,
    cache::{self, Cached},
    context::Context,
};

/// Pods that are not gone after so long are on a node that is not there: their volumes are deleted all the same.
const LONGEST_GRACE: i64 = 120;
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Why a deletion does not go on.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// An object could not be deleted.
    #[error("failed to delete {kind} {name}: {source}")]
    Delete {
        /// Kind.
        kind: String,
        /// Name.
        name: String,
        /// Cause.
        source: Answer,
    },
    /// The finalizer could not be set or removed.
    #[error("failed to change the finalizers: {0}")]
    Finalizer(Answer),
}

/// Sets the finalizer with `Delete`, removes it with `Retain`.
///
/// # Errors
/// When the write fails.
pub async fn ensure_finalizer(
    ctx: &Context,
    cluster: &PostgreSQL,
    valid: &ValidatedCluster,
) -> Result<(), DeleteError> {
    let wanted = valid.deletion_policy == DeletionPolicy::Delete;
    if cluster.finalizers().iter().any(|f| f == FINALIZER) == wanted {
        return Ok(());
    }
    set_finalizer(ctx, cluster, wanted).await
}

async fn set_finalizer(ctx: &Context, cluster: &PostgreSQL, wanted: bool) -> Result<(), DeleteError> {
    let mut finalizers: Vec<&str> =
        cluster.finalizers().iter().map(String::as_str).filter(|f| *f != FINALIZER).collect();
    if wanted {
        finalizers.push(FINALIZER);
    }
    // With the resourceVersion: a list is replaced whole, and another's finalizer must not get lost.
    let patch =
        json!({"metadata": {"finalizers": finalizers, "resourceVersion": cluster.resource_version()}});
    let api: Api<PostgreSQL> = Api::namespaced(ctx.client.clone(), &cluster.namespace().unwrap_or_default());
    match api.patch_metadata(&cluster.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(DeleteError::Finalizer(error.into())),
    }
}

/// Goes on with a deletion.
///
/// # Errors
/// When a delete fails.
pub async fn finish(ctx: &Context, cluster: &PostgreSQL) -> Result<Action, DeleteError> {
    let namespace = cluster.namespace().unwrap_or_default();
    let name = cluster.name_any();
    if !cluster.finalizers().iter().any(|f| f == FINALIZER) {
        ctx.agents.forget(&namespace, &name);
        return Ok(Action::await_change());
    }
    let names = Names::new(&name);
    // The StatefulSet first: it would make pods and claims again.
    for set in cache::of_cluster::<StatefulSet>(&ctx.caches, &namespace, &name) {
        delete::<StatefulSet>(ctx, &namespace, &set.name_any()).await?;
    }
    let pods = cache::of_cluster::<Pod>(&ctx.caches, &namespace, &name);
    let instances = pods
        .iter()
        .filter(|p| p.labels().get(build::LABEL_COMPONENT).is_some_and(|c| c == build::COMPONENT_POSTGRES));
    let since = cluster.metadata.deletion_timestamp.as_ref().map_or(0, |t| t.0.as_second());
    if instances.count() > 0 && Timestamp::now().as_second() - since < LONGEST_GRACE {
        return Ok(Action::requeue(LOOK_AGAIN));
    }
    ctx.agents.forget(&namespace, &name);
    for claim in cache::of_cluster::<PersistentVolumeClaim>(&ctx.caches, &namespace, &name) {
        delete::<PersistentVolumeClaim>(ctx, &namespace, &claim.name_any()).await?;
    }
    let app = names.app_secret();
    let ours = |secret: &Secret| secret.annotations().contains_key(build::ANNOTATION_GENERATED);
    if cache::of_cluster::<Secret>(&ctx.caches, &namespace, &name)
        .iter()
        .any(|s| s.name_any() == app && ours(s))
    {
        delete::<Secret>(ctx, &namespace, &app).await?;
    }
    delete::<Secret>(ctx, &namespace, &names.ca_secret()).await?;
    delete::<PostgreSQLRecord>(ctx, &namespace, &names.record()).await?;
    info!(cluster = %name, %namespace, "deleted the cluster's data: its deletionPolicy is Delete");
    set_finalizer(ctx, cluster, false).await?;
    Ok(Action::await_change())
}

async fn delete<K: Cached>(ctx: &Context, namespace: &str, name: &str) -> Result<(), DeleteError> {
    // Only what carries the cluster's label: an object of the same name may be somebody else's.
    let found = cache::find::<K>(&ctx.caches, &ctx.client, namespace, name).await;
    let failed = |e: kube::Error| DeleteError::Delete {
        kind: K::kind(&()).into_owned(),
        name: name.to_owned(),
        source: e.into(),
    };
    let Some(object) = found.map_err(failed)? else { return Ok(()) };
    if object.meta().deletion_timestamp.is_some() || !object.labels().contains_key(names::LABEL_CLUSTER) {
        return Ok(());
    }
    let api: Api<K> = Api::namespaced(ctx.client.clone(), namespace);
    match api.delete(name, &DeleteParams::background()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(failed(error)),
    }
}
