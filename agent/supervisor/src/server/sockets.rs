//! The control socket and its connections.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};

use pgwarden_supervisor::packet;
use pgwarden_supervisor::protocol::{
    DecodeError, MAX_MESSAGE, Message, Refusal, RefusalCode, Request, decode_header,
};
use rustix::fs::Mode;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};

use crate::{log, sys};

/// More than the agent ever has; the oldest makes room, but never the newest.
const MAX_CONNECTIONS: usize = 8;

pub(crate) struct Sockets {
    path: PathBuf,
    listener: OwnedFd,
    connections: Vec<(u64, OwnedFd)>,
    next: u64,
    own_uid: u32,
    buffer: Box<[u8]>,
}

/// What a connection had for us.
pub(super) enum Incoming {
    Nothing,
    Closed,
    /// To be answered, but no request.
    Bad {
        id: u64,
        refusal: Refusal,
    },
    Request {
        id: u64,
        request: Request,
        descriptors: Vec<OwnedFd>,
    },
}

impl Sockets {
    /// Replaces a socket that an earlier life has left.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent().filter(|it| !it.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        // Only ever a socket: a mistyped path must not cost a file.
        if fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket()) {
            fs::remove_file(path)?;
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let before = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
        let bound = bind(&listener, &SocketAddrUnix::new(path)?);
        rustix::process::umask(before);
        bound?;
        listen(&listener, 16)?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            connections: Vec::with_capacity(MAX_CONNECTIONS),
            next: 1,
            own_uid: rustix::process::geteuid().as_raw(),
            buffer: vec![0; MAX_MESSAGE].into_boxed_slice(),
        })
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.listener.as_fd()).chain(self.connections.iter().map(|(_, fd)| fd.as_fd()))
    }

    pub(super) fn ids(&self) -> Vec<u64> {
        self.connections.iter().map(|(id, _)| *id).collect()
    }

    fn get(&self, connection: u64) -> Option<&OwnedFd> {
        self.connections.iter().find(|(id, _)| *id == connection).map(|(_, fd)| fd)
    }

    pub(super) fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // No more at once than there is room for.
        for _ in 0..MAX_CONNECTIONS {
            let Ok(connection) = accept_with(&self.listener, flags) else { return };
            match sys::peer_uid(&connection) {
                Ok(uid) if uid == self.own_uid => {}
                Ok(uid) => {
                    log::warn("connection refused: another user", &[("uid", &uid)]);
                    continue;
                }
                Err(error) => {
                    log::warn("connection refused", &[("reason", &error)]);
                    continue;
                }
            }
            self.connections.push((self.next, connection));
            self.next += 1;
        }
    }

    /// The oldest connection but `keep`, if there are too many.
    pub(super) fn surplus(&self, keep: Option<u64>) -> Option<u64> {
        if self.connections.len() <= MAX_CONNECTIONS {
            return None;
        }
        self.connections.iter().map(|(id, _)| *id).find(|id| Some(*id) != keep)
    }

    pub(super) fn receive(&mut self, connection: u64) -> Incoming {
        let Some(at) = self.connections.iter().position(|(id, _)| *id == connection) else {
            return Incoming::Nothing;
        };
        let Some((_, fd)) = self.connections.get(at) else { return Incoming::Nothing };
        let packet = match packet::recv(fd, &mut self.buffer) {
            Ok(packet) if packet.length == 0 => return Incoming::Closed,
            Ok(packet) => packet,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Incoming::Nothing,
            Err(_) => return Incoming::Closed,
        };
        let bytes = self.buffer.get(..packet.length).unwrap_or_default();
        let bad = |code, message: String| Incoming::Bad {
            id: decode_header(bytes).map_or(0, |header| header.id),
            refusal: Refusal::new(code, message),
        };
        if packet.truncated {
            return bad(RefusalCode::BadRequest, "message or descriptors are over the bound".to_owned());
        }
        match Request::decode(bytes) {
            Ok((_, request)) if request.descriptors() != packet.descriptors.len() => bad(
                RefusalCode::BadRequest,
                format!("{} takes {} descriptors", request.name(), request.descriptors()),
            ),
            Ok((header, request)) => {
                Incoming::Request { id: header.id, request, descriptors: packet.descriptors }
            }
            Err(error @ (DecodeError::Kind(_) | DecodeError::Version(_))) => {
                bad(RefusalCode::UnknownRequest, error.to_string())
            }
            Err(error) => bad(RefusalCode::BadRequest, error.to_string()),
        }
    }

    pub(super) fn send(&self, connection: u64, message: &Message) -> io::Result<()> {
        let Some(fd) = self.get(connection) else { return Ok(()) };
        let bytes = message.encode().map_err(io::Error::other)?;
        packet::send(fd, &bytes, &[])
    }

    /// Whether there was such a connection.
    pub(super) fn close(&mut self, connection: u64) -> bool {
        let before = self.connections.len();
        self.connections.retain(|(id, _)| *id != connection);
        self.connections.len() != before
    }

    /// Leaves nothing behind.
    pub(super) fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}
