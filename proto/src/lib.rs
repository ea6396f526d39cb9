//! The gRPC interface of the agents: generated code, its descriptors for reflection, and the roles that certificates carry.

#![allow(unreachable_pub, reason = "generated code")]

pub mod identity;

/// Messages, clients and servers of `pgwarden.v1`.
pub mod v1 {
    #![allow(clippy::all, clippy::pedantic, missing_docs, clippy::unwrap_used, reason = "generated code")]
    tonic::include_proto!("pgwarden.v1");
}

/// The encoded `FileDescriptorSet`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
