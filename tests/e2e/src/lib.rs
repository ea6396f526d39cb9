//! Harness of the tests on the real cluster: a namespace for each test, manifests in, conditions awaited, SQL through the
//! Services as an application would, evidence dumped when a test fails.
//!
//! The cluster and the operator are brought up by `tests/e2e/up` (part of `make test`); `PGWARDEN_KUBECONFIG` points to another.

pub mod ctl;
pub mod evidence;
pub mod fixture;
pub mod grpc;
pub mod manifest;
pub mod namespace;
pub mod pods;
pub mod sql;
pub mod wait;

pub use ctl::{ctl, repo};
pub use manifest::Manifest;
pub use namespace::{Ctx, alone, shared};
pub use wait::{eventually, until};

/// What a test returns.
pub type Result<T = ()> = anyhow::Result<T>;
