//! Small files on the volume, written so that a crash leaves the old content or the new one, and blocking work off the async thread.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Something with a file failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {what} {}", path.display())]
pub struct FileError {
    /// What was to be done.
    pub what: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`.
    pub(crate) fn new(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { what, path, source }
    }

    /// The volume is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// Runs work that may block, or hang with the disk, on a thread of its own. Dropping the future leaves the work running to its
/// end: so it must be harmless when done late.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    path: &Path,
    work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, FileError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(FileError { what, path: path.to_owned(), source: io::Error::other(error) }),
    }
}

/// Writes a file whole: fsync, rename, fsync of the directory. Nothing when it has this content and mode already. Whether it changed.
pub(crate) fn write(path: &Path, content: &[u8], mode: u32) -> Result<bool, FileError> {
    use std::os::unix::fs::PermissionsExt;
    if fs::read(path).is_ok_and(|old| old == content)
        && fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o777 == mode)
    {
        return Ok(false);
    }
    let temporary = temporary(path);
    let failed = || FileError::new("write", path);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .map_err(failed())?;
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed())?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed())?;
    fs::rename(&temporary, path).map_err(failed())?;
    sync_parent(path)?;
    Ok(true)
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    path.with_file_name(name)
}

/// Makes renames and removals in the directory of `path` durable.
pub(crate) fn sync_parent(path: &Path) -> Result<(), FileError> {
    let parent = path.parent().unwrap_or_else(|| Path::new("/"));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(FileError::new("sync", parent))
}

/// Makes everything on the file system of `path` durable: one call in place of an fsync for each of thousands of files.
pub(crate) fn sync_all(path: &Path) -> Result<(), FileError> {
    File::open(path)
        .and_then(|dir| rustix::fs::syncfs(dir).map_err(io::Error::from))
        .map_err(FileError::new("sync the file system of", path))
}

/// Removes a file, if it is there. Whether it was.
pub(crate) fn remove(path: &Path) -> Result<bool, FileError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FileError::new("remove", path)(error)),
    }
}

/// Removes a directory with all that is in it, if it is there.
pub(crate) fn remove_tree(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::new("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The content of a file, `None` when there is none.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::new("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_file_is_written_once_and_only_when_it_changes() {
        let dir = crate::postgres::testing::scratch("files");
        let path = dir.join("a");
        assert!(write(&path, b"one", 0o600).unwrap());
        let inode = fs::metadata(&path).unwrap().ino();
        assert!(!write(&path, b"one", 0o600).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "an unchanged file is not touched");
        assert!(write(&path, b"two", 0o600).unwrap());
        assert!(write(&path, b"two", 0o644).unwrap(), "the mode counts too");
        assert_eq!(read(&path).unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "no temporary file stays");
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
        assert_eq!(read(&path).unwrap(), None);
        let error = write(&dir.join("no/such"), b"", 0o600).unwrap_err();
        assert!(error.to_string().contains("no/such"), "{error}");
        fs::remove_dir_all(&dir).unwrap();
    }
}
