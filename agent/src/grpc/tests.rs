//! The server on a real socket, with clients of every kind.

mod calls;
mod handshake;
mod rotation;
mod support;
