//! Every decision of the supervisor, without I/O: `handle(input, now) -> actions`.
//!
//! The actions are carried out in order; the first that fails ends the list and its reason is the reply. The actions that start
//! something feed their outcome back as an input. Times are `CLOCK_BOOTTIME` nanoseconds.

mod postmaster;
mod sigterm;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

use pgwarden_supervisor::clock::MILLISECOND;
use pgwarden_supervisor::protocol::{
    Event, Exit, GrantView, Incarnation, LockView, MAX_NOTE, Mode, PROTOCOL_VERSION, PostmasterExit,
    PostmasterView, Refusal, RefusalCode, Reply, Request, Run, Start, Status, StopMode, ToolView,
};

use self::sigterm::SigTerm;

/// SIGQUIT comes this long before the deadline; a grant with less left is not live.
pub(crate) const QUIT_LEAD: u64 = 500 * MILLISECOND;

/// Most tools at once.
const MAX_TOOLS: usize = 16;

/// Something happened.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// A request came in on a connection.
    Request { connection: u64, request: Request },
    /// A connection is gone.
    Closed { connection: u64 },
    /// Outcome of [`Action::Spawn`]: the pid.
    Started(Option<i32>),
    /// Outcome of [`Action::SpawnTool`]: the pid.
    ToolStarted(i32, PendingTool),
    /// Outcome of [`Action::Lock`].
    Locked(String, bool),
    /// The postmaster was reaped, after everything else had been killed.
    PostmasterExited { exit: Exit, drained: bool },
    /// Another child was reaped.
    ChildExited { pid: i32, exit: Exit },
    /// The dead-man thread has sent SIGQUIT to the postmaster.
    DeadlineQuit,
    /// The dead-man thread has killed.
    DeadlineFired,
    /// The pod is being deleted.
    SigTerm,
    /// Time has passed, or anything else has happened: comes after the others, on its own.
    Tick,
}

/// A tool before it has a pid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PendingTool {
    id: u64,
    connection: u64,
    program: String,
    kill_on_disconnect: bool,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Publish the deadline to the dead-man thread.
    SetDeadline(u64),
    /// From now on the deadline counts; `None`: the process is about to be made.
    Arm(Option<i32>),
    /// There is no primary any more.
    Disarm,
    /// Start the postmaster, feed [`Input::Started`] back.
    Spawn(Start),
    /// Start a tool, feed [`Input::ToolStarted`] back.
    SpawnTool(Run, PendingTool),
    /// Try the lock, feed [`Input::Locked`] back.
    Lock(String),
    /// Write the file that makes Postgres promote.
    PromoteFile(String),
    /// A signal to the postmaster.
    Signal(i32, i32),
    /// A signal to any process of the container.
    SignalOther(i32, i32),
    /// A signal to a tool's process group.
    SignalGroup(i32, i32),
    /// SIGKILL to the process group of a tool that nobody watches any more; can't fail.
    KillGroup(i32),
    /// SIGKILL to everything but the supervisor.
    KillEverything,
    /// SIGKILL to orphans: nothing of ours runs, so every descendant is one.
    Sweep,
    /// Answer the request at hand.
    Reply(Reply),
    /// Answer it with the end of Postgres' log.
    ReplyLogTail,
    /// Tell the controlling connection.
    Tell(Event),
    /// Close a displaced connection.
    Close(u64),
    /// A line in the log about something that nobody asked for.
    Log(&'static str),
    /// Kill everything and exit.
    Exit(u8),
}

#[derive(Debug, Clone)]
struct Postmaster {
    /// 0 while it is being started.
    pid: i32,
    mode: Mode,
    born: Mode,
    epoch: u64,
    start_id: u64,
    /// The switch has told it to go: its end, when it comes, is the switch's doing.
    quit: bool,
}

#[derive(Debug, Clone)]
struct Tool {
    pid: i32,
    it: PendingTool,
}

#[derive(Debug, Clone)]
enum Lock {
    None,
    Held(String),
    Missing,
}

/// What the supervisor knows.
#[derive(Debug, Clone)]
pub(crate) struct State {
    incarnation: Incarnation,
    pid_one: bool,
    grant: Option<GrantView>,
    /// Latest deadline ever accepted: none goes before it, not even after it has fired.
    floor_ns: u64,
    highest_epoch: u64,
    /// Epoch of the last primary, running or not.
    primary_epoch: u64,
    fenced: Option<u64>,
    postmaster: Option<Postmaster>,
    starts: u64,
    last_exit: Option<PostmasterExit>,
    tools: Vec<Tool>,
    tools_started: u64,
    controller: Option<u64>,
    sigterm: Option<SigTerm>,
    grace_ns: u64,
    lock: Lock,
    note: Vec<u8>,
    exiting: bool,
}

impl State {
    pub(crate) fn new(incarnation: Incarnation, pid_one: bool, grace_ns: u64) -> Self {
        Self {
            incarnation,
            pid_one,
            grant: None,
            floor_ns: 0,
            highest_epoch: 0,
            primary_epoch: 0,
            fenced: None,
            postmaster: None,
            starts: 0,
            last_exit: None,
            tools: Vec::new(),
            tools_started: 0,
            controller: None,
            sigterm: None,
            grace_ns,
            lock: Lock::None,
            note: Vec::new(),
            exiting: false,
        }
    }

    /// The postmaster's pid, for the one who reaps.
    pub(crate) fn postmaster_pid(&self) -> Option<i32> {
        self.postmaster.as_ref().map(|postmaster| postmaster.pid)
    }

    /// The connection that events go to.
    pub(crate) fn controller(&self) -> Option<u64> {
        self.controller
    }

    /// When `Tick` is due at the latest, if anything waits for time.
    pub(crate) fn next_tick(&self) -> Option<u64> {
        self.sigterm.as_ref().and_then(|sigterm| sigterm.next(self.grace_ns))
    }

    pub(crate) fn handle(&mut self, input: Input, now: u64) -> Vec<Action> {
        match input {
            Input::Request { connection, request } => {
                self.request(connection, request, now).unwrap_or_else(|refusal| vec![refused(refusal)])
            }
            Input::Closed { connection } => self.closed(connection, now),
            Input::Started(pid) => self.started(pid),
            Input::ToolStarted(pid, it) => {
                let tool = it.id;
                self.tools.push(Tool { pid, it });
                vec![Action::Reply(Reply::ToolStarted { tool, pid })]
            }
            Input::Locked(path, held) => self.locked(path, held),
            Input::PostmasterExited { exit, drained } => self.postmaster_exited(exit, drained),
            Input::ChildExited { pid, exit } => self.child_exited(pid, exit),
            Input::DeadlineQuit => {
                if let Some(postmaster) = self.postmaster.as_mut().filter(|it| it.mode == Mode::Primary) {
                    postmaster.quit = true;
                }
                vec![Action::Log("no newer grant and half a second to the deadline: immediate shutdown")]
            }
            Input::DeadlineFired => {
                let mut actions = vec![Action::KillEverything];
                actions.extend(self.fence());
                actions
            }
            Input::SigTerm => self.sigterm(now),
            Input::Tick => self.advance_sigterm(now),
        }
    }

    fn request(&mut self, connection: u64, request: Request, now: u64) -> Result<Vec<Action>, Refusal> {
        if self.exiting {
            return refuse(RefusalCode::Terminating, "the supervisor is about to exit");
        }
        if request != Request::Hello && self.controller != Some(connection) {
            return refuse(RefusalCode::HelloFirst, "this connection has not said Hello");
        }
        match request {
            Request::Hello => Ok(self.hello(connection, now)),
            Request::Grant { epoch, incarnation, deadline_ns } => {
                self.accept_grant(epoch, incarnation, deadline_ns, now)
            }
            Request::SetEpoch { from, to } => self.set_epoch(from, to, now),
            Request::Start(start) => self.start(start, now),
            Request::Promote { epoch, data_dir } => self.promote(epoch, data_dir, now),
            Request::Stop { mode } => {
                let signal = match mode {
                    StopMode::Smart => libc::SIGTERM,
                    StopMode::Fast => libc::SIGINT,
                    StopMode::Immediate => libc::SIGQUIT,
                };
                self.signal_postmaster(signal)
            }
            Request::Reload => self.signal_postmaster(libc::SIGHUP),
            Request::KillAll => Ok(vec![Action::KillEverything, done()]),
            Request::Signal { pid, signal } => {
                if pid <= 1 || !(1..=64).contains(&signal) {
                    return refuse(RefusalCode::NoSuchProcess, "not a process that may be signalled");
                }
                Ok(vec![Action::SignalOther(pid, signal), done()])
            }
            Request::Run(run) => self.run(connection, run),
            Request::KillTool { tool, signal } => match self.tools.iter().find(|it| it.it.id == tool) {
                Some(_) if !(1..=64).contains(&signal) => refuse(RefusalCode::BadRequest, "no such signal"),
                Some(tool) => Ok(vec![Action::SignalGroup(tool.pid, signal), done()]),
                None => refuse(RefusalCode::NoSuchTool, "no such tool runs"),
            },
            Request::SetNote(note) if note.len() > MAX_NOTE => {
                refuse(RefusalCode::BadRequest, "the note is over 8 KiB")
            }
            Request::SetNote(note) => {
                self.note = note;
                Ok(vec![done()])
            }
            Request::SigTermAck => {
                if let Some(sigterm) = &mut self.sigterm {
                    sigterm.acknowledged();
                }
                Ok(vec![done()])
            }
            Request::Lock { path } => self.take_lock(path),
            Request::LogTail => Ok(vec![Action::ReplyLogTail]),
            Request::Exit { code } => {
                self.exiting = true;
                Ok(vec![Action::KillEverything, done(), Action::Exit(code)])
            }
        }
    }

    fn hello(&mut self, connection: u64, now: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        if let Some(old) = self.controller.filter(|old| *old != connection) {
            actions.extend(self.closed(old, now));
            actions.push(Action::Close(old));
        }
        self.controller = Some(connection);
        actions.push(Action::Reply(Reply::Hello(Box::new(self.status(now)))));
        actions
    }

    fn status(&self, now: u64) -> Status {
        Status {
            protocol: PROTOCOL_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            incarnation: self.incarnation,
            boottime_ns: now,
            grant: self.grant,
            highest_epoch: self.highest_epoch,
            postmaster: self.postmaster.as_ref().map(|it| PostmasterView {
                pid: it.pid,
                mode: it.mode,
                epoch: it.epoch,
                start_id: it.start_id,
            }),
            last_exit: self.last_exit,
            fenced: self.fenced,
            tools: self
                .tools
                .iter()
                .map(|tool| ToolView { tool: tool.it.id, pid: tool.pid, program: tool.it.program.clone() })
                .collect(),
            sigterm: self.sigterm.is_some(),
            lock: match self.lock {
                Lock::None => LockView::None,
                Lock::Held(_) => LockView::Held,
                Lock::Missing => LockView::Missing,
            },
            pid_one: self.pid_one,
            note: self.note.clone(),
        }
    }

    fn run(&mut self, connection: u64, run: Run) -> Result<Vec<Action>, Refusal> {
        self.require_lock()?;
        require_program(&run.argv)?;
        if self.tools.len() >= MAX_TOOLS {
            return refuse(RefusalCode::TooMany, "16 tools run already");
        }
        self.tools_started += 1;
        let it = PendingTool {
            id: self.tools_started,
            connection,
            program: run.argv.first().cloned().unwrap_or_default(),
            kill_on_disconnect: run.kill_on_disconnect,
        };
        Ok(vec![Action::SpawnTool(run, it)])
    }

    fn require_lock(&self) -> Result<(), Refusal> {
        match self.lock {
            Lock::None | Lock::Held(_) => Ok(()),
            Lock::Missing => refuse(RefusalCode::LockMissing, "the volume's lock is not held"),
        }
    }

    fn take_lock(&mut self, path: String) -> Result<Vec<Action>, Refusal> {
        if !path.starts_with('/') {
            return refuse(RefusalCode::BadRequest, "the lock must be an absolute path");
        }
        match &self.lock {
            Lock::Held(held) if *held == path => Ok(vec![done()]),
            Lock::Held(held) => refuse(RefusalCode::BadRequest, format!("the lock is on {held} already")),
            Lock::None | Lock::Missing => {
                self.lock = Lock::Missing;
                Ok(vec![Action::Lock(path)])
            }
        }
    }

    fn locked(&mut self, path: String, held: bool) -> Vec<Action> {
        if held {
            self.lock = Lock::Held(path);
            vec![done()]
        } else {
            let text = format!("another process holds {path}");
            vec![refused(Refusal::new(RefusalCode::LockedElsewhere, text))]
        }
    }

    fn closed(&mut self, connection: u64, now: u64) -> Vec<Action> {
        if self.controller == Some(connection) {
            self.controller = None;
            if let Some(sigterm) = &mut self.sigterm {
                sigterm.agent_lost(now);
            }
        }
        self.tools
            .iter()
            .filter(|tool| tool.it.connection == connection && tool.it.kill_on_disconnect)
            .map(|tool| Action::KillGroup(tool.pid))
            .collect()
    }

    fn child_exited(&mut self, pid: i32, exit: Exit) -> Vec<Action> {
        let Some(at) = self.tools.iter().position(|tool| tool.pid == pid) else { return Vec::new() };
        let tool = self.tools.remove(at);
        let mut actions = Vec::new();
        if self.tools.is_empty() && self.postmaster.is_none() {
            actions.push(Action::Sweep);
        }
        actions.push(Action::Tell(Event::ToolExited { tool: tool.it.id, exit }));
        actions
    }
}

fn require_program(argv: &[String]) -> Result<(), Refusal> {
    if argv.first().is_none_or(String::is_empty) {
        return refuse(RefusalCode::BadRequest, "no program");
    }
    Ok(())
}

fn refuse<T>(code: RefusalCode, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(code, message))
}

fn refused(refusal: Refusal) -> Action {
    Action::Reply(Reply::Refused(refusal))
}

fn done() -> Action {
    Action::Reply(Reply::Done)
}
