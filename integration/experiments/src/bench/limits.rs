//! What limits and metering cost on the warm path: the filter against builds of it that neither
//! limit nor count, one of which says `RateLimit` and `RateLimit-Policy` all the same. Listeners of
//! one Envoy with one worker, in turns.
//!
//! The tenant's rate is one it keeps to, its quotas are finite, reports are answered: all that is
//! on in production is on. The difference of two neighbouring runs is one sample.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::hostcalls::{self, Calls};
use super::listeners::wasm;
use super::stub::Stub;
use super::{Scale, cpu, generator, judged, percentile, warm};
use harness::Client;
use harness::host::ports;
use harness::host::tools;
use harness::parts::process::Process;

/// CPU per request, µs.
const GOAL_US: f64 = 1.0;
/// Hostcalls per request.
const GOAL_CALLS: f64 = 0.5;
const CONNECTIONS: u64 = 8;
/// Longest wait for an Envoy that compiles three wasm modules.
const START: Duration = Duration::from_mins(1);
/// Rounds per round of the scale, each a fourth of its size: the difference is small against what a
/// machine does beside, so neighbours must be near.
const ROUNDS: usize = 16;

struct Bench {
    part: Process,
    admin: Client,
    /// With limits, with their headers only, without.
    ports: [u16; 3],
    dir: TempDir,
    _stubs: [Stub; 3],
}

fn orchestrator(path: &str) -> Option<String> {
    // A report that is not acknowledged comes again, as large as the next would be.
    if path == protocol::headers::USAGE_PATH {
        return Some(r#"{"sequence":0}"#.to_owned());
    }
    warm::orchestrator(path)
}

fn listener(name: &str, port: u16, module: &Path) -> String {
    let filters = "type.googleapis.com/envoy.extensions.filters";
    format!(
        r#"  - name: {name}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains: [{{filters: [{{name: hcm, typed_config: {{
      "@type": {filters}.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: {name}, http_filters: [{filter}
        {{name: router, typed_config: {{"@type": {filters}.http.router.v3.Router}}}}],
      route_config: {{virtual_hosts: [{{name: all, domains: ["*"],
        routes: [{{match: {{prefix: /}}, route: {{cluster_header: x-sq-cluster}}}}]}}]}}}}}}]}}]
"#,
        filter = wasm(name, module, r#"{"orchestrator_cluster":"orchestrator"}"#)
    )
}

impl Bench {
    async fn start() -> Result<Self> {
        let dir = TempDir::new()?;
        let stubs = [
            Stub::start(warm::upstream).await?,
            Stub::start(warm::relay).await?,
            Stub::start(orchestrator).await?,
        ];
        let ports = [ports::free()?, ports::free()?, ports::free()?];
        let admin_port = ports::free()?;
        let listeners = listener("limited", ports[0], &tools::filter()?)
            + &listener("told", ports[1], &tools::unlimited_filter(true)?)
            + &listener("unlimited", ports[2], &tools::unlimited_filter(false)?);
        let yaml = include_str!("envoy.yaml")
            .replace("@ADMIN@", &admin_port.to_string())
            .replace("@LISTENERS@\n", &listeners)
            .replace("@UPSTREAM@", &stubs[0].port().to_string())
            .replace("@RELAY@", &stubs[1].port().to_string())
            .replace("@ORCHESTRATOR@", &stubs[2].port().to_string());
        let config = dir.path().join("envoy.yaml");
        fs::write(&config, yaml)?;
        let mut command = Command::new(tools::envoy()?);
        command.arg("-c").arg(&config).args(["--concurrency", "1", "--disable-hot-restart"]);
        let part = Process::start("envoy", dir.path(), &mut command)?;
        let admin = Client::plaintext(&format!("http://127.0.0.1:{admin_port}"))?;
        part.ready(START, || async { admin.get("/ready").await.is_ok_and(|answer| answer.ok()) })
            .await?;
        Ok(Self { part, admin, ports, dir, _stubs: stubs })
    }

    /// CPU per request in µs.
    #[allow(clippy::cast_precision_loss)] // counts far below 2^52
    async fn load(&self, port: u16, requests: u64) -> Result<f64> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let request = format!(
            "GET /api/v2/select?p=bench&c=1.1.1/1.1.1/1.1.1 HTTP/1.1\r\nhost: bench\r\n\
             authorization: Bearer {}\r\n\r\n",
            warm::KEY
        );
        let before = cpu::used(self.part.pid())?;
        generator::run(address, &request, CONNECTIONS, requests)
            .await
            .with_context(|| self.part.tail())?;
        let used = cpu::used(self.part.pid())?.saturating_sub(before);
        Ok(used.as_secs_f64() * 1e6 / requests as f64)
    }

    async fn calls(&self, port: u16) -> Result<Calls> {
        let log = self.dir.path().join("envoy.log");
        hostcalls::per_request(&self.admin, &log, port, warm::KEY).await
    }
}

/// Measures and prints the table: means of the middle half.
#[allow(clippy::cast_precision_loss)] // counts far below 2^52
pub async fn print(scale: &Scale) -> Result<()> {
    let bench = Bench::start().await?;
    let requests = scale.requests / 4 / CONNECTIONS * CONNECTIONS;
    for port in bench.ports {
        bench.load(port, CONNECTIONS * 50).await?; // warms caches and connections
    }
    let mut rounds = Vec::new();
    for round in 0..scale.rounds * ROUNDS {
        let mut cpu = [0.0; 3];
        for turn in 0..3 {
            let which = (round + turn) % 3; // each comes first every third time
            cpu[which] = bench.load(bench.ports[which], requests).await?;
        }
        rounds.push(cpu);
    }
    println!("Limits and metering on a warm read, {} rounds of {requests} requests", rounds.len());
    println!("{:<34}{:>12}{:>20}", "", "CPU µs", "quartiles");
    let line = |title: &str, of: fn(&[f64; 3]) -> f64| {
        let values: Vec<f64> = rounds.iter().map(of).collect();
        let [low, high] = [25, 75].map(|percent| percentile(&values, percent).unwrap_or(f64::NAN));
        let inner: Vec<f64> = values.into_iter().filter(|v| (low..=high).contains(v)).collect();
        let middle = inner.iter().sum::<f64>() / inner.len() as f64;
        print!("{title:<34}{middle:>12.2}{:>20}", format!("{low:.2} … {high:.2}"));
        middle
    };
    line("the filter", |cpu| cpu[0]);
    println!();
    let decisions = line("of that: limits and metering", |cpu| cpu[0] - cpu[1]);
    println!("  {}", judged(decisions, GOAL_US));
    line("of that: two headers in answers", |cpu| cpu[1] - cpu[2]);
    println!();
    let (with, without) = (bench.calls(bench.ports[0]).await?, bench.calls(bench.ports[2]).await?);
    let more = with.per_request - without.per_request;
    println!("{:<34}{more:>12.2}     {}", "hostcalls of it", judged(more, GOAL_CALLS));
    for (name, count) in with.by_name {
        let plain = without.by_name.iter().find(|(n, _)| *n == name).map_or(0.0, |(_, n)| *n);
        if (count - plain).abs() >= 0.005 {
            println!("    {:>+8.2} {name}", count - plain);
        }
    }
    Ok(())
}
