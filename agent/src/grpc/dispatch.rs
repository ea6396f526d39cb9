//! One call: allowed or not, then handed to its service.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use pgwarden_proto::{
    identity::CertRole,
    v1::{agent_server::AgentServer, peer_server::PeerServer},
};
use tokio::sync::{Semaphore, watch};
use tonic::{Status, body::Body, codegen::Service, server::NamedService};
use tonic_health::pb::health_server::{Health, HealthServer};

use super::{GrpcError, MAX_MESSAGE, MAX_PEER_MESSAGE, agent, limits::Quiet, methods};
use crate::{
    bus::Bus,
    tls::{IdentityError, Store},
};

/// Who calls: in the extensions of every request.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// The role in the certificate, or why it has none here.
    pub(super) role: Result<CertRole, IdentityError>,
    pub(super) address: SocketAddr,
    /// True when this connection is being let go: streams end.
    pub(super) closing: watch::Receiver<bool>,
}

type Handler = Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// All services behind one door.
#[derive(Clone)]
pub(super) struct Dispatch(Arc<Inner>);

struct Inner {
    services: Vec<(&'static str, Handler)>,
    /// One a line of the table.
    places: Vec<Semaphore>,
    store: Store,
    quiet: Quiet,
}

impl Dispatch {
    pub(super) fn new(
        store: &Store,
        bus: &Bus,
        health: HealthServer<impl Health>,
    ) -> Result<Self, GrpcError> {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(pgwarden_proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let failed = |error: tonic_reflection::server::Error| GrpcError::Reflection(error.to_string());
        let agent = AgentServer::new(agent::AgentService::new(bus.clone()))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let peer = PeerServer::new(agent::PeerService::new(bus.clone()))
            .max_decoding_message_size(MAX_PEER_MESSAGE)
            .max_encoding_message_size(MAX_PEER_MESSAGE);
        let v1 = reflection().build_v1().map_err(failed)?.max_decoding_message_size(MAX_PEER_MESSAGE);
        let v1alpha =
            reflection().build_v1alpha().map_err(failed)?.max_decoding_message_size(MAX_PEER_MESSAGE);
        let services = vec![
            service(agent),
            service(peer),
            service(health.max_decoding_message_size(MAX_PEER_MESSAGE)),
            service(v1),
            service(v1alpha),
        ];
        let places = methods::METHODS.iter().map(|method| Semaphore::new(method.at_once)).collect();
        Ok(Self(Arc::new(Inner { services, places, store: store.clone(), quiet: Quiet::new() })))
    }

    /// Answers one call; a refusal is an answer too.
    pub(super) async fn call(
        self,
        caller: Caller,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        Ok(self.answer(caller, request).await.unwrap_or_else(|status| status.into_http()))
    }

    async fn answer(&self, caller: Caller, mut request: Request<Incoming>) -> Result<Response<Body>, Status> {
        let path = request.uri().path();
        let allowed = caller
            .role
            .clone()
            .map_err(|error| Status::permission_denied(error.to_string()))
            .and_then(|role| methods::authorise(path, role));
        let index = allowed.inspect_err(|status| self.denied(&caller, path, status))?;
        let _place =
            self.0.places.get(index).and_then(|places| places.try_acquire().ok()).ok_or_else(|| {
                Status::resource_exhausted(format!(
                    "too many calls of {} at once, try again",
                    path.trim_start_matches('/')
                ))
            })?;
        let name = path.split('/').nth(1).unwrap_or_default();
        let handler =
            self.0.services.iter().find(|(service, _)| *service == name).map(|(_, handler)| handler);
        let handler = handler.ok_or_else(|| Status::unimplemented(format!("there is no service {name}")))?;
        tracing::debug!(address = %caller.address, path, "call");
        request.extensions_mut().insert(caller);
        Ok(handler(request).await)
    }

    fn denied(&self, caller: &Caller, path: &str, status: &Status) {
        self.0.store.counters().calls_denied.fetch_add(1, Relaxed);
        if let Some(held) = self.0.quiet.pass() {
            tracing::warn!(address = %caller.address, path, reason = status.message(), held, "call denied");
        }
    }
}

fn service<S>(service: S) -> (&'static str, Handler)
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let handler: Handler = Arc::new(move |request| {
        let mut service = service.clone();
        Box::pin(async move {
            // The generated services are always ready, and never fail but in the answer.
            match service.call(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        })
    });
    (S::NAME, handler)
}
