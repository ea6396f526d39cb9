use super::*;
use crate::cluster::testing::{cluster, valid};

const MINIMAL: &str = "{version: \"17\", storage: 10Gi}";

#[test]
fn a_minimal_manifest_has_defaults() {
    let v = valid(&cluster(MINIMAL)).unwrap();
    assert_eq!((v.names.cluster(), v.namespace.as_str(), v.replicas), ("orders", "shop", 3));
    assert_eq!(v.image, "library/postgres:17");
    assert_eq!((v.initdb.locale.as_str(), v.initdb.encoding.as_str()), ("C.UTF-8", "UTF8"));
    assert_eq!(v.storage_bytes, 10 << 30);
    assert!(!v.paused);
}

#[test]
fn what_is_wrong_is_named_with_its_remedy() {
    let rows = [
        ("{version: \"17\", storage: ten}", "spec.storage \"ten\""),
        ("{version: \"17\", storage: \"0\"}", "spec.storage"),
        ("{version: \"17\", storage: 1Gi, replicas: 0}", "from 1 to 9"),
        ("{version: \"17\", storage: 1Gi, replicas: 10}", "from 1 to 9"),
        ("{version: \"17\", storage: 1Gi, parameters: {fsync: \"off\"}}", "acknowledged rows would be lost"),
        ("{version: \"17\", storage: 1Gi, parameters: {FSYNC: \"off\"}}", "acknowledged rows would be lost"),
        ("{version: \"17\", storage: 1Gi, parameters: {include_dir: /x}}", "the operator places the files"),
        ("{version: \"17\", storage: 1Gi, parameters: {\"a b\": x}}", "not the name of a parameter"),
        (
            "{version: \"17\", storage: 1Gi, parameters: {ssl_min_protocol_version: TLSv1}}",
            "TLS 1.2 or newer",
        ),
        ("{version: \"17\", storage: 1Gi, hba: [\"host all all all trust\"]}", "spec.hba[0]"),
        ("{version: \"17\", storage: 1Gi, hba: [\"host all all all cert\", \"include x\"]}", "spec.hba[1]"),
        (
            "{version: \"17\", storage: 1Gi, hba: [\"hostssl replication all all cert\"]}",
            "replication is the operator's",
        ),
        (
            "{version: \"17\", storage: 1Gi, resources: {limits: {memory: lots}}}",
            "spec.resources.limits.memory",
        ),
    ];
    for (spec, want) in rows {
        let error = valid(&cluster(spec)).unwrap_err().to_string();
        assert!(error.contains(want), "{spec}: {error}");
    }
}

#[test]
fn names_have_forty_characters_at_most() {
    let with = |name: &str| {
        let mut c = cluster(MINIMAL);
        c.metadata.name = Some(name.to_owned());
        valid(&c).map(|_| ())
    };
    assert_eq!(with(&"a".repeat(40)), Ok(()));
    for bad in ["a".repeat(41), "1a".into(), "a-".into(), "A".into(), "a.b".into(), "ä".into(), String::new()]
    {
        assert_eq!(with(&bad), Err(ValidateError::Name(bad.clone())));
    }
}

#[test]
fn the_annotation_pauses() {
    let mut c = cluster(MINIMAL);
    c.metadata.annotations = Some([(names::ANNOTATION_PAUSED.to_owned(), "true".to_owned())].into());
    assert!(valid(&c).unwrap().paused);
}

#[test]
fn ordinary_hba_lines_pass() {
    let lines = [
        "hostssl app app 10.0.0.0/8 scram-sha-256",
        "hostssl all trust,password all cert",
        "# a comment",
        "",
    ];
    assert_eq!(check_hba(&lines.map(str::to_owned)), Ok(()));
}
