//! Raw bytes over TLS, for requests that no HTTP library would send.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::tls;

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Deadline for a response.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Size of the buffer of one read.
const CHUNK_BYTES: usize = 16 * 1024;

/// A TLS connection to the gateway.
pub struct Raw(TlsStream<TcpStream>);

impl Raw {
    /// Connects to `127.0.0.1:port` for HTTP/1.1.
    pub async fn connect(port: u16, ca: &Path) -> Result<Self> {
        Self::connect_from(LOOPBACK, port, ca, b"http/1.1").await
    }

    /// Connects to `127.0.0.1:port` for HTTP/2.
    pub async fn connect_http2(port: u16, ca: &Path) -> Result<Self> {
        Self::connect_from(LOOPBACK, port, ca, b"h2").await
    }

    /// Connects to `127.0.0.1:port` from an address of the loopback, for the protocol `alpn`.
    pub async fn connect_from(from: Ipv4Addr, port: u16, ca: &Path, alpn: &[u8]) -> Result<Self> {
        let connector = TlsConnector::from(Arc::new(tls(ca, &[alpn])?));
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        let tcp = socket.connect((LOOPBACK, port).into()).await?;
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

    /// Reads the bytes that arrive within `time`; `None` if there are none. An error if the server has closed the
    /// connection.
    pub async fn read_within(&mut self, time: Duration) -> Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; CHUNK_BYTES];
        let Ok(count) = tokio::time::timeout(time, self.0.read(&mut bytes)).await else {
            return Ok(None);
        };
        let count = count?;
        ensure!(count > 0, "the server has closed the connection");
        bytes.truncate(count);
        Ok(Some(bytes))
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
