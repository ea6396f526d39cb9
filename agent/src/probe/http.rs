//! Plain HTTP for short answers: one request a connection, whoever says nothing makes room for the next.

use std::{convert::Infallible, future::Future, net::SocketAddr, time::Duration};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};

use crate::grpc::limits::{Keep, Oldest};

/// Open connections.
const AT_ONCE: usize = 32;
/// For a client to send its request.
const REQUEST: Duration = Duration::from_secs(5);
/// For all of a connection.
const CONNECTION: Duration = Duration::from_secs(10);
/// A request is one line and some headers; hyper's smallest buffer.
const BUFFER: usize = 8 * 1024;

/// A port that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen on {address} for {what}")]
pub struct ListenError {
    /// What it is for.
    pub what: &'static str,
    /// Where.
    pub address: SocketAddr,
    /// Why.
    pub source: std::io::Error,
}

pub(crate) async fn listen(address: SocketAddr, what: &'static str) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError { what, address, source })
}

/// Plain text.
pub(crate) fn text(status: StatusCode, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Answers GET and HEAD by path, for ever.
pub(crate) async fn serve<F, A>(listener: TcpListener, answer: F)
where
    F: Fn(String) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<String>> + Send + 'static,
{
    let mut open = Oldest::new(AT_ONCE);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "failed to accept a connection");
                // Out of file descriptors: nothing tells when there is one again.
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let answer = answer.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = answer.clone();
            async move {
                let method = request.method();
                if method == Method::GET || method == Method::HEAD {
                    return Ok::<_, Infallible>(answer(request.uri().path().to_owned()).await);
                }
                let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".into());
                refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
                Ok(refused)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST)
            .keep_alive(false)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(stream), service);
        let task = tokio::spawn(async move {
            let _ = timeout(CONNECTION, connection).await;
        });
        open.push(task.abort_handle(), Keep::default());
    }
}
