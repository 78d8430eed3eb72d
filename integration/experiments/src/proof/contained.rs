//! SQ alone in a container, as one would run it without the gateway: Docker starts it again.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;

use harness::bare_sq::{KEY, Response, exchange, request};
use harness::host::docker;
use harness::host::ports;
use harness::host::tools;

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The container; removed when dropped.
pub struct Contained {
    id: String,
    port: u16,
    data: TempDir,
}

impl Contained {
    /// Starts one on the host's network: nothing must be forwarded to it.
    pub fn start() -> Result<Self> {
        let data = tempfile::tempdir()?;
        let port = ports::free()?;
        let (volume, number) = (format!("{}:/data", data.path().display()), port.to_string());
        let image = format!("wbic16/sq:{}", tools::SQ_VERSION);
        let mut args = vec!["run", "--detach", "--restart", "always", "--network", "host"];
        args.extend(["--volume", &volume, "--entrypoint", "/exo/sq", &image]);
        args.extend(["host", &number, "--key", KEY, "--data-dir", "/data"]);
        Ok(Self { id: docker::run(&args)?, port, data })
    }

    /// The file of a phext.
    pub fn file(&self, phext: &str) -> PathBuf {
        self.data.path().join(format!("{phext}.phext"))
    }

    /// One request. Blocks.
    pub fn send(&self, method: &str, path: &str, body: Option<&[u8]>) -> Result<Response> {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        exchange(to, &request(method, path, body), PATIENCE)
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        let _ = docker::run(&["rm", "--force", "--volumes", &self.id]);
    }
}
