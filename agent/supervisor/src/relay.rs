//! Postgres' log: passed on to the container's standard output, its end kept in memory.
//!
//! Postgres writes its log with blocking writes, so whoever does not read holds up the database. Between Postgres and the container
//! runtime stands one thread that always reads: when the runtime is frozen, lines are dropped (and counted) after a moment, and
//! Postgres goes on. What was said last is what a person needs when a start fails: the agent asks for it
//! ([`LogTail`](pgwarden_supervisor::protocol::Request::LogTail)).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// Bytes that are kept.
const KEPT: usize = 8 * 1024;
/// A pipe that is ready takes this much at once without blocking.
const CHUNK: usize = 4096;
/// Room for a burst, so that Postgres never waits for this thread's turn.
const PIPE: usize = 256 * 1024;
/// How long the container runtime may not read before lines are dropped.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// The thread copies; it needs next to nothing.
const STACK: usize = 64 * 1024;

static TAIL: Mutex<Tail> = Mutex::new(Tail { bytes: [0; KEPT], end: 0, full: false, start: 0, ended: true });

/// The last bytes of the log of one start.
struct Tail {
    bytes: [u8; KEPT],
    /// Where the next byte goes.
    end: usize,
    /// It has gone round.
    full: bool,
    /// Which start; a thread of an earlier one must not write into it any more.
    start: u64,
    /// Nothing more will come.
    ended: bool,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if let Some(slot) = self.bytes.get_mut(self.end) {
                *slot = byte;
            }
            self.end += 1;
            if self.end == KEPT {
                self.end = 0;
                self.full = true;
            }
        }
    }

    fn read(&self) -> Vec<u8> {
        let (newer, older) = self.bytes.split_at_checked(self.end).unwrap_or_default();
        let mut out = Vec::with_capacity(KEPT);
        if self.full {
            out.extend_from_slice(older);
        }
        out.extend_from_slice(newer);
        out
    }
}

fn tail() -> MutexGuard<'static, Tail> {
    TAIL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The end of the log of the last start, and whether nothing more will come.
pub(crate) fn read() -> (Vec<u8>, bool) {
    let tail = tail();
    (tail.read(), tail.ended)
}

/// Starts a thread for one start of Postgres; what is written into the descriptor goes to standard output.
pub(crate) fn start() -> io::Result<OwnedFd> {
    let (read_end, write_end) = pipe_with(PipeFlags::CLOEXEC)?;
    // Best effort: the system may allow no more than it gave.
    let _ = fcntl_setpipe_size(&write_end, PIPE);
    let start = {
        let mut tail = tail();
        *tail = Tail { bytes: [0; KEPT], end: 0, full: false, start: tail.start + 1, ended: false };
        tail.start
    };
    let spawned = thread::Builder::new()
        .name("log".to_owned())
        .stack_size(STACK)
        .spawn(move || copy(&read_end, &io::stdout(), start));
    if let Err(error) = spawned {
        tail().ended = true;
        return Err(error);
    }
    Ok(write_end)
}

fn copy(from: &OwnedFd, to: &impl std::os::fd::AsFd, start: u64) {
    let mut buffer = [0; CHUNK];
    let mut dropped = 0u64;
    loop {
        let length = match rustix::io::read(from, &mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(Errno::INTR) => continue,
            Err(_) => break,
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        {
            let mut tail = tail();
            if tail.start == start {
                tail.push(bytes);
            }
        }
        if dropped > 0 && ready(to, &Timespec { tv_sec: 0, tv_nsec: 0 }) {
            let note = format!("pgwarden-supervisor: {dropped} bytes of log dropped, nobody read them\n");
            if rustix::io::write(to, note.as_bytes()).is_ok() {
                dropped = 0;
            }
        }
        // Once patience was lost, lines wait for nobody until somebody reads again.
        let patience = if dropped > 0 { Timespec { tv_sec: 0, tv_nsec: 0 } } else { PATIENCE };
        if !ready(to, &patience) || !write_all(to, bytes) {
            dropped = dropped.saturating_add(length as u64);
        }
    }
    let mut tail = tail();
    if tail.start == start {
        tail.ended = true;
    }
}

fn ready(to: &impl std::os::fd::AsFd, patience: &Timespec) -> bool {
    let mut fds = [PollFd::new(to, PollFlags::OUT)];
    poll(&mut fds, Some(patience)).unwrap_or(0) > 0
}

fn write_all(to: &impl std::os::fd::AsFd, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::time::{Duration, Instant};

    fn empty() -> Tail {
        Tail { bytes: [0; KEPT], end: 0, full: false, start: 0, ended: false }
    }

    #[test]
    fn the_tail_holds_the_end() {
        let mut tail = empty();
        tail.push(b"begin");
        assert_eq!(tail.read(), b"begin");
        tail.push(&vec![b'x'; 3 * KEPT]);
        tail.push(b"end");
        let read = tail.read();
        assert_eq!(read.len(), KEPT);
        assert!(read.starts_with(b"xxx") && read.ends_with(b"xend"));
    }

    #[test]
    fn a_reader_that_stopped_does_not_hold_up_the_writer() {
        let (from, write_end) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (read_end, to) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let copier = thread::spawn(move || copy(&from, &to, u64::MAX));
        let mut writer = std::fs::File::from(write_end);
        let begin = Instant::now();
        // Far more than both pipes hold; nobody reads the other one.
        for _ in 0..1000 {
            writer.write_all(&[b'y'; 1000]).unwrap();
        }
        assert!(begin.elapsed() < Duration::from_secs(5));
        // Somebody reads again, and is told of the gap.
        let reader = thread::spawn(move || {
            let mut text = Vec::new();
            std::fs::File::from(read_end).read_to_end(&mut text).unwrap();
            String::from_utf8(text).unwrap()
        });
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until && !reader.is_finished() {
            writer.write_all(b"after\n").unwrap();
            thread::sleep(Duration::from_millis(20));
            if begin.elapsed() > Duration::from_secs(1) {
                break;
            }
        }
        drop(writer);
        copier.join().unwrap();
        let text = reader.join().unwrap();
        assert!(text.contains("bytes of log dropped"), "told of the gap");
        assert!(text.ends_with("after\n"));
    }
}
