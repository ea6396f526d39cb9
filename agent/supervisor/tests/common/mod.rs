//! The real binary, run as a child (its descendants are its world) or as PID 1 of a PID namespace, and an agent to talk to it.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio as Std};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pgwarden_supervisor::client::{Connection, Stdio};
use pgwarden_supervisor::clock::{MILLISECOND, boottime_ns};
use pgwarden_supervisor::protocol::{
    Event, Incarnation, Message, Mode, PostmasterExit, RefusalCode, Reply, Request, Run, Start, Status,
};

/// Nothing here takes this long, unless it never happens.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

pub(crate) fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

/// Waits for a condition.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What is tested. `SUPERVISOR_BINARY` names another one, such as the static release build.
pub(crate) fn binary() -> String {
    std::env::var("SUPERVISOR_BINARY")
        .unwrap_or_else(|_| env!("CARGO_BIN_EXE_pgwarden-supervisor").to_owned())
}

pub(crate) fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

/// A directory that goes with its test.
pub(crate) struct Dir(pub PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("sup-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// A data directory that passes for a standby's.
    pub(crate) fn standby(&self) -> String {
        let data = self.path("data");
        fs::create_dir_all(&data).unwrap();
        File::create(format!("{data}/standby.signal")).unwrap();
        data
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) struct Supervisor {
    pub(crate) dir: Dir,
    child: Child,
    /// Its pid as seen from here.
    pub(crate) pid: u32,
    pub(crate) port: u16,
}

impl Supervisor {
    pub(crate) fn start() -> Self {
        Self::with(&[], false)
    }

    /// `None` where PID namespaces are not to be had.
    pub(crate) fn pid_one() -> Option<Self> {
        let mut probe = Command::new("unshare");
        probe.args(["--pid", "--fork", "--mount-proc", "--kill-child", "true"]).stderr(Std::null());
        if !probe.status().is_ok_and(|status| status.success()) {
            eprintln!("skipped: no PID namespaces here");
            return None;
        }
        Some(Self::with(&[], true))
    }

    pub(crate) fn with(options: &[&str], pid_one: bool) -> Self {
        let dir = Dir::new();
        let port = free_port();
        let binary = &binary();
        let mut command = if pid_one {
            let mut command = Command::new("unshare");
            command.args(["--pid", "--fork", "--mount-proc", "--kill-child", binary]);
            command
        } else {
            Command::new(binary)
        };
        command.args(["--socket", &dir.path("socket"), "--probe-port", &port.to_string()]).args(options);
        command.stdout(Std::null()).stderr(File::create(dir.0.join("log")).unwrap());
        let child = command.spawn().unwrap();
        let mut it = Self { pid: child.id(), dir, child, port };
        until("the socket", || Connection::connect(it.socket()).is_ok());
        if pid_one {
            let children = format!("/proc/{0}/task/{0}/children", it.pid);
            it.pid = fs::read_to_string(children).unwrap().trim().parse().unwrap();
        }
        it
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.0.join("socket")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.0.join("log")).unwrap()
    }

    pub(crate) fn agent(&self) -> Agent {
        Agent::connect(&self.socket())
    }

    pub(crate) fn signal(&self, signal: &str) {
        signal_pid(self.pid, signal);
    }

    pub(crate) fn exit_status(&mut self) -> ExitStatus {
        let mut status = None;
        until("the supervisor's exit", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Everything that it has made and that lives, zombies included.
    pub(crate) fn descendants(&self) -> Vec<u32> {
        let mut family = vec![self.pid];
        let mut at = 0;
        while let Some(parent) = family.get(at) {
            let children = format!("/proc/{parent}/task/{parent}/children");
            for child in fs::read_to_string(children).unwrap_or_default().split_whitespace() {
                family.push(child.parse().unwrap());
            }
            at += 1;
        }
        family.split_off(1)
    }

    /// Everything in its PID namespace but itself.
    pub(crate) fn namespace(&self) -> Vec<u32> {
        let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = of(self.pid);
        let pids = fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| *pid != self.pid && of(*pid) == own)
            .collect()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- log of the supervisor\n{}", self.log());
        }
        let left = self.descendants();
        let _ = self.child.kill();
        let _ = self.child.wait();
        // As PID 1 it took everything with it; these are its orphans otherwise.
        left.into_iter().filter(|pid| alive(*pid)).for_each(|pid| signal_pid(pid, "KILL"));
    }
}

pub(crate) fn signal_pid(pid: u32, signal: &str) {
    Command::new("kill").args(["-s", signal, &pid.to_string()]).stderr(Std::null()).status().unwrap();
}

/// Exists and is no zombie.
pub(crate) fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z") && !rest.starts_with(" X"))
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("[::]:0")
        .or_else(|_| std::net::TcpListener::bind("0.0.0.0:0"))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// A controlling connection that waits for its replies.
pub(crate) struct Agent {
    pub(crate) connection: Connection,
    pub(crate) incarnation: Cell<Incarnation>,
    events: RefCell<VecDeque<Event>>,
}

impl Agent {
    pub(crate) fn connect(socket: &Path) -> Self {
        let it = Self {
            connection: Connection::connect(socket).unwrap(),
            incarnation: Cell::new(Incarnation([0; 16])),
            events: RefCell::default(),
        };
        it.incarnation.set(it.hello().incarnation);
        it
    }

    pub(crate) fn receive(&self) -> io::Result<Message> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.connection.recv() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no message came");
            self.connection.wait_readable(Some(left))?;
        }
    }

    pub(crate) fn reply(&self, id: u64) -> Reply {
        loop {
            match self.receive().unwrap() {
                Message::Event(event) => self.events.borrow_mut().push_back(event),
                Message::Reply { id: answered, reply } => {
                    assert_eq!(answered, id);
                    return reply;
                }
            }
        }
    }

    pub(crate) fn event(&self) -> Event {
        if let Some(event) = self.events.borrow_mut().pop_front() {
            return event;
        }
        match self.receive().unwrap() {
            Message::Event(event) => event,
            Message::Reply { reply, .. } => panic!("unexpected {reply:?}"),
        }
    }

    /// The next event of a kind; others are skipped.
    pub(crate) fn event_like<T>(&self, pick: impl Fn(&Event) -> Option<T>) -> T {
        loop {
            if let Some(found) = pick(&self.event()) {
                return found;
            }
        }
    }

    pub(crate) fn postmaster_exit(&self) -> PostmasterExit {
        self.event_like(|event| match event {
            Event::PostmasterExited(exit) => Some(*exit),
            _ => None,
        })
    }

    pub(crate) fn ask(&self, request: &Request) -> Reply {
        self.reply(self.connection.send(request, &[]).unwrap())
    }

    pub(crate) fn done(&self, request: &Request) {
        assert_eq!(self.ask(request), Reply::Done, "{request:?}");
    }

    pub(crate) fn refused(&self, request: &Request) -> RefusalCode {
        refusal(self.ask(request))
    }

    pub(crate) fn hello(&self) -> Status {
        match self.ask(&Request::Hello) {
            Reply::Hello(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn grant_request(&self, epoch: u64, deadline_ns: u64) -> Request {
        Request::Grant { epoch, incarnation: self.incarnation.get(), deadline_ns }
    }

    /// Grants for some time from now; the deadline.
    pub(crate) fn grant(&self, epoch: u64, time: Duration) -> u64 {
        let deadline_ns = boottime_ns() + u64::try_from(time.as_nanos()).unwrap();
        let reply = self.ask(&self.grant_request(epoch, deadline_ns));
        assert!(matches!(reply, Reply::Granted(_)), "{reply:?}");
        deadline_ns
    }

    /// Starts a postmaster with a death pipe: its pid, and the pipe's read end.
    pub(crate) fn start(&self, start: Start) -> (i32, File) {
        self.start_logging(start, None)
    }

    pub(crate) fn start_logging(&self, start: Start, log: Option<BorrowedFd<'_>>) -> (i32, File) {
        let (read, write) = io::pipe().unwrap();
        let id = self.connection.start(start, Some(write.as_fd()), log).unwrap();
        drop(write);
        match self.reply(id) {
            Reply::Started { pid, .. } => (pid, File::from(std::os::fd::OwnedFd::from(read))),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn run(&self, run: Run, stdio: Stdio<'_>) -> Reply {
        self.reply(self.connection.run(run, stdio).unwrap())
    }

    /// Runs a tool to its end: what it wrote and how it ended.
    pub(crate) fn output(&self, argv: &[&str]) -> (String, pgwarden_supervisor::protocol::Exit) {
        let (mut read, write) = io::pipe().unwrap();
        let stdio = Stdio { stdout: Some(write.as_fd()), stderr: Some(write.as_fd()), ..Stdio::default() };
        let Reply::ToolStarted { tool, .. } = self.run(tool(argv), stdio) else { panic!("not started") };
        drop(write);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        let exit = self.event_like(|event| match event {
            Event::ToolExited { tool: exited, exit } if *exited == tool => Some(*exit),
            _ => None,
        });
        (text, exit)
    }
}

pub(crate) fn refusal(reply: Reply) -> RefusalCode {
    match reply {
        Reply::Refused(refusal) => refusal.code,
        other => panic!("not refused: {other:?}"),
    }
}

pub(crate) fn start(mode: Mode, epoch: u64, argv: &[&str]) -> Start {
    Start { mode, epoch, argv: strings(argv), env: Vec::new(), cwd: None, death_pipe: false, log: false }
}

/// A shell script that passes for a postmaster.
pub(crate) fn script(mode: Mode, epoch: u64, text: &str, data: &str) -> Start {
    start(mode, epoch, &["sh", "-c", text, "postmaster", "-D", data])
}

pub(crate) fn tool(argv: &[&str]) -> Run {
    Run {
        argv: strings(argv),
        env: Vec::new(),
        cwd: None,
        stdin: false,
        stdout: false,
        stderr: false,
        kill_on_disconnect: true,
    }
}

/// Whether the pipe's other ends are all closed, waiting for at most so long.
pub(crate) fn ended(pipe: &File, time: Duration) -> bool {
    let limit = rustix::event::Timespec::try_from(time).unwrap();
    let mut fds = [rustix::event::PollFd::new(pipe, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&limit)).unwrap();
    fds[0].revents().contains(rustix::event::PollFlags::HUP)
}

/// Waits for the pipe's end; asserts that it came at the deadline: not before, and soon after.
pub(crate) fn ends_at(pipe: &File, deadline_ns: u64) {
    assert!(ended(pipe, PATIENCE), "processes live on after the deadline");
    let now = boottime_ns();
    assert!(now >= deadline_ns, "died {} ms before the deadline", (deadline_ns - now) / MILLISECOND);
    // Generous: other builds share this machine.
    assert!(now - deadline_ns < 1_500 * MILLISECOND, "{} ms late", (now - deadline_ns) / MILLISECOND);
}

pub(crate) fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}
