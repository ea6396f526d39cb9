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

/// Label of every namespace that a test makes: its first one.
const OWNER: &str = "pgwarden-e2e";

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
pub async fn shared<F, Fut>(name: &str, body: F) -> Result
where
    F: FnOnce(Ctx) -> Fut,
    Fut: Future<Output = Result>,
{
    let _guard = CLUSTER.read().await;
    run(name, body).await
}

/// Runs a test while no other runs.
pub async fn alone<F, Fut>(name: &str, body: F) -> Result
where
    F: FnOnce(Ctx) -> Fut,
    Fut: Future<Output = Result>,
{
    let _guard = CLUSTER.write().await;
    run(name, body).await
}

/// Held while a test runs that can run beside others.
pub(crate) async fn beside_others() -> tokio::sync::RwLockReadGuard<'static, ()> {
    CLUSTER.read().await
}

async fn run<F, Fut>(name: &str, body: F) -> Result
where
    F: FnOnce(Ctx) -> Fut,
    Fut: Future<Output = Result>,
{
    let ctx = Ctx::create(name).await.context("a namespace for the test")?;
    let started = std::time::Instant::now();
    // A panic in the body must not leave the namespace behind.
    let outcome = futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(body(ctx.clone()))).await;
    let failed = !matches!(outcome, Ok(Ok(())));
    evidence::note(name, !failed, started.elapsed());
    if failed {
        evidence::dump(&ctx).await;
    }
    if !(failed && std::env::var_os("PGWARDEN_KEEP").is_some()) {
        let removed = ctx.remove().await.context("the test's namespace goes away");
        if !failed {
            removed?;
        }
    }
    match outcome {
        Ok(result) => result.with_context(|| format!("{name}; evidence: {}", ctx.dir.display())),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A client of the cluster under test.
pub async fn client() -> Result<Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let path = ctl::kubeconfig();
    let kubeconfig =
        Kubeconfig::read_from(&path).with_context(|| format!("kubeconfig {}", path.display()))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

impl Ctx {
    /// Makes a namespace; [`Ctx::remove`] removes it.
    pub async fn create(name: &str) -> Result<Self> {
        let ctx = Self::open(&name.replace('_', "-"), "").await?;
        ctx.create_namespace(&ctx.ns).await?;
        Ok(ctx)
    }

    /// A client for a namespace of this process, which may exist or not; evidence goes into a directory `part` of its own.
    pub async fn open(name: &str, part: &str) -> Result<Self> {
        // The process id keeps a repeated run apart from what a killed one left behind.
        let ns = format!("{name}-{}", std::process::id());
        let dir = ctl::repo().join("target/e2e").join(&ns).join(part);
        Ok(Self { client: client().await?, ns, dir })
    }

    /// A second namespace for the same test; it goes away with the first.
    pub async fn sibling(&self, name: &str) -> Result<Self> {
        let other =
            Self { client: self.client.clone(), ns: format!("{}-{name}", self.ns), dir: self.dir.join(name) };
        other.create_namespace(&self.ns).await?;
        Ok(other)
    }

    /// Makes the namespace, which enforces the `restricted` profile.
    pub(crate) async fn create_namespace(&self, owner: &str) -> Result {
        let labels = [("pod-security.kubernetes.io/enforce", "restricted"), (OWNER, owner)];
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(self.ns.clone()),
                labels: Some(labels.map(|(k, v)| (k.into(), v.into())).into()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        Api::all(self.client.clone()).create(&PostParams::default(), &namespace).await?;
        Ok(())
    }

    /// Removes the namespace and its siblings, their clusters and their data.
    pub async fn remove(&self) -> Result {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        for ns in namespaces.list(&ListParams::default().labels(&format!("{OWNER}={}", self.ns))).await?.items
        {
            // Clusters first, with their data: a namespace's deletion would take the objects that their own deletion needs.
            let clusters: Api<PostgreSQL> = Api::namespaced(self.client.clone(), &ns.name_any());
            for c in clusters.list(&ListParams::default()).await?.items {
                let _ = clusters.delete(&c.name_any(), &DeleteParams::default()).await;
            }
            until("clusters of the test are gone", Duration::from_secs(60), || async {
                Ok(clusters.list(&ListParams::default()).await?.items.is_empty().then_some(()))
            })
            .await?;
            namespaces.delete(&ns.name_any(), &DeleteParams::default()).await?;
        }
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
        self.refused_by("apply", manifest).await
    }

    /// The same with another verb of kubectl's, `create` or `apply`.
    pub async fn refused_by(&self, verb: &str, manifest: &str) -> Result<String> {
        let file = self.write("refused.yaml", manifest)?;
        let out = ctl::kubectl_output(&["-n", &self.ns, verb, "-f", &file]).await?;
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

    /// An object of any kind that `kubectl` knows.
    pub async fn get(&self, kind: &str, name: &str) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.kubectl(&["get", kind, name, "-o", "json"]).await?)?)
    }

    /// All objects of a kind that belong to a cluster; of the whole namespace if `cluster` is empty.
    pub async fn list(&self, kind: &str, cluster: &str) -> Result<Vec<serde_json::Value>> {
        let selector = format!("{}={cluster}", pgwarden_api::names::LABEL_CLUSTER);
        let mut args = vec!["get", kind, "-o", "json"];
        if !cluster.is_empty() {
            args.extend(["-l", &selector]);
        }
        let mut all: serde_json::Value = serde_json::from_str(&self.kubectl(&args).await?)?;
        Ok(all["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
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

    /// Waits until the cluster reports something by name: a condition of that type which is true, or one with that reason.
    /// Gives its message.
    pub async fn reported(&self, name: &str, what: &str, limit: Duration) -> Result<String> {
        until(&format!("{name} reports {what}"), limit, || async {
            let c = self.cluster(name).await?;
            match report(&c, what) {
                Some(message) => Ok(Some(message)),
                None => bail!("conditions {}", conditions(&c)),
            }
        })
        .await
    }

    /// Waits until the cluster no longer reports it.
    pub async fn mended(&self, name: &str, what: &str, limit: Duration) -> Result {
        until(&format!("{name} no longer reports {what}"), limit, || async {
            let c = self.cluster(name).await?;
            match report(&c, what) {
                None => Ok(Some(())),
                Some(message) => bail!("{message}"),
            }
        })
        .await
    }

    /// Waits until a condition has a status and a reason.
    pub async fn condition(
        &self,
        name: &str,
        kind: &str,
        status: &str,
        reason: &str,
        limit: Duration,
    ) -> Result<String> {
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
        let login = Login::from_secret(&secret)?;
        // Ready is the primary's word; the nodes learn of the Service's endpoint within a second of it. What the server answers is the
        // test's business.
        let refused = || async {
            let answer = login.sql(None, "SELECT 1").await;
            match answer {
                Err(e) if e.to_string().contains("Connection refused") => bail!("{e}"),
                _ => Ok(Some(())),
            }
        };
        until(&format!("the Service of {cluster} leads somewhere"), Duration::from_secs(5), refused)
            .await
            .ok();
        Ok(login)
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

/// What a cluster reports under a name, see [`Ctx::reported`].
#[must_use]
pub fn report(cluster: &PostgreSQL, what: &str) -> Option<String> {
    let all = &cluster.status.as_ref()?.conditions;
    // Other conditions may give it as their reason; the one of that type has the message.
    let found = all.iter().find(|c| c.type_ == what && c.status == "True");
    found.or_else(|| all.iter().find(|c| c.reason == what)).map(|c| c.message.clone())
}

/// All conditions, for a message.
#[must_use]
pub fn conditions(cluster: &PostgreSQL) -> String {
    let list = cluster.status.iter().flat_map(|s| &s.conditions);
    list.map(|c| format!("{}={} {} ({})", c.type_, c.status, c.reason, c.message))
        .collect::<Vec<_>>()
        .join("; ")
}
