//! A gRPC channel to one agent: to the pod's IP, under the name in its certificate.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

const CONNECT: Duration = Duration::from_secs(3);

/// Why an agent can't be reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("{0:?} is not a server name")]
    Name(String),
    #[error("{}", chain(.0))]
    Transport(#[from] tonic::transport::Error),
}

/// An error with its causes: the outermost alone says "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

pub(super) async fn connect(
    address: SocketAddr,
    name: &str,
    tls: Arc<ClientConfig>,
) -> Result<Channel, ConnectError> {
    let bad_name = || ConnectError::Name(name.to_owned());
    let server = ServerName::try_from(name.to_owned()).map_err(|_| bad_name())?;
    // The scheme is http because TLS is made below, by the connector.
    let endpoint = Endpoint::from_shared(format!("http://{name}:{}", address.port()))
        .map_err(|_| bad_name())?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(Duration::from_secs(15))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .buffer_size(8);
    let connector = tower::service_fn(move |_: http::Uri| {
        let tls = TlsConnector::from(tls.clone());
        let server = server.clone();
        async move {
            let tcp = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await??;
            tcp.set_nodelay(true)?;
            let stream = tokio::time::timeout(CONNECT, tls.connect(server, tcp)).await??;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    Ok(endpoint.connect_with_connector(connector).await?)
}
