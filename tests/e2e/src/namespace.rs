//! A namespace for each test, under the `restricted` Pod Security profile, removed afterwards even when the test fails.

use std::{future::Future, path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Event, Namespace, Pod, Secret};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use pgwarden_api::{PostgreSQL, PostgreSQLRecord};
use tokio::sync::RwLock;

use crate::{Result, ctl, evidence, sql::Login, wait::until};

/// Tests that disturb the whole cluster (API server away, operator scaled down) run alone.
static CLUSTER: RwLock<()> = RwLock::const_new(());

/// What a test gets.
#[derive(Clone)]
pub struct Ctx {
    /// Client of the cluster under test.
    pub client: Client,
    /// This test's namespace.
    pub ns: String,
    /// Where evidence goes.
    pub dir: PathBuf,
}

/// Runs a test beside others.
pub async fn shared<F, Fut>(name: &str, body: F)
where
    F: FnOnce(Ctx) -> Fut,
    Fut: Future<Output = Result>,
{
    let _guard = CLUSTER.read().await;
    run(name, body).await;
}

/// Runs a test while no other runs.
pub async fn alone<F, Fut>(name: &str, body: F)
where
    F: FnOnce(Ctx) -> Fut,
    Fut: Future<Output = Result>,
{
    let _guard = CLUSTER.write().await;
    run(name, body).await;
}

async fn run<F, Fut>(name: &str, body: F)
where
    F: FnOnce(Ctx) -> Fut,
    Fut: Future<Output = Result>,
{
    let ctx = Ctx::create(name).await.expect("a namespace for the test");
    // A panic in the body must not leave the namespace behind.
    let outcome = futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(body(ctx.clone()))).await;
    let failed = !matches!(outcome, Ok(Ok(())));
    if failed {
        evidence::dump(&ctx).await;
    }
    if !(failed && std::env::var_os("PGWARDEN_KEEP").is_some()) {
        ctx.remove().await.expect("the test's namespace goes away");
    }
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(e)) => panic!("{name}: {e:#}\nevidence: {}", ctx.dir.display()),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A client of the cluster under test.
pub async fn client() -> Result<Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let path = ctl::kubeconfig();
    let kubeconfig = Kubeconfig::read_from(&path).with_context(|| format!("kubeconfig {}", path.display()))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

impl Ctx {
    /// Makes a namespace; [`Ctx::remove`] removes it.
    pub async fn create(name: &str) -> Result<Self> {
        let client = client().await?;
        // The process id keeps a repeated run apart from what a killed one left behind.
        let ns = format!("{}-{}", name.replace('_', "-"), std::process::id());
        let labels = [("pod-security.kubernetes.io/enforce", "restricted"), ("pgwarden-e2e", "true")];
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(ns.clone()),
                labels: Some(labels.map(|(k, v)| (k.into(), v.into())).into()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
        let dir = ctl::repo().join("target/e2e").join(&ns);
        Ok(Self { client, ns, dir })
    }

    /// Removes the namespace, its clusters and their data.
    pub async fn remove(&self) -> Result {
        // Clusters first, with their data: a namespace's deletion would take the objects that their own deletion needs.
        let clusters: Api<PostgreSQL> = self.api();
        for c in clusters.list(&ListParams::default()).await?.items {
            let _ = clusters.delete(&c.name_any(), &DeleteParams::default()).await;
        }
        until("clusters of the test are gone", Duration::from_secs(60), || async {
            Ok(clusters.list(&ListParams::default()).await?.items.is_empty().then_some(()))
        })
        .await?;
        Api::<Namespace>::all(self.client.clone()).delete(&self.ns, &DeleteParams::default()).await?;
        Ok(())
    }

    /// API of a namespaced kind in this test's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.ns)
    }

    /// `kubectl apply` of a manifest, the way a user does.
    pub async fn apply(&self, manifest: &str) -> Result<String> {
        let file = self.write("apply.yaml", manifest)?;
        ctl::kubectl(&["-n", &self.ns, "apply", "-f", &file]).await
    }

    /// Applies a manifest that must be refused; gives the API server's words.
    pub async fn refused(&self, manifest: &str) -> Result<String> {
        let file = self.write("refused.yaml", manifest)?;
        let out = ctl::kubectl_output(&["-n", &self.ns, "apply", "-f", &file]).await?;
        if out.status.success() {
            bail!("accepted, but should be refused:\n{manifest}");
        }
        Ok(String::from_utf8_lossy(&out.stderr).into_owned())
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        std::fs::create_dir_all(&self.dir)?;
        let path = self.dir.join(name);
        std::fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// kubectl in this test's namespace.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["-n", self.ns.as_str()];
        all.extend(args);
        ctl::kubectl(&all).await
    }

    /// Merge-patches an object of any kind that `kubectl` knows.
    pub async fn patch(&self, what: &str, patch: &serde_json::Value) -> Result<String> {
        self.kubectl(&["patch", what, "--type=merge", "-p", &patch.to_string()]).await
    }

    /// The cluster object.
    pub async fn cluster(&self, name: &str) -> Result<PostgreSQL> {
        Ok(self.api::<PostgreSQL>().get(name).await?)
    }

    /// The record.
    pub async fn record(&self, name: &str) -> Result<PostgreSQLRecord> {
        Ok(self.api::<PostgreSQLRecord>().get(name).await?)
    }

    /// Waits until the cluster reports `Ready` for its current generation, with all instances.
    pub async fn ready(&self, name: &str, limit: Duration) -> Result<PostgreSQL> {
        until(&format!("{name} is ready"), limit, || async {
            let c = self.cluster(name).await?;
            let Some(status) = &c.status else { bail!("no status yet") };
            let ready = status.observed_generation == c.metadata.generation
                && status.ready_replicas == c.spec.replicas
                && condition(&c, "Ready").is_some_and(|c| c.status == "True");
            if !ready {
                bail!("phase {:?}, ready {:?}, conditions {}", status.phase, status.ready, conditions(&c));
            }
            Ok(Some(c))
        })
        .await
    }

    /// Waits until a condition has a status and a reason.
    pub async fn condition(&self, name: &str, kind: &str, status: &str, reason: &str, limit: Duration) -> Result<String> {
        until(&format!("{name}: {kind}={status} {reason}"), limit, || async {
            let c = self.cluster(name).await?;
            let found = condition(&c, kind).filter(|x| x.status == status && x.reason == reason);
            match found {
                Some(x) => Ok(Some(x.message.clone())),
                None => bail!("conditions {}", conditions(&c)),
            }
        })
        .await
    }

    /// Waits for an event about the cluster with a reason; gives its message.
    pub async fn event(&self, reason: &str, limit: Duration) -> Result<String> {
        let api: Api<Event> = self.api();
        until(&format!("event {reason}"), limit, || async {
            let list = api.list(&ListParams::default().fields(&format!("reason={reason}"))).await?;
            Ok(list.items.into_iter().find_map(|e| e.message))
        })
        .await
    }

    /// Pods of a cluster, by name.
    pub async fn pods(&self, cluster: &str) -> Result<Vec<Pod>> {
        let labels = format!("{}={cluster}", pgwarden_api::names::LABEL_CLUSTER);
        let mut pods = self.api::<Pod>().list(&ListParams::default().labels(&labels)).await?.items;
        pods.sort_by_key(ResourceExt::name_any);
        Ok(pods)
    }

    /// What an application reads from the Secret `NAME-app`.
    pub async fn login(&self, cluster: &str) -> Result<Login> {
        let secret = self.api::<Secret>().get(&format!("{cluster}-app")).await?;
        Login::from_secret(&secret)
    }

    /// Server-side applies an object as some other person's tool would.
    pub async fn interfere(&self, api: &Api<DynamicObject>, name: &str, patch: serde_json::Value) -> Result {
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }
}

/// A condition of a cluster.
#[must_use]
pub fn condition<'a>(
    cluster: &'a PostgreSQL,
    kind: &str,
) -> Option<&'a k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
    cluster.status.as_ref()?.conditions.iter().find(|c| c.type_ == kind)
}

fn conditions(cluster: &PostgreSQL) -> String {
    let list = cluster.status.iter().flat_map(|s| &s.conditions);
    list.map(|c| format!("{}={} {} ({})", c.type_, c.status, c.reason, c.message)).collect::<Vec<_>>().join("; ")
}
