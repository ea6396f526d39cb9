//! A replica's heartbeats to the holder: where it is, whether it serves. The holder's answer renews nothing; it only says who it is.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use pgwarden_ha::{InstanceId, Timing, View};
use pgwarden_proto::v1::{HeartbeatRequest, JoinRequest, Role};
use tokio::{sync::watch, time::timeout};

use crate::{
    bus::Bus,
    config::Config,
    peer::{self, PeerError},
    record::convert::uuid_text,
};

/// Whom heartbeats go to, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    instance: InstanceId,
    address: SocketAddr,
    epoch: u64,
    promised: u64,
    period: Duration,
}

impl Target {
    /// While this instance runs as a standby of somebody else.
    pub(super) fn of(view: &View, config: &Config, timing: Timing) -> Option<Self> {
        let (upstream, epoch) = view.following?;
        let holder = view.holder.as_ref().filter(|h| h.instance == upstream)?;
        let address: IpAddr = holder.place.address.parse().ok()?;
        Some(Self {
            instance: view.instance?,
            address: SocketAddr::new(address, config.agent_port),
            epoch: epoch.0,
            promised: view.promised.0,
            period: timing.heartbeat,
        })
    }
}

/// What a replica says of itself when it registers.
pub(super) fn join_request(config: &Config, instance: InstanceId) -> JoinRequest {
    JoinRequest {
        instance_uuid: uuid_text(instance),
        pod: config.pod.clone(),
        ordinal: config.ordinal,
        address: config.address.to_string(),
        node: config.node.clone(),
    }
}

/// Sends them while there is a target, for ever.
pub(super) async fn heartbeats(
    config: Config,
    client: peer::Client,
    bus: Bus,
    mut targets: watch::Receiver<Option<Target>>,
) {
    let mut well = true;
    loop {
        let target = targets.borrow_and_update().clone();
        let Some(target) = target else {
            if targets.changed().await.is_err() {
                return;
            }
            continue;
        };
        match client.heartbeat(target.address, request(&config, &target, &bus)).await {
            Ok(answer) => {
                if !well || !answer.holder {
                    tracing::info!(to = %target.address, epoch = answer.epoch, holder = answer.holder, "heartbeat answered");
                }
                well = true;
            }
            // The holder does not know this instance (it was started again): its slot is made sure of.
            Err(PeerError::Refused { status, .. }) if status.code() == tonic::Code::NotFound => {
                match client.join(target.address, join_request(&config, target.instance)).await {
                    Ok(answer) => {
                        tracing::info!(to = %target.address, slot = answer.slot, "registered with the holder")
                    }
                    Err(error) => tracing::warn!(%error, "could not register with the holder"),
                }
            }
            Err(error) => {
                if well {
                    tracing::warn!(%error, "heartbeat not answered");
                }
                well = false;
            }
        }
        // A changed target is told at once.
        if let Ok(Err(_)) = timeout(target.period, targets.changed()).await {
            return;
        }
    }
}

fn request(config: &Config, target: &Target, bus: &Bus) -> HeartbeatRequest {
    let status = bus.status();
    HeartbeatRequest {
        instance_uuid: uuid_text(target.instance),
        pod: config.pod.clone(),
        ordinal: config.ordinal,
        address: config.address.to_string(),
        promised_epoch: target.promised,
        lsn: status.lsn,
        timeline: status.timeline,
        serving: status.ready && status.role() == Role::Replica,
    }
}
