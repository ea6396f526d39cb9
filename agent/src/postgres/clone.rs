//! A replica's data directory: a base backup of the holder, streamed over TLS with the replication certificate.

use std::{fs, io, net::IpAddr, path::Path};

use super::{
    REPLICATION_ROLE,
    control_file::{self, ControlFile},
    datadir::{self, DatadirError, Identity},
    files::{self, FileError, blocking},
};
use crate::{
    config::Config,
    supervisor::{RefusalCode, Supervisor, SupervisorError, Tool},
};

/// Where to copy from, and later to stream from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// DNS name, which the server certificate is checked against.
    pub host: String,
    /// Address, so that no name has to be resolved when the network is in trouble.
    pub address: IpAddr,
    /// Port of Postgres.
    pub port: u16,
}

impl Upstream {
    /// A libpq connection string with client certificate; `application_name` is the member's name.
    #[must_use]
    pub fn conninfo(&self, config: &Config, application_name: &str) -> String {
        let file = |name: &str| config.tls_dir.join(name).to_string_lossy().into_owned();
        let parts = [
            ("host", self.host.clone()),
            ("hostaddr", self.address.to_string()),
            ("port", self.port.to_string()),
            ("user", REPLICATION_ROLE.to_owned()),
            ("sslmode", "verify-full".to_owned()),
            ("sslcert", file("replication.crt")),
            ("sslkey", file("replication.key")),
            ("sslrootcert", file("ca.crt")),
            ("ssl_min_protocol_version", "TLSv1.3".to_owned()),
            ("application_name", application_name.to_owned()),
            // A dead peer is noticed in seconds, also when no data has to be sent.
            ("connect_timeout", "3".to_owned()),
            ("keepalives_idle", "5".to_owned()),
            ("keepalives_interval", "2".to_owned()),
            ("keepalives_count", "3".to_owned()),
            ("tcp_user_timeout", "10000".to_owned()),
        ];
        parts.map(|(name, value)| format!("{name}={}", conninfo_value(&value))).join(" ")
    }
}

/// A value as libpq reads it.
fn conninfo_value(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:*".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// How far the copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes copied.
    pub done: u64,
    /// Bytes to copy, as the primary estimated at the start.
    pub total: u64,
}

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// The image is not one of Postgres.
    #[error(
        "the Postgres image has no pg_basebackup ({message}); set spec.image to an image with PostgreSQL's programs"
    )]
    NoPostgres {
        /// Where it was looked for.
        message: String,
    },
    /// The volume is too small for the data.
    #[error(
        "the volume is full: the copy of {host} had {available} bytes at {mount}; give spec.storage a larger size"
    )]
    DiskFull {
        /// The source.
        host: String,
        /// Bytes free before it.
        available: u64,
        /// The volume.
        mount: String,
    },
    /// It failed.
    #[error("base backup of {host} failed ({status}): {lines}")]
    Failed {
        /// The source.
        host: String,
        /// How it ended.
        status: String,
        /// Its own last words.
        lines: String,
    },
    /// The source belongs to another cluster.
    #[error("{host} has system identifier {got}, this cluster has {wanted}: the copy was not taken")]
    Stranger {
        /// The source.
        host: String,
        /// The record's.
        wanted: u64,
        /// The copy's.
        got: u64,
    },
    /// It could not be run.
    #[error("failed to run pg_basebackup")]
    Supervisor(#[source] SupervisorError),
    /// The directory could not be prepared or put into its place.
    #[error("failed to make the data directory")]
    Datadir(#[from] DatadirError),
    /// The copy could not be read or changed.
    #[error("failed to prepare the copy")]
    File(#[from] FileError),
}

/// What to copy.
#[derive(Clone, Debug)]
pub struct Source {
    /// The holder's Postgres.
    pub upstream: Upstream,
    /// Slot that keeps the WAL for this copy, and later for the stream; also the application_name.
    pub slot: String,
    /// The cluster's.
    pub system_identifier: u64,
}

/// Copies the data directory of `identity` (from [`datadir::begin`]). An earlier half-done copy is removed and made anew: it is
/// never started. Cancel-safe: dropping the future kills pg_basebackup.
///
/// # Errors
/// See [`CloneError`]. It can be called again.
pub async fn run(
    config: &Config,
    supervisor: &Supervisor,
    identity: &Identity,
    source: &Source,
    mut progress: impl FnMut(Progress),
) -> Result<(Identity, ControlFile), CloneError> {
    let dir = datadir::clone_dir(config);
    datadir::make_room(config).await?;
    let available = datadir::disk(config).await?.available_bytes;
    let host = || source.upstream.host.clone();
    tracing::info!(uuid = identity.uuid, from = host(), slot = source.slot, available, "base backup starts");
    let tool = Tool::new(arguments(config, &dir, source));
    let output = supervisor
        .run_tool_watched(tool, |line| {
            if let Some(step) = read_progress(line) {
                progress(step);
            }
        })
        .await
        .map_err(|error| match error {
            SupervisorError::Refused { source, .. } if source.code == RefusalCode::ProgramNotFound => {
                CloneError::NoPostgres { message: source.message }
            }
            other => CloneError::Supervisor(other),
        })?;
    if !output.success() {
        if output.stderr.contains("No space left on device") {
            let mount = config.data_mount.display().to_string();
            return Err(CloneError::DiskFull { host: host(), available, mount });
        }
        let lines: Vec<&str> = output.stderr.lines().filter(|line| read_progress(line).is_none()).collect();
        let lines = lines.get(lines.len().saturating_sub(3)..).unwrap_or_default().join("; ");
        return Err(CloneError::Failed { host: host(), status: output.status.to_string(), lines });
    }
    let copy = dir.clone();
    let got = blocking("prepare the copy in", &dir, move || {
        strip(&copy)?;
        Ok(control_file::read(&copy))
    })
    .await?
    .map_err(|source| DatadirError::Control { path: dir.clone(), source })?
    .system_identifier;
    if got != source.system_identifier {
        return Err(CloneError::Stranger { host: host(), wanted: source.system_identifier, got });
    }
    let identity = datadir::install(config, dir, identity).await?;
    let control = datadir::control(config).await?;
    tracing::info!(uuid = identity.uuid, timeline = control.timeline(), "base backup done");
    Ok((identity, control))
}

fn arguments(config: &Config, dir: &Path, source: &Source) -> Vec<String> {
    vec![
        "pg_basebackup".to_owned(),
        format!("--pgdata={}", dir.display()),
        format!("--dbname={}", source.upstream.conninfo(config, &source.slot)),
        format!("--slot={}", source.slot),
        "--checkpoint=fast".to_owned(),
        "--wal-method=stream".to_owned(),
        // One syncfs at the end in place of an fsync for each file.
        "--no-sync".to_owned(),
        // Nobody verifies it: what travels is protected by TLS, what lies on disk by checksums.
        "--no-manifest".to_owned(),
        "--no-password".to_owned(),
        "--progress".to_owned(),
    ]
}

/// Removes what belongs to the source alone.
fn strip(dir: &Path) -> Result<(), FileError> {
    for name in [
        "postmaster.pid",
        "postmaster.opts",
        "standby.signal",
        "recovery.signal",
        "promote",
        "postgresql.auto.conf",
        "postgresql.auto.conf.tmp",
        "current_logfiles",
    ] {
        files::remove(&dir.join(name))?;
    }
    // A base backup holds no slots; a copy that came another way must not bring any, they would hold WAL for ever.
    let slots = dir.join("pg_replslot");
    let entries = match fs::read_dir(&slots) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(FileError::new("list", &slots)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(FileError::new("list", &slots))?;
        files::remove_tree(&entry.path())?;
    }
    Ok(())
}

/// Reads a line such as ` 12345/67890 kB (18%), 0/1 tablespace`.
fn read_progress(line: &str) -> Option<Progress> {
    let (numbers, _) = line.trim_start().split_once(" kB (")?;
    let (done, total) = numbers.split_once('/')?;
    let bytes = |text: &str| text.trim().parse::<u64>().ok()?.checked_mul(1024);
    Some(Progress { done: bytes(done)?, total: bytes(total)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_and_other_lines_are_not() {
        assert_eq!(
            read_progress("    1024/4096 kB (25%), 0/1 tablespace (/pgdata/clone.tmp/base)"),
            Some(Progress { done: 1 << 20, total: 4 << 20 })
        );
        assert_eq!(read_progress("pg_basebackup: error: could not connect to server"), None);
        assert_eq!(read_progress("a/b kB (1%)"), None);
    }

    #[test]
    fn values_are_quoted_as_libpq_reads_them() {
        assert_eq!(conninfo_value("/run/x.crt"), "/run/x.crt");
        assert_eq!(conninfo_value("2001:db8::1"), "2001:db8::1");
        assert_eq!(conninfo_value("/my dir/it's"), r"'/my dir/it\'s'");
        assert_eq!(conninfo_value(""), "''");
    }

    #[test]
    fn a_copy_loses_what_is_the_sources_alone() {
        let dir = crate::postgres::testing::scratch("strip");
        fs::create_dir_all(dir.join("pg_replslot/old")).unwrap();
        for name in [
            "postmaster.pid",
            "standby.signal",
            "postgresql.auto.conf",
            "pg_replslot/old/state",
            "PG_VERSION",
        ] {
            fs::write(dir.join(name), "").unwrap();
        }
        strip(&dir).unwrap();
        let mut left: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["PG_VERSION", "pg_replslot"]);
        assert_eq!(fs::read_dir(dir.join("pg_replslot")).unwrap().count(), 0);
        fs::remove_dir_all(&dir).unwrap();
    }
}
