//! The CRD as the API server will use it, without one: every rule with what it accepts and refuses.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of a test")]

mod common;

use std::collections::BTreeSet;

use common::{base, cases, offline, patched, samples};
use pgwarden_api::{PostgreSQL, cluster::Version};
use serde_json::Value;

#[test]
fn cases_are_accepted_or_refused_with_a_message_that_helps() {
    let (schema, admission) = (offline::schema(), offline::Admission::new());
    let mut refused_by = BTreeSet::new();
    let mut failures = Vec::new();
    for case in cases::all() {
        let old = case.old.map(|old| patched(&base(), old));
        let new = patched(&old.clone().unwrap_or_else(base), case.new);
        if let Some(old) = &old {
            let verdict = admission.admit(old, None);
            assert!(verdict.messages.is_empty(), "the old object of {}: {verdict:?}", case.new);
        }
        let verdict = admission.admit(&new, old.as_ref());
        let text = verdict.messages.join("\n");
        let right =
            if case.says.is_empty() { text.is_empty() } else { case.says.iter().all(|s| text.contains(s)) };
        if !right {
            failures.push(format!("{:?} -> {}: wanted {:?}, got {text:?}", case.old, case.new, case.says));
        }
        refused_by.extend(verdict.rules);
    }
    assert!(failures.is_empty(), "{} cases:\n{}", failures.len(), failures.join("\n"));

    // A rule that no case breaks might as well not be there.
    let mut rules = BTreeSet::new();
    walk(&schema, &mut |node| {
        for rule in node["x-kubernetes-validations"].as_array().into_iter().flatten() {
            rules.insert(rule["rule"].as_str().unwrap().to_owned());
        }
    });
    let untested: Vec<_> = rules.difference(&refused_by).collect();
    assert!(rules.len() >= 30 && untested.is_empty(), "{} rules, without a case: {untested:#?}", rules.len());
}

/// One mistake gives one message: rules that parse a value let the one speak that says it is malformed.
#[test]
fn a_malformed_quantity_is_reported_once() {
    let admission = offline::Admission::new();
    for patch in [
        "spec: {storage: 100GB}",
        "spec: {resources: {requests: {memory: 4GB}, limits: {memory: 2Gi, cpu: 1}}}",
        "spec: {resources: {requests: {memory: 4Gi}, limits: {memory: 2GB}}}",
    ] {
        let verdict = admission.admit(&patched(&base(), patch), Some(&base()));
        assert_eq!(verdict.messages.len(), 1, "{patch}: {verdict:?}");
    }
}

#[test]
fn samples_are_accepted_and_say_only_what_the_types_hold() {
    let admission = offline::Admission::new();
    let samples = samples();
    let names: Vec<_> = samples.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "all-fields.yaml",
            "minimal.yaml",
            "my-postgres.yaml",
            "user-app-database.yaml",
            "user-my-database.yaml"
        ]
    );
    for (name, sample) in &samples {
        let verdict = admission.admit(sample, None);
        assert!(verdict.messages.is_empty(), "{name}: {verdict:?}");
        // A field that the types do not know would be lost on the way through them.
        let typed: PostgreSQL = serde_json::from_value(sample.clone()).unwrap();
        let back = serde_json::to_value(&typed).unwrap();
        assert_contains(&back, sample, name);
    }
}

#[test]
fn all_fields_shows_every_field() {
    let (_, sample) = samples().into_iter().find(|(name, _)| name == "all-fields.yaml").unwrap();
    let schema = offline::schema();
    assert_documented(&schema["properties"]["spec"], &sample["spec"], "spec");
}

#[test]
fn what_a_manifest_leaves_out_has_the_same_default_in_the_api_and_in_rust() {
    let bare: PostgreSQL = serde_json::from_value(base()).unwrap();
    let defaulted = kube::core::cel::apply_defaults(&offline::schema(), &base());
    let defaulted: PostgreSQL = serde_json::from_value(defaulted).unwrap();
    assert_eq!(bare, defaulted);
    assert_eq!((bare.spec.version, bare.spec.replicas), (Version::V15, 3));
}

/// Amounts may be written as numbers; the API server keeps them so, and the types must read them.
#[test]
fn amounts_written_as_numbers_are_read() {
    let object = patched(&base(), "spec: {resources: {requests: {cpu: 2}}}");
    let typed: PostgreSQL = serde_json::from_value(object).unwrap();
    assert_eq!(typed.spec.resources.unwrap().requests.unwrap()["cpu"].0, "2");
}

#[test]
fn every_string_list_and_map_has_a_bound_and_every_field_of_ours_a_description() {
    let schema = offline::schema();
    walk(&schema["properties"]["spec"], &mut |node| {
        let bounded = match node["type"].as_str() {
            Some("string") => node["maxLength"].is_u64() || node["enum"].is_array(),
            Some("array") => node["maxItems"].is_u64(),
            Some("object") => node["maxProperties"].is_u64() || node["additionalProperties"].is_null(),
            _ => node["type"].is_string() || node["maxLength"].is_u64(),
        };
        assert!(bounded, "{node:#}");
        assert!(node["nullable"].is_null(), "{node:#}");
    });
    for part in ["spec", "status"] {
        for (name, field) in schema["properties"][part]["properties"].as_object().unwrap() {
            let text =
                field["description"].as_str().unwrap_or_else(|| panic!("{part}.{name} has no description"));
            assert!(!text.contains("[`"), "{part}.{name}: {text}");
        }
    }
}

/// Calls `f` with each schema inside `schema`.
fn walk(schema: &Value, f: &mut dyn FnMut(&Value)) {
    f(schema);
    for child in schema["properties"].as_object().into_iter().flat_map(|p| p.values()) {
        walk(child, f);
    }
    for key in ["items", "additionalProperties"] {
        if schema[key].is_object() {
            walk(&schema[key], f);
        }
    }
}

/// What the user wrote is in what the types give back.
fn assert_contains(whole: &Value, part: &Value, path: &str) {
    match part {
        Value::Object(map) => {
            for (key, value) in map {
                let other = whole.get(key).unwrap_or_else(|| panic!("{path}.{key} is lost"));
                assert_contains(other, value, &format!("{path}.{key}"));
            }
        }
        Value::Array(list) => {
            assert_eq!(whole.as_array().map(Vec::len), Some(list.len()), "{path}");
            for (i, value) in list.iter().enumerate() {
                assert_contains(&whole[i], value, &format!("{path}[{i}]"));
            }
        }
        value => assert_eq!(whole, value, "{path}"),
    }
}

/// Every field that has a description is in the sample: fields of Kubernetes' own types have none.
fn assert_documented(schema: &Value, sample: &Value, path: &str) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let amount = field["x-kubernetes-int-or-string"] == true;
        if field["description"].is_string() && !amount {
            assert!(sample.get(name).is_some(), "{path}.{name} is missing");
            assert_documented(field, &sample[name], &format!("{path}.{name}"));
        }
    }
}
