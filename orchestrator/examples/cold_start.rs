//! Measures the time from a sleeping tenant to its first HTTP response, side by side in one run: a
//! stopped container started, a container created and started, one that starts in a prepared network
//! namespace, a process, and a paused container resumed.
//!
//!     cargo run --release -p orchestrator --example cold_start [ROUNDS]

// A measurement ends at the first fault and shows it as it is.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use orchestrator::config::{Config, DockerConfig, FirewallMode, ProcessConfig};
use orchestrator::runtime::docker::DockerRuntime;
use orchestrator::runtime::probe::wait_until_ready;
use orchestrator::runtime::process::ProcessRuntime;
use orchestrator::runtime::users::UserRange;
use orchestrator::runtime::{Endpoint, Runtime, Spec};
use protocol::containers::installation_id;
use protocol::{Limits, SqVersion, TenantId, TierName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const USERS: UserRange = UserRange { first: 10_001, count: 1_000 };
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Size of the pool of network namespaces.
const NETWORK_POOL: usize = 2;

/// The times of all rounds, one list per way to start.
#[derive(Default)]
struct Times {
    stopped: Vec<Duration>,
    created: Vec<Duration>,
    pooled: Vec<Duration>,
    process: Vec<Duration>,
    resumed: Vec<Duration>,
    removed: Vec<Duration>,
}

#[tokio::main]
async fn main() {
    let rounds = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(20);
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for folder in ["plain", "pool", "process"] {
        std::fs::create_dir(root.join(folder)).unwrap();
    }
    // Two networks: the pool must not take the address of the container that is started again.
    let plain_network = format!("sq-measure-{}-plain", std::process::id());
    let pool_network = format!("sq-measure-{}-pool", std::process::id());
    let plain = docker(&root.join("plain"), &plain_network, 0).await;
    let pool = docker(&root.join("pool"), &pool_network, NETWORK_POOL).await;
    let process = process(root);
    let mut times = Times::default();
    for _ in 0..rounds {
        measure_container(&plain, &mut times).await;
        measure_pool(&pool, &mut times).await;
        times.process.push(start(&process).await.0);
        process.stop(&tenant()).await.unwrap();
    }
    print(rounds, times);
    drop(plain);
    drop(pool);
    remove_network(&plain_network).await;
    remove_network(&pool_network).await;
    remove_firewall_rules(&root.join("plain"));
    remove_firewall_rules(&root.join("pool"));
}

/// One container: created and started, paused and resumed, stopped and started, removed.
async fn measure_container(runtime: &DockerRuntime, times: &mut Times) {
    let (took, endpoint) = start(runtime).await;
    times.created.push(took);
    runtime.pause(&tenant()).await.unwrap();
    let began = Instant::now();
    runtime.resume(&tenant()).await.unwrap();
    times.resumed.push(began.elapsed());
    times.stopped.push(restart(&endpoint).await);
    let began = Instant::now();
    runtime.stop(&tenant()).await.unwrap();
    times.removed.push(began.elapsed());
}

/// A container that starts in a prepared network namespace, once the pool is full.
async fn measure_pool(runtime: &DockerRuntime, times: &mut Times) {
    while runtime.free_networks() < NETWORK_POOL {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    times.pooled.push(start(runtime).await.0);
    runtime.stop(&tenant()).await.unwrap();
}

fn print(rounds: usize, times: Times) {
    println!("{rounds} rounds, ms to the first HTTP response{:>12}{:>8}{:>8}", "p50", "p90", "max");
    for (title, mut times) in [
        ("stopped container, started", times.stopped),
        ("container created and started", times.created),
        ("the same in a prepared namespace", times.pooled),
        ("process", times.process),
        ("paused container, resumed", times.resumed),
        ("container removed", times.removed),
    ] {
        times.sort();
        let p50 = percentile_ms(&times, 50);
        let p90 = percentile_ms(&times, 90);
        let max = percentile_ms(&times, 100);
        println!("{title:<43}{p50:>8.1}{p90:>8.1}{max:>8.1}");
    }
}

fn percentile_ms(sorted: &[Duration], percent: usize) -> f64 {
    sorted[(sorted.len() - 1) * percent / 100].as_secs_f64() * 1_000.0
}

async fn docker(data_root: &Path, network: &str, network_pool: usize) -> DockerRuntime {
    let network = network.to_owned();
    let is_root = rustix::process::geteuid().is_root();
    let firewall = if is_root { FirewallMode::Required } else { FirewallMode::Off };
    let config = DockerConfig { network, network_pool, firewall, ..Config::default().docker };
    let state_dir = data_root.with_extension("state");
    DockerRuntime::connect(data_root, &state_dir, USERS, config, vec![0]).await.unwrap()
}

fn process(root: &Path) -> ProcessRuntime {
    let sq = concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/sq-{version}/bin/sq").to_owned();
    let config = ProcessConfig { sq };
    ProcessRuntime::new(&root.join("process"), &root.join("state"), USERS, &config).unwrap()
}

fn tenant() -> TenantId {
    TenantId::parse("measured").unwrap()
}

async fn start(runtime: &impl Runtime) -> (Duration, Endpoint) {
    let spec = Spec {
        tenant: tenant(),
        tier: TierName::parse("free").unwrap(),
        limits: Limits::default(),
        sq_version: SqVersion::V0_6_0,
    };
    let began = Instant::now();
    let started = runtime.start(spec).await.unwrap();
    (began.elapsed(), started.endpoint)
}

/// Stops a container and measures its start by the daemon's bare API, as `docker start` does.
async fn restart(endpoint: &Endpoint) -> Duration {
    let id = &endpoint.instance.0;
    request_docker("POST", &format!("/containers/{id}/stop?t=0")).await;
    let began = Instant::now();
    request_docker("POST", &format!("/containers/{id}/start")).await;
    wait_until_ready(endpoint.address, READY_TIMEOUT).await.unwrap();
    began.elapsed()
}

/// Sends one request to the Docker daemon, without the runtime's client.
async fn request_docker(method: &str, path: &str) -> String {
    let mut stream = UnixStream::connect("/var/run/docker.sock").await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}

/// Removes the rules of the installation with this data root; without root it has none.
fn remove_firewall_rules(data_root: &Path) {
    let data_root = data_root.canonicalize().unwrap();
    let id = installation_id(data_root.as_os_str().as_encoded_bytes());
    let mut nft = std::process::Command::new("nft");
    nft.args(["delete", "table", "inet", &format!("sq-gateway-{id}")]);
    if rustix::process::geteuid().is_root() {
        assert!(nft.status().unwrap().success(), "the rules could not be removed");
    }
}

/// Removes a network with all containers in it: the namespaces of a pool outlast their runtime.
async fn remove_network(network: &str) {
    let response = request_docker("GET", &format!("/networks/{network}")).await;
    let json = &response[response.find('{').unwrap()..=response.rfind('}').unwrap()];
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    for id in json["Containers"].as_object().into_iter().flatten().map(|(id, _)| id) {
        request_docker("DELETE", &format!("/containers/{id}?force=1")).await;
    }
    request_docker("DELETE", &format!("/networks/{network}")).await;
}
