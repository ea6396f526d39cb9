//! Who gets in at all.

use std::time::Duration;

use pgwarden_proto::{
    identity::CertRole,
    v1::{
        ConfigureRequest, HeartbeatRequest, JoinRequest, StatusRequest, WatchStatusRequest,
        agent_client::AgentClient, peer_client::PeerClient,
    },
};
use rustls::version::{TLS12, TLS13};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};
use tonic::{Code, Request};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::support::{Client, Server};
use crate::tls::testing::Authority;

#[tokio::test]
async fn without_a_certificate_of_the_cluster_the_handshake_fails() {
    let server = Server::start().await;
    let ours = server.authority.pem();
    let role = CertRole::Controller;
    // The name on the certificate is right; only the key of the authority tells them apart.
    let stranger = Authority::new(&server.config.namespace, &server.config.cluster).issue(role);
    let good = server.authority.issue(role);
    let foreign = Authority::new("n", "other").issue(role);
    let not_for_clients = server.authority.issue(CertRole::Server);
    let expired = server.authority.issue_for(role, -200, -100);
    for (what, leaf, version, alert) in [
        ("no certificate", None, &TLS13, "CertificateRequired"),
        ("another authority of our name", Some(&stranger), &TLS13, "DecryptError"),
        ("another cluster's authority", Some(&foreign), &TLS13, "UnknownCA"),
        ("the server's own", Some(&not_for_clients), &TLS13, "UnsupportedCertificate"),
        ("expired", Some(&expired), &TLS13, "CertificateExpired"),
        ("TLS 1.2", Some(&good), &TLS12, "ProtocolVersion"),
    ] {
        let error = Client::new(server.address, &ours, leaf, version).open().await.unwrap_err();
        assert!(error.to_string().contains(alert), "{what}: {error}");
    }
    assert_eq!(server.store.counters().handshakes_failed.load(std::sync::atomic::Ordering::Relaxed), 6);
    server.client(role).open().await.unwrap();
}

#[tokio::test]
async fn another_clusters_name_under_the_same_authority_may_call_nothing() {
    let server = Server::start().await;
    let leaf = server.authority.issue_with(CertRole::Controller, |params| {
        let uri = "spiffe://pgwarden/ns/n/cluster/other/role/controller".try_into().unwrap();
        params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    });
    let client = server.client_with(Some(&leaf));
    let channel = client.channel();
    let (mut agent, mut peer) = (AgentClient::new(channel.clone()), PeerClient::new(channel.clone()));
    let mut health = HealthClient::new(channel);
    let answers = [
        agent.status(StatusRequest {}).await.err(),
        agent.watch_status(WatchStatusRequest::default()).await.err(),
        agent.configure(ConfigureRequest::default()).await.err(),
        peer.join(JoinRequest::default()).await.err(),
        peer.heartbeat(HeartbeatRequest::default()).await.err(),
        health.check(HealthCheckRequest::default()).await.err(),
        health.watch(HealthCheckRequest::default()).await.err(),
    ];
    for (n, status) in answers.into_iter().enumerate() {
        let status = status.unwrap_or_else(|| panic!("call {n} was answered"));
        assert_eq!(status.code(), Code::PermissionDenied, "{n}: {status}");
        assert_eq!(status.message(), "the certificate is for cluster n/other, this is n/c");
    }
}

#[tokio::test]
async fn a_role_cannot_keep_another_out() {
    let server = Server::start().await;
    let viewer = server.client(CertRole::Viewer);
    let mut held = Vec::new();
    while held.len() < crate::grpc::methods::connections(Some(CertRole::Viewer)) {
        held.push(viewer.open().await.unwrap());
    }
    assert!(viewer.open().await.is_err(), "one more than a viewer may have");
    server.client(CertRole::Controller).agent().status(StatusRequest {}).await.unwrap();
    drop(held.pop());
    // The place is free when the server has seen the end.
    let again = async {
        while viewer.open().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(5), again).await.unwrap();
}

#[tokio::test]
async fn silent_connections_keep_nobody_out_and_are_closed() {
    let server = Server::start().await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    let mut agent = server.client(CertRole::Viewer).agent();
    timeout(Duration::from_secs(2), agent.status(StatusRequest {})).await.unwrap().unwrap();
    let closed = async {
        for stream in &mut silent {
            // An end or a reset, and nothing said before.
            assert!(!matches!(stream.read(&mut [0]).await, Ok(1..)));
        }
    };
    timeout(Duration::from_secs(8), closed).await.unwrap();
}

#[tokio::test]
async fn what_is_not_tls_does_no_harm() {
    use tokio::io::AsyncWriteExt;
    let server = Server::start().await;
    for junk in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 70_000], &[0x16, 3, 1, 0xff, 0xff]] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let _ = stream.write_all(junk).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = timeout(Duration::from_secs(7), stream.read_to_end(&mut answer)).await.unwrap();
        // An alert at most.
        assert!(answer.len() < 16, "{answer:?}");
    }
    server.client(CertRole::Viewer).agent().status(Request::new(StatusRequest {})).await.unwrap();
}
