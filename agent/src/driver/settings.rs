//! Which settings are wanted: what is mounted, or what the controller has pushed since; and what is in force.

use std::{collections::BTreeMap, sync::Arc};

use pgwarden_api::config::{AgentConfig, FILE_AGENT, FILE_HASH, FILE_HBA, FILE_POSTGRESQL, hash};
use pgwarden_ha::Timing;
use pgwarden_proto::v1::{ConfigureRequest, ConfigureResponse, Problem};
use tokio::sync::{Mutex, oneshot};
use tonic::Status;

use super::{Fed, Feed};
use crate::{
    config::Config,
    postgres::{
        describe,
        roles::AppSecret,
        settings::{self, Desired, Follow, SettingsError},
    },
    supervisor::Supervisor,
};

/// Seconds between two looks at the mounted ConfigMap.
const LOOK: u32 = 10;
/// A replica further behind gets no read traffic, unless the ConfigMap says otherwise.
const LAG_LIMIT: u64 = 16 * 1024 * 1024;
/// `synchronous_standby_names` of a standby: never empty, so that no promotion goes from none to some (decision 3).
const PLACEHOLDER: &str = "ANY 1 (pgwarden_placeholder)";

/// One set of files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) postgresql: String,
    pub(super) hba: String,
    pub(super) agent: AgentConfig,
    pub(super) hash: String,
}

impl Files {
    fn read(files: &BTreeMap<String, String>, given_hash: Option<&str>) -> Result<Self, String> {
        let text = |name: &str| files.get(name).cloned().unwrap_or_default();
        let agent = match files.get(FILE_AGENT) {
            Some(text) => {
                serde_json::from_str(text).map_err(|e| format!("{FILE_AGENT} can't be read: {e}"))?
            }
            None => AgentConfig::default(),
        };
        let computed = hash(files.iter().map(|(n, t)| (n.as_str(), t.as_str())));
        if let Some(given) = given_hash.filter(|given| *given != computed) {
            return Err(format!("the files have hash {computed}, not {given}"));
        }
        Ok(Self { postgresql: text(FILE_POSTGRESQL), hba: text(FILE_HBA), agent, hash: computed })
    }
}

/// What Postgres' files say, and who may write them: one at a time.
#[derive(Debug, Default)]
pub(super) struct InForce {
    /// Whom the running standby follows.
    pub(super) follow: Option<Follow>,
    /// Postgres runs with files of ours.
    pub(super) running: bool,
    /// Clients are admitted.
    pub(super) admitted: bool,
    /// Number of the supervisor's connection under which the image's version was found right.
    pub(super) checked: Option<u64>,
}

impl InForce {
    /// What the files should say.
    pub(super) fn desired(&self, files: &Files) -> Desired {
        Desired {
            postgresql: files.postgresql.clone(),
            follow: self.follow.clone(),
            synchronous_standby_names: if self.follow.is_some() {
                PLACEHOLDER.to_owned()
            } else {
                String::new()
            },
        }
    }
}

/// New settings, tried.
#[derive(Debug)]
pub(super) struct Outcome {
    files: Arc<Files>,
    applied: bool,
    problems: Vec<Problem>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Settings {
    files: Arc<Files>,
    /// Hash of what is in force.
    hash: String,
    problems: Vec<Problem>,
    in_force: Arc<Mutex<InForce>>,
    secret: Arc<Mutex<Option<AppSecret>>>,
    looked: u32,
}

/// What an operation needs of it.
#[derive(Clone, Debug)]
pub(super) struct Current {
    pub(super) files: Arc<Files>,
    pub(super) in_force: Arc<Mutex<InForce>>,
    /// The application Secret that was last put into the database.
    pub(super) secret: Arc<Mutex<Option<AppSecret>>>,
}

impl Settings {
    /// As mounted at the start.
    pub(super) async fn mounted(config: &Config) -> Self {
        let (files, problems) = match load(config).await {
            Ok(files) => (files, Vec::new()),
            Err(error) => {
                tracing::error!(error, "settings can't be read");
                (Files::default(), vec![problem(error)])
            }
        };
        Self {
            hash: files.hash.clone(),
            files: Arc::new(files),
            problems,
            in_force: Arc::default(),
            secret: Arc::default(),
            looked: 0,
        }
    }

    pub(super) fn current(&self) -> Current {
        Current {
            files: Arc::clone(&self.files),
            in_force: Arc::clone(&self.in_force),
            secret: Arc::clone(&self.secret),
        }
    }

    pub(super) fn timing(&self) -> Timing {
        Timing::profile(&self.files.agent.failover)
    }

    /// UID of the `PostgreSQL` object.
    pub(super) fn owner(&self) -> &str {
        &self.files.agent.uid
    }

    pub(super) fn lag_limit(&self) -> u64 {
        match self.files.agent.replica_lag_limit {
            0 => LAG_LIMIT,
            limit => limit,
        }
    }

    /// Instances wanted; 0 when that is not known.
    pub(super) fn replicas(&self) -> u32 {
        self.files.agent.replicas
    }

    /// Hash of the settings in force.
    pub(super) fn hash(&self) -> &str {
        &self.hash
    }

    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Now and then: has the mounted ConfigMap changed?
    pub(super) fn look(&mut self, config: &Config, supervisor: Option<&Supervisor>, feed: &Feed) {
        self.looked += 1;
        if self.looked < LOOK {
            return;
        }
        self.looked = 0;
        let (config, feed, current) = (config.clone(), feed.clone(), self.current());
        let supervisor = supervisor.cloned();
        tokio::spawn(async move {
            match load(&config).await {
                Ok(files)
                    if files.hash != current.files.hash
                        && files.agent.generation >= current.files.agent.generation =>
                {
                    tracing::info!(
                        hash = files.hash,
                        generation = files.agent.generation,
                        "mounted settings changed"
                    );
                    let outcome =
                        apply(&config, supervisor.as_ref(), &current.in_force, Arc::new(files)).await;
                    let _ = feed.send(Fed::Configured(outcome));
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(error, "mounted settings can't be read"),
            }
        });
    }

    /// The controller pushes settings.
    pub(super) fn push(
        &self,
        config: &Config,
        supervisor: Option<&Supervisor>,
        request: ConfigureRequest,
        reply: oneshot::Sender<Result<ConfigureResponse, Status>>,
        feed: &Feed,
    ) {
        let known = self.files.agent.generation;
        if request.generation < known {
            let message =
                format!("generation {} is older than {known}, which this instance has", request.generation);
            let _ = reply.send(Err(Status::failed_precondition(message)));
            return;
        }
        let files: BTreeMap<String, String> = request.files.into_iter().collect();
        let files = match Files::read(&files, Some(&request.hash)) {
            Ok(files) => files,
            Err(message) => {
                let _ = reply.send(Err(Status::invalid_argument(message)));
                return;
            }
        };
        if files == *self.files && self.hash == files.hash {
            let _ = reply.send(Ok(ConfigureResponse { applied: true }));
            return;
        }
        tracing::info!(hash = files.hash, generation = files.agent.generation, "settings pushed");
        let (config, feed, in_force) = (config.clone(), feed.clone(), Arc::clone(&self.in_force));
        let supervisor = supervisor.cloned();
        tokio::spawn(async move {
            let outcome = apply(&config, supervisor.as_ref(), &in_force, Arc::new(files)).await;
            let _ = reply.send(Ok(ConfigureResponse { applied: outcome.applied }));
            let _ = feed.send(Fed::Configured(outcome));
        });
    }

    /// Takes what was tried.
    pub(super) fn configured(&mut self, outcome: Outcome) {
        if outcome.applied {
            self.hash.clone_from(&outcome.files.hash);
        }
        self.problems = outcome.problems;
        self.files = outcome.files;
    }
}

fn problem(message: String) -> Problem {
    Problem { reason: "SettingsNotApplied".to_owned(), message }
}

async fn load(config: &Config) -> Result<Files, String> {
    let dir = config.config_dir.clone();
    let read = move || {
        let mut files = BTreeMap::new();
        for name in [FILE_POSTGRESQL, FILE_HBA, FILE_AGENT] {
            match std::fs::read_to_string(dir.join(name)) {
                Ok(text) => drop(files.insert(name.to_owned(), text)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && name != FILE_AGENT => {}
                Err(error) => return Err(format!("failed to read {}: {error}", dir.join(name).display())),
            }
        }
        // The hash over every file of the ConfigMap is the controller's; a part of it that we do not know counts as well.
        let given = std::fs::read_to_string(dir.join(FILE_HASH)).unwrap_or_default();
        let mut files = Files::read(&files, None)?;
        if !given.trim().is_empty() {
            given.trim().clone_into(&mut files.hash);
        }
        Ok(files)
    };
    tokio::task::spawn_blocking(read).await.map_err(|e| e.to_string())?
}

/// Puts settings in force where Postgres runs; otherwise its next start does.
async fn apply(
    config: &Config,
    supervisor: Option<&Supervisor>,
    in_force: &Mutex<InForce>,
    files: Arc<Files>,
) -> Outcome {
    let in_force = in_force.lock().await;
    let mut outcome = Outcome { files, applied: true, problems: Vec::new() };
    let Some(supervisor) = supervisor.filter(|_| in_force.running) else { return outcome };
    match try_apply(config, supervisor, &in_force, &outcome.files).await {
        Ok(problems) => {
            // Refused settings are not in force.
            outcome.applied = !problems.iter().any(|p| p.reason == "ParameterRefused");
            outcome.problems = problems;
        }
        Err(error) => {
            let error = describe(&error);
            tracing::warn!(error, "settings are not in force");
            outcome.applied = false;
            outcome.problems = vec![problem(error)];
        }
    }
    outcome
}

async fn try_apply(
    config: &Config,
    supervisor: &Supervisor,
    in_force: &InForce,
    files: &Files,
) -> Result<Vec<Problem>, SettingsError> {
    let written = settings::write(config, supervisor, &in_force.desired(files)).await?;
    let mut problems = written.problems;
    if written.changed {
        settings::reload(config, supervisor).await?;
    }
    if in_force.admitted {
        problems.extend(settings::admit(config, supervisor, &files.hba).await?);
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(generation: i64, text: &str) -> BTreeMap<String, String> {
        let agent = format!(r#"{{"generation":{generation},"failover":"fast"}}"#);
        [(FILE_POSTGRESQL.to_owned(), text.to_owned()), (FILE_AGENT.to_owned(), agent)].into()
    }

    fn request(generation: i64, text: &str) -> ConfigureRequest {
        let files = files(generation, text);
        let hash = hash(files.iter().map(|(n, t)| (n.as_str(), t.as_str())));
        ConfigureRequest { files: files.into_iter().collect(), hash, generation }
    }

    async fn push(settings: &mut Settings, request: ConfigureRequest) -> Result<bool, tonic::Code> {
        let config = crate::postgres::testing::config(std::path::Path::new("/nonexistent"));
        let (feed, mut fed) = tokio::sync::mpsc::unbounded_channel();
        let (reply, answer) = oneshot::channel();
        settings.push(&config, None, request, reply, &feed);
        let answer = answer.await.unwrap().map(|r| r.applied).map_err(|s| s.code());
        drop(feed);
        if let Some(Fed::Configured(outcome)) = fed.recv().await {
            settings.configured(outcome);
        }
        answer
    }

    #[tokio::test]
    async fn pushed_settings_are_taken_when_they_are_whole_and_not_older() {
        let dir = crate::postgres::testing::scratch("settings");
        let config = crate::postgres::testing::config(&dir);
        std::fs::create_dir_all(&config.config_dir).unwrap();
        for (name, text) in files(3, "a = 1") {
            std::fs::write(config.config_dir.join(name), text).unwrap();
        }
        let mut settings = Settings::mounted(&config).await;
        assert_eq!(settings.timing(), Timing::FAST);
        assert_eq!(settings.problems(), []);
        assert_eq!(settings.hash(), request(3, "a = 1").hash);

        assert_eq!(push(&mut settings, request(2, "a = 0")).await, Err(tonic::Code::FailedPrecondition));
        let torn = ConfigureRequest { hash: "0".into(), ..request(4, "a = 2") };
        assert_eq!(push(&mut settings, torn).await, Err(tonic::Code::InvalidArgument));
        assert_eq!(settings.hash(), request(3, "a = 1").hash, "nothing has changed");

        assert_eq!(push(&mut settings, request(4, "a = 2")).await, Ok(true));
        assert_eq!(settings.hash(), request(4, "a = 2").hash);
        assert_eq!(settings.current().files.postgresql, "a = 2");
        assert_eq!(push(&mut settings, request(4, "a = 2")).await, Ok(true), "again is fine");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[tokio::test]
    async fn settings_that_are_not_there_are_a_problem_with_a_name() {
        let config = crate::postgres::testing::config(std::path::Path::new("/nonexistent"));
        let settings = Settings::mounted(&config).await;
        assert_eq!(settings.problems().len(), 1);
        assert!(settings.problems()[0].message.contains("agent.json"), "{:?}", settings.problems());
    }
}
