//! A gateway: HTTP/1.1 over TLS with a client certificate, one connection per request.

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

use crate::world::Pair;

#[derive(Clone)]
pub(crate) struct Client {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// One connection.
pub(crate) struct Open {
    /// How TLS was begun.
    pub(crate) handshake: Option<HandshakeKind>,
    sender: SendRequest<Full<Bytes>>,
    connection: JoinHandle<hyper::Result<()>>,
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

    /// Connects, and stays so.
    pub(crate) async fn open(&self) -> Result<Open, String> {
        let text = |e: &dyn std::error::Error| e.to_string();
        let stream = TcpStream::connect(self.address).await.map_err(|e| text(&e))?;
        let name = ServerName::try_from("localhost").unwrap();
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        let stream = connector.connect(name, stream).await.map_err(|e| text(&e))?;
        let handshake = stream.get_ref().1.handshake_kind();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| text(&e))?;
        Ok(Open { handshake, sender, connection: tokio::spawn(connection) })
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<Answer, String> {
        self.open().await?.send(method, path, body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Answer, String> {
        self.send("GET", path, "").await
    }

    pub(crate) async fn verify(&self, key: &ApiKey) -> VerifyResponse {
        let body = format!("{{\"key_sha256\":\"{}\"}}", key.hash());
        json(&self.send("POST", "/v1/verify", &body).await.unwrap())
    }

    pub(crate) async fn verdict(&self, key: &ApiKey) -> Option<Verdict> {
        self.verify(key).await.verdict
    }

    /// Where the feed begins.
    pub(crate) async fn beginning(&self) -> ChangesResponse {
        json(&self.get("/v1/changes?wait_ms=20000").await.unwrap())
    }

    pub(crate) async fn changes(&self, from: &ChangesResponse, wait_ms: u32) -> ChangesResponse {
        let (epoch, since) = (&from.epoch.0, from.revision);
        let path = format!("/v1/changes?epoch={epoch}&since={since}&wait_ms={wait_ms}");
        json(&self.get(&path).await.unwrap())
    }
}

fn json<T: DeserializeOwned>(answer: &Answer) -> T {
    assert_eq!(answer.status, 200, "{}", answer.body);
    serde_json::from_str(&answer.body).unwrap()
}

impl Open {
    pub(crate) async fn send(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<Answer, String> {
        let text = |e: &dyn std::error::Error| e.to_string();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .body(Full::new(Bytes::from(body.to_owned())))
            .unwrap();
        let answer = self.sender.send_request(request).await.map_err(|e| text(&e))?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.map_err(|e| text(&e))?.to_bytes();
        Ok(Answer { status, body: String::from_utf8(body.into()).unwrap() })
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<Answer, String> {
        self.send("GET", path, "").await
    }

    /// Whether the relay has closed it.
    pub(crate) fn ended(&self) -> bool {
        self.connection.is_finished()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
