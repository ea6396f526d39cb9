//! The Kubernetes API of pgwarden: the `PostgreSQL` and `PostgreSQLRecord` kinds, the names of everything that belongs to a
//! cluster, labels, ports and paths. One definition for the controller, the agents, the plugin and the tests.

pub mod cluster;
pub mod config;
pub mod crd;
pub mod names;
pub mod pod;
pub mod record;

pub use cluster::{PostgreSQL, PostgreSQLSpec, PostgreSQLStatus};
pub use record::{PostgreSQLRecord, PostgreSQLRecordSpec};

/// API group of both kinds.
pub const GROUP: &str = "database.example.com";
