//! Against a real gRPC server with mutual TLS on a loopback address of its own.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    time::Duration,
};

use futures::{Stream, StreamExt};
use pgwarden_api::{names::Names, pod};
use pgwarden_proto::{
    identity::CertRole,
    v1::{
        ConfigureRequest, ConfigureResponse, Role, StatusRequest, WatchStatusRequest,
        agent_server::{Agent, AgentServer},
    },
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::{
    context::Lifetimes,
    tls::{self, Certificates, authority::Authority, issue},
};

const PATIENCE: Duration = Duration::from_secs(20);

fn certificates() -> Certificates {
    let hour = Duration::from_secs(3600);
    let lifetimes = Lifetimes { authority: hour * 9, leaf: hour, renew_percent: 66, overlap: hour };
    let now = k8s_openapi::jiff::Timestamp::now();
    let authority = Authority::new("shop", "orders", Vec::new(), now, &lifetimes).unwrap();
    let names = Names::new("orders");
    let subject = issue::Subject { namespace: "shop", names: &names };
    issue::certificates(subject, &authority, &BTreeMap::new(), now, &lifetimes).unwrap()
}

/// An agent: its status can be set; it takes settings.
#[derive(Clone)]
struct Fake {
    status: watch::Sender<InstanceStatus>,
}

#[tonic::async_trait]
impl Agent for Fake {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<InstanceStatus>, Status> {
        Ok(Response::new(self.status.borrow().clone()))
    }

    type WatchStatusStream = Pin<Box<dyn Stream<Item = Result<InstanceStatus, Status>> + Send>>;

    async fn watch_status(
        &self,
        _: Request<WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        Ok(Response::new(WatchStream::new(self.status.subscribe()).map(Ok).boxed()))
    }

    async fn configure(
        &self,
        request: Request<ConfigureRequest>,
    ) -> Result<Response<ConfigureResponse>, Status> {
        let request = request.into_inner();
        assert_eq!(request.files["postgresql.conf"], "work_mem = '7MB'\n");
        assert_eq!(request.generation, 4);
        self.status.send_modify(|s| s.config_hash = request.hash);
        Ok(Response::new(ConfigureResponse { applied: true }))
    }
}

/// A server with its connections.
#[derive(Clone, Default)]
struct Serving(Arc<Mutex<Vec<AbortHandle>>>);

impl Serving {
    fn keep(&self, task: AbortHandle) {
        self.0.lock().unwrap().push(task);
    }

    fn kill(&self) {
        self.0.lock().unwrap().drain(..).for_each(|task| task.abort());
    }
}

async fn serve(address: Ipv4Addr, certificates: &Certificates, fake: Fake) -> Serving {
    let mut roots = RootCertStore::empty();
    for c in CertificateDer::pem_slice_iter(certificates.bundle.as_bytes()) {
        roots.add(c.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let leaf = &certificates.leafs[&CertRole::Server];
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            CertificateDer::pem_slice_iter(leaf.certificate.as_bytes()).map(Result::unwrap).collect(),
            PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(SocketAddr::from((address, pod::PORT_AGENT))).await.unwrap();
    let serving = Serving::default();
    let start = (listener, acceptor, serving.clone());
    let incoming = futures::stream::unfold(start, |(listener, acceptor, serving)| async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            // One that fails the handshake is refused, the next is served.
            let Ok(mut outside) = acceptor.accept(tcp).await else { continue };
            let (inside, mut bridge) = tokio::io::duplex(1 << 16);
            let copy = async move { tokio::io::copy_bidirectional(&mut outside, &mut bridge).await };
            serving.keep(tokio::spawn(copy).abort_handle());
            return Some((Ok::<_, std::io::Error>(inside), (listener, acceptor, serving)));
        }
    });
    let server = tonic::transport::Server::builder().add_service(AgentServer::new(fake));
    serving.keep(tokio::spawn(server.serve_with_incoming(incoming)).abort_handle());
    serving
}

fn files(hash: &str) -> Arc<Files> {
    let files = BTreeMap::from([("postgresql.conf".to_owned(), "work_mem = '7MB'\n".to_owned())]);
    Arc::new(Files { files, hash: hash.to_owned(), generation: 4 })
}

fn reach(certificates: &Certificates, files: Arc<Files>) -> Reach {
    Reach {
        key: certificates.hash(CertRole::Controller).unwrap(),
        tls: tls::client::config(&certificates.bundle, &certificates.leafs[&CertRole::Controller]).unwrap(),
        server_name: "orders-pods.shop.svc".into(),
        files,
    }
}

fn target(address: Ipv4Addr) -> Vec<Target> {
    vec![Target { pod: "orders-17-0".into(), uid: "u".into(), address: address.into() }]
}

/// The next time the cluster is woken and what its agent has said then satisfies `done`.
async fn until(
    agents: &Agents,
    woken: &mut mpsc::UnboundedReceiver<ClusterRef>,
    done: impl Fn(Option<&InstanceStatus>) -> bool,
) {
    tokio::time::timeout(PATIENCE, async {
        while !done(agents.reports("shop", "orders").get("orders-17-0").map(AsRef::as_ref)) {
            let cluster = woken.next().await.unwrap();
            assert_eq!(cluster, ClusterRef::new("orders").within("shop"));
        }
    })
    .await
    .expect("the agents were not heard in time");
}

#[tokio::test]
async fn reports_are_followed_and_settings_pushed() {
    let address = Ipv4Addr::new(127, 81, 0, 1);
    let certificates = certificates();
    let metrics = Metrics::new().unwrap();
    let (wake, mut woken) = mpsc::unbounded();
    let agents = Agents::new(wake, metrics.clone());

    // Nobody listens yet: that is told, and it is asked again.
    assert!(!agents.undecided("shop", "orders"), "there is nobody to ask");
    agents.ensure("shop", "orders", target(address), reach(&certificates, files("one")));
    assert!(agents.undecided("shop", "orders"));
    tokio::time::timeout(PATIENCE, woken.next()).await.unwrap();
    assert!(!agents.undecided("shop", "orders"));
    assert!(agents.reports("shop", "orders").is_empty());

    let fake =
        Fake { status: watch::Sender::new(InstanceStatus { ready: false, ..InstanceStatus::default() }) };
    let server = serve(address, &certificates, fake.clone()).await;
    until(&agents, &mut woken, |r| r.is_some_and(|r| r.config_hash == "one")).await;
    assert_eq!(metrics.agents.get(), 1);

    fake.status.send_modify(|s| s.set_role(Role::Primary));
    until(&agents, &mut woken, |r| r.is_some_and(|r| r.role() == Role::Primary)).await;

    agents.ensure("shop", "orders", target(address), reach(&certificates, files("two")));
    until(&agents, &mut woken, |r| r.is_some_and(|r| r.config_hash == "two")).await;

    // Positions alone wake nobody.
    while woken.try_recv().is_ok() {}
    fake.status.send_modify(|s| s.agent_uptime_seconds += 1.0);
    fake.status.send_modify(|s| s.ready = true);
    until(&agents, &mut woken, |r| r.is_some_and(|r| r.ready)).await;
    assert!(woken.try_recv().is_err(), "woken more often than there was news");

    server.kill();
    until(&agents, &mut woken, |r| r.is_none()).await;

    agents.forget("shop", "orders");
    assert!(agents.reports("shop", "orders").is_empty());
    tokio::time::timeout(PATIENCE, async {
        while metrics.agents.get() != 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn an_agent_of_another_cluster_is_not_believed_until_the_certificates_fit() {
    let address = Ipv4Addr::new(127, 81, 0, 2);
    let (ours, theirs) = (certificates(), certificates());
    let (wake, mut woken) = mpsc::unbounded();
    let agents = Agents::new(wake, Metrics::new().unwrap());
    let fake =
        Fake { status: watch::Sender::new(InstanceStatus { ready: true, ..InstanceStatus::default() }) };
    let _server = serve(address, &ours, fake).await;
    agents.ensure("shop", "orders", target(address), reach(&theirs, files("one")));
    tokio::time::timeout(PATIENCE, woken.next()).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(1), woken.next()).await.is_err());
    assert!(agents.reports("shop", "orders").is_empty());
    assert!(agents.needs_tls("shop", "orders", &ours.hash(CertRole::Controller).unwrap()));
    agents.ensure("shop", "orders", target(address), reach(&ours, files("one")));
    until(&agents, &mut woken, |r| r.is_some_and(|r| r.ready)).await;
}
