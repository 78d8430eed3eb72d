//! An HTTPS client that trusts the development CA, over HTTP/1.1 or HTTP/2; and a client of Unix
//! sockets.

pub mod load;
pub mod raw;
pub mod response;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Client as Pool};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyperlocal::UnixConnector;
use rustls::client::WantsClientCert;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::client::response::Response;
use crate::host::certs::Certs;

/// A cheap read: the table of contents of the phext `index`.
pub const TOC: &str = "/api/v2/toc?p=index";

/// Query of the first scroll of a phext.
pub const FIRST_SCROLL: &str = "c=1.1.1/1.1.1/1.1.1";

/// Deadline for a complete response: longer than Envoy waits for SQ.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(40);

/// The HTTP version of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Http {
    /// HTTP/1.1, one request at a time per connection.
    One,
    /// HTTP/2, many requests on one connection.
    Two,
}

/// A client of one server, with or without a tenant's key. Clones share their connections.
#[derive(Clone)]
pub struct Client {
    server: Server,
    authorization: Option<String>,
}

/// The server of a client, with the pool of connections to it.
#[derive(Clone)]
enum Server {
    /// A base URL, such as `https://127.0.0.1:8443`.
    Tcp(Pool<HttpsConnector<HttpConnector>, Full<Bytes>>, String),
    /// Path of a socket.
    Unix(Pool<UnixConnector, Full<Bytes>>, PathBuf),
}

/// A TLS configuration that trusts `ca` (a PEM file) and offers the protocols `alpn`.
pub fn tls(ca: &Path, alpn: &[&[u8]]) -> Result<ClientConfig> {
    let mut config = builder(roots(ca)?)?.with_no_client_auth();
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

fn builder(roots: RootCertStore) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots))
}

impl Client {
    /// A client of `base` (`https://127.0.0.1:8443`).
    pub fn new(base: &str, ca: &Path, http: Http) -> Result<Self> {
        Ok(Self::connecting(base, tls(ca, &[])?, http, None))
    }

    /// A client of `base` that presents the certificate `name`.
    pub(crate) fn with_certificate(base: &str, certs: &Certs, name: &str) -> Result<Self> {
        let key = PrivateKeyDer::from_pem_file(certs.key(name))?;
        let tls = builder(roots(&certs.ca())?)?
            .with_client_auth_cert(certificates(&certs.cert(name))?, key)?;
        Ok(Self::connecting(base, tls, Http::One, None))
    }

    /// A client of `base` without TLS, for listeners on the loopback.
    pub fn plaintext(base: &str) -> Result<Self> {
        let tls = builder(RootCertStore::empty())?.with_no_client_auth();
        Ok(Self::connecting(base, tls, Http::One, None))
    }

    /// A client of a Unix socket.
    pub fn unix(socket: &Path) -> Self {
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            // The socket's path is no host name.
            .set_host(false)
            .build(UnixConnector);
        Self { server: Server::Unix(pool, socket.to_owned()), authorization: None }
    }

    /// A client that connects from another address of the loopback.
    pub fn from_address(base: &str, ca: &Path, http: Http, address: IpAddr) -> Result<Self> {
        Ok(Self::connecting(base, tls(ca, &[])?, http, Some(address)))
    }

    fn connecting(base: &str, tls: ClientConfig, http: Http, from: Option<IpAddr>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        // As curl, browsers and libraries do: otherwise a request after a handshake waits for 40 ms.
        tcp.set_nodelay(true);
        tcp.set_local_address(from);
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let connector = match http {
            Http::One => builder.enable_http1().wrap_connector(tcp),
            Http::Two => builder.enable_http2().wrap_connector(tcp),
        };
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .http2_only(http == Http::Two)
            .build(connector);
        Self { server: Server::Tcp(pool, base.to_owned()), authorization: None }
    }

    /// The same client with a key, sent as `Authorization: Bearer`.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self { authorization: Some(format!("Bearer {key}")), ..self.clone() }
    }

    /// Writes `text` to the first scroll of a phext.
    pub async fn update(&self, phext: &str, text: &str) -> Result<Response> {
        let text = encode(text);
        self.get(&format!("/api/v2/update?p={phext}&{FIRST_SCROLL}&s={text}")).await
    }

    /// Reads the first scroll of a phext.
    pub async fn select(&self, phext: &str) -> Result<Response> {
        self.get(&format!("/api/v2/select?p={phext}&{FIRST_SCROLL}")).await
    }

    /// Reads the table of contents of a phext.
    pub async fn toc(&self, phext: &str) -> Result<Response> {
        self.get(&format!("/api/v2/toc?p={phext}")).await
    }

    /// Sends GET for a path with its query.
    pub async fn get(&self, path: &str) -> Result<Response> {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    /// Sends GET with additional header fields.
    pub async fn get_with_headers(&self, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
        self.send(Method::GET, path, headers, Bytes::new()).await
    }

    /// Sends POST with a body.
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Result<Response> {
        self.send(Method::POST, path, &[], body.into()).await
    }

    /// Sends any request and reads the whole response.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Response> {
        let name = format!("{method} {path}");
        let mut request = Request::builder().method(method).uri(self.server.uri(path)?);
        if matches!(self.server, Server::Unix(..))
            && headers.iter().all(|(name, _)| *name != "host")
        {
            request = request.header("host", "localhost");
        }
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body))?;
        let exchange = async {
            let (head, body) = self.server.request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            anyhow::Ok((head, body))
        };
        let (head, body) = tokio::time::timeout(RESPONSE_TIMEOUT, exchange)
            .await
            .with_context(|| format!("{name}: no response within {RESPONSE_TIMEOUT:?}"))?
            .with_context(|| name.clone())?;
        Ok(Response {
            request: name,
            status: head.status.as_u16(),
            version: head.version,
            headers: head.headers,
            body,
        })
    }
}

impl Server {
    fn uri(&self, path: &str) -> Result<Uri> {
        Ok(match self {
            Self::Tcp(_, base) => format!("{base}{path}").parse()?,
            Self::Unix(_, socket) => hyperlocal::Uri::new(socket, path).into(),
        })
    }

    async fn request(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<hyper::Response<Incoming>, legacy::Error> {
        match self {
            Self::Tcp(pool, _) => pool.request(request).await,
            Self::Unix(pool, _) => pool.request(request).await,
        }
    }
}

/// Percent-encodes a query's value: all bytes but letters, digits and `-._~/`.
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
