//! The agent's handle on the supervisor, PID 1 of the Postgres container.
//!
//! One task reads the control socket and gives each reply to whoever asked, each event to the driver. No file I/O and no blocking
//! call stands on this path: a grant goes out at once, whatever the disk does.

mod tool;

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

pub use pgwarden_supervisor::protocol::{
    Event, Exit, GrantView, Incarnation, LockView, Mode, PostmasterExit, PostmasterView, Refusal,
    RefusalCode, Status, StopMode,
};
use pgwarden_supervisor::{
    client::{Connection, Stdio},
    protocol::{Message, Reply, Request, Run, Start},
};
use tokio::{
    io::unix::AsyncFd,
    net::unix::pipe,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
pub use tool::{Tool, ToolOutput};

/// What went wrong between agent and supervisor.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// No connection.
    #[error("failed to connect to the supervisor at {}", path.display())]
    Connect {
        /// The control socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection has ended: the container is gone, or another agent has taken over.
    #[error("the connection to the supervisor has ended")]
    Gone,
    /// The request could not be sent.
    #[error("failed to send {request} to the supervisor")]
    Send {
        /// Name of the request.
        request: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The supervisor said no: nothing was done.
    #[error("the supervisor did not do {request}")]
    Refused {
        /// Name of the request.
        request: &'static str,
        /// Its reason.
        source: Refusal,
    },
    /// A reply that does not belong to the request.
    #[error("the supervisor gave an unexpected answer to {request}")]
    Unexpected {
        /// Name of the request.
        request: &'static str,
    },
    /// A pipe to or from a process could not be made or read.
    #[error("failed to make or read a pipe for {request}")]
    Pipe {
        /// What the pipe was for.
        request: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A grant was to be given before the supervisor's incarnation is known.
    #[error("no grant before the supervisor's first Hello")]
    NoHello,
}

impl SupervisorError {
    /// The supervisor's reason, if it is what said no.
    #[must_use]
    pub const fn refusal(&self) -> Option<RefusalCode> {
        match self {
            Self::Refused { source, .. } => Some(source.code),
            Self::Connect { .. }
            | Self::Gone
            | Self::Send { .. }
            | Self::Unexpected { .. }
            | Self::Pipe { .. }
            | Self::NoHello => None,
        }
    }
}

/// A postmaster to start.
#[derive(Clone, Debug)]
pub struct StartRequest {
    /// Primary (needs a live grant of `epoch`) or standby (needs `standby.signal`).
    pub mode: Mode,
    /// Epoch of the record.
    pub epoch: u64,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// `NAME=value` sets a variable, `NAME` removes it.
    pub env: Vec<String>,
}

/// A postmaster that was started. That it exists does not mean that it accepts connections.
#[derive(Debug)]
pub struct Started {
    /// Counts the starts of this incarnation.
    pub start_id: u64,
    /// Its process id inside the container.
    pub pid: i32,
    /// Tells when none of its processes exists any more.
    pub death: DeathPipe,
}

/// The read end of a pipe whose write end every process of one start of Postgres holds, and nobody else.
#[derive(Debug)]
pub struct DeathPipe(pipe::Receiver);

impl DeathPipe {
    /// Returns when no process of that start exists: a proof, whatever became of the supervisor.
    ///
    /// # Errors
    /// When the pipe could not be read: then nothing is proven.
    pub async fn eof(&self) -> Result<(), SupervisorError> {
        let failed = |source| SupervisorError::Pipe { request: "the death pipe", source };
        loop {
            self.0.readable().await.map_err(failed)?;
            let mut byte = [0];
            match self.0.try_read(&mut byte) {
                Ok(0) => return Ok(()),
                // Nobody writes into it; if somebody does, that is no end.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

/// See the module. The last clone to be dropped closes the connection.
#[derive(Clone, Debug)]
pub struct Supervisor {
    link: Arc<Link>,
}

#[derive(Debug)]
struct Link {
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

#[derive(Debug)]
struct Shared {
    socket: AsyncFd<Connection>,
    waiting: Mutex<Waiting>,
    incarnation: OnceLock<Incarnation>,
}

/// Who waits for what.
#[derive(Debug, Default)]
struct Waiting {
    closed: bool,
    replies: HashMap<u64, Waiter>,
    tools: HashMap<u64, oneshot::Sender<Exit>>,
}

#[derive(Debug)]
enum Waiter {
    Reply(oneshot::Sender<Reply>),
    Tool(oneshot::Sender<Result<RunningTool, Refusal>>),
}

/// A tool that runs; dropping it before its end kills it.
#[derive(Debug)]
struct RunningTool {
    shared: Arc<Shared>,
    tool: u64,
    exit: oneshot::Receiver<Exit>,
    ended: bool,
}

impl Drop for RunningTool {
    fn drop(&mut self) {
        if !self.ended {
            self.shared.waiting().tools.remove(&self.tool);
            let kill = Request::KillTool { tool: self.tool, signal: libc::SIGKILL };
            if let Err(error) = self.shared.socket.get_ref().send(&kill, &[]) {
                // It dies with the connection at the latest.
                tracing::debug!(tool = self.tool, %error, "tool could not be killed");
            }
        }
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends, and registers who waits before the reply can be read.
    async fn post(
        &self,
        request: &'static str,
        send: impl Fn(&Connection) -> io::Result<u64>,
        waiter: Waiter,
    ) -> Result<(), SupervisorError> {
        loop {
            let mut ready =
                self.socket.writable().await.map_err(|source| SupervisorError::Send { request, source })?;
            let mut waiting = self.waiting();
            if waiting.closed {
                return Err(SupervisorError::Gone);
            }
            match ready.try_io(|socket| send(socket.get_ref())) {
                Ok(Ok(id)) => {
                    waiting.replies.insert(id, waiter);
                    return Ok(());
                }
                Ok(Err(error))
                    if matches!(
                        error.kind(),
                        io::ErrorKind::BrokenPipe
                            | io::ErrorKind::ConnectionReset
                            | io::ErrorKind::NotConnected
                    ) =>
                {
                    return Err(SupervisorError::Gone);
                }
                Ok(Err(source)) => return Err(SupervisorError::Send { request, source }),
                Err(_would_block) => {}
            }
        }
    }

    /// Gives a message to who waits for it.
    fn deliver(self: &Arc<Self>, message: Message, events: &mpsc::UnboundedSender<Event>) {
        match message {
            Message::Event(Event::ToolExited { tool, exit }) => {
                // Nobody waits for a tool that was killed because its future was dropped.
                if let Some(waiter) = self.waiting().tools.remove(&tool) {
                    let _ = waiter.send(exit);
                }
            }
            Message::Event(event) => {
                // No receiver: the driver ends.
                let _ = events.send(event);
            }
            Message::Reply { id, reply } => {
                let waiter = self.waiting().replies.remove(&id);
                match waiter {
                    Some(Waiter::Reply(waiter)) => {
                        let _ = waiter.send(reply);
                    }
                    Some(Waiter::Tool(waiter)) => self.deliver_tool(reply, waiter),
                    // The reply to a KillTool.
                    None => {}
                }
            }
        }
    }

    fn deliver_tool(self: &Arc<Self>, reply: Reply, waiter: oneshot::Sender<Result<RunningTool, Refusal>>) {
        match reply {
            Reply::ToolStarted { tool, .. } => {
                let (sender, exit) = oneshot::channel();
                self.waiting().tools.insert(tool, sender);
                // If nobody waits any more, the handle comes back, is dropped here, and kills the tool.
                drop(waiter.send(Ok(RunningTool { shared: Arc::clone(self), tool, exit, ended: false })));
            }
            Reply::Refused(refusal) => drop(waiter.send(Err(refusal))),
            // Dropping the waiter tells it.
            Reply::Hello(_)
            | Reply::Granted(_)
            | Reply::Done
            | Reply::Started { .. }
            | Reply::LogTail { .. } => {}
        }
    }

    /// Nothing more will come.
    fn close(&self) {
        let mut waiting = self.waiting();
        waiting.closed = true;
        waiting.replies.clear();
        waiting.tools.clear();
    }
}

async fn read(shared: Arc<Shared>, events: mpsc::UnboundedSender<Event>) {
    loop {
        let Ok(mut ready) = shared.socket.readable().await else { break };
        match ready.try_io(|socket| socket.get_ref().recv()) {
            Ok(Ok(message)) => shared.deliver(message, &events),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::error!(%error, "message of the supervisor can't be read");
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "connection to the supervisor ended");
                break;
            }
            Err(_would_block) => {}
        }
    }
    shared.close();
    // The events' sender is dropped here: the driver sees the end of the connection as the end of the events.
}

impl Supervisor {
    /// Connects, becomes the controlling agent, and returns the events of this connection; they end with it.
    ///
    /// # Errors
    /// When the supervisor is not there (yet) or refuses.
    pub async fn connect(path: &Path) -> Result<(Self, mpsc::UnboundedReceiver<Event>), SupervisorError> {
        let failed = |source| SupervisorError::Connect { path: path.to_owned(), source };
        let connection = Connection::connect(path).map_err(failed)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; the connection owns its descriptor, so it stays open"
        )]
        let socket = AsyncFd::new(connection).map_err(failed)?;
        let shared = Arc::new(Shared { socket, waiting: Mutex::default(), incarnation: OnceLock::new() });
        let (sender, events) = mpsc::unbounded_channel();
        let reader = tokio::spawn(read(Arc::clone(&shared), sender));
        let supervisor = Self { link: Arc::new(Link { shared, reader }) };
        supervisor.hello().await?;
        Ok((supervisor, events))
    }

    /// [`connect`](Self::connect), as soon as the supervisor is there: the agent's container starts before Postgres'.
    ///
    /// # Errors
    /// When it is there and refuses, or the path can't be a socket.
    pub async fn connect_when_there(
        path: &Path,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Event>), SupervisorError> {
        // A file that appears does not say that somebody listens yet, so there is nothing to wait for but the connection itself.
        const PAUSE: Duration = Duration::from_millis(25);
        loop {
            match Self::connect(path).await {
                Err(SupervisorError::Connect { source, .. })
                    if matches!(
                        source.kind(),
                        io::ErrorKind::NotFound
                            | io::ErrorKind::ConnectionRefused
                            | io::ErrorKind::WouldBlock
                    ) =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                other => return other,
            }
        }
    }

    async fn request(&self, request: Request) -> Result<Reply, SupervisorError> {
        let name = request.name();
        let (sender, receiver) = oneshot::channel();
        self.link.shared.post(name, |c| c.send(&request, &[]), Waiter::Reply(sender)).await?;
        answer(name, receiver.await)
    }

    async fn done(&self, request: Request) -> Result<(), SupervisorError> {
        let name = request.name();
        match self.request(request).await? {
            Reply::Done => Ok(()),
            Reply::Hello(_)
            | Reply::Granted(_)
            | Reply::Started { .. }
            | Reply::ToolStarted { .. }
            | Reply::LogTail { .. }
            | Reply::Refused(_) => Err(SupervisorError::Unexpected { request: name }),
        }
    }

    /// Everything that the supervisor knows, as of now.
    ///
    /// # Errors
    /// See [`SupervisorError`].
    pub async fn hello(&self) -> Result<Status, SupervisorError> {
        match self.request(Request::Hello).await? {
            Reply::Hello(status) => {
                let _ = self.link.shared.incarnation.set(status.incarnation);
                Ok(*status)
            }
            Reply::Granted(_)
            | Reply::Done
            | Reply::Started { .. }
            | Reply::ToolStarted { .. }
            | Reply::LogTail { .. }
            | Reply::Refused(_) => Err(SupervisorError::Unexpected { request: "Hello" }),
        }
    }

    /// Identity of this life of the container.
    #[must_use]
    pub fn incarnation(&self) -> Option<Incarnation> {
        self.link.shared.incarnation.get().copied()
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.link.shared.waiting().closed
    }

    /// Moves the dead-man deadline, an absolute `CLOCK_BOOTTIME`: compute it from when the renewal was *sent*.
    ///
    /// # Errors
    /// See [`SupervisorError`].
    pub async fn grant(&self, epoch: u64, deadline_boottime: Duration) -> Result<GrantView, SupervisorError> {
        let incarnation = self.incarnation().ok_or(SupervisorError::NoHello)?;
        let deadline_ns = u64::try_from(deadline_boottime.as_nanos()).unwrap_or(u64::MAX);
        match self.request(Request::Grant { epoch, incarnation, deadline_ns }).await? {
            Reply::Granted(view) => Ok(view),
            Reply::Hello(_)
            | Reply::Done
            | Reply::Started { .. }
            | Reply::ToolStarted { .. }
            | Reply::LogTail { .. }
            | Reply::Refused(_) => Err(SupervisorError::Unexpected { request: "Grant" }),
        }
    }

    /// The living primary of epoch `from` goes on as that of `to`.
    ///
    /// # Errors
    /// See [`SupervisorError`].
    pub async fn set_epoch(&self, from: u64, to: u64) -> Result<(), SupervisorError> {
        self.done(Request::SetEpoch { from, to }).await
    }

    /// Starts the postmaster, with a death pipe; its log is the container's.
    ///
    /// # Errors
    /// See [`SupervisorError`].
    pub async fn start(&self, start: StartRequest) -> Result<Started, SupervisorError> {
        let (death, write_end) = pipe_in("Start")?;
        let start = Start {
            mode: start.mode,
            epoch: start.epoch,
            argv: start.argv,
            env: start.env,
            cwd: None,
            death_pipe: true,
            log: false,
        };
        let (sender, receiver) = oneshot::channel();
        let send = |c: &Connection| c.start(start.clone(), Some(write_end.as_fd()), None);
        self.link.shared.post("Start", send, Waiter::Reply(sender)).await?;
        // Our copy would hold off the end of file for ever.
        drop(write_end);
        match answer("Start", receiver.await)? {
            Reply::Started { start_id, pid } => Ok(Started { start_id, pid, death: DeathPipe(death) }),
            Reply::Hello(_)
            | Reply::Granted(_)
            | Reply::Done
            | Reply::ToolStarted { .. }
            | Reply::LogTail { .. }
            | Reply::Refused(_) => Err(SupervisorError::Unexpected { request: "Start" }),
        }
    }

    /// Promotes the running standby: signalled, not yet promoted, when this returns.
    ///
    /// # Errors
    /// See [`SupervisorError`].
    pub async fn promote(&self, epoch: u64, data_dir: &Path) -> Result<(), SupervisorError> {
        self.done(Request::Promote { epoch, data_dir: data_dir.to_string_lossy().into_owned() }).await
    }

    /// Signals the postmaster to stop; [`Event::PostmasterExited`] follows.
    ///
    /// # Errors
    /// See [`SupervisorError`].
    pub async fn stop(&self, mode: StopMode) -> Result<(), SupervisorError> {
        self.done(Request::Stop { mode }).await
    }

    /// SIGKILL to every process of the container but the supervisor.
    ///
    /// # Errors
    /// See [`SupervisorError`].
    pub async fn kill_all(&self) -> Result<(), SupervisorError> {
        self.done(Request::KillAll).await
    }

    /// SIGHUP to the postmaster.
    ///
    /// # Errors
    /// See [`SupervisorError`].
    pub async fn reload(&self) -> Result<(), SupervisorError> {
        self.done(Request::Reload).await
    }

    /// A signal to a process of the container.
    ///
    /// # Errors
    /// See [`SupervisorError`].
    pub async fn signal(&self, pid: i32, signal: i32) -> Result<(), SupervisorError> {
        self.done(Request::Signal { pid, signal }).await
    }

    /// Takes the volume's lock and keeps it until the supervisor and all that it started afterwards are gone.
    ///
    /// # Errors
    /// [`RefusalCode::LockedElsewhere`] while another pod's processes hold it.
    pub async fn lock(&self, path: &Path) -> Result<(), SupervisorError> {
        self.done(Request::Lock { path: path.to_string_lossy().into_owned() }).await
    }

    /// Keeps bytes for the next Hello: what a restarted agent wants to know.
    ///
    /// # Errors
    /// See [`SupervisorError`].
    pub async fn set_note(&self, note: Vec<u8>) -> Result<(), SupervisorError> {
        self.done(Request::SetNote(note)).await
    }

    /// "I know of the SIGTERM and am at it."
    ///
    /// # Errors
    /// See [`SupervisorError`].
    pub async fn sigterm_ack(&self) -> Result<(), SupervisorError> {
        self.done(Request::SigTermAck).await
    }

    /// The end of Postgres' log, of the last start; once that has ended, all of it that is kept. Empty with a supervisor that
    /// does not keep it.
    ///
    /// # Errors
    /// See [`SupervisorError`].
    pub async fn log_tail(&self, has_ended: bool) -> Result<String, SupervisorError> {
        // The last lines may still be on their way when the last process is gone.
        const LOOKS: u32 = 50;
        const PAUSE: Duration = Duration::from_millis(5);
        for look in 1.. {
            match self.request(Request::LogTail).await {
                Ok(Reply::LogTail { ended: false, .. }) if has_ended && look < LOOKS => {
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(Reply::LogTail { bytes, .. }) => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
                Err(error) if error.refusal() == Some(RefusalCode::UnknownRequest) => break,
                Err(error) => return Err(error),
                Ok(_) => return Err(SupervisorError::Unexpected { request: "LogTail" }),
            }
        }
        Ok(String::new())
    }

    /// Ends the supervisor, and with it the container.
    ///
    /// # Errors
    /// See [`SupervisorError`].
    pub async fn exit(&self, code: u8) -> Result<(), SupervisorError> {
        self.done(Request::Exit { code }).await
    }

    /// Starts a tool with the given streams.
    async fn spawn(&self, run: Run, stdio: Stdio<'_>) -> Result<RunningTool, SupervisorError> {
        let (sender, receiver) = oneshot::channel();
        self.link.shared.post("Run", |c| c.run(run.clone(), stdio), Waiter::Tool(sender)).await?;
        match receiver.await {
            Ok(Ok(running)) => Ok(running),
            Ok(Err(source)) => Err(SupervisorError::Refused { request: "Run", source }),
            Err(_) if self.is_gone() => Err(SupervisorError::Gone),
            Err(_) => Err(SupervisorError::Unexpected { request: "Run" }),
        }
    }
}

fn answer(
    request: &'static str,
    reply: Result<Reply, oneshot::error::RecvError>,
) -> Result<Reply, SupervisorError> {
    match reply {
        Ok(Reply::Refused(source)) => Err(SupervisorError::Refused { request, source }),
        Ok(reply) => Ok(reply),
        Err(_) => Err(SupervisorError::Gone),
    }
}

/// A pipe: the read end for us, the write end for a process of the container.
fn pipe_in(request: &'static str) -> Result<(pipe::Receiver, OwnedFd), SupervisorError> {
    let failed = |source: io::Error| SupervisorError::Pipe { request, source };
    let (read_end, write_end) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    Ok((pipe::Receiver::from_owned_fd(read_end).map_err(failed)?, write_end))
}

/// A pipe: the write end for us, the read end for a process of the container.
fn pipe_out(request: &'static str) -> Result<(pipe::Sender, OwnedFd), SupervisorError> {
    let failed = |source: io::Error| SupervisorError::Pipe { request, source };
    let (read_end, write_end) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    Ok((pipe::Sender::from_owned_fd(write_end).map_err(failed)?, read_end))
}
