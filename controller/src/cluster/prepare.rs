//! What must exist before anything is built, and is never made twice: the record, the authority, the application's password. Each is
//! created, never overwritten: a second controller, or this one after a crash, finds what the first has made.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Resource, ResourceExt,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use pgwarden_api::{
    PostgreSQLRecord, PostgreSQLRecordSpec,
    cluster::FailoverProfile,
    config::certificate_hash,
    names::{self, Names},
};
use pgwarden_proto::identity::CertRole;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use tracing::info;
use uuid::Uuid;

use super::{
    build::{self, ANNOTATION_GENERATED, AppSecret},
    decide::Plan,
    observe::Observed,
    validate::ValidatedCluster,
};
use crate::{
    answer::Answer,
    context::Context,
    tls::{
        Certificates, Pair, TlsError,
        authority::{ANNOTATION_SINCE, Authority, Step},
        issue, split,
    },
};

/// Why the ground could not be laid.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// An object could not be made or changed.
    #[error("failed to write {kind} {name}: {source}")]
    Write {
        /// Kind.
        kind: String,
        /// Name.
        name: String,
        /// Cause.
        source: Answer,
    },
    /// Somebody else changed it at the same time; the next attempt sees that.
    #[error("{kind} {name} changed while it was written")]
    Changed {
        /// Kind.
        kind: String,
        /// Name.
        name: String,
    },
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The ground.
#[derive(Debug)]
pub struct Ground {
    /// Certificates, as they shall be.
    pub certificates: Certificates,
    /// The application Secret, as it is.
    pub app_secret: AppSecret,
    /// The record, as it is.
    pub record: Option<Arc<PostgreSQLRecord>>,
}

/// Lays it.
///
/// # Errors
/// When a write fails or certificates can't be made.
pub async fn prepare(
    ctx: &Context,
    cluster: &ValidatedCluster,
    observed: &Observed,
    plan: &Plan,
) -> Result<Ground, PrepareError> {
    let record = match &observed.record {
        Some(record) => {
            label_record(ctx, cluster, record).await?;
            Some(record.clone())
        }
        None if plan.create_record => Some(Arc::new(create_record(ctx, cluster).await?)),
        None => None,
    };
    let live = leafs(&cluster.names, &observed.live.secrets);
    let authority = authority(ctx, cluster, observed, &live).await?;
    let subject = issue::Subject { namespace: &cluster.namespace, names: &cluster.names };
    let certificates =
        issue::certificates(subject, &authority, &live, observed.now, &ctx.settings.lifetimes)?;
    let app_secret = app_secret(ctx, cluster, observed, &certificates).await?;
    Ok(Ground { certificates, app_secret, record })
}

/// The record of a cluster without data: nobody has ever held it.
async fn create_record(ctx: &Context, cluster: &ValidatedCluster) -> Result<PostgreSQLRecord, PrepareError> {
    let record = PostgreSQLRecord {
        metadata: kept(cluster, cluster.names.record()),
        spec: PostgreSQLRecordSpec {
            cluster_id: Uuid::new_v4().to_string(),
            lease_millis: lease_millis(cluster.failover),
            ..PostgreSQLRecordSpec::default()
        },
    };
    let record = create(ctx, cluster, record).await?;
    info!(record = %record.name_any(), id = %record.spec.cluster_id, "made the record: the cluster has no data yet");
    Ok(record)
}

/// A record that a person has restored may have lost the label by which it is watched.
async fn label_record(
    ctx: &Context,
    cluster: &ValidatedCluster,
    record: &PostgreSQLRecord,
) -> Result<(), PrepareError> {
    if record.labels().get(names::LABEL_CLUSTER).is_some_and(|c| c == cluster.names.cluster()) {
        return Ok(());
    }
    let api: Api<PostgreSQLRecord> = Api::namespaced(ctx.client.clone(), &cluster.namespace);
    let patch = json!({"metadata": {"labels": build::labels(cluster.names.cluster())}});
    let name = record.name_any();
    let patched = api.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
    let kind = PostgreSQLRecord::kind(&()).into_owned();
    patched.map(|_| ()).map_err(|e| PrepareError::Write { kind, name, source: e.into() })
}

/// L of the timing profiles (`ha.md` §2.4).
const fn lease_millis(profile: FailoverProfile) -> u64 {
    match profile {
        FailoverProfile::Balanced => 6000,
        FailoverProfile::Fast => 4000,
        FailoverProfile::Tolerant => 15_000,
    }
}

/// The certificates that the Secrets hold now.
fn leafs(names: &Names, secrets: &BTreeMap<String, Arc<Secret>>) -> BTreeMap<CertRole, Pair> {
    let pair = |role: CertRole| {
        let data = secrets.get(&names.tls_secret(role.as_str()))?.data.as_ref()?;
        let text = |key: &str| data.get(key).and_then(|b| String::from_utf8(b.0.clone()).ok());
        Some(Pair { certificate: text("tls.crt")?, key: text("tls.key")? })
    };
    CertRole::ALL.into_iter().filter_map(|role| Some((role, pair(role)?))).collect()
}

/// The authority, after the step that is due.
async fn authority(
    ctx: &Context,
    cluster: &ValidatedCluster,
    observed: &Observed,
    leafs: &BTreeMap<CertRole, Pair>,
) -> Result<Authority, PrepareError> {
    let name = cluster.names.ca_secret();
    let (namespace, now, lifetimes) = (&cluster.namespace, observed.now, &ctx.settings.lifetimes);
    let secret = observed.live.secrets.get(&name);
    let Some(current) = secret.and_then(|s| Authority::read(s)) else {
        // Without its key an authority can't sign any more, but what it has signed stays good while everybody changes over.
        let trusted = observed.live.secrets.values().filter_map(|s| s.data.as_ref()?.get("ca.crt"));
        let mut trusted: Vec<String> = trusted.flat_map(|b| split(&String::from_utf8_lossy(&b.0))).collect();
        trusted.sort();
        trusted.dedup();
        let made = Authority::new(namespace, cluster.names.cluster(), trusted, now, lifetimes)?;
        info!(secret = %name, replaces = secret.is_some(), "made a certificate authority");
        let written = match secret {
            Some(secret) => replace(ctx, cluster, secret_of(cluster, &made, Some(secret))).await?,
            None => create(ctx, cluster, secret_of(cluster, &made, None)).await?,
        };
        return Ok(Authority::read(&written).unwrap_or(made));
    };
    let step = current.step(now, confirmed(observed, leafs, &current), lifetimes);
    if step == Step::Keep {
        return Ok(current);
    }
    let next = current.take(step, namespace, cluster.names.cluster(), now, lifetimes)?;
    info!(secret = %name, ?step, "changing the certificate authority");
    replace(ctx, cluster, secret_of(cluster, &next, secret.map(AsRef::as_ref))).await?;
    Ok(next)
}

/// Whether every instance's agent says that it uses the certificates as they are.
fn confirmed(observed: &Observed, leafs: &BTreeMap<CertRole, Pair>, authority: &Authority) -> bool {
    let bundle = authority.bundle();
    [CertRole::Server, CertRole::Replication, CertRole::Peer].into_iter().all(|role| {
        let Some(leaf) = leafs.get(&role) else { return false };
        let wanted = certificate_hash(&leaf.certificate, &bundle);
        observed.pods.iter().all(|pod| {
            let report = observed.reports.get(&pod.name_any());
            report.and_then(|r| r.certificates.get(role.as_str())) == Some(&wanted)
        })
    })
}

fn secret_of(cluster: &ValidatedCluster, authority: &Authority, old: Option<&Secret>) -> Secret {
    let mut metadata = kept(cluster, cluster.names.ca_secret());
    metadata.annotations = Some(BTreeMap::from([(ANNOTATION_SINCE.to_owned(), authority.since.to_string())]));
    metadata.resource_version = old.and_then(ResourceExt::resource_version);
    Secret { metadata, data: Some(authority.write()), ..Secret::default() }
}

/// The application Secret: the user's, or a new one.
async fn app_secret(
    ctx: &Context,
    cluster: &ValidatedCluster,
    observed: &Observed,
    certificates: &Certificates,
) -> Result<AppSecret, PrepareError> {
    let name = cluster.names.app_secret();
    let live = match observed.live.secrets.get(&name) {
        Some(live) => live.clone(),
        None => Arc::new(create(ctx, cluster, new_app_secret(cluster, certificates)).await?),
    };
    let problem = build::app_secret_problem(&live);
    Ok(AppSecret { live, problem })
}

fn new_app_secret(cluster: &ValidatedCluster, certificates: &Certificates) -> Secret {
    // 244 random bits, and no character that anything would have to quote.
    let password = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    let derived = build::derived(
        cluster.names.cluster(),
        &cluster.namespace,
        build::APP,
        &password,
        build::APP,
        &certificates.bundle,
    );
    let mut data: BTreeMap<String, String> =
        derived.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    data.insert("username".to_owned(), build::APP.to_owned());
    data.insert("password".to_owned(), password);
    let mut metadata = kept(cluster, cluster.names.app_secret());
    metadata.annotations = Some(BTreeMap::from([
        (ANNOTATION_GENERATED.to_owned(), "true".to_owned()),
        (build::ANNOTATION_DERIVED.to_owned(), "ca.crt,dbname,host,port,uri".to_owned()),
    ]));
    Secret {
        metadata,
        data: Some(data.into_iter().map(|(k, v)| (k, ByteString(v.into_bytes()))).collect()),
        ..Secret::default()
    }
}

/// Metadata of what outlives the cluster: labels and no owner.
fn kept(cluster: &ValidatedCluster, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace.clone()),
        labels: Some(build::labels(cluster.names.cluster())),
        ..ObjectMeta::default()
    }
}

trait Kept: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()> {}
impl Kept for Secret {}
impl Kept for PostgreSQLRecord {}

fn params() -> PostParams {
    PostParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

/// Creates; what is there already stays and is returned.
async fn create<K>(ctx: &Context, cluster: &ValidatedCluster, object: K) -> Result<K, PrepareError>
where
    K: Kept + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(ctx.client.clone(), &cluster.namespace);
    let name = object.meta().name.clone().unwrap_or_default();
    let kind = K::kind(&()).into_owned();
    let failed =
        |e: kube::Error| PrepareError::Write { kind: kind.clone(), name: name.clone(), source: e.into() };
    ctx.metrics.writes.with_label_values(&[kind.as_str()]).inc();
    match api.create(&params(), &object).await {
        Ok(made) => Ok(made),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            let found = api.get(&name).await.map_err(failed)?;
            let labels = found.meta().labels.as_ref();
            let ours = labels
                .and_then(|l| l.get(names::LABEL_CLUSTER))
                .is_some_and(|c| c == cluster.names.cluster());
            // It was not there a moment ago: if it is not ours, the next picture shows the conflict.
            if ours { Ok(found) } else { Err(PrepareError::Changed { kind, name }) }
        }
        Err(source) => Err(failed(source)),
    }
}

/// Replaces, by compare-and-swap on the `resourceVersion` in the object.
async fn replace<K>(ctx: &Context, cluster: &ValidatedCluster, object: K) -> Result<K, PrepareError>
where
    K: Kept + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(ctx.client.clone(), &cluster.namespace);
    let name = object.meta().name.clone().unwrap_or_default();
    let kind = K::kind(&()).into_owned();
    ctx.metrics.writes.with_label_values(&[kind.as_str()]).inc();
    match api.replace(&name, &params(), &object).await {
        Ok(written) => Ok(written),
        Err(kube::Error::Api(status)) if status.is_conflict() => Err(PrepareError::Changed { kind, name }),
        Err(error) => Err(PrepareError::Write { kind, name, source: error.into() }),
    }
}
