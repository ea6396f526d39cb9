//! The plugin against a real API server, which need not have anything else: what it prints, and what it says when it can't.
//!
//! `PGWARDEN_KUBECONFIG=FILE cargo test -p kubectl-pg --test real_apiserver -- --ignored`
//!
//! Its objects lie in a namespace of their own and carry the annotation that keeps an operator away. CRDs that are missing are
//! installed, and removed at the end.

#![expect(clippy::unwrap_used, reason = "helpers of a test")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use k8s_openapi::{
    api::{
        authentication::v1::TokenRequest,
        core::v1::{Event, Namespace, ServiceAccount},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::wait::{await_condition, conditions},
};
use pgwarden_api::{PostgreSQL, PostgreSQLRecord, crd};
use serde_json::{Value, json};

#[tokio::test]
#[ignore = "needs PGWARDEN_KUBECONFIG, a cluster's kubeconfig"]
async fn status_of_a_real_api_server() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = std::env::var("PGWARDEN_KUBECONFIG").expect("PGWARDEN_KUBECONFIG");
    let kubeconfig = Kubeconfig::read_from(&file).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let client = Client::try_from(config).unwrap();
    let namespace = format!("kubectl-pg-{}", std::process::id());
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(&namespace);
    std::fs::create_dir_all(&dir).unwrap();
    let plugin = Plugin { file: file.into(), namespace: namespace.clone() };

    let installed = install(&client, &plugin).await;
    let meta = json!({"metadata": {"name": namespace}});
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &typed(&meta)).await.unwrap();
    // A panic must not leave the CRDs behind.
    let result = tokio::spawn(check(client.clone(), plugin, dir.clone())).await;

    let clusters: Api<PostgreSQL> = Api::namespaced(client.clone(), &namespace);
    clusters.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    let records: Api<PostgreSQLRecord> = Api::namespaced(client.clone(), &namespace);
    records.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    Api::<Namespace>::all(client.clone()).delete(&namespace, &DeleteParams::default()).await.unwrap();
    let crds: Api<CustomResourceDefinition> = Api::all(client);
    for name in installed {
        crds.delete(&name, &DeleteParams::default()).await.unwrap();
    }
    std::fs::remove_dir_all(dir).unwrap();
    result.unwrap();
}

/// Installs the CRDs that are missing; before that, the plugin must say that they are.
async fn install(client: &Client, plugin: &Plugin) -> Vec<String> {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut installed = Vec::new();
    for crd in [crd::postgresql().unwrap(), crd::record().unwrap()] {
        let name = crd.name_any();
        if crds.get_opt(&name).await.unwrap().is_none() {
            if crd.spec.names.kind == "PostgreSQL" {
                for line in ["status", "status shop", "status -A"] {
                    plugin.fails(line, &["install the operator", "kubectl apply -f deploy/crds/"]);
                }
            }
            crds.create(&PostParams::default(), &crd).await.unwrap();
            await_condition(crds.clone(), &name, conditions::is_crd_established()).await.unwrap();
            installed.push(name);
        }
    }
    installed
}

async fn check(client: Client, plugin: Plugin, dir: PathBuf) {
    let namespace = plugin.namespace.clone();
    plugin.fails("status", &["there are no PostgreSQL clusters in namespace", "status -A"]);
    plugin.fails("status shop", &["there is no PostgreSQL cluster \"shop\"", "there are none"]);
    plugin.fails("status --context nowhere", &["failed to read the kubeconfig", "nowhere"]);

    make_cluster(&client, &namespace).await;
    for i in 0..12 {
        let event = typed(&json!({
            "metadata": {"name": format!("shop-17-0.{i}")},
            "involvedObject": {"kind": "Pod", "name": "shop-17-0", "namespace": namespace},
            "type": "Normal", "reason": format!("Reason{i}"), "message": "something happened",
            // After anything that the operator may tell.
            "lastTimestamp": format!("2126-11-22T10:00:{i:02}Z")
        }));
        Api::<Event>::namespaced(client.clone(), &namespace)
            .create(&PostParams::default(), &event)
            .await
            .unwrap();
    }

    let text = plugin.succeeds("status shop");
    for part in
        ["CLUSTER", "Running", "1/1", "shop-17-0", "7431", "CONDITIONS", "Serving", "Reason11", "EPOCH"]
    {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert!(!text.contains("Reason1 ") && !text.contains('\x1b'), "{text}");
    let report: Value = serde_json::from_str(&plugin.succeeds("status shop -o json")).unwrap();
    assert_eq!(report["record"]["epoch"], 3, "{report:#}");
    assert_eq!(report["members"][0]["role"], "primary");
    assert_eq!(report["events"].as_array().unwrap().len(), 10);
    assert_eq!(report["events"][9]["reason"], "Reason11");
    let list: Value = serde_json::from_str(&plugin.succeeds("status -o json")).unwrap();
    assert_eq!(list["clusters"][0]["name"], "shop");
    assert!(plugin.succeeds("status").contains("shop"));
    assert!(plugin.everywhere("status -A").contains(&namespace));
    plugin.fails("status shpo", &["did you mean shop?"]);

    let nobody = nobody(&client, &plugin, &dir).await;
    nobody.fails("status shop", &["you may not read this PostgreSQL cluster", "cannot get resource"]);
    nobody.fails("status", &["you may not list PostgreSQL clusters"]);
    let mut away = Kubeconfig::read_from(&plugin.file).unwrap();
    for cluster in &mut away.clusters {
        cluster.cluster.as_mut().unwrap().server = Some("https://127.0.0.1:1".into());
    }
    let away = plugin.with(&away, &dir.join("away"));
    away.fails("status shop", &["failed to reach the API server https://127.0.0.1:1", "refused"]);
}

async fn make_cluster(client: &Client, namespace: &str) {
    let clusters: Api<PostgreSQL> = Api::namespaced(client.clone(), namespace);
    let cluster = typed(&json!({
        "metadata": {"name": "shop", "annotations": {"database.example.com/paused": "true"}},
        "spec": {"version": "17", "replicas": 1, "storage": "1Gi"}
    }));
    clusters.create(&PostParams::default(), &cluster).await.unwrap();
    let status = json!({"status": {
        "observedGeneration": 1, "phase": "Running", "ready": "1/1", "readyReplicas": 1, "replicas": 1, "primary": "shop-17-0",
        "systemIdentifier": "7431",
        "members": [{"name": "shop-17-0", "role": "primary", "state": "Primary", "ready": true, "timeline": 1}],
        "conditions": [{"type": "Ready", "status": "True", "reason": "Serving", "message": "clients can write",
                        "lastTransitionTime": "2026-11-22T10:00:00Z"}]
    }});
    clusters.patch_status("shop", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    let record = typed(&json!({
        "metadata": {"name": "shop"},
        "spec": {"epoch": 3, "state": "Held", "timeline": 1, "holder": {"pod": "shop-17-0"}}
    }));
    let records: Api<PostgreSQLRecord> = Api::namespaced(client.clone(), namespace);
    records.create(&PostParams::default(), &record).await.unwrap();
}

/// The plugin as somebody who may do nothing.
async fn nobody(client: &Client, plugin: &Plugin, dir: &Path) -> Plugin {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &plugin.namespace);
    let account = typed(&json!({"metadata": {"name": "nobody"}}));
    accounts.create(&PostParams::default(), &account).await.unwrap();
    let request: TokenRequest = typed(&json!({"metadata": {}, "spec": {"audiences": []}}));
    let token = accounts.create_token_request("nobody", &PostParams::default(), &request).await.unwrap();
    let mut kubeconfig = serde_json::to_value(Kubeconfig::read_from(&plugin.file).unwrap()).unwrap();
    for user in kubeconfig["users"].as_array_mut().unwrap() {
        user["user"] = json!({"token": token.status.as_ref().unwrap().token});
    }
    plugin.with(&serde_json::from_value(kubeconfig).unwrap(), &dir.join("nobody"))
}

fn typed<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

/// The program, as it is installed.
struct Plugin {
    file: PathBuf,
    namespace: String,
}

impl Plugin {
    fn with(&self, kubeconfig: &Kubeconfig, file: &Path) -> Self {
        std::fs::write(file, serde_saphyr::to_string(kubeconfig).unwrap()).unwrap();
        Self { file: file.to_owned(), namespace: self.namespace.clone() }
    }

    fn run(&self, line: &str, namespace: bool) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-pg"));
        command.args(line.split(' ')).arg("--kubeconfig").arg(&self.file);
        if namespace {
            command.args(["-n", &self.namespace]);
        }
        command.output().unwrap()
    }

    fn succeeds(&self, line: &str) -> String {
        Self::text(line, &self.run(line, true))
    }

    fn everywhere(&self, line: &str) -> String {
        Self::text(line, &self.run(line, false))
    }

    fn text(line: &str, output: &Output) -> String {
        assert_eq!(output.status.code(), Some(0), "{line}: {output:?}");
        String::from_utf8(output.stdout.clone()).unwrap()
    }

    fn fails(&self, line: &str, says: &[&str]) {
        let output = self.run(line, !line.contains("-A"));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{line}: {text}");
        assert!(output.stdout.is_empty(), "{line}");
        for part in says {
            assert!(text.starts_with("Error: ") && text.contains(part), "{line}: {part:?} in {text}");
        }
    }
}
