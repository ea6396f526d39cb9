//! What the init container does: puts the supervisor, and names for the uid, where the Postgres container finds them.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::Context;

/// Beside our own binary in the agent's image.
const SUPERVISOR: &str = "pgwarden-supervisor";

/// Fills `to`.
///
/// # Errors
/// When a file could not be read or written.
pub(crate) fn install(to: &Path) -> anyhow::Result<()> {
    let me = std::env::current_exe().context("failed to find the agent's own binary")?;
    let from = me.with_file_name(SUPERVISOR);
    let uid = rustix::process::getuid().as_raw();
    let gid = rustix::process::getgid().as_raw();
    let (passwd, group) = names(uid, gid);
    put(
        to,
        "supervisor",
        &fs::read(&from).with_context(|| format!("failed to read {}", from.display()))?,
        0o755,
    )?;
    put(to, "passwd", passwd.as_bytes(), 0o644)?;
    put(to, "group", group.as_bytes(), 0o644)
}

/// `/etc/passwd` and `/etc/group`: initdb and peer authentication need the name `postgres` for the uid that the pod runs as.
fn names(uid: u32, gid: u32) -> (String, String) {
    (
        format!("root:x:0:0:root:/:/sbin/nologin\npostgres:x:{uid}:{gid}:PostgreSQL:/tmp:/bin/sh\n"),
        format!("root:x:0:\npostgres:x:{gid}:\n"),
    )
}

/// Whole or not at all: a container that is restarted may run the old file.
fn put(to: &Path, name: &str, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let path = to.join(name);
    let temporary = to.join(format!(".{name}"));
    let failed = || format!("failed to write {}", path.display());
    fs::write(&temporary, content).with_context(failed)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(mode)).with_context(failed)?;
    fs::rename(&temporary, &path).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uid_has_the_name_that_peer_authentication_expects() {
        let (passwd, group) = names(999, 998);
        assert!(passwd.lines().any(|l| l.starts_with("postgres:x:999:998:")));
        assert!(group.lines().any(|l| l == "postgres:x:998:"));
    }
}
