//! The holder's view of its replicas: who registered, who lives, who may get read traffic.

use std::{
    collections::BTreeMap,
    future::Future,
    net::IpAddr,
    time::{Duration, Instant},
};

use pgwarden_api::names::member_name;
use pgwarden_ha::View;
use pgwarden_proto::v1::{HeartbeatRequest, HeartbeatResponse, JoinRequest, JoinResponse, Slot};
use tonic::Status;

use super::{
    slices::{Desired, Endpoint},
    status::Reporter,
};
use crate::{
    config::Config,
    postgres::{describe, slots, sql},
};

/// A replica that said nothing for this long gets no read traffic.
const SILENT: Duration = Duration::from_secs(3);
/// The slot of one that is not wanted stays so long after its last word.
const NEW: Duration = Duration::from_secs(20);
/// And after this it is forgotten; its slot stays.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// More instances than a cluster can have, over its whole life within the time above: a bound for memory.
const MOST: usize = 64;

#[derive(Clone, Debug)]
struct Member {
    pod: String,
    node: String,
    address: Option<IpAddr>,
    slot: String,
    serving: bool,
    joined: Instant,
    heard: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Members(BTreeMap<String, Member>);

impl Members {
    /// Registers a replica. The answer comes when its slot is there.
    pub(super) fn join(
        &mut self,
        view: &View,
        config: &Config,
        request: JoinRequest,
    ) -> Result<impl Future<Output = Result<JoinResponse, Status>> + use<>, Status> {
        holder(view)?;
        let instance = uuid::Uuid::try_parse(&request.instance_uuid)
            .map_err(|_| Status::invalid_argument("instance_uuid is not a UUID"))?;
        let slot = member_name(request.ordinal, &instance.to_string());
        if self.0.len() >= MOST && !self.0.contains_key(&request.instance_uuid) {
            return Err(Status::resource_exhausted("too many instances have registered"));
        }
        tracing::info!(pod = request.pod, slot, address = request.address, "replica registers");
        // The same pod with a new directory: its earlier self does not live any more.
        self.0.retain(|uuid, m| m.pod != request.pod || *uuid == request.instance_uuid);
        self.0.insert(
            request.instance_uuid.clone(),
            Member {
                pod: request.pod,
                node: request.node,
                address: request.address.parse().ok(),
                slot: slot.clone(),
                serving: false,
                joined: Instant::now(),
                heard: Instant::now(),
            },
        );
        let answer = JoinResponse {
            slot: slot.clone(),
            epoch: view.epoch.0,
            system_identifier: view.system.map(|s| s.to_string()).unwrap_or_default(),
            timeline: 0,
        };
        let (config, ordinal) = (config.clone(), request.ordinal);
        Ok(async move {
            let failed = |error: &(dyn std::error::Error + 'static)| {
                let error = describe(error);
                tracing::warn!(slot, error, "slot could not be made");
                Status::unavailable(error)
            };
            let session = sql::connect_admin(&config).await.map_err(|e| failed(&e))?;
            slots::ensure(&session, &slot).await.map_err(|e| failed(&e))?;
            // The earlier directories of this pod do not come back.
            let earlier = |m: &slots::Member<'_>| m.ordinal != ordinal || m.name == slot;
            match slots::drop_obsolete(&session, false, earlier).await {
                Ok(dropped) if dropped.is_empty() => {}
                Ok(dropped) => {
                    tracing::info!(slots = dropped.join(","), "slots of earlier directories dropped")
                }
                Err(error) => tracing::warn!(
                    error = describe(&error),
                    "slots of earlier directories could not be dropped"
                ),
            }
            Ok(answer)
        })
    }

    /// Notes where a replica is.
    pub(super) fn heartbeat(
        &mut self,
        view: &View,
        reporter: &Reporter,
        request: &HeartbeatRequest,
    ) -> Result<HeartbeatResponse, Status> {
        holder(view)?;
        let Some(member) = self.0.get_mut(&request.instance_uuid) else {
            return Err(Status::not_found("this instance is not registered here: join first"));
        };
        // It came back after its slot was dropped: it can't stream before it has registered again.
        let slot = reporter.slots().iter().any(|s| s.name == member.slot);
        if !slot && !request.serving && member.joined.elapsed() > SILENT {
            return Err(Status::not_found("this instance has no slot here: join first"));
        }
        member.heard = Instant::now();
        member.serving = request.serving;
        member.address = request.address.parse().ok();
        Ok(HeartbeatResponse { epoch: view.epoch.0, holder: true, flushed_lsn: reporter.flushed() })
    }

    /// Forgets who has been silent for long.
    pub(super) fn expire(&mut self) {
        self.0.retain(|_, m| m.heard.elapsed() < FORGOTTEN);
    }

    /// Slots of instances that a scale-down has removed: nobody comes to read the WAL that they keep.
    /// They are forgotten too: one that comes back registers again, and gets its slot again.
    pub(super) fn surplus(&mut self, reporter: &Reporter, replicas: u32) -> Vec<String> {
        if replicas == 0 {
            return Vec::new();
        }
        // One that has just registered may be new: its pod can be here before its number is.
        let known = |name: &str| self.0.values().any(|m| m.slot == name && m.heard.elapsed() < NEW);
        let surplus = |slot: &&Slot| {
            !slot.active
                && slots::member(&slot.name).is_some_and(|m| m.ordinal >= replicas)
                && !known(&slot.name)
        };
        let surplus: Vec<String> = reporter.slots().iter().filter(surplus).map(|s| s.name.clone()).collect();
        self.0.retain(|_, m| !surplus.contains(&m.slot));
        surplus
    }

    /// What the slices should say: the primary once clients are admitted, and the replicas that live, serve, stream and are not too
    /// far behind.
    pub(super) fn desired(
        &self,
        view: &View,
        config: &Config,
        reporter: &Reporter,
        lag_limit: u64,
    ) -> Desired {
        if !view.serving {
            return Desired::default();
        }
        let me = Endpoint { pod: config.pod.clone(), node: config.node.clone(), address: config.address };
        let mut replicas: Vec<Endpoint> = self
            .0
            .values()
            .filter(|m| m.serving && m.heard.elapsed() < SILENT && m.pod != config.pod)
            .filter(|m| reporter.streams_within(&m.slot, lag_limit))
            .filter_map(|m| Some(Endpoint { pod: m.pod.clone(), node: m.node.clone(), address: m.address? }))
            .collect();
        replicas.sort();
        Desired { epoch: view.epoch.0, primary: Some(me), replicas }
    }
}

/// Drops slots that nobody reads, by name.
pub(super) async fn drop_slots(config: Config, names: Vec<String>) {
    let dropped = async {
        let session = sql::connect_admin(&config).await?;
        slots::drop_obsolete(&session, false, |m| !names.iter().any(|n| n == m.name)).await
    };
    match dropped.await {
        Ok(dropped) => tracing::info!(slots = dropped.join(","), "slots of removed instances dropped"),
        Err(error) => {
            tracing::warn!(error = describe(&error), "slots of removed instances could not be dropped")
        }
    }
}

fn holder(view: &View) -> Result<(), Status> {
    if view.serving {
        return Ok(());
    }
    let known = view.holder.as_ref().map_or("nobody", |h| h.place.pod.as_str());
    Err(Status::failed_precondition(format!(
        "this instance does not serve as primary ({}); the record names {known}",
        view.state
    )))
}
