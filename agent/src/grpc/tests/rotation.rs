//! Certificates and authorities change under load; the peer client follows.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use pgwarden_proto::{
    identity::CertRole,
    v1::{HeartbeatRequest, JoinRequest, StatusRequest, WatchStatusRequest},
};
use tokio::{net::TcpListener, time::timeout};
use tonic::Code;

use super::support::{Client, Server};
use crate::{
    peer::{self, PeerError},
    tls::testing::{Authority, mount},
};

const MOMENT: Duration = Duration::from_secs(5);
const ROLES: [CertRole; 3] = [CertRole::Server, CertRole::Replication, CertRole::Peer];

impl Server {
    /// Fresh leaves of `authority` in all mounts, trusting `bundle`.
    async fn renew(&self, authority: &Authority, bundle: &str) {
        for role in ROLES {
            mount(&self.config.cert_dir, role, &authority.issue(role), bundle);
            // Kubelet does one mount after the other, and calls go on between.
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.store.refresh().await;
        }
        assert_eq!(self.store.problems(), []);
    }
}

#[tokio::test]
async fn no_call_fails_while_leaves_and_authority_change() {
    let server = Server::start().await;
    let old = &server.authority;
    let new = Authority::new("n", "c");
    let both = old.pem() + &new.pem();

    // Load: heartbeats one after the other, and two watches by people, one with a certificate of each authority.
    let calls = Arc::new(AtomicU64::new(0));
    let caller = tokio::spawn({
        let client = peer::Client::new(&server.config, server.store.clone());
        let (address, calls) = (server.address, Arc::clone(&calls));
        async move {
            loop {
                client.heartbeat(address, HeartbeatRequest::default()).await.unwrap();
                calls.fetch_add(1, Relaxed);
            }
        }
    });
    let going_on = async || {
        let before = calls.load(Relaxed);
        let more = async {
            while calls.load(Relaxed) < before + 20 {
                assert!(!caller.is_finished(), "a call failed");
                tokio::task::yield_now().await;
            }
        };
        timeout(MOMENT, more).await.unwrap();
    };
    let old_leaf = old.issue(CertRole::Viewer);
    let old_client = server.client_with(Some(&old_leaf));
    let watched = WatchStatusRequest { max_interval_ms: 60_000 };
    let mut old_watch = old_client.agent().watch_status(watched).await.unwrap().into_inner();
    old_watch.message().await.unwrap().unwrap();
    let mut epoch = 0;
    let mut see = async |watch: &mut tonic::Streaming<_>| {
        epoch += 1;
        server.publish(|s| s.epoch = epoch);
        let seen: pgwarden_proto::v1::InstanceStatus =
            timeout(MOMENT, watch.message()).await.unwrap().unwrap().unwrap();
        assert_eq!(seen.epoch, epoch);
    };

    going_on().await;
    server.renew(old, &old.pem()).await;
    going_on().await;
    see(&mut old_watch).await;
    server.renew(old, &both).await;
    going_on().await;
    see(&mut old_watch).await;
    server.renew(&new, &both).await;
    going_on().await;
    see(&mut old_watch).await;

    let new_leaf = new.issue(CertRole::Viewer);
    let new_client = Client::new(server.address, &new.pem(), Some(&new_leaf), &rustls::version::TLS13);
    let mut new_watch = new_client.agent().watch_status(watched).await.unwrap().into_inner();
    new_watch.message().await.unwrap().unwrap();
    let mut old_agent = Client::new(server.address, &both, Some(&old_leaf), &rustls::version::TLS13).agent();
    old_agent.status(StatusRequest {}).await.unwrap();

    // The old authority goes: who still shows its certificates is let go, nobody else notices.
    server.renew(&new, &new.pem()).await;
    going_on().await;
    see(&mut new_watch).await;
    let ended = timeout(MOMENT, old_watch.message()).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended}");
    assert!(ended.message().contains("no longer accepted"), "{ended}");
    let refused = async {
        while old_agent.status(StatusRequest {}).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(MOMENT, refused).await.unwrap();
    let refused = Client::new(server.address, &both, Some(&old_leaf), &rustls::version::TLS13).open().await;
    let words = refused.unwrap_err().to_string();
    assert!(words.contains("received fatal alert"), "{words}");
    assert!(!caller.is_finished(), "a call failed");
    caller.abort();
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate() {
    let server = Server::start().await;
    let leaf = server.authority.issue_for(CertRole::Viewer, -100, 2);
    let mut agent = server.client_with(Some(&leaf)).agent();
    let mut watch =
        agent.watch_status(WatchStatusRequest { max_interval_ms: 60_000 }).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    let ended = timeout(Duration::from_secs(8), watch.message()).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended}");
    assert!(agent.status(StatusRequest {}).await.is_err());
}

#[tokio::test]
async fn a_peer_is_told_what_the_holder_says() {
    let server = Server::start().await;
    let client = peer::Client::new(&server.config, server.store.clone());
    let joined =
        client.join(server.address, JoinRequest { ordinal: 4, ..JoinRequest::default() }).await.unwrap();
    assert_eq!(joined.slot, "m4");
    let heartbeat = |promised_epoch| HeartbeatRequest { promised_epoch, ..HeartbeatRequest::default() };
    let refused = client.heartbeat(server.address, heartbeat(666)).await.unwrap_err();
    let text = refused.to_string();
    let PeerError::Refused { status, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(text.ends_with("answered FailedPrecondition: not the holder"), "{text}");
    assert_eq!(server.store.counters().connections.load(Relaxed), 1, "one connection for all calls");
}

#[tokio::test]
async fn a_peer_calls_the_address_it_is_given_and_finds_back() {
    let (one, two) = (Server::start().await, Server::start().await);
    // Both servers show certificates of the first one's authority.
    for role in ROLES {
        mount(&two.config.cert_dir, role, &one.authority.issue(role), &one.authority.pem());
    }
    two.store.refresh().await;
    let client = peer::Client::new(&one.config, one.store.clone());
    for server in [&one, &two, &one] {
        client.heartbeat(server.address, HeartbeatRequest::default()).await.unwrap();
    }
    let gone: SocketAddr = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let error = client.heartbeat(gone, HeartbeatRequest::default()).await.unwrap_err();
    assert!(matches!(error, PeerError::Connection { .. }), "{error:?}");
    assert!(error.to_string().contains("onnection refused"), "{error}");
    client.heartbeat(two.address, HeartbeatRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_peer_waits_one_second_for_a_mute_holder_and_tries_anew() {
    let server = Server::start().await;
    let client = peer::Client::new(&server.config, server.store.clone());
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = mute.local_addr().unwrap();
    for _ in 0..2 {
        let start = Instant::now();
        let error = client.heartbeat(address, HeartbeatRequest::default()).await.unwrap_err();
        assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
        assert!(!matches!(error, PeerError::Refused { .. }), "{error:?}");
    }
    // It had connected twice: a hung connection is not used again.
    for _ in 0..2 {
        timeout(MOMENT, mute.accept()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_peer_talks_to_servers_of_its_cluster_alone() {
    let server = Server::start().await;
    let client = peer::Client::new(&server.config, server.store.clone());
    let heartbeat = async |other: &Server| {
        client.heartbeat(other.address, HeartbeatRequest::default()).await.unwrap_err().to_string()
    };
    // Same names, another authority.
    let stranger = Server::start().await;
    let error = heartbeat(&stranger).await;
    assert!(error.contains("invalid peer certificate"), "{error}");
    // Our authority, but not a server's certificate: the name it has is right, what it is for is not.
    let thief = server.authority.issue_with(CertRole::Viewer, |params| {
        params.subject_alt_names.push(rcgen::SanType::DnsName("c-pods.n.svc".try_into().unwrap()));
        params.extended_key_usages.push(rcgen::ExtendedKeyUsagePurpose::ServerAuth);
    });
    let key = rustls::pki_types::pem::PemObject::from_pem_slice(thief.key.as_bytes()).unwrap();
    let chain = rustls::pki_types::pem::PemObject::from_pem_slice(thief.certificate.as_bytes()).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let trap = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
        let mut word = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut word).await;
        word
    });
    let error = client.heartbeat(address, HeartbeatRequest::default()).await.unwrap_err().to_string();
    assert!(error.contains("role viewer, not server"), "{error}");
    assert_eq!(timeout(MOMENT, trap).await.unwrap().unwrap(), b"", "nothing was said to it");
}

#[tokio::test]
async fn without_a_certificate_a_peer_says_so() {
    let server = Server::start().await;
    std::fs::remove_dir_all(server.config.cert_dir.join("peer")).unwrap();
    let store = crate::tls::Store::load(&server.config).await;
    let client = peer::Client::new(&server.config, store);
    let error = client.heartbeat(server.address, HeartbeatRequest::default()).await.unwrap_err();
    assert!(matches!(error, PeerError::NoCertificate { .. }), "{error:?}");
}
