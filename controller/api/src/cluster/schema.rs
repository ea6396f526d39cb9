//! Schemas of fields that a derive can't describe: types of Kubernetes itself, trimmed, and lists and maps whose items have
//! bounds and rules of their own.

use k8s_openapi::{
    api::core::v1::{Affinity, Toleration},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::core::{Rule, validate};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::rules;

/// `x-kubernetes-validations` of a schema written by hand.
fn rules_value(rules: impl IntoIterator<Item = Rule>) -> Value {
    let mut schema = Schema::default();
    for rule in rules {
        // A rule is strings: it always serialises.
        let _ = validate(&mut schema, rule);
    }
    schema.remove("x-kubernetes-validations").unwrap_or_else(|| json!([]))
}

/// CPU, memory and the other amounts that a container of ours can ask for.
pub(super) fn resources(_: &mut SchemaGenerator) -> Schema {
    let amount = |description: &str| {
        json!({
            "description": description,
            "x-kubernetes-int-or-string": true,
            "maxLength": 32,
            "x-kubernetes-validations": rules_value([rules::amount()]),
        })
    };
    let amounts = |description: &str| {
        json!({
            "type": "object",
            "description": description,
            "properties": {
                "cpu": amount("CPUs, such as 2 or 500m."),
                "memory": amount("Memory, such as 4Gi."),
                "ephemeral-storage": amount("Local disk for temporary files and logs, such as 1Gi."),
                "hugepages-2Mi": amount("Huge pages of 2 MiB, such as 2Gi."),
                "hugepages-1Gi": amount("Huge pages of 1 GiB, such as 4Gi."),
            },
        })
    };
    json_schema!({
        "type": "object",
        "properties": {
            "requests": amounts("What is reserved on the node."),
            "limits": amounts("What may be used at most."),
        },
    })
}

/// Settings of postgresql.conf.
pub(super) fn parameters(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 256,
        "additionalProperties": {"type": "string", "maxLength": 2048},
    })
}

/// Names of libraries.
pub(super) fn libraries(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 32,
        "x-kubernetes-list-type": "set",
        "items": {
            "type": "string",
            "maxLength": 64,
            "x-kubernetes-validations": rules_value([rules::library()]),
        },
    })
}

/// Lines of pg_hba.conf; their order counts.
pub(super) fn hba(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 64,
        "x-kubernetes-list-type": "atomic",
        "items": {
            "type": "string",
            "maxLength": 512,
            "x-kubernetes-validations": rules_value(rules::hba()),
        },
    })
}

/// Labels.
pub(super) fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {"type": "string", "maxLength": 63},
    })
}

/// Annotations.
pub(super) fn annotations(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": {"type": "string", "maxLength": 4096},
    })
}

/// References to Secrets.
pub(super) fn pull_secrets(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
        "items": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string", "maxLength": 253, "description": "Name of the Secret."}},
        },
    })
}

/// Kubernetes' Toleration.
pub(super) fn tolerations(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 32,
        "x-kubernetes-list-type": "atomic",
        "items": bare::<Toleration>(generator),
    })
}

/// Kubernetes' Affinity.
pub(super) fn affinity(generator: &mut SchemaGenerator) -> Schema {
    bare::<Affinity>(generator)
}

/// Kubernetes' Condition.
pub(super) fn conditions(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 32,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": bare::<Condition>(generator),
    })
}

/// The schema of a Kubernetes type without its descriptions: they are the larger part, and people know them from Pods.
fn bare<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = generator.subschema_for::<T>().to_value();
    strip(&mut schema);
    Schema::try_from(schema).unwrap_or_default()
}

/// Removes descriptions, but no property that is called so.
fn strip(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    object.remove("description");
    for (key, value) in object {
        match (key.as_str(), value) {
            ("properties", Value::Object(properties)) => properties.values_mut().for_each(strip),
            ("items" | "additionalProperties", value) => strip(value),
            ("anyOf" | "allOf" | "oneOf", Value::Array(schemas)) => schemas.iter_mut().for_each(strip),
            _ => {}
        }
    }
}
