//! The CRDs as they are installed: the derived ones, tidied.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use serde_json::{Map, Value, json};

use crate::{PostgreSQL, PostgreSQLRecord};

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
/// When the derived CRD can't be turned into JSON and back: a mistake in this crate.
pub fn postgresql() -> Result<CustomResourceDefinition, serde_json::Error> {
    tidy(PostgreSQL::crd())
}

/// The CRD of [`PostgreSQLRecord`].
///
/// # Errors
/// As [`postgresql`].
pub fn record() -> Result<CustomResourceDefinition, serde_json::Error> {
    tidy(PostgreSQLRecord::crd())
}

fn tidy(crd: CustomResourceDefinition) -> Result<CustomResourceDefinition, serde_json::Error> {
    let mut crd = serde_json::to_value(crd)?;
    if let Some(versions) = crd.pointer_mut("/spec/versions").and_then(Value::as_array_mut) {
        for version in versions {
            if let Some(properties) =
                version.pointer_mut("/schema/openAPIV3Schema/properties").and_then(Value::as_object_mut)
            {
                for (name, schema) in properties {
                    let in_status = name == "status";
                    tidy_schema(schema, if in_status { &STATUS } else { &SPEC }, in_status);
                }
            }
        }
    }
    serde_json::from_value(crd)
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
    text.trim().split("\n\n").map(|p| p.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn print() {
        let y = serde_saphyr::to_string(&super::postgresql().unwrap()).unwrap();
        println!("{y}\n{}", y.len());
        let y = serde_saphyr::to_string(&super::record().unwrap()).unwrap();
        println!("{y}\n{}", y.len());
    }
}
