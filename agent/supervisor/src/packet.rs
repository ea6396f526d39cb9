//! One packet of the control socket with the descriptors beside it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::protocol::MAX_FDS;

/// Room for one more descriptor than any message has, so that too many are noticed and not cut off.
const SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_FDS + 1));

/// A received packet.
#[derive(Debug)]
pub struct Packet {
    /// How many bytes of the buffer are filled. 0: the other side is gone.
    pub length: usize,
    /// Descriptors beside it, in order, all close-on-exec.
    pub descriptors: Vec<OwnedFd>,
    /// Bytes or descriptors did not fit and are lost.
    pub truncated: bool,
}

/// Sends one packet without waiting.
///
/// # Errors
/// `WouldBlock` when the other side's buffer is full; `InvalidInput` for more than [`MAX_FDS`] descriptors; `BrokenPipe`
/// when the other side is gone. Nothing has been sent then.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if descriptors.len() > MAX_FDS
        || (!descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)))
    {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::io::retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(bytes)], &mut ancillary, flags))?;
    Ok(())
}

/// Receives one packet without waiting.
///
/// # Errors
/// `WouldBlock` when there is none; others as the system gives them.
pub fn recv(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Packet> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)
    })?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let truncated = received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    Ok(Packet { length: received.bytes, descriptors, truncated })
}
