//! The agent beside each Postgres: I/O around the protocol core `pgwarden_ha`.
//!
//! Rooms: `driver` (the loop around the core), `record` (the compare-and-swap record), `postgres` (data directory, settings, SQL),
//! `supervisor` (PID 1 of the Postgres container), `tls`, `grpc`, `peer`, `metrics`, `probe`. They meet in [`bus`] alone.

pub mod bus;
pub mod config;
pub mod driver;
pub mod grpc;
pub mod metrics;
pub mod peer;
pub mod postgres;
pub mod probe;
pub mod record;
pub mod supervisor;
pub mod tls;
