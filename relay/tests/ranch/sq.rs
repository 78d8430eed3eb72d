//! A real SQ server that holds a registry.

use std::io::{BufRead, BufReader};
use std::net::TcpListener as StdListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use relay::Config;
use relay::config::SourceConfig;
use relay::source::sq::SqAddress;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::test_ranch::{TestRanch, until};

const SQ_KEY: &str = "pmb-v1-5e12e7000000000000000000000000aa";

/// The SQ binary that `scripts/setup.sh` has installed.
fn sq_binary(version: &str) -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools");
    let binary = tools.join(format!("sq-{version}/bin/sq"));
    assert!(binary.exists(), "{} is missing: run scripts/setup.sh", binary.display());
    binary
}

pub(crate) struct Sq {
    child: Child,
    port: u16,
}

impl Sq {
    /// Starts SQ in the ranch's folder on a free port. Its phext `ranch` does not exist yet.
    pub(crate) async fn new(ranch: &TestRanch, version: &str) -> Self {
        std::fs::create_dir(ranch.path("sq")).unwrap();
        std::fs::write(ranch.path("sq.key"), format!("{SQ_KEY}\n")).unwrap();
        let port = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self::start(ranch, version, port).await
    }

    /// Settings of a relay that reads the registry from this server.
    pub(crate) fn config(&self, ranch: &TestRanch) -> Config {
        let source = SourceConfig::Sq(SqAddress {
            authority: format!("127.0.0.1:{}", self.port),
            phext: "ranch".to_owned(),
            key_file: ranch.path("sq.key"),
            poll: Duration::from_millis(50),
        });
        Config { source, ..ranch.config() }
    }

    /// Kills the server. Returns its port for a restart.
    pub(crate) fn kill(self) -> u16 {
        self.port
    }

    /// Starts SQ on the data in the ranch's folder.
    pub(crate) async fn start(ranch: &TestRanch, version: &str, port: u16) -> Self {
        let data = &ranch.path("sq");
        let mut child = Command::new(sq_binary(version))
            .args(["host", &port.to_string(), "--key", SQ_KEY, "--data-dir"])
            .arg(data)
            .current_dir(data)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().for_each(drop));
        until("SQ responds", || responds(port)).await;
        Self { child, port }
    }

    /// Writes one scroll of the phext.
    pub(crate) async fn update(&self, coordinate: &str, scroll: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let head = format!(
            "POST /api/v2/update?p=ranch&c={coordinate} HTTP/1.1\r\nhost: a\r\n\
             authorization: Bearer {SQ_KEY}\r\ncontent-length: {}\r\n\r\n",
            scroll.len()
        );
        stream.write_all((head + scroll).as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    }

    /// Writes a whole registry, tenants before tiers, so that no intermediate state is valid.
    pub(crate) async fn write(&self, text: &str) {
        let mut scrolls = libphext::phext::phokenize(text);
        scrolls.reverse();
        for scroll in scrolls {
            self.update(&scroll.coord.to_string(), &scroll.scroll).await;
        }
    }
}

/// Sends a request without a key, which SQ refuses with 401 before it touches any data. A connection
/// without a request would end SQ 0.5.0.
async fn responds(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { return false };
    let request = b"GET /api/v2/version HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut response = String::new();
    stream.write_all(request).await.is_ok()
        && stream.read_to_string(&mut response).await.is_ok()
        && response.starts_with("HTTP/1.1 401")
}

impl Drop for Sq {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
