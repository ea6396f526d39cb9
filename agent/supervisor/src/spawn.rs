//! Makes processes: the postmaster and the image's tools.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pgwarden_supervisor::protocol::{Refusal, RefusalCode, Run, Start};

use crate::{relay, sys};

/// Where Debian's packages, and so the official images, have the programs of each major version.
const FALLBACK: &str = "/usr/lib/postgresql";

/// Starts the postmaster; `descriptors` as [`Start`] documents them. `lock` is inherited: the volume stays locked until
/// the last process is gone, not only until the supervisor is.
pub(crate) fn postmaster(
    start: &Start,
    descriptors: Vec<OwnedFd>,
    lock: Option<&OwnedFd>,
) -> Result<i32, Refusal> {
    let mut descriptors = descriptors.into_iter();
    let death_pipe = if start.death_pipe { descriptors.next() } else { None };
    let log = if start.log { descriptors.next() } else { None };
    let mut command = prepare(&start.argv, &start.env, start.cwd.as_deref())?;
    // Without the relay Postgres would write to the container's streams itself: its log is worth less than its start.
    if let Some(log) = log.or_else(|| relay::start().ok()) {
        let copy = log.try_clone().map_err(|error| spawn_failed("log", &error))?;
        command.stdout(Stdio::from(copy)).stderr(Stdio::from(log));
    }
    let inherit = death_pipe.iter().chain(lock).map(AsRawFd::as_raw_fd).collect();
    spawn(command, start.cwd.as_deref(), inherit)
}

/// Starts a tool; `descriptors` as [`Run`] documents them.
pub(crate) fn tool(run: &Run, descriptors: Vec<OwnedFd>, lock: Option<&OwnedFd>) -> Result<i32, Refusal> {
    let mut descriptors = descriptors.into_iter();
    let mut command = prepare(&run.argv, &run.env, run.cwd.as_deref())?;
    if let Some(stdin) = if run.stdin { descriptors.next() } else { None } {
        command.stdin(Stdio::from(stdin));
    }
    if let Some(stdout) = if run.stdout { descriptors.next() } else { None } {
        command.stdout(Stdio::from(stdout));
    }
    if let Some(stderr) = if run.stderr { descriptors.next() } else { None } {
        command.stderr(Stdio::from(stderr));
    }
    spawn(command, run.cwd.as_deref(), lock.iter().map(|lock| lock.as_raw_fd()).collect())
}

/// A standby that does not know that it is one would come up writable, and no deadline would count for it.
pub(crate) fn require_standby(start: &Start) -> Result<(), Refusal> {
    let data_dir = data_dir(start).ok_or_else(|| {
        Refusal::new(RefusalCode::BadRequest, "a standby's data directory must be given by -D or PGDATA")
    })?;
    let marked = ["standby.signal", "recovery.conf"].iter().any(|name| data_dir.join(name).exists());
    if marked {
        return Ok(());
    }
    let text = format!("{} has no standby.signal: it would come up as a primary", data_dir.display());
    Err(Refusal::new(RefusalCode::NotStandby, text))
}

fn data_dir(start: &Start) -> Option<PathBuf> {
    let mut arguments = start.argv.iter().skip(1);
    let mut found = None;
    while let Some(argument) = arguments.next() {
        if argument == "-D" {
            found = arguments.next().cloned();
        } else if let Some(dir) = argument.strip_prefix("-D").or_else(|| argument.strip_prefix("--pgdata=")) {
            found = Some(dir.to_owned());
        }
    }
    let found = PathBuf::from(found.or_else(|| variable(&start.env, "PGDATA"))?);
    Some(match &start.cwd {
        Some(cwd) => Path::new(cwd).join(found),
        None => found,
    })
}

/// A variable as the process will see it.
fn variable(changes: &[String], name: &str) -> Option<String> {
    let mut value = env::var(name).ok();
    for change in changes {
        match change.split_once('=') {
            Some((changed, new)) if changed == name => value = Some(new.to_owned()),
            None if change == name => value = None,
            _ => {}
        }
    }
    value
}

fn prepare(argv: &[String], changes: &[String], cwd: Option<&str>) -> Result<Command, Refusal> {
    let program = argv.first().map_or("", String::as_str);
    let mut command = Command::new(find(program, variable(changes, "PATH").as_deref())?);
    command.args(argv.iter().skip(1)).stdin(Stdio::null());
    // Last change of a name wins.
    let changes: HashMap<&str, Option<&str>> = changes
        .iter()
        .map(|change| {
            change.split_once('=').map_or((change.as_str(), None), |(name, value)| (name, Some(value)))
        })
        .collect();
    for (name, value) in changes {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    if let Some(cwd) = cwd {
        command.current_dir(cwd);
    }
    Ok(command)
}

fn spawn(mut command: Command, cwd: Option<&str>, inherit: Vec<RawFd>) -> Result<i32, Refusal> {
    sys::detach(&mut command, inherit);
    let program = command.get_program().to_string_lossy().into_owned();
    match command.spawn() {
        Ok(child) => i32::try_from(child.id())
            .map_err(|_| Refusal::new(RefusalCode::SpawnFailed, format!("{program}: pid out of range"))),
        Err(error) => match cwd.filter(|cwd| !Path::new(cwd).is_dir()) {
            Some(cwd) => {
                Err(Refusal::new(RefusalCode::SpawnFailed, format!("{program}: no working directory {cwd}")))
            }
            None => Err(spawn_failed(&program, &error)),
        },
    }
}

fn spawn_failed(program: &str, error: &io::Error) -> Refusal {
    Refusal::new(RefusalCode::SpawnFailed, format!("{program}: {error}"))
}

/// A name without a slash is searched on `PATH`, then below [`FALLBACK`].
fn find(program: &str, path: Option<&str>) -> Result<PathBuf, Refusal> {
    find_in(program, path, Path::new(FALLBACK))
}

fn find_in(program: &str, path: Option<&str>, fallback: &Path) -> Result<PathBuf, Refusal> {
    if program.contains('/') {
        let path = PathBuf::from(program);
        return if is_program(&path) {
            Ok(path)
        } else {
            Err(Refusal::new(RefusalCode::ProgramNotFound, format!("{program}: not a program of this image")))
        };
    }
    let path = path.unwrap_or_default();
    let on_path = path.split(':').filter(|dir| !dir.is_empty()).map(|dir| Path::new(dir).join(program));
    on_path
        .chain(versions(fallback).into_iter().map(|dir| dir.join("bin").join(program)))
        .find(|it| is_program(it))
        .ok_or_else(|| {
            let text = format!(
                "{program}: not found on PATH ({path}) nor in {FALLBACK}/*/bin: this image has no PostgreSQL"
            );
            Refusal::new(RefusalCode::ProgramNotFound, text)
        })
}

/// Directories of major versions, newest first.
fn versions(fallback: &Path) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir(fallback)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let major = name.to_str()?.split('.').next()?.parse().ok()?;
            Some((major, entry.path()))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgwarden_supervisor::protocol::Mode;

    fn strings(items: &[&str]) -> Vec<String> {
        items.iter().map(|&item| item.to_owned()).collect()
    }

    fn start(argv: &[&str], env: &[&str], cwd: Option<&str>) -> Start {
        Start {
            mode: Mode::Standby,
            epoch: 1,
            argv: strings(argv),
            env: strings(env),
            cwd: cwd.map(str::to_owned),
            death_pipe: false,
            log: false,
        }
    }

    #[test]
    fn data_directory_is_found_as_postgres_does() {
        let dir = |start: Start| data_dir(&start).map(|dir| dir.display().to_string());
        assert_eq!(dir(start(&["postgres", "-D", "/a"], &["PGDATA=/b"], None)), Some("/a".into()));
        assert_eq!(dir(start(&["postgres", "-D/a", "-D", "/c"], &[], None)), Some("/c".into()));
        assert_eq!(dir(start(&["postgres", "--pgdata=/a"], &[], None)), Some("/a".into()));
        assert_eq!(dir(start(&["postgres"], &["PGDATA=/b"], None)), Some("/b".into()));
        assert_eq!(dir(start(&["postgres", "-D", "a"], &[], Some("/x"))), Some("/x/a".into()));
        assert_eq!(dir(start(&["postgres"], &["PGDATA=/b", "PGDATA"], None)), None);
        assert!(require_standby(&start(&["postgres", "-D", "/"], &[], None)).is_err());
    }

    #[test]
    fn programs_are_found() {
        let dir = env::temp_dir().join(format!("supervisor-find-{}", std::process::id()));
        for version in ["9.6", "15", "9"] {
            let bin = dir.join(version).join("bin");
            fs::create_dir_all(&bin).unwrap();
            fs::write(bin.join("initdb"), "").unwrap();
            let mode = if version == "9" { 0o644 } else { 0o755 };
            fs::set_permissions(bin.join("initdb"), fs::Permissions::from_mode(mode)).unwrap();
        }
        assert_eq!(find_in("initdb", Some("/nowhere::"), &dir).unwrap(), dir.join("15/bin/initdb"));
        let on_path = format!("/nowhere:{}", dir.join("9.6/bin").display());
        assert_eq!(find_in("initdb", Some(&on_path), &dir).unwrap(), dir.join("9.6/bin/initdb"));
        let refusal = find_in("initdb", Some("/nowhere"), Path::new("/nowhere")).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::ProgramNotFound);
        assert!(refusal.message.contains("this image has no PostgreSQL"));
        let data = dir.join("9/bin/initdb").display().to_string();
        assert_eq!(find_in(&data, None, &dir).unwrap_err().code, RefusalCode::ProgramNotFound);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn changes_of_the_environment_apply_in_order() {
        assert_eq!(variable(&strings(&["A=1", "A=2"]), "A").as_deref(), Some("2"));
        assert_eq!(variable(&strings(&["A=1", "A"]), "A"), None);
        assert_eq!(variable(&strings(&["A=b=c"]), "A").as_deref(), Some("b=c"));
    }
}
