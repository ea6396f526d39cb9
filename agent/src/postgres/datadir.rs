//! The volume: what lies where, what state it is in, and the identity of the data.
//!
//! | path below the mount | what |
//! |---|---|
//! | `.lock` | the supervisor's lock on the volume |
//! | `instance.json` | identity of this data directory, and the highest epoch promised |
//! | `pgdata` | the data directory: complete whenever it exists, since it appears by a rename |
//! | `initdb.tmp`, `clone.tmp` | one that is being made; removed, never started, when its making was interrupted |
//! | `set-aside-TIME-SYSID` | one that belongs to another cluster or lineage; the operator never deletes it |

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use pgwarden_proto::v1;
use serde::{Deserialize, Serialize};

use super::{
    control_file::{self, ControlFile, ControlFileError},
    files::{self, FileError, blocking},
};
use crate::config::Config;

/// Why the volume could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum DatadirError {
    /// A file failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The identity file has been tampered with.
    #[error("failed to understand {}", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A data directory would be made over another one.
    #[error("{} exists already: it is set aside or started, never overwritten", path.display())]
    Exists {
        /// The data directory.
        path: PathBuf,
    },
    /// A UUID stands for one data directory only: its data may have voted, the next one's has not.
    #[error("identity {uuid} was another data directory's on this volume")]
    Reused {
        /// The identity.
        uuid: String,
    },
    /// The image's programs are another version's.
    #[error(
        "the Postgres image has PostgreSQL {found}, spec.version is {wanted}: set spec.image to an image of version {wanted}, or leave \
         it out"
    )]
    OtherVersion {
        /// Of the image.
        found: String,
        /// Of the manifest.
        wanted: u32,
    },
    /// What was made can't be read.
    #[error("failed to read the control file of {}", path.display())]
    Control {
        /// The data directory.
        path: PathBuf,
        /// Why.
        source: ControlFileError,
    },
}

/// What is done with the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// initdb runs.
    Initdb,
    /// A base backup is being copied.
    Clone,
    /// pg_rewind changes the directory in place: interrupted, it is of no use.
    Rewind,
    /// It is whole.
    Complete,
}

/// `instance.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Random; a new data directory has a new one.
    pub uuid: String,
    /// Highest epoch promised to anybody: survives even the data.
    pub promised_epoch: u64,
    /// What is done with the data directory.
    pub phase: Phase,
    /// What made it: `Initdb` or `Clone`.
    pub made_by: Phase,
}

/// What was found on the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// No data. What was promised before still binds.
    Empty {
        /// Highest epoch promised.
        promised_epoch: u64,
    },
    /// The making of a data directory was interrupted.
    Interrupted {
        /// What was being done.
        what: Phase,
        /// Its identity; kept when the same is begun again.
        identity: Identity,
    },
    /// A whole data directory with its identity.
    Complete {
        /// Its identity.
        identity: Identity,
        /// Its control file.
        control: ControlFile,
        /// It would start as a standby.
        standby: bool,
    },
    /// Something that was not made here, is damaged, or of another version. It is never started.
    Foreign {
        /// What is wrong with it, for a person.
        why: String,
        /// Its system identifier, if it could be read.
        system_identifier: Option<u64>,
        /// Highest epoch promised.
        promised_epoch: u64,
    },
}

/// What [`inspect`] reads: everything that the judgement depends on.
#[derive(Debug)]
struct Seen {
    identity: Option<Identity>,
    /// Names in the data directory; `None` when it does not exist.
    pgdata: Option<Pgdata>,
}

#[derive(Debug)]
struct Pgdata {
    empty: bool,
    /// Content of PG_VERSION.
    version: Option<String>,
    standby: bool,
    control: Result<ControlFile, String>,
}

/// Path of the supervisor's lock.
#[must_use]
pub fn lock_path(config: &Config) -> PathBuf {
    config.data_mount.join(".lock")
}

/// Where initdb works.
pub(crate) fn initdb_dir(config: &Config) -> PathBuf {
    config.data_mount.join("initdb.tmp")
}

/// Where the base backup is copied to.
pub(crate) fn clone_dir(config: &Config) -> PathBuf {
    config.data_mount.join("clone.tmp")
}

fn identity_path(config: &Config) -> PathBuf {
    config.data_mount.join("instance.json")
}

/// Looks at the volume. Changes nothing. Call it with the volume's lock held, so that no other pod writes meanwhile.
///
/// # Errors
/// When something could not be read at all; a damaged data directory is [`Found::Foreign`], not an error.
pub async fn inspect(config: &Config) -> Result<Found, DatadirError> {
    let at = config.clone();
    let seen = run(config, "inspect", move || see(&at)).await?;
    Ok(judge(seen, config.version))
}

fn see(config: &Config) -> Result<Seen, DatadirError> {
    Ok(Seen { identity: load_identity(config)?, pgdata: see_pgdata(&config.pgdata())? })
}

fn see_pgdata(path: &Path) -> Result<Option<Pgdata>, FileError> {
    let mut entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::new("list", path)(error)),
    };
    let version = files::read(&path.join("PG_VERSION"))?;
    Ok(Some(Pgdata {
        empty: entries.next().is_none(),
        version: version.map(|text| String::from_utf8_lossy(&text).trim().to_owned()),
        standby: path.join("standby.signal").exists(),
        control: control_file::read(path).map_err(|error| super::describe(&error)),
    }))
}

/// Decides what the volume holds.
fn judge(seen: Seen, major: u32) -> Found {
    let promised_epoch = seen.identity.as_ref().map_or(0, |identity| identity.promised_epoch);
    let Some(pgdata) = seen.pgdata.filter(|pgdata| !pgdata.empty) else {
        return match seen.identity {
            Some(identity) if matches!(identity.phase, Phase::Initdb | Phase::Clone) => {
                Found::Interrupted { what: identity.phase, identity }
            }
            // The data that this identity stood for is gone: it must not be used again.
            Some(_) | None => Found::Empty { promised_epoch },
        };
    };
    let system_identifier = pgdata.control.as_ref().ok().map(|control| control.system_identifier);
    let foreign = |why: String| Found::Foreign { why, system_identifier, promised_epoch };
    let version = pgdata.version.as_deref().unwrap_or_default();
    if version != major.to_string() {
        return foreign(match version {
            "" => "the data directory has no PG_VERSION: PostgreSQL did not make it".to_owned(),
            other => format!("the data directory is of PostgreSQL {other}, this pod runs {major}"),
        });
    }
    match (seen.identity, pgdata.control) {
        (None, _) => {
            foreign("the data directory has no instance.json: it was not made by this operator".into())
        }
        (Some(identity), _) if identity.phase == Phase::Rewind => {
            Found::Interrupted { what: Phase::Rewind, identity }
        }
        (Some(_), Err(why)) => foreign(why),
        // A directory gets its name when it is whole: a crash between that and the last write of the identity changes nothing.
        (Some(identity), Ok(control)) => Found::Complete {
            identity: Identity { phase: Phase::Complete, ..identity },
            control,
            standby: pgdata.standby,
        },
    }
}

/// Begins to make a data directory: gives it its identity, durably, before anything else is done.
///
/// # Errors
/// [`DatadirError::Exists`] when there is a data directory, [`DatadirError::Reused`] when data of this UUID has existed.
pub async fn begin(
    config: &Config,
    phase: Phase,
    uuid: &str,
    promised_epoch: u64,
) -> Result<Identity, DatadirError> {
    let (at, uuid) = (config.clone(), uuid.to_owned());
    run(config, "begin", move || {
        // An empty directory is none; rename would replace it, but a stranger's file must not be lost.
        if see_pgdata(&at.pgdata())?.is_some_and(|pgdata| !pgdata.empty) {
            return Err(DatadirError::Exists { path: at.pgdata() });
        }
        let had_data =
            |old: &Identity| old.uuid == uuid && matches!(old.phase, Phase::Complete | Phase::Rewind);
        if load_identity(&at)?.as_ref().is_some_and(had_data) {
            return Err(DatadirError::Reused { uuid });
        }
        let identity = Identity { uuid, promised_epoch, phase, made_by: phase };
        save_identity(&at, &identity)?;
        Ok(identity)
    })
    .await
}

/// Puts a directory that was made into its place. The files are durable before it gets its name, and the name before the identity
/// says so.
pub(crate) async fn install(
    config: &Config,
    made: PathBuf,
    identity: &Identity,
) -> Result<Identity, DatadirError> {
    let (at, identity) = (config.clone(), Identity { phase: Phase::Complete, ..identity.clone() });
    run(config, "install", move || {
        let version = files::read(&made.join("PG_VERSION"))?.unwrap_or_default();
        let found = String::from_utf8_lossy(&version).trim().to_owned();
        // The cluster's system identifier would be recorded for data that no pod of the right version can start.
        if found != at.version.to_string() {
            return Err(DatadirError::OtherVersion { found, wanted: at.version });
        }
        set_mode(&made)?;
        files::sync_all(&made)?;
        let pgdata = at.pgdata();
        fs::rename(&made, &pgdata).map_err(FileError::new("rename to its place", &made))?;
        files::sync_parent(&pgdata)?;
        save_identity(&at, &identity)?;
        Ok(identity)
    })
    .await
}

/// Notes what is done with a complete data directory: [`Phase::Rewind`] before pg_rewind, [`Phase::Complete`] after it.
///
/// # Errors
/// When the identity could not be written.
pub async fn set_phase(config: &Config, identity: &Identity, phase: Phase) -> Result<Identity, DatadirError> {
    let changed = Identity { phase, ..identity.clone() };
    store(config, changed).await
}

/// Promises an epoch: durable when this returns. It never goes down.
///
/// # Errors
/// When the identity could not be written: then nothing was promised.
pub async fn promise(config: &Config, identity: &Identity, epoch: u64) -> Result<Identity, DatadirError> {
    let changed = Identity { promised_epoch: identity.promised_epoch.max(epoch), ..identity.clone() };
    store(config, changed).await
}

async fn store(config: &Config, identity: Identity) -> Result<Identity, DatadirError> {
    let at = config.clone();
    run(config, "write the identity", move || {
        save_identity(&at, &identity)?;
        Ok(identity)
    })
    .await
}

/// Renames the data directory, so that another can be made: it belongs to another cluster, or its lineage does not lead here.
/// Never deleted: its new name says when and which. Returns that.
///
/// # Errors
/// When there is none, or it could not be renamed.
pub async fn set_aside(config: &Config) -> Result<PathBuf, DatadirError> {
    let at = config.clone();
    run(config, "set aside", move || {
        let pgdata = at.pgdata();
        // Data of this identity may have voted: an identity that still reads as "being made" would be used for the next data too.
        if let Some(identity) = load_identity(&at)?.filter(|identity| identity.phase != Phase::Complete) {
            save_identity(&at, &Identity { phase: Phase::Complete, ..identity })?;
        }
        let identifier = control_file::read(&pgdata)
            .map_or_else(|_| "unknown".to_owned(), |control| control.system_identifier.to_string());
        let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let mut target = at.data_mount.join(format!("set-aside-{time}-{identifier}"));
        // Twice in one second: rename would not replace a directory with content, but say so in no useful words.
        for number in 2..100 {
            if !target.exists() {
                break;
            }
            target = at.data_mount.join(format!("set-aside-{time}-{identifier}-{number}"));
        }
        fs::rename(&pgdata, &target).map_err(FileError::new("set aside", &pgdata))?;
        files::sync_parent(&pgdata)?;
        tracing::warn!(from = %pgdata.display(), to = %target.display(), "data directory set aside");
        Ok(target)
    })
    .await
}

/// Removes what an interrupted initdb, clone or rewind left, and its identity; nothing else. [`inspect`] finds the volume empty then.
///
/// # Errors
/// When something could not be removed.
pub async fn discard(config: &Config) -> Result<(), DatadirError> {
    let at = config.clone();
    run(config, "discard", move || {
        clear_temporary(&at)?;
        let Some(identity) = load_identity(&at)? else { return Ok(()) };
        if identity.phase == Phase::Rewind {
            // Neither what it was nor what it was to become.
            files::remove_tree(&at.pgdata())?;
        }
        if identity.phase != Phase::Complete && see_pgdata(&at.pgdata())?.is_none() {
            files::remove(&identity_path(&at))?;
            files::sync_parent(&at.pgdata())?;
        }
        Ok(())
    })
    .await
}

/// Removes what an earlier attempt left where the next one wants to work.
pub(crate) async fn make_room(config: &Config) -> Result<(), DatadirError> {
    let at = config.clone();
    run(config, "remove left-overs", move || clear_temporary(&at)).await
}

fn clear_temporary(config: &Config) -> Result<(), DatadirError> {
    files::remove_tree(&initdb_dir(config))?;
    files::remove_tree(&clone_dir(config))?;
    Ok(())
}

/// Before a start: mode 0700 (an fsGroup changes it), and no `postmaster.pid` of a dead container, whose process id may be taken
/// here. Only with the volume's lock held and no Postgres running.
///
/// # Errors
/// When the directory could not be changed.
pub async fn prepare_start(config: &Config) -> Result<(), DatadirError> {
    let pgdata = config.pgdata();
    run(config, "prepare", move || {
        set_mode(&pgdata)?;
        if files::remove(&pgdata.join("postmaster.pid"))? {
            tracing::info!("stale postmaster.pid removed");
        }
        files::remove(&pgdata.join("promote"))?;
        Ok(())
    })
    .await
}

/// Reads the control file of the data directory.
///
/// # Errors
/// When it is missing or damaged.
pub async fn control(config: &Config) -> Result<ControlFile, DatadirError> {
    let pgdata = config.pgdata();
    run(config, "read the control file", move || {
        control_file::read(&pgdata).map_err(|source| DatadirError::Control { path: pgdata, source })
    })
    .await
}

/// Size and free space of the volume.
///
/// # Errors
/// When it can't be asked for.
pub async fn disk(config: &Config) -> Result<v1::Disk, FileError> {
    let mount = config.data_mount.clone();
    blocking("measure", &config.data_mount, move || {
        let stat = rustix::fs::statvfs(&mount)
            .map_err(|error| FileError::new("measure", &mount)(io::Error::from(error)))?;
        Ok(v1::Disk {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            wal_bytes: 0,
        })
    })
    .await
}

fn set_mode(path: &Path) -> Result<(), FileError> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(FileError::new("chmod", path))
}

fn load_identity(config: &Config) -> Result<Option<Identity>, DatadirError> {
    let path = identity_path(config);
    files::read(&path)?
        .map(|text| serde_json::from_slice(&text))
        .transpose()
        .map_err(|source| DatadirError::Identity { path, source })
}

fn save_identity(config: &Config, identity: &Identity) -> Result<(), DatadirError> {
    let path = identity_path(config);
    let text = serde_json::to_vec(identity)
        .map_err(|source| DatadirError::Identity { path: path.clone(), source })?;
    files::write(&path, &text, 0o600)?;
    Ok(())
}

async fn run<T: Send + 'static>(
    config: &Config,
    what: &'static str,
    work: impl FnOnce() -> Result<T, DatadirError> + Send + 'static,
) -> Result<T, DatadirError> {
    blocking(what, &config.data_mount, move || Ok(work())).await?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::testing;

    fn identity(phase: Phase) -> Identity {
        Identity { uuid: "u".into(), promised_epoch: 7, phase, made_by: Phase::Clone }
    }

    fn control() -> ControlFile {
        ControlFile {
            system_identifier: 42,
            control_version: 1300,
            state: control_file::ClusterState::ShutDown,
            checkpoint: 0,
            redo: 0,
            checkpoint_timeline: 1,
            min_recovery_point: 0,
            min_recovery_timeline: 0,
            checksums: true,
            required: control_file::Required::default(),
        }
    }

    fn pgdata(version: &str) -> Pgdata {
        Pgdata { empty: false, version: Some(version.into()), standby: true, control: Ok(control()) }
    }

    #[test]
    fn judgement_of_every_kind_of_volume() {
        let judge = |identity, pgdata| judge(Seen { identity, pgdata }, 17);
        assert_eq!(judge(None, None), Found::Empty { promised_epoch: 0 });
        // An identity without its data is never used again, but what it promised binds.
        assert_eq!(judge(Some(identity(Phase::Complete)), None), Found::Empty { promised_epoch: 7 });
        assert_eq!(judge(Some(identity(Phase::Rewind)), None), Found::Empty { promised_epoch: 7 });
        for what in [Phase::Initdb, Phase::Clone] {
            let found = judge(Some(identity(what)), None);
            assert_eq!(found, Found::Interrupted { what, identity: identity(what) });
            // The rename was the last step but one.
            assert!(matches!(
                judge(Some(identity(what)), Some(pgdata("17"))),
                Found::Complete { identity: Identity { phase: Phase::Complete, .. }, standby: true, .. }
            ));
        }
        assert!(matches!(
            judge(Some(identity(Phase::Rewind)), Some(pgdata("17"))),
            Found::Interrupted { what: Phase::Rewind, .. }
        ));
        let empty = Pgdata { empty: true, version: None, standby: false, control: Err("none".into()) };
        assert_eq!(judge(None, Some(empty)), Found::Empty { promised_epoch: 0 });
        let why = |found| match found {
            Found::Foreign { why, system_identifier, .. } => (why, system_identifier),
            other => panic!("{other:?}"),
        };
        assert_eq!(why(judge(None, Some(pgdata("17")))).1, Some(42));
        assert!(why(judge(Some(identity(Phase::Complete)), Some(pgdata("15")))).0.contains("15"));
        let damaged = Pgdata { control: Err("damaged".into()), ..pgdata("17") };
        assert_eq!(why(judge(Some(identity(Phase::Complete)), Some(damaged))), ("damaged".into(), None));
        let stranger = Pgdata { version: None, ..pgdata("") };
        assert!(why(judge(Some(identity(Phase::Complete)), Some(stranger))).0.contains("PG_VERSION"));
    }

    #[tokio::test]
    async fn an_identity_stands_for_one_data_directory() {
        let dir = testing::scratch("datadir");
        let config = testing::config(&dir);
        fs::create_dir_all(&config.data_mount).unwrap();
        assert_eq!(inspect(&config).await.unwrap(), Found::Empty { promised_epoch: 0 });

        let first = begin(&config, Phase::Clone, "one", 3).await.unwrap();
        fs::create_dir(clone_dir(&config)).unwrap();
        let found = inspect(&config).await.unwrap();
        assert_eq!(found, Found::Interrupted { what: Phase::Clone, identity: first.clone() });
        assert_eq!(begin(&config, Phase::Clone, "one", 3).await.unwrap(), first, "the same is begun again");
        discard(&config).await.unwrap();
        assert!(!clone_dir(&config).exists());
        assert_eq!(inspect(&config).await.unwrap(), Found::Empty { promised_epoch: 0 });

        let second = begin(&config, Phase::Initdb, "two", 3).await.unwrap();
        fs::create_dir(initdb_dir(&config)).unwrap();
        fs::write(initdb_dir(&config).join("PG_VERSION"), "9\n").unwrap();
        let other = install(&config, initdb_dir(&config), &second).await.unwrap_err();
        assert!(other.to_string().contains("PostgreSQL 9"), "{other}");
        assert!(!config.pgdata().exists(), "another version's data got its name");
        let version = format!("{}\n", config.version);
        fs::write(initdb_dir(&config).join("PG_VERSION"), version).unwrap();
        let complete = install(&config, initdb_dir(&config), &second).await.unwrap();
        let mode = fs::metadata(config.pgdata()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(matches!(begin(&config, Phase::Clone, "x", 0).await, Err(DatadirError::Exists { .. })));
        // No control file in it: not to be started.
        assert!(matches!(inspect(&config).await.unwrap(), Found::Foreign { promised_epoch: 3, .. }));
        discard(&config).await.unwrap();
        assert!(config.pgdata().join("PG_VERSION").exists(), "only what was interrupted is discarded");

        let promised = promise(&config, &complete, 9).await.unwrap();
        assert_eq!(promise(&config, &promised, 4).await.unwrap().promised_epoch, 9, "never lower");
        let aside = set_aside(&config).await.unwrap();
        assert!(aside.join("PG_VERSION").exists());
        assert_eq!(inspect(&config).await.unwrap(), Found::Empty { promised_epoch: 9 });
        assert!(matches!(begin(&config, Phase::Clone, "two", 0).await, Err(DatadirError::Reused { .. })));
        begin(&config, Phase::Clone, "three", 0).await.unwrap();

        // A crash between the rename and the last write of the identity, then another lineage.
        fs::create_dir(config.pgdata()).unwrap();
        fs::write(config.pgdata().join("PG_VERSION"), "17\n").unwrap();
        set_aside(&config).await.unwrap();
        assert!(matches!(begin(&config, Phase::Clone, "three", 0).await, Err(DatadirError::Reused { .. })));

        // Half rewound: of no use to anybody.
        let four = begin(&config, Phase::Clone, "four", 0).await.unwrap();
        fs::create_dir(config.pgdata()).unwrap();
        fs::write(config.pgdata().join("PG_VERSION"), "17\n").unwrap();
        set_phase(&config, &four, Phase::Rewind).await.unwrap();
        assert!(matches!(inspect(&config).await.unwrap(), Found::Interrupted { what: Phase::Rewind, .. }));
        discard(&config).await.unwrap();
        assert_eq!(inspect(&config).await.unwrap(), Found::Empty { promised_epoch: 0 });
        fs::remove_dir_all(&dir).unwrap();
    }

    #[tokio::test]
    async fn a_tampered_identity_is_named() {
        let dir = testing::scratch("identity");
        let config = testing::config(&dir);
        fs::create_dir_all(&config.data_mount).unwrap();
        fs::write(identity_path(&config), "{").unwrap();
        let error = inspect(&config).await.unwrap_err();
        assert!(error.to_string().contains("instance.json"), "{error}");
        fs::remove_dir_all(&dir).unwrap();
    }
}
