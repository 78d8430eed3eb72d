//! Paths of the real programs, and a client that speaks to SQ.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use orchestrator::runtime::users::UserRange;
use orchestrator::runtime::{Endpoint, Spec};
use protocol::containers::installation_id;
use protocol::{Limits, TenantId, TierName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

/// Releases of SQ that must work.
pub(crate) const VERSIONS: [&str; 2] = ["0.6.0", "0.5.0"];

/// Users of SQ where the tests run as root.
pub(crate) const USERS: UserRange = UserRange { first: 10_001, count: 1_000 };

/// Path and query of the scroll that [`write`] writes.
pub(crate) const SCROLL: &str = "p=notes&c=1.1.1/1.1.1/1.1.1";

/// Time-out of each wait.
const PATIENCE: Duration = Duration::from_secs(20);

/// The repository's `.tools`, or `TOOLS_DIR`.
fn tools() -> PathBuf {
    std::env::var_os("TOOLS_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.tools"), PathBuf::from)
}

/// Path of SQ with `{version}` in it, as the process runtime is configured.
pub(crate) fn sq_pattern() -> String {
    let sq = tools().join("sq-0.6.0/bin/sq");
    assert!(sq.exists(), "{} does not exist: run `make setup`", sq.display());
    tools().join("sq-{version}/bin/sq").display().to_string()
}

pub(crate) fn envoy() -> PathBuf {
    let path = std::env::var_os("ENVOY_BIN").map_or_else(|| tools().join("envoy"), PathBuf::from);
    assert!(path.exists(), "{} does not exist: run `make setup`", path.display());
    path
}

/// Name of the firewall table of the installation with this data root.
pub(crate) fn firewall_table(data_root: &Path) -> String {
    let data_root = data_root.canonicalize().unwrap();
    format!("sq-gateway-{}", installation_id(data_root.as_os_str().as_encoded_bytes()))
}

/// Removes the installation's firewall rules, if it has any.
pub(crate) fn remove_firewall_rules(data_root: &Path) {
    let mut nft = Command::new("nft");
    nft.args(["delete", "table", "inet", &firewall_table(data_root)]).output().unwrap();
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

/// Sends one request to SQ and returns status and body; status 0 if there was no response.
pub(crate) async fn request(
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
    let response = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await?;
        std::io::Result::Ok(response)
    };
    let response = tokio::time::timeout(PATIENCE, response).await.expect("SQ hangs");
    split_response(&String::from_utf8_lossy(&response.unwrap_or_default()))
}

/// Splits an HTTP/1.1 response into status and body; status 0 if it is empty.
pub(crate) fn split_response(response: &str) -> (u16, String) {
    let status = response.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = response.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
    (status, body)
}

/// Writes a text to the scroll at [`SCROLL`].
pub(crate) async fn write(at: &Endpoint, text: &str) {
    let path = format!("update?{SCROLL}");
    let (status, body) = request(at.address, at.key.expose(), "POST", &path, text).await;
    assert_eq!(status, 200, "{body}");
}

/// Reads the scroll at [`SCROLL`].
pub(crate) async fn read(at: &Endpoint) -> String {
    let path = format!("select?{SCROLL}");
    let (status, body) = request(at.address, at.key.expose(), "GET", &path, "").await;
    assert_eq!(status, 200, "{body}");
    body
}

/// Polls until `look` returns a value.
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
