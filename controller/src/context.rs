//! What every reconcile shares.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use kube::{Client, ResourceExt, runtime::events::Recorder};
use pgwarden_api::{PostgreSQL, cluster::Version};

use crate::{
    agents::Agents,
    args::{PullPolicy, RunArgs},
    cache::{Caches, ClusterRef, Gate},
    leader::Tenure,
    metrics::Metrics,
};

/// What the operator's own flags say about the clusters.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Image of PostgreSQL with `{version}`.
    pub postgres_image: String,
    /// Image of the agent.
    pub agent_image: String,
    /// Pull policy.
    pub pull_policy: Option<PullPolicy>,
    /// Namespace of the operator.
    pub operator_namespace: String,
    /// Whether clusters get a NetworkPolicy.
    pub network_policy: bool,
    /// Lifetimes of certificates.
    pub lifetimes: Lifetimes,
}

/// Lifetimes of certificates.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Of a cluster's authority.
    pub authority: Duration,
    /// Of the others.
    pub leaf: Duration,
    /// Percentage of its life after which a certificate is renewed.
    pub renew_percent: u8,
    /// Longest wait for agents in each step of a change of the authority.
    pub overlap: Duration,
}

impl Settings {
    /// From the command line.
    #[must_use]
    pub fn new(args: &RunArgs) -> Self {
        Self {
            postgres_image: args.postgres_image.clone(),
            agent_image: args.agent_image.clone(),
            pull_policy: args.image_pull_policy,
            operator_namespace: args.operator_namespace.clone(),
            network_policy: args.network_policy,
            lifetimes: Lifetimes {
                authority: args.ca_validity.0,
                leaf: args.certificate_validity.0,
                renew_percent: args.renew_percent,
                overlap: args.ca_overlap.0,
            },
        }
    }

    /// The default image of a version.
    #[must_use]
    pub fn image_of(&self, version: Version) -> String {
        self.postgres_image.replace("{version}", version.as_str())
    }
}

/// Shared by all reconciles.
pub struct Context {
    /// Client of the API server.
    pub client: Client,
    /// What is watched.
    pub caches: Caches,
    /// Opens when the caches are filled.
    pub gate: Gate,
    /// Whether this process leads for sure.
    pub tenure: Tenure,
    /// The agents of all clusters.
    pub agents: Agents,
    /// Flags.
    pub settings: Settings,
    /// Metrics.
    pub metrics: Metrics,
    /// Publishes events.
    pub recorder: Recorder,
    /// Failures in a row, by cluster.
    pub failures: Mutex<HashMap<ClusterRef, Failure>>,
    /// Phases, by cluster.
    pub phases: Mutex<HashMap<ClusterRef, String>>,
}

impl Context {
    /// Counts a cluster under its phase.
    pub fn tell_phase(&self, cluster: &PostgreSQL, phase: &str) {
        let key = ClusterRef::new(&cluster.name_any()).within(&cluster.namespace().unwrap_or_default());
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        let gauge = |phase: &str| self.metrics.clusters.with_label_values(&[phase]);
        match phases.insert(key, phase.to_owned()) {
            Some(old) if old == phase => {}
            Some(old) => {
                gauge(&old).dec();
                gauge(phase).inc();
            }
            None => gauge(phase).inc(),
        }
    }

    /// Forgets a cluster that is gone.
    pub fn forget(&self, cluster: &ClusterRef) {
        self.agents.forget(cluster.namespace.as_deref().unwrap_or_default(), &cluster.name);
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(cluster);
        let phase = self.phases.lock().unwrap_or_else(PoisonError::into_inner).remove(cluster);
        if let Some(phase) = phase {
            self.metrics.clusters.with_label_values(&[phase.as_str()]).dec();
        }
    }
}

/// Failures of one cluster in a row.
#[derive(Clone, Debug, Default)]
pub struct Failure {
    /// How many.
    pub count: u32,
    /// The last one that an event told of.
    pub told: String,
    /// Not tried again before, unless the spec changes.
    pub until: Option<Instant>,
    /// Generation of the spec that failed.
    pub generation: Option<i64>,
}
