//! The record in Kubernetes: GET, PUT with `resourceVersion`, and a watch of the one object.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{
    StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use kube::{
    Api, Client,
    api::{PostParams, WatchEvent, WatchParams},
};
use pgwarden_api::PostgreSQLRecord;
use pgwarden_ha::{Outcome, Reading, Record, Version};
use tokio::time::{sleep, timeout};

use super::{Change, RecordStore, convert};

/// Objects kept by version: a PUT needs the whole object that it replaces.
const KEPT: usize = 4;
/// A living holder changes the record every few seconds: a watch that is silent for this long is made anew.
const SILENCE: Duration = Duration::from_secs(15);
/// With nobody who renews, silence is normal.
const LONG_SILENCE: Duration = Duration::from_secs(120);
/// Longest pause between two attempts to watch.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The record of one cluster.
#[derive(Clone)]
pub struct KubeStore {
    api: Api<PostgreSQLRecord>,
    name: String,
    kept: Arc<Mutex<VecDeque<PostgreSQLRecord>>>,
}

impl KubeStore {
    /// The record `name` in `namespace`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), name: name.to_owned(), kept: Arc::default() }
    }

    /// Notes an object for a later PUT, and reads it.
    fn take(&self, object: PostgreSQLRecord) -> Option<(Version, Record)> {
        let version = convert::version(&object);
        let record = match convert::from_api(&object.spec) {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(record = self.name, %error, "record can't be understood");
                return None;
            }
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|o| o.metadata.resource_version != object.metadata.resource_version);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(object);
        Some((version, record))
    }

    fn object(&self, token: &str) -> Option<PostgreSQLRecord> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|o| o.metadata.resource_version.as_deref() == Some(token)).cloned()
    }

    async fn read(&self) -> Reading {
        match self.api.get_opt(&self.name).await {
            Ok(Some(object)) => {
                self.take(object).map_or(Reading::Failed, |(version, record)| Reading::Found(version, record))
            }
            Ok(None) => Reading::Missing,
            Err(error) => {
                tracing::warn!(record = self.name, %error, "record could not be read");
                Reading::Failed
            }
        }
    }

    async fn write(&self, expected: &Version, record: &Record) -> Outcome {
        let Some(mut object) = self.object(&expected.token) else {
            // Seen too long ago: whoever expects it must look again.
            return Outcome::Conflict;
        };
        convert::into_api(record, &mut object.spec);
        object.metadata.managed_fields = None;
        match self.api.replace(&self.name, &PostParams::default(), &object).await {
            Ok(object) => {
                self.take(object).map_or(Outcome::Unknown, |(version, _)| Outcome::Applied(version))
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Outcome::Conflict,
            // Also 401, 403, 404 and 5xx: they do not say who holds the record.
            Err(error) => {
                tracing::warn!(record = self.name, %error, "record could not be written");
                Outcome::Unknown
            }
        }
    }

    /// One connection's worth of changes, from the object as it is now or from where the last one ended.
    async fn open(&self, follow: &mut Follow) -> Result<(), kube::Error> {
        if follow.resume.is_none() {
            match self.api.get_opt(&self.name).await? {
                Some(object) => {
                    follow.resume.clone_from(&object.metadata.resource_version);
                    follow.ready.extend(self.change(object, &mut follow.silence));
                }
                None => {
                    follow.ready.push_back(Change::Deleted);
                    // A version that a watch can begin from, so that its creation is seen.
                    let list = self.api.list_metadata(&self.selector()).await?;
                    follow.resume = list.metadata.resource_version;
                    follow.silence = LONG_SILENCE;
                }
            }
        }
        let params = WatchParams::default().fields(&format!("metadata.name={}", self.name)).timeout(290);
        let from = follow.resume.clone().unwrap_or_else(|| "0".to_owned());
        follow.events = Some(self.api.watch(&params, &from).await?.boxed());
        Ok(())
    }

    fn selector(&self) -> kube::api::ListParams {
        kube::api::ListParams::default().fields(&format!("metadata.name={}", self.name))
    }

    fn change(&self, object: PostgreSQLRecord, silence: &mut Duration) -> Option<Change> {
        let (version, record) = self.take(object)?;
        *silence = if record.state.is_held() { SILENCE } else { LONG_SILENCE };
        Some(Change::Observed(version, record))
    }

    async fn next(&self, follow: &mut Follow) -> Change {
        loop {
            if let Some(change) = follow.ready.pop_front() {
                return change;
            }
            let Some(events) = &mut follow.events else {
                match timeout(Duration::from_secs(5), self.open(follow)).await {
                    Ok(Ok(())) => follow.pause = Duration::from_millis(100),
                    Ok(Err(error)) => {
                        tracing::debug!(record = self.name, %error, "record can't be watched yet");
                        follow.again(true).await;
                    }
                    Err(_) => follow.again(false).await,
                }
                continue;
            };
            match timeout(follow.silence, events.next()).await {
                Ok(Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)))) => {
                    follow.resume.clone_from(&object.metadata.resource_version);
                    follow.ready.extend(self.change(object, &mut follow.silence));
                }
                Ok(Some(Ok(WatchEvent::Deleted(object)))) => {
                    follow.resume = object.metadata.resource_version;
                    follow.silence = LONG_SILENCE;
                    return Change::Deleted;
                }
                Ok(Some(Ok(WatchEvent::Bookmark(mark)))) => {
                    follow.resume = Some(mark.metadata.resource_version);
                }
                // Expired: begin from the object as it is now.
                Ok(Some(Ok(WatchEvent::Error(status)))) => {
                    tracing::debug!(record = self.name, code = status.code, "watch of the record ended");
                    follow.resume = None;
                    follow.again(true).await;
                }
                Ok(Some(Err(error))) => {
                    tracing::debug!(record = self.name, %error, "watch of the record broke");
                    follow.again(false).await;
                }
                // The server's own time is over: go on from here.
                Ok(None) => follow.again(false).await,
                Err(_) => {
                    follow.resume = None;
                    follow.events = None;
                }
            }
        }
    }
}

/// Where a watch stands.
struct Follow {
    resume: Option<String>,
    events: Option<BoxStream<'static, kube::Result<WatchEvent<PostgreSQLRecord>>>>,
    ready: VecDeque<Change>,
    silence: Duration,
    pause: Duration,
}

impl Follow {
    /// The connection is over; another one after a pause that grows.
    async fn again(&mut self, from_now: bool) {
        self.events = None;
        if from_now {
            self.resume = None;
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

impl RecordStore for KubeStore {
    fn get(&self, limit: Duration) -> BoxFuture<'static, Reading> {
        let this = self.clone();
        Box::pin(async move { timeout(limit, this.read()).await.unwrap_or(Reading::Failed) })
    }

    fn replace(&self, expected: Version, record: Record, limit: Duration) -> BoxFuture<'static, Outcome> {
        let this = self.clone();
        Box::pin(
            async move { timeout(limit, this.write(&expected, &record)).await.unwrap_or(Outcome::Unknown) },
        )
    }

    fn watch(&self) -> BoxStream<'static, Change> {
        let follow = Follow {
            resume: None,
            events: None,
            ready: VecDeque::new(),
            silence: SILENCE,
            pause: Duration::from_millis(100),
        };
        let this = self.clone();
        Box::pin(stream::unfold((this, follow), |(this, mut follow)| async move {
            let change = this.next(&mut follow).await;
            Some((change, (this, follow)))
        }))
    }
}
