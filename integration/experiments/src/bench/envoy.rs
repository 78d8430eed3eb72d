//! The Envoy that is measured: one worker, one listener per variant, and stub servers as its
//! upstream, relay and orchestrator, so that only Envoy's cost counts.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::hostcalls::{self, HostcallCounts};
use super::stub_server::StubServer;
use super::{cpu, generator};
use harness::Client;
use harness::host::tools;
use harness::parts::process::Process;

/// Concurrent connections of the load: enough to keep one worker busy.
pub(super) const CONNECTIONS: u64 = 8;
/// The key of all requests. It opens nothing but the stub server.
pub(super) const KEY: &str = "pmb-v1-0123456789abcdef0123456789abcdef";
/// Longest wait for an Envoy that compiles several wasm modules.
const START: Duration = Duration::from_mins(1);
/// Requests per connection that warm caches and connections up.
const WARM_UP_REQUESTS: u64 = 50;
const BOOTSTRAP: &str = include_str!("envoy.yaml");

/// A running Envoy with its stub servers.
pub(super) struct BenchEnvoy {
    process: Process,
    admin: Client,
    dir: TempDir,
    _stubs: [StubServer; 3],
}

/// The cost of a number of requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoadCost {
    /// CPU time of Envoy per request, µs.
    pub(super) cpu_us: f64,
    /// Requests per second.
    pub(super) per_s: f64,
}

impl BenchEnvoy {
    /// Starts Envoy with `listeners`, YAML items of a bootstrap, and with stub servers.
    /// `orchestrator` maps the path of a request to the body of its response.
    pub(super) async fn start(
        listeners: &str,
        orchestrator: fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let dir = TempDir::new()?;
        let stubs = [
            StubServer::start(upstream).await?,
            StubServer::start(relay).await?,
            StubServer::start(orchestrator).await?,
        ];
        let admin = dir.path().join("admin.sock");
        let yaml = BOOTSTRAP
            .replace("@ADMIN@", &admin.display().to_string())
            .replace("@LISTENERS@\n", listeners)
            .replace("@UPSTREAM@", &stubs[0].port().to_string())
            .replace("@RELAY@", &stubs[1].port().to_string())
            .replace("@ORCHESTRATOR@", &stubs[2].port().to_string());
        let config = dir.path().join("envoy.yaml");
        fs::write(&config, yaml)?;
        let mut command = Command::new(tools::envoy()?);
        command.arg("-c").arg(&config).args(["--concurrency", "1", "--disable-hot-restart"]);
        let process = Process::start("envoy", dir.path(), &mut command)?;
        let admin = Client::unix(&admin);
        let is_ready = || async { admin.get("/ready").await.is_ok_and(|response| response.ok()) };
        process.ready(START, is_ready).await?;
        Ok(Self { process, admin, dir, _stubs: stubs })
    }

    /// Warms caches and connections of a listener up.
    pub(super) async fn warm_up(&self, port: u16) -> Result<()> {
        self.load(port, CONNECTIONS * WARM_UP_REQUESTS).await.map(drop)
    }

    /// Sends `requests` warm reads to a listener.
    #[allow(clippy::cast_precision_loss)] // counts far below 2^52
    pub(super) async fn load(&self, port: u16, requests: u64) -> Result<LoadCost> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let cpu_before = cpu::cpu_time(self.process.pid())?;
        let start = Instant::now();
        generator::run(address, &read_request(KEY), CONNECTIONS, requests)
            .await
            .with_context(|| self.process.tail())?;
        let elapsed = start.elapsed();
        let cpu = cpu::cpu_time(self.process.pid())?.saturating_sub(cpu_before);
        Ok(LoadCost {
            cpu_us: cpu.as_secs_f64() * 1e6 / requests as f64,
            per_s: requests as f64 / elapsed.as_secs_f64(),
        })
    }

    /// Counts the hostcalls of a warm read.
    pub(super) async fn hostcalls(&self, port: u16) -> Result<HostcallCounts> {
        let log = self.dir.path().join("envoy.log");
        hostcalls::per_request(&self.admin, &log, port, &read_request(KEY)).await
    }
}

/// Formats the request of all loads: a read of one scroll.
fn read_request(key: &str) -> String {
    format!(
        "GET /api/v2/select?p=bench&c=1.1.1/1.1.1/1.1.1 HTTP/1.1\r\nhost: bench\r\n\
         authorization: Bearer {key}\r\n\r\n"
    )
}

fn upstream(path: &str) -> Option<String> {
    path.starts_with('/').then(|| "hello from the tenant".to_owned())
}

fn relay(path: &str) -> Option<String> {
    match path {
        protocol::headers::VERIFY_PATH => Some(
            r#"{"epoch":"bench","revision":1,"verdict":{"tenant":"bench","tier":"team",
            "status":"active","limits":{"requests_per_s":1000000,"burst":1000000,
            "requests_per_day":1000000000,"requests_per_month":1000000000,
            "writes_per_day":1000000000}}}"#
                .to_owned(),
        ),
        // ext_authz sends the request's path with a prefix.
        path if path.starts_with("/authz") => Some(String::new()),
        // The first request of the changes feed gets the current revision. Later ones wait for
        // ever, because nothing changes.
        path if path.starts_with(protocol::headers::CHANGES_PATH)
            && path.ends_with("wait_ms=0") =>
        {
            Some(r#"{"epoch":"bench","revision":1}"#.to_owned())
        }
        _ => None,
    }
}

/// Responds to lease requests; usage reports get no response.
pub(super) fn orchestrator(path: &str) -> Option<String> {
    let lease = r#"{"cluster":"sq/bench","lease_ms":30000,"wake":"none","sq_version":"0.6.0"}"#;
    (path == protocol::headers::LEASE_PATH).then(|| lease.to_owned())
}
