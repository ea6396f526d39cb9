use k8s_openapi::{
    api::core::v1::{Secret, Service},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::core::ObjectMeta;
use serde_json::json;

use super::*;
use crate::cluster::testing::{cluster, nothing, report, running, valid, valid_at};

fn plan(spec: &str, observed: &Observed) -> Plan {
    decide(&valid_at(&cluster(spec), observed.version).unwrap(), observed, true)
}

fn service(name: &str, label: Option<&str>, owner: Option<(&str, &str, &str)>) -> Arc<Service> {
    Arc::new(Service {
        metadata: ObjectMeta {
            name: Some(name.into()),
            labels: label.map(|l| [(names::LABEL_CLUSTER.to_owned(), l.to_owned())].into()),
            owner_references: owner.map(|(kind, name, uid)| {
                vec![OwnerReference {
                    kind: kind.into(),
                    name: name.into(),
                    uid: uid.into(),
                    controller: Some(true),
                    ..OwnerReference::default()
                }]
            }),
            ..ObjectMeta::default()
        },
        ..Service::default()
    })
}

#[test]
fn whose_an_object_is() {
    let foreign = |text: &str| Whose::Foreign(text.to_owned());
    let rows = [
        (Some("orders"), Some(("PostgreSQL", "orders", "uid-of-orders")), Whose::Ours),
        // Its label was taken off by hand.
        (None, Some(("PostgreSQL", "orders", "uid-of-orders")), Whose::Ours),
        // Left by an earlier cluster of this name.
        (Some("orders"), Some(("PostgreSQL", "orders", "older-uid")), Whose::Ours),
        (Some("orders"), None, Whose::Ours),
        // The slice of a Service.
        (Some("orders"), Some(("Service", "orders", "u")), Whose::Ours),
        // `orders-ro` of a cluster `orders-ro` beside `orders`.
        (Some("orders-ro"), Some(("PostgreSQL", "orders-ro", "u")), foreign("PostgreSQL orders-ro")),
        (Some("orders-ro"), None, foreign("the cluster orders-ro")),
        (None, Some(("Deployment", "web", "u")), foreign("Deployment web")),
        (None, None, foreign("nobody that its metadata names")),
    ];
    for (label, owner, want) in rows {
        let found = whose(service("orders-ro", label, owner).as_ref(), "orders", "uid-of-orders");
        assert_eq!(found, want, "{label:?} {owner:?}");
    }
}

const SPEC: &str = "{version: \"17\", storage: 10Gi}";

#[test]
fn nothing_is_made_while_a_name_is_taken() {
    let mut o = nothing(Version::V17);
    assert_eq!(plan(SPEC, &o).stop, None);
    o.live.services.insert("orders-ro".into(), service("orders-ro", Some("orders-ro"), None));
    let Some(Stop::NameConflict(conflicts)) = plan(SPEC, &o).stop else { panic!("a conflict was expected") };
    assert_eq!(conflicts.len(), 1);
    assert_eq!((conflicts[0].kind.as_str(), conflicts[0].name.as_str()), ("Service", "orders-ro"));
}

#[test]
fn the_users_own_application_secret_is_no_conflict_others_are() {
    let secret = |name: &str| {
        Arc::new(Secret {
            metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
            ..Secret::default()
        })
    };
    let mut o = nothing(Version::V17);
    o.live.secrets.insert("orders-app".into(), secret("orders-app"));
    assert_eq!(plan(SPEC, &o).stop, None);
    o.live.secrets.insert("orders-ca".into(), secret("orders-ca"));
    assert!(matches!(plan(SPEC, &o).stop, Some(Stop::NameConflict(_))));
}

#[test]
fn data_without_its_record_is_left_alone() {
    let mut o = nothing(Version::V17);
    assert!(plan(SPEC, &o).create_record);
    o.claims_without_record = vec!["data-orders-17-0".into()];
    let p = plan(SPEC, &o);
    assert!(!p.create_record);
    assert_eq!(p.stop, Some(Stop::DataWithoutRecord(vec!["data-orders-17-0".into()])));
    // Retained data with its record goes on.
    o.claims_without_record.clear();
    o.record = running().record;
    let p = plan(SPEC, &o);
    assert_eq!((p.stop, p.create_record), (None, false));
}

#[test]
fn a_pause_stops_everything_else() {
    let mut c = cluster(SPEC);
    c.metadata.annotations = Some([(names::ANNOTATION_PAUSED.to_owned(), "true".to_owned())].into());
    let mut o = nothing(Version::V17);
    o.live.services.insert("orders".into(), service("orders", None, None));
    assert_eq!(decide(&valid(&c).unwrap(), &o, true).stop, Some(Stop::Paused));
}

#[test]
fn objects_that_go_are_waited_for() {
    let mut service = service("orders", Some("orders"), None).as_ref().clone();
    service.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(crate::cluster::testing::now()));
    let mut o = nothing(Version::V17);
    o.live.services.insert("orders".into(), Arc::new(service));
    assert_eq!(plan(SPEC, &o).stop, Some(Stop::Terminating(vec!["Service orders".into()])));
}

fn with_set(mut o: Observed, replicas: i32, storage: &str, image: &str) -> Observed {
    let set = json!({
        "metadata": {"name": "orders-17", "labels": {"database.example.com/cluster": "orders"}},
        "spec": {
            "replicas": replicas, "serviceName": "orders-pods", "selector": {},
            "template": {"spec": {"containers": [{"name": "postgres", "image": image}]}},
            "volumeClaimTemplates": [{"spec": {"resources": {"requests": {"storage": storage}}}}],
        },
    });
    o.live.stateful_sets.insert("orders-17".into(), Arc::new(serde_json::from_value(set).unwrap()));
    o
}

#[test]
fn the_primary_is_never_scaled_away() {
    let mut o = with_set(running(), 3, "10Gi", "x");
    let one = "{version: \"17\", storage: 10Gi, replicas: 1}";
    assert_eq!(plan(one, &o).replicas, 1, "the primary is number 0");
    o.record = Some(crate::cluster::testing::held(2));
    let p = plan(one, &o);
    assert_eq!((p.replicas, p.scale_down_waits_for.as_deref()), (3, Some("orders-17-2")));
    assert_eq!(plan("{version: \"17\", storage: 10Gi, replicas: 5}", &o).replicas, 5);
}

#[test]
fn another_major_version_changes_nothing_but_says_so() {
    let o = with_set(running(), 3, "10Gi", "mirror/postgres:17.2");
    let p = plan("{version: \"18\", storage: 10Gi, image: \"mirror/postgres:18\"}", &o);
    assert_eq!((p.upgrade_to, p.image.as_str()), (Some(Version::V18), "mirror/postgres:17.2"));
    // The StatefulSet is gone: the default image of the version of the data.
    assert_eq!(plan("{version: \"18\", storage: 10Gi}", &running()).image, "library/postgres:17");
    assert_eq!(plan("{version: \"17\", storage: 10Gi, image: \"y\"}", &o).image, "y");
}

#[test]
fn volumes_grow() {
    let mut o = with_set(running(), 3, "10Gi", "x");
    let claim = |name: &str, size: &str| {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name}, "spec": {"resources": {"requests": {"storage": size}}},
            }))
            .unwrap(),
        )
    };
    o.claims = vec![claim("data-orders-17-0", "10Gi"), claim("data-orders-17-1", "20Gi")];
    let p = plan("{version: \"17\", storage: 20Gi}", &o);
    assert_eq!((p.recreate_stateful_set, p.grow), (true, vec!["data-orders-17-0".to_owned()]));
    let p = plan("{version: \"17\", storage: 10240Mi}", &o);
    assert_eq!((p.recreate_stateful_set, p.grow), (false, Vec::new()), "the same size in another unit");
}

#[test]
fn role_labels_follow_the_record() {
    let mut o = running();
    let p = plan(SPEC, &o);
    let all: Vec<_> = p.relabel.values().copied().collect();
    assert_eq!(all, [Some("primary"), Some("replica"), Some("replica")]);

    // The record has another holder: whoever else calls himself primary gets no label.
    o.record = Some(crate::cluster::testing::held(1));
    assert_eq!(plan(SPEC, &o).relabel.get("orders-17-0"), None, "no label is there and none is wanted");
    o.reports.insert("orders-17-1".into(), report(pgwarden_proto::v1::Role::Primary, true));
    assert_eq!(plan(SPEC, &o).relabel["orders-17-1"], Some("primary"));

    // An agent that does not answer keeps its label, unless another has become the primary.
    let labelled = |ordinal: u32, role: &str| {
        let mut pod = crate::cluster::testing::pod(ordinal, "n", true).as_ref().clone();
        pod.metadata.labels.get_or_insert_default().insert(names::LABEL_ROLE.into(), role.into());
        Arc::new(pod)
    };
    let mut o = running();
    o.reports.clear();
    o.pods = vec![labelled(0, "primary"), labelled(1, "replica")];
    assert_eq!(plan(SPEC, &o).relabel, BTreeMap::new());
    o.record = Some(crate::cluster::testing::held(1));
    assert_eq!(plan(SPEC, &o).relabel["orders-17-0"], None);
}

#[test]
fn what_is_not_wanted_any_more_goes() {
    let mut o = nothing(Version::V17);
    o.live.budgets.insert("orders".into(), Arc::default());
    o.live.cron_jobs.insert("orders-backup".into(), Arc::default());
    o.live.policies.insert("orders".into(), Arc::default());
    let v = valid(&cluster("{version: \"17\", storage: 1Gi, replicas: 1}")).unwrap();
    let remove = decide(&v, &o, false).remove;
    assert_eq!(
        remove,
        [
            Unwanted::Budget("orders".into()),
            Unwanted::CronJob("orders-backup".into()),
            Unwanted::Policy("orders".into())
        ]
    );
    let backed = "{version: \"17\", storage: 1Gi, backup: {schedule: \"0 2 * * *\"}}";
    assert_eq!(plan(backed, &o).remove, []);
}
