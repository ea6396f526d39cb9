//! What the agent asks for.

use super::wire::{Reader, Writer};
use super::{DecodeError, Incarnation, PROTOCOL_VERSION, TooLarge};

/// Most file descriptors beside one message.
pub const MAX_FDS: usize = 3;

/// The first 12 bytes of every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Protocol version of the sender.
    pub version: u16,
    /// Kind of message.
    pub kind: u16,
    /// Request id, chosen by the client; a reply echoes it. 0 in events.
    pub id: u64,
}

/// Reads a header alone, so that even a message that can't be understood is answered under its own id.
///
/// # Errors
/// [`DecodeError::Truncated`] when there are fewer than 12 bytes.
pub fn decode_header(bytes: &[u8]) -> Result<Header, DecodeError> {
    let mut reader = Reader::new(bytes.get(..12).ok_or(DecodeError::Truncated)?)?;
    header(&mut reader)
}

pub(super) fn header(reader: &mut Reader<'_>) -> Result<Header, DecodeError> {
    Ok(Header { version: reader.u16()?, kind: reader.u16()?, id: reader.u64()? })
}

pub(super) fn write_header(writer: &mut Writer, kind: u16, id: u64) {
    writer.u16(PROTOCOL_VERSION);
    writer.u16(kind);
    writer.u64(id);
}

/// How a postmaster lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Follows; the deadline does not touch it.
    Standby,
    /// May accept writes; dies at the deadline.
    Primary,
}

/// How Postgres is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StopMode {
    /// SIGTERM: waits for clients.
    Smart,
    /// SIGINT: disconnects clients, writes a checkpoint.
    Fast,
    /// SIGQUIT: no checkpoint, recovery at the next start.
    Immediate,
}

/// Starts the postmaster.
///
/// The process is leader of its own session, has `/dev/null` as standard input, no blocked or ignored signals, and the
/// environment of the container with [`env`](Self::env) on top. It also inherits the volume's lock ([`Request::Lock`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// [`Mode::Primary`] needs a live grant of exactly [`epoch`](Self::epoch). [`Mode::Standby`] needs no grant, but the data
    /// directory must hold `standby.signal` (or `recovery.conf`): otherwise Postgres would come up writable without a deadline.
    pub mode: Mode,
    /// The record's epoch at the start. For a standby it is only reported back.
    pub epoch: u64,
    /// Program and arguments. A program without a slash is looked up on `PATH`, then in `/usr/lib/postgresql/*/bin` (newest
    /// first). For a standby it must contain `-D DIR`, or `PGDATA` must be in the environment.
    pub argv: Vec<String>,
    /// `NAME=value` sets a variable, `NAME` alone removes it.
    pub env: Vec<String>,
    /// Working directory; the container's own when `None`.
    pub cwd: Option<String>,
    /// A descriptor beside the message is the write end of the death pipe. The postmaster and everything that it forks
    /// inherit it, the supervisor keeps no copy: EOF at the read end proves that no process of this start exists.
    pub death_pipe: bool,
    /// A descriptor beside the message (after the death pipe's) becomes standard output and error; without it they go to
    /// the container's standard output, and their end is kept for [`Request::LogTail`].
    pub log: bool,
}

/// Runs one of the image's tools.
///
/// The process is leader of its own session and process group, no signals blocked or ignored, the environment as in [`Start`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// As [`Start::argv`].
    pub argv: Vec<String>,
    /// As [`Start::env`].
    pub env: Vec<String>,
    /// As [`Start::cwd`].
    pub cwd: Option<String>,
    /// The first descriptor is its standard input; `/dev/null` otherwise.
    pub stdin: bool,
    /// The next descriptor is its standard output; the container's otherwise.
    pub stdout: bool,
    /// The next descriptor is its standard error; the container's otherwise.
    pub stderr: bool,
    /// SIGKILL to its process group once this connection is closed or displaced. `true` for everything that writes to the
    /// volume: a half-done copy is never completed unattended.
    pub kill_on_disconnect: bool,
}

/// A request. Each gets exactly one [`Reply`](super::Reply); any may be [`Reply::Refused`](super::Reply::Refused), and then
/// nothing has been done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Makes this connection the controlling one and displaces any other (which is closed, and its tools with it). It
    /// must be the first message of a connection; anything else is refused before. Answer:
    /// [`Reply::Hello`](super::Reply::Hello).
    Hello,
    /// Moves the dead-man deadline. Refused when the incarnation is not this supervisor's, the epoch is lower than any
    /// seen, or the deadline is earlier than the one in force, already past, or more than 120 s ahead. Answer: `Granted`.
    ///
    /// The deadline is absolute, so compute it from the moment at which the renewal that justifies it was *sent*.
    Grant {
        /// Epoch of the record that this instance holds.
        epoch: u64,
        /// Incarnation the grant is meant for.
        incarnation: Incarnation,
        /// `CLOCK_BOOTTIME`, nanoseconds. SIGQUIT comes 500 ms before, `kill(-1, SIGKILL)` at it.
        deadline_ns: u64,
    },
    /// The living primary of epoch `from` goes on as the primary of epoch `to` (T19): its epoch and the grant's change, the
    /// deadline does not. Refused without a primary and a live grant of `from`, or when `to` ≤ `from`. Repeating it is fine.
    /// Answer: `Done`.
    SetEpoch {
        /// Epoch now.
        from: u64,
        /// Epoch to go on with.
        to: u64,
    },
    /// Starts the postmaster. Refused while one runs, after SIGTERM, without a grant (primary), without `standby.signal`
    /// (standby), or when the volume's lock was asked for and not got. Answer: `Started`.
    Start(Start),
    /// Promotes the running standby. Refused without a live grant of exactly `epoch`. From the decision on, before anything is
    /// signalled, the postmaster counts as a primary. Writes the file `promote` and sends SIGUSR1. Answer `Done` means
    /// signalled, not promoted. May be repeated with the same epoch. After a reply with
    /// [`RefusalCode::Io`](super::RefusalCode::Io) the postmaster still counts as a primary.
    Promote {
        /// Epoch to be primary of.
        epoch: u64,
        /// Absolute path of the data directory.
        data_dir: String,
    },
    /// Signals the postmaster. Answer `Done` means signalled; `PostmasterExited` follows.
    Stop {
        /// Which signal.
        mode: StopMode,
    },
    /// SIGKILL to every process of the container but the supervisor, tools and `kubectl exec` sessions included. `Done`
    /// means that the signal is pending in every one of them: none returns to user mode again. `PostmasterExited` and
    /// `ToolExited` follow.
    KillAll,
    /// SIGHUP to the postmaster. Answer: `Done`.
    Reload,
    /// A signal to a process of this container other than the supervisor. Answer: `Done`.
    Signal {
        /// Process id inside the container.
        pid: i32,
        /// Signal number.
        signal: i32,
    },
    /// Runs a tool. At most 16 at once. Allowed after SIGTERM. Refused when the volume's lock was asked for and not got.
    /// Answer: `ToolStarted`; [`Event::ToolExited`](super::Event::ToolExited) follows.
    Run(Run),
    /// A signal to a tool's process group. Answer: `Done`.
    KillTool {
        /// Id from `ToolStarted`.
        tool: u64,
        /// Signal number.
        signal: i32,
    },
    /// Keeps bytes (at most 8 KiB) for the next `Hello`. Answer: `Done`.
    SetNote(Vec<u8>),
    /// "I know of the SIGTERM and am at it." Without it within 2 s of the SIGTERM, or of the loss of the connection, the
    /// supervisor stops Postgres by itself. Answer: `Done`.
    SigTermAck,
    /// Takes a write lock (open file description lock) on a file, made if it is missing, and keeps it until the
    /// supervisor *and everything that it started afterwards* are gone. Does not wait. Repeating it is fine; another path
    /// than before is refused. Answer: `Done`, or refused with `LockedElsewhere`, after which `Start` and `Run` are
    /// refused until it succeeds.
    Lock {
        /// Absolute path.
        path: String,
    },
    /// The end of Postgres' log, of the last start, at most 8 KiB. Answer: [`Reply::LogTail`](super::Reply::LogTail).
    LogTail,
    /// Kills everything left, answers `Done` and exits.
    Exit {
        /// Exit code, 0–255.
        code: u8,
    },
}

mod kind {
    pub(super) const HELLO: u16 = 1;
    pub(super) const GRANT: u16 = 2;
    pub(super) const SET_EPOCH: u16 = 3;
    pub(super) const START: u16 = 4;
    pub(super) const PROMOTE: u16 = 5;
    pub(super) const STOP: u16 = 6;
    pub(super) const KILL_ALL: u16 = 7;
    pub(super) const RELOAD: u16 = 8;
    pub(super) const SIGNAL: u16 = 9;
    pub(super) const RUN: u16 = 10;
    pub(super) const KILL_TOOL: u16 = 11;
    pub(super) const SET_NOTE: u16 = 12;
    pub(super) const SIGTERM_ACK: u16 = 13;
    pub(super) const LOCK: u16 = 14;
    pub(super) const EXIT: u16 = 15;
    pub(super) const LOG_TAIL: u16 = 16;
}

impl Request {
    /// The name, for logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello => "Hello",
            Self::Grant { .. } => "Grant",
            Self::SetEpoch { .. } => "SetEpoch",
            Self::Start(_) => "Start",
            Self::Promote { .. } => "Promote",
            Self::Stop { .. } => "Stop",
            Self::KillAll => "KillAll",
            Self::Reload => "Reload",
            Self::Signal { .. } => "Signal",
            Self::Run(_) => "Run",
            Self::KillTool { .. } => "KillTool",
            Self::SetNote(_) => "SetNote",
            Self::SigTermAck => "SigTermAck",
            Self::Lock { .. } => "Lock",
            Self::LogTail => "LogTail",
            Self::Exit { .. } => "Exit",
        }
    }

    /// How many descriptors must come beside the message.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        match self {
            Self::Start(start) => usize::from(start.death_pipe) + usize::from(start.log),
            Self::Run(run) => usize::from(run.stdin) + usize::from(run.stdout) + usize::from(run.stderr),
            _ => 0,
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Hello => kind::HELLO,
            Self::Grant { .. } => kind::GRANT,
            Self::SetEpoch { .. } => kind::SET_EPOCH,
            Self::Start(_) => kind::START,
            Self::Promote { .. } => kind::PROMOTE,
            Self::Stop { .. } => kind::STOP,
            Self::KillAll => kind::KILL_ALL,
            Self::Reload => kind::RELOAD,
            Self::Signal { .. } => kind::SIGNAL,
            Self::Run(_) => kind::RUN,
            Self::KillTool { .. } => kind::KILL_TOOL,
            Self::SetNote(_) => kind::SET_NOTE,
            Self::SigTermAck => kind::SIGTERM_ACK,
            Self::Lock { .. } => kind::LOCK,
            Self::LogTail => kind::LOG_TAIL,
            Self::Exit { .. } => kind::EXIT,
        }
    }

    /// The message's bytes.
    ///
    /// # Errors
    /// [`TooLarge`] when it would be over [`MAX_MESSAGE`](super::MAX_MESSAGE).
    pub fn encode(&self, id: u64) -> Result<Vec<u8>, TooLarge> {
        let mut w = Writer::default();
        write_header(&mut w, self.kind(), id);
        match self {
            Self::Hello | Self::KillAll | Self::Reload | Self::SigTermAck | Self::LogTail => {}
            Self::Grant { epoch, incarnation, deadline_ns } => {
                w.u64(*epoch);
                w.raw(&incarnation.0);
                w.u64(*deadline_ns);
            }
            Self::SetEpoch { from, to } => {
                w.u64(*from);
                w.u64(*to);
            }
            Self::Start(start) => write_start(&mut w, start),
            Self::Promote { epoch, data_dir } => {
                w.u64(*epoch);
                w.str(data_dir);
            }
            Self::Stop { mode } => w.u8(match mode {
                StopMode::Smart => 0,
                StopMode::Fast => 1,
                StopMode::Immediate => 2,
            }),
            Self::Signal { pid, signal } => {
                w.i32(*pid);
                w.i32(*signal);
            }
            Self::Run(run) => write_run(&mut w, run),
            Self::KillTool { tool, signal } => {
                w.u64(*tool);
                w.i32(*signal);
            }
            Self::SetNote(note) => w.bytes(note),
            Self::Lock { path } => w.str(path),
            Self::Exit { code } => w.u8(*code),
        }
        w.finish()
    }

    /// Reads a message of the agent: its header and the request.
    ///
    /// # Errors
    /// [`DecodeError`]; use [`decode_header`] for the id to answer under.
    pub fn decode(bytes: &[u8]) -> Result<(Header, Self), DecodeError> {
        let mut r = Reader::new(bytes)?;
        let header = header(&mut r)?;
        if header.version != PROTOCOL_VERSION {
            return Err(DecodeError::Version(header.version));
        }
        let request = match header.kind {
            kind::HELLO => Self::Hello,
            kind::GRANT => {
                Self::Grant { epoch: r.u64()?, incarnation: Incarnation(r.array()?), deadline_ns: r.u64()? }
            }
            kind::SET_EPOCH => Self::SetEpoch { from: r.u64()?, to: r.u64()? },
            kind::START => Self::Start(read_start(&mut r)?),
            kind::PROMOTE => Self::Promote { epoch: r.u64()?, data_dir: r.string()? },
            kind::STOP => Self::Stop { mode: read_stop_mode(&mut r)? },
            kind::KILL_ALL => Self::KillAll,
            kind::RELOAD => Self::Reload,
            kind::SIGNAL => Self::Signal { pid: r.i32()?, signal: r.i32()? },
            kind::RUN => Self::Run(read_run(&mut r)?),
            kind::KILL_TOOL => Self::KillTool { tool: r.u64()?, signal: r.i32()? },
            kind::SET_NOTE => Self::SetNote(r.bytes()?.to_vec()),
            kind::SIGTERM_ACK => Self::SigTermAck,
            kind::LOCK => Self::Lock { path: r.string()? },
            kind::EXIT => Self::Exit { code: r.u8()? },
            kind::LOG_TAIL => Self::LogTail,
            other => return Err(DecodeError::Kind(other)),
        };
        r.end()?;
        Ok((header, request))
    }
}

pub(super) fn write_mode(w: &mut Writer, mode: Mode) {
    w.u8(match mode {
        Mode::Standby => 0,
        Mode::Primary => 1,
    });
}

pub(super) fn read_mode(r: &mut Reader<'_>) -> Result<Mode, DecodeError> {
    match r.u8()? {
        0 => Ok(Mode::Standby),
        1 => Ok(Mode::Primary),
        _ => Err(DecodeError::Value("mode")),
    }
}

fn read_stop_mode(r: &mut Reader<'_>) -> Result<StopMode, DecodeError> {
    match r.u8()? {
        0 => Ok(StopMode::Smart),
        1 => Ok(StopMode::Fast),
        2 => Ok(StopMode::Immediate),
        _ => Err(DecodeError::Value("stop mode")),
    }
}

fn write_start(w: &mut Writer, start: &Start) {
    write_mode(w, start.mode);
    w.u64(start.epoch);
    w.list(&start.argv, |w, arg| w.str(arg));
    w.list(&start.env, |w, var| w.str(var));
    w.option(start.cwd.as_ref(), |w, cwd| w.str(cwd));
    w.bool(start.death_pipe);
    w.bool(start.log);
}

fn read_start(r: &mut Reader<'_>) -> Result<Start, DecodeError> {
    Ok(Start {
        mode: read_mode(r)?,
        epoch: r.u64()?,
        argv: r.list(Reader::string)?,
        env: r.list(Reader::string)?,
        cwd: r.option(Reader::string)?,
        death_pipe: r.bool()?,
        log: r.bool()?,
    })
}

fn write_run(w: &mut Writer, run: &Run) {
    w.list(&run.argv, |w, arg| w.str(arg));
    w.list(&run.env, |w, var| w.str(var));
    w.option(run.cwd.as_ref(), |w, cwd| w.str(cwd));
    w.bool(run.stdin);
    w.bool(run.stdout);
    w.bool(run.stderr);
    w.bool(run.kill_on_disconnect);
}

fn read_run(r: &mut Reader<'_>) -> Result<Run, DecodeError> {
    Ok(Run {
        argv: r.list(Reader::string)?,
        env: r.list(Reader::string)?,
        cwd: r.option(Reader::string)?,
        stdin: r.bool()?,
        stdout: r.bool()?,
        stderr: r.bool()?,
        kill_on_disconnect: r.bool()?,
    })
}
