//! The CRDs as they are installed: the derived ones, tidied.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use serde_json::{Map, Value, json};

use crate::{PostgreSQL, PostgreSQLRecord};

/// Where the CRD of [`PostgreSQL`] lies in the repository.
pub const POSTGRESQL_FILE: &str = "deploy/crds/database.example.com_postgresqls_crd.yaml";

/// First line of a generated file.
const GENERATED: &str =
    "# Generated from controller/api: UPDATE=1 cargo test -p pgwarden-api deploy_is_current\n";

/// Why a CRD could not be made: a mistake in this crate.
#[derive(Debug, thiserror::Error)]
pub enum CrdError {
    /// The derived CRD did not survive the way through JSON.
    #[error("failed to tidy the CRD of {kind}")]
    Tidy {
        /// Its kind.
        kind: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The CRD could not be written as YAML.
    #[error("failed to write the CRD of {kind} as YAML")]
    Render {
        /// Its kind.
        kind: String,
        /// Why.
        source: serde_saphyr::SerializeError,
    },
}

/// Formats that the API server knows among those that Rust's types have.
const FORMATS: &[&str] = &["int32", "int64", "double", "date-time"];

/// A bound for what has none of its own: lengths of strings, items of lists, keys of maps.
struct Bounds {
    string: u64,
    list: u64,
    map: u64,
}

/// What the user writes. Only fields of Kubernetes' own types have no bound of ours.
const SPEC: Bounds = Bounds { string: 317, list: 64, map: 64 };
/// What the operator writes: wide enough for a condition's message.
const STATUS: Bounds = Bounds { string: 32_768, list: 512, map: 64 };

/// The CRD of [`PostgreSQL`].
///
/// # Errors
/// See [`CrdError`].
pub fn postgresql() -> Result<CustomResourceDefinition, CrdError> {
    tidy(&PostgreSQL::crd(), &SPEC)
}

/// The CRD of [`PostgreSQLRecord`]. No write of an agent may fail for a long text: its strings are bounded as a status' are.
///
/// # Errors
/// See [`CrdError`].
pub fn record() -> Result<CustomResourceDefinition, CrdError> {
    tidy(&PostgreSQLRecord::crd(), &STATUS)
}

/// The text of [`POSTGRESQL_FILE`].
///
/// # Errors
/// See [`CrdError`].
pub fn postgresql_manifest() -> Result<String, CrdError> {
    Ok(format!("{GENERATED}{}", to_yaml(&postgresql()?)?))
}

/// A CRD as YAML.
///
/// # Errors
/// See [`CrdError`].
pub fn to_yaml(crd: &CustomResourceDefinition) -> Result<String, CrdError> {
    // Long rules stay on one line: folded, they could not be searched for.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(crd, options)
        .map_err(|source| CrdError::Render { kind: crd.spec.names.kind.clone(), source })
}

fn tidy(crd: &CustomResourceDefinition, spec: &Bounds) -> Result<CustomResourceDefinition, CrdError> {
    let tidied = || {
        let mut crd = serde_json::to_value(crd)?;
        let versions = crd.pointer_mut("/spec/versions").and_then(Value::as_array_mut);
        for version in versions.into_iter().flatten() {
            let properties = version.pointer_mut("/schema/openAPIV3Schema/properties");
            for (name, schema) in properties.and_then(Value::as_object_mut).into_iter().flatten() {
                let in_status = name == "status";
                tidy_schema(schema, if in_status { &STATUS } else { spec }, in_status);
            }
        }
        serde_json::from_value(crd)
    };
    tidied().map_err(|source| CrdError::Tidy { kind: crd.spec.names.kind.clone(), source })
}

/// - `nullable` goes: so the API server drops a field that is `null`, as it does in its own kinds, and no rule meets a null.
/// - formats that it does not know go: it would warn about them.
/// - defaults in the status go: only the operator writes there.
/// - descriptions become one line a paragraph.
/// - what has no bound gets one.
fn tidy_schema(schema: &mut Value, bounds: &Bounds, in_status: bool) {
    let Some(object) = schema.as_object_mut() else { return };
    object.remove("nullable");
    if object.get("format").and_then(Value::as_str).is_some_and(|f| !FORMATS.contains(&f)) {
        object.remove("format");
    }
    if in_status {
        object.remove("default");
    }
    if let Some(Value::String(text)) = object.get_mut("description") {
        *text = paragraphs(text);
    }
    bound(object, bounds);
    for (key, value) in object {
        match (key.as_str(), value) {
            ("properties", Value::Object(properties)) => {
                properties.values_mut().for_each(|s| tidy_schema(s, bounds, in_status));
            }
            ("items" | "additionalProperties", value) => tidy_schema(value, bounds, in_status),
            _ => {}
        }
    }
}

fn bound(object: &mut Map<String, Value>, bounds: &Bounds) {
    let (key, limit) = match object.get("type").and_then(Value::as_str) {
        Some("string") if !object.contains_key("enum") && !object.contains_key("format") => {
            ("maxLength", bounds.string)
        }
        Some("array") => ("maxItems", bounds.list),
        Some("object") if object.contains_key("additionalProperties") => ("maxProperties", bounds.map),
        _ => return,
    };
    object.entry(key).or_insert(json!(limit));
}

fn paragraphs(text: &str) -> String {
    text.trim()
        .split("\n\n")
        .map(|p| p.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>()
        .join("\n")
}
