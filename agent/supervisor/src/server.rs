//! The loop around [`State`]: waits, reaps, takes requests, carries actions out.
//!
//! Order matters in one place: before each request it is looked whether the dead-man switch has fired and who has died,
//! so that a decision is never made on a world that is known to be gone.

mod sockets;

use std::collections::VecDeque;
use std::fmt::Display;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pgwarden_supervisor::clock::{MILLISECOND, SECOND, boottime_ns, realtime_ns};
use pgwarden_supervisor::protocol::{self, Event, Exit, Message, Refusal, RefusalCode, Reply, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, kill_process_group, wait};

use self::sockets::Incoming;
use crate::deadman::DeadMan;
use crate::kill::Killer;
use crate::probe::LoopTick;
use crate::state::{Action, Input, State};
use crate::{log, relay, spawn, sys};

/// How long the remains of a postmaster are waited for, once killed, before its end is told.
const DRAIN: u64 = 50 * MILLISECOND;

/// Requests taken from one connection before others get a turn.
const TURN: usize = 64;

pub(crate) use self::sockets::Sockets;

pub(crate) struct Server {
    state: State,
    sockets: Sockets,
    signals: OwnedFd,
    switch: Arc<DeadMan>,
    killer: Killer,
    tick: Arc<LoopTick>,
    lock: Option<OwnedFd>,
    /// `CLOCK_REALTIME` − `CLOCK_BOOTTIME`, to notice a clock that was set.
    clock_offset: u64,
}

/// Who is waiting for a reply, and what came with the request.
struct Requester {
    connection: u64,
    id: u64,
    name: &'static str,
    descriptors: Vec<OwnedFd>,
}

impl Server {
    pub(crate) fn new(
        state: State,
        sockets: Sockets,
        signals: OwnedFd,
        switch: Arc<DeadMan>,
        killer: Killer,
        tick: Arc<LoopTick>,
    ) -> Self {
        let clock_offset = realtime_ns().wrapping_sub(boottime_ns());
        Self { state, sockets, signals, switch, killer, tick, lock: None, clock_offset }
    }

    /// Runs until the program exits.
    pub(crate) fn run(mut self) -> ! {
        loop {
            self.tick.set(boottime_ns());
            self.wait();
            self.tick.set(boottime_ns());
            self.catch_up();
            while let Some(signal) = sys::next_signal(&self.signals) {
                if signal != libc::SIGCHLD {
                    self.input(Input::SigTerm);
                }
            }
            self.catch_up();
            self.take_requests();
            self.sockets.accept();
            while let Some(connection) = self.sockets.surplus(self.state.controller()) {
                self.close(connection);
            }
            self.input(Input::Tick);
            self.watch_clock();
        }
    }

    fn wait(&self) {
        let now = boottime_ns();
        let until = self.state.next_tick().unwrap_or(u64::MAX).min(now.saturating_add(SECOND));
        let left = until.saturating_sub(now);
        let timeout = Timespec {
            tv_sec: i64::try_from(left / SECOND).unwrap_or(0),
            tv_nsec: i64::try_from(left % SECOND).unwrap_or(0),
        };
        let mut fds = Vec::with_capacity(16);
        fds.push(PollFd::new(&self.signals, PollFlags::IN));
        fds.push(PollFd::new(self.switch.notify(), PollFlags::IN));
        fds.extend(self.sockets.descriptors().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let _ = poll(&mut fds, Some(&timeout));
    }

    /// What has happened without anybody asking: the switch first, then deaths.
    fn catch_up(&mut self) {
        if self.switch.take_quit() {
            self.input(Input::DeadlineQuit);
        }
        if self.switch.take_fired() {
            self.input(Input::DeadlineFired);
        }
        self.reap();
    }

    fn reap(&mut self) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let (pid, exit) = (pid.as_raw_pid(), exit_of(status));
                    if self.state.postmaster_pid() == Some(pid) {
                        self.postmaster_died(exit);
                    } else {
                        self.input(Input::ChildExited { pid, exit });
                    }
                }
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Orphaned backends can go on for a while, and commit: they are killed before anybody hears of it. In a PID namespace that
    /// takes every process, tools and `kubectl exec` sessions too; none of them is of use without a postmaster.
    fn postmaster_died(&mut self, exit: Exit) {
        self.killer.everything();
        let until = boottime_ns().saturating_add(DRAIN);
        let mut tools = Vec::new();
        let drained = loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => tools.push((pid.as_raw_pid(), exit_of(status))),
                Err(Errno::CHILD) => break true,
                Ok(None) if boottime_ns() < until => thread::sleep(Duration::from_millis(1)),
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => break false,
            }
        };
        self.input(Input::PostmasterExited { exit, drained });
        for (pid, exit) in tools {
            self.input(Input::ChildExited { pid, exit });
        }
    }

    fn take_requests(&mut self) {
        for connection in self.sockets.ids() {
            for _ in 0..TURN {
                match self.sockets.receive(connection) {
                    Incoming::Nothing => break,
                    Incoming::Closed => {
                        self.close(connection);
                        break;
                    }
                    Incoming::Bad { id, refusal } => {
                        log::warn("message refused", &[("reason", &refusal.message)]);
                        self.send(connection, &Message::Reply { id, reply: Reply::Refused(refusal) });
                    }
                    Incoming::Request { id, request, descriptors } => {
                        self.catch_up();
                        let requester = Requester { connection, id, name: request.name(), descriptors };
                        self.request(request, requester);
                    }
                }
            }
        }
    }

    fn request(&mut self, request: Request, requester: Requester) {
        if request == Request::Hello {
            log::info("agent connected", &[("connection", &requester.connection)]);
        }
        let input = Input::Request { connection: requester.connection, request };
        let actions = self.state.handle(input, boottime_ns());
        self.apply(actions, Some(requester));
    }

    fn input(&mut self, input: Input) {
        let actions = self.state.handle(input, boottime_ns());
        self.apply(actions, None);
    }

    fn apply(&mut self, actions: Vec<Action>, mut requester: Option<Requester>) {
        let mut queue = VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            match self.act(action, requester.as_mut()) {
                Ok(Some(input)) => queue.extend(self.state.handle(input, boottime_ns())),
                Ok(None) => {}
                Err(refusal) => {
                    // Nobody asked: a stop that comes too late, say.
                    if requester.is_some() {
                        queue.clear();
                    }
                    self.reply(requester.as_ref(), Reply::Refused(refusal));
                }
            }
        }
    }

    /// Carries one action out; its outcome may be a new input.
    fn act(&mut self, action: Action, requester: Option<&mut Requester>) -> Result<Option<Input>, Refusal> {
        match action {
            Action::SetDeadline(deadline_ns) => self.switch.set_deadline(deadline_ns),
            Action::Arm(pid) => self.switch.arm(pid),
            Action::Disarm => self.switch.disarm(),
            Action::Spawn(start) => {
                let descriptors = requester.map(|it| std::mem::take(&mut it.descriptors)).unwrap_or_default();
                let checked = match start.mode {
                    protocol::Mode::Standby => spawn::require_standby(&start),
                    protocol::Mode::Primary => Ok(()),
                };
                let spawned =
                    checked.and_then(|()| spawn::postmaster(&start, descriptors, self.lock.as_ref()));
                return match spawned {
                    Ok(pid) => Ok(Some(Input::Started(Some(pid)))),
                    Err(refusal) => {
                        self.input(Input::Started(None));
                        Err(refusal)
                    }
                };
            }
            Action::SpawnTool(run, pending) => {
                let descriptors = requester.map(|it| std::mem::take(&mut it.descriptors)).unwrap_or_default();
                let pid = spawn::tool(&run, descriptors, self.lock.as_ref())?;
                return Ok(Some(Input::ToolStarted(pid, pending)));
            }
            Action::Lock(path) => {
                let held = self.take_lock(&path)?;
                return Ok(Some(Input::Locked(path, held)));
            }
            Action::PromoteFile(data_dir) => write_promote_file(&data_dir)?,
            Action::Signal(pid, signal) => send_signal(pid, signal, kill_process)?,
            Action::SignalGroup(pid, signal) => send_signal(pid, signal, kill_process_group)?,
            Action::KillGroup(pid) => {
                let _ = send_signal(pid, libc::SIGKILL, kill_process_group);
            }
            Action::SignalOther(pid, signal) => {
                if !self.killer.may_signal(pid) {
                    return Err(Refusal::new(RefusalCode::NoSuchProcess, "not a process of this container"));
                }
                send_signal(pid, signal, kill_process)?;
            }
            Action::KillEverything => self.killer.everything(),
            Action::Sweep => self.killer.descendants(),
            Action::Reply(reply) => self.reply(requester.as_deref(), reply),
            Action::ReplyLogTail => {
                let (bytes, ended) = relay::read();
                self.reply(requester.as_deref(), Reply::LogTail { bytes, ended });
            }
            Action::Tell(event) => self.tell(event),
            Action::Close(connection) => {
                log::info("connection displaced by a newer one", &[("connection", &connection)]);
                self.sockets.close(connection);
            }
            Action::Log(text) => log::warn(text, &[]),
            Action::Exit(code) => self.exit(code),
        }
        Ok(None)
    }

    fn reply(&mut self, requester: Option<&Requester>, reply: Reply) {
        let Some(requester) = requester else {
            if let Reply::Refused(refusal) = reply {
                log::warn("failed", &[("reason", &refusal.message)]);
            }
            return;
        };
        let name: &dyn Display = &requester.name;
        match &reply {
            Reply::Refused(refusal) => {
                let code = format!("{:?}", refusal.code);
                log::warn("refused", &[("request", name), ("code", &code), ("reason", &refusal.message)]);
            }
            Reply::Started { pid, .. } | Reply::ToolStarted { pid, .. } => {
                log::info("started", &[("request", name), ("pid", pid)]);
            }
            // Grants and notes come every second or two.
            Reply::Done if requester.name != "SetNote" => log::info("done", &[("request", name)]),
            Reply::Done | Reply::Granted(_) | Reply::Hello(_) | Reply::LogTail { .. } => {}
        }
        self.send(requester.connection, &Message::Reply { id: requester.id, reply });
    }

    fn tell(&mut self, event: Event) {
        match &event {
            Event::PostmasterExited(it) => {
                log::warn("postmaster exited", &[("how", &it.exit), ("drained", &it.drained)])
            }
            Event::ToolExited { tool, exit } => log::info("tool exited", &[("tool", tool), ("how", exit)]),
            Event::DeadlineFired { epoch } => log::error("fenced", &[("epoch", epoch)]),
            Event::SigTerm | Event::Unknown(_) => {}
        }
        if let Some(controller) = self.state.controller() {
            self.send(controller, &Message::Event(event));
        }
    }

    /// A peer that does not read is as good as gone, and after a new Hello it knows everything.
    fn send(&mut self, connection: u64, message: &Message) {
        if let Err(error) = self.sockets.send(connection, message) {
            log::warn("connection lost", &[("connection", &connection), ("reason", &error)]);
            self.close(connection);
        }
    }

    fn close(&mut self, connection: u64) {
        if self.sockets.close(connection) {
            if self.state.controller() == Some(connection) {
                log::info("agent disconnected", &[("connection", &connection)]);
            }
            self.input(Input::Closed { connection });
        }
    }

    /// Opens the file and tries the lock. The descriptor is kept, and inherited by what is started later.
    fn take_lock(&mut self, path: &str) -> Result<bool, Refusal> {
        let io = |error: &dyn Display| Refusal::new(RefusalCode::Io, format!("{path}: {error}"));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|error| io(&error))?;
        let held = sys::lock(&file).map_err(|error| io(&error))?;
        if held {
            self.lock = Some(file);
        }
        Ok(held)
    }

    fn watch_clock(&mut self) {
        let offset = realtime_ns().wrapping_sub(boottime_ns());
        let step = offset.wrapping_sub(self.clock_offset).cast_signed();
        if step.unsigned_abs() > SECOND / 2 {
            let milliseconds = step / MILLISECOND.cast_signed();
            log::warn("the wall clock was set; deadlines do not use it", &[("step_ms", &milliseconds)]);
        }
        self.clock_offset = offset;
    }

    fn exit(&mut self, code: u8) -> ! {
        self.killer.everything();
        self.sockets.remove();
        log::info("exit", &[("code", &code)]);
        std::process::exit(i32::from(code))
    }
}

fn exit_of(status: WaitStatus) -> Exit {
    match status.exit_status() {
        Some(code) => Exit::Code(code),
        None => Exit::Signal(status.terminating_signal().unwrap_or(0)),
    }
}

fn send_signal(
    pid: i32,
    signal: i32,
    send: impl FnOnce(Pid, Signal) -> rustix::io::Result<()>,
) -> Result<(), Refusal> {
    let nobody = || Refusal::new(RefusalCode::NoSuchProcess, format!("no process {pid}"));
    let pid = Pid::from_raw(pid).ok_or_else(nobody)?;
    let signal = Signal::from_named_raw(signal)
        .ok_or_else(|| Refusal::new(RefusalCode::BadRequest, format!("no signal {signal}")))?;
    match send(pid, signal) {
        Ok(()) => Ok(()),
        Err(Errno::SRCH) => Err(nobody()),
        Err(error) => Err(Refusal::new(RefusalCode::Io, error.to_string())),
    }
}

/// Postgres looks for this file when it gets SIGUSR1.
fn write_promote_file(data_dir: &str) -> Result<(), Refusal> {
    let path = Path::new(data_dir).join("promote");
    fs::write(&path, b"")
        .map_err(|error| Refusal::new(RefusalCode::Io, format!("{}: {error}", path.display())))
}
