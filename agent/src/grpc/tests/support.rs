//! A server with its Secrets, and clients that hold what they like.

use std::{net::SocketAddr, sync::Arc};

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use pgwarden_proto::{
    identity::CertRole,
    v1::{
        ConfigureResponse, HeartbeatResponse, InstanceStatus, JoinResponse, agent_client::AgentClient,
        peer_client::PeerClient,
    },
};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Status,
    codegen::Service,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::health_client::HealthClient;

use crate::{
    bus::{Bus, Request},
    config::Config,
    postgres::testing::config,
    tls::{
        Store,
        testing::{Authority, Leaf, TempDir},
    },
};

pub(super) struct Server {
    pub(super) dir: TempDir,
    pub(super) config: Config,
    pub(super) authority: Authority,
    pub(super) store: Store,
    pub(super) bus: Bus,
    pub(super) address: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Server {
    pub(super) async fn start() -> Self {
        let dir = TempDir::new("grpc");
        let config = config(dir.path());
        std::fs::create_dir_all(&config.tls_dir).unwrap();
        let authority = Authority::new(&config.namespace, &config.cluster);
        authority.mount(&config.cert_dir);
        let store = Store::load(&config).await;
        assert_eq!(store.problems(), []);
        let status = InstanceStatus { cluster: config.cluster.clone(), ..InstanceStatus::default() };
        let (bus, mut requests) = Bus::new(status);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn({
            let (store, bus) = (store.clone(), bus.clone());
            async move { crate::grpc::serve_on(listener, store, bus).await.unwrap() }
        });
        // The driver's side of the bus.
        let driver = tokio::spawn(async move {
            while let Some(request) = requests.recv().await {
                match request {
                    Request::Join(q, reply) => {
                        let slot = format!("m{}", q.ordinal);
                        let _ = reply.send(Ok(JoinResponse { slot, ..JoinResponse::default() }));
                    }
                    Request::Heartbeat(q, reply) => {
                        let epoch = q.promised_epoch;
                        let answer = match epoch {
                            666 => Err(Status::failed_precondition("not the holder")),
                            667 => continue,
                            _ => Ok(HeartbeatResponse { epoch, holder: true, flushed_lsn: 0 }),
                        };
                        let _ = reply.send(answer);
                    }
                    Request::Configure(q, reply) => {
                        let _ = reply.send(Ok(ConfigureResponse { applied: q.generation > 0 }));
                    }
                    Request::CertificatesChanged => {}
                }
            }
        });
        Self { dir, config, authority, store, bus, address, tasks: vec![server, driver] }
    }

    pub(super) fn publish(&self, change: impl FnOnce(&mut InstanceStatus)) {
        let mut status = InstanceStatus::clone(&self.bus.status());
        change(&mut status);
        self.bus.status.send_replace(Arc::new(status));
    }

    /// A client with a fresh certificate of the role.
    pub(super) fn client(&self, role: CertRole) -> Client {
        self.client_with(Some(&self.authority.issue(role)))
    }

    pub(super) fn client_with(&self, leaf: Option<&Leaf>) -> Client {
        Client::new(self.address, &self.authority.pem(), leaf, &rustls::version::TLS13)
    }
}

/// How a client connects.
#[derive(Clone)]
pub(super) struct Client {
    address: SocketAddr,
    config: Arc<ClientConfig>,
}

impl Client {
    pub(super) fn new(
        address: SocketAddr,
        authority: &str,
        leaf: Option<&Leaf>,
        version: &'static SupportedProtocolVersion,
    ) -> Self {
        let certificates = |pem: &str| {
            CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap()
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates(authority));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match leaf {
            Some(leaf) => {
                let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(certificates(&leaf.certificate), key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self { address, config: Arc::new(config) }
    }

    async fn connect(self) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("c-pods.n.svc").unwrap();
        TlsConnector::from(self.config).connect(name, TcpStream::connect(self.address).await?).await
    }

    /// Connects and waits for the server's first word: only then a client certificate has been looked at (TLS 1.3).
    pub(super) async fn open(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let mut stream = self.clone().connect().await?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
        match stream.read(&mut [0; 9]).await? {
            0 => Err(std::io::Error::other("closed")),
            _ => Ok(stream),
        }
    }

    pub(super) fn channel(&self) -> Channel {
        Endpoint::from_static("http://agent").connect_with_connector_lazy(self.clone())
    }

    pub(super) fn agent(&self) -> AgentClient<Channel> {
        AgentClient::new(self.channel())
    }

    pub(super) fn peer(&self) -> PeerClient<Channel> {
        PeerClient::new(self.channel())
    }

    pub(super) fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel())
    }
}

impl Service<Uri> for Client {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, std::io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let client = self.clone();
        Box::pin(async { Ok(TokioIo::new(client.connect().await?)) })
    }
}
