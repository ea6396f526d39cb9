//! The part of the API server that admits an object: defaults, schema, CEL rules. Its messages are worded as the server's are;
//! `real_apiserver.rs` holds both against the same cases.

use std::collections::BTreeSet;

use kube::core::cel::{CompiledSchema, ErrorKind, Validator, apply_defaults, compile_schema};
use serde_json::Value;

/// What an object was refused for.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) messages: Vec<String>,
    /// The texts of the CEL rules that were false.
    pub(crate) rules: BTreeSet<String>,
}

/// The schema in the CRD.
pub(crate) fn schema() -> Value {
    let crd = pgwarden_api::crd::postgresql().unwrap();
    serde_json::to_value(crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap())
        .unwrap()
}

/// Stands where the API server would.
pub(crate) struct Admission {
    schema: Value,
    compiled: CompiledSchema,
}

impl Admission {
    pub(crate) fn new() -> Self {
        let schema = schema();
        Self { compiled: compile_schema(&schema), schema }
    }

    /// Admits `object`, as an update of `old` if there is one.
    pub(crate) fn admit(&self, object: &Value, old: Option<&Value>) -> Verdict {
        let schema = &self.schema;
        let object = apply_defaults(schema, object);
        let mut verdict = Verdict::default();
        for part in ["spec", "status"] {
            if let Some(value) = object.get(part) {
                check(&schema["properties"][part], value, part, &mut verdict.messages);
            }
        }
        // The API server does not evaluate rules on what has the wrong shape.
        if verdict.messages.is_empty()
            && let Err(errors) = Validator::new().validate_compiled(&self.compiled, &object, old)
        {
            for error in errors {
                assert_eq!(error.kind, ErrorKind::ValidationFailure, "{}: {error}", error.rule);
                verdict.messages.push(format!("{}: {}", error.field_path, error.message));
                verdict.rules.insert(error.rule.clone());
            }
        }
        verdict
    }
}

fn check(schema: &Value, value: &Value, path: &str, messages: &mut Vec<String>) {
    let mut refuse = |message: String| messages.push(format!("{path}: {message}"));
    if schema["x-kubernetes-int-or-string"] == true {
        if !value.is_string() && !value.is_i64() {
            refuse(format!("{path} in body must be of type integer or string"));
        }
    } else if let Some(kind) = schema["type"].as_str() {
        let ok = match kind {
            "string" => value.is_string(),
            "integer" => value.is_i64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            other => panic!("{path}: type {other}"),
        };
        if !ok {
            refuse(format!("{path} in body must be of type {kind}"));
            return;
        }
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        refuse(format!("Unsupported value: {value}"));
    }
    if let (Some(number), Some(minimum)) = (value.as_f64(), schema["minimum"].as_f64())
        && number < minimum
    {
        refuse(format!("{path} in body should be greater than or equal to {minimum}"));
    }
    if let (Some(number), Some(maximum)) = (value.as_f64(), schema["maximum"].as_f64())
        && number > maximum
    {
        refuse(format!("{path} in body should be less than or equal to {maximum}"));
    }
    if let (Some(text), Some(limit)) = (value.as_str(), schema["maxLength"].as_u64())
        && text.chars().count() as u64 > limit
    {
        refuse(format!("Too long: may not be more than {limit} bytes"));
    }
    if let Some(items) = value.as_array() {
        if schema["maxItems"].as_u64().is_some_and(|limit| items.len() as u64 > limit) {
            refuse(format!("Too many: {}: must have at most {} items", items.len(), schema["maxItems"]));
        }
        let keys = schema["x-kubernetes-list-map-keys"].as_array();
        let unique = matches!(schema["x-kubernetes-list-type"].as_str(), Some("set" | "map"));
        let mut seen = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let key = keys.map_or_else(
                || item.to_string(),
                |keys| keys.iter().map(|k| item[k.as_str().unwrap()].to_string()).collect(),
            );
            if unique && seen.contains(&key) {
                messages.push(format!("{path}[{i}]: Duplicate value: {item}"));
            }
            seen.push(key);
            check(&schema["items"], item, &format!("{path}[{i}]"), messages);
        }
    }
    if let Some(object) = value.as_object() {
        for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !object.contains_key(required) {
                messages.push(format!("{path}.{required}: Required value"));
            }
        }
        if schema["maxProperties"].as_u64().is_some_and(|limit| object.len() as u64 > limit) {
            messages.push(format!(
                "{path}: Too many: {}: must have at most {} items",
                object.len(),
                schema["maxProperties"]
            ));
        }
        for (key, child) in object {
            let known = schema["properties"].get(key).or_else(|| schema.get("additionalProperties"));
            match known {
                Some(schema) => check(schema, child, &format!("{path}.{key}"), messages),
                None => messages.push(format!("unknown field \"{path}.{key}\"")),
            }
        }
    }
}
