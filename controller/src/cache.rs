//! What the API server holds, as watched: only objects with our label, and of those only what is read.

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    fmt::Debug,
    hash::{Hash, Hasher},
    sync::Arc,
};

use futures::{Stream, StreamExt, stream::BoxStream};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    batch::v1::CronJob,
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, PodSpec, Secret, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store},
        watcher::{self, Event, watcher},
    },
};
use pgwarden_api::{PostgreSQL, PostgreSQLRecord, names};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::warn;

/// A cluster as it is watched: one that can't be decoded must not stop the watch of the others.
pub type Guarded = DeserializeGuard<PostgreSQL>;
/// Names a cluster to be reconciled.
pub type ClusterRef = ObjectRef<Guarded>;

/// Objects of this many at most are listed in one request: bounds the memory of the start.
const PAGE: u32 = 100;

/// Label selector of everything that we make, and of the application Secrets that users have made.
#[must_use]
pub fn selector() -> String {
    names::LABEL_CLUSTER.to_owned()
}

/// Where requests and watches go: one namespace, or all.
#[derive(Clone)]
pub struct Scope {
    /// Client.
    pub client: Client,
    /// The only namespace, if any.
    pub namespace: Option<String>,
}

impl Scope {
    /// What is watched.
    #[must_use]
    pub fn watched<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }
}

/// A kind that is kept in a store.
pub trait Cached:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Its store.
    fn store(caches: &Caches) -> &Store<Self>;
    /// Forgets what is never read.
    fn trim(&mut self) {
        trim_meta(self);
    }
    /// A number that changes when a reconcile could have something to do; `None`: with every change.
    fn significance(&self) -> Option<u64> {
        None
    }
}

fn trim_meta<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

macro_rules! caches {
    ($($(#[$meta:meta])* $field:ident: $kind:ty $({ $($method:item)+ })?;)+) => {
        /// One store a kind.
        #[derive(Clone)]
        pub struct Caches {
            /// The clusters.
            pub clusters: Store<Guarded>,
            $($(#[$meta])* pub $field: Store<$kind>,)+
        }

        $(impl Cached for $kind {
            fn store(caches: &Caches) -> &Store<Self> {
                &caches.$field
            }
            $($($method)+)?
        })+

        impl Caches {
            /// The stores, and the stream of clusters that something happened to. The stores fill while the stream is read.
            #[must_use]
            pub fn watch(scope: &Scope, clusters: Store<Guarded>) -> (Self, BoxStream<'static, ClusterRef>) {
                let mut streams = Vec::new();
                $(let $field = {
                    let (store, stream) = feed::<$kind>(scope);
                    streams.push(stream);
                    store
                };)+
                (Self { clusters, $($field,)+ }, futures::stream::select_all(streams).boxed())
            }

            /// Waits until every kind has been listed once. For one caller: a store wakes only the last of those who wait for it.
            async fn listed(self) {
                $(
                    // An error means that the watch has ended, which happens only when the process does.
                    let _ = self.$field.wait_until_ready().await;
                )+
            }
        }
    };
}

/// Opens when every kind has been listed once: a decision on half a picture could be wrong. Any number may wait.
#[derive(Clone)]
pub struct Gate(watch::Receiver<bool>);

impl Gate {
    /// Waits for the stores, in a task of its own.
    #[must_use]
    pub fn of(caches: Caches) -> Self {
        Self::after(caches.listed())
    }

    fn after(condition: impl Future<Output = ()> + Send + 'static) -> Self {
        let (open, gate) = watch::channel(false);
        tokio::spawn(async move {
            condition.await;
            open.send_replace(true);
        });
        Self(gate)
    }

    /// Returns when it is open.
    pub async fn pass(&self) {
        // An error means that the task was dropped, with the runtime.
        let _ = self.0.clone().wait_for(|open| *open).await;
    }
}

caches! {
    /// Records: renewed every second or two, which is not news.
    records: PostgreSQLRecord {
        fn significance(&self) -> Option<u64> {
            let mut spec = self.spec.clone();
            spec.renew_time = None;
            Some(fingerprint(&(format!("{spec:?}"), meta_key(self))))
        }
    };
    /// StatefulSets.
    stateful_sets: StatefulSet;
    /// Pods, without the most of their specs.
    pods: Pod {
        fn trim(&mut self) {
            trim_meta(self);
            self.metadata.annotations = None;
            if let Some(spec) = self.spec.take() {
                let mut containers = spec.containers;
                for c in &mut containers {
                    *c = k8s_openapi::api::core::v1::Container {
                        name: std::mem::take(&mut c.name),
                        image: c.image.take(),
                        ..Default::default()
                    };
                }
                self.spec = Some(PodSpec { node_name: spec.node_name, containers, ..PodSpec::default() });
            }
        }
    };
    /// Services.
    services: Service;
    /// Slices: their endpoints are the agents' business.
    slices: EndpointSlice {
        fn trim(&mut self) {
            trim_meta(self);
            self.endpoints = Vec::new();
        }
        fn significance(&self) -> Option<u64> {
            Some(fingerprint(&(format!("{:?}", self.ports), &self.address_type, meta_key(self))))
        }
    };
    /// ConfigMaps.
    config_maps: ConfigMap;
    /// Secrets of the clusters.
    secrets: Secret;
    /// Volume claims.
    claims: PersistentVolumeClaim;
    /// PodDisruptionBudgets.
    budgets: PodDisruptionBudget;
    /// CronJobs.
    cron_jobs: CronJob;
    /// ServiceAccounts.
    accounts: ServiceAccount;
    /// Roles.
    roles: Role;
    /// RoleBindings.
    role_bindings: RoleBinding;
    /// NetworkPolicies.
    policies: NetworkPolicy;
}

fn meta_key<K: Resource>(object: &K) -> String {
    let m = object.meta();
    format!("{:?}{:?}{:?}{:?}", m.labels, m.owner_references, m.deletion_timestamp, m.uid)
}

fn fingerprint(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The cluster that an object belongs to.
pub fn cluster_of<K: Resource>(object: &K) -> Option<ClusterRef> {
    let name = object.meta().labels.as_ref()?.get(names::LABEL_CLUSTER)?;
    Some(ClusterRef::new(name).within(object.meta().namespace.as_deref()?))
}

fn feed<K: Cached>(scope: &Scope) -> (Store<K>, BoxStream<'static, ClusterRef>) {
    let (store, writer) = reflector::store();
    let config = watcher::Config::default().labels(&selector()).page_size(PAGE);
    let mut known: HashMap<ObjectRef<K>, u64> = HashMap::new();
    let stream = watcher(scope.watched::<K>(), config)
        .default_backoff()
        .modify(Cached::trim)
        .reflect(writer)
        .filter_map(move |event| {
            std::future::ready(match event {
                Ok(Event::Apply(object) | Event::InitApply(object)) => {
                    let news = object.significance().is_none_or(|number| {
                        known.insert(ObjectRef::from_obj(&object), number) != Some(number)
                    });
                    if news { cluster_of(&object) } else { None }
                }
                Ok(Event::Delete(object)) => {
                    known.remove(&ObjectRef::from_obj(&object));
                    cluster_of(&object)
                }
                Ok(Event::Init | Event::InitDone) => None,
                Err(error) => {
                    warn!(kind = %K::kind(&()), %error, "watch failed; it is opened again");
                    None
                }
            })
        })
        .boxed();
    (store, stream)
}

/// What happened to a cluster's own object.
pub enum ClusterEvent {
    /// It is new or its spec, labels, annotations or finalizers changed: not only its status.
    Changed(Arc<Guarded>),
    /// It is gone.
    Gone(ClusterRef),
}

/// The watch of the clusters themselves.
pub fn clusters(scope: &Scope) -> (Store<Guarded>, impl Stream<Item = ClusterEvent> + Send + use<>) {
    let (store, writer) = reflector::store();
    let config = watcher::Config::default().page_size(PAGE);
    let mut known: HashMap<ClusterRef, u64> = HashMap::new();
    let stream = watcher(scope.watched::<Guarded>(), config)
        .default_backoff()
        .modify(|guarded: &mut Guarded| trim_meta(guarded))
        .reflect(writer)
        .filter_map(move |event| {
            std::future::ready(match event {
                Ok(Event::Apply(cluster) | Event::InitApply(cluster)) => {
                    let m = cluster.meta();
                    let number = fingerprint(&(
                        m.generation,
                        &m.annotations,
                        &m.labels,
                        &m.finalizers,
                        &m.uid,
                        m.deletion_timestamp.is_some(),
                    ));
                    (known.insert(ObjectRef::from_obj(&cluster), number) != Some(number))
                        .then(|| ClusterEvent::Changed(Arc::new(cluster)))
                }
                Ok(Event::Delete(cluster)) => {
                    let cluster = ObjectRef::from_obj(&cluster);
                    known.remove(&cluster);
                    Some(ClusterEvent::Gone(cluster))
                }
                Ok(Event::Init | Event::InitDone) => None,
                Err(error) => {
                    warn!(kind = "PostgreSQL", %error, "watch failed; it is opened again");
                    None
                }
            })
        });
    (store, stream)
}

/// An object by name: from its store or, when that does not have it, from the API server. The store may lag, or the object may lack
/// our label; only the server knows that something is missing.
///
/// # Errors
/// When the server can't be asked.
pub async fn find<K: Cached>(
    caches: &Caches,
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<Arc<K>>, kube::Error> {
    let key = ObjectRef::new(name).within(namespace);
    if let Some(found) = K::store(caches).get(&key) {
        return Ok(Some(found));
    }
    let found = Api::<K>::namespaced(client.clone(), namespace).get_opt(name).await?;
    Ok(found.map(|mut object| {
        object.trim();
        Arc::new(object)
    }))
}

/// All objects of a kind that carry a cluster's label, by name.
pub fn of_cluster<K: Cached>(caches: &Caches, namespace: &str, cluster: &str) -> Vec<Arc<K>> {
    let mut found = K::store(caches).state_filter(|object| {
        object.meta().namespace.as_deref() == Some(namespace)
            && object.labels().get(names::LABEL_CLUSTER).is_some_and(|c| c == cluster)
    });
    found.sort_by_key(|object| object.name_any());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_is_no_news_but_a_new_epoch_is() {
        let mut record = PostgreSQLRecord::new("orders", pgwarden_api::PostgreSQLRecordSpec::default());
        let before = record.significance();
        record.spec.renew_time = Some("2026-11-22T10:00:00Z".into());
        record.metadata.resource_version = Some("77".into());
        assert_eq!(record.significance(), before);
        record.spec.epoch += 1;
        assert_ne!(record.significance(), before);
    }

    /// All the clusters that wait for the stores at the start of the process are let in, not only the last.
    #[tokio::test]
    async fn many_pass_the_gate() {
        let (store, mut writer) = reflector::store::<Service>();
        let gate = Gate::after(async move {
            let _ = store.wait_until_ready().await;
        });
        let waiting: Vec<_> = (0..20)
            .map(|_| {
                let gate = gate.clone();
                tokio::spawn(async move { gate.pass().await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(waiting.iter().all(|task| !task.is_finished()));
        writer.apply_watcher_event(&Event::Init);
        writer.apply_watcher_event(&Event::InitDone);
        let all = futures::future::try_join_all(waiting);
        tokio::time::timeout(std::time::Duration::from_secs(10), all).await.unwrap().unwrap();
    }

    #[test]
    fn the_cluster_is_read_from_the_label() {
        let mut service = Service::default();
        assert!(cluster_of(&service).is_none());
        service.metadata.namespace = Some("shop".into());
        service.metadata.labels = Some([(names::LABEL_CLUSTER.to_owned(), "orders".to_owned())].into());
        assert_eq!(cluster_of(&service), Some(ClusterRef::new("orders").within("shop")));
    }
}
