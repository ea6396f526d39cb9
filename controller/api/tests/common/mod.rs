//! What the tests of the CRD share: the cases, and the way from a patch to an object.
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod cases;
pub(crate) mod offline;

use std::path::PathBuf;

use serde_json::{Value, json};

/// A file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(path)
}

/// The samples, by file name.
pub(crate) fn samples() -> Vec<(String, Value)> {
    let mut samples: Vec<_> = std::fs::read_dir(repository("deploy/samples"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), serde_saphyr::from_str(&text).unwrap())
        })
        .collect();
    samples.sort_by(|a, b| a.0.cmp(&b.0));
    samples
}

/// The object that the patches of the cases start from.
pub(crate) fn base() -> Value {
    json!({
        "apiVersion": "database.example.com/v1",
        "kind": "PostgreSQL",
        "metadata": {"name": "base"},
        "spec": {"version": "15", "storage": "10Gi"},
    })
}

/// `onto` with a patch in YAML, as a JSON merge patch.
pub(crate) fn patched(onto: &Value, patch: &str) -> Value {
    let patch: Value = serde_saphyr::from_str(patch).unwrap_or_else(|e| panic!("{patch}: {e}"));
    let mut value = onto.clone();
    merge(&mut value, patch);
    value
}

fn merge(onto: &mut Value, patch: Value) {
    match patch {
        Value::Object(patch) => {
            if !onto.is_object() {
                *onto = json!({});
            }
            let onto = onto.as_object_mut().unwrap();
            for (key, value) in patch {
                if value.is_null() {
                    onto.remove(&key);
                } else {
                    merge(onto.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        other => *onto = other,
    }
}
