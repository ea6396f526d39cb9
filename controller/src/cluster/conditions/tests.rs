use super::*;
use crate::cluster::{
    decide::decide,
    status,
    testing::{cluster, pod, running, valid_at},
};

const SPEC: &str = "{version: \"17\", storage: 10Gi}";

fn told(spec: &str, observed: &Observed, before: &str, failure: Option<Failed<'_>>) -> Summary {
    let v = valid_at(&cluster(spec), observed.version).unwrap();
    let plan = decide(&v, observed, true);
    let members = status::members(&observed.pods, &observed.reports, observed.record.as_deref());
    summarise(Picture {
        cluster: &v,
        observed,
        plan: &plan,
        members: &members,
        app_secret_problem: None,
        resize_problem: None,
        failure,
        before,
    })
}

fn get<'a>(summary: &'a Summary, kind: &str) -> &'a Fact {
    summary
        .facts
        .iter()
        .find(|f| f.kind == kind)
        .unwrap_or_else(|| panic!("no {kind} in {:?}", summary.facts))
}

fn has(summary: &Summary, kind: &str) -> bool {
    summary.facts.iter().any(|f| f.kind == kind)
}

#[test]
fn all_serve() {
    let s = told(SPEC, &running(), "Creating", None);
    assert_eq!(s.phase, phase::RUNNING);
    assert!(get(&s, "Ready").status && !get(&s, "Progressing").status && !get(&s, "Degraded").status);
    for absent in [SPREAD, RESTART_PENDING, RECONCILE_FAILED, INVALID, BACKUP_READY] {
        assert!(!has(&s, absent), "{absent}");
    }
    // What is not done is said.
    assert!(!get(&s, DURABILITY).status);
    let asynchronous =
        told("{version: \"17\", storage: 1Gi, durability: {mode: async}}", &running(), "", None);
    assert!(!has(&asynchronous, DURABILITY));
    let backed =
        told("{version: \"17\", storage: 1Gi, backup: {schedule: \"0 2 * * *\"}}", &running(), "", None);
    assert!(!get(&backed, BACKUP_READY).status);
}

#[test]
fn a_replica_is_missing() {
    let mut o = running();
    o.pods.pop();
    let s = told(SPEC, &o, "Running", None);
    assert_eq!(s.phase, phase::DEGRADED);
    assert!(get(&s, "Ready").status && get(&s, "Degraded").status && get(&s, "Progressing").status);
    assert!(get(&s, "Degraded").message.contains("2 of 3"));
    // While it is being made, replicas to come are no loss.
    let s = told(SPEC, &o, "Creating", None);
    assert_eq!(s.phase, phase::CREATING);
    assert!(get(&s, "Ready").status && !get(&s, "Degraded").status && get(&s, "Progressing").status);
}

#[test]
fn the_primary_is_gone() {
    let mut o = running();
    o.reports.remove("orders-17-0");
    let s = told(SPEC, &o, "Running", None);
    assert_eq!(s.phase, phase::DEGRADED);
    assert_eq!((get(&s, "Ready").status, get(&s, "Degraded").reason.as_str()), (false, "NotServing"));
    assert!(get(&s, "Ready").message.contains("orders-17-0"));
    // Before it has ever served it is only not done yet.
    assert_eq!(told(SPEC, &o, "Creating", None).phase, phase::CREATING);
}

#[test]
fn instances_on_one_node() {
    let mut o = running();
    o.pods[2] = pod(2, "node0", true);
    let s = told(SPEC, &o, "Running", None);
    assert_eq!(s.phase, phase::RUNNING);
    let spread = get(&s, SPREAD);
    assert_eq!((spread.status, spread.reason.as_str()), (false, "NodesTooFew"));
    assert!(spread.message.contains("orders-17-0 and orders-17-2"));
    let own = told("{version: \"17\", storage: 1Gi, affinity: {podAffinity: {}}}", &o, "", None);
    assert!(!has(&own, SPREAD), "the user's own affinity");
}

#[test]
fn agents_are_heard() {
    let mut o = running();
    let mut report = o.reports["orders-17-1"].as_ref().clone();
    report
        .problems
        .push(pgwarden_proto::v1::Problem { reason: "DiskFull".into(), message: "0 bytes left".into() });
    report
        .problems
        .push(pgwarden_proto::v1::Problem { reason: "1 bad; reason".into(), message: String::new() });
    report.pending_restart.push(pgwarden_proto::v1::PendingRestart {
        name: "shared_buffers".into(),
        current: "1".into(),
        wanted: "2".into(),
    });
    o.reports.insert("orders-17-1".into(), std::sync::Arc::new(report));
    let s = told(SPEC, &o, "Running", None);
    assert_eq!(get(&s, "DiskFull").message, "orders-17-1: 0 bytes left");
    assert!(get(&s, RESTART_PENDING).message.contains("shared_buffers = 2 (orders-17-1)"));
    assert!(s.facts.iter().all(|f| f.kind.chars().all(|c| c.is_ascii_alphanumeric())));
}

#[test]
fn storage_class() {
    let mut o = running();
    o.storage_class = StorageClassFact::Missing("nope".into());
    assert!(get(&told(SPEC, &o, "", None), STORAGE_CLASS_NOT_FOUND).message.contains("\"nope\""));
    o.storage_class = StorageClassFact::NoDefault;
    assert_eq!(get(&told(SPEC, &o, "", None), STORAGE_CLASS_NOT_FOUND).reason, "NoDefaultStorageClass");
    o.storage_class = StorageClassFact::Unknown;
    assert!(!has(&told(SPEC, &o, "", None), STORAGE_CLASS_NOT_FOUND));
}

#[test]
fn failures_and_refusals_differ() {
    let failed = |refused| Some(Failed { step: "apply", message: "m", refused });
    let mut o = running();
    o.pods.clear();
    o.reports.clear();
    let s = told(SPEC, &o, "Creating", failed(false));
    assert_eq!((get(&s, RECONCILE_FAILED).reason.as_str(), s.phase), ("ApplyFailed", phase::CREATING));
    assert!(get(&s, "Progressing").status);
    let s = told(SPEC, &o, "Creating", failed(true));
    assert_eq!((get(&s, INVALID).reason.as_str(), s.phase), ("RefusedByKubernetes", phase::BLOCKED));
    // A cluster that serves goes on serving, whatever its manifest says now.
    assert_eq!(told(SPEC, &running(), "Running", failed(true)).phase, phase::RUNNING);
}

#[test]
fn versions() {
    let mut o = running();
    o.version = pgwarden_api::cluster::Version::V12;
    assert!(has(&told("{version: \"12\", storage: 1Gi}", &o, "", None), "VersionNotYetSupported"));
    let s = told("{version: \"18\", storage: 1Gi}", &running(), "", None);
    assert!(get(&s, "UpgradePending").message.contains("version 17 is in use"));
}

#[test]
fn messages_are_bounded() {
    let long = bounded("ä".repeat(2000));
    assert!(long.len() <= 1024 && long.ends_with('…'));
    assert_eq!(bounded("short".into()), "short");
}
