//! The real binary as an ordinary child: what it kills are its descendants.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;
use std::time::Instant;

use common::*;
use pgwarden_supervisor::client::{Connection, Stdio};
use pgwarden_supervisor::clock::{SECOND, boottime_ns};
use pgwarden_supervisor::protocol::*;

/// Lives until it is killed, with two children of which one has a session of its own; deaf to everything that can be ignored.
const DEAF: &str = "trap '' TERM INT QUIT HUP USR1; sleep 1000 & setsid sleep 1000 & wait; wait; wait";

/// Lives until it is killed.
const PLAIN: &str = "sleep 1000 & wait";

#[test]
fn a_primary_needs_a_grant_and_dies_at_its_deadline() {
    let supervisor = Supervisor::start();
    let agent = supervisor.agent();
    let primary = || script(Mode::Primary, 3, DEAF, "/nowhere");
    assert_eq!(agent.refused(&Request::Start(primary())), RefusalCode::NoGrant);
    let foreign =
        Request::Grant { epoch: 3, incarnation: Incarnation([9; 16]), deadline_ns: boottime_ns() + SECOND };
    assert_eq!(agent.refused(&foreign), RefusalCode::WrongIncarnation);
    let deadline = agent.grant(3, milliseconds(1500));
    assert_eq!(agent.refused(&agent.grant_request(3, deadline - 1)), RefusalCode::DeadlineBackwards);
    assert_eq!(agent.refused(&agent.grant_request(2, deadline + 1)), RefusalCode::StaleEpoch);
    assert_eq!(
        agent.refused(&Request::Start(script(Mode::Primary, 4, DEAF, "/nowhere"))),
        RefusalCode::NoGrant
    );
    let (_, pipe) = agent.start(primary());
    assert_eq!(agent.refused(&Request::Start(primary())), RefusalCode::AlreadyRunning);
    ends_at(&pipe, deadline);
    assert_eq!(agent.event(), Event::DeadlineFired { epoch: 3 });
    let exit = agent.postmaster_exit();
    assert_eq!((exit.exit, exit.start_id, exit.drained), (Exit::Signal(libc::SIGKILL), 1, true));
    assert_eq!(supervisor.descendants(), Vec::<u32>::new());
    assert_eq!(agent.refused(&Request::Start(primary())), RefusalCode::NoGrant);
    let status = agent.hello();
    assert_eq!((status.fenced, status.grant, status.postmaster), (Some(3), None, None));
    // With a newer grant it may come back.
    let deadline = agent.grant(3, milliseconds(1300));
    let (_, pipe) = agent.start(primary());
    ends_at(&pipe, deadline);
}

#[test]
fn renewed_grants_keep_it_alive_and_quit_comes_before_kill() {
    let supervisor = Supervisor::start();
    let agent = supervisor.agent();
    agent.grant(1, milliseconds(1500));
    let (mut log, write) = std::io::pipe().unwrap();
    let text = "trap 'echo quit' QUIT; while :; do sleep 0.05; done";
    let (_, pipe) = agent.start_logging(script(Mode::Primary, 1, text, "/nowhere"), Some(write.as_fd()));
    drop(write);
    let end = Instant::now() + milliseconds(1800);
    let mut deadline = 0;
    while Instant::now() < end {
        deadline = agent.grant(1, milliseconds(1500));
        assert!(!ended(&pipe, milliseconds(50)));
    }
    let mut said = [0; 5];
    log.read_exact(&mut said).unwrap();
    let now = boottime_ns();
    assert_eq!(&said, b"quit\n");
    assert!(now > deadline - SECOND / 2 && now < deadline, "SIGQUIT half a second before");
    ends_at(&pipe, deadline);
}

#[test]
fn a_primary_that_obeys_sigquit_is_fenced_all_the_same() {
    let supervisor = Supervisor::start();
    let agent = supervisor.agent();
    let deadline = agent.grant(1, milliseconds(1400));
    let (_, pipe) = agent.start(script(Mode::Primary, 1, "exec sleep 1000", "/nowhere"));
    assert!(ended(&pipe, PATIENCE));
    assert!(boottime_ns() < deadline);
    assert_eq!(agent.event(), Event::DeadlineFired { epoch: 1 });
    assert_eq!(agent.postmaster_exit().exit, Exit::Signal(libc::SIGQUIT));
    assert_eq!(agent.hello().fenced, Some(1));
}

#[test]
fn a_stopped_postmaster_dies_too() {
    let supervisor = Supervisor::start();
    let agent = supervisor.agent();
    let deadline = agent.grant(1, milliseconds(1400));
    let (pid, pipe) = agent.start(script(Mode::Primary, 1, DEAF, "/nowhere"));
    agent.done(&Request::Signal { pid, signal: libc::SIGSTOP });
    ends_at(&pipe, deadline);
}

#[test]
fn a_standby_outlives_the_deadline_and_a_promoted_one_does_not() {
    let supervisor = Supervisor::start();
    let agent = supervisor.agent();
    let data = supervisor.dir.standby();
    fs::remove_file(format!("{data}/standby.signal")).unwrap();
    let (mut log, write) = std::io::pipe().unwrap();
    let text = "trap 'echo promote' USR1; trap '' QUIT; echo up; while :; do sleep 0.05; done";
    let standby = script(Mode::Standby, 1, text, &data);
    assert_eq!(agent.refused(&Request::Start(standby.clone())), RefusalCode::NotStandby);
    supervisor.dir.standby();
    let (_, pipe) = agent.start_logging(standby, Some(write.as_fd()));
    drop(write);
    let mut said = [0; 3];
    log.read_exact(&mut said).unwrap();
    let promote = Request::Promote { epoch: 2, data_dir: data.clone() };
    assert_eq!(agent.refused(&promote), RefusalCode::NoGrant);
    agent.grant(2, milliseconds(200));
    assert!(!ended(&pipe, milliseconds(400)), "no deadline counts for a standby");
    assert_eq!(agent.refused(&promote), RefusalCode::NoGrant, "run out");
    let deadline = agent.grant(2, milliseconds(1500));
    agent.done(&promote);
    let mut said = [0; 8];
    log.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"promote\n");
    assert!(fs::exists(format!("{data}/promote")).unwrap());
    let postmaster = agent.hello().postmaster.unwrap();
    assert_eq!((postmaster.mode, postmaster.epoch), (Mode::Primary, 2));
    agent.done(&Request::SetEpoch { from: 2, to: 3 });
    ends_at(&pipe, deadline);
    assert_eq!(agent.event(), Event::DeadlineFired { epoch: 3 });
}

/// The promotion hangs in the file system and takes the main loop with it: the switch does not care, and liveness notices.
#[test]
fn the_switch_works_while_the_main_loop_is_stuck() {
    let supervisor = Supervisor::start();
    let agent = supervisor.agent();
    let data = supervisor.dir.standby();
    let (_, pipe) = agent.start(script(Mode::Standby, 1, DEAF, &data));
    let fifo = format!("{data}/promote");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let deadline = agent.grant(1, milliseconds(1400));
    let id = agent.connection.send(&Request::Promote { epoch: 1, data_dir: data }, &[]).unwrap();
    ends_at(&pipe, deadline);
    assert!(http(supervisor.port).starts_with("HTTP/1.1 200"), "not yet stuck for long");
    until("503", || http(supervisor.port).starts_with("HTTP/1.1 503"));
    let mut release = File::open(&fifo).unwrap();
    release.read_to_end(&mut Vec::new()).unwrap();
    agent.reply(id);
    assert_eq!(agent.event(), Event::DeadlineFired { epoch: 1 });
    agent.postmaster_exit();
    until("200", || http(supervisor.port).starts_with("HTTP/1.1 200"));
}

fn http(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
#[ignore = "run by `a_frozen_agent_means_a_dead_primary`"]
fn agent_process() {
    let socket = std::env::var("SUPERVISOR_SOCKET").unwrap();
    let agent = Agent::connect(socket.as_ref());
    agent.grant(5, milliseconds(1500));
    let _pipe = agent.start(script(Mode::Primary, 5, DEAF, "/nowhere"));
    loop {
        agent.grant(5, milliseconds(1500));
        thread::sleep(milliseconds(100));
    }
}

#[test]
fn a_frozen_agent_means_a_dead_primary() {
    let supervisor = Supervisor::start();
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "agent_process", "--ignored"])
        .env("SUPERVISOR_SOCKET", supervisor.socket())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("its primary", || supervisor.descendants().len() == 3);
    thread::sleep(milliseconds(1700));
    assert_eq!(supervisor.descendants().len(), 3, "a living agent keeps it alive");
    signal_pid(agent.id(), "STOP");
    let frozen = Instant::now();
    until("its death", || supervisor.descendants().is_empty());
    assert!(frozen.elapsed() < milliseconds(3500), "{:?}", frozen.elapsed());
    // The next agent finds out, while the frozen one still holds its connection.
    let next = supervisor.agent();
    let status = next.hello();
    assert_eq!((status.fenced, status.postmaster), (Some(5), None));
    assert_eq!(status.last_exit.unwrap().exit, Exit::Signal(libc::SIGKILL));
    signal_pid(agent.id(), "KILL");
    agent.wait().unwrap();
}

#[test]
fn a_restarted_agent_adopts_and_the_newest_wins() {
    let supervisor = Supervisor::start();
    let first = supervisor.agent();
    let data = supervisor.dir.standby();
    let (pid, pipe) = first.start(script(Mode::Standby, 7, PLAIN, &data));
    first.done(&Request::SetNote(b"last seen record".to_vec()));
    let second = supervisor.agent();
    assert_eq!(first.receive().unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    assert!(first.connection.send(&Request::KillAll, &[]).is_err());
    let status = second.hello();
    assert_eq!(status.incarnation, first.incarnation.get());
    let view = PostmasterView { pid, mode: Mode::Standby, epoch: 7, start_id: 1 };
    assert_eq!((status.postmaster, status.note.as_slice()), (Some(view), &b"last seen record"[..]));
    assert!(!status.pid_one && !status.sigterm && status.lock == LockView::None);
    assert!(boottime_ns() - status.boottime_ns < 10 * SECOND, "the same clock");
    // A connection that has not said Hello displaces nobody and may ask for nothing.
    let stranger = Connection::connect(supervisor.socket()).unwrap();
    stranger.send(&Request::KillAll, &[]).unwrap();
    assert!(stranger.wait_readable(Some(PATIENCE)).unwrap());
    let Message::Reply { reply, .. } = stranger.recv().unwrap() else { panic!("an event") };
    assert_eq!(refusal(reply), RefusalCode::HelloFirst);
    drop(second);
    drop(stranger);
    let third = supervisor.agent();
    assert_eq!(third.hello().postmaster, Some(view), "Postgres outlives every agent");
    assert!(!ended(&pipe, milliseconds(0)));
    // Another life is another incarnation.
    assert_ne!(Supervisor::start().agent().incarnation.get(), first.incarnation.get());
}

#[test]
fn the_death_pipe_ends_with_the_last_process_only() {
    let supervisor = Supervisor::start();
    let agent = supervisor.agent();
    let data = supervisor.dir.standby();
    let (pid, pipe) = agent.start(script(Mode::Standby, 1, DEAF, &data));
    until("its children", || supervisor.descendants().len() == 3);
    let family = supervisor.descendants();
    assert!(!ended(&pipe, milliseconds(0)));
    // Its children go on without it; when we hear of its end, they are gone.
    agent.done(&Request::Signal { pid, signal: libc::SIGKILL });
    let exit = agent.postmaster_exit();
    assert!(exit.drained);
    assert!(ended(&pipe, milliseconds(0)), "and the supervisor holds no copy");
    assert!(family.into_iter().all(|pid| !alive(pid)));
    // It does not hold for ever either: stop, reload, kill.
    let data = supervisor.dir.standby();
    let (_, pipe) = agent.start(script(Mode::Standby, 1, DEAF, &data));
    until("its children", || supervisor.descendants().len() == 3);
    agent.done(&Request::Reload);
    agent.done(&Request::Stop { mode: StopMode::Immediate });
    agent.done(&Request::KillAll);
    assert!(ended(&pipe, PATIENCE));
    assert_eq!(agent.postmaster_exit().start_id, 2);
    assert_eq!(agent.refused(&Request::Reload), RefusalCode::NotRunning);
}

#[test]
fn the_end_of_the_log_is_kept_for_the_agent() {
    let supervisor = Supervisor::start();
    let agent = supervisor.agent();
    let data = supervisor.dir.standby();
    assert_eq!(agent.ask(&Request::LogTail), Reply::LogTail { bytes: Vec::new(), ended: true });
    let fails = "echo first; i=0; while [ $i -lt 2000 ]; do echo filling $i; i=$((i+1)); done; echo FATAL: last >&2; exit 1";
    agent.start(script(Mode::Standby, 1, fails, &data));
    assert_eq!(agent.postmaster_exit().exit, Exit::Code(1));
    let mut text = String::new();
    until("the end of the log", || {
        let Reply::LogTail { bytes, ended } = agent.ask(&Request::LogTail) else { panic!("no log") };
        text = String::from_utf8(bytes).unwrap();
        ended
    });
    assert!(text.ends_with("filling 1999\nFATAL: last\n"), "{text}");
    assert!(text.len() <= 8192 && !text.contains("first"), "only its end");
    // Another start has its own.
    agent.start(script(Mode::Standby, 1, &format!("echo second; {PLAIN}"), &data));
    until("the second log", || {
        agent.ask(&Request::LogTail) == Reply::LogTail { bytes: b"second\n".to_vec(), ended: false }
    });
}

#[test]
fn tools_get_descriptors_environment_and_clean_signals() {
    let supervisor = Supervisor::start();
    let agent = supervisor.agent();
    let (mut stdout, out) = std::io::pipe().unwrap();
    let (mut stderr, err) = std::io::pipe().unwrap();
    let (stdin, mut input) = std::io::pipe().unwrap();
    let run = Run {
        env: strings(&["GREETING=hello", "HOME"]),
        cwd: Some("/".to_owned()),
        ..tool(&["sh", "-c", "cat; echo $GREETING $PWD ${HOME-none}; echo oops >&2; exit 3"])
    };
    let stdio = Stdio { stdin: Some(stdin.as_fd()), stdout: Some(out.as_fd()), stderr: Some(err.as_fd()) };
    let Reply::ToolStarted { tool: id, pid } = agent.run(run, stdio) else { panic!("not started") };
    drop((stdin, out, err));
    assert_eq!(agent.hello().tools, vec![ToolView { tool: id, pid, program: "sh".to_owned() }]);
    input.write_all(b"input\n").unwrap();
    drop(input);
    let mut text = String::new();
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(text, "input\nhello / none\n");
    text.clear();
    stderr.read_to_string(&mut text).unwrap();
    assert_eq!(text, "oops\n");
    assert_eq!(agent.event(), Event::ToolExited { tool: id, exit: Exit::Code(3) });
    assert_eq!(agent.hello().tools, vec![]);
    let (text, _) = agent.output(&["grep", "-E", "^Sig(Blk|Ign|Pnd):", "/proc/self/status"]);
    assert_eq!(text.lines().count(), 3, "{text}");
    for line in text.lines() {
        let mask = u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap();
        // 32 and 33 are the C library's own.
        assert_eq!(mask & !(0b11 << 31), 0, "{text}");
    }
    let (text, _) = agent.output(&["ls", "-l", "/proc/self/fd"]);
    assert!(!text.contains("socket:") && !text.contains("anon_inode:"), "a descriptor of ours leaks: {text}");
}

#[test]
fn what_is_not_in_the_image_is_said_clearly() {
    let supervisor = Supervisor::start();
    let agent = supervisor.agent();
    let reply = agent.run(tool(&["no-such-tool"]), Stdio::default());
    let Reply::Refused(refusal) = reply else { panic!("{reply:?}") };
    assert_eq!(refusal.code, RefusalCode::ProgramNotFound);
    assert!(refusal.message.starts_with("no-such-tool: not found on PATH ("), "{refusal}");
    assert!(refusal.message.ends_with("this image has no PostgreSQL"), "{refusal}");
    let run = Run { cwd: Some("/no/such/dir".to_owned()), ..tool(&["true"]) };
    let reply = agent.run(run, Stdio::default());
    let Reply::Refused(refusal) = reply else { panic!("{reply:?}") };
    assert!(refusal.message.contains("no working directory /no/such/dir"), "{refusal}");
    let nul = agent.run(tool(&["true", "a\0b"]), Stdio::default());
    assert!(matches!(nul, Reply::Refused(_)));
    // A failed start of a primary leaves nothing armed.
    let deadline = agent.grant(1, milliseconds(1200));
    let start = start(Mode::Primary, 1, &["no-such-postgres"]);
    assert_eq!(agent.refused(&Request::Start(start)), RefusalCode::ProgramNotFound);
    let (_, pipe) = agent.start(script(Mode::Standby, 1, PLAIN, &supervisor.dir.standby()));
    while boottime_ns() <= deadline {
        thread::sleep(milliseconds(20));
    }
    assert!(!ended(&pipe, milliseconds(100)));
}

#[test]
fn tools_die_with_the_connection_that_started_them() {
    let supervisor = Supervisor::start();
    let first = supervisor.agent();
    let (read, write) = std::io::pipe().unwrap();
    let copy = Stdio { stdout: Some(write.as_fd()), ..Stdio::default() };
    let deaf = "trap '' TERM INT; sleep 1000 & setsid sleep 1000 & wait; wait; wait";
    assert!(matches!(first.run(tool(&["sh", "-c", deaf]), copy), Reply::ToolStarted { .. }));
    let keep = Run { kill_on_disconnect: false, ..tool(&["sleep", "1000"]) };
    let Reply::ToolStarted { tool: kept, .. } = first.run(keep, Stdio::default()) else { panic!() };
    drop(write);
    until("all of them", || supervisor.descendants().len() == 4);
    drop(first);
    // The one in a session of its own is an orphan now; the kept tool saves it until it ends.
    until("the copy's end", || supervisor.descendants().len() <= 2);
    let second = supervisor.agent();
    let tools = second.hello().tools;
    assert_eq!(tools.iter().map(|tool| tool.tool).collect::<Vec<_>>(), vec![kept]);
    second.done(&Request::KillTool { tool: kept, signal: libc::SIGTERM });
    assert_eq!(second.event(), Event::ToolExited { tool: kept, exit: Exit::Signal(libc::SIGTERM) });
    assert!(ended(&File::from(std::os::fd::OwnedFd::from(read)), PATIENCE), "orphans are swept");
    assert_eq!(second.refused(&Request::KillTool { tool: kept, signal: 9 }), RefusalCode::NoSuchTool);
}

#[test]
fn nothing_stays_a_zombie() {
    let supervisor = Supervisor::start();
    let agent = supervisor.agent();
    let (_, _pipe) = agent.start(script(Mode::Standby, 1, PLAIN, &supervisor.dir.standby()));
    until("the postmaster's child", || supervisor.descendants().len() == 2);
    let forks = "for i in 1 2 3 4 5 6 7 8; do (sleep 0.1 & sleep 0.2 &) ; done";
    let (_, exit) = agent.output(&["sh", "-c", forks]);
    assert_eq!(exit, Exit::Code(0));
    until("only the postmaster's", || supervisor.descendants().len() == 2);
}

#[test]
fn only_own_descendants_are_signalled() {
    let supervisor = Supervisor::start();
    let agent = supervisor.agent();
    let own = i32::try_from(std::process::id()).unwrap();
    for pid in [1, own, i32::try_from(supervisor.pid).unwrap(), -1, 0] {
        let request = Request::Signal { pid, signal: libc::SIGCONT };
        assert_eq!(agent.refused(&request), RefusalCode::NoSuchProcess, "{pid}");
    }
    agent.done(&Request::KillAll);
}

#[test]
fn the_lock_lives_as_long_as_postgres_can() {
    let mut first = Supervisor::start();
    let second = Supervisor::start();
    let (one, two) = (first.agent(), second.agent());
    let lock = Request::Lock { path: first.dir.path("lock") };
    one.done(&lock);
    one.done(&lock);
    assert_eq!(two.refused(&lock), RefusalCode::LockedElsewhere);
    assert_eq!(two.hello().lock, LockView::Missing);
    let standby = Request::Start(script(Mode::Standby, 1, PLAIN, &second.dir.standby()));
    assert_eq!(two.refused(&standby), RefusalCode::LockMissing);
    assert_eq!(refusal(two.run(tool(&["true"]), Stdio::default())), RefusalCode::LockMissing);
    // An agent that comes and goes changes nothing.
    drop(one);
    let one = first.agent();
    assert_eq!(one.hello().lock, LockView::Held);
    assert_eq!(two.refused(&lock), RefusalCode::LockedElsewhere);
    // Nor does the death of the supervisor while its postmaster lives on.
    let (pid, pipe) = one.start(script(Mode::Standby, 1, "exec sleep 1000", &first.dir.standby()));
    first.signal("KILL");
    first.exit_status();
    assert_eq!(two.refused(&lock), RefusalCode::LockedElsewhere);
    signal_pid(u32::try_from(pid).unwrap(), "KILL");
    assert!(ended(&pipe, PATIENCE));
    // The kernel closes a dead process' files one by one: the pipe may be closed before the lock.
    until("the lock is free", || two.ask(&lock) == Reply::Done);
    let (_, exit) = two.output(&["true"]);
    assert_eq!(exit, Exit::Code(0));
}

#[test]
fn sigterm_without_an_agent_stops_postgres_fast() {
    // SIGINT is what the official image asks for.
    thread::scope(|scope| {
        for signal in ["TERM", "INT"] {
            scope.spawn(move || stops_fast(signal));
        }
    });
}

fn stops_fast(signal: &str) {
    let mut supervisor = Supervisor::with(&["--grace", "4"], false);
    let agent = supervisor.agent();
    let note = supervisor.dir.path("stopped");
    let text = format!(
        "trap 'echo fast > {note}; exit 0' INT; trap '' TERM QUIT; echo up; while :; do sleep 0.02; done"
    );
    let (mut log, write) = std::io::pipe().unwrap();
    let standby = script(Mode::Standby, 1, &text, &supervisor.dir.standby());
    let _pipe = agent.start_logging(standby, Some(write.as_fd()));
    log.read_exact(&mut [0; 3]).unwrap();
    drop(agent);
    let since = Instant::now();
    supervisor.signal(signal);
    assert!(supervisor.exit_status().success());
    assert!(since.elapsed() < milliseconds(3_500), "{:?}", since.elapsed());
    assert_eq!(fs::read_to_string(note).unwrap(), "fast\n");
    assert!(!supervisor.socket().exists());
}

#[test]
fn sigterm_ends_in_time_even_when_postgres_is_deaf() {
    let mut supervisor = Supervisor::with(&["--grace", "4"], false);
    let agent = supervisor.agent();
    let (_, pipe) = agent.start(script(Mode::Standby, 1, DEAF, &supervisor.dir.standby()));
    let since = Instant::now();
    supervisor.signal("TERM");
    assert_eq!(agent.event(), Event::SigTerm);
    agent.done(&Request::SigTermAck);
    assert!(supervisor.exit_status().success());
    assert!(since.elapsed() < milliseconds(4000), "{:?}", since.elapsed());
    assert!(ended(&pipe, PATIENCE));
}

#[test]
fn sigterm_waits_for_an_agent_that_answers() {
    let mut supervisor = Supervisor::start();
    let agent = supervisor.agent();
    let (_, pipe) = agent.start(script(Mode::Standby, 1, PLAIN, &supervisor.dir.standby()));
    supervisor.signal("TERM");
    assert_eq!(agent.event(), Event::SigTerm);
    agent.done(&Request::SigTermAck);
    assert!(!ended(&pipe, milliseconds(2200)), "it hands over as long as it needs");
    agent.done(&Request::Stop { mode: StopMode::Fast });
    agent.postmaster_exit();
    assert!(agent.hello().sigterm, "still there");
    let standby = script(Mode::Standby, 1, PLAIN, &supervisor.dir.standby());
    assert_eq!(agent.refused(&Request::Start(standby)), RefusalCode::Terminating);
    let (text, _) = agent.output(&["echo", "pg_controldata may run"]);
    assert!(!text.is_empty());
    agent.done(&Request::Exit { code: 7 });
    assert_eq!(supervisor.exit_status().code(), Some(7));
}

#[test]
fn garbage_does_not_harm() {
    let supervisor = Supervisor::start();
    let agent = supervisor.agent();
    let noise = Connection::connect(supervisor.socket()).unwrap();
    let mut random = 0x5eed_u64;
    for round in 0..2_000_usize {
        let length = if round % 100 == 0 { 100_000 } else { 1 + round % 300 };
        let bytes: Vec<u8> = (0..length)
            .map(|at| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                // Now and then a good header, so that the noise gets further.
                if round % 2 == 0 && at < 4 { [1, 0, (round % 16) as u8, 0][at] } else { random as u8 }
            })
            .collect();
        let files = [File::open("/dev/null").unwrap(), File::open("/dev/null").unwrap()];
        let fds: Vec<_> = files.iter().map(|file| file.as_fd()).take(round % 3).collect();
        pgwarden_supervisor::packet::send(&noise, &bytes, &fds).unwrap();
        let answered = noise.wait_readable(Some(PATIENCE)).unwrap();
        assert!(answered, "every message is answered");
        let Message::Reply { reply, .. } = noise.recv().unwrap() else { panic!("an event") };
        // Exactly `Hello` could come out of it, nothing else does anything.
        assert!(matches!(reply, Reply::Refused(_)), "{reply:?}");
    }
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", supervisor.pid)).unwrap().count();
    let before = descriptors();
    pgwarden_supervisor::packet::send(&noise, &[], &[]).unwrap();
    until("an empty packet ends a connection", || descriptors() < before);
    // Connections that say nothing make room for others, but never the agent's.
    let crowd: Vec<_> = (0..40).map(|_| Connection::connect(supervisor.socket())).collect();
    let status = agent.hello();
    assert_eq!((status.postmaster, status.grant, status.highest_epoch), (None, None, 0));
    until("room again", || descriptors() < before + 12);
    drop(crowd);
}

#[test]
fn another_user_is_refused() {
    if !is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let dir = Dir::new();
    let binary = dir.path("supervisor");
    fs::copy(common::binary(), &binary).unwrap();
    for path in [dir.0.as_path(), binary.as_ref()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let socket = dir.path("socket");
    let mut child = Command::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups", &binary, "--socket", &socket, "--probe-port", "0"])
        .stderr(File::create(dir.path("log")).unwrap())
        .spawn()
        .unwrap();
    let mut connection = None;
    until("the socket", || {
        connection = Connection::connect(&socket).ok();
        connection.is_some()
    });
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let connection = connection.unwrap();
    // It may be closed before or after this is sent.
    let _ = connection.send(&Request::Hello, &[]);
    connection.wait_readable(Some(PATIENCE)).unwrap();
    assert_eq!(connection.recv().unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(fs::read_to_string(dir.path("log")).unwrap().contains("another user"));
}

#[test]
fn it_is_small_and_quick() {
    let since = Instant::now();
    let supervisor = Supervisor::start();
    let agent = supervisor.agent();
    println!("first Hello after {:?}", since.elapsed());
    for _ in 0..1_000 {
        agent.grant(1, milliseconds(4000));
    }
    for _ in 0..20 {
        agent.output(&["true"]);
        assert!(http(supervisor.port).starts_with("HTTP/1.1 200"));
    }
    let status = fs::read_to_string(format!("/proc/{}/status", supervisor.pid)).unwrap();
    let memory = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    println!("VmRSS {} kB, VmHWM {} kB, VmLck {} kB", memory("VmRSS"), memory("VmHWM"), memory("VmLck"));
    // The release build is static and smaller; this catches growth.
    assert!(memory("RssAnon") < 1024, "{status}");
    let log = supervisor.log();
    assert!(log.lines().all(|line| line.starts_with(r#"{"timestamp":""#) && line.ends_with('}')), "{log}");
}

#[test]
fn the_command_line() {
    let run = |arguments: &[&str]| Command::new(binary()).args(arguments).output().unwrap();
    let version = run(&["--version"]);
    assert!(version.status.success());
    assert!(String::from_utf8(version.stdout).unwrap().starts_with("pgwarden-supervisor 0."));
    assert_eq!(run(&[]).status.code(), Some(2));
    let failed = run(&["--socket", "/proc/no/such/place", "--probe-port", "0"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(String::from_utf8(failed.stderr).unwrap().contains("failed to start"));
}
