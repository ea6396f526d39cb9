//! The CRD in a real API server: only that one checks what its rules could cost, and compiles them as they will run. It admits
//! the samples and every case of `common/cases.rs`, and says what the offline tests say.
//!
//! `PGWARDEN_KUBECONFIG=FILE cargo test -p pgwarden-api --test real_apiserver -- --ignored`
//!
//! The CRD is made under a group of its own and removed at the end: objects and operator of that cluster stay untouched.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of a test")]

mod common;

use common::{base, cases, patched, samples};
use http::{Method, Request};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, PostParams},
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::wait::{await_condition, conditions},
};
use pgwarden_api::crd;
use serde_json::{Value, json};

#[tokio::test]
#[ignore = "needs PGWARDEN_KUBECONFIG, a cluster's kubeconfig"]
async fn a_real_api_server_takes_the_crd_and_says_what_the_offline_tests_say() {
    let server = Server::connect().await;
    let failures = server.run().await;
    server.remove().await;
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

struct Server {
    client: Client,
    group: String,
}

struct Answer {
    code: u16,
    warnings: Vec<String>,
    body: Value,
}

impl Answer {
    fn text(&self) -> String {
        self.body["message"].as_str().unwrap_or_default().to_owned()
    }
}

impl Server {
    async fn connect() -> Self {
        // Another test of this process may have installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let file = std::env::var("PGWARDEN_KUBECONFIG").expect("PGWARDEN_KUBECONFIG");
        let kubeconfig = Kubeconfig::read_from(file).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        let group = format!("test{}.database.example.com", std::process::id());
        Self { client: Client::try_from(config).unwrap(), group }
    }

    fn crds(&self) -> Api<CustomResourceDefinition> {
        Api::all(self.client.clone())
    }

    fn crd_name(&self) -> String {
        format!("postgresqls.{}", self.group)
    }

    async fn remove(&self) {
        self.crds().delete(&self.crd_name(), &DeleteParams::default()).await.unwrap();
    }

    async fn run(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let mut crd = crd::postgresql().unwrap();
        crd.metadata.name = Some(self.crd_name());
        crd.spec.group.clone_from(&self.group);
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        let answer = self.send(Method::POST, path, &serde_json::to_value(&crd).unwrap()).await;
        assert_eq!(answer.code, 201, "{}", answer.text());
        failures.extend(answer.warnings.iter().map(|w| format!("the CRD is warned about: {w}")));
        await_condition(self.crds(), &self.crd_name(), conditions::is_crd_established()).await.unwrap();

        let mut record = crd::record().unwrap();
        record.metadata.name = Some(format!("postgresqlrecords.{}", self.group));
        record.spec.group.clone_from(&self.group);
        if let Err(e) =
            self.crds().create(&PostParams { dry_run: true, ..PostParams::default() }, &record).await
        {
            failures.push(format!("the record's CRD is refused: {e}"));
        }

        for (name, sample) in samples() {
            let answer = self.create(&sample, true).await;
            if answer.code != 201 || !answer.warnings.is_empty() {
                failures.push(format!("{name}: {} {:?}", answer.text(), answer.warnings));
            }
        }
        for case in cases::all() {
            if let Some(failure) = self.judge(case).await {
                failures.push(failure);
            }
        }
        failures.extend(self.scale().await);
        failures
    }

    /// What is wrong with the server's answer to a case.
    async fn judge(&self, case: &cases::Case) -> Option<String> {
        let answer = match case.old {
            None => self.create(&patched(&base(), case.new), true).await,
            Some(old) => {
                let old = self.existing(&patched(&base(), old)).await;
                // As kubectl does: the new manifest on top of what the server holds.
                let answer = self.replace(&patched(&old, case.new)).await;
                self.delete(&old).await;
                answer
            }
        };
        let text = answer.text();
        let right = if case.says.is_empty() {
            answer.code < 300
        } else {
            answer.code >= 400 && case.says.iter().all(|s| text.contains(s))
        };
        (!right).then(|| {
            format!("{:?} -> {}: wanted {:?}, got {} {text}", case.old, case.new, case.says, answer.code)
        })
    }

    /// `kubectl scale` goes past the manifest, but not past the schema.
    async fn scale(&self) -> Option<String> {
        let object = self.existing(&base()).await;
        let path = format!("{}/base/scale", self.path());
        let mut scale = self.send(Method::GET, &path, &Value::Null).await.body;
        let found = scale["spec"]["replicas"].clone();
        scale["spec"]["replicas"] = json!(10);
        let answer = self.send(Method::PUT, &path, &scale).await;
        self.delete(&object).await;
        let right = found == json!(3) && answer.text().contains("should be less than or equal to 9");
        (!right).then(|| format!("scale: found {found}, 10 gives {} {}", answer.code, answer.text()))
    }

    /// The object as the server holds it, with its status.
    async fn existing(&self, object: &Value) -> Value {
        let answer = self.create(object, false).await;
        assert_eq!(answer.code, 201, "{}", answer.text());
        let mut found = answer.body;
        if !object["status"].is_null() {
            found["status"] = object["status"].clone();
            let path = format!("{}/{}/status", self.path(), name(object));
            let answer = self.send(Method::PUT, &path, &found).await;
            assert_eq!(answer.code, 200, "{}", answer.text());
            found = answer.body;
        }
        found
    }

    fn path(&self) -> String {
        format!("/apis/{}/v1/namespaces/default/postgresqls", self.group)
    }

    async fn create(&self, object: &Value, dry_run: bool) -> Answer {
        let mut object = object.clone();
        object["apiVersion"] = json!(format!("{}/v1", self.group));
        let dry_run = if dry_run { "&dryRun=All" } else { "" };
        self.send(Method::POST, &format!("{}?fieldValidation=Strict{dry_run}", self.path()), &object).await
    }

    async fn replace(&self, object: &Value) -> Answer {
        let path = format!("{}/{}?fieldValidation=Strict&dryRun=All", self.path(), name(object));
        self.send(Method::PUT, &path, object).await
    }

    async fn delete(&self, object: &Value) {
        let answer =
            self.send(Method::DELETE, &format!("{}/{}", self.path(), name(object)), &json!({})).await;
        assert_eq!(answer.code, 200, "{}", answer.text());
    }

    async fn send(&self, method: Method, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).unwrap() };
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let response = self.client.send(request.body(Body::from(body)).unwrap()).await.unwrap();
        let warnings = response.headers().get_all("warning").iter();
        let warnings = warnings.map(|w| String::from_utf8_lossy(w.as_bytes()).into_owned()).collect();
        let code = response.status().as_u16();
        let bytes = response.into_body().collect_bytes().await.unwrap();
        Answer { code, warnings, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) }
    }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}
