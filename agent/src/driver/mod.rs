//! The loop around the protocol core.
