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

use crate::world::{World, until};

const SQ_KEY: &str = "pmb-v1-5e12e7000000000000000000000000aa";

/// An SQ that `scripts/setup.sh` has installed.
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
    /// One in a world's folder, on a port of its own. Its phext `ranch` is not there yet.
    pub(crate) async fn new(world: &World, version: &str) -> Self {
        std::fs::create_dir(world.path("sq")).unwrap();
        std::fs::write(world.path("sq.key"), format!("{SQ_KEY}\n")).unwrap();
        let port = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self::start(world, version, port).await
    }

    /// A relay that reads it.
    pub(crate) fn config(&self, world: &World) -> Config {
        let source = SourceConfig::Sq(SqAddress {
            authority: format!("127.0.0.1:{}", self.port),
            phext: "ranch".to_owned(),
            key_file: world.path("sq.key"),
            poll: Duration::from_millis(50),
        });
        Config { source, ..world.config() }
    }

    /// Kills it and tells its port.
    pub(crate) fn kill(self) -> u16 {
        self.port
    }

    /// Starts one on the world's folder.
    pub(crate) async fn start(world: &World, version: &str, port: u16) -> Self {
        let data = &world.path("sq");
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
        until("SQ answers", || answers(port)).await;
        Self { child, port }
    }

    /// Writes one scroll.
    pub(crate) async fn update(&self, coordinate: &str, scroll: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let head = format!(
            "POST /api/v2/update?p=ranch&c={coordinate} HTTP/1.1\r\nhost: a\r\n\
             authorization: Bearer {SQ_KEY}\r\ncontent-length: {}\r\n\r\n",
            scroll.len()
        );
        stream.write_all((head + scroll).as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Writes a whole registry, tenants before tiers: no state in between is a valid one.
    pub(crate) async fn write(&self, text: &str) {
        let mut scrolls = libphext::phext::phokenize(text);
        scrolls.reverse();
        for scroll in scrolls {
            self.update(&scroll.coord.to_string(), &scroll.scroll).await;
        }
    }
}

/// A request without a key is answered with 401 before SQ touches anything; a connection without
/// a request ends SQ 0.5.0.
async fn answers(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { return false };
    let request = b"GET /api/v2/version HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut answer = String::new();
    stream.write_all(request).await.is_ok()
        && stream.read_to_string(&mut answer).await.is_ok()
        && answer.starts_with("HTTP/1.1 401")
}

impl Drop for Sq {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
