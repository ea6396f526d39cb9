//! What can go wrong, and what to do about it.

use kube::core::Status;

/// Why there is no answer. Every message says what was tried and, where it can, the remedy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("failed to read the kubeconfig: {0}")]
    Kubeconfig(#[source] kube::config::KubeconfigError),
    #[error("failed to find a kubeconfig: {0}")]
    Infer(#[source] kube::config::InferConfigError),
    #[error("the API server did not answer within {0} s")]
    NoAnswer(u64),
    #[error("failed to reach the API server {server}: {reason}")]
    Unreachable { server: String, reason: String },
    #[error("the API server does not know who you are: {0}")]
    Unauthenticated(String),
    #[error("you may not {what}: {message}")]
    Forbidden { what: &'static str, message: String },
    #[error(
        "the API server does not know PostgreSQL clusters: install the operator, first \
         `kubectl apply -f {}`, then `kubectl apply -f deploy/operator.yaml`",
        pgwarden_api::crd::POSTGRESQL_FILE
    )]
    NotInstalled,
    #[error("there is no PostgreSQL cluster {name:?} in namespace {namespace:?}{}", hint(.others))]
    NoSuchCluster {
        name: String,
        namespace: String,
        /// The clusters that are there, nearest name first.
        others: Vec<String>,
    },
    #[error(
        "there are no PostgreSQL clusters in namespace {0:?}; `kubectl pg status -A` lists those of all namespaces"
    )]
    NoClusters(String),
    #[error("there are no PostgreSQL clusters")]
    NoClustersAnywhere,
    #[error("failed to {what}: {source}")]
    Request { what: &'static str, source: kube::Error },
    #[error("failed to understand the status of {name}: {source}; is this plugin older than the operator?")]
    Status { name: String, source: serde_json::Error },
    #[error("failed to write JSON: {0}")]
    Json(#[source] serde_json::Error),
    #[error("failed to write the answer: {0}")]
    Write(#[source] std::io::Error),
}

impl Error {
    /// What a failed request means to the user.
    pub(crate) fn request(what: &'static str, server: &str, source: kube::Error) -> Self {
        match source {
            kube::Error::Api(status) if status.code == 401 => Self::Unauthenticated(status.message),
            kube::Error::Api(status) if status.code == 403 => {
                Self::Forbidden { what, message: status.message }
            }
            kube::Error::Api(status) if is_unknown_kind(&status) => Self::NotInstalled,
            kube::Error::Service(e) => {
                Self::Unreachable { server: server.to_owned(), reason: chain(e.as_ref()) }
            }
            kube::Error::HyperError(e) => Self::Unreachable { server: server.to_owned(), reason: chain(&e) },
            source => Self::Request { what, source },
        }
    }
}

/// A path that the API server does not serve has no status object, or one without the name of an object.
pub(crate) fn is_unknown_kind(status: &Status) -> bool {
    let object = status.details.as_ref().is_some_and(|d| !d.name.is_empty());
    status.code == 404 && !(object && status.reason == "NotFound")
}

/// An error with its causes: the first rarely says what happened.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

fn hint(others: &[String]) -> String {
    match others {
        [] => ": there are none; `kubectl pg status -A` lists those of all namespaces".to_owned(),
        [only] => format!("; did you mean {only}?"),
        [nearest, rest @ ..] => {
            let more = if rest.len() > 4 { ", ..." } else { "" };
            let rest: Vec<_> = rest.iter().take(4).map(String::as_str).collect();
            format!("; did you mean {nearest}? There are also {}{more}", rest.join(", "))
        }
    }
}

/// Sorts `names` by their distance from `wanted`.
pub(crate) fn nearest_first(wanted: &str, mut names: Vec<String>) -> Vec<String> {
    names.sort_by_cached_key(|name| (distance(wanted, name), name.clone()));
    names
}

/// Single-character changes between two names.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(&b) {
            let value = (left + 1).min(*cell + 1).min(corner + usize::from(x != *y));
            corner = *cell;
            *cell = value;
            left = value;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_counted_in_changes() {
        for (a, b, changes) in [
            ("", "", 0),
            ("abc", "", 3),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("my-postgers", "my-postgres", 2),
        ] {
            assert_eq!(distance(a, b), changes, "{a} {b}");
        }
    }

    #[test]
    fn the_nearest_name_is_offered_first() {
        let others = nearest_first("my-postgers", ["zz", "my-postgres", "orders"].map(String::from).to_vec());
        let error = Error::NoSuchCluster { name: "my-postgers".into(), namespace: "prod".into(), others };
        assert_eq!(
            error.to_string(),
            "there is no PostgreSQL cluster \"my-postgers\" in namespace \"prod\"; did you mean my-postgres? \
             There are also orders, zz"
        );
    }

    #[test]
    fn a_missing_crd_is_told_from_a_missing_cluster() {
        let missing: Status = serde_json::from_value(serde_json::json!({
            "status": "Failure", "message": "postgresqls.database.example.com \"x\" not found", "reason": "NotFound",
            "details": {"name": "x", "group": "database.example.com", "kind": "postgresqls"}, "code": 404
        }))
        .unwrap();
        assert!(!is_unknown_kind(&missing));
        let unknown = Status::failure("404 page not found", "Failed to parse error data").with_code(404);
        assert!(is_unknown_kind(&unknown));
        let error = Error::request("read it", "https://server", kube::Error::Api(unknown.boxed()));
        assert!(error.to_string().contains("kubectl apply -f deploy/crds/"), "{error}");
    }

    #[test]
    fn refusals_say_what_was_refused() {
        for (code, wanted) in [(401, "does not know who you are"), (403, "you may not read the cluster: no")]
        {
            let status = Status::failure("no", "Refused").with_code(code).boxed();
            let error = Error::request("read the cluster", "https://server", kube::Error::Api(status));
            assert!(error.to_string().contains(wanted), "{error}");
        }
    }
}
