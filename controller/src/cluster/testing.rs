//! Fixtures: a manifest in YAML, validated and built by the real code. Names differ from the product's, so that swapped values show.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::{Pod, Secret},
    jiff::Timestamp,
};
use kube::core::ObjectMeta;
use pgwarden_api::{PostgreSQL, PostgreSQLRecord, cluster::Version, names::Names};
use pgwarden_proto::v1::{InstanceStatus, Role};
use serde_json::json;

use super::{
    build::{self, AppSecret, Prepared, Resources},
    decide::{Plan, decide},
    observe::{Live, Observed, StorageClassFact},
    validate::{ValidateError, ValidatedCluster, validate},
};
use crate::{
    context::{Lifetimes, Settings},
    tls::{Certificates, authority::Authority, issue},
};

pub(crate) const DAY: Duration = Duration::from_secs(86_400);

pub(crate) fn lifetimes() -> Lifetimes {
    Lifetimes { authority: DAY * 3650, leaf: DAY * 90, renew_percent: 66, overlap: Duration::from_secs(3600) }
}

pub(crate) fn settings() -> Settings {
    Settings {
        postgres_image: "library/postgres:{version}".into(),
        agent_image: "tools/agent:7".into(),
        pull_policy: None,
        operator_namespace: "operators".into(),
        network_policy: true,
        lifetimes: lifetimes(),
    }
}

pub(crate) fn now() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

/// `orders` in the namespace `shop`, as the API server would hand it out.
pub(crate) fn cluster(spec: &str) -> PostgreSQL {
    let text = format!(
        "apiVersion: database.example.com/v1\nkind: PostgreSQL\nmetadata:\n  name: orders\n  namespace: shop\n  uid: uid-of-orders\n  \
         generation: 4\nspec: {spec}\n"
    );
    serde_saphyr::from_str(&text).unwrap()
}

/// Nothing is there yet.
pub(crate) fn nothing(version: Version) -> Observed {
    Observed {
        now: now(),
        live: Live::default(),
        pods: Vec::new(),
        claims: Vec::new(),
        record: None,
        claims_without_record: Vec::new(),
        reports: BTreeMap::new(),
        version,
        storage_class: StorageClassFact::NotAsked,
    }
}

pub(crate) fn valid(cluster: &PostgreSQL) -> Result<ValidatedCluster, ValidateError> {
    valid_at(cluster, cluster.spec.version)
}

/// With another version in use than the manifest's.
pub(crate) fn valid_at(cluster: &PostgreSQL, version: Version) -> Result<ValidatedCluster, ValidateError> {
    validate(cluster, version, "IPv4", &settings())
}

pub(crate) fn certificates() -> Certificates {
    let names = Names::new("orders");
    let authority = Authority::new("shop", "orders", Vec::new(), now(), &lifetimes()).unwrap();
    let subject = issue::Subject { namespace: "shop", names: &names };
    issue::certificates(subject, &authority, &BTreeMap::new(), now(), &lifetimes()).unwrap()
}

pub(crate) fn app_secret(data: &[(&str, &str)]) -> AppSecret {
    let live = Secret {
        metadata: ObjectMeta { name: Some("orders-app".into()), ..ObjectMeta::default() },
        data: Some(
            data.iter()
                .map(|(k, v)| ((*k).to_owned(), k8s_openapi::ByteString(v.as_bytes().to_vec())))
                .collect(),
        ),
        ..Secret::default()
    };
    let problem = build::app_secret_problem(&live);
    AppSecret { live: Arc::new(live), problem }
}

/// What would be applied for a manifest.
pub(crate) fn built(spec: &str) -> (ValidatedCluster, Plan, Resources<Prepared>) {
    let cluster = cluster(spec);
    let valid = valid(&cluster).unwrap();
    let plan = decide(&valid, &nothing(cluster.spec.version), true);
    let resources = build_with(&valid, &plan, &certificates());
    (valid, plan, resources)
}

pub(crate) fn build_with(
    valid: &ValidatedCluster,
    plan: &Plan,
    certificates: &Certificates,
) -> Resources<Prepared> {
    let app_secret = app_secret(&[("username", "bob"), ("password", "p/w")]);
    let files = build::files(valid, &app_secret);
    let settings = settings();
    let inputs = build::Inputs { settings: &settings, certificates, app_secret: &app_secret, files: &files };
    build::build(valid, plan, inputs)
}

/// Pod `orders-17-ORDINAL` on a node.
pub(crate) fn pod(ordinal: u32, node: &str, ready: bool) -> Arc<Pod> {
    let pod = json!({
        "metadata": {
            "name": format!("orders-17-{ordinal}"), "namespace": "shop", "uid": format!("pod-uid-{ordinal}"),
            "labels": {"database.example.com/cluster": "orders"},
        },
        "spec": {"nodeName": node, "containers": []},
        "status": {
            "phase": "Running",
            "podIP": format!("10.9.0.{ordinal}"),
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        },
    });
    Arc::new(serde_json::from_value(pod).unwrap())
}

/// A record that `orders-17-ORDINAL` holds.
pub(crate) fn held(ordinal: u32) -> Arc<PostgreSQLRecord> {
    let spec = json!({
        "clusterId": "c-1", "epoch": 1, "state": "Held", "systemIdentifier": "7",
        "holder": {"pod": format!("orders-17-{ordinal}"), "podUid": format!("pod-uid-{ordinal}"), "instance": "i"},
    });
    Arc::new(PostgreSQLRecord::new("orders", serde_json::from_value(spec).unwrap()))
}

pub(crate) fn report(role: Role, ready: bool) -> Arc<InstanceStatus> {
    let mut report = InstanceStatus { ready, timeline: 1, ..InstanceStatus::default() };
    report.set_role(role);
    report.state = if role == Role::Primary { "Primary" } else { "Standby" }.into();
    Arc::new(report)
}

/// Three instances that serve, the first as primary.
pub(crate) fn running() -> Observed {
    let mut observed = nothing(Version::V17);
    observed.record = Some(held(0));
    for ordinal in 0..3 {
        let role = if ordinal == 0 { Role::Primary } else { Role::Replica };
        observed.pods.push(pod(ordinal, &format!("node{ordinal}"), true));
        observed.reports.insert(format!("orders-17-{ordinal}"), report(role, true));
    }
    observed
}
