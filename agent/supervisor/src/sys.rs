//! The few system calls that have no safe wrapper.

#![expect(
    unsafe_code,
    reason = "signalfd, OFD locks, kill(-1), SO_PEERCRED across PID namespaces: no safe wrapper exists"
)]

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::Command;

/// The signals that the main loop reads. An image's `STOPSIGNAL` may be any of the three that end.
const SIGNALS: [libc::c_int; 4] = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGQUIT];

/// Blocks our signals in this thread and all that it will make, and returns where to read them.
pub(crate) fn signals() -> io::Result<OwnedFd> {
    // SAFETY: `sigset_t` is plain data that `sigemptyset` fills; all pointers are to locals.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in SIGNALS {
            libc::sigaddset(&raw mut set, signal);
        }
        match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        owned(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))
    }
}

/// Takes one signal's number from [`signals`].
pub(crate) fn next_signal(signals: &OwnedFd) -> Option<i32> {
    let mut info = [0_u8; mem::size_of::<libc::signalfd_siginfo>()];
    let length = rustix::io::read(signals, &mut info).ok()?;
    // `ssi_signo` is the first field.
    let number = info.get(..length)?.first_chunk::<4>()?;
    i32::try_from(u32::from_ne_bytes(*number)).ok()
}

/// SIGKILL to every process of the PID namespace but the caller, if the caller is its PID 1; nothing at all otherwise.
pub(crate) fn kill_namespace() {
    // SAFETY: no memory is involved. The condition is the point: for anybody but PID 1 this would kill the machine.
    unsafe {
        if libc::getpid() == 1 {
            libc::kill(-1, libc::SIGKILL);
        }
    }
}

/// Takes a write lock of the open file description on a whole file; `false` when another has it.
pub(crate) fn lock(file: &OwnedFd) -> io::Result<bool> {
    // SAFETY: `flock` is plain data, zero is a valid value (whole file, `l_pid` must be 0), the pointer is to a local.
    let result = unsafe {
        let mut flock: libc::flock = mem::zeroed();
        flock.l_type = libc::F_WRLCK as libc::c_short;
        flock.l_whence = libc::SEEK_SET as libc::c_short;
        libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const flock)
    };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// Uid of the other side. Not by rustix: its `Pid` can't be 0, which is what the kernel says of a peer in another PID
/// namespace.
pub(crate) fn peer_uid(socket: impl AsFd) -> io::Result<u32> {
    let mut credentials = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = libc::socklen_t::try_from(mem::size_of::<libc::ucred>()).unwrap_or(0);
    // SAFETY: the pointers are to locals of the given length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(credentials.uid) } else { Err(io::Error::last_os_error()) }
}

/// One heap for all threads: the others allocate next to nothing.
pub(crate) fn single_heap() {
    // SAFETY: sets an integer option of the allocator, before any thread is made.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Makes a command's process leader of its own session, with no signal blocked or ignored, and lets it inherit some
/// descriptors.
pub(crate) fn detach(command: &mut Command, inherit: Vec<RawFd>) {
    use std::os::unix::process::CommandExt;
    let hook = move || {
        // SAFETY: runs between fork and exec: only async-signal-safe calls, no allocation, pointers to locals.
        unsafe {
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            for signal in 1..=libc::SIGRTMAX() {
                libc::signal(signal, libc::SIG_DFL);
            }
            let mut none: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            for &descriptor in &inherit {
                if libc::fcntl(descriptor, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        Ok(())
    };
    // SAFETY: the hook above keeps to what is allowed there.
    unsafe {
        command.pre_exec(hook);
    }
}

/// # Safety
/// `descriptor` is negative, or an open descriptor that nothing else owns.
unsafe fn owned(descriptor: RawFd) -> io::Result<OwnedFd> {
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: by this function's own contract.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
