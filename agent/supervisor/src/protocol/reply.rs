//! What the supervisor answers and tells.

use std::fmt;

use super::request::{header, read_mode, write_header, write_mode};
use super::wire::{Reader, Writer};
use super::{DecodeError, Incarnation, Mode, PROTOCOL_VERSION, TooLarge};

/// The grant in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantView {
    /// Its epoch.
    pub epoch: u64,
    /// Its deadline, `CLOCK_BOOTTIME` in nanoseconds; may be past.
    pub deadline_ns: u64,
}

/// The running postmaster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PostmasterView {
    /// Its process id inside the container.
    pub pid: i32,
    /// Whether the deadline counts for it.
    pub mode: Mode,
    /// Epoch of its start, promotion or last `SetEpoch`.
    pub epoch: u64,
    /// Counts the starts of this incarnation, from 1.
    pub start_id: u64,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// The end of a postmaster. When it is told, every other process of the container has been sent SIGKILL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PostmasterExit {
    /// Which start.
    pub start_id: u64,
    /// How it ended.
    pub exit: Exit,
    /// Whether all of its processes were also seen gone. If not (one hangs in the kernel), wait for the death pipe's EOF before
    /// the next start, or Postgres will refuse with "pre-existing shared memory block is still in use".
    pub drained: bool,
}

/// A running tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolView {
    /// Id from `ToolStarted`.
    pub tool: u64,
    /// Process id inside the container, also its process group.
    pub pid: i32,
    /// Program as in the request's `argv[0]`.
    pub program: String,
}

/// The volume's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockView {
    /// Never asked for.
    None,
    /// Held.
    Held,
    /// Asked for and not got.
    Missing,
}

/// Everything a restarted agent needs to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// [`PROTOCOL_VERSION`] of the supervisor.
    pub protocol: u16,
    /// Version of the supervisor's package.
    pub version: String,
    /// Identity of this life of the container.
    pub incarnation: Incarnation,
    /// `CLOCK_BOOTTIME` when this was written, nanoseconds. The agent reads the same clock by itself; a difference of more than
    /// the time of the exchange means that the two containers do not share it, and then grants mean nothing.
    pub boottime_ns: u64,
    /// The grant in force; none before the first, and none after the deadline has fired.
    pub grant: Option<GrantView>,
    /// Highest epoch ever seen in a grant.
    pub highest_epoch: u64,
    /// The running postmaster.
    pub postmaster: Option<PostmasterView>,
    /// The last end of a postmaster.
    pub last_exit: Option<PostmasterExit>,
    /// Epoch of the primary that the deadline last killed.
    pub fenced: Option<u64>,
    /// Running tools.
    pub tools: Vec<ToolView>,
    /// The pod is being deleted. A newly connected agent must send `SigTermAck` (again).
    pub sigterm: bool,
    /// The volume's lock.
    pub lock: LockView,
    /// Whether it is PID 1 of its PID namespace. If not (tests), only its descendants are killed, never `kill(-1)`.
    pub pid_one: bool,
    /// The bytes of the last `SetNote`.
    pub note: Vec<u8>,
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusalCode {
    /// Not a message, or fields or descriptors that do not fit together.
    BadRequest,
    /// A kind or protocol version that this supervisor does not know.
    UnknownRequest,
    /// The first message of a connection must be `Hello`.
    HelloFirst,
    /// The grant is for another life of the pod.
    WrongIncarnation,
    /// A higher epoch has been seen.
    StaleEpoch,
    /// The deadline would move backwards.
    DeadlineBackwards,
    /// The deadline is past.
    DeadlinePassed,
    /// The deadline is further ahead than any real one.
    DeadlineTooFar,
    /// There is no live grant of exactly this epoch (one with less than 500 ms left is not live).
    NoGrant,
    /// A postmaster runs already.
    AlreadyRunning,
    /// No postmaster runs.
    NotRunning,
    /// The postmaster (or the data directory of a start) is not a standby.
    NotStandby,
    /// There is no primary of that epoch.
    NotPrimary,
    /// The pod is being deleted, or `Exit` was asked for.
    Terminating,
    /// The volume's lock was asked for and is not held.
    LockMissing,
    /// Another process holds the lock.
    LockedElsewhere,
    /// The program is not in this image.
    ProgramNotFound,
    /// The program could not be started.
    SpawnFailed,
    /// Too many tools at once.
    TooMany,
    /// No such tool.
    NoSuchTool,
    /// No such process, or not one that may be signalled.
    NoSuchProcess,
    /// The system refused.
    Io,
    /// A code of a newer supervisor.
    Other(u16),
}

const CODES: [(u16, RefusalCode); 22] = [
    (1, RefusalCode::BadRequest),
    (2, RefusalCode::UnknownRequest),
    (3, RefusalCode::HelloFirst),
    (4, RefusalCode::WrongIncarnation),
    (5, RefusalCode::StaleEpoch),
    (6, RefusalCode::DeadlineBackwards),
    (7, RefusalCode::DeadlinePassed),
    (8, RefusalCode::DeadlineTooFar),
    (9, RefusalCode::NoGrant),
    (10, RefusalCode::AlreadyRunning),
    (11, RefusalCode::NotRunning),
    (12, RefusalCode::NotStandby),
    (13, RefusalCode::NotPrimary),
    (14, RefusalCode::Terminating),
    (15, RefusalCode::LockMissing),
    (16, RefusalCode::LockedElsewhere),
    (17, RefusalCode::ProgramNotFound),
    (18, RefusalCode::SpawnFailed),
    (19, RefusalCode::TooMany),
    (20, RefusalCode::NoSuchTool),
    (21, RefusalCode::NoSuchProcess),
    (22, RefusalCode::Io),
];

impl RefusalCode {
    pub(super) fn to_wire(self) -> u16 {
        if let Self::Other(code) = self {
            return code;
        }
        CODES.iter().find(|(_, code)| *code == self).map_or(0, |(wire, _)| *wire)
    }

    pub(super) fn from_wire(wire: u16) -> Self {
        CODES.iter().find(|(code, _)| *code == wire).map_or(Self::Other(wire), |(_, code)| *code)
    }
}

/// A refused request: nothing was done (but see [`Request::Promote`](super::Request::Promote)).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused ({code:?}): {message}")]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// A refusal with its reason.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To `Hello`.
    Hello(Box<Status>),
    /// To `Grant`: what is in force now.
    Granted(GrantView),
    /// Done as asked.
    Done,
    /// To `Start`: the postmaster exists. Whether it becomes ready is for the agent to see.
    Started {
        /// Counts the starts of this incarnation.
        start_id: u64,
        /// Its process id inside the container.
        pid: i32,
    },
    /// To `Run`.
    ToolStarted {
        /// For `KillTool` and `ToolExited`.
        tool: u64,
        /// Its process id inside the container, also its process group.
        pid: i32,
    },
    /// To `LogTail`.
    LogTail {
        /// The last bytes of Postgres' log.
        bytes: Vec<u8>,
        /// Nothing more will come: every process of that start has ended.
        ended: bool,
    },
    /// Not done.
    Refused(Refusal),
}

/// Told unasked, to the controlling connection only. What happens while none is there is in the next `Hello`, except the
/// exits of tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The postmaster is gone, and so is every other process that had been left: tools die with it.
    PostmasterExited(PostmasterExit),
    /// A tool has ended.
    ToolExited {
        /// Which.
        tool: u64,
        /// How.
        exit: Exit,
    },
    /// The pod is being deleted: answer with `SigTermAck` within 2 s, hand over, then `Exit`.
    SigTerm,
    /// The switch has killed the primary: SIGKILL was sent to every process, at the deadline or, when the postmaster
    /// obeyed SIGQUIT, at its end up to 500 ms before. A new primary needs a new grant. `PostmasterExited` follows.
    DeadlineFired {
        /// Epoch of that primary.
        epoch: u64,
    },
    /// An event of a newer supervisor.
    Unknown(u16),
}

/// What the client receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The answer to the request with this id.
    Reply {
        /// Id that [`send`](crate::client::Connection::send) gave.
        id: u64,
        /// The answer.
        reply: Reply,
    },
    /// An event.
    Event(Event),
}

mod kind {
    pub(super) const HELLO: u16 = 101;
    pub(super) const GRANTED: u16 = 102;
    pub(super) const DONE: u16 = 103;
    pub(super) const STARTED: u16 = 104;
    pub(super) const TOOL_STARTED: u16 = 105;
    pub(super) const REFUSED: u16 = 106;
    pub(super) const LOG_TAIL: u16 = 107;
    /// Kinds from here on are events.
    pub(super) const FIRST_EVENT: u16 = 201;
    pub(super) const POSTMASTER_EXITED: u16 = 201;
    pub(super) const TOOL_EXITED: u16 = 202;
    pub(super) const SIGTERM: u16 = 203;
    pub(super) const DEADLINE_FIRED: u16 = 204;
}

impl Message {
    /// The message's bytes.
    ///
    /// # Errors
    /// [`TooLarge`] when it would be over [`MAX_MESSAGE`](super::MAX_MESSAGE).
    pub fn encode(&self) -> Result<Vec<u8>, TooLarge> {
        let mut w = Writer::default();
        match self {
            Self::Reply { id, reply } => write_reply(&mut w, *id, reply),
            Self::Event(event) => write_event(&mut w, event),
        }
        w.finish()
    }

    /// Reads a message of the supervisor.
    ///
    /// # Errors
    /// [`DecodeError`]. An unknown event is none: it is [`Event::Unknown`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes)?;
        let header = header(&mut r)?;
        if header.version != PROTOCOL_VERSION {
            return Err(DecodeError::Version(header.version));
        }
        let reply = match header.kind {
            kind::HELLO => Reply::Hello(Box::new(read_status(&mut r)?)),
            kind::GRANTED => Reply::Granted(read_grant(&mut r)?),
            kind::DONE => Reply::Done,
            kind::STARTED => Reply::Started { start_id: r.u64()?, pid: r.i32()? },
            kind::TOOL_STARTED => Reply::ToolStarted { tool: r.u64()?, pid: r.i32()? },
            kind::LOG_TAIL => Reply::LogTail { bytes: r.bytes()?.to_vec(), ended: r.bool()? },
            kind::REFUSED => {
                Reply::Refused(Refusal { code: RefusalCode::from_wire(r.u16()?), message: r.string()? })
            }
            event if event >= kind::FIRST_EVENT => return read_event(event, r).map(Self::Event),
            other => return Err(DecodeError::Kind(other)),
        };
        r.end()?;
        Ok(Self::Reply { id: header.id, reply })
    }
}

fn write_reply(w: &mut Writer, id: u64, reply: &Reply) {
    match reply {
        Reply::Hello(status) => {
            write_header(w, kind::HELLO, id);
            write_status(w, status);
        }
        Reply::Granted(grant) => {
            write_header(w, kind::GRANTED, id);
            write_grant(w, grant);
        }
        Reply::Done => write_header(w, kind::DONE, id),
        Reply::Started { start_id, pid } => {
            write_header(w, kind::STARTED, id);
            w.u64(*start_id);
            w.i32(*pid);
        }
        Reply::ToolStarted { tool, pid } => {
            write_header(w, kind::TOOL_STARTED, id);
            w.u64(*tool);
            w.i32(*pid);
        }
        Reply::LogTail { bytes, ended } => {
            write_header(w, kind::LOG_TAIL, id);
            w.bytes(bytes);
            w.bool(*ended);
        }
        Reply::Refused(refusal) => {
            write_header(w, kind::REFUSED, id);
            w.u16(refusal.code.to_wire());
            w.str(&refusal.message);
        }
    }
}

fn write_event(w: &mut Writer, event: &Event) {
    match event {
        Event::PostmasterExited(exit) => {
            write_header(w, kind::POSTMASTER_EXITED, 0);
            write_postmaster_exit(w, exit);
        }
        Event::ToolExited { tool, exit } => {
            write_header(w, kind::TOOL_EXITED, 0);
            w.u64(*tool);
            write_exit(w, *exit);
        }
        Event::SigTerm => write_header(w, kind::SIGTERM, 0),
        Event::DeadlineFired { epoch } => {
            write_header(w, kind::DEADLINE_FIRED, 0);
            w.u64(*epoch);
        }
        Event::Unknown(kind) => write_header(w, *kind, 0),
    }
}

fn read_event(kind: u16, mut r: Reader<'_>) -> Result<Event, DecodeError> {
    let event = match kind {
        kind::POSTMASTER_EXITED => Event::PostmasterExited(read_postmaster_exit(&mut r)?),
        kind::TOOL_EXITED => Event::ToolExited { tool: r.u64()?, exit: read_exit(&mut r)? },
        kind::SIGTERM => Event::SigTerm,
        kind::DEADLINE_FIRED => Event::DeadlineFired { epoch: r.u64()? },
        other => return Ok(Event::Unknown(other)),
    };
    r.end()?;
    Ok(event)
}

fn write_exit(w: &mut Writer, exit: Exit) {
    let (tag, value) = match exit {
        Exit::Code(code) => (0, code),
        Exit::Signal(signal) => (1, signal),
    };
    w.u8(tag);
    w.i32(value);
}

fn read_exit(r: &mut Reader<'_>) -> Result<Exit, DecodeError> {
    match r.u8()? {
        0 => Ok(Exit::Code(r.i32()?)),
        1 => Ok(Exit::Signal(r.i32()?)),
        _ => Err(DecodeError::Value("exit")),
    }
}

fn write_grant(w: &mut Writer, grant: &GrantView) {
    w.u64(grant.epoch);
    w.u64(grant.deadline_ns);
}

fn read_grant(r: &mut Reader<'_>) -> Result<GrantView, DecodeError> {
    Ok(GrantView { epoch: r.u64()?, deadline_ns: r.u64()? })
}

fn write_postmaster_exit(w: &mut Writer, exit: &PostmasterExit) {
    w.u64(exit.start_id);
    write_exit(w, exit.exit);
    w.bool(exit.drained);
}

fn read_postmaster_exit(r: &mut Reader<'_>) -> Result<PostmasterExit, DecodeError> {
    Ok(PostmasterExit { start_id: r.u64()?, exit: read_exit(r)?, drained: r.bool()? })
}

fn write_status(w: &mut Writer, status: &Status) {
    w.u16(status.protocol);
    w.str(&status.version);
    w.raw(&status.incarnation.0);
    w.u64(status.boottime_ns);
    w.option(status.grant.as_ref(), write_grant);
    w.u64(status.highest_epoch);
    w.option(status.postmaster.as_ref(), |w, postmaster| {
        w.i32(postmaster.pid);
        write_mode(w, postmaster.mode);
        w.u64(postmaster.epoch);
        w.u64(postmaster.start_id);
    });
    w.option(status.last_exit.as_ref(), write_postmaster_exit);
    w.option(status.fenced.as_ref(), |w, epoch| w.u64(*epoch));
    w.list(&status.tools, |w, tool| {
        w.u64(tool.tool);
        w.i32(tool.pid);
        w.str(&tool.program);
    });
    w.bool(status.sigterm);
    w.u8(match status.lock {
        LockView::None => 0,
        LockView::Held => 1,
        LockView::Missing => 2,
    });
    w.bool(status.pid_one);
    w.bytes(&status.note);
}

fn read_status(r: &mut Reader<'_>) -> Result<Status, DecodeError> {
    Ok(Status {
        protocol: r.u16()?,
        version: r.string()?,
        incarnation: Incarnation(r.array()?),
        boottime_ns: r.u64()?,
        grant: r.option(read_grant)?,
        highest_epoch: r.u64()?,
        postmaster: r.option(|r| {
            Ok(PostmasterView { pid: r.i32()?, mode: read_mode(r)?, epoch: r.u64()?, start_id: r.u64()? })
        })?,
        last_exit: r.option(read_postmaster_exit)?,
        fenced: r.option(Reader::u64)?,
        tools: r.list(|r| Ok(ToolView { tool: r.u64()?, pid: r.i32()?, program: r.string()? }))?,
        sigterm: r.bool()?,
        lock: match r.u8()? {
            0 => LockView::None,
            1 => LockView::Held,
            2 => LockView::Missing,
            _ => return Err(DecodeError::Value("lock")),
        },
        pid_one: r.bool()?,
        note: r.bytes()?.to_vec(),
    })
}
