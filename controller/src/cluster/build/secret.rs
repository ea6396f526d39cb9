//! Secrets: certificates, and what an application mounts.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::ResourceExt;
use pgwarden_api::{names, pod};

use super::{meta, meta_kept};
use crate::{cluster::validate::ValidatedCluster, tls::Certificates};

/// Annotation: keys of the application Secret that the operator writes.
pub const ANNOTATION_DERIVED: &str = "database.example.com/derived-keys";
/// Annotation: the operator has made this Secret, so that it may delete it.
pub const ANNOTATION_GENERATED: &str = "database.example.com/generated";
/// Name of the application's database and role, where the Secret says no other.
pub const APP: &str = "app";

/// What is known of the application Secret.
#[derive(Clone, Debug)]
pub struct AppSecret {
    /// As it is.
    pub live: Arc<Secret>,
    /// Why it can't be used, and the remedy.
    pub problem: Option<String>,
}

impl AppSecret {
    fn text(&self, key: &str) -> Option<String> {
        let bytes = self.live.data.as_ref()?.get(key)?;
        String::from_utf8(bytes.0.clone()).ok()
    }

    /// The application's database.
    #[must_use]
    pub fn database(&self) -> String {
        self.text("dbname").filter(|d| !d.is_empty()).unwrap_or_else(|| APP.to_owned())
    }
}

/// Why an application Secret can't be used, with the remedy; `None` when it can.
#[must_use]
pub fn app_secret_problem(secret: &Secret) -> Option<String> {
    let name = secret.name_any();
    let data = secret.data.as_ref();
    for key in ["username", "password"] {
        let value = data.and_then(|d| d.get(key)).map(|b| b.0.as_slice()).unwrap_or_default();
        if value.is_empty() {
            return Some(format!(
                "Secret {name} has no key {key:?}, so the application's role can't be made; add the key, or delete the Secret to \
                 have one generated"
            ));
        }
        if std::str::from_utf8(value).is_err() || value.contains(&0) {
            return Some(format!("Secret {name}: the value of {key:?} is not text; write it in UTF-8"));
        }
    }
    let username = data.and_then(|d| d.get("username")).map(|b| String::from_utf8_lossy(&b.0).into_owned());
    let username = username.unwrap_or_default();
    let reserved = username == "postgres" || username.starts_with("pg_") || username.starts_with("pgwarden_");
    if reserved || username.len() > 63 {
        return Some(format!(
            "Secret {name}: the username can't be {username:?}: names of the operator, names that begin with pg_, and names of more \
             than 63 bytes can't be used; choose another"
        ));
    }
    None
}

/// The keys that follow from the cluster and the credentials.
#[must_use]
pub fn derived(
    cluster: &str,
    namespace: &str,
    username: &str,
    password: &str,
    database: &str,
    authority: &str,
) -> BTreeMap<&'static str, String> {
    let host = format!("{cluster}.{namespace}.svc");
    let port = pod::PORT_POSTGRES;
    let uri = format!(
        "postgresql://{}:{}@{host}:{port}/{}?sslmode=require",
        percent(username),
        percent(password),
        percent(database)
    );
    BTreeMap::from([
        ("host", host),
        ("port", port.to_string()),
        ("dbname", database.to_owned()),
        ("uri", uri),
        ("ca.crt", authority.to_owned()),
    ])
}

/// Percent-encoding of everything that is not unreserved.
fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// What is applied to the application Secret: our label, and the derived keys that are ours or that nobody else has set.
pub(super) fn app_secret(
    cluster: &ValidatedCluster,
    app: &AppSecret,
    certificates: &Certificates,
) -> Option<Secret> {
    let ours = app.live.annotations().get(ANNOTATION_DERIVED).map(String::as_str).unwrap_or_default();
    let ours: Vec<&str> = ours.split(',').collect();
    let data = app.live.data.clone().unwrap_or_default();
    let mut keys: BTreeMap<String, ByteString> = BTreeMap::new();
    if app.problem.is_none() {
        let username = app.text("username").unwrap_or_default();
        let password = app.text("password").unwrap_or_default();
        let all = derived(
            cluster.names.cluster(),
            &cluster.namespace,
            &username,
            &password,
            &app.database(),
            &certificates.bundle,
        );
        for (key, value) in all {
            if ours.contains(&key) || !data.contains_key(key) {
                keys.insert(key.to_owned(), ByteString(value.into_bytes()));
            }
        }
    }
    let mut annotations = BTreeMap::new();
    if !keys.is_empty() {
        annotations.insert(ANNOTATION_DERIVED.to_owned(), keys.keys().cloned().collect::<Vec<_>>().join(","));
    }
    let mut metadata = meta_kept(cluster, cluster.names.app_secret());
    if app.live.annotations().contains_key(ANNOTATION_GENERATED) {
        annotations.insert(ANNOTATION_GENERATED.to_owned(), "true".to_owned());
    } else {
        // The user's own: only the label by which it is watched.
        metadata.labels =
            Some(BTreeMap::from([(names::LABEL_CLUSTER.to_owned(), cluster.names.cluster().to_owned())]));
    }
    metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    let immutable = app.live.immutable == Some(true);
    Some(Secret { metadata, data: (!keys.is_empty() && !immutable).then_some(keys), ..Secret::default() })
}

/// The Secrets of the certificates, which go with the cluster: they are issued anew.
pub(super) fn certificates(cluster: &ValidatedCluster, certificates: &Certificates) -> Vec<Secret> {
    certificates
        .leafs
        .iter()
        .map(|(role, leaf)| Secret {
            metadata: meta(cluster, cluster.names.tls_secret(role.as_str())),
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(BTreeMap::from([
                ("tls.crt".to_owned(), ByteString(leaf.certificate.clone().into_bytes())),
                ("tls.key".to_owned(), ByteString(leaf.key.clone().into_bytes())),
                ("ca.crt".to_owned(), ByteString(certificates.bundle.clone().into_bytes())),
            ])),
            ..Secret::default()
        })
        .collect()
}
