//! A small HTTP server in this process, in place of the upstream, the relay or the orchestrator.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A server on a loopback port, stopped on drop.
pub(super) struct StubServer {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl StubServer {
    /// Starts a server that passes each path with its query to `body` and sends the result with
    /// status 200. For `None` there is no response, as in a long poll without changes.
    pub(super) async fn start(body: fn(&str) -> Option<String>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let service = service_fn(move |request: Request<Incoming>| async move {
                    let target = request.uri().path_and_query().map_or("/", |t| t.as_str());
                    let Some(body) = body(target) else {
                        return std::future::pending().await;
                    };
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(body))))
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Ok(Self { address, task })
    }

    /// Returns the port on which the server listens.
    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for StubServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
