//! What a caller may do, and what it is told.

use std::{process::Stdio, time::Duration};

use futures::StreamExt;
use pgwarden_proto::{
    identity::CertRole,
    v1::{
        ConfigureRequest, HeartbeatRequest, JoinRequest, StatusRequest, WatchStatusRequest,
        agent_client::AgentClient, agent_server::SERVICE_NAME, peer_client::PeerClient,
    },
};
use tokio::time::timeout;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use super::support::Server;

const MOMENT: Duration = Duration::from_secs(5);

#[tokio::test]
async fn each_role_may_call_its_methods_and_no_others() {
    let server = Server::start().await;
    // The server's certificate is not for clients: see the handshakes.
    for role in CertRole::ALL.into_iter().filter(|role| *role != CertRole::Server) {
        let channel = server.client(role).channel();
        let (mut agent, mut peer) = (AgentClient::new(channel.clone()), PeerClient::new(channel.clone()));
        let mut health = HealthClient::new(channel);
        let reader = role != CertRole::Replication;
        let configure = ConfigureRequest { generation: 1, ..ConfigureRequest::default() };
        for (what, may, answer) in [
            ("Status", reader, agent.status(StatusRequest {}).await.map(drop)),
            ("WatchStatus", reader, agent.watch_status(WatchStatusRequest::default()).await.map(drop)),
            ("Configure", role == CertRole::Controller, agent.configure(configure).await.map(drop)),
            ("Join", role == CertRole::Peer, peer.join(JoinRequest::default()).await.map(drop)),
            (
                "Heartbeat",
                role == CertRole::Peer,
                peer.heartbeat(HeartbeatRequest::default()).await.map(drop),
            ),
            ("Check", true, health.check(HealthCheckRequest::default()).await.map(drop)),
            ("Watch", true, health.watch(HealthCheckRequest::default()).await.map(drop)),
        ] {
            let denied = answer.err().map(|status| {
                assert_eq!(status.code(), Code::PermissionDenied, "{what} as {role}: {status}");
                assert!(status.message().starts_with(&format!("a certificate of role {role} may not call ")));
                assert!(status.message().contains(what));
            });
            assert_eq!(denied.is_none(), may, "{what} as {role}");
        }
    }
}

#[tokio::test]
async fn requests_reach_the_driver_and_its_answers_come_back() {
    let server = Server::start().await;
    server.publish(|s| s.epoch = 7);
    let mut agent = server.client(CertRole::Controller).agent();
    let status = agent.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.cluster.as_str(), status.epoch), ("c", 7));
    for (generation, applied) in [(0, false), (3, true)] {
        let request = ConfigureRequest { generation, ..ConfigureRequest::default() };
        assert_eq!(agent.configure(request).await.unwrap().into_inner().applied, applied);
    }
    let mut peer = server.client(CertRole::Peer).peer();
    let slot =
        peer.join(JoinRequest { ordinal: 2, ..JoinRequest::default() }).await.unwrap().into_inner().slot;
    assert_eq!(slot, "m2");
    let heartbeat = |promised_epoch| HeartbeatRequest { promised_epoch, ..HeartbeatRequest::default() };
    assert_eq!(peer.heartbeat(heartbeat(9)).await.unwrap().into_inner().epoch, 9);
    let refused = peer.heartbeat(heartbeat(666)).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::FailedPrecondition, "not the holder"));
    // A driver that drops the question has gone.
    assert_eq!(peer.heartbeat(heartbeat(667)).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn messages_have_a_size() {
    let server = Server::start().await;
    let mut agent = server.client(CertRole::Controller).agent();
    let configure = |size: usize| ConfigureRequest {
        files: [("postgresql.conf".to_owned(), "x".repeat(size))].into(),
        generation: 1,
        ..ConfigureRequest::default()
    };
    agent.configure(configure(250 * 1024)).await.unwrap();
    let refused = agent.configure(configure(260 * 1024)).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    let mut peer = server.client(CertRole::Peer).peer();
    let join = |size| JoinRequest { pod: "x".repeat(size), ..JoinRequest::default() };
    peer.join(join(10_000)).await.unwrap();
    assert_eq!(peer.join(join(20_000)).await.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test]
async fn a_watch_tells_changes_and_refuses_strange_intervals() {
    let server = Server::start().await;
    let mut agent = server.client(CertRole::Viewer).agent();
    let mut watch = agent.watch_status(WatchStatusRequest::default()).await.unwrap().into_inner();
    assert!(!watch.message().await.unwrap().unwrap().ready);
    server.publish(|s| s.ready = true);
    assert!(timeout(MOMENT, watch.message()).await.unwrap().unwrap().unwrap().ready);
    for max_interval_ms in [1, 999, 60_001] {
        let refused = agent.watch_status(WatchStatusRequest { max_interval_ms }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_slow_reader_gets_the_state_of_when_it_reads() {
    let server = Server::start().await;
    let mut agent = server.client(CertRole::Viewer).agent();
    let mut watch = agent.watch_status(WatchStatusRequest::default()).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    // 40 MB of reports, if they were queued; the stream's window is 64 kB.
    for epoch in 1..=1000 {
        server.publish(|s| {
            s.epoch = epoch;
            s.reason = "x".repeat(40_000);
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut reports = 0;
    let last = async {
        loop {
            reports += 1;
            if watch.message().await.unwrap().unwrap().epoch == 1000 {
                break;
            }
        }
    };
    timeout(MOMENT, last).await.unwrap();
    assert!(reports < 20, "{reports} reports in about a second");
}

#[tokio::test]
async fn health_follows_the_instance() {
    let server = Server::start().await;
    let mut health = server.client(CertRole::Replication).health();
    let check = |service: &str| HealthCheckRequest { service: service.into() };
    let mut watches = Vec::new();
    for service in ["", "postgres"] {
        let mut watch = health.watch(check(service)).await.unwrap().into_inner();
        let first = watch.next().await.unwrap().unwrap().status();
        assert_eq!(first, ServingStatus::NotServing, "{service:?}");
        watches.push(watch);
    }
    let agent = health.check(check(SERVICE_NAME)).await.unwrap().into_inner().status();
    assert_eq!(agent, ServingStatus::Serving, "the agent answers, whatever Postgres does");
    for (ready, wanted) in [(true, ServingStatus::Serving), (false, ServingStatus::NotServing)] {
        server.publish(|s| s.ready = ready);
        for watch in &mut watches {
            let next = timeout(MOMENT, watch.next()).await.unwrap().unwrap().unwrap().status();
            assert_eq!(next, wanted);
        }
        assert_eq!(health.check(check("")).await.unwrap().into_inner().status(), wanted);
    }
    assert_eq!(health.check(check("nobody")).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn reflection_lists_the_services() {
    let server = Server::start().await;
    let list = async |role| -> Result<Vec<String>, tonic::Status> {
        let mut client = ServerReflectionClient::new(server.client(role).channel());
        let message_request = Some(MessageRequest::ListServices(String::new()));
        let request = ServerReflectionRequest { host: String::new(), message_request };
        let mut answers = client.server_reflection_info(futures::stream::iter([request])).await?.into_inner();
        match answers.message().await?.and_then(|answer| answer.message_response) {
            Some(MessageResponse::ListServicesResponse(list)) => {
                Ok(list.service.into_iter().map(|service| service.name).collect())
            }
            other => panic!("{other:?}"),
        }
    };
    let services = list(CertRole::Viewer).await.unwrap();
    for name in ["pgwarden.v1.Agent", "pgwarden.v1.Peer", "grpc.health.v1.Health"] {
        assert!(services.iter().any(|service| service == name), "{name} is not in {services:?}");
    }
    let denied = list(CertRole::Replication).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
}

/// A client that shares no code with this server.
#[tokio::test]
async fn grpcurl_understands_us() {
    let server = Server::start().await;
    server.publish(|s| s.ready = true);
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/tools/grpcurl");
    let built = tokio::process::Command::new(tool).stderr(Stdio::inherit()).output().await.unwrap();
    assert!(built.status.success(), "{tool} failed");
    let grpcurl = String::from_utf8(built.stdout).unwrap();
    let file = |name: &str, text: &str| {
        let path = server.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let ca = file("ca.crt", &server.authority.pem());
    let run = async |role: Option<CertRole>, args: &[&str]| {
        let mut command = tokio::process::Command::new(grpcurl.trim());
        command.arg("-cacert").arg(&ca).args(["-servername", "c-pods.n.svc", "-connect-timeout", "3"]);
        if let Some(role) = role {
            let leaf = server.authority.issue(role);
            command.arg("-cert").arg(file("tls.crt", &leaf.certificate));
            command.arg("-key").arg(file("tls.key", &leaf.key));
        }
        let (options, method) = args.split_at(args.len() - 1);
        let out = command.args(options).arg(server.address.to_string()).args(method).output().await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (out.status.success(), text(out.stdout), text(out.stderr))
    };
    let (ok, services, words) = run(Some(CertRole::Viewer), &["list"]).await;
    assert!(ok && services.contains("pgwarden.v1.Agent\n"), "{services}{words}");
    let (ok, status, words) = run(Some(CertRole::Viewer), &["pgwarden.v1.Agent/Status"]).await;
    assert!(ok && status.contains("\"ready\": true"), "{status}{words}");
    let (ok, health, words) = run(Some(CertRole::Viewer), &["grpc.health.v1.Health/Check"]).await;
    assert!(ok && health.contains("SERVING"), "{health}{words}");
    let (ok, _, words) = run(Some(CertRole::Viewer), &["-d", "{}", "pgwarden.v1.Agent/Configure"]).await;
    assert!(!ok && words.contains("PermissionDenied"), "{words}");
    // A refused client certificate comes after the client's side of a TLS 1.3 handshake: grpcurl tries again until its time is up.
    let (ok, _, words) = run(None, &["pgwarden.v1.Agent/Status"]).await;
    assert!(!ok && words.contains("Failed to dial"), "{words}");
}
