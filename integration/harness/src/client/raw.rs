//! Raw bytes over TLS, for requests that no HTTP library would send.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::tls;

/// Deadline for a response.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Size of the buffer of one read.
const CHUNK_BYTES: usize = 16 * 1024;

/// A TLS connection to the gateway, with HTTP/1.1 in its ALPN.
pub struct Raw(TlsStream<TcpStream>);

impl Raw {
    /// Connects to `127.0.0.1:port`.
    pub async fn connect(port: u16, ca: &Path) -> Result<Self> {
        let connector = TlsConnector::from(Arc::new(tls(ca, &[b"http/1.1"])?));
        let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
        tcp.set_nodelay(true)?;
        Ok(Self(connector.connect(ServerName::try_from("localhost")?, tcp).await?))
    }

    /// Sends bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write_all(bytes).await?;
        Ok(self.0.flush().await?)
    }

    /// Reads at most `max` bytes and returns their number. Unread bytes hold the server up.
    pub async fn read_some(&mut self, max: usize) -> Result<usize> {
        Ok(self.read(max).await?.len())
    }

    /// Sends a request, or the rest of one, and returns the beginning of the response.
    pub async fn request(&mut self, request: &str) -> Result<String> {
        self.write(request.as_bytes()).await?;
        let bytes = self.read(CHUNK_BYTES).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn read(&mut self, max: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; max];
        let read = tokio::time::timeout(READ_TIMEOUT, self.0.read(&mut bytes));
        let count = read.await.context("the server does not respond")??;
        bytes.truncate(count);
        Ok(bytes)
    }

    /// Reads until the server closes the connection.
    pub async fn read_all(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        let read = async {
            let mut chunk = vec![0; CHUNK_BYTES];
            loop {
                match self.0.read(&mut chunk).await {
                    // An error is a close without TLS's close_notify.
                    Ok(0) | Err(_) => break,
                    Ok(count) => bytes.extend_from_slice(&chunk[..count]),
                }
            }
        };
        tokio::time::timeout(READ_TIMEOUT, read).await.context("the server does not close")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Sends bytes on a new connection and reads until the server closes it, so the request should
    /// have `Connection: close`.
    pub async fn exchange(port: u16, ca: &Path, bytes: &[u8]) -> Result<String> {
        let mut raw = Self::connect(port, ca).await?;
        // The server may respond and close before it has read everything.
        let _ = raw.write(bytes).await;
        raw.read_all().await
    }
}
