//! A phext in an SQ server on the mesh: `GET /api/v2/get?p=NAME`, one request per connection, as SQ
//! speaks it.

use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, HOST, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Reading;
use crate::registry::scroll::REGISTRY_MAX_BYTES;

/// Time for one answer. SQ reads the phext from disk first: 30 ms for the largest we take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where the phext is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqAddress {
    /// `host:port`.
    pub authority: String,
    /// The phext's name.
    pub phext: String,
    /// File with the server's key; read for each request, so that it can be changed.
    pub key_file: PathBuf,
    /// How often to ask.
    pub poll: Duration,
}

/// The registry in an SQ server.
#[derive(Debug)]
pub struct SqSource {
    address: SqAddress,
    last: Option<Bytes>,
}

impl SqSource {
    /// The registry at `address`.
    pub fn new(address: SqAddress) -> Self {
        Self { address, last: None }
    }

    /// How often it is asked.
    pub fn interval(&self) -> Duration {
        self.address.poll
    }

    /// Asks once.
    pub async fn poll(&mut self) -> Reading {
        let asked = tokio::time::timeout(TIMEOUT, self.get()).await;
        match asked.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
            Ok(text) if self.last.as_ref() == Some(&text) => Reading::Same,
            Ok(text) => {
                self.last = Some(text.clone());
                Reading::New(text.into())
            }
            Err(why) => {
                self.last = None;
                Reading::Gone(format!("http://{}: {why}", self.address.authority))
            }
        }
    }

    async fn get(&self) -> Result<Bytes, String> {
        let SqAddress { authority, phext, key_file, .. } = &self.address;
        let key = tokio::fs::read_to_string(key_file)
            .await
            .map_err(|e| format!("{}: {e}", key_file.display()))?;
        let mut bearer = HeaderValue::try_from(format!("Bearer {}", key.trim()))
            .map_err(|_| format!("{}: not a key", key_file.display()))?;
        bearer.set_sensitive(true);
        let request = Request::get(format!("/api/v2/get?p={phext}"))
            .header(HOST, authority)
            .header(AUTHORIZATION, bearer)
            .body(Empty::<Bytes>::new())
            .map_err(|e| e.to_string())?;
        let stream = TcpStream::connect(authority).await.map_err(|e| e.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
            if answer.status() != StatusCode::OK {
                return Err(format!("status {}", answer.status().as_u16()));
            }
            let body = Limited::new(answer.into_body(), REGISTRY_MAX_BYTES);
            Ok(body.collect().await.map_err(|e| e.to_string())?.to_bytes())
        };
        tokio::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => answer,
            // The connection has no more to read; what it brought may still be in the exchange.
            _ = connection => exchange.await,
        }
    }
}
