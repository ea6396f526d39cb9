//! The store against Secrets mounted as kubelet does it.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use rcgen::{CertificateParams, DistinguishedName, DnType};
use tokio::time::timeout;

use super::{
    testing::{Authority, Leaf, TempDir, mount},
    *,
};
use crate::postgres::testing::config;

const NAMESPACE: &str = "n";
const CLUSTER: &str = "c";

struct Pod {
    dir: TempDir,
    config: Config,
    authority: Authority,
}

impl Pod {
    fn new() -> Self {
        let dir = TempDir::new("tls");
        let config = config(dir.path());
        fs::create_dir_all(&config.tls_dir).unwrap();
        let authority = Authority::new(NAMESPACE, CLUSTER);
        authority.mount(&config.cert_dir);
        Self { dir, config, authority }
    }

    fn mount(&self, role: CertRole, leaf: &Leaf) {
        mount(&self.config.cert_dir, role, leaf, &self.authority.pem());
    }

    fn copy(&self, name: &str) -> String {
        fs::read_to_string(self.config.tls_dir.join(name)).unwrap()
    }
}

fn reasons(store: &Store) -> Vec<String> {
    store.problems().into_iter().map(|p| p.reason).collect()
}

#[tokio::test]
async fn good_secrets_are_in_use_and_copied_for_postgres() {
    let pod = Pod::new();
    let store = Store::load(&pod.config).await;
    assert_eq!(store.problems(), []);
    assert!(store.server().is_some() && store.client().is_some());
    assert_eq!(store.expiry().len(), 3);
    let mounted = |role: &str, file| fs::read_to_string(pod.config.cert_dir.join(role).join(file)).unwrap();
    for (copy, role, file) in [
        ("server.crt", "server", "tls.crt"),
        ("server.key", "server", "tls.key"),
        ("replication.crt", "replication", "tls.crt"),
        ("replication.key", "replication", "tls.key"),
        ("ca.crt", "server", "ca.crt"),
    ] {
        assert_eq!(pod.copy(copy), mounted(role, file), "{copy}");
        let mode = fs::metadata(pod.config.tls_dir.join(copy)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{copy}");
    }
    for role in ["server", "replication", "peer"] {
        let wanted =
            pgwarden_api::config::certificate_hash(&mounted(role, "tls.crt"), &mounted(role, "ca.crt"));
        assert_eq!(store.hashes().get(role), Some(&wanted), "{role}");
    }
    // The peer key is for the agent alone: Postgres has no copy.
    assert!(!pod.config.tls_dir.join("peer.key").exists());
}

#[tokio::test]
async fn a_renewal_is_told_once_and_nothing_else_is() {
    let pod = Pod::new();
    let store = Store::load(&pod.config).await;
    let (bus, mut requests) = Bus::new(Default::default());
    let watcher = tokio::spawn(store.clone().run_every(Duration::from_millis(20), bus));
    let quiet = Duration::from_millis(200);
    let within = Duration::from_secs(5);
    // They have just been written, and Postgres may be running already.
    let told = timeout(within, requests.recv()).await.unwrap();
    assert!(matches!(told, Some(Request::CertificatesChanged)));
    assert!(timeout(quiet, requests.recv()).await.is_err());
    let generation = store.generation();
    // The peer's renewal is none of Postgres' business.
    pod.mount(CertRole::Peer, &pod.authority.issue(CertRole::Peer));
    timeout(within, store.changed_from(generation)).await.unwrap();
    assert!(timeout(quiet, requests.recv()).await.is_err());
    for role in [CertRole::Server, CertRole::Replication] {
        let leaf = pod.authority.issue(role);
        pod.mount(role, &leaf);
        let told = timeout(within, requests.recv()).await.unwrap();
        assert!(matches!(told, Some(Request::CertificatesChanged)));
        assert_eq!(pod.copy(&format!("{role}.key")), leaf.key);
        assert!(timeout(quiet, requests.recv()).await.is_err(), "told twice");
    }
    watcher.abort();
}

type Change = Box<dyn Fn(&Pod) -> (Leaf, String)>;

/// Secrets that must not be used, with words of the reason.
fn broken() -> Vec<(&'static str, CertRole, Change, &'static str)> {
    let with = |role, change: fn(&mut CertificateParams)| -> Change {
        Box::new(move |pod| (pod.authority.issue_with(role, change), pod.authority.pem()))
    };
    let foreign = |namespace: &'static str, cluster: &'static str| -> Change {
        Box::new(move |pod| {
            let other = Authority::new(namespace, cluster).issue(CertRole::Peer);
            (other, pod.authority.pem())
        })
    };
    let garbage = |what: fn(&mut Leaf)| -> Change {
        Box::new(move |pod| {
            let mut leaf = pod.authority.issue(CertRole::Peer);
            what(&mut leaf);
            (leaf, pod.authority.pem())
        })
    };
    vec![
        ("no PEM", CertRole::Peer, garbage(|l| l.certificate = "nonsense".into()), "no certificate"),
        ("cut", CertRole::Peer, garbage(|l| l.certificate.truncate(200)), "tls.crt is not PEM"),
        ("empty key", CertRole::Peer, garbage(|l| l.key.clear()), "tls.key is not PEM"),
        (
            "another's key",
            CertRole::Peer,
            garbage(|l| l.key = rcgen::KeyPair::generate().unwrap().serialize_pem()),
            "do not belong together",
        ),
        ("another role", CertRole::Peer, with(CertRole::Viewer, |_| {}), "role viewer, not peer"),
        ("another cluster", CertRole::Peer, foreign("n", "other"), "cluster n/other, this is n/c"),
        ("another namespace", CertRole::Peer, foreign("m", "c"), "cluster m/c, this is n/c"),
        ("another authority", CertRole::Peer, foreign("n", "c"), "own ca.crt"),
        (
            "no identity",
            CertRole::Peer,
            with(CertRole::Peer, |p| p.subject_alt_names.clear()),
            "names no cluster",
        ),
        (
            "two identities",
            CertRole::Peer,
            with(CertRole::Peer, |p| {
                let uri = "spiffe://pgwarden/ns/n/cluster/c/role/controller".try_into().unwrap();
                p.subject_alt_names.push(rcgen::SanType::URI(uri));
            }),
            "several",
        ),
        (
            "no name",
            CertRole::Replication,
            with(CertRole::Replication, |p| {
                p.distinguished_name = DistinguishedName::new();
                p.distinguished_name.push(DnType::CommonName, "postgres");
            }),
            "common name is \"postgres\"",
        ),
        (
            "no DNS name",
            CertRole::Server,
            with(CertRole::Server, |p| p.subject_alt_names.retain(|n| matches!(n, rcgen::SanType::URI(_)))),
            "own ca.crt",
        ),
        (
            "not for clients",
            CertRole::Peer,
            with(CertRole::Peer, |p| {
                p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth]
            }),
            "own ca.crt",
        ),
        (
            "no authority",
            CertRole::Peer,
            Box::new(|pod| (pod.authority.issue(CertRole::Peer), String::new())),
            "ca.crt is not PEM",
        ),
    ]
}

#[tokio::test]
async fn a_broken_secret_changes_nothing_but_the_status() {
    let pod = Pod::new();
    let store = Store::load(&pod.config).await;
    for (what, role, change, words) in broken() {
        let (hashes, generation, key) = (store.hashes(), store.generation(), pod.copy("replication.key"));
        let (leaf, authority) = change(&pod);
        mount(&pod.config.cert_dir, role, &leaf, &authority);
        store.refresh().await;
        assert_eq!((store.hashes(), store.generation()), (hashes, generation), "{what}");
        assert_eq!(pod.copy("replication.key"), key, "{what}");
        let problems = store.problems();
        assert_eq!(problems.len(), 1, "{what}: {problems:?}");
        assert_eq!(problems[0].reason, "CertificateInvalid", "{what}");
        let message = &problems[0].message;
        let start = format!("Secret c-tls-{role} is not used, the certificate before it stays in use: ");
        assert!(message.starts_with(&start) && message.contains(words), "{what}: {message}");
        assert!(!message.contains("PRIVATE"), "{what}: {message}");
        // Mended: in use.
        pod.mount(role, &pod.authority.issue(role));
        store.refresh().await;
        assert_eq!(store.problems(), [], "{what}");
        assert_eq!(store.generation(), generation + 1, "{what}");
    }
    drop(pod.dir);
}

#[tokio::test]
async fn a_lost_file_changes_nothing_but_the_status() {
    let pod = Pod::new();
    let store = Store::load(&pod.config).await;
    fs::remove_dir_all(pod.config.cert_dir.join("server")).unwrap();
    store.refresh().await;
    assert_eq!(reasons(&store), ["CertificateInvalid"]);
    assert!(store.server().is_some());
    assert!(store.problems()[0].message.contains("tls.crt cannot be read"));
}

#[tokio::test]
async fn the_clock_is_told_from_the_rest() {
    let pod = Pod::new();
    let store = Store::load(&pod.config).await;
    let before = store.hashes();
    // One that is not valid now does not replace one that is.
    for (from, to) in [(-200, -100), (100, 200)] {
        pod.mount(CertRole::Peer, &pod.authority.issue_for(CertRole::Peer, from, to));
        store.refresh().await;
        assert_eq!(store.hashes(), before);
        assert_eq!(reasons(&store), ["CertificateInvalid"]);
        assert!(store.problems()[0].message.contains("this node's clock"), "{:?}", store.problems());
    }
    // In the last sixth of its life.
    pod.mount(CertRole::Peer, &pod.authority.issue_for(CertRole::Peer, -900, 100));
    store.refresh().await;
    assert_ne!(store.hashes(), before);
    assert_eq!(reasons(&store), ["CertificateExpiring"]);
    pod.mount(CertRole::Peer, &pod.authority.issue_for(CertRole::Peer, -100, 900));
    store.refresh().await;
    assert_eq!(store.problems(), []);
}

#[tokio::test]
async fn a_certificate_ends_while_it_is_in_use() {
    let pod = Pod::new();
    pod.mount(CertRole::Server, &pod.authority.issue_for(CertRole::Server, -100, 2));
    let store = Store::load(&pod.config).await;
    assert_eq!(reasons(&store), ["CertificateExpiring"]);
    let ended = async {
        while reasons(&store) != ["CertificateExpired"] {
            tokio::time::sleep(Duration::from_millis(100)).await;
            store.refresh().await;
        }
    };
    timeout(Duration::from_secs(10), ended).await.unwrap();
    // There is nothing better: it stays, the primary serves on, and a start beside it goes the same way.
    assert!(store.server().is_some());
    let again = Store::load(&pod.config).await;
    assert!(again.server().is_some());
    assert_eq!(reasons(&again), ["CertificateExpired"]);
    pod.mount(CertRole::Server, &pod.authority.issue(CertRole::Server));
    store.refresh().await;
    assert_eq!(store.problems(), []);
}

#[tokio::test]
async fn an_agent_that_restarts_beside_a_broken_secret_takes_postgres_copies() {
    let pod = Pod::new();
    let before = Store::load(&pod.config).await.hashes();
    for role in ROLES {
        pod.mount(role, &Leaf { certificate: "broken".into(), key: "broken".into() });
    }
    let store = Store::load(&pod.config).await;
    let hashes = store.hashes();
    for role in ["server", "replication"] {
        assert_eq!(hashes.get(role), before.get(role), "{role}");
    }
    assert_eq!(hashes.get("peer"), None);
    assert!(store.server().is_some() && store.client().is_none());
    assert_eq!(reasons(&store), ["CertificateInvalid"; 3]);
}

#[tokio::test]
async fn postgres_files_are_all_there_or_none() {
    let pod = Pod::new();
    fs::remove_dir_all(pod.config.cert_dir.join("replication")).unwrap();
    let store = Store::load(&pod.config).await;
    assert_eq!(reasons(&store), ["CertificateInvalid", "CertificateNotWritten"]);
    assert_eq!(fs::read_dir(&pod.config.tls_dir).unwrap().count(), 0);
    pod.mount(CertRole::Replication, &pod.authority.issue(CertRole::Replication));
    assert!(store.refresh().await);
    assert_eq!(store.problems(), []);
    assert!(pod.config.tls_dir.join("replication.key").exists());
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_told_and_tried_again() {
    let pod = Pod::new();
    fs::remove_dir(&pod.config.tls_dir).unwrap();
    let store = Store::load(&pod.config).await;
    assert_eq!(reasons(&store), ["CertificateNotWritten"]);
    assert!(store.server().is_some(), "the agent itself does not need the copies");
    fs::create_dir(&pod.config.tls_dir).unwrap();
    assert!(store.refresh().await);
    assert_eq!(store.problems(), []);
}

#[tokio::test]
async fn plain_files_are_followed_too() {
    let pod = Pod::new();
    let dir = pod.config.cert_dir.join("peer");
    fs::remove_dir_all(&dir).unwrap();
    fs::create_dir(&dir).unwrap();
    let write = |dir: &Path, leaf: &Leaf| {
        fs::write(dir.join("tls.crt"), &leaf.certificate).unwrap();
        fs::write(dir.join("tls.key"), &leaf.key).unwrap();
        fs::write(dir.join("ca.crt"), pod.authority.pem()).unwrap();
    };
    write(&dir, &pod.authority.issue(CertRole::Peer));
    let store = Store::load(&pod.config).await;
    let before = store.hashes();
    write(&dir, &pod.authority.issue(CertRole::Peer));
    store.refresh().await;
    assert_eq!(store.problems(), []);
    assert_ne!(store.hashes().get("peer"), before.get("peer"));
}
