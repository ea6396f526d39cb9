//! Puts files where Postgres reads them: all of one renewal appear at once, keys are never readable by others.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

/// Points to the directory of the files in force, as in a mounted Secret.
const CURRENT: &str = "..data";

/// Makes `dir/NAME` hold the given bytes for every file; `false` when it already does.
///
/// The names are links through `..data`, which is swapped by one rename: a reader finds a certificate and its own key.
pub(super) fn publish(dir: &Path, files: &[(&str, &[u8])]) -> io::Result<bool> {
    if files.iter().all(|(name, bytes)| fs::read(dir.join(name)).is_ok_and(|found| found == *bytes)) {
        return Ok(false);
    }
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let fresh = format!("..{nanos}");
    DirBuilder::new().mode(0o700).create(dir.join(&fresh))?;
    for (name, bytes) in files {
        let path = dir.join(&fresh).join(name);
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(bytes)?;
    }
    link(dir, CURRENT, &fresh)?;
    for (name, _) in files {
        let target = format!("{CURRENT}/{name}");
        if fs::read_link(dir.join(name)).is_ok_and(|found| found.as_os_str() == target.as_str()) {
            continue;
        }
        link(dir, name, &target)?;
    }
    // What is left of earlier renewals, also of an interrupted one.
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let old = name.to_string_lossy().starts_with("..") && name != *fresh && entry.file_type()?.is_dir();
        if old {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(true)
}

/// Makes `dir/name` a link to `target`, in one step.
fn link(dir: &Path, name: &str, target: &str) -> io::Result<()> {
    let fresh = dir.join(format!("..new-{}", name.trim_start_matches('.')));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(target, &fresh)?;
    fs::rename(&fresh, dir.join(name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_appear_together_and_only_the_last_stay() {
        let dir = crate::tls::testing::TempDir::new("publish");
        let dir = dir.path();
        fs::write(dir.join("server.key"), "a plain file from elsewhere").unwrap();
        assert!(publish(dir, &[("server.crt", b"c1"), ("server.key", b"k1")]).unwrap());
        assert!(!publish(dir, &[("server.crt", b"c1"), ("server.key", b"k1")]).unwrap());
        let one = fs::read_link(dir.join(CURRENT)).unwrap();
        assert!(publish(dir, &[("server.crt", b"c2"), ("server.key", b"k2")]).unwrap());
        assert_ne!(fs::read_link(dir.join(CURRENT)).unwrap(), one);
        assert_eq!(fs::read(dir.join("server.key")).unwrap(), b"k2");
        let mode = fs::metadata(dir.join("server.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut left: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        left.retain(|name| !name.starts_with("..1"));
        left.sort();
        assert_eq!(left, ["..data", "server.crt", "server.key"]);
        assert!(!dir.join(one).exists());
    }

    #[test]
    fn an_interrupted_renewal_is_finished_by_the_next() {
        let dir = crate::tls::testing::TempDir::new("interrupted");
        let dir = dir.path();
        fs::create_dir(dir.join("..17")).unwrap();
        symlink("..17", dir.join("..new-data")).unwrap();
        assert!(publish(dir, &[("ca.crt", b"x")]).unwrap());
        assert_eq!(fs::read(dir.join("ca.crt")).unwrap(), b"x");
        assert!(!dir.join("..17").exists());
        assert!(!dir.join("..new-data").exists());
    }
}
