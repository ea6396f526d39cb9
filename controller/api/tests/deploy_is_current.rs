//! The CRD in `deploy/` is the one that the code makes. `UPDATE=1 cargo test -p pgwarden-api deploy_is_current` rewrites it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of a test")]

mod common;

use pgwarden_api::crd;

/// What an installation may carry: `kubectl apply` keeps a copy in an annotation, and people read it.
const LARGEST: usize = 100_000;

#[test]
fn deploy_is_current() {
    let text = crd::postgresql_manifest().unwrap();
    assert!(text.len() < LARGEST, "{} bytes", text.len());
    let file = common::repository(crd::POSTGRESQL_FILE);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        found == text,
        "{} is not current: UPDATE=1 cargo test -p pgwarden-api deploy_is_current",
        crd::POSTGRESQL_FILE
    );
}

#[test]
fn the_manifest_is_the_crd_and_holds_one_object() {
    let parsed: serde_json::Value = serde_saphyr::from_str(&crd::postgresql_manifest().unwrap()).unwrap();
    assert_eq!(parsed, serde_json::to_value(crd::postgresql().unwrap()).unwrap());
}
