//! What takes time: each operation of the protocol, as one future that can be dropped.

use std::{net::IpAddr, sync::Arc, time::Duration};

use pgwarden_api::names::member_name;
use pgwarden_ha::{
    Data, Directory, Epoch, Event, InstanceId, Mode, Op, Output, Postmaster, SystemId, Upstream,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep},
};

use super::{
    Fed, Feed, follow,
    link::Command,
    settings::{Current, InForce},
    watch_death,
};
use crate::{
    config::Config,
    peer,
    postgres::{
        clone::{self, Source},
        control,
        datadir::{self, Found, Identity, Phase},
        describe, initdb,
        roles::{self, AppSecret},
        settings::{self, Follow},
        sql,
    },
    record::convert::{instance, uuid_text},
    supervisor::{DeathPipe, StartRequest, Supervisor},
};

/// Between two looks at an adopted Postgres that does not answer yet.
const LOOK: Duration = Duration::from_millis(50);
/// An adopted Postgres answers within this, or is asked again.
const PROBE: Duration = Duration::from_secs(2);
/// A checkpoint before a planned stop: clients are served meanwhile.
const CHECKPOINT: Duration = Duration::from_secs(20);
/// A fast stop may take this long.
const FAST_STOP: Duration = Duration::from_secs(10);
/// Taken out of the image's environment: they would only confuse.
const UNSET: [&str; 7] = ["PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGOPTIONS", "PGPASSWORD"];
/// A copy waits this long for its source to serve; then the operation fails and is begun again.
const SOURCE: Duration = Duration::from_secs(20);
/// Between two attempts to register with a source that does not serve yet.
const JOIN_PAUSE: Duration = Duration::from_millis(50);

/// What operations work with.
pub(super) struct Context {
    pub(super) config: Config,
    pub(super) supervisor: Supervisor,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) peer: peer::Client,
    pub(super) settings: Current,
    pub(super) system: Option<SystemId>,
    pub(super) feed: Feed,
    /// Number of the connection to the supervisor.
    pub(super) link: u64,
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
        Op::Inspect => {
            context.check_version().await?;
            inspect(&context.config).await.map(Output::Directory)
        }
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
async fn ensure_roles(config: &Config, settings: &Current, feed: &Feed, always: bool) -> Result<(), Failure> {
    let told = match AppSecret::load(config, &settings.files.agent.app_database).await {
        Ok(secret) => {
            let mut applied = settings.secret.lock().await;
            if !always && *applied == secret {
                return Ok(());
            }
            roles::ensure(config, secret.as_ref()).await.map_err(because)?;
            applied.clone_from(&secret);
            // Stretched on purpose: not on the thread of the lease.
            let hash = move || secret.as_ref().map(AppSecret::hash).unwrap_or_default();
            Ok(tokio::task::spawn_blocking(hash).await.map_err(because)?)
        }
        Err(error) => {
            if always {
                roles::ensure(config, None).await.map_err(because)?;
            }
            Err(because(error))
        }
    };
    let _ = feed.send(Fed::AppSecret(told));
    Ok(())
}

/// Now and then on the primary: has the mounted Secret changed?
pub(super) async fn app_secret(config: Config, settings: Current, feed: Feed) {
    if let Err(error) = ensure_roles(&config, &settings, &feed, false).await {
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

    /// Once in the life of a container: its image may not be of this version.
    async fn check_version(&self) -> Result<(), Failure> {
        let checked = self.settings.in_force.lock().await.checked;
        if checked != Some(self.link) {
            control::version(&self.config, &self.supervisor).await.map_err(because)?;
            self.settings.in_force.lock().await.checked = Some(self.link);
        }
        Ok(())
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
        if running {
            let desired = files.desired(&self.settings.files);
            let written = settings::write(config, &self.supervisor, &desired).await.map_err(because)?;
            if written.changed {
                settings::reload(config, &self.supervisor).await.map_err(because)?;
            }
            files.running = true;
            drop(files);
            self.wait_until_up(None).await?;
        } else {
            self.prepare(&mut files, Mode::Standby).await?;
            let death = self.start(Mode::Standby, upstream.epoch).await?;
            files.running = true;
            drop(files);
            self.wait_until_up(Some(&death)).await?;
        }
        self.admit().await
    }

    async fn primary(&self, instance: InstanceId, epoch: Epoch, running: bool) -> Result<Output, Failure> {
        self.promise(instance, epoch).await?;
        let mut files = self.settings.in_force.lock().await;
        files.follow = None;
        if running {
            files.running = true;
            drop(files);
            self.wait_until_up(None).await?;
        } else {
            self.prepare(&mut files, Mode::Primary).await?;
            let death = self.start(Mode::Primary, epoch).await?;
            files.running = true;
            drop(files);
            self.wait_until_up(Some(&death)).await?;
        }
        let timeline = control::timeline(&self.config).await.map_err(because)?;
        Ok(Output::Up { timeline })
    }

    /// Everything that must be on the volume before a start.
    async fn prepare(&self, files: &mut InForce, mode: Mode) -> Result<(), Failure> {
        let config = &self.config;
        files.running = false;
        files.admitted = false;
        datadir::prepare_start(config).await.map_err(because)?;
        settings::close_before_start(config).await.map_err(because)?;
        let desired = files.desired(&self.settings.files);
        let written = settings::write(config, &self.supervisor, &desired).await.map_err(because)?;
        self.problems(written.problems);
        settings::set_standby(config, mode == Mode::Standby).await.map_err(because)
    }

    async fn open(&self) -> Result<Output, Failure> {
        // Without the Secret, or with one that can't be used, replicas can still join; the problem is reported.
        ensure_roles(&self.config, &self.settings, &self.feed, true).await?;
        self.admit().await
    }

    async fn admit(&self) -> Result<Output, Failure> {
        let mut files = self.settings.in_force.lock().await;
        let problems = settings::admit(&self.config, &self.supervisor, &self.settings.files.hba).await;
        files.admitted = true;
        let problems = problems.map_err(because)?;
        if !problems.is_empty() {
            self.problems(problems);
        }
        Ok(Output::Done)
    }

    /// Starts the postmaster, after everything that the protocol has sent the supervisor before. Once asked for, its start is told to the
    /// protocol even if this operation is given up.
    async fn start(&self, mode: Mode, epoch: Epoch) -> Result<Arc<DeathPipe>, Failure> {
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
            argv: ["postgres", "-D", &self.config.pgdata().to_string_lossy()].map(str::to_owned).to_vec(),
            env: UNSET.map(str::to_owned).to_vec(),
        };
        let (supervisor, feed) = (self.supervisor.clone(), self.feed.clone());
        let start = tokio::spawn(async move {
            let started = supervisor.start(request).await.map_err(because)?;
            let start_id = started.start_id;
            tracing::info!(pid = started.pid, start_id, ?mode, epoch = epoch.0, "postmaster started");
            let death = Arc::new(started.death);
            let _ = feed.send(Fed::DeathPipe(start_id));
            let _ = feed.send(Fed::Protocol(Event::Started(Postmaster { start_id, mode, epoch })));
            watch_death(start_id, Arc::clone(&death), feed);
            Ok(death)
        });
        start.await.map_err(because)?
    }

    /// Waits until Postgres answers. No limit: crash recovery takes what it takes; if the postmaster ends, this fails with its last words.
    async fn wait_until_up(&self, death: Option<&DeathPipe>) -> Result<(), Failure> {
        if let Some(death) = death {
            return control::wait_ready(&self.config, &self.supervisor, death).await.map_err(because);
        }
        let answers = async {
            while !sql::probe(&self.config, PROBE).await.alive() {
                sleep(LOOK).await;
            }
        };
        tokio::select! {
            () = answers => return Ok(()),
            () = self.gone() => {}
        }
        Err(format!("Postgres ended: {}", control::last_words(&self.supervisor).await))
    }

    /// Returns when no postmaster runs.
    async fn gone(&self) {
        let mut running = self.running.clone();
        // Its sender goes with the driver, and this operation with it.
        let _ = running.wait_for(Option::is_none).await;
    }

    async fn stop(&self, mode: Mode) -> Result<Output, Failure> {
        if mode == Mode::Primary {
            // What is on disk already need not be written while clients wait.
            if let Err(error) = control::checkpoint(&self.config, CHECKPOINT).await {
                tracing::warn!(error = describe(&error), "no checkpoint before the stop");
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
        control::stop(&self.supervisor, FAST_STOP, self.gone()).await.map_err(because)?;
        Ok(Output::Done)
    }

    fn problems(&self, problems: Vec<pgwarden_proto::v1::Problem>) {
        let _ = self.feed.send(Fed::Problems(problems));
    }
}
