use super::*;

/// `UPDATE=1 cargo test -p pgwarden-controller deploy_is_current` writes the files.
#[test]
fn deploy_is_current() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    if std::env::var_os("UPDATE").is_some() {
        write(&deploy).unwrap();
    }
    for (name, text) in render().unwrap() {
        let found = std::fs::read_to_string(deploy.join(name)).unwrap_or_default();
        assert!(
            found == text,
            "deploy/{name} is not current: run UPDATE=1 cargo test -p pgwarden-controller deploy_is_current"
        );
    }
}

#[test]
fn no_rule_is_wider_than_it_must_be() {
    for reach in [Reach::Cluster, Reach::Namespace] {
        for rule in rules(reach) {
            let resources = rule.resources.unwrap();
            let groups = rule.api_groups.unwrap();
            for text in rule.verbs.iter().chain(&resources).chain(&groups) {
                assert!(
                    !["*", "escalate", "bind", "impersonate", "deletecollection"].contains(&text.as_str()),
                    "{text} in {resources:?}"
                );
            }
            assert!(!resources.iter().any(|r| r.starts_with("pods/") || r == "nodes"), "{resources:?}");
        }
    }
}

#[test]
fn the_namespaced_variant_has_nothing_cluster_wide_but_its_crd() {
    let (_, text) = render().unwrap().into_iter().find(|(name, _)| *name == FILE_NAMESPACED).unwrap();
    assert!(!text.contains("kind: ClusterRole") && !text.contains("kind: Namespace\n"));
    assert!(!text.contains(&format!("namespace: {NAMESPACE}")));
    assert!(text.contains("PGWARDEN_WATCH_NAMESPACE"));
    assert!(!text.contains("storageclasses"));
}
