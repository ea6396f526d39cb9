//! The agent's end of the control socket.
//!
//! Nothing here blocks (but [`Connection::wait_readable`], which says so) and nothing here knows of an async runtime: the
//! descriptor is non-blocking and [`AsFd`]/[`AsRawFd`], so that it can be registered with tokio's `AsyncFd`, `poll`, anything.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::packet;
use crate::protocol::{MAX_MESSAGE, Message, Request, Run, Start};

/// A connection to the supervisor. `&self` everywhere: it may be shared, but replies are for one reader.
#[derive(Debug)]
pub struct Connection {
    fd: OwnedFd,
    next_id: AtomicU64,
}

impl Connection {
    /// Connects. Does not send anything: send [`Request::Hello`] first, it makes this connection the controlling one.
    ///
    /// # Errors
    /// `NotFound` or `ConnectionRefused` while the supervisor is not there yet; `WouldBlock` when its backlog is full.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        connect(&fd, &SocketAddrUnix::new(path.as_ref())?)?;
        Ok(Self { fd, next_id: AtomicU64::new(1) })
    }

    /// Sends a request and returns the id that its reply will have.
    ///
    /// `descriptors` go beside it in the order that the request documents; the caller keeps (and usually closes) its own
    /// copies. [`start`](Self::start) and [`run`](Self::run) do this without flags to get wrong.
    ///
    /// # Errors
    /// `WouldBlock` when the supervisor does not read; `BrokenPipe`/`ConnectionReset` when it, or this connection, is gone;
    /// `InvalidInput` when the message is too large or the number of descriptors is not what the request says. In each case
    /// nothing was sent.
    pub fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> io::Result<u64> {
        if request.descriptors() != descriptors.len() {
            let text = format!("{} takes {} descriptors", request.name(), request.descriptors());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let bytes = request.encode(id).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        packet::send(&self.fd, &bytes, descriptors)?;
        Ok(id)
    }

    /// [`send`](Self::send) of a [`Request::Start`] with its descriptors; sets the flags of `start` to fit them.
    ///
    /// Drop the own copy of the death pipe's write end after it, or EOF never comes.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn start(
        &self,
        start: Start,
        death_pipe: Option<BorrowedFd<'_>>,
        log: Option<BorrowedFd<'_>>,
    ) -> io::Result<u64> {
        let start = Start { death_pipe: death_pipe.is_some(), log: log.is_some(), ..start };
        let descriptors: Vec<_> = death_pipe.into_iter().chain(log).collect();
        self.send(&Request::Start(start), &descriptors)
    }

    /// [`send`](Self::send) of a [`Request::Run`] with its descriptors; sets the flags of `run` to fit them.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn run(&self, run: Run, stdio: Stdio<'_>) -> io::Result<u64> {
        let run = Run {
            stdin: stdio.stdin.is_some(),
            stdout: stdio.stdout.is_some(),
            stderr: stdio.stderr.is_some(),
            ..run
        };
        let descriptors: Vec<_> = stdio.stdin.into_iter().chain(stdio.stdout).chain(stdio.stderr).collect();
        self.send(&Request::Run(run), &descriptors)
    }

    /// Takes the next reply or event.
    ///
    /// # Errors
    /// `WouldBlock` when there is none now; `UnexpectedEof` when the supervisor has closed the connection: another agent
    /// has said Hello, this one did not read its events, or the container is gone; `InvalidData` for bytes that are no
    /// message (read on, the next packet is not affected).
    pub fn recv(&self) -> io::Result<Message> {
        let mut buffer = [0; MAX_MESSAGE];
        let packet = match packet::recv(&self.fd, &mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            other => other?,
        };
        let bytes = buffer.get(..packet.length).unwrap_or_default();
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Message::decode(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Blocks until [`recv`](Self::recv) would give something, or the time is over (`None`: for ever). Whether there is
    /// something.
    ///
    /// # Errors
    /// As the system gives them; an interrupting signal is not one.
    pub fn wait_readable(&self, timeout: Option<Duration>) -> io::Result<bool> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Where a tool's standard streams go. `None`: `/dev/null` for input, the container's own for output and error.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stdio<'a> {
    /// Standard input.
    pub stdin: Option<BorrowedFd<'a>>,
    /// Standard output.
    pub stdout: Option<BorrowedFd<'a>>,
    /// Standard error.
    pub stderr: Option<BorrowedFd<'a>>,
}
