//! Who gets traffic: the holder writes the EndpointSlices of the primary's and of the replicas' Service.
//!
//! Each write is a PUT with the `resourceVersion` that was read and carries the epoch; a slice with a higher epoch is never written
//! over, so a deposed holder that wakes up changes nothing. The primary's slice goes first.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use k8s_openapi::api::{
    core::v1::ObjectReference,
    discovery::v1::{Endpoint as ApiEndpoint, EndpointConditions, EndpointSlice},
};
use kube::{Api, Client, api::PostParams};
use pgwarden_api::names::{ANNOTATION_EPOCH, Names};
use tokio::{sync::watch, time::timeout};

/// Longest wait for an answer of the API.
const CALL: Duration = Duration::from_secs(3);
/// Pauses between attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A slice changed by hand is put back after this.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// A pod that gets traffic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Pod.
    pub pod: String,
    /// Its node.
    pub node: String,
    /// Its address.
    pub address: IpAddr,
}

/// What the holder of an epoch wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Epoch; 0: this instance holds nothing and writes nothing.
    pub epoch: u64,
    /// The primary; none before clients are admitted: the slice is left as it is.
    pub primary: Option<Endpoint>,
    /// The healthy replicas, in order.
    pub replicas: Vec<Endpoint>,
}

/// How a write ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    /// The slice says what it should.
    Done,
    /// It belongs to a higher epoch.
    HigherEpoch(u64),
}

/// A slice could not be written.
#[derive(Debug, thiserror::Error)]
#[error("failed to write the EndpointSlice {slice}: {reason}")]
pub struct SliceError {
    /// Its name.
    pub slice: String,
    /// Why.
    pub reason: String,
}

/// Where the slices are.
pub trait SliceStore: Send + Sync + 'static {
    /// Makes the slice of `service` say these endpoints as of `epoch`.
    fn put(
        &self,
        service: String,
        epoch: u64,
        endpoints: Vec<Endpoint>,
    ) -> BoxFuture<'static, Result<Put, SliceError>>;
}

/// Keeps both slices as the holder wants them, for ever.
pub async fn run(store: Arc<dyn SliceStore>, names: Names, mut desired: watch::Receiver<Desired>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let wanted = desired.borrow_and_update().clone();
        let settled = match apply(&*store, &names, &wanted).await {
            Ok(()) => {
                pause = FIRST_PAUSE;
                if wanted.epoch == 0 { None } else { Some(LOOK_AGAIN) }
            }
            Err(error) => {
                tracing::warn!(%error, epoch = wanted.epoch, "slice not written yet");
                let this = pause;
                pause = (pause * 2).min(LONGEST_PAUSE);
                Some(this)
            }
        };
        let changed = match settled {
            Some(after) => timeout(after, desired.changed()).await.unwrap_or(Ok(())),
            None => desired.changed().await,
        };
        if changed.is_err() {
            return; // the driver has ended
        }
    }
}

async fn apply(store: &dyn SliceStore, names: &Names, wanted: &Desired) -> Result<(), SliceError> {
    let Some(primary) = wanted.primary.clone().filter(|_| wanted.epoch > 0) else { return Ok(()) };
    for (service, endpoints) in
        [(names.primary_service(), vec![primary]), (names.replica_service(), wanted.replicas.clone())]
    {
        match store.put(service.clone(), wanted.epoch, endpoints).await? {
            Put::Done => {}
            Put::HigherEpoch(epoch) => {
                tracing::warn!(
                    service,
                    epoch,
                    mine = wanted.epoch,
                    "slice belongs to a higher epoch, left as it is"
                );
            }
        }
    }
    Ok(())
}

/// The slices in Kubernetes.
#[derive(Clone)]
pub struct KubeSlices {
    api: Api<EndpointSlice>,
    /// As last read or written, so that a change costs one request.
    known: Arc<Mutex<BTreeMap<String, EndpointSlice>>>,
}

impl KubeSlices {
    /// The slices of `namespace`.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), known: Arc::default() }
    }

    fn known(&self, service: &str) -> Option<EndpointSlice> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(service).cloned()
    }

    fn remember(&self, service: &str, slice: Option<EndpointSlice>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match slice {
            Some(slice) => known.insert(service.to_owned(), slice),
            None => known.remove(service),
        };
    }

    async fn write(&self, service: &str, epoch: u64, endpoints: &[Endpoint]) -> Result<Put, SliceError> {
        let failed = |reason: String| SliceError { slice: service.to_owned(), reason };
        for _ in 0..4 {
            let current = match self.known(service) {
                Some(slice) if !says(&slice, epoch, endpoints) => slice,
                // Nothing to change as far as is known: then it is worth a look.
                _ => self.api.get(service).await.map_err(|e| failed(e.to_string()))?,
            };
            match judge(&current, epoch, endpoints) {
                Some(put) => {
                    self.remember(service, Some(current));
                    return Ok(put);
                }
                None => {
                    let next = with(current, epoch, endpoints);
                    match self.api.replace(service, &PostParams::default(), &next).await {
                        Ok(slice) => {
                            self.remember(service, Some(slice));
                            return Ok(Put::Done);
                        }
                        Err(kube::Error::Api(status)) if status.code == 409 => self.remember(service, None),
                        Err(error) => {
                            self.remember(service, None);
                            return Err(failed(error.to_string()));
                        }
                    }
                }
            }
        }
        Err(failed("it changes all the time".into()))
    }
}

impl SliceStore for KubeSlices {
    fn put(
        &self,
        service: String,
        epoch: u64,
        endpoints: Vec<Endpoint>,
    ) -> BoxFuture<'static, Result<Put, SliceError>> {
        let this = self.clone();
        Box::pin(async move {
            match timeout(CALL, this.write(&service, epoch, &endpoints)).await {
                Ok(result) => result,
                Err(_) => {
                    this.remember(&service, None);
                    Err(SliceError { slice: service, reason: "the API did not answer".into() })
                }
            }
        })
    }
}

fn epoch_of(slice: &EndpointSlice) -> u64 {
    let annotations = slice.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(ANNOTATION_EPOCH)).and_then(|e| e.parse().ok()).unwrap_or(0)
}

/// The answer, when nothing is to be written.
fn judge(slice: &EndpointSlice, epoch: u64, endpoints: &[Endpoint]) -> Option<Put> {
    let there = epoch_of(slice);
    if there > epoch {
        return Some(Put::HigherEpoch(there));
    }
    says(slice, epoch, endpoints).then_some(Put::Done)
}

fn says(slice: &EndpointSlice, epoch: u64, endpoints: &[Endpoint]) -> bool {
    epoch_of(slice) == epoch && slice.endpoints == with_endpoints(endpoints)
}

fn with(mut slice: EndpointSlice, epoch: u64, endpoints: &[Endpoint]) -> EndpointSlice {
    slice.endpoints = with_endpoints(endpoints);
    slice.metadata.managed_fields = None;
    slice.metadata.annotations.get_or_insert_default().insert(ANNOTATION_EPOCH.to_owned(), epoch.to_string());
    slice
}

fn with_endpoints(endpoints: &[Endpoint]) -> Vec<ApiEndpoint> {
    let yes = Some(true);
    endpoints
        .iter()
        .map(|e| ApiEndpoint {
            addresses: vec![e.address.to_string()],
            conditions: Some(EndpointConditions { ready: yes, serving: yes, terminating: Some(false) }),
            node_name: (!e.node.is_empty()).then(|| e.node.clone()),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".to_owned()),
                name: Some(e.pod.clone()),
                ..ObjectReference::default()
            }),
            ..ApiEndpoint::default()
        })
        .collect()
}

/// Slices as files, for tests: `slice-SERVICE.json`.
#[cfg(feature = "testing")]
#[derive(Clone, Debug)]
pub struct FileSlices {
    /// Where.
    pub dir: std::path::PathBuf,
}

#[cfg(feature = "testing")]
impl SliceStore for FileSlices {
    fn put(
        &self,
        service: String,
        epoch: u64,
        endpoints: Vec<Endpoint>,
    ) -> BoxFuture<'static, Result<Put, SliceError>> {
        let path = self.dir.join(format!("slice-{service}.json"));
        Box::pin(async move {
            let failed = |reason: String| SliceError { slice: service.clone(), reason };
            let current: EndpointSlice = match std::fs::read(&path) {
                Ok(text) => serde_json::from_slice(&text).map_err(|e| failed(e.to_string()))?,
                Err(_) => EndpointSlice::default(),
            };
            if let Some(put) = judge(&current, epoch, &endpoints) {
                return Ok(put);
            }
            let text =
                serde_json::to_vec(&with(current, epoch, &endpoints)).map_err(|e| failed(e.to_string()))?;
            let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
            std::fs::write(&temporary, text)
                .and_then(|()| std::fs::rename(&temporary, &path))
                .map_err(|e| failed(e.to_string()))?;
            Ok(Put::Done)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(last: u8) -> Endpoint {
        Endpoint { pod: format!("c-17-{last}"), node: "n".into(), address: [10, 0, 0, last].into() }
    }

    #[test]
    fn a_slice_of_a_higher_epoch_is_never_written_over() {
        let theirs = with(EndpointSlice::default(), 8, &[endpoint(1)]);
        assert_eq!(judge(&theirs, 7, &[endpoint(2)]), Some(Put::HigherEpoch(8)));
        assert_eq!(judge(&theirs, 8, &[endpoint(1)]), Some(Put::Done), "written once only");
        assert_eq!(judge(&theirs, 8, &[endpoint(2)]), None);
        assert_eq!(judge(&theirs, 9, &[endpoint(1)]), None, "the epoch goes with it");
        assert_eq!(judge(&EndpointSlice::default(), 1, &[]), None);
    }

    #[test]
    fn what_is_not_ours_stays() {
        let mut slice = EndpointSlice { address_type: "IPv4".into(), ..EndpointSlice::default() };
        slice.metadata.labels = Some([("kubernetes.io/service-name".to_owned(), "c".to_owned())].into());
        slice.metadata.annotations = Some([("other".to_owned(), "kept".to_owned())].into());
        let next = with(slice.clone(), 3, &[endpoint(1)]);
        assert_eq!(next.metadata.labels, slice.metadata.labels);
        assert_eq!(next.address_type, "IPv4");
        assert_eq!(next.metadata.annotations.unwrap()["other"], "kept");
    }
}
