//! The task of one pod: connect, follow the reports, push settings; again after a pause when the stream ends.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures::channel::mpsc;
use pgwarden_api::pod;
use pgwarden_proto::v1::{ConfigureRequest, InstanceStatus, WatchStatusRequest, agent_client::AgentClient};
use rustls::ClientConfig;
use tokio::sync::watch;
use tonic::transport::Channel;
use tracing::{debug, info, warn};

use super::{Report, Target, connect, interest};
use crate::{cache::ClusterRef, cluster::Files, metrics::Metrics};

/// Agents report at least so often.
const INTERVAL: Duration = Duration::from_secs(10);
/// An agent that has said nothing for so long is taken for gone.
const SILENCE: Duration = Duration::from_secs(25);
/// Its first report comes at once.
const FIRST: Duration = Duration::from_secs(5);
/// Pauses between attempts: agents of new pods answer within a second, dead ones need not be asked often.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_LAST: Duration = Duration::from_secs(10);
/// A report is a few kilobytes.
const MESSAGE: usize = 256 << 10;
/// Reloading Postgres takes a moment.
const CONFIGURE: Duration = Duration::from_secs(30);

pub(super) struct Task {
    pub(super) cluster: ClusterRef,
    pub(super) target: Target,
    pub(super) server_name: String,
    pub(super) tls: watch::Receiver<Arc<ClientConfig>>,
    pub(super) files: watch::Receiver<Arc<Files>>,
    pub(super) report: Report,
    pub(super) wake: mpsc::UnboundedSender<ClusterRef>,
    pub(super) metrics: Metrics,
}

/// Counts an open stream, also when the task is aborted.
struct Open(Metrics);

impl Open {
    fn new(metrics: &Metrics) -> Self {
        metrics.agents.inc();
        Self(metrics.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.agents.dec();
    }
}

impl Task {
    pub(super) async fn run(mut self) {
        let address = SocketAddr::new(self.target.address, pod::PORT_AGENT);
        let mut pause = PAUSE_FIRST;
        loop {
            let tls = self.tls.borrow_and_update().clone();
            match connect::connect(address, &self.server_name, tls).await {
                Ok(channel) => {
                    let open = Open::new(&self.metrics);
                    let reason = self.follow(channel).await;
                    drop(open);
                    if self.store(None) {
                        info!(pod = %self.target.pod, %reason, "lost the agent's status stream");
                        pause = PAUSE_FIRST;
                    } else {
                        debug!(pod = %self.target.pod, %reason, "the agent gave no status");
                    }
                }
                Err(error) => {
                    self.store(None);
                    debug!(pod = %self.target.pod, %address, %error, "the agent does not answer");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_LAST),
                // New certificates may be just what was missing.
                changed = self.tls.changed() => match changed {
                    Ok(()) => pause = PAUSE_FIRST,
                    Err(_) => return,
                },
            }
        }
    }

    /// Follows the reports until the stream ends; says why it did.
    async fn follow(&mut self, channel: Channel) -> String {
        let mut client = AgentClient::new(channel).max_decoding_message_size(MESSAGE);
        let interval = u32::try_from(INTERVAL.as_millis()).unwrap_or(0);
        let request = WatchStatusRequest { max_interval_ms: interval };
        let mut stream = match tokio::time::timeout(FIRST, client.watch_status(request)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return status.to_string(),
            Err(_) => return "no answer in time".to_owned(),
        };
        let mut patience = FIRST;
        loop {
            tokio::select! {
                message = tokio::time::timeout(patience, stream.message()) => match message {
                    Ok(Ok(Some(report))) => {
                        self.store(Some(Arc::new(report)));
                        patience = SILENCE;
                    }
                    Ok(Ok(None)) => return "the agent closed it".to_owned(),
                    Ok(Err(status)) => return status.to_string(),
                    Err(_) => return format!("nothing was heard for {} s", patience.as_secs()),
                },
                changed = self.files.changed() => if changed.is_err() {
                    return "the cluster is gone".to_owned();
                },
            }
            self.push(&mut client).await;
        }
    }

    /// Pushes the settings if the agent has others.
    async fn push(&mut self, client: &mut AgentClient<Channel>) {
        let files = self.files.borrow_and_update().clone();
        let current = self.report.lock().unwrap_or_else(PoisonError::into_inner).last.clone();
        if current.is_none_or(|report| report.config_hash == files.hash) {
            return;
        }
        let request = ConfigureRequest {
            files: files.files.clone().into_iter().collect(),
            hash: files.hash.clone(),
            generation: files.generation,
        };
        match tokio::time::timeout(CONFIGURE, client.configure(request)).await {
            Ok(Ok(answer)) => {
                let applied = answer.into_inner().applied;
                info!(pod = %self.target.pod, hash = %files.hash, applied, "pushed settings to the agent");
            }
            Ok(Err(status)) => {
                warn!(pod = %self.target.pod, hash = %files.hash, error = %status, "the agent refused settings");
            }
            Err(_) => {
                warn!(pod = %self.target.pod, hash = %files.hash, "the agent did not take settings in time")
            }
        }
    }

    /// Keeps a report and wakes the cluster if it says something new. Whether there was one before.
    fn store(&self, new: Option<Arc<InstanceStatus>>) -> bool {
        let (asked, old) = {
            let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
            (std::mem::replace(&mut report.asked, true), std::mem::replace(&mut report.last, new.clone()))
        };
        if !asked || interest::news(old.as_deref(), new.as_deref()) {
            // The receiver lives as long as the process.
            let _ = self.wake.unbounded_send(self.cluster.clone());
        }
        old.is_some()
    }
}
