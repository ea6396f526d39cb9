//! The loop around the protocol core: it feeds what happened, carries out what is asked, and calls again in time.
//!
//! The lease path (renewal, grant) waits on nothing but the record and the supervisor's socket: files, SQL and tools are tasks whose
//! results come back as events.

pub mod events;
mod follow;
mod link;
mod ops;
mod peers;
mod settings;
pub mod slices;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use pgwarden_ha::{self as ha, Effect, Event, Id, Machine, Note, Op, Place, Policy, Timing, View};
use pgwarden_proto::v1;
use pgwarden_supervisor::clock::boottime_ns;
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinHandle},
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use self::{
    events::Recorder,
    link::{Command, Link},
    peers::Members,
    settings::Settings,
    slices::{Desired, SliceStore},
    status::Reporter,
};
use crate::{
    bus::{Bus, Request},
    config::Config,
    metrics, peer,
    postgres::describe,
    record::{Change, RecordStore},
    supervisor::{self, DeathPipe},
    tls,
};

/// First major version that can be run.
const FIRST_VERSION: u32 = 13;
/// A write waits this long for the note that it depends on.
const NOTE_LIMIT: Duration = Duration::from_millis(500);
/// Between two looks at a Postgres that is not ready yet.
const SOON: Duration = Duration::from_millis(200);
/// Seconds between two looks at the mounted application Secret.
const SECRET_LOOK: u32 = 10;

/// What the driver works with.
pub struct Parts {
    /// Who this is.
    pub config: Config,
    /// The record.
    pub record: Arc<dyn RecordStore>,
    /// The slices.
    pub slices: Arc<dyn SliceStore>,
    /// Where decisions are told.
    pub recorder: Recorder,
    /// Certificates.
    pub tls: tls::Store,
    /// Status and requests of the other rooms.
    pub bus: Bus,
    /// The driver's end of the requests.
    pub requests: mpsc::Receiver<Request>,
    /// Counts for the metrics.
    pub deadline: metrics::Deadline,
}

/// What comes back to the loop.
#[allow(clippy::large_enum_variant, reason = "one at a time, and mostly the large one")]
#[derive(Debug)]
enum Fed {
    /// For the protocol.
    Protocol(Event),
    /// There is a supervisor.
    Connected(Box<Link>),
    /// It tells something.
    Supervisor(u64, supervisor::Event),
    /// It is gone.
    Gone(u64),
    /// How Postgres is.
    Snapshot(Box<status::Snapshot>),
    /// New settings are in force, or not.
    Configured(settings::Outcome),
    /// What Postgres objected to in its files.
    Problems(Vec<v1::Problem>),
    /// A start has a death pipe.
    DeathPipe(u64),
    /// No process of this start exists any more.
    Dead(u64),
    /// The application's Secret is in the database, or not.
    AppSecret(Result<String, String>),
    /// What keeps a standby from streaming, if its log tells.
    CannotFollow(Option<v1::Problem>),
}

type Feed = mpsc::UnboundedSender<Fed>;

struct Driver {
    config: Config,
    machine: Machine,
    view: View,
    record: Arc<dyn RecordStore>,
    recorder: Recorder,
    tls: tls::Store,
    bus: Bus,
    deadline: metrics::Deadline,
    peer: peer::Client,
    feed: Feed,
    link: Option<Link>,
    links: u64,
    connecting: Option<JoinHandle<()>>,
    notes: u64,
    op: Option<(Id, AbortHandle)>,
    timing: Timing,
    settings: Settings,
    members: Members,
    slices: watch::Sender<Desired>,
    following: watch::Sender<Option<follow::Target>>,
    reporter: Reporter,
    /// The start whose postmaster runs, for operations that wait for its end.
    running: watch::Sender<Option<u64>>,
    /// Starts with a death pipe; `true`: it has ended.
    pipes: BTreeMap<u64, bool>,
    /// Exited starts that wait for their death pipe.
    dying: BTreeSet<u64>,
    secret_looked: u32,
}

/// Runs the agent until its process ends, or until the container that it looks after has been let go.
pub async fn run(parts: Parts) {
    let Parts { config, record, slices, recorder, tls, bus, mut requests, deadline } = parts;
    let (feed, mut fed) = mpsc::unbounded_channel();
    let settings = Settings::mounted(&config).await;
    let timing = settings.timing();
    let machine = Machine::new(Policy {
        place: Place {
            pod: config.pod.clone(),
            pod_uid: config.pod_uid.clone(),
            node: config.node.clone(),
            address: config.address.to_string(),
        },
        timing,
        unsupported: (config.version < FIRST_VERSION).then_some(config.version),
        seed: ha::InstanceId(uuid::Uuid::new_v4().as_u128()),
        mutant: None,
    });
    let (desired, desired_receiver) = watch::channel(Desired::default());
    let (following, following_receiver) = watch::channel(None);
    let peer = peer::Client::new(&config, tls.clone());
    tokio::spawn(slices::run(slices, config.names(), desired_receiver));
    tokio::spawn(follow::heartbeats(config.clone(), peer.clone(), bus.clone(), following_receiver));
    let mut changes = record.watch();
    let mut driver = Driver {
        view: machine.view(),
        reporter: Reporter::new(&config, feed.clone()),
        machine,
        record,
        recorder,
        tls,
        bus,
        deadline,
        peer,
        feed,
        link: None,
        links: 0,
        connecting: None,
        notes: 0,
        op: None,
        timing,
        settings,
        members: Members::default(),
        slices: desired,
        following,
        running: watch::Sender::new(None),
        pipes: BTreeMap::new(),
        dying: BTreeSet::new(),
        secret_looked: 0,
        config,
    };
    driver.recorder.owner(driver.settings.owner());
    driver.reconnect();
    driver.step(Event::Tick);
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut soon = interval(SOON);
    soon.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let wake = driver.machine.wake().map(|at| at.since(now()));
        tokio::select! {
            biased;
            Some(fed) = fed.recv() => driver.fed(fed),
            Some(change) = changes.next() => driver.step(match change {
                Change::Observed(version, record) => Event::Observed(version, record),
                Change::Deleted => Event::Deleted,
            }),
            () = sleep(wake.unwrap_or_default()), if wake.is_some() => driver.step(Event::Tick),
            Some(request) = requests.recv() => driver.request(request),
            _ = second.tick() => driver.second(),
            // Whoever waits for this instance to be ready need not wait longer than it takes.
            _ = soon.tick(), if driver.starting() => driver.reporter.ask(&driver.view),
        }
    }
}

/// `CLOCK_BOOTTIME`: the clock of deadlines.
fn now() -> ha::Instant {
    ha::Instant::from_nanos(boottime_ns())
}

impl Driver {
    /// One step of the protocol, and what it asks for.
    fn step(&mut self, event: Event) {
        let before = self.machine.view();
        for effect in ha::step(&mut self.machine, event, now()) {
            self.carry_out(effect, before.deadline);
        }
        let view = self.machine.view();
        if (View { deadline: None, ..view.clone() }) != (View { deadline: None, ..self.view.clone() }) {
            if view.state != self.view.state || view.reason != self.view.reason {
                tracing::info!(
                    from = self.view.state,
                    to = view.state,
                    epoch = view.epoch.0,
                    reason = view.reason.as_ref().map(ToString::to_string),
                    "state"
                );
            }
            let running = view.postmaster.map(|p| p.start_id);
            self.running.send_if_modified(|old| std::mem::replace(old, running) != running);
            self.view = view;
            self.retarget();
            self.route();
            self.publish();
        }
    }

    fn carry_out(&mut self, effect: Effect, deadline_before: Option<ha::Instant>) {
        match effect {
            Effect::Read(id) => {
                let read = self.record.get(self.timing.request_timeout);
                let feed = self.feed.clone();
                tokio::spawn(async move {
                    let _ = feed.send(Fed::Protocol(Event::Read(id, read.await)));
                });
            }
            Effect::Write { id, expected, record } => self.write(id, expected, record),
            Effect::SaveNote(note) => self.save_note(note.as_ref()),
            Effect::Grant { epoch, incarnation, deadline } => {
                let mine = self.link.as_ref().map(|l| link::view(&l.status).incarnation);
                if mine != Some(incarnation) {
                    tracing::error!(epoch = epoch.0, "grant for another incarnation was not sent");
                    return;
                }
                if let Some(before) = deadline_before {
                    self.deadline.renewed(before.since(now()), self.timing.fence);
                }
                tracing::debug!(epoch = epoch.0, %deadline, "grant");
                self.command(Command::Grant {
                    epoch: epoch.0,
                    deadline: Duration::from_nanos(deadline.as_nanos()),
                });
            }
            Effect::Begin(id, op) => self.begin(id, op),
            Effect::Abort(id) => {
                if let Some((running, abort)) = &self.op
                    && *running == id
                {
                    abort.abort();
                    self.op = None;
                }
            }
            Effect::KillAll => {
                tracing::warn!("killing every process of the Postgres container");
                self.command(Command::KillAll);
            }
            Effect::Route { epoch } => {
                tracing::info!(epoch = epoch.0, "clients of the primary Service come here")
            }
            Effect::Notify(notice) => self.recorder.tell(&notice),
            Effect::Exit => {
                tracing::info!("the Postgres container may end");
                self.command(Command::Exit);
            }
        }
    }

    fn command(&self, command: Command) {
        match &self.link {
            // The connection has ended: its end is on its way here.
            Some(link) => drop(link.commands.send(command)),
            None => tracing::debug!("no supervisor to tell"),
        }
    }

    /// Sends a write, once the supervisor has the note that it depends on.
    fn write(&self, id: Id, expected: ha::Version, record: ha::Record) {
        let noted = self.link.as_ref().map(|l| l.noted.clone());
        let (number, feed) = (self.notes, self.feed.clone());
        let (store, limit) = (Arc::clone(&self.record), self.timing.request_timeout);
        tracing::debug!(epoch = record.epoch.0, state = ?record.state, expected = expected.token, "write of the record");
        tokio::spawn(async move {
            let ready = match noted {
                Some(mut noted) => {
                    matches!(timeout(NOTE_LIMIT, noted.wait_for(|n| *n >= number)).await, Ok(Ok(_)))
                }
                None => true,
            };
            let outcome = if ready {
                store.replace(expected, record, limit).await
            } else {
                // Never sent, so never applied; "unknown" is on the safe side of that.
                tracing::warn!("write of the record not sent: the supervisor does not take the note");
                ha::Outcome::Unknown
            };
            let _ = feed.send(Fed::Protocol(Event::Written(id, outcome)));
        });
    }

    fn save_note(&mut self, note: Option<&Note>) {
        let bytes = match note.map(serde_json::to_vec).transpose() {
            Ok(bytes) => bytes.unwrap_or_default(),
            Err(error) => {
                // Writes that depend on it will not be sent.
                tracing::error!(%error, "note can't be written");
                self.notes += 1;
                return;
            }
        };
        self.notes += 1;
        self.command(Command::Note { bytes, number: self.notes });
    }

    fn begin(&mut self, id: Id, op: Op) {
        tracing::info!(op = op.name(), "begins");
        let Some(link) = &self.link else { return };
        let context = ops::Context {
            config: self.config.clone(),
            supervisor: link.supervisor.clone(),
            commands: link.commands.clone(),
            peer: self.peer.clone(),
            settings: self.settings.current(),
            system: self.machine.view().system,
            feed: self.feed.clone(),
            link: link.number,
            running: self.running.subscribe(),
        };
        let feed = self.feed.clone();
        let task = tokio::spawn(async move {
            let name = op.name();
            let result = ops::run(&context, op).await;
            if let Err(error) = &result {
                tracing::warn!(op = name, error, "failed");
            }
            let _ = feed.send(Fed::Protocol(Event::Finished(id, result)));
        });
        self.op = Some((id, task.abort_handle()));
    }

    fn fed(&mut self, fed: Fed) {
        match fed {
            Fed::Protocol(event) => self.step(event),
            Fed::Connected(link) => self.connected(*link),
            Fed::Supervisor(number, event) => {
                if self.link.as_ref().is_some_and(|l| l.number == number) {
                    self.told(&event);
                }
            }
            Fed::Gone(number) => {
                if self.link.as_ref().is_some_and(|l| l.number == number) {
                    self.link = None;
                    if let Some((_, abort)) = self.op.take() {
                        abort.abort();
                    }
                    self.step(Event::Disconnected);
                    self.reconnect();
                }
            }
            Fed::Snapshot(snapshot) => {
                self.reporter.take(*snapshot);
                self.route();
                self.publish();
            }
            Fed::Problems(problems) => {
                self.reporter.found(problems);
                self.publish();
            }
            Fed::CannotFollow(problem) => {
                self.reporter.cannot_follow(problem);
                self.publish();
            }
            Fed::DeathPipe(start_id) => drop(self.pipes.insert(start_id, false)),
            Fed::Dead(start_id) => {
                if let Some(ended) = self.pipes.get_mut(&start_id) {
                    *ended = true;
                }
                if self.dying.remove(&start_id) {
                    self.exited(start_id);
                }
            }
            Fed::AppSecret(result) => {
                self.reporter.secret_problem = None;
                match result {
                    Ok(hash) => self.reporter.app_secret = hash,
                    Err(message) => {
                        let reason = "AppSecretNotApplied".to_owned();
                        self.reporter.secret_problem = Some(v1::Problem { reason, message });
                    }
                }
                self.publish();
            }
            Fed::Configured(outcome) => {
                self.settings.configured(outcome);
                self.recorder.owner(self.settings.owner());
                let timing = self.settings.timing();
                if timing != self.timing {
                    self.timing = timing;
                    self.step(Event::Timing(timing));
                }
                self.publish();
            }
        }
    }

    fn reconnect(&mut self) {
        self.links += 1;
        let task = tokio::spawn(link::connect(self.config.clone(), self.links, self.feed.clone()));
        self.connecting = Some(task);
    }

    fn connected(&mut self, link: Link) {
        let status = link.status.clone();
        tracing::info!(
            incarnation = %status.incarnation,
            version = status.version,
            postmaster = status.postmaster.map(|p| p.pid),
            epoch = status.postmaster.map(|p| p.epoch),
            sigterm = status.sigterm,
            "connected to the supervisor"
        );
        let skew = boottime_ns().abs_diff(status.boottime_ns);
        if skew > 1_000_000_000 {
            tracing::warn!(skew_ms = skew / 1_000_000, "the supervisor's clock differs, or it answered late");
        }
        let note = serde_json::from_slice::<Note>(&status.note).ok();
        self.notes = 0;
        self.reporter.supervisor_version(&status.version);
        self.link = Some(link);
        self.pipes.clear();
        self.dying.clear();
        if status.sigterm {
            self.command(Command::Ack);
        }
        self.step(Event::Connected(link::view(&status), note));
    }

    fn told(&mut self, event: &supervisor::Event) {
        match event {
            supervisor::Event::PostmasterExited(exit) => {
                tracing::warn!(start = exit.start_id, exit = %exit.exit, drained = exit.drained, "postmaster exited");
                // With `drained` every process was seen gone. Else the death pipe's end says so; an adopted postmaster has no pipe here,
                // but SIGKILL is pending in whatever is left of it.
                match self.pipes.get(&exit.start_id) {
                    Some(false) if !exit.drained => drop(self.dying.insert(exit.start_id)),
                    _ => self.exited(exit.start_id),
                }
            }
            supervisor::Event::SigTerm => {
                self.command(Command::Ack);
                self.step(Event::SigTerm);
            }
            other => {
                if let Some(event) = link::event(other) {
                    self.step(event);
                }
            }
        }
    }

    fn exited(&mut self, start_id: u64) {
        self.pipes.remove(&start_id);
        self.step(Event::Exited { start_id });
    }

    /// Every second: how Postgres is, and whether what is mounted has changed.
    fn second(&mut self) {
        self.settings.look(&self.config, self.link.as_ref().map(|l| &l.supervisor), &self.feed);
        self.reporter.ask(&self.view);
        self.members.expire();
        if self.reporter.look_why(&self.view)
            && let Some(link) = &self.link
        {
            tokio::spawn(status::why_not_following(
                self.config.clone(),
                link.supervisor.clone(),
                self.feed.clone(),
            ));
        }
        self.secret_looked += 1;
        if self.view.serving && self.secret_looked >= SECRET_LOOK {
            self.secret_looked = 0;
            tokio::spawn(ops::app_secret(self.config.clone(), self.settings.current(), self.feed.clone()));
            let surplus = self.members.surplus(&self.reporter, self.settings.replicas());
            if !surplus.is_empty() {
                tokio::spawn(peers::drop_slots(self.config.clone(), surplus));
            }
        }
        self.route();
        self.publish();
    }

    /// Postgres runs in a role, and is not known to be ready.
    fn starting(&self) -> bool {
        (self.view.serving || self.view.following.is_some()) && !self.bus.status.borrow().ready
    }

    /// Whom the heartbeats go to.
    fn retarget(&self) {
        let target = follow::Target::of(&self.view, &self.config, self.timing);
        self.following.send_if_modified(|old| {
            let changed = *old != target;
            *old = target;
            changed
        });
    }

    /// What the slices should say.
    fn route(&self) {
        let desired =
            self.members.desired(&self.view, &self.config, &self.reporter, self.settings.lag_limit());
        self.slices.send_if_modified(|old| {
            let changed = *old != desired;
            *old = desired;
            changed
        });
    }

    fn publish(&self) {
        let status = self.reporter.assemble(&self.config, &self.view, &self.settings, &self.tls);
        self.bus.status.send_if_modified(|old| {
            let changed = **old != status;
            if changed {
                *old = Arc::new(status);
            }
            changed
        });
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Join(request, reply) => {
                let answer = self.members.join(&self.view, &self.config, request);
                match answer {
                    Ok(join) => drop(tokio::spawn(async move {
                        let _ = reply.send(join.await);
                    })),
                    Err(status) => drop(reply.send(Err(status))),
                }
            }
            Request::Heartbeat(request, reply) => {
                let known = self.members.heartbeat(&self.view, &self.reporter, &request);
                let _ = reply.send(known);
            }
            Request::Configure(request, reply) => {
                self.settings.push(
                    &self.config,
                    self.link.as_ref().map(|l| &l.supervisor),
                    request,
                    reply,
                    &self.feed,
                );
            }
            Request::CertificatesChanged => {
                tracing::info!("certificates changed, Postgres reloads");
                self.command(Command::Reload);
            }
        }
    }
}

/// Waits for the death pipe of a start, and tells the driver.
fn watch_death(start_id: u64, death: Arc<DeathPipe>, feed: Feed) {
    tokio::spawn(async move {
        if let Err(error) = death.eof().await {
            tracing::warn!(start_id, error = describe(&error), "death pipe can't be read");
        }
        let _ = feed.send(Fed::Dead(start_id));
    });
}
