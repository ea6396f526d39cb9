//! The record in a file, for tests: agents of one machine share it without Kubernetes.
//!
//! `record.json` holds it. While a file `away` (for all) or `away-POD` exists, nothing answers.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::{
    future::BoxFuture,
    stream::{self, BoxStream},
};
use pgwarden_api::record::PostgreSQLRecordSpec;
use pgwarden_ha::{Outcome, Reading, Record, Version};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::{Change, RecordStore, convert};

/// How often the file is looked at by a watch.
const POLL: Duration = Duration::from_millis(20);

/// See the module.
#[derive(Clone, Debug)]
pub struct FileStore {
    dir: PathBuf,
    pod: String,
}

/// What the file holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Content {
    /// Grows with each write.
    pub order: u64,
    /// The record.
    pub spec: PostgreSQLRecordSpec,
}

impl FileStore {
    /// The record in `dir`, as `pod` sees it.
    #[must_use]
    pub fn new(dir: &Path, pod: &str) -> Self {
        Self { dir: dir.to_owned(), pod: pod.to_owned() }
    }

    /// What the controller does: makes an empty record.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn create(dir: &Path) -> io::Result<()> {
        Self::save(dir, &Content { order: 1, ..Content::default() })
    }

    /// The content of the file.
    ///
    /// # Errors
    /// When there is none, or it can't be read.
    pub fn load(dir: &Path) -> io::Result<Content> {
        serde_json::from_slice(&fs::read(dir.join("record.json"))?).map_err(io::Error::other)
    }

    fn save(dir: &Path, content: &Content) -> io::Result<()> {
        let temporary = dir.join(format!("record.tmp-{}", std::process::id()));
        fs::write(&temporary, serde_json::to_vec_pretty(content).map_err(io::Error::other)?)?;
        fs::rename(temporary, dir.join("record.json"))
    }

    fn away(&self) -> bool {
        self.dir.join("away").exists() || self.dir.join(format!("away-{}", self.pod)).exists()
    }

    fn lock(&self) -> io::Result<File> {
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(self.dir.join("record.lock"))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    fn read(&self) -> Reading {
        match Self::load(&self.dir) {
            Ok(content) => convert::from_api(&content.spec)
                .map_or(Reading::Failed, |record| Reading::Found(version(&content), record)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Reading::Missing,
            Err(_) => Reading::Failed,
        }
    }

    fn write(&self, expected: &Version, record: &Record) -> io::Result<Outcome> {
        let _lock = self.lock()?;
        let mut content = Self::load(&self.dir)?;
        if version(&content) != *expected {
            return Ok(Outcome::Conflict);
        }
        content.order += 1;
        convert::into_api(record, &mut content.spec);
        Self::save(&self.dir, &content)?;
        Ok(Outcome::Applied(version(&content)))
    }
}

fn version(content: &Content) -> Version {
    Version { object: "file".into(), order: content.order, token: content.order.to_string() }
}

impl RecordStore for FileStore {
    fn get(&self, limit: Duration) -> BoxFuture<'static, Reading> {
        let this = self.clone();
        Box::pin(async move {
            if this.away() {
                sleep(limit).await;
                return Reading::Failed;
            }
            this.read()
        })
    }

    fn replace(&self, expected: Version, record: Record, limit: Duration) -> BoxFuture<'static, Outcome> {
        let this = self.clone();
        Box::pin(async move {
            if this.away() {
                sleep(limit).await;
                return Outcome::Unknown;
            }
            this.write(&expected, &record).unwrap_or(Outcome::Unknown)
        })
    }

    fn watch(&self) -> BoxStream<'static, Change> {
        Box::pin(stream::unfold((self.clone(), None), |(this, mut last)| async move {
            loop {
                if !this.away() {
                    match this.read() {
                        Reading::Found(version, record) if last.as_ref() != Some(&version) => {
                            last = Some(version.clone());
                            return Some((Change::Observed(version, record), (this, last)));
                        }
                        Reading::Missing if last.is_some() => {
                            last = None;
                            return Some((Change::Deleted, (this, last)));
                        }
                        Reading::Found(..) | Reading::Missing | Reading::Failed => {}
                    }
                }
                sleep(POLL).await;
            }
        }))
    }
}
