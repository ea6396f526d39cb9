//! Certificates of this agent: read from the mounted Secrets, followed when they are renewed, copied to where Postgres reads them.
//!
//! Being written: the signatures stand.

use std::collections::HashMap;

use pgwarden_proto::v1;

use crate::{bus::Bus, config::Config};

/// The certificates in use; cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {}

impl Store {
    /// Reads the mounted Secrets and copies Postgres' files into `tls_dir`. What is missing or broken is told by [`Self::problems`].
    #[allow(clippy::unused_async, reason = "being written")]
    pub async fn load(_config: &Config) -> Self {
        Self {}
    }

    /// Looks for renewed Secrets every 10 s, for ever; tells the driver when Postgres must reload.
    pub async fn run(self, _bus: Bus) {
        std::future::pending().await
    }

    /// Hash of the certificate in use, one a role: `InstanceStatus.certificates`.
    #[must_use]
    pub fn hashes(&self) -> HashMap<String, String> {
        HashMap::new()
    }

    /// What a person should know, as of now: `InstanceStatus.problems`.
    #[must_use]
    pub fn problems(&self) -> Vec<v1::Problem> {
        Vec::new()
    }
}
