//! Whether an object is as it should be: everything that we say of it holds. What others say, or the API server fills in, does not
//! matter.

use serde_json::Value;

use crate::quantity;

/// Where `live` differs from what `desired` says; `None` when nowhere.
#[must_use]
pub fn difference(desired: &Value, live: &Value) -> Option<String> {
    walk(desired, live, &mut Vec::new())
}

fn walk(desired: &Value, live: &Value, path: &mut Vec<String>) -> Option<String> {
    let here = |path: &[String]| Some(format!(".{}", path.join(".")));
    match (desired, live) {
        (Value::Null, _) => None,
        (Value::Object(want), Value::Object(have)) => want.iter().find_map(|(key, value)| {
            path.push(key.clone());
            let found = match have.get(key) {
                Some(other) => walk(value, other, path),
                None if says_nothing(value) => None,
                None => here(path),
            };
            path.pop();
            found
        }),
        (Value::Array(want), Value::Array(have)) => lists(want, have, path),
        (Value::String(want), Value::String(have)) => {
            let quantities = path.iter().any(|p| ["requests", "limits", "sizeLimit"].contains(&p.as_str()));
            let same = want == have || (quantities && quantity::same(want, have));
            if same { None } else { here(path) }
        }
        _ if desired == live => None,
        _ => here(path),
    }
}

/// The API server drops empty lists and maps.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.values().all(says_nothing),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// Lists whose elements have names are compared by name, as server-side apply merges them; others position by position.
fn lists(want: &[Value], have: &[Value], path: &mut Vec<String>) -> Option<String> {
    let key = ["uid", "name", "mountPath", "topologyKey"]
        .into_iter()
        .find(|key| !want.is_empty() && want.iter().all(|v| v.get(key).is_some_and(Value::is_string)));
    // Two mounts of one volume have one name: only a key that is unique tells elements apart.
    let key = key.filter(|key| {
        let mut seen: Vec<_> = want.iter().map(|v| v.get(key).and_then(Value::as_str)).collect();
        seen.sort_unstable();
        seen.windows(2).all(|w| w.first() != w.last())
    });
    let ordered = path.last().is_some_and(|p| p == "initContainers" || p == "containers");
    if key.is_none() || ordered {
        if want.len() != have.len() {
            return Some(format!(".{}", path.join(".")));
        }
        return want.iter().zip(have).enumerate().find_map(|(i, (w, h))| {
            path.push(i.to_string());
            let found = walk(w, h, path);
            path.pop();
            found
        });
    }
    let key = key.unwrap_or_default();
    want.iter().find_map(|element| {
        let name = element.get(key);
        path.push(name.and_then(Value::as_str).unwrap_or_default().to_owned());
        let found = match have.iter().find(|h| h.get(key) == name) {
            Some(other) => walk(element, other, path),
            None => Some(format!(".{}", path.join("."))),
        };
        path.pop();
        found
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_say_does_not_matter_what_we_say_does() {
        let rows = [
            (json!({"a": 1}), json!({"a": 1, "b": 2}), None),
            (json!({"a": 1}), json!({"a": 2}), Some(".a")),
            (json!({"a": {"b": "x"}}), json!({"a": {}}), Some(".a.b")),
            (json!({"a": [], "b": {}, "c": null}), json!({}), None),
            (json!({"securityContext": {"x": {}}}), json!({}), None),
            (json!({"verbs": ["get"]}), json!({"verbs": ["get", "delete"]}), Some(".verbs")),
            (
                json!({"ports": [{"name": "a", "port": 1}]}),
                json!({"ports": [{"name": "z", "port": 9}, {"name": "a", "port": 1, "protocol": "TCP"}]}),
                None,
            ),
            (
                json!({"ports": [{"name": "a", "port": 1}]}),
                json!({"ports": [{"name": "a", "port": 2}]}),
                Some(".ports.a.port"),
            ),
            (json!({"limits": {"cpu": "1000m"}}), json!({"limits": {"cpu": "1"}}), None),
            (json!({"env": {"cpu": "1000m"}}), json!({"env": {"cpu": "1"}}), Some(".env.cpu")),
            (
                json!({"volumeMounts": [{"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/b"}]}),
                json!({"volumeMounts": [{"name": "v", "mountPath": "/a"}]}),
                Some(".volumeMounts"),
            ),
        ];
        for (desired, live, want) in rows {
            assert_eq!(difference(&desired, &live).as_deref(), want, "{desired} / {live}");
        }
    }
}
