//! The agents: one status stream a pod, and the pushing of settings. What they say is a cache like any other, and a change of it
//! that a reconcile could act on wakes that cluster.

mod connect;
mod interest;
mod task;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::channel::mpsc;
use pgwarden_proto::v1::InstanceStatus;
use rustls::ClientConfig;
use tokio::{sync::watch, task::AbortHandle};

pub use self::interest::{lag_step, news};
use crate::{cache::ClusterRef, cluster::Files, metrics::Metrics};

/// All agents of all clusters.
#[derive(Clone)]
pub struct Agents {
    inner: Arc<Inner>,
}

struct Inner {
    clusters: Mutex<HashMap<(String, String), Cluster>>,
    wake: mpsc::UnboundedSender<ClusterRef>,
    metrics: Metrics,
}

/// What the tasks of a cluster share.
struct Cluster {
    key: String,
    tls: watch::Sender<Arc<ClientConfig>>,
    files: watch::Sender<Arc<Files>>,
    pods: HashMap<String, Pod>,
}

struct Pod {
    uid: String,
    address: IpAddr,
    report: Report,
    task: AbortHandle,
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is known of one agent.
#[derive(Debug, Default)]
struct Heard {
    /// It has answered, or failed to, once.
    asked: bool,
    /// Its last report; none while it does not answer.
    last: Option<Arc<InstanceStatus>>,
}

type Report = Arc<Mutex<Heard>>;

/// A pod to be in touch with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Pod name.
    pub pod: String,
    /// Pod UID.
    pub uid: String,
    /// Pod IP.
    pub address: IpAddr,
}

/// How to reach a cluster's agents, and what they should have.
pub struct Reach {
    /// Hash of the certificate and of what it trusts.
    pub key: String,
    /// Made when the hash is new.
    pub tls: Arc<ClientConfig>,
    /// Name in the agents' certificates.
    pub server_name: String,
    /// Settings.
    pub files: Arc<Files>,
}

impl Agents {
    /// None yet. Clusters to be reconciled are sent to `wake`.
    #[must_use]
    pub fn new(wake: mpsc::UnboundedSender<ClusterRef>, metrics: Metrics) -> Self {
        Self { inner: Arc::new(Inner { clusters: Mutex::default(), wake, metrics }) }
    }

    /// Whether the key is another than that of the connections of this cluster.
    #[must_use]
    pub fn needs_tls(&self, namespace: &str, cluster: &str, key: &str) -> bool {
        self.lock().get(&(namespace.to_owned(), cluster.to_owned())).is_none_or(|c| c.key != key)
    }

    /// The configuration in use.
    #[must_use]
    pub fn tls(&self, namespace: &str, cluster: &str) -> Option<Arc<ClientConfig>> {
        self.lock().get(&(namespace.to_owned(), cluster.to_owned())).map(|c| c.tls.borrow().clone())
    }

    /// Keeps in touch with exactly these pods of a cluster.
    pub fn ensure(&self, namespace: &str, cluster: &str, targets: Vec<Target>, reach: Reach) {
        let mut clusters = self.lock();
        let entry = clusters.entry((namespace.to_owned(), cluster.to_owned())).or_insert_with(|| Cluster {
            key: reach.key.clone(),
            tls: watch::Sender::new(reach.tls.clone()),
            files: watch::Sender::new(reach.files.clone()),
            pods: HashMap::new(),
        });
        if entry.key != reach.key {
            entry.key.clone_from(&reach.key);
            entry.tls.send_replace(reach.tls);
        }
        if entry.files.borrow().hash != reach.files.hash {
            entry.files.send_replace(reach.files);
        }
        entry.pods.retain(|name, pod| {
            targets.iter().any(|t| t.pod == *name && t.uid == pod.uid && t.address == pod.address)
        });
        for target in targets {
            if entry.pods.contains_key(&target.pod) {
                continue;
            }
            let report = Report::default();
            let task = task::Task {
                cluster: ClusterRef::new(cluster).within(namespace),
                target: target.clone(),
                server_name: reach.server_name.clone(),
                tls: entry.tls.subscribe(),
                files: entry.files.subscribe(),
                report: report.clone(),
                wake: self.inner.wake.clone(),
                metrics: self.inner.metrics.clone(),
            };
            let task = tokio::spawn(task.run()).abort_handle();
            entry.pods.insert(target.pod, Pod { uid: target.uid, address: target.address, report, task });
        }
    }

    /// Leaves a cluster that is gone.
    pub fn forget(&self, namespace: &str, cluster: &str) {
        self.lock().remove(&(namespace.to_owned(), cluster.to_owned()));
    }

    /// The last report of each agent that answers, by pod name.
    #[must_use]
    pub fn reports(&self, namespace: &str, cluster: &str) -> BTreeMap<String, Arc<InstanceStatus>> {
        let clusters = self.lock();
        let Some(found) = clusters.get(&(namespace.to_owned(), cluster.to_owned())) else {
            return BTreeMap::new();
        };
        let of = |pod: &Pod| pod.report.lock().unwrap_or_else(PoisonError::into_inner).last.clone();
        found.pods.iter().filter_map(|(name, pod)| Some((name.clone(), of(pod)?))).collect()
    }

    /// Whether an agent has been asked and has neither answered nor failed to: nothing should be said of it yet. Its answer, or its
    /// failure, wakes the cluster.
    #[must_use]
    pub fn undecided(&self, namespace: &str, cluster: &str) -> bool {
        let asked = |pod: &Pod| pod.report.lock().unwrap_or_else(PoisonError::into_inner).asked;
        self.lock()
            .get(&(namespace.to_owned(), cluster.to_owned()))
            .is_some_and(|cluster| !cluster.pods.values().all(asked))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), Cluster>> {
        self.inner.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
