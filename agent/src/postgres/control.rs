//! Starting, promoting and stopping Postgres, and knowing when it has happened.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{
    MAINTENANCE_DB, SUPERUSER,
    datadir::{self, DatadirError},
    describe,
    files::{self, FileError, blocking},
    settings::{self, SettingsError},
    sql::{self, Probe, Session, SqlError, Timeouts},
};
use crate::{
    config::Config,
    supervisor::{
        DeathPipe, Mode, RefusalCode, StartRequest, Started, StopMode, Supervisor, SupervisorError, Tool,
    },
};

/// Between two looks at whether Postgres accepts connections, or is out of recovery.
const LOOK: Duration = Duration::from_millis(20);
/// For the answer of a Postgres that says of itself that it is ready.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// After SIGQUIT, until everything is killed.
const IMMEDIATE_LIMIT: Duration = Duration::from_secs(2);

/// Why Postgres is not in the wanted state.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The image is not one of Postgres.
    #[error(
        "the Postgres image has no postgres ({message}); set spec.image to an image with PostgreSQL's programs"
    )]
    NoPostgres {
        /// Where it was looked for.
        message: String,
    },
    /// The image is of another version.
    #[error(
        "the Postgres image has version {found}, spec.version asks for {wanted}: set spec.image to an image of {wanted}"
    )]
    OtherVersion {
        /// What `postgres --version` says.
        found: String,
        /// What the pod is for.
        wanted: u32,
    },
    /// The data directory could not be prepared.
    #[error("failed to prepare the start of Postgres")]
    Datadir(#[from] DatadirError),
    /// Its files could not be written.
    #[error("failed to prepare the start of Postgres")]
    Settings(#[from] SettingsError),
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The supervisor refused or is gone.
    #[error("failed to {what} Postgres")]
    Supervisor {
        /// What was to be done.
        what: &'static str,
        /// Why not.
        source: SupervisorError,
    },
    /// Postgres ended while it was starting.
    #[error("Postgres ended at its start: {0}")]
    Exited(String),
    /// A query failed.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// Promotion led to another timeline than was reserved for it.
    #[error(
        "Postgres was promoted to timeline {got}, {wanted} was reserved: another history may have that number"
    )]
    Timeline {
        /// Reserved.
        wanted: u32,
        /// Postgres' choice.
        got: u32,
    },
}

impl ControlError {
    fn supervisor(what: &'static str) -> impl FnOnce(SupervisorError) -> Self {
        move |error| match error {
            SupervisorError::Refused { source, .. } if source.code == RefusalCode::ProgramNotFound => {
                Self::NoPostgres { message: source.message }
            }
            source => Self::Supervisor { what, source },
        }
    }
}

/// What `postgres --version` says, such as "17.11", after checking that it is of the pod's major version.
///
/// # Errors
/// When the image has no Postgres, or another.
pub async fn version(config: &Config, supervisor: &Supervisor) -> Result<String, ControlError> {
    let output = supervisor
        .run_tool(Tool::new(["postgres", "--version"]))
        .await
        .map_err(ControlError::supervisor("ask the version of"))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let found = read_version(&text).filter(|_| output.success()).map(str::to_owned);
    let found = found.ok_or_else(|| ControlError::NoPostgres {
        message: format!("`postgres --version` says {text:?} {}", output.last_lines(2)),
    })?;
    let major: String = found.chars().take_while(char::is_ascii_digit).collect();
    if major != config.version.to_string() {
        return Err(ControlError::OtherVersion { found, wanted: config.version });
    }
    Ok(found)
}

/// "postgres (PostgreSQL) 17.11 (Debian …)" → "17.11".
fn read_version(text: &str) -> Option<&str> {
    text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
}

/// Starts Postgres with clients kept out (see [`settings::admit`]); its settings must have been written before. As a primary it
/// needs a live grant of `epoch`. Returns when the process exists; [`wait_ready`] tells when it serves.
///
/// # Errors
/// See [`ControlError`].
pub async fn start(
    config: &Config,
    supervisor: &Supervisor,
    mode: Mode,
    epoch: u64,
) -> Result<Started, ControlError> {
    datadir::prepare_start(config).await?;
    settings::set_standby(config, mode == Mode::Standby).await?;
    settings::close_before_start(config).await?;
    let argv = ["postgres", "-D", &config.pgdata().to_string_lossy()].map(str::to_owned).to_vec();
    // PGPORT and the like of an image would rank above nothing, but a stray PGDATA or PGOPTIONS only confuses.
    let env = ["PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGOPTIONS", "PGPASSWORD"]
        .map(str::to_owned)
        .to_vec();
    let started = supervisor
        .start(StartRequest { mode, epoch, argv, env })
        .await
        .map_err(ControlError::supervisor("start"))?;
    tracing::info!(?mode, epoch, pid = started.pid, start_id = started.start_id, "postgres started");
    Ok(started)
}

/// Returns when Postgres accepts connections: a standby when its data is consistent, however long replay takes.
///
/// # Errors
/// [`ControlError::Exited`] with the reason from its log, when it ends instead.
pub async fn wait_ready(
    config: &Config,
    supervisor: &Supervisor,
    death: &DeathPipe,
) -> Result<(), ControlError> {
    tokio::select! {
        end = death.eof() => {
            end.map_err(ControlError::supervisor("watch"))?;
            Err(ControlError::Exited(last_words(supervisor).await))
        }
        ready = ready(config) => ready,
    }
}

async fn ready(config: &Config) -> Result<(), ControlError> {
    let path = config.pgdata().join("postmaster.pid");
    loop {
        // Asking over the socket before it is ready would write a line into its log each time.
        let at = path.clone();
        let file = blocking("read", &path, move || files::read(&at)).await?;
        if file.is_some_and(|file| says_ready(&file)) {
            match sql::probe(config, PROBE_LIMIT).await {
                Probe::Alive | Probe::TooManyConnections => return Ok(()),
                other => tracing::debug!(probe = ?other, "postgres says it is ready, and does not answer"),
            }
        }
        sleep(LOOK).await;
    }
}

/// The eighth line of `postmaster.pid` is its state.
fn says_ready(file: &[u8]) -> bool {
    file.split(|byte| *byte == b'\n').nth(7).is_some_and(|line| line.trim_ascii() == b"ready")
}

/// What Postgres said last before it ended: its complaints, without the usual lines.
pub async fn last_words(supervisor: &Supervisor) -> String {
    match supervisor.log_tail(true).await {
        Ok(log) => last_complaints(&log),
        Err(error) => format!("its log can't be read: {}", describe(&error)),
    }
}

fn last_complaints(log: &str) -> String {
    const WORDS: [&str; 3] = ["PANIC:", "FATAL:", "ERROR:"];
    const MORE: [&str; 2] = ["DETAIL:", "HINT:"];
    let after = |line: &str, word: &str| line.split_once(word).map(|(_, rest)| rest.trim().to_owned());
    let mut found: Vec<String> = Vec::new();
    let mut wanted = false;
    for line in log.lines() {
        if let Some(text) = WORDS.iter().find_map(|word| after(line, word)) {
            // Clients that come too early are told so; that is nobody's reason.
            wanted = !text.starts_with("the database system is ");
            if wanted {
                found.push(text);
            }
        } else if wanted && let Some(text) = MORE.iter().find_map(|word| after(line, word)) {
            found.push(text);
        }
    }
    if found.is_empty() {
        // A refused setting is a LOG line, and a crash may leave no more than that.
        let lines: Vec<&str> = log.lines().collect();
        found = lines
            .get(lines.len().saturating_sub(3)..)
            .unwrap_or_default()
            .iter()
            .map(|&s| s.to_owned())
            .collect();
    }
    if log.contains("configuration file") && log.contains("contains errors") {
        return settings::complaints(log);
    }
    let from = found.len().saturating_sub(4);
    let text = found.get(from..).unwrap_or_default().join("; ");
    if text.is_empty() { "it left no word in its log".to_owned() } else { text }
}

/// Promotes the running standby under a live grant of `epoch`, and returns its new timeline when it is out of recovery.
/// `reserved`, if given, is the timeline that the record holds for it.
///
/// # Errors
/// See [`ControlError`].
pub async fn promote(
    config: &Config,
    supervisor: &Supervisor,
    epoch: u64,
    reserved: Option<u32>,
) -> Result<u32, ControlError> {
    let session = sql::connect_admin(config).await?;
    supervisor.promote(epoch, &config.pgdata()).await.map_err(ControlError::supervisor("promote"))?;
    let timeline = wait_out_of_recovery(&session).await?;
    match reserved {
        Some(wanted) if wanted != timeline => Err(ControlError::Timeline { wanted, got: timeline }),
        _ => Ok(timeline),
    }
}

/// Timeline of a primary.
///
/// # Errors
/// When it does not answer, or is in recovery.
pub async fn timeline(config: &Config) -> Result<u32, ControlError> {
    wait_out_of_recovery(&sql::connect_admin(config).await?).await
}

async fn wait_out_of_recovery(session: &Session) -> Result<u32, ControlError> {
    let what = "see whether postgres is out of recovery";
    loop {
        let row = session
            .row(
                what,
                "SELECT CASE WHEN pg_is_in_recovery() THEN 0 \
                 ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int4 END",
                &[],
            )
            .await?;
        let timeline: i32 =
            row.map_or(Ok(0), |row| row.try_get(0)).map_err(|source| SqlError::Answer { what, source })?;
        if timeline != 0 {
            return Ok(timeline.cast_unsigned());
        }
        sleep(LOOK).await;
    }
}

/// Writes a checkpoint, so that a stop afterwards is short. Gives up after `limit`, which is no harm.
///
/// # Errors
/// When Postgres refuses or takes longer.
pub async fn checkpoint(config: &Config, limit: Duration) -> Result<(), ControlError> {
    let timeouts = Timeouts { connect: sql::CONNECT_TIMEOUT, statement: limit };
    let session = sql::connect_with(config, SUPERUSER, MAINTENANCE_DB, timeouts).await?;
    session.run("write a checkpoint", "CHECKPOINT").await?;
    Ok(())
}

/// How a stop went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Nothing ran.
    NotRunning,
    /// As asked.
    Fast,
    /// It took too long and was told to go at once: it recovers at the next start.
    Immediate,
    /// It did not even do that.
    Killed,
}

/// Stops Postgres: fast, then at once, then by SIGKILL. Returns when `gone` does: the death pipe's end, or the supervisor's word.
///
/// # Errors
/// When the supervisor fails.
pub async fn stop(
    supervisor: &Supervisor,
    fast_limit: Duration,
    gone: impl Future<Output = ()>,
) -> Result<Stopped, ControlError> {
    tokio::pin!(gone);
    let begin = Instant::now();
    let stopped = 'stop: {
        match supervisor.stop(StopMode::Fast).await {
            Err(error) if error.refusal() == Some(RefusalCode::NotRunning) => {
                break 'stop Stopped::NotRunning;
            }
            other => other.map_err(ControlError::supervisor("stop"))?,
        }
        if timeout(fast_limit, &mut gone).await.is_ok() {
            break 'stop Stopped::Fast;
        }
        match supervisor.stop(StopMode::Immediate).await {
            Err(error) if error.refusal() == Some(RefusalCode::NotRunning) => {}
            other => other.map_err(ControlError::supervisor("stop"))?,
        }
        if timeout(IMMEDIATE_LIMIT, &mut gone).await.is_ok() {
            break 'stop Stopped::Immediate;
        }
        supervisor.kill_all().await.map_err(ControlError::supervisor("kill"))?;
        gone.await;
        Stopped::Killed
    };
    tracing::info!(?stopped, milliseconds = begin.elapsed().as_millis(), "postgres stopped");
    Ok(stopped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(read_version("postgres (PostgreSQL) 17.11 (Debian 17.11-1.pgdg13+1)"), Some("17.11"));
        assert_eq!(read_version("postgres (PostgreSQL) 18beta2"), Some("18beta2"));
        assert_eq!(read_version("command not found"), None);
    }

    #[test]
    fn the_pid_file_says_when_postgres_is_ready() {
        let file = |state: &str| format!("1\n/pgdata\n1700000000\n5432\n/tmp\n*\n 12345 1\n{state}\n");
        assert!(says_ready(file("ready   ").as_bytes()));
        assert!(!says_ready(file("starting").as_bytes()));
        assert!(!says_ready(file("standby ").as_bytes()));
        assert!(!says_ready(b"1\n/pgdata\n"));
    }

    #[test]
    fn last_words_are_the_complaints() {
        let log = "2026 [1] LOG:  starting PostgreSQL\n\
                   2026 [9] FATAL:  the database system is starting up\n\
                   2026 [1] FATAL:  could not map anonymous shared memory: Cannot allocate memory\n\
                   2026 [1] HINT:  This error usually means…\n\
                   2026 [1] LOG:  database system is shut down\n";
        let words = last_complaints(log);
        assert_eq!(
            words,
            "could not map anonymous shared memory: Cannot allocate memory; This error usually means…"
        );
        let config = "2026 [1] LOG:  unrecognized configuration parameter \"x\" in file \"/a\" line 3\n\
                      2026 [1] FATAL:  configuration file \"/a\" contains errors\n";
        assert!(last_complaints(config).contains("parameter \"x\""));
        assert_eq!(last_complaints(""), "it left no word in its log");
        assert_eq!(last_complaints("strange\n"), "strange");
    }
}
