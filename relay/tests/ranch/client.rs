//! A client like a gateway: HTTP/1.1 over TLS with a client certificate.
//!
//! [`Client`] uses one connection per request; [`Connection`] stays open.

use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use protocol::{ApiKey, ChangesResponse, Verdict, VerifyResponse};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::test_ranch::Pair;

#[derive(Clone)]
pub(crate) struct Client {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
}

pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// An open connection.
pub(crate) struct Connection {
    /// Shows whether TLS resumed a session.
    pub(crate) handshake: Option<HandshakeKind>,
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<hyper::Result<()>>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, ca: &str, pair: Option<&Pair>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let tls = match pair {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let cert = CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        Self { address, tls: Arc::new(tls) }
    }

    pub(crate) async fn open(&self) -> Result<Connection, String> {
        let stream = TcpStream::connect(self.address).await.map_err(|error| error.to_string())?;
        let name = ServerName::try_from("localhost").unwrap();
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        let stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
        let handshake = stream.get_ref().1.handshake_kind();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        Ok(Connection { handshake, sender, driver: tokio::spawn(connection) })
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<Response, String> {
        self.open().await?.send(method, path, body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Response, String> {
        self.send("GET", path, "").await
    }

    pub(crate) async fn verify(&self, key: &ApiKey) -> VerifyResponse {
        let body = format!("{{\"key_sha256\":\"{}\"}}", key.hash());
        json(&self.send("POST", "/v1/verify", &body).await.unwrap())
    }

    pub(crate) async fn verdict(&self, key: &ApiKey) -> Option<Verdict> {
        self.verify(key).await.verdict
    }

    /// The epoch and revision at which following the changes begins.
    pub(crate) async fn current_revision(&self) -> ChangesResponse {
        json(&self.get("/v1/changes?wait_ms=20000").await.unwrap())
    }

    pub(crate) async fn changes(&self, from: &ChangesResponse, wait_ms: u32) -> ChangesResponse {
        let epoch = &from.epoch.0;
        let since = from.revision;
        let path = format!("/v1/changes?epoch={epoch}&since={since}&wait_ms={wait_ms}");
        json(&self.get(&path).await.unwrap())
    }
}

fn json<T: DeserializeOwned>(response: &Response) -> T {
    assert_eq!(response.status, 200, "{}", response.body);
    serde_json::from_str(&response.body).unwrap()
}

impl Connection {
    pub(crate) async fn send(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<Response, String> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .body(Full::new(Bytes::from(body.to_owned())))
            .unwrap();
        let response =
            self.sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let body =
            response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        Ok(Response { status, body: String::from_utf8(body.into()).unwrap() })
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<Response, String> {
        self.send("GET", path, "").await
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.driver.is_finished()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
