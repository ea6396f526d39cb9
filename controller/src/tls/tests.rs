use std::{collections::BTreeMap, sync::Arc, time::Duration};

use pgwarden_api::names::Names;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{
    authority::{Authority, Step},
    issue::{REPLICATION_ROLE, Subject, certificates},
    *,
};
use crate::context::Lifetimes;

fn lifetimes() -> Lifetimes {
    let day = Duration::from_secs(86_400);
    Lifetimes { authority: day * 3650, leaf: day * 90, renew_percent: 66, overlap: Duration::from_secs(3600) }
}

fn days(n: i64) -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second() + n * 86_400).unwrap()
}

fn authority(now: Timestamp) -> Authority {
    Authority::new("shop", "orders", Vec::new(), now, &lifetimes()).unwrap()
}

fn issue(authority: &Authority, live: &BTreeMap<CertRole, Pair>, now: Timestamp) -> Certificates {
    let names = Names::new("orders");
    certificates(Subject { namespace: "shop", names: &names }, authority, live, now, &lifetimes()).unwrap()
}

/// A TLS 1.3 handshake in memory between an agent with `server` and the controller with `client`.
async fn handshake(server: &Certificates, client: &Certificates, name: &str) -> Result<(), String> {
    let roots = |bundle: &str| {
        let mut roots = RootCertStore::empty();
        for c in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(c.unwrap()).unwrap();
        }
        Arc::new(roots)
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let leaf = &server.leafs[&CertRole::Server];
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots(&server.bundle), provider.clone()).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            CertificateDer::pem_slice_iter(leaf.certificate.as_bytes()).map(Result::unwrap).collect(),
            PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap(),
        )
        .unwrap();
    let (a, b) = tokio::io::duplex(1 << 16);
    let client = client::config(&client.bundle, &client.leafs[&CertRole::Controller]).unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let (served, connected) = tokio::join!(
        TlsAcceptor::from(Arc::new(config)).accept(a),
        TlsConnector::from(client).connect(name, b)
    );
    served.map_err(|e| format!("server: {e}"))?;
    connected.map_err(|e| format!("client: {e}"))?;
    Ok(())
}

const NAME: &str = "orders-pods.shop.svc";

#[tokio::test]
async fn the_controller_reaches_its_agents_and_no_others() {
    let now = days(0);
    let ours = issue(&authority(now), &BTreeMap::new(), now);
    let theirs = issue(&authority(now), &BTreeMap::new(), now);
    for name in
        [NAME, "orders", "orders-ro.shop.svc.cluster.local", "orders-17-0.orders-pods.shop.svc", "localhost"]
    {
        assert_eq!(handshake(&ours, &ours, name).await, Ok(()), "{name}");
    }
    assert!(handshake(&ours, &ours, "orders-pods.other.svc").await.is_err());
    assert!(handshake(&theirs, &ours, NAME).await.is_err(), "another cluster's authority");
    let mut half = ours.clone();
    half.leafs = theirs.leafs.clone();
    assert!(handshake(&ours, &half, NAME).await.is_err(), "another cluster's client");
}

#[test]
fn a_certificate_says_who_it_is_for() {
    let now = days(0);
    let made = issue(&authority(now), &BTreeMap::new(), now);
    for role in CertRole::ALL {
        let f = facts(&made.leafs[&role].certificate).unwrap();
        let uri = format!("spiffe://pgwarden/ns/shop/cluster/orders/role/{role}");
        assert!(f.names.contains(&uri), "{role}: {:?}", f.names);
        assert_eq!(f.names.len() > 1, role == CertRole::Server, "{role}: {:?}", f.names);
        assert!(!f.is_ca);
        let (_, pem) = x509_parser::pem::parse_x509_pem(made.leafs[&role].certificate.as_bytes()).unwrap();
        let subject = pem.parse_x509().unwrap().subject().to_string();
        assert_eq!(subject == format!("CN={REPLICATION_ROLE}"), role == CertRole::Replication, "{subject}");
    }
}

#[test]
fn good_certificates_stay_and_old_ones_are_renewed() {
    let authority = authority(days(0));
    let first = issue(&authority, &BTreeMap::new(), days(0));
    let again = issue(&authority, &first.leafs, days(1));
    assert_eq!(first.leafs, again.leafs);
    assert_eq!(first.next_change, again.next_change);
    assert!(first.next_change > days(55) && first.next_change < days(61));
    let renewed = issue(&authority, &first.leafs, days(61));
    for role in CertRole::ALL {
        assert_ne!(first.leafs[&role], renewed.leafs[&role], "{role}");
        assert_ne!(first.hash(role), renewed.hash(role), "{role}");
    }
}

#[test]
fn damaged_and_foreign_certificates_are_replaced() {
    let (ours, theirs) = (authority(days(0)), authority(days(0)));
    let good = issue(&ours, &BTreeMap::new(), days(0));
    let foreign = issue(&theirs, &BTreeMap::new(), days(0));
    let mut live = good.leafs.clone();
    live.insert(CertRole::Peer, foreign.leafs[&CertRole::Peer].clone());
    live.insert(CertRole::Viewer, Pair { certificate: "x".into(), key: "y".into() });
    // A certificate of another role under this role's name.
    live.insert(CertRole::Backup, good.leafs[&CertRole::Controller].clone());
    let after = issue(&ours, &live, days(0));
    for role in CertRole::ALL {
        let replaced = [CertRole::Peer, CertRole::Viewer, CertRole::Backup].contains(&role);
        assert_eq!(after.leafs[&role] != live[&role], replaced, "{role}");
    }
}

#[test]
fn no_leaf_outlives_its_authority() {
    let mut short = lifetimes();
    short.authority = Duration::from_secs(30 * 86_400);
    let authority = Authority::new("shop", "orders", Vec::new(), days(0), &short).unwrap();
    let names = Names::new("orders");
    let made = certificates(
        Subject { namespace: "shop", names: &names },
        &authority,
        &BTreeMap::new(),
        days(0),
        &short,
    )
    .unwrap();
    let end = facts(&authority.signing.certificate).unwrap().not_after;
    assert_eq!(facts(&made.leafs[&CertRole::Server].certificate).unwrap().not_after, end);
}

#[test]
fn an_authority_survives_its_secret() {
    let one = authority(days(0)).take(Step::Prepare, "shop", "orders", days(1), &lifetimes()).unwrap();
    let two = one.take(Step::Switch, "shop", "orders", days(2), &lifetimes()).unwrap();
    for a in [authority(days(0)), one, two] {
        let secret = k8s_openapi::api::core::v1::Secret {
            metadata: kube::core::ObjectMeta {
                annotations: Some([(authority::ANNOTATION_SINCE.to_owned(), a.since.to_string())].into()),
                ..Default::default()
            },
            data: Some(a.write()),
            ..Default::default()
        };
        assert_eq!(Authority::read(&secret), Some(a));
    }
    assert_eq!(Authority::read(&k8s_openapi::api::core::v1::Secret::default()), None);
}

#[test]
fn steps_wait_for_the_agents_but_not_for_ever() {
    let l = lifetimes();
    let minutes = |t: Timestamp, n: i64| Timestamp::from_second(t.as_second() + n * 60).unwrap();
    let a = authority(days(0));
    assert_eq!(a.step(days(100), true, &l), Step::Keep);
    let due = days(3650 * 66 / 100 + 1);
    assert_eq!(a.step(due, false, &l), Step::Prepare);

    let prepared = a.take(Step::Prepare, "shop", "orders", due, &l).unwrap();
    let rows = [
        (1, true, Step::Keep, "applications need a moment too"),
        (7, true, Step::Switch, "all agents trust the new one"),
        (59, false, Step::Keep, "an agent has not said so"),
        (61, false, Step::Switch, "not for ever"),
    ];
    for (n, confirmed, want, why) in rows {
        assert_eq!(prepared.step(minutes(due, n), confirmed, &l), want, "{why}");
    }
    assert_eq!(prepared.step(minutes(due, 3), false, &l), Step::Keep);
    let end = facts(&prepared.signing.certificate).unwrap().not_after;
    let mut late = prepared.clone();
    late.since = end;
    assert_eq!(late.step(end, false, &l), Step::Switch, "the old one has ended");

    let switched = prepared.take(Step::Switch, "shop", "orders", minutes(due, 7), &l).unwrap();
    assert_eq!((switched.old.len(), switched.next.clone()), (1, None));
    assert_eq!(switched.step(minutes(due, 8), true, &l), Step::Keep);
    assert_eq!(switched.step(minutes(due, 14), true, &l), Step::Retire);
    let retired = switched.take(Step::Retire, "shop", "orders", minutes(due, 14), &l).unwrap();
    assert_eq!(split(&retired.bundle()).len(), 1);
    assert_eq!(retired.step(minutes(due, 500), true, &l), Step::Keep);
    assert!(switched.next_change(&l) < minutes(due, 20));
}

/// At every moment of a change, whoever is one step behind is understood by whoever is one step ahead, both ways.
#[tokio::test]
async fn nobody_is_locked_out_while_the_authority_changes() {
    let l = lifetimes();
    let now = days(0);
    let mut stages = vec![authority(now)];
    for step in [Step::Prepare, Step::Switch, Step::Retire] {
        stages.push(stages.last().unwrap().take(step, "shop", "orders", now, &l).unwrap());
    }
    let mut live = BTreeMap::new();
    let mut made = Vec::new();
    for stage in &stages {
        let certificates = issue(stage, &live, now);
        live.clone_from(&certificates.leafs);
        made.push(certificates);
    }
    for pair in made.windows(2) {
        let (behind, ahead) = (&pair[0], &pair[1]);
        assert_eq!(handshake(behind, ahead, NAME).await, Ok(()));
        assert_eq!(handshake(ahead, behind, NAME).await, Ok(()));
    }
    // The step between is needed: the first and the last do not trust each other.
    assert!(handshake(&made[0], &made[3], NAME).await.is_err());
}

#[test]
fn a_lost_authority_stays_trusted() {
    let lost = authority(days(0));
    let new = Authority::new("shop", "orders", split(&lost.bundle()), days(1), &lifetimes()).unwrap();
    let bundle = split(&new.bundle());
    assert_eq!(bundle.len(), 2);
    assert!(bundle.contains(&split(&lost.signing.certificate)[0]));
}

#[test]
fn short_lives_for_tests_work() {
    let l = Lifetimes {
        authority: Duration::from_secs(60),
        leaf: Duration::from_secs(30),
        renew_percent: 66,
        overlap: Duration::from_secs(10),
    };
    let now = days(0);
    let a = Authority::new("shop", "orders", Vec::new(), now, &l).unwrap();
    let names = Names::new("orders");
    let made =
        certificates(Subject { namespace: "shop", names: &names }, &a, &BTreeMap::new(), now, &l).unwrap();
    let left = made.next_change.as_second() - now.as_second();
    assert!((10..30).contains(&left), "{left}");
}

#[test]
fn a_shorter_life_holds_for_certificates_that_are_there() {
    let (now, long) = (days(0), lifetimes());
    let a = authority(now);
    let first = issue(&a, &BTreeMap::new(), now);
    let names = Names::new("orders");
    let with = |l: &Lifetimes, live| {
        certificates(Subject { namespace: "shop", names: &names }, &a, live, now, l).unwrap()
    };
    assert_eq!(with(&long, &first.leafs).leafs, first.leafs);
    let short = Lifetimes { leaf: Duration::from_secs(180), ..long };
    let second = with(&short, &first.leafs);
    for role in CertRole::ALL {
        assert_ne!(second.leafs[&role], first.leafs[&role], "{role}");
    }
    assert_eq!(with(&short, &second.leafs).leafs, second.leafs);
}

#[test]
fn keys_are_not_in_what_is_logged() {
    let pair = Pair { certificate: "c".into(), key: "secret".into() };
    assert!(!format!("{pair:?}").contains("secret"));
}
