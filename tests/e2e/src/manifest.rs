//! Manifests of small clusters, so that several fit on the test cluster at once.

use std::fmt;

use serde_json::{Value, json};

/// A `PostgreSQL` manifest; prints as JSON, which `kubectl apply` takes as well as YAML.
#[derive(Clone, Debug)]
pub struct Manifest(Value);

impl Manifest {
    /// One instance of version 17 with little memory, no CPU request and a small volume.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(json!({
            "apiVersion": "database.example.com/v1",
            "kind": "PostgreSQL",
            "metadata": {"name": name},
            "spec": {
                "version": "17",
                "replicas": 1,
                "storage": "512Mi",
                "resources": {"requests": {"memory": "128Mi"}, "limits": {"memory": "256Mi"}},
            },
        }))
    }

    /// Number of instances.
    #[must_use]
    pub fn replicas(self, n: i32) -> Self {
        self.spec("replicas", n)
    }

    /// Sets a field of the spec.
    #[must_use]
    pub fn spec(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0["spec"][field] = value.into();
        self
    }

    /// Leaves a field of the spec out.
    #[must_use]
    pub fn without(mut self, field: &str) -> Self {
        if let Some(spec) = self.0["spec"].as_object_mut() {
            spec.remove(field);
        }
        self
    }

    /// The annotation that stops reconciling: the API server's own rules are tested without anything being made.
    #[must_use]
    pub fn paused(mut self) -> Self {
        self.0["metadata"]["annotations"] = json!({pgwarden_api::names::ANNOTATION_PAUSED: "true"});
        self
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
