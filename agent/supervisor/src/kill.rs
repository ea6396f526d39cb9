//! SIGKILL to everything but the supervisor.
//!
//! `kill(-1)` is right for PID 1 of a PID namespace and a disaster for anybody else. The choice is made once, by looking
//! at the own pid, can't be passed in, and is checked again right before the call.

use std::fs;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::sys;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// PID 1: everything in the namespace, by one system call that no fork can slip through.
    Namespace,
    /// Anything else (tests, a shared PID namespace): the own descendants, found in `/proc`.
    Descendants,
}

/// Kills. There is no way to make one with a wrong scope.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Killer {
    scope: Scope,
}

impl Killer {
    /// Looks at the own pid. Without PID 1 it also becomes the parent of orphans, or they could not be found.
    pub(crate) fn detect() -> Self {
        if std::process::id() == 1 {
            return Self { scope: Scope::Namespace };
        }
        // Any pid switches it on; failing leaves orphans to init, which only a test could notice.
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
        Self { scope: Scope::Descendants }
    }

    pub(crate) fn pid_one(self) -> bool {
        self.scope == Scope::Namespace
    }

    /// SIGKILL to everything but the supervisor. When it returns as PID 1, the signal is pending in every process: none
    /// returns to user mode. Otherwise it returns when none is left, or after half a second.
    pub(crate) fn everything(self) {
        match self.scope {
            Scope::Namespace => sys::kill_namespace(),
            Scope::Descendants => self.descendants(),
        }
    }

    /// SIGKILL to every descendant, until none is left or for half a second.
    pub(crate) fn descendants(self) {
        for _ in 0..250 {
            let living = living_descendants();
            if living.is_empty() {
                return;
            }
            for pid in living {
                if let Some(pid) = Pid::from_raw(pid) {
                    // It may have ended meanwhile.
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether a pid may be signalled on the agent's word.
    pub(crate) fn may_signal(self, pid: i32) -> bool {
        match self.scope {
            Scope::Namespace => pid > 1,
            Scope::Descendants => living_descendants().contains(&pid),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Process {
    pid: i32,
    parent: i32,
    zombie: bool,
}

fn living_descendants() -> Vec<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    descendants_of(own, &processes())
}

/// Zombies are kept while descending (their children belong to us), and left out of the answer (they are dead).
fn descendants_of(root: i32, all: &[Process]) -> Vec<i32> {
    let mut family = vec![root];
    let mut at = 0;
    while let Some(&parent) = family.get(at) {
        let children = all.iter().filter(|it| it.parent == parent && it.pid != it.parent);
        let fresh: Vec<i32> = children.map(|it| it.pid).filter(|pid| !family.contains(pid)).collect();
        family.extend(fresh);
        at += 1;
    }
    all.iter()
        .filter(|it| !it.zombie && it.pid != root && family.contains(&it.pid))
        .map(|it| it.pid)
        .collect()
}

fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| parse_stat(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?))
        .collect()
}

/// `pid (name, which may hold anything) state ppid …`
fn parse_stat(pid: i32, stat: &[u8]) -> Option<Process> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Process { pid, parent, zombie: matches!(state, "Z" | "X") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_never_pid_one() {
        assert_ne!(std::process::id(), 1);
        assert_eq!(Killer::detect().scope, Scope::Descendants);
        assert!(!Killer::detect().pid_one());
    }

    /// This very call would end the machine if the second check were missing.
    #[test]
    fn kill_of_the_namespace_refuses_when_not_pid_one() {
        sys::kill_namespace();
        assert_eq!(std::process::id(), std::process::id());
    }

    #[test]
    fn only_descendants_may_be_signalled() {
        let killer = Killer::detect();
        assert!(!killer.may_signal(1));
        assert!(!killer.may_signal(i32::try_from(std::process::id()).unwrap()));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(killer.may_signal(i32::try_from(child.id()).unwrap()));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn names_do_not_confuse() {
        let process = parse_stat(7, b"7 (a) Z 1 (b)) S 42 7 7 0").unwrap();
        assert_eq!((process.parent, process.zombie), (42, false));
        assert!(parse_stat(7, b"7 (a").is_none());
        assert!(parse_stat(7, b"7 (a) S").is_none());
    }

    #[test]
    fn descendants_are_found_below_zombies_and_nothing_else_is() {
        let it = |pid, parent, zombie| Process { pid, parent, zombie };
        let all = [
            it(1, 0, false),
            it(10, 1, false),
            it(11, 10, true),
            it(12, 11, false),
            it(20, 1, false),
            it(5, 12, false),
        ];
        assert_eq!(descendants_of(10, &all), vec![12, 5]);
        assert_eq!(descendants_of(20, &all), Vec::<i32>::new());
    }
}
