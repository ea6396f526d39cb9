//! Reads what a report is made of.

use k8s_openapi::api::core::v1::Event;
use kube::{
    Api, Client, CustomResourceExt as _,
    api::ListParams,
    core::{ApiResource, DynamicObject},
};
use pgwarden_api::{PostgreSQL, PostgreSQLRecord, names::Names};

use crate::{
    error::{Error, is_unknown_kind, nearest_first},
    report::{List, Report, Summary, belongs},
};

/// Objects asked for in one request.
const PAGE: u32 = 500;
/// Requests for one list: a namespace with more events than this shows those of the first pages.
const PAGES: usize = 20;

/// Where to look.
#[derive(Clone, Debug)]
pub(crate) enum Scope {
    All,
    Namespace(String),
}

/// The API server, as the user may see it.
pub(crate) struct Reader {
    client: Client,
    server: String,
    scope: Scope,
}

impl Reader {
    pub(crate) fn new(client: Client, server: String, scope: Scope) -> Self {
        Self { client, server, scope }
    }

    fn api(&self, resource: &ApiResource) -> Api<DynamicObject> {
        match &self.scope {
            Scope::All => Api::all_with(self.client.clone(), resource),
            Scope::Namespace(ns) => Api::namespaced_with(self.client.clone(), ns, resource),
        }
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(kube::Error) -> Error {
        move |source| Error::request(what, &self.server, source)
    }

    /// The clusters in scope, by namespace and name.
    pub(crate) async fn list(&self) -> Result<List, Error> {
        let api = self.api(&PostgreSQL::api_resource());
        let found =
            all(&api, &ListParams::default()).await.map_err(self.failed("list PostgreSQL clusters"))?;
        let mut clusters = found.iter().map(Summary::of).collect::<Result<Vec<_>, _>>()?;
        clusters.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        Ok(List { clusters })
    }

    /// What an empty list means.
    pub(crate) fn nothing(&self) -> Error {
        match &self.scope {
            Scope::All => Error::NoClustersAnywhere,
            Scope::Namespace(ns) => Error::NoClusters(ns.clone()),
        }
    }

    /// Everything about one cluster.
    pub(crate) async fn report(&self, name: &str) -> Result<Report, Error> {
        let cluster = match self.api(&PostgreSQL::api_resource()).get_opt(name).await {
            Ok(Some(cluster)) => cluster,
            Ok(None) => return Err(self.missing(name).await),
            Err(e) => return Err(self.failed("read this PostgreSQL cluster")(e)),
        };
        let (record, events) = tokio::join!(self.record(name), self.events(name));
        Report::assemble(&cluster, record, events)
    }

    /// Not there: because of its name, or because there are none of its kind.
    async fn missing(&self, name: &str) -> Error {
        match self.list().await {
            Err(e) => e,
            Ok(list) => Error::NoSuchCluster {
                name: name.to_owned(),
                namespace: match &self.scope {
                    Scope::All => String::new(),
                    Scope::Namespace(ns) => ns.clone(),
                },
                others: nearest_first(name, list.clusters.into_iter().map(|c| c.name).collect()),
            },
        }
    }

    async fn record(&self, name: &str) -> Result<Option<DynamicObject>, String> {
        let api = self.api(&PostgreSQLRecord::api_resource());
        api.get_opt(&Names::new(name).record()).await.map_err(reason)
    }

    async fn events(&self, cluster: &str) -> Result<Vec<Event>, String> {
        let api: Api<Event> = match &self.scope {
            Scope::All => Api::all(self.client.clone()),
            Scope::Namespace(ns) => Api::namespaced(self.client.clone(), ns),
        };
        let mut events = all(&api, &ListParams::default()).await.map_err(reason)?;
        events.retain(|e| {
            let object = &e.involved_object;
            belongs(
                cluster,
                object.kind.as_deref().unwrap_or_default(),
                object.name.as_deref().unwrap_or_default(),
            )
        });
        Ok(events)
    }
}

/// What the server said, without the kinds of errors of a client library.
fn reason(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) if is_unknown_kind(&status) => {
            "the API server does not know its kind: install deploy/operator.yaml".to_owned()
        }
        kube::Error::Api(status) => status.message,
        other => other.to_string(),
    }
}

/// All pages of a list.
async fn all<K>(api: &Api<K>, params: &ListParams) -> Result<Vec<K>, kube::Error>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let mut params = params.clone().limit(PAGE);
    let mut found = Vec::new();
    for _ in 0..PAGES {
        let page = api.list(&params).await?;
        found.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => break,
        }
    }
    Ok(found)
}
