//! The messages between agent and supervisor, and their bytes. Pure: no I/O.
//!
//! One message is one packet of a `SOCK_SEQPACKET` Unix socket, at most [`MAX_MESSAGE`] bytes: a header of 12 bytes (protocol
//! version u16, kind u16, request id u64, all little-endian), then the fields of that kind in the order of their declaration.
//! File descriptors travel beside a request (`SCM_RIGHTS`), in the order that the request's documentation gives.
//!
//! *Compatibility.* The agent can be newer than the supervisor (patching the sidecar's image restarts only the sidecar)
//! or, after a rollback, older. So a message that has been released is never changed: a change is a new kind. The
//! supervisor answers an unknown kind with [`RefusalCode::UnknownRequest`]; the client reports an unknown event as
//! [`Event::Unknown`].

mod reply;
mod request;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;
use std::str::FromStr;

pub use reply::{
    Event, Exit, GrantView, LockView, Message, PostmasterExit, PostmasterView, Refusal, RefusalCode, Reply,
    Status, ToolView,
};
pub use request::{Header, MAX_FDS, Mode, Request, Run, Start, StopMode, decode_header};

/// Version of the protocol in every header. It grows only when a header or the meaning of a released message has to change.
pub const PROTOCOL_VERSION: u16 = 1;

/// Most bytes of one message.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Most bytes of a note ([`Request::SetNote`]).
pub const MAX_NOTE: usize = 8 * 1024;

/// A message would be larger than [`MAX_MESSAGE`]; it was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("message of {0} bytes is over the bound of 65536")]
pub struct TooLarge(pub usize);

/// Why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message ends before its fields do.
    #[error("message is truncated")]
    Truncated,
    /// The message is over [`MAX_MESSAGE`].
    #[error("message is over the bound of 65536 bytes")]
    TooLarge,
    /// Bytes are left after the last field.
    #[error("message has bytes after its last field")]
    Trailing,
    /// The header's protocol version is not ours.
    #[error("protocol version {0} is not spoken here")]
    Version(u16),
    /// No message has this kind.
    #[error("message kind {0} is unknown")]
    Kind(u16),
    /// A string is not UTF-8.
    #[error("string is not UTF-8")]
    Utf8,
    /// A field has a value that it cannot have.
    #[error("field `{0}` is out of range")]
    Value(&'static str),
}

/// The random identity of one life of a supervisor: made at its start, only ever in its memory. Two containers never share one,
/// so a grant meant for another life of the pod is refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(pub [u8; 16]);

impl fmt::Display for Incarnation {
    /// 32 lower-case hex digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Incarnation({self})")
    }
}

/// Text that is not 32 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an incarnation is 32 hex digits")]
pub struct ParseIncarnationError;

impl FromStr for Incarnation {
    type Err = ParseIncarnationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ParseIncarnationError);
        }
        u128::from_str_radix(text, 16)
            .map(|value| Self(value.to_be_bytes()))
            .map_err(|_| ParseIncarnationError)
    }
}
