//! CPU per request and requests per second of one Envoy worker, with each gate in turn.
//!
//! All gates are listeners of one process and take turns in rounds, so that what the machine does
//! beside falls on all of them; the median round counts. Upstream, relay and orchestrator are stubs
//! in this process: Envoy alone is measured.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::listeners::{Gate, Setup};
use super::stub::Stub;
use super::{Scale, cpu, generator, hostcalls, judged, percentile};
use harness::Client;
use harness::host::ports;
use harness::host::tools;
use harness::parts::process::Process;

/// CPU above the plain route, µs per request.
const GOAL_US: f64 = 8.0;
/// Connections of the load: enough to keep one worker busy.
const CONNECTIONS: u64 = 8;
/// Longest wait for an Envoy that compiles two wasm modules.
const START: Duration = Duration::from_mins(1);
/// Of no account: it opens nothing but the stub.
pub(super) const KEY: &str = "pmb-v1-0123456789abcdef0123456789abcdef";

/// An Envoy with one listener per gate and the stubs around it.
pub struct Bench {
    part: Process,
    ports: Vec<(Gate, u16)>,
    admin: Client,
    log: PathBuf,
    _stubs: [Stub; 3],
    _dir: TempDir,
}

pub(super) fn upstream(path: &str) -> Option<String> {
    path.starts_with('/').then(|| "hello from the tenant".to_owned())
}

pub(super) fn relay(path: &str) -> Option<String> {
    match path {
        protocol::headers::VERIFY_PATH => Some(
            r#"{"epoch":"bench","revision":1,"verdict":{"tenant":"bench","tier":"team",
            "status":"active","limits":{"requests_per_s":1000000,"burst":1000000,
            "requests_per_day":1000000000,"requests_per_month":1000000000,
            "writes_per_day":1000000000}}}"#
                .to_owned(),
        ),
        // ext_authz asks with the request's own path behind a prefix.
        path if path.starts_with("/authz") => Some(String::new()),
        // Who would not wait is told where to begin; then nothing ever changes.
        path if path.starts_with(protocol::headers::CHANGES_PATH)
            && path.ends_with("wait_ms=0") =>
        {
            Some(r#"{"epoch":"bench","revision":1}"#.to_owned())
        }
        _ => None,
    }
}

pub(super) fn orchestrator(path: &str) -> Option<String> {
    let lease = r#"{"cluster":"sq/bench","lease_ms":30000,"wake":"none","sq_version":"0.6.0"}"#;
    (path == protocol::headers::LEASE_PATH).then(|| lease.to_owned())
}

impl Bench {
    /// Starts the stubs and Envoy with one worker.
    pub async fn start() -> Result<Self> {
        let dir = TempDir::new()?;
        let stubs = [
            Stub::start(upstream).await?,
            Stub::start(relay).await?,
            Stub::start(orchestrator).await?,
        ];
        let empty = tools::empty_filter()?;
        let ours = tools::filter()?;
        let setup = Setup { key: KEY, empty: &empty, ours: &ours };
        let mut gates = Vec::new();
        let mut listeners = String::new();
        for gate in Gate::ALL {
            let port = ports::free()?;
            listeners += &gate.listener(port, &setup)?;
            gates.push((gate, port));
        }
        let admin_port = ports::free()?;
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
        part.ready(START, || {
            let admin = admin.clone();
            async move { admin.get("/ready").await.is_ok_and(|answer| answer.ok()) }
        })
        .await?;
        let log = dir.path().join("envoy.log");
        Ok(Self { part, ports: gates, admin, log, _stubs: stubs, _dir: dir })
    }

    async fn load(&self, gate: Gate, requests: u64) -> Result<(Duration, Duration)> {
        let port = self.ports.iter().find(|(g, _)| *g == gate).context("no such gate")?.1;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let request = format!(
            "GET /api/v2/select?p=bench&c=1.1.1/1.1.1/1.1.1 HTTP/1.1\r\nhost: bench\r\n\
             authorization: Bearer {KEY}\r\n\r\n"
        );
        let before = cpu::used(self.part.pid())?;
        let took = generator::run(address, &request, CONNECTIONS, requests)
            .await
            .with_context(|| format!("{}\n{}", gate.title(), self.part.tail()))?;
        Ok((cpu::used(self.part.pid())?.saturating_sub(before), took))
    }
}

/// Median CPU µs per request and requests per second.
struct Row {
    gate: Gate,
    cpu_us: f64,
    per_s: f64,
}

#[allow(clippy::cast_precision_loss)] // counts far below 2^52
async fn measure(bench: &Bench, scale: &Scale) -> Result<Vec<Row>> {
    let requests = scale.requests / CONNECTIONS * CONNECTIONS;
    let mut rounds: Vec<(Gate, f64, f64)> = Vec::new();
    for gate in Gate::ALL {
        bench.load(gate, CONNECTIONS * 50).await?; // warms caches and connections
    }
    for _ in 0..scale.rounds {
        for gate in Gate::ALL {
            let (cpu, took) = bench.load(gate, requests).await?;
            let cpu_us = cpu.as_secs_f64() * 1e6 / requests as f64;
            rounds.push((gate, cpu_us, requests as f64 / took.as_secs_f64()));
        }
    }
    let row = |gate| {
        let of: Vec<_> = rounds.iter().filter(|(g, ..)| *g == gate).collect();
        let cpu: Vec<f64> = of.iter().map(|(_, cpu, _)| *cpu).collect();
        let rate: Vec<f64> = of.iter().map(|(.., rate)| *rate).collect();
        let middle = |values: &[f64]| percentile(values, 50).unwrap_or(f64::NAN);
        Row { gate, cpu_us: middle(&cpu), per_s: middle(&rate) }
    };
    Ok(Gate::ALL.into_iter().map(row).collect())
}

/// Measures and prints the table.
pub async fn print(scale: &Scale) -> Result<()> {
    let bench = Bench::start().await?;
    let rows = measure(&bench, scale).await?;
    let plain = rows.first().map_or(f64::NAN, |row| row.cpu_us);
    println!("Warm request, one Envoy worker, HTTP/1.1, {} requests a round", scale.requests);
    println!("{:<34}{:>12}{:>14}{:>12}", "", "CPU µs", "above plain", "requests/s");
    for row in &rows {
        let above = row.cpu_us - plain;
        let goal = if row.gate == Gate::Ours { judged(above, GOAL_US) } else { String::new() };
        println!(
            "{:<34}{:>12.1}{above:>+14.1}{:>12.0}  {goal}",
            row.gate.title(),
            row.cpu_us,
            row.per_s
        );
    }
    let ours = bench.ports.iter().find(|(gate, _)| *gate == Gate::Ours);
    let address = ours.map(|(_, port)| *port).unwrap_or_default();
    let calls = hostcalls::per_request(&bench.admin, &bench.log, address, KEY).await?;
    let asked = calls.by_name.iter().find(|(name, _)| name.ends_with("proxy_http_call"));
    let asked = asked.map_or(0.0, |(_, count)| *count);
    ensure!(
        asked < 0.1,
        "not warm: each request asks {asked:.2} questions of relay or orchestrator"
    );
    println!("hostcalls of a warm request: {:.2}", calls.per_request);
    for (name, count) in calls.by_name {
        println!("    {count:>6.2} {name}");
    }
    Ok(())
}
