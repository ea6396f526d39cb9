//! The services Agent and Peer: reads come from the last status, everything else is asked of the driver.

use std::time::Duration;

use futures::stream::BoxStream;
use pgwarden_proto::v1::{
    ConfigureRequest, ConfigureResponse, HeartbeatRequest, HeartbeatResponse, InstanceStatus, JoinRequest,
    JoinResponse, StatusRequest, WatchStatusRequest, agent_server::Agent, peer_server::Peer,
};
use tokio::{sync::oneshot, time::timeout};
use tonic::{Request, Response, Status};

use super::{dispatch::Caller, watch};
use crate::bus::{self, Bus};

/// Join makes a slot, Heartbeat only notes a position: a caller that waits longer has given up.
const PEER_ANSWER: Duration = Duration::from_secs(5);
/// Configure writes files and has Postgres reload.
const CONFIGURE_ANSWER: Duration = Duration::from_secs(30);

/// See the interface definition.
pub(super) struct AgentService {
    bus: Bus,
}

/// See the interface definition.
pub(super) struct PeerService {
    bus: Bus,
}

impl AgentService {
    pub(super) const fn new(bus: Bus) -> Self {
        Self { bus }
    }
}

impl PeerService {
    pub(super) const fn new(bus: Bus) -> Self {
        Self { bus }
    }
}

#[tonic::async_trait]
impl Agent for AgentService {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<InstanceStatus>, Status> {
        Ok(Response::new(InstanceStatus::clone(&self.bus.status())))
    }

    type WatchStatusStream = BoxStream<'static, Result<InstanceStatus, Status>>;

    async fn watch_status(
        &self,
        request: Request<WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let interval = watch::interval(request.get_ref().max_interval_ms)?;
        let caller = request.extensions().get::<Caller>();
        let closing = caller.ok_or_else(|| Status::internal("a call without a caller"))?.closing.clone();
        Ok(Response::new(Box::pin(watch::stream(self.bus.status.subscribe(), closing, interval))))
    }

    async fn configure(
        &self,
        request: Request<ConfigureRequest>,
    ) -> Result<Response<ConfigureResponse>, Status> {
        ask(&self.bus, bus::Request::Configure, request.into_inner(), CONFIGURE_ANSWER).await
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        ask(&self.bus, bus::Request::Join, request.into_inner(), PEER_ANSWER).await
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        ask(&self.bus, bus::Request::Heartbeat, request.into_inner(), PEER_ANSWER).await
    }
}

/// Asks the driver and waits for its answer.
async fn ask<Q, A>(
    bus: &Bus,
    request: impl FnOnce(Q, oneshot::Sender<Result<A, Status>>) -> bus::Request,
    question: Q,
    within: Duration,
) -> Result<Response<A>, Status> {
    let (reply, answer) = oneshot::channel();
    let stopping = || Status::unavailable("the agent is stopping");
    let asked = async {
        bus.requests.send(request(question, reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    };
    match timeout(within, asked).await {
        Ok(answer) => answer.map(Response::new),
        Err(_) => {
            Err(Status::deadline_exceeded(format!("the agent did not answer within {} s", within.as_secs())))
        }
    }
}
