//! HTTP client for admin APIs on this host: an orchestrator's, or an Envoy's.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;

/// Deadline of a request: the status of ten thousand tenants looks at as many folders.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bound on a response: 100,000 tenants of 400 bytes.
const RESPONSE_MAX_BYTES: usize = 64 << 20;

/// Reason why there is no usable response, with the way out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The address is not an HTTP URL.
    #[error("invalid URL {url:?}: give one such as http://127.0.0.1:7102 with {option}")]
    InvalidUrl {
        /// The address as it was given.
        url: String,
        /// The option that sets it.
        option: &'static str,
    },
    /// The server does not respond.
    #[error("no {server} responds at {url} ({cause}): {advice}")]
    Unreachable {
        /// Kind of server.
        server: &'static str,
        /// The server's address.
        url: String,
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
        /// URL, status and body, for the operator.
        text: String,
    },
    /// The response is not of the expected form.
    #[error("unexpected response from {url}: incompatible version? ({cause})")]
    Unexpected {
        /// The URL of the request.
        url: String,
        /// The first fault of the response.
        cause: serde_json::Error,
    },
}

/// A client of one server.
#[derive(Debug, Clone)]
pub(crate) struct AdminClient {
    base: String,
    server: &'static str,
    advice: &'static str,
}

impl AdminClient {
    /// Prepares requests to an orchestrator.
    pub(crate) fn orchestrator(url: &str) -> Result<Self, ClientError> {
        let advice = "start one with `orchestrator serve`, or give its address with --admin or \
                      SQ_ADMIN";
        Self::new(url, "orchestrator", "--admin or SQ_ADMIN", advice)
    }

    /// Prepares requests to an Envoy.
    pub(crate) fn envoy(url: &str) -> Result<Self, ClientError> {
        let advice = "start it, or give its admin address with --envoy-admin";
        Self::new(url, "Envoy", "--envoy-admin", advice)
    }

    fn new(
        url: &str,
        server: &'static str,
        option: &'static str,
        advice: &'static str,
    ) -> Result<Self, ClientError> {
        let base = url.trim_end_matches('/').to_owned();
        let is_http = base.parse::<Uri>().is_ok_and(|uri| uri.scheme_str() == Some("http"));
        if !is_http {
            return Err(ClientError::InvalidUrl { url: url.to_owned(), option });
        }
        Ok(Self { base, server, advice })
    }

    /// Returns the address without a slash at its end.
    pub(crate) fn base(&self) -> &str {
        &self.base
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
        let url = format!("{}{path}", self.base);
        let request = Request::builder()
            .method(method)
            .uri(&url)
            .body(Empty::<Bytes>::new())
            .map_err(|error| self.unreachable(error.to_string()))?;
        let (status, body) = match tokio::time::timeout(TIMEOUT, exchange(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(cause)) => return Err(self.unreachable(cause)),
            Err(_) => {
                let cause = format!("no response within {} s", TIMEOUT.as_secs());
                return Err(self.unreachable(cause));
            }
        };
        if !(200..300).contains(&status) {
            let body = String::from_utf8_lossy(&body);
            let text = format!("{url} responds with {status}: {}", body.trim());
            return Err(ClientError::Refused { status, text });
        }
        serde_json::from_slice(&body).map_err(|cause| ClientError::Unexpected { url, cause })
    }

    fn unreachable(&self, cause: String) -> ClientError {
        let Self { base, server, advice } = self;
        ClientError::Unreachable { server, url: base.clone(), cause, advice }
    }
}

async fn exchange(request: Request<Empty<Bytes>>) -> Result<(u16, Bytes), String> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let response = client.request(request).await.map_err(|error| root_cause(&error))?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), RESPONSE_MAX_BYTES).collect().await;
    Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
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
    fn only_http_urls_are_accepted() {
        for url in ["", "localhost", "https://127.0.0.1:7102", "http://a b"] {
            let error = AdminClient::orchestrator(url).unwrap_err().to_string();
            assert!(error.contains("--admin"), "{error}");
        }
        let client = AdminClient::orchestrator("http://127.0.0.1:7102/").unwrap();
        assert_eq!(client.base(), "http://127.0.0.1:7102");
    }

    #[tokio::test]
    async fn unreachable_server_is_named_with_advice() {
        // Port 9 is refused or silent on every host that tests run on.
        let client = AdminClient::envoy("http://127.0.0.1:9").unwrap();
        let error = client.get::<serde_json::Value>("/").await.unwrap_err().to_string();
        assert!(error.contains("no Envoy responds") && error.contains("--envoy-admin"), "{error}");
    }
}
