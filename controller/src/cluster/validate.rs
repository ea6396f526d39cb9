//! From a `PostgreSQL` as somebody wrote it to a [`ValidatedCluster`], the only input of `build`.
//!
//! The CRD's own rules refuse most of this at the door; they are checked again because an object may be older than they are.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, LocalObjectReference, ResourceRequirements, Toleration};
use kube::ResourceExt;
use pgwarden_api::{
    PostgreSQL,
    cluster::{Backup, DeletionPolicy, DurabilityMode, FailoverProfile, ServiceTemplate, Version},
    config::{InitdbArgs, OWNED_PARAMETERS},
    names::{self, Names},
};

use crate::{context::Settings, quantity};

/// What is wrong with a manifest. It names the field and the remedy; nothing is done until the manifest changes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValidateError {
    /// Name.
    #[error(
        "metadata.name {0:?} can't be used: at most {max} characters, a to z, 0 to 9 and '-', beginning with a letter; \
         make the cluster with another name",
        max = names::MAX_NAME
    )]
    Name(String),
    /// Replicas.
    #[error("spec.replicas is {0}: write a number from 1 to 9")]
    Replicas(i32),
    /// Storage.
    #[error("spec.storage {0:?} is not a quantity such as 100Gi")]
    Storage(String),
    /// A resource.
    #[error("{field} {value:?} is not a quantity such as 500m or 2Gi")]
    Resource {
        /// Field.
        field: String,
        /// Value.
        value: String,
    },
    /// A parameter of the operator.
    #[error("spec.parameters.{name} can't be set: {reason}; remove it")]
    OwnedParameter {
        /// Parameter.
        name: String,
        /// Why the operator owns it.
        reason: &'static str,
    },
    /// A parameter that is none.
    #[error("spec.parameters: {0:?} is not the name of a parameter; remove it")]
    ParameterName(String),
    /// A value that no file can hold.
    #[error("spec.parameters.{0} contains a NUL character; remove it")]
    ParameterValue(String),
    /// An hba line.
    #[error("spec.hba[{index}]: {reason}")]
    Hba {
        /// Index.
        index: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// Not complete: the API server always sets these.
    #[error("metadata.{0} is missing")]
    Metadata(&'static str),
}

/// A cluster that can be built.
#[derive(Clone, Debug)]
pub struct ValidatedCluster {
    /// Names of its objects.
    pub names: Names,
    /// Namespace.
    pub namespace: String,
    /// UID of the `PostgreSQL`.
    pub uid: String,
    /// Generation.
    pub generation: i64,
    /// Major version in use.
    pub version: Version,
    /// Major version in the manifest.
    pub wanted_version: Version,
    /// Instances.
    pub replicas: u32,
    /// Volume size as written.
    pub storage: String,
    /// Volume size.
    pub storage_bytes: u64,
    /// StorageClass.
    pub storage_class: Option<String>,
    /// Of the Postgres container.
    pub resources: ResourceRequirements,
    /// Of the agent's container.
    pub agent_resources: Option<ResourceRequirements>,
    /// The manifest's image, or the default of the version in the manifest.
    pub image: String,
    /// The default image of the version in use.
    pub default_image: String,
    /// Parameters.
    pub parameters: BTreeMap<String, String>,
    /// Libraries.
    pub preload: Vec<String>,
    /// Extra hba lines.
    pub hba: Vec<String>,
    /// Arguments of initdb.
    pub initdb: InitdbArgs,
    /// `IPv4` or `IPv6`: the family of the pods' addresses.
    pub address_type: &'static str,
    /// Timing.
    pub failover: FailoverProfile,
    /// Durability mode.
    pub durability: DurabilityMode,
    /// Backups.
    pub backup: Option<Backup>,
    /// What happens to the data in the end.
    pub deletion_policy: DeletionPolicy,
    /// Reconciling is stopped.
    pub paused: bool,
    /// Scheduling.
    pub node_selector: BTreeMap<String, String>,
    /// Scheduling.
    pub tolerations: Vec<Toleration>,
    /// Scheduling; replaces ours.
    pub affinity: Option<Affinity>,
    /// PriorityClass.
    pub priority_class: Option<String>,
    /// Secrets for pulling images.
    pub pull_secrets: Vec<LocalObjectReference>,
    /// Services.
    pub service: ServiceTemplate,
    /// Annotations of the ServiceAccount.
    pub account_annotations: BTreeMap<String, String>,
}

/// Checks a cluster; `version` is the one in use, `address_type` the family of the pods' addresses.
///
/// # Errors
/// What the user must change.
pub fn validate(
    cluster: &PostgreSQL,
    version: Version,
    address_type: &'static str,
    settings: &Settings,
) -> Result<ValidatedCluster, ValidateError> {
    let spec = &cluster.spec;
    let name = cluster.name_any();
    check_name(&name)?;
    let replicas = match u32::try_from(spec.replicas) {
        Ok(n @ 1..=9) => n,
        _ => return Err(ValidateError::Replicas(spec.replicas)),
    };
    let storage_bytes = quantity::bytes(&spec.storage)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| ValidateError::Storage(spec.storage.clone()))?;
    let resources = spec.resources.clone().unwrap_or_default();
    check_resources("spec.resources", &resources)?;
    let agent_resources = spec.agent.as_ref().and_then(|a| a.resources.clone());
    if let Some(resources) = &agent_resources {
        check_resources("spec.agent.resources", resources)?;
    }
    check_parameters(&spec.parameters)?;
    check_hba(&spec.hba)?;
    let initdb = spec.initdb.clone().unwrap_or_default();
    Ok(ValidatedCluster {
        names: Names::new(&name),
        namespace: cluster.namespace().ok_or(ValidateError::Metadata("namespace"))?,
        uid: cluster.uid().ok_or(ValidateError::Metadata("uid"))?,
        generation: cluster.metadata.generation.unwrap_or(0),
        version,
        wanted_version: spec.version,
        replicas,
        storage: spec.storage.clone(),
        storage_bytes,
        storage_class: spec.storage_class_name.clone().filter(|c| !c.is_empty()),
        resources,
        agent_resources,
        image: match &spec.image {
            Some(image) if !image.is_empty() => image.clone(),
            _ => settings.image_of(spec.version),
        },
        default_image: settings.image_of(version),
        parameters: spec.parameters.clone(),
        preload: spec.shared_preload_libraries.clone(),
        hba: spec.hba.clone(),
        initdb: InitdbArgs {
            locale: initdb.locale.unwrap_or_else(|| "C.UTF-8".to_owned()),
            provider: initdb.provider.map(|p| p.as_str().to_owned()).unwrap_or_default(),
            encoding: initdb.encoding.unwrap_or_else(|| "UTF8".to_owned()),
        },
        address_type,
        failover: spec.failover,
        durability: spec.durability().mode,
        backup: spec.backup.clone(),
        deletion_policy: spec.deletion_policy,
        paused: cluster.annotations().get(names::ANNOTATION_PAUSED).is_some_and(|v| v == "true"),
        node_selector: spec.node_selector.clone(),
        tolerations: spec.tolerations.clone(),
        affinity: spec.affinity.clone(),
        priority_class: spec.priority_class_name.clone().filter(|c| !c.is_empty()),
        pull_secrets: spec.image_pull_secrets.clone(),
        service: spec.service.clone().unwrap_or_default(),
        account_annotations: spec.service_account.clone().unwrap_or_default().annotations,
    })
}

/// DNS-1035, and short enough for every suffix.
fn check_name(name: &str) -> Result<(), ValidateError> {
    let letter = |c: char| c.is_ascii_lowercase();
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fine = name.len() <= names::MAX_NAME
        && name.starts_with(letter)
        && name.chars().all(inner)
        && !name.ends_with('-');
    if fine { Ok(()) } else { Err(ValidateError::Name(name.to_owned())) }
}

fn check_resources(field: &str, resources: &ResourceRequirements) -> Result<(), ValidateError> {
    for (part, map) in [("requests", &resources.requests), ("limits", &resources.limits)] {
        for (name, value) in map.iter().flatten() {
            if quantity::nanos(&value.0).is_none_or(|n| n < 0) {
                let field = format!("{field}.{part}.{name}");
                return Err(ValidateError::Resource { field, value: value.0.clone() });
            }
        }
    }
    Ok(())
}

fn check_parameters(parameters: &BTreeMap<String, String>) -> Result<(), ValidateError> {
    for (name, value) in parameters {
        let lower = name.to_ascii_lowercase();
        if let Some((_, reason)) = OWNED_PARAMETERS.iter().find(|(owned, _)| *owned == lower) {
            return Err(ValidateError::OwnedParameter { name: name.clone(), reason });
        }
        let word = |w: &str| {
            w.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && w.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        if !lower.split('.').all(word) {
            return Err(ValidateError::ParameterName(name.clone()));
        }
        if value.contains('\0') {
            return Err(ValidateError::ParameterValue(name.clone()));
        }
        if lower == "ssl_min_protocol_version"
            && !["tlsv1.2", "tlsv1.3"].contains(&value.to_ascii_lowercase().as_str())
        {
            let reason = "connections use TLS 1.2 or newer: TLSv1.2 or TLSv1.3";
            return Err(ValidateError::OwnedParameter { name: name.clone(), reason });
        }
    }
    Ok(())
}

fn check_hba(lines: &[String]) -> Result<(), ValidateError> {
    for (index, line) in lines.iter().enumerate() {
        let bad = |reason| Err(ValidateError::Hba { index, reason });
        if line.contains(['\n', '\r', '\0']) {
            return bad("each entry is one line; write one entry for each");
        }
        let words: Vec<String> =
            line.split_whitespace().map(|w| w.trim_matches('"').to_ascii_lowercase()).collect();
        let Some(kind) = words.first() else { continue };
        if kind.starts_with('#') {
            continue;
        }
        if !["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"].contains(&kind.as_str()) {
            return bad(
                "the line must begin with local, host, hostssl, hostnossl, hostgssenc or hostnogssenc",
            );
        }
        if words.iter().skip(3).any(|w| ["trust", "md5", "password"].contains(&w.as_str())) {
            return bad("the methods trust, md5 and password are refused; use scram-sha-256 or cert");
        }
        if words.get(1).is_some_and(|w| w.split(',').any(|d| d == "replication")) {
            return bad("replication is the operator's; name a database");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
