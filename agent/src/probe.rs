//! Plain HTTP for kubelet: `/readyz` (may clients be sent here) and `/livez` (does the agent run). Nothing else.

pub(crate) mod http;

use ::http::StatusCode;
use pgwarden_proto::v1::InstanceStatus;
use tokio::net::TcpListener;

pub use self::http::ListenError;
use crate::{bus::Bus, config::Config};

/// Longest reason shown: one line for an event of kubelet's.
const REASON: usize = 200;

/// Serves on `config.probe_port`, for ever.
///
/// # Errors
/// When the port cannot be bound.
pub async fn serve(config: Config, bus: Bus) -> Result<(), ListenError> {
    let listener = http::listen(config.listen(config.probe_port), "probes").await?;
    serve_on(listener, bus).await;
    Ok(())
}

/// As [`serve`], on a socket that listens already.
pub async fn serve_on(listener: TcpListener, bus: Bus) {
    http::serve(listener, move |path| {
        let (status, body) = match path.as_str() {
            "/readyz" => readiness(&bus.status()),
            // To be answered at all is what is asked.
            "/livez" => (StatusCode::OK, "ok\n".into()),
            _ => (StatusCode::NOT_FOUND, "there are /readyz and /livez\n".into()),
        };
        std::future::ready(http::text(status, body))
    })
    .await;
}

fn readiness(status: &InstanceStatus) -> (StatusCode, String) {
    if status.ready {
        return (StatusCode::OK, "ok\n".into());
    }
    let line = match (status.state.as_str(), status.reason.as_str()) {
        ("", "") => "not ready".into(),
        (state, "") => format!("not ready: {state}"),
        (state, reason) => format!("not ready: {state}: {reason}"),
    };
    let mut line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON).collect();
    line.push('\n');
    (StatusCode::SERVICE_UNAVAILABLE, line)
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Arc, time::Duration};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        time::timeout,
    };

    use super::*;

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    async fn get(address: SocketAddr, path: &str) -> (String, String) {
        let answer = ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().to_owned(), body.to_owned())
    }

    async fn server() -> (SocketAddr, Bus, tokio::task::JoinHandle<()>) {
        let (bus, _) = Bus::new(InstanceStatus::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(serve_on(listener, bus.clone()));
        (address, bus, task)
    }

    #[tokio::test]
    async fn readiness_follows_the_status_with_its_reason() {
        let (address, bus, task) = server().await;
        let publish = |ready, state: &str, reason: &str| {
            let (state, reason) = (state.into(), reason.into());
            bus.status.send_replace(Arc::new(InstanceStatus {
                ready,
                state,
                reason,
                ..InstanceStatus::default()
            }));
        };
        let answer = |code: &str, body: &str| (code.to_owned(), body.to_owned());
        assert_eq!(get(address, "/readyz").await, answer("503", "not ready\n"));
        publish(false, "Clone", "");
        assert_eq!(get(address, "/readyz").await, answer("503", "not ready: Clone\n"));
        publish(false, "Clone", "copying from\nprimary");
        assert_eq!(get(address, "/readyz").await, answer("503", "not ready: Clone: copying from primary\n"));
        publish(false, "Blocked", &"é".repeat(1000));
        assert_eq!(get(address, "/readyz").await.1.chars().count(), REASON + 1);
        publish(true, "Primary", "all is well");
        assert_eq!(get(address, "/readyz").await, answer("200", "ok\n"));
        task.abort();
    }

    #[tokio::test]
    async fn there_is_nothing_else() {
        let (address, _bus, task) = server().await;
        assert_eq!(get(address, "/livez").await, ("200".into(), "ok\n".into()));
        for path in ["/", "/metrics", "/readyz/", "/livez/../readyz"] {
            assert_eq!(get(address, path).await.0, "404", "{path}");
        }
        assert_eq!(get(address, "/livez?verbose").await.0, "200");
        let answer = ask(address, "POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
        let answer = ask(address, &format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(20_000))).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        task.abort();
    }

    #[tokio::test]
    async fn silent_connections_do_not_keep_kubelet_out() {
        let (address, _bus, task) = server().await;
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        assert_eq!(get(address, "/livez").await.0, "200");
        let closed = async {
            for stream in &mut silent {
                assert!(!matches!(stream.read(&mut [0]).await, Ok(1..)));
            }
        };
        timeout(Duration::from_secs(8), closed).await.unwrap();
        task.abort();
    }
}
