//! Postgres' configuration files, their reload, and what waits for a restart.
//!
//! A new `postgresql.conf` is shown to the image's own `postgres` before it takes the old one's place: a parameter that Postgres
//! refuses is reported by name, and what was in force stays in force, also over a restart of the pod.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use pgwarden_proto::v1;
use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;

use super::{
    MAINTENANCE_DB,
    clone::Upstream,
    control_file::{self, Required},
    files::{self, FileError, blocking},
    hba::{self, Access, Hba},
    sql::{self, Session, SqlError, Timeouts},
};
use crate::{
    config::Config,
    supervisor::{RefusalCode, Supervisor, SupervisorError, Tool},
};

/// How long Postgres may take to have read its files again.
const RELOAD_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks at whether it has: each is a new connection.
const RELOAD_LOOK: Duration = Duration::from_millis(20);

/// Why settings are not in force.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Postgres refuses the settings, and there are none from before.
    #[error("PostgreSQL refuses the settings: {0}")]
    Refused(String),
    /// The image is not one of Postgres.
    #[error(
        "the Postgres image has no postgres ({message}); set spec.image to an image with PostgreSQL's programs"
    )]
    NoPostgres {
        /// Where it was looked for.
        message: String,
    },
    /// The supervisor failed.
    #[error("failed to have Postgres read its settings")]
    Supervisor(#[source] SupervisorError),
    /// A query failed.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// Postgres did not read its files.
    #[error("Postgres did not read its settings again within {} ms", .0.as_millis())]
    NotReloaded(Duration),
    /// A line of ours is wrong: clients stay out.
    #[error("PostgreSQL refuses pg_hba.conf: {0}")]
    Hba(String),
}

/// What a standby follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follow {
    /// The holder's Postgres.
    pub upstream: Upstream,
    /// Member name: application_name and slot (`pgwarden_api::names::member_name`).
    pub member: String,
}

/// What the files should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// `postgresql.conf` of the ConfigMap.
    pub postgresql: String,
    /// Whom to follow; `None` on a primary, or to follow nobody.
    pub follow: Option<Follow>,
    /// `synchronous_standby_names`; on a standby a placeholder, never empty, so that a promotion never goes from none to some.
    pub synchronous_standby_names: String,
}

/// What [`write`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// A file has changed: Postgres must reload.
    pub changed: bool,
    /// What a person should know.
    pub problems: Vec<v1::Problem>,
}

/// Writes `postgresql.conf`, `postgresql.auto.conf` and `pg_ident.conf`; not `pg_hba.conf`, see [`close`] and [`admit`].
///
/// # Errors
/// See [`SettingsError`]; [`SettingsError::Refused`] only when there are no earlier settings to keep.
pub async fn write(
    config: &Config,
    supervisor: &Supervisor,
    desired: &Desired,
) -> Result<Written, SettingsError> {
    let pgdata = config.pgdata();
    let auto = auto_conf(config, desired);
    let at = pgdata.clone();
    let mut written = blocking("write settings in", &pgdata, move || {
        let mut written = Written::default();
        let path = at.join("postgresql.auto.conf");
        let old = files::read(&path)?.unwrap_or_default();
        for name in foreign_lines(&String::from_utf8_lossy(&old)) {
            written.problems.push(v1::Problem {
                reason: "AlterSystemUndone".to_owned(),
                message: format!(
                    "{name} was set with ALTER SYSTEM; postgresql.auto.conf is the operator's: use spec.parameters"
                ),
            });
        }
        written.changed |= files::write(&path, auto.as_bytes(), 0o600)?;
        written.changed |= files::write(&at.join("pg_ident.conf"), hba::ident().as_bytes(), 0o600)?;
        Ok(written)
    })
    .await?;
    match install_postgresql_conf(config, supervisor, &desired.postgresql, desired.follow.is_some()).await? {
        Installed::Same => {}
        Installed::New => written.changed = true,
        Installed::Kept(why) => written.problems.push(v1::Problem {
            reason: "ParameterRefused".to_owned(),
            message: format!("PostgreSQL refuses the settings, the earlier ones stay in force: {why}"),
        }),
    }
    Ok(written)
}

enum Installed {
    Same,
    New,
    Kept(String),
}

async fn install_postgresql_conf(
    config: &Config,
    supervisor: &Supervisor,
    text: &str,
    standby: bool,
) -> Result<Installed, SettingsError> {
    let path = config.pgdata().join("postgresql.conf");
    let candidate = config.pgdata().join("postgresql.conf.new");
    let content = format!("{OURS}{}{text}\n{}", defaults(config.version), instance_lines(config));
    let (from, to, pgdata) = (candidate.clone(), path.clone(), config.pgdata());
    let old = blocking("write", &path, move || {
        let mut content = content;
        if standby && let Ok(control) = control_file::read(&pgdata) {
            content.push_str(&raised(&content, &control.required));
        }
        let old = files::read(&to)?;
        if old.as_deref() != Some(content.as_bytes()) {
            files::write(&from, content.as_bytes(), 0o600)?;
            return Ok(Some(old));
        }
        Ok(None)
    })
    .await?;
    let Some(old) = old else { return Ok(Installed::Same) };
    if let Err(why) = check(config, supervisor, &candidate).await? {
        // What initdb wrote, or a copy brought, was never in force here.
        let ours = old.is_some_and(|old| old.starts_with(OURS.as_bytes()));
        return if ours { Ok(Installed::Kept(why)) } else { Err(SettingsError::Refused(why)) };
    }
    blocking("write", &path.clone(), move || {
        std::fs::rename(&candidate, &path).map_err(FileError::new("write", &path))?;
        files::sync_parent(&path)
    })
    .await?;
    Ok(Installed::New)
}

/// How every `postgresql.conf` of ours begins.
const OURS: &str = "# pgwarden\n";

/// First in the file: what the ConfigMap may say otherwise.
fn defaults(version: u32) -> String {
    // Recovery begins with a sync of the data directory: one call in place of an fsync for each of its files saves half a second of
    // every restart after a crash, and more with many tables.
    if version >= 14 { setting("recovery_init_sync_method", "syncfs") } else { String::new() }
}

/// Has the image's `postgres` read the file. The inner error is its complaint.
async fn check(
    config: &Config,
    supervisor: &Supervisor,
    file: &Path,
) -> Result<Result<(), String>, SettingsError> {
    let tool = Tool::new([
        "postgres".to_owned(),
        "-D".to_owned(),
        config.pgdata().to_string_lossy().into_owned(),
        "-c".to_owned(),
        format!("config_file={}", file.display()),
        "-C".to_owned(),
        "data_directory".to_owned(),
    ]);
    let output = supervisor.run_tool(tool).await.map_err(|error| match error {
        SupervisorError::Refused { source, .. } if source.code == RefusalCode::ProgramNotFound => {
            SettingsError::NoPostgres { message: source.message }
        }
        other => SettingsError::Supervisor(other),
    })?;
    if output.success() { Ok(Ok(())) } else { Ok(Err(complaints(&output.stderr))) }
}

/// What Postgres says about a file, without times, process ids and its closing summary.
pub(crate) fn complaints(log: &str) -> String {
    let lines = log.lines().filter_map(|line| {
        let line = ["LOG:", "FATAL:", "ERROR:", "PANIC:", "WARNING:", "DETAIL:", "HINT:"]
            .iter()
            .find_map(|word| line.split_once(word).map(|(_, rest)| rest.trim()))?;
        (!line.starts_with("configuration file ") && !line.is_empty()).then_some(line)
    });
    let text = lines.collect::<Vec<_>>().join("; ");
    if text.is_empty() { log.trim().to_owned() } else { text }
}

/// What only this instance knows, and what its safety rests on: last, so that nothing before it counts.
fn instance_lines(config: &Config) -> String {
    let file = |name: &str| config.tls_dir.join(name).to_string_lossy().into_owned();
    let mut lines = vec![
        ("cluster_name", config.pod.clone()),
        ("listen_addresses", config.listen_addresses()),
        ("port", config.postgres_port.to_string()),
        ("unix_socket_directories", config.socket_dir.to_string_lossy().into_owned()),
        ("ssl", "on".to_owned()),
        ("ssl_cert_file", file("server.crt")),
        ("ssl_key_file", file("server.key")),
        ("ssl_ca_file", file("ca.crt")),
        ("password_encryption", "scram-sha-256".to_owned()),
        ("wal_level", "logical".to_owned()),
        ("hot_standby", "on".to_owned()),
        ("fsync", "on".to_owned()),
        ("full_page_writes", "on".to_owned()),
        ("data_sync_retry", "off".to_owned()),
        // The supervisor's exit event is the crash report; a postmaster that starts again by itself would hide it.
        ("restart_after_crash", "off".to_owned()),
        ("log_destination", "stderr".to_owned()),
        ("logging_collector", "off".to_owned()),
    ];
    if config.version >= 17 {
        lines.push(("allow_alter_system", "off".to_owned()));
    }
    let lines: String = lines.iter().map(|(name, value)| setting(name, value)).collect();
    format!("# This instance\n{lines}")
}

/// Lines for a standby whose settings are lower than its primary's: it would not start, or stop replaying. A lowered setting so
/// comes into force on a standby with the first start after the primary's.
fn raised(text: &str, required: &Required) -> String {
    // Postgres' defaults; the same in versions 11 to 18.
    let parameters = [
        ("max_connections", 100, required.max_connections),
        ("max_worker_processes", 8, required.max_worker_processes),
        ("max_wal_senders", 10, required.max_wal_senders),
        ("max_prepared_transactions", 0, required.max_prepared_transactions),
        ("max_locks_per_transaction", 64, required.max_locks_per_transaction),
    ];
    let low = |name: &str, default: u32, least: u32| number(text, name).unwrap_or(default) < least;
    let lines: String = parameters
        .iter()
        .filter(|(name, default, least)| low(name, *default, *least))
        .map(|(name, _, least)| setting(name, &least.to_string()))
        .collect();
    if lines.is_empty() { lines } else { format!("# The primary runs with more\n{lines}") }
}

/// The last value of a whole number in the file.
fn number(text: &str, name: &str) -> Option<u32> {
    text.lines()
        .filter_map(|line| {
            let (key, value) =
                line.split_once('#').map_or(line, |(line, _)| line).trim().split_once(['=', ' '])?;
            key.trim()
                .eq_ignore_ascii_case(name)
                .then(|| value.trim_matches(|c: char| c.is_whitespace() || "='".contains(c)))
        })
        .next_back()?
        .parse()
        .ok()
}

/// Parameters in `postgresql.auto.conf`.
const AUTO: [&str; 3] = ["primary_conninfo", "primary_slot_name", "synchronous_standby_names"];

fn auto_conf(config: &Config, desired: &Desired) -> String {
    let mut text = "# Written by the operator; ALTER SYSTEM is undone.\n".to_owned();
    let (conninfo, slot) = desired.follow.as_ref().map_or_else(Default::default, |follow| {
        (follow.upstream.conninfo(config, &follow.member), follow.member.clone())
    });
    for (name, value) in AUTO.iter().zip([&conninfo, &slot, &desired.synchronous_standby_names]) {
        text.push_str(&setting(name, value));
    }
    text
}

/// `name = 'value'`.
fn setting(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n");
    format!("{name} = '{value}'\n")
}

/// Names set in `postgresql.auto.conf` by others.
fn foreign_lines(text: &str) -> Vec<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            line.split(|c: char| c == '=' || c.is_whitespace()).next().unwrap_or(line).to_ascii_lowercase()
        })
        .filter(|name| !AUTO.contains(&name.as_str()))
        .collect()
}

/// Before a start: clients stay out until [`admit`].
///
/// # Errors
/// When the file could not be written.
pub async fn close_before_start(config: &Config) -> Result<(), SettingsError> {
    write_hba(config, &Hba::internal()).await?;
    Ok(())
}

/// Keeps new clients out of a running Postgres, and returns when that is seen to be in force. Sessions that are open go on.
///
/// # Errors
/// See [`SettingsError`].
pub async fn close(config: &Config, supervisor: &Supervisor) -> Result<(), SettingsError> {
    write_hba(config, &Hba::internal()).await?;
    reload(config, supervisor).await?;
    wait_for_access(config, Access::Internal).await
}

/// Admits clients: returns when that is seen to be in force. Lines of the user's that Postgres does not understand are left out
/// and reported.
///
/// # Errors
/// See [`SettingsError`].
pub async fn admit(
    config: &Config,
    supervisor: &Supervisor,
    extra: &str,
) -> Result<Vec<v1::Problem>, SettingsError> {
    let (hba, mut problems) = Hba::clients(extra);
    let changed = write_hba(config, &hba).await?;
    if changed {
        let session = sql::connect_admin(config).await?;
        let bad = hba_errors(&session).await?;
        if !bad.is_empty() {
            let (left, more) = hba.without(&bad).ok_or_else(|| {
                let text: Vec<String> = bad.iter().map(|(line, why)| format!("line {line}: {why}")).collect();
                SettingsError::Hba(text.join("; "))
            })?;
            problems.extend(more);
            write_hba(config, &left).await?;
        }
    }
    reload_if_stale(config, supervisor).await?;
    wait_for_access(config, Access::Clients).await?;
    Ok(problems)
}

async fn write_hba(config: &Config, hba: &Hba) -> Result<bool, FileError> {
    let (path, text) = (config.pgdata().join("pg_hba.conf"), hba.text());
    blocking("write", &path.clone(), move || files::write(&path, text.as_bytes(), 0o600)).await
}

/// What Postgres objects to in the file as it lies there, in force or not.
async fn hba_errors(session: &Session) -> Result<Vec<(usize, String)>, SqlError> {
    let rows = session
        .rows(
            "check pg_hba.conf",
            "SELECT line_number, error FROM pg_catalog.pg_hba_file_rules WHERE error IS NOT NULL",
            &[],
        )
        .await?;
    let bad = |source| SqlError::Answer { what: "check pg_hba.conf", source };
    rows.iter()
        .map(|row| {
            let line: i32 = row.try_get(0).map_err(bad)?;
            Ok((usize::try_from(line).unwrap_or(0), row.try_get(1).map_err(bad)?))
        })
        .collect()
}

/// Which variant of `pg_hba.conf` is in force, seen by a connection attempt.
///
/// # Errors
/// When the attempt ends in a way that tells neither.
pub async fn access(config: &Config) -> Result<Access, SqlError> {
    let error = match sql::connect_with(config, hba::PROBE_ROLE, MAINTENANCE_DB, Timeouts::default()).await {
        // The role does not exist.
        Ok(_) => return Ok(Access::Clients),
        Err(error) => error,
    };
    match error.code() {
        Some(code) if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => Ok(Access::Internal),
        Some(code) if *code == SqlState::INVALID_PASSWORD => Ok(Access::Clients),
        // Asked for a password, the driver has none to give.
        None if matches!(&error, SqlError::Connect { source, .. } if is_password_missing(source)) => {
            Ok(Access::Clients)
        }
        _ => Err(error),
    }
}

fn is_password_missing(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(|cause| cause.to_string() == "password missing")
}

async fn wait_for_access(config: &Config, wanted: Access) -> Result<(), SettingsError> {
    let end = Instant::now() + RELOAD_LIMIT;
    loop {
        match access(config).await {
            Ok(seen) if seen == wanted => return Ok(()),
            // Every place is taken: nothing was seen.
            Err(error) if error.code() != Some(&SqlState::TOO_MANY_CONNECTIONS) => return Err(error.into()),
            Ok(_) | Err(_) => {}
        }
        if Instant::now() >= end {
            return Err(SettingsError::NotReloaded(RELOAD_LIMIT));
        }
        sleep(RELOAD_LOOK).await;
    }
}

/// Has Postgres read its files again, and returns when it has.
///
/// # Errors
/// See [`SettingsError`].
pub async fn reload(config: &Config, supervisor: &Supervisor) -> Result<(), SettingsError> {
    let before = load_time(config).await?;
    supervisor.reload().await.map_err(SettingsError::Supervisor)?;
    let end = Instant::now() + RELOAD_LIMIT;
    while load_time(config).await? == before {
        if Instant::now() >= end {
            return Err(SettingsError::NotReloaded(RELOAD_LIMIT));
        }
        sleep(RELOAD_LOOK).await;
    }
    Ok(())
}

/// [`reload`], if a file is newer than what is in force: also when the agent died between writing a file and having it read.
///
/// # Errors
/// See [`SettingsError`].
pub async fn reload_if_stale(config: &Config, supervisor: &Supervisor) -> Result<(), SettingsError> {
    // The kernel's time stamps of files are a tick old at worst.
    const TICK: Duration = Duration::from_millis(20);
    let pgdata = config.pgdata();
    let newest = blocking("look at the settings in", &pgdata.clone(), move || {
        let names = ["postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf"];
        names.iter().try_fold(SystemTime::UNIX_EPOCH, |newest, name| {
            let path = pgdata.join(name);
            let time = std::fs::metadata(&path).and_then(|file| file.modified());
            Ok(newest.max(time.map_err(FileError::new("look at", &path))?))
        })
    })
    .await?;
    let newest = (newest + TICK).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let loaded = Duration::from_micros(u64::try_from(load_time(config).await?).unwrap_or(0));
    if newest < loaded {
        return Ok(());
    }
    reload(config, supervisor).await
}

/// When the postmaster last read its files, in microseconds: only a new session has it from there.
async fn load_time(config: &Config) -> Result<i64, SqlError> {
    let what = "read pg_conf_load_time";
    let session = sql::connect_admin(config).await?;
    let row = session
        .row(
            what,
            "SELECT (pg_catalog.date_part('epoch', pg_catalog.pg_conf_load_time()) * 1000000)::pg_catalog.int8",
            &[],
        )
        .await?;
    row.map_or(Ok(0), |row| row.try_get(0)).map_err(|source| SqlError::Answer { what, source })
}

/// Settings whose new value waits for a restart.
///
/// # Errors
/// When the query fails.
pub async fn pending_restart(session: &Session) -> Result<Vec<v1::PendingRestart>, SqlError> {
    let what = "read what waits for a restart";
    // A setting that was taken out of the file goes back to its default.
    let rows = session
        .rows(
            what,
            "SELECT s.name, pg_catalog.current_setting(s.name), COALESCE((SELECT f.setting \
               FROM pg_catalog.pg_file_settings f WHERE pg_catalog.lower(f.name) = pg_catalog.lower(s.name) \
               ORDER BY f.seqno DESC LIMIT 1), s.boot_val, '') \
             FROM pg_catalog.pg_settings s WHERE s.pending_restart ORDER BY s.name",
            &[],
        )
        .await?;
    let bad = |source| SqlError::Answer { what, source };
    rows.iter()
        .map(|row| {
            Ok(v1::PendingRestart {
                name: row.try_get(0).map_err(bad)?,
                current: row.try_get(1).map_err(bad)?,
                wanted: row.try_get(2).map_err(bad)?,
            })
        })
        .collect()
}

/// What Postgres objects to in its files, beyond what waits for a restart.
///
/// # Errors
/// When the query fails.
pub async fn file_errors(session: &Session) -> Result<Vec<v1::Problem>, SqlError> {
    let what = "read the errors in the settings";
    let rows = session
        .rows(
            what,
            "SELECT COALESCE(f.name, ''), f.error FROM pg_catalog.pg_file_settings f WHERE f.error IS NOT NULL \
             AND NOT EXISTS (SELECT FROM pg_catalog.pg_settings s \
               WHERE s.pending_restart AND pg_catalog.lower(s.name) = pg_catalog.lower(f.name))",
            &[],
        )
        .await?;
    let bad = |source| SqlError::Answer { what, source };
    rows.iter()
        .map(|row| {
            let (name, error): (String, String) =
                (row.try_get(0).map_err(bad)?, row.try_get(1).map_err(bad)?);
            Ok(v1::Problem { reason: "ParameterRefused".to_owned(), message: format!("{name}: {error}") })
        })
        .collect()
}

/// Makes the data directory start as a standby, or not.
///
/// # Errors
/// When a file could not be written or removed.
pub async fn set_standby(config: &Config, standby: bool) -> Result<(), SettingsError> {
    let pgdata = config.pgdata();
    blocking("change the start of", &pgdata.clone(), move || {
        let signal = pgdata.join("standby.signal");
        files::remove(&pgdata.join("recovery.signal"))?;
        if standby {
            files::write(&signal, b"", 0o600)?;
        } else if files::remove(&signal)? {
            files::sync_parent(&signal)?;
        }
        Ok(())
    })
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired() -> Desired {
        let upstream =
            Upstream { host: "c-17-1.c-pods.n.svc".into(), address: [10, 0, 0, 2].into(), port: 5432 };
        Desired {
            postgresql: String::new(),
            follow: Some(Follow { upstream, member: "m0_ab".into() }),
            synchronous_standby_names: "ANY 1 (m1_cd)".into(),
        }
    }

    #[test]
    fn auto_conf_follows_by_name_address_and_certificate() {
        let config = crate::postgres::testing::config(Path::new("/x"));
        let text = auto_conf(&config, &desired());
        for part in
            ["host=c-17-1.c-pods.n.svc hostaddr=10.0.0.2", "sslmode=verify-full", "application_name=m0_ab"]
        {
            assert!(text.contains(part), "{text}");
        }
        assert!(text.contains("primary_slot_name = 'm0_ab'\n"), "{text}");
        assert!(text.contains("synchronous_standby_names = 'ANY 1 (m1_cd)'\n"), "{text}");
        assert!(foreign_lines(&text).is_empty());
        let nobody = Desired { follow: None, ..desired() };
        assert!(auto_conf(&config, &nobody).contains("primary_conninfo = ''\n"));
    }

    #[test]
    fn values_are_quoted_and_foreign_lines_found() {
        assert_eq!(setting("a", r"it's \ x"), "a = 'it''s \\\\ x'\n");
        let text = "# Do not edit\nwork_mem = '4MB'\nPrimary_conninfo='x'\n  max_wal_size  '1GB'\n";
        assert_eq!(foreign_lines(text), ["work_mem", "max_wal_size"]);
    }

    #[test]
    fn complaints_are_cut_to_their_words() {
        let log = "2026-01-01 00:00:00 GMT [1] LOG:  invalid value for parameter \"work_mem\": \"x\"\n\
                   2026-01-01 00:00:00 GMT [1] HINT:  Valid units are kB.\n\
                   2026-01-01 00:00:00 GMT [1] FATAL:  configuration file \"/x\" contains errors\n";
        assert_eq!(complaints(log), "invalid value for parameter \"work_mem\": \"x\"; Valid units are kB.");
        assert_eq!(complaints("segfault"), "segfault");
    }

    #[test]
    fn a_standby_gets_no_less_than_its_primary_has() {
        let required = Required {
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 20,
            max_prepared_transactions: 0,
            max_locks_per_transaction: 64,
        };
        assert_eq!(raised("max_wal_senders = '20'\n", &required), "");
        let text = "max_connections = 200\nMax_Connections = '30' # fewer\nmax_wal_senders 20\n";
        assert_eq!(raised(text, &required), "# The primary runs with more\nmax_connections = '100'\n");
        assert_eq!(number("a = 1\n#a = 2\nab = 3\n", "a"), Some(1));
        assert!(raised("max_wal_senders = x\n", &required).contains("max_wal_senders = '20'"));
    }

    #[test]
    fn what_safety_rests_on_comes_last() {
        let config = crate::postgres::testing::config(Path::new("/x"));
        let lines = instance_lines(&config);
        for name in
            ["fsync = 'on'", "restart_after_crash = 'off'", "ssl = 'on'", "allow_alter_system = 'off'"]
        {
            assert!(lines.contains(name), "{lines}");
        }
    }
}
