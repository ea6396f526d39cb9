//! What this instance reports: the protocol's view, the last look at Postgres, and what needs a person.

use std::time::{Duration, Instant};

use pgwarden_ha::{Mode, View};
use pgwarden_proto::v1::{Disk, InstanceStatus, Lsn, Problem, Role, Slot, Versions};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::timeout,
};

use super::{Fed, Feed, settings::Settings};
use crate::{
    config::Config,
    postgres::{
        datadir, describe,
        snapshot::{Poller, Snapshot as Look},
    },
    record::convert::uuid_text,
    supervisor::Supervisor,
    tls,
};

/// A look at Postgres that takes longer counts as none.
const LIMIT: Duration = Duration::from_secs(3);
/// A look this old says nothing any more.
const STALE: Duration = Duration::from_secs(5);
/// A standby that has not streamed for so many seconds is asked why, and again after as many.
const WHY: u32 = 5;
/// How often the volume is measured.
const DISK: Duration = Duration::from_secs(10);

/// How Postgres and the volume are.
#[derive(Debug)]
pub(super) struct Snapshot {
    look: Option<Look>,
    disk: Option<Disk>,
}

/// Asks for looks, keeps the last, and puts the status together.
#[derive(Debug)]
pub(super) struct Reporter {
    started: Instant,
    supervisor: String,
    last: Option<(Instant, Look)>,
    disk: Option<Disk>,
    asks: mpsc::Sender<Ask>,
    problems: Vec<Problem>,
    /// Seconds that a standby has not streamed.
    idle: u32,
    cannot_follow: Option<Problem>,
    pub(super) app_secret: String,
    pub(super) secret_problem: Option<Problem>,
}

#[derive(Clone, Copy, Debug)]
struct Ask {
    running: bool,
}

impl Reporter {
    pub(super) fn new(config: &Config, feed: Feed) -> Self {
        let (asks, receiver) = mpsc::channel(1);
        tokio::spawn(look(config.clone(), receiver, feed));
        Self {
            started: Instant::now(),
            supervisor: String::new(),
            last: None,
            disk: None,
            asks,
            problems: Vec::new(),
            idle: 0,
            cannot_follow: None,
            app_secret: String::new(),
            secret_problem: None,
        }
    }

    pub(super) fn supervisor_version(&mut self, version: &str) {
        version.clone_into(&mut self.supervisor);
    }

    /// Asks for a look; nothing when one is under way.
    pub(super) fn ask(&self, view: &View) {
        match self.asks.try_send(Ask { running: view.postmaster.is_some() }) {
            Ok(()) | Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Closed(_)) => tracing::error!("nobody looks at postgres any more"),
        }
    }

    pub(super) fn take(&mut self, snapshot: Snapshot) {
        self.last = snapshot.look.map(|look| (Instant::now(), look));
        self.disk = snapshot.disk.or_else(|| self.disk.take());
    }

    /// What Postgres objected to at its last start or reload.
    pub(super) fn found(&mut self, problems: Vec<Problem>) {
        self.problems = problems;
    }

    /// What keeps this standby from streaming.
    pub(super) fn cannot_follow(&mut self, problem: Option<Problem>) {
        if let Some(problem) = problem.as_ref().filter(|_| self.cannot_follow.is_none()) {
            tracing::warn!(reason = problem.reason, message = problem.message, "this standby can't follow");
        }
        self.cannot_follow = problem;
    }

    /// Once a second: whether it is time to look why a standby does not stream.
    pub(super) fn look_why(&mut self, view: &View) -> bool {
        if view.following.is_none() || self.look().is_some_and(Look::streaming) {
            self.idle = 0;
            self.cannot_follow = None;
            return false;
        }
        self.idle = self.idle.saturating_add(1);
        self.idle.is_multiple_of(WHY)
    }

    fn look(&self) -> Option<&Look> {
        self.last.as_ref().filter(|(at, _)| at.elapsed() < STALE).map(|(_, look)| look)
    }

    /// The primary's flushed position.
    pub(super) fn flushed(&self) -> u64 {
        self.look().map_or(0, |look| look.lsn.flushed)
    }

    /// The slots, as last seen.
    pub(super) fn slots(&self) -> &[Slot] {
        self.look().map_or(&[], |look| &look.slots)
    }

    /// Whether the member of this name streams from here, and is not further behind than this.
    pub(super) fn streams_within(&self, name: &str, bytes: u64) -> bool {
        self.look().is_some_and(|look| {
            look.replication.iter().any(|r| {
                r.application_name == name
                    && r.state == "streaming"
                    && u64::try_from(r.lag_bytes).is_ok_and(|lag| lag <= bytes)
            })
        })
    }

    pub(super) fn assemble(
        &self,
        config: &Config,
        view: &View,
        settings: &Settings,
        tls: &tls::Store,
    ) -> InstanceStatus {
        let look = self.look();
        let standby = view.following.is_some() && view.postmaster.is_some_and(|p| p.mode == Mode::Standby);
        let role = match (view.primary, standby) {
            (true, _) => Role::Primary,
            (false, true) => Role::Replica,
            (false, false) => Role::None,
        };
        let streaming = look.is_some_and(Look::streaming);
        let ready = match role {
            Role::Primary => view.serving && look.is_some_and(|l| !l.in_recovery),
            Role::Replica => streaming,
            Role::None | Role::Unspecified => false,
        };
        InstanceStatus {
            cluster: config.cluster.clone(),
            namespace: config.namespace.clone(),
            pod: config.pod.clone(),
            instance_uuid: view.instance.map(uuid_text).unwrap_or_default(),
            role: role.into(),
            state: view.state.to_owned(),
            reason: view.reason.as_ref().map(ToString::to_string).unwrap_or_default(),
            ready,
            epoch: view.epoch.0,
            system_identifier: view.system.map(|s| s.to_string()).unwrap_or_default(),
            timeline: look.map_or(0, |l| l.timeline),
            lsn: Some(look.map_or_else(Lsn::default, |l| l.lsn)),
            replay_lag_bytes: look.map_or(-1, |l| l.replay_lag_bytes),
            replay_lag_seconds: look.map_or(-1.0, |l| l.replay_lag_seconds),
            streaming,
            replication: look.map(|l| l.replication.clone()).unwrap_or_default(),
            slots: look.map(|l| l.slots.clone()).unwrap_or_default(),
            pending_restart: look.map(|l| l.slow.pending_restart.clone()).unwrap_or_default(),
            disk: self.disk.map(|d| Disk { wal_bytes: look.map_or(0, |l| l.slow.wal_bytes), ..d }),
            versions: Some(Versions {
                postgres: look.map(|l| l.slow.version.clone()).unwrap_or_default(),
                agent: env!("CARGO_PKG_VERSION").to_owned(),
                supervisor: self.supervisor.clone(),
            }),
            postgres_uptime_seconds: look.map_or(0.0, |l| l.uptime_seconds),
            agent_uptime_seconds: self.started.elapsed().as_secs_f64().floor(),
            config_hash: settings.hash().to_owned(),
            problems: self.all_problems(view, settings, tls, look),
            certificates: tls.hashes(),
            app_secret_hash: self.app_secret.clone(),
            connections: look.map(|l| l.connections),
            address: config.address.to_string(),
            node: config.node.clone(),
        }
    }

    fn all_problems(
        &self,
        view: &View,
        settings: &Settings,
        tls: &tls::Store,
        look: Option<&Look>,
    ) -> Vec<Problem> {
        let mut problems: Vec<Problem> = Vec::new();
        if let Some(reason) = view.reason.as_ref().filter(|r| r.is_problem()) {
            problems.push(Problem { reason: reason.name().to_owned(), message: reason.to_string() });
        }
        if view.record_missing && view.reason.is_none() {
            problems.push(Problem {
                reason: "RecordMissing".to_owned(),
                message:
                    "the record of this cluster is gone; the primary serves on, nothing else can be decided"
                        .to_owned(),
            });
        }
        problems.extend(self.problems.iter().chain(settings.problems()).chain(&self.secret_problem).cloned());
        problems.extend(self.cannot_follow.clone());
        problems.extend(tls.problems());
        problems.extend(look.map(|l| l.slow.problems.clone()).unwrap_or_default());
        let mut seen = std::collections::BTreeSet::new();
        problems.retain(|p| seen.insert((p.reason.clone(), p.message.clone())));
        problems
    }
}

/// Reads the end of Postgres' log for what the primary answers.
pub(super) async fn why_not_following(config: Config, supervisor: Supervisor, feed: Feed) {
    let tail = supervisor.log_tail(false).await.unwrap_or_default();
    let _ = feed.send(Fed::CannotFollow(wal_removed(&config, &tail)));
}

/// The primary has removed WAL that this standby has not received: it would never catch up.
fn wal_removed(config: &Config, log: &str) -> Option<Problem> {
    let last: Vec<&str> = log.lines().rev().take(10).collect();
    let line =
        last.iter().find(|l| l.contains("requested WAL segment") && l.contains("already been removed"))?;
    let said = line.split_once("ERROR:").map_or(*line, |(_, said)| said).trim();
    let pod = &config.pod;
    Some(Problem {
        reason: "CannotFollow".to_owned(),
        message: format!(
            "the WAL that this replica needs is no longer on the primary ({said}): delete the volume claim data-{pod} and the pod {pod}, and it is copied anew"
        ),
    })
}

/// Looks when asked, one look at a time.
async fn look(config: Config, mut asks: mpsc::Receiver<Ask>, feed: Feed) {
    let mut poller = Poller::default();
    let mut measured: Option<Instant> = None;
    let mut well = true;
    while let Some(ask) = asks.recv().await {
        let disk = if measured.is_none_or(|at| at.elapsed() >= DISK) {
            measured = Some(Instant::now());
            // A hung disk does not answer; that is what the limit is for.
            timeout(LIMIT, datadir::disk(&config)).await.ok().and_then(Result::ok)
        } else {
            None
        };
        let look = if ask.running {
            match timeout(LIMIT, poller.take(&config)).await {
                Ok(Ok(look)) => {
                    well = true;
                    Some(look)
                }
                Ok(Err(error)) => {
                    if well {
                        tracing::info!(error = describe(&error), "postgres could not be looked at");
                    }
                    well = false;
                    None
                }
                Err(_) => {
                    if well {
                        tracing::warn!("postgres does not answer");
                    }
                    well = false;
                    poller.close();
                    None
                }
            }
        } else {
            poller.close();
            None
        };
        if feed.send(Fed::Snapshot(Box::new(Snapshot { look, disk }))).is_err() {
            return;
        }
    }
}
