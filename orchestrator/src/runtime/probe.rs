//! Readiness probe: waits until SQ answers HTTP.
//!
//! SQ answers an unauthenticated GET with 401 before it touches any state; that is the probe. Each
//! probe is a complete request whose response is read to the end, because SQ 0.5.0 crashes when a
//! connection is opened and closed without one.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::runtime::RuntimeError;

/// A complete request that changes no state.
const PROBE: &[u8] = b"GET /api/v2/version HTTP/1.1\r\nHost: sq\r\n\r\n";

/// Start of every SQ version's response to [`PROBE`].
const UNAUTHORIZED: &[u8] = b"HTTP/1.1 401";

/// Retry interval. SQ answers 1 ms after exec, and a refused connection costs next to nothing.
const POLL: Duration = Duration::from_millis(3);

/// Bound on the response. SQ sends a few dozen bytes; a server that sends more is not SQ.
const RESPONSE_MAX_BYTES: u64 = 4096;

/// Bytes of an unexpected response that the error quotes.
const QUOTED_BYTES: usize = 20;

/// Probes `address` until SQ answers or `within` has passed. A server that answers an
/// unauthenticated request with anything but 401 fails at once: it is not our SQ.
pub async fn wait_until_ready(address: SocketAddr, within: Duration) -> Result<(), RuntimeError> {
    let deadline = Instant::now() + within;
    let waited_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
    loop {
        // A probe may use all the time that is left: abandoning it could crash SQ 0.5.0.
        let left = deadline.saturating_duration_since(Instant::now());
        match timeout(left, probe(address)).await {
            Ok(Ok(head)) if head.starts_with(UNAUTHORIZED) => return Ok(()),
            Ok(Ok(head)) if !head.is_empty() => {
                return Err(RuntimeError::Failed(format!(
                    "{address} answers a request without a key with {:?} instead of 401",
                    String::from_utf8_lossy(&head[..head.len().min(QUOTED_BYTES)])
                )));
            }
            Ok(_) if Instant::now() + POLL < deadline => sleep(POLL).await,
            _ => return Err(RuntimeError::NotReady { waited_ms }),
        }
    }
}

async fn probe(address: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(PROBE).await?;
    let mut response = Vec::new();
    stream.take(RESPONSE_MAX_BYTES).read_to_end(&mut response).await?;
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    const SOON: Duration = Duration::from_millis(500);

    /// A server that sends one of `responses` per connection, in order, and then stops listening.
    async fn server(responses: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            for response in responses {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; PROBE.len()];
                stream.read_exact(&mut request).await.unwrap();
                assert_eq!(request, PROBE);
                stream.write_all(response.as_bytes()).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn sq_is_ready_once_it_answers_401() {
        let address = server(&["", "HTTP/1.1 401 Unauthorized\r\n\r\n"]).await;
        assert_eq!(wait_until_ready(address, SOON).await, Ok(()));
    }

    #[tokio::test]
    async fn server_that_needs_no_key_is_refused() {
        let address = server(&["HTTP/1.1 200 OK\r\n\r\n"]).await;
        assert!(matches!(wait_until_ready(address, SOON).await, Err(RuntimeError::Failed(_))));
    }

    #[tokio::test]
    async fn closed_port_is_not_ready_in_time() {
        let address = server(&[]).await;
        let late = wait_until_ready(address, Duration::from_millis(20)).await;
        assert_eq!(late, Err(RuntimeError::NotReady { waited_ms: 20 }));
    }
}
