//! The ConfigMap of Postgres settings, mounted for boot and pushed by gRPC afterwards.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use pgwarden_api::config::{self, AgentConfig, FILE_AGENT, FILE_HASH, FILE_HBA, FILE_POSTGRESQL};

use super::{AppSecret, meta};
use crate::{
    cluster::{
        settings::{self, Sizing},
        validate::ValidatedCluster,
    },
    quantity,
};

/// Bytes of lag beyond which a replica gets no read traffic: one WAL segment of 16 MB is ordinary.
const REPLICA_LAG_LIMIT: u64 = 64 << 20;

/// The files, and their hash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// By name, without the hash.
    pub files: BTreeMap<String, String>,
    /// Their hash.
    pub hash: String,
    /// Generation of the cluster that they were made from.
    pub generation: i64,
}

pub(super) fn files(cluster: &ValidatedCluster, app_secret: &AppSecret) -> Files {
    let agent = AgentConfig {
        generation: cluster.generation,
        uid: cluster.uid.clone(),
        replicas: cluster.replicas,
        initdb: cluster.initdb.clone(),
        failover: cluster.failover.as_str().to_owned(),
        app_database: app_secret.database(),
        replica_lag_limit: REPLICA_LAG_LIMIT,
    };
    let mut hba = cluster.hba.join("\n");
    if !hba.is_empty() {
        hba.push('\n');
    }
    let files: BTreeMap<String, String> = [
        (FILE_POSTGRESQL, settings::render(&sizing(cluster), &cluster.parameters, &cluster.preload)),
        (FILE_HBA, hba),
        // A struct of strings and numbers has a JSON form, always.
        (FILE_AGENT, serde_json::to_string(&agent).unwrap_or_default()),
    ]
    .into_iter()
    .map(|(name, text)| (name.to_owned(), text))
    .collect();
    let hash = config::hash(files.iter().map(|(n, t)| (n.as_str(), t.as_str())));
    Files { files, hash, generation: cluster.generation }
}

fn sizing(cluster: &ValidatedCluster) -> Sizing {
    let of = |name: &str| {
        let limit = cluster.resources.limits.as_ref().and_then(|l| l.get(name));
        limit.or_else(|| cluster.resources.requests.as_ref().and_then(|r| r.get(name)))
    };
    let limits = cluster.resources.limits.iter().flatten();
    Sizing {
        version: cluster.version.number(),
        memory: of("memory").and_then(|q| quantity::bytes(&q.0)),
        cpu: of("cpu").and_then(|q| quantity::millis(&q.0)),
        storage: cluster.storage_bytes,
        huge_pages: limits.map(|(name, _)| name).any(|name| name.starts_with("hugepages-")),
    }
}

pub(super) fn config_map(cluster: &ValidatedCluster, files: &Files) -> ConfigMap {
    let mut data = files.files.clone();
    data.insert(FILE_HASH.to_owned(), files.hash.clone());
    ConfigMap {
        metadata: meta(cluster, cluster.names.config_map()),
        data: Some(data),
        ..ConfigMap::default()
    }
}
