//! HTTP client for admin sockets on this host: an orchestrator's, or an Envoy's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::sockets::PATH_MAX_BYTES;

/// Deadline of a request: the status of ten thousand tenants looks at as many folders.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bound on a response: 100,000 tenants of 400 bytes.
const RESPONSE_MAX_BYTES: usize = 64 << 20;

/// Reason why there is no usable response, with the way out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The path cannot be one of a socket.
    #[error(
        "invalid socket {path:?}: give a path such as /run/sq-gateway/admin.sock with {option}"
    )]
    InvalidPath {
        /// The path as it was given.
        path: PathBuf,
        /// The option that sets it.
        option: &'static str,
    },
    /// The server does not respond.
    #[error("no {server} responds at {socket} ({cause}): {advice}")]
    Unreachable {
        /// Kind of server.
        server: &'static str,
        /// Path of the server's socket.
        socket: String,
        /// The cause that the system reports.
        cause: String,
        /// The operator's next step.
        advice: &'static str,
    },
    /// The server responded with a status other than 2xx.
    #[error("{text}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Request, status and body, for the operator.
        text: String,
    },
    /// The response is not of the expected form.
    #[error("unexpected response to {request}: incompatible version? ({cause})")]
    Unexpected {
        /// Method, socket and path of the request.
        request: String,
        /// The first fault of the response.
        cause: serde_json::Error,
    },
}

/// A client of one server.
#[derive(Debug, Clone)]
pub(crate) struct AdminClient {
    socket: PathBuf,
    server: &'static str,
    advice: &'static str,
}

impl AdminClient {
    /// Prepares requests to an orchestrator.
    pub(crate) fn orchestrator(socket: &Path) -> Result<Self, ClientError> {
        let advice = "start one with `orchestrator serve`, give its socket with --admin or \
                      SQ_ADMIN, or run this as root or as one of its `listen.operator_uids`";
        Self::new(socket, "orchestrator", "--admin or SQ_ADMIN", advice)
    }

    /// Prepares requests to an Envoy.
    pub(crate) fn envoy(socket: &Path) -> Result<Self, ClientError> {
        let advice = "start it, give its admin socket with --envoy-admin, or run this as its user";
        Self::new(socket, "Envoy", "--envoy-admin", advice)
    }

    fn new(
        socket: &Path,
        server: &'static str,
        option: &'static str,
        advice: &'static str,
    ) -> Result<Self, ClientError> {
        let bytes = socket.as_os_str().as_encoded_bytes();
        let is_url = bytes.windows(3).any(|window| window == b"://");
        if bytes.is_empty() || is_url || bytes.len() > PATH_MAX_BYTES {
            return Err(ClientError::InvalidPath { path: socket.to_owned(), option });
        }
        Ok(Self { socket: socket.to_owned(), server, advice })
    }

    /// Returns the path of the socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Sends `GET` and decodes the JSON response.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(Method::GET, path).await
    }

    /// Sends `POST` without a body and decodes the JSON response.
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(Method::POST, path).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
    ) -> Result<T, ClientError> {
        let name = format!("{method} {path} at {}", self.socket.display());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .body(Empty::<Bytes>::new())
            .map_err(|error| self.unreachable(error.to_string()))?;
        let exchange = exchange(&self.socket, request);
        let (status, body) = match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(Ok(response)) => response,
            Ok(Err(cause)) => return Err(self.unreachable(cause)),
            Err(_) => {
                let cause = format!("no response within {} s", TIMEOUT.as_secs());
                return Err(self.unreachable(cause));
            }
        };
        if !(200..300).contains(&status) {
            let body = String::from_utf8_lossy(&body);
            let text = format!("{name} is answered with {status}: {}", body.trim());
            return Err(ClientError::Refused { status, text });
        }
        serde_json::from_slice(&body)
            .map_err(|cause| ClientError::Unexpected { request: name, cause })
    }

    fn unreachable(&self, cause: String) -> ClientError {
        let Self { socket, server, advice } = self;
        ClientError::Unreachable { server, socket: socket.display().to_string(), cause, advice }
    }
}

/// Sends one request over a new connection.
async fn exchange(socket: &Path, request: Request<Empty<Bytes>>) -> Result<(u16, Bytes), String> {
    let stream = UnixStream::connect(socket).await.map_err(|error| error.to_string())?;
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| root_cause(&error))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| root_cause(&error))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), RESPONSE_MAX_BYTES).collect().await;
        Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
    };
    tokio::pin!(exchange);
    tokio::select! {
        response = &mut exchange => response,
        // The connection may end before the last part of the response is read.
        _ = connection => exchange.await,
    }
}

/// Finds the innermost cause: the outer ones only say that a connection failed.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_long_paths_are_refused() {
        let long = format!("/{}", "x".repeat(PATH_MAX_BYTES));
        for path in ["", "http://127.0.0.1:7102", &long] {
            let error = AdminClient::orchestrator(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains("--admin"), "{error}");
        }
        let path = Path::new("/run/sq-gateway/admin.sock");
        assert_eq!(AdminClient::orchestrator(path).unwrap().socket(), path);
    }

    #[tokio::test]
    async fn unreachable_server_is_named_with_advice() {
        let client = AdminClient::envoy(Path::new("/nowhere/admin.sock")).unwrap();
        let error = client.get::<serde_json::Value>("/").await.unwrap_err().to_string();
        assert!(error.contains("no Envoy responds") && error.contains("--envoy-admin"), "{error}");
    }
}
