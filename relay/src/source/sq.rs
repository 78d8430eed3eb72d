//! The registry in an SQ server on the mesh.
//!
//! Each poll is one `GET /api/v2/get?p=NAME` on a new connection, since SQ serves one request per
//! connection.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, HOST, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Reading, Text};
use crate::registry::scroll::REGISTRY_MAX_BYTES;
use crate::secret_file::warn_if_open_to_others;

/// Time-out of a request. SQ first reads the phext from disk: 30 ms for the largest that we accept.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Address of a phext in an SQ server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqAddress {
    /// The server as `host:port`.
    pub authority: String,
    /// The phext's name on the server.
    pub phext: String,
    /// File with the server's key. It is read for each request, so that it can be replaced.
    pub key_file: PathBuf,
    /// Interval between two polls.
    pub poll: Duration,
}

/// A phext that is polled for changes.
#[derive(Debug)]
pub(crate) struct SqSource {
    address: SqAddress,
    last: Option<Bytes>,
}

impl SqSource {
    pub(crate) fn new(address: SqAddress) -> Self {
        warn_if_open_to_others(&address.key_file);
        Self { address, last: None }
    }

    pub(crate) fn interval(&self) -> Duration {
        self.address.poll
    }

    /// Polls the source once.
    pub(crate) async fn poll(&mut self) -> Reading {
        let fetched = match timeout(REQUEST_TIMEOUT, self.fetch()).await {
            Ok(fetched) => fetched,
            Err(_) => Err(format!("no response in {REQUEST_TIMEOUT:?}")),
        };
        match fetched {
            Ok(text) if self.last.as_ref() == Some(&text) => Reading::Unchanged,
            Ok(text) => {
                self.last = Some(text.clone());
                Reading::New(Text { bytes: text.into(), by_command: false })
            }
            Err(error) => {
                self.last = None;
                Reading::Unreadable(format!("http://{}: {error}", self.address.authority))
            }
        }
    }

    async fn fetch(&self) -> Result<Bytes, String> {
        let SqAddress { authority, phext, key_file, .. } = &self.address;
        let request = Request::get(format!("/api/v2/get?p={phext}"))
            .header(HOST, authority)
            .header(AUTHORIZATION, bearer(key_file).await?)
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let stream = TcpStream::connect(authority).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
            if response.status() != StatusCode::OK {
                return Err(format!("status {}", response.status().as_u16()));
            }
            let body = Limited::new(response.into_body(), REGISTRY_MAX_BYTES);
            let body = body.collect().await.map_err(|error| error.to_string())?;
            Ok(body.to_bytes())
        };
        tokio::pin!(exchange);
        tokio::select! {
            result = &mut exchange => result,
            // The connection may end before the exchange has taken its last bytes.
            _ = connection => exchange.await,
        }
    }
}

/// Reads the server's key as the value of an `Authorization` header.
async fn bearer(key_file: &Path) -> Result<HeaderValue, String> {
    let key = tokio::fs::read_to_string(key_file)
        .await
        .map_err(|error| format!("{}: {error}", key_file.display()))?;
    let mut bearer = HeaderValue::try_from(format!("Bearer {}", key.trim()))
        .map_err(|_| format!("{}: contains bytes that no key has", key_file.display()))?;
    bearer.set_sensitive(true);
    Ok(bearer)
}
