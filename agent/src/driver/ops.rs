//! What takes time: each operation of the protocol, as one future that can be dropped.

use std::{net::IpAddr, time::Duration};

use pgwarden_api::names::member_name;
use pgwarden_ha::{
    Data, Directory, Epoch, Event, InstanceId, Mode, Op, Output, Postmaster, SystemId, Upstream,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};

use super::{Fed, Feed, follow, link::Command, settings::Current, watch_death};
use crate::{
    config::Config,
    peer,
    postgres::{
        clone::{self, Source},
        datadir::{self, Found, Identity, Phase},
        describe, initdb,
        roles::{self, AppSecret},
        settings,
        settings::Follow,
        sql::{self, Timeouts},
    },
    record::convert::{instance, uuid_text},
    supervisor::{StartRequest, StopMode, Supervisor},
};

/// Between two looks at a starting Postgres.
const LOOK: Duration = Duration::from_millis(20);
/// A checkpoint before a planned stop: clients are served meanwhile.
const CHECKPOINT: Duration = Duration::from_secs(20);
/// A fast stop, and then an immediate one.
const FAST_STOP: Duration = Duration::from_secs(10);
const IMMEDIATE_STOP: Duration = Duration::from_secs(2);
/// A copy waits this long for its source to serve; then the operation fails and is begun again.
const SOURCE: Duration = Duration::from_secs(20);
/// Between two attempts to register with a source that does not serve yet.
const JOIN_PAUSE: Duration = Duration::from_millis(50);

/// Out of recovery the last checkpoint may still be of the timeline before.
const TIMELINE: &str = "\
    SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() THEN timeline_id \
      ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int4 END \
    FROM pg_control_checkpoint()";

/// What operations work with.
pub(super) struct Context {
    pub(super) config: Config,
    pub(super) supervisor: Supervisor,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) peer: peer::Client,
    pub(super) settings: Current,
    pub(super) system: Option<SystemId>,
    pub(super) feed: Feed,
    /// The start whose postmaster runs.
    pub(super) running: watch::Receiver<Option<u64>>,
}

/// What went wrong, with its causes, for a person.
type Failure = String;

fn because(error: impl std::error::Error + 'static) -> Failure {
    describe(&error)
}

/// Runs one operation to its end. Dropping the future gives it up: tools are killed, a postmaster that was asked for is still told of.
pub(super) async fn run(context: &Context, op: Op) -> Result<Output, Failure> {
    match op {
        Op::Lock => {
            let path = datadir::lock_path(&context.config);
            context.supervisor.lock(&path).await.map_err(because)?;
            Ok(Output::Done)
        }
        Op::Inspect => inspect(&context.config).await.map(Output::Directory),
        Op::SetAside { .. } => {
            datadir::set_aside(&context.config).await.map_err(because)?;
            Ok(Output::Done)
        }
        Op::Initdb { instance } => context.initdb(instance).await,
        Op::Clone { instance, from } => context.clone_from(instance, &from).await,
        Op::Follow { instance, upstream, running } => context.follow(instance, &upstream, running).await,
        Op::Primary { instance, epoch, running } => context.primary(instance, epoch, running).await,
        Op::Open { .. } => context.open().await,
        Op::Stop { mode } => context.stop(mode).await,
    }
}

/// Makes the roles, and puts the application's Secret into the database; a Secret that can't be used is told, and no failure.
async fn ensure_roles(config: &Config, settings: &Current, feed: &Feed) -> Result<(), Failure> {
    let told = match AppSecret::load(config, &settings.files.agent.app_database).await {
        Ok(secret) => {
            roles::ensure(config, secret.as_ref()).await.map_err(because)?;
            Ok(secret.as_ref().map(AppSecret::hash).unwrap_or_default())
        }
        Err(error) => {
            roles::ensure(config, None).await.map_err(because)?;
            Err(because(error))
        }
    };
    let _ = feed.send(Fed::AppSecret(told));
    Ok(())
}

/// Now and then on the primary: has the mounted Secret changed?
pub(super) async fn app_secret(config: Config, settings: Current, feed: Feed) {
    if let Err(error) = ensure_roles(&config, &settings, &feed).await {
        tracing::warn!(error, "roles could not be looked at");
    }
}

/// What is on the volume, in the protocol's terms.
pub(super) async fn inspect(config: &Config) -> Result<Directory, Failure> {
    let found = datadir::inspect(config).await.map_err(because)?;
    tracing::info!(found = ?found, "data directory");
    Ok(match found {
        Found::Empty { .. } | Found::Interrupted { what: Phase::Initdb | Phase::Clone, .. } => {
            Directory::Empty
        }
        Found::Interrupted { what: Phase::Rewind | Phase::Complete, .. } => {
            Directory::Foreign { why: "a pg_rewind was interrupted: the directory is of no use".to_owned() }
        }
        Found::Complete { identity, control, .. } => complete(&identity, control.system_identifier)?,
        Found::Foreign { why, .. } => Directory::Foreign { why },
    })
}

fn complete(identity: &Identity, system: u64) -> Result<Directory, Failure> {
    Ok(Directory::Complete(Data {
        instance: instance("instance.json", &identity.uuid).map_err(because)?,
        promised: Epoch(identity.promised_epoch),
        system: SystemId(system),
    }))
}

impl Context {
    async fn initdb(&self, instance: InstanceId) -> Result<Output, Failure> {
        let config = &self.config;
        let identity =
            datadir::begin(config, Phase::Initdb, &uuid_text(instance), 0).await.map_err(because)?;
        let arguments = &self.settings.files.agent.initdb;
        let (identity, control) =
            initdb::run(config, &self.supervisor, &identity, arguments).await.map_err(because)?;
        Ok(Output::Directory(complete(&identity, control.system_identifier)?))
    }

    async fn clone_from(&self, instance: InstanceId, from: &Upstream) -> Result<Output, Failure> {
        let config = &self.config;
        let upstream = self.upstream(from)?;
        let system_identifier =
            self.system.ok_or_else(|| "the cluster has no system identifier yet".to_owned())?.0;
        let slot = self.register(instance, upstream.address).await?;
        let identity = datadir::begin(config, Phase::Clone, &uuid_text(instance), from.epoch.0)
            .await
            .map_err(because)?;
        let source = Source { upstream, slot, system_identifier };
        let (identity, control) =
            clone::run(config, &self.supervisor, &identity, &source, |_| {}).await.map_err(because)?;
        Ok(Output::Directory(complete(&identity, control.system_identifier)?))
    }

    /// Has the holder make the slot; waits until it serves.
    async fn register(&self, instance: InstanceId, address: IpAddr) -> Result<String, Failure> {
        let agent = (address, self.config.agent_port).into();
        let request = follow::join_request(&self.config, instance);
        let end = Instant::now() + SOURCE;
        loop {
            match self.peer.join(agent, request.clone()).await {
                Ok(answer) => return Ok(answer.slot),
                Err(error) if Instant::now() >= end => return Err(because(error)),
                Err(error) => {
                    tracing::debug!(%error, "the source does not serve yet");
                    sleep(JOIN_PAUSE).await;
                }
            }
        }
    }

    fn upstream(&self, of: &Upstream) -> Result<clone::Upstream, Failure> {
        let place = &of.holder.place;
        let address = place
            .address
            .parse()
            .map_err(|_| format!("the record has no usable address of {}: {:?}", place.pod, place.address))?;
        Ok(clone::Upstream {
            host: self.config.pod_dns(&place.pod),
            address,
            port: self.config.postgres_port,
        })
    }

    async fn promise(&self, instance: InstanceId, epoch: Epoch) -> Result<(), Failure> {
        match datadir::inspect(&self.config).await.map_err(because)? {
            Found::Complete { identity, .. } if identity.uuid == uuid_text(instance) => {
                if identity.promised_epoch < epoch.0 {
                    datadir::promise(&self.config, &identity, epoch.0).await.map_err(because)?;
                }
                Ok(())
            }
            other => Err(format!("the data directory is not what it was: {other:?}")),
        }
    }

    async fn follow(
        &self,
        instance: InstanceId,
        upstream: &Upstream,
        running: bool,
    ) -> Result<Output, Failure> {
        let config = &self.config;
        self.promise(instance, upstream.epoch).await?;
        let member = member_name(config.ordinal, &uuid_text(instance));
        let target = Follow { upstream: self.upstream(upstream)?, member };
        let mut files = self.settings.in_force.lock().await;
        files.follow = Some(target);
        let desired = files.desired(&self.settings.files);
        if running {
            let written = settings::write(config, &self.supervisor, &desired).await.map_err(because)?;
            if written.changed {
                settings::reload(config, &self.supervisor).await.map_err(because)?;
            }
        } else {
            files.running = false;
            files.admitted = false;
            datadir::prepare_start(config).await.map_err(because)?;
            settings::close_before_start(config).await.map_err(because)?;
            let written = settings::write(config, &self.supervisor, &desired).await.map_err(because)?;
            self.problems(written.problems);
            settings::set_standby(config, true).await.map_err(because)?;
            self.start(Mode::Standby, upstream.epoch).await?;
        }
        files.running = true;
        drop(files);
        self.wait_until_up(true).await?;
        let mut files = self.settings.in_force.lock().await;
        let problems = settings::admit(config, &self.supervisor, &self.settings.files.hba).await;
        self.problems(problems.map_err(because)?);
        files.admitted = true;
        Ok(Output::Done)
    }

    async fn primary(&self, instance: InstanceId, epoch: Epoch, running: bool) -> Result<Output, Failure> {
        let config = &self.config;
        self.promise(instance, epoch).await?;
        if !running {
            let mut files = self.settings.in_force.lock().await;
            files.follow = None;
            files.running = false;
            files.admitted = false;
            datadir::prepare_start(config).await.map_err(because)?;
            settings::close_before_start(config).await.map_err(because)?;
            let desired = files.desired(&self.settings.files);
            let written = settings::write(config, &self.supervisor, &desired).await.map_err(because)?;
            self.problems(written.problems);
            settings::set_standby(config, false).await.map_err(because)?;
            self.start(Mode::Primary, epoch).await?;
        }
        let timeline = self.wait_until_up(false).await?;
        let mut files = self.settings.in_force.lock().await;
        files.follow = None;
        files.running = true;
        Ok(Output::Up { timeline })
    }

    async fn open(&self) -> Result<Output, Failure> {
        let mut files = self.settings.in_force.lock().await;
        // Without the Secret, or with one that can't be used, replicas can still join; the problem is reported.
        ensure_roles(&self.config, &self.settings, &self.feed).await?;
        let problems = settings::admit(&self.config, &self.supervisor, &self.settings.files.hba).await;
        self.problems(problems.map_err(because)?);
        files.admitted = true;
        Ok(Output::Done)
    }

    /// Starts the postmaster, after everything that the protocol has sent the supervisor before. Once asked for, its start is told to the
    /// protocol even if this operation is given up.
    async fn start(&self, mode: Mode, epoch: Epoch) -> Result<(), Failure> {
        let (done, sent) = oneshot::channel();
        let gone = || "the connection to the supervisor has ended".to_owned();
        self.commands.send(Command::Barrier(done)).map_err(|_| gone())?;
        sent.await.map_err(|_| gone())?;
        let request = StartRequest {
            mode: match mode {
                Mode::Standby => crate::supervisor::Mode::Standby,
                Mode::Primary => crate::supervisor::Mode::Primary,
            },
            epoch: epoch.0,
            argv: vec![
                "postgres".to_owned(),
                "-D".to_owned(),
                self.config.pgdata().to_string_lossy().into_owned(),
            ],
            env: Vec::new(),
        };
        let (supervisor, feed) = (self.supervisor.clone(), self.feed.clone());
        let start = tokio::spawn(async move {
            let started = supervisor.start(request).await.map_err(because)?;
            tracing::info!(pid = started.pid, start = started.start_id, mode = ?mode, "postmaster started");
            let start_id = started.start_id;
            let _ = feed.send(Fed::Protocol(Event::Started(Postmaster { start_id, mode, epoch })));
            let _ = feed.send(Fed::DeathPipe(start_id));
            watch_death(start_id, started.death, feed);
            Ok(())
        });
        start.await.map_err(|e| e.to_string())?
    }

    /// Waits until Postgres answers, as a standby or out of recovery. No limit: crash recovery takes what it takes, and if the postmaster
    /// exits, the protocol gives this up. The timeline.
    async fn wait_until_up(&self, standby: bool) -> Result<u32, Failure> {
        loop {
            let timeouts = Timeouts { connect: Duration::from_secs(2), statement: Duration::from_secs(2) };
            if let Ok(session) = sql::connect_with(
                &self.config,
                crate::postgres::SUPERUSER,
                crate::postgres::MAINTENANCE_DB,
                timeouts,
            )
            .await
            {
                let row = session.row("ask for the timeline", TIMELINE, &[]).await.map_err(because)?;
                if let Some(row) = row {
                    let recovery: bool = row.try_get(0).map_err(|e| e.to_string())?;
                    let timeline: i32 = row.try_get(1).map_err(|e| e.to_string())?;
                    if recovery == standby {
                        return u32::try_from(timeline).map_err(|e| e.to_string());
                    }
                }
            }
            sleep(LOOK).await;
        }
    }

    async fn stop(&self, mode: Mode) -> Result<Output, Failure> {
        if mode == Mode::Primary {
            // What is on disk already need not be written while clients wait.
            let timeouts = Timeouts { connect: Duration::from_secs(2), statement: CHECKPOINT };
            let checkpoint = async {
                let session = sql::connect_with(
                    &self.config,
                    crate::postgres::SUPERUSER,
                    crate::postgres::MAINTENANCE_DB,
                    timeouts,
                )
                .await?;
                session.run("checkpoint", "CHECKPOINT").await
            };
            match timeout(CHECKPOINT, checkpoint).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = describe(&error), "checkpoint before the stop failed")
                }
                Err(_) => tracing::warn!("checkpoint before the stop took too long"),
            }
            if let Ok(mut files) = self.settings.in_force.try_lock() {
                files.admitted = false;
                if let Err(error) = settings::close(&self.config, &self.supervisor).await {
                    tracing::warn!(
                        error = describe(&error),
                        "new clients could not be kept out before the stop"
                    );
                }
            }
        }
        for (how, limit) in [(StopMode::Fast, FAST_STOP), (StopMode::Immediate, IMMEDIATE_STOP)] {
            if let Err(error) = self.supervisor.stop(how).await {
                tracing::info!(error = describe(&error), "stop refused");
            }
            if self.gone_within(limit).await {
                return Ok(Output::Done);
            }
            tracing::warn!(how = ?how, "Postgres did not stop in time");
        }
        self.supervisor.kill_all().await.map_err(because)?;
        if self.gone_within(Duration::from_secs(5)).await {
            return Ok(Output::Done);
        }
        Err("Postgres was killed, but is not gone".to_owned())
    }

    async fn gone_within(&self, limit: Duration) -> bool {
        let mut running = self.running.clone();
        matches!(timeout(limit, running.wait_for(Option::is_none)).await, Ok(Ok(_)))
    }

    fn problems(&self, problems: Vec<pgwarden_proto::v1::Problem>) {
        let _ = self.feed.send(Fed::Problems(problems));
    }
}
