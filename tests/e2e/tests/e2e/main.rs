//! Tests on a real Kubernetes: see README.md for how to run one.
//!
//! The modules' order is libtest's: those in `whole_cluster`, which run alone, come last, so that the others wait for them once.

mod agent;
mod api;
mod create;
mod lifecycle;
mod metrics;
mod plugin;
mod security;
mod settings;
mod trouble;
mod validation;
mod whole_cluster;

use std::time::Duration;

/// Long enough for a cluster of three on a busy machine; nothing is measured here.
const SOON: Duration = Duration::from_secs(180);
/// For what follows from a change of an object within moments.
const MOMENT: Duration = Duration::from_secs(60);
