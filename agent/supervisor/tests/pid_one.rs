//! The real binary as PID 1 of a PID namespace, mostly with a real Postgres. Skipped where there are no namespaces (needs
//! root).

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio as Std};
use std::time::Instant;

use common::*;
use pgwarden_supervisor::client::Stdio;
use pgwarden_supervisor::protocol::*;

/// Postgres does not run as root; `setpriv` becomes what it starts, so the pid stays.
const AS_POSTGRES: [&str; 7] =
    ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--"];

struct Postgres {
    supervisor: Supervisor,
    bin: PathBuf,
    home: String,
    data: String,
}

impl Postgres {
    /// A supervisor as PID 1 and an initialised data directory of a standby.
    fn new(options: &[&str]) -> Option<Self> {
        let supervisor = Supervisor::pid_one()?;
        let bin = fs::read_dir("/usr/lib/postgresql").ok()?.flatten().next()?.path().join("bin");
        let supervisor = if options.is_empty() { supervisor } else { Supervisor::with(options, true) };
        let (home, data) = (supervisor.dir.path("home"), supervisor.dir.path("home/data"));
        fs::create_dir(&home).unwrap();
        assert!(Command::new("chown").args(["postgres:", &home]).status().unwrap().success());
        let it = Self { supervisor, bin, home, data };
        let agent = it.supervisor.agent();
        let initdb = it.bin.join("initdb").display().to_string();
        let argv =
            [&AS_POSTGRES[..], &[&initdb, "-D", &it.data, "-U", "postgres", "-A", "trust", "--no-sync"]];
        let (text, exit) = agent.output(&argv.concat());
        assert_eq!(exit, Exit::Code(0), "{text}");
        File::create(format!("{}/standby.signal", it.data)).unwrap();
        Some(it)
    }

    fn start(&self, mode: Mode, epoch: u64) -> Start {
        let program = self.bin.join("postgres").display().to_string();
        let sockets = format!("unix_socket_directories={}", self.home);
        let settings = ["listen_addresses=", &sockets, "fsync=off", "shared_buffers=16MB"];
        let mut argv = [&AS_POSTGRES[..], &[&program, "-D", &self.data]].concat();
        argv.extend(settings.iter().flat_map(|setting| ["-c", *setting]));
        Start { cwd: Some("/".to_owned()), ..start(mode, epoch, &argv) }
    }

    /// A client from outside of the namespace.
    fn client(&self, sql: &str) -> Command {
        let mut command = Command::new(self.bin.join("psql"));
        command.args(["-h", &self.home, "-U", "postgres", "-XAtqc", sql]).stderr(Std::null());
        command
    }

    fn ask(&self, sql: &str) -> String {
        let output = self.client(sql).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn sleepers(&self, count: usize, meanwhile: impl Fn()) -> Vec<Child> {
        let clients = (0..count).map(|_| self.client("select pg_sleep(1000)").spawn().unwrap()).collect();
        let active = "select count(*) from pg_stat_activity where query like '%pg_sleep(1000)' and pid <> pg_backend_pid()";
        until("active backends", || {
            meanwhile();
            self.ask(active) == count.to_string()
        });
        clients
    }

    fn control(&self, agent: &Agent) -> String {
        let (text, exit) = agent.output(&["pg_controldata", &self.data]);
        assert_eq!(exit, Exit::Code(0), "found without PATH: {text}");
        text
    }
}

fn reap(clients: Vec<Child>) {
    for mut client in clients {
        assert!(!client.wait().unwrap().success(), "its backend is gone");
    }
}

#[test]
fn a_real_primary_dies_with_all_its_backends() {
    let Some(postgres) = Postgres::new(&[]) else { return };
    let supervisor = &postgres.supervisor;
    let agent = supervisor.agent();
    assert!(agent.hello().pid_one);
    let (_, pipe) = agent.start(postgres.start(Mode::Standby, 1));
    until("a hot standby", || postgres.ask("select pg_is_in_recovery()") == "t");
    let renew = || {
        agent.grant(2, milliseconds(3_000));
    };
    renew();
    agent.done(&Request::Promote { epoch: 2, data_dir: postgres.data.clone() });
    until("a primary", || {
        renew();
        postgres.ask("select pg_is_in_recovery()") == "f"
    });
    postgres.ask("create table t as select 42 as x");
    let clients = postgres.sleepers(3, renew);
    // Another agent takes over, and finds it as it is.
    drop(agent);
    let agent = supervisor.agent();
    let renew = || {
        agent.grant(2, milliseconds(3_000));
    };
    let view = agent.hello().postmaster.unwrap();
    assert_eq!((view.mode, view.epoch, view.start_id), (Mode::Primary, 2, 1));
    agent.done(&Request::Reload);
    // Postmaster and a backend stopped: nothing that needs their help would work.
    let backend: i32 = postgres
        .ask("select pid from pg_stat_activity where query like 'select pg_sleep%' limit 1")
        .parse()
        .unwrap();
    agent.done(&Request::Signal { pid: backend, signal: libc::SIGSTOP });
    agent.done(&Request::Signal { pid: view.pid, signal: libc::SIGSTOP });
    agent.done(&Request::KillAll);
    assert!(ended(&pipe, PATIENCE));
    assert_eq!(agent.postmaster_exit().exit, Exit::Signal(libc::SIGKILL));
    assert_eq!(supervisor.namespace(), Vec::<u32>::new());
    reap(clients);
    // Started again as a primary; this time the agent stops granting while three clients are at work.
    let _ = fs::remove_file(format!("{}/postmaster.pid", postgres.data));
    renew();
    let (pid, pipe) = agent.start(postgres.start(Mode::Primary, 2));
    until("a primary", || {
        renew();
        postgres.ask("select x from t") == "42"
    });
    let clients = postgres.sleepers(3, renew);
    let deadline = agent.grant(2, milliseconds(3_000));
    agent.done(&Request::Signal { pid, signal: libc::SIGSTOP });
    ends_at(&pipe, deadline);
    assert_eq!(agent.event(), Event::DeadlineFired { epoch: 2 });
    assert!(agent.postmaster_exit().drained);
    assert_eq!(supervisor.namespace(), Vec::<u32>::new());
    reap(clients);
}

#[test]
fn backends_of_a_crashed_postmaster_are_gone_before_anybody_hears() {
    let Some(postgres) = Postgres::new(&[]) else { return };
    let supervisor = &postgres.supervisor;
    let agent = supervisor.agent();
    let (pid, pipe) = agent.start(postgres.start(Mode::Standby, 1));
    until("a hot standby", || postgres.ask("select pg_is_in_recovery()") == "t");
    let clients = postgres.sleepers(2, || ());
    agent.done(&Request::Signal { pid, signal: libc::SIGKILL });
    let exit = agent.postmaster_exit();
    assert_eq!((exit.exit, exit.drained), (Exit::Signal(libc::SIGKILL), true));
    assert!(ended(&pipe, milliseconds(0)));
    assert_eq!(supervisor.namespace(), Vec::<u32>::new());
    reap(clients);
    // At once again: no shared memory in the way.
    let _ = fs::remove_file(format!("{}/postmaster.pid", postgres.data));
    let (_, pipe) = agent.start(postgres.start(Mode::Standby, 1));
    until("a hot standby", || postgres.ask("select pg_is_in_recovery()") == "t");
    agent.done(&Request::Stop { mode: StopMode::Fast });
    assert_eq!(agent.postmaster_exit().exit, Exit::Code(0));
    assert!(ended(&pipe, milliseconds(0)));
    assert!(postgres.control(&agent).contains("shut down in recovery"));
}

#[test]
fn a_deleted_pod_without_an_agent_shuts_down_cleanly() {
    let Some(mut postgres) = Postgres::new(&["--grace", "8"]) else { return };
    let agent = postgres.supervisor.agent();
    let _started = agent.start(postgres.start(Mode::Standby, 1));
    until("a hot standby", || postgres.ask("select pg_is_in_recovery()") == "t");
    let clients = postgres.sleepers(1, || ());
    drop(agent);
    let since = Instant::now();
    // From outside of the namespace, as the container runtime does; the official image asks for SIGINT.
    postgres.supervisor.signal("INT");
    assert!(postgres.supervisor.exit_status().success());
    assert!(since.elapsed() < milliseconds(8_000), "{:?}", since.elapsed());
    reap(clients);
    let control = Command::new(postgres.bin.join("pg_controldata")).arg(&postgres.data).output().unwrap();
    assert!(String::from_utf8(control.stdout).unwrap().contains("shut down in recovery"));
}

#[test]
fn everything_in_the_namespace_dies_but_only_there() {
    let Some(supervisor) = Supervisor::pid_one() else { return };
    let agent = supervisor.agent();
    let mut bystander = Command::new("sleep").arg("1000").spawn().unwrap();
    let text = "trap '' TERM INT QUIT; sleep 1000 & setsid setsid sleep 1000 & (setsid sleep 1000 &); wait; wait; wait";
    let deadline = agent.grant(1, milliseconds(1500));
    let (_, pipe) = agent.start(script(Mode::Primary, 1, text, "/nowhere"));
    assert!(matches!(agent.run(tool(&["sleep", "1000"]), Stdio::default()), Reply::ToolStarted { .. }));
    // What `kubectl exec` does: no descendant of PID 1.
    let mut exec = Command::new("nsenter")
        .args(["--target", &supervisor.pid.to_string(), "--pid", "sleep", "1000"])
        .spawn()
        .unwrap();
    until("all of them", || supervisor.namespace().len() == 6);
    ends_at(&pipe, deadline);
    agent.postmaster_exit();
    until("an empty namespace", || supervisor.namespace().is_empty());
    exec.wait().unwrap();
    assert!(bystander.try_wait().unwrap().is_none(), "another namespace is not touched");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    // Its orphans are its own to reap.
    let (_, exit) = agent.output(&["sh", "-c", "(sleep 0.1 &) ; (setsid true &)"]);
    assert_eq!(exit, Exit::Code(0));
    until("no zombies", || supervisor.namespace().is_empty());
    assert_eq!(agent.refused(&Request::Signal { pid: 1, signal: libc::SIGTERM }), RefusalCode::NoSuchProcess);
}

#[test]
fn exit_ends_the_namespace() {
    let Some(mut supervisor) = Supervisor::pid_one() else { return };
    let agent = supervisor.agent();
    let (_, pipe) = agent.start(script(Mode::Standby, 1, "sleep 1000 & wait", &supervisor.dir.standby()));
    agent.done(&Request::Exit { code: 9 });
    assert!(ended(&pipe, PATIENCE));
    assert_eq!(supervisor.exit_status().code(), Some(9));
}
