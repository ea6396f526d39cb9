//! What happened, told to people: one log line and Kubernetes events about the cluster and about the pod.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use pgwarden_ha::Notice;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use crate::config::Config;

/// Events wait here while the API is away; more are dropped, oldest kept: the first says what began it.
const QUEUE: usize = 32;
/// The same event again within this time is not sent.
const QUIET: Duration = Duration::from_secs(60);
/// Longest wait for an answer of the API.
const CALL: Duration = Duration::from_secs(3);

/// One thing to tell.
#[derive(Clone, Debug)]
struct Told {
    reason: &'static str,
    message: String,
    warning: bool,
}

/// Takes what is to be told; never waits.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: Option<mpsc::Sender<Told>>,
    owner: watch::Sender<String>,
}

impl Recorder {
    /// Logs only: for tests.
    #[must_use]
    pub fn log_only() -> Self {
        Self { queue: None, owner: watch::Sender::new(String::new()) }
    }

    /// Sends events about the cluster's `PostgreSQL` and about this pod.
    #[must_use]
    pub fn new(client: Client, config: &Config) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let owner = watch::Sender::new(String::new());
        tokio::spawn(send(client, config.clone(), owner.subscribe(), receiver));
        Self { queue: Some(sender), owner }
    }

    /// The UID of the cluster's `PostgreSQL` is known, or another one.
    pub fn owner(&self, uid: &str) {
        self.owner.send_if_modified(|old| {
            let changed = *old != uid;
            uid.clone_into(old);
            changed
        });
    }

    /// Tells it.
    pub fn tell(&self, notice: &Notice) {
        let told = Told { reason: notice.name(), message: notice.to_string(), warning: notice.is_warning() };
        if told.warning {
            tracing::warn!(reason = told.reason, message = told.message, "decision");
        } else {
            tracing::info!(reason = told.reason, message = told.message, "decision");
        }
        if let Some(sender) = &self.queue
            && sender.try_send(told).is_err()
        {
            tracing::debug!("event dropped: too many wait already");
        }
    }
}

async fn send(
    client: Client,
    config: Config,
    owner: watch::Receiver<String>,
    mut told: mpsc::Receiver<Told>,
) {
    let api: Api<Event> = Api::namespaced(client, &config.namespace);
    let mut last: BTreeMap<(&'static str, String), Instant> = BTreeMap::new();
    let mut number = 0_u64;
    while let Some(told) = told.recv().await {
        let now = Instant::now();
        last.retain(|_, at| now.duration_since(*at) < QUIET);
        if last.insert((told.reason, told.message.clone()), now).is_some() {
            continue;
        }
        let uid = owner.borrow().clone();
        for about in [cluster(&config, uid), pod(&config)] {
            number += 1;
            let event = event(&config, &told, about, number);
            match timeout(CALL, api.create(&PostParams::default(), &event)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::debug!(%error, reason = told.reason, "event not sent"),
                Err(_) => tracing::debug!(reason = told.reason, "event not sent: the API did not answer"),
            }
        }
    }
}

fn cluster(config: &Config, uid: String) -> ObjectReference {
    ObjectReference {
        api_version: Some(format!("{}/v1", pgwarden_api::GROUP)),
        kind: Some("PostgreSQL".to_owned()),
        name: Some(config.cluster.clone()),
        namespace: Some(config.namespace.clone()),
        uid: (!uid.is_empty()).then_some(uid),
        ..ObjectReference::default()
    }
}

fn pod(config: &Config) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(config.pod.clone()),
        namespace: Some(config.namespace.clone()),
        uid: Some(config.pod_uid.clone()),
        ..ObjectReference::default()
    }
}

fn event(config: &Config, told: &Told, about: ObjectReference, number: u64) -> Event {
    let now = Timestamp::now();
    let message = if about.kind.as_deref() == Some("Pod") {
        told.message.clone()
    } else {
        format!("{}: {}", config.pod, told.message)
    };
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:x}.{number:x}", config.pod, now.as_nanosecond())),
            namespace: Some(config.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: about,
        reason: Some(told.reason.to_owned()),
        message: Some(message.chars().take(1024).collect()),
        type_: Some(if told.warning { "Warning" } else { "Normal" }.to_owned()),
        source: Some(EventSource {
            component: Some("pgwarden-agent".to_owned()),
            host: Some(config.node.clone()),
        }),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    }
}
