//! SQ alone in a container, as one would run it without the gateway. Docker restarts it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;

use harness::bare_sq::{KEY, SqResponse, exchange, request};
use harness::host::docker;
use harness::host::ports;
use harness::host::tools;

/// Longest wait for one response.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running container, removed on drop.
pub(super) struct SqContainer {
    id: String,
    port: u16,
    data: TempDir,
}

impl SqContainer {
    /// Starts a container on the host's network, which needs no port forwarding.
    pub(super) fn start() -> Result<Self> {
        let data = tempfile::tempdir()?;
        let port = ports::free()?;
        let port_arg = port.to_string();
        let volume = format!("{}:/data", data.path().display());
        let image = format!("wbic16/sq:{}", tools::SQ_VERSION);
        let mut args = vec!["run", "--detach", "--restart", "always", "--network", "host"];
        args.extend(["--volume", &volume, "--entrypoint", "/exo/sq", &image]);
        args.extend(["host", &port_arg, "--key", KEY, "--data-dir", "/data"]);
        Ok(Self { id: docker::run(&args)?, port, data })
    }

    /// Returns the path of a phext's file on the host.
    pub(super) fn file(&self, phext: &str) -> PathBuf {
        self.data.path().join(format!("{phext}.phext"))
    }

    /// Sends one request and waits for its response. Blocks the thread.
    pub(super) fn send(&self, method: &str, path: &str, body: Option<&[u8]>) -> Result<SqResponse> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        exchange(address, &request(method, path, body), PATIENCE)
    }
}

impl Drop for SqContainer {
    fn drop(&mut self) {
        let _ = docker::run(&["rm", "--force", "--volumes", &self.id]);
    }
}
