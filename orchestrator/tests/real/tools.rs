//! Where the real programs are, and a client that speaks to SQ.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use orchestrator::runtime::{Endpoint, Spec};
use protocol::{Limits, TenantId, TierName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

/// Both versions that must work.
pub(crate) const VERSIONS: [&str; 2] = ["0.6.0", "0.5.0"];

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// `.tools` of the repository, or `TOOLS_DIR`.
pub(crate) fn tools() -> PathBuf {
    std::env::var_os("TOOLS_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.tools"), PathBuf::from)
}

/// The pattern the process runtime is configured with.
pub(crate) fn sq_pattern() -> String {
    let there = tools().join("sq-0.6.0/bin/sq");
    assert!(there.exists(), "there is no {}: run `make setup`", there.display());
    tools().join("sq-{version}/bin/sq").display().to_string()
}

pub(crate) fn envoy() -> PathBuf {
    let path = std::env::var_os("ENVOY_BIN").map_or_else(|| tools().join("envoy"), PathBuf::from);
    assert!(path.exists(), "there is no {}: run `make setup`", path.display());
    path
}

pub(crate) fn tenant(name: &str) -> TenantId {
    TenantId::parse(name).unwrap()
}

pub(crate) fn spec(name: &str, version: &str) -> Spec {
    Spec {
        tenant: tenant(name),
        tier: TierName::parse("free").unwrap(),
        limits: Limits::default(),
        sq_version: version.parse().unwrap(),
    }
}

/// One request as SQ wants it; status and body. Status 0: no answer.
pub(crate) async fn ask(
    address: SocketAddr,
    key: &str,
    method: &str,
    path: &str,
    body: &str,
) -> (u16, String) {
    let request = format!(
        "{method} /api/v2/{path} HTTP/1.1\r\nHost: sq\r\nAuthorization: Bearer {key}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(PATIENCE, answer).await.expect("SQ hangs");
    let answer = String::from_utf8_lossy(&answer.unwrap_or_default()).into_owned();
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
    (status, body)
}

pub(crate) async fn write(at: &Endpoint, text: &str) {
    let path = "update?p=notes&c=1.1.1/1.1.1/1.1.1";
    let (status, body) = ask(at.address, at.key.expose(), "POST", path, text).await;
    assert_eq!(status, 200, "{body}");
}

pub(crate) async fn read(at: &Endpoint) -> String {
    let path = "select?p=notes&c=1.1.1/1.1.1/1.1.1";
    let (status, body) = ask(at.address, at.key.expose(), "GET", path, "").await;
    assert_eq!(status, 200, "{body}");
    body
}

/// Polls until it is so.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
