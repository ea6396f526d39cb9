use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodTemplateSpec};
use pgwarden_api::pod;
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::cluster::testing::{app_secret, build_with, built, certificates, cluster, nothing, valid};

const SPEC: &str = "{version: \"17\", storage: 10Gi}";

fn pod_spec(resources: &Resources<Prepared>) -> &k8s_openapi::api::core::v1::PodSpec {
    resources.stateful_set.spec.as_ref().unwrap().template.spec.as_ref().unwrap()
}

fn container<'a>(resources: &'a Resources<Prepared>, name: &str) -> &'a Container {
    let spec = pod_spec(resources);
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name).unwrap()
}

/// Every object as JSON, with its kind.
fn all(resources: &Resources<Prepared>) -> Vec<Value> {
    fn v(object: &impl serde::Serialize) -> Value {
        serde_json::to_value(object).unwrap()
    }
    let Resources {
        account,
        role,
        role_binding,
        config_map,
        certificates,
        app_secret,
        services,
        slices,
        network_policy,
        budget,
        cron_job,
        stateful_set,
        state: PhantomData,
    } = resources;
    let mut all = vec![v(account), v(role), v(role_binding), v(config_map), v(stateful_set)];
    all.extend(certificates.iter().map(v));
    all.extend(app_secret.iter().map(v));
    all.extend(services.iter().map(v));
    all.extend(slices.iter().map(v));
    all.extend(network_policy.iter().map(v));
    all.extend(budget.iter().map(v));
    all.extend(cron_job.iter().map(v));
    all
}

/// The `restricted` Pod Security profile, and a read-only root.
fn check_restricted(template: &PodTemplateSpec) {
    let spec = template.spec.as_ref().unwrap();
    assert_eq!(
        (spec.host_network, spec.host_pid, spec.host_ipc, spec.share_process_namespace),
        (None, None, None, None)
    );
    let security = spec.security_context.as_ref().unwrap();
    assert_eq!(security.run_as_non_root, Some(true));
    assert_eq!(security.seccomp_profile.as_ref().unwrap().type_, "RuntimeDefault");
    for c in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let security = c.security_context.as_ref().unwrap();
        assert_eq!(security.allow_privilege_escalation, Some(false), "{}", c.name);
        assert_eq!(security.read_only_root_filesystem, Some(true), "{}", c.name);
        assert_eq!(security.privileged, None, "{}", c.name);
        let capabilities = security.capabilities.as_ref().unwrap();
        assert_eq!((capabilities.drop.as_deref(), &capabilities.add), (Some(&["ALL".to_owned()][..]), &None));
        assert!(c.ports.iter().flatten().all(|p| p.host_port.is_none()));
    }
    for volume in spec.volumes.iter().flatten() {
        let kinds = [
            volume.config_map.is_some(),
            volume.empty_dir.is_some(),
            volume.secret.is_some(),
            volume.projected.is_some(),
        ];
        assert!(kinds.contains(&true), "{} is of a kind that is not allowed", volume.name);
    }
    assert_eq!(spec.automount_service_account_token, Some(false));
}

#[test]
fn the_promised_objects_exist() {
    let (_, _, r) =
        built("{version: \"17\", storage: 100Gi, backup: {schedule: \"0 2 * * *\", timeZone: Etc/UTC}}");
    let set = r.stateful_set.spec.as_ref().unwrap();
    assert_eq!(r.stateful_set.metadata.name.as_deref(), Some("orders-17"));
    assert_eq!((set.replicas, set.service_name.as_deref()), (Some(3), Some("orders-pods")));
    assert_eq!(set.pod_management_policy.as_deref(), Some("Parallel"));
    assert_eq!(set.update_strategy.as_ref().unwrap().type_.as_deref(), Some("OnDelete"));
    assert_eq!(crate::cluster::decide::template_storage(&r.stateful_set).as_deref(), Some("100Gi"));
    let names: Vec<_> = r.services.iter().map(|s| s.metadata.name.clone().unwrap()).collect();
    assert_eq!(names, ["orders", "orders-ro", "orders-pods"]);
    assert!(r.services[0].spec.as_ref().unwrap().selector.is_none(), "the holder writes the endpoints");
    assert_eq!(r.services[2].spec.as_ref().unwrap().publish_not_ready_addresses, Some(true));
    let job = r.cron_job.as_ref().unwrap().spec.as_ref().unwrap();
    assert_eq!((job.schedule.as_str(), job.suspend), ("0 2 * * *", Some(true)));
    assert_eq!(r.config_map.data.as_ref().unwrap().len(), 4);
    assert_eq!(r.certificates.len(), 6);
}

#[test]
fn a_budget_from_two_instances_on() {
    assert!(built("{version: \"17\", storage: 1Gi, replicas: 1}").2.budget.is_none());
    let (_, _, r) = built("{version: \"17\", storage: 1Gi, replicas: 2}");
    let budget = r.budget.unwrap().spec.unwrap();
    assert_eq!(budget.unhealthy_pod_eviction_policy.as_deref(), Some("AlwaysAllow"));
}

#[test]
fn the_token_and_the_keys_are_in_the_agent_alone() {
    let (_, _, r) = built(SPEC);
    let mounts = |name: &str| -> BTreeSet<String> {
        container(&r, name).volume_mounts.iter().flatten().map(|m| m.mount_path.clone()).collect()
    };
    for path in
        ["/var/run/secrets/kubernetes.io/serviceaccount", pod::CERT_DIR, pod::APP_SECRET_DIR, pod::CONFIG_DIR]
    {
        assert!(mounts("agent").contains(path), "{path}");
        assert!(!mounts("postgres").contains(path) && !mounts("install").contains(path), "{path}");
    }
    for path in [pod::DATA_MOUNT, pod::CONTROL_DIR, pod::SOCKET_DIR, pod::TLS_DIR] {
        assert!(mounts("agent").contains(path) && mounts("postgres").contains(path), "{path}");
    }
    assert!(
        ["/etc/passwd", "/etc/group", "/dev/shm", "/tmp"].iter().all(|p| mounts("postgres").contains(*p))
    );
}

#[test]
fn what_the_design_fixes_of_the_pod() {
    let (_, _, r) = built(SPEC);
    let spec = pod_spec(&r);
    assert_eq!(spec.termination_grace_period_seconds, Some(60));
    let order: Vec<_> = spec.init_containers.iter().flatten().map(|c| c.name.as_str()).collect();
    assert_eq!(order, ["install", "agent"]);
    assert_eq!(container(&r, "agent").restart_policy.as_deref(), Some("Always"));
    assert_eq!(container(&r, "install").restart_policy, None);
    let postgres = container(&r, "postgres");
    assert_eq!(postgres.image.as_deref(), Some("library/postgres:17"));
    assert_eq!(postgres.command.as_ref().unwrap()[0], pod::SUPERVISOR);
    let liveness = postgres.liveness_probe.as_ref().unwrap();
    assert_eq!(liveness.termination_grace_period_seconds, Some(1));
    for c in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        for probe in [&c.liveness_probe, &c.readiness_probe, &c.startup_probe].into_iter().flatten() {
            assert!(probe.exec.is_none() && probe.http_get.is_some(), "{}: probes are never exec", c.name);
        }
    }
    let agent_limits = container(&r, "agent").resources.as_ref().unwrap().limits.as_ref().unwrap();
    assert!(!agent_limits.contains_key("cpu"), "throttling could cost the lease");
    let security = spec.security_context.as_ref().unwrap();
    assert_eq!((security.run_as_user, security.fs_group), (Some(999), Some(999)));
}

#[test]
fn the_users_affinity_replaces_the_spread() {
    let (_, _, r) = built(SPEC);
    assert_eq!(pod_spec(&r).topology_spread_constraints.as_ref().unwrap().len(), 2);
    let preferred = pod_spec(&r).affinity.as_ref().unwrap().pod_anti_affinity.as_ref().unwrap();
    assert!(preferred.required_during_scheduling_ignored_during_execution.is_none(), "too few nodes must do");
    let (_, _, r) = built("{version: \"17\", storage: 1Gi, affinity: {nodeAffinity: {}}}");
    assert!(pod_spec(&r).topology_spread_constraints.is_none());
    assert!(pod_spec(&r).affinity.as_ref().unwrap().pod_anti_affinity.is_none());
}

#[test]
fn an_agent_may_touch_one_record_two_slices_and_events() {
    let (_, _, r) = built(SPEC);
    let mut lines: Vec<String> = r
        .role
        .rules
        .unwrap()
        .into_iter()
        .map(|rule| {
            let join = |list: Option<Vec<String>>| list.unwrap_or_default().join(",");
            format!(
                "{}/{} {} [{}]",
                join(rule.api_groups),
                join(rule.resources),
                rule.verbs.join(","),
                join(rule.resource_names)
            )
        })
        .collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            "/events create []",
            "database.example.com/postgresqlrecords get,list,watch,update [orders]",
            "discovery.k8s.io/endpointslices get,list,watch,update [orders,orders-ro]",
            "events.k8s.io/events create []",
        ]
    );
}

#[test]
fn the_operator_holds_every_right_that_it_grants() {
    let (_, _, r) = built(SPEC);
    for reach in [crate::manifests::Reach::Cluster, crate::manifests::Reach::Namespace] {
        let own = crate::manifests::rules(reach);
        for rule in r.role.rules.iter().flatten() {
            for (group, resource, verb) in rule
                .api_groups
                .iter()
                .flatten()
                .flat_map(|g| rule.resources.iter().flatten().map(move |r| (g, r)))
                .flat_map(|(g, r)| rule.verbs.iter().map(move |v| (g, r, v)))
            {
                let held = own.iter().any(|o| {
                    o.api_groups.iter().flatten().any(|g| g == group)
                        && o.resources.iter().flatten().any(|r| r == resource)
                        && o.verbs.contains(verb)
                });
                assert!(held, "{verb} {group}/{resource}");
            }
        }
    }
}

#[test]
fn only_the_sidecars_image_needs_no_restart() {
    let hash = |spec: &str, agent: &str| {
        let c = cluster(spec);
        let v = valid(&c).unwrap();
        let plan = crate::cluster::decide::decide(&v, &nothing(c.spec.version), true);
        let mut settings = crate::cluster::testing::settings();
        settings.agent_image = agent.into();
        let set = stateful_set::stateful_set(&v, &plan, &settings);
        set.metadata.annotations.unwrap()[names::ANNOTATION_POD_HASH].clone()
    };
    assert_eq!(hash(SPEC, "a:1"), hash(SPEC, "a:2"));
    assert_ne!(hash(SPEC, "a:1"), hash("{version: \"17\", storage: 10Gi, image: \"x\"}", "a:1"));
}

#[test]
fn keys_of_the_users_secret_stay_his() {
    let (v, _, _) = built(SPEC);
    let certificates = certificates();
    let made = |data: &[(&str, &str)]| {
        let app = app_secret(data);
        (app.problem.clone(), secret::app_secret(&v, &app, &certificates).unwrap())
    };
    let (problem, patch) = made(&[("username", "b@b"), ("password", "p/w"), ("host", "proxy.example.com")]);
    assert_eq!(problem, None);
    let keys: Vec<_> = patch.data.as_ref().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["ca.crt", "dbname", "port", "uri"], "host is the user's own");
    let uri = String::from_utf8(patch.data.unwrap()["uri"].0.clone()).unwrap();
    assert_eq!(uri, "postgresql://b%40b:p%2Fw@orders.shop.svc:5432/app?sslmode=require");
    assert_eq!(patch.metadata.labels.unwrap().len(), 1, "only the label by which it is watched");

    let (problem, patch) = made(&[("username", "bob")]);
    assert!(problem.unwrap().contains("has no key \"password\""));
    assert_eq!(patch.data, None);
    for name in ["postgres", "pg_x", "pgwarden_replication"] {
        assert!(made(&[("username", name), ("password", "x")]).0.unwrap().contains(name));
    }
}

#[test]
fn settings_reach_the_config_map_with_their_hash() {
    let (v, _, r) = built(
        "{version: \"17\", storage: 10Gi, parameters: {work_mem: 7MB}, hba: [\"hostssl a b all cert\"]}",
    );
    let data = r.config_map.data.unwrap();
    assert!(data["postgresql.conf"].contains("work_mem = '7MB'"));
    assert_eq!(data["pg_hba.extra.conf"], "hostssl a b all cert\n");
    let agent: pgwarden_api::config::AgentConfig = serde_json::from_str(&data["agent.json"]).unwrap();
    assert_eq!((agent.generation, agent.replicas, agent.app_database.as_str()), (v.generation, 3, "app"));
    let others = data.iter().map(|(n, t)| (n.as_str(), t.as_str()));
    assert_eq!(data["hash"], pgwarden_api::config::hash(others));
}

/// Any manifest that the validation lets pass.
fn specs() -> impl Strategy<Value = (String, Value)> {
    let name = "[a-z]([-a-z0-9]{0,38}[a-z0-9])?";
    let memory = prop::option::of(prop::sample::select(vec!["256Mi", "1Gi", "8Gi", "1.5Ti"]));
    let service = prop::sample::select(vec!["ClusterIP", "LoadBalancer", "NodePort"]);
    (
        name,
        11_u32..=18,
        1_i32..=9,
        "[1-9][0-9]{0,3}(Gi|G|Ti)",
        memory,
        any::<bool>(),
        service,
        "[a-z_]{1,8}",
        ".{0,20}",
    )
        .prop_map(|(name, version, replicas, storage, memory, backup, service, parameter, value)| {
            let mut spec = serde_json::json!({
                "version": version.to_string(), "replicas": replicas, "storage": storage,
                "service": {"type": service, "annotations": {"a/b": value}},
                "parameters": {format!("x.{parameter}"): value.replace('\0', "")},
            });
            if let Some(memory) = memory {
                spec["resources"] = serde_json::json!({"limits": {"memory": memory}});
            }
            if backup {
                spec["backup"] = serde_json::json!({"schedule": "0 2 * * *"});
            }
            (name, spec)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn whatever_is_valid_builds_objects_that_kubernetes_takes((name, spec) in specs()) {
        thread_local! { static CERTIFICATES: crate::tls::Certificates = certificates(); }
        let mut c = cluster(SPEC);
        c.spec = serde_json::from_value(spec).unwrap();
        c.metadata.name = Some(name.clone());
        let v = valid(&c).unwrap();
        let plan = crate::cluster::decide::decide(&v, &nothing(c.spec.version), true);
        let r = CERTIFICATES.with(|certificates| build_with(&v, &plan, certificates));

        check_restricted(&r.stateful_set.spec.as_ref().unwrap().template);
        if let Some(job) = &r.cron_job {
            check_restricted(&job.spec.as_ref().unwrap().job_template.spec.as_ref().unwrap().template);
        }
        let mut seen = BTreeSet::new();
        for object in all(&r) {
            let kind = object["kind"].as_str().unwrap().to_owned();
            let meta = &object["metadata"];
            let found = meta["name"].as_str().unwrap().to_owned();
            prop_assert!(seen.insert((kind.clone(), found.clone())), "{kind} {found} twice");
            // StatefulSets and CronJobs: 52, so that their pods' names and labels fit in 63.
            let longest = if ["StatefulSet", "CronJob"].contains(&kind.as_str()) { 52 } else { 63 };
            prop_assert!(found.len() <= longest, "{kind} {found}");
            prop_assert!(found.starts_with(&name));
            prop_assert_eq!(meta["namespace"].as_str(), Some("shop"));
            prop_assert_eq!(meta["labels"][names::LABEL_CLUSTER].as_str(), Some(name.as_str()));
            for (key, value) in meta["labels"].as_object().unwrap() {
                prop_assert!(value.as_str().unwrap().len() <= 63, "{key}");
            }
        }
        // Claims are named after the pods.
        let claim = format!("data-{name}-18-9");
        prop_assert!(claim.len() <= 63);
        // The file is one line a setting, whatever the values hold.
        let conf = &r.config_map.data.as_ref().unwrap()["postgresql.conf"];
        prop_assert!(conf.lines().all(|l| l.starts_with('#') || l.contains(" = '") && l.ends_with('\'')), "{conf}");
    }
}
