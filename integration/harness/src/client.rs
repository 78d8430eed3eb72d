//! An HTTPS client that trusts the development CA, in HTTP/1.1 or HTTP/2.

pub mod load;
pub mod raw;

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{HeaderMap, Method, Request, StatusCode, Version};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::client::WantsClientCert;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::host::certs::Certs;

/// Longest wait for an answer: longer than Envoy waits for SQ.
const PATIENCE: Duration = Duration::from_secs(40);

/// Which HTTP is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Http {
    /// HTTP/1.1.
    One,
    /// HTTP/2.
    Two,
}

/// Speaks to one server, as one tenant or as nobody. Clones share their connections.
#[derive(Clone)]
pub struct Client {
    pool: Pool<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
    authorization: Option<String>,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// What the server spoke.
    pub version: Version,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// TLS that trusts `ca` (a PEM file) and offers `alpn`.
pub fn tls(ca: &Path, alpn: &[&[u8]]) -> Result<ClientConfig> {
    let mut config = config(roots(ca)?)?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

fn roots(ca: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for cert in certificates(ca)? {
        roots.add(cert)?;
    }
    Ok(roots)
}

fn certificates(pem: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = fs::read(pem).with_context(|| format!("can't read {}", pem.display()))?;
    Ok(CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>()?)
}

fn config(roots: RootCertStore) -> Result<ClientConfig> {
    Ok(builder(roots)?.with_no_client_auth())
}

fn builder(roots: RootCertStore) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots))
}

impl Client {
    /// A client of `base` (`https://127.0.0.1:8443`).
    pub fn new(base: &str, ca: &Path, http: Http) -> Result<Self> {
        Ok(Self::over(base, tls(ca, &[])?, http))
    }

    /// A client of `base` that shows the certificate `name`.
    pub fn certified(base: &str, certs: &Certs, name: &str) -> Result<Self> {
        let key = PrivateKeyDer::from_pem_file(certs.key(name))?;
        let tls = builder(roots(&certs.ca())?)?
            .with_client_auth_cert(certificates(&certs.cert(name))?, key)?;
        Ok(Self::over(base, tls, Http::One))
    }

    /// A client of `base` without TLS: what listens on the loopback for operators.
    pub fn plain(base: &str) -> Result<Self> {
        let config = config(RootCertStore::empty())?;
        Ok(Self::over(base, config, Http::One))
    }

    /// A client that comes from another address of the loopback.
    pub fn coming_from(base: &str, ca: &Path, http: Http, address: IpAddr) -> Result<Self> {
        Ok(Self::dialling(base, tls(ca, &[])?, http, Some(address)))
    }

    fn over(base: &str, tls: ClientConfig, http: Http) -> Self {
        Self::dialling(base, tls, http, None)
    }

    fn dialling(base: &str, tls: ClientConfig, http: Http, from: Option<IpAddr>) -> Self {
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        // As curl, browsers and libraries do: else a request after a handshake waits for 40 ms.
        tcp.set_nodelay(true);
        tcp.set_local_address(from);
        let (connector, h2) = match http {
            Http::One => (builder.enable_http1().wrap_connector(tcp), false),
            Http::Two => (builder.enable_http2().wrap_connector(tcp), true),
        };
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .http2_only(h2)
            .build(connector);
        Self { pool, base: base.to_owned(), authorization: None }
    }

    /// The same client with a key, as `Authorization: Bearer`.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self { authorization: Some(format!("Bearer {key}")), ..self.clone() }
    }

    /// GET of a path with its query.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    /// GET with further headers.
    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        self.send(Method::GET, path, headers, Bytes::new()).await
    }

    /// POST of a body.
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Result<Answer> {
        self.send(Method::POST, path, &[], body.into()).await
    }

    /// Any request.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body))?;
        let whole = async {
            let (head, body) = self.pool.request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            anyhow::Ok((head, body))
        };
        let (head, body) = tokio::time::timeout(PATIENCE, whole)
            .await
            .with_context(|| format!("{path}: no answer in {PATIENCE:?}"))?
            .with_context(|| path.to_owned())?;
        let status = head.status.as_u16();
        Ok(Answer { status, version: head.version, headers: head.headers, body })
    }
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header, empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Whether it is 200.
    pub fn ok(&self) -> bool {
        self.status == StatusCode::OK.as_u16()
    }
}

/// Text as a query's value: everything but letters, digits and `-._~/` is percent-encoded.
pub fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
