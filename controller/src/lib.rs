//! The controller: makes the Kubernetes objects of each `PostgreSQL`, issues its certificates, reports what its agents say.
//!
//! It never elects a primary and is never on the failover path: a cluster serves, and fails over, while no controller runs.
//!
//! The pipeline of one reconcile is in [`cluster`]: observe → validate → decide → build → apply → status. `validate`, `decide`,
//! `build` and the making of a status are pure functions of what was observed.

pub mod agents;
pub mod answer;
pub mod args;
pub mod cache;
pub mod cluster;
pub mod context;
pub mod http;
pub mod leader;
pub mod lease;
pub mod manifests;
pub mod metrics;
pub mod quantity;
pub mod report;
pub mod run;
pub mod tls;
