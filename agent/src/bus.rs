//! The only channels between the agent's rooms: the driver publishes one status, and answers requests.

use std::sync::Arc;

use pgwarden_proto::v1;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

/// Handed to every room; cheap to clone.
#[derive(Clone, Debug)]
pub struct Bus {
    /// The last status of this instance; written by the driver alone.
    pub status: watch::Sender<Arc<v1::InstanceStatus>>,
    /// What the driver is asked.
    pub requests: mpsc::Sender<Request>,
}

/// Answered by the driver. A dropped reply channel means that the driver has gone: UNAVAILABLE.
#[derive(Debug)]
pub enum Request {
    /// A replica registers with the holder.
    Join(v1::JoinRequest, oneshot::Sender<Result<v1::JoinResponse, Status>>),
    /// A replica tells its position.
    Heartbeat(v1::HeartbeatRequest, oneshot::Sender<Result<v1::HeartbeatResponse, Status>>),
    /// The controller pushes settings.
    Configure(v1::ConfigureRequest, oneshot::Sender<Result<v1::ConfigureResponse, Status>>),
    /// Certificates were renewed and copied into the directory that Postgres reads: it must reload.
    CertificatesChanged,
}

impl Bus {
    /// A bus, and the driver's end of its requests.
    #[must_use]
    pub fn new(status: v1::InstanceStatus) -> (Self, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(64);
        (Self { status: watch::Sender::new(Arc::new(status)), requests }, receiver)
    }

    /// The last status.
    #[must_use]
    pub fn status(&self) -> Arc<v1::InstanceStatus> {
        Arc::clone(&self.status.borrow())
    }
}
