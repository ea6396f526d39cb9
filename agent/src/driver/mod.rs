//! The loop around the protocol core.

pub mod events;
pub mod slices;
