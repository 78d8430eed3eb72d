//! Bytes over TLS as they are, for what no HTTP library would send.

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

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A TLS connection to the gateway, HTTP/1.1 by ALPN.
pub struct Raw(TlsStream<TcpStream>);

impl Raw {
    /// Connects to `127.0.0.1:port`.
    pub async fn connect(port: u16, ca: &Path) -> Result<Self> {
        let connector = TlsConnector::from(Arc::new(tls(ca, &[b"http/1.1"])?));
        let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
        tcp.set_nodelay(true)?;
        Ok(Self(connector.connect(ServerName::try_from("localhost")?, tcp).await?))
    }

    /// Sends bytes.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write_all(bytes).await?;
        Ok(self.0.flush().await?)
    }

    /// Some bytes; how many. What is not read stays with the server.
    pub async fn read_some(&mut self, most: usize) -> Result<usize> {
        let mut bytes = vec![0; most];
        let read = tokio::time::timeout(PATIENCE, self.0.read(&mut bytes));
        Ok(read.await.context("nothing comes")??)
    }

    /// Sends a request, or the rest of one, and gives the beginning of its answer.
    pub async fn request(&mut self, request: &str) -> Result<String> {
        self.write(request.as_bytes()).await?;
        let mut bytes = vec![0; 16 * 1024];
        let read = tokio::time::timeout(PATIENCE, self.0.read(&mut bytes));
        let read = read.await.context("nothing comes")??;
        Ok(String::from_utf8_lossy(&bytes[..read]).into_owned())
    }

    /// Everything until the server closes.
    pub async fn read_all(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        let read = async {
            let mut chunk = vec![0; 16 * 1024];
            loop {
                match self.0.read(&mut chunk).await {
                    // A close without TLS's own goodbye counts as a close.
                    Ok(0) | Err(_) => break,
                    Ok(n) => bytes.extend_from_slice(&chunk[..n]),
                }
            }
        };
        tokio::time::timeout(PATIENCE, read).await.context("the server does not close")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// One exchange: sends, then reads until the server closes (say `Connection: close`).
    pub async fn exchange(port: u16, ca: &Path, bytes: &[u8]) -> Result<String> {
        let mut raw = Self::connect(port, ca).await?;
        // The server may close before it has read everything; what it said counts.
        let _ = raw.write(bytes).await;
        raw.read_all().await
    }
}
